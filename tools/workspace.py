"""What the other tools need to know about the workspace. Standard library only, so that it works before uv is there."""

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class WorkspaceError(Exception):
    """The workspace or this machine is not as it should be; the message says what to do."""


@dataclass(frozen=True)
class Member:
    """One installable package of the workspace."""

    path: Path

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        """The package's own pyproject.toml."""
        return read_toml(self.path / "pyproject.toml")

    @property
    def name(self) -> str:
        """The distribution name."""
        return str(self.pyproject["project"]["name"])

    @property
    def module(self) -> str:
        """The import name."""
        return self.name.replace("-", "_")

    @property
    def source(self) -> Path:
        """The folder of the package's Python files."""
        return self.path / "src" / self.module

    @property
    def scripts(self) -> dict[str, str]:
        """Commands the package installs, each with the function behind it."""
        return dict(self.pyproject["project"].get("scripts", {}))

    @property
    def dependencies(self) -> list[str]:
        """The requirements of every install, without extras and groups."""
        return list(self.pyproject["project"].get("dependencies", []))

    @property
    def is_project(self) -> bool:
        """Whether this is one of the training projects, not the shared package."""
        return self.path.parent.name == "packages"


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def members(root: Path = ROOT) -> list[Member]:
    """Return the workspace members that the globs in the root pyproject.toml name, in the order of the globs."""
    globs = read_toml(root / "pyproject.toml")["tool"]["uv"]["workspace"]["members"]
    return [Member(path.parent) for glob in globs for path in sorted(root.glob(f"{glob}/pyproject.toml"))]


def projects(root: Path = ROOT) -> list[Member]:
    """Return the training projects."""
    return [member for member in members(root) if member.is_project]


def find_uv() -> list[str]:
    """Return the command that starts uv: the one on this machine, or one installed into build/uv.

    Raises:
        WorkspaceError: there is no uv and it could not be installed.
    """
    if found := shutil.which("uv"):
        return [found]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    # An environment of its own also works where the distribution forbids pip to install beside its packages.
    environment = ROOT / "build" / "uv"
    uv = environment / "bin" / "uv"
    if not uv.is_file():
        print(f"uv is not installed; installing it into {environment.relative_to(ROOT)}", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
            subprocess.run([str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"], check=True)
        except subprocess.CalledProcessError as error:
            raise WorkspaceError("uv could not be installed (see above): install it and start again") from error
    return [str(uv)]
