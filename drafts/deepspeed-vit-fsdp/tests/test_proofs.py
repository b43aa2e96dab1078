"""However a step is shared out, and in however many micro-batches, it computes the same numbers: loss by loss."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed_vit_fsdp import model
from deepspeed_vit_fsdp.communication import predicted_bytes
from deepspeed_vit_fsdp.data import Preparation
from deepspeed_vit_fsdp.planning import STRATEGIES, state_bytes
from transformers import ViTConfig, ViTForImageClassification

pytestmark = pytest.mark.timeout(600)  # all cases of a group run before the first test
BASE: dict[str, Any] = {
    "num_sample_images": 200,
    "num_val": 40,
    "epochs": 1,
    "patch_size": 8,
    "hidden_size": 64,
    "num_layers": 2,
    "log_every": 1,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "layer_decay": 0.8,
    "learning_rate": 2e-3,
}
HALF = {"micro_batch_size": 16}
ACCUMULATED = {"micro_batch_size": 8, "gradient_accumulation_steps": 2}
# Every way to share out a step, on two processes.
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp"},
    "fsdp2": {"engine": "fsdp2"},
    "zero0": {"deepspeed": "zero0"},
    "zero1": {"deepspeed": "zero1"},
    "zero2": {"deepspeed": "zero2"},
    "zero3": {"deepspeed": "zero3"},
    "zero3_offload": {"deepspeed": "zero3_offload"},
    "zero3_offload_all": {"deepspeed": "zero3_offload_all"},
}
ACCUMULATING = ("ddp", "fsdp2", "zero0", "zero2", "zero3")
CONTINUED = ("zero0", "zero1", "zero2", "zero3", "fsdp2")
PLAIN = {"layer_decay": 1.0, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
MANY_LAYERS = PLAIN | {"num_layers": 16, "num_val": 136}  # two steps
ONE_STEP = PLAIN | {"num_val": 168}
# Per world size, the same global batch of 32 images in different shares.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        **{way: HALF | {"count_communication": True} | values for way, values in WAYS.items()},
        **{f"{way} stopped": HALF | {"checkpoint_every": 3} | WAYS[way] for way in CONTINUED},
        **{f"{way} accumulated": ACCUMULATED | WAYS[way] for way in ACCUMULATING},
        "zero3 checkpointing": HALF | {"activation_checkpointing": True},
        "ddp checkpointing": HALF | {"activation_checkpointing": True, "engine": "ddp"},
        "fsdp2 checkpointing": HALF | {"activation_checkpointing": True, "engine": "fsdp2"},
        **{f"{way} bf16": HALF | {"precision": "bf16"} | WAYS[way] for way in ("ddp", "fsdp2", "zero1", "zero3")},
        "other batches": {"micro_batch_size": 8, "engine": "ddp"},
        "standard": HALF | ONE_STEP | {"initialization": "standard"},
        **{f"pretrained {way}": HALF | PLAIN | WAYS[way] | {"model": "pretrained"} for way in ("ddp", "zero3")},
        "new head": HALF | ONE_STEP | {"model": "pretrained 7 classes"},
        **{f"{way} of many layers": HALF | MANY_LAYERS | WAYS[way] for way in ("zero1", "zero2")},
        "zero1 bf16 of many layers": HALF | MANY_LAYERS | WAYS["zero1"] | {"precision": "bf16"},
        "not divided by the accumulation": ACCUMULATED,
        "weights of the library under zero.Init": HALF | ONE_STEP | {"initialization": "standard"},
    },
    1: {
        "ddp": {"micro_batch_size": 32, "engine": "ddp"},
        "zero3": {"micro_batch_size": 32},
        "zero3 bf16": {"micro_batch_size": 32, "precision": "bf16"},
        "standard": {"micro_batch_size": 32, "engine": "ddp", "initialization": "standard"} | ONE_STEP,
        **{f"{way} continued": {"micro_batch_size": 32} | WAYS[way] for way in CONTINUED},
        "another stage": {"micro_batch_size": 32, "deepspeed": "zero1"},
        "no number": {"micro_batch_size": 32, "learning_rate": 1e30, "max_grad_norm": 0.0},
    },
}
MANY_LAYERS_OF = ("zero1", "zero2", "zero1 bf16")
FAULTS = ("not divided by the accumulation", "weights of the library under zero.Init")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Losses, outputs and weights of all cases, by number of processes."""
    folder = tmp_path_factory.mktemp("proofs")
    pretrained = {"pretrained": 100, "pretrained 7 classes": 7}
    for name, num_classes in pretrained.items():
        make_pretrained(folder / name, num_classes)
    groups = []
    for world_size in (2, 1):
        cases = {}
        for name, overrides in CASES[world_size].items():
            if overrides.get("model") in pretrained:
                overrides = overrides | {"model": str(folder / overrides["model"])}
            way = name.removesuffix(" continued")
            cases[name] = {
                "config": BASE | overrides,
                "continues": f"{'zero3' if name == 'another stage' else way} stopped-2"
                if way != name or name == "another stage"
                else None,
                "fault": name if name in FAULTS else None,
            }
        groups.append({"folder": str(folder), "world_size": world_size, "cases": cases})
    run_groups(folder, groups)
    found = {}
    for world_size in (2, 1):
        found[world_size] = json.loads((folder / f"outcome-{world_size}.json").read_text())
        with np.load(folder / f"weights-{world_size}.npz") as weights:
            for name, outcome in found[world_size].items():
                outcome["weights"] = weights[name]
    return found


def run_groups(folder: Path, groups: list[dict[str, Any]]) -> None:
    """Run `proof_worker.py` to its end."""
    (folder / "groups.json").write_text(json.dumps(groups))
    worker = Path(__file__).with_name("proof_worker.py")
    command = [sys.executable, "-W", "ignore", str(worker), str(folder / "groups.json")]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)
    try:
        assert process.wait(timeout=500) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def make_pretrained(folder: Path, num_classes: int) -> None:
    """Save a small ViT for larger images than CIFAR's, as it would come from the Hub."""
    torch.manual_seed(7)
    settings = ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=48,
        patch_size=16,
        num_labels=num_classes,
    )
    model.save(folder, settings, ViTForImageClassification(settings).state_dict(), Preparation(48).processor())


def losses(outcome: dict[str, Any]) -> list[float]:
    return [loss for _, loss in sorted((int(step), loss) for step, loss in outcome["losses"].items())]


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The root of the mean squared difference between two models' weights."""
    return float(np.sqrt(np.square(one["weights"] - other["weights"]).mean()))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "ddp"])
def test_every_way_of_sharding_equals_plain_data_parallel(outcomes: dict, way: str) -> None:
    plain, sharded = outcomes[2]["ddp"], outcomes[2][way]
    assert len(losses(plain)) == 5, "160 images in batches of 32"
    assert losses(sharded) == pytest.approx(losses(plain), abs=1e-5)
    # AdamW turns the rounding of tiny gradients into whole steps of single weights: compare all weights together.
    assert distance(sharded, plain) < 0.02 * distance(outcomes[2]["other batches"], plain)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one_with_the_double_batch(outcomes: dict, way: str) -> None:
    assert losses(outcomes[2][way]) == pytest.approx(losses(outcomes[1]["ddp"]), abs=2e-5)


def test_zero3_in_one_process_equals_plain_training(outcomes: dict) -> None:
    assert losses(outcomes[1]["zero3"]) == pytest.approx(losses(outcomes[1]["ddp"]), abs=1e-5)


@pytest.mark.parametrize("way", ACCUMULATING)
def test_accumulation_equals_one_large_batch(outcomes: dict, way: str) -> None:
    assert losses(outcomes[2][f"{way} accumulated"]) == pytest.approx(losses(outcomes[2]["ddp"]), abs=2e-5)


def test_accumulated_gradients_are_divided_and_the_proof_would_notice_if_not(outcomes: dict) -> None:
    # AdamW hides a factor on all gradients from the losses; their norm does not.
    at_once, accumulated = (outcomes[2][name]["grad_norm"] for name in ("zero3", "zero3 accumulated"))
    assert accumulated == pytest.approx(at_once, rel=1e-3)
    assert outcomes[2]["not divided by the accumulation"]["grad_norm"] > 1.9 * at_once


@pytest.mark.parametrize("way", ["zero3", "ddp", "fsdp2"])
def test_activation_checkpointing_changes_no_loss_and_saves_activations(outcomes: dict, way: str) -> None:
    again, once = outcomes[2][f"{way} checkpointing"], outcomes[2][way]
    assert losses(again) == pytest.approx(losses(once), abs=1e-5)
    assert again["bytes"]["activations"] < 0.75 * once["bytes"]["activations"], "of two layers one is computed again"


@pytest.mark.parametrize("way", ["ddp", "fsdp2", "zero1", "zero3"])
def test_bf16_stays_close_to_fp32(outcomes: dict, way: str) -> None:
    # bf16 keeps 8 bits of a number: a relative error of up to 2^-8 in each product.
    full, half = losses(outcomes[1]["ddp"]), losses(outcomes[2][f"{way} bf16"])
    assert half != full
    assert half == pytest.approx(full, rel=0.03)


def test_a_model_from_scratch_begins_with_the_weights_of_plain_training(outcomes: dict) -> None:
    plain, sharded = outcomes[1]["standard"]["initial"], outcomes[2]["standard"]["initial"]
    assert sharded == pytest.approx(plain, abs=1e-6)
    assert losses(outcomes[2]["standard"]) == pytest.approx(losses(outcomes[1]["standard"]), abs=2e-5)


def test_the_proof_would_notice_the_weights_that_zero_init_begins_with(outcomes: dict) -> None:
    wrong, right = outcomes[2]["weights of the library under zero.Init"], outcomes[1]["standard"]
    assert max(abs(wrong["initial"][name] - total) for name, total in right["initial"].items()) > 1


def test_a_pretrained_model_is_read_in_slices_and_trains_as_a_whole_one(outcomes: dict) -> None:
    plain, sliced = outcomes[2]["pretrained ddp"], outcomes[2]["pretrained zero3"]
    assert sliced["initial"] == pytest.approx(plain["initial"], abs=1e-6)
    assert losses(sliced) == pytest.approx(losses(plain), abs=2e-5)
    assert not plain["notes"], "its head fits"


def test_a_new_head_on_a_pretrained_model(outcomes: dict) -> None:
    found, plain = outcomes[2]["new head"], outcomes[2]["pretrained ddp"]
    assert found["notes"] == ["new weights on top of the pretrained ones: classifier.bias, classifier.weight"]
    encoder = {name: total for name, total in plain["initial"].items() if not name.startswith("classifier")}
    assert {name: found["initial"][name] for name in encoder} == pytest.approx(encoder, abs=1e-6)
    assert 0.01 < found["spread"]["classifier.weight"] < 0.03, "drawn with a deviation of 0.02"
    assert losses(found)[0] == pytest.approx(math.log(100), abs=0.3), "knows nothing of the 100 classes yet"


def test_evaluation_of_101_images_is_the_same_for_any_number_of_processes(outcomes: dict) -> None:
    # The same initial weights everywhere; 101 does not divide by 2.
    alone, shared = outcomes[1]["zero3"]["logits_before"], outcomes[2]["zero3"]["logits_before"]
    assert len(alone) == len(shared) == 101
    for a, b in zip(alone, shared, strict=True):
        assert b == pytest.approx(a, abs=1e-5)


@pytest.mark.parametrize("way", [*WAYS, "zero3 checkpointing", "ddp bf16", "fsdp2 bf16", "zero1 bf16", "zero3 bf16"])
def test_a_process_holds_what_was_predicted(outcomes: dict, way: str) -> None:
    outcome = outcomes[2][way]
    assert set(outcome["bytes"]) == {"parameters", "gradients", "optimizer", "activations"}
    for name, measured in outcome["bytes"].items():
        assert measured == pytest.approx(outcome["predicted"][name], rel=0.05), name


@pytest.mark.parametrize("way", MANY_LAYERS_OF)
def test_with_many_layers_stages_1_and_2_hold_what_the_formula_of_plan_says(outcomes: dict, way: str) -> None:
    # With few, a matrix that is cut between two processes counts: both keep the whole gradient.
    outcome, (stage, *bf16) = outcomes[2][f"{way} of many layers"], way.split()
    strategy = next(strategy for strategy in STRATEGIES if strategy.name == stage)
    formula = state_bytes(outcome["num_parameters"], strategy, 2, "bf16" if bf16 else "fp32", reduced=True)
    for name, predicted in formula.items():
        assert outcome["bytes"][name] == pytest.approx(predicted, rel=0.05), name


def test_each_stage_shares_out_more(outcomes: dict) -> None:
    held = {way: outcomes[2][way]["bytes"] for way in WAYS}
    for name, sharing in (
        ("parameters", ("zero3", "zero3_offload", "zero3_offload_all", "fsdp2")),
        ("optimizer", ("fsdp2",)),  # the others keep a second copy of the parameters, which is shared out as well
    ):
        whole = held["ddp"][name]
        assert {way for way in WAYS if held[way][name] < 0.51 * whole} == set(sharing)
    assert held["zero3"]["gradients"] < 0.51 * held["ddp"]["gradients"]
    assert held["zero1"]["optimizer"] == pytest.approx(0.5 * 1.5 * held["zero0"]["optimizer"], rel=0.01)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_step_sends_is_the_formula(outcomes: dict, way: str) -> None:
    outcome = outcomes[2][way]
    strategy = next(strategy for strategy in STRATEGIES if strategy.name == way)
    # FSDP2 keeps what belongs to no layer (patches, head) between forward and backward pass, and gathers it once.
    tolerance = 0.1 if way == "fsdp2" else 0.01
    predicted = predicted_bytes(outcome["num_parameters"], strategy, 2, "fp32")
    assert outcome["sent"]["sent_bytes"] == pytest.approx(predicted, rel=tolerance)


@pytest.mark.parametrize("way", CONTINUED)
def test_a_killed_run_continues_with_another_number_of_processes(outcomes: dict, way: str) -> None:
    """For ZeRO through the universal checkpoint."""
    undisturbed, continued = outcomes[2][way], outcomes[1][f"{way} continued"]
    assert len(losses(continued)) == 5
    assert losses(continued)[:3] == losses(undisturbed)[:3], "recorded before the kill"
    assert losses(continued) == pytest.approx(losses(undisturbed), abs=2e-5)
    assert distance(continued, undisturbed) < 0.02 * distance(outcomes[2]["other batches"], undisturbed)
    assert "resumed with 1 processes and a global batch of 32; before: 2 and 32" in continued["notes"][0]


def test_a_checkpoint_of_another_stage_is_refused(outcomes: dict) -> None:
    refused = outcomes[1]["another stage"]
    assert refused["exit_status"] == 2
    assert "the checkpoint is one of engine deepspeed, stage 3" in refused["error"]


def test_a_loss_that_is_no_number_stops_the_run(outcomes: dict) -> None:
    stopped = outcomes[1]["no number"]
    assert "the training loss is nan at step" in stopped["error"]
    assert "lower --learning-rate" in stopped["error"]
