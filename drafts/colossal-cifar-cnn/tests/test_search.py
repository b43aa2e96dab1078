"""`search`: trials of real trainings, what it writes, and how it goes on."""

import csv
import sys
from pathlib import Path

import pytest
from colossal_cifar_cnn.cli import search as command
from colossal_cifar_cnn.config import TrainConfig
from trainyard_shared.config import load_preset
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script

TINY = "num_sample_images: 300\nnum_val: 40\nwidths: [8, 8, 8]\nepochs: 1\nlog_every: 1\nmodel: cnn\n"


def test_search_finds_a_config_to_train_with(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    flags = ["--config", str(tmp_path / "tiny.yaml"), "--nproc", "1", "--out-dir", str(tmp_path / "results")]
    assert command([*flags, "--num-trials", "1", "--learning-rate-factor", "0.5", "2"]) == 0
    (folder,) = (tmp_path / "results" / "colossal-cifar-cnn").iterdir()
    for name in ("trials.csv", "best.yaml", "report.html"):
        (folder / name).unlink()
    assert command(["--resume", str(folder)]) == 0
    said = capfd.readouterr().out
    assert said.count("[1/1] learning rate ") == 1, "the trial is not made a second time"
    with (folder / "trials.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert 1.5e-3 <= float(row["learning_rate"]) <= 6e-3
    config = load_preset(TrainConfig, folder / "best.yaml")
    assert config.learning_rate == float(row["learning_rate"])
    assert config.global_batch_size == int(row["global_batch_size"])
    assert (config.widths, config.test) == ((8, 8, 8), True)
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
        (["--learning-rate-factor", "1", "0.1"], "--learning-rate-factor: 1 is more than 0.1"),
        (["--label-smoothing", "0.1"], "--label-smoothing: 0.1 is not allowed: must be 2 values"),
        (["--resume", "nowhere"], "--resume nowhere: no search folder: it has no search.yaml"),
        (["--config", "blind.yaml"], "num_val is 0, so that nothing judges the trials"),
        (["--config", "free.yaml"], "weight_decay is 0, of which there are no multiples"),
    ],
)
def test_what_cannot_be_searched(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blind.yaml").write_text("num_val: 0\n")
    Path("free.yaml").write_text("weight_decay: 0\n")
    assert command(flags) == 2
    assert words in capfd.readouterr().err
    assert not Path("results").exists()


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    assert "colossal-cifar-cnn" in run([script("search"), "--help"], tmp_path).stdout
    code = (
        "import sys\nfrom colossal_cifar_cnn import cli\n"
        "for argv in (['--help'], ['--num-trials', 'x']):\n"
        "    try: cli.search(argv)\n    except SystemExit: pass\n"
        "sys.exit(', '.join({'torch', 'colossalai', 'optuna', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    assert run([sys.executable, "-c", code], tmp_path).status == 0
