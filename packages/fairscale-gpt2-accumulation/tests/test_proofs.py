"""However a step is sharded and accumulated, it computes the same numbers: loss by loss, also with ragged batches."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# No block holds text of two articles: every global batch has shorter blocks among full ones.
pytestmark = pytest.mark.timeout(600)  # all cases of a group run before the first test
BASE = {
    "num_sample_articles": 20,
    "epochs": 1,
    "vocab_size": 900,
    "hidden_size": 32,
    "num_layers": 2,
    "context_length": 48,
    "dropout": 0.0,
    "num_prompts": 0,
    "log_every": 1,
    "checkpoint_every": 3,
    "sharding": "ddp",
}
WAYS = ("oss", "fairscale_fsdp", "ddp", "zero_redundancy", "fsdp2")
AT_ONCE = {"micro_batch_size": 8, "gradient_accumulation_steps": 1}
ACCUMULATED = {"micro_batch_size": 1, "gradient_accumulation_steps": 8}
# Per world size, the same global batch of 16 blocks in different shares.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "ddp": {"micro_batch_size": 16, "gradient_accumulation_steps": 1},
        "oss": {"micro_batch_size": 16, "gradient_accumulation_steps": 1, "sharding": "oss"},
        "bf16": {"micro_batch_size": 16, "gradient_accumulation_steps": 1, "precision": "bf16"},
        "adascale": {"micro_batch_size": 4, "gradient_accumulation_steps": 4, "adascale": True},
        "oss continued": {"micro_batch_size": 16, "gradient_accumulation_steps": 1},
        "fsdp2 continued": {"micro_batch_size": 16, "gradient_accumulation_steps": 1, "sharding": "fsdp2"},
    },
    2: {
        **{way: {**AT_ONCE, "sharding": way} for way in WAYS},
        **{f"{way} accumulated": {**ACCUMULATED, "sharding": way} for way in WAYS},
        "full blocks": {**AT_ONCE, "packing": "stream"},
        "full blocks accumulated": {**ACCUMULATED, "packing": "stream", "sharding": "oss"},
        "bf16 accumulated": {**ACCUMULATED, "precision": "bf16", "sharding": "oss"},
        "other batches": {"micro_batch_size": 4, "gradient_accumulation_steps": 1},
        "adascale": {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "adascale": True},
        "adascale at once": {**AT_ONCE, "adascale": True},
        "default buckets": {**AT_ONCE, "sharding": "oss"},
        "reduce every micro-batch": {**ACCUMULATED, "sharding": "oss"},
        "mean of means": {**ACCUMULATED},
    },
}
RESUMED = (*(f"{way} accumulated" for way in WAYS), "adascale")
WRONG = ("default buckets", "reduce every micro-batch", "mean of means")


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
        assert [process.wait(timeout=500) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
    return json.loads((folder / f"outcome-{world_size}.json").read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Losses, weights, bytes of all cases, by number of processes."""
    folder = tmp_path_factory.mktemp("proofs")
    found = {}
    for world_size in (2, 1):
        cases = {
            name: {
                "config": BASE | overrides,
                "run_dir": f"{name}-{world_size}",
                "fault": name if name in WRONG else None,
            }
            for name, overrides in CASES[world_size].items()
        }
        for name, case in cases.items():
            if name.endswith("continued"):
                kill_after_step_3(folder / f"{name.removesuffix(' continued')}-2", folder / case["run_dir"])
        found[world_size] = run_group(world_size, cases, folder)
        if world_size == 2:
            again = {f"{name} again": cases[name] | {"run_dir": f"{name}-again"} for name in RESUMED}
            for name in RESUMED:
                kill_after_step_3(folder / f"{name}-2", folder / f"{name}-again")
            found[2] |= run_group(2, again, folder)
    return found


def kill_after_step_3(run_dir: Path, copy: Path) -> None:
    """Copy a run as if it had been killed after step 3: what was saved later is gone."""
    shutil.copytree(run_dir, copy)
    first, *others = sorted((copy / "checkpoints").iterdir())
    assert first.name == "step-00000003"
    assert others
    for other in others:
        shutil.rmtree(other)


def losses(outcome: dict[str, Any]) -> list[float]:
    return [loss for _, loss in sorted((int(step), loss) for step, loss in outcome["losses"].items())]


def flat(value: Any) -> list[float]:
    return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between two networks' weights."""
    pairs = ((flat(one["weights"][name]), flat(other["weights"][name])) for name in one["weights"])
    return max(abs(a - b) for left, right in pairs for a, b in zip(left, right, strict=True))


def test_batches_are_ragged(outcomes: dict) -> None:
    lengths = outcomes[2]["ddp"]["lengths"]
    assert max(lengths) == 49, "context_length and the token before it"
    assert sum(length < 49 for length in lengths) >= 15
    assert len(set(lengths)) > 5
    assert len(lengths) % 16, "the last step has fewer blocks than the others"


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_sharding_equals_plain_data_parallel(outcomes: dict, way: str) -> None:
    plain, sharded = outcomes[2]["ddp"], outcomes[2][way]
    assert len(losses(plain)) >= 6
    assert distance(plain, outcomes[2]["other batches"]) > 1e-3, "other batches would give other weights"
    assert losses(sharded) == pytest.approx(losses(plain), abs=1e-5)
    assert distance(sharded, plain) < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_accumulation_8x1_equals_1x8_with_ragged_batches(outcomes: dict, way: str) -> None:
    accumulated = outcomes[2][f"{way} accumulated"]
    assert losses(accumulated) == pytest.approx(losses(outcomes[2]["ddp"]), abs=2e-5)
    assert distance(accumulated, outcomes[2]["ddp"]) < 1e-4


def test_accumulation_8x1_equals_1x8_with_full_blocks(outcomes: dict) -> None:
    one, other = outcomes[2]["full blocks"], outcomes[2]["full blocks accumulated"]
    assert losses(other) == pytest.approx(losses(one), abs=2e-5)
    assert distance(one, outcomes[2]["ddp"]) > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one_with_the_double_batch(outcomes: dict, way: str) -> None:
    assert losses(outcomes[2][way]) == pytest.approx(losses(outcomes[1]["ddp"]), abs=2e-5)


def test_oss_in_one_process_equals_plain_training(outcomes: dict) -> None:
    assert distance(outcomes[1]["oss"], outcomes[1]["ddp"]) < 1e-5


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_ways_to_accumulate_train_differently_and_the_proofs_see_it(outcomes: dict, fault: str) -> None:
    assert distance(outcomes[2][fault], outcomes[2]["ddp"]) > 1e-3


def test_bf16_stays_close_to_fp32(outcomes: dict) -> None:
    # bf16 keeps 8 bits of a number: a relative error of up to 2^-8 in each product.
    full, half = losses(outcomes[1]["ddp"]), losses(outcomes[1]["bf16"])
    assert half != full
    assert half == pytest.approx(full, rel=0.01)
    assert losses(outcomes[2]["bf16 accumulated"]) == pytest.approx(half, rel=0.01)


def test_accumulation_8x_keeps_at_most_a_fifth_of_the_activations(outcomes: dict) -> None:
    """Measured over all steps: whatever autograd keeps at any time, parameters not counted."""
    large, small = outcomes[2]["ddp"]["activation_peak"], outcomes[2]["ddp accumulated"]["activation_peak"]
    assert large > 1_000_000
    assert small <= 0.2 * large
    # What is measured before the first step is what the loop comes to.
    assert outcomes[2]["ddp"]["bytes"]["activations"] == pytest.approx(large, rel=0.05)


@pytest.mark.parametrize("way", WAYS)
def test_a_process_holds_what_was_predicted(outcomes: dict, way: str) -> None:
    outcome = outcomes[2][way]
    for name, measured in outcome["bytes"].items():
        assert measured == pytest.approx(outcome["predicted"][name], rel=0.02), name
    whole = outcomes[2]["ddp"]["bytes"]
    less = {name for name, measured in outcome["bytes"].items() if measured < 0.7 * whole[name]}
    assert (
        less
        == {
            "oss": {"gradients", "optimizer"},
            "fairscale_fsdp": {"parameters", "gradients", "optimizer"},
            "ddp": set(),
            "zero_redundancy": {"optimizer"},
            "fsdp2": {"parameters", "gradients", "optimizer"},
        }[way]
    )


@pytest.mark.parametrize(("case", "world_size"), [("adascale", 2), ("adascale at once", 2), ("adascale", 1)])
def test_adascales_gain_equals_its_definition(outcomes: dict, case: str, world_size: int) -> None:
    """From the gradient of each micro-batch, taken by itself: r = (var + norm) / (var / S + norm)."""
    steps = outcomes[world_size][case]["gains"]
    scale = {"adascale": 4, "adascale at once": 2}[case]
    assert len(steps) >= 5
    variance = norm = weight = 0.0
    for step in steps:
        factor = step["factor"]
        variance = factor * variance + (1 - factor) * step["variance"]
        norm = factor * norm + (1 - factor) * step["norm"]
        weight = factor * weight + (1 - factor)
        gain = (variance + norm) / (variance / scale + norm)
        assert step["gain"] == pytest.approx(gain, rel=1e-3)
        assert 1 <= step["gain"] <= scale
    assert steps[0]["gain"] != pytest.approx(steps[-1]["gain"], rel=1e-3)


def test_adascale_multiplies_the_learning_rate_by_its_gain(outcomes: dict) -> None:
    scaled, plain = outcomes[2]["adascale"], outcomes[2]["ddp"]
    ratios = [scaled["learning_rates"][step] / plain["learning_rates"][step] for step in ("1", "2", "3")]
    assert ratios == pytest.approx([step["gain"] for step in scaled["gains"][:3]], rel=0.1)
    assert distance(scaled, plain) > 1e-3


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_goes_on_bit_by_bit(outcomes: dict, name: str) -> None:
    """The moments of each way of sharding, and AdaScale's averages; the contract adds dropout's random states."""
    undisturbed, again = outcomes[2][name], outcomes[2][f"{name} again"]
    assert len(losses(again)) == len(losses(undisturbed))
    assert losses(again) == losses(undisturbed)
    assert distance(again, undisturbed) == 0.0


@pytest.mark.parametrize("way", ["oss", "fsdp2"])
def test_a_killed_run_continues_with_one_process_instead_of_two(outcomes: dict, way: str) -> None:
    """`oss` is continued by `ddp`: both keep their state in one form."""
    undisturbed, continued = outcomes[2][way], outcomes[1][f"{way} continued"]
    assert losses(continued)[:3] == losses(undisturbed)[:3], "recorded before the kill"
    assert losses(continued) == pytest.approx(losses(undisturbed), abs=2e-5)
    assert distance(continued, undisturbed) < 1e-4
    assert "resumed with 1 processes and a global batch of 16; before: 2 and 16" in continued["notes"][0]


def test_evaluation_is_the_same_for_any_number_of_processes(outcomes: dict) -> None:
    assert outcomes[1]["ddp"]["nll_before"] == pytest.approx(outcomes[2]["ddp"]["nll_before"], rel=1e-6)
