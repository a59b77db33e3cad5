"""Other people's detectors in an environment of their own: `python bench/peers.py` makes
`.venv-peers`, once.

anomalib and pyod bring two score of packages that the course does not need. Their environment sees
this one's through a `.pth` file, so torch is installed once, and both sides compute with the same
torch, torchvision and numpy. A comparison runs a job of `bench/jobs.py` in a process of its own, on
either side: `ask`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-peers"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
VERSIONS = {"anomalib": "2.7.0", "pyod": "3.6.7"}
SHARED = (
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "scipy",
)  # not installed a second time, and not in another version


class Trouble(Exception):
    """A message for the user: what was found, what was expected, what to do."""


def _wanted() -> dict:
    """What a complete environment says of itself: it fits the one that it was made beside and no
    other.
    """
    return {
        **VERSIONS,
        **{name: version(name) for name in SHARED},
        "beside": sysconfig.get_paths()["purelib"],
    }


def why_not() -> str | None:
    """None if the peers' environment is complete, else the reason."""
    try:
        if json.loads((VENV / "complete.json").read_text(encoding="utf-8")) == _wanted():
            return None
        found = f"{VENV.name} was made beside other packages"
    except (OSError, ValueError):
        found = f"{' and '.join(VERSIONS)} are not installed in {VENV.name}"
    return f"{found}: run `python bench/peers.py`, which needs a package index"


def install() -> None:
    """Make `.venv-peers` from the package index that pip is set up with; quick when it is there.

    Raises Trouble.
    """
    if why_not() is None:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(VENV)])
    paths = sysconfig.get_paths()
    inside = Path(
        _call(
            [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
        ).strip()
    )
    (inside / "course.pth").write_text(
        "\n".join(dict.fromkeys([paths["purelib"], paths["platlib"]])) + "\n", encoding="utf-8"
    )
    constraints = VENV / "constraints.txt"
    constraints.write_text(
        "".join(f"{name}=={version(name)}\n" for name in SHARED), encoding="utf-8"
    )
    packages = [f"{name}=={number}" for name, number in VERSIONS.items()]
    _call(
        [
            str(PYTHON),
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "-c",
            str(constraints),
            *packages,
        ]
    )
    (VENV / "complete.json").write_text(json.dumps(_wanted()), encoding="utf-8")


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        last = next(
            (
                line
                for line in reversed(done.stderr.splitlines())
                if "ERROR" in line or "Error" in line
            ),
            "no message",
        )
        raise Trouble(
            f"{' and '.join(VERSIONS)} could not be installed ({last.strip()}). They need a "
            "package "
            "index; comparisons with them are left out until then."
        )
    return done.stdout


def ask(
    job: str, arrays: dict[str, np.ndarray], *, theirs: bool = True, threads: int = 1, **settings
) -> tuple[dict[str, np.ndarray], dict]:
    """Run a job of `bench/jobs.py` in a process of its own; what it returns: arrays, and facts such
    as
    seconds.

    `theirs`: in the peers' environment, else in this one. Raises Trouble when that is missing or
    the job fails.
    """
    if theirs and why_not():
        raise Trouble(why_not())
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    own |= {
        name: str(threads)
        for name in (
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "NUMBA_NUM_THREADS",
        )
    }
    own |= {"PANDALIB_QUIET": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "in.npz", **arrays)
        (Path(folder) / "in.json").write_text(json.dumps(settings), encoding="utf-8")
        command = [
            str(PYTHON) if theirs else sys.executable,
            str(Path(__file__).with_name("jobs.py")),
            job,
            folder,
        ]
        done = subprocess.run(
            command, env=own, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise Trouble(f"the job {job} of bench/jobs.py failed:\n{done.stderr.strip()[-2000:]}")
        with np.load(Path(folder) / "out.npz", allow_pickle=False) as found:
            return dict(found), json.loads((Path(folder) / "out.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    try:
        install()
    except Trouble as trouble:
        sys.exit(f"peers: {trouble}")
    print(
        f"{', '.join(f'{name} {number}' for name, number in VERSIONS.items())} are installed in "
        f"{VENV.name}"
    )
