"""Whole commands: evaluation, the notebook, export, distillation, early stopping, other launchers, bad input."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed_vit_fsdp import cli, data
from deepspeed_vit_fsdp.config import TrainConfig
from deepspeed_vit_fsdp.evaluate import Teacher
from deepspeed_vit_fsdp.train import check, deepspeed_settings
from PIL import Image
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import to_flags
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.results import read_json, read_records
from trainyard_shared.testing import run, run_folder, script

TINY = {
    "num_sample_images": 600,
    "num_val": 60,
    "epochs": 1,
    "patch_size": 8,
    "hidden_size": 32,
    "num_layers": 2,
    "log_every": 2,
    "num_threads": 1,
}
FLAGS = to_flags(TINY | {"nproc": 1})


def test_report_has_all_that_is_asked_of_an_evaluation(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    found = summary["metrics"]
    assert set(found) == {
        "test_accuracy",
        "test_top5_accuracy",
        "test_loss",
        "calibration_error",
        "test_superclass_accuracy",
    }
    assert found["test_accuracy"]["value"] <= found["test_top5_accuracy"]["value"]
    assert found["test_accuracy"]["value"] <= found["test_superclass_accuracy"]["value"]
    stored = np.load(finished / "predictions.npz")
    assert len(stored["labels"]) == summary["data"]["num_test"] == 120
    assert (stored["labels"] == stored["predictions"]).mean() == pytest.approx(found["test_accuracy"]["value"])
    plots = {path.stem for path in (finished / "plots").glob("*.png")}
    assert {"confusion_matrix", "superclass_accuracy", "worst_confusions", "calibration", "curves"} <= plots
    superclasses, confusions = summary["tables"]
    assert len(superclasses["rows"]) == 20
    assert sum(int(row[3]) for row in superclasses["rows"]) == 120
    assert confusions["rows"]
    assert len(summary["per_class"]) == 100


def test_notebook_reads_a_run_folder(finished: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    path = Path(__file__).parents[1] / "notebooks" / "analysis.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "no outputs are committed"
    before = os.environ.get("RUN")
    os.environ["RUN"] = str(finished)
    try:
        done = NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}).execute()
    finally:
        os.environ.pop("RUN") if before is None else os.environ.update(RUN=before)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    accuracy = read_json(finished / "summary.json")["metrics"]["test_accuracy"]["value"]
    assert f"{100 * accuracy:.1f}" in text or f"{100 * accuracy:.2f}" in text
    assert "generated sample" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_export_of_a_finished_run_gives_the_same_logits(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--run", str(finished), "--to", str(tmp_path / "exported")]
    assert cli.export(flags) == 0
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    exported = AutoModelForImageClassification.from_pretrained(tmp_path / "exported").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "exported")
    from trainyard_shared.datasets.cifar import load_sample

    dataset = load_sample("cifar100", num_train=600, num_test=120)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in dataset.test_images[:20]]
    with torch.no_grad():
        probabilities = exported(**processor(pictures, return_tensors="pt")).logits.softmax(dim=1)
    stored = np.load(finished / "predictions.npz")["probabilities"][:20]
    assert probabilities.numpy() == pytest.approx(stored.astype(float), abs=1e-3)
    assert data.Preparation(32).processor()["size"]["height"] == 32
    assert cli.export(flags) == 2
    assert "exported: exists already" in capfd.readouterr().err


def test_export_of_an_unfinished_run_puts_the_shares_together(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "run"
    shutil.copytree(finished, unfinished)
    shutil.rmtree(unfinished / "model")
    assert cli.export(["--run", str(unfinished), "--to", str(tmp_path / "best")]) == 0
    assert "has not finished: its weights, the best so far, of epoch 1" in capfd.readouterr().out
    from deepspeed_vit_fsdp.export import weights_of
    from safetensors.torch import load_file

    trained = load_file(finished / "model" / "model.safetensors")
    assert all(torch.equal(trained[name], t) for name, t in load_file(tmp_path / "best" / "model.safetensors").items())
    newest = CheckpointFolder(unfinished / "checkpoints").newest(print)
    assert newest is not None
    together = weights_of(newest, manifest(newest))  # after one epoch, the last weights are the best
    assert together.keys() == trained.keys()
    assert all(torch.equal(trained[name], tensor) for name, tensor in together.items())


def test_a_student_learns_from_a_teacher_and_training_stops_early(finished: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(finished), "--teacher-weight", "1", "--early-stopping-epochs", "1", "--epochs", "9"]
    done = run([script("train"), *FLAGS, *flags, "--learning-rate", "1e-9", "--out-dir", "out"], tmp_path)
    assert done.status == 0, done.stderr
    folder = run_folder(tmp_path / "out")
    validations = [r for r in read_records(folder) if r["kind"] == "val"]
    assert len(validations) == 2, "the second epoch of a model that learns nothing is not better"
    assert "stopped early after epoch 2" in read_json(folder / "summary.json")["notes"][0]
    first = next(r["loss"] for r in read_records(folder) if r["kind"] == "train")
    assert first < 2, "the distance between two models that know little, not a cross-entropy of 100 classes"


def test_images_of_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, colour in (("red", 0), ("green", 1)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 90, (24, 20, 3), dtype=np.uint8)
            pixels[..., colour] += 120
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    flags = ["--data", "folder", "--data-dir", "images", "--folder-image-size", "16", "--num-val", "8"]
    command = [script("train"), *FLAGS, *flags, "--out-dir", "out", "--micro-batch-size", "4", "--epochs", "6"]
    done = run([*command, "--learning-rate", "3e-3"], tmp_path)
    assert done.status == 0, done.stderr
    folder = run_folder(tmp_path / "out")
    summary = read_json(folder / "summary.json")
    assert summary["data"]["num_test"] == 16
    assert summary["metrics"]["test_accuracy"]["value"] > 0.9
    assert json.loads((folder / "model" / "config.json").read_text())["id2label"] == {"0": "green", "1": "red"}
    (tmp_path / "images" / "red" / "7.png").write_bytes(b"\x89PNG and nothing else")
    broken = run([*command, "--out-dir", "none"], tmp_path)
    assert broken.status == 1
    assert "red/7.png: cannot be read as an image" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert not list((tmp_path / "none").glob("*/*"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"train_batch_size": 7}', "own.json: train_batch_size is 7, which does not fit micro_batch_size x"),
        ('{"zero_optimization": {"stage": 3},\n "bf16"}', "own.json, line 2: not valid JSON"),
        ('{"gradient_clipping": 5.0}', "own.json: gradient_clipping is 5.0, but the config says 1.0"),
        ('{"aio": {"block_size": "auto"}}', 'own.json: aio.block_size is "auto", but nothing in the config decides it'),
    ],
)
def test_a_json_config_that_contradicts_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(UsageError, match=re.escape(words)):
        deepspeed_settings(TrainConfig(deepspeed=str(tmp_path / "own.json")), 2, torch.device("cpu"))


@pytest.mark.parametrize(
    ("num_val", "micro_batch_size", "words"),
    [
        (200, 8, "num_val: 200 is not allowed: there are 200 training images"),
        (0, 500, "500 x 1 x 2 = 1000 images, but there are only 200 training images"),
    ],
)
def test_too_few_images_are_noticed_before_deepspeed_starts(num_val: int, micro_batch_size: int, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        check(TrainConfig(num_val=num_val, micro_batch_size=micro_batch_size), 200, 2)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere, which does not exist"):
        data.load(TrainConfig(data="real", data_dir=tmp_path / "nowhere"))
    with pytest.raises(DataError, match="--teacher nowhere: neither a finished run nor a folder with config"):
        Teacher(Path("nowhere"), 100, torch.device("cpu"))


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch evil",)


def test_a_checkpoint_that_would_run_code_is_not_read(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    checkpoints = CheckpointFolder(folder / "checkpoints")
    newest = checkpoints.newest(print)
    assert newest is not None
    facts = {key: value for key, value in manifest(newest).items() if not key.startswith("sha256")}
    with checkpoints.write(facts.pop("step") + 1, **facts) as forged:  # whose checksums are right
        shutil.copytree(newest, forged, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        (state,) = (forged / "state").glob("*optim_states.pt")
        torch.save({"optimizer_state_dict": Evil()}, state)
    done = run([script("train"), "--resume", str(folder), "--epochs", "2"], tmp_path)
    assert done.status == 1
    assert "holds something else than numbers" in done.stderr
    assert not list(tmp_path.rglob("evil"))


def test_the_deepspeed_launcher_starts_two_processes_without_a_gpu(tmp_path: Path) -> None:
    launcher = [sys.executable, str(Path(sys.executable).with_name("deepspeed"))]
    fields = TINY | {"out_dir": tmp_path / "out", "precision": "bf16"}
    command = [*launcher, "--num_gpus", "2", "--no_local_rank", "--module", "deepspeed_vit_fsdp.train"]
    done = run([*command, *to_flags(fields)], tmp_path, DS_ACCELERATOR="cpu", TMPDIR=str(tmp_path))
    assert done.status == 0, done.stderr
    summary = read_json(run_folder(tmp_path / "out") / "summary.json")
    assert summary["world_size"] == 2
    assert summary["precision"] == "bf16"
