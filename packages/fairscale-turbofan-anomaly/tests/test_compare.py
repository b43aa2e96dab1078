"""The comparison: every way trains the same, and its sentences say what the figures show."""

from pathlib import Path
from typing import Any

import pytest
from fairscale_turbofan_anomaly.checkpointing import apply
from fairscale_turbofan_anomaly.compare import VARIANTS, conclusions, measure, memory_sentences
from fairscale_turbofan_anomaly.config import TrainConfig
from fairscale_turbofan_anomaly.sharding import WAYS
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script


def test_compare_with_and_without_checkpointing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "num_sample_engines: 6\nwindow: 12\nchunk: 4\nhidden_size: 8\nnum_layers: 1\nlog_every: 1\n"
    )
    compare = [script("compare"), "--config", "tiny.yaml", "--seeds", "1", "--epochs", "1", "--lengths", "32", "64"]
    finished = run([*compare, "--nproc", "2", "--num-threads", "1"], tmp_path, timeout_s=160)
    assert finished.status == 0, finished.stderr
    (folder,) = (tmp_path / "results" / "fairscale-turbofan-anomaly").iterdir()
    summaries = [read_json(path) for path in folder.glob("runs/*/*/*/summary.json")]
    assert {summary["checkpointing"] for summary in summaries} == {"none", "fairscale", "torch"}
    f1 = [summary["metrics"]["test_f1"]["value"] for summary in summaries]
    assert f1 == pytest.approx([f1[0]] * 3, abs=0.02)
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("fairscale", "torch", "64 cycles"))
    assert (folder / "plots" / "activation_memory.png").is_file()
    assert len((folder / "activations.csv").read_text().splitlines()) == 1 + 2 * 3
    assert "One seed says nothing" in finished.stdout


def test_every_way_is_compared() -> None:
    assert set(VARIANTS["sharding"]) == set(WAYS)
    with pytest.raises(ValueError, match="no way of checkpointing called 'fairscal'"):
        apply(None, "fairscal")  # type: ignore[arg-type]


def test_measured_gradients_are_equal_and_sentences_say_so() -> None:
    rows = measure(TrainConfig(hidden_size=8, num_layers=1, chunk=8), (64,))
    assert [row["way"] for row in rows] == ["none", "fairscale", "torch"]
    assert all(row["largest_difference"] < 1e-5 for row in rows)
    made = [
        {"length": 64, "way": "none", "activation_bytes": 200, "seconds": 1.0, "largest_difference": 0.0},
        {"length": 64, "way": "torch", "activation_bytes": 20, "seconds": 1.3, "largest_difference": 1e-8},
    ]
    assert memory_sentences(made) == [
        "64 cycles, torch: 10.0% of the activations, 1.30 times the time, gradients differ by 1e-08 of the largest."
    ]


def row(variant: str, *f1: float) -> dict[str, Any]:
    costs = {"windows_per_second": [100.0], "activation_bytes": [10.0], "held_bytes": [10.0]}
    return {"variant": variant, "values": {"test_f1": list(f1), **costs}}


def test_conclusions_name_what_is_above_every_baseline_and_nothing_else() -> None:
    networks = [row("lstm", 0.90, 0.92), row("gru", 0.78, 0.9), row("transformer", 0.5, 0.5)]
    found = conclusions([*networks, row("z-score", 0.7, 0.8), row("CUSUM", 0.6, 0.6)], "model")
    assert found == [
        "F1: the worst seed of lstm is above the best seed of every baseline.",
        "F1: on the engines of every seed, lstm, gru is above every baseline.",
        "The ranges of at least two variants overlap.",
    ]
    assert conclusions([row("none", 0.9, 0.8), row("fairscale", 0.9, 0.8)], "checkpointing")[-1] == (
        "No difference in F1 can be seen: the ranges of the seeds overlap."
    )
