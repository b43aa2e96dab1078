"""`compare`: the variants it runs, what it writes, and what it concludes."""

import copy
from pathlib import Path
from typing import Any

import pytest
from deepspeed_vit_fsdp.cli import compare as command
from deepspeed_vit_fsdp.compare import METRICS, SHARDING, conclusions, make_variants, readers
from deepspeed_vit_fsdp.config import TrainConfig
from trainyard_shared import comparing
from trainyard_shared.comparing import Outcome, Variant
from trainyard_shared.config import parse, preset_folder, to_flags
from trainyard_shared.results import read_json


@pytest.fixture
def ran(finished: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Configs of the runs a comparison asks for; what comes of each is what came of `finished`, but faster."""
    configs = []

    def run_variants(
        module: str, base: str, shared: dict[str, Any], variants: list[Variant], seeds: int, folder: Path
    ) -> list[Outcome]:
        assert module == "deepspeed_vit_fsdp.train"
        outcomes = []
        for seed in range(seeds):
            for number, variant in enumerate(variants, start=1):
                flags = ["--config", base, *to_flags({**shared, **variant.overrides, "seed": seed})]
                presets = preset_folder("deepspeed_vit_fsdp")
                configs.append(parse(TrainConfig, flags, prog="train", description="", presets=presets).config)
                summary = copy.deepcopy(read_json(finished / "summary.json"))
                summary["throughput"]["images_per_second"] = 100.0 * number
                outcomes.append(Outcome(variant.name, seed, summary, finished))
        return outcomes

    monkeypatch.setattr(comparing, "run_variants", run_variants)
    return configs


def compare(tmp_path: Path, *flags: str) -> Path:
    """Run the command and return its folder."""
    assert command([*flags, "--out-dir", str(tmp_path)]) == 0
    (folder,) = (tmp_path / "deepspeed-vit-fsdp").iterdir()
    return folder


def test_ways_to_share_out_a_step(ran: list[TrainConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = compare(tmp_path, "--epochs", "3", "--seeds", "2", "--nproc", "2")
    ways = [
        (c.engine, c.deepspeed if c.engine == "deepspeed" else "", c.nproc, c.activation_checkpointing) for c in ran
    ]
    assert len(ways) == 2 * len(SHARDING)
    assert ways[:3] == [("ddp", "", 1, False), ("ddp", "", 2, False), ("ddp", "", 2, True)]
    assert {way[1] for way in ways} == {"", "zero1", "zero2", "zero3", "zero3_offload_all"}
    assert ("fsdp2", "", 2, False) in ways
    assert [config.seed for config in ran] == [0] * len(SHARDING) + [1] * len(SHARDING)
    assert {(c.epochs, c.micro_batch_size * c.nproc, c.count_communication) for c in ran} == {(3, 128, True)}
    plots = {path.stem for path in (folder / "plots").iterdir()}
    assert plots == {"images_per_second", "test_accuracy", "measured_bytes", "sent_bytes"}
    page = (folder / "report.html").read_text()
    assert "Ways to share out a step" in page
    assert "generated" in page.lower()
    said = capfd.readouterr().out
    assert "ZeRO-1: 2.00 times the throughput of DDP, 100% of its training state, 100% of its activations" in said
    assert "Memory is predicted within 0.0% of what was measured." in said


def test_scaling_gives_the_efficiency(
    ran: list[TrainConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = compare(tmp_path, "--what", "scaling", "--seeds", "1", "--nproc", "2")
    assert [(c.engine, c.nproc, c.micro_batch_size) for c in ran] == [
        ("deepspeed", 1, 128),
        ("deepspeed", 2, 64),
        ("ddp", 1, 128),
        ("ddp", 2, 64),
    ]
    assert "DDP: 1.33 times the throughput on 2 processes, efficiency 67%." in capfd.readouterr().out
    assert (folder / "plots" / "scaling_ZeRO-3.png").is_file()
    page = (folder / "report.html").read_text()
    assert "ZeRO-3 on 2" in page
    assert "DDP on 1" in page


def test_every_way_is_compared_at_the_same_global_batch() -> None:
    variants = make_variants("sharding", TrainConfig(micro_batch_size=8), 2)
    assert [variant.name for variant in variants] == list(SHARDING)
    batches = {v.name: v.overrides["micro_batch_size"] * v.overrides["nproc"] for v in variants}
    assert set(batches.values()) == {16}
    assert [v.name for v in make_variants("scaling", TrainConfig(), 4)][:3] == [
        "ZeRO-3 on 1",
        "ZeRO-3 on 2",
        "ZeRO-3 on 4",
    ]
    assert set(readers()) == set(METRICS)


def values(speed: float, state: float, activations: float, sent: float, accuracy: list[float]) -> dict[str, Any]:
    return {
        "images_per_second": [speed],
        "test_accuracy": accuracy,
        "parameters_bytes": [state],
        "gradients_bytes": [0],
        "optimizer_bytes": [0],
        "activations_bytes": [activations],
        "measured_bytes": [state + activations],
        "predicted_bytes": [(state + activations) * 1.01],
        "sent_bytes": [sent],
    }


def test_conclusions_say_what_was_gained_and_paid() -> None:
    rows = [
        {"variant": "DDP", "values": values(100, 16, 50, 8, [0.5, 0.6])},
        {"variant": "ZeRO-3", "values": values(80, 8, 50, 12, [0.55, 0.65])},
    ]
    found = conclusions(rows, "sharding")
    assert found[0] == (
        "ZeRO-3: 0.80 times the throughput of DDP, 50% of its training state, 100% of its activations, 1.50 times what "
        "it sends."
    )
    assert found[1] == "Memory is predicted within 1.0% of what was measured."
    assert "No difference in accuracy can be seen" in found[2]
    rows[1]["values"]["test_accuracy"] = [0.7, 0.8]
    assert "do not all overlap" in conclusions(rows, "sharding")[2]


def test_conclusions_of_scaling_give_the_efficiency() -> None:
    rows = [
        {"variant": f"{name} on {count}", "values": {"images_per_second": [speed]}}
        for name, count, speed in (("ZeRO-3", 1, 100.0), ("ZeRO-3", 2, 150.0), ("DDP", 1, 100.0), ("DDP", 2, 180.0))
    ]
    assert conclusions(rows, "scaling") == [
        "ZeRO-3: 1.50 times the throughput on 2 processes, efficiency 75%.",
        "DDP: 1.80 times the throughput on 2 processes, efficiency 90%.",
    ]


def test_batches_that_cannot_be_shared_out() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        make_variants("scaling", TrainConfig(micro_batch_size=1), 3)
