"""IMDb reviews: every form that people have them in, broken files, the ways they come here, and generated ones."""

import bz2
import csv
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from trainyard_shared.datasets import catalogue, fetch, imdb, opinions
from trainyard_shared.datasets.imdb import clean, load_imdb, load_sample, make_sample, read_reviews
from trainyard_shared.errors import DataError

SIZES = {"num_train": 60, "num_test": 40}
HEADER = "review,sentiment\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sample as train.csv and test.csv, as a user would have them."""
    made = make_sample(tmp_path / "data", seed=0, **SIZES)
    (made / "ORIGIN.txt").unlink()
    return made


def content(data: imdb.ReviewDataset) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    return (
        list(zip(data.train_texts, data.train_labels.tolist(), strict=True)),
        list(zip(data.test_texts, data.test_labels.tolist(), strict=True)),
    )


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def write(path: Path, reviews: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["review", "sentiment"], *reviews])
    return path


# Samples


def test_a_sample_is_read_by_the_reader_of_the_real_data(cache):
    data = load_sample(seed=0, **SIZES)
    assert (data.name, data.kind) == ("imdb", "sample")
    assert data.source.startswith("generated sample, seed 0: 60 training and 40 test reviews")
    assert data.class_names == ("negative", "positive")
    assert np.bincount(data.train_labels).tolist() == [30, 30]
    assert np.bincount(data.test_labels).tolist() == [20, 20]
    assert data.test_labels.dtype == np.int64
    assert data.notes == ()
    made = next(cache.glob("samples/*/reviews"))
    assert content(load_imdb(made)) == content(data)
    assert load_imdb(made).kind == "sample"


def test_the_seed_alone_decides_the_sample():
    labels = np.arange(50) % 2
    assert opinions.write(labels, 1) == opinions.write(labels, 1) != opinions.write(labels, 2)


def test_a_damaged_sample_is_named(cache):
    load_sample(seed=0, **SIZES)
    made = next(cache.glob("samples/*/reviews"))
    (made / "test.csv").write_text(HEADER)
    with pytest.raises(
        DataError, match=rf"The cached sample is damaged\. Remove the folder {made.parent}\. .*test.csv"
    ):
        load_sample(seed=0, **SIZES)


def test_a_sample_is_not_written_over_something_else(folder):
    with pytest.raises(DataError, match="exists already"):
        make_sample(folder, seed=0, **SIZES)


@pytest.mark.parametrize("sizes", [(1, 10), (10, 1)])
def test_a_sample_needs_both_classes(tmp_path, sizes):
    with pytest.raises(DataError, match=f"not {sizes[0]} and {sizes[1]}"):
        make_sample(tmp_path / "data", seed=0, num_train=sizes[0], num_test=sizes[1])


@pytest.fixture(scope="module")
def written() -> tuple[list[str], np.ndarray]:
    """Generated reviews and their labels."""
    labels = np.arange(6000) % 2
    return opinions.write(labels, 0), labels


class TestOpinions:
    def test_no_two_reviews_are_equal(self, written):
        assert len(set(written[0])) == 6000

    def test_not_even_short_reviews_are_equal(self, monkeypatch):
        monkeypatch.setattr(opinions, "MEDIAN_LENGTH", 1)
        assert len(set(opinions.write([0, 1] * 2000, 0))) == 4000

    def test_lengths_spread_like_those_of_the_real_reviews(self, written):
        lengths = np.array([len(text) for text in written[0]])
        assert opinions.MIN_LENGTH <= lengths.min() < 60
        assert 2400 < lengths.max() <= opinions.MAX_LENGTH
        assert 0.6 < np.log(lengths).std() < 0.85
        assert any("<br /><br />" in text for text in written[0])

    def test_every_template_is_filled(self, written):
        assert not [text for text in written[0] if "{" in text or "}" in text]

    def test_counting_words_helps_but_does_not_solve_it(self, written):
        texts, labels = written
        words = [Counter(re.findall("[a-z]+", text.lower())) for text in texts]
        vocabulary = {word: i for i, word in enumerate(sorted(set().union(*words)))}
        counts = np.zeros((len(texts), len(vocabulary)))
        for row, count in zip(counts, words, strict=True):
            row[[vocabulary[word] for word in count]] = list(count.values())
        train, test = counts[:5000], counts[5000:]
        # Naive Bayes
        log_odds = np.subtract(
            *(np.log((train[labels[:5000] == c].sum(axis=0) + 1) / train[labels[:5000] == c].sum()) for c in (1, 0))
        )
        assert 0.65 < ((test @ log_odds > 0) == labels[5000:]).mean() < 0.85


def test_processes_make_a_sample_together(tmp_path):
    script = (
        "import sys, platformdirs\n"
        "platformdirs.user_cache_dir = lambda name: sys.argv[1]\n"
        "from trainyard_shared.datasets.imdb import load_sample\n"
        "print(''.join(load_sample(num_train=2000, num_test=100).train_texts).__len__())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "together")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sizes = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sizes[0] == sizes[1]


# The reader


def to_bz2(folder: Path) -> Path:
    for name in ("train.csv", "test.csv"):
        (folder / f"{name}.bz2").write_bytes(bz2.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    return folder


def to_gzip(folder: Path) -> Path:
    for name in ("train.csv", "test.csv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    return folder


def to_stanford(folder: Path) -> Path:
    for split in ("train", "test"):
        for i, (text, word) in enumerate(rows(folder / f"{split}.csv")):
            path = folder / "aclImdb" / split / word[:3] / f"{i}_{8 if word == 'positive' else 2}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        (folder / f"{split}.csv").unlink()
    (folder / "aclImdb" / "train" / "unsup").mkdir()
    (folder / "aclImdb" / "train" / "unsup" / "0_0.txt").write_text("Without a label.")
    return folder


def to_archive(folder: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.add(folder / "aclImdb", "aclImdb")
    return file.getvalue()


def to_parquet(folder: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    (folder / "plain_text").mkdir()
    for split in ("train", "test"):
        texts, words = zip(*rows(folder / f"{split}.csv"), strict=True)
        table = pa.table({"text": list(texts), "label": [imdb.CLASS_NAMES.index(word) for word in words]})
        pa.parquet.write_table(table, folder / "plain_text" / f"{split}-00000-of-00001.parquet")
        (folder / f"{split}.csv").unlink()
    return folder


@pytest.mark.parametrize("form", [to_bz2, to_gzip, to_stanford, to_parquet])
def test_every_form_gives_the_same_reviews_in_the_same_order(folder, form):
    expected = content(load_imdb(folder))
    assert content(load_imdb(form(folder))) == expected


def test_the_order_of_the_file_makes_no_difference(folder):
    expected = content(load_imdb(folder))
    write(folder / "train.csv", sorted(rows(folder / "train.csv"), key=lambda row: row[1]))
    data = load_imdb(folder)
    assert content(data) == expected
    assert set(data.train_labels[:15]) == {0, 1}  # a part of it is no single class


def test_texts_come_through_as_they_are(folder):
    odd = [
        '"Quoted", said she',
        "a\r\nb\nc\rd",
        "  spaces ",
        'ends with "',
        "<br />",
        "é\u2028\x85\x00",
        "'",
        ",",
        '""',
    ]
    reviews = rows(folder / "train.csv")
    write(folder / "train.csv", reviews + [[text, "positive"] for text in odd])
    assert set(odd) < set(load_imdb(folder).train_texts)


def test_kaggles_file_is_divided_by_a_rule(tmp_path, folder):
    reviews = [*rows(folder / "train.csv"), *rows(folder / "test.csv")]
    (tmp_path / "kaggle").mkdir()
    path = write(tmp_path / "kaggle" / "IMDB Dataset.csv", reviews)
    data = load_imdb(path.parent)
    train, test = content(data)
    assert len(train) == len(test) == 50
    assert np.bincount(data.train_labels).tolist() == [25, 25]
    assert {text for text, _ in train + test} == {text for text, _ in reviews}
    assert data.notes[0].startswith("IMDB Dataset.csv has no official split")
    write(path, reviews[::-1])
    assert content(load_imdb(path)) == (train, test)


def test_equal_reviews_of_kaggles_file_stay_on_one_side(tmp_path, folder):
    reviews = rows(folder / "train.csv")
    data = load_imdb(write(tmp_path / "IMDB Dataset.csv", reviews * 2))
    assert len(data.train_texts) == len(data.test_texts) == 60
    assert len(data.notes) == 1


def test_training_reviews_of_the_test_set_are_dropped_and_counted(folder):
    reviews = rows(folder / "train.csv")
    write(folder / "train.csv", [*reviews, *rows(folder / "test.csv")[:3]])
    data = load_imdb(folder)
    assert data.notes == ("3 training reviews dropped that are in the test set, too",)
    assert sorted(data.train_texts) == sorted(text for text, _ in reviews)


def test_empty_reviews_are_dropped_and_counted(folder):
    write(folder / "test.csv", [*rows(folder / "test.csv"), ["", "positive"], [" \n", "negative"]])
    data = load_imdb(folder)
    assert data.notes == ("2 empty reviews dropped",)
    assert len(data.test_texts) == 40


@pytest.mark.parametrize("length", [100_000, 1_000_000])
def test_a_very_long_review_is_accepted(folder, length):
    long = "good " * (length // 5)
    write(folder / "train.csv", [*rows(folder / "train.csv"), [long, "positive"]])
    limit = csv.field_size_limit()
    assert long in load_imdb(folder).train_texts
    assert csv.field_size_limit() == limit


def test_files_of_windows_programs_are_read(folder):
    expected = content(load_imdb(folder))
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig") + b"\r\n")
    assert content(load_imdb(folder)) == expected


BROKEN = {
    "empty file": (b" \n", r"train\.csv is empty"),
    "header only": (HEADER.encode(), r"train\.csv holds no reviews"),
    "other columns": (
        b"text,label\ngood,1\n",
        r"train\.csv has the columns text, label; expected review and sentiment",
    ),
    "no labels": (b"review\ngood\n", r"train\.csv has no column sentiment"),
    "wrong label": (
        b'review,sentiment\n"two\nlines",positive\nfine,Positive\n',
        r"train\.csv, line 4: sentiment is 'Positive', expected negative or positive",
    ),
    "unquoted comma": (b"review,sentiment\nok,positive\ngood, but long,positive\n", r"line 3: 3 fields, expected 2"),
    "open quote": (
        b'review,sentiment\nok,positive\n"never closed,positive\nb,negative\n',
        r"begins in line 3 is broken",
    ),
    "stray quote": (b'review,sentiment\n"a "good" one",positive\n', r"begins in line 2 is broken .* quotes doubled"),
    "windows-1252": (
        HEADER.encode() + "ok,positive\ncaf\xe9,negative\n".encode("latin-1"),
        r"train\.csv, line 3: the byte 0xe9 at offset 32 is not UTF-8\. .*iconv",
    ),
    "one class": (b"review,sentiment\na,positive\nb,positive\n", "among the training reviews are only positive ones"),
    "only empty": (b"review,sentiment\n,positive\n,negative\n", "among the training reviews are none"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_with_the_place(folder, case):
    bad, message = BROKEN[case]
    (folder / "train.csv").write_bytes(bad)
    with pytest.raises(DataError, match=message):
        load_imdb(folder)


def test_a_cut_compressed_file_is_refused(folder):
    path = to_bz2(folder) / "train.csv.bz2"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"train\.csv\.bz2 is damaged or incomplete"):
        load_imdb(folder)


def test_a_wrong_label_in_parquet_is_named(folder):
    pa = pytest.importorskip("pyarrow")
    path = to_parquet(folder) / "plain_text" / "train-00000-of-00001.parquet"
    pa.parquet.write_table(pa.table({"text": ["a", "b"], "label": [1, -1]}), path)
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: the label of row 1 is -1, expected 0 or 1"):
        load_imdb(folder)
    pa.parquet.write_table(pa.table({"text": ["a", None], "label": [1, 0]}), path)
    with pytest.raises(DataError, match="Hub's IMDb: row 1 of the column text is 'None', expected text"):
        load_imdb(folder)
    pa.parquet.write_table(pa.table({"text": ["a", "b"], "label": [1, None]}), path)
    with pytest.raises(DataError, match="row 1 of the column label is 'None', expected a whole number"):
        load_imdb(folder)
    path.write_bytes(b"PAR1 or so")
    with pytest.raises(DataError, match="not readable as the Hub's IMDb"):
        load_imdb(folder)


def test_a_class_without_files_is_named(folder):
    shutil.rmtree(to_stanford(folder) / "aclImdb" / "test" / "neg")
    with pytest.raises(DataError, match=r"aclImdb/test/neg holds no reviews"):
        load_imdb(folder)


def test_a_missing_half_is_named(folder):
    (folder / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test\.csv is missing"):
        load_imdb(folder)


def test_a_folder_without_reviews_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("?")
    with pytest.raises(DataError, match=r"which holds notes\.md\. Expected there: train\.csv .*--data-dir"):
        load_imdb(tmp_path)
    with pytest.raises(DataError, match="which does not exist"):
        load_imdb(tmp_path / "nowhere")


def test_reviews_to_predict_keep_their_rows(tmp_path):
    table = tmp_path / "new.csv"
    table.write_text('id,review\n1,good\n\n2,\n3,"bad, really"\n')
    assert read_reviews(table) == (["good", "", "bad, really"], None)
    lines = tmp_path / "new.txt"
    lines.write_bytes('one\u2028still one\r\n\r\nthree, "quoted"\n'.encode())
    assert read_reviews(lines) == (["one\u2028still one", "", 'three, "quoted"'], None)
    table.write_text("review,sentiment\ngood,positive\nbad,negative\n")
    assert read_reviews(table)[1].tolist() == [1, 0]


def test_clean_leaves_plain_text():
    raw = (
        "It&#39;s <i>fine</i>.<br /><br />Tom &amp; Jerry  &lt;b&gt;\n"
        '<a href="x">3 < 4</a> I <3 it > that &quot;one&quot;\xa0!'
    )
    assert clean(raw) == 'It\'s fine . Tom & Jerry <b> 3 < 4 I <3 it > that "one" !'


# Where the data come from


def refuse(reason: str):
    def download(self, part, want, retry):
        raise fetch.SourceError(reason)

    return download


@pytest.fixture
def published(folder, web, cache, monkeypatch):
    """A small data set, whole by its own numbers, that Stanford's address serves and Hub and Kaggle do not."""
    expected = content(load_imdb(folder))
    archive = to_archive(to_stanford(folder))
    monkeypatch.setattr(imdb, "NUM_TRAIN", SIZES["num_train"])
    monkeypatch.setattr(imdb, "NUM_TEST", SIZES["num_test"])
    monkeypatch.setattr(imdb, "ARCHIVE_MD5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(imdb, "ARCHIVE_BYTES", len(archive))
    monkeypatch.setattr(imdb, "STANFORD", fetch.HttpFile("Stanford", f"{web.url}/{imdb.ARCHIVE}"))
    monkeypatch.setattr(fetch, "DEFAULT_RETRY", fetch.RetryPolicy(attempts=2, first_wait_s=0.01))
    monkeypatch.setattr(fetch.HubFile, "download", refuse("no Hub here"))
    monkeypatch.setattr(fetch.KaggleFile, "download", refuse("no Kaggle here"))
    web.files[f"/{imdb.ARCHIVE}"] = archive
    return folder, expected


def test_the_archive_is_downloaded_once_and_kept_as_csv(published, web, cache, capsys):
    _, expected = published
    data = load_imdb()
    assert "no Hub here" in capsys.readouterr().err
    assert content(data) == expected
    assert data.kind == "real"
    assert "Stanford's aclImdb_v1.tar.gz" in data.source
    assert content(load_imdb(offline=True)) == expected
    assert web.num_gets == 1
    kept = {entry.name for entry in (cache / "imdb").iterdir()}
    assert kept == {"reviews", ".reviews.lock", ".reviews.sha256"}
    entry = catalogue.entry("imdb")
    assert entry.cached() == [cache / "imdb" / "reviews"]
    assert fetch.changed_files(cache / "imdb" / "reviews") == []
    assert entry.check(cache / "imdb" / "reviews") == data.source
    assert {entry.name for entry in (cache / "imdb" / "reviews").iterdir()} == {"train.csv", "test.csv", "ORIGIN.txt"}


@pytest.mark.parametrize("damage", [b"", HEADER.encode(), b"review,sentiment\na,positive\nb,negative\n"])
def test_a_damaged_cache_is_replaced(published, web, cache, capsys, damage):
    load_imdb()
    (cache / "imdb" / "reviews" / "test.csv").write_bytes(damage)
    assert content(load_imdb()) == published[1]
    assert "is damaged: making it anew" in capsys.readouterr().err
    assert web.num_gets == 2


@pytest.mark.parametrize("as_file", [True, False])
def test_a_local_archive_is_converted_into_the_cache(published, web, cache, tmp_path, as_file):
    archive = tmp_path / "mine" / imdb.ARCHIVE
    archive.parent.mkdir()
    archive.write_bytes(web.files[f"/{imdb.ARCHIVE}"])
    data = load_imdb(archive if as_file else archive.parent, offline=True)
    assert content(data) == published[1]
    assert [entry.name for entry in archive.parent.iterdir()] == [imdb.ARCHIVE]
    assert web.num_gets == 0
    archive.write_bytes(archive.read_bytes() + b"!")
    with pytest.raises(DataError, match=r"is not the original aclImdb_v1\.tar\.gz: .* Download it again"):
        load_imdb(archive)


def test_parquet_from_the_hub(published, web, cache, monkeypatch, tmp_path):
    hub = to_parquet(make_sample(tmp_path / "hub", seed=0, **SIZES))
    monkeypatch.setattr(
        fetch.HubFile, "download", lambda self, part, want, retry: shutil.copyfile(hub / self.path, part)
    )
    data = load_imdb()
    assert content(data) == published[1]
    assert "Hugging Face Hub (stanfordnlp/imdb)" in data.source
    assert web.num_gets == 0


@pytest.mark.parametrize("what", ["fewer", "broken"])
def test_parquet_that_is_not_the_whole_is_not_accepted(published, web, cache, monkeypatch, tmp_path, capsys, what):
    hub = to_parquet(make_sample(tmp_path / "hub", seed=0, num_train=58, num_test=40))
    if what == "broken":
        (hub / "plain_text" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 or so")
    monkeypatch.setattr(
        fetch.HubFile, "download", lambda self, part, want, retry: shutil.copyfile(hub / self.path, part)
    )
    assert content(load_imdb()) == published[1]
    said = {"fewer": "not the whole data set: 58 of 60 training", "broken": "not readable as the Hub's IMDb"}
    assert said[what] in capsys.readouterr().err
    assert web.num_gets == 1


def test_what_was_not_accepted_is_not_used_again(published, web, cache, monkeypatch, tmp_path):
    web.files.clear()
    good = to_parquet(make_sample(tmp_path / "good", seed=0, **SIZES))
    bad = to_parquet(make_sample(tmp_path / "bad", seed=0, num_train=58, num_test=40))
    for hub in (bad, good):
        monkeypatch.setattr(
            fetch.HubFile, "download", lambda self, part, want, retry, hub=hub: shutil.copyfile(hub / self.path, part)
        )
        if hub is bad:
            with pytest.raises(DataError, match="not the whole data set"):
                load_imdb()
    assert content(load_imdb()) == published[1]


def test_kaggle_is_the_last_source(published, web, cache, monkeypatch):
    web.files.clear()
    reviews = [[text, imdb.CLASS_NAMES[label]] for split in published[1] for text, label in split]
    monkeypatch.setattr(imdb, "NUM_TRAIN", 50)
    monkeypatch.setattr(imdb, "NUM_TEST", 50)
    monkeypatch.setattr(fetch.KaggleFile, "download", lambda self, part, want, retry: write(part, reviews))
    data = load_imdb()
    assert "Kaggle (lakshmi25npathi/imdb-dataset-of-50k-movie-reviews)" in data.source
    assert "no official split" in data.notes[0]
    again = load_imdb(offline=True)
    assert content(again) == content(data)
    assert again.notes == data.notes


def test_every_source_that_failed_is_named(published, web):
    web.files.clear()
    with pytest.raises(DataError) as caught:
        load_imdb()
    for part in ("no Hub here", "404 Not Found", "no Kaggle here", "--data-dir", "7c2ac02c03563afcf9b574c7e56c153a"):
        assert part in str(caught.value)


def test_offline_without_data_says_what_to_do(cache):
    with pytest.raises(DataError, match=r"is not in .*offline mode.*aclImdb_v1\.tar\.gz"):
        load_imdb(offline=True)


# The real data, where they are at hand


@pytest.fixture(scope="module")
def real() -> Path:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    data = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (data / "imdb" / "train.csv.bz2").is_file():
        pytest.skip(f"no real reviews in {data}: set TRAINYARD_TEST_DATA to the folder that holds imdb/train.csv.bz2")
    return data / "imdb"


@pytest.fixture(scope="module")
def data(real) -> imdb.ReviewDataset:
    return load_imdb(real)


class TestRealReviews:
    def test_all_are_there(self, data):
        assert data.kind == "real"
        assert "24,996 of 25,000 training and 24,996 of 25,000 test reviews" in data.source
        assert data.notes == ("123 training reviews dropped that are in the test set, too",)
        assert np.bincount(data.test_labels).tolist() == [12_500, 12_496]
        assert len(data.train_texts) == len(data.train_labels) == 24_996 - 123
        lengths = [len(text) for text in data.train_texts + data.test_texts]
        assert (min(lengths), max(lengths)) == (32, 13_704)

    def test_known_reviews_have_their_label(self, data):
        labels = dict(zip(data.test_texts, data.test_labels.tolist(), strict=True))
        cool = next(text for text in labels if text.startswith("This is a very cool movie. The ending of the movie"))
        slaves = next(text for text in labels if text.startswith("This film tells the true story of escaped black sl"))
        assert (labels[cool], labels[slaves]) == (1, 0)

    def test_cleaned_reviews_have_no_tags(self, data):
        cleaned = [clean(text) for text in data.test_texts[:2000]]
        assert any("<br />" in text for text in data.test_texts[:2000])
        assert not any("<br" in text or "  " in text for text in cleaned)

    def test_kaggles_file_has_the_same_reviews(self, real, data, tmp_path):
        subprocess.run([sys.executable, real.parent / "unpack.py", "imdb", tmp_path], check=True, capture_output=True)
        kaggle = load_imdb(tmp_path)
        assert len(kaggle.train_texts) == len(kaggle.test_texts) == 24_996
        assert {*kaggle.train_texts, *kaggle.test_texts} == {*data.train_texts, *data.test_texts}
        assert len({*kaggle.train_texts, *kaggle.test_texts}) == 49_574
        assert not {*kaggle.train_texts} & {*kaggle.test_texts}
