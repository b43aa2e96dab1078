"""Models: what is built, trained and frozen, what comes from a folder, and what is wrong with a folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torchdist_imdb.config import TrainConfig
from torchdist_imdb.model import build, layers_of, load_trained
from torchdist_imdb.train import build_optimizer, schedule
from trainyard_shared.errors import DataError, UsageError
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

NAMES = ("negative", "positive")
TEXTS = ["a good film", "a bad film"]


def built(**fields: Any) -> Any:
    torch.manual_seed(0)
    return build(TrainConfig(**fields), NAMES, TEXTS)


def test_tiny_is_as_large_as_asked() -> None:
    model = built(hidden_size=32, num_layers=3, max_length=64).model
    assert model.config.num_hidden_layers == len(layers_of(model)) - 1 == 3
    assert model.config.hidden_size == 32
    assert model(input_ids=torch.ones(2, 64, dtype=torch.int64)).logits.shape == (2, 2)
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_padding_does_not_change_outputs() -> None:
    model = built().model.eval()
    ids = torch.randint(5, len(built().tokenizer), (1, 20), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.zeros(1, 30, dtype=torch.int64)], dim=1)
    mask = torch.arange(50)[None] < 20
    with torch.no_grad():
        alone, together = model(input_ids=ids).logits, model(input_ids=padded, attention_mask=mask).logits
    assert torch.allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize("dropout", [None, 0.0, 0.3])
def test_dropout_is_everywhere_or_as_the_model_has_it(dropout: float | None) -> None:
    settings = built(dropout=dropout).model.config
    wanted = 0.1 if dropout is None else dropout
    assert settings.attention_dropout == settings.mlp_dropout == settings.embedding_dropout == wanted


@pytest.mark.parametrize(("num_frozen", "trained_layers"), [(0, [0, 1, 2]), (1, [1, 2]), (3, [])])
def test_lowest_layers_are_frozen(num_frozen: int, trained_layers: list[int]) -> None:
    model = built(num_frozen_layers=num_frozen).model
    found = [i for i, layer in enumerate(layers_of(model)) if any(p.requires_grad for p in layer.parameters())]
    assert found == trained_layers
    assert model.classifier.weight.requires_grad


def test_lower_layers_learn_more_slowly_and_only_matrices_decay() -> None:
    config = TrainConfig(num_frozen_layers=1, layer_decay=0.5, learning_rate=0.8, weight_decay=0.1)
    model = build(config, NAMES, TEXTS).model
    optimizer = build_optimizer(model, config)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(of) == sum(p.requires_grad for p in model.parameters())
    embeddings, lower, upper = layers_of(model)
    assert not any(id(p) in of for p in embeddings.parameters())
    for layer, rate in ((lower, 0.2), (upper, 0.4)):
        assert [of[id(p)]["peak_learning_rate"] for p in layer.parameters()] == pytest.approx(
            [rate] * len(list(layer.parameters()))
        )
    assert of[id(model.classifier.weight)]["peak_learning_rate"] == pytest.approx(0.8)
    for parameter in model.parameters():
        if id(parameter) in of:
            assert of[id(parameter)]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


def test_schedule_rises_and_falls() -> None:
    assert schedule(0.0, 0.1) == 0.01
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == pytest.approx(1.0)
    assert schedule(0.55, 0.1) == pytest.approx(0.5)
    assert schedule(1.0, 0.1) == 0.0


# ----------------------------------------------------------------------------------------------------- from a folder


def save(folder: Path, model: Any, tokenizer: Any = None) -> Path:
    model.save_pretrained(folder)
    (built().tokenizer if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder


def small_bert(num_labels: int = 2) -> Any:
    settings = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=num_labels,
    )
    return BertForSequenceClassification(settings)


def test_pretrained_encoder_gets_a_new_head(tmp_path: Path) -> None:
    bert = small_bert()
    folder = save(tmp_path / "encoder", bert.bert)
    model, tokenizer, notes = built(model=str(folder), max_length=64, dropout=0.25)
    assert torch.equal(model.bert.encoder.layer[1].output.dense.weight, bert.bert.encoder.layer[1].output.dense.weight)
    assert notes == ["new weights on top of the pretrained ones: classifier.bias, classifier.weight"]
    assert tokenizer("good")["input_ids"] == built().tokenizer("good")["input_ids"]
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.25
    assert len(layers_of(model)) == 3


def test_head_for_other_classes_is_replaced(tmp_path: Path) -> None:
    model, _, notes = built(model=str(save(tmp_path / "stars", small_bert(num_labels=5))), max_length=64)
    assert model.classifier.weight.shape == (2, 32)
    assert "classifier.weight" in notes[0]


def test_distilbert(tmp_path: Path) -> None:
    settings = DistilBertConfig(
        vocab_size=100, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64
    )
    folder = save(tmp_path / "distil", DistilBertForSequenceClassification(settings))
    model = built(model=str(folder), max_length=64, num_frozen_layers=2).model
    assert [any(p.requires_grad for p in layer.parameters()) for layer in layers_of(model)] == [False, False, True]


def test_real_encoder(minilm: Path) -> None:
    model, tokenizer, notes = built(model=str(minilm), num_frozen_layers=1)
    assert len(layers_of(model)) == 7
    assert sum(p.numel() for p in model.parameters()) == 22_713_986
    assert notes == ["new weights on top of the pretrained ones: classifier.bias, classifier.weight"]
    assert tokenizer.tokenize("unforgettable films") == ["un", "##for", "##get", "##table", "films"]
    with pytest.raises(UsageError, match=r"max_length: 1000 is not allowed: .* takes 512 tokens"):
        built(model=str(minilm), max_length=1000)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder has no config\.json"):
        built(model=str(tmp_path))


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    small_bert().save_pretrained(tmp_path / "bare")
    with pytest.raises(DataError, match=r"--model .*bare: no tokenizer to be had in this folder: no vocabulary found"):
        built(model=str(tmp_path / "bare"))


def test_folder_without_weights(tmp_path: Path) -> None:
    folder = save(tmp_path / "empty", small_bert())
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no weights to be had in this folder"):
        built(model=str(folder), max_length=64)


def test_damaged_weights(tmp_path: Path) -> None:
    folder = save(tmp_path / "damaged", small_bert())
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(DataError, match="no weights to be had in this folder"):
        built(model=str(folder), max_length=64)


def test_weights_of_something_else(tmp_path: Path) -> None:
    folder = save(tmp_path / "other", small_bert())
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 3}))
    with pytest.raises(DataError, match=r"its weights lack 16 tensors of the encoder, such as bert.encoder.layer.2"):
        built(model=str(folder), max_length=64)


def test_model_that_does_not_classify_texts(tmp_path: Path) -> None:
    folder = save(tmp_path / "vision", small_bert())
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(DataError, match="a model of type vit does not classify texts"):
        built(model=str(folder), max_length=64)


def test_name_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_OFFLINE", "1")
    with pytest.raises(DataError, match=r"--model no/such-model: no tokenizer to be had .* --model FOLDER"):
        built(model="no/such-model")


def test_more_layers_frozen_than_there_are() -> None:
    with pytest.raises(UsageError, match="num_frozen_layers: 9 is not allowed: tiny has 3, embeddings included"):
        built(num_frozen_layers=9)


def test_trained_model_that_cannot_be_read(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / "model", tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a model of transformers"):
        load_trained(folder)
