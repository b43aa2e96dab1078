"""Runs by DeepSpeed's launcher, with a JSON file of one's own, and from a checkpoint that is not to be trusted."""

import hashlib
import importlib.resources
import json
import os
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch
from deepspeed_gpt2_pile.config import TrainConfig
from deepspeed_gpt2_pile.train import deepspeed_settings, schedule
from trainyard_shared.errors import UsageError
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, run_folder, script


def test_the_launcher_of_deepspeed_gives_the_same_weights(trained: Path, tmp_path: Path, small: list[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # LOCAL_SIZE: without a GPU, it is what the launcher takes for the number of accelerators.
    command = [script("deepspeed"), "--num_gpus", "2", "--master_port", port, "--module", "deepspeed_gpt2_pile.train"]
    flags = [*small, "--deepspeed", "zero3", "--out-dir", str(tmp_path / "out")]
    path = f"{Path(script('deepspeed')).parent}:{os.environ['PATH']}"
    finished = run([*command, *flags], tmp_path, LOCAL_SIZE="2", DS_ACCELERATOR="cpu", PATH=path)
    assert finished.status == 0, finished.stdout + finished.stderr
    weights = [folder / "model" / "model.safetensors" for folder in (trained, run_folder(tmp_path / "out"))]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def native(**changes: object) -> str:
    file = importlib.resources.files("deepspeed_gpt2_pile") / "deepspeed" / "zero1.json"
    return json.dumps(json.loads(file.read_text()) | changes, indent=2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (native(gradient_clipping=7.0), "own.json: gradient_clipping is 7.0, but the config says 1.0"),
        ("{\n'stage': 1}", "own.json, line 2: not valid JSON"),
    ],
)
def test_a_json_file_that_does_not_fit_is_explained(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(UsageError) as raised:
        deepspeed_settings(TrainConfig(deepspeed=str(tmp_path / "own.json")), 2, torch.device("cpu"))
    assert words in str(raised.value)


def test_batch_sizes_that_do_not_multiply_end_a_run_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(native(train_batch_size=99))
    finished = run([script("train"), "--deepspeed", "own.json", "--nproc", "2"], tmp_path)
    assert finished.status == 2
    words = (
        "own.json: train_batch_size is 99, which does not fit micro_batch_size x gradient_accumulation_steps x "
        "processes = 4 x 1 x 2 = 8"
    )
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list((tmp_path / "results" / "deepspeed-gpt2-pile").iterdir())


class Harm:
    """What a pickle may hold: a call."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def test_a_checkpoint_that_holds_code_is_not_read(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / trained.name
    shutil.copytree(trained, folder)
    (checkpoint,) = sorted((folder / "checkpoints").glob("step-*"))[-1:]
    mark = tmp_path / "harm"
    for file in (checkpoint / "state").glob("*model_states.pt"):
        torch.save({"module": Harm(str(mark))}, file, pickle_module=pickle)
    # As somebody would who means harm, with a manifest that fits.
    content = read_json(checkpoint / "manifest.json")
    content.pop("sha256_of_all_above")
    content["sha256"] = {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in content["sha256"]
    }
    whole = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(content | {"sha256_of_all_above": whole}))
    for other in sorted((folder / "checkpoints").glob("step-*"))[:-1]:
        shutil.rmtree(other)
    finished = run([script("train"), "--resume", str(folder), "--max-restarts", "0"], tmp_path)
    assert not mark.exists(), "its code has run"
    assert finished.status == 1
    assert "holds something else than numbers, and is not read" in finished.stderr


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [schedule(step / 100, 0.1, 0.1) for step in range(101)]
    assert rates[0] > 0
    assert max(rates) == rates[10] == 1
    assert rates[5] == 0.5
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
