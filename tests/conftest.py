import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from conventions import tracked_files  # noqa: E402
from workspace import find_uv  # noqa: E402


@pytest.fixture(scope="session")
def uv() -> list[str]:
    return find_uv()


@pytest.fixture
def copy_of_workspace(tmp_path: Path) -> Path:
    """What a fresh clone of the working tree would hold."""
    copy = tmp_path / "clone"
    for path in tracked_files(ROOT):
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    subprocess.run(["git", "init", "--quiet", str(copy)], check=True)
    return copy
