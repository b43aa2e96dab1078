"""What is to be known of a data set before and after it is downloaded: the form in which its own module says it.

A module that reads a data set has `ENTRIES`, a tuple with an `Entry` for each; `catalogue.py` finds them there.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as config_dataclass

from trainyard_shared.config import CONFIG
from trainyard_shared.datasets.fetch import Source, cache_dir


@config_dataclass(frozen=True, kw_only=True, config=CONFIG)
class DownloadConfig:
    """The flags of a download; a data set of which parts can be chosen derives its own."""

    offline: bool = False
    """use only what is in the cache already"""


@dataclass(frozen=True)
class File:
    """One file at one place. Without `checksum`, what is in it is checked after reading."""

    source: Source
    checksum: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class Place:
    """Somewhere that has the whole data set, in one file or several."""

    name: str
    files: tuple[File, ...]

    @property
    def credentials(self) -> str:
        """What the user needs to have there; empty for open places."""
        return self.files[0].source.credentials

    @property
    def size_bytes(self) -> int | None:
        """The bytes to download, where all are known."""
        sizes = [file.size_bytes for file in self.files if file.size_bytes is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set of the catalogue."""

    name: str
    """what the commands call it"""
    title: str
    task: str
    size: str
    """how many examples of what"""
    licence: str
    terms: str
    """what somebody who downloads it has to know or do"""
    citation: str
    places: tuple[Place, ...]
    """in the order in which they are tried"""
    verified: str
    """how it is made sure that what arrives is the data set, wherever it comes from"""
    folder: str
    """within the cache; unfinished downloads lie in it, or beside it in `<folder>-downloads`"""
    contents: tuple[str, ...]
    """patterns of what is complete within the folder; `.` for the folder itself"""
    download: Callable[[Any], str]
    """given `options`, brings the data set into the cache and says what is there"""
    check: Callable[[Path], str]
    """reads one of the contents, changing nothing, and says what it is; raises DataError if it is not the data set"""
    options: type[DownloadConfig] = DownloadConfig

    @property
    def path(self) -> Path:
        """Where it is cached."""
        return cache_dir() / self.folder

    def cached(self) -> list[Path]:
        """Return what is complete in the cache."""
        if self.contents == (".",):
            return [self.path] if self.path.is_dir() else []
        return sorted(path for pattern in self.contents for path in self.path.glob(pattern))

    def leavings(self) -> list[Path]:
        """Return all that the data set has left in the cache: complete, begun, locks and checksums."""
        parent, name = self.path.parent, self.path.name
        beside = [f"{name}-downloads", f".{name}.lock", f".{name}.sha256", f".{name}.building"]
        return [path for path in (self.path, *(parent / other for other in beside)) if path.exists()]


def replaced(config: DownloadConfig, **values: Any) -> DownloadConfig:
    """Return a download's flags with other values."""
    return dataclasses.replace(config, **values)
