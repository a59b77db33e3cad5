"""From a clone to a working environment: what the files promise; the installer on a tiny lock."""

import ast
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv as python_venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import install as installer

LOCK = (ROOT / "requirements.lock").read_text()
ENTRIES = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.M)[1:]
LOCKED = dict(re.match(r"([a-z0-9.-]+)==(\S+)", entry).groups() for entry in ENTRIES)


# ---------------------------------------------------------------- the files agree


def asked_for(*extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in [*project["dependencies"], *lines]]


def test_lock_holds_what_pyproject_asks_for():
    for requirement in asked_for("test", "photographs", "timm", "cluster", "book"):
        version = LOCKED[requirement.name.lower()]
        assert requirement.specifier.contains(version), f"make lock: {requirement}"


def test_lock_is_pinned_hashed_and_of_no_machine():
    assert len(ENTRIES) > 50
    for entry in ENTRIES:
        assert re.match(r"[a-z0-9.-]+==[0-9][0-9a-z.]* ", entry) and "--hash=sha256:" in entry
    assert not re.search(r"://|--index|--find-links|file:", LOCK)


def test_environment_names_the_packages_of_pyproject():
    text = (ROOT / "environment.yml").read_text()
    found = re.findall(
        r"^ +- ([a-z][a-z0-9-]*)([^\s#:]*)\s*$", text.split("dependencies:")[1], re.M
    )
    conda = dict(found)
    # conda-forge has its own name for the CPU build, and its own pace.
    for name in ("python", "pytorch-cpu", "torchvision", "pip"):
        assert conda.pop(name) or name == "pip"
    asked = {one.name: str(one.specifier) for one in asked_for("test", "photographs", "timm")}
    del asked["torch"], asked["torchvision"]
    assert conda == asked


def test_ci_runs_the_test_command_of_the_readme():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    last = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert f"```\n{last}\n```" in (ROOT / "README.md").read_text()


def test_make_help_lists_every_target():
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert targets == re.findall(r"^  make ([\w-]+) ", done.stdout, re.M)
    for variable in ("VENV=", "PYTHON=", "TORCH_INDEX=", "ARGS="):
        assert variable in done.stdout


# ---------------------------------------------------------------- a tiny world to install


def make_wheel(folder, name, version, requires=()):
    """A wheel with one module in it; returns its SHA-256."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    contents = {
        f"{module}/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD,,\n"
    for path, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text)}\n"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, text in {**contents, f"{info}/RECORD": record}.items():
            wheel.writestr(inside, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


PACKAGES = {
    "filelike": ("4.2", ()),
    "mathlike": ("1.0", ()),
    "nvidia-blas": ("13.4", ()),
    "torch": ("2.15.0", ("filelike", "nvidia-blas==13.4; sys_platform == 'linux'")),
    "torchvision": ("0.29.2", ("mathlike", "torch")),
    "triton": ("3.9", ()),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of wheels, one of CPU-only wheels, a lock of the first, and an empty environment."""
    base = tmp_path_factory.mktemp("tiny world")
    lock = "# header\n"
    for folder in ("index", "cpu", "empty"):
        (base / folder).mkdir()
    for name, (version, requires) in PACKAGES.items():
        digest = make_wheel(base / "index", name, version, requires)
        lock += f"{name}=={version} \\\n    --hash=sha256:{digest}\n    # via something\n"
    make_wheel(base / "cpu", "torch", "2.15.0+cpu", ("filelike",))
    make_wheel(base / "cpu", "torchvision", "0.29.2+cpu", ("mathlike", "torch"))
    (base / "lock").write_text(lock)
    python_venv.create(base / "venv", with_pip=True)
    return base


def offline(world):
    links = (world / "index").as_uri()
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": links, "PIP_CONFIG_FILE": os.devnull}
    return pip | {"UV_OFFLINE": "1", "UV_FIND_LINKS": links, "UV_NO_CONFIG": "1"}


@pytest.fixture
def quick(monkeypatch, world):
    """install() as a function that returns its log; a new environment is a copy of an empty one."""
    for name, value in offline(world).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(installer.shutil, "which", lambda name: None)  # no uv
    monkeypatch.setattr(installer, "cpu_index", lambda log: None)

    def make_venv(venv):
        shutil.copytree(world / "venv", venv, symlinks=True, dirs_exist_ok=True)

    monkeypatch.setattr(installer, "make_venv", make_venv)

    def run(venv, index="", python_given=False, lock=world / "lock"):
        log = []
        return log if installer.install(venv, str(index), python_given, lock, log.append) else None

    return run


def versions(venv):
    found = [path.name.split("-")[:2] for path in venv.rglob("*.dist-info")]
    return {name.replace("_", "-"): version.removesuffix(".dist") for name, version in found}


def found_by(venv):
    (pth,) = venv.rglob("pandalib.pth")
    return pth.read_text().strip()


# ---------------------------------------------------------------- install, repeat, change


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_by_the_command_as_make_gives_it(world, tmp_path, tool):
    if tool == "uv" and not shutil.which("uv"):
        pytest.skip("uv is not installed")
    path = os.path.dirname(shutil.which("uv")) if tool == "uv" else "/nowhere"
    venv = tmp_path / "en v"
    command = [sys.executable, ROOT / "tools" / "install.py", "--venv", venv]
    command += ["--lock", world / "lock", "--torch-index", world / "index"]
    environment = {"HOME": str(tmp_path), **offline(world), "PATH": path}
    for said in ("Ready", ""):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stdout, done.stderr
    assert done.stdout == done.stderr == "", "the second time nothing happens"
    assert {name: version for name, (version, _) in PACKAGES.items()}.items() <= versions(
        venv
    ).items()
    code = "import importlib.util; print(importlib.util.find_spec('pandalib').origin)"
    python = installer.python_of(venv)
    origin = subprocess.check_output([python, "-I", "-c", code], text=True).strip()
    assert Path(origin) == ROOT / "pandalib" / "__init__.py"


def test_only_a_changed_lock_is_installed_again(quick, world, tmp_path, monkeypatch):
    venv, changed = tmp_path / "venv", tmp_path / "lock"
    assert quick(venv)
    os.utime(world / "lock")
    with monkeypatch.context() as patch:
        patch.setattr(installer, "pip_install", lambda *a: pytest.fail("installed again"))
        assert quick(venv) is None
    digest = make_wheel(world / "index", "mathlike", "1.1")
    text = (world / "lock").read_text()
    entry = f"mathlike==1.1 --hash=sha256:{digest}"
    changed.write_text(re.sub(r"mathlike==1\.0 \\\n.*", entry, text))
    assert quick(venv, lock=changed) and versions(venv)["mathlike"] == "1.1"
    assert quick(venv, lock=changed) is None


def test_a_wrong_hash_is_refused_and_the_next_run_repeats(quick, world, tmp_path, capfd):
    venv, bad = tmp_path / "venv", tmp_path / "lock"
    bad.write_text(
        (world / "lock").read_text().replace("--hash=sha256:", "--hash=sha256:0", 1)[:-1]
    )
    for _ in range(2):  # not taken for done
        with pytest.raises(SystemExit, match="could not be installed"):
            quick(venv, lock=bad)
    assert installer.read_state(venv)["complete"] is False
    assert quick(venv) and installer.read_state(venv)["complete"] is True


def test_interrupted_at_any_step_it_is_not_taken_for_done(quick, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    venv = tmp_path / "venv"
    for step in ("make_venv", "install_packages", "link"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(installer, step, interrupt)
            quick(venv)
        assert installer.read_state(venv)["complete"] is False, step


# ---------------------------------------------------------------- another clone's environment


@pytest.fixture
def another_clone(monkeypatch, tmp_path):
    """From here on tools/install.py is that of another clone; returns its folder."""
    (tmp_path / "clone").mkdir()
    monkeypatch.setattr(installer, "ROOT", tmp_path / "clone")
    return tmp_path / "clone"


def test_the_environment_of_another_clone_is_relinked(quick, tmp_path, another_clone, monkeypatch):
    clone, venv = another_clone, tmp_path / "venv"
    with monkeypatch.context() as patch:
        patch.setattr(installer, "ROOT", ROOT)
        assert quick(venv)
    monkeypatch.setattr(installer, "install_packages", lambda *a: pytest.fail("installed again"))
    (line,) = quick(venv)
    assert f"now finds {clone}, no longer {ROOT}" in line and found_by(venv) == str(clone)
    assert quick(venv) is None
    with pytest.raises(SystemExit, match="not deleted"):
        installer.remove(venv)
    monkeypatch.setattr(installer, "ROOT", ROOT)  # the owner comes back
    assert len(quick(venv)) == 1 and found_by(venv) == str(ROOT) and quick(venv) is None
    monkeypatch.setattr(installer, "ROOT", clone)  # the owner is gone
    installer.write_state(venv, dict(installer.read_state(venv), root=str(tmp_path / "gone")))
    assert quick(venv) and installer.read_state(venv)["root"] == str(clone)


@pytest.mark.parametrize(
    "changed", [{"lock": "0"}, {"python": "3.8"}, {"torch_index": "/wheels"}, {"complete": False}]
)
def test_the_environment_of_another_clone_is_refused_if_it_does_not_fit(
    quick, world, tmp_path, another_clone, changed
):
    venv = tmp_path / "venv"
    lock = hashlib.sha256((world / "lock").read_bytes()).hexdigest()
    state = dict(lock=lock, python=installer.THIS_PYTHON, torch_index=None, complete=True)
    installer.write_state(venv, {**state, "root": str(ROOT), **changed})
    with pytest.raises(SystemExit, match=f"made by the clone in {re.escape(str(ROOT))}"):
        quick(venv, index="/other" if "torch_index" in changed else "")
    assert installer.read_state(venv) == {**state, "root": str(ROOT), **changed}


# ---------------------------------------------------------------- a CPU-only torch


def test_without_cuda_what_only_cuda_needs_stays_out(quick, world, tmp_path):
    venv = tmp_path / "venv"
    assert quick(venv, index=world / "cpu")
    have = versions(venv)
    assert have["torch"] == "2.15.0+cpu" and have["filelike"] == "4.2"
    assert not {"nvidia-blas", "triton"} & set(have)
    assert quick(venv) is None, "without TORCH_INDEX, what is there has to stay"
    assert "another source of torch" in quick(venv, index=world / "index")[0]
    assert versions(venv)["torch"] == "2.15.0" and "nvidia-blas" in versions(venv)


def test_a_torch_index_without_the_pinned_versions(quick, world, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(SystemExit, match=r"did not give torch==2\.15\.0 and torchvision==0\.29\.2"):
        quick(tmp_path / "venv", index=world / "empty")
    with pytest.raises(SystemExit, match="neither an address nor a folder"):
        installer.main(["--torch-index", "no-such-folder"])


def test_in_the_real_lock_only_cuda_falls_out():
    gone = {name for name in LOCKED if re.match(installer.CUDA, name)}
    assert {"triton"} < gone and all(re.match(r"nvidia-|cuda-|triton$", name) for name in gone)


@pytest.mark.parametrize(
    ("driver", "answers", "expected"),
    [(None, True, installer.CPU_INDEX), (None, False, None), ("nvidia-smi", True, None)],
)
def test_where_there_is_no_driver_the_cpu_index_is_asked(monkeypatch, driver, answers, expected):
    def urlopen(address, timeout):
        assert address.startswith(installer.CPU_INDEX) and timeout <= 5
        if not answers:
            raise OSError("no network")
        return open(os.devnull)

    monkeypatch.setattr(installer.sys, "platform", "linux")
    monkeypatch.setattr(installer.shutil, "which", lambda name: driver)
    monkeypatch.setattr(installer.os.path, "exists", lambda path: False)
    monkeypatch.setattr(installer.urllib.request, "urlopen", urlopen)
    log = []
    assert installer.cpu_index(log.append) == expected
    assert len(log) == (driver is None)


# ---------------------------------------------------------------- what can be wrong


def test_without_ensurepip_the_package_to_install_is_named(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(installer.sys, "executable", shutil.which("false"))
    monkeypatch.setattr(installer.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="sudo apt install python3-venv"):
        installer.make_venv(tmp_path / "venv")


def test_too_old_a_python_gets_as_far_as_hearing_it(monkeypatch):
    ast.parse((ROOT / "tools" / "install.py").read_text(), feature_version=(3, 7))
    monkeypatch.setattr(installer.sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(SystemExit, match="is too old; 3.11 or newer"):
        installer.main([])


def test_folders_that_are_not_ours_stay_untouched(quick, tmp_path):
    photos, foreign = tmp_path / "photos", tmp_path / "foreign"
    for folder, file in ((photos, "cat.jpg"), (foreign, "pyvenv.cfg")):
        folder.mkdir()
        (folder / file).touch()
        with pytest.raises(SystemExit, match=f"VENV={re.escape(str(folder))}"):
            quick(folder)
        with pytest.raises(SystemExit, match="not deleted"):
            installer.remove(folder)
        assert (folder / file).exists()


def test_a_broken_environment_is_made_anew_and_removed(quick, tmp_path):
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    installer.write_state(venv, {"complete": True, "python": "3.8", "root": str(ROOT)})
    assert "another Python" in quick(venv)[0] and versions(venv)["mathlike"]
    installer.remove(venv)
    installer.remove(venv)  # a second time is no error
    assert not venv.exists()
