"""Check the types of all Python files with mypy, in the environment of the group `dev`, which has no backend."""

import subprocess
import sys

from workspace import ROOT, members


def main() -> int:
    sources = [str(member.source) for member in members(ROOT)]
    # Test files of several packages have the same names, which mypy does not take in one go.
    runs = [[*sources, "tools", "tests"], *([str(member.path / "tests")] for member in members(ROOT))]
    statuses = [subprocess.run([sys.executable, "-m", "mypy", *paths], cwd=ROOT).returncode for paths in runs]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
