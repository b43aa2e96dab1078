"""`compare`: the variants it runs, what it writes, and what it concludes."""

from pathlib import Path
from typing import Any

import pytest
from torchdist_stocks.compare import conclusions, make_variants
from torchdist_stocks.config import CompareConfig
from trainyard_shared.errors import UsageError
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script


def test_compare_trains_every_variant_and_reports(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "num_sample_tickers: 3\nnum_sample_days: 300\ntest_days: 30\nval_days: 20\nnum_folds: 1\nwindow: 8\n"
        "hidden_size: 8\nlog_every: 1\nmicro_batch_size: 16\n"
    )
    compare = [script("compare"), "--config", "tiny.yaml", "--seeds", "1", "--epochs", "1", "--nproc", "1"]
    compare += ["--models", "lstm", "--targets", "return", "log_price"]
    finished = run(compare, tmp_path)
    assert finished.status == 0, finished.stderr
    (folder,) = (tmp_path / "results" / "torchdist-stocks").iterdir()
    summaries = [read_json(path) for path in folder.glob("runs/*/*/*/summary.json")]
    assert [s["global_batch_size"] for s in summaries] == [16, 16]
    assert [s["threads_per_process"] for s in summaries] == [1, 1]
    assert all(set(s["forecasters"]) == {"last value", "drift", "moving average (20)", "LSTM"} for s in summaries)
    page = (folder / "report.html").read_text()
    assert "LSTM, log prices, 1 process" in page
    assert "generated" in page.lower()
    assert (folder / "plots" / "mae_to_last_value.png").is_file()
    assert "one seed says nothing" in finished.stdout


def test_variants_change_one_thing_at_a_time() -> None:
    variants = {v.name: v.overrides for v in make_variants(CompareConfig(), 256)}
    assert list(variants) == [
        "LSTM, returns, 2 processes",
        "GRU, returns, 2 processes",
        "LSTM, log prices, 2 processes",
        "LSTM, returns, 1 process",
    ]
    assert {o["nproc"] * o["micro_batch_size"] for o in variants.values()} == {256}
    assert variants["GRU, returns, 2 processes"]["model"] == "gru"
    assert variants["LSTM, log prices, 2 processes"]["target"] == "log_price"


def test_batch_that_cannot_be_shared_out() -> None:
    with pytest.raises(UsageError, match="the global batch of 640 windows does not divide by 3"):
        make_variants(CompareConfig(nproc=(5, 3)), 640)


def row(name: str, errors: list[float], speed: float = 100.0) -> dict[str, Any]:
    return {"variant": name, "values": {"mae_to_last_value": errors, "windows_per_second": [speed] * len(errors)}}


def test_conclusions_speak_of_differences_only_beyond_the_spread() -> None:
    rows = [row("LSTM", [1.01, 1.03]), row("GRU", [1.02, 1.04], 120.0), row("far", [1.5, 1.6], 50.0)]
    same, differs, smallest = conclusions(rows)
    assert same == (
        "GRU against LSTM: no difference in the errors to be seen at 2 seeds (ranges overlap); 1.20 times the speed."
    )
    assert "the error of 'LSTM' is smaller in every one of 2 seeds (1.5500 against 1.0200); 0.50 times" in differs
    assert "that of LSTM, is 1.0200 times that of 'tomorrow = today'" in smallest
