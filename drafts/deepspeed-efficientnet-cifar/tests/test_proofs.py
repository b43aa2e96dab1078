"""However ZeRO shares out a step, and in however many micro-batches, it computes the same numbers: loss by loss."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)  # all cases of a group run before the first test

BASE = {
    "num_sample_images": 172,
    "num_val": 44,
    "epochs": 1,
    "model": "tiny",
    "image_size": 32,
    "log_every": 1,
    # A batch must not depend on how it is cut: with statistics of its own, each micro-batch is another function.
    "frozen_batchnorm": True,
    "precision": "fp32",
    "learning_rate": 1e-2,
    "ema_decay": 0.7,
}
ZERO = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
ACCUMULATED = {"micro_batch_size": 8, "gradient_accumulation_steps": 2}
# Per world size, the same global batch of 32 images in different shares.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "zero0": {"config": {"micro_batch_size": 32, "deepspeed": "zero0"}, "plain": True},
        "zero2": {"config": {"micro_batch_size": 32}},
    },
    2: {
        **{name: {"config": {"micro_batch_size": 16, "deepspeed": name}} for name in ZERO},
        **{
            f"{name} accumulated": {"config": {**ACCUMULATED, "deepspeed": name}}
            for name in ("zero0", "zero2", "zero3")
        },
        "wrong accumulation": {"config": {**ACCUMULATED}, "fault": "loss not divided"},
        "other images": {"config": {"micro_batch_size": 16, "seed": 1}, "weights_of_seed": 0},
        "checkpointing": {"config": {"micro_batch_size": 16, "activation_checkpointing": True}},
        "bf16": {"config": {"micro_batch_size": 16, "precision": "bf16"}},
        "bf16 zero3": {"config": {"micro_batch_size": 16, "precision": "bf16", "deepspeed": "zero3"}},
        "batch statistics": {"config": {"micro_batch_size": 16, "frozen_batchnorm": False}},
        "frozen": {"config": {"micro_batch_size": 16, "frozen_batchnorm": False, "frozen_stages": 2}},
        "frozen zero3": {
            "config": {"micro_batch_size": 16, "frozen_batchnorm": False, "frozen_stages": 2, "deepspeed": "zero3"}
        },
    },
}


def run_group(world_size: int, cases: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `proof_worker.py` in a group of processes and return what it wrote."""
    written = {name: case | {"config": BASE | case["config"]} for name, case in cases.items()}
    (folder / f"cases-{world_size}.json").write_text(json.dumps(written))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = Path(__file__).with_name("proof_worker.py")
    command = [sys.executable, "-W", "ignore", str(worker), str(folder), str(folder / f"cases-{world_size}.json")]
    environment = os.environ | {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(timeout=500) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
    return json.loads((folder / f"outcome-{world_size}.json").read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Losses, outputs and weights of all cases, by number of processes."""
    folder = tmp_path_factory.mktemp("proofs")
    return {world_size: run_group(world_size, CASES[world_size], folder) for world_size in (2, 1)}


def losses(outcome: dict[str, Any]) -> list[float]:
    return [loss for _, loss in sorted((int(step), loss) for step, loss in outcome["losses"].items())]


def distance(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def relative_distance(one: list[float], other: list[float]) -> float:
    return math.dist(one, other) / math.hypot(*other)


@pytest.mark.parametrize("name", ZERO)
def test_every_stage_of_zero_computes_the_same(outcomes: dict, name: str) -> None:
    whole, shared = outcomes[2]["zero0"], outcomes[2][name]
    assert len(losses(whole)) == 4, "128 images in batches of 32"
    assert losses(shared) == pytest.approx(losses(whole), abs=1e-5)
    assert distance(shared["average"], whole["average"]) < 2e-4


@pytest.mark.parametrize("name", ["zero0", "zero2"])
def test_one_process_equals_a_plain_loop_of_pytorch(outcomes: dict, name: str) -> None:
    assert losses(outcomes[1][name]) == pytest.approx(losses(outcomes[1]["plain"]), abs=1e-5)
    assert distance(outcomes[1][name]["weights"], outcomes[1]["plain"]["weights"]) < 1e-3
    assert distance(outcomes[1][name]["average"], outcomes[1]["plain"]["average"]) < 1e-5


@pytest.mark.parametrize("name", ZERO)
def test_two_processes_equal_one_with_the_double_batch(outcomes: dict, name: str) -> None:
    assert losses(outcomes[2][name]) == pytest.approx(losses(outcomes[1]["plain"]), abs=5e-5)


@pytest.mark.parametrize("name", ["zero0", "zero2", "zero3"])
def test_accumulation_equals_one_large_batch(outcomes: dict, name: str) -> None:
    assert losses(outcomes[2][f"{name} accumulated"]) == pytest.approx(losses(outcomes[2]["zero0"]), abs=5e-5)


def test_a_loss_that_is_not_divided_is_noticed(outcomes: dict) -> None:
    # Adam hardly feels the scale of gradients, so losses would not tell; the norm that clipping looks at does.
    right, wrong = outcomes[2]["zero2"]["gradient_norms"], outcomes[2]["wrong accumulation"]["gradient_norms"]
    assert len(right) == 4
    assert outcomes[2]["zero2 accumulated"]["gradient_norms"] == pytest.approx(right, rel=1e-3)
    assert wrong[0] == pytest.approx(2 * right[0], rel=1e-3)


def test_other_images_would_give_other_losses_and_weights(outcomes: dict) -> None:
    one, other = outcomes[2]["zero2"], outcomes[2]["other images"]
    assert max(abs(a - b) for a, b in zip(losses(one), losses(other), strict=True)) > 1e-3
    assert distance(one["weights"], other["weights"]) > 5e-3


def test_activation_checkpointing_computes_the_same(outcomes: dict) -> None:
    assert losses(outcomes[2]["checkpointing"]) == pytest.approx(losses(outcomes[2]["zero2"]), abs=1e-6)
    kept = outcomes[2]["checkpointing"]["predicted"]["activations"]
    assert kept < 0.6 * outcomes[2]["zero2"]["predicted"]["activations"]


@pytest.mark.parametrize("name", ["bf16", "bf16 zero3"])
def test_bf16_stays_close_to_fp32(outcomes: dict, name: str) -> None:
    # bf16 keeps 8 bits of a number: a relative error of up to 2^-8 in each product.
    assert losses(outcomes[2][name]) != losses(outcomes[2]["zero2"])
    assert losses(outcomes[2][name]) == pytest.approx(losses(outcomes[2]["zero2"]), rel=0.03)


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_the_moving_average_is_that_of_the_definition(outcomes: dict, name: str) -> None:
    found, plain = outcomes[2][name], outcomes[1]["plain"]
    # Where a gradient is nearly 0, Adam makes a whole step out of its rounding: a few weights differ visibly.
    assert relative_distance(found["average"], plain["average"]) < 5e-4
    assert relative_distance(outcomes[2]["other images"]["average"], plain["average"]) > 1e-2
    assert distance(found["average"], found["weights"]) > 5e-4, "the average is something else than the weights"
    assert found["untouched"], "looking at the average leaves the weights as they were, bit for bit"


def test_statistics_of_batch_normalisation_are_averaged_over_the_processes(outcomes: dict) -> None:
    outcome = outcomes[2]["batch statistics"]
    first, second = outcome["statistics"]
    assert first != second, "each process has seen other images"
    mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert outcome["gathered_statistics"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("name", ["frozen", "frozen zero3"])
def test_frozen_stages_stay_as_they_were(outcomes: dict, name: str) -> None:
    assert not outcomes[2][name]["frozen_statistics_moved"]
    assert outcomes[2]["batch statistics"]["frozen_statistics_moved"], "those of others do move"
    assert losses(outcomes[2]["frozen zero3"]) == pytest.approx(losses(outcomes[2]["frozen"]), abs=5e-5)


def test_evaluation_of_101_images_is_the_same_for_any_number_of_processes(outcomes: dict) -> None:
    # The same initial weights everywhere; 101 is odd.
    alone, shared = outcomes[1]["zero2"]["logits_before"], outcomes[2]["zero3"]["logits_before"]
    assert len(alone) == len(shared) == 101
    for a, b in zip(alone, shared, strict=True):
        assert b == pytest.approx(a, abs=1e-5)


@pytest.mark.parametrize("name", [*ZERO, "bf16", "frozen", "frozen zero3"])
def test_a_process_holds_what_was_predicted(outcomes: dict, name: str) -> None:
    outcome = outcomes[2][name]
    for part, measured in outcome["bytes"].items():
        assert measured == pytest.approx(outcome["predicted"][part], rel=0.02), part
    whole = outcomes[2]["zero0"]["bytes"]
    if name in ZERO:
        # Of so small a network, whole filters on the border of two slices make the half of the gradients 0.61.
        halved = {part for part, measured in outcome["bytes"].items() if measured < 0.62 * whole[part]}
        shared = {"0": set(), "1": {"gradients"}, "2": {"gradients"}}
        assert halved == shared.get(name[4], {"gradients", "parameters", "moving_average"})
        # The optimizer's state is shared out from stage 1 on, which adds a copy of the parameters to it.
        assert (outcome["bytes"]["optimizer"] < 0.8 * whole["optimizer"]) == (name != "zero0")


@pytest.mark.parametrize("name", ["zero0", "zero3", "bf16"])
def test_exported_weights_give_the_same_outputs(outcomes: dict, name: str) -> None:
    tolerance = 0.02 if name == "bf16" else 1e-5
    for found, expected in zip(outcomes[2][name]["exported_logits"], outcomes[2][name]["logits"], strict=True):
        assert found == pytest.approx(expected, abs=tolerance)
