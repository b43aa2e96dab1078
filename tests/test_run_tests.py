"""tools/run_tests.py on a workspace of small packages, each with another ending."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TESTS = {
    "good": "import pytest\ndef test_one(): pass\n@pytest.mark.skip(reason='no moon')\ndef test_two(): pass\n",
    "alone": (
        "import importlib.util\n"
        "def test_it_is_alone():\n"
        "    assert importlib.util.find_spec('alone')\n"
        "    assert not importlib.util.find_spec('good')\n"
    ),
    "wrong": "def test_one(): assert 1 == 2, 'a wrong sum'\ndef test_two(): pass\n",
    "crashing": "import os\ndef test_one(): os.abort()\n",
    "empty": "",
    "hanging": (
        "import pathlib, subprocess, time\n"
        "def test_one():\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        "    pathlib.Path('child').write_text(str(child.pid))\n"
        "    time.sleep(600)\n"
    ),
}
INSTALLED = ("good", "alone")  # the others need no code, only tests
PYPROJECT = """
[project]
name = "NAME"
version = "1"
requires-python = ">=3.11"
[dependency-groups]
test = ["pytest==9.*"]
"""
BUILD_SYSTEM = """
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"
"""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory, uv: list[str]) -> Path:
    root = tmp_path_factory.mktemp("toys")
    shutil.copytree(ROOT / "tools", root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    date = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("exclude-newer"))
    (root / "pyproject.toml").write_text(
        f"[tool.uv]\n{date}\n[tool.uv.workspace]\nmembers = ['packages/*']\n[tool.pytest.ini_options]\n"
    )
    for name, tests in TESTS.items():
        package = root / "packages" / name
        (package / "src" / name).mkdir(parents=True)
        (package / "src" / name / "__init__.py").touch()
        (package / "tests").mkdir()
        (package / "tests" / "test_it.py").write_text(tests)
        (package / "pyproject.toml").write_text(
            PYPROJECT.replace("NAME", name) + (BUILD_SYSTEM if name in INSTALLED else "")
        )
    # Lock once: what is measured below is not the time of the index.
    subprocess.run([*uv, "lock", "--quiet"], cwd=root, check=True)
    return root


def command(*arguments: str) -> list[str]:
    return [sys.executable, "tools/run_tests.py", *arguments]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_every_ending_is_counted(toys: Path) -> None:
    names = [name for name in TESTS if name != "hanging"]
    chosen = [word for name in names for word in ("--package", name)]
    done = subprocess.run(command(*chosen), cwd=toys, capture_output=True, text=True)
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.endswith(" s") or " s  " in line}
    counts = {name: [int(word) for word in rows[name].split()[1:5]] for name in names}
    assert counts == {
        "good": [1, 0, 0, 1],
        "alone": [1, 0, 0, 0],
        "wrong": [1, 1, 0, 0],
        "crashing": [0, 0, 1, 0],
        "empty": [0, 0, 1, 0],
    }, done.stdout + done.stderr
    assert "pytest died of SIGABRT" in rows["crashing"]
    assert "no tests were run" in rows["empty"]
    assert "a wrong sum" in done.stdout  # what failed is in the log
    assert "skipped in good: 1 (no moon)" in done.stdout
    assert done.stdout.splitlines()[-1] == "3 passed, 3 failed, 1 skipped"
    assert done.returncode == 1


def test_success_and_arguments_for_pytest(toys: Path) -> None:
    done = subprocess.run(command("--package", "wrong", "--", "-k", "two"), cwd=toys, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "1 passed, 0 failed"
    assert done.returncode == 0


def test_environment_loses_what_does_not_belong_there(toys: Path, uv: list[str]) -> None:
    environment = os.environ | {"UV_PROJECT_ENVIRONMENT": str(toys / "build" / "environments" / "alone")}
    subprocess.run([*uv, "sync", "--quiet", "--all-packages"], cwd=toys, env=environment, check=True)
    done = subprocess.run(command("--package", "alone"), cwd=toys, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "1 passed, 0 failed"


def test_hanging_tests_are_ended(toys: Path) -> None:
    (toys / "packages" / "hanging" / "child").unlink(missing_ok=True)
    arguments = command("--package", "hanging", "--timeout", "0.15")
    done = subprocess.run(arguments, cwd=toys, capture_output=True, text=True, timeout=60)
    assert "pytest did not end within 0.15 minutes" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 passed, 1 failed"
    assert done.returncode == 1
    assert not is_running(int((toys / "packages" / "hanging" / "child").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_ends_the_tests_and_prints_the_table(number: signal.Signals, toys: Path) -> None:
    child = toys / "packages" / "hanging" / "child"
    child.unlink(missing_ok=True)
    arguments = command("--package", "good", "--package", "hanging", "--package", "wrong")
    # In the order of the workspace: good, hanging, wrong. A CI in the background of a shell may have been told to
    # ignore Ctrl-C, and everything that it starts would, too.
    with subprocess.Popen(
        arguments,
        cwd=toys,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not (child.exists() and child.read_text()):
            assert process.poll() is None
        process.send_signal(number)
        output = process.communicate(timeout=60)[0]
    assert output.splitlines()[-1] == "1 passed, 2 failed, 1 skipped"
    assert "stopped" in output
    assert "not run" in output
    assert process.returncode == 130
    assert not is_running(int(child.read_text()))


def test_unknown_package(toys: Path) -> None:
    done = subprocess.run(command("--package", "god"), cwd=toys, capture_output=True, text=True)
    assert done.stderr == "error: --package god: no package of the workspace; perhaps you meant good\n"
    assert done.returncode == 2


def test_uv_is_installed_where_it_is_missing(toys: Path, tmp_path: Path) -> None:
    """On a machine with nothing but Python and pip."""
    (tmp_path / "bin").mkdir()
    bare = os.environ | {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    if shutil.which("uv", path=bare["PATH"]):
        pytest.skip("uv is installed for the whole system")
    python = Path(sys.executable).resolve()
    code = "import sys; sys.path.insert(0, 'tools'); import workspace; print(workspace.find_uv()[0])"
    done = subprocess.run([str(python), "-S", "-c", code], cwd=toys, env=bare, capture_output=True, text=True)
    installed = toys / "build" / "uv" / "bin" / "uv"
    assert done.stdout.splitlines()[-1] == str(installed), done.stderr
    assert subprocess.run([installed, "--version"], capture_output=True).returncode == 0
