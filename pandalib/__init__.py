"""Anomaly detection with pretrained features: the library behind the notebooks.

The names below are loaded on first use, so that `import pandalib` is instant and
`python -m pandalib doctor` can speak even where torch is broken.
"""

import os
from importlib import import_module

# Threads that wait for work spin on their core for a while. Where another process wants the same
# core, each slows the other up to tenfold; waiting briefly costs nothing on a quiet machine. It is
# read when torch is loaded, so the Makefile sets it too, for those who import torch first.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.2.0"

_HOME = {
    "Backbone": "backbones",
    "load_backbone": "backbones",
    "FeatureCache": "cache",
    "Checkpoints": "methods.training",
    "compactness": "methods.panda",
    "diagnose": "methods.diagnostics",
    "sample_wise_scores": "methods.panda",
    "PANDA": "methods.panda",
    "PANDAEWC": "methods.panda",
    "DN2": "methods.knn",
    "PANDASES": "methods.panda",
    "DeepSVDD": "methods.deep_svdd",
    "EWC": "methods.ewc",
    "Fisher": "methods.ewc",
    "fisher_information": "methods.ewc",
    "linear_probe": "methods.ewc",
    "upstream_fisher": "experiments.fisher",
    "OutlierExposure": "methods.outlier_exposure",
    "load_outliers": "datasets.outliers",
    "Inspector": "inspection.inspector",
    "SPADE": "methods.spade",
    "PatchCore": "methods.patchcore",
    "MeanShifted": "methods.mean_shifted",
    "PaDiM": "methods.padim",
    "PCAResidual": "methods.subspace",
    "NuisanceProjection": "methods.nuisance",
    "PixelKNN": "methods.knn",
    "KNN": "methods.knn",
    "knn_scores": "methods.knn",
    "leave_one_out_scores": "methods.knn",
    "roc_auc": "metrics",
    "roc_curve": "metrics",
    "bootstrap_interval": "metrics",
    "paired_interval": "metrics",
    "threshold_at": "metrics",
    "pixel_roc_auc": "metrics",
    "pro": "metrics",
    "pro_curve": "metrics",
    "OneClassTask": "datasets.task",
    "load_task": "datasets.load",
    "sibling_tasks": "datasets.load",
    "banner": "experiments.config",
    "current_tier": "experiments.config",
    "use": "experiments.config",
    "run": "experiments.run",
    "load_grid": "experiments.grids",
    "sweep": "experiments.sweep",
    "read_results": "experiments.results",
    "summarise": "experiments.tables",
    "write_table": "experiments.tables",
    "published_numbers": "experiments.published",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"pandalib.{_HOME[name]}"), name)
    raise AttributeError(f"module 'pandalib' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
