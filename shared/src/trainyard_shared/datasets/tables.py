"""What the readers of text files share: decoding with an error that helps, and where the files came from."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainyard_shared.datasets.fetch import SourceError
from trainyard_shared.errors import DataError

GENERATED = "generated sample"
# Beside files that this package has made; its first line says what they are.
ORIGIN_FILE = "ORIGIN.txt"
DECOMPRESS: dict[str, Callable[..., Any]] = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}
# More text than this in a compressed file is taken for an attack; the largest that is read here has less than 2 GB.
MAX_TEXT_BYTES = 4 << 30


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file, which may be compressed (.bz2, .gz, .xz); DataError if it cannot be had."""
    if not path.is_file():
        raise DataError(f"{path} is missing.")
    if open_compressed := DECOMPRESS.get(path.suffix):
        try:
            # Never more than the limit: a few kilobytes can unpack to as many gigabytes.
            with open_compressed(path) as file:
                content = file.read(MAX_TEXT_BYTES + 1)
        except (OSError, ValueError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{path} is damaged or incomplete: {error}.") from error
        if len(content) > MAX_TEXT_BYTES:
            raise DataError(f"{path} was not read: it unpacks to more than {MAX_TEXT_BYTES:,} bytes.")
    else:
        content = path.read_bytes()
    if not content.strip():
        raise DataError(f"{path} is empty.")
    return decode(path, content)


def decode(path: Path, content: bytes) -> str:
    """Return the content of a UTF-8 file as text, without a byte order mark; `path` is for the DataError."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: the byte 0x{content[error.start]:02x} at offset {error.start:,} is not UTF-8. Save "
            "the file as UTF-8; if it was written on Windows: iconv -f WINDOWS-1252 -t UTF-8."
        ) from error


def read_parquet(path: Path, what: str, **columns: type) -> list[list[Any]]:
    """Return columns of a parquet file, each a list of values of the type given, none of them missing.

    Args:
        path: The file.
        what: What it is to be, for messages.
        **columns: Their names and types.

    Raises:
        DataError: it is no parquet file, lacks a column or holds something else in it.
    """
    require_pyarrow()
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=list(columns))
        found = [table[name].to_pylist() for name in columns]
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} is not readable as {what}: {error!r}.") from error
    for (name, wanted), values in zip(columns.items(), found, strict=True):
        for row, value in enumerate(values):
            if type(value) is not wanted:
                expected = "text" if wanted is str else "a whole number"
                raise DataError(
                    f"{path} is not readable as {what}: row {row} of the column {name} is {str(value)[:40]!r}, "
                    f"expected {expected}."
                )
    return found


def require_pyarrow() -> None:
    """Raise SourceError, so that the next source is tried, where parquet files cannot be read."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise SourceError("needs the package pyarrow: pip install 'trainyard-shared[hub]'") from error


def read_origin(folder: Path) -> str | None:
    """Return what this package wrote down about the files in `folder` when it made them, or None."""
    path = folder / ORIGIN_FILE
    return path.read_text(encoding="utf-8").splitlines()[0] if path.is_file() else None


def write_origin(folder: Path, origin: str, *more: str) -> None:
    """Write down what the files in `folder` are: one line for `read_origin`, and more for people."""
    (folder / ORIGIN_FILE).write_text("\n".join([origin, *more, ""]), encoding="utf-8")


def listing(folder: Path) -> str:
    """Say what is in a folder, for error messages."""
    if not folder.is_dir():
        return "does not exist" if not folder.exists() else "is a file"
    return f"holds {', '.join(sorted(entry.name for entry in folder.iterdir())[:10]) or 'nothing'}"
