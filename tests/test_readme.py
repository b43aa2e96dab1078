"""The README's first two commands work as they stand, and its table is that of the projects that exist."""

import os
import subprocess
from pathlib import Path

import conventions
import pytest
import readme_table

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def first_commands() -> list[str]:
    first_screen = README.read_text().partition("\n## ")[0]
    blocks = [block.partition("\n```")[0] for block in first_screen.split("```bash\n")[1:]]
    return [line for block in blocks for line in block.splitlines()]


def test_first_screen_has_two_commands_and_fits_a_screen() -> None:
    train, tests = first_commands()
    assert train == "python3 -m pip install uv && python3 -m uv run --package torchdist-cifar train"
    assert tests == "python3 tools/run_tests.py"
    assert len(README.read_text().partition("\n## ")[0].splitlines()) <= 30


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_train_command_works_with_nothing_but_pip(clone: Path, uv: list[str], clean_environ: dict[str, str]) -> None:
    subprocess.run([*uv, "venv", "--quiet", "--seed", str(clone / "bare")], env=clean_environ, check=True)
    environ = clean_environ | {"PATH": f"{clone / 'bare' / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    command = f"{first_commands()[0]} --help"
    done = subprocess.run(["bash", "-c", command], cwd=clone, env=environ, capture_output=True, text=True)
    assert "usage: train" in done.stdout, done.stdout + done.stderr
    assert "torchdist-cifar: train" in done.stdout


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert script[-1] == f'exec {first_commands()[1]} "$@"'
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_table_is_up_to_date() -> None:
    text = README.read_text()
    assert readme_table.with_table(text, ROOT) == text, "run: python3 tools/readme_table.py"


def test_table_follows_the_projects(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["packages/*"]\n')
    project = tmp_path / "packages" / "toy-one"
    project.mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        '[project]\nname = "toy-one"\ndescription = "A toy."\ndependencies = ["torch==2.13.0", "numpy>=2"]\n'
    )
    text = f"before\n{readme_table.START}old rows\n{readme_table.END}\nafter\n"
    made = readme_table.with_table(text, tmp_path)
    assert "| [toy-one](packages/toy-one) | A toy. | torch 2.13.0 |\n" in made
    assert "old rows" not in made
    assert made.startswith("before\n")
    assert made.endswith("\nafter\n")


def test_commands_are_found_in_the_readme() -> None:
    commands = conventions.commands_in(README)
    assert "python3 -m uv run --package torchdist-cifar train" in commands
    assert len(commands) >= 8
