"""`compare` and `search`: real trainings of a few seconds, what is written, and what is said of it."""

import csv
from pathlib import Path

import pytest
from deepspeed_efficientnet_cifar.cli import search as search_command
from deepspeed_efficientnet_cifar.compare import ZERO, conclusions, make_variants
from deepspeed_efficientnet_cifar.config import CompareConfig, TrainConfig
from trainyard_shared.config import load_preset
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script

TINY = (
    "num_sample_images: 200\nnum_val: 20\nmodel: tiny\nimage_size: 32\nepochs: 1\nlog_every: 1\nmicro_batch_size: 16\n"
    "precision: fp32\n"
)


def test_architectures_are_compared(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [script("compare"), "--config", "tiny.yaml", "--seeds", "1", "--models", "tiny", "efficientnet_lite0"]
    finished = run([*command, "--nproc", "1", "--num-threads", "1"], tmp_path, timeout_s=160)
    assert finished.status == 0, finished.stderr
    (folder,) = (tmp_path / "results" / "deepspeed-efficientnet-cifar").iterdir()
    summaries = {s["model"]: s for s in map(read_json, folder.glob("runs/*/*/*/summary.json"))}
    assert summaries.keys() == {"tiny", "efficientnet_lite0"}
    assert summaries["tiny"]["num_parameters"] == 51_988
    assert summaries["efficientnet_lite0"]["flops_per_image"] != summaries["tiny"]["flops_per_image"]
    page = (folder / "report.html").read_text()
    assert all(words in page for words in ("efficientnet_lite0", "51,988", "flops per image"))
    assert (folder / "plots" / "test_accuracy.png").is_file()
    assert "One seed says nothing" in finished.stdout


def test_every_json_config_is_compared() -> None:
    names = {variant.overrides["deepspeed"] for variant in make_variants(CompareConfig(what="zero"))}
    folder = Path(__file__).parents[1] / "src" / "deepspeed_efficientnet_cifar" / "deepspeed"
    assert names == set(ZERO) == {file.stem for file in folder.glob("*.json")}


def test_conclusions_tell_differences_from_noise() -> None:
    def row(name: str, speeds: list[float], accuracies: list[float]) -> dict:
        values = {"images_per_second": speeds, "test_accuracy": accuracies}
        return {"variant": name, "values": values | {"flops_per_image": [10, 10], "held_bytes": [4, 4]}}

    small, large = row("small", [100, 100], [0.8, 0.82]), row("large", [25, 25], [0.9, 0.95])
    assert conclusions([small, large]) == [
        "large: 0.25 times the throughput of small, 1 times the operations, 1 times the bytes for parameters, "
        "gradients and optimizer state.",
        "The accuracies differ at every seed: small and large.",
    ]
    assert "No difference in accuracy" in conclusions([small, row("same", [90, 90], [0.79, 0.81])])[-1]


def test_search_finds_a_config_to_train_with(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    flags = ["--config", str(tmp_path / "tiny.yaml"), "--nproc", "1", "--out-dir", str(tmp_path / "results")]
    assert search_command([*flags, "--num-trials", "1", "--micro-batch-size", "16"]) == 0
    (folder,) = (tmp_path / "results" / "deepspeed-efficientnet-cifar").iterdir()
    for name in ("trials.csv", "best.yaml", "report.html"):
        (folder / name).unlink()
    assert search_command(["--resume", str(folder)]) == 0
    assert capfd.readouterr().out.count("[1/1] learning rate ") == 1, "the trial is not made a second time"
    with (folder / "trials.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    config = load_preset(TrainConfig, folder / "best.yaml")
    assert (config.learning_rate, config.micro_batch_size) == (float(row["learning_rate"]), 16)
    assert config.test
    for summary in folder.glob("runs/*/*/*/summary.json"):
        assert "metrics" not in read_json(summary), "the test set is left alone"
    assert "Trials, best first" in (folder / "report.html").read_text()
    assert (folder / "plots" / "search_history.png").is_file()
    assert search_command(["--resume", str(folder), "--epochs", "3"]) == 2
    assert "--epochs does not go with --resume: a search keeps its settings" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning-rate", "1", "0.1"], "--learning-rate: 1 is more than 0.1"),
        (["--weight-decay", "0.1"], "--weight-decay: 0.1 is not allowed: must be 2 values"),
        (["--resume", "nowhere"], "--resume nowhere: no search folder: it has no search.yaml"),
        (["--config", "blind.yaml"], "num_val is 0, so that nothing judges the trials"),
    ],
)
def test_what_cannot_be_searched(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blind.yaml").write_text("num_val: 0\n")
    assert search_command(flags) == 2
    assert words in capfd.readouterr().err
    assert not Path("results").exists()
