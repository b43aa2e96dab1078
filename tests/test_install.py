"""Every documented way to install a project gives a command that works, and the right one."""

import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT, MODULE = "torchdist-cifar", "torchdist_cifar"
DUMMY_PYPROJECT = """
[project]
name = "torchdist-dummy"
version = "0.1.0"
requires-python = ">=3.11"

[project.scripts]
train = "torchdist_dummy:train"

[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"
"""
DUMMY_MODULE = """
def train():
    print("this is torchdist-dummy")
"""

Run = Callable[..., str]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def run(clone: Path, clean_environ: dict[str, str]) -> Run:
    """Runs a command, by default in the clone, and returns what it printed; fails if the command fails."""

    def run(*command: object, cwd: Path = clone, **variables: str) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=cwd, env=clean_environ | variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def assert_works(command: Path, run: Run, tmp_path: Path) -> None:
    """The installed command shows its help and finds its presets, from a folder that has nothing to do with it."""
    assert re.match(rf"usage: {PROJECT} ", run(command, "--help", cwd=tmp_path))
    train_help = run(command, "train", "--help", cwd=tmp_path)
    assert PROJECT in train_help
    assert re.search(r"preset \(.*\bfull\b.*\bsample\b.*\)", " ".join(train_help.split()))


def test_run_starts_the_project_asked_for(clone: Path, run: Run, uv: list[str]) -> None:
    """Project A, then B, then A again: the third run must start A's `train`, not B's.

    Without `reinstall-package` a wrong one is started. That is looked at too, so that this test is known to see the
    fault; should uv mend it, an assertion fails here and the list is no longer needed.
    """
    dummy = clone / "packages" / "torchdist-dummy"
    (dummy / "src" / "torchdist_dummy").mkdir(parents=True)
    (dummy / "pyproject.toml").write_text(DUMMY_PYPROJECT)
    (dummy / "src" / "torchdist_dummy" / "__init__.py").write_text(DUMMY_MODULE)
    pyproject = clone / "pyproject.toml"
    text = pyproject.read_text()
    listed = text.replace("reinstall-package = [\n", 'reinstall-package = [\n    "torchdist-dummy",\n')
    assert listed != text

    def started(project: str, *options: str) -> str:
        output = run(*uv, "run", *options, "--package", project, "train", "--help")
        return next(name for name in (PROJECT, "torchdist-dummy") if name in output)

    order = [PROJECT, "torchdist-dummy", PROJECT]
    pyproject.write_text(listed)
    with_list = [started(project) for project in order]
    script = (clone / ".venv" / "bin" / "train").read_text()
    isolated = started("torchdist-dummy", "--isolated")
    script_after = (clone / ".venv" / "bin" / "train").read_text()

    pyproject.write_text(re.sub(r"reinstall-package = \[.*?\]\n", "", listed, flags=re.DOTALL))
    without_list = [started(project) for project in order]
    print(f"asked for {order}; with reinstall-package started {with_list}, without it {without_list}")

    def dummy_in_environment() -> list[Path]:
        return list((clone / ".venv").glob("lib/python*/site-packages/*torchdist_dummy*"))

    pyproject.write_text(listed)
    before_sync = dummy_in_environment()
    run(*uv, "sync", "--package", PROJECT)

    assert with_list == order
    assert isolated == "torchdist-dummy"
    assert script_after == script, "--isolated changed the environment that the projects share"
    assert without_list != order
    assert before_sync
    assert not dummy_in_environment(), "uv sync left the other project's code behind"
    assert PROJECT in run(clone / ".venv" / "bin" / "train", "--help")


def test_uv_tool_install(clone: Path, run: Run, uv: list[str], tmp_path: Path) -> None:
    folders = {"UV_TOOL_DIR": str(clone / "tools-installed"), "UV_TOOL_BIN_DIR": str(clone / "tools-bin")}
    run(*uv, "tool", "install", f"./packages/{PROJECT}", **folders)
    assert_works(clone / "tools-bin" / PROJECT, run, tmp_path)
    run(*uv, "tool", "uninstall", PROJECT, **folders)


def test_pip_and_wheels(clone: Path, run: Run, uv: list[str], tmp_path: Path) -> None:
    """`uv pip install ./packages/X`, then `pip install ./shared ./packages/X`, then a pair of built wheels.

    All in one environment, from which our two packages are removed in between: pip resolves everything they declare,
    but finds the several GB of PyTorch there already, where uv has linked it from its cache in seconds.
    """
    environment = clone / "environment"
    run(*uv, "venv", "--seed", environment)
    python, command = environment / "bin" / "python", environment / "bin" / PROJECT

    run(*uv, "pip", "install", "--python", python, f"./packages/{PROJECT}")
    assert_works(command, run, tmp_path)

    def uninstall() -> None:
        run(python, "-m", "pip", "uninstall", "--yes", PROJECT, "trainyard-shared")
        assert not command.exists()

    uninstall()
    run(python, "-m", "pip", "install", "./shared", f"./packages/{PROJECT}")
    assert_works(command, run, tmp_path)

    uninstall()
    for package in ("trainyard-shared", PROJECT):
        run(*uv, "build", "--wheel", "--package", package, "--out-dir", clone / "wheels")
    wheels = sorted((clone / "wheels").glob("*.whl"))
    assert len(wheels) == 2
    run(python, "-m", "pip", "install", *wheels)
    assert_works(command, run, tmp_path)
    names = zipfile.ZipFile(wheels[0]).namelist()
    assert {f"{MODULE}/configs/sample.yaml", f"{MODULE}/configs/full.yaml"} <= set(names)
    assert not [name for name in names if "tests" in name]
