"""All data sets, as their own modules describe them: nothing about any of them is said here."""

import difflib
import importlib
import pkgutil

from trainyard_shared import datasets
from trainyard_shared.datasets.entry import Entry
from trainyard_shared.errors import UsageError


def entries() -> dict[str, Entry]:
    """Return the `ENTRIES` of every module of `trainyard_shared.datasets`, by their names in alphabetical order."""
    modules = [importlib.import_module(f"{datasets.__name__}.{info.name}") for info in _modules()]
    found = [entry for module in modules for entry in getattr(module, "ENTRIES", ())]
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}


def entry(name: str) -> Entry:
    """Return the entry of one data set; raises UsageError if there is none."""
    known = entries()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; perhaps you meant {close[0]}" if close else f"; there are: {', '.join(known)}"
        raise UsageError(f"error: {name}: no data set of the catalogue{hint}")
    return known[name]


def _modules() -> list[pkgutil.ModuleInfo]:
    return list(pkgutil.iter_modules(datasets.__path__))
