"""Anomaly detection with pretrained features: the library behind the notebooks.

The names below are loaded on first use, so that `import pandalib` is instant and `python -m pandalib doctor` can
speak even where torch is broken.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Backbone": "backbones",
    "load_backbone": "backbones",
    "FeatureCache": "cache",
    "Checkpoints": "adapt",
    "compactness": "adapt",
    "diagnose": "adapt",
    "sample_wise": "adapt",
    "Adapted": "detectors",
    "DN2": "detectors",
    "SampleWise": "detectors",
    "DeepSVDD": "svdd",
    "EWC": "ewc",
    "Fisher": "ewc",
    "fisher_information": "ewc",
    "linear_probe": "ewc",
    "upstream_fisher": "ewc",
    "OutlierExposure": "exposure",
    "load_outliers": "sources.outliers",
    "Inspector": "inspector",
    "SPADE": "segment",
    "MemoryBank": "bank",
    "PixelKNN": "detectors",
    "KNN": "knn",
    "knn_scores": "knn",
    "leave_one_out_scores": "knn",
    "roc_auc": "metrics",
    "roc_curve": "metrics",
    "bootstrap_interval": "metrics",
    "threshold_at": "metrics",
    "pixel_roc_auc": "pixel_metrics",
    "pro": "pixel_metrics",
    "pro_curve": "pixel_metrics",
    "OneClassTask": "tasks",
    "load_task": "tasks",
    "sibling_tasks": "tasks",
    "banner": "tiers",
    "current_tier": "tiers",
    "use": "tiers",
    "run": "runs",
    "load_grid": "grids",
    "sweep": "experiments",
    "read_results": "experiments",
    "summarise": "tables",
    "write_table": "tables",
    "published_numbers": "published",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"pandalib.{_HOME[name]}"), name)
    raise AttributeError(f"module 'pandalib' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
