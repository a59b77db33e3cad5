"""doctor names what is wrong, says what to do, and never fails itself."""

import json
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

import pandalib
from pandalib import doctor
from pandalib.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
PINS = {"torch": "2.15.0", "torchvision": "0.29.2"}


def distribution(folder, name, version, code):
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def doctor_in(folder, *arguments):
    """Run doctor in a process in which the packages of `folder` come before the installed ones."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "PANDALIB_CACHE": str(folder / "cache"),
    }
    return subprocess.run(
        [sys.executable, "-m", "pandalib", "doctor", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def line_about(text, what):
    lines = [line for line in text.splitlines() if what in line]
    assert lines, f"nothing about {what!r} in:\n{text}"
    return lines[0]


@pytest.fixture
def sound(monkeypatch, tmp_path):
    """A machine on which all is well, without importing torch."""
    monkeypatch.setattr(
        doctor,
        "probe_torch",
        lambda: {
            "torch": "2.15.0",
            "torchvision": "0.29.2",
            "threads": 2,
            "bf16": True,
            "cuda": [],
        },
    )
    monkeypatch.setattr(doctor, "version_of", lambda name: doctor.locked_versions()[name])
    monkeypatch.setenv("PANDALIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PANDALIB_TIER", raising=False)
    monkeypatch.delenv("PANDALIB_TASK", raising=False)
    embedded(monkeypatch, lambda: None)
    return monkeypatch


def embedded(monkeypatch, verify):
    fake = types.ModuleType("pandalib.weights")
    fake.verify_embedded = verify
    monkeypatch.setitem(sys.modules, "pandalib.weights", fake)
    monkeypatch.setattr(pandalib, "weights", fake, raising=False)


def exit_code(*arguments):
    return main(["doctor", *arguments])


def levels(findings, level):
    return [str(finding) for finding in findings if finding.level == level]


# ---------------------------------------------------------------- torch and torchvision


def test_a_cpu_torch_beside_another_torchvision_is_recognised(tmp_path):
    """As seen with torch 2.13.0+cpu and the usual torchvision 0.29.2."""
    distribution(
        tmp_path, "torch", "2.13.0+cpu", "__version__ = '2.13.0+cpu'\nclass version: cuda = None\n"
    )
    distribution(
        tmp_path,
        "torchvision",
        "0.29.2",
        "raise RuntimeError('operator torchvision::nms does not exist')\n",
    )
    result = doctor_in(tmp_path)
    line = line_about(result.stdout, "torchvision::nms")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert line.startswith("FAIL") and "torch 2.13.0+cpu" in line and "torchvision 0.29.2" in line
    pins = doctor.locked_versions()
    assert (
        f"pip install --force-reinstall torch=={pins['torch']} torchvision=={pins['torchvision']}"
        in line
        and "TORCH_INDEX" in line
    )


def test_a_torch_that_takes_python_down(tmp_path):
    distribution(tmp_path, "torch", "2.15.0", "import os; os._exit(139)\n")
    result = doctor_in(tmp_path, "--json")
    torch = [
        finding
        for finding in json.loads(result.stdout)
        if finding["what"].startswith("torch 2.15.0")
    ]
    assert result.returncode == 1 and torch[0]["level"] == "FAIL" and "139" in torch[0]["what"]


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: operator torchvision::nms does not exist",
        "OSError: _C.so: undefined symbol: _ZN3c106detail",
        "ImportError: libcudart.so.13: cannot open shared object file",
    ],
)
def test_errors_of_a_mismatched_pair(monkeypatch, error):
    monkeypatch.setattr(doctor, "version_of", {"torch": "2.15.0", "torchvision": "0.29.2"}.get)
    (finding,) = doctor.check_torch(
        PINS, {"torch": "2.15.0", "build": "13.0", "torchvision_error": error}
    )
    assert finding.level == "FAIL" and error in finding.what and "pair" in finding.todo


@pytest.mark.parametrize(
    "have, words",
    [
        ({}, "torch is not installed, nor is torchvision"),
        ({"torchvision": "0.29.2"}, "torch is not installed"),
        ({"torch": "2.15.0"}, "torchvision is not installed"),
    ],
)
def test_missing_ones(monkeypatch, have, words):
    monkeypatch.setattr(doctor, "version_of", have.get)
    (finding,) = doctor.check_torch(
        PINS, {"torch": "2.15.0"} if "torch" in have else {"torch_error": ""}
    )
    assert (
        finding.level == "FAIL"
        and finding.what.endswith(words)
        and "pip install torch==2.15.0 torchvision==0.29.2" in finding.todo
    )


def test_a_local_build_of_the_pinned_version_is_fine_and_another_version_only_a_warning(
    monkeypatch,
):
    probe = {"torch": "x", "torchvision": "y"}
    monkeypatch.setattr(
        doctor, "version_of", {"torch": "2.15.0+cpu", "torchvision": "0.29.2+cpu"}.get
    )
    assert [finding.level for finding in doctor.check_torch(PINS, probe)] == ["ok"]
    monkeypatch.setattr(doctor, "version_of", {"torch": "2.12.1", "torchvision": "0.27.0"}.get)
    assert [finding.level for finding in doctor.check_torch(PINS, probe)] == ["warn"]


# ---------------------------------------------------------------- all is well, and one thing at a time is not


def test_a_sound_machine(sound, capsys):
    assert exit_code() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "The embedded tier can run here."
    assert all(line.startswith("ok ") for line in lines[:-2]), lines


def test_this_environment_has_the_locked_versions():
    pins = doctor.locked_versions()
    for name in doctor.DIRECT + doctor.FOR_TESTS:
        assert doctor.version_of(name), f"{name} is not installed"
    assert len(pins) > 50


def test_missing_packages_stand_in_one_command(sound):
    sound.setattr(
        doctor,
        "version_of",
        lambda name: (
            None if name in ("faiss-cpu", "tqdm", "nbval") else doctor.locked_versions()[name]
        ),
    )
    findings = doctor.check("embedded")
    assert (
        "not installed: faiss-cpu, tqdm" in levels(findings, "FAIL")[0]
        and "pip install faiss-cpu==" in levels(findings, "FAIL")[0]
    )
    assert (
        "nbval" in levels(findings, "warn")[0]
        and "only the tests need it" in levels(findings, "warn")[0]
    )


def test_another_version_is_a_warning(sound):
    sound.setattr(
        doctor,
        "version_of",
        lambda name: "1.0" if name == "numpy" else doctor.locked_versions()[name],
    )
    findings = doctor.check("embedded")
    assert (
        levels(findings, "FAIL") == [] and "numpy 1.0; tested with" in levels(findings, "warn")[0]
    )


def test_damaged_weights(sound, capsys):
    def damaged():
        raise ValueError(
            "data/weights/x.safetensors has another SHA-256. Remake it: python tools/pretrain.py"
        )

    embedded(sound, damaged)
    assert exit_code("--tier", "embedded") == 1
    line = line_about(capsys.readouterr().out, "embedded weights")
    assert (
        line.startswith("FAIL")
        and "another SHA-256" in line
        and line.endswith("python tools/pretrain.py")
    )


def test_a_missing_font(sound, tmp_path):
    (tmp_path / "matplotlib").mkdir()
    spec = types.SimpleNamespace(origin=str(tmp_path / "matplotlib" / "__init__.py"))
    sound.setattr(doctor.importlib.util, "find_spec", lambda name: spec)
    assert (
        "DejaVuSans.ttf is missing" in str(doctor.check_fonts())
        and doctor.check_fonts().level == "FAIL"
    )


def test_a_cache_that_cannot_be_written(sound, tmp_path):
    (tmp_path / "file").write_text("")
    sound.setenv("PANDALIB_CACHE", str(tmp_path / "file" / "cache"))
    finding = doctor.check_cache()
    assert finding.level == "FAIL" and "PANDALIB_CACHE" in finding.todo


def test_a_full_disk_is_a_warning(sound):
    sound.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2e8))
    assert doctor.check_disk("embedded").level == "warn"


# ---------------------------------------------------------------- tiers


def test_an_unknown_tier(sound):
    sound.setenv("PANDALIB_TIER", "nonsense")
    (finding,) = doctor.check()
    assert finding.level == "FAIL" and "'nonsense'" in finding.what and "embedded" in finding.todo


def test_paper_tier_needs_weights_or_network_and_wants_a_gpu(sound, tmp_path):
    sound.setenv("TORCH_HOME", str(tmp_path))
    sound.setattr(doctor, "network", lambda: False)
    sound.setenv("PANDALIB_TIER", "paper")
    findings = doctor.check()
    assert "resnet152" in levels(findings, "FAIL")[0] and "no GPU" in "".join(
        levels(findings, "warn")
    )
    assert "PANDALIB_TASK" in "".join(levels(findings, "warn"))
    assert exit_code() == 1
    sound.setattr(doctor, "network", lambda: True)
    assert levels(doctor.check(), "FAIL") == []
    sound.setattr(doctor, "network", lambda: pytest.fail("the weights are here: no need to ask"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet152-f82ba261.pth").write_bytes(b"")
    assert levels(doctor.check(), "FAIL") == []


def test_embedded_tier_never_asks_the_network(sound):
    sound.setattr(doctor, "network", lambda: pytest.fail("asked"))
    assert levels(doctor.check("embedded"), "FAIL") == []


def test_network_is_given_up_soon(monkeypatch):
    def refused(address, timeout):
        assert timeout <= 5 and address[1] == 443
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", refused)
    assert doctor.network() is False


def test_json_is_the_same_findings(sound, capsys):
    assert exit_code("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [doctor.Finding(**item) for item in found] == doctor.check()


def test_nothing_heavy_is_imported_by_doctor():
    code = "import sys; from pandalib import doctor; print([name for name in ('torch', 'numpy', 'matplotlib') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
