"""What a user may get wrong, and what may break: one clear message each, and no half-made results folder."""

from pathlib import Path

import pytest
from colossal_cifar_cnn.config import TrainConfig
from colossal_cifar_cnn.data import load
from trainyard_shared.datasets.cifar import make_sample
from trainyard_shared.errors import DataError
from trainyard_shared.results import read_json, read_records
from trainyard_shared.testing import run, run_folder, script

TINY = ["--num-val", "20", "--epochs", "1", "--widths", "8", "8", "8", "--log-every", "1", "--nproc", "1"]


def real_files(folder: Path) -> Path:
    """Files in CIFAR-10's own format for `data: real`; their content is generated, and says so."""
    return make_sample(folder, "cifar10", num_train=200, num_test=50)


def test_truncated_batch(tmp_path: Path) -> None:
    folder = real_files(tmp_path / "data")
    batch = next(folder.rglob("data_batch_2"))
    batch.write_bytes(batch.read_bytes()[:-100])
    flags = ["--data", "real", "--data-dir", str(folder), "--out-dir", "out"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 1
    assert "data_batch_2" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("error:") == 1
    assert not list((tmp_path / "out").glob("*/*")), "a run that never began leaves no folder"


def test_missing_data(tmp_path: Path) -> None:
    # How the message reaches the person at the keyboard is seen above.
    with pytest.raises(DataError, match="nowhere"):
        load(TrainConfig(data="real", data_dir=tmp_path / "nowhere"))


def test_pretrained_weights_that_are_not_there(tmp_path: Path) -> None:
    flags = ["--model", "resnet18", "--norm", "batch", "--pretrained", "missing.pth", "--num-sample-images", "200"]
    finished = run([script("train"), *TINY, *flags, "--micro-batch-size", "16", "--out-dir", "out"], tmp_path)
    assert finished.status == 1
    assert finished.stderr.strip() == "error: --pretrained missing.pth: no such file"
    assert not list((tmp_path / "out").glob("*/*"))


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    flags = ["--num-sample-images", "600", "--optimizer", "sgd", "--learning-rate", "1e30", "--out-dir", "out"]
    finished = run([script("train"), *TINY, *flags, "--widths", "8", "8", "8"], tmp_path)
    assert finished.status == 1
    assert "the training loss is nan at step" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert read_json(run_folder(tmp_path / "out") / "summary.json")["state"] == "failed"


def test_another_optimizer_whose_state_does_not_fit(tmp_path: Path) -> None:
    folder = real_files(tmp_path / "data")
    flags = ["--data", "real", "--data-dir", str(folder), "--micro-batch-size", "16", "--out-dir", "out"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 0, finished.stderr
    run_dir = run_folder(tmp_path / "out")
    # The files say that they are generated, so the report does, although they were passed as the real thing.
    assert read_json(run_dir / "summary.json")["data"]["kind"] == "sample"
    steps = len(read_records(run_dir))
    finished = run([script("train"), "--resume", str(run_dir), "--optimizer", "lion", "--epochs", "2"], tmp_path)
    assert finished.status == 2
    assert "the checkpoint holds the state of adamw; continue with --optimizer adamw" in finished.stderr
    assert len(read_records(run_dir)) == steps
