"""`compare`: the variants it asks for, and what it writes."""

from pathlib import Path
from typing import Any

import pytest
from torchdist_imdb.cli import compare as command
from torchdist_imdb.compare import about_accuracy, about_speed
from torchdist_imdb.config import TrainConfig
from trainyard_shared import comparing
from trainyard_shared.comparing import Outcome, Variant
from trainyard_shared.config import parse, preset_folder, to_flags
from trainyard_shared.results import read_json


@pytest.fixture
def ran(trained: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Configs of the runs a comparison asks for; what comes of each is what came of the run in `trained`."""
    configs = []

    def run_variants(
        module: str, base: str, shared: dict[str, Any], variants: list[Variant], seeds: int, folder: Path
    ) -> list[Outcome]:
        assert module == "torchdist_imdb.train"
        outcomes = []
        for seed in range(seeds):
            for variant in variants:
                flags = ["--config", base, *to_flags({**shared, **variant.overrides, "seed": seed})]
                presets = preset_folder("torchdist_imdb")
                configs.append(parse(TrainConfig, flags, prog="train", description="", presets=presets).config)
                outcomes.append(Outcome(variant.name, seed, read_json(trained / "summary.json"), trained))
        return outcomes

    monkeypatch.setattr(comparing, "run_variants", run_variants)
    return configs


def compare(tmp_path: Path, *flags: str) -> str:
    """Run the command and return its report."""
    assert command([*flags, "--out-dir", str(tmp_path)]) == 0
    (folder,) = (tmp_path / "torchdist-imdb").iterdir()
    assert {path.name for path in (folder / "plots").iterdir()} >= {"test_accuracy.png"}
    return (folder / "report.html").read_text()


def test_models_are_compared_with_equal_settings(
    ran: list[TrainConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = compare(tmp_path, "--models", "tiny", "some/bert", "--seeds", "1", "--epochs", "7", "--nproc", "1", "3")
    assert [(config.model, config.nproc, config.epochs, config.seed) for config in ran] == [
        ("tiny", 3, 7, 0),
        ("some/bert", 3, 7, 0),
    ]
    assert "Pretrained models" in page
    assert "generated" in page.lower()
    assert "One seed says nothing" in capfd.readouterr().out


def test_numbers_of_processes_share_one_global_batch(
    ran: list[TrainConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = compare(tmp_path, "--nproc", "2", "1", "--seeds", "2")
    assert [(config.nproc, config.seed, config.num_threads) for config in ran] == [
        (1, 0, 1),
        (2, 0, 1),
        (1, 1, 1),
        (2, 1, 1),
    ]
    assert len({config.global_batch_size for config in ran}) == 1
    assert "the very same batches" in page
    said = capfd.readouterr().out
    assert "2 processes: 1.00 times the throughput, an efficiency of 50%." in said
    assert "No variant has the best accuracy beyond doubt at 2 seeds" in said


def test_models_of_the_same_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["--models", "a/bert", "b/bert", "--out-dir", str(tmp_path / "results")]) == 2
    assert "--models: the names must differ, found bert, bert" in capfd.readouterr().err


def test_speed_in_words() -> None:
    rows = [
        {"variant": "1 process", "values": {"tokens_per_second": [100.0, 110.0]}},
        {"variant": "2 processes", "values": {"tokens_per_second": [150.0, 165.0]}},
    ]
    assert about_speed(rows, [1, 2]) == ["2 processes: 1.50 times the throughput, an efficiency of 75%."]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([0.90, 0.92], [0.91, 0.93], "No variant has the best accuracy beyond doubt at 2 seeds"),
        ([0.90, 0.91], [0.80, 0.85], "first has the best accuracy"),
        ([0.9], [0.8], "One seed says nothing"),
    ],
)
def test_accuracy_in_words(first: list[float], second: list[float], words: str) -> None:
    rows = [
        {"variant": "first", "values": {"test_accuracy": first}},
        {"variant": "second", "values": {"test_accuracy": second}},
    ]
    assert words in about_accuracy(rows)[0]
