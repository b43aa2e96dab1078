"""From text to blocks and back: what is predicted, how often, and by which split."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fairscale_gpt2_accumulation import data
from fairscale_gpt2_accumulation.config import TrainConfig
from fairscale_gpt2_accumulation.model import IGNORED
from fairscale_gpt2_accumulation.tokenization import END_OF_TEXT, load_tokenizer, make_tokenizer
from trainyard_shared.datasets.wikitext import TextDataset, articles, load_sample, num_words
from trainyard_shared.errors import DataError, UsageError

CPU = torch.device("cpu")
TEXT = load_sample(0, 20).texts["train"]


def config(**fields: Any) -> TrainConfig:
    return TrainConfig(num_sample_articles=20, context_length=16, num_prompts=0, **fields)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(TEXT, 400)


def test_the_made_tokenizer_gives_every_text_back_and_is_always_the_same(tokenizer: Any, tmp_path: Path) -> None:
    for text in (TEXT, " \n = Ünknown @-@ wörds \t = \n", "Ж水🙂"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= 400
    assert tokenizer(" the")["input_ids"] == [tokenizer.convert_tokens_to_ids("Ġthe")], "frequent words are whole"
    assert make_tokenizer(TEXT, 400).get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


def test_openais_tokenizer_from_its_own_files(gpt2_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(gpt2_tokenizer)
    assert len(tokenizer) == 50_257
    assert tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.eos_token_id == 50_256
    # As published with the model: "Hello world" is two tokens.
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]
    assert tokenizer.decode(tokenizer(" \n = Title = \n")["input_ids"]) == " \n = Title = \n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt"),
        ({"vocab.json": "{}"}, "holds no tokenizer"),
        ({"vocab.json": "{", "merges.txt": ""}, "its files cannot be read"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "#version: 0.2\n"}, "it is not GPT-2's"),
    ],
)
def test_a_folder_without_a_tokenizer(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        load_tokenizer(tmp_path)
    assert words in str(error.value)


@pytest.mark.parametrize("packing", ["article", "stream"])
def test_blocks_predict_every_token_once(tokenizer: Any, packing: str) -> None:
    blocks = data.blocks(tokenizer, TEXT, config(packing=packing))
    ids = blocks.ids.split(blocks.lengths.tolist())
    predicted = [block[1:].tolist() for block in ids]
    pieces = articles(TEXT) if packing == "article" else [TEXT]
    wanted = [tokenizer(piece)["input_ids"] for piece in pieces]
    assert [token for block in predicted for token in block] == [token for piece in wanted for token in piece]
    assert int(blocks.lengths.max()) == 17
    starts = [block[0].item() for block in ids]
    assert starts.count(tokenizer.bos_token_id) == len(pieces)
    short = int((blocks.lengths < 17).sum())
    assert 0 < short <= len(pieces)


def test_a_micro_batch_ignores_what_fills_it_up(tokenizer: Any) -> None:
    blocks = data.blocks(tokenizer, TEXT, config())
    short, full = int(blocks.lengths.argmin()), int(blocks.lengths.argmax())
    inputs, targets = data.micro_batch(blocks, torch.tensor([short, full]), 0, CPU)
    assert inputs.shape == targets.shape == (2, 16)
    assert (targets != IGNORED).sum(dim=1).tolist() == (blocks.lengths[[short, full]] - 1).tolist()
    assert torch.equal(inputs[1, 1:], targets[1, :-1])


@pytest.mark.parametrize(("micro", "steps", "world_size"), [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_a_step_has_the_same_blocks_however_it_is_shared(
    tokenizer: Any, micro: int, steps: int, world_size: int
) -> None:
    blocks = data.blocks(tokenizer, TEXT, config())
    alone = data.Order(blocks, config(micro_batch_size=8, gradient_accumulation_steps=1), 0, 1)
    shared = [
        data.Order(blocks, config(micro_batch_size=micro, gradient_accumulation_steps=steps), rank, world_size)
        for rank in range(world_size)
    ]
    seen = []
    for number, step in enumerate(alone.steps(1, 0)):
        mine = [list(order.batches.share(order.steps(1, 0)[number])) for order in shared]
        assert len({len(micro_batches) for micro_batches in mine}) == 1, "all keep step"
        taken = [i for micro_batches in mine for index, weight in micro_batches if weight for i in index.tolist()]
        assert sorted(taken) == sorted(step.tolist())
        assert alone.num_tokens(step) == sum(int(blocks.lengths[i]) - 1 for i in taken)
        seen += taken
    assert sorted(seen) == list(range(len(blocks))), "an epoch has every block once"


def test_adascale_leaves_out_what_fills_no_step(tokenizer: Any) -> None:
    blocks = data.blocks(tokenizer, TEXT, config())
    order = data.Order(blocks, config(adascale=True, sharding="ddp"), 0, 1)
    assert len(blocks) % 16
    assert {len(step) for step in order.steps(0, 0)} == {16}
    assert len(order.steps(0, 0)) == len(blocks) // 16
    assert len(order.steps(0, 32)) == len(blocks) // 16 - 2


def test_more_blocks_in_a_step_than_there_are(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="9999 x 4 x 1 = 39996 blocks, but there are only"):
        data.Order(data.blocks(tokenizer, TEXT, config()), config(micro_batch_size=9999), 0, 1)


def test_articles_are_held_out_whole() -> None:
    dataset = TextDataset("wikitext-2", "real", "test", {"valid": TEXT, "test": "unseen"}, ())
    texts = data.split(dataset, config(train_on="valid", num_val_articles=5))
    train, val = articles(texts.train), articles(texts.val)
    assert len(val) == 5
    assert sorted(train + val) == sorted(articles(TEXT))
    assert not set(train) & set(val)
    assert texts.test == "unseen"
    assert data.split(dataset, config(train_on="valid", num_val_articles=5, seed=3)) == texts, "whatever the seed"
    with pytest.raises(UsageError, match="num_val_articles: 20 is not allowed: the valid text has 20 articles"):
        data.split(dataset, config(train_on="valid", num_val_articles=20))


def test_detokenized_text_reads_as_it_was_written() -> None:
    published = (
        " \n = Robert Boulter = \n \n He had a guest @-@ starring role in 1 @,@ 000 films ( 2 @.@ 5 each ) , and he did"
        " like it . \" Yes , \" he said . \n = = Later life = = \n He 's well ; his friends ' too . \n"
    )
    text = data.detokenized(published)
    assert "guest-starring role in 1,000 films (2.5 each), and" in text
    assert '"Yes," he said.\n' in text
    assert "\n= Robert Boulter =\n" in text
    assert "\n== Later life ==\n" in text
    assert "He's well; his friends' too." in text
    assert "@" not in text
    assert text.count("\n") == published.count("\n"), "lines stay lines: words are counted in the published text"


def test_the_real_texts(wikitext: Path, gpt2_tokenizer: Path) -> None:
    real = config(data="real", data_dir=wikitext, form="word", train_on="valid", tokenizer=gpt2_tokenizer)
    dataset = data.load(real)
    assert dataset.kind == "real"
    assert num_words(dataset.texts["valid"]) == 217_646, "as published, with an end-of-line token for each line"
    assert num_words(dataset.texts["test"]) == 245_569
    texts = data.split(dataset, real)
    assert num_words(texts.train) + num_words(texts.val) == 217_646
    assert len(articles(texts.val)) == 6
    assert not set(articles(texts.train)) & set(articles(texts.test))
    tokenizer = load_tokenizer(gpt2_tokenizer)
    tokens = data.encode(tokenizer, texts.val, detokenize=False)
    assert tokenizer.decode(tokens) == texts.val
    assert len(data.encode(tokenizer, texts.val, detokenize=True)) < len(tokens)
