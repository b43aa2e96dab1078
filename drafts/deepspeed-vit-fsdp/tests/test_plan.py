"""`plan`: what it predicts is what was measured, and what a small GPU cannot hold is said."""

from pathlib import Path

import pytest
import torch
from deepspeed_vit_fsdp import cli, planning
from deepspeed_vit_fsdp.config import PlanConfig, TrainConfig
from deepspeed_vit_fsdp.model import without_weights
from deepspeed_vit_fsdp.plan import count_parameters, rows, settings_of
from trainyard_shared.config import load_preset
from trainyard_shared.results import read_json
from transformers import ViTConfig

SMALL = ViTConfig(
    hidden_size=64, num_hidden_layers=5, num_attention_heads=2, intermediate_size=128, image_size=32, patch_size=8
)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_drawn_out_in_straight_lines_are_those_of_the_whole_model(
    precision: str, checkpointing: bool
) -> None:
    predicted = planning.activation_bytes(SMALL, 13, precision, checkpointing=checkpointing)
    images = torch.zeros(13, 3, 32, 32)
    measured = planning.measured_activation_bytes(without_weights(SMALL), images, precision, checkpointing)
    if not checkpointing:
        assert predicted == pytest.approx(measured, rel=0.001)
    else:
        whole = planning.activation_bytes(SMALL, 13, precision, checkpointing=False)
        assert measured < predicted < 0.6 * whole, "and the layer that is computed again"


def test_peak_of_activations_is_what_is_live_at_the_worst_moment() -> None:
    """Count live tensors of a whole forward and backward pass, with PyTorch's own memory tracker.

    All but parameters and their gradients: the tracker books as temporary what comes into being in the backward pass,
    gradients of activations and much of a layer that is computed again.
    """
    from torch.distributed._tools.mem_tracker import MemTracker

    peaks = {}
    for again in (False, True):
        model = without_weights(SMALL)
        if again:
            planning.use_checkpointing(model)
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            model(pixel_values=torch.zeros(32, 3, 32, 32)).logits.sum().backward()
        found = {getattr(k, "name", k): v for k, v in tracker.get_tracker_snapshot("peak")[torch.device("cpu")].items()}
        peaks[again] = found["ACT"] + found["TEMP"]
    for again, peak in peaks.items():
        predicted = planning.activation_bytes(SMALL, 32, "fp32", checkpointing=again)
        assert predicted == pytest.approx(peak, rel=0.05), again
    assert peaks[True] < 0.6 * peaks[False]


def test_plan_agrees_with_a_run(finished: Path) -> None:
    """Parameters, gradients, optimizer state and activations of the run, within 5 %."""
    summary = read_json(finished / "summary.json")
    batch = load_preset(TrainConfig, finished / "config.yaml").micro_batch_size
    config = PlanConfig(model=str(finished / "model"), world_size=1, micro_batch_size=batch, precision="fp32")
    settings = settings_of(config)
    assert count_parameters(settings) == summary["num_parameters"]
    (row,) = (row for row in rows(settings, count_parameters(settings), config) if row["name"] == ("zero3", "no"))
    measured = summary["memory"]["measured_bytes"]
    for predicted, name in zip(row["bytes"], ("parameters", "gradients", "optimizer", "activations"), strict=False):
        assert measured[name] == pytest.approx(predicted, rel=0.05), name


def test_plan_of_a_huge_model_says_what_does_not_fit(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "large", "--memory-gib", "4", "--world-size", "8", "--micro-batch-size", "8"]
    # Of small images, since plan counts the activations of two of these layers.
    assert cli.plan([*flags, "--image-size", "64"]) == 0
    said = capfd.readouterr().out
    lines = {tuple(line.split()[:2]): line for line in said.splitlines()}
    assert "303,219,812 parameters" in said
    assert "more than 4 GiB" in lines["ddp", "no"]
    assert "more than 4 GiB" not in lines["zero3", "yes"]
    # 303.2 million parameters: 2 bytes each, an eighth of them.
    assert " 72.3 MiB" in lines["zero3", "no"]


def test_plan_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRAINYARD_OFFLINE", "1")
    assert cli.plan(["--world-size", "0"]) == 2
    assert "--world-size: 0 is not allowed" in capfd.readouterr().err
    assert cli.plan(["--model", "nobody/nothing"]) == 1
    assert "--model nobody/nothing: no config to be had" in capfd.readouterr().err
