"""One place for an option: a dataclass for each method, and one for each tier.

The fields of a method's dataclass are its options. Their names, types, defaults and help texts
give the arguments of `python -m pandalib run`, what a grid accepts, the labels of tables and the
settings in a result file. Torch is not imported here, so that `--help` and `doctor` answer at once:
detectors come from `pandalib`, which loads its public names on first use.

A tier is the network and the images on which the notebooks work. Every notebook prints
`banner(...)` first, so you always know which model and data produced a result.
"""

from __future__ import annotations

import math
import os
from dataclasses import Field, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from typing import Any, ClassVar, get_args, get_type_hints

import pandalib

# ---------------------------------------------------------------- tiers


@dataclass(frozen=True)
class Pace:
    """How fast and how long a tier trains. Work is counted in minibatches of 32 images.

    The defaults are the official ones: 15 epochs of 5,000 images for early stopping, 50 with EWC.
    """

    lr: float = 1e-2
    max_grad_norm: float = 1e-3
    early: int = 2300  # fixed early stopping
    sample_wise: int = 7800  # how far the checkpoints of sample-wise stopping reach
    long: int = 7800  # compactness without early stopping, and EWC
    ewc_lr: float = 1e-2  # for EWC: lambda times the largest F limits the stable rates
    ewc_lambda: float = 1e4
    exposure: int = 7800  # outlier exposure: 32 normal images and 32 outliers
    exposure_lr: float = 1e-1
    exposure_max_grad_norm: float = 1e-3
    shifted: int = 3900  # mean-shifted: 25 epochs of 5,000 images
    shifted_lr: float = 1e-5
    normalise: bool = False  # the pooled features, before kNN; False is the paper's setting


@dataclass(frozen=True)
class Tier:
    """The network, images and pace on which a notebook works by default.

    `fit` is how files become images of one size, as in `pandalib.datasets.images.Geometry`;
    `resize` is the shorter side before the centre crop.
    """

    name: str
    backbone: str
    needs: str
    weights: str = "imagenet"
    truncate_after: str | None = None
    size: int = 224
    fit: str = "stretch"
    resize: int | None = None
    task: str = ""
    pace: Pace = Pace()


PAPER = Pace()
EMBEDDED = Pace(  # chosen on other symbols than the ten that are tested
    lr=0.25,
    max_grad_norm=0.1,
    early=39,
    sample_wise=52,
    long=260,
    ewc_lr=0.08,
    ewc_lambda=3000.0,
    exposure=117,
    exposure_lr=0.05,
    exposure_max_grad_norm=1.0,
    shifted=104,  # tried on two other symbols, at four rates: none gained, higher ones lost
    shifted_lr=0.01,
)
STANDARD = Pace(  # chosen on another split of cells, dog and truck: docs/results/tuning_standard
    lr=0.02,
    max_grad_norm=0.1,
    early=32,
    sample_wise=230,
    long=460,
    ewc_lr=0.02,
    ewc_lambda=1000.0,
    exposure=130,  # this and the next two: not tuned
    exposure_lr=0.05,
    exposure_max_grad_norm=1.0,
    shifted=104,
    shifted_lr=0.0003,  # the better of two on CIFAR-10's dog: docs/results/tuning_cifar10_standard
    normalise=True,
)
TIERS = {
    "embedded": Tier(
        "embedded",
        "glyphs_resnet4",
        "nothing: no network, no GPU",
        weights="embedded",
        size=64,
        task="pictograms:star",
        pace=EMBEDDED,
    ),
    "standard": Tier(
        "standard",
        "mobilenet_v2",
        "the photographs and weights that `make install` brings",
        size=160,
        task="elpv:poly",
        pace=STANDARD,
    ),
    "paper": Tier("paper", "resnet152", "weights, the data sets, a GPU", fit="crop", resize=256),
}
_chosen: Tier | None = None


def tier_named(name: str) -> Tier:
    """The tier of this name; ValueError if there is none."""
    if name not in TIERS:
        raise ValueError(f"tier {name!r} is unknown: choose one of {', '.join(TIERS)}.")
    return TIERS[name]


def use(name: str, **changes) -> Tier:
    """Choose the tier for this session.

    Parameters
    ----------
    name : {"embedded", "standard", "paper"}
    **changes
        Fields to replace, for example `task="folder:photos:good"`.
    """
    global _chosen
    _chosen = replace(tier_named(name), **changes)
    return _chosen


def current_tier() -> Tier:
    """The tier chosen by `use`, else by PANDALIB_TIER and PANDALIB_TASK, else embedded.

    Raises
    ------
    ValueError
        If the tier has no images of its own and none were named.
    """
    tier = _chosen
    if tier is None:
        tier = tier_named(os.environ.get("PANDALIB_TIER") or "embedded")
        tier = replace(tier, task=os.environ.get("PANDALIB_TASK") or tier.task)
    if not tier.task:
        raise ValueError(
            f"tier {tier.name!r} has no images of its own: name some, as in "
            "PANDALIB_TASK=cifar10:airplane or folder:PATH:CLASS."
        )
    return tier


def versions() -> dict[str, str | None]:
    """The versions of the libraries on which a result may depend."""
    found: dict[str, str | None] = {"pandalib": pandalib.__version__}
    for name in ("torch", "torchvision", "numpy", "scikit-learn", "faiss-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # conda, for example, has another name for faiss
            found[name] = None
    return found


def banner(tier: Tier, task=None, backbone=None) -> None:
    """Print the tier, the images, the network with its weights, and the versions in use."""
    print(f"tier      {tier.name} (needs {tier.needs})")
    if task is not None:
        print(
            f"images    {task.name}: {len(task.train)} normal to learn from, "
            f"{len(task.test)} to test"
        )
    if backbone is not None:
        print(
            f"backbone  {backbone.name} up to {backbone.truncate_after}, "
            f"weights SHA-256 {backbone.weights_sha256[:12]}"
        )
    if task is not None and task.credit:
        print(f"credit    {task.credit}")
    found = versions()
    shown = ("torch", "torchvision", "numpy", "faiss-cpu")
    print("versions  " + ", ".join(f"{name} {found[name]}" for name in shown))


# ---------------------------------------------------------------- options of methods


def option(default: Any, help: str, *, pace: str | None = None, choices: dict | None = None):
    """A field that is an option.

    Parameters
    ----------
    default : value or None
        None stands for the tier's pace, or for what `help` says.
    help : str
    pace : str, optional
        The field of the tier's `Pace` that gives the default.
    choices : dict, optional
        The accepted values by their names on the command line.
    """
    return field(default=default, metadata={"help": help, "pace": pace, "choices": choices})


SIZE = "side of the images in pixels; default: the tier's"
EPOCHS = "passes over the normal images; default: the tier's pace"
RATE = "learning rate; default: the tier's pace"
CLIP = "norm to which gradients are clipped; default: the tier's pace"
HISTORY = "approximate number of checkpoints in the history, besides the first; 0: none"
NEIGHBOURS = "neighbours of kNN"
LENGTH_ONE = "scale features to length one before kNN; default: the tier's"


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options of every method: the images that it sees."""

    detector: ClassVar[str]  # a public name of pandalib
    size: int | None = option(None, SIZE)
    n_train: int | None = option(None, "number of normal training images")
    n_test: int | None = option(None, "number of test images of each class or defect")
    level: str | None = option(
        None, "difficulty of pictograms (plain, easy, medium, hard) or surfaces (clear, ... faint)"
    )
    defects: str | None = option(None, "of surfaces: which defects to test on, as hole,cut")
    fit: str | None = option(
        None, "the whole image (stretch, pad) or its centre (crop); default: the tier's"
    )
    doubtful: str | None = option(
        None, "of solar cells: what to do with doubtful ones, out (default) or anomalous"
    )
    missing_masks: str = option(
        "error", "anomalous images without a mask: error, drop or none (use no mask)"
    )

    def build(self, setup):
        """The unfitted detector, given each option and each field of `setup` that it has.

        `setup` is a `pandalib.experiments.run.Setup`, what a run has at hand.
        """
        detector = getattr(pandalib, self.detector)
        offered = vars(self) | vars(setup) | {"on_epoch": setup.on_checkpoint} | self.made(setup)
        wanted = signature(detector).parameters
        return detector(**{name: value for name, value in offered.items() if name in wanted})

    def made(self, setup) -> dict[str, Any]:
        """Arguments of the detector that are computed from options."""
        return {}

    def at_pace(self, pace: Pace, n_train: int) -> ImageOptions:
        """The same options, with the tier's pace for those that were not given."""
        missing = {
            one.name: getattr(pace, one.metadata["pace"])
            for one in fields(self)
            if one.metadata["pace"] and getattr(self, one.name) is None
        }
        if "epochs" in missing:  # so that they come closest to this many minibatches
            missing["epochs"] = max(1, round(missing["epochs"] / math.ceil(n_train / 32)))
        return replace(self, **missing)


@dataclass(frozen=True, kw_only=True)
class PixelOptions(ImageOptions):
    """kNN on the pixels themselves"""

    detector = "PixelKNN"
    k: int = option(2, NEIGHBOURS)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(ImageOptions):
    """Options of the methods that have a pretrained network."""

    backbone: str | None = option(
        None, "glyphs_resnet4, a network of torchvision, or timm:NAME; default: the tier's"
    )
    weights: str | None = option(None, "embedded, imagenet (timm: also hub), random, or a file")
    truncate_after: str | None = option(None, "cut the network after this stage, as layer3")
    bias_free: bool = option(False, "remove every bias, as DeepSVDD demands")
    pool: str | None = option(
        None, "pooled feature of timm's transformers: token or mean; default: the network's own"
    )


@dataclass(frozen=True, kw_only=True)
class DN2Options(NetworkOptions):
    """kNN on pretrained features"""

    detector = "DN2"
    k: int = option(2, NEIGHBOURS)
    normalise: bool | None = option(None, LENGTH_ONE, pace="normalise")
    n_centres: int | None = option(None, "number of k-means centres in place of the gallery")


@dataclass(frozen=True, kw_only=True)
class WhitenedOptions(DN2Options):
    """kNN on whitened pretrained features"""

    normalise: bool = option(False, LENGTH_ONE)

    def made(self, setup) -> dict[str, Any]:
        return {"whiten": True}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(NetworkOptions):
    """Options of the methods that train a part of the network."""

    adapt_from: str | None = option(
        None, "first stage that is trained, as layer4; default: the network's"
    )
    epochs: int | None = option(None, EPOCHS, pace="long")
    lr: float | None = option(None, RATE, pace="lr")
    max_grad_norm: float | None = option(None, CLIP, pace="max_grad_norm")
    bf16: bool | str = option(
        False,
        "train and score in bfloat16; auto tries which is faster here",
        choices={"off": False, "on": True, "auto": "auto"},
    )
    checkpoints: int = option(10, HISTORY)


@dataclass(frozen=True, kw_only=True)
class CompactnessOptions(TrainingOptions):
    """PANDA without early stopping: trained until the features collapse"""

    detector = "PANDA"
    k: int = option(2, NEIGHBOURS)
    normalise: bool | None = option(None, LENGTH_ONE, pace="normalise")


@dataclass(frozen=True, kw_only=True)
class EarlyOptions(CompactnessOptions):
    """PANDA with a fixed early stop"""

    epochs: int | None = option(None, EPOCHS, pace="early")


@dataclass(frozen=True, kw_only=True)
class SESOptions(CompactnessOptions):
    """PANDA with sample-wise early stopping"""

    detector = "PANDASES"
    epochs: int | None = option(None, EPOCHS, pace="sample_wise")

    def made(self, setup) -> dict[str, Any]:
        return {"checkpoint_every": 1}  # needed by the method; the history may keep fewer


@dataclass(frozen=True, kw_only=True)
class EWCOptions(CompactnessOptions):
    """PANDA with elastic weight consolidation"""

    detector = "PANDAEWC"
    lr: float | None = option(None, RATE, pace="ewc_lr")
    ewc_lambda: float | None = option(
        None, "strength of the penalty; default: the tier's", pace="ewc_lambda"
    )
    fisher: str | None = option(None, "file with the Fisher information, as pandalib saves it")
    fisher_images: str | None = option(
        None, "folder with one folder of images per class, to compute it from"
    )
    fisher_samples: int | None = option(
        None, "images for it; default: 600 glyphs for the embedded network, else 200"
    )
    fisher_recipe: str = option(
        "per-sample",
        "per-sample, the definition; batch-mean, squares of the mean gradient of 32 images; "
        "uniform, the mean of F for all: plain L2",
    )

    def made(self, setup) -> dict[str, Any]:
        return {"fisher": setup.fisher(self)}


@dataclass(frozen=True, kw_only=True)
class MeanShiftedOptions(NetworkOptions):
    """mean-shifted contrastive adaptation, scored by angle"""

    detector = "MeanShifted"
    normalise: ClassVar[bool] = True  # always: the score is an angle
    k: int = option(2, NEIGHBOURS)
    adapt_from: str | None = option(
        None, "first stage that is trained, as layer4; default: the network's"
    )
    epochs: int | None = option(None, EPOCHS, pace="shifted")
    lr: float | None = option(None, RATE, pace="shifted_lr")
    max_grad_norm: float | None = option(None, "norm to which gradients are clipped; default: none")
    temperature: float = option(0.25, "of the contrastive loss")
    angular: bool = option(False, "add the angular loss, compactness on the sphere")
    checkpoints: int = option(10, HISTORY)


@dataclass(frozen=True, kw_only=True)
class OutlierOptions(TrainingOptions):
    """outlier exposure: a classifier of normal images against outliers"""

    detector = "OutlierExposure"
    epochs: int | None = option(None, EPOCHS, pace="exposure")
    lr: float | None = option(None, RATE, pace="exposure_lr")
    max_grad_norm: float | None = option(None, CLIP, pace="exposure_max_grad_norm")
    outlier_images: str | None = option(
        None,
        "near (default), single, middle, far or noise for pictograms; a folder; a set, as cifar100",
    )
    n_outliers: int | None = option(None, "number of outliers; default: 2000 drawn, or all")

    def made(self, setup) -> dict[str, Any]:
        return {"outlier_images": setup.outliers(self)}


@dataclass(frozen=True, kw_only=True)
class SVDDOptions(ImageOptions):
    """DeepSVDD: a network without biases, trained from scratch"""

    detector = "DeepSVDD"
    epochs: int = option(15, "passes over the normal images")
    lr: float = option(1e-3, "learning rate")
    checkpoints: int = option(10, HISTORY)


@dataclass(frozen=True, kw_only=True)
class MapOptions(NetworkOptions):
    """Options of the methods that give a map for each image."""

    compared: ClassVar[slice] = slice(None)  # by default, of the network's layers for maps
    layers: str | None = option(None, "layers that are compared, as layer1,layer2")
    sigma: float = option(4.0, "Gaussian blur of the maps, in pixels")

    def made(self, setup) -> dict[str, Any]:
        if self.layers is not None:
            return {"layers": [name.strip() for name in self.layers.split(",")]}
        network = setup.backbone
        if not network.map_layers:
            raise ValueError(
                f"{network.name} up to {network.truncate_after} has no layer for maps: choose a "
                "later truncate_after, or layers."
            )
        return {"layers": network.map_layers[self.compared]}


@dataclass(frozen=True, kw_only=True)
class SPADEOptions(MapOptions):
    """SPADE: each position against those in the nearest normal images"""

    detector = "SPADE"
    n_images: int = option(50, "number of nearest normal images to compare with")
    kappa: int = option(1, "number of nearest positions")
    balanced: bool = option(False, "scale the layers alike before their mean")


@dataclass(frozen=True, kw_only=True)
class PatchCoreOptions(MapOptions):
    """PatchCore: each position against a memory bank of patches"""

    detector = "PatchCore"
    compared = slice(-2, None)
    coreset_ratio: float = option(0.1, "fraction of the patches kept in the memory bank")
    reweight: bool = option(False, "multiply the score of an image by the paper's weight")


@dataclass(frozen=True, kw_only=True)
class PaDiMOptions(MapOptions):
    """PaDiM: each position against the Gaussian of the same position"""

    detector = "PaDiM"
    n_features: int = option(100, "channels that are drawn")


@dataclass(frozen=True, kw_only=True)
class PCAOptions(MapOptions):
    """PCA residual: each position against the subspace of normal patches"""

    detector = "PCAResidual"
    compared = slice(-2, None)
    explained: float = option(0.99, "share of the variance that the subspace explains")


METHODS: dict[str, type[ImageOptions]] = {
    "pixels": PixelOptions,
    "dn2": DN2Options,
    "whitened": WhitenedOptions,
    "compactness": CompactnessOptions,
    "early": EarlyOptions,
    "ses": SESOptions,
    "ewc": EWCOptions,
    "oe": OutlierOptions,
    "mean_shifted": MeanShiftedOptions,
    "svdd": SVDDOptions,
    "spade": SPADEOptions,
    "bank": PatchCoreOptions,
    "padim": PaDiMOptions,
    "pca": PCAOptions,
}


def options_of(method: str) -> dict[str, Field]:
    """The options of a method by name; ValueError for an unknown method."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}.")
    return {one.name: one for one in fields(METHODS[method])}


def methods_with(name: str) -> list[str]:
    """The methods that have an option of this name."""
    return [method for method in METHODS if name in options_of(method)]


def kind_of(method: str, name: str) -> type:
    """The type of an option's value: int, float, bool or str."""
    hint = get_type_hints(METHODS[method])[name]
    return (get_args(hint) or (hint,))[0]


def make_options(method: str, given: dict[str, Any]) -> ImageOptions:
    """The options of a method with these values; None stands for the default.

    Raises ValueError for an unknown option and for a value of another type.
    """
    known = options_of(method)
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name not in known:
            others = methods_with(name)
            where = f"it is one of {', '.join(others)}" if others else f"it has {', '.join(known)}"
            raise ValueError(f"{name} is not an option of {method}: {where}.")
        kind, choices = kind_of(method, name), known[name].metadata["choices"]
        if choices:
            fits, expected = value in choices.values(), " or ".join(map(str, choices.values()))
        else:
            fits, expected = type(value) is kind, kind.__name__
            fits = fits or (kind is float and type(value) is int)
        if not fits or value in (math.inf, -math.inf) or value != value:
            raise ValueError(f"{name} = {value!r}: expected {expected}.")
    return METHODS[method](**given)


def default_of(method: str, name: str, tier: str) -> Any:
    """The value of an option that was not given: the tier's pace, or its default."""
    one = options_of(method)[name]
    if one.metadata["pace"] and name != "epochs":
        return getattr(TIERS[tier].pace, one.metadata["pace"])
    return one.default
