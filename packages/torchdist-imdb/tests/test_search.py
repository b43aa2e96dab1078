"""`search`: trials of real trainings, what it writes, and how it goes on."""

import csv
import sys
from pathlib import Path

import pytest
from torchdist_imdb.cli import search as command
from torchdist_imdb.config import TrainConfig
from trainyard_shared.config import load_preset
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script

TINY = "num_sample_reviews: 120\nnum_val: 20\nmax_length: 16\nhidden_size: 32\nnum_layers: 1\nepochs: 1\nlog_every: 1\n"


def test_search_finds_a_config_to_train_with(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    flags = ["--config", str(tmp_path / "tiny.yaml"), "--nproc", "1", "--out-dir", str(tmp_path / "results")]
    assert command([*flags, "--num-trials", "1", "--dropout", "0.1", "0.2"]) == 0
    (folder,) = (tmp_path / "results" / "torchdist-imdb").iterdir()
    for name in ("trials.csv", "best.yaml", "report.html"):
        (folder / name).unlink()
    assert command(["--resume", str(folder)]) == 0
    said = capfd.readouterr().out
    assert said.count("[1/1] learning rate ") == 1, "the trial is not made a second time"
    with (folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    assert all(0.1 <= float(row["dropout"]) <= 0.2 for row in rows)
    best = max(rows, key=lambda row: float(row["val_accuracy"]))
    config = load_preset(TrainConfig, folder / "best.yaml")
    assert config.learning_rate == float(best["learning_rate"])
    assert config.global_batch_size == int(best["global_batch_size"])
    assert (config.max_length, config.test) == (16, True)
    for summary in folder.glob("runs/*/*/*/summary.json"):
        assert set(read_json(summary)["metrics"]) == {"val_accuracy"}, "the test set is left alone"
    page = (folder / "report.html").read_text()
    assert "Trials, best first" in page
    assert "generated" in page.lower()
    assert (folder / "plots" / "search_history.png").is_file()
    assert command(["--resume", str(folder), "--epochs", "3"]) == 2
    assert "--epochs does not go with --resume: a search keeps its settings" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning-rate", "1", "0.1"], "--learning-rate: 1 is more than 0.1"),
        (["--dropout", "0.1"], "--dropout: 0.1 is not allowed: must be 2 values"),
        (["--resume", "nowhere"], "--resume nowhere: no search folder: it has no search.yaml"),
        (["--config", "blind.yaml"], "num_val is 0, so that nothing judges the trials"),
    ],
)
def test_what_cannot_be_searched(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blind.yaml").write_text("num_val: 0\n")
    assert command(flags) == 2
    assert words in capfd.readouterr().err
    assert not Path("results").exists()


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    for verb in ("search", "predict"):
        assert "torchdist-imdb" in run([script(verb), "--help"], tmp_path).stdout
    code = (
        "import sys\nfrom torchdist_imdb import cli\n"
        "for argv in (['--help'], ['--num-trials', 'x']):\n"
        "    try: cli.search(argv)\n    except SystemExit: pass\n"
        "sys.exit(', '.join({'torch', 'transformers', 'optuna', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    assert run([sys.executable, "-c", code], tmp_path).status == 0
