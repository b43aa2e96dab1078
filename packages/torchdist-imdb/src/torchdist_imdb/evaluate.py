"""Test-set metrics, pictures and the worst mistakes; every review counts once, by however many processes."""

import contextlib
import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from trainyard_shared import console, launch, metrics, plotting, results
from trainyard_shared.config import load_preset
from trainyard_shared.datasets.imdb import ReviewDataset, clean
from trainyard_shared.errors import DataError
from trainyard_shared.report import write_report
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches
from trainyard_shared.tensors.lengths import Sequences
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from torchdist_imdb import data  # noqa: E402
from torchdist_imdb.config import EvaluateConfig, TrainConfig  # noqa: E402
from torchdist_imdb.model import load_trained  # noqa: E402

BATCH_SIZE = 64
MODEL = "model"  # folder within that of the run, in the form of transformers
NUM_MISTAKES = 15
MISTAKE_LENGTH = 400  # characters shown of a review


class Scores(NamedTuple):
    """What the model says of a set of reviews, in their order; the same on every process."""

    logits: Tensor
    """(N, K) on the CPU"""
    seconds: float
    """wall time"""


def autocast(device: torch.device, config: TrainConfig) -> contextlib.AbstractContextManager:
    """Mixed precision for the forward pass: matrix products in 16 bits, sums and norms in 32."""
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else contextlib.nullcontext()


@torch.inference_mode()
def predict(model: Any, reviews: Sequences, pad_id: int, config: TrainConfig, device: torch.device) -> Scores:
    """Return the outputs for all reviews; each process computes its share.

    Pass the plain module: shares can differ by one batch, and the forward pass of a DDP module may wait for a peer
    that has already finished.

    Args:
        model: the network, on `device`.
        reviews: token ids of N reviews.
        pad_id: token that fills up shorter reviews.
        config: precision and padding.
        device: where to compute.
    """
    start = launch.seconds_since_command()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    was_training = model.training
    model.eval()
    # Longest first: reviews of a batch have nearly the same length, and memory that is too small shows at once.
    order = reviews.lengths.argsort(descending=True, stable=True)
    pieces = [torch.empty(0, model.config.num_labels)]
    for places in shard_batches(len(reviews), BATCH_SIZE, rank, world_size):
        ids, mask = reviews.padded(order[places], pad_id, device, multiple_of=config.pad_multiple)
        with autocast(device, config):
            pieces.append(model(input_ids=ids, attention_mask=mask).logits.float().cpu())
    model.train(was_training)
    logits = torch.empty(len(reviews), model.config.num_labels)
    logits[order] = gather_in_order(torch.cat(pieces), len(reviews))
    return Scores(logits, launch.seconds_since_command() - start)


def save_model(model: Any, tokenizer: Any, run_dir: Path) -> None:
    """Write a folder that `transformers.AutoModelForSequenceClassification.from_pretrained` reads."""
    draft = run_dir / f"{MODEL}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    shutil.rmtree(run_dir / MODEL, ignore_errors=True)
    draft.rename(run_dir / MODEL)


def test_and_report(
    model: nn.Module,
    tokenizer: Any,
    dataset: ReviewDataset,
    config: TrainConfig,
    device: torch.device,
    folder: results.RunFolder,
    summary: dict[str, Any],
    train_end_s: float | None = None,
) -> None:
    """Test the model on the whole test set; rank 0 writes metrics, pictures, summary and report.

    Args:
        model: the chosen weights; all processes hold the same.
        tokenizer: of the model.
        dataset: gives the test set, which is left alone if the config says so.
        config: of the run.
        device: where to compute.
        folder: of the run.
        summary: what is known of the run already.
        train_end_s: seconds from the command to the end of training, None if this is a later evaluation.
    """
    scores = None
    if config.test:
        reviews = data.encode_together(data.Encoder(tokenizer, config), dataset.test_texts)
        scores = predict(model, reviews, tokenizer.pad_token_id, config, device)
    if launch.rank() != 0:
        return
    note = "generated sample data" if dataset.kind == "sample" else ""
    plotting.training_curves(folder.records(), folder.plots / "curves.png", note=note)
    if scores is not None:
        summary |= tabulate(scores, dataset, config)
        summary["evaluation_reviews_per_second"] = round(len(dataset.test_labels) / scores.seconds, 1)
        draw(scores.logits, dataset, folder.plots, note)
    else:
        protocol = f"best of all epochs on {config.num_val:,} held-out training reviews; the test set was left alone"
        value = {"value": summary["val_accuracy"], "unit": "fraction", "protocol": protocol}
        summary["metrics"] = {"val_accuracy": value}
    if train_end_s is not None:
        start_up_s = summary.pop("start_up_s")
        summary["phases_s"] = {
            "start_up": round(start_up_s, 1),
            "train": round(train_end_s - start_up_s, 1),
            "test_and_plots": round(launch.seconds_since_command() - train_end_s, 1),
        }
        summary["wall_time_s"] = round(launch.seconds_since_command(), 1)
        summary["finished_at"] = results.now()
    if dataset.kind == "sample":
        summary["next_command"] = (
            "train --config cpu --model FOLDER     # real reviews on a CPU; --config full on a GPU"
        )
    folder.write_summary(summary)
    report = write_report(folder.path)
    for name, metric in summary["metrics"].items():
        interval = ""
        if "interval" in metric:
            low, high = metric["interval"]
            interval = f" (95 % interval {low:.1%} to {high:.1%})"
        console.say(f"{metrics.metric_label(name)} {metrics.format_value(metric['value'], metric['unit'])}{interval}")
    if dataset.kind == "sample":
        console.say("these data are a generated sample: the figures say nothing about IMDb")
    console.say(f"results: {folder.path}\nreport:  {report}")
    if dataset.kind == "sample":
        console.say(f"the real thing: {summary['next_command']}")


def tabulate(scores: Scores, dataset: ReviewDataset, config: TrainConfig) -> dict[str, Any]:
    """Return metrics, results by class and the worst mistakes, as summary.json has them."""
    labels = dataset.test_labels
    probabilities = scores.logits.softmax(dim=1).numpy()
    predictions = probabilities.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predictions, len(dataset.class_names))
    correct = int((labels == predictions).sum())
    which = "whole test set of" if config.num_test is None else "first, in the order of checksums,"
    protocol = f"{which} {len(labels):,} test reviews, each counted once; " + (
        f"weights of the epoch with the best accuracy on {config.num_val:,} held-out training reviews"
        if config.num_val
        else "weights of the last epoch, no selection"
    )
    loss = F.cross_entropy(scores.logits, torch.from_numpy(labels)).item()
    per_class = metrics.per_class(confusion)
    wrong = [i for i in (-probabilities.max(axis=1)).argsort(kind="stable") if predictions[i] != labels[i]]
    return {
        "metrics": {
            "test_accuracy": {
                "value": metrics.accuracy(labels, predictions),
                "unit": "fraction",
                "protocol": protocol,
                "interval": list(metrics.wilson_interval(correct, len(labels))),
            },
            "test_f1": {
                "value": metrics.macro_f1(confusion),
                "unit": "fraction",
                "protocol": "mean of the F1 of both classes",
            },
            "test_roc_auc": {
                "value": metrics.roc_auc(labels, probabilities[:, 1]),
                "unit": "",
                "protocol": f"area under the ROC curve of the probability of {dataset.class_names[1]}",
            },
            "test_loss": {"value": loss, "unit": "nats", "protocol": "cross-entropy without label smoothing"},
        },
        "per_class": [
            {
                "name": name,
                "precision": float(per_class.precision[index]),
                "recall": float(per_class.recall[index]),
                "f1": float(per_class.f1[index]),
                "support": int(per_class.support[index]),
            }
            for index, name in enumerate(dataset.class_names)
        ],
        "tables": [
            {
                "title": "Worst mistakes",
                "columns": ["review", "true", "predicted", "probability"],
                "rows": [
                    [
                        shortened(clean(dataset.test_texts[i])),
                        dataset.class_names[labels[i]],
                        dataset.class_names[predictions[i]],
                        metrics.format_value(float(probabilities[i].max()), "fraction"),
                    ]
                    for i in wrong[:NUM_MISTAKES]
                ],
                "note": f"The {min(NUM_MISTAKES, len(wrong))} of {len(wrong):,} mistakes of which the model was most "
                "certain; long reviews are shown in part.",
            }
        ],
    }


def draw(logits: Tensor, dataset: ReviewDataset, plots: Path, note: str) -> None:
    """Draw confusion matrix and ROC curve of the test set."""
    labels, names = dataset.test_labels, dataset.class_names
    confusion = metrics.confusion_matrix(labels, logits.argmax(dim=1).numpy(), len(names))
    plotting.confusion_matrix(confusion, names, plots / "confusion_matrix.png", note=note)
    scores = logits.softmax(dim=1)[:, 1].numpy()
    plotting.roc_curve(labels, scores, plots / "roc_curve.png", positive=names[1], note=note)


def shortened(text: str) -> str:
    """Return a text of at most MISTAKE_LENGTH characters: beginning and end, where reviews sum up."""
    half = MISTAKE_LENGTH // 2
    return text if len(text) <= MISTAKE_LENGTH else f"{text[: half - 2]} … {text[1 - half :]}"


def trained_config(run: Path) -> TrainConfig:
    """Return the config of a finished run; raises DataError if the folder holds no trained model."""
    if not (run / MODEL / "config.json").is_file():
        raise DataError(f"error: {run}: no {MODEL}/: the run has not finished; continue it with train --resume {run}")
    return load_preset(TrainConfig, run / "config.yaml")


def evaluate(run: Path, config: EvaluateConfig) -> None:
    """Test the model of a finished run again; runs in each process.

    Raises:
        DataError: the folder holds no trained model.
    """
    trained = trained_config(run)
    trained = dataclasses.replace(trained, data_dir=config.data_dir or trained.data_dir, test=True)
    device = launch.choose_device(config.device)
    dist.init_process_group(launch.backend_for(device.type))
    dataset = data.load(trained)
    model, tokenizer = load_trained(run / MODEL)
    test_and_report(model.to(device), tokenizer, dataset, trained, device, results.RunFolder(run), {})
    launch.leave_together()


if __name__ == "__main__":
    from torchdist_imdb import cli

    sys.exit(cli.evaluate())
