"""Test-set metrics and pictures, with every image counted exactly once by however many processes."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trainyard_shared import console, launch, metrics, plotting, results
from trainyard_shared.config import load_preset
from trainyard_shared.datasets.cifar import ImageDataset
from trainyard_shared.errors import DataError
from trainyard_shared.report import write_report
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches
from trainyard_shared.tensors.images import CIFAR10

from colossal_cifar_cnn import data
from colossal_cifar_cnn.config import EvaluateConfig, TrainConfig
from colossal_cifar_cnn.model import build_model

BATCH_SIZE = 250
WEIGHTS = "model.safetensors"


class Scores(NamedTuple):
    """What the network says of a set of images, in their order; the same on every process."""

    logits: Tensor
    """(N, K) on the CPU"""
    seconds: float
    """wall time"""


@torch.no_grad()  # torch 2.5 cannot gather tensors that were made in inference_mode
def predict(model: nn.Module, images: Tensor, config: TrainConfig, device: torch.device) -> Scores:
    """Return the outputs for all images; each process computes its share.

    Pass a plain module: shares can differ by one batch, and the forward pass of a sharded module waits for its peers.

    Args:
        model: the network, on `device`.
        images: (N, 3, 32, 32) uint8.
        config: precision.
        device: where to compute.
    """
    start = launch.seconds_since_command()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    was_training = model.training
    model.eval()
    pieces = [torch.empty(0, 0)]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
    for index in shard_batches(len(images), BATCH_SIZE, rank, world_size):
        batch = images[index].to(device).permute(0, 2, 3, 1)  # (B, 3, 32, 32) -> (B, 32, 32, 3)
        batch = CIFAR10(batch, channels_last=True)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = model(batch)
        pieces.append(logits.float().cpu())
    model.train(was_training)
    own = torch.cat(pieces[1:]) if len(pieces) > 1 else torch.empty(0, model_outputs(model))
    return Scores(gather_in_order(own, len(images)), launch.seconds_since_command() - start)


def model_outputs(model: nn.Module) -> int:
    """Number of classes K of a network of this project."""
    return model.head.out_features


def test_and_report(
    model: nn.Module,
    dataset: ImageDataset,
    config: TrainConfig,
    device: torch.device,
    folder: results.RunFolder,
    summary: dict[str, Any],
    train_end_s: float | None = None,
) -> None:
    """Test the network on the whole test set; rank 0 writes weights, metrics, pictures, summary and report.

    With `test: false` the test set is left alone, and the validation accuracy is all that is reported.

    Args:
        model: the chosen weights; all processes hold the same.
        dataset: gives the test set.
        config: of the run.
        device: where to compute.
        folder: of the run.
        summary: what is known of the run already.
        train_end_s: seconds from the command to the end of training, None if this is a later evaluation.
    """
    if config.test:
        scores = predict(model, torch.from_numpy(dataset.test_images), config, device)
    if launch.rank() != 0:
        return
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder.path / WEIGHTS)
    if train_end_s is not None:
        start_up_s = summary.pop("start_up_s")
        summary["phases_s"] = {"start_up": round(start_up_s, 1), "train": round(train_end_s - start_up_s, 1)}
    if not config.test:
        protocol = f"{config.num_val:,} held-out training images, best epoch; the test set was not used"
        summary["metrics"] = {
            "val_accuracy": {"value": summary["val_accuracy"], "unit": "fraction", "protocol": protocol}
        }
        folder.write_summary(summary)
        write_report(folder.path)
        return
    labels = dataset.test_labels
    probabilities = scores.logits.softmax(dim=1).numpy()
    predictions = probabilities.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predictions, len(dataset.class_names))
    accuracy = metrics.accuracy(labels, predictions)
    correct = int((labels == predictions).sum())
    protocol = (
        f"whole test set of {len(labels):,} images, each counted once; "
        f"one view of each image, {config.precision}; "
        + (f"weights of the epoch with the best accuracy on {config.num_val:,} held-out training images"
           if config.num_val else "weights of the last epoch, no selection")
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
        for index, name in enumerate(dataset.class_names)
    ]
    note = "generated sample data" if dataset.kind == "sample" else ""
    names, plots = dataset.class_names, folder.plots
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
    if train_end_s is not None:
        summary["phases_s"]["test_and_plots"] = round(launch.seconds_since_command() - train_end_s, 1)
        summary["wall_time_s"] = round(launch.seconds_since_command(), 1)
        summary["finished_at"] = results.now()
    summary["evaluation_images_per_second"] = round(len(labels) / scores.seconds, 1)
    if dataset.kind == "sample":
        summary["next_command"] = "train --config cpu      # real CIFAR-10 on a CPU; --config full on a GPU"
    folder.write_summary(summary)
    report = write_report(folder.path)
    low, high = summary["metrics"]["test_accuracy"]["interval"]
    if share := summary.get("throughput", {}).get("communication_share"):
        speed = summary["throughput"]["images_per_second"]
        console.say(f"{speed:.0f} images/s in training; a collective was under way in {share:.0%} of a step's time")
    console.say(f"test accuracy {accuracy:.2%} (95 % interval {low:.1%} to {high:.1%}), {correct} of {len(labels)}")
    if dataset.kind == "sample":
        console.say("these data are a generated sample: the figure says nothing about CIFAR-10")
    console.say(f"results: {folder.path}\nreport:  {report}")
    if dataset.kind == "sample":
        console.say(f"the real thing: {summary['next_command']}")


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
    model = build_model(trained, len(dataset.class_names))
    model.load_state_dict(load_file(run / WEIGHTS))
    folder = results.RunFolder(run)
    test_and_report(model.to(device, memory_format=torch.channels_last), dataset, trained, device, folder, {})
    launch.leave_together()


if __name__ == "__main__":
    from colossal_cifar_cnn import cli

    sys.exit(cli.evaluate())
