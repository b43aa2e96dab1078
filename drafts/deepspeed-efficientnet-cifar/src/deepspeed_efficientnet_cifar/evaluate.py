"""Test-set metrics and pictures, with every image counted exactly once by however many processes."""

import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trainyard_shared import console, launch, metrics, plotting, results
from trainyard_shared.config import load_preset
from trainyard_shared.datasets.cifar import ImageDataset
from trainyard_shared.errors import DataError
from trainyard_shared.report import write_report
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches

from deepspeed_efficientnet_cifar import data, model
from deepspeed_efficientnet_cifar.config import EvaluateConfig, TrainConfig
from deepspeed_efficientnet_cifar.data import Preparation

BATCH_SIZE = 125
WEIGHTS = "model.safetensors"
NUM_PAIRS = 6  # of classes that are shown as the most confused ones


class Scores(NamedTuple):
    """What the network says of a set of images, in their order; the same on every process."""

    logits: Tensor
    """(N, K) on the CPU"""
    seconds: float
    """wall time"""


@torch.inference_mode()
def predict(
    network: nn.Module,
    preparation: Preparation,
    images: Tensor,
    num_classes: int,
    precision: str,
    device: torch.device,
) -> Scores:
    """Return the outputs for all images; each process computes its share.

    Pass a plain module: shares can differ by one batch, and the forward pass under ZeRO-3 waits for its peers.

    Args:
        network: on `device`.
        preparation: what the network wants done to its images.
        images: (N, 3, 32, 32) uint8.
        num_classes: K.
        precision: of the forward pass.
        device: where to compute.
    """
    start = launch.seconds_since_command()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    network.eval()
    pieces = [torch.empty(0, num_classes)]
    for index in shard_batches(len(images), BATCH_SIZE, rank, world_size):
        with autocast(precision, device):
            logits = network(preparation(images[index].to(device)))
        pieces.append(logits.float().cpu())
    return Scores(gather_in_order(torch.cat(pieces), len(images)), launch.seconds_since_command() - start)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Mixed precision for a forward pass outside DeepSpeed's engine."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def test_and_report(
    network: nn.Module,
    dataset: ImageDataset,
    config: TrainConfig,
    device: torch.device,
    folder: results.RunFolder,
    summary: dict[str, Any],
    train_end_s: float | None = None,
) -> None:
    """Test the network on the whole test set; rank 0 writes weights, metrics, pictures, summary and report.

    Args:
        network: with the chosen weights; all processes hold the same.
        dataset: gives the test set.
        config: of the run.
        device: where to compute.
        folder: of the run.
        summary: what is known of the run already.
        train_end_s: seconds from the command to the end of training, None if this is a later evaluation.
    """
    names, preparation = dataset.class_names, model.preparation(config)
    test_images = torch.from_numpy(dataset.test_images)
    scores = predict(network, preparation, test_images, len(names), config.precision, device)
    if launch.rank() != 0:
        return
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder.path / WEIGHTS)
    labels = dataset.test_labels
    probabilities = scores.logits.softmax(dim=1).numpy()
    predictions = probabilities.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predictions, len(names))
    accuracy = metrics.accuracy(labels, predictions)
    correct = int((labels == predictions).sum())
    protocol = (
        f"whole test set of {len(labels):,} images, each counted once; one view of each image at {config.image_size} "
        f"pixels, {config.precision}; "
        + (f"moving average (decay {config.ema_decay:g}) of the weights, " if config.ema_decay else "weights ")
        + (f"of the epoch with the best accuracy on {config.num_val:,} held-out training images"
           if config.num_val else "of the last epoch, no selection")
    )  # fmt: skip
    loss = torch.nn.functional.cross_entropy(scores.logits, torch.from_numpy(labels)).item()
    summary["metrics"] = {
        "test_accuracy": {
            "value": accuracy,
            "unit": "fraction",
            "protocol": protocol,
            "interval": list(metrics.wilson_interval(correct, len(labels))),
        },
        "test_loss": {"value": loss, "unit": "nats", "protocol": "cross-entropy without label smoothing"},
    }
    per_class = metrics.per_class(confusion)
    summary["per_class"] = [
        {
            "name": name,
            "precision": float(per_class.precision[index]),
            "recall": float(per_class.recall[index]),
            "f1": float(per_class.f1[index]),
            "support": int(per_class.support[index]),
        }
        for index, name in enumerate(names)
    ]
    pairs = confused_pairs(confusion)
    summary["tables"] = [
        {
            "title": "Most confused classes",
            "columns": ["true class", "taken for", "images", "share of the true class"],
            "rows": [
                [names[true], names[taken], str(count), f"{count / max(confusion[true].sum(), 1):.1%}"]
                for true, taken, count in pairs
            ],
            "note": "misclassified.csv lists every misclassified test image with the probabilities of both classes.",
        }
    ]
    write_misclassified(folder.path / "misclassified.csv", labels, probabilities, names)
    note = "generated sample data" if dataset.kind == "sample" else ""
    plots = folder.plots
    plotting.training_curves(folder.records(), plots / "curves.png", note=note)
    plotting.confusion_matrix(confusion, names, plots / "confusion_matrix.png", note=note)
    plotting.per_class_accuracy(confusion, names, plots / "per_class_accuracy.png", note=note)
    plotting.misclassified_images(
        dataset.test_images,
        labels,
        predictions,
        probabilities.max(axis=1),
        names,
        plots / "misclassified.png",
        note=note,
    )
    confused_pictures(dataset.test_images, labels, probabilities, pairs, names, plots / "most_confused.png", note)
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
        summary["next_command"] = "train --config cpu --weights FILE   # real CIFAR-10 on a CPU; --config full on GPUs"
    folder.write_summary(summary)
    report = write_report(folder.path)
    low, high = summary["metrics"]["test_accuracy"]["interval"]
    console.say(f"test accuracy {accuracy:.2%} (95 % interval {low:.1%} to {high:.1%}), {correct} of {len(labels)}")
    if dataset.kind == "sample":
        console.say("these data are a generated sample: the figure says nothing about CIFAR-10")
    console.say(f"results: {folder.path}\nreport:  {report}\nlive:    tensorboard --logdir {folder.path}")
    if dataset.kind == "sample":
        console.say(f"the real thing: {summary['next_command']}")


def confused_pairs(confusion: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return the most frequent errors as (true class, predicted class, how often), the most frequent first."""
    errors = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-errors, axis=None, kind="stable")[:NUM_PAIRS]
    found = [(int(i // len(errors)), int(i % len(errors))) for i in order]
    return [(true, taken, int(errors[true, taken])) for true, taken in found if errors[true, taken]]


def write_misclassified(path: Path, labels: NDArray, probabilities: NDArray, names: Sequence[str]) -> None:
    """Write a row of CSV for each misclassified image, the most confident error first."""
    predictions = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predictions != labels)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["test_image", "true", "predicted", "probability_predicted", "probability_true", "rank_of_true"])
    for index in wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]:
        own = probabilities[index, labels[index]]
        rank = int((probabilities[index] > own).sum()) + 1
        row = [names[labels[index]], names[predictions[index]], f"{probabilities[index].max():.4f}", f"{own:.4f}", rank]
        writer.writerow([index, *row])
    results.write_atomically(path, text.getvalue())


def confused_pictures(
    images: NDArray,
    labels: NDArray,
    probabilities: NDArray,
    pairs: Sequence[tuple[int, int, int]],
    names: Sequence[str],
    path: Path,
    note: str,
) -> None:
    """Draw the most confused pairs of classes, a row each, with the errors the network was surest of.

    Args:
        images: (N, 3, 32, 32) uint8.
        labels: (N,).
        probabilities: (N, K).
        pairs: of `confused_pairs`; without any, nothing is drawn.
        names: of the classes.
        path: of the picture.
        note: printed in the title.
    """
    if not pairs:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = 8
    figure = Figure(figsize=(9.2, 1.16 * len(pairs) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("The most confused pairs of classes" + (f" ({note})" if note else ""), fontsize=11)
    grid = figure.subplots(len(pairs), num_columns + 1, squeeze=False, width_ratios=[2.4] + [1] * num_columns)
    predictions = probabilities.argmax(axis=1)
    for axes, (true, taken, count) in zip(grid, pairs, strict=True):
        for axis in axes:
            axis.axis("off")
        axes[0].text(0, 0.5, f"{names[true]}\ntaken for {names[taken]}\n{count} images", va="center", fontsize=9)
        wrong = np.flatnonzero((labels == true) & (predictions == taken))
        surest = wrong[np.argsort(-probabilities[wrong, taken], kind="stable")][:num_columns]
        for axis, index in zip(axes[1:], surest, strict=False):
            axis.imshow(images[index].transpose(1, 2, 0))
            axis.set_title(f"{probabilities[index, taken]:.0%}", fontsize=8, pad=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with results.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def evaluate(run: Path, config: EvaluateConfig) -> None:
    """Test the network of a finished run again; runs in each process.

    Raises:
        DataError: the folder holds no trained network.
    """
    if not (run / WEIGHTS).is_file():
        raise DataError(f"error: {run}: no {WEIGHTS}: the run has not finished; continue it with train --resume {run}")
    trained = load_preset(TrainConfig, run / "config.yaml")
    changes: dict[str, Any] = {"data_dir": config.data_dir or trained.data_dir}
    if config.precision is not None:
        changes["precision"] = config.precision
    trained = dataclasses.replace(trained, **changes)
    device = launch.choose_device(config.device)
    dist.init_process_group(launch.backend_for(device.type))
    dataset = data.load(trained)
    network = model.make(trained, len(dataset.class_names), read_weights=False)
    network.load_state_dict(load_file(run / WEIGHTS))
    test_and_report(network.to(device), dataset, trained, device, results.RunFolder(run), {})
    launch.leave_together()


if __name__ == "__main__":
    from deepspeed_efficientnet_cifar import cli

    sys.exit(cli.evaluate())
