"""Each check of tools/conventions.py is silent on a small correct workspace and speaks up when one thing is broken."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import conventions
import pytest

ROOT_PYPROJECT = """
[tool.uv.workspace]
members = ["packages/*", "shared"]
[tool.uv]
reinstall-package = ["toy-one", "toy-two"]
"""
SHARED_PYPROJECT = """
[project]
name = "trainyard-shared"
version = "1"
dependencies = ["numpy"]
[project.optional-dependencies]
hub = ["pillow"]
[dependency-groups]
test = ["pytest"]
"""
PYPROJECT = """
[project]
name = "NAME"
version = "1"
dependencies = ["torch==2.13.0", "trainyard-shared[hub]"]
[project.scripts]
NAME = "MODULE.cli:main"
train = "MODULE.cli:train"
evaluate = "MODULE.cli:evaluate"
compare = "MODULE.cli:compare"
[dependency-groups]
test = ["pytest"]
"""
CONFIG = '''
from pydantic.dataclasses import dataclass
from trainyard_shared.config import CONFIG, PositiveFloat, RunConfig

@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Train."""
    learning_rate: PositiveFloat = 0.1
    """peak learning rate"""
'''
README = """
# NAME
## What it shows
## Run
```bash
# a comment
uv run --package NAME train --config full --nproc 2   # another comment
uv run --package NAME evaluate --help && uv run --isolated --package NAME compare
torchrun --nproc-per-node 2 -m MODULE.train --config full --learning-rate 0.2
NAME train --config my.yaml --resume results/<run>
NAME look --nproc 2
pip install ./shared ./packages/NAME
```
## Data
## Results
## Logged metrics
## Limits
"""
CHANGELOG = """
# Changelog
## [Unreleased]
### Added
- toy-one: a project.
- workspace: two projects.
## [0.1.0] - 2030-12-31
### Fixed
- trainyard-shared: something, told
  in two lines.
"""
REAL_SHARED = Path(__file__).resolve().parent.parent / "shared" / "src" / "trainyard_shared"


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A correct workspace of two projects, which read their presets with the real shared package."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    write(tmp_path, "pyproject.toml", ROOT_PYPROJECT)
    write(tmp_path, "CHANGELOG.md", CHANGELOG)
    write(tmp_path, "shared/pyproject.toml", SHARED_PYPROJECT)
    write(tmp_path, "shared/tests/test_it.py", "")
    write(tmp_path, "shared/src/trainyard_shared/launch.py", "def launch():\n    import torch\n")
    write(tmp_path, "shared/src/trainyard_shared/tensors/batches.py", "import torch\n")
    for name in ("__init__", "config", "errors"):
        write(tmp_path, f"shared/src/trainyard_shared/{name}.py", (REAL_SHARED / f"{name}.py").read_text())
    for name in ("toy-one", "toy-two"):
        module = name.replace("-", "_")
        folder, source = f"packages/{name}", f"packages/{name}/src/{module}"
        for file, text in (("pyproject.toml", PYPROJECT), ("README.md", README)):
            write(tmp_path, f"{folder}/{file}", text.replace("NAME", name).replace("MODULE", module))
        write(tmp_path, f"{folder}/tests/test_it.py", f"import {module}\n")
        for name_of_module in conventions.REQUIRED_MODULES:
            write(tmp_path, f"{source}/{name_of_module}.py", "import trainyard_shared.errors\n")
        write(tmp_path, f"{source}/train.py", "import torch\n")
        write(tmp_path, f"{source}/cli.py", 'commands = {"train": train, "look": look}\n')
        write(tmp_path, f"{source}/config.py", CONFIG)
        write(tmp_path, f"{source}/configs/sample.yaml", "{}\n")
        write(tmp_path, f"{source}/configs/full.yaml", "learning_rate: 0.2\n")
    return tmp_path


def replace(path: str, old: str, new: str) -> Callable[[Path], None]:
    def break_it(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return break_it


def add(path: str, text: str) -> Callable[[Path], None]:
    return lambda root: write(root, path, text)


def remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def rename(path: str, new: str) -> Callable[[Path], None]:
    def break_it(root: Path) -> None:
        (root / path).rename(root / new)

    return break_it


def import_torch_in_config(root: Path) -> None:
    write(root, f"{TOY}/src/torch.py", "")  # stands in for torch, which is not installed here
    write(root, f"{SOURCE}/config.py", "import torch\n" + CONFIG)


TOY = "packages/toy-one"
SOURCE = f"{TOY}/src/toy_one"
PROJECT, TOY_README = f"{TOY}/pyproject.toml", f"{TOY}/README.md"
MACHINE_PATH = "/".join(["", "home", "somebody", "data"])
HOST = ".".join(["pypi", "org"])

BROKEN: list[tuple[str, Callable[[Path], None], str]] = [
    ("check_names", rename(TOY, "packages/toy-uno"), "packages/toy-uno: the distribution is named toy-one"),
    ("check_names", rename(SOURCE, f"{TOY}/src/toyone"), "packages/toy-one: has no module src/toy_one"),
    ("check_files", remove(f"{SOURCE}/configs/full.yaml"), "configs/full.yaml: missing"),
    ("check_files", remove(f"{SOURCE}/compare.py"), "src/toy_one/compare.py: missing"),
    ("check_files", remove(TOY_README), "README.md: missing"),
    ("check_files", remove(f"{TOY}/tests/test_it.py"), "tests: holds no test_"),
    ("check_files", remove("shared/tests/test_it.py"), "shared/tests: holds no test_"),
    ("check_files", replace(PROJECT, "test = [", "tests = ["), "has no dependency group 'test'"),
    ("check_scripts", replace(PROJECT, "train =", "fit ="), "the script train is missing"),
    ("check_scripts", replace(PROJECT, "cli:main", "cli:train"), "the script toy-one is toy_one.cli:train"),
    ("check_settings", add("shared/pyproject.toml", SHARED_PYPROJECT + "[tool.ruff]\n"), "[tool.ruff]"),
    ("check_readmes", replace(TOY_README, "## Limits\n", ""), "the headings are"),
    ("check_readmes", replace(TOY_README, "## Data\n## Results\n", "## Results\n## Data\n"), "the headings are"),
    ("check_presets", add(f"{SOURCE}/configs/full.yaml", "learning_rate: 0.1\n"), "learning_rate is the default"),
    ("check_presets", add(f"{SOURCE}/configs/full.yaml", "learnig_rate: 0.2\n"), "learnig_rate"),
    ("check_presets", add(f"{SOURCE}/configs/my.yaml", "nproc: -1\n"), "nproc"),
    ("check_presets", add(f"{SOURCE}/config.py", "import no_such_module\n"), "No module named 'no_such_module'"),
    ("check_presets", import_torch_in_config, "config.py imports torch"),
    (
        "check_imports",
        add(f"{SOURCE}/data.py", "def f():\n    from toy_two.data import x\n"),
        "data.py:2: imports toy_two",
    ),
    ("check_imports", add(f"{TOY}/tests/test_it.py", "import toy_two.model\n"), "test_it.py:1: imports toy_two"),
    ("check_imports", add("shared/src/trainyard_shared/x.py", "import torch.nn\n"), "x.py:1: imports torch"),
    (
        "check_imports",
        add("shared/src/trainyard_shared/launch.py", "import deepspeed\n"),
        "launch.py:1: imports deepspeed",
    ),
    ("check_imports", add("shared/src/trainyard_shared/x.py", "import toy_one\n"), "x.py:1: imports toy_one"),
    ("check_dependencies", replace(PROJECT, "torch==2.13.0", "torch>=2.13"), "torch>=2.13: pin the backend exactly"),
    ("check_dependencies", replace(PROJECT, "torch==2.13.0", "numpy"), "declares none of the backends"),
    ("check_dependencies", replace(PROJECT, "trainyard-shared[hub]", "toy-two"), "depends on toy-two"),
    ("check_dependencies", replace("shared/pyproject.toml", '"pillow"', '"torch==2.13.0"'), "depends on torch"),
    ("check_reinstall", replace("pyproject.toml", '"toy-one", ', ""), "reinstall-package lacks toy-one"),
    ("check_reinstall", replace("pyproject.toml", '"toy-one"', '"toy-one", "toy-x"'), "lists toy-x"),
    ("check_changelog", replace("CHANGELOG.md", "toy-one:", "toy-on:"), "CHANGELOG.md:5: an entry starts with"),
    ("check_changelog", replace("CHANGELOG.md", "### Fixed", "### Mended"), "'Mended' is none of"),
    ("check_changelog", replace("CHANGELOG.md", "2030-12-31", "New Year"), "New Year' is neither"),
    ("check_changelog", remove("CHANGELOG.md"), "has no entries"),
    ("check_tracked_files", add("uv.lock", ""), "uv.lock: must not be committed"),
    ("check_tracked_files", add("big.txt", 500_001 * "x"), "big.txt: 500,001 bytes"),
    ("check_tracked_files", add("notes.md", f"see\n{MACHINE_PATH}/x\n"), f"notes.md:2: {MACHINE_PATH}"),
    ("check_tracked_files", add("notes.md", f"from https://{HOST}/simple"), f"notes.md:1: {HOST}"),
    ("check_commands", replace(TOY_README, "--package toy-one train", "--package toy-on train"), "no package toy-on"),
    ("check_commands", replace(TOY_README, "toy-one evaluate", "toy-one evalute"), "has no script evalute"),
    ("check_commands", replace(TOY_README, "\ntoy-one train", "\ntoy-one trian"), "has no command trian"),
    ("check_commands", replace(TOY_README, "\ntoy-one look", "\ntoy-one lok"), "has no command lok"),
    ("check_commands", add("docs/run.md", "```bash\nsbatch docs/run.sbatch\n```\n"), "there is no docs/run.sbatch"),
    (
        "check_commands",
        replace(TOY_README, "train --config full --nproc", "train --config fool --nproc"),
        "preset fool",
    ),
    ("check_commands", replace(TOY_README, "--nproc 2", "--num-proc 2"), "has no flag --num-proc"),
    ("check_commands", replace(TOY_README, "-m toy_one.train", "-m toy_one.trian"), "no module toy_one.trian"),
    ("check_commands", replace(TOY_README, "full --learning-rate", "full --learning-rat"), "no flag --learning-rat"),
    ("check_commands", replace(TOY_README, "./packages/toy-one", "./packages/toy"), "there is no ./packages/toy"),
    (
        "check_trust",
        add("packages/toy-one/src/toy_one/train.py", "torch.load(path)\n"),
        "train.py:1: torch.load without",
    ),
    (
        "check_trust",
        add("packages/toy-one/src/toy_one/train.py", "torch.load(path, weights_only=False)\n"),
        "torch.load without weights_only=True",
    ),
    (
        "check_trust",
        add("shared/src/trainyard_shared/a.py", "import pickle\npickle.load(file)\n"),
        "a.py:2: pickle.load runs",
    ),
    ("check_trust", add("shared/src/trainyard_shared/a.py", "yaml.load(text)\n"), "yaml.load runs"),
    (
        "check_trust",
        add("packages/toy-two/src/toy_two/model.py", "AutoModel.from_pretrained(name, trust_remote_code=True)\n"),
        "model.py:1: trust_remote_code runs code",
    ),
]


def findings_of(check: str, root: Path) -> list[str]:
    return list(getattr(conventions, check)(root))


def test_correct_workspace_has_no_findings(toy: Path) -> None:
    assert {check.__name__: findings_of(check.__name__, toy) for check in conventions.CHECKS} == {
        check.__name__: [] for check in conventions.CHECKS
    }


def test_every_check_has_a_broken_workspace() -> None:
    assert {check.__name__ for check in conventions.CHECKS} == {check for check, _, _ in BROKEN}


@pytest.mark.parametrize(("check", "break_it", "complaint"), BROKEN, ids=[f"{row[0]}-{row[2]}" for row in BROKEN])
def test_check_complains(check: str, break_it: Callable[[Path], None], complaint: str, toy: Path) -> None:
    break_it(toy)
    findings = findings_of(check, toy)
    assert any(complaint in finding for finding in findings), findings
    assert all(re.match(r"[\w./-]+:", finding) for finding in findings)  # says where
