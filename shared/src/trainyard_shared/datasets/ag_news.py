"""AG News: from the Hub, GitHub, Kaggle or a local folder, and a generated sample in the original format.

The original files have no header and three columns: class (1 to 4), title, description. Kaggle's have a header above
the same. Everywhere else, as on the Hub, title and description are one text with a space between, and the class counts
from 0; this package's readers end there, too.
"""

import csv
import hashlib
import html
import io
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from trainyard_shared.datasets import headlines
from trainyard_shared.datasets.entry import DownloadConfig, Entry, File, Place
from trainyard_shared.datasets.fetch import (
    HttpFile,
    HubFile,
    KaggleFile,
    Source,
    SourceError,
    building,
    cache_dir,
    download,
    file_digest,
    is_offline,
    locked,
    record_checksums,
    say,
    try_in_order,
)
from trainyard_shared.datasets.tables import DECOMPRESS, GENERATED, listing, read_origin, read_text, write_origin
from trainyard_shared.errors import DataError

LICENCE = "for research and other non-commercial use"
CITATION = (
    "Zhang, Zhao & LeCun (2015), Character-level Convolutional Networks for Text Classification, arXiv 1509.01626"
)
"""The articles are from AG's corpus, which A. Gulli collected from more than 2000 sources of news in 2004 and 2005."""

TITLE = "AG News"
CLASS_NAMES = ("World", "Sports", "Business", "Sci/Tech")
SPLITS = ("train", "test")
NUM_ARTICLES = {"train": 120_000, "test": 7_600}

FOLDER = "ag_news_csv"
ORIGINAL_MD5 = {"train": "b1a00f826fdfbd249f79597b59e1dc12", "test": "d52ea96a97a2d943681189a97654912d"}
GITHUB = {
    split: HttpFile(
        "GitHub", f"https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/{FOLDER}/{split}.csv"
    )
    for split in SPLITS
}
HUB = {
    split: HubFile("Hugging Face Hub", "fancyzhx/ag_news", f"data/{split}-00000-of-00001.parquet") for split in SPLITS
}
HUB_SHA256 = {
    "train": "fc508d6d9868594e3da960a8cfeb63ab5a4746598b93428c224397080c1f52ee",
    "test": "71de87ec66bc5737752a2502204dfa6d7fe9856ade3ea444dc6317789a4f13fb",
}
KAGGLE_SLUG = "amananandrai/ag-news-classification-dataset"
KAGGLE = {split: KaggleFile("Kaggle", KAGGLE_SLUG, f"{split}.csv") for split in SPLITS}
# Besides train.csv and test.csv: a part of the training set, of 5,000 rows, that goes round with text and label only.
OTHER_NAMES = {"train": ("train_5k_text_label.csv",), "test": ()}

# Part of the name of cached samples: raise it whenever the same seed gives other articles.
SAMPLE_VERSION = 1
_ADVICE = f"download {GITHUB['train'].url} and {GITHUB['test'].url} by hand and pass their folder as --data-dir"
_QUOTING = "A text with commas, quotes or line breaks in it has to be quoted, with its own quotes doubled."
_FORMS = (
    "without a header class (1 to 4), title, description or text, label (0 to 3); with one Class Index, Title, "
    "Description or text, label"
)
# The class in words, by what stands in its column.
_FROM_ONE = {str(index + 1): index for index in range(len(CLASS_NAMES))}
_FROM_ZERO = {str(index): index for index in range(len(CLASS_NAMES))}
# The corpus has lost the ampersands of many entities: " quot;" and " #36;" for a quote and a dollar sign.
_BROKEN_ENTITY = re.compile(r"(?<![&\w])(#\d{2,4}|quot|amp|lt|gt|nbsp|hellip);")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


@dataclass(frozen=True)
class NewsDataset:
    """News articles with their class for training and testing, whole in memory.

    A text is title, space, description, as published (see `clean`); labels are int64 of shape (N,), indices into
    `class_names`. `kind` says whether they are the real data set or a generated sample, `source` where they come from,
    for people, and `notes` which rules were applied to them. Articles are in the order of their checksums: the same
    from every source, and any stretch of them is a fair sample.
    """

    name: str
    kind: Literal["real", "sample"]
    source: str
    train_texts: list[str]
    train_labels: np.ndarray
    test_texts: list[str]
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Articles:
    """Texts and their labels, int64 of shape (N,)."""

    texts: list[str]
    labels: np.ndarray

    def part(self, index: Iterable[int]) -> "_Articles":
        chosen = list(index)
        return _Articles([self.texts[i] for i in chosen], self.labels[chosen])

    def mixed(self) -> "_Articles":
        """Return the articles in the order of their checksums; equal texts become neighbours."""
        digests = [hashlib.blake2b(_plain(text).encode(), digest_size=16).digest() for text in self.texts]
        return self.part(sorted(range(len(digests)), key=lambda i: (digests[i], self.labels[i])))


@dataclass(frozen=True)
class _Found:
    """Both splits as they were read, and the files they came from."""

    splits: dict[str, _Articles]
    files: dict[str, Path]

    @property
    def is_whole(self) -> bool:
        counts = {split: np.bincount(self.splits[split].labels, minlength=len(CLASS_NAMES)) for split in SPLITS}
        return all((counts[split] * len(CLASS_NAMES) == NUM_ARTICLES[split]).all() for split in SPLITS)

    @property
    def size(self) -> str:
        found = {split: len(self.splits[split].texts) for split in SPLITS}
        return (
            f"{found['train']:,} of {NUM_ARTICLES['train']:,} training and {found['test']:,} of "
            f"{NUM_ARTICLES['test']:,} test articles"
        )


def load_ag_news(folder: Path | None = None, *, offline: bool = False) -> NewsDataset:
    """Return the whole data set.

    Empty articles are dropped, and so are training articles that occur in the test set; articles that occur twice in
    the training set stay. `notes` gives the counts. Texts are compared without regard to white space.

    Args:
        folder: A folder with `train.csv` and `test.csv` (each may be compressed) in one of the forms of `read_news`, or
            with the Hub's two parquet files, or with a folder `ag_news_csv` or `data` that has them. Instead of
            `train.csv` it may hold `train_5k_text_label.csv`. Nothing is written to it. By default the cache, filled
            from the Hugging Face Hub, GitHub or Kaggle.
        offline: Do not use the network (also TRAINYARD_OFFLINE=1).

    Raises:
        DataError: the data cannot be had, or a file is not of the expected form.
    """
    if folder is not None:
        return _load_local(Path(folder))
    cached = cache_dir() / "ag_news" / "articles"
    if data := _read_cached(cached):
        return data
    with locked(cached):
        if data := _read_cached(cached):
            return data
        if cached.exists():
            say(f"{cached} is damaged: making it anew")
            shutil.rmtree(cached)
        _obtain(cached, offline)
    return _load_local(cached)


def make_sample(folder: Path, *, seed: int, num_train: int, num_test: int) -> Path:
    """Write generated articles into the new folder `folder`, as the original files have them; see `headlines.py`."""
    if folder.exists():
        raise DataError(f"{folder} exists already. Remove it or choose another folder.")
    if min(num_train, num_test) < len(CLASS_NAMES):
        raise DataError(
            f"A sample needs at least {len(CLASS_NAMES)} training and {len(CLASS_NAMES)} test articles, one of each "
            f"class, not {num_train} and {num_test}."
        )
    # Classes in turn, so that they are of the same size in both sets.
    labels = [index % len(CLASS_NAMES) for count in (num_train, num_test) for index in range(count)]
    articles = list(zip(labels, headlines.write(labels, seed), strict=True))
    with building(folder) as draft:
        for split, rows in (("train", articles[:num_train]), ("test", articles[num_train:])):
            with (draft / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
                writer.writerows((label + 1, title, description) for label, (title, description) in rows)
        write_origin(
            draft,
            f"{GENERATED}, seed {seed}: {num_train:,} training and {num_test:,} test articles in the form of {TITLE}",
            f"Made by a small grammar, not by people: results on them say nothing about the real {TITLE}.",
        )
    return folder


def load_sample(seed: int = 0, num_train: int = 4_000, num_test: int = 1_000) -> NewsDataset:
    """Return generated articles, written in the cache by whichever process comes first."""
    folder = cache_dir() / "samples" / f"ag_news-v{SAMPLE_VERSION}-seed{seed}-{num_train}-{num_test}" / "articles"
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                make_sample(folder, seed=seed, num_train=num_train, num_test=num_test)
    try:
        return _load_local(folder)
    except DataError as error:
        raise DataError(f"The cached sample is damaged. Remove the folder {folder.parent}. ({error})") from error


def clean(text: str) -> str:
    """Return plain text: for each backslash, tag and run of white space a space, and no HTML entities.

    Backslashes are the corpus's line breaks; of many entities it has kept only what follows the ampersand.
    """
    with_entities = _BROKEN_ENTITY.sub(r"&\1;", text.replace("\\$", "$").replace("\\", " "))
    return " ".join(_TAG.sub(" ", html.unescape(with_entities)).split())


def read_news(path: Path) -> tuple[list[str], np.ndarray | None]:
    """Return the texts of one file in their order, and their labels (N,) if it has any.

    Nothing is dropped, not even an empty text: whoever asks for predictions gets one for each row.

    Args:
        path: `.txt` with one text a line, or CSV, either perhaps compressed (.bz2, .gz, .xz). CSV without a header has
            three columns (class 1 to 4, title, description: the original form) or two (text, class 0 to 3). With a
            header, its columns are Title and Description, and perhaps Class Index (Kaggle's form), or text, and perhaps
            label; others are passed over.

    Raises:
        DataError: names the file, the line and what is wrong there.
    """
    path = Path(path)
    text = read_text(path)
    if ".txt" in path.suffixes:
        # Not str.splitlines, which also breaks lines at characters that occur within texts.
        return [line.rstrip("\n") for line in io.StringIO(text, newline=None)], None
    # The limit holds for the whole process. One that is as long as the file leaves it to the quotes to be right.
    limit = csv.field_size_limit(len(text))
    try:
        return _parse_csv(path, text)
    finally:
        csv.field_size_limit(limit)


@dataclass(frozen=True)
class _Form:
    """Where the columns of a file stand: those that make up the text, and that of the class, if there is one."""

    num_columns: int
    text_at: tuple[int, ...]
    class_at: int | None
    class_name: str
    classes: Mapping[str, int]


def _form(path: Path, first: list[str]) -> tuple[_Form, bool]:
    """Return the form of a file by its first row, and whether that row is a header."""
    if len(first) == 3 and first[0].strip().lstrip("-").isdecimal():
        return _Form(3, (1, 2), 0, "class", _FROM_ONE), False
    if len(first) == 2 and first[1].strip().lstrip("-").isdecimal():
        return _Form(2, (0,), 1, "label", _FROM_ZERO), False
    names = [name.strip().lower() for name in first]
    for text_names, class_name, classes in (
        (("title", "description"), "class index", _FROM_ONE),
        (("text",), "label", _FROM_ZERO),
    ):
        if all(name in names for name in text_names):
            class_at = names.index(class_name) if class_name in names else None
            return _Form(len(first), tuple(map(names.index, text_names)), class_at, class_name, classes), True
    shown = ", ".join(repr(name[:40]) for name in first[:6]) + (" ..." if len(first) > 6 else "")
    raise DataError(f"{path}, line 1: {len(first)} columns, {shown}; expected {_FORMS}.")


def _parse_csv(path: Path, text: str) -> tuple[list[str], np.ndarray | None]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    texts: list[str] = []
    labels: list[int] = []
    form: _Form | None = None
    line = 1
    try:
        for row in rows:
            if row:  # a blank line is a row without fields
                is_header = False
                if form is None:
                    form, is_header = _form(path, row)
                if len(row) != form.num_columns:
                    raise DataError(f"{path}, line {line}: {len(row)} columns, expected {form.num_columns}. {_QUOTING}")
                if not is_header:
                    texts.append(" ".join(row[at] for at in form.text_at))
                    if form.class_at is not None:
                        labels.append(_label(path, line, row[form.class_at], form))
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: the row that begins in line {line} is broken ({error}). {_QUOTING}") from error
    if form is None or not texts:
        raise DataError(f"{path} holds no articles.")
    return texts, None if form.class_at is None else np.array(labels, np.int64)


def _label(path: Path, line: int, word: str, form: _Form) -> int:
    if (label := form.classes.get(word.strip())) is None:
        allowed = ", ".join(f"{number} ({CLASS_NAMES[index]})" for number, index in form.classes.items())
        raise DataError(f"{path}, line {line}: the {form.class_name} is {word[:40]!r}, expected one of {allowed}.")
    return label


def _plain(text: str) -> str:
    """Return the text with single spaces: forms of the data set differ in spaces at the ends of fields."""
    return " ".join(text.split())


def _read_cached(folder: Path) -> NewsDataset | None:
    if not folder.exists():
        return None
    try:
        found = _find(folder)
        return _finish(folder, found) if found is not None and found.is_whole else None
    except DataError as error:
        say(str(error))
        return None


def _obtain(folder: Path, offline: bool) -> None:
    if is_offline(offline):
        raise DataError(
            f"{TITLE} is not in {folder}, and offline mode (TRAINYARD_OFFLINE) forbids a download. What to do: "
            f"{_ADVICE}."
        )
    downloads = folder.with_name("downloads")
    attempts = [
        (f"{HUB['train'].name} ({HUB['train'].repo})", partial(_from_hub, downloads, folder)),
        (f"GitHub ({GITHUB['train'].url})", partial(_from_csv, GITHUB, ORIGINAL_MD5, downloads, folder)),
        (f"Kaggle ({KAGGLE_SLUG})", partial(_from_csv, KAGGLE, {}, downloads, folder)),
    ]
    try_in_order(TITLE, attempts, _ADVICE)
    record_checksums(folder)
    shutil.rmtree(downloads, ignore_errors=True)


def _from_hub(downloads: Path, folder: Path) -> None:
    _require_pyarrow()
    files = {
        split: download(source, downloads / Path(source.path).name, sha256=HUB_SHA256[split])
        for split, source in HUB.items()
    }
    found = _accept(files, _read_parquet)
    # As text and label: the Hub's files do not say where a title ends.
    with building(folder) as draft:
        for split, articles in found.splits.items():
            with (draft / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["text", "label"])
                writer.writerows(zip(articles.texts, articles.labels.tolist(), strict=True))
        write_origin(draft, f"{HUB['train'].name} ({HUB['train'].repo})")


def _from_csv(sources: Mapping[str, Source], md5: Mapping[str, str], downloads: Path, folder: Path) -> None:
    place = downloads / sources["train"].name
    files = {split: download(source, place / f"{split}.csv", md5=md5.get(split)) for split, source in sources.items()}
    _accept(files, _labelled)
    with building(folder) as draft:
        for split, path in files.items():
            path.rename(draft / f"{split}.csv")
        write_origin(draft, f"{sources['train'].name} ({sources['train'].address})")


def _accept(files: Mapping[str, Path], read: Callable[[Path], _Articles]) -> _Found:
    """Return what was downloaded if it is the whole data set; else remove the files, so that none is used again."""
    try:
        found = _Found({split: read(path) for split, path in files.items()}, dict(files))
        if not found.is_whole:
            raise SourceError(f"what arrived is not the whole data set: {found.size}")
    except DataError as error:
        for file in files.values():
            file.unlink()
        raise error if isinstance(error, SourceError) else SourceError(str(error)) from error
    return found


def _load_local(folder: Path) -> NewsDataset:
    if (found := _find(folder)) is not None:
        return _finish(folder, found)
    raise DataError(
        f"No {TITLE} in {folder}, which {listing(folder)}. Expected there: train.csv (or {OTHER_NAMES['train'][0]}) "
        f"and test.csv, each perhaps compressed, or {Path(HUB['train'].path).name} and {Path(HUB['test'].path).name}, "
        f"or one of the folders {FOLDER} and data with them. What to do: {_ADVICE}."
    )


def _find(folder: Path) -> _Found | None:
    """Read whichever form of the data set is in `folder`, or return None."""
    for parent in (folder, folder / FOLDER, folder / "data"):
        names = {split: (f"{split}.csv", *OTHER_NAMES[split]) for split in SPLITS}
        files = {split: _first(parent, names[split]) for split in SPLITS}
        if files["train"] or files["test"]:
            # Of a pair with one half missing, reading names the file that is not there.
            paths = {split: files[split] or parent / f"{split}.csv" for split in SPLITS}
            with ThreadPoolExecutor(2) as pool:  # decompressing is what takes the time
                return _Found(dict(zip(SPLITS, pool.map(_labelled, paths.values()), strict=True)), paths)
        paths = {split: parent / Path(HUB[split].path).name for split in SPLITS}
        if all(path.is_file() for path in paths.values()):
            _require_pyarrow()
            return _Found({split: _read_parquet(path) for split, path in paths.items()}, paths)
    return None


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in ("", *DECOMPRESS))
    return next((path for path in candidates if path.is_file()), None)


def _finish(folder: Path, found: _Found) -> NewsDataset:
    """Apply the rules to what was found, and say what it is."""
    notes = []
    kept = {split: _without_empty(articles).mixed() for split, articles in found.splits.items()}
    num_empty = sum(len(found.splits[split].texts) - len(kept[split].texts) for split in SPLITS)
    if num_empty:
        notes.append(f"{num_empty:,} empty articles dropped")
    in_test = {_plain(text) for text in kept["test"].texts}
    keys = [_plain(text) for text in kept["train"].texts]
    fresh = [i for i, key in enumerate(keys) if key not in in_test]
    if num_dropped := len(keys) - len(fresh):
        notes.append(f"{num_dropped:,} training articles dropped that are in the test set, too")
    train, test = kept["train"].part(fresh), kept["test"]
    for name, articles in (("training", train), ("test", test)):
        present = np.bincount(articles.labels, minlength=len(CLASS_NAMES)) > 0
        if not present.all():
            absent = ", ".join(word for word, there in zip(CLASS_NAMES, present, strict=True) if not there)
            raise DataError(f"{folder}: among the {len(articles.texts):,} {name} articles there are none of {absent}.")
    notes += _repeated("training", [keys[i] for i in fresh], train.labels)
    notes += _repeated("test", [_plain(text) for text in test.texts], test.labels)
    origin = read_origin(folder)
    is_sample = origin is not None and origin.startswith(GENERATED)
    if origin is None:
        same = [split for split in SPLITS if file_digest(found.files[split], "md5") == ORIGINAL_MD5[split]]
        origin = "local files" + ("" if found.is_whole else f", {found.size}") + ", "
        origin += f"{' and '.join(f'{split}.csv' for split in same) or 'none'} equal to the original"
    return NewsDataset(
        name="ag_news",
        kind="sample" if is_sample else "real",
        source=f"{origin} ({folder})" if is_sample else f"{TITLE}, {origin} ({folder})",
        train_texts=train.texts,
        train_labels=train.labels,
        test_texts=test.texts,
        test_labels=test.labels,
        class_names=CLASS_NAMES,
        notes=tuple(notes),
    )


def _repeated(name: str, keys: list[str], labels: np.ndarray) -> list[str]:
    """Say how many articles occur several times; they stay, since published results are with them."""
    classes: dict[str, set[int]] = {}
    for key, label in zip(keys, labels.tolist(), strict=True):
        classes.setdefault(key, set()).add(label)
    if len(classes) == len(keys):
        return []
    note = f"{len(keys) - len(classes):,} {name} articles repeat another one and are kept"
    num_disputed = sum(len(several) > 1 for several in classes.values())
    return [note + (f"; {num_disputed:,} texts are there under more than one class" if num_disputed else "")]


def _without_empty(articles: _Articles) -> _Articles:
    return articles.part(i for i, text in enumerate(articles.texts) if text.strip())


def _labelled(path: Path) -> _Articles:
    texts, labels = read_news(path)
    if labels is None:
        raise DataError(f"{path} has no column with the class, which training needs. Expected {_FORMS}.")
    return _Articles(texts, labels)


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise SourceError("needs the package pyarrow: pip install 'trainyard-shared[hub]'") from error


def _read_parquet(path: Path) -> _Articles:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=["text", "label"])
        texts, labels = table["text"].to_pylist(), table["label"].fill_null(-1).to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is not readable as the Hub's {TITLE}: {error!r}.") from error
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASS_NAMES)))
    if len(wrong):
        raise DataError(f"{path}: the label of row {wrong[0]} is {labels[wrong[0]]}, expected 0 to 3.")
    if empty := [row for row, text in enumerate(texts) if not isinstance(text, str)]:
        raise DataError(f"{path}: row {empty[0]} has no text.")
    return _Articles(texts, labels)


def _download(config: DownloadConfig) -> str:
    return load_ag_news(offline=config.offline).source


def _check(folder: Path) -> str:
    found = _find(folder)
    if found is None or not found.is_whole:
        raise DataError(f"{folder} is not the whole data set" + (f": {found.size}" if found else ""))
    return _finish(folder, found).source


ENTRIES = (
    Entry(
        name="ag_news",
        title=TITLE,
        task="text classification: topic of a news article",
        size=f"{NUM_ARTICLES['train']:,} training and {NUM_ARTICLES['test']:,} test articles, 4 topics",
        licence=LICENCE,
        terms="name the paper of the citation in what you publish",
        citation=CITATION,
        places=(
            Place("Hugging Face Hub", tuple(File(HUB[split], f"sha256 {HUB_SHA256[split]}") for split in SPLITS)),
            Place("GitHub", tuple(File(GITHUB[split], f"md5 {ORIGINAL_MD5[split]}") for split in SPLITS)),
            Place("Kaggle", tuple(File(KAGGLE[split]) for split in SPLITS)),
        ),
        verified="sha256 or md5 of each file; from Kaggle, the number of articles of each split and topic",
        folder="ag_news",
        contents=("articles",),
        download=_download,
        check=_check,
    ),
)
