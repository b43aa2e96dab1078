import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from conventions import tracked_files  # noqa: E402
from workspace import find_uv  # noqa: E402


@pytest.fixture(scope="session")
def uv() -> list[str]:
    return find_uv()


@pytest.fixture(scope="session")
def clean_environ() -> dict[str, str]:
    """The environment variables of somebody who has just opened a terminal, with the Python of these tests."""
    ours = ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "PYTHONPATH", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in ours} | {"UV_PYTHON": sys.executable}


@pytest.fixture(scope="module")
def clone() -> Iterator[Path]:
    """What a fresh clone of the working tree would hold; gone afterwards, with what was installed into it.

    It lies in build/, not in the folder for temporary files: uv links the several GB of PyTorch from its cache only
    within one file system.
    """
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="clone-") as folder:
        for path in tracked_files(ROOT):
            target = Path(folder) / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        subprocess.run(["git", "init", "--quiet", folder], check=True)
        yield Path(folder)
