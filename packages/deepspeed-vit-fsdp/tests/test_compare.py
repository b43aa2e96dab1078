"""`compare`: the variants it runs, what it writes, and what it concludes."""

from pathlib import Path
from typing import Any

import pytest
from deepspeed_vit_fsdp.compare import METRICS, SHARDING, conclusions, make_variants, readers
from deepspeed_vit_fsdp.config import TrainConfig
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script


def test_compare_trains_every_variant_and_reports(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "num_sample_images: 400\nnum_val: 16\nlog_every: 1\nmicro_batch_size: 48\npatch_size: 8\nhidden_size: 32\n"
        "num_layers: 2\nepochs: 1\n"
    )
    compare = [script("compare"), "--config", "tiny.yaml", "--seeds", "1", "--what", "scaling"]
    finished = run([*compare, "--nproc", "2", "--num-threads", "1"], tmp_path, timeout_s=165)
    assert finished.status == 0, finished.stderr
    (folder,) = (tmp_path / "results" / "deepspeed-vit-fsdp").iterdir()
    summaries = [read_json(path) for path in folder.glob("runs/*/*/*/summary.json")]
    assert sorted((s["engine"], s["world_size"]) for s in summaries) == [
        ("ddp", 1),
        ("ddp", 2),
        ("deepspeed", 1),
        ("deepspeed", 2),
    ]
    assert {summary["global_batch_size"] for summary in summaries} == {96}
    assert "efficiency" in finished.stdout
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
