"""What a user may get wrong, and what may break: one clear message, and nothing left that a next run would trust."""

import dataclasses
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
from torchdist_cifar.config import TrainConfig
from torchdist_cifar.data import load
from trainyard_shared.config import to_yaml
from trainyard_shared.datasets.cifar import make_sample
from trainyard_shared.errors import DataError
from trainyard_shared.results import read_json, read_records
from trainyard_shared.testing import run, run_folder, script

TINY = ["--num-val", "20", "--epochs", "1", "--widths", "8", "8", "8", "--log-every", "1", "--nproc", "1"]


def real_files(folder: Path) -> Path:
    """Files in CIFAR-10's own format for `data: real`; their content is generated, and says so."""
    return make_sample(folder, "cifar10", num_train=200, num_test=50)


class TestData:
    flags: ClassVar = [script("train"), "--data", "real", *TINY]

    def fails(self, data_dir: Path, tmp_path: Path) -> str:
        finished = run([*self.flags, "--data-dir", str(data_dir), "--out-dir", "out"], tmp_path)
        assert finished.status == 1, finished
        assert "Traceback" not in finished.stderr
        assert finished.stderr.count("error:") == 1, finished.stderr
        assert not list((tmp_path / "out").glob("*/*")), "a run that never began leaves no folder"
        return finished.stderr

    def test_local_folder_trains(self, tmp_path: Path) -> None:
        folder = real_files(tmp_path / "data")
        finished = run([*self.flags, "--micro-batch-size", "16", "--data-dir", str(folder)], tmp_path)
        assert finished.status == 0, finished.stderr
        # The files say that they are generated, so the report does, although they were passed as the real thing.
        assert read_json(run_folder(tmp_path / "results") / "summary.json")["data"]["kind"] == "sample"

    def test_missing_folder(self, tmp_path: Path) -> None:
        assert str(tmp_path / "nowhere") in self.fails(tmp_path / "nowhere", tmp_path)

    def test_truncated_batch(self, tmp_path: Path) -> None:
        folder = real_files(tmp_path / "data")
        batch = next(folder.rglob("data_batch_2"))
        batch.write_bytes(batch.read_bytes()[:-100])
        assert "data_batch_2" in self.fails(folder, tmp_path)

    def test_missing_batch(self, tmp_path: Path) -> None:
        # How the message reaches the person at the keyboard is seen above.
        folder = real_files(tmp_path / "data")
        next(folder.rglob("data_batch_3")).unlink()
        with pytest.raises(DataError, match="data_batch_3"):
            load(TrainConfig(data="real", data_dir=folder))


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    finished = run(
        [script("train"), "--num-sample-images", "600", *TINY, "--learning-rate", "1e30", "--out-dir", "out"], tmp_path
    )
    assert finished.status == 1
    assert "the training loss is nan at step" in finished.stderr
    assert "try a lower --learning-rate" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert read_json(run_folder(tmp_path / "out") / "summary.json")["state"] == "failed"


def test_gpu_that_is_not_there(tmp_path: Path) -> None:
    finished = run([script("train"), "--device", "cuda"], tmp_path, CUDA_VISIBLE_DEVICES="")
    assert finished.status == 2
    assert finished.stderr.strip() == "error: --device cuda: torch finds no GPU here; use --device cpu"


def test_full_disk_keeps_the_run_resumable(tmp_path: Path) -> None:
    """A checkpoint that does not fit ends the run with a message; the folder holds no half-written checkpoint."""
    if not shutil.which("mount"):
        pytest.skip("needs mount for a small tmpfs")
    small = tmp_path / "small"
    small.mkdir()
    mounted = run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], tmp_path)
    if mounted.status:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        flags = ["--num-sample-images", "600", *TINY, "--epochs", "2", "--widths", "64", "64", "64"]
        finished = run([script("train"), *flags, "--out-dir", str(small)], tmp_path)
        assert finished.status == 1
        assert "cannot be written" in finished.stderr
        assert "Traceback" not in finished.stderr
        assert not list(run_folder(small).glob("checkpoints/*"))
    finally:
        run(["umount", str(small)], tmp_path)


def test_run_killed_before_its_first_checkpoint_logs_each_step_once(tmp_path: Path) -> None:
    folder = tmp_path / "20260101-000000-sample"
    folder.mkdir()
    config = dataclasses.replace(
        TrainConfig(), num_sample_images=600, num_val=20, epochs=1, widths=(8, 8, 8), log_every=1, nproc=1
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.3}\n{"kind": "train", "st')
    finished = run([script("train"), "--resume", str(folder)], tmp_path)
    assert finished.status == 0, finished.stderr
    assert [r["step"] for r in read_records(folder) if r["kind"] == "train"] == list(range(1, 10))
