"""Test-set metrics and pictures, with every image counted exactly once by however many processes."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from trainyard_shared import console, launch, metrics, plotting, plotting_images, results
from trainyard_shared.calibration import Calibration, calibration
from trainyard_shared.config import load_preset
from trainyard_shared.datasets.cifar import ImageDataset
from trainyard_shared.errors import DataError
from trainyard_shared.report import write_report
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches

from deepspeed_vit_fsdp import data, model
from deepspeed_vit_fsdp.config import EvaluateConfig, TrainConfig

BATCH_SIZE = 100
MODEL = "model"  # folder in a run folder: a plain Hugging Face model
PREDICTIONS = "predictions.npz"
NUM_WORST_PAIRS = 20
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Scores(NamedTuple):
    """What the model says of a set of images, in their order; the same on every process."""

    logits: Tensor
    """(N, K) on the CPU"""
    seconds: float
    """wall time"""


@torch.inference_mode()
def predict(
    module: nn.Module, preparation: data.Preparation, images: Tensor, precision: str, device: torch.device
) -> Scores:
    """Return the outputs for all images; each process computes its share.

    Args:
        module: a plain module on `device`; a sharded one would wait for peers that have no batch left.
        preparation: what the model wants done to its images.
        images: (N, 3, H, W) uint8.
        precision: fp32, bf16 or fp16.
        device: where to compute.
    """
    start = launch.seconds_since_command()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    was_training = module.training
    module.eval()
    pieces = []
    for index in shard_batches(len(images), BATCH_SIZE, rank, world_size):
        batch = preparation(images[index].to(device))
        with torch.autocast(device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES):
            pieces.append(module(pixel_values=batch).logits.float().cpu())
    module.train(was_training)
    own = torch.cat(pieces) if pieces else torch.empty(0, module.config.num_labels)
    return Scores(gather_in_order(own, len(images)), launch.seconds_since_command() - start)


class Teacher:
    """A trained model whose outputs another learns. Every process has the whole of it.

    Args:
        path: a run folder of this project, or a Hugging Face folder.
        num_classes: that it must have.
        device: where to compute.

    Raises:
        DataError: there is no model, or it has other classes.
    """

    def __init__(self, path: Path, num_classes: int, device: torch.device) -> None:
        folder = path / MODEL if (path / MODEL).is_dir() else path
        if not (folder / "config.json").is_file():
            raise DataError(f"error: --teacher {path}: neither a finished run nor a folder with config.json")
        self.module = model.load_trained(folder).to(device).eval().requires_grad_(False)
        if self.module.config.num_labels != num_classes:
            raise DataError(
                f"error: --teacher {path}: it has {self.module.config.num_labels} classes, the data {num_classes}"
            )
        self.preparation = data.Preparation.of_processor(model.processor_of(str(folder)), self.module.config.image_size)

    @torch.no_grad()
    def __call__(self, images: Tensor, prepared_by: data.Preparation) -> Tensor:
        """Return its outputs (B, K) for a batch that was prepared for the student."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (prepared_by.mean, prepared_by.std))
        pixels = (images * std + mean) * 255
        return self.module(pixel_values=self.preparation(pixels)).logits.float()


def test_and_report(
    module: nn.Module,
    preparation: data.Preparation,
    dataset: ImageDataset,
    config: TrainConfig,
    device: torch.device,
    folder: results.RunFolder,
    summary: dict[str, Any],
    train_end_s: float | None = None,
) -> None:
    """Test the model on the whole test set; rank 0 writes weights, metrics, pictures, summary and report.

    Args:
        module: the chosen weights; all processes hold the same.
        preparation: what it wants done to its images.
        dataset: gives the test set.
        config: of the run.
        device: where to compute.
        folder: of the run.
        summary: what is known of the run already.
        train_end_s: seconds from the command to the end of training, None if this is a later evaluation.
    """
    scores = predict(module, preparation, torch.from_numpy(dataset.test_images), config.precision, device)
    if launch.rank() != 0:
        return
    if train_end_s is not None:
        model.save(folder.path / MODEL, module.config, module.state_dict(), preparation.processor())
    labels = dataset.test_labels
    probabilities = scores.logits.softmax(dim=1).numpy()
    predictions, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
    found = calibration(confidences, predictions == labels)
    confusion = metrics.confusion_matrix(labels, predictions, len(dataset.class_names))
    np.savez_compressed(
        folder.path / PREDICTIONS,
        labels=labels,
        predictions=predictions,
        probabilities=probabilities.astype(np.float16),
    )
    summary |= measured(scores, labels, predictions, found, dataset, config)
    draw(dataset, labels, predictions, confidences, confusion, found, folder)
    summary["per_class"] = _per_class(confusion, dataset.class_names)
    summary["tables"] = tables(confusion, dataset)
    if train_end_s is not None:
        start_up_s = summary.pop("start_up_s")
        summary["phases_s"] = {
            "start_up": round(start_up_s, 1),
            "train": round(train_end_s - start_up_s, 1),
            "test_and_plots": round(launch.seconds_since_command() - train_end_s, 1),
        }
        summary["wall_time_s"] = round(launch.seconds_since_command(), 1)
        summary["finished_at"] = results.now()
    summary["evaluation_images_per_second"] = round(len(labels) / scores.seconds, 1)
    if dataset.kind == "sample":
        summary["next_command"] = "train --config cpu      # real CIFAR-100 on a CPU; --config full on GPUs"
    folder.write_summary(summary)
    report = write_report(folder.path)
    accuracy = summary["metrics"]["test_accuracy"]
    low, high = accuracy["interval"]
    top5 = summary["metrics"]["test_top5_accuracy"]["value"]
    console.say(
        f"test accuracy {accuracy['value']:.2%} (95 % interval {low:.1%} to {high:.1%}), top-5 {top5:.2%}, "
        f"{len(labels):,} images"
    )
    if dataset.kind == "sample":
        console.say("these data are a generated sample: the figure says nothing about CIFAR-100")
    console.say(f"results: {folder.path}\nreport:  {report}")
    if dataset.kind == "sample":
        console.say(f"the real thing: {summary['next_command']}")


def measured(
    scores: Scores,
    labels: np.ndarray,
    predictions: np.ndarray,
    found: Calibration,
    dataset: ImageDataset,
    config: TrainConfig,
) -> dict[str, Any]:
    """Return the entry `metrics` of the summary, each with its protocol."""
    chosen = (
        f"weights of the epoch with the best accuracy on {config.num_val:,} held-out training images"
        if config.num_val
        else "weights of the last epoch, no selection"
    )
    protocol = (
        f"whole test set of {len(labels):,} images, each counted once; one view of each image, {config.precision}; "
        f"{chosen}"
    )
    correct, total = int((labels == predictions).sum()), len(labels)
    k = min(5, len(dataset.class_names))
    entries: dict[str, Any] = {
        "test_accuracy": {
            "value": correct / total,
            "unit": "fraction",
            "protocol": protocol,
            "interval": list(metrics.wilson_interval(correct, total)),
        },
        "test_top5_accuracy": {
            "value": metrics.top_k_accuracy(labels, scores.logits.numpy(), k),
            "unit": "fraction",
            "protocol": f"the true class is among the {k} most likely",
        },
        "test_loss": {
            "value": torch.nn.functional.cross_entropy(scores.logits, torch.from_numpy(labels)).item(),
            "unit": "nats",
            "protocol": "cross-entropy without label smoothing",
        },
        "calibration_error": {
            "value": found.error,
            "unit": "fraction",
            "protocol": f"expected calibration error, {len(found.counts)} bins of equal width",
        },
    }
    groups = groups_of(dataset)
    if groups is not None:
        entries["test_superclass_accuracy"] = {
            "value": float((groups[labels] == groups[predictions]).mean()),
            "unit": "fraction",
            "protocol": "the predicted class belongs to the right one of the superclasses",
        }
    return {"metrics": entries}


def groups_of(dataset: ImageDataset) -> np.ndarray | None:
    """Return the superclass of each class (C,), None if the data have none."""
    coarse = dataset.train_coarse_labels
    if coarse is None:
        return None
    groups = np.zeros(len(dataset.class_names), np.int64)
    groups[dataset.train_labels] = coarse
    return groups


def draw(
    dataset: ImageDataset,
    labels: np.ndarray,
    predictions: np.ndarray,
    confidences: np.ndarray,
    confusion: np.ndarray,
    found: Calibration,
    folder: results.RunFolder,
) -> None:
    """Make all pictures of a run."""
    note = "generated sample data" if dataset.kind == "sample" else ""
    names, plots, images = dataset.class_names, folder.plots, dataset.test_images
    groups = groups_of(dataset)
    plotting.training_curves(folder.records(), plots / "curves.png", note=note)
    if groups is not None and dataset.coarse_class_names:
        coarse_names = dataset.coarse_class_names
        plotting_images.confusion_in_groups(
            confusion,
            names,
            groups,
            coarse_names,
            plots / "confusion_matrix.png",
            subtitle="classes sorted by superclass, superclasses framed",
            note=note,
        )
        coarse = metrics.confusion_matrix(groups[labels], groups[predictions], len(coarse_names))
        title = "Confusion of superclasses"
        plotting.confusion_matrix(coarse, coarse_names, plots / "superclass_confusion.png", title=title, note=note)
        title = "Accuracy by superclass"
        plotting.per_class_accuracy(coarse, coarse_names, plots / "superclass_accuracy.png", title=title, note=note)
    else:
        plotting.confusion_matrix(confusion, names, plots / "confusion_matrix.png", note=note)
    plotting.per_class_accuracy(confusion, names, plots / "per_class_accuracy.png", note=note)
    plotting_images.confused_classes(
        images, labels, predictions, confidences, names, plots / "worst_confusions.png", note=note
    )
    plotting_images.reliability_diagram(found, plots / "calibration.png", note=note)


def tables(confusion: np.ndarray, dataset: ImageDataset) -> list[dict[str, Any]]:
    """Return the tables of the report: superclasses, and the classes most often confused."""
    found = []
    names, groups = dataset.class_names, groups_of(dataset)
    support = confusion.sum(axis=1)
    if groups is not None and dataset.coarse_class_names:
        rows = []
        for group, name in enumerate(dataset.coarse_class_names):
            own = groups == group
            total = support[own].sum()
            rows.append(
                [
                    name,
                    _share(np.diag(confusion)[own].sum(), total),
                    _share(confusion[own][:, own].sum(), total),
                    f"{total:,}",
                ]
            )
        columns = ["superclass", "right class", "right superclass", "images"]
        found.append({"title": "Accuracy by superclass", "columns": columns, "rows": rows})
    mistakes = confusion * ~np.eye(len(names), dtype=bool)
    worst = np.argsort(-mistakes, axis=None, kind="stable")[:NUM_WORST_PAIRS]
    pairs = [np.unravel_index(place, mistakes.shape) for place in worst]
    rows = [
        [names[of], names[taken_for], str(mistakes[of, taken_for]), _share(mistakes[of, taken_for], support[of])]
        for of, taken_for in pairs
        if mistakes[of, taken_for]
    ]
    columns = ["true class", "taken for", "images", "of the class"]
    found.append({"title": "Most frequent confusions", "columns": columns, "rows": rows})
    return found


def _share(part: Any, total: Any) -> str:
    return f"{100 * part / total:.1f} %" if total else "–"


def _per_class(confusion: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    found = metrics.per_class(confusion)
    return [
        {
            "name": name,
            "precision": float(found.precision[index]),
            "recall": float(found.recall[index]),
            "f1": float(found.f1[index]),
            "support": int(found.support[index]),
        }
        for index, name in enumerate(names)
    ]


def evaluate(run: Path, config: EvaluateConfig) -> None:
    """Test the model of a finished run again; runs in each process.

    Raises:
        DataError: the folder holds no trained model.
    """
    if not (run / MODEL / "model.safetensors").is_file():
        raise DataError(f"error: {run}: no {MODEL}: the run has not finished; continue it with train --resume {run}")
    trained = load_preset(TrainConfig, run / "config.yaml")
    changes: dict[str, Any] = {"data_dir": config.data_dir or trained.data_dir}
    if config.precision is not None:
        changes["precision"] = config.precision
    trained = dataclasses.replace(trained, **changes)
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    device = launch.choose_device(config.device)
    dist.init_process_group(launch.backend_for(device.type))
    dataset = data.load(trained)
    module = model.load_trained(run / MODEL).to(device)
    preparation = data.Preparation.of_processor(model.processor_of(str(run / MODEL)), module.config.image_size)
    test_and_report(module, preparation, dataset, trained, device, results.RunFolder(run), {})
    launch.leave_together()


if __name__ == "__main__":
    from deepspeed_vit_fsdp import cli

    sys.exit(cli.evaluate())
