"""What every project promises, for this one."""

import hashlib
import json
import os
import pickle
import shutil
import socket
from pathlib import Path

import torch
from trainyard_shared.config import to_flags
from trainyard_shared.results import read_json
from trainyard_shared.testing import ProjectContract, run, run_folder, script, weights_digest


class Harm:
    """What a pickle may hold: a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


class TestContract(ProjectContract):
    package = "deepspeed-bert-sentiment140"
    # 512 training tweets, 32 in each global batch: 16 steps an epoch, slow enough to be killed in the middle of one.
    tiny = {  # noqa: RUF012
        "num_sample_tweets": 900,
        "num_train": 512,
        "epochs": 2,
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_length": 64,
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 16
    bad_flags = (
        (["--hidden-size", "30"], "--hidden-size: 30 is not allowed: must be a multiple of 32"),
        (["--layer-decay", "0"], "--layer-decay: 0 is not allowed: must be greater than 0"),
        (["--deepspeed", "zero4"], "--deepspeed zero4: no preset and no file of this name"),
        (["--parallel", "pipeline", "--nproc", "1"], "--parallel pipeline needs 2 or more processes, found 1"),
        (["--parallel", "tensor", "--deepspeed", "zero3"], "--parallel tensor goes with stages 0 and 1 of ZeRO"),
        (
            ["--parallel", "pipeline", "--layer-decay", "0.9"],
            "--layer-decay below 1 in a pipeline needs --deepspeed zero0",
        ),
        (
            ["--parallel", "pipeline", "--deepspeed", "zero0", "--num-frozen-layers", "1"],
            "--num-frozen-layers above 0 does not go with --parallel pipeline",
        ),
        (["--num-classes", "4"], "--num-classes: 4 is not allowed: must be 2 or 3"),
        (["--precision", "fp16", "--device", "cpu"], "--precision fp16: not on a CPU"),
    )

    def test_deepspeeds_own_launcher_gives_the_same_weights(self, reference: Path, tmp_path: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = [script("deepspeed"), "--num_gpus", "2", "--no_local_rank", "--master_port", str(port), "--module"]
        fields = {name: value for name, value in self.tiny.items() if name != "nproc"}  # the launcher says how many
        training = [f"{self.module}.train", *to_flags({**fields, "out_dir": tmp_path / "out"})]
        # The variable lets it count processes where no GPU is.
        finished = run([*launcher, *training], tmp_path, DS_ACCELERATOR="cpu")
        assert finished.status == 0, finished.stderr
        assert weights_digest(run_folder(tmp_path / "out")) == weights_digest(reference)

    def test_a_checkpoint_of_another_form_is_refused(self, reference: Path, tmp_path: Path) -> None:
        for flags, words in (
            (["--nproc", "1"], "was written with world_size 2, now 1"),
            (["--deepspeed", "zero2"], "was written with stage 1, now 2"),
        ):
            finished = run([script("train"), "--resume", str(reference), *flags], tmp_path)
            assert finished.status == 2, finished.stderr
            assert words in finished.stderr
            assert "Traceback" not in finished.stderr
        assert read_json(reference / "summary.json")["state"] == "finished"

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
