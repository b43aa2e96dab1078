"""What a user may get wrong, and what may break: one clear message each."""

import json
from pathlib import Path

import pytest
import torch
from deepspeed_efficientnet_cifar.config import TrainConfig
from deepspeed_efficientnet_cifar.train import deepspeed_settings
from trainyard_shared.errors import UsageError
from trainyard_shared.results import read_json, read_records
from trainyard_shared.testing import run, run_folder, script

TINY = ["--num-val", "20", "--epochs", "1", "--model", "tiny", "--image-size", "32", "--log-every", "1"]
CPU = torch.device("cpu")


def settings_of(content: object, folder: Path, **fields: object) -> dict:
    file = folder / "own.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return deepspeed_settings(TrainConfig(**{"deepspeed": str(file), **fields}), 2, CPU)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train_batch_size": 100}, "train_batch_size is 100, which does not fit micro_batch_size x gradient_accum"),
        ({"optimizer": {"params": {"lr": 0.5}}}, "optimizer.params.lr is 0.5, but the config says 0.002"),
        ({"torch_autocast": {"enabled": False}}, "torch_autocast.enabled is False, but the config says True"),
        (
            {"zero_optimization": {"stage": "auto"}},
            'zero_optimization.stage is "auto", but nothing in the config decides',
        ),
        ('{\n"zero_optimization": {"stage": 2},\n}', "own.json, line 3: not valid JSON"),
    ],
)
def test_json_that_contradicts_the_config(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        settings_of(content, tmp_path)
    assert words in str(raised.value)


def test_json_of_the_users_own(tmp_path: Path) -> None:
    content = {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}, "zero_optimization": {"stage": 2}}
    settings = settings_of(content, tmp_path, learning_rate=0.5, gradient_accumulation_steps=3)
    assert settings["optimizer"]["params"] == {"lr": 0.5}, "nothing is added to it"
    assert settings["train_batch_size"] == 64 * 3 * 2


def test_missing_data(tmp_path: Path) -> None:
    flags = ["--data", "real", "--data-dir", str(tmp_path / "nowhere"), "--out-dir", "out", "--nproc", "1"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 1
    assert str(tmp_path / "nowhere") in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list((tmp_path / "out").glob("*/*")), "a run that never began leaves no folder"


def test_another_stage_or_number_of_processes_is_refused(tmp_path: Path) -> None:
    flags = ["--num-sample-images", "200", "--micro-batch-size", "16", "--nproc", "1", "--out-dir", "out"]
    assert run([script("train"), *TINY, *flags], tmp_path).status == 0, "a single process trains"
    folder = run_folder(tmp_path / "out")
    steps = len(read_records(folder))
    finished = run([script("train"), "--resume", str(folder), "--deepspeed", "zero3"], tmp_path)
    assert finished.status == 2
    assert "the checkpoint is one of stage 2, this run of stage 3" in finished.stderr
    assert len(read_records(folder)) == steps


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    flags = ["--num-sample-images", "200", "--micro-batch-size", "16", "--nproc", "1", "--out-dir", "out"]
    flags += ["--learning-rate", "1e30", "--precision", "fp32", "--warmup-fraction", "0"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 1
    assert "the training loss is nan at step" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert read_json(run_folder(tmp_path / "out") / "summary.json")["state"] == "failed"
