"""The command `trainyard datasets`, and the verb `download` of every project."""

import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from trainyard_shared.cli import command, dispatch
from trainyard_shared.config import CONFIG, parse, to_flags
from trainyard_shared.console import bytes_text, duration_text
from trainyard_shared.datasets import catalogue
from trainyard_shared.datasets.entry import DownloadConfig, Entry
from trainyard_shared.datasets.fetch import cache_dir, changed_files
from trainyard_shared.errors import DataError, UsageError

PROG = "trainyard datasets"
# What generated samples of all data sets go by in `remove`.
SAMPLES = "samples"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class NoFlags:
    """A command that takes none."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class RemoveConfig:
    """The flags of `remove`."""

    yes: bool = False
    """do not ask"""


@command
def main(argv: Sequence[str]) -> int:
    """Run what is installed as `trainyard`."""
    return dispatch("trainyard", "What belongs to no project of Trainyard alone.", {"datasets": datasets}, argv)


@command
def datasets(argv: Sequence[str]) -> int:
    """Look at, download, verify and remove data sets."""
    verbs = {
        "list": list_,
        "show": show,
        "download": download,
        "verify": verify,
        "where": where,
        "remove": remove,
    }
    return dispatch(PROG, "The data sets that Trainyard's projects train on.", verbs, argv)


def download_one(name: str, argv: Sequence[str], *, prog: str, **defaults: Any) -> int:
    """Download a data set into the cache: the verb `download` of a project.

    Args:
        name: The data set's name in the catalogue.
        argv: Flags of the user; those that the data set takes, `--offline` at least.
        prog: Name of the command, for messages.
        **defaults: Other values of these flags than the data set's own, as the project needs them.
    """
    entry = catalogue.entry(name)
    description = f"{prog}: bring the real data into the cache: {entry.title}."
    if defaults:
        shown = " ".join(to_flags(defaults))
        description += f" Here the default is {shown}."
    # Of a flag that is given twice, the last counts: the user's.
    config = parse(entry.options, [*to_flags(defaults), *argv], prog=prog, description=description).config
    _download(entry, config)
    return 0


@command
def list_(argv: Sequence[str]) -> None:
    """Say which data sets there are, and which of them are in the cache."""
    parse(NoFlags, argv, prog=f"{PROG} list", description="Say which data sets there are, and which are in the cache.")
    rows = [("NAME", "TASK", "DOWNLOAD", "NEEDS", "IN THE CACHE")]
    for entry in catalogue.entries().values():
        sizes = [place.size_bytes for place in entry.places if place.size_bytes is not None]
        needs = "" if any(not place.credentials for place in entry.places) else entry.places[0].credentials
        kept = bytes_text(_size(*entry.cached())) if entry.cached() else "no"
        rows.append((entry.name, entry.task, bytes_text(min(sizes)) if sizes else "", needs, kept))
    # A column that says nothing is left out.
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nThe cache is {cache_dir()}; '{PROG} show NAME' tells more.")


@command
def show(argv: Sequence[str]) -> None:
    """Say all that is known of a data set: licence, citation, sources, checksums."""
    names, flags = _split(argv)
    parse(NoFlags, flags, prog=f"{PROG} show", description=f"{show.__doc__}", operands="NAME ...")
    for number, entry in enumerate(_named(names, "show")):
        print("\n" * min(number, 1) + _description(entry))


@command
def download(argv: Sequence[str]) -> None:
    """Bring data sets into the cache."""
    names, flags = _split(argv)
    options: type[DownloadConfig] = DownloadConfig
    if names and len(chosen := {catalogue.entry(name).options for name in names}) == 1:
        (options,) = chosen
    description = (
        "Bring data sets into the cache: from their places in order, resuming what was begun, with checksums. Several "
        "processes may ask for the same one; it is downloaded once."
    )
    config = parse(options, flags, prog=f"{PROG} download", description=description, operands="NAME ...").config
    for entry in _named(names, "download"):
        _download(entry, config if isinstance(config, entry.options) else entry.options(offline=config.offline))


@command
def verify(argv: Sequence[str]) -> int:
    """Compare what is in the cache with its checksums, and read it."""
    names, flags = _split(argv)
    description = (
        "Compare what is in the cache with the checksums that were taken when it came, read it, and compare it with "
        "what is known of the data set. Nothing is changed. Without a name: everything in the cache."
    )
    parse(NoFlags, flags, prog=f"{PROG} verify", description=description, operands="[NAME ...]")
    entries = _named(names, "verify") if names else [e for e in catalogue.entries().values() if e.cached()]
    if not entries:
        print(f"There is nothing in the cache {cache_dir()}.")
    wrong = []
    for entry in entries:
        if not entry.cached():
            wrong.append(f"error: {_not_there(entry)}")
        for path in entry.cached():
            label = entry.name if len(entry.cached()) == 1 else f"{entry.name}, {path.name}"
            try:
                print(f"{label}: {_verified(entry, path)}", flush=True)
            except DataError as error:
                wrong.append(f"error: {label}: {error}")
    if wrong:
        raise DataError("\n".join(wrong))
    return 0


@command
def where(argv: Sequence[str]) -> None:
    """Say where a data set is, or would be."""
    names, flags = _split(argv)
    description = "Say where data sets are cached, or would be. Without a name: where the cache is."
    parse(NoFlags, flags, prog=f"{PROG} where", description=description, operands="[NAME ...]")
    if not names:
        print(cache_dir())
    for entry in _named(names, "where") if names else []:
        print(entry.path, flush=True)
        if not entry.cached():
            print(_not_there(entry), file=sys.stderr)


@command
def remove(argv: Sequence[str]) -> None:
    """Remove data sets from the cache."""
    names, flags = _split(argv)
    description = (
        "Remove data sets from the cache, with what was begun of them. Files elsewhere, such as those of --data-dir, "
        f"are left alone. '{SAMPLES}' stands for the generated samples of all of them."
    )
    config = parse(RemoveConfig, flags, prog=f"{PROG} remove", description=description, operands="NAME ...").config
    chosen: dict[str, list[Path]] = {}
    for name in names:
        samples = cache_dir() / SAMPLES
        if name == SAMPLES:
            chosen[name] = [samples] if samples.exists() else []
        else:
            chosen[name] = catalogue.entry(name).leavings()
    _named([name for name in names if name != SAMPLES], "remove", at_least_one=not chosen)
    sizes = {name: _size(*paths) for name, paths in chosen.items()}
    for name, paths in chosen.items():
        print(f"{name}: {bytes_text(sizes[name])} in {paths[0]}" if paths else f"{name}: not in the cache", flush=True)
    if not any(chosen.values()) or not (config.yes or _agreed()):
        print("Nothing was removed.")
        return
    for paths in chosen.values():
        _remove(paths)
    print(f"{bytes_text(sum(sizes.values()))} freed.")


def _split(argv: Sequence[str]) -> tuple[list[str], Sequence[str]]:
    """Return the names of data sets at the front of a command line, each once, and the flags after them."""
    names = list(takewhile(lambda word: not word.startswith("-"), argv))
    return list(dict.fromkeys(names)), argv[len(names) :]


def _named(names: Sequence[str], verb: str, at_least_one: bool = True) -> list[Entry]:
    if at_least_one and not names:
        raise UsageError(f"error: {verb}: name a data set; there are: {', '.join(catalogue.entries())}")
    return [catalogue.entry(name) for name in names]


def _description(entry: Entry) -> str:
    facts = [
        ("task", entry.task),
        ("size", entry.size),
        ("licence", entry.licence),
        ("terms", entry.terms),
        ("citation", entry.citation),
        ("verified", entry.verified),
        ("cached in", f"{entry.path} ({bytes_text(_size(*entry.cached())) if entry.cached() else 'not there yet'})"),
    ]
    lines = [f"{entry.name}: {entry.title}", *(f"  {name:<9}  {text}" for name, text in facts)]
    for number, place in enumerate(entry.places, start=1):
        needs = f" (needs {place.credentials})" if place.credentials else ""
        lines.append(f"  source {number}   {place.name}{needs}")
        for file in place.files:
            size = f"{file.size_bytes:,} bytes" if file.size_bytes is not None else ""
            lines.append(
                "             " + ", ".join(part for part in (_address(file.source), size, file.checksum) if part)
            )
    return "\n".join(lines)


def _address(source: Any) -> str:
    # On Kaggle, all files of a data set are on one page.
    path = getattr(source, "path", "")
    return source.address if path in source.address else f"{source.address} {path}"


def _download(entry: Entry, config: DownloadConfig) -> None:
    start = time.monotonic()
    had = bool(entry.cached())
    source = entry.download(config)
    took = "" if had else f" in {duration_text(time.monotonic() - start)}"
    print(f"{entry.name}: {source}; {bytes_text(_size(*entry.cached()))}{took}", flush=True)


def _verified(entry: Entry, path: Path) -> str:
    changed = changed_files(path)
    if changed:
        raise DataError(f"{'; '.join(changed)}. Remove it and download it again: {PROG} remove {entry.name}")
    source = entry.check(path)
    return f"{source}: " + (
        "as it came" if changed is not None else "no checksums were taken when it came; read and sound"
    )


def _not_there(entry: Entry) -> str:
    return f"{entry.name} is not in the cache; get it with: {PROG} download {entry.name}"


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("error: remove: there is nobody to ask; pass --yes")
    return input("Remove? [y/N] ").strip().lower() in ("y", "yes")


def _remove(paths: Sequence[Path]) -> None:
    """Remove files and folders, unless another process is at work in them."""
    from filelock import FileLock, Timeout

    locks = [path for path in paths if path.name.endswith(".lock")]
    locks += [lock for path in paths if path.is_dir() for lock in path.rglob(".*.lock")]
    with ExitStack() as held:
        for lock in locks:
            try:
                held.enter_context(FileLock(lock, timeout=0))
            except Timeout:
                raise DataError(f"Another process is using {lock.parent}. Nothing was removed there.") from None
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _size(*paths: Path) -> int:
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    sys.exit(main())
