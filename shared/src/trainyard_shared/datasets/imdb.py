"""IMDb movie reviews: from the Hub, Stanford, Kaggle or a local folder, and a generated sample in the same format.

What is kept in the cache are CSV files with Kaggle's columns, `review` and `sentiment`, and one reader reads them all.
"""

import csv
import hashlib
import html
import io
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from trainyard_shared.datasets import opinions
from trainyard_shared.datasets.entry import DownloadConfig, Entry, File, Place
from trainyard_shared.datasets.fetch import (
    HttpFile,
    HubFile,
    KaggleFile,
    SourceError,
    building,
    cache_dir,
    download,
    file_digest,
    is_offline,
    locked,
    record_checksums,
    say,
    together,
    try_in_order,
)
from trainyard_shared.datasets.tables import (
    DECOMPRESS,
    GENERATED,
    decode,
    listing,
    read_origin,
    read_parquet,
    read_text,
    require_pyarrow,
    write_origin,
)
from trainyard_shared.errors import DataError

LICENCE = "no explicit licence; published for research, to be cited"
CITATION = "Maas et al. (2011), Learning Word Vectors for Sentiment Analysis, Proceedings of the ACL, 142-150"
"""Andrew L. Maas, Raymond E. Daly, Peter T. Pham, Dan Huang, Andrew Y. Ng, Christopher Potts. The reviews were written
by users of the Internet Movie Database; at most 30 are of one film, and no film is in both training and test set."""

TITLE = "IMDb (Large Movie Review Dataset)"
CLASS_NAMES = ("negative", "positive")
NUM_TRAIN, NUM_TEST = 25_000, 25_000

ARCHIVE = "aclImdb_v1.tar.gz"
ARCHIVE_MD5 = "7c2ac02c03563afcf9b574c7e56c153a"
ARCHIVE_BYTES = 84_125_825
STANFORD = HttpFile("Stanford", f"https://ai.stanford.edu/~amaas/data/sentiment/{ARCHIVE}")
STANFORD_CLASSES = {"neg": 0, "pos": 1}
HUB = {
    split: HubFile("Hugging Face Hub", "stanfordnlp/imdb", f"plain_text/{split}-00000-of-00001.parquet")
    for split in ("train", "test")
}
KAGGLE_FILE = "IMDB Dataset.csv"
KAGGLE = KaggleFile("Kaggle", "lakshmi25npathi/imdb-dataset-of-50k-movie-reviews", KAGGLE_FILE)

# Part of the name of cached samples: raise it whenever the same seed gives other reviews.
SAMPLE_VERSION = 1
_ADVICE = (
    f"download {STANFORD.url} (md5 {ARCHIVE_MD5}, {ARCHIVE_BYTES:,} bytes) by hand and pass its folder as --data-dir"
)
_QUOTING = "A review with commas, quotes or line breaks in it has to be quoted, with its own quotes doubled."
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


@dataclass(frozen=True)
class ReviewDataset:
    """Reviews with their sentiment for training and testing, whole in memory.

    Texts are as published, with `<br />` (see `clean`); labels are int64 of shape (N,), 0 negative, 1 positive. `kind`
    says whether they are the real data set or a generated sample, `source` where they come from, for people, and
    `notes` which rules were applied to them. Reviews are in the order of their checksums: the same from every source,
    and any stretch of them is a fair sample.
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
class _Reviews:
    """Texts and their labels, int64 of shape (N,)."""

    texts: list[str]
    labels: np.ndarray

    def part(self, index: Iterable[int]) -> "_Reviews":
        chosen = list(index)
        return _Reviews([self.texts[i] for i in chosen], self.labels[chosen])

    def mixed(self) -> "_Reviews":
        """Return the reviews in the order of their checksums; equal texts become neighbours."""
        digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in self.texts]
        return self.part(sorted(range(len(digests)), key=lambda i: (digests[i], self.labels[i])))


@dataclass(frozen=True)
class _Splits:
    """Training and test reviews as found, and what had to be decided to get them."""

    train: _Reviews
    test: _Reviews
    notes: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        return (len(self.train.texts), len(self.test.texts)) == (NUM_TRAIN, NUM_TEST)

    @property
    def size(self) -> str:
        return (
            f"{len(self.train.texts):,} of {NUM_TRAIN:,} training and {len(self.test.texts):,} of {NUM_TEST:,} test "
            "reviews"
        )


def load_imdb(folder: Path | None = None, *, offline: bool = False) -> ReviewDataset:
    """Return the whole data set.

    Empty reviews are dropped, and so are training reviews that occur in the test set word for word; `notes` gives the
    counts.

    Args:
        folder: A folder with `train.csv` and `test.csv`, or with Kaggle's `IMDB Dataset.csv` (each may be compressed),
            Stanford's folder `aclImdb` or archive, or the Hub's two parquet files; or one such CSV file or archive.
            The archive is converted into the cache; nothing is written to `folder`. By default the cache, filled from
            the Hugging Face Hub, Stanford or Kaggle.
        offline: Do not use the network (also TRAINYARD_OFFLINE=1).

    Raises:
        DataError: the data cannot be had, or a file is not of the expected form.
    """
    if folder is None:
        return _load_cached("reviews", partial(_obtain, offline))
    return _load_local(Path(folder))


def make_sample(folder: Path, *, seed: int, num_train: int, num_test: int) -> Path:
    """Write generated reviews into the new folder `folder`, as `train.csv` and `test.csv`; see `opinions.py`."""
    if folder.exists():
        raise DataError(f"{folder} exists already. Remove it or choose another folder.")
    if num_train < 2 or num_test < 2:
        raise DataError(
            f"A sample needs at least 2 training and 2 test reviews, one of each class, not {num_train} and {num_test}."
        )
    # Alternating labels, so that the classes are of the same size in both sets.
    labels = np.concatenate([np.arange(num_train) % 2, np.arange(num_test) % 2])
    reviews = _Reviews(opinions.write(labels, seed), labels)
    splits = _Splits(reviews.part(range(num_train)), reviews.part(range(num_train, len(labels))))
    with building(folder) as draft:
        _write(
            draft,
            splits,
            f"{GENERATED}, seed {seed}: {num_train:,} training and {num_test:,} test reviews in the form of IMDb",
            "Made by a small grammar, not by people: results on them say nothing about the real IMDb.",
        )
    return folder


def load_sample(seed: int = 0, num_train: int = 10_000, num_test: int = 2_000) -> ReviewDataset:
    """Return generated reviews, written in the cache by whichever process comes first."""
    folder = cache_dir() / "samples" / f"imdb-v{SAMPLE_VERSION}-seed{seed}-{num_train}-{num_test}" / "reviews"
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                make_sample(folder, seed=seed, num_train=num_train, num_test=num_test)
    try:
        return _load_local(folder)
    except DataError as error:
        raise DataError(f"The cached sample is damaged. Remove the folder {folder.parent}. ({error})") from error


def clean(text: str) -> str:
    """Return plain text: for each tag such as `<br />` and each run of white space a space, no HTML entities."""
    return " ".join(html.unescape(_TAG.sub(" ", text)).split())


def read_reviews(path: Path) -> tuple[list[str], np.ndarray | None]:
    """Return the reviews of one file in their order, and their labels (N,) if it has any.

    Nothing is dropped, not even an empty review: whoever asks for predictions gets one for each row.

    Args:
        path: `.txt` with one review a line, or CSV with a column `review` and perhaps one `sentiment` (`negative` or
            `positive`); either may be compressed (.bz2, .gz, .xz).

    Raises:
        DataError: names the file, the line and what is wrong there.
    """
    path = Path(path)
    return _parse(path, read_text(path))


def _load_cached(name: str, fill: Callable[[Path], None]) -> ReviewDataset:
    """Return what the cache holds under this name; where it is missing or not whole, one process fills the folder."""
    folder = cache_dir() / "imdb" / name
    if cached := _read_cached(folder):
        return cached
    with locked(folder):
        if cached := _read_cached(folder):
            return cached
        if folder.exists():
            say(f"{folder} is damaged: making it anew")
            shutil.rmtree(folder)
        fill(folder)
    return _load_local(folder)


def _read_cached(folder: Path) -> ReviewDataset | None:
    if not folder.exists():
        return None
    try:
        splits = _find(folder)
        return _finish(folder, splits) if splits is not None and splits.is_whole else None
    except DataError as error:
        say(str(error))
        return None


def _obtain(offline: bool, folder: Path) -> None:
    if is_offline(offline):
        raise DataError(
            f"{TITLE} is not in {folder}, and offline mode (TRAINYARD_OFFLINE) forbids a download. What to do: "
            f"{_ADVICE}."
        )
    downloads = folder.with_name("downloads")
    attempts = [
        (f"{HUB['train'].name} ({HUB['train'].repo})", partial(_from_hub, downloads, folder)),
        (f"{STANFORD.name} ({STANFORD.address})", partial(_from_stanford, downloads, folder)),
        (f"{KAGGLE.name} ({KAGGLE.slug})", partial(_from_kaggle, downloads, folder)),
    ]
    try_in_order(TITLE, attempts, _ADVICE)
    record_checksums(folder)
    shutil.rmtree(downloads, ignore_errors=True)


def _from_hub(downloads: Path, folder: Path) -> None:
    require_pyarrow()
    files = together(*(partial(download, source, downloads / Path(source.path).name) for source in HUB.values()))
    splits = _accept(lambda: _Splits(_read_parquet(files[0]), _read_parquet(files[1])), files)
    with building(folder) as draft:
        _write(draft, splits, f"{HUB['train'].name} ({HUB['train'].repo})")


def _from_stanford(downloads: Path, folder: Path) -> None:
    archive = download(STANFORD, downloads / ARCHIVE, md5=ARCHIVE_MD5, size_bytes=ARCHIVE_BYTES)
    _convert_archive(archive, folder)


def _from_kaggle(downloads: Path, folder: Path) -> None:
    file = download(KAGGLE, downloads / KAGGLE_FILE)
    _accept(lambda: _read_single(file), [file])
    with building(folder) as draft:
        file.rename(draft / KAGGLE_FILE)
        write_origin(draft, f"{KAGGLE.name} ({KAGGLE.slug})")


def _accept(read: Callable[[], _Splits], files: Iterable[Path]) -> _Splits:
    """Return what was downloaded if it is the whole data set; else remove the files, so that none is used again."""
    try:
        splits = read()
        if not splits.is_whole:
            raise SourceError(f"what arrived is not the whole data set: {splits.size}")
    except DataError as error:
        for file in files:
            file.unlink()
        raise error if isinstance(error, SourceError) else SourceError(str(error)) from error
    return splits


def _load_archive(archive: Path) -> ReviewDataset:
    md5 = file_digest(archive, "md5")
    if md5 != ARCHIVE_MD5:
        raise DataError(
            f"{archive} is not the original {ARCHIVE}: it has {archive.stat().st_size:,} bytes and md5 {md5}, expected "
            f"{ARCHIVE_BYTES:,} bytes and md5 {ARCHIVE_MD5}. Download it again, or pass the unpacked folder if you "
            "mean these files."
        )
    return _load_cached("archive", partial(_convert_archive, archive))


def _convert_archive(archive: Path, folder: Path) -> None:
    """Write the reviews of Stanford's archive, whose checksum has been compared, as CSV files."""
    say(f"Reading the reviews in {archive}")
    # Straight from the stream: unpacking it would make 100,000 files, half of them without labels.
    splits: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    with tarfile.open(archive, mode="r|gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if len(parts) == 4 and parts[1] in splits and parts[2] in STANFORD_CLASSES:
                file = tar.extractfile(member)
                assert file is not None  # with these names, the archive has plain files only
                splits[parts[1]].append((file.read().decode(), STANFORD_CLASSES[parts[2]]))
    with building(folder) as draft:
        _write(draft, _Splits(_reviews(splits["train"]), _reviews(splits["test"])), f"Stanford's {ARCHIVE}")


def _load_local(folder: Path) -> ReviewDataset:
    if (splits := _find(folder)) is not None:
        return _finish(folder, splits)
    archive = folder if folder.suffix == ".gz" else folder / ARCHIVE
    if archive.is_file():
        return _load_archive(archive)
    raise DataError(
        f"No {TITLE} in {folder}, which {listing(folder)}. Expected there: train.csv and test.csv, {KAGGLE_FILE!r} "
        f"(each may be compressed), the folder aclImdb, the archive {ARCHIVE}, or the Hub's "
        f"{Path(HUB['train'].path).name} and {Path(HUB['test'].path).name}. What to do: {_ADVICE}."
    )


def _find(folder: Path) -> _Splits | None:
    """Read whichever form of the data set is in `folder`, or return None."""
    if folder.is_file():
        return _read_single(folder) if ".csv" in folder.suffixes else None
    for suffix in ("", *DECOMPRESS):
        train, test, single = (folder / f"{name}{suffix}" for name in ("train.csv", "test.csv", KAGGLE_FILE))
        if train.is_file() or test.is_file():
            with ThreadPoolExecutor(2) as pool:  # decompressing is what takes the time
                texts = list(pool.map(read_text, (train, test)))
            return _Splits(_labelled(train, texts[0]), _labelled(test, texts[1]))
        if single.is_file():
            return _read_single(single)
    for parent in (folder, folder / "aclImdb"):
        if (parent / "train" / "pos").is_dir():
            return _Splits(_read_stanford(parent / "train"), _read_stanford(parent / "test"))
    for parent in (folder, folder / "plain_text"):
        train, test = (parent / Path(HUB[split].path).name for split in ("train", "test"))
        if train.is_file() and test.is_file():
            return _Splits(_read_parquet(train), _read_parquet(test))
    return None


def _finish(folder: Path, splits: _Splits) -> ReviewDataset:
    """Apply the rules to what was found, and say what it is."""
    notes = list(splits.notes)
    train, test = (_without_empty(reviews).mixed() for reviews in (splits.train, splits.test))
    num_found, num_kept = (len(a.texts) + len(b.texts) for a, b in ((splits.train, splits.test), (train, test)))
    if num_found != num_kept:
        notes.append(f"{num_found - num_kept:,} empty reviews dropped")
    for name, reviews in (("training", train), ("test", test)):
        classes = np.unique(reviews.labels)
        if len(classes) < 2:
            found = f"only {CLASS_NAMES[classes[0]]} ones" if len(classes) else "none"
            raise DataError(f"{folder}: among the {name} reviews are {found}; both classes are needed.")
    in_test = set(test.texts)
    fresh = train.part(i for i, text in enumerate(train.texts) if text not in in_test)
    if num_dropped := len(train.texts) - len(fresh.texts):
        notes.append(f"{num_dropped:,} training reviews dropped that are in the test set, too")
    origin = read_origin(folder)
    is_sample = origin is not None and origin.startswith(GENERATED)
    if origin is None:
        origin = "local files, not compared with the originals"
        origin += "" if splits.is_whole else f": {splits.size}"
    return ReviewDataset(
        name="imdb",
        kind="sample" if is_sample else "real",
        source=f"{origin} ({folder})" if is_sample else f"{TITLE}, {origin} ({folder})",
        train_texts=fresh.texts,
        train_labels=fresh.labels,
        test_texts=test.texts,
        test_labels=test.labels,
        class_names=CLASS_NAMES,
        notes=tuple(notes),
    )


def _without_empty(reviews: _Reviews) -> _Reviews:
    return reviews.part(i for i, text in enumerate(reviews.texts) if text.strip())


def _read_single(path: Path) -> _Splits:
    """Read one file with all reviews and divide it: Kaggle's has lost the official split.

    Of each class, the half with the smaller checksums is for training. So the same reviews are chosen whatever the
    order of the file, and equal texts stay on one side.
    """
    reviews = _labelled(path, read_text(path)).mixed()
    by_class = [np.flatnonzero(reviews.labels == label) for label in range(len(CLASS_NAMES))]
    train = np.sort(np.concatenate([rows[: len(rows) // 2] for rows in by_class]))
    test = np.sort(np.concatenate([rows[len(rows) // 2 :] for rows in by_class]))
    note = (
        f"{path.name} has no official split: in each class, the half with the smaller checksums is for training; "
        "results are not comparable with published ones"
    )
    return _Splits(reviews.part(train), reviews.part(test), (note,))


def _labelled(path: Path, text: str) -> _Reviews:
    texts, labels = _parse(path, text)
    if labels is None:
        raise DataError(f"{path} has no column sentiment, which training needs.")
    return _Reviews(texts, labels)


def _parse(path: Path, text: str) -> tuple[list[str], np.ndarray | None]:
    if ".txt" in path.suffixes:
        # Not str.splitlines, which also breaks lines at characters that occur within reviews.
        return [line.rstrip("\n") for line in io.StringIO(text, newline=None)], None
    # The limit holds for the whole process. One that is as long as the file leaves it to the quotes to be right.
    limit = csv.field_size_limit(len(text))
    try:
        return _parse_csv(path, text)
    finally:
        csv.field_size_limit(limit)


def _parse_csv(path: Path, text: str) -> tuple[list[str], np.ndarray | None]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    texts: list[str] = []
    labels: list[int] = []
    line = 1
    try:
        header = next(rows)
        if "review" not in header:
            raise DataError(f"{path} has the columns {', '.join(header)[:200]}; expected review and sentiment.")
        at, label_at = header.index("review"), header.index("sentiment") if "sentiment" in header else None
        line = rows.line_num + 1
        for row in rows:
            if row:  # a blank line is a row without fields
                if len(row) != len(header):
                    raise DataError(f"{path}, line {line}: {len(row)} fields, expected {len(header)}. {_QUOTING}")
                texts.append(row[at])
                if label_at is not None:
                    labels.append(_label(path, line, row[label_at]))
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: the row that begins in line {line} is broken ({error}). {_QUOTING}") from error
    if not texts:
        raise DataError(f"{path} holds no reviews.")
    return texts, None if label_at is None else np.array(labels, np.int64)


def _label(path: Path, line: int, word: str) -> int:
    if word not in CLASS_NAMES:
        raise DataError(f"{path}, line {line}: sentiment is {word[:40]!r}, expected {' or '.join(CLASS_NAMES)}.")
    return CLASS_NAMES.index(word)


def _read_stanford(folder: Path) -> _Reviews:
    """Read one of Stanford's folders, which have a file for each review in `neg` and `pos`."""
    found = []
    for name, label in STANFORD_CLASSES.items():
        paths = sorted((folder / name).glob("*.txt"))
        if not paths:
            raise DataError(f"{folder / name} holds no reviews (*.txt). Unpack the whole archive {ARCHIVE} there.")
        found += [(decode(path, path.read_bytes()), label) for path in paths]
    return _reviews(found)


def _reviews(pairs: list[tuple[str, int]]) -> _Reviews:
    return _Reviews([text for text, _ in pairs], np.array([label for _, label in pairs], np.int64))


def _read_parquet(path: Path) -> _Reviews:
    texts, labels = read_parquet(path, "the Hub's IMDb", text=str, label=int)
    for row, label in enumerate(labels):
        if not 0 <= label < len(CLASS_NAMES):
            raise DataError(f"{path}: the label of row {row} is {label}, expected 0 or 1.")
    return _Reviews(texts, np.array(labels, np.int64))


def _write(folder: Path, splits: _Splits, *origin: str) -> None:
    for name, reviews in (("train", splits.train), ("test", splits.test)):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["review", "sentiment"])
            writer.writerows(
                (text, CLASS_NAMES[label]) for text, label in zip(reviews.texts, reviews.labels, strict=True)
            )
    write_origin(folder, *origin)


def _download(config: DownloadConfig) -> str:
    return load_imdb(offline=config.offline).source


def _check(folder: Path) -> str:
    splits = _find(folder)
    if splits is None or not splits.is_whole:
        raise DataError(f"{folder} is not the whole data set" + (f": {splits.size}" if splits else ""))
    return _finish(folder, splits).source


ENTRIES = (
    Entry(
        name="imdb",
        title=TITLE,
        task="text classification: positive or negative review",
        size=f"{NUM_TRAIN:,} training and {NUM_TEST:,} test reviews",
        licence=LICENCE,
        terms="name the paper of the citation in what you publish",
        citation=CITATION,
        places=(
            Place("Hugging Face Hub", tuple(File(source) for source in HUB.values())),
            Place("Stanford", (File(STANFORD, f"md5 {ARCHIVE_MD5}", ARCHIVE_BYTES),)),
            Place("Kaggle (without the official split)", (File(KAGGLE),)),
        ),
        verified="md5 of the archive; elsewhere, the Hub's sha256 and the number of reviews of each split and class",
        folder="imdb",
        contents=("reviews", "archive"),
        download=_download,
        check=_check,
    ),
)
