"""The reader of Sentiment140: chunks, positions to go on from, errors that name file and line, and the sample."""

import csv
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from trainyard_shared.datasets import sentiment140
from trainyard_shared.datasets.fetch import HttpFile, SourceError
from trainyard_shared.datasets.sentiment140 import find_sample, find_tweets, make_sample, read_chunks, read_texts
from trainyard_shared.errors import DataError

ROW = '"0","1467810369","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","joe","{}"\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentiment140, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.delenv("TRAINYARD_OFFLINE", raising=False)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return make_sample(tmp_path / "sample", seed=0, num_train=500, num_test=50)


def write(folder: Path, *texts: str, name: str = "training.5.csv") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_bytes("".join(ROW.format(text) for text in texts).encode("latin-1"))
    return path


class TestReading:
    def test_every_row_comes_once_whatever_the_size_of_chunks(self, sample):
        (path,) = sample.glob("training*")
        with path.open(encoding="latin-1", newline="") as file:
            rows = list(csv.reader(file))
        for size in (1, 7, 500, 10_000):
            chunks = list(read_chunks(path, size))
            assert [text for chunk in chunks for text in chunk.texts] == [row[5] for row in rows]
            assert [user for chunk in chunks for user in chunk.users] == [row[4] for row in rows]
            assert np.concatenate([chunk.polarities for chunk in chunks]).tolist() == [int(row[0]) for row in rows]
            assert max(len(chunk.texts) for chunk in chunks) == min(size, 500)
            assert chunks[-1].end == (path.stat().st_size, 501)

    def test_reading_goes_on_where_a_chunk_ended(self, tmp_path):
        path = write(tmp_path, "one", "caf\xe9 \xff", "two\nlines", 'a ""quote""', "last")
        whole = list(read_chunks(path, 2))
        assert [chunk.texts for chunk in whole] == [["one", "caf\xe9 \xff"], ["two\nlines", 'a "quote"'], ["last"]]
        again = list(read_chunks(path, 2, whole[0].end))
        assert [chunk.texts for chunk in again] == [chunk.texts for chunk in whole[1:]]
        assert [chunk.end for chunk in again] == [chunk.end for chunk in whole[1:]]
        assert whole[-1].end.line == 7, "five rows, one of them over two lines"

    def test_single_rows_are_found_again(self, tmp_path):
        path = write(tmp_path, "one", "caf\xe9", "two\nlines", "last")
        offsets = np.concatenate([chunk.offsets for chunk in read_chunks(path, 3)])
        assert read_texts(path, offsets[[3, 2, 1]].tolist()) == ["last", "two\nlines", "caf\xe9"]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (ROW.format("a") * 2 + '"0","1","d","q","u"\n', "line 3: 5 fields, expected 6: polarity, id, date"),
            (ROW.format("a") + '"3","1","d","q","u","t"\n', "line 2: polarity is '3', expected 0, 2 or 4."),
            (
                "target,ids,date,flag,user,text\n",
                "line 1: polarity is 'target', expected 0, 2 or 4. The original has no",
            ),
            (ROW.format("a") + '"0","1","d","q","u","t\n', "the row that begins in line 2 is broken"),
            (ROW.format("two\nlines") + '"0",oops\n', "line 3: 2 fields"),
            ("", "is empty"),
            ("\ufeff" + ROW.format("a"), "line 1: saved anew as UTF-8"),
        ],
    )
    def test_broken_rows_are_named(self, tmp_path, content, words):
        path = tmp_path / "training.5.csv"
        path.write_bytes(content.encode("utf-8"))
        with pytest.raises(DataError) as caught:
            list(read_chunks(path))
        assert words in str(caught.value)
        assert str(path) in str(caught.value)

    def test_lines_are_counted_on_after_going_on(self, tmp_path):
        path = write(tmp_path, "one", "two\nlines")
        with path.open("a") as file:
            file.write('"0","1"\n')
        first = next(read_chunks(path, 2))
        with pytest.raises(DataError, match="line 4: 2 fields"):
            list(read_chunks(path, 2, first.end))


class TestFinding:
    def test_folder_file_and_what_is_neither(self, tmp_path, sample):
        found = find_tweets(sample)
        assert (found.kind, found.test is None) == ("sample", False)
        path = write(tmp_path / "one", "a")
        assert find_tweets(path.parent).train == find_tweets(path).train == path
        assert find_tweets(path.parent).kind == "real"
        write(tmp_path / "one", "b", name="training.6.csv")
        with pytest.raises(DataError, match=r"several training files, training\.5\.csv, training\.6\.csv"):
            find_tweets(tmp_path / "one")
        with pytest.raises(DataError, match=r"No Sentiment140 in .*nowhere, which does not exist"):
            find_tweets(tmp_path / "nowhere")

    def test_archive_that_is_not_the_original(self, tmp_path):
        with zipfile.ZipFile(tmp_path / sentiment140.ARCHIVE, "w") as archive:
            archive.writestr(sentiment140.TRAIN_FILE, ROW.format("a"))
        with pytest.raises(DataError, match="is not the original"):
            find_tweets(tmp_path)

    def test_archive_is_unpacked_once(self, tmp_path, monkeypatch):
        path = tmp_path / sentiment140.ARCHIVE
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(sentiment140.TRAIN_FILE, ROW.format("a"))
            archive.writestr(sentiment140.TEST_FILE, ROW.format("b"))
        monkeypatch.setattr(sentiment140, "ARCHIVE_SHA256", sentiment140.file_digest(path, "sha256"))
        found = find_tweets(tmp_path)
        assert next(read_chunks(found.train)).texts == ["a"]
        assert found.test is not None
        assert find_tweets(tmp_path) == found

    def test_offline_says_what_to_do(self):
        with pytest.raises(DataError, match=r"offline mode .* What to do: download https://cs\.stanford\.edu/"):
            find_tweets(offline=True)

    def test_sources_are_tried_in_order_and_each_failure_is_named(self, monkeypatch, capfd):
        def fail(source: object, *_: object, **__: object) -> Path:
            raise SourceError(f"no {type(source).__name__}")

        monkeypatch.setattr(sentiment140, "download", fail)
        with pytest.raises(DataError) as caught:
            find_tweets()
        lines = str(caught.value).splitlines()
        assert [line.split("(")[0].strip() for line in lines[1:4]] == ["- Hugging Face Hub", "- Stanford", "- Kaggle"]
        assert "no HttpFile" in lines[2]
        assert "download https://cs.stanford.edu" in lines[4]

    def test_a_download_that_is_only_a_part_is_not_taken(self, tmp_path, monkeypatch):
        part = write(tmp_path / "arrived", "a", "b")

        def arrive(source: object, *_: object, **__: object) -> Path:
            if isinstance(source, sentiment140.KaggleFile):
                return part
            raise SourceError("closed")

        monkeypatch.setattr(sentiment140, "download", arrive)
        with pytest.raises(DataError, match="not the whole data set: 2 of 1,600,000 rows"):
            find_tweets()
        assert not (tmp_path / "cache" / "sentiment140" / "tweets").exists()

    def test_the_hubs_tables_become_files_of_the_original_form(self, tmp_path, monkeypatch):
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        tables = {}
        for split, sentiments in (("train", [0, 4, 4]), ("test", [2])):
            n = len(sentiments)
            columns = {"text": ['caf\xe9, "x"'] * n, "date": ["d"] * n, "user": ["u"] * n, "sentiment": sentiments}
            tables[split] = tmp_path / f"{split}.parquet"
            parquet.write_table(pyarrow.table(columns | {"query": ["NO_QUERY"] * n}), tables[split])
        monkeypatch.setattr(sentiment140, "download", lambda source, path: tables[path.stem])
        monkeypatch.setattr(sentiment140, "NUM_TRAIN", 3)
        monkeypatch.setattr(sentiment140, "NUM_TEST", 1)
        found = find_tweets()
        assert "Hugging Face Hub (stanfordnlp/sentiment140)" in found.source
        chunk = next(read_chunks(found.train))
        assert chunk.polarities.tolist() == [0, 4, 4]
        assert chunk.texts == ['caf\xe9, "x"'] * 3
        assert found.test is not None
        assert next(read_chunks(found.test)).polarities.tolist() == [2]

    def test_stanford_is_asked_over_https(self):
        assert isinstance(sentiment140.STANFORD, HttpFile)
        assert sentiment140.STANFORD.url.startswith("https://")


class TestSample:
    def test_it_is_like_the_original(self, sample):
        found = find_tweets(sample)
        (chunk,) = read_chunks(found.train)
        assert chunk.polarities.tolist() == [0] * 250 + [4] * 250, "sorted by polarity, none neutral"
        assert len(set(chunk.users)) < 400, "users write more than one tweet"
        assert max(map(len, chunk.texts)) <= 140
        text = " ".join(chunk.texts)
        assert all(sign in text for sign in ("@", "http://", "&amp;", "&quot;", "ooo", "#", "\xe9"))
        assert found.test is not None
        (test,) = read_chunks(found.test)
        assert np.unique(test.polarities, return_counts=True)[1].tolist() == [18, 15, 17]

    def test_it_depends_on_the_seed_alone(self, tmp_path, sample):
        (path,) = sample.glob("training*")
        for seed, equal in ((0, True), (1, False)):
            (other,) = make_sample(tmp_path / f"s{seed}", seed=seed, num_train=500, num_test=50).glob("training*")
            assert (other.read_bytes() == path.read_bytes()) is equal

    def test_classes_of_other_sizes(self, tmp_path):
        found = find_sample(0, 300, 50, neutral=1 / 3, negative=0.8)
        (chunk,) = read_chunks(found.train)
        assert np.unique(chunk.polarities, return_counts=True)[1].tolist() == [160, 100, 40]
        assert find_sample(0, 300, 50, neutral=1 / 3, negative=0.8) == found

    def test_too_small_or_in_the_way(self, tmp_path, sample):
        with pytest.raises(DataError, match="at least 10 training"):
            make_sample(tmp_path / "small", seed=0, num_train=5)
        with pytest.raises(DataError, match="exists already"):
            make_sample(sample, seed=0, num_train=100)


def test_real_tweets() -> None:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (folder / "sentiment140").is_dir():
        pytest.skip(f"no real tweets in {folder}: set TRAINYARD_TEST_DATA to the folder that holds sentiment140/")
    found = find_tweets(folder / "sentiment140")
    assert (found.kind, found.test) == ("real", None)
    chunks = list(read_chunks(found.train, 6000))
    assert [len(chunk.texts) for chunk in chunks] == [6000, 6000, 6000, 2000]
    polarities = np.concatenate([chunk.polarities for chunk in chunks])
    assert np.unique(polarities, return_counts=True)[1].tolist() == [9999, 10_001]
    assert chunks[0].users[0] == "_TheSpecialOne_"
    assert chunks[0].texts[0].startswith("@switchfoot http://twitpic.com/2y1zl - Awww")
    assert len({user for chunk in chunks for user in chunk.users}) == 18_105
