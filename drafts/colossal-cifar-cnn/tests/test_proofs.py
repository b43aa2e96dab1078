"""Whatever a plugin shares out, and in however many micro-batches, it computes the same numbers: loss by loss."""

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
    "flip": "random",
    "cutout": 4,
    "rotation": 10,
    "checkpoint_every": 3,
    "profile_steps": 0,
}
FP32 = ("ddp", "zero1", "zero2")
PLUGINS = (*FP32, "gemini")
OPTIMIZERS = ("sgd", "adam", "adamw", "hybrid_adam", "lion")
ACCUMULATED = {"micro_batch_size": 4, "gradient_accumulation_steps": 4}
# Gemini computes in 16 bits, with HybridAdam; the others of this kind are what it is compared with.
NARROW = {"precision": "bf16", "optimizer": "hybrid_adam", "micro_batch_size": 16}


def of(plugin: str, **changes: Any) -> dict[str, Any]:
    """A case of 16 images for each of two processes."""
    return {"micro_batch_size": 16, **(NARROW if plugin == "gemini" else {}), "plugin": plugin, **changes}


# Per world size, the same global batch of 32 images in different shares.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        **{plugin: of(plugin) for plugin in PLUGINS},
        **{f"{plugin} accumulated": of(plugin, **ACCUMULATED) for plugin in PLUGINS},
        **{f"{plugin} continued": of(plugin) for plugin in PLUGINS},
        **{f"{optimizer} shared out": of("zero1", optimizer=optimizer) for optimizer in OPTIMIZERS},
        "zero1 bf16": of("zero1", **NARROW),
        "zero1 bf16 continued": of("zero1", **NARROW),
        "masters from 16 bits continued": of("zero1", **NARROW),
        "zero1 fp16": of("zero1", precision="fp16"),
        "gemini fp16": of("gemini", precision="fp16"),
    },
    1: {
        **{optimizer: {"micro_batch_size": 32, "plugin": "ddp", "optimizer": optimizer} for optimizer in OPTIMIZERS},
        "zero1": {"micro_batch_size": 32, "plugin": "zero1"},
        "batch norm": {"micro_batch_size": 32, "norm": "batch", "precision": "bf16"},
        "zero2 continued": {"micro_batch_size": 32, "plugin": "ddp"},
        "other batches": {"micro_batch_size": 16, "plugin": "ddp"},
    },
}
FAULT = "masters from 16 bits"


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
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(timeout=160) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
    return json.loads((folder / f"outcome-{world_size}.json").read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Losses, outputs and weights of all cases, by number of processes.

    A case that is continued begins where the run of two processes of the same name would have been killed between
    step 3 and step 6; all are run in one start, one after the other, so it finds that run made.
    """
    folder = tmp_path_factory.mktemp("proofs")
    found: dict[int, dict[str, Any]] = {}
    for world_size in (2, 1):
        rounds: tuple[dict[str, Any], ...] = ({}, {})
        for name, overrides in CASES[world_size].items():
            continued = name.endswith("continued")
            case = {"config": BASE | overrides, "run_dir": f"{name}-{world_size}"}
            rounds[continued][name] = case | {"fault": FAULT if name.startswith(FAULT) else None}
        if world_size == 1:  # those of two processes are there already
            rounds = (rounds[0] | rounds[1], {})
        found[world_size] = {}
        for cases in rounds:
            for name, case in cases.items():
                if name.endswith("continued"):
                    origin = "zero1 bf16" if name.startswith(FAULT) else name.removesuffix(" continued")
                    shutil.copytree(folder / f"{origin}-2", folder / case["run_dir"])
                    shutil.rmtree(folder / case["run_dir"] / "checkpoints" / "step-00000006")
            if cases:
                found[world_size] |= run_group(world_size, cases, folder)
    return found


def losses(outcome: dict[str, Any]) -> list[float]:
    return [loss for _, loss in sorted((int(step), loss) for step, loss in outcome["losses"].items())]


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between two networks' weights."""

    def flat(value: Any) -> list[float]:
        return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]

    pairs = ((flat(one["weights"][name]), flat(other["weights"][name])) for name in one["weights"])
    return max(abs(a - b) for left, right in pairs for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("plugin", FP32)
def test_every_plugin_equals_one_process_with_the_whole_batch(outcomes: dict, plugin: str) -> None:
    alone = losses(outcomes[1]["adamw"])
    assert len(alone) == 8, "256 images in batches of 32"
    assert losses(outcomes[2][plugin]) == pytest.approx(alone, abs=2e-5)
    assert losses(outcomes[1]["other batches"])[:8] != pytest.approx(alone, abs=1e-3), "the test can fail"


@pytest.mark.parametrize("plugin", ["zero1", "zero2"])
def test_zero_equals_plain_data_parallel(outcomes: dict, plugin: str) -> None:
    assert losses(outcomes[2][plugin]) == pytest.approx(losses(outcomes[2]["ddp"]), abs=1e-6)


def test_zero_in_one_process_equals_plain_training(outcomes: dict) -> None:
    assert losses(outcomes[1]["zero1"]) == pytest.approx(losses(outcomes[1]["adamw"]), abs=1e-6)


@pytest.mark.parametrize("plugin", FP32)
def test_accumulation_equals_one_large_batch(outcomes: dict, plugin: str) -> None:
    assert losses(outcomes[2][f"{plugin} accumulated"]) == pytest.approx(losses(outcomes[2][plugin]), abs=2e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_that_is_shared_out_makes_no_difference(outcomes: dict, optimizer: str) -> None:
    assert losses(outcomes[2][f"{optimizer} shared out"]) == pytest.approx(losses(outcomes[1][optimizer]), abs=2e-5)


def test_hybrid_adam_on_a_cpu_is_adamw(outcomes: dict) -> None:
    assert losses(outcomes[1]["hybrid_adam"]) == pytest.approx(losses(outcomes[1]["adamw"]), abs=2e-5)
    assert losses(outcomes[1]["adam"]) != pytest.approx(losses(outcomes[1]["adamw"]), abs=2e-5)


def test_gemini_equals_zero_in_the_same_numbers(outcomes: dict) -> None:
    # Both add up gradients in bf16 and update fp32 masters; only where the parameters lie differs.
    assert losses(outcomes[2]["gemini"]) == pytest.approx(losses(outcomes[2]["zero1 bf16"]), rel=2e-3)
    assert losses(outcomes[2]["gemini accumulated"]) == pytest.approx(losses(outcomes[2]["gemini"]), rel=0.01)


@pytest.mark.parametrize("case", ["zero1 bf16", "zero1 fp16"])
def test_16_bits_stay_close_to_32(outcomes: dict, case: str) -> None:
    # bf16 keeps 8 bits of a number: a relative error of up to 2^-8 in each product.
    full, half = losses(outcomes[1]["adamw"]), losses(outcomes[2][case])
    assert half != full
    assert half == pytest.approx(full, rel=0.03)


def test_fp16_scales_the_loss(outcomes: dict) -> None:
    assert outcomes[2]["zero1 fp16"]["scale"] == outcomes[2]["gemini fp16"]["scale"] == 65_536, "nothing overflowed"
    assert losses(outcomes[2]["gemini fp16"]) == pytest.approx(losses(outcomes[2]["zero1 fp16"]), rel=0.03)


def test_batch_statistics_stay_in_fp32_in_a_network_of_16_bits(outcomes: dict) -> None:
    means = outcomes[1]["batch norm"]["weights"]["blocks.0.norm1.running_mean"]
    assert any(value != float(f"{value:.2g}") for value in means), "more digits than bf16 has"
    assert max(map(abs, means)) > 1e-3, "they have moved"


def test_evaluation_of_101_images_is_the_same_for_any_number_of_processes(outcomes: dict) -> None:
    # The same initial weights everywhere; 101 does not divide by 2.
    alone, shared = outcomes[1]["adamw"]["logits_before"], outcomes[2]["ddp"]["logits_before"]
    assert len(alone) == len(shared) == 101
    for a, b in zip(alone, shared, strict=True):
        assert b == pytest.approx(a, abs=1e-6)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_process_holds_what_was_predicted(outcomes: dict, plugin: str) -> None:
    outcome = outcomes[2][plugin]
    for name, measured in outcome["bytes"].items():
        assert measured == pytest.approx(outcome["predicted"][name], rel=0.02), name


@pytest.mark.parametrize("plugin", ["zero1", "zero2"])
def test_zero_halves_the_optimizer_state(outcomes: dict, plugin: str) -> None:
    whole, half = outcomes[2]["ddp"]["bytes"], outcomes[2][plugin]["bytes"]
    assert half["optimizer"] == pytest.approx(whole["optimizer"] / 2, rel=0.02)
    assert half["parameters"] == whole["parameters"]


def test_zero_2_halves_the_gradients(outcomes: dict) -> None:
    gradients = {plugin: outcomes[2][plugin]["bytes"]["gradients"] for plugin in FP32}
    assert gradients["zero2"] == pytest.approx(gradients["zero1"] / 2, rel=0.02)
    assert gradients["zero1"] == pytest.approx(gradients["ddp"], rel=0.02)


def test_gemini_shares_out_parameters_as_well(outcomes: dict) -> None:
    gemini, zero = outcomes[2]["gemini"]["bytes"], outcomes[2]["zero1 bf16"]["bytes"]
    # Its chunks are filled up: somewhat more than half.
    assert gemini["parameters"] < 0.75 * zero["parameters"]
    assert gemini["gradients"] == 0, "they take the place of the parameters"


@pytest.mark.parametrize("case", [*PLUGINS, "zero1 bf16"])
def test_a_killed_run_ends_with_the_same_weights(outcomes: dict, case: str) -> None:
    undisturbed, continued = outcomes[2][case], outcomes[2][f"{case} continued"]
    assert distance(undisturbed, continued) == 0.0
    assert losses(undisturbed) == losses(continued)


def test_masters_made_from_16_bit_weights_would_part_company(outcomes: dict) -> None:
    assert distance(outcomes[2]["zero1 bf16"], outcomes[2][f"{FAULT} continued"]) > 1e-5


def test_a_killed_run_continues_with_another_number_of_processes_by_another_plugin(outcomes: dict) -> None:
    undisturbed, continued = outcomes[2]["zero2"], outcomes[1]["zero2 continued"]
    assert losses(continued)[:3] == losses(undisturbed)[:3], "recorded before the kill"
    assert losses(continued) == pytest.approx(losses(undisturbed), abs=2e-5)
    assert "resumed with 1 processes and a global batch of 32; before: 2 and 32" in continued["notes"][0]
