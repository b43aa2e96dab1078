"""Models by name or folder, the layers of a pipeline, the losses, and the baseline."""

from pathlib import Path
from typing import Any

import deepspeed_bert_sentiment140
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from deepspeed_bert_sentiment140.baseline import fit_and_test
from deepspeed_bert_sentiment140.config import TrainConfig
from deepspeed_bert_sentiment140.losses import class_weights, tweet_losses
from deepspeed_bert_sentiment140.model import build, get_tokenizer, layers_of, load_trained, stages, train_tokenizer
from deepspeed_bert_sentiment140.train import complete, optimizer_groups, schedule
from deepspeed_bert_sentiment140.weights import tensor_parallel_sizes
from trainyard_shared import deepspeed_json
from trainyard_shared.errors import DataError, UsageError

NAMES = ("negative", "positive")
TEXTS = ["so happy today", "so sad today", "happy happy joy"]
SMALL = {"num_labels": 2, "vocab_size": 60, "max_position_embeddings": 40}
KINDS = {
    "bert": transformers.BertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, **SMALL
    ),
    "roberta": transformers.RobertaConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, **SMALL
    ),
    "distilbert": transformers.DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=64, **SMALL),
}


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(KINDS[request.param]).eval()


def test_layers_of_a_pipeline_give_what_the_model_gives(model: Any) -> None:
    ids, mask = torch.randint(3, 60, (4, 9)), torch.ones(4, 9, dtype=torch.bool)
    mask[:2, 5:] = False
    passed: Any = (ids, mask.int())
    layers = stages(model)
    assert len(layers) == 5
    for layer in layers:
        passed = layer(passed)
    assert torch.allclose(passed, model(input_ids=ids, attention_mask=mask).logits, atol=1e-6)
    unmasked: Any = (ids, torch.ones_like(ids))
    for layer in layers:
        unmasked = layer(unmasked)
    assert not torch.allclose(passed[:2], unmasked[:2], atol=1e-6), "the mask counts"
    own = {id(parameter) for layer in layers for parameter in layer.parameters()}
    assert own == {id(parameter) for parameter in model.parameters()}, "every parameter is in a layer, and the same one"


def test_layers_and_groups_of_the_optimizer(model: Any) -> None:
    assert len(layers_of(model)) == 4
    layers_of(model)[0].requires_grad_(False)
    groups = optimizer_groups(model, model, TrainConfig(layer_decay=0.5, learning_rate=1.0, weight_decay=0.1))
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == sum(p.requires_grad for p in model.parameters())
    assert {group["peak_learning_rate"] for group in groups} == {1.0, 0.5, 0.25, 0.125}
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_half_of_each_matrix_in_the_layers_is_shared_out(model: Any) -> None:
    every, trained = tensor_parallel_sizes(model, 2)
    assert every == trained
    whole = sum(p.numel() for p in model.parameters())
    # Four matrices of 32 x 32 and two of 32 x 64 in each of three layers; of the biases, those that are not added up.
    assert whole - every == 3 * (4 * 32 * 32 + 2 * 32 * 64 + 3 * 32 + 64) // 2


def test_tiny_is_saved_and_loaded(tmp_path: Path) -> None:
    config = TrainConfig(hidden_size=32, max_length=16)
    tokenizer = get_tokenizer(config, TEXTS)
    assert tokenizer.decode(tokenizer("So HAPPY zzz")["input_ids"]).startswith("[CLS] so happy")
    model, notes = build(config, NAMES, tokenizer)
    assert notes == []
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, words = load_trained(tmp_path)
    assert again.config.id2label == {0: "negative", 1: "positive"}
    assert words("so happy")["input_ids"] == tokenizer("so happy")["input_ids"]
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_vocabulary_does_not_depend_on_chance() -> None:
    config = TrainConfig()
    one, other = (train_tokenizer(iter(TEXTS), config).get_vocab() for _ in range(2))
    assert one == other
    assert one["happy"] < one["today"] < one["joy"], "frequent words first"


def test_real_encoder(minilm: Path) -> None:
    config = TrainConfig(model=str(minilm), dropout=0.3, num_frozen_layers=1)
    tokenizer = get_tokenizer(config, ())
    model, notes = build(config, NAMES, tokenizer)
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.3
    assert "new weights on top of the pretrained ones: classifier.bias, classifier.weight" in notes[0]
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    # What is pretrained has been loaded: two texts that mean the same are close.
    model.eval()
    texts = ["i am very happy", "i feel so glad", "the bus was late again"]
    tokens = tokenizer(texts, return_tensors="pt", padding=True)
    hidden = model.bert(**tokens).last_hidden_state * tokens["attention_mask"][..., None]
    mean = F.normalize(hidden.sum(1), dim=1)
    assert mean[0] @ mean[1] > mean[0] @ mean[2] + 0.2


class TestModelsThatCannotBeHad:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRAINYARD_OFFLINE", "1")

    def test_unknown_name(self) -> None:
        with pytest.raises(
            DataError, match="--model bert-bse-uncased: no tokenizer to be had in the cache or on the Hugging Face Hub"
        ):
            get_tokenizer(TrainConfig(model="bert-bse-uncased"), ())

    def test_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has no config\.json"):
            get_tokenizer(TrainConfig(model=str(tmp_path)), ())

    def test_other_kinds_of_models(self, tmp_path: Path) -> None:
        transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path)
        with pytest.raises(DataError, match="a model of type gpt2; BERT, DistilBERT or RoBERTa is wanted"):
            build(TrainConfig(model=str(tmp_path)), NAMES, None)

    def test_too_many_frozen_layers(self) -> None:
        config = TrainConfig(num_frozen_layers=4)
        with pytest.raises(UsageError, match="num_frozen_layers: 4 is not allowed: tiny has 3, embeddings included"):
            build(config, NAMES, get_tokenizer(config, TEXTS))


class TestLosses:
    LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
    LABELS = torch.tensor([0, 1, 0])

    def losses(self, **fields: Any) -> torch.Tensor:
        config = TrainConfig(**fields)
        return tweet_losses(self.LOGITS, self.LABELS, class_weights(torch.tensor([0, 0, 0, 1]), config), config)

    def test_plain(self) -> None:
        assert torch.allclose(self.losses(), F.cross_entropy(self.LOGITS, self.LABELS, reduction="none"))

    def test_focal(self) -> None:
        p = self.LOGITS.softmax(1)[torch.arange(3), self.LABELS]
        assert torch.allclose(self.losses(imbalance="focal", focal_gamma=2.0), -((1 - p) ** 2) * p.log())
        assert torch.allclose(self.losses(imbalance="focal", focal_gamma=0.0), self.losses())

    def test_weights_are_inverse_to_sizes_with_a_mean_of_1(self) -> None:
        config = TrainConfig(imbalance="weights")
        weights = class_weights(torch.tensor([0, 0, 0, 1]), config)
        assert weights.tolist() == pytest.approx([2 / 3, 2.0])
        assert weights[[0, 0, 0, 1]].mean() == pytest.approx(1.0)
        assert torch.allclose(self.losses(imbalance="weights"), self.losses() * weights[self.LABELS])


def test_learning_rate_rises_and_falls() -> None:
    assert [schedule(p, 0.1) for p in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0])


class TestDeepSpeedsOwnConfig:
    def complete(self, settings: dict[str, Any], world_size: int = 2, **fields: Any) -> dict[str, Any]:
        config = TrainConfig(deepspeed="mine.json", **fields)
        return complete(settings, config, world_size, torch.device("cpu"), 1000)

    def test_auto_is_filled_in_and_own_values_stay(self) -> None:
        settings = {
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}},
            "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "allgather_bucket_size": 77},
        }
        completed = self.complete(settings, micro_batch_size=4, gradient_accumulation_steps=3)
        assert completed["train_batch_size"] == 24
        assert completed["optimizer"]["params"] == {"lr": 2e-3, "torch_adam": True}
        assert completed["zero_optimization"] == {
            "stage": 2,
            "reduce_bucket_size": 1000,
            "allgather_bucket_size": 77,
        }

    def test_batch_sizes_that_do_not_multiply(self) -> None:
        with pytest.raises(
            UsageError, match=r"mine.json: train_batch_size is 100, which does not fit .* = 8 x 1 x 2 = 16"
        ):
            self.complete({"train_batch_size": 100}, micro_batch_size=8)

    def test_processes_that_share_a_model_count_as_one(self) -> None:
        assert self.complete({}, micro_batch_size=8, parallel="tensor")["train_batch_size"] == 8

    @pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
    def test_files_of_the_package(self, name: str) -> None:
        folder = Path(deepspeed_bert_sentiment140.__file__).parent / "deepspeed"
        settings = deepspeed_json.read(deepspeed_json.find(name, folder))
        assert settings["zero_optimization"]["stage"] == int(name[4])
        assert "auto" not in str(self.complete(settings))


def test_baseline_finds_words_and_pairs_of_words() -> None:
    texts = ["very good", "good", "not good", "bad", "not bad", "so bad"] * 10
    labels = np.array([1, 1, 0, 0, 1, 0] * 10)
    found = fit_and_test(texts, labels, texts[:6], labels[:6])
    assert found["accuracy"] == 1.0
    assert found["f1"] == 1.0
    assert "60 training tweets" in found["protocol"]
