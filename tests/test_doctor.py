"""The doctor names what is wrong, says what to do, and never fails itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pandalib import doctor
from pandalib.cli import main
from pandalib.doctor import Finding

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def sound(monkeypatch, tmp_path):
    """A machine on which all is well, without importing torch."""
    monkeypatch.setattr(doctor, "_python", lambda code: (True, "torch 2 with GPU: none"))
    monkeypatch.setattr(doctor, "version_of", lambda name: doctor.locked_versions()[name])
    monkeypatch.setenv("PANDALIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("PANDALIB_TIER", raising=False)
    monkeypatch.delenv("PANDALIB_TASK", raising=False)
    return monkeypatch


def said(level, tier=None):
    return [str(finding) for finding in doctor.check(tier) if finding.level == level]


def test_a_sound_machine(sound, capsys):
    assert main(["doctor"]) == 0
    *findings, _, verdict = capsys.readouterr().out.splitlines()
    assert verdict == "The embedded tier can run here."
    assert len(findings) == 5 and all(line.startswith("ok ") for line in findings)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Finding(**item) for item in found] == doctor.check()


def test_this_environment_has_every_package():
    assert all(doctor.version_of(name) for name in doctor.requirements())
    assert set(doctor.requirements()) <= set(doctor.locked_versions())
    assert doctor.version_of("no-such-package") is None


def test_missing_packages_stand_in_one_command(sound):
    locked = doctor.locked_versions()
    sound.setattr(doctor, "version_of", lambda name: None if name == "tqdm" else locked[name])
    (line,) = said("FAIL")
    assert line.startswith("FAIL  not installed: tqdm: make install") and '"tqdm>=' in line


def test_another_version_is_a_warning(sound):
    locked = doctor.locked_versions()
    sound.setattr(doctor, "version_of", lambda name: "1.0" if name == "numpy" else locked[name])
    assert said("FAIL") == [] and "numpy 1.0 (tested with" in said("warn")[0]


@pytest.mark.parametrize(
    ("torchvision", "words"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "torchvision::nms"),
        ("import os; os._exit(139)", "Python ended with 139"),
        (None, "No module named"),
    ],
)
def test_a_broken_pair_of_torch_and_torchvision(tmp_path, torchvision, words):
    """Run in a process in which these two come before the installed ones."""
    (tmp_path / "torch.py").write_text("__version__ = '2.13.0+cpu'")
    source = torchvision or "raise ModuleNotFoundError(\"No module named 'torchvision'\")"
    (tmp_path / "torchvision.py").write_text(source)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "PANDALIB_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "pandalib", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("FAIL")]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert words in line and "pip install --force-reinstall torch==" in line


def test_weights_are_not_looked_at_where_torch_is_broken(sound):
    sound.setattr(doctor, "_python", lambda code: (False, "undefined symbol"))
    (line,) = said("FAIL")
    assert "undefined symbol" in line and "must come from one place" in line


def test_a_process_that_does_not_answer(monkeypatch):
    def too_slow(command, **options):
        raise subprocess.TimeoutExpired(command, 180)

    monkeypatch.setattr(doctor.subprocess, "run", too_slow)
    assert doctor._python("pass") == (False, "no answer within three minutes")


def test_damaged_weights(sound):
    def answer(code):
        return (False, "ValueError: x is damaged") if code == doctor.WEIGHTS else (True, "torch")

    sound.setattr(doctor, "_python", answer)
    assert said("FAIL") == ["FAIL  ValueError: x is damaged"]
    assert main(["doctor"]) == 1


def test_a_cache_that_cannot_be_written(sound, tmp_path):
    (tmp_path / "file").touch()
    sound.setenv("PANDALIB_CACHE", str(tmp_path / "file" / "cache"))
    (line,) = said("FAIL")
    assert line.endswith("set PANDALIB_CACHE to a folder of yours")


def test_an_unknown_tier(sound):
    sound.setenv("PANDALIB_TIER", "nonsense")
    (finding,) = doctor.check()
    assert finding.level == "FAIL" and "'nonsense'" in finding.what and "embedded" in finding.todo


def test_the_paper_tier_lacks_weights_images_and_a_gpu(sound, tmp_path):
    sound.setenv("PANDALIB_TIER", "paper")
    weights, images, gpu = said("warn")
    assert "resnet152" in weights and str(tmp_path) in weights
    assert "PANDALIB_TASK" in images and "no GPU" in gpu
    sound.setenv("PANDALIB_TASK", "folder:photos:good")
    sound.setattr(doctor, "_python", lambda code: (True, "torch 2, GPU: H100"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet152-f82ba261.pth").touch()
    assert said("warn") == [] and "paper" in said("ok")[-1]


@pytest.mark.parametrize("package", ["elpv-dataset", doctor.MOBILENET])
def test_a_tier_without_its_images_or_weights_does_not_work_offline(sound, package):
    locked = doctor.locked_versions()
    sound.setattr(doctor, "version_of", lambda name: None if name == package else locked[name])
    assert said("ok")[-1] == "ok    without a network: embedded"
    assert bool(said("FAIL", "standard")) == (package == "elpv-dataset")


def test_nothing_heavy_is_imported_by_the_doctor():
    code = (
        "import sys; from pandalib import doctor; print([name for name in ('torch', 'numpy', "
        "'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
