"""`compare`: the variants it asks for, and what it writes."""

import copy
from pathlib import Path
from typing import Any

import pytest
from colossal_bert_agnews import layout
from colossal_bert_agnews.cli import compare as command
from colossal_bert_agnews.config import TrainConfig
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
        assert module == "colossal_bert_agnews.train"
        outcomes = []
        for seed in range(seeds):
            for number, variant in enumerate(variants, start=1):
                flags = ["--config", base, *to_flags({**shared, **variant.overrides, "seed": seed})]
                presets = preset_folder("colossal_bert_agnews")
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
    (folder,) = (tmp_path / "colossal-bert-agnews").iterdir()
    plots = {path.name for path in (folder / "plots").iterdir()}
    assert plots == {"test_accuracy.png", "tokens_per_second.png", "held_bytes.png"}
    return (folder / "report.html").read_text()


@pytest.mark.parametrize(("nproc", "count"), [(2, 3), (4, 5)])
def test_layouts_keep_the_global_batch(ran: list[TrainConfig], nproc: int, count: int, tmp_path: Path) -> None:
    page = compare(tmp_path, "--nproc", str(nproc), "--epochs", "3")
    assert len(ran) == count
    shapes = [layout.check(config, nproc) for config in ran]
    batches = [
        c.micro_batch_size * c.gradient_accumulation_steps * shape.dp for c, shape in zip(ran, shapes, strict=True)
    ]
    assert set(batches) == {32 * nproc}
    assert len(set(shapes)) == count
    assert "Parallel layouts" in page
    assert "generated" in page.lower()


def test_conclusions(ran: list[TrainConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compare(tmp_path, "--seeds", "2")
    said = capfd.readouterr().out
    assert "tensor: 1.00 times the bytes and 2.00 times the tokens/s of data." in said
    assert "No variant has the best accuracy beyond doubt at 2 seeds" in said


def test_models_cleaning_and_augmentation(
    ran: list[TrainConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    compare(tmp_path / "models", "--models", "tiny", "some/bert")
    compare(tmp_path / "cleaning", "--what", "cleaning", "--num-train", "500")
    compare(tmp_path / "augmentation", "--what", "augmentation")
    assert [config.model for config in ran[:2]] == ["tiny", "some/bert"]
    assert [(c.clean, c.remove_stop_words) for c in ran[2:5]] == [(False, False), (True, False), (True, True)]
    assert [config.augmentation for config in ran[5:]] == ["none", "deletion", "swap", "synonyms", "eda"]
    assert ran[2].num_train == 500
    assert "One seed says nothing" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--models", "a/bert", "b/bert"], "--models: the names must differ, found bert, bert"),
        (["--nproc", "1"], "--what layouts: one process has nobody to share with"),
        (["--nproc", "3"], "--tp-size 3: does not divide the 4 attention heads of --model tiny"),
    ],
)
def test_what_cannot_be_compared(
    flags: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command([*flags, "--out-dir", str(tmp_path / "results")]) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / "results").exists()
