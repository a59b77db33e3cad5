"""`python -m pandalib doctor`: what works on this machine, what is missing, and how to get it.

Imports nothing but the standard library, because it has to run exactly when torch does not. Each finding is one line,
`ok`, `warn` or `FAIL`; a FAIL means that the chosen tier cannot run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import files, tiers

TIERS = tuple(tiers.TIERS)
DIRECT = (
    "jupyterlab",
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "scipy",
    "faiss-cpu",
    "matplotlib",
    "pillow",
    "safetensors",
    "tqdm",
    "ipywidgets",
)
OTHER_NAMES = {"faiss-cpu": ("faiss", "faiss-gpu")}  # conda and GPU builds go by these
FOR_TESTS = ("nbval", "pytest", "pytest-cov", "hypothesis", "selenium")
WEIGHTS_HOST = "download.pytorch.org"  # where torchvision fetches its weights
DISK_GB = {"embedded": 1, "standard": 4, "paper": 50}  # features and images


@dataclass(frozen=True)
class Finding:
    level: str  # "ok", "warn" or "FAIL"
    what: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what}" + (f"  — {self.todo}" if self.todo else "")


def check(tier: str | None = None) -> list[Finding]:
    """Look at this machine for `tier` ("embedded", "standard" or "paper"; default PANDALIB_TIER, then "embedded")."""
    tier = tier or os.environ.get("PANDALIB_TIER") or "embedded"
    if tier not in TIERS:
        return [Finding("FAIL", f"tier {tier!r} is unknown", f"choose one of {', '.join(TIERS)}, with --tier or PANDALIB_TIER")]
    pins = locked_versions()
    probe = probe_torch() if version_of("torch") else {"torch_error": ""}
    findings = [check_python(), *check_packages(pins), *check_torch(pins, probe)]
    findings += [check_fonts(), check_embedded(tier, probe), check_cache(), check_disk(tier), *check_hardware(tier, probe)]
    if tier != "embedded":
        findings += check_tier_needs(tier)
    return findings


# ---------------------------------------------------------------- Python and packages


def check_python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):
        return Finding("FAIL", f"Python {version}; 3.11 or newer is needed", "make clean install PYTHON=/path/to/a/newer/python3")
    return Finding("ok", f"Python {version}")


def locked_versions(lock: Path | None = None) -> dict[str, str]:
    """Name and version of every package in requirements.lock; empty if there is no such file."""
    try:
        text = (lock or files.ROOT / "requirements.lock").read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(re.findall(r"^([a-z0-9.-]+)==([^\s;\\]+)", text, re.MULTILINE))


def version_of(name: str) -> str | None:
    for candidate in (name, *OTHER_NAMES.get(name, ())):
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            pass
    return None


def same_version(have: str, pin: str) -> bool:
    """2.15.0+cpu is the 2.15.0 that was asked for."""
    return have.split("+")[0] == pin.split("+")[0]


def check_packages(pins: dict[str, str]) -> list[Finding]:
    findings = (
        [] if pins else [Finding("warn", "requirements.lock is missing, so versions are not compared", "git checkout requirements.lock")]
    )
    pinned = {name: f"{name}=={pins[name]}" if name in pins else name for name in (*DIRECT, *FOR_TESTS)}
    have = {name: version_of(name) for name in pinned if name not in ("torch", "torchvision")}  # these two need more words: check_torch
    for names, level, why in ((DIRECT, "FAIL", ""), (FOR_TESTS, "warn", " (only the tests need it)")):
        missing = [name for name in names if name in have and have[name] is None]
        if missing:
            findings.append(
                Finding(
                    level,
                    f"not installed: {', '.join(missing)}{why}",
                    f"make install, or: python -m pip install {' '.join(pinned[name] for name in missing)}",
                )
            )
    there = {name: version for name, version in have.items() if version}
    other = [name for name in there if name in pins and not same_version(there[name], pins[name])]
    for name in other:
        findings.append(
            Finding(
                "warn",
                f"{name} {there[name]}; tested with {pins[name]}",
                f"if something behaves oddly: make install, or: python -m pip install {pinned[name]}",
            )
        )
    good = [f"{name} {version}" for name, version in there.items() if name not in other]
    return findings + ([Finding("ok", ", ".join(good))] if good else [])


# ---------------------------------------------------------------- torch and torchvision

PROBE = """
import json, os
found = {}
def attempt(name, action):
    try:
        found[name] = action()
    except BaseException as error:
        text = str(error).strip().splitlines()
        found[name + "_error"] = type(error).__name__ + ": " + (text[-1] if text else "")
def torch():
    import torch
    return torch.__version__
def torchvision():
    import torchvision
    return torchvision.__version__
def threads():
    import torch
    return torch.get_num_threads()
def bf16():
    import torch
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
def build():
    import torch
    return torch.version.cuda or "cpu"
def cuda():
    import torch
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
attempt("torch", torch)
if "torch" in found:
    for name, action in (("torchvision", torchvision), ("build", build), ("threads", threads), ("bf16", bf16), ("cuda", cuda)):
        attempt(name, action)
print("\\n" + json.dumps(found))
"""


def probe_torch() -> dict:
    """What torch says of itself, asked in another process: a broken build may take its process down with it."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return {"torch_error": "no answer within three minutes"}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"torch_error": f"Python ended with code {done.returncode} while importing it"}


def check_torch(pins: dict[str, str], probe: dict) -> list[Finding]:
    torch, vision = version_of("torch"), version_of("torchvision")
    pair = " ".join(f"{name}=={pins[name]}" if name in pins else name for name in ("torch", "torchvision"))
    install = f"make install, or: python -m pip install {pair}"
    if torch is None:
        also = "" if vision else ", nor is torchvision"
        return [Finding("FAIL", f"torch is not installed{also}", install)]
    if "torch_error" in probe:
        return [
            Finding(
                "FAIL",
                f"torch {torch} does not import ({probe['torch_error']})",
                f"install it afresh: make clean install, or: python -m pip install --force-reinstall {pair}",
            )
        ]
    if vision is None:
        return [Finding("FAIL", f"torch {torch} is here, torchvision is not installed", install)]
    other = "torch" in pins and not same_version(torch, pins["torch"])
    if "torchvision_error" in probe:
        error = probe["torchvision_error"]
        what = f"torchvision {vision} does not import with torch {torch} ({error})"
        anew = f"python -m pip install --force-reinstall {pair}, then restart the kernel"
        if probe.get("build") == "cpu" and sys.platform.startswith("linux"):
            # torchvision of the usual index is built against CUDA's torch, and says only this when it finds a CPU one.
            return [
                Finding(
                    "FAIL",
                    what,
                    f"torch is a CPU-only build, and torchvision one for CUDA or for another torch. Take both from one place: {anew}; "
                    "or, CPU only: make clean install TORCH_INDEX=(an index with both)",
                )
            ]
        if other or re.search(r"torchvision::|undefined symbol|cannot open shared object|compiled with different", error):
            return [Finding("FAIL", what, f"the two must be a pair: {anew}")]
        return [Finding("FAIL", what, f"install it afresh: {anew}")]
    if other or ("torchvision" in pins and not same_version(vision, pins["torchvision"])):
        return [
            Finding(
                "warn",
                f"torch {torch} with torchvision {vision}; tested with {pins.get('torch')} and {pins.get('torchvision')}",
                f"if a number leaves its band: {install}",
            )
        ]
    return [Finding("ok", f"torch {torch} with torchvision {vision}")]


# ---------------------------------------------------------------- files


def check_fonts() -> Finding:
    """The embedded images are drawn with matplotlib's own DejaVu fonts."""
    spec = importlib.util.find_spec("matplotlib")  # finds it without importing it
    if spec is None or spec.origin is None:
        return Finding("warn", "fonts not checked", "install matplotlib first")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    missing = [name for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf") if not (folder / name).is_file()]
    if missing:
        return Finding(
            "FAIL",
            f"matplotlib's font {missing[0]} is missing; the embedded images are drawn with it",
            "python -m pip install --force-reinstall --no-deps matplotlib",
        )
    return Finding("ok", "matplotlib's DejaVu fonts")


def check_embedded(tier: str, probe: dict) -> Finding:
    bad = "FAIL" if tier == "embedded" else "warn"  # the other tiers do without
    if "torchvision" not in probe:
        return Finding("warn", "embedded weights not checked", "mend torch and torchvision first")
    try:
        from . import backbones

        verify = backbones.verify_embedded
    except (ImportError, AttributeError) as error:
        return Finding("FAIL", f"pandalib.backbones does not import ({error})", "git status: is the checkout complete?")
    try:
        verify()
    except Exception as error:  # whatever it is, the line must be printed and the other checks must run
        what, _, todo = " ".join(str(error).split()).partition(". ")
        return Finding(bad, f"embedded weights: {what or type(error).__name__}", todo or "git checkout data/weights")
    return Finding("ok", "embedded weights present, SHA-256 as committed")


def check_cache() -> Finding:
    folder = files.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".doctor-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return Finding("FAIL", f"cache folder {folder} cannot be written ({error.strerror})", "set PANDALIB_CACHE to a folder of yours")
    return Finding("ok", f"cache folder {folder} can be written")


def check_disk(tier: str) -> Finding:
    folder = files.cache_folder()
    while not folder.exists():
        folder = folder.parent
    free, wanted = shutil.disk_usage(folder).free / 1e9, DISK_GB[tier]
    if free < wanted:
        return Finding(
            "warn",
            f"{free:.1f} GB free for the cache; the {tier} tier may use {wanted} GB",
            "free some space, or set PANDALIB_CACHE to a folder on a larger disk",
        )
    return Finding("ok", f"{free:.0f} GB of disk free")


# ---------------------------------------------------------------- hardware and tiers


def check_hardware(tier: str, probe: dict) -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = f"{cores} CPU cores"
    if "threads" in probe:
        words += f", torch uses {probe['threads']} threads"
    if probe.get("bf16"):
        words += ", bfloat16 possible (run --bf16 tries whether it is faster)"
    findings = [Finding("ok", words)]
    devices = probe.get("cuda")
    if devices:
        findings.append(Finding("ok", "GPU: " + ", ".join(devices)))
    elif tier == "paper":
        findings.append(Finding("warn", "no GPU; on a CPU the paper tier takes days", "use a machine with a CUDA GPU, or --tier standard"))
    else:
        findings.append(Finding("ok", f"no GPU, and the {tier} tier needs none"))
    return findings


def hub_checkpoints() -> Path:
    """Where torch keeps downloaded weights, by its own rules, without importing it."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def network(host: str = WEIGHTS_HOST, seconds: float = 3.0) -> bool:
    try:
        socket.create_connection((host, 443), timeout=seconds).close()
    except OSError:
        return False
    return True


def check_tier_needs(tier: str) -> list[Finding]:
    """Weights and images of a tier that does not bring its own."""
    findings = []
    if not tiers.TIERS[tier].task and not os.environ.get("PANDALIB_TASK"):
        findings.append(Finding("warn", f"the {tier} tier brings no images of its own", "name some: PANDALIB_TASK=cifar10:airplane or folder:PATH:CLASS"))
    name, folder = tiers.TIERS[tier].backbone, hub_checkpoints()
    if any(folder.glob(f"{name}-*.pth")):  # as torchvision names them, with the start of their hash
        findings.append(Finding("ok", f"weights of {name} in {folder}"))
    elif network():
        findings.append(Finding("ok", f"weights of {name} are fetched from {WEIGHTS_HOST} when first used"))
    else:
        findings.append(
            Finding(
                "FAIL",
                f"the {tier} tier needs the weights of {name}: not in {folder}, and {WEIGHTS_HOST} does not answer",
                "connect to the network, copy the .pth file there, or use --tier embedded",
            )
        )
    return findings


# ---------------------------------------------------------------- command line
