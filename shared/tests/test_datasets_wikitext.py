"""WikiText-2: every form that people have it in, broken files, the ways it comes here, and generated articles."""

import os
import shutil
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from trainyard_shared.datasets import fetch, wikitext
from trainyard_shared.datasets.wikitext import SPLITS, articles, load_sample, load_wikitext, make_sample, num_words
from trainyard_shared.errors import DataError

LINES = [" \n", " = Bel = \n", " \n", " A town , with = signs = in it . \n", " \n", " = = History = = \n", " Old . \n"]
TEXT = "".join(LINES)
WORD = TEXT.replace("Old", "<unk>")


def write(folder: Path, pattern: str, text: str = TEXT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        (folder / pattern.format(split)).write_text(text, encoding="utf-8")
    return folder


def write_parquet(folder: Path, lines: list[str]) -> Path:
    """The Hub's form: a row a line, blank lines without their space."""
    folder.mkdir(parents=True)
    table = pyarrow.table({"text": [line if line.strip() else "" for line in lines]})
    for split in ("train", "validation", "test"):
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize(
    ("form", "place", "pattern"),
    [
        ("raw", ".", "wiki.{}.raw"),
        ("raw", "wikitext-2-raw", "wiki.{}.raw"),
        ("raw", ".", "{}.txt"),
        ("word", ".", "wiki.{}.tokens"),
        ("word", "wikitext-2", "wiki.{}.tokens"),
        ("word", ".", "{}.txt"),
    ],
)
def test_local_files(form, place, pattern, tmp_path):
    text = WORD if form == "word" else TEXT
    write(tmp_path / place, pattern, text)
    data = load_wikitext(tmp_path, form)
    assert data.texts == dict.fromkeys(SPLITS, text)
    assert (data.name, data.kind) == ("wikitext-2", "real")
    assert f"{form} form, local files" in data.source
    assert "train: 7 lines, where WikiText-2 has 36,718" in data.notes


@pytest.mark.parametrize(("form", "place"), [("raw", "wikitext-2-raw-v1"), ("word", "wikitext-2-v1"), ("raw", "")])
def test_the_hubs_parquet_gives_the_published_text(form, place, tmp_path):
    write_parquet(tmp_path / "data" / place, LINES)
    assert load_wikitext(tmp_path / "data", form).texts["valid"] == TEXT


def test_only_what_is_asked_for_has_to_be_there(tmp_path):
    write(tmp_path, "{}.txt")
    (tmp_path / "train.txt").unlink()
    assert list(load_wikitext(tmp_path, splits=("valid", "test")).texts) == ["valid", "test"]
    with pytest.raises(DataError, match=r"No WikiText-2 \(raw form, train\) in .*, which holds test.txt, valid.txt"):
        load_wikitext(tmp_path)


def test_archive(cache, tmp_path):
    write(tmp_path / "wikitext-2-raw", "wiki.{}.raw")
    with zipfile.ZipFile(tmp_path / "wikitext-2-raw-v1.zip", "w") as archive:
        for path in (tmp_path / "wikitext-2-raw").iterdir():
            archive.write(path, path.relative_to(tmp_path))
    shutil.rmtree(tmp_path / "wikitext-2-raw")
    assert load_wikitext(tmp_path).texts["test"] == TEXT
    assert load_wikitext(tmp_path / "wikitext-2-raw-v1.zip").texts["test"] == TEXT


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "train.txt is empty"),
        (b" \n \n", "train.txt is empty"),
        (b" \n caf\xe9 \n", r"train.txt, line 2: the byte 0xe9 at offset 6 is not UTF-8"),
        (b" \n the <unk> town \n", r"train.txt, line 2: <unk> stands for a rare word .* --form word"),
    ],
)
def test_wrong_files_are_named(content, words, tmp_path):
    write(tmp_path, "{}.txt")
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_wikitext(tmp_path)


def test_wrong_parquet(tmp_path):
    write_parquet(tmp_path / "data", LINES)
    pyarrow.parquet.write_table(pyarrow.table({"line": ["a"]}), tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"test-00000-of-00001.parquet is not readable as the Hub's WikiText-2"):
        load_wikitext(tmp_path / "data")


def test_windows_line_ends_and_a_missing_last_one(tmp_path):
    write(tmp_path, "{}.txt")
    (tmp_path / "train.txt").write_bytes(TEXT.replace("\n", "\r\n").encode().removesuffix(b"\r\n"))
    assert load_wikitext(tmp_path).texts["train"] == TEXT


def test_offline_without_data_says_what_to_do(cache):
    with pytest.raises(DataError, match=r"offline mode .* forbids a download. What to do: download the files of"):
        load_wikitext(offline=True)


class TestDownload:
    """With a Hub that is a folder on this machine."""

    @pytest.fixture
    def hub(self, cache, tmp_path, monkeypatch) -> Path:
        def download(source, destination, **_):
            file = tmp_path / "hub" / source.path
            if not file.exists():
                raise fetch.SourceError("no connection")
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, destination)
            return destination

        monkeypatch.setattr(wikitext, "download", download)
        monkeypatch.setattr(wikitext, "NUM_LINES", dict.fromkeys(SPLITS, len(LINES)))
        return tmp_path / "hub"

    def test_from_the_hub_once(self, hub):
        write_parquet(hub / "wikitext-2-raw-v1", LINES)
        first = load_wikitext()
        assert first.texts["test"] == TEXT
        assert first.source.startswith("WikiText-2, raw form, Hugging Face Hub (Salesforce/wikitext)")
        assert first.notes == ()
        shutil.rmtree(hub)
        assert load_wikitext(offline=True).texts == first.texts

    def test_from_the_archive_where_the_hubs_files_are_not_whole(self, hub, tmp_path, capsys):
        write_parquet(hub / "wikitext-2-raw-v1", LINES[:-1])
        write(tmp_path / "wikitext-2-raw", "wiki.{}.raw")
        with zipfile.ZipFile(hub / "wikitext-2-raw-v1.zip", "w") as archive:
            for path in (tmp_path / "wikitext-2-raw").iterdir():
                archive.write(path, path.relative_to(tmp_path))
        assert load_wikitext().texts["test"] == TEXT
        assert "has 6 lines, expected 7" in capsys.readouterr().err

    def test_every_failure_is_named(self, hub):
        with pytest.raises(DataError, match=r"could not be had[^$]*Salesforce/wikitext[^$]*ggml-org/ci[^$]*--data-dir"):
            load_wikitext()


def test_articles_begin_at_headings_of_the_first_level():
    text = TEXT + " \n \n" + TEXT.replace("Bel", "Dor")
    parts = articles(text)
    assert [part.split("\n")[1] for part in parts] == [" = Bel = ", " = Dor = "]
    assert "".join(parts) == text
    assert articles("no heading\n") == ["no heading\n"]


def test_words_are_counted_with_an_end_for_each_line():
    assert num_words(" = Bel = \n \n A town . \n") == 6 + 3


class TestSample:
    def test_a_sample_is_read_by_the_reader_of_the_real_data(self, cache):
        data = load_sample(seed=0, num_articles=20)
        assert data.kind == "sample"
        assert data.source.startswith("generated sample, seed 0: 20 + 2 + 2 articles")
        assert [len(articles(data.texts[split])) for split in SPLITS] == [20, 2, 2]
        made = next(cache.glob("samples/*/articles"))
        assert load_wikitext(made).texts == data.texts
        assert load_wikitext(made).kind == "sample"

    def test_it_has_the_form_of_the_real_text(self, cache):
        text = load_sample(seed=0, num_articles=100).texts["train"]
        for line in text.removesuffix("\n").split("\n"):
            assert line == " " or (line.startswith(" ") and line.endswith(" "))
        assert "{" not in text
        assert " @,@ " in text
        assert " = = " in text
        names = [article.split("\n")[1].strip(" =") for article in articles(text)]
        assert all(article.count(name.split()[-1]) >= 2 for article, name in zip(articles(text), names, strict=True))

    def test_the_seed_alone_decides_it(self, tmp_path):
        texts = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            make_sample(tmp_path / name, seed=seed, num_articles=10)
            texts.append((tmp_path / name / "train.txt").read_text())
        assert texts[0] == texts[1] != texts[2]

    def test_splits_do_not_share_articles(self, cache):
        data = load_sample(seed=0, num_articles=100)
        train = set(articles(data.texts["train"]))
        assert not train & {*articles(data.texts["valid"]), *articles(data.texts["test"])}

    def test_a_damaged_one_is_named(self, cache):
        load_sample(seed=0, num_articles=10)
        made = next(cache.glob("samples/*/articles"))
        (made / "test.txt").write_text("")
        with pytest.raises(DataError, match=rf"The cached sample is damaged\. Remove the folder {made.parent}"):
            load_sample(seed=0, num_articles=10)

    def test_it_is_not_written_over_something_else(self, tmp_path):
        with pytest.raises(DataError, match="exists already"):
            make_sample(tmp_path, seed=0, num_articles=10)


def test_the_real_texts_have_the_published_numbers_of_words_and_articles():
    folder = Path(os.environ.get("TRAINYARD_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "wikitext-2"
    if not folder.is_dir():
        pytest.skip("the real WikiText-2 is not at hand (TRAINYARD_TEST_DATA)")
    data = load_wikitext(folder, "word", ("valid", "test"))
    assert {split: num_words(text) for split, text in data.texts.items()} == {"valid": 217_646, "test": 245_569}
    assert {split: len(articles(text)) for split, text in data.texts.items()} == {"valid": 60, "test": 60}
    assert data.notes == ()
