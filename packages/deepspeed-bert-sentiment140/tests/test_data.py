"""Splits by user, duplicates, the cache and how it goes on after a kill, and what may be wrong with a file."""

import dataclasses
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed_bert_sentiment140 import data
from deepspeed_bert_sentiment140.cleaning import Cleaner
from deepspeed_bert_sentiment140.config import TrainConfig
from deepspeed_bert_sentiment140.data import CONTRADICTED, COPY, IN_OTHER_SPLIT, KEPT, OF_TEST_USER, TEST, TRAIN, VAL
from deepspeed_bert_sentiment140.model import train_tokenizer
from trainyard_shared.datasets import sentiment140
from trainyard_shared.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (data, sentiment140):
        monkeypatch.setattr(module, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "sentiment140" / "tokens"


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    folder = sentiment140.make_sample(tmp_path / "tweets", seed=1, num_train=600, num_test=60)
    return TrainConfig(data="real", data_dir=folder, chunk_rows=100)


def load(config: TrainConfig) -> data.Tweets:
    return data.load(data.find(config), tokenizer(config), config)


def tokenizer(config: TrainConfig) -> Any:
    return train_tokenizer(data.training_texts(data.find(config), config), config)


def rows(tmp_path: Path, *found: tuple[int, str, str]) -> TrainConfig:
    """A file of tweets, with enough others of other users for all splits."""
    lines = [f'"{polarity}","1","d","q","{user}","{text}"\n' for polarity, user, text in found]
    lines += [f'"{4 * (i % 2)}","1","d","q","user{i}","text number {i}"\n' for i in range(200)]
    (tmp_path / "training.1.csv").write_text("".join(lines), encoding="latin-1")
    return TrainConfig(data="real", data_dir=tmp_path, chunk_rows=30)


class TestSplits:
    def test_every_tweet_is_in_one_split_and_no_user_in_two(self, config):
        tweets = load(config)
        users = {}
        for chunk in sentiment140.read_chunks(tweets.files.train):
            users |= zip(chunk.offsets.tolist(), chunk.users, strict=True)
        found = [{users[tweets.where[1][i]].lower() for i in index.tolist()} for index in tweets.index]
        assert all(found)
        assert sum(map(len, found)) == len(set.union(*found))
        assert tweets.report["users_in_two_splits"] == 0
        kept = sum(map(len, tweets.index))
        assert kept + sum(tweets.report["dropped"].values()) == 600 == tweets.report["rows"]
        assert 0.03 < len(tweets.index[TEST]) / kept < 0.2

    def test_texts_labels_and_ids_belong_together(self, config):
        tweets = load(config)
        names, tok = Counter(), tokenizer(config)
        for index in tweets.index:
            for i, text in zip(index.tolist(), tweets.texts(index), strict=True):
                names[tweets.class_names[tweets.labels[i]]] += 1
                ids, _ = tweets.sequences.padded(torch.tensor([i]), 0, torch.device("cpu"))
                wanted = tok(Cleaner(config.cleaning)(text), truncation=True, max_length=config.max_length)["input_ids"]
                assert ids[0].tolist() == wanted
        assert set(names) == {"negative", "positive"}
        first = tweets.texts(tweets.index[TRAIN][:1])[0]
        (chunk, *_) = sentiment140.read_chunks(tweets.files.train)
        assert first in chunk.texts

    def test_official_test_set(self, config):
        tweets = load(dataclasses.replace(config, test_set="official"))
        assert len(tweets.index[TEST]) <= 42, "60 tweets of which three tenths are neutral"
        assert tweets.report["dropped"]["neutral, left out with 2 classes"] == 18
        assert tweets.report["users_in_two_splits"] == 0
        assert set(tweets.where[0][tweets.index[TEST].numpy()]) == {1}
        (chunk,) = sentiment140.read_chunks(tweets.files.test)
        assert set(tweets.texts(tweets.index[TEST])) <= set(chunk.texts)

    def test_three_classes(self, tmp_path):
        config = TrainConfig(num_classes=3, num_sample_tweets=600, test_set="official")
        tweets = load(config)
        assert tweets.class_names == ("negative", "neutral", "positive")
        assert np.unique(tweets.labels[tweets.index[TRAIN]]).tolist() == [0, 1, 2]

    def test_neutral_tweets_that_are_not_there(self, config):
        with pytest.raises(DataError, match=r"training\.600.*csv: no neutral tweets to train"):
            load(dataclasses.replace(config, num_classes=3))

    def test_limits_take_a_fair_sample(self, config):
        tweets = load(dataclasses.replace(config, num_train=100, num_test=20))
        assert [len(tweets.index[split]) for split in (TRAIN, TEST)] == [100, 20]
        # The file is sorted by class.
        assert 0.3 < tweets.labels[tweets.index[TRAIN]].float().mean() < 0.7
        with pytest.raises(UsageError, match="num_train: 5000 is not allowed: there are"):
            load(dataclasses.replace(config, num_train=5000))


class TestDuplicates:
    def decide(self, *found: tuple[int, int, int, int]) -> list[int]:
        splits, labels, texts, users = (np.array(column) for column in zip(*found, strict=True))
        lost = np.zeros(len(found), np.int8)
        return data.decide(
            splits.astype(np.int8), labels, texts.astype(np.uint64), users.astype(np.uint64), lost
        ).tolist()

    def test_what_happens_to_equal_texts(self):
        # split, label, text, user
        assert self.decide(
            (TRAIN, 0, 1, 1),  # the first of two
            (TRAIN, 0, 1, 2),
            (TRAIN, 0, 2, 1),  # also in validation
            (VAL, 0, 2, 3),
            (VAL, 1, 3, 3),  # also in the test set
            (TEST, 1, 3, 4),
            (TEST, 1, 3, 5),
            (TRAIN, 0, 4, 1),  # of both classes
            (TRAIN, 1, 4, 2),
            (TEST, 0, 5, 4),  # of both classes, held out
            (TEST, 1, 5, 5),
            (TRAIN, 1, 6, 4),  # a user of the test set
            (TRAIN, 1, 7, 1),
        ) == [
            KEPT, COPY, IN_OTHER_SPLIT, KEPT, IN_OTHER_SPLIT, KEPT, COPY, CONTRADICTED, COPY, KEPT, COPY, OF_TEST_USER,
            KEPT,
        ]  # fmt: skip

    def test_equal_means_after_cleaning_and_without_capitals(self, tmp_path):
        config = rows(
            tmp_path, (0, "a", "@Joe so SAD"), (0, "a", "@ann so sad"), (0, "a", "http://x"), (4, "a", "http://y")
        )
        dropped = load(config).report["dropped"]
        assert dropped["same text as an earlier tweet"] == 2
        assert dropped["same text in several classes"] == 1

    def test_tweets_of_which_nothing_is_left(self, tmp_path):
        assert load(rows(tmp_path, (0, "a", "   "), (0, "b", ""))).report["dropped"]["nothing left after cleaning"] == 2


class TestCache:
    def test_it_is_made_once_and_again_for_other_settings_or_content(self, config, cache):
        tok = tokenizer(config)
        files = data.find(config)
        first = data.prepare(files, tok, config)
        assert data.prepare(files, tok, dataclasses.replace(config, learning_rate=1.0, num_train=50)) == first
        others = {
            data.prepare(files, tok, dataclasses.replace(config, **change))
            for change in ({"cleaning": ("users",)}, {"max_length": 16}, {"test_share": 0.2}, {"chunk_rows": 70})
        }
        other_words = train_tokenizer(["some other words"], config)
        others.add(data.prepare(files, other_words, config))
        with files.train.open("a") as file:
            file.write('"4","1","d","q","u","one more"\n')
        others.add(data.prepare(files, tok, config))
        assert len(others - {first}) == 6

    @pytest.mark.parametrize("chunk_rows", [1, 70, 599, 600, 10_000])
    def test_size_of_chunks_changes_nothing(self, config, chunk_rows):
        one, other = load(config), load(dataclasses.replace(config, chunk_rows=chunk_rows))
        assert torch.equal(one.sequences.ids, other.sequences.ids)
        assert all(torch.equal(a, b) for a, b in zip(one.index, other.index, strict=True))
        assert one.report["cleaning"]["num_tweets"] == other.report["cleaning"]["num_tweets"] == 600

    def test_it_goes_on_with_the_chunk_at_which_a_process_was_killed(self, config, cache, monkeypatch, capfd):
        tok, files = tokenizer(config), data.find(config)
        made = data._arrays_of
        child = os.fork()
        if not child:
            calls = []

            def killed_at_the_fourth(*arguments: Any) -> Any:
                calls.append(1)
                if len(calls) == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return made(*arguments)

            data._arrays_of = killed_at_the_fourth
            data.prepare(files, tok, config)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        (folder,) = cache.glob("*/chunks")
        assert len(list(folder.glob("*.npz"))) == 3
        again: list[int] = []
        monkeypatch.setattr(
            data, "_arrays_of", lambda chunk, *rest: again.append(len(chunk.texts)) or made(chunk, *rest)
        )
        resumed = data.load(files, tok, config)
        assert again == [100, 100, 100]
        assert "went on after 3 of 6 chunks" in capfd.readouterr().err
        assert not folder.exists(), "chunks are removed once they are joined"
        monkeypatch.setattr(data, "cache_dir", lambda: cache / "other")
        whole = data.load(files, tok, config)
        assert torch.equal(resumed.sequences.ids, whole.sequences.ids)
        assert all(torch.equal(a, b) for a, b in zip(resumed.index, whole.index, strict=True))
        assert resumed.report == whole.report

    def test_arrays_are_mapped_not_read(self, config):
        tweets = load(config)
        assert isinstance(tweets.where[1].base, np.memmap) or isinstance(tweets.where[1], np.memmap)


class TestBadInput:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ('"0","1","d","q","u"\n', "training.1.csv, line 203: 5 fields, expected 6"),
            ('"1","1","d","q","u","t"\n', "training.1.csv, line 203: polarity is '1', expected 0, 2 or 4"),
        ],
    )
    def test_file_and_line_are_named_and_nothing_half_made_is_taken(self, tmp_path, cache, line, words):
        config = rows(tmp_path, (0, "a", "x"), (0, "a", "y"))
        with (tmp_path / "training.1.csv").open("a") as file:
            file.write(line)
        tok = train_tokenizer(["text number"], config)
        for _ in range(2):  # the second time it goes on with the chunks before
            with pytest.raises(DataError) as caught:
                data.load(data.find(config), tok, config)
            assert words in str(caught.value)
        assert not list(cache.glob("*/report.json"))

    def test_official_test_set_that_is_not_there(self, tmp_path):
        config = rows(tmp_path)
        with pytest.raises(DataError, match="--test-set official: there is none beside"):
            data.find(dataclasses.replace(config, test_set="official"))


def test_oversampling_fills_up_the_smaller_classes() -> None:
    labels = torch.tensor([0] * 10 + [1] * 3 + [2] * 4)
    index = data.oversampled(torch.arange(17), labels, 0)
    assert torch.bincount(labels[index]).tolist() == [10, 10, 10]
    counts = torch.bincount(index)
    assert counts[:10].tolist() == [1] * 10
    assert sorted(counts[10:13].tolist()) == [3, 3, 4]
    assert torch.equal(index, data.oversampled(torch.arange(17), labels, 0))


def test_real_tweets(minilm: Path) -> None:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[4] / "shared" / "data"
    if not (folder / "sentiment140").is_dir():
        pytest.skip(f"no real tweets in {folder}: set TRAINYARD_TEST_DATA to the folder that holds sentiment140/")
    from deepspeed_bert_sentiment140.model import get_tokenizer

    config = TrainConfig(data="real", data_dir=folder / "sentiment140", model=str(minilm))
    files = data.find(config)
    tweets = data.load(files, get_tokenizer(config, ()), config)
    assert [len(index) for index in tweets.index] == [16_870, 978, 1941]
    assert tweets.report["users_in_two_splits"] == 0
    assert tweets.report["dropped"] == {
        "same text as a tweet held out for validation or test": 85,
        "same text as an earlier tweet": 121,
        "same text in several classes": 5,
    }
    assert tweets.report["cleaning"]["rules"]["users"]["tweets"] == 8906
    assert 20 < tweets.sequences.lengths.float().mean() < 21
