"""Distributed training computes the same numbers as training in one process: loss by loss, image by image."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BASE = {
    "num_sample_images": 300,
    "num_val": 44,
    "epochs": 1,
    "widths": [8, 16, 16],
    "log_every": 1,
    "norm": "group",
    "flip": "random",
    "cutout": 4,
}
# Per world size, the same global batch of 32 images in different shares.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "whole": {"micro_batch_size": 32},
        "accumulated": {"micro_batch_size": 4, "gradient_accumulation_steps": 8},
        "clipped": {"micro_batch_size": 32, "max_grad_norm": 0.1},
        "sync": {"micro_batch_size": 32, "norm": "sync_batch"},
        "local": {"micro_batch_size": 32, "norm": "batch"},
        "bf16": {"micro_batch_size": 32, "precision": "bf16"},
        "fp16": {"micro_batch_size": 32, "precision": "fp16", "max_grad_norm": 1.0},
        "fp32 clipped like fp16": {"micro_batch_size": 32, "max_grad_norm": 1.0},
        "loader": {"micro_batch_size": 32, "loader": "dataloader"},
    },
    2: {
        "whole": {"micro_batch_size": 16},
        "accumulated": {"micro_batch_size": 4, "gradient_accumulation_steps": 4},
        "clipped": {"micro_batch_size": 16, "max_grad_norm": 0.1},
        "sync": {"micro_batch_size": 16, "norm": "sync_batch"},
        "local": {"micro_batch_size": 16, "norm": "batch"},
        "bf16": {"micro_batch_size": 16, "precision": "bf16"},
        "fp16": {"micro_batch_size": 16, "precision": "fp16", "max_grad_norm": 1.0},
        "loader": {"micro_batch_size": 16, "loader": "dataloader", "num_workers": 1},
    },
    3: {"uneven": {"micro_batch_size": 8}},
}


def run_group(world_size: int, cases: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `proof_worker.py` in a group of processes and return what it wrote."""
    (folder / f"cases-{world_size}.json").write_text(json.dumps(cases))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = Path(__file__).with_name("proof_worker.py")
    command = [sys.executable, str(worker), str(folder), str(folder / f"cases-{world_size}.json")]
    environment = os.environ | {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    processes = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(world_size)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
    return json.loads((folder / f"outcome-{world_size}.json").read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Losses and outputs of all cases, by number of processes."""
    folder = tmp_path_factory.mktemp("proofs")
    found = {}
    for world_size, named in CASES.items():
        cases = {
            name: {"config": BASE | overrides, "run_dir": f"{name}-{world_size}"} for name, overrides in named.items()
        }
        found[world_size] = run_group(world_size, cases, folder)
    return found


def continue_elsewhere(outcomes_folder: Path, keep_step: int) -> None:
    """Make a run folder look as if it had been killed right after the checkpoint of `keep_step`."""
    for checkpoint in (outcomes_folder / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > keep_step:
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()


def losses(outcome: dict[str, Any]) -> list[float]:
    return [loss for _, loss in sorted((int(step), loss) for step, loss in outcome["losses"].items())]


@pytest.mark.parametrize("case", ["whole", "clipped", "sync"])
def test_two_processes_equal_one_with_the_double_batch(outcomes: dict, case: str) -> None:
    one, two = losses(outcomes[1][case]), losses(outcomes[2][case])
    assert len(one) == 8, "256 images in batches of 32"
    assert two == pytest.approx(one, abs=2e-5)


def test_statistics_of_each_process_alone_give_other_losses(outcomes: dict) -> None:
    # So the test above can fail: without synchronised statistics the losses part company.
    one, two = losses(outcomes[1]["local"]), losses(outcomes[2]["local"])
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) > 1e-3


@pytest.mark.parametrize("world_size", [1, 2])
def test_accumulation_equals_one_large_batch(outcomes: dict, world_size: int) -> None:
    assert losses(outcomes[world_size]["accumulated"]) == pytest.approx(losses(outcomes[1]["whole"]), abs=2e-5)


def test_bf16_stays_close_to_fp32(outcomes: dict) -> None:
    # bf16 keeps 8 bits of a number: a relative error of up to 2^-8 in each product. Measured here: below 1 %.
    full, half = losses(outcomes[1]["whole"]), losses(outcomes[1]["bf16"])
    assert half != full
    assert half == pytest.approx(full, rel=0.03)
    assert losses(outcomes[2]["bf16"]) == pytest.approx(half, rel=0.03)


def test_fp16_with_loss_scaling_stays_close_to_fp32(outcomes: dict) -> None:
    # The scale starts at 65,536 and halves after each overflow, which skips a step on all processes alike; clipping
    # sees unscaled gradients, or it would shrink them to nothing and the losses would stay where they began.
    full, half = losses(outcomes[1]["fp32 clipped like fp16"]), losses(outcomes[1]["fp16"])
    assert half != full
    assert half == pytest.approx(full, rel=0.03)
    assert losses(outcomes[2]["fp16"]) == pytest.approx(half, rel=0.03)


def test_dataloader_draws_the_same_augmentation_for_any_number_of_processes(outcomes: dict) -> None:
    assert losses(outcomes[2]["loader"]) == pytest.approx(losses(outcomes[1]["loader"]), abs=2e-5)


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_of_101_images_is_the_same_for_any_number_of_processes(outcomes: dict, world_size: int) -> None:
    # The same initial weights everywhere; 101 divides by neither 2 nor 3.
    alone = outcomes[1]["whole"]["logits_before"]
    shared = outcomes[world_size]["uneven" if world_size == 3 else "whole"]["logits_before"]
    assert len(alone) == len(shared) == 101
    for a, b in zip(alone, shared, strict=True):
        assert b == pytest.approx(a, abs=1e-6)


def test_trained_networks_give_the_same_outputs(outcomes: dict) -> None:
    one, two = outcomes[1]["whole"], outcomes[2]["whole"]
    assert one["logits_after"] != one["logits_before"]
    for a, b in zip(one["logits_after"], two["logits_after"], strict=True):
        assert b == pytest.approx(a, abs=1e-4)


@pytest.mark.parametrize("world_size", [1, 2])
def test_predicted_memory_is_what_is_held(outcomes: dict, world_size: int) -> None:
    outcome = outcomes[world_size]["whole"]
    for name, measured in outcome["bytes"].items():
        # DDP rounds the gradients' buckets up; nothing else may differ.
        assert measured == pytest.approx(outcome["predicted"][name], rel=0.01), name


def test_run_killed_in_an_epoch_continues_with_another_number_of_processes(tmp_path: Path) -> None:
    config = BASE | {"micro_batch_size": 16, "checkpoint_every": 3, "epochs": 2}
    run_group(2, {"two": {"config": config, "run_dir": "run"}}, tmp_path)
    undisturbed = json.loads((tmp_path / "outcome-2.json").read_text())["two"]
    continue_elsewhere(tmp_path / "run", keep_step=12)  # epoch 2 has steps 9 to 16
    alone = config | {"micro_batch_size": 32}
    continued = run_group(1, {"one": {"config": alone, "run_dir": "run"}}, tmp_path)["one"]
    assert len(losses(continued)) == 16
    assert losses(continued) == pytest.approx(losses(undisturbed), abs=2e-5)
    assert "resumed with 1 processes and a global batch of 32; before: 2 and 32" in continued["notes"][0]
