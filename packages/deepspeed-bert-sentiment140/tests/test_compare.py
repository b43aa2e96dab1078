"""`compare`: the variants it asks for, and what it writes."""

import copy
from pathlib import Path
from typing import Any

import pytest
from deepspeed_bert_sentiment140.cli import compare as command
from deepspeed_bert_sentiment140.config import TrainConfig
from trainyard_shared import comparing
from trainyard_shared.comparing import Outcome, Variant
from trainyard_shared.config import parse, preset_folder, to_flags
from trainyard_shared.results import read_json


@pytest.fixture
def ran(trained: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Configs of the runs a comparison asks for; what comes of each is what came of `trained`, but faster."""
    configs = []

    def run_variants(
        module: str, base: str, shared: dict[str, Any], variants: list[Variant], seeds: int, folder: Path
    ) -> list[Outcome]:
        assert module == "deepspeed_bert_sentiment140.train"
        outcomes = []
        for seed in range(seeds):
            for number, variant in enumerate(variants, start=1):
                flags = ["--config", base, *to_flags({**shared, **variant.overrides, "seed": seed})]
                presets = preset_folder("deepspeed_bert_sentiment140")
                configs.append(parse(TrainConfig, flags, prog="train", description="", presets=presets).config)
                summary = copy.deepcopy(read_json(trained / "summary.json"))
                summary["throughput"]["tokens_per_second"] = 100.0 * number
                outcomes.append(Outcome(variant.name, seed, summary, trained))
        return outcomes

    monkeypatch.setattr(comparing, "run_variants", run_variants)
    return configs


def compare(tmp_path: Path, *flags: str) -> str:
    """Run the command and return its report."""
    assert command([*flags, "--out-dir", str(tmp_path)]) == 0
    (folder,) = (tmp_path / "deepspeed-bert-sentiment140").iterdir()
    assert {path.name for path in (folder / "plots").iterdir()} == {
        "test_accuracy.png",
        "tokens_per_second.png",
        "held_bytes.png",
    }
    return (folder / "report.html").read_text()


def test_stages(ran: list[TrainConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = compare(tmp_path, "--epochs", "3", "--seeds", "2")
    stages = ["zero0", "zero1", "zero2", "zero3", "zero3_offload"]
    assert [(config.deepspeed, config.seed) for config in ran] == [(s, seed) for seed in (0, 1) for s in stages]
    assert {(config.epochs, config.nproc, config.baseline) for config in ran} == {(3, 2, False)}
    assert "Stages of ZeRO" in page
    assert "generated" in page.lower()
    said = capfd.readouterr().out
    assert "zero2: 1.00 times the bytes and 3.00 times the tokens/s of zero0." in said
    assert "No variant has the best accuracy beyond doubt at 2 seeds" in said


def test_parallelism_keeps_the_global_batch(ran: list[TrainConfig], tmp_path: Path) -> None:
    compare(tmp_path, "--what", "parallel")
    batches = {
        c.parallel: c.micro_batch_size * c.gradient_accumulation_steps * (2 if c.parallel == "data" else 1) for c in ran
    }
    assert batches == dict.fromkeys(("data", "tensor", "pipeline"), 64)
    assert {config.deepspeed for config in ran} == {"zero0"}


def test_models_and_imbalance(ran: list[TrainConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compare(tmp_path / "models", "--models", "tiny", "some/bert")
    compare(tmp_path / "imbalance", "--what", "imbalance")
    assert [config.model for config in ran[:2]] == ["tiny", "some/bert"]
    assert [config.imbalance for config in ran[2:]] == ["none", "weights", "oversampling", "focal"]
    assert {config.sample_negative for config in ran[2:]} == {0.85}
    assert "One seed says nothing" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--models", "a/bert", "b/bert"], "--models: the names must differ, found bert, bert"),
        (["--what", "parallel", "--nproc", "1"], "--what parallel: one process has nobody to share with"),
    ],
)
def test_what_cannot_be_compared(
    flags: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command([*flags, "--out-dir", str(tmp_path / "results")]) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / "results").exists()
