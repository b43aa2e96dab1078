"""The CI workflow: valid, careful, and about every member."""

import json
import subprocess
import sys
from pathlib import Path

import workspace
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_workflow_is_valid() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    done = run(str(checker), "--builtin-schema", "vendor.github-workflows", str(WORKFLOW))
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflow_is_secure() -> None:
    """Zizmor: actions pinned by commit, least privileges, no injection, no credentials left behind, ..."""
    done = run(str(Path(sys.executable).with_name("zizmor")), "--offline", "--persona=pedantic", str(WORKFLOW))
    assert done.returncode == 0, done.stdout + done.stderr


def test_matrix_has_every_member_on_every_python() -> None:
    matrix = json.loads(run(sys.executable, "tools/ci_matrix.py").stdout)
    assert matrix == {"package": [member.name for member in workspace.members()], "python": ["3.11", "3.12"]}


def test_workflow_runs_what_people_run() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands["matrix"] == ['echo "matrix=$(python3 tools/ci_matrix.py)" >> "$GITHUB_OUTPUT"']
    assert commands["test"][0] == 'python3 tools/run_tests.py --package "$PACKAGE"'
    assert commands["workspace"][0] == "python3 tools/run_tests.py --package workspace"
    for name, job in jobs.items():
        assert job["timeout-minutes"] <= 30, name
