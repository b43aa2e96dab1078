"""What is true of every package. That each check can fail is shown in test_conventions_fail.py."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import workspace
from conventions import CHECKS

ROOT = Path(__file__).resolve().parent.parent


def test_members_come_from_the_globs() -> None:
    names = {member.name for member in workspace.members(ROOT)}
    assert "trainyard-shared" in names
    assert {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")} == names - {"trainyard-shared"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_workspace_keeps(check: Callable[[Path], Iterator[str]]) -> None:
    findings = list(check(ROOT))
    assert not findings, "\n".join(findings)
