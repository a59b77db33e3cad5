"""The way from a clone to a working environment: what the files promise, and tools/install.py on a tiny lock. No network."""

import base64
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


installer = load("install")
LOCK = (ROOT / "requirements.lock").read_text()
ENTRIES = installer.read_lock(LOCK)


# ---------------------------------------------------------------- the files agree


def pyproject(*extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        Requirement(line) for extra in extras for line in project["optional-dependencies"][extra]
    ] + [*map(Requirement, project["dependencies"])]


def environment():
    found = re.findall(
        r"^  - ([a-z][a-z0-9-]*)([^\s#]*)\s*$",
        (ROOT / "environment.yml").read_text().split("dependencies:")[1],
        re.MULTILINE,
    )
    return dict(found)


def test_lock_holds_what_pyproject_asks_for():
    asked = {
        installer.normal(requirement.name): requirement
        for requirement in pyproject("test", "cluster", "book")
    }
    assert asked.keys() == {name for name, (_, _, parents) in ENTRIES.items() if "" in parents}
    for name, requirement in asked.items():
        assert requirement.specifier.contains(ENTRIES[name][0]), (
            f"make lock: {requirement} is asked for, {ENTRIES[name][0]} is locked"
        )


def test_environment_names_the_packages_of_pyproject():
    conda = environment()
    assert conda.pop("python") == "=3.12"
    # conda-forge has its own name for the CPU build, and its own pace; torchvision there follows torch.
    assert conda.pop("pytorch-cpu").startswith(">=") and conda.pop("torchvision").startswith(">=")
    asked = {
        requirement.name: str(requirement.specifier)
        for requirement in pyproject("test")
        if requirement.name not in ("torch", "torchvision")
    }
    assert conda == asked


def test_lock_is_pinned_hashed_and_of_no_machine():
    assert len(ENTRIES) > 50
    for name, (version, lines, _) in ENTRIES.items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), (
            f"{name}: {version} is no version of a public index"
        )
        assert any(re.search(r"--hash=sha256:[0-9a-f]{64}", line) for line in lines), (
            f"{name} has no hash"
        )
    for line in LOCK.splitlines():
        assert not re.search(
            r"://|--index|--extra-index|--find-links|--trusted|file:|(^|[\s=])/", line
        ), line
        assert re.match(r"#|[a-z0-9-]+==| +--hash=| +# ", line), f"not part of a lock: {line!r}"


def test_ci_runs_the_test_command_of_the_readme():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    command = [
        line
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if line and not line.startswith("#")
    ][-1]
    blocks = re.findall(
        r"^```[^\n]*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    shown = {line.split("#")[0].strip() for block in blocks for line in block.splitlines()}
    assert command in shown, (
        f".ci/run ends with {command!r}; no code block of README.md shows that line"
    )


def test_make_help_lists_every_target():
    helped = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = (
        re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        .group(1)
        .split()
    )
    assert targets == re.findall(r"^  make ([\w-]+) ", helped, re.MULTILINE)
    assert all(variable + "=" in helped for variable in ("VENV", "PYTHON", "TORCH_INDEX", "ARGS"))


# ---------------------------------------------------------------- a tiny world to install


def make_wheel(folder, name, version, requires=(), code=""):
    """A wheel with one module in it; returns its SHA-256."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {line}\n" for line in requires
    )
    contents = {
        f"{module}/__init__.py": code + f"\n__version__ = {version!r}\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text.encode())}\n"
        for path, text in contents.items()
    )
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name_in_wheel, text in {
            **contents,
            f"{info}/RECORD": record + f"{info}/RECORD,,\n",
        }.items():
            wheel.writestr(name_in_wheel, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


CUDA = ("nvidia-blas", "cuda-tools", "tritonlike")
CPU_REQUIRES = ("filelock", 'tritonlike; extra == "compile"')
PACKAGES = {  # name: (version, what it requires, what the lock says it is there for)
    "cuda-tools": ("13.2", ("nvidia-blas",), ("torch",)),
    "filelock": ("4.2", (), ("torch",)),
    "mathlike": ("1.0", (), ("pandalib (pyproject.toml)", "torchvision")),
    "nvidia-blas": ("13.4", (), ("cuda-tools", "torch")),
    "torch": (
        "2.15.0",
        ("filelock", "cuda-tools==13.2", "nvidia-blas", "tritonlike"),
        ("pandalib (pyproject.toml)", "torchvision"),
    ),
    "torchvision": ("0.29.2", ("mathlike", "torch>=2.14"), ("pandalib (pyproject.toml)",)),
    "tritonlike": ("3.9", (), ("torch",)),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of wheels (`index`), one of CPU-only wheels (`cpu`), and a lock of the first."""
    base = tmp_path_factory.mktemp("tiny world")
    for name in ("index", "cpu", "empty"):
        (base / name).mkdir()
    lock = "# header\n"
    for name, (version, requires, via) in PACKAGES.items():
        digest = make_wheel(base / "index", name, version, requires)
        vias = (
            f"    # via {via[0]}\n"
            if len(via) == 1
            else "    # via\n" + "".join(f"    #   {parent}\n" for parent in via)
        )
        lock += f"{name}=={version} \\\n    --hash=sha256:{digest}\n{vias}"
    make_wheel(base / "cpu", "torch", "2.15.0+cpu", CPU_REQUIRES)
    make_wheel(base / "cpu", "torchvision", "0.29.2+cpu", ("mathlike", "torch"))
    (base / "lock").write_text(lock)
    return base


@pytest.fixture
def quick(monkeypatch, world):
    """install() as a function that returns its log; without ensurepip, which takes seconds. Nothing but `index` can be reached."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", (world / "index").as_uri())
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setattr(installer, "system_can", lambda code: "ensurepip" not in code)

    def run(venv, index="", this_python=True, lock=None):
        log = []
        did = installer.install(venv, str(index), this_python, lock or world / "lock", log.append)
        return log if did else None

    return run


def versions(venv):
    return {name: value["version"] for name, value in installer.installed(venv).items()}


# ---------------------------------------------------------------- install, repeat, change


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """An environment made by the command line, as make does it: returns (folder, what the command said)."""
    venv = tmp_path_factory.mktemp("made") / "en v"
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (world / "index").as_uri()}
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools" / "install.py"),
            "--venv",
            str(venv),
            "--lock",
            str(world / "lock"),
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return venv, result.stdout


def test_everything_of_the_lock_is_installed_and_pandalib_is_found(done):
    venv, _ = done
    have = versions(venv)
    assert {name: have.get(name) for name in PACKAGES} == {
        name: version for name, (version, _, _) in PACKAGES.items()
    }
    spec = installer.ask(
        installer.python_of(venv),
        "import importlib.util, json; print(json.dumps(importlib.util.find_spec('pandalib').origin))",
    )
    assert Path(spec) == ROOT / "pandalib" / "__init__.py"


def test_second_time_nothing_happens_even_if_the_lock_is_touched(done, quick, world, monkeypatch):
    venv, _ = done
    os.utime(world / "lock")
    monkeypatch.setattr(installer.subprocess, "run", lambda *a, **k: pytest.fail(f"started {a}"))
    assert quick(venv) is None
    assert quick(venv, this_python=False) is None


def test_a_changed_lock_is_installed(done, quick, world, tmp_path):
    venv, _ = done
    digest = make_wheel(world / "index", "mathlike", "1.1")
    changed = tmp_path / "lock"
    changed.write_text(
        re.sub(
            r"mathlike==1\.0 \\\n.*",
            f"mathlike==1.1 \\\\\n    --hash=sha256:{digest}",
            (world / "lock").read_text(),
        )
    )
    assert quick(venv, lock=changed) and versions(venv)["mathlike"] == "1.1"
    assert quick(venv, lock=changed) is None


@pytest.fixture
def another_clone(monkeypatch, tmp_path):
    """From here on tools/install.py is that of another clone; returns its folder."""
    clone = tmp_path / "clone"
    clone.mkdir()
    monkeypatch.setattr(installer, "ROOT", clone)
    return clone


def found_by(venv):
    (pth,) = venv.rglob("pandalib.pth")
    return pth.read_text().strip()


def test_the_environment_of_another_clone_is_relinked(quick, tmp_path, another_clone, monkeypatch):
    clone, venv = another_clone, tmp_path / "venv"
    with monkeypatch.context() as patch:
        patch.setattr(installer, "ROOT", ROOT)
        assert quick(venv)
    (venv / "in use").touch()
    monkeypatch.setattr(installer, "install_packages", lambda *a: pytest.fail("installed again"))
    (line,) = quick(venv)
    assert f"now finds {clone}, no longer {ROOT}" in line and found_by(venv) == str(clone)
    assert quick(venv) is None
    owned = re.escape(f"made by the clone in {ROOT}, so it is not deleted")
    with pytest.raises(installer.Trouble, match=owned):
        installer.remove(venv)
    monkeypatch.setattr(installer, "ROOT", ROOT)  # the owner comes back
    assert len(quick(venv)) == 1 and found_by(venv) == str(ROOT) and quick(venv) is None
    assert (venv / "in use").exists()


def test_a_moved_clone_keeps_its_environment(quick, tmp_path, another_clone, monkeypatch):
    clone, venv = another_clone, tmp_path / "venv"
    with monkeypatch.context() as patch:
        patch.setattr(installer, "ROOT", tmp_path / "gone")
        assert quick(venv)
    assert quick(venv) and found_by(venv) == str(clone)
    assert installer.read_state(venv)["root"] == str(clone)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"lock": "0"}, "another requirements.lock"),
        ({"python": "3.8"}, "another Python"),
        ({"torch_index": "/wheels"}, "another TORCH_INDEX"),
        ({"complete": False}, "unfinished"),
        ({}, "its Python does not run"),
    ],
)
def test_the_environment_of_another_clone_is_refused_if_it_does_not_fit(
    quick, world, tmp_path, another_clone, changed, reason
):
    venv = tmp_path / "venv"
    lock = hashlib.sha256((world / "lock").read_bytes()).hexdigest()
    version = "%d.%d" % sys.version_info[:2]
    state = dict(lock=lock, python=version, torch_index=None, root=str(ROOT), complete=True)
    installer.write_state(venv, {**state, **changed})
    before = sorted(venv.rglob("*")), installer.read_state(venv)
    with pytest.raises(installer.Trouble) as trouble:
        quick(venv, index="/other" if "torch_index" in changed else "")
    assert f"made by the clone in {ROOT}" in str(trouble.value) and reason in str(trouble.value)
    assert "make install VENV=" in str(trouble.value)
    assert (sorted(venv.rglob("*")), installer.read_state(venv)) == before


def test_a_wrong_hash_is_refused_and_the_next_run_repeats(quick, world, tmp_path):
    venv, bad = tmp_path / "venv", tmp_path / "lock"
    bad.write_text(
        re.sub(
            r"(tritonlike==3\.9 \\\n    --hash=sha256:)\w{8}",
            r"\g<1>00000000",
            (world / "lock").read_text(),
        )
    )
    with pytest.raises(installer.Trouble, match="pip could not install"):
        quick(venv, lock=bad)
    assert installer.read_state(venv)["complete"] is False
    with pytest.raises(installer.Trouble):
        quick(venv, lock=bad)  # not taken for done
    assert quick(venv) and installer.read_state(venv)["complete"] is True


def test_interrupted_at_any_step_it_is_not_taken_for_done(quick, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    venv = tmp_path / "venv"
    for step in ("make_venv", "install_packages", "link"):
        with monkeypatch.context() as patch:
            if step == "link":
                patch.setattr(installer, "install_packages", lambda *a: None)
            patch.setattr(installer, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                quick(venv)
        assert installer.read_state(venv)["complete"] is False, step


# ---------------------------------------------------------------- a CPU-only torch


def test_torch_index_leaves_out_all_of_cuda_and_is_remembered(quick, world, tmp_path, monkeypatch):
    venv = tmp_path / "venv"
    assert quick(venv, index=world / "cpu")
    have = versions(venv)
    assert have["torch"] == "2.15.0+cpu" and have["torchvision"] == "0.29.2+cpu"
    assert have["filelock"] == "4.2" and have["mathlike"] == "1.0"
    assert not set(CUDA) & set(have)
    assert quick(venv) is None, "without TORCH_INDEX, what is there has to stay"
    assert quick(venv, index=world / "cpu") is None
    # Another source of torch is another environment: nothing of the old one may stay.
    removed = []
    monkeypatch.setattr(installer.shutil, "rmtree", removed.append)
    monkeypatch.setattr(installer, "make_venv", lambda venv: None)
    monkeypatch.setattr(installer, "install_packages", lambda *a: None)
    assert "its torch came from" in quick(venv, index=world / "empty")[0] and removed == [str(venv)]


def test_torch_index_without_the_pinned_versions(quick, world, tmp_path):
    with pytest.raises(
        installer.Trouble, match=r"did not give torch==2\.15\.0 and torchvision==0\.29\.2"
    ) as trouble:
        quick(tmp_path / "venv", index=world / "empty")
    assert "leave TORCH_INDEX out" in str(trouble.value)


def test_torch_index_with_a_cuda_build(quick, world, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("elsewhere torch has no CUDA build with packages of its own")
    with pytest.raises(installer.Trouble, match="a CUDA build"):
        quick(tmp_path / "venv", index=world / "index")


def test_torch_index_that_is_nothing(capsys, tmp_path):
    assert installer.main(["--venv", str(tmp_path / "v"), "--torch-index", "no/such/folder"]) == 1
    assert "neither an address nor a folder" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()


def test_only_cuda_falls_out_of_the_real_lock():
    """With the requirements of a CPU-only torch, as its wheels have them."""
    metadata = {
        "torch": {
            "requires": [
                "filelock",
                "typing-extensions>=4.10.0",
                "setuptools>=77.0.3",
                "sympy>=1.13.3",
                "networkx>=2.5.1",
                "jinja2",
                "fsspec>=0.8.5",
                'optree>=0.13.0; extra == "optree"',
                'pyyaml; extra == "pyyaml"',
            ]
        },
        "torchvision": {
            "requires": ["numpy", "torch", "pillow !=8.3.*,>=5.3.0", 'scipy; extra == "scipy"']
        },
    }
    dropped = set(ENTRIES) - installer.needed_with(ENTRIES, metadata)
    assert dropped and all(re.match(r"nvidia-|cuda-|triton$", name) for name in dropped), sorted(
        dropped
    )
    assert not [name for name in set(ENTRIES) - dropped if re.match(r"nvidia-|cuda-|triton$", name)]


# ---------------------------------------------------------------- what can be wrong with the machine


def run_with(tmp_path, blocked, *arguments):
    """tools/install.py in a Python in which the modules `blocked` are missing."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in blocked:
        (hidden / f"{name}.py").write_text("raise ImportError('hidden')\n")
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "install.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(hidden)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_without_ensurepip_and_pip_the_package_to_install_is_named(tmp_path):
    result = run_with(tmp_path, ["ensurepip", "pip"], "--venv", str(tmp_path / "venv"))
    assert result.returncode == 1
    assert "sudo apt install python3-venv" in result.stderr and "Traceback" not in result.stderr


def test_too_old_a_python(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(installer.sys, "version_info", (3, 9, 2, "final", 0))
    assert installer.main(["--remove", "--venv", str(tmp_path / "none")]) == 1
    assert "Python 3.9" in capsys.readouterr().err


def test_install_py_can_be_read_by_an_old_python():
    """It must get as far as saying that this Python is too old."""
    import ast

    ast.parse((ROOT / "tools" / "install.py").read_text(), feature_version=(3, 7))


def test_folders_that_are_not_ours_stay_untouched(quick, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(installer.Trouble, match="no virtual environment"):
        quick(photos)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "pyvenv.cfg").write_text("version = 3.8.1\n")
    with pytest.raises(installer.Trouble, match="was not made here"):
        quick(foreign)
    for folder in (photos, foreign):
        with pytest.raises(installer.Trouble, match="not deleted"):
            installer.remove(folder)
    assert (photos / "cat.jpg").exists() and (foreign / "pyvenv.cfg").exists()


def test_a_broken_environment_is_made_anew(quick, tmp_path, monkeypatch):
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    installer.write_state(venv, {"complete": True, "python": "3.8"})
    monkeypatch.setattr(installer, "make_venv", lambda venv: None)
    monkeypatch.setattr(installer, "install_packages", lambda *a: None)
    monkeypatch.setattr(installer, "link", lambda *a: None)
    assert "its Python does not run" in quick(venv)[0]
    assert not (venv / "bin").exists()


def test_remove_deletes_what_was_made_here(tmp_path):
    venv = tmp_path / "venv"
    installer.write_state(venv, {"complete": False})
    installer.remove(venv, log=lambda line: None)
    assert not venv.exists()
    installer.remove(venv)  # a second time is no error


def test_link_lets_a_python_find_pandalib(tmp_path, monkeypatch):
    monkeypatch.setattr(installer, "ask", lambda python, code: str(tmp_path))
    installer.link(sys.executable)
    assert (tmp_path / "pandalib.pth").read_text() == f"{ROOT}\n"
