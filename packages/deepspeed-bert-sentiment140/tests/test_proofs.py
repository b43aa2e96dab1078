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

pytestmark = pytest.mark.timeout(600)  # all cases of a group run before the first test
BASE = {
    "num_sample_tweets": 200,
    "num_train": 91,  # five batches of 16, and one of 11
    "epochs": 1,
    "hidden_size": 32,
    "max_length": 32,
    "dropout": 0.0,
    "max_grad_norm": 0.1,
    "learning_rate": 2e-3,
    "log_every": 1,
}
STAGES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
WHOLE = {"micro_batch_size": 8}
TOGETHER = {"micro_batch_size": 8, "gradient_accumulation_steps": 2}  # on the same tweets: 8 x 2 of them
# Per world size, the same global batch of 16 tweets in different shares.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "zero0": {"micro_batch_size": 16, "deepspeed": "zero0"},
        "zero3": {"micro_batch_size": 16, "deepspeed": "zero3"},
        "accumulated": {"micro_batch_size": 4, "gradient_accumulation_steps": 4, "deepspeed": "zero0"},
        "frozen": {"micro_batch_size": 16, "num_frozen_layers": 1, "layer_decay": 0.5},
        "decayed": {"micro_batch_size": 16, "layer_decay": 0.5},
        "unclipped": {"micro_batch_size": 16, "max_grad_norm": None},
        "weights": {"micro_batch_size": 16, "imbalance": "weights", "sample_negative": 0.8},
        "focal": {"micro_batch_size": 16, "imbalance": "focal"},
    },
    2: {
        **{stage: {**WHOLE, "deepspeed": stage} for stage in STAGES},
        **{
            f"{stage} accumulated": {"micro_batch_size": 2, "gradient_accumulation_steps": 4, "deepspeed": stage}
            for stage in STAGES[:4]
        },
        **{f"{stage} bf16": {**WHOLE, "deepspeed": stage, "precision": "bf16"} for stage in STAGES[1:4]},
        "checkpointing": {**WHOLE, "deepspeed": "zero3", "activation_checkpointing": True},
        "frozen": {**WHOLE, "num_frozen_layers": 1, "layer_decay": 0.5},
        "weights": {**WHOLE, "imbalance": "weights", "sample_negative": 0.8},
        "tensor zero0": {**TOGETHER, "parallel": "tensor", "deepspeed": "zero0"},
        "tensor zero1": {**TOGETHER, "parallel": "tensor", "deepspeed": "zero1"},
        "tensor frozen": {**TOGETHER, "parallel": "tensor", "num_frozen_layers": 1, "layer_decay": 0.5},
        "tensor dropout": {**TOGETHER, "parallel": "tensor", "dropout": 0.2},
        "pipeline zero0": {**TOGETHER, "parallel": "pipeline", "deepspeed": "zero0"},
        "pipeline zero1": {**TOGETHER, "parallel": "pipeline", "deepspeed": "zero1"},
        "pipeline decayed": {**TOGETHER, "parallel": "pipeline", "deepspeed": "zero0", "layer_decay": 0.5},
        "pipeline checkpointing": {**TOGETHER, "parallel": "pipeline", "activation_checkpointing": True},
        # Faults, made by proof_worker.py.
        "clip by stage": {**TOGETHER, "parallel": "pipeline", "deepspeed": "zero0"},
        "divide by passes": {"micro_batch_size": 2, "gradient_accumulation_steps": 4},
        "own dropout": {**TOGETHER, "parallel": "tensor", "dropout": 0.2},
    },
}
FAULTS = ("clip by stage", "divide by passes", "own dropout")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Losses, outputs and weights of all cases, by number of processes."""
    folder = tmp_path_factory.mktemp("proofs")
    return run_groups(folder, groups_of(CASES, folder))


def groups_of(cases_of: dict[int, dict[str, dict[str, Any]]], folder: Path) -> list[dict[str, Any]]:
    """Each kind of parallelism in processes of its own: DeepSpeed keeps its groups of processes in global variables."""
    groups = []
    for world_size, cases in cases_of.items():
        for parallel in ("data", "tensor", "pipeline"):
            chosen = {
                name: {"config": BASE | overrides, "run_dir": name, "fault": name if name in FAULTS else None}
                for name, overrides in cases.items()
                if overrides.get("parallel", "data") == parallel
            }
            if chosen:
                own = folder / f"{parallel}-{world_size}"
                own.mkdir()
                groups.append({"folder": str(own), "world_size": world_size, "cases": chosen})
    return groups


def run_groups(folder: Path, groups: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Run `proof_worker.py` and return what its groups wrote, by number of processes."""
    (folder / "groups.json").write_text(json.dumps(groups))
    worker = Path(__file__).with_name("proof_worker.py")
    command = [sys.executable, "-W", "ignore", str(worker), str(folder / "groups.json")]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)
    try:
        assert process.wait(timeout=500) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    found: dict[int, dict[str, Any]] = {}
    for group in groups:
        path = Path(group["folder"]) / f"outcome-{group['world_size']}.json"
        found.setdefault(group["world_size"], {}).update(json.loads(path.read_text()))
    return found


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
    assert len(losses(one)) == 6, "91 tweets in batches of 16, the last of 11"
    assert losses(one) == pytest.approx(losses(other), abs=2e-5)
    assert distance(one, other) < 2e-4
    for a, b in zip(one["logits"], other["logits"], strict=True):
        assert a == pytest.approx(b, abs=2e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_zero_and_two_processes_equal_one(outcomes: dict, stage: str) -> None:
    assert_same(outcomes[2][stage], outcomes[1]["zero0"])
    assert outcomes[2][stage]["trained_tweets"] == 91
    assert outcomes[2][stage]["trained_tokens"] == outcomes[2][stage]["tokens"]


def test_one_process_can_shard_too(outcomes: dict) -> None:
    assert_same(outcomes[1]["zero3"], outcomes[1]["zero0"])


@pytest.mark.parametrize("stage", STAGES[:4])
def test_accumulation_equals_one_large_batch(outcomes: dict, stage: str) -> None:
    # The last step has 11 tweets: six for one process, five for the other, in three passes instead of four.
    outcome = outcomes[2][f"{stage} accumulated"]
    assert outcome["num_passes"] == [4, 4, 4, 4, 4, 3]
    assert_same(outcome, outcomes[1]["zero0"])
    assert_same(outcomes[1]["accumulated"], outcomes[1]["zero0"])


def test_activation_checkpointing_changes_nothing(outcomes: dict) -> None:
    assert_same(outcomes[2]["checkpointing"], outcomes[1]["zero0"])
    before, after = (outcomes[2][name]["predicted"]["activations"] for name in ("zero3", "checkpointing"))
    assert after < 0.5 * before


@pytest.mark.parametrize("stage", ["zero0", "zero1"])
@pytest.mark.parametrize("parallel", ["tensor", "pipeline"])
def test_model_parallel_training_equals_plain_training(outcomes: dict, parallel: str, stage: str) -> None:
    outcome = outcomes[2][f"{parallel} {stage}"]
    assert_same(outcome, outcomes[1]["zero0"])
    assert outcome["trained_tweets"] == 91, "what both processes compute is counted once"
    assert outcome["bytes"]["parameters"] < 0.75 * outcomes[2]["zero0"]["bytes"]["parameters"]


def test_a_pipeline_can_checkpoint_activations(outcomes: dict) -> None:
    assert_same(outcomes[2]["pipeline checkpointing"], outcomes[1]["zero0"])


@pytest.mark.parametrize("case", ["frozen", "tensor frozen", "pipeline decayed"])
def test_frozen_layers_and_rates_by_layer(outcomes: dict, case: str) -> None:
    assert_same(outcomes[2][case], outcomes[1][case.split()[-1]])


def test_weights_of_classes_are_the_same_for_two_processes(outcomes: dict) -> None:
    assert_same(outcomes[2]["weights"], outcomes[1]["weights"])


def test_losses_depend_on_what_the_cases_change(outcomes: dict) -> None:
    # So the tests above can fail.
    plain = losses(outcomes[1]["zero0"])
    for case in ("unclipped", "frozen", "decayed", "weights", "focal"):
        assert max(abs(a - b) for a, b in zip(losses(outcomes[1][case]), plain, strict=True)) > 1e-4, case


@pytest.mark.parametrize("fault", ["clip by stage", "divide by passes"])
def test_what_train_guards_against_trains_wrongly_and_the_proofs_see_it(outcomes: dict, fault: str) -> None:
    assert distance(outcomes[2][fault], outcomes[1]["zero0"]) > 5e-4


def test_processes_that_share_layers_drop_out_the_same_units(outcomes: dict) -> None:
    assert outcomes[2]["tensor dropout"]["drift"] == 0.0
    assert outcomes[2]["own dropout"]["drift"] > 1e-4, "with generators of their own, their weights drift apart"


@pytest.mark.parametrize("stage", STAGES[1:4])
def test_bf16_stays_close_to_fp32(outcomes: dict, stage: str) -> None:
    # bf16 keeps 8 bits of a number: a relative error of up to 2^-8 in each product.
    half = losses(outcomes[2][f"{stage} bf16"])
    assert half != losses(outcomes[2][stage])
    assert half == pytest.approx(losses(outcomes[2][stage]), rel=0.03)


@pytest.mark.parametrize(
    "case",
    [
        *STAGES,
        *(f"{stage} bf16" for stage in STAGES[1:4]),
        "frozen",
        *("tensor zero0", "tensor zero1", "tensor frozen", "pipeline zero0", "pipeline zero1", "pipeline decayed"),
    ],
)
def test_a_process_holds_what_was_predicted(outcomes: dict, case: str) -> None:
    outcome = outcomes[2][case]
    for name, measured in outcome["bytes"].items():
        assert measured == pytest.approx(outcome["predicted"][name], rel=0.05), name


@pytest.mark.parametrize(
    ("stage", "halved"),
    [
        ("zero1", {"gradients", "optimizer"}),  # of stage 1, all gradients are there during the backward pass only
        ("zero2", {"gradients", "optimizer"}),
        ("zero3", {"gradients", "optimizer", "parameters"}),
    ],
)
def test_each_stage_shares_out_more(outcomes: dict, stage: str, halved: set[str]) -> None:
    # Against stage 0, but from stage 1 on the optimizer has a second copy of the parameters: 12 bytes each, not 8.
    held, whole = outcomes[2][stage]["bytes"], outcomes[2]["zero0"]["bytes"]
    factor = {"optimizer": 1.5}
    shares = {name: held[name] / whole[name] / factor.get(name, 1.0) for name in held}
    assert {name for name, share in shares.items() if share < 0.65} == halved
