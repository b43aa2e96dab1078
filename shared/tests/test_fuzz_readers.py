"""Every reader against files that were mutated at random: it returns a correct result or raises a DataError.

A new reader is one entry in `READERS`: small files that it accepts, how to read them, and what must hold of whatever it
returns. The mutations follow from the reader's name and the number of the case alone. More of them:

    TRAINYARD_FUZZ_CASES=50000 pytest shared/tests/test_fuzz_readers.py -k stocks
"""

import bz2
import gzip
import importlib
import io
import lzma
import os
import pkgutil
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainyard_shared import datasets
from trainyard_shared.datasets import (
    ag_news,
    cifar,
    cmapss,
    imdb,
    m5,
    pile,
    py2pickle,
    sentiment140,
    stocks,
    tables,
    wikitext,
)
from trainyard_shared.datasets.archives import extract
from trainyard_shared.errors import DataError

NUM_CASES = int(os.environ.get("TRAINYARD_FUZZ_CASES", "2000"))
Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """A reader under test."""

    name: str
    files: Callable[[Path], Files]
    """small files that it accepts; gets an empty folder to make them in"""
    read: Callable[[Path], Any]
    """reads the folder of the files"""
    check: Callable[[Any], None]
    """fails unless the result is one that a caller can rely on"""
    words: tuple[bytes, ...] = ()
    """what to strew into its files, besides what hurts every reader"""
    share: float = 1.0
    """of the cases; forms of one reader that is slow share them"""
    mend: Callable[[bytes], bytes] = bytes
    """puts right what would give a mutation away at once, in every other case"""


# Mutations

WORDS = (
    *(b"", b"\0", b"\n", b"\r\n", b"\r", b" ", b",", b'"', b'""', b"'", b"\\", b"\t", b"\xff", b"\xfe\xff", b"\x85"),
    *(b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\x1a", b"0", b"-1", b"1e999", b"nan", b"inf"),
    *(b"NaN", b"None", b"1_0", "\u0663".encode(), b"9" * 30, b"9" * 400, b"0x10", b"1.5", b"-", b"+", b"%s%n"),
    *(b"../../x", b"=1+1", b"a" * 5000),
)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)


def mutate(content: bytes, chance: random.Random, words: tuple[bytes, ...]) -> bytes:
    """Return the content changed in one to four places."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(data) + 1)
        length = min(chance.choice((1, 1, 2, 4, 8, 30, 200)), len(data) - at)
        kind = chance.randrange(10)
        if kind <= 1 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2 and at < len(data):
            data[at] = chance.randrange(256)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length] * chance.choice((1, 1, 2, 50))
        elif kind == 5:
            data[at:at] = chance.choice(words)
        elif kind == 6:
            data[at : at + length] = chance.choice(words)
        elif kind == 7:
            other = chance.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
        elif kind == 8:
            del data[at:]
        else:
            number = chance.choice(NUMBERS)
            size = chance.choice((1, 2, 4, 8))
            data[at : at + size] = (number % (1 << (8 * size))).to_bytes(size, chance.choice(("little", "big")))
    return bytes(data)


# Files and results


def files_in(folder: Path, pattern: str = "*") -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(pattern) if path.is_file()}


def cifar_files(name: str, folder: Path) -> Files:
    layout = cifar.LAYOUTS[name]
    made = cifar.make_sample(folder / "sample", name, num_train=len(layout.train_files), num_test=1)
    return {file: (made / file).read_bytes() for file in (*layout.batch_files, layout.meta_file)}


def check_images(data: cifar.ImageDataset) -> None:
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert (images.dtype, images.shape[1:]) == (np.uint8, (3, 32, 32))
        assert (labels.dtype, labels.shape) == (np.int64, (len(images),))
        assert len(images) > 0
        assert 0 <= labels.min() <= labels.max() < len(data.class_names)
        assert images.flags.writeable
    assert all(isinstance(name, str) for name in data.class_names)


def pickle_files(folder: Path) -> Files:
    return {"meta": cifar_files("cifar10", folder)["batches.meta"]}


def check_pickle(content: Any) -> None:
    assert isinstance(content, dict)
    for key, value in content.items():
        assert isinstance(key, str)
        assert isinstance(value, str | int | list | np.ndarray | bytes | tuple | None | dict)


def imdb_files(form: str, folder: Path) -> Files:
    made = imdb.make_sample(folder / "sample", seed=0, num_train=4, num_test=4)
    files = files_in(made, "*.csv")
    files["train.csv"] += b'"With, ""quotes""\nand <br /> lines \xc3\xa9",negative\n'
    if form == "csv":
        return files
    if form == "kaggle":
        return {imdb.KAGGLE_FILE: files["train.csv"]}
    if form == "stanford":
        return {
            f"{split}/{sign}/{i}_1.txt": f"{split} {sign} review {i}".encode()
            for split in ("train", "test")
            for sign in ("pos", "neg")
            for i in range(2)
        }
    assert form == "parquet"
    return {
        Path(imdb.HUB[split].path).name: parquet(
            {"text": [f"{split} {i} text" for i in range(4)], "label": [0, 1, 0, 1]}
        )
        for split in ("train", "test")
    }


def parquet(columns: dict[str, list]) -> bytes:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def check_reviews(data: imdb.ReviewDataset) -> None:
    for texts, labels in ((data.train_texts, data.train_labels), (data.test_texts, data.test_labels)):
        assert (labels.dtype, labels.shape) == (np.int64, (len(texts),))
        assert set(labels.tolist()) <= {0, 1}
        assert all(isinstance(text, str) and text.strip() and text.encode() for text in texts)
    assert set(data.test_labels.tolist()) == {0, 1}
    assert not set(data.train_texts) & set(data.test_texts)


def cmapss_files(folder: Path) -> Files:
    row = "{} {} " + " ".join(f"{i}.25" for i in range(24))
    table = "".join(row.format(unit, cycle) + "  \n" for unit in (1, 2) for cycle in (1, 2, 3)).encode()
    return {"train_FD001.txt": table, "test_FD001.txt": table, "RUL_FD001.txt": b"7 \n9 \n"}


def check_engines(data: cmapss.EngineDataset) -> None:
    for fleet in (data.train, data.test):
        num_rows = int(fleet.offsets[-1])
        assert (fleet.settings.shape, fleet.sensors.shape) == ((num_rows, 3), (num_rows, 21))
        assert np.isfinite(fleet.settings).all()
        assert np.isfinite(fleet.sensors).all()
        assert fleet.offsets[0] == 0
        assert (fleet.lengths > 0).all()
        assert len(fleet.units) == len(set(fleet.units.tolist())) == len(fleet.offsets) - 1
        assert fleet.remaining.shape == (num_rows,)
        assert (fleet.remaining >= 0).all()
        assert (np.diff(fleet.remaining)[np.diff(fleet.engine_of_row) == 0] == -1).all()


def stocks_files(folder: Path) -> Files:
    rows = [f"2020-01-0{day},9.5,12,8,1{day}.25,5.125,1000" for day in range(2, 8)]
    return {"ABC.csv": "\n".join(["Date,Open,High,Low,Close,Adj Close,Volume", *rows, ""]).encode()}


def quandl_files(folder: Path) -> Files:
    header = "Ticker,Date,Open,High,Low,Close,Adj. Close,Volume,Split Ratio"
    rows = [f"{t},2020-01-0{day},9,12,8,1{day}.5,5.5,1000,{day % 3 + 1}.0" for t in ("A", "B") for day in range(2, 6)]
    return {"table.csv": "\n".join([header, *rows, ""]).encode()}


def check_prices(data: stocks.PriceDataset) -> None:
    assert data.prices
    for table in data.prices.values():
        assert list(table.columns) == list(stocks.COLUMNS)
        assert table.index.is_monotonic_increasing
        assert table.index.is_unique
        assert len(table) > 0
        values = table.to_numpy()
        assert values.dtype == np.float64
        assert np.isfinite(values).all()
        assert (values[:, :-1] > 0).all()
        assert (values[:, -1] >= 0).all()


def wikitext_files(form: str, folder: Path) -> Files:
    texts = {split: f" \n = {split} = \n \n Some words @-@ of {split} . \n \n" for split in wikitext.SPLITS}
    if form == "parquet":
        return {
            f"{wikitext.HUB_SPLIT[split]}-00000-of-00001.parquet": parquet({"text": text.splitlines(keepends=True)})
            for split, text in texts.items()
        }
    return {f"wiki.{split}.raw": text.encode() for split, text in texts.items()}


def check_texts(data: wikitext.TextDataset) -> None:
    assert set(data.texts) == set(wikitext.SPLITS)
    for text in data.texts.values():
        assert text.strip()
        assert text.endswith("\n")
        assert "".join(wikitext.articles(text)) == text
        text.encode()


def ag_news_files(folder: Path) -> Files:
    return files_in(ag_news.make_sample(folder / "sample", seed=0, num_train=4, num_test=4), "*.csv")


def check_news(data: ag_news.NewsDataset) -> None:
    for texts, labels in ((data.train_texts, data.train_labels), (data.test_texts, data.test_labels)):
        assert (labels.dtype, labels.shape) == (np.int64, (len(texts),))
        assert set(labels.tolist()) <= set(range(len(data.class_names)))
        assert all(isinstance(text, str) and text.strip() and text.encode() for text in texts)


def m5_files(folder: Path) -> Files:
    return files_in(m5.make_sample(folder / "sample", seed=0, num_items=7, num_days=56), "*.csv")


def check_sales(data: m5.M5Dataset) -> None:
    num_series, num_days = data.sales.units.shape
    assert (data.sales.units.dtype, data.prices.dtype) == (np.int16, np.float32)
    assert (data.sales.units >= 0).all()
    assert data.prices.shape == (num_series, len(data.calendar.distinct_weeks))
    assert (np.isnan(data.prices) | (data.prices > 0)).all()
    assert 0 < num_days <= len(data.calendar.dates)
    assert len(set(data.sales.names)) == num_series


def tweet_files(folder: Path) -> Files:
    rows = [
        f'"{(i % 2) * 4}","{i}","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","user{i}","tweet, no. {i} \xe9"'
        for i in range(5)
    ]
    return {sentiment140.TRAIN_FILE: "\n".join([*rows, ""]).encode("latin-1")}


def read_tweets(folder: Path) -> list[sentiment140.Chunk]:
    return list(sentiment140.read_chunks(sentiment140.find_tweets(folder).train, rows=2))


def check_tweets(chunks: list[sentiment140.Chunk]) -> None:
    for chunk in chunks:
        assert len(chunk.polarities) == len(chunk.users) == len(chunk.texts)
        assert set(chunk.polarities.tolist()) <= set(sentiment140.CLASS_NAMES)
        assert all(isinstance(text, str) for text in chunk.texts)


def pile_files(suffix: str, folder: Path) -> Files:
    made = pile.make_sample(folder / "sample", seed=0, num_documents=4)
    if suffix == ".jsonl.zst":
        return files_in(made, "*.zst")
    return {
        name.removesuffix(".zst"): b"\n".join(content for _, content in pile.numbered_lines(made / name))
        for name in files_in(made, "*.zst")
    }


def read_pile(folder: Path) -> list[pile.Document]:
    found = pile.find_pile(folder)
    return [document for files in (found.train, found.val, found.test) for document in pile.documents(files)]


def check_documents(documents: list[pile.Document]) -> None:
    assert all(isinstance(document.component, str) and document.text.encode() for document in documents)


def text_files(suffix: str, folder: Path) -> Files:
    compress = {".bz2": bz2.compress, ".gz": partial(gzip.compress, mtime=0), ".xz": lzma.compress}[suffix]
    return {f"a.csv{suffix}": compress(b"review,sentiment\n" + b"some text,positive\n" * 20)}


def read_only_text(folder: Path) -> str:
    (path,) = folder.iterdir()
    return tables.read_text(path)


def archive_files(kind: str, folder: Path) -> Files:
    members = {"set/one.txt": b"one " * 50, "set/two.bin": bytes(range(256)), "set/deep/three": b""}
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return {"a.zip": file.getvalue()}
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    tarred = file.getvalue()[:4096]  # less padding, more to hit
    return {"a.tar": tarred} if kind == "tar" else {"a.tar.gz": gzip.compress(tarred, mtime=0)}


def with_tar_checksums(content: bytes) -> bytes:
    """Give every header of a tar file the checksum of what stands in it."""
    data = bytearray(content)
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def unpack(folder: Path) -> Files:
    (archive,) = folder.iterdir()
    out = folder.with_name("unpacked")
    try:
        return files_in(extract(archive, out, max_bytes=1 << 20, max_members=50))
    finally:
        # Whatever comes of it, nothing lies outside and nothing half-made is left.
        beside = {path.name for path in folder.parent.iterdir()}
        assert beside <= {folder.name, "unpacked", ".unpacked.lock"}, beside
        if out.exists():
            for path in sorted(out.rglob("*"), reverse=True):
                assert not path.is_symlink()
                path.rmdir() if path.is_dir() else path.unlink()
            out.rmdir()


def check_members(found: Files) -> None:
    assert sum(map(len, found.values())) <= 1 << 20


PICKLE_WORDS = (
    *(b"cos\nsystem\n", b"cnumpy\ndtype\n", b"\x80\x02", b"}q\x01", b"(", b"R", b"b", b"u.", b".", b"h\x01", b"K\x05"),
    *(b"\x96" + b"\xff" * 8, b"r\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"]", b"0", b"2", b"N"),
)
PRICE_WORDS = (b"2020-01-03", b"2020-13-01", b"-5", b"null", b"1e-320", b"1e308", b",,", b"12:00", b"Ticker")


def cifar_reader(name: str) -> Reader:
    return Reader(name, partial(cifar_files, name), partial(cifar.load_cifar, name), check_images, PICKLE_WORDS)


def imdb_reader(form: str, *words: bytes) -> Reader:
    return Reader(f"imdb-{form}", partial(imdb_files, form), imdb.load_imdb, check_reviews, words)


def wikitext_reader(form: str, *words: bytes) -> Reader:
    return Reader(f"wikitext-{form}", partial(wikitext_files, form), wikitext.load_wikitext, check_texts, words)


def text_reader(suffix: str) -> Reader:
    return Reader(f"text{suffix}", partial(text_files, suffix), read_only_text, str.encode)


def archive_reader(kind: str) -> Reader:
    words = (b"../x", b"/etc/x", b"1", b"2", b"3", b"5", b"6", b"x", b"L", b"K")
    mend = with_tar_checksums if kind == "tar" else bytes
    return Reader(kind, partial(archive_files, kind), unpack, check_members, words, mend=mend)


# Names begin with that of the module.
READERS = [
    cifar_reader("cifar10"),
    cifar_reader("cifar100"),
    Reader("py2pickle", pickle_files, lambda folder: py2pickle.read(folder / "meta"), check_pickle, PICKLE_WORDS),
    imdb_reader("csv", b"review", b"sentiment", b"positive"),
    imdb_reader("kaggle", b"review", b"negative"),
    imdb_reader("stanford"),
    imdb_reader("parquet", b"PAR1", b"text", b"label"),
    Reader("cmapss", cmapss_files, partial(cmapss.load_cmapss, "FD001"), check_engines, (b"1 4", b"3 1", b"2 ")),
    Reader("stocks-yahoo", stocks_files, stocks.load_prices, check_prices, PRICE_WORDS, 0.5),
    Reader("stocks-quandl", quandl_files, stocks.load_prices, check_prices, PRICE_WORDS, 0.5),
    Reader("ag_news", ag_news_files, ag_news.load_ag_news, check_news, (b'"5","', b'"0"', b'"\n"', b"class,text")),
    Reader("m5", m5_files, m5.load_m5, check_sales, (b",-1", b"d_1", b"d_9999", b"CA_1", b"11101", b"NA"), 0.5),
    Reader("sentiment140", tweet_files, read_tweets, check_tweets, (b'"4",', b'"3",', b'","')),
    *(
        Reader(
            f"pile{suffix}", partial(pile_files, suffix), read_pile, check_documents, (b'{"text":', b"}", b"null"), 0.5
        )
        for suffix in pile.SUFFIXES
    ),
    wikitext_reader("text", b" = ", b" = = ", b"<unk>"),
    wikitext_reader("parquet", b"PAR1", b"text"),
    *map(text_reader, tables.DECOMPRESS),
    *map(archive_reader, ("tar", "tar.gz", "zip")),
]


def test_every_data_set_has_its_readers_here():
    for info in pkgutil.iter_modules(datasets.__path__):
        if hasattr(importlib.import_module(f"{datasets.__name__}.{info.name}"), "ENTRIES"):
            assert any(reader.name.startswith(info.name) for reader in READERS), f"{info.name} has no entry in READERS"


def refusal(reader: Reader, folder: Path) -> str | None:
    """Return what the reader says against the files, or None if it reads them, and rightly so."""
    try:
        reader.check(reader.read(folder))
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_mutated_files_give_a_correct_result_or_an_error_that_names_them(reader: Reader, tmp_path):
    (tmp_path / "made").mkdir()
    originals = reader.files(tmp_path / "made")
    folder = tmp_path / "work" / "files"
    for name, content in originals.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    reader.check(reader.read(folder))

    num_cases, num_refused = int(NUM_CASES * reader.share), 0
    names = sorted(originals)
    words = (*WORDS, *reader.words * 3)
    for case in range(num_cases):
        chance = random.Random(f"{reader.name} {case}")
        name = chance.choice(names)
        mutated = mutate(originals[name], chance, words)
        if case % 2:
            mutated = reader.mend(mutated)
        (folder / name).write_bytes(mutated)
        try:
            message = refusal(reader, folder)
        except BaseException as error:
            error.add_note(f"case {case} of {reader.name}: {name} is {mutated[:2000]!r}")
            raise
        if message is not None:
            num_refused += 1
            assert str(folder) in message, f"case {case} of {name}: the message names no file: {message}"
        (folder / name).write_bytes(originals[name])
    reader.check(reader.read(folder))  # nothing of the cases is left
    # Both ends are reached: a mutator that never hurts, or always kills, would test nothing.
    assert 0.02 * num_cases < num_refused < num_cases
