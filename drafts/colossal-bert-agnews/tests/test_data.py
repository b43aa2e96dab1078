"""From articles to ids: cleaned, without stop words, augmented; only as asked for, and never what is tested."""

import dataclasses
import os
import random
from pathlib import Path

import numpy as np
import pytest
from colossal_bert_agnews import augmentation, data
from colossal_bert_agnews.augmentation import OPERATIONS, augmented, read_thesaurus
from colossal_bert_agnews.config import TrainConfig
from colossal_bert_agnews.model import train_tokenizer
from trainyard_shared.errors import DataError, UsageError

TEXTS = ["Stocks\\Fall quot;Again quot; on the New Report", "He said that the of", "", "one"]
THESAURUS = read_thesaurus(None)


def test_texts_stay_as_published_unless_asked() -> None:
    assert data.prepared(TEXTS, TrainConfig()) == TEXTS
    assert data.prepared(TEXTS, TrainConfig(clean=True))[0] == 'Stocks Fall "Again " on the New Report'
    bare = data.prepared(TEXTS, TrainConfig(clean=True, remove_stop_words=True))
    assert bare[0] == 'Stocks Fall "Again " New Report'
    assert bare[1:] == ["said", "", "one"]
    assert data.prepared(["the of"], TrainConfig(remove_stop_words=True)) == ["the of"], "something must be left"


def test_split_takes_validation_from_training_only() -> None:
    dataset = data.load(TrainConfig(num_sample_articles=100))
    train, val = data.split(dataset, TrainConfig(num_val=30, num_train=50))
    positions = list(range(100))
    assert positions[val] == list(range(30))
    assert positions[train] == list(range(30, 80))
    train, _ = data.split(dataset, TrainConfig(num_val=30))
    texts = set(dataset.train_texts[train])
    assert not texts & set(dataset.train_texts[val])
    assert not texts & set(dataset.test_texts)


def test_more_articles_than_there_are() -> None:
    dataset = data.load(TrainConfig(num_sample_articles=100))
    with pytest.raises(UsageError, match="num_val: 100 is not allowed: there are 100 training articles"):
        data.split(dataset, TrainConfig(num_val=100))
    with pytest.raises(UsageError, match="num_train: 95 is not allowed: of 100 training articles, 10 are held out"):
        data.split(dataset, TrainConfig(num_val=10, num_train=95))


def test_part_of_the_test_set_is_noted() -> None:
    dataset = data.load(TrainConfig(num_sample_articles=100, num_test=7))
    assert len(dataset.test_texts) == len(dataset.test_labels) == 7
    assert "tested on the first 7 of 20 test articles" in dataset.notes[-1]


def test_ids_are_cut_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(max_length=8)
    texts = ["one two three four five six seven eight nine", "", "one"]
    tokenizer = train_tokenizer(texts, config)
    articles = data.encode(texts, tokenizer, config)
    assert articles.lengths.tolist() == [8, 2, 3]
    assert tokenizer.convert_ids_to_tokens(articles.ids[:8].tolist()) == [
        "[CLS]", "one", "two", "three", "four", "five", "six", "[SEP]",
    ]  # fmt: skip
    monkeypatch.setattr(data, "CHUNK", 2)
    assert data.encode(texts, tokenizer, config).ids.tolist() == articles.ids.tolist()


class TestAugmentation:
    TEXT = "The company said profit rose on strong demand for new software, and shares climbed"

    def test_each_kind_changes_about_the_share_asked_for(self) -> None:
        words = self.TEXT.split()
        many = [self.TEXT] * 200
        deleted = augmented(many, "deletion", 0.2, THESAURUS, 0, 0)
        assert {len(text.split()) for text in deleted} == {len(words) - 3}
        assert all(set(text.split()) <= set(words) for text in deleted)
        swapped = augmented(many, "swap", 0.2, THESAURUS, 0, 0)
        assert all(sorted(text.split()) == sorted(words) for text in swapped)
        assert sum(text != self.TEXT for text in swapped) > 190
        replaced = augmented(many, "synonyms", 0.2, THESAURUS, 0, 0)
        differing = [sum(a != b for a, b in zip(text.split(), words, strict=True)) for text in replaced]
        assert set(differing) <= {2, 3}
        known = {"the", *words, *(other for others in THESAURUS.values() for other in others)}
        assert all({word.strip(",") for word in text.split()} <= known | {"software"} for text in replaced)
        kinds = {len(text.split()) - len(words) for text in augmented(many, "eda", 0.2, THESAURUS, 0, 0)}
        assert kinds == {-3, 0, 3}, "deletion, swap or synonyms, insertion"

    def test_same_seed_and_epoch_give_the_same(self) -> None:
        texts = [self.TEXT, "one", "", "two words"] * 5
        assert augmented(texts, "eda", 0.1, THESAURUS, 1, 2) == augmented(texts, "eda", 0.1, THESAURUS, 1, 2)
        assert augmented(texts, "eda", 0.1, THESAURUS, 1, 2) != augmented(texts, "eda", 0.1, THESAURUS, 1, 3)
        assert augmented(texts, "eda", 0.1, THESAURUS, 1, 2) != augmented(texts, "eda", 0.1, THESAURUS, 0, 2)

    @pytest.mark.parametrize("kind", list(OPERATIONS))
    def test_short_texts_and_unknown_words(self, kind: str) -> None:
        rng = random.Random(0)
        assert OPERATIONS[kind](["xyz"], 1, THESAURUS, rng) == ["xyz"], "nothing to delete, swap or replace"
        assert augmented([""], "eda", 0.1, THESAURUS, 0, 0) == [""]
        changed = OPERATIONS[kind](["aa", "bb", "cc"], 1, THESAURUS, rng)
        assert set(changed) <= {"aa", "bb", "cc"}

    def test_punctuation_stays_where_it_was(self) -> None:
        changed = augmentation.replace(["(Profit),"], 1, {"profit": ("gains",)}, random.Random(0))
        assert changed == ["(gains),"]

    def test_thesaurus_of_ones_own(self, tmp_path: Path) -> None:
        file = tmp_path / "words.txt"
        file.write_text("Car, automobile\n\nlonely\ncar, auto\n")
        assert read_thesaurus(file) == {
            "car": ("automobile", "auto"),
            "automobile": ("car",),
            "auto": ("car",),
        }
        file.write_text("lonely\n")
        with pytest.raises(DataError, match="no line has two words with a comma between"):
            read_thesaurus(file)


def real_folder() -> Path:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    folder = (Path(given) if given else Path(__file__).resolve().parents[4] / "shared" / "data") / "ag_news"
    if not (folder / "test.csv").is_file():
        pytest.skip(f"no real articles in {folder}: set TRAINYARD_TEST_DATA to the folder that holds ag_news/")
    return folder


def test_real_articles(minilm: Path) -> None:
    from colossal_bert_agnews.model import get_tokenizer

    config = TrainConfig(data="real", data_dir=real_folder(), num_val=250, model=str(minilm))
    dataset = data.load(config)
    # Of the 5,000, one is in the test set but for a space.
    assert (len(dataset.train_texts), len(dataset.test_texts)) == (4_999, 7_600)
    assert np.bincount(dataset.test_labels).tolist() == [1_900] * 4
    train, _ = data.split(dataset, config)
    articles = data.encode(dataset.train_texts[train], get_tokenizer(config, ()), config)
    assert len(articles) == 4_749
    assert 45 < articles.lengths.float().mean() < 65
    cleaned = data.load(dataclasses.replace(config, clean=True))
    assert not any("\\" in text for text in cleaned.train_texts)
