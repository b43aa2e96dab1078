"""From reviews to ids: the right ones, cut where they should be."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torchdist_imdb import data
from torchdist_imdb.config import TrainConfig
from torchdist_imdb.model import train_tokenizer
from trainyard_shared.errors import UsageError

TEXTS = ["one two three four five six seven eight nine ten eleven twelve<br /><br />END", "Good &amp; short."]


def encoded(texts: list[str], **fields: Any) -> tuple[list[list[str]], list[int]]:
    """Tokens of each text, and how many were cut out."""
    config = TrainConfig(**{"max_length": 10, **fields})
    tokenizer = train_tokenizer(TEXTS, config)
    reviews, cut = data.Encoder(tokenizer, config)(texts)
    ends = reviews.lengths.cumsum(0).tolist()
    return [
        tokenizer.convert_ids_to_tokens(reviews.ids[end - n : end].tolist())
        for end, n in zip(ends, reviews.lengths.tolist(), strict=True)
    ], cut.tolist()


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [
        ("head", "one two three four five six seven eight"),
        ("tail", "six seven eight nine ten eleven twelve end"),
        ("head_tail", "one two eight nine ten eleven twelve end"),
    ],
)
def test_long_reviews_are_cut_where_asked(truncation: str, kept: str) -> None:
    tokens, cut = encoded(TEXTS, truncation=truncation)
    assert tokens[0] == ["[CLS]", *kept.split(), "[SEP]"]
    assert tokens[1] == ["[CLS]", "good", "&", "short", ".", "[SEP]"], "shorter ones are whole"
    assert cut == [5, 0]


def test_markup_is_no_word() -> None:
    (tokens,), _ = encoded(TEXTS[:1], max_length=20)
    assert "br" not in tokens
    assert tokens[-3:] == ["twelve", "end", "[SEP]"]


def test_empty_and_unknown_texts() -> None:
    tokens, cut = encoded(["", "<br />", "日本"])
    assert tokens == [["[CLS]", "[SEP]"], ["[CLS]", "[SEP]"], ["[CLS]", "[UNK]", "[UNK]", "[SEP]"]]
    assert cut == [0, 0, 0]


def test_many_texts_are_encoded_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(TEXTS * 4)
    monkeypatch.setattr(data, "CHUNK", 3)
    assert encoded(TEXTS * 4) == whole


def test_words_beyond_the_vocabulary_fall_into_letters() -> None:
    config = TrainConfig(vocab_size=200, max_length=16)
    common = [f"common {'word ' * 3}"] * 2
    tokenizer = train_tokenizer([*common, "rare"], config)
    assert tokenizer.tokenize("common words") == ["common", "w", "##o", "##r", "##d", "##s"] or tokenizer.tokenize(
        "words"
    ) == ["[UNK]"]
    assert tokenizer.tokenize("Word dare") == ["word", "d", "##a", "##r", "##e"]


def test_same_texts_give_the_same_tokenizer() -> None:
    dataset = data.load(TrainConfig(num_sample_reviews=100))
    first, second = (train_tokenizer(dataset.train_texts, TrainConfig()).get_vocab() for _ in range(2))
    assert first == second


def test_split_takes_validation_from_training_only() -> None:
    dataset = data.load(TrainConfig(num_sample_reviews=100))
    train, val = data.split(dataset, TrainConfig(num_val=30, num_train=50))
    positions = list(range(100))
    assert positions[val] == list(range(30))
    assert positions[train] == list(range(30, 80))
    train, _ = data.split(dataset, TrainConfig(num_val=30))
    assert positions[train] == list(range(30, len(dataset.train_texts)))
    texts = set(dataset.train_texts[train])
    assert not texts & set(dataset.train_texts[val])
    assert not texts & set(dataset.test_texts)


def test_more_reviews_than_there_are() -> None:
    dataset = data.load(TrainConfig(num_sample_reviews=100))
    total = len(dataset.train_texts)
    with pytest.raises(UsageError, match=f"num_val: {total} is not allowed: there are {total} training reviews"):
        data.split(dataset, TrainConfig(num_val=total))
    with pytest.raises(UsageError, match=f"num_train: {total} is not allowed: of {total} training reviews, 10 are"):
        data.split(dataset, TrainConfig(num_val=10, num_train=total))


def test_real_reviews() -> None:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    folder = (Path(given) if given else Path(__file__).resolve().parents[4] / "shared" / "data") / "imdb"
    if not (folder / "train.csv.bz2").is_file():
        pytest.skip(f"no real reviews in {folder}: set TRAINYARD_TEST_DATA to the folder that holds imdb/")
    config = TrainConfig(data="real", data_dir=folder, num_val=100, num_train=400)
    dataset = data.load(config)
    assert len(dataset.train_texts) > 24_000
    train, _ = data.split(dataset, config)
    texts = dataset.train_texts[train]
    reviews, cut = data.Encoder(train_tokenizer(texts, config), config)(texts)
    assert len(reviews) == 400
    assert reviews.ids.dtype == torch.int32
    assert int(reviews.lengths.max()) == 256
    assert 0.2 < (cut > 0).float().mean() < 0.7, "many reviews are longer than 256 tokens"
    assert 0.4 < dataset.train_labels[train].mean() < 0.6
