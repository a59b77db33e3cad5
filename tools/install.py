"""Build the virtual environment from requirements.lock; do nothing when it is already the right one.

Runs with the system's Python and its standard library alone, before there is any environment. Called by
`make install`; by hand: `python3 tools/install.py --help`.

What an environment was made from stands in its `pandalib-install.json`. It is marked complete only at the very end,
so an interrupted installation is repeated, and it is compared by content, so touching a file changes nothing.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = "pandalib-install.json"
OLDEST = (3, 11)
PAIR = ("torch", "torchvision")


class Trouble(Exception):
    """A message for the user: what was found, what was expected, what to do."""


# ---------------------------------------------------------------- the lock


def read_lock(text):
    """Split a lock into {name: (version, its lines, the names that asked for it)}; what pyproject.toml asked for is asked for by ''."""
    entries, name = {}, None
    for line in text.splitlines():
        start = re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", line)
        if start:
            name = normal(start.group(1))
            entries[name] = (start.group(2), [], set())
        if name is None:
            continue  # the header
        entries[name][1].append(line)
        via = re.match(r"\s+#\s+(?:via\s+)?([A-Za-z0-9._-]+)( \(.*\))?$", line)
        if via and via.group(1) != "via":
            entries[name][2].add("" if via.group(2) else normal(via.group(1)))
    return entries


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def needed_with(entries, metadata):
    """Names of the lock that are needed when torch and torchvision are the installed wheels.

    The lock describes the usual torch, which on Linux brings CUDA along. What the wheels at hand ask for stands in
    their own metadata: follow that for these two and the lock for all others, and only CUDA falls out.
    """
    asked = {name: set() for name in entries}
    for name, (_, _, parents) in entries.items():
        for parent in parents:
            asked.setdefault(parent, set()).add(name)
    for parent in PAIR:
        asked[parent] = {
            normal(re.match(r"[A-Za-z0-9._-]+", line).group(0))
            for line in metadata[parent]["requires"]
            if "extra ==" not in line
        }
    needed, todo = (
        set(),
        [name for name, (_, _, parents) in entries.items() if "" in parents or not parents],
    )
    while todo:
        name = todo.pop()
        if name in entries and name not in needed:
            needed.add(name)
            todo.extend(asked[name])
    return needed


# ---------------------------------------------------------------- the environment


def python_of(venv):
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def read_state(venv):
    try:
        return json.loads((venv / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_state(venv, state):
    venv.mkdir(parents=True, exist_ok=True)
    part = venv / (STATE + ".part")
    part.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    os.replace(part, venv / STATE)


def ask(python, code):
    """What `code` prints in that Python, parsed as JSON; None if it does not run."""
    # -I: neither the current folder nor PYTHONPATH may stand in for what is installed.
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout)
    except (OSError, ValueError):
        return None


def pip_command(venv, own_pip):
    if own_pip:
        return [str(python_of(venv)), "-m", "pip"]
    return [sys.executable, "-m", "pip", "--python", str(python_of(venv))]


def system_can(code):
    return (
        subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).returncode
        == 0
    )


def make_venv(venv):
    """Make an empty environment. Without ensurepip (Debian without python3-venv), the system's own pip can fill it."""
    version = "%d.%d" % sys.version_info[:2]
    if system_can("import venv, ensurepip"):
        arguments = []
    elif system_can(
        "import venv, pip; assert tuple(map(int, pip.__version__.split('.')[:2])) >= (22, 3)"
    ):
        arguments = ["--without-pip"]
    else:
        raise Trouble(
            "Python %s (%s) cannot make a virtual environment: its module ensurepip is missing, and there is no pip to use instead.\n"
            "On Debian and Ubuntu: sudo apt install python3-venv\n"
            "Or name another Python: make install PYTHON=/path/to/python3"
            % (version, sys.executable)
        )
    if subprocess.run(
        [sys.executable, "-m", "venv", *arguments, str(venv)], stdin=subprocess.DEVNULL
    ).returncode:
        raise Trouble("`%s -m venv %s` failed; its message stands above." % (sys.executable, venv))


def python_version(venv):
    """The version of the Python in `venv`, such as 3.12; None if it does not run."""
    code = "import json, sys; print(json.dumps('%d.%d' % sys.version_info[:2]))"
    return ask(python_of(venv), code)


def relink(venv, state, wanted, log):
    """Let an environment that holds what is wanted find this clone in place of another."""
    before = state.get("linked", state["root"])
    link(python_of(venv))
    # It stays with the clone that made it, as long as that is there.
    root = state["root"] if os.path.isdir(state["root"]) else wanted["root"]
    write_state(venv, dict(state, root=root, linked=wanted["root"]))
    log(
        "`import pandalib` in %s now finds %s, no longer %s; `make install` there turns it back."
        % (venv, wanted["root"], before)
    )


def refuse_another_clones(venv, state, wanted):
    names = {"lock": "requirements.lock", "python": "Python", "torch_index": "TORCH_INDEX"}
    differs = ", ".join(names[key] for key in names if state.get(key) != wanted[key])
    reason = "another " + differs if differs else "unfinished, or its Python does not run"
    raise Trouble(
        "VENV=%s was made by the clone in %s and does not fit this one (%s), so it stays.\n"
        "Choose another name: make install VENV=.venv\n"
        "Or, if nobody needs it any more, delete that folder and repeat."
        % (venv, state["root"], reason)
    )


def own_venv(venv, state, wanted, log):
    """Bring `venv` to the point where packages can go in: keep it, remake it, or refuse to touch what is not ours."""
    python = python_version(venv)
    if state is None and venv.exists() and not venv.is_dir():
        raise Trouble(
            "VENV=%s is a file; a folder was expected. Choose another name: make install VENV=.venv"
            % venv
        )
    if state is None and venv.is_dir() and any(venv.iterdir()):
        if not (venv / "pyvenv.cfg").exists():
            raise Trouble(
                "VENV=%s is a folder with other things in it, and no virtual environment. Choose another name: make install VENV=.venv"
                % venv
            )
        if python != wanted["python"]:
            raise Trouble(
                "VENV=%s is a virtual environment of %s that was not made here; Python %s was expected. Remove it, or choose another name: "
                "make install VENV=.venv"
                % (
                    venv,
                    "Python " + python if python else "a Python that no longer runs",
                    wanted["python"],
                )
            )
    elif state is not None:
        reason = None
        if python is None:
            reason = "its Python does not run"
        elif python != wanted["python"]:
            reason = "it was made with Python %s, and %s is asked for" % (python, wanted["python"])
        elif state.get("torch_index") != wanted["torch_index"]:
            reason = "its torch came from %s, and %s is asked for" % (
                state.get("torch_index") or "the usual index",
                wanted["torch_index"] or "the usual index",
            )
        if reason:
            log("Making %s anew: %s." % (venv, reason))
            shutil.rmtree(str(venv))
            python = None
    # From here on the environment is ours and unfinished; this also marks a half-made one.
    write_state(venv, dict(wanted, complete=False))
    if python is None:
        log("Making the virtual environment %s with Python %s" % (venv, wanted["python"]))
        make_venv(venv)


# ---------------------------------------------------------------- the packages

DESCRIBE = """
import importlib.metadata as m, json
print(json.dumps({d.metadata["Name"]: {"version": d.version, "requires": d.requires or []} for d in m.distributions() if d.metadata["Name"]}))
"""


def installed(venv):
    found = ask(python_of(venv), DESCRIBE)
    if found is None:
        raise Trouble(
            "The Python in %s does not run. Remove it and repeat: make clean install" % venv
        )
    return {normal(name): value for name, value in found.items()}


def pip_install(pip, arguments, environment=None):
    command = (
        pip
        + [
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--no-deps",
            "--only-binary=:all:",
        ]
        + arguments
    )
    return subprocess.run(command, stdin=subprocess.DEVNULL, env=environment).returncode == 0


def install_torch(venv, pip, entries, index):
    """torch and torchvision at the lock's versions from `index`; returns the names of the lock that are then needed."""
    pins = ["%s==%s" % (name, entries[name][0]) for name in PAIR]
    where = (
        ["--no-index", "--find-links", index] if os.path.isdir(index) else ["--index-url", index]
    )
    # Other indexes in the environment could offer the CUDA build of the same version.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_NO_INDEX")
    }
    if not pip_install(pip, where + pins, environment):
        raise Trouble(
            "TORCH_INDEX=%s did not give %s for Python %d.%d on this machine; pip's message stands above.\n"
            "Expected: the address of a package index, or a folder, that holds wheels of exactly these two versions "
            "(a suffix such as +cpu is fine).\nName another one, or leave TORCH_INDEX out for the usual torch "
            "(on Linux with CUDA, about 6 GB)."
            % ((index, " and ".join(pins)) + sys.version_info[:2])
        )
    have = installed(venv)
    cuda = sorted(line for line in have["torch"]["requires"] if re.match(r"(nvidia|cuda)-", line))
    if cuda and sys.platform.startswith("linux"):
        raise Trouble(
            "TORCH_INDEX=%s gave torch %s, a CUDA build (it asks for %s and more); a CPU-only build was expected.\n"
            "Name an index of CPU-only wheels, or leave TORCH_INDEX out."
            % (index, have["torch"]["version"], cuda[0])
        )
    return needed_with(entries, have)


def install_packages(venv, pip, lock, index, log):
    entries = read_lock(lock)
    missing = [name for name in PAIR if name not in entries]
    if missing:
        raise Trouble(
            "requirements.lock does not name %s. It is damaged: git checkout requirements.lock"
            % " and ".join(missing)
        )
    needed = set(entries)
    if index:
        log("Installing torch and torchvision from %s" % index)
        needed = install_torch(venv, pip, entries, index)
        lock = (
            "\n".join(
                "\n".join(lines)
                for name, (_, lines, _) in entries.items()
                if name in needed and name not in PAIR
            )
            + "\n"
        )
    log("Installing the packages of requirements.lock" + (" that a CPU needs" if index else ""))
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder, "requirements.txt")
        chosen.write_text(lock, encoding="utf-8")
        if not pip_install(pip, ["--require-hashes", "-r", str(chosen)]):
            raise Trouble(
                "pip could not install the packages; its message stands above. Repeat `make install`: what has been fetched is kept.\n"
                "If it says 'No matching distribution found', Python %d.%d on this machine has no ready-made package yet: "
                "name another one, e.g. make install PYTHON=python3.12" % sys.version_info[:2]
            )
    verify(venv, pip, entries, needed)


def verify(venv, pip, entries, needed):
    have = installed(venv)
    for name in PAIR:
        if name not in have or have[name]["version"].split("+")[0] != entries[name][0]:
            raise Trouble(
                "%s %s is installed; %s was expected. Repeat: make clean install"
                % (name, have.get(name, {}).get("version", "not"), entries[name][0])
            )
    surplus = sorted(name for name in have if name in entries and name not in needed)
    if surplus:
        raise Trouble(
            "With TORCH_INDEX no CUDA package is wanted, but %s is here already: %s. Repeat: make clean install"
            % (", ".join(surplus[:3]), venv)
        )
    done = subprocess.run(
        [str(python_of(venv)), "-c", "import torch, torchvision"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Trouble(
            "torch %s and torchvision %s are installed but do not import together:\n  %s\nBoth must be of one build: with TORCH_INDEX, "
            "an index that holds CPU-only wheels of both. Then repeat: make clean install TORCH_INDEX=..."
            % (have["torch"]["version"], have["torchvision"]["version"], last_line)
        )
    # Only said, not an error: packages that the user has added may disagree with each other.
    subprocess.run(pip + ["check", "--disable-pip-version-check"], stdin=subprocess.DEVNULL)


def link(python, log=None):
    """Let that Python find pandalib in this checkout: one line in a .pth file, no build and no network."""
    folder = ask(
        python, "import json, sysconfig; print(json.dumps(sysconfig.get_paths()['purelib']))"
    )
    if folder is None:
        raise Trouble("%s does not run, so pandalib cannot be linked into it." % python)
    Path(folder, "pandalib.pth").write_text(str(ROOT) + "\n", encoding="utf-8")
    if log:
        log("`import pandalib` in %s now finds %s" % (python, ROOT))


# ---------------------------------------------------------------- the way through


def install(venv, index, this_python, lock_path, log=print):
    """Returns True if there was anything to do."""
    lock = lock_path.read_text(encoding="utf-8")
    state = read_state(venv)
    wanted = {
        "lock": hashlib.sha256(lock.encode()).hexdigest(),
        "python": "%d.%d" % sys.version_info[:2],
        "torch_index": index or None,
        "root": str(ROOT),
    }
    # What was not asked for stays as it was: `make lab` after `make install TORCH_INDEX=...` must not fetch CUDA.
    if state and not index:
        wanted["torch_index"] = state.get("torch_index")
    if state and not this_python and python_of(venv).exists():
        wanted["python"] = state.get("python")
    # An environment that does not say which clone it finds finds the one that made it.
    owner = (state or {}).get("root", wanted["root"])
    linked = (state or {}).get("linked", owner)
    fits = state is not None and all(
        state.get(key) == value for key, value in dict(wanted, root=owner, complete=True).items()
    )
    if fits and linked == wanted["root"] and python_of(venv).exists():
        return False
    if fits and linked != wanted["root"] and python_version(venv) == wanted["python"]:
        relink(venv, state, wanted, log)
        return True
    if owner != wanted["root"]:
        refuse_another_clones(venv, state, wanted)
    if wanted["python"] != "%d.%d" % sys.version_info[:2]:
        # The environment's own Python does the work, so that "this Python" means the same everywhere.
        base = python_of(venv).resolve()
        command = [
            str(base),
            __file__,
            "--venv",
            str(venv),
            "--lock",
            str(lock_path),
            "--python-given",
        ] + (["--torch-index", index] if index else [])
        if subprocess.run(command).returncode:
            raise Trouble("The installation with %s failed." % base)
        return True
    own_venv(venv, state, wanted, log)
    own_pip = (
        ask(python_of(venv), "import json, pip; print(json.dumps(pip.__version__))") is not None
    )
    install_packages(venv, pip_command(venv, own_pip), lock, wanted["torch_index"], log)
    link(python_of(venv))
    write_state(venv, dict(wanted, complete=True))
    log("Ready: %s" % venv)
    return True


def remove(venv, log=print):
    """Delete the environment, if it was made here."""
    if not venv.exists():
        return
    state = read_state(venv)
    if state is None:
        raise Trouble(
            "VENV=%s was not made by `make install`, so it is not deleted. Delete it yourself if you do not need it."
            % venv
        )
    if state.get("root", str(ROOT)) != str(ROOT):
        raise Trouble(
            "VENV=%s was made by the clone in %s, so it is not deleted. Use `make clean` there, "
            "or delete it yourself if nobody needs it." % (venv, state["root"])
        )
    log("Deleting %s" % venv)
    shutil.rmtree(str(venv))


def main(arguments=None):
    if sys.version_info < OLDEST:
        print(
            "error: Python %d.%d (%s) is too old; %d.%d or newer is needed.\nName another one: make install PYTHON=python3.12"
            % (sys.version_info[:2] + (sys.executable,) + OLDEST),
            file=sys.stderr,
        )
        return 1
    parser = argparse.ArgumentParser(
        description="Build the virtual environment from requirements.lock; quick when there is nothing to do."
    )
    parser.add_argument("--venv", default=".venv", help="where it lies (default: .venv)")
    parser.add_argument(
        "--torch-index",
        default="",
        help="address of an index of CPU-only torch wheels, or a folder of wheels",
    )
    parser.add_argument(
        "--python-given",
        action="store_true",
        help="this Python was asked for by name: remake an environment of another version",
    )
    parser.add_argument("--lock", default=str(ROOT / "requirements.lock"), help=argparse.SUPPRESS)
    parser.add_argument("--remove", action="store_true", help="delete the environment instead")
    parser.add_argument(
        "--link",
        action="store_true",
        help="only let the Python that runs this find pandalib (for conda and Binder)",
    )
    options = parser.parse_args(arguments)
    venv = Path(os.path.expanduser(options.venv)).absolute()
    # A folder is remembered by its full path: `.` means another place tomorrow.
    index = os.path.expanduser(options.torch_index)
    index = os.path.abspath(index) if os.path.isdir(index) else index
    if index and "://" not in index and not os.path.isdir(index):
        print(
            "error: TORCH_INDEX=%s is neither an address nor a folder that exists."
            % options.torch_index,
            file=sys.stderr,
        )
        return 1
    try:
        if options.link:
            link(sys.executable, print)
        elif options.remove:
            remove(venv)
        else:
            install(venv, index, options.python_given, Path(options.lock))
    except Trouble as trouble:
        print("error: %s" % trouble, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Repeat `make install`: it goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
