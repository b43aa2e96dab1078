"""The catalogue: every data set is in it, and what it says is what the code does."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from trainyard_shared import datasets
from trainyard_shared.datasets import catalogue
from trainyard_shared.datasets.entry import Entry
from trainyard_shared.datasets.fetch import Source, SourceError
from trainyard_shared.errors import DataError, UsageError

# What has to be chosen where a data set is no fixed set of files.
CHOICES: dict[str, dict] = {"stocks": {"tickers": ("TICKER",), "start": "1900-01-01", "end": "1900-01-01"}}
ENTRIES = list(catalogue.entries().values())


def modules() -> list:
    return [
        importlib.import_module(f"{datasets.__name__}.{info.name}") for info in pkgutil.iter_modules(datasets.__path__)
    ]


def test_every_module_that_reads_a_data_set_is_in_it():
    readers = [module for module in modules() if hasattr(module, "load_sample") or hasattr(module, "LICENCE")]
    assert len(readers) >= 5
    for module in readers:
        assert getattr(module, "ENTRIES", ()), f"{module.__name__} reads a data set and has no ENTRIES"
    assert sum(len(module.ENTRIES) for module in readers) == len(ENTRIES)  # no name is given twice


def test_the_table_of_the_readme_has_every_module():
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    for module in modules():
        if hasattr(module, "ENTRIES"):
            assert f"| `{module.__name__.removeprefix('trainyard_shared.')}` |" in readme


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry: Entry, cache):
    assert re.fullmatch(r"[a-z0-9_-]+", entry.name)
    for field in ("title", "task", "size", "licence", "terms", "citation", "verified", "folder"):
        assert getattr(entry, field).strip(), field
    assert len(entry.task) < 60  # fits into the list
    assert cache in entry.path.parents
    assert entry.places
    for place in entry.places:
        assert place.name
        assert place.files
        for file in place.files:
            assert file.checksum is None or re.fullmatch(
                r"md5 [0-9a-f]{32}|sha256 [0-9a-f]{64}|git blob [0-9a-f]{40}", file.checksum
            )


def test_no_data_set_lies_in_the_folder_of_another(cache):
    for entry in ENTRIES:
        for other in ENTRIES:
            assert entry is other or entry.path not in [other.path, *other.path.parents]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_download_asks_the_places_of_the_entry_in_their_order(entry: Entry, cache, monkeypatch, capsys):
    asked: list[Source] = []

    def refuse(self, part, want, retry):
        asked.append(self)
        raise SourceError("not today")

    kinds = list(Source.__subclasses__())
    assert len(kinds) >= 4
    for kind in kinds:
        monkeypatch.setattr(kind, "download", refuse)
    with pytest.raises(DataError, match="What to do") as caught:
        entry.download(entry.options(**CHOICES.get(entry.name, {})))
    order = [
        next(i for i, place in enumerate(entry.places) if source in [f.source for f in place.files]) for source in asked
    ]
    assert order == sorted(order)
    assert set(order) == set(range(len(entry.places)))
    assert len(re.findall("^  - ", str(caught.value), flags=re.MULTILINE)) == len(entry.places)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_offline_asks_nobody(entry: Entry, cache, monkeypatch):
    for kind in Source.__subclasses__():
        monkeypatch.setattr(kind, "download", lambda *args: pytest.fail("asked"))
    with pytest.raises(DataError, match=r"offline mode .*forbids a download. What to do: "):
        entry.download(entry.options(offline=True, **CHOICES.get(entry.name, {})))
    assert entry.cached() == []


def test_an_unknown_name_is_said_with_a_suggestion():
    with pytest.raises(UsageError, match=r"error: cifr10: no data set of the catalogue; perhaps you meant cifar10"):
        catalogue.entry("cifr10")
    with pytest.raises(UsageError, match=r"error: moon: no data set of the catalogue; there are: .*cifar10, "):
        catalogue.entry("moon")


def test_nothing_of_a_data_set_is_said_in_the_catalogue_itself():
    source = inspect.getsource(catalogue)
    assert not [entry.name for entry in ENTRIES if entry.name in source]


def test_looking_at_the_catalogue_is_cheap():
    script = (
        "import sys\nfrom trainyard_shared.datasets import catalogue\ncatalogue.entries()\n"
        "heavy = {'torch', 'requests', 'pyarrow', 'pandas', 'PIL', 'huggingface_hub', 'kaggle', 'yfinance'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
