"""Build the virtual environment from requirements.lock; do nothing when it is already right.

Runs with the system's Python alone, before there is any environment: `make install`, or
`python3 tools/install.py`. Uses uv where that is installed, else venv and pip. What an environment
was made from stands in its `pandalib-install.json`, which is marked complete at the very end only:
an interrupted installation is repeated.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = "pandalib-install.json"
OLDEST = (3, 11)
THIS_PYTHON = "%d.%d" % sys.version_info[:2]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PAIR = ("torch", "torchvision")
CUDA = r"(nvidia|cuda|triton)\b"  # how the packages that only a GPU needs are called


def install(venv, index, python_given, lock_path, log=print):
    """Bring the environment up to date; returns True if there was anything to do."""
    lock, root = lock_path.read_text(encoding="utf-8"), str(ROOT)
    state = read_state(venv)
    # What was not asked for stays: `make lab` after `make install TORCH_INDEX=...` fetches no CUDA.
    keeps_python = state and not python_given and python_of(venv).exists()
    wanted = {
        "lock": hashlib.sha256(lock.encode()).hexdigest(),
        "python": state.get("python") if keeps_python else THIS_PYTHON,
        "torch_index": index or state.get("torch_index"),
    }
    differs = [key for key in wanted if state.get(key) != wanted[key]]
    owner = state.get("root", root)
    linked = state.get("linked", owner)
    fits = state.get("complete") and not differs
    if fits and linked == root and python_of(venv).exists():
        return False
    works = python_version(venv) == wanted["python"]
    if fits and works and linked != root:
        # It stays with the clone that made it, for as long as that is there.
        owner = owner if os.path.isdir(owner) else root
        write_state(venv, dict(state, root=owner, linked=root))
        link(venv)
        log("`import pandalib` in %s now finds %s, no longer %s." % (venv, root, linked))
        return True
    if owner != root:
        sys.exit(
            "error: VENV=%s was made by the clone in %s and does not fit this one (%s), so it\n"
            "stays. Choose another name, make install VENV=.venv, or delete that folder."
            % (venv, owner, "another " + ", ".join(differs) if differs else "unfinished or broken")
        )
    if not (index or state):
        wanted["torch_index"] = cpu_index(log)
    prepare(venv, state, wanted, works, log)
    install_packages(venv, lock, wanted["torch_index"], log)
    link(venv)
    write_state(venv, dict(wanted, root=root, complete=True))
    log("Ready: %s" % venv)
    return True


def prepare(venv, state, wanted, works, log):
    """Make the environment, keep it, replace it, or refuse to touch what is not ours."""
    if not state and venv.exists():
        is_venv = (venv / "pyvenv.cfg").exists()
        if not is_venv and (venv.is_file() or any(venv.iterdir())):
            sys.exit("error: VENV=%s is no virtual environment. Choose another name." % venv)
        if is_venv and not works:
            sys.exit("error: VENV=%s has no working Python %s." % (venv, wanted["python"]))
    elif state and not (works and state.get("torch_index") == wanted["torch_index"]):
        why = "another source of torch is asked for" if works else "another Python is needed"
        log("Making %s again: %s." % (venv, why))
        shutil.rmtree(str(venv))
        works = False
    # From here on it is ours, and unfinished.
    write_state(venv, dict(wanted, root=str(ROOT), complete=False))
    if not works:
        log("Making the virtual environment %s with Python %s" % (venv, wanted["python"]))
        make_venv(venv)


def make_venv(venv):
    uv = shutil.which("uv")
    command = [sys.executable, "-m", "venv"]
    if uv:
        command = [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable]
    if subprocess.call(command + [str(venv)], stdin=subprocess.DEVNULL):
        sys.exit(
            "error: Python %s (%s) made no virtual environment; its message stands above.\n"
            "Where ensurepip is missing, on Debian and Ubuntu: sudo apt install python3-venv\n"
            "Without that right: install uv, https://docs.astral.sh/uv, which does without."
            % (THIS_PYTHON, sys.executable)
        )


def cpu_index(log):
    """PyTorch's own index of CPU wheels, where there is no NVIDIA driver and that index answers."""
    driver = shutil.which("nvidia-smi") or os.path.exists("/proc/driver/nvidia")
    if driver or not sys.platform.startswith("linux"):
        return None  # elsewhere the usual index has CPU wheels
    try:
        urllib.request.urlopen(CPU_INDEX + "/torch/", timeout=3).close()
    except OSError:
        log("No NVIDIA driver here, but %s does not answer: torch comes with CUDA." % CPU_INDEX)
        return None
    log("No NVIDIA driver here: torch comes without CUDA, from %s" % CPU_INDEX)
    return CPU_INDEX


def install_packages(venv, lock, index, log):
    """Install what the lock names; torch and torchvision from `index` where one is given."""
    entries = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]
    packages = {re.match(r"[\w.-]+", entry).group(): entry for entry in entries}
    if index:
        pins = [packages.pop(name).split()[0] for name in PAIR]
        where = ["--index-url", index]
        if os.path.isdir(index):
            where = ["--no-index", "--find-links", index]
        if not pip_install(venv, where + pins):
            sys.exit(
                "error: TORCH_INDEX=%s did not give %s; the message stands above.\nName another "
                "index or folder of wheels, as %s." % (index, " and ".join(pins), CPU_INDEX)
            )
        if not needs_cuda(venv):
            packages = {name: packages[name] for name in packages if not re.match(CUDA, name)}
    log("Installing the packages of requirements.lock")
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder, "requirements.txt")
        chosen.write_text("".join(packages.values()), encoding="utf-8")
        if not pip_install(venv, ["--require-hashes", "-r", str(chosen)]):
            sys.exit(
                "error: the packages could not be installed; the message stands above. Repeat "
                "`make install`: what was fetched is kept.\nIf it says 'No matching distribution "
                "found', name another Python: make install PYTHON=python3.12"
            )


def pip_install(venv, arguments):
    python, uv = str(python_of(venv)), shutil.which("uv")
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if uv:
        command = [uv, "pip", "install", "--python", python]
    command += ["--no-deps", "--only-binary", ":all:"] + arguments
    return subprocess.call(command, stdin=subprocess.DEVNULL) == 0


def packages_of(venv):
    (folder,) = [*venv.glob("lib/python*/site-packages"), *venv.glob("Lib/site-packages")]
    return folder


def needs_cuda(venv):
    (metadata,) = packages_of(venv).glob("torch-*.dist-info/METADATA")
    return re.search("^Requires-Dist: " + CUDA, metadata.read_text(encoding="utf-8"), re.MULTILINE)


def link(venv):
    """Let that Python find pandalib in this checkout: one line in a file, no build, no network."""
    (packages_of(venv) / "pandalib.pth").write_text(str(ROOT) + "\n", encoding="utf-8")


def python_of(venv):
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def python_version(venv):
    """The version of the Python in `venv`, such as 3.12; None if it does not run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        said = subprocess.check_output([str(python_of(venv)), "-I", "-c", code])
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.decode().strip()


def read_state(venv):
    try:
        return json.loads((venv / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_state(venv, state):
    venv.mkdir(parents=True, exist_ok=True)
    (venv / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def remove(venv):
    """Delete the environment, if this clone has made it."""
    owner = read_state(venv).get("root")
    if venv.exists() and owner != str(ROOT):
        made = "by the clone in %s" % owner if owner else "elsewhere"
        sys.exit("error: VENV=%s was made %s, so it is not deleted." % (venv, made))
    shutil.rmtree(str(venv), ignore_errors=True)


def main(arguments=None):
    if sys.version_info < OLDEST:
        message = "error: Python %s (%s) is too old; %d.%d or newer is needed.\n"
        message += "Name another one: make install PYTHON=python3.12"
        sys.exit(message % ((THIS_PYTHON, sys.executable) + OLDEST))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--venv", default=".venv", help="where it lies (default: .venv)")
    parser.add_argument("--torch-index", default="", help="index or folder of torch's wheels")
    parser.add_argument("--python-given", action="store_true", help="replace another Python")
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock")
    parser.add_argument("--remove", action="store_true", help="delete the environment instead")
    options = parser.parse_args(arguments)
    venv = Path(options.venv).expanduser().absolute()
    index = os.path.expanduser(options.torch_index)
    if os.path.isdir(index):
        index = os.path.abspath(index)  # `.` means another place tomorrow
    elif index and "://" not in index:
        sys.exit("error: TORCH_INDEX=%s is neither an address nor a folder." % index)
    try:
        if options.remove:
            remove(venv)
        else:
            install(venv, index, options.python_given, options.lock)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Repeat `make install`: it goes on from here.")


if __name__ == "__main__":
    main()
