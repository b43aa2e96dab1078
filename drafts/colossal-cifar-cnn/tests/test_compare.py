"""`compare`: the variants it runs, what it writes, and what it concludes."""

from pathlib import Path
from typing import Any

import pytest
from colossal_cifar_cnn.compare import conclusions, left_out, make_variants
from colossal_cifar_cnn.config import CompareConfig, TrainConfig
from trainyard_shared.errors import UsageError
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script


def test_compare_trains_every_variant_and_reports(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "num_sample_images: 300\nnum_val: 20\nwidths: [8, 8, 8]\nlog_every: 1\nmicro_batch_size: 16\n"
    )
    flags = ["--what", "processes", "--config", "tiny.yaml", "--seeds", "1", "--epochs", "1", "--nproc", "1", "2"]
    finished = run([script("compare"), *flags], tmp_path, timeout_s=160)
    assert finished.status == 0, finished.stderr
    (folder,) = (tmp_path / "results" / "colossal-cifar-cnn").iterdir()
    summaries = [read_json(path) for path in folder.glob("runs/*/*/*/summary.json")]
    assert sorted(summary["world_size"] for summary in summaries) == [1, 2]
    assert {summary["global_batch_size"] for summary in summaries} == {32}
    assert all(0 <= summary["throughput"]["communication_share"] < 1 for summary in summaries)
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("1 process", "2 processes"))
    assert (folder / "plots" / "scaling.png").is_file()
    assert "One seed says nothing" in finished.stdout


def test_variants() -> None:
    bf16 = TrainConfig(precision="bf16", optimizer="hybrid_adam")
    names = [variant.name for variant in make_variants(CompareConfig(), bf16, 128)]
    assert names == ["ddp", "zero1", "zero2", "gemini"]
    assert [v.name for v in make_variants(CompareConfig(), TrainConfig(), 128)] == ["ddp", "zero1", "zero2"]
    assert left_out(TrainConfig(norm="batch")) == [
        "gemini is left out: it would need a config with precision: bf16, optimizer: hybrid_adam, norm: group"
    ]
    config = CompareConfig(what="optimizers", optimizers=("sgd", "lion"), learning_rate_factors=(0.5, 2.0))
    rates = {v.name: v.overrides["learning_rate"] for v in make_variants(config, TrainConfig(), 128)}
    assert rates == pytest.approx({"sgd 0.05": 0.05, "sgd 0.2": 0.2, "lion 0.00015": 1.5e-4, "lion 0.0006": 6e-4})
    with pytest.raises(UsageError, match="--nproc 3: the global batch of 128 images does not divide by 3"):
        make_variants(CompareConfig(what="processes", nproc=(1, 3)), TrainConfig(), 128)


def rows(**values: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [{"variant": name.replace("_", " "), "values": given} for name, given in values.items()]


def test_conclusions_speak_of_differences_only_beyond_the_spread() -> None:
    ddp = {"images_per_second": [100.0, 100.0], "test_accuracy": [0.9, 0.92], "optimizer_bytes": [200.0, 200.0]}
    zero = {"images_per_second": [90.0, 90.0], "test_accuracy": [0.91, 0.93], "optimizer_bytes": [100.0, 100.0]}
    assert conclusions(rows(ddp=ddp, zero1=zero), "plugins") == [
        "zero1: 0.90 times the throughput of ddp, 50% of its optimizer state on a process.",
        "No difference in accuracy can be seen: the ranges of the seeds overlap.",
    ]
    worse = zero | {"test_accuracy": [0.8, 0.85]}
    assert "zero1: the accuracies differ at 2 seeds" in conclusions(rows(ddp=ddp, zero1=worse), "plugins")[1]


def test_the_best_learning_rate_is_that_of_the_validation_images() -> None:
    low = {"val_accuracy": [0.8, 0.8], "test_accuracy": [0.9, 0.9]}
    high = {"val_accuracy": [0.85, 0.85], "test_accuracy": [0.7, 0.7]}
    (sentence,) = conclusions(rows(**{"sgd_0.1": low, "sgd_0.3": high}), "optimizers")
    assert sentence.startswith("sgd: best at a learning rate of 0.3, 85.0")
