"""Distributed training computes the same numbers as training in one process: loss by loss, review by review."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BASE = {
    "num_sample_reviews": 100,
    "num_val": 9,  # 91 training reviews: five batches of 16, and one of 11
    "epochs": 1,
    "global_batch_size": 16,
    "hidden_size": 32,
    "max_length": 64,
    "dropout": 0.0,
    "learning_rate": 2e-3,
    "log_every": 1,
}
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "whole": {"micro_batch_size": 16},
        "accumulated": {"micro_batch_size": 3},
        "ragged": {"max_tokens": 150},
        "unclipped": {"max_grad_norm": None},
        "bf16": {"precision": "bf16"},
        "frozen": {"num_frozen_layers": 2, "layer_decay": 0.5},
        "dropout": {"dropout": 0.3},
    },
    2: {
        "whole": {"micro_batch_size": 8},
        "accumulated": {"micro_batch_size": 5},  # the last step leaves one review: the other process computes in vain
        "ragged": {"max_tokens": 150},
        "unclipped": {"max_grad_norm": None},
        "frozen": {"num_frozen_layers": 2, "layer_decay": 0.5},
        "killed": {"checkpoint_every": 2, "epochs": 2},
    },
}


def start_group(world_size: int, cases: dict[str, Any], folder: Path) -> list[subprocess.Popen]:
    """Run `proof_worker.py` in a group of processes."""
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
    return [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(world_size)]


def wait(processes: list[subprocess.Popen]) -> None:
    try:
        assert [process.wait(timeout=150) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proofs")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[int, dict[str, Any]]:
    """Losses and outputs of all cases, by number of processes. Two processes first: one goes on with their run."""
    found = {}
    for world_size in (2, 1):
        cases = {
            name: {"config": BASE | overrides, "run_dir": f"{name}-{world_size}"}
            for name, overrides in CASES[world_size].items()
        }
        if world_size == 1:
            forget_checkpoints_after(folder / "killed-2", step=10)  # epoch 2 has steps 7 to 12
            cases["killed"] = {"config": BASE | CASES[2]["killed"], "run_dir": "killed-2"}
        wait(start_group(world_size, cases, folder))
        found[world_size] = json.loads((folder / f"outcome-{world_size}.json").read_text())
    return found


def forget_checkpoints_after(run_dir: Path, step: int) -> None:
    """Make a run folder look as if it had been killed right after the checkpoint of `step`."""
    for checkpoint in (run_dir / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()


def losses(outcome: dict[str, Any]) -> list[float]:
    return [loss for _, loss in sorted((int(step), loss) for step, loss in outcome["losses"].items())]


@pytest.mark.parametrize("case", ["whole", "unclipped", "frozen"])
def test_two_processes_equal_one(outcomes: dict, case: str) -> None:
    one, two = losses(outcomes[1][case]), losses(outcomes[2][case])
    assert len(one) == 6, "91 reviews in batches of 16, the last of 11"
    assert two == pytest.approx(one, abs=2e-5)
    assert outcomes[1][case]["trained_reviews"] == outcomes[2][case]["trained_reviews"] == 91
    assert outcomes[1][case]["trained_tokens"] == outcomes[2][case]["trained_tokens"] == outcomes[1][case]["tokens"]


def test_gradients_have_the_same_scale(outcomes: dict) -> None:
    # AdamW's steps do not depend on the scale of gradients, so losses would not tell a mean from a sum.
    one, two = (outcomes[world_size]["unclipped"]["gradient_norm"] for world_size in (1, 2))
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", ["accumulated", "ragged"])
def test_micro_batches_of_any_sizes_equal_one_batch(outcomes: dict, case: str, world_size: int) -> None:
    # One process takes 3 reviews at a time; two take 5 each, and of the last step's 11 one is left for the first alone.
    # With 150 tokens, long reviews come two at a time and short ones ten.
    outcome = outcomes[world_size][case]
    assert losses(outcome) == pytest.approx(losses(outcomes[1]["whole"]), abs=2e-5)
    assert outcome["trained_reviews"] == 91
    assert max(outcome["num_micro_batches"]) > 1
    if case == "ragged":
        assert len(set(outcome["num_micro_batches"])) > 1


def test_losses_depend_on_what_the_cases_change(outcomes: dict) -> None:
    # So the tests above can fail.
    whole = losses(outcomes[1]["whole"])
    for case in ("unclipped", "frozen", "dropout"):
        assert max(abs(a - b) for a, b in zip(losses(outcomes[1][case]), whole, strict=True)) > 1e-3, case


def test_bf16_stays_close_to_fp32(outcomes: dict) -> None:
    full, half = losses(outcomes[1]["whole"]), losses(outcomes[1]["bf16"])
    assert half != full
    assert half == pytest.approx(full, rel=0.03)


def test_evaluation_is_the_same_for_two_processes(outcomes: dict) -> None:
    alone, shared = outcomes[1]["whole"], outcomes[2]["whole"]
    assert alone["logits_after"] != alone["logits_before"]
    assert len(alone["logits_before"]) == 19
    for when, tolerance in (("logits_before", 1e-6), ("logits_after", 1e-4)):
        for a, b in zip(alone[when], shared[when], strict=True):
            assert b == pytest.approx(a, abs=tolerance)


@pytest.mark.parametrize(("world_size", "case"), [(1, "whole"), (2, "whole"), (2, "frozen")])
def test_predicted_memory_is_what_is_held(outcomes: dict, world_size: int, case: str) -> None:
    outcome = outcomes[world_size][case]
    for name, measured in outcome["bytes"].items():
        # DDP rounds the gradients' buckets up, and AdamW counts steps; nothing else may differ.
        assert measured == pytest.approx(outcome["predicted"][name], rel=0.01), name


def test_run_killed_in_an_epoch_continues_with_one_process_on_the_same_batches(outcomes: dict) -> None:
    undisturbed, continued = outcomes[2]["killed"], outcomes[1]["killed"]
    assert len(losses(continued)) == 12
    assert losses(continued) == pytest.approx(losses(undisturbed), abs=2e-5)
    assert continued["trained_reviews"] < undisturbed["trained_reviews"], "what was done before is not done again"
    assert any("resumed with 1 processes; before: 2" in note for note in continued["notes"])
