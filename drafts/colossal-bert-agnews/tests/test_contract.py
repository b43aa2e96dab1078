"""What every project promises, for this one: in tensor parallel training with dropout."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from colossal_bert_agnews.cli import main
from trainyard_shared.results import read_json
from trainyard_shared.testing import ProjectContract, run, script


class Harm:
    """What a pickle may hold: a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


class TestContract(ProjectContract):
    package = "colossal-bert-agnews"
    # 512 training articles, 32 in each global batch: 16 steps an epoch, slow enough to be killed in the middle of one.
    tiny = {  # noqa: RUF012
        "num_sample_articles": 572,
        "num_val": 60,
        "epochs": 2,
        "micro_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "tp_size": 2,
        "max_length": 64,
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 16
    bad_flags = (
        (["--hidden-size", "30"], "--hidden-size: 30 is not allowed: must be a multiple of 32"),
        (["--augmentation", "magic"], "--augmentation: magic is not allowed"),
        (["--zero-stage", "3"], "--zero-stage: 3 is not allowed: must be at most 2"),
        (["--num-heads", "3", "--nproc", "2"], "num_heads: 3 is not allowed: does not divide hidden_size 64"),
        (
            ["--tp-size", "3", "--nproc", "2"],
            "--tp-size 3 x --pp-size 1 = 3 does not divide the number of processes, 2; see --nproc",
        ),
        (
            ["--tp-size", "2", "--dp-size", "3", "--nproc", "4"],
            "--tp-size 2 x --pp-size 1 x --dp-size 3 = 6, but there are 4 processes; see --nproc",
        ),
        (["--tp-size", "3", "--nproc", "3"], "--tp-size 3: does not divide the 4 attention heads of --model tiny"),
        (
            ["--pp-size", "3", "--nproc", "3", "--gradient-accumulation-steps", "3"],
            "--pp-size 3: --model tiny has 2 layers",
        ),
        (["--pp-size", "2", "--nproc", "2"], "--pp-size 2 needs --gradient-accumulation-steps 2 or more, found 1"),
        (["--zero-stage", "1", "--nproc", "2"], "--zero-stage 1 needs --precision bf16 or fp16"),
        (["--precision", "fp16", "--device", "cpu", "--nproc", "1"], "--precision fp16: not on a CPU; use --precision"),
    )

    def test_a_checkpoint_that_holds_code_is_not_read(self, reference: Path, tmp_path: Path) -> None:
        folder, mark = tmp_path / reference.name, tmp_path / "harm"
        shutil.copytree(reference, folder)
        *others, newest = sorted((folder / "checkpoints").iterdir())
        for other in others:
            shutil.rmtree(other)
        (file,) = (newest / "optimizer").glob("pytorch_optim-*.bin")
        torch.save({0: Harm(mark)}, file, pickle_module=pickle)
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


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('"5","a title","a text"\n', "train.csv, line 3: the class is '5', expected one of 1 (World), 2 (Sports)"),
        ('"0","a title","a text"\n', "train.csv, line 3: the class is '0', expected one of 1 (World), 2 (Sports)"),
        ('"1","a title"\n', "train.csv, line 3: 2 columns, expected 3"),
    ],
)
def test_bad_rows_are_named_and_leave_nothing_behind(rows: str, words: str, tmp_path: Path) -> None:
    good = '"1","one","text"\n"2","two","text"\n'
    (tmp_path / "test.csv").write_text(good)
    (tmp_path / "train.csv").write_text(good + rows)
    refuses(tmp_path, words)


def test_csv_without_the_expected_columns(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("headline,topic\nnew record,sport\n")
    (tmp_path / "train.csv").write_text("headline,topic\nnew record,sport\n")
    refuses(tmp_path, "csv, line 1: 2 columns, 'headline', 'topic'; expected without a header class (1 to 4), title")


def refuses(folder: Path, words: str) -> None:
    """Training on the data in a folder ends with these words, once, and with no run folder."""
    flags = ["--data", "real", "--data-dir", str(folder), "--nproc", "1"]
    finished = run([script("train"), *flags], folder)
    assert finished.status == 1
    assert finished.stderr.count(words) == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list((folder / "results").glob("*/*"))


@pytest.mark.parametrize(
    ("flag", "status", "words"),
    [
        ("--offline", 1, "AG News is not in"),
        ("--ofline", 2, "error: --ofline: no flag of colossal-bert-agnews download; perhaps you meant --offline"),
    ],
)
def test_download(flag, status, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path))
    assert main(["download", flag]) == status
    assert words in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
