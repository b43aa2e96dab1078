"""Sentiment140: 1.6 million tweets from the Hub, Stanford, Kaggle or a local file, and a generated sample of that form.

The file is read in chunks, never whole: memory does not grow with it. Each chunk says at which byte it ends, so that
work that was interrupted goes on there.
"""

import csv
import io
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from trainyard_shared.datasets import posts
from trainyard_shared.datasets.archives import extract
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
    try_in_order,
)
from trainyard_shared.datasets.tables import GENERATED, listing, read_origin, write_origin
from trainyard_shared.errors import DataError

LICENCE = "no explicit licence; published for research, to be cited"
CITATION = "Go, Bhayani & Huang (2009), Twitter Sentiment Classification using Distant Supervision, Stanford"
"""Alec Go, Richa Bhayani, Lei Huang. Training tweets are labelled by the emoticon that was in them, which was then
taken out; the test set was labelled by hand and has neutral tweets, which the training set has not."""

TITLE = "Sentiment140"
CLASS_NAMES = {0: "negative", 2: "neutral", 4: "positive"}
COLUMNS = ("polarity", "id", "date", "query", "user", "text")
NUM_TRAIN, NUM_TEST = 1_600_000, 498

TRAIN_FILE = "training.1600000.processed.noemoticon.csv"
TEST_FILE = "testdata.manual.2009.06.14.csv"
ARCHIVE = "trainingandtestdata.zip"
ARCHIVE_SHA256 = "004a3772c8a7ff9bbfeb875880f47f0679d93fc63e5cf9cff72d54a8a6162e57"
ARCHIVE_BYTES = 81_363_704
STANFORD = HttpFile("Stanford", f"https://cs.stanford.edu/people/alecmgo/{ARCHIVE}")
HUB = {
    split: HubFile(
        "Hugging Face Hub", "stanfordnlp/sentiment140", f"sentiment140/{split}/0000.parquet", "refs/convert/parquet"
    )
    for split in ("train", "test")
}
KAGGLE = KaggleFile("Kaggle", "kazanova/sentiment140", TRAIN_FILE)

# Part of the name of cached samples: raise it whenever the same seed gives other tweets.
SAMPLE_VERSION = 1
_ADVICE = (
    f"download {STANFORD.url} (sha256 {ARCHIVE_SHA256}, {ARCHIVE_BYTES:,} bytes) by hand and pass its folder as "
    "--data-dir"
)
_QUOTING = "A field with commas, quotes or line breaks in it has to be quoted, with its own quotes doubled."
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TweetFiles:
    """Where the tweets are, in the original's form: six quoted columns without a header, latin-1.

    `kind` says whether they are the real data set or a generated sample, `source` where they come from, for people.
    `test` is the data set's own test set, labelled by hand; Kaggle does not have it.
    """

    kind: Literal["real", "sample"]
    source: str
    train: Path
    test: Path | None


class Position(NamedTuple):
    """A place in a file where a row begins."""

    byte: int = 0
    line: int = 1


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file, N of them."""

    polarities: np.ndarray
    """(N,) int8: 0 negative, 2 neutral, 4 positive"""
    users: list[str]
    texts: list[str]
    offsets: np.ndarray
    """(N,) int64, the byte at which each row begins"""
    end: Position
    """where the next chunk begins"""


def find_tweets(folder: Path | None = None, *, offline: bool = False) -> TweetFiles:
    """Return where the data set is.

    Args:
        folder: A folder with the original `training.*.csv` (and perhaps `testdata.manual.2009.06.14.csv`) or the
            original archive, which is unpacked into the cache; or one such csv file, whatever its name. By default the
            cache, filled from the Hugging Face Hub, Stanford or Kaggle.
        offline: Do not use the network (also TRAINYARD_OFFLINE=1).

    Raises:
        DataError: the data cannot be had, or nothing of the expected form is in the folder.
    """
    if folder is not None:
        return _find_local(Path(folder))
    cached = cache_dir() / "sentiment140" / "tweets"
    if not cached.exists():
        with locked(cached):
            if not cached.exists():
                _obtain(offline, cached)
    return _find_local(cached)


def read_chunks(path: Path, rows: int = 50_000, start: Position | None = None) -> Iterator[Chunk]:
    """Yield the rows of a file, `rows` at a time, from `start` on.

    Raises:
        DataError: names the file, the line and what is wrong there.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing.")
    byte, line = start or Position()
    with path.open("rb") as binary:
        if binary.read(3) == _BYTE_ORDER_MARK:
            raise DataError(f"{path}, line 1: saved anew as UTF-8; expected is the original, which is latin-1.")
        binary.seek(byte)

        def lines() -> Iterator[str]:
            nonlocal byte
            # latin-1 has one byte for each character, so what was read tells where the next row begins.
            for text in io.TextIOWrapper(binary, encoding="latin-1", newline=""):
                byte += len(text)
                yield text

        reader = csv.reader(lines(), strict=True)
        first_line = line
        columns: tuple[list, ...] = ([], [], [], [])
        begins = byte
        try:
            for row in reader:
                if row:  # a blank line is a row without fields
                    if len(row) != len(COLUMNS):
                        raise DataError(
                            f"{path}, line {line}: {len(row)} fields, expected {len(COLUMNS)}: {', '.join(COLUMNS)}. "
                            f"{_QUOTING}"
                        )
                    for column, value in zip(
                        columns, (_polarity(path, line, row[0]), row[4], row[5], begins), strict=True
                    ):
                        column.append(value)
                begins, line = byte, first_line + reader.line_num
                if len(columns[0]) == rows:
                    yield _chunk(columns, Position(begins, line))
                    columns = ([], [], [], [])
        except csv.Error as error:
            raise DataError(f"{path}: the row that begins in line {line} is broken ({error}). {_QUOTING}") from error
        if columns[0]:
            yield _chunk(columns, Position(begins, line))
        elif byte == 0:
            raise DataError(f"{path} is empty.")


def read_texts(path: Path, offsets: Iterable[int]) -> list[str]:
    """Return the texts of the rows that begin at these bytes, in their order."""
    texts = []
    with path.open("rb") as binary:
        for offset in offsets:
            binary.seek(offset)
            row = next(csv.reader(line.decode("latin-1") for line in binary))
            texts.append(row[5])
    return texts


def make_sample(
    folder: Path, *, seed: int, num_train: int, num_test: int = 500, neutral: float = 0.0, negative: float = 0.5
) -> Path:
    """Write generated tweets into the new folder `folder`, under the original's names; see `posts.py`.

    As in the original, training tweets are sorted by polarity, users write more than one tweet, some tweets occur
    twice, a few of them in both classes, and the test set has neutral ones.

    Args:
        folder: must not exist.
        seed: the same gives the same tweets.
        num_train: training tweets.
        num_test: tweets of the test set, three tenths of them neutral.
        neutral: share of neutral training tweets, which the original does not have.
        negative: share of negative ones among the other training tweets, for classes of different sizes.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already. Remove it or choose another folder.")
    if num_train < 10 or num_test < 10:
        raise DataError(f"A sample needs at least 10 training and 10 test tweets, not {num_train} and {num_test}.")
    with building(folder) as draft:
        for name, total, shares, part in (
            (TRAIN_FILE.replace("1600000", str(num_train)), num_train, (neutral, negative), 0),
            (TEST_FILE, num_test, (0.3, 0.5), 1),
        ):
            num_neutral = round(total * shares[0])
            num_negative = round((total - num_neutral) * shares[1])
            counts = {0: num_negative, 2: num_neutral, 4: total - num_neutral - num_negative}
            with (draft / name).open("w", encoding="latin-1", newline="") as file:
                writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
                writer.writerows(posts.rows(counts, seed=2 * seed + part, num_users=max(2, round(num_train * 0.4))))
        write_origin(
            draft,
            f"{GENERATED}, seed {seed}: {num_train:,} training and {num_test:,} test tweets in the form of {TITLE}",
            "Made by a small grammar, not by people: results on them say nothing about real tweets.",
        )
    return folder


def find_sample(
    seed: int = 0, num_train: int = 20_000, num_test: int = 500, *, neutral: float = 0.0, negative: float = 0.5
) -> TweetFiles:
    """Return generated tweets, written in the cache by whichever process comes first."""
    name = f"sentiment140-v{SAMPLE_VERSION}-seed{seed}-{num_train}-{num_test}-{neutral:g}-{negative:g}"
    folder = cache_dir() / "samples" / name / "tweets"
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                make_sample(
                    folder, seed=seed, num_train=num_train, num_test=num_test, neutral=neutral, negative=negative
                )
    return _find_local(folder)


def _chunk(columns: tuple[list, ...], end: Position) -> Chunk:
    polarities, users, texts, offsets = columns
    return Chunk(np.array(polarities, np.int8), users, texts, np.array(offsets, np.int64), end)


def _polarity(path: Path, line: int, word: str) -> int:
    if word not in ("0", "4", "2"):
        hint = " The original has no header." if line == 1 and not word.strip().isdigit() else ""
        raise DataError(f"{path}, line {line}: polarity is {word[:40]!r}, expected 0, 2 or 4.{hint}")
    return int(word)


def _find_local(folder: Path) -> TweetFiles:
    if folder.is_file() and folder.suffix == ".csv":
        return TweetFiles("real", f"{TITLE}, a local file, not compared with the original ({folder})", folder, None)
    found = sorted(folder.glob("training.*.csv")) if folder.is_dir() else []
    if len(found) == 1:
        test = folder / TEST_FILE
        origin = read_origin(folder)
        is_sample = origin is not None and origin.startswith(GENERATED)
        origin = origin or "local files, not compared with the originals"
        return TweetFiles(
            "sample" if is_sample else "real",
            f"{origin} ({folder})" if is_sample else f"{TITLE}, {origin} ({folder})",
            found[0],
            test if test.is_file() else None,
        )
    archive = folder if folder.suffix == ".zip" else folder / ARCHIVE
    if archive.is_file() and not found:
        return _find_archive(archive)
    if found:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder} holds several training files, {names}: name one of them as --data-dir.")
    raise DataError(
        f"No {TITLE} in {folder}, which {listing(folder)}. Expected there: {TRAIN_FILE} (or another training.*.csv) or "
        f"the archive {ARCHIVE}. What to do: {_ADVICE}."
    )


def _find_archive(archive: Path) -> TweetFiles:
    """Unpack the original archive into the cache, once it has been compared with the original."""
    folder = cache_dir() / "sentiment140" / "archive"
    if not folder.exists():
        digest = file_digest(archive, "sha256")
        if digest != ARCHIVE_SHA256:
            raise DataError(
                f"{archive} is not the original {ARCHIVE}: it has {archive.stat().st_size:,} bytes and sha256 "
                f"{digest}, expected {ARCHIVE_BYTES:,} bytes and sha256 {ARCHIVE_SHA256}. Download it again, or pass "
                "the unpacked folder if you mean these files."
            )
        extract(archive, folder)
    return _find_local(folder)


def _obtain(offline: bool, folder: Path) -> None:
    if is_offline(offline):
        raise DataError(
            f"{TITLE} is not in {folder}, and offline mode (TRAINYARD_OFFLINE) forbids a download. What to do: "
            f"{_ADVICE}."
        )
    downloads = folder.with_name("downloads")
    attempts: list[tuple[str, Callable[[], None]]] = [
        (f"{HUB['train'].name} ({HUB['train'].repo})", partial(_from_hub, downloads, folder)),
        (f"{STANFORD.name} ({STANFORD.address})", partial(_from_stanford, downloads, folder)),
        (f"{KAGGLE.name} ({KAGGLE.slug})", partial(_from_kaggle, downloads, folder)),
    ]
    try_in_order(TITLE, attempts, _ADVICE)
    record_checksums(folder)
    shutil.rmtree(downloads, ignore_errors=True)


def _from_hub(downloads: Path, folder: Path) -> None:
    """Download the Hub's two tables and write them in the original's form."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise SourceError("needs the package pyarrow: pip install 'trainyard-shared[hub]'") from error
    files = {split: download(source, downloads / f"{split}.parquet") for split, source in HUB.items()}
    with building(folder) as draft:
        for split, name in (("train", TRAIN_FILE), ("test", TEST_FILE)):
            try:
                with (draft / name).open("w", encoding="latin-1", newline="") as file:
                    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
                    for batch in parquet.ParquetFile(files[split]).iter_batches(50_000):
                        # The Hub has left out the ids.
                        columns = [
                            batch[column].to_pylist() for column in ("sentiment", "date", "query", "user", "text")
                        ]
                        writer.writerows((row[0], "", *row[1:]) for row in zip(*columns, strict=True))
            except (pyarrow.ArrowException, OSError, KeyError, UnicodeEncodeError) as error:
                files[split].unlink()
                raise SourceError(f"{files[split].name} is not readable as the Hub's {TITLE}: {error!r}") from error
        _accept(draft, files.values(), with_test=True)
        write_origin(draft, f"{HUB['train'].name} ({HUB['train'].repo})")


def _from_stanford(downloads: Path, folder: Path) -> None:
    archive = download(STANFORD, downloads / ARCHIVE, sha256=ARCHIVE_SHA256, size_bytes=ARCHIVE_BYTES)
    unpacked = extract(archive, downloads / "unpacked")
    with building(folder) as draft:
        for name in (TRAIN_FILE, TEST_FILE):
            (unpacked / name).rename(draft / name)
        write_origin(draft, f"{STANFORD.name}'s {ARCHIVE}")


def _from_kaggle(downloads: Path, folder: Path) -> None:
    file = download(KAGGLE, downloads / TRAIN_FILE)
    with building(folder) as draft:
        file.rename(draft / TRAIN_FILE)
        _accept(draft, (), with_test=False)
        write_origin(draft, f"{KAGGLE.name} ({KAGGLE.slug})")


def _accept(folder: Path, files: Iterable[Path], *, with_test: bool) -> None:
    """Raise SourceError unless what was downloaded is the whole data set; `files` are then removed, not used again."""
    try:
        for name, expected in ((TRAIN_FILE, NUM_TRAIN), (TEST_FILE, NUM_TEST))[: 1 + with_test]:
            rows = sum(len(chunk.texts) for chunk in read_chunks(folder / name))
            if rows != expected:
                raise SourceError(f"what arrived is not the whole data set: {rows:,} of {expected:,} rows of {name}")
    except DataError as error:
        for file in files:
            file.unlink()
        raise error if isinstance(error, SourceError) else SourceError(str(error)) from error


def _download(config: DownloadConfig) -> str:
    return find_tweets(offline=config.offline).source


def _check(folder: Path) -> str:
    found = _find_local(folder)
    _accept(folder, (), with_test=found.test is not None)
    return found.source


ENTRIES = (
    Entry(
        name="sentiment140",
        title=TITLE,
        task="text classification: mood of a tweet",
        size=f"{NUM_TRAIN:,} training tweets, labelled by emoticons, and {NUM_TEST} test tweets, labelled by hand",
        licence=LICENCE,
        terms="name the report of the citation in what you publish",
        citation=CITATION,
        places=(
            Place("Hugging Face Hub (without the ids)", tuple(File(source) for source in HUB.values())),
            Place("Stanford", (File(STANFORD, f"sha256 {ARCHIVE_SHA256}", ARCHIVE_BYTES),)),
            Place("Kaggle (without the test set)", (File(KAGGLE),)),
        ),
        verified="sha256 of the archive; elsewhere, the number of rows of each file",
        folder="sentiment140",
        contents=("tweets", "archive"),
        download=_download,
        check=_check,
    ),
)
