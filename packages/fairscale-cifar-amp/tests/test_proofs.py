"""However a step is sharded, and in however many micro-batches, it computes the same numbers: loss by loss."""

import json
import os
import shutil
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
    "precision": "fp32",
    "checkpoint_every": 3,
}
WAYS = ("oss", "fairscale_fsdp", "ddp", "zero_redundancy", "fsdp2")
ACCUMULATED = {"micro_batch_size": 4, "gradient_accumulation_steps": 4}
# Per world size, the same global batch of 32 images in different shares.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "oss": {"micro_batch_size": 32, "sharding": "oss"},
        "ddp": {"micro_batch_size": 32, "sharding": "ddp"},
        "bf16": {"micro_batch_size": 32, "precision": "bf16"},
        "oss continued": {"micro_batch_size": 32, "sharding": "ddp"},
        "fsdp2 continued": {"micro_batch_size": 32, "sharding": "fsdp2"},
    },
    2: {
        **{way: {"micro_batch_size": 16, "sharding": way} for way in WAYS},
        **{f"{way} accumulated": {**ACCUMULATED, "sharding": way} for way in WAYS},
        **{f"{way} fp16": {"micro_batch_size": 16, "sharding": way, "precision": "fp16"} for way in WAYS},
        "bf16": {"micro_batch_size": 16, "precision": "bf16"},
        "default buckets": {"micro_batch_size": 16},
        "reduce every micro-batch": {**ACCUMULATED},
        "overflow on rank 1": {"micro_batch_size": 16, "precision": "fp16"},
    },
    4: {
        "oss": {"micro_batch_size": 8},
        "other batches": {"micro_batch_size": 4},
        "fairscale_fsdp continued": {"micro_batch_size": 8, "sharding": "fairscale_fsdp"},
    },
}
WRONG_SETTINGS = ("default buckets", "reduce every micro-batch")
FAULTS = (*WRONG_SETTINGS, "overflow on rank 1")


def run_group(world_size: int, cases: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `proof_worker.py` in a group of processes and return what it wrote."""
    (folder / f"cases-{world_size}.json").write_text(json.dumps(cases))
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
    processes = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(world_size)]
    try:
        assert [process.wait(timeout=160) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
    return json.loads((folder / f"outcome-{world_size}.json").read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Losses, outputs and weights of all cases, by number of processes."""
    folder = tmp_path_factory.mktemp("proofs")
    found = {}
    for world_size in (2, 1, 4):
        cases = {}
        for name, overrides in CASES[world_size].items():
            run_dir = f"{name}-{world_size}"
            if name.endswith("continued"):
                shutil.copytree(folder / f"{name.removesuffix(' continued')}-2", folder / run_dir)
                # As if it had been killed between step 3 and step 6.
                shutil.rmtree(folder / run_dir / "checkpoints" / "step-00000006")
            fault = name if name in FAULTS else None
            cases[name] = {"config": BASE | overrides, "run_dir": run_dir, "fault": fault}
        found[world_size] = run_group(world_size, cases, folder)
    return found


def losses(outcome: dict[str, Any]) -> list[float]:
    return [loss for _, loss in sorted((int(step), loss) for step, loss in outcome["losses"].items())]


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between two networks' weights."""

    def flat(value: Any) -> list[float]:
        return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]

    pairs = ((flat(one["weights"][name]), flat(other["weights"][name])) for name in one["weights"])
    return max(abs(a - b) for left, right in pairs for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_sharding_equals_plain_data_parallel(outcomes: dict, way: str) -> None:
    plain, sharded = outcomes[2]["ddp"], outcomes[2][way]
    assert len(losses(plain)) == 8, "256 images in batches of 32"
    assert distance(plain, outcomes[4]["other batches"]) > 1e-3, "other batches would give other weights"
    assert losses(sharded) == pytest.approx(losses(plain), abs=1e-6)
    assert distance(sharded, plain) < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one_with_the_double_batch(outcomes: dict, way: str) -> None:
    assert losses(outcomes[2][way]) == pytest.approx(losses(outcomes[1]["ddp"]), abs=2e-5)


@pytest.mark.parametrize("way", WAYS)
def test_accumulation_equals_one_large_batch(outcomes: dict, way: str) -> None:
    assert losses(outcomes[2][f"{way} accumulated"]) == pytest.approx(losses(outcomes[2]["ddp"]), abs=2e-5)


@pytest.mark.parametrize("fault", WRONG_SETTINGS)
def test_settings_that_fairscale_suggests_train_wrongly_and_the_proofs_see_it(outcomes: dict, fault: str) -> None:
    assert distance(outcomes[2][fault], outcomes[2]["ddp"]) > 1e-3


def test_oss_in_one_process_equals_plain_training(outcomes: dict) -> None:
    assert distance(outcomes[1]["oss"], outcomes[1]["ddp"]) < 1e-6


def test_bf16_stays_close_to_fp32(outcomes: dict) -> None:
    # bf16 keeps 8 bits of a number: a relative error of up to 2^-8 in each product.
    full, half = losses(outcomes[1]["ddp"]), losses(outcomes[1]["bf16"])
    assert half != full
    assert half == pytest.approx(full, rel=0.03)
    assert losses(outcomes[2]["bf16"]) == pytest.approx(half, rel=0.03)


@pytest.mark.parametrize("way", WAYS)
def test_fp16_with_loss_scaling_stays_close_to_fp32(outcomes: dict, way: str) -> None:
    half, full = outcomes[2][f"{way} fp16"], outcomes[2]["ddp"]
    assert losses(half) != losses(full)
    assert losses(half) == pytest.approx(losses(full), rel=0.03)
    assert half["scale"] == 65_536, "nothing overflowed"


def test_an_overflow_that_one_process_sees_makes_all_skip_the_step(outcomes: dict) -> None:
    overflow = outcomes[2]["overflow on rank 1"]
    assert overflow["scale"] == 32_768, "rank 0 has heard of it"
    before, after = losses(outcomes[2]["oss fp16"]), losses(overflow)
    assert after[:3] == before[:3]
    assert after[3:] != before[3:]
    assert after == pytest.approx(before, rel=0.05), "one step less, and no infinite weight"


@pytest.mark.parametrize("world_size", [2, 4])
def test_evaluation_of_101_images_is_the_same_for_any_number_of_processes(outcomes: dict, world_size: int) -> None:
    # The same initial weights everywhere; 101 divides by neither 2 nor 4.
    alone = outcomes[1]["oss"]["logits_before"]
    shared = outcomes[world_size]["oss"]["logits_before"]
    assert len(alone) == len(shared) == 101
    for a, b in zip(alone, shared, strict=True):
        assert b == pytest.approx(a, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_process_holds_what_was_predicted(outcomes: dict, way: str) -> None:
    outcome = outcomes[2][way]
    # PyTorch's successor of OSS shares out whole parameters, too, but does not say which: an even share is predicted.
    tolerance = 0.2 if way == "zero_redundancy" else 0.01
    for name, measured in outcome["bytes"].items():
        assert measured == pytest.approx(outcome["predicted"][name], rel=tolerance), name
    whole = outcomes[2]["ddp"]["bytes"]
    halved = {name for name, measured in outcome["bytes"].items() if measured < 0.6 * whole[name]}
    assert (
        halved
        == {
            "oss": {"gradients", "optimizer"},
            "fairscale_fsdp": {"parameters", "gradients", "optimizer"},
            "ddp": set(),
            "zero_redundancy": {"optimizer"},
            "fsdp2": {"parameters", "gradients", "optimizer"},
        }[way]
    )


@pytest.mark.parametrize(("way", "world_size"), [("oss", 1), ("fsdp2", 1), ("fairscale_fsdp", 4)])
def test_a_killed_run_continues_with_another_number_of_processes(outcomes: dict, way: str, world_size: int) -> None:
    undisturbed, continued = outcomes[2][way], outcomes[world_size][f"{way} continued"]
    assert len(losses(continued)) == 8
    assert losses(continued)[:3] == losses(undisturbed)[:3], "recorded before the kill"
    assert losses(continued) == pytest.approx(losses(undisturbed), abs=2e-5)
    assert distance(continued, undisturbed) < 1e-4
    assert f"resumed with {world_size} processes and a global batch of 32; before: 2 and 32" in continued["notes"][0]
