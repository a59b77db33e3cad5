"""Remake requirements.lock from pyproject.toml: `make lock`, or `make lock ARGS=--upgrade` for newer versions.

Needs the network. uv does the resolving, because it can write one lock for every platform and Python version; it comes
into a throw-away environment, so that nobody needs it for anything else. `UV=/path/to/uv` uses one that is there.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Every package of the course, with its exact version and the hashes of its files. Made by `make lock`: do not edit.
# Base packages and the extras [test], [cluster] and [book] of pyproject.toml, for every platform, Python 3.11 and newer.
# Linux gets torch with CUDA; TORCH_INDEX (see `make help`) leaves out what only CUDA needs.
"""


def main(arguments):
    with tempfile.TemporaryDirectory() as folder:
        uv = os.environ.get("UV")
        if not uv:
            subprocess.run([sys.executable, "-m", "venv", f"{folder}/uv"], check=True)
            subprocess.run(
                [
                    f"{folder}/uv/bin/python",
                    "-m",
                    "pip",
                    "install",
                    "-q",
                    "--disable-pip-version-check",
                    "uv",
                ],
                check=True,
            )
            uv = f"{folder}/uv/bin/uv"
        output = Path(folder, "requirements.lock")
        lock = ROOT / "requirements.lock"
        if lock.exists():
            shutil.copy(lock, output)  # versions that still fit stay as they are
        # --no-config: indexes of this machine stay out, for the hashes must be everybody's.
        subprocess.run(
            [
                uv,
                "pip",
                "compile",
                "pyproject.toml",
                "--extra",
                "test",
                "--extra",
                "cluster",
                "--extra",
                "book",
                "--universal",
                "--python-version",
                "3.11",
                "--fork-strategy",
                "fewest",
                "--generate-hashes",
                "--no-emit-index-url",
                "--no-emit-find-links",
                "--no-header",
                "--no-config",
                "--quiet",
                "--output-file",
                str(output),
                *arguments,
            ],
            cwd=ROOT,
            check=True,
        )
        part = lock.with_suffix(".part")
        part.write_text(HEADER + output.read_text())
        os.replace(part, lock)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"error: `{error.cmd[0]}` failed; its message stands above. requirements.lock is unchanged."
        )
