"""What a user may get wrong, and what may break: one clear message each."""

from pathlib import Path

from trainyard_shared.datasets.cifar import make_sample
from trainyard_shared.results import read_json, read_records
from trainyard_shared.testing import run, run_folder, script

TINY = ["--num-val", "20", "--epochs", "1", "--widths", "8", "8", "8", "--log-every", "1", "--nproc", "1"]


def test_missing_data(tmp_path: Path) -> None:
    flags = ["--data", "real", "--data-dir", str(tmp_path / "nowhere"), "--out-dir", "out"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 1
    assert str(tmp_path / "nowhere") in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list((tmp_path / "out").glob("*/*")), "a run that never began leaves no folder"


def test_local_folder_trains(tmp_path: Path) -> None:
    folder = make_sample(tmp_path / "data", "cifar10", num_train=200, num_test=50)
    flags = ["--data", "real", "--data-dir", str(folder), "--micro-batch-size", "16"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 0, finished.stderr


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    flags = ["--num-sample-images", "600", "--learning-rate", "1e30", "--precision", "fp32", "--out-dir", "out"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 1
    assert "the training loss is nan at step" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert read_json(run_folder(tmp_path / "out") / "summary.json")["state"] == "failed"


def test_another_sharding_whose_state_does_not_fit(tmp_path: Path) -> None:
    flags = ["--num-sample-images", "300", "--micro-batch-size", "16", "--sharding", "fsdp2", "--out-dir", "out"]
    assert run([script("train"), *TINY, *flags], tmp_path).status == 0
    folder = run_folder(tmp_path / "out")
    steps = len(read_records(folder))
    finished = run([script("train"), "--resume", str(folder), "--sharding", "oss", "--epochs", "2"], tmp_path)
    assert finished.status == 2
    assert "continue with --sharding fsdp2" in finished.stderr
    assert len(read_records(folder)) == steps
