"""Bits per byte, by hand and by the windows; baselines; the exported model gives the same logits."""

import lzma
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed_gpt2_pile import data, evaluate, model
from deepspeed_gpt2_pile.config import TrainConfig
from deepspeed_gpt2_pile.export import weights_in
from safetensors.torch import load_file
from trainyard_shared.datasets import pile
from trainyard_shared.errors import DataError
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script
from transformers import AutoModelForCausalLM, AutoTokenizer

CPU = torch.device("cpu")
TEXTS = [("short", "A"), ("", "A"), ("é" * 30 + "!", "B"), ("a longer document that needs several windows, " * 3, "A")]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    path = tmp_path / "test.jsonl.zst"
    pile.write_documents(path, iter(TEXTS))
    return [path]


def small(tokenizer: object, **fields: object) -> tuple:
    torch.manual_seed(2)
    config = TrainConfig(hidden_size=32, num_layers=2, num_heads=2, context_length=16, **fields)
    settings = model.settings_of(config, tokenizer.get_vocab_size(), data.end_of_text(tokenizer))
    gpt2 = model.from_scratch(settings)
    with torch.no_grad():
        for p in gpt2.parameters():
            p.add_(0.1 * torch.randn_like(p))  # so that context matters
    return gpt2, config


@torch.inference_mode()
def nats_by_hand(gpt2: torch.nn.Module, tokens: list[int], length: int, stride: int) -> float:
    """One forward pass for each token."""
    total = 0.0
    for at in range(1, len(tokens)):
        # The window in which this token counts: the first holds `length` targets, then it moves by `stride`.
        end = length if at <= length else length + math.ceil((at - length) / stride) * stride
        begin = max(min(end + 1, len(tokens)) - length - 1, 0)
        logits = gpt2(input_ids=torch.tensor([tokens[begin:at]])).logits[0, -1].double()
        total -= torch.log_softmax(logits, 0)[tokens[at]].item()
    return total


@pytest.mark.parametrize("stride", [16, 8, 3])
def test_bits_per_byte_are_those_of_one_pass_for_each_token(files: list[Path], stride: int) -> None:
    tokenizer = data.byte_tokenizer()
    gpt2, config = small(tokenizer, eval_stride=stride, eval_batch_size=4)
    found = evaluate.measure(gpt2, tokenizer, files, None, config, CPU)
    assert found.component == ["A", "B", "A"], "an empty document has no byte"
    assert found.bytes.tolist() == [5, 61, len(TEXTS[3][0])]
    end = data.end_of_text(tokenizer)
    wanted = [nats_by_hand(gpt2.eval(), [end, *tokenizer.encode(text).ids], 16, stride) for text, _ in TEXTS if text]
    assert found.nats == pytest.approx(wanted, rel=1e-5)
    assert found.bits_per_byte() == pytest.approx(sum(wanted) / math.log(2) / found.bytes.sum(), rel=1e-5)
    of_a = found.of("A")
    assert of_a.bits_per_byte() == pytest.approx((wanted[0] + wanted[2]) / math.log(2) / of_a.bytes.sum(), rel=1e-5)
    low, high = found.interval()
    assert low <= found.bits_per_byte() <= high


def test_more_context_is_better_where_there_is_something_to_learn(trained: Path) -> None:
    config = evaluate.trained_config(trained)
    gpt2, tokenizer = model.load_trained(trained / "model"), data.load_tokenizer(str(trained / "model"))
    test = data.load(config).test

    def bits(**fields: object) -> float:
        import dataclasses

        changed = dataclasses.replace(config, **fields)
        return evaluate.measure(gpt2, tokenizer, test, 12, changed, CPU).bits_per_byte()

    assert bits() < 8, "better than not to know anything"
    assert bits() == pytest.approx(
        read_json(trained / "summary.json")["metrics"]["test_bits_per_byte"]["value"], rel=1e-5
    )
    assert bits(eval_batch_size=1) == pytest.approx(bits(), rel=1e-6)


def test_a_uniform_model_takes_the_logarithm_of_the_vocabulary(files: list[Path]) -> None:
    tokenizer = data.byte_tokenizer()
    gpt2, config = small(tokenizer)
    with torch.no_grad():
        gpt2.get_input_embeddings().weight.zero_()  # tied to the head: all logits are 0
    found = evaluate.measure(gpt2, tokenizer, files, None, config, CPU)
    assert found.bits_per_byte() == pytest.approx(math.log2(257), rel=1e-6), "one byte a token"
    assert found.perplexity() == pytest.approx(257, rel=1e-5)


def test_baselines_are_what_they_say(tmp_path: Path, files: list[Path]) -> None:
    for split in ("train", "val"):
        pile.write_documents(tmp_path / f"{split}.jsonl.zst", iter([("aab", "A")]))
    tokenizer = data.byte_tokenizer()
    pile.write_documents(files[0], iter([("aaab", "A")]))
    found = pile.find_pile(tmp_path)
    frequencies = evaluate.frequency_bits_per_byte(found, tokenizer, TrainConfig())["A"]
    # Seen: a twice, b once, and one of each of 257 tokens.
    a, b = 3 / 260, 2 / 260
    assert frequencies["unigram"] == pytest.approx(-(3 * math.log2(a) + math.log2(b)) / 4)
    # The end was followed by a, its only follower; a by a and b, two kinds in two times: halves.
    steps = [(1 + a) / 2, (1 + 2 * a) / 4, (1 + 2 * a) / 4, (1 + 2 * b) / 4]
    assert frequencies["bigram"] == pytest.approx(-sum(map(math.log2, steps)) / 4)
    anchors = evaluate.compressed_bits_per_byte(found.test, None)["A"]
    assert anchors["xz"] == 8 * len(lzma.compress(b"aaab", preset=9 | lzma.PRESET_EXTREME)) / 4


def test_an_exported_checkpoint_gives_the_logits_of_the_run(trained: Path, tmp_path: Path) -> None:
    done = run([script("export"), "--run", str(trained), "--to", str(tmp_path / "hf")], tmp_path)
    assert done.status == 0, done.stderr
    one, other = (AutoModelForCausalLM.from_pretrained(path) for path in (trained / "model", tmp_path / "hf"))
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")("def add_item(x", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.equal(one(ids).logits, other(ids).logits)
    newest = sorted((trained / "checkpoints").glob("step-*"))[-1]
    whole, best = weights_in(newest), load_file(newest / "best.safetensors")
    assert all(np.array_equal(whole[name], tensor) for name, tensor in best.items()), "put together from both shares"
    again = run([script("export"), "--run", str(trained), "--to", str(tmp_path / "hf")], tmp_path)
    assert again.status == 2
    assert "exists already" in again.stderr
    none = run([script("export"), "--run", str(trained), "--step", "7", "--to", str(tmp_path / "new")], tmp_path)
    assert none.status == 1
    assert "--step 7" in none.stderr
    assert "has checkpoints of the steps 12" in none.stderr


def test_wrong_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = TrainConfig(model=str(tmp_path / "model"), tokenizer="bytes")
    with pytest.raises(DataError, match=r"the folder has no config\.json"):
        model.settings_of(config, 257, 256)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="a model of type bert, where a gpt2 is wanted"):
        model.settings_of(config, 257, 256)
    unknown = run([script("train"), "--nproc", "1", "--model", "no-such-gpt"], tmp_path, TRAINYARD_OFFLINE="1")
    assert unknown.status == 1
    assert "no-such-gpt: no folder of this name, and not to be had" in unknown.stderr
    assert not list((tmp_path / "results" / "deepspeed-gpt2-pile").iterdir())
