"""However a step is shared out, and in however many passes, it computes the same numbers: loss by loss."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from colossal_bert_agnews.colossal_on_cpu import SHIMS

pytestmark = pytest.mark.timeout(600)  # all cases run before the first test
BASE = {
    "num_sample_articles": 200,
    "num_train": 91,  # five batches of 16, and one of 11
    "num_val": 10,
    "epochs": 1,
    "hidden_size": 32,
    "max_length": 32,
    "dropout": 0.0,
    "max_grad_norm": 0.1,
    "learning_rate": 2e-3,
    "warmup_fraction": 0.0,
    "log_every": 1,
    "baseline": False,
}
DATA = {"micro_batch_size": 8}
TENSOR = {"micro_batch_size": 8, "gradient_accumulation_steps": 2, "tp_size": 2}
PIPELINE = {"micro_batch_size": 8, "gradient_accumulation_steps": 2, "pp_size": 2}
BF16 = {"precision": "bf16"}
MIDDLE = {"checkpoint_every": 3}
# By number of processes, the same global batch of 16 articles in different shares. `resume` goes on from a checkpoint
# in the middle, with other settings or the same.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "plain": {"config": {"micro_batch_size": 16}, "plain": True},
        "plain augmented": {
            "config": {"micro_batch_size": 16, "epochs": 2, "augmentation": "eda"},
            "plain": True,
        },
        "booster": {"config": {"micro_batch_size": 16}},
        "accumulated": {"config": {"micro_batch_size": 4, "gradient_accumulation_steps": 4}},
        "unclipped": {"config": {"micro_batch_size": 16, "max_grad_norm": None}},
        "dropout": {"config": {"micro_batch_size": 16, "dropout": 0.2}},
        "roberta": {"config": {"micro_batch_size": 16, "model": "roberta"}},
    },
    2: {
        "data": {"config": DATA | MIDDLE, "resume": {}},
        "data accumulated": {"config": {"micro_batch_size": 2, "gradient_accumulation_steps": 4}},
        "data augmented": {"config": DATA | {"epochs": 2, "augmentation": "eda"}},
        "data dropout": {"config": DATA | MIDDLE | {"dropout": 0.2}, "resume": {}},
        "data bf16": {"config": DATA | BF16 | MIDDLE, "resume": {}},
        "zero-1": {"config": DATA | BF16 | MIDDLE | {"zero_stage": 1}, "resume": {}},
        "zero-2": {"config": DATA | BF16 | MIDDLE | {"zero_stage": 2}, "resume": {}},
        "zero-1 accumulated": {
            "config": BF16 | {"zero_stage": 1, "micro_batch_size": 2, "gradient_accumulation_steps": 4}
        },
        "zero-2 accumulated": {
            "config": BF16 | {"zero_stage": 2, "micro_batch_size": 2, "gradient_accumulation_steps": 4}
        },
        "roberta": {"config": DATA | {"model": "roberta"}},
        "tensor": {"config": TENSOR | MIDDLE, "resume": {"tp_size": 1, "pp_size": 2}},
        "tensor dropout": {"config": TENSOR | MIDDLE | {"dropout": 0.2}, "resume": {}},
        "tensor bf16": {"config": TENSOR | BF16 | MIDDLE, "resume": {}},
        "pipeline": {"config": PIPELINE | MIDDLE, "resume": {"pp_size": 1, **DATA, "gradient_accumulation_steps": 1}},
        "pipeline of four passes": {"config": PIPELINE | {"micro_batch_size": 4, "gradient_accumulation_steps": 4}},
        "pipeline dropout": {"config": PIPELINE | MIDDLE | {"dropout": 0.2}, "resume": {}},
        "pipeline bf16": {"config": PIPELINE | BF16 | MIDDLE, "resume": {}},
        "upstream's dropout": {"config": TENSOR | {"dropout": 0.2}, "fault": "upstream's dropout"},  # the last one
    },
    4: {
        "tensor x pipeline": {"config": TENSOR | PIPELINE | MIDDLE | {"dropout": 0.0}, "resume": {}},
        "tensor x data": {"config": TENSOR | {"micro_batch_size": 4}},
        "pipeline x data": {"config": PIPELINE | {"micro_batch_size": 4}},
        "tensor x data dropout": {"config": TENSOR | {"micro_batch_size": 4, "dropout": 0.2}},
    },
}
LAYOUTS = [
    *((2, name) for name in ("data", "data accumulated", "tensor", "pipeline", "pipeline of four passes")),
    *((4, name) for name in ("tensor x pipeline", "tensor x data", "pipeline x data")),
]
RESUMED = [(size, name) for size, cases in CASES.items() for name, case in cases.items() if "resume" in case]
# What fails without each of the shims.
NEEDS = {
    "random_numbers": TENSOR,
    "pipeline_messages": PIPELINE,
    "zero": DATA | BF16 | {"zero_stage": 1},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """What came of all cases, by number of processes or, where one was left out, by the name of the shim."""
    folder = tmp_path_factory.mktemp("proofs")
    roberta = folder / "roberta"
    make_roberta(roberta)
    groups = []
    for key, cases in (CASES | {shim: {shim: {"config": NEEDS[shim]}} for shim in SHIMS}).items():
        own = folder / str(key)
        own.mkdir()
        complete = {}
        for name, case in cases.items():
            config = BASE | case["config"]
            if config.get("model") == "roberta":
                config["model"] = str(roberta)
            complete[name] = case | {"config": config}
        without = key if key in SHIMS else None
        groups.append({"folder": str(own), "world_size": 2 if without else key, "without": without, "cases": complete})
    (folder / "groups.json").write_text(json.dumps(groups))
    worker = Path(__file__).with_name("proof_worker.py")
    command = [sys.executable, "-W", "ignore", str(worker), str(folder / "groups.json")]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)
    try:
        assert process.wait(timeout=500) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    keys = [*CASES, *SHIMS]
    return {
        key: json.loads((Path(group["folder"]) / "outcome.json").read_text())
        for key, group in zip(keys, groups, strict=True)
    }


def make_roberta(folder: Path) -> None:
    """A RoBERTa of one layer with the vocabulary of a handful of words, as from_pretrained reads it."""
    from colossal_bert_agnews.config import TrainConfig
    from colossal_bert_agnews.model import train_tokenizer

    tokenizer = train_tokenizer(["the oil company and the team said that"] * 2, TrainConfig(max_length=64))
    settings = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=80,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.RobertaForSequenceClassification(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def losses(outcome: dict[str, Any]) -> list[float]:
    return [loss for _, loss in sorted((int(step), loss) for step, loss in outcome["losses"].items())]


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between two networks' weights."""

    def flat(value: Any) -> list[float]:
        return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]

    assert one["weights"].keys() == other["weights"].keys()
    pairs = ((flat(one["weights"][name]), flat(other["weights"][name])) for name in one["weights"])
    return max(abs(a - b) for left, right in pairs for a, b in zip(left, right, strict=True))


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert losses(one) == pytest.approx(losses(other), abs=2e-5)
    assert distance(one, other) < 2e-4
    for a, b in zip(one["logits"], other["logits"], strict=True):
        assert a == pytest.approx(b, abs=2e-4)


def test_the_booster_in_one_process_equals_plain_pytorch(outcomes: dict) -> None:
    assert len(losses(outcomes[1]["plain"])) == 6, "91 articles in batches of 16, the last of 11"
    assert_same(outcomes[1]["booster"], outcomes[1]["plain"])


@pytest.mark.parametrize(("size", "name"), LAYOUTS)
def test_every_layout_equals_plain_pytorch(outcomes: dict, size: int, name: str) -> None:
    outcome = outcomes[size][name]
    assert_same(outcome, outcomes[1]["plain"])
    assert outcome["trained_articles"] == 91, "what several processes compute is counted once"
    assert outcome["trained_tokens"] == outcome["tokens"]
    assert outcome["drift"] < 1e-7


def test_accumulation_equals_one_large_batch(outcomes: dict) -> None:
    assert outcomes[1]["accumulated"]["num_passes"] == [4, 4, 4, 4, 4, 3]
    assert_same(outcomes[1]["accumulated"], outcomes[1]["plain"])
    # The last step has 11 articles: six for one process, five for the other, in three passes instead of four.
    assert outcomes[2]["data accumulated"]["num_passes"] == [4, 4, 4, 4, 4, 3]


def test_augmentation_is_the_same_for_two_processes(outcomes: dict) -> None:
    one, two = outcomes[1]["plain augmented"], outcomes[2]["data augmented"]
    assert len(losses(one)) == 12
    assert_same(two, one)
    assert max(abs(a - b) for a, b in zip(losses(one), losses(outcomes[1]["plain"]), strict=False)) > 1e-4


def test_models_without_a_policy_train_with_data_parallelism(outcomes: dict) -> None:
    assert_same(outcomes[2]["roberta"], outcomes[1]["roberta"])


def test_losses_depend_on_what_the_cases_change(outcomes: dict) -> None:
    # So the tests above can fail.
    plain = losses(outcomes[1]["plain"])
    for case in ("unclipped", "dropout"):
        assert max(abs(a - b) for a, b in zip(losses(outcomes[1][case]), plain, strict=True)) > 1e-4, case


@pytest.mark.parametrize(
    ("size", "name"),
    [(2, "data dropout"), (2, "tensor dropout"), (2, "pipeline dropout"), (4, "tensor x data dropout")],
)
def test_with_dropout_what_is_held_twice_stays_equal(outcomes: dict, size: int, name: str) -> None:
    outcome, one = outcomes[size][name], outcomes[1]["dropout"]
    assert outcome["drift"] == 0.0
    # Other units are dropped than in one process, so that losses are close, not equal.
    assert losses(outcome) == pytest.approx(losses(one), abs=0.1)
    assert losses(outcome) != pytest.approx(losses(one), abs=1e-5)


def test_upstreams_dropout_lets_them_drift_apart(outcomes: dict) -> None:
    assert outcomes[2]["upstream's dropout"]["drift"] > 1e-3


@pytest.mark.parametrize("name", ["data bf16", "tensor bf16", "pipeline bf16", "zero-1", "zero-2"])
def test_bf16_stays_close_to_fp32(outcomes: dict, name: str) -> None:
    # bf16 keeps 8 bits of a number: a relative error of up to 2^-8 in each product.
    half = losses(outcomes[2][name])
    assert half != losses(outcomes[1]["plain"])
    assert half == pytest.approx(losses(outcomes[1]["plain"]), rel=0.03)


@pytest.mark.parametrize("name", ["zero-1", "zero-2"])
def test_zero_equals_plain_bf16(outcomes: dict, name: str) -> None:
    plain = outcomes[2]["data bf16"]
    assert losses(outcomes[2][name]) == pytest.approx(losses(plain), abs=2e-3)
    assert losses(outcomes[2][f"{name} accumulated"]) == pytest.approx(losses(plain), abs=5e-3)


@pytest.mark.parametrize(("size", "name"), RESUMED)
def test_a_checkpoint_goes_on_with_the_same_numbers(outcomes: dict, size: int, name: str) -> None:
    outcome = outcomes[size][name]
    assert outcome["resumed_at"] == 3
    if CASES[size][name]["resume"]:
        assert distance(outcome, outcome["resumed"]) < 2e-4, "in another layout: to rounding"
    else:
        assert distance(outcome, outcome["resumed"]) == 0.0


@pytest.mark.parametrize(
    ("size", "name"),
    [
        *((2, name) for name in ("data", "tensor", "pipeline", "data bf16", "tensor bf16", "pipeline bf16")),
        *((2, name) for name in ("zero-1", "zero-2")),
        *((4, name) for name in ("tensor x pipeline", "tensor x data", "pipeline x data")),
    ],
)
def test_every_process_holds_what_was_predicted(outcomes: dict, size: int, name: str) -> None:
    for measured, predicted in outcomes[size][name]["bytes"]:
        for part, count in measured.items():
            assert count == pytest.approx(predicted[part], rel=0.05), part


def test_who_shares_holds_less(outcomes: dict) -> None:
    def held(size: int, name: str, part: str) -> int:
        return max(measured[part] for measured, _ in outcomes[size][name]["bytes"])

    for size, name, most in ((2, "tensor", 0.75), (2, "pipeline", 0.75), (4, "tensor x pipeline", 0.5)):
        assert held(size, name, "parameters") < most * held(2, "data", "parameters"), name
    assert held(2, "zero-1", "optimizer") < 0.55 * held(2, "data bf16", "optimizer")
    assert held(2, "zero-2", "gradients") < 0.55 * held(2, "data bf16", "gradients")


@pytest.mark.parametrize("shim", list(SHIMS))
def test_every_shim_is_needed(outcomes: dict, shim: str) -> None:
    assert "error" in outcomes[shim][shim]
