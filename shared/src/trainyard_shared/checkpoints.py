"""Checkpoints that a crash, a full disk or a flipped bit cannot turn into wrong weights.

A checkpoint is a folder `checkpoints/step-00000120/` holding whatever files the backend wrote, and `manifest.json`
with the SHA-256 of each. The folder is written under another name and renamed once everything is on the disk, so a
folder of this name is whole; `newest` still checks every byte and falls back to the one before if the disk changed it.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainyard_shared.errors import DataError, TrainyardError
from trainyard_shared.results import write_atomically

MANIFEST = "manifest.json"


class CheckpointFolder:
    """The checkpoints of one run, oldest removed beyond the newest `keep`.

    Args:
        path: the folder `checkpoints` of a run.
        keep: how many to keep; at least 2, so that there is one to fall back to.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        self.keep = max(keep, 2)

    @contextlib.contextmanager
    def write(self, step: int, **facts: Any) -> Iterator[Path]:
        """Give an empty folder to write into; when the block ends well it becomes the checkpoint of `step`.

        Call it on one process. `facts` go into the manifest. If the block raises, nothing is left behind.
        """
        final = self._folder(step)
        temporary = final.with_name(final.name + ".partial")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            hashes = {str(file.relative_to(temporary)): _sha256(file) for file in _files(temporary)}
            content = {"step": step, **facts, "sha256": hashes}
            content |= {"sha256_of_all_above": _sha256_of_facts(content)}
            write_atomically(temporary / MANIFEST, json.dumps(content, indent=2))
            for file in _files(temporary):
                _sync(file)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            _sync(self.path)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its file writer.
            if isinstance(error, RuntimeError) and not re.search("StreamWriter|inline_container", str(error)):
                raise
            free = shutil.disk_usage(self.path.parent).free
            raise TrainyardError(
                f"error: the checkpoint of step {step} cannot be written to {self.path}: "
                f"{getattr(error, 'strerror', None) or error} ({free // 1024} KiB free there)"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        folders = self._all()
        up_to_this = folders.index(final) + 1
        # Later steps are what a run left that had to fall back to an older checkpoint: it comes to them again.
        for folder in folders[: max(up_to_this - self.keep, 0)] + folders[up_to_this:]:
            shutil.rmtree(folder, ignore_errors=True)

    def newest(self, warn: Callable[[str], None]) -> Path | None:
        """Return the newest checkpoint that is intact, None if there is none; each damaged one is told to `warn`.

        Raises:
            DataError: there are checkpoints, but all are damaged: to start afresh would silently lose the run.
        """
        folders = self._all()
        for folder in reversed(folders):
            damage = self.damage(folder)
            if damage is None:
                return folder
            warn(f"checkpoint {folder.name} is damaged ({damage}): falling back to the one before")
        if folders:
            raise DataError(f"error: {self.path}: every checkpoint is damaged; remove the folder to start afresh")
        return None

    @staticmethod
    def damage(folder: Path) -> str | None:
        """Say what is wrong with a checkpoint, None if every byte is as it was written."""
        try:
            content = manifest(folder)
            if content.pop("sha256_of_all_above") != _sha256_of_facts(content):
                return f"{MANIFEST} has changed"
            for name, expected in content["sha256"].items():
                if _sha256(folder / name) != expected:
                    return f"{name} has changed"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _folder(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _all(self) -> list[Path]:
        return sorted(folder for folder in self.path.glob("step-????????") if folder.is_dir())


def manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an intact checkpoint."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_facts(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
