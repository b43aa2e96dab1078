"""Models by name or folder, what may be wrong with them, the filled up vocabulary, imports, and the baseline."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from colossal_bert_agnews.baseline import fit_and_test
from colossal_bert_agnews.config import TrainConfig
from colossal_bert_agnews.layout import Layout
from colossal_bert_agnews.model import build, fill_up_vocabulary, get_settings, get_tokenizer, load_trained
from colossal_bert_agnews.train import article_losses, optimizer_groups, schedule
from trainyard_shared.errors import DataError, UsageError

NAMES = ("World", "Sports", "Business", "Sci/Tech")
TEXTS = ["the team won the match", "the oil company said", "a new browser"]


def made(**fields: Any) -> tuple[Any, Any, list[str]]:
    config = TrainConfig(**fields)
    tokenizer = get_tokenizer(config, TEXTS)
    model, notes = build(config, get_settings(config, NAMES), tokenizer)
    return model.eval(), tokenizer, notes


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)).logits


def test_tiny_is_a_bert_as_the_config_says() -> None:
    model, tokenizer, _ = made(hidden_size=32, num_layers=3, num_heads=2, dropout=0.3)
    assert type(model) is transformers.BertForSequenceClassification
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 3, 2)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.3
    assert config.vocab_size == len(tokenizer)
    assert config.id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize("tp", [1, 2, 3, 8])
def test_filled_up_vocabulary_changes_nothing(tp: int) -> None:
    model, tokenizer, _ = made()
    before, state = logits(model, tokenizer), torch.get_rng_state()
    fill_up_vocabulary(model, Layout(1, 1, tp))
    words = model.get_input_embeddings().num_embeddings
    assert words % (64 * tp) == 0
    assert words == (512 if tp != 3 else 1536), "the same for 1, 2, 4 and 8: checkpoints of all fit each other"
    assert torch.equal(logits(model, tokenizer), before)
    assert torch.equal(torch.get_rng_state(), state), "the same random numbers follow in every layout"


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_other_kinds_from_a_folder(kind: str, tmp_path: Path) -> None:
    _, tokenizer, _ = made()
    small = {"roberta": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
             "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}}[kind]  # fmt: skip
    settings = transformers.AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), max_position_embeddings=160, pad_token_id=tokenizer.pad_token_id, **small
    )
    transformers.AutoModel.from_config(settings).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, again, notes = made(model=str(tmp_path), dropout=0.0)
    assert model.config.model_type == kind
    assert model.config.num_labels == 4
    assert "new weights on top of the pretrained ones: " in notes[0]
    fill_up_vocabulary(model, Layout(2, 1, 1))
    assert model.get_input_embeddings().num_embeddings == len(again), "only what is cut up needs to be filled up"
    assert logits(model, again).shape == (3, 4)


def test_minilm(minilm: Path) -> None:
    model, tokenizer, notes = made(model=str(minilm))
    assert sum(p.numel() for p in model.parameters()) > 22_000_000
    assert notes == ["new weights on top of the pretrained ones: classifier.bias, classifier.weight"]
    assert tokenizer.tokenize("The oil company") == ["the", "oil", "company"]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: None, "the folder has no config.json: it holds no model of transformers"),
        (lambda folder: (folder / "config.json").write_text("{"), "no config to be had in this folder"),
        (
            lambda folder: transformers.GPT2Config().save_pretrained(folder),
            "a model of type gpt2; BERT, RoBERTa or DistilBERT is wanted",
        ),
    ],
)
def test_folders_that_hold_no_such_model(prepare: Any, words: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(DataError) as caught:
        get_settings(TrainConfig(model=str(tmp_path)), NAMES)
    assert words in str(caught.value)


def test_model_without_weights_or_words(tmp_path: Path) -> None:
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    config = TrainConfig(model=str(tmp_path))
    with pytest.raises(DataError, match="no tokenizer to be had in this folder"):
        get_tokenizer(config, ())
    with pytest.raises(DataError, match="no weights to be had in this folder"):
        build(config, get_settings(config, NAMES), None)
    with pytest.raises(DataError, match="cannot be read as a model of transformers"):
        load_trained(tmp_path)


def test_longer_than_the_model_takes(minilm: Path) -> None:
    with pytest.raises(UsageError, match=r"max_length: 600 is not allowed: .* takes 512 tokens"):
        get_tokenizer(TrainConfig(model=str(minilm), max_length=600), ())


def test_ignored_articles_have_no_loss() -> None:
    outputs = torch.randn(3, 4)
    losses = article_losses(outputs, torch.tensor([1, -100, 2]), TrainConfig(label_smoothing=0.1))
    assert losses[1] == 0
    assert (losses[[0, 2]] > 0).all()


def test_matrices_decay_and_biases_do_not() -> None:
    model, *_ = made()
    matrices, others = optimizer_groups(model, 0.01)
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert len(matrices["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_schedule_rises_and_falls() -> None:
    assert schedule(0.0, 0.1) == 0.01
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == pytest.approx(1.0)
    assert schedule(0.55, 0.1) == pytest.approx(0.5)
    assert schedule(0.5, 0.0) == 0.5


def test_training_and_evaluation_import_no_compiler() -> None:
    code = (
        "import sys, torch; from colossal_bert_agnews import train\n"
        "train.start_colossalai(torch.device('cpu'), 0)\n"
        "from colossalai.booster.plugin import HybridParallelPlugin\n"
        "torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).step()\n"
        "found = {'sympy', 'torch._inductor.compile_fx', 'torch._dynamo.convert_frame'} & set(sys.modules)\n"
        "assert not found, found\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)) == 2, 'who compiles gets the compiler'\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **world}, timeout=120,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stdout, "it says nothing at its start"


def test_baseline_learns_words() -> None:
    texts = ["team match goal", "oil stock bank", "troops vote war", "web chip software"] * 10
    found = fit_and_test(texts, np.arange(40) % 4, texts[:8], np.arange(8) % 4)
    assert found["accuracy"] == 1.0
    assert "the same 40 articles" in found["protocol"]
