"""What every project promises, for this one."""

from pathlib import Path

from trainyard_shared.results import read_json
from trainyard_shared.testing import ProjectContract


class TestContract(ProjectContract):
    package = "torchdist-stocks"
    # Two folds of 16 and 20 steps an epoch, two epochs each, slow enough to be killed in the middle of one.
    tiny = {  # noqa: RUF012
        "num_sample_tickers": 4,
        "num_sample_days": 480,
        "test_days": 60,
        "val_days": 20,
        "window": 12,
        "hidden_size": 48,
        "epochs": 2,
        "micro_batch_size": 32,
        "baselines": "simple",
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 16
    bad_flags = (
        (["--horizon", "0"], "--horizon: 0 is not allowed: must be greater than 0"),
        (["--interval", "1"], "--interval: 1 is not allowed: must be less than 1"),
        (["--start", "2010"], "--start: 2010 is not allowed: must be a date such as 2010-12-31"),
        (["--start", "2012-01-01", "--end", "2011-01-01"], "start 2012-01-01 is not before end 2011-01-01"),
        (["--train-days", "30"], "train_days: 30 is not allowed: must be at least window + horizon = 35"),
        (["--target", "price"], "--target: price is not allowed: must be 'return' or 'log_price'"),
        (
            ["--num-sample-tickers", "1", "--micro-batch-size", "5000", "--nproc", "1"],
            "5000 x 1 = 5000 windows, but fold 1 has only 489 training windows",
        ),
    )

    def test_report_says_whether_anything_beats_today(self, reference: Path) -> None:
        summary, page = read_json(reference / "summary.json"), (reference / "report.html").read_text()
        (sentence,) = summary["conclusions"]
        # Pure random walks: whoever beats them has seen the future.
        assert sentence.startswith("Nothing here beats 'tomorrow = today'")
        assert sentence.replace("'", "&#39;") in page
        assert "Walk-forward folds" in page
        forecasters = summary["forecasters"]
        assert set(forecasters) == {"last value", "drift", "moving average (20)", "LSTM"}
        assert forecasters["last value"]["mae_to_last_value"] == 1
        assert 0.97 < forecasters["LSTM"]["mae_to_last_value"] < 1.1
        assert 0.8 < summary["intervals"]["LSTM"]["coverage"] < 0.97
