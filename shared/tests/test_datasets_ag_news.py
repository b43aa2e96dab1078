"""AG News: every form that people have it in, broken files, the ways it comes here, and generated articles."""

import bz2
import csv
import gzip
import hashlib
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trainyard_shared.datasets import ag_news, fetch, headlines
from trainyard_shared.datasets.ag_news import clean, load_ag_news, load_sample, make_sample, read_news
from trainyard_shared.errors import DataError

SIZES = {"num_train": 60, "num_test": 40}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sample in the original form, as a user would have it."""
    made = make_sample(tmp_path / "data", seed=0, **SIZES)
    (made / "ORIGIN.txt").unlink()
    return made


def content(data: ag_news.NewsDataset) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    return (
        list(zip(data.train_texts, data.train_labels.tolist(), strict=True)),
        list(zip(data.test_texts, data.test_labels.tolist(), strict=True)),
    )


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def write(path: Path, table: list[list[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(table)
    return path


# Samples


def test_a_sample_is_read_by_the_reader_of_the_real_data(cache):
    data = load_sample(seed=0, **SIZES)
    assert (data.name, data.kind) == ("ag_news", "sample")
    assert data.source.startswith("generated sample, seed 0: 60 training and 40 test articles")
    assert data.class_names == ("World", "Sports", "Business", "Sci/Tech")
    assert np.bincount(data.train_labels).tolist() == [15] * 4
    assert np.bincount(data.test_labels).tolist() == [10] * 4
    assert data.test_labels.dtype == np.int64
    assert data.notes == ()
    made = next(cache.glob("samples/*/articles"))
    assert content(load_ag_news(made)) == content(data)
    assert (made / "train.csv").read_text().startswith('"1","')


def test_the_seed_alone_decides_the_sample():
    labels = [0, 1, 2, 3] * 10
    assert headlines.write(labels, 1) == headlines.write(labels, 1) != headlines.write(labels, 2)


def test_a_damaged_sample_is_named(cache):
    load_sample(seed=0, **SIZES)
    made = next(cache.glob("samples/*/articles"))
    (made / "test.csv").write_text('"1","only","one"\n')
    with pytest.raises(
        DataError, match=rf"damaged\. Remove the folder {made.parent}\. .*none of Sports, Business, Sci"
    ):
        load_sample(seed=0, **SIZES)


def test_samples_need_all_classes_and_a_new_folder(folder, tmp_path):
    with pytest.raises(DataError, match="exists already"):
        make_sample(folder, seed=0, **SIZES)
    with pytest.raises(DataError, match="at least 4 training and 4 test articles, one of each class, not 3 and 40"):
        make_sample(tmp_path / "few", seed=0, num_train=3, num_test=40)


def test_generated_articles_can_be_told_apart_but_not_all(cache):
    labels = np.arange(5000) % 4
    articles = headlines.write(labels.tolist(), 0)
    assert len(set(articles)) == 5000
    assert not [text for article in articles for text in article if "{" in text or "}" in text]
    words = [Counter(re.findall("[a-z]+", " ".join(article).lower())) for article in articles]
    vocabulary = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    counts = np.zeros((len(articles), len(vocabulary)))
    for row, count in zip(counts, words, strict=True):
        row[[vocabulary[word] for word in count]] = list(count.values())
    # Naive Bayes
    totals = np.array([counts[:4000][labels[:4000] == c].sum(axis=0) + 1 for c in range(4)])
    scores = counts[4000:] @ np.log(totals / totals.sum(axis=1, keepdims=True)).T
    assert 0.85 < (scores.argmax(axis=1) == labels[4000:]).mean() < 0.98


# The reader


def to_bz2(folder: Path) -> None:
    for name in ("train.csv", "test.csv"):
        (folder / f"{name}.bz2").write_bytes(bz2.compress((folder / name).read_bytes()))
        (folder / name).unlink()


def to_gzip(folder: Path) -> None:
    for name in ("train.csv", "test.csv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()


def to_kaggle(folder: Path) -> None:
    for name in ("train.csv", "test.csv"):
        write(folder / name, [["Class Index", "Title", "Description"], *rows(folder / name)])


def joined(path: Path) -> list[list[object]]:
    return [[f"{title} {description}", int(number) - 1] for number, title, description in rows(path)]


def to_text_label(folder: Path) -> None:
    write(folder / "train_5k_text_label.csv", joined(folder / "train.csv"))
    (folder / "train.csv").unlink()


def to_text_label_with_header(folder: Path) -> None:
    for name in ("train.csv", "test.csv"):
        write(folder / name, [["label", "text"], *([label, text] for text, label in joined(folder / name))])


def to_archive_folder(folder: Path) -> None:
    (folder / "ag_news_csv").mkdir()
    for name in ("train.csv", "test.csv"):
        (folder / name).rename(folder / "ag_news_csv" / name)


def to_parquet(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    (folder / "data").mkdir()
    for split in ("train", "test"):
        texts, labels = zip(*joined(folder / f"{split}.csv"), strict=True)
        table = pa.table({"text": list(texts), "label": list(labels)})
        pa.parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
        (folder / f"{split}.csv").unlink()


FORMS = [to_bz2, to_gzip, to_kaggle, to_text_label, to_text_label_with_header, to_archive_folder, to_parquet]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_articles_in_the_same_order(folder, form):
    expected = load_ag_news(folder)
    form(folder)
    data = load_ag_news(folder)
    assert content(data) == content(expected)
    assert "60 of 120,000 training and 40 of 7,600 test articles" in data.source
    assert set(data.train_labels[:20].tolist()) == {0, 1, 2, 3}, "a part of it is a fair sample"


def test_texts_come_through_as_they_are(folder):
    odd = [
        '"Quoted", said she',
        "a\r\nb\nc\rd",
        "  spaces ",
        'ends with "',
        "é\u2028\x85\x00",
        ",",
        "back\\slash",
        "#39;",
    ]
    write(folder / "train.csv", [*rows(folder / "train.csv"), *([2, title, "x"] for title in odd)])
    assert {f"{title} x" for title in odd} < set(load_ag_news(folder).train_texts)


def test_rules_are_applied_and_counted(folder):
    train, test = rows(folder / "train.csv"), rows(folder / "test.csv")
    leaked = [test[0][0], f" {test[0][1]}", f"{test[0][2]}  "]  # but for spaces, the same
    again, disputed = train[1], [str(int(train[2][0]) % 4 + 1), *train[2][1:]]
    write(folder / "train.csv", [*train, leaked, again, disputed, ["3", "", " "]])
    data = load_ag_news(folder)
    assert data.notes == (
        "1 empty articles dropped",
        "1 training articles dropped that are in the test set, too",
        "2 training articles repeat another one and are kept; 1 texts are there under more than one class",
    )
    assert len(data.train_texts) == 62
    assert content(data)[1] == content(load_ag_news(folder))[1]


def test_original_files_are_recognised(folder, monkeypatch):
    md5 = hashlib.md5((folder / "test.csv").read_bytes()).hexdigest()
    monkeypatch.setitem(ag_news.ORIGINAL_MD5, "test", md5)
    assert "test.csv equal to the original" in load_ag_news(folder).source
    monkeypatch.setitem(ag_news.ORIGINAL_MD5, "test", "0")
    assert "none equal to the original" in load_ag_news(folder).source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"1","a","b"\n"5","c","d"\n', r"line 2: the class is '5', expected one of 1 \(World\), 2 \(Sports\), 3 "),
        ('"0","a","b"\n', r"line 1: the class is '0', expected one of 1 \(World\).* 4 \(Sci/Tech\)"),
        ('"-1","a","b"\n', "line 1: the class is '-1'"),
        ('"1","a","b\nc"\n"x","c","d"\n', "line 3: the class is 'x'"),
        ("Class Index,Title,Description\n1,a,b\n2.0,c,d\n", "line 3: the class index is '2.0'"),
        ("Class Index,Title,Description\n1,a,b\n,c,d\n", "line 3: the class index is ''"),
        ("good news,0\nbad news,4\n", r"line 2: the label is '4', expected one of 0 \(World\), 1 \(Sports\)"),
        ("text,label\ngood,0\nbad,Sports\n", "line 3: the label is 'Sports'"),
        ("Category,Headline,Body\n1,a,b\n", r"line 1: 3 columns, 'Category', 'Headline', 'Body'; expected without a"),
        ("Class Index,Title\n1,a\n", r"line 1: 2 columns, 'Class Index', 'Title'; expected .*Description or text, lab"),
        ("1,a,b,c\n", r"line 1: 4 columns, '1', 'a', 'b', 'c'; expected without a header class \(1 to 4\), title"),
        ("one column\n", "line 1: 1 columns, 'one column'; expected"),
        ('"1","a","b"\n"2","c"\n', r"line 2: 2 columns, expected 3\. A text with commas"),
        ('"1","a","b"\n"2","c, d","e\n', r"the row that begins in line 2 is broken .*has to be quoted"),
        ("Class Index,Title,Description\n", "holds no articles"),
        ("Title,Description\na,b\n", r"has no column with the class, which training needs\. Expected"),
        ("\n \n", "is empty"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(folder, text, expected):
    (folder / "train.csv").write_text(text)
    with pytest.raises(DataError, match=rf"train\.csv.*{expected}"):
        load_ag_news(folder)


def test_bytes_that_are_not_text_are_named(folder):
    (folder / "train.csv").write_bytes(b'"1","a","b"\n"2","caf\xe9","d"\n')
    with pytest.raises(DataError, match=r"train\.csv, line 2: the byte 0xe9 .* is not UTF-8"):
        load_ag_news(folder)
    (folder / "train.csv").unlink()
    (folder / "train.csv.gz").write_bytes(gzip.compress(b'"1","a","b"\n' * 100)[:-9])
    with pytest.raises(DataError, match=r"train\.csv\.gz is damaged or incomplete"):
        load_ag_news(folder)


def test_a_class_without_articles_is_named(folder):
    write(folder / "test.csv", [row for row in rows(folder / "test.csv") if row[0] != "2"])
    with pytest.raises(DataError, match=r"among the 30 test articles there are none of Sports\."):
        load_ag_news(folder)


def test_missing_files_are_named(folder, tmp_path):
    (folder / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test\.csv is missing"):
        load_ag_news(folder)
    (folder / "train.csv").rename(folder / "news.csv")
    with pytest.raises(DataError, match=r"which holds news\.csv\. Expected there: train\.csv .*--data-dir"):
        load_ag_news(folder)
    with pytest.raises(DataError, match="which does not exist"):
        load_ag_news(tmp_path / "nowhere")


def test_parquet_that_is_wrong_is_named(folder):
    pa = pytest.importorskip("pyarrow")
    to_parquet(folder)
    path = folder / "data" / "train-00000-of-00001.parquet"
    for table, expected in (
        ({"text": ["a", "b"], "label": [1, 4]}, "the label of row 1 is 4, expected 0 to 3"),
        ({"text": ["a", "b"], "label": [1, None]}, "the label of row 1 is -1, expected 0 to 3"),
        ({"text": ["a", None], "label": [1, 2]}, "row 1 has no text"),
        ({"text": ["a"], "class": [1]}, "not readable as the Hub's AG News"),
    ):
        pa.parquet.write_table(pa.table(table), path)
        with pytest.raises(DataError, match=expected):
            load_ag_news(folder)
    path.write_bytes(b"PAR1 or so")
    with pytest.raises(DataError, match="not readable as the Hub's AG News"):
        load_ag_news(folder)


def test_articles_to_predict_keep_their_rows(tmp_path):
    table = tmp_path / "new.csv"
    table.write_text('id,Title,Description\n1,good,news\n\n2,,\n3,"bad, really",news\n')
    assert read_news(table) == (["good news", " ", "bad, really news"], None)
    table.write_text("text\nonly text\n")
    assert read_news(table) == (["only text"], None)
    lines = tmp_path / "new.txt"
    lines.write_bytes("one\u2028still one\r\n\r\nthree\n".encode())
    assert read_news(lines) == (["one\u2028still one", "", "three"], None)


def test_clean_leaves_plain_text():
    raw = (
        "It #39;s a  quot;phone quot; for  #36;10 or \\$20;\\a second\\line AT amp;T &amp; "
        '&lt;A HREF="http://x/y"&gt;Reuters&lt;/A&gt; <b>bold</b>, 3 < 4 and C#45; stays'
    )
    assert clean(raw) == 'It \'s a "phone " for $10 or $20; a second line AT &T & Reuters bold , 3 < 4 and C#45; stays'


# Broken at random


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Change some bytes: exchange, drop, insert, repeat or cut, with what means something in CSV."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) or 1)
        length = rng.choice((1, 1, 3, 40))
        new = rng.choice((b'"', b",", b"\n", b"\r", b"\x00", b"\xff", b"9", b"-1", b"", b"'", b";", "é".encode(), b" "))
        kind = rng.randrange(5)
        if kind == 0:
            data[at : at + length] = new
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = new
        elif kind == 3:
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("form", [None, to_kaggle, to_text_label, to_text_label_with_header])
def test_whatever_is_in_a_file_is_read_or_refused(tmp_path, form: Callable[[Path], None] | None):
    folder = make_sample(tmp_path / "data", seed=0, num_train=12, num_test=8)
    if form is not None:
        form(folder)
    path = next(folder.glob("train*.csv"))
    content = path.read_bytes()
    rng = random.Random(0)
    outcomes: Counter[str] = Counter()
    messages = []
    for _ in range(200):
        path.write_bytes(mutate(rng, content))
        try:
            texts, labels = read_news(path)
            outcomes["read"] += 1
            assert labels is None or (len(labels) == len(texts) and set(labels.tolist()) <= {0, 1, 2, 3})
            load_ag_news(folder)
        except DataError as refusal:
            outcomes["refused"] += 1
            messages.append(str(refusal))
    assert all(str(folder) in message for message in messages)
    assert min(outcomes["read"], outcomes["refused"]) > 20


# Where the data come from


def refuse(reason: str):
    def download(self, part, want, retry):
        raise fetch.SourceError(reason)

    return download


@pytest.fixture
def published(folder, web, cache, monkeypatch):
    """A small data set, whole by its own numbers, that GitHub's address serves and Hub and Kaggle do not."""
    expected = content(load_ag_news(folder))
    monkeypatch.setattr(ag_news, "NUM_ARTICLES", {"train": 60, "test": 40})
    monkeypatch.setattr(fetch, "DEFAULT_RETRY", fetch.RetryPolicy(attempts=2, first_wait_s=0.01))
    monkeypatch.setattr(fetch.HubFile, "download", refuse("no Hub here"))
    monkeypatch.setattr(fetch.KaggleFile, "download", refuse("no Kaggle here"))
    for split in ("train", "test"):
        served = (folder / f"{split}.csv").read_bytes()
        web.files[f"/{split}.csv"] = served
        monkeypatch.setitem(ag_news.ORIGINAL_MD5, split, hashlib.md5(served).hexdigest())
        monkeypatch.setitem(ag_news.GITHUB, split, fetch.HttpFile("GitHub", f"{web.url}/{split}.csv"))
    return folder, expected


def test_files_are_downloaded_once(published, web, cache, capsys):
    data = load_ag_news()
    assert "no Hub here" in capsys.readouterr().err
    assert content(data) == published[1]
    assert data.kind == "real"
    assert "GitHub" in data.source
    assert content(load_ag_news(offline=True)) == published[1]
    assert web.num_gets == 2
    assert {entry.name for entry in (cache / "ag_news").iterdir()} == {"articles", ".articles.lock", ".articles.sha256"}
    (cache / "ag_news" / "articles" / "test.csv").write_text('"1","a","b"\n')
    assert content(load_ag_news()) == published[1]
    assert "is damaged: making it anew" in capsys.readouterr().err


def test_a_file_with_another_checksum_is_not_taken(published, web):
    web.files["/test.csv"] = web.files["/test.csv"].replace(b'"2"', b'"3"', 1)
    with pytest.raises(DataError, match=r"(?s)what arrived has the md5 .*, expected .*no Kaggle here.*--data-dir"):
        load_ag_news()


def test_parquet_from_the_hub_is_kept_as_csv(published, web, cache, monkeypatch):
    folder, expected = published
    to_parquet(folder)
    for split, source in ag_news.HUB.items():
        digest = hashlib.sha256((folder / source.path).read_bytes()).hexdigest()
        monkeypatch.setitem(ag_news.HUB_SHA256, split, digest)
    monkeypatch.setattr(
        fetch.HubFile, "download", lambda self, part, want, retry: shutil.copyfile(folder / self.path, part)
    )
    data = load_ag_news()
    assert content(data) == expected
    assert "Hugging Face Hub (fancyzhx/ag_news)" in data.source
    assert web.num_gets == 0
    assert {entry.name for entry in (cache / "ag_news" / "articles").iterdir()} == {
        "train.csv",
        "test.csv",
        "ORIGIN.txt",
    }


def test_what_kaggle_sends_must_be_the_whole(published, web, monkeypatch):
    folder, expected = published
    web.files.clear()
    to_kaggle(folder)
    monkeypatch.setattr(
        fetch.KaggleFile, "download", lambda self, part, want, retry: shutil.copyfile(folder / self.path, part)
    )
    whole = (folder / "train.csv").read_bytes()
    (folder / "train.csv").write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(DataError, match="not the whole data set: 59 of 60 training and 40 of 40 test articles"):
        load_ag_news()
    (folder / "train.csv").write_bytes(whole)
    data = load_ag_news()
    assert content(data) == expected
    assert "amananandrai/ag-news-classification-dataset" in data.source


def test_offline_without_data_says_what_to_do(cache):
    with pytest.raises(DataError, match=r"is not in .*offline mode.*train\.csv and .*test\.csv by hand"):
        load_ag_news(offline=True)


# The real data, where they are at hand


@pytest.fixture(scope="module")
def real() -> Path:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    data = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (data / "ag_news" / "test.csv").is_file():
        pytest.skip(f"no real news in {data}: set TRAINYARD_TEST_DATA to the folder that holds ag_news/test.csv")
    return data / "ag_news"


def test_the_real_articles(real):
    data = load_ag_news(real)
    assert data.kind == "real"
    assert "5,000 of 120,000 training and 7,600 of 7,600 test articles, test.csv equal to the original" in data.source
    assert data.notes == ("1 training articles dropped that are in the test set, too",)
    assert np.bincount(data.test_labels).tolist() == [1900] * 4
    assert len(data.train_texts) == 4999
    labels = dict(zip(data.test_texts, data.test_labels.tolist(), strict=True))
    assert labels[next(text for text in labels if text.startswith("Fears for T N pension after talks Unions"))] == 2
    assert labels[next(text for text in labels if text.startswith("The Race is On: Second Private Team"))] == 3
    cleaned = [clean(text) for text in data.test_texts]
    assert sum(bool(re.search(r"#\d+;|quot;|&lt;|\\|  ", text)) for text in data.test_texts) > 2000
    assert sum(bool(re.search(r"#\d+;|quot;|&lt;|\\|  ", text)) for text in cleaned) < 10
