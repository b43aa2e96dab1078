"""`compare`: the variants it runs, what it writes, and what it concludes."""

from pathlib import Path
from typing import Any

from fairscale_cifar_amp.compare import conclusions, make_variants
from fairscale_cifar_amp.sharding import WAYS
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script


def test_compare_trains_every_variant_and_reports(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "num_sample_images: 300\nnum_val: 20\nwidths: [8, 8, 8]\nlog_every: 1\nmicro_batch_size: 16\n"
    )
    compare = [script("compare"), "--config", "tiny.yaml", "--seeds", "1", "--epochs", "1"]
    finished = run([*compare, "--nproc", "2", "--num-threads", "1"], tmp_path, timeout_s=160)
    assert finished.status == 0, finished.stderr
    (folder,) = (tmp_path / "results" / "fairscale-cifar-amp").iterdir()
    summaries = [read_json(path) for path in folder.glob("runs/*/*/*/summary.json")]
    assert {summary["precision"] for summary in summaries} == {"fp32", "bf16"}
    assert {summary["global_batch_size"] for summary in summaries} == {32}
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("fp32", "bf16"))
    assert (folder / "plots" / "images_per_second.png").is_file()
    assert "One seed says nothing" in finished.stdout


def test_every_way_of_sharding_is_compared() -> None:
    assert {variant.overrides["sharding"] for variant in make_variants("sharding")} == set(WAYS)


def rows(fp32: dict[str, list[float]], bf16: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [{"variant": "fp32", "values": fp32}, {"variant": "bf16", "values": bf16}]


def test_conclusions_say_that_mixed_precision_is_slower_and_why() -> None:
    fp32 = {"images_per_second": [100.0, 100.0], "test_accuracy": [0.9, 0.92], "activation_bytes": [200.0, 200.0]}
    bf16 = {"images_per_second": [25.0, 25.0], "test_accuracy": [0.91, 0.93], "activation_bytes": [120.0, 120.0]}
    notes = ["this CPU has no bf16 units: it converts every number back and forth"]
    assert conclusions(rows(fp32, bf16), "precision", "bf16", notes) == [
        "bf16: 0.25 times the throughput of fp32, 60% of its activations.",
        "No difference in accuracy can be seen: the ranges of the seeds overlap.",
        "This CPU has no bf16 units: it converts every number back and forth.",
    ]
    worse = bf16 | {"test_accuracy": [0.8, 0.85]}
    assert "bf16: the accuracies differ at 2 seeds" in conclusions(rows(fp32, worse), "precision", "bf16", [])[1]
