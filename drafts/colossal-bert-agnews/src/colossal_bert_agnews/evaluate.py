"""Test-set metrics, pictures and the worst mistakes; every article counts once, by however many processes."""

import contextlib
import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from trainyard_shared import console, launch, metrics, plotting, results
from trainyard_shared.config import load_preset
from trainyard_shared.datasets.ag_news import NewsDataset, clean
from trainyard_shared.errors import DataError
from trainyard_shared.report import write_report
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches
from trainyard_shared.tensors.lengths import Sequences

from colossal_bert_agnews import data
from colossal_bert_agnews.config import EvaluateConfig, TrainConfig
from colossal_bert_agnews.model import load_trained

BATCH_SIZE = 128
MODEL = "model"  # folder within that of the run, in the form of transformers
NUM_MISTAKES = 15
PARTS = ("parameters", "gradients", "optimizer")  # of what a process holds for the model
MISTAKE_LENGTH = 400  # characters shown of an article


class Scores(NamedTuple):
    """What the model says of a set of articles, in their order; the same on every process."""

    logits: Tensor
    """(N, K) on the CPU"""
    seconds: float
    """wall time"""


def autocast(device: torch.device, config: TrainConfig) -> contextlib.AbstractContextManager:
    """Compute in 16 bits what was trained in 16 bits."""
    if config.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if config.precision == "bf16" else torch.float16)


@torch.no_grad()  # not inference_mode: in torch 2.5 its tensors cannot be gathered
def predict(model: Any, articles: Sequences, pad_id: int, config: TrainConfig, device: torch.device) -> Scores:
    """Return the outputs for all articles; each process computes its share.

    Args:
        model: the whole network as transformers made it, on `device`. Not what Colossal-AI has cut up: shares can
            differ by one batch, and its forward pass may wait for a peer that has already finished.
        articles: token ids of N articles.
        pad_id: token that fills up shorter articles.
        config: precision and padding.
        device: where to compute.
    """
    start = launch.seconds_since_command()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    was_training = model.training
    model.eval()
    # Longest first: articles of a batch have nearly the same length, and memory that is too small shows at once.
    order = articles.lengths.argsort(descending=True, stable=True)
    pieces = [torch.empty(0, model.config.num_labels)]
    for places in shard_batches(len(articles), BATCH_SIZE, rank, world_size):
        ids, mask = articles.padded(order[places], pad_id, device, multiple_of=config.pad_multiple)
        with autocast(device, config):
            pieces.append(model(input_ids=ids, attention_mask=mask).logits.float().cpu())
    model.train(was_training)
    logits = torch.empty(len(articles), model.config.num_labels)
    logits[order] = gather_in_order(torch.cat(pieces), len(articles))
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
    dataset: NewsDataset,
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
        articles = data.encode(dataset.test_texts, tokenizer, config)
        scores = predict(model, articles, tokenizer.pad_token_id, config, device)
    if launch.rank() != 0:
        return
    note = "generated sample data" if dataset.kind == "sample" else ""
    plotting.training_curves(folder.records(), folder.plots / "curves.png", note=note)
    before = results.read_json(folder.path / "summary.json")
    tables = summary.get("training_tables", before.get("training_tables", []))
    if scores is not None:
        baseline = before.get("baseline") or (fit_baseline(dataset, config) if config.baseline else None)
        summary |= tabulate(scores, dataset, config, baseline)
        summary["tables"] = [*tables, *summary["tables"]]
        summary["evaluation_articles_per_second"] = round(len(dataset.test_labels) / scores.seconds, 1)
        confusion = metrics.confusion_matrix(
            dataset.test_labels, scores.logits.argmax(dim=1).numpy(), len(dataset.class_names)
        )
        plotting.confusion_matrix(confusion, dataset.class_names, folder.plots / "confusion_matrix.png", note=note)
    else:
        protocol = f"best of all epochs on {config.num_val:,} held-out training articles; the test set was left alone"
        value = {"value": summary["val_accuracy"], "unit": "fraction", "protocol": protocol}
        summary |= {"metrics": {"val_accuracy": value}, "tables": tables}
    if "memory" in summary:
        draw_memory(summary["memory"]["measured_bytes_per_rank"], folder.plots / "memory.png", note)
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
        summary["next_command"] = "train --config cpu --model FOLDER     # real news on a CPU; --config full on GPUs"
    folder.write_summary(summary)
    report = write_report(folder.path)
    for name, metric in summary["metrics"].items():
        interval = ""
        if "interval" in metric:
            low, high = metric["interval"]
            interval = f" (95 % interval {low:.1%} to {high:.1%})"
        console.say(f"{metrics.metric_label(name)} {metrics.format_value(metric['value'], metric['unit'])}{interval}")
    if dataset.kind == "sample":
        console.say("these data are a generated sample: the figures say nothing about AG News")
    console.say(f"results: {folder.path}\nreport:  {report}")
    if dataset.kind == "sample":
        console.say(f"the real thing: {summary['next_command']}")


def fit_baseline(dataset: NewsDataset, config: TrainConfig) -> dict[str, Any]:
    """Fit and test the word-count classifier on the articles that the network has, but for the augmented ones."""
    from colossal_bert_agnews.baseline import fit_and_test  # imports scikit-learn: only who asks for it pays

    part, _ = data.split(dataset, config)
    train = dataset.train_texts[part], dataset.train_labels[part]
    return fit_and_test(*train, dataset.test_texts, dataset.test_labels)


def tabulate(
    scores: Scores, dataset: NewsDataset, config: TrainConfig, baseline: dict[str, Any] | None
) -> dict[str, Any]:
    """Return metrics, results by class and the worst mistakes, as summary.json has them."""
    labels, names = dataset.test_labels, dataset.class_names
    probabilities = scores.logits.softmax(dim=1).numpy()
    predictions = probabilities.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predictions, len(names))
    correct = int((labels == predictions).sum())
    which = "whole test set of" if config.num_test is None else "first, in the order of checksums,"
    protocol = f"{which} {len(labels):,} test articles, each counted once; " + (
        f"weights of the epoch with the best accuracy on {config.num_val:,} held-out training articles"
        if config.num_val
        else "weights of the last epoch, no selection"
    )
    per_class = metrics.per_class(confusion)
    found: dict[str, Any] = {
        "test_accuracy": {
            "value": metrics.accuracy(labels, predictions),
            "unit": "fraction",
            "protocol": protocol,
            "interval": list(metrics.wilson_interval(correct, len(labels))),
        },
        **{
            f"test_{name}": {"value": value, "unit": "fraction", "protocol": f"mean of the {words} of all classes"}
            for name, value, words in (
                ("precision", float(np.nanmean(per_class.precision)), "precision"),
                ("recall", float(np.nanmean(per_class.recall)), "recall"),
                ("f1", metrics.macro_f1(confusion), "F1"),
            )
        },
        "test_loss": {
            "value": F.cross_entropy(scores.logits, data.labels_of(labels)).item(),
            "unit": "nats",
            "protocol": "cross-entropy without label smoothing",
        },
    }
    if baseline is not None:
        found["baseline_accuracy"] = {
            "value": baseline["accuracy"],
            "unit": "fraction",
            "protocol": f"{baseline['protocol']}; same test articles",
            "interval": baseline["interval"],
        }
    wrong = [i for i in (-probabilities.max(axis=1)).argsort(kind="stable") if predictions[i] != labels[i]]
    return {
        "metrics": found,
        "baseline": baseline,
        "per_class": [
            {
                "name": name,
                "precision": float(per_class.precision[index]),
                "recall": float(per_class.recall[index]),
                "f1": float(per_class.f1[index]),
                "support": int(per_class.support[index]),
            }
            for index, name in enumerate(names)
        ],
        "tables": [
            {
                "title": "Worst mistakes",
                "columns": ["article", "true", "predicted", "probability"],
                "rows": [
                    [
                        shortened(clean(dataset.test_texts[i])),
                        names[labels[i]],
                        names[predictions[i]],
                        metrics.format_value(float(probabilities[i].max()), "fraction"),
                    ]
                    for i in wrong[:NUM_MISTAKES]
                ],
                "note": f"The {min(NUM_MISTAKES, len(wrong))} of {len(wrong):,} mistakes of which the model was most "
                "certain.",
            }
        ],
    }


def draw_memory(bytes_per_rank: list[dict[str, Any]], path: Path, note: str) -> None:
    """Draw what each process holds for the model during a step."""
    held = [float(sum(of_rank.get(part, 0) for part in PARTS)) for of_rank in bytes_per_rank]
    rows = [{"variant": f"rank {rank}", "values": {"held": [count]}} for rank, count in enumerate(held)]
    if all(held):  # a run of a single step has not been counted
        title = "Parameters, gradients and optimizer state"
        plotting.comparison_bars(rows, "held", path, unit="bytes", title=title, note=note)


def shortened(text: str) -> str:
    """Return a text of at most MISTAKE_LENGTH characters."""
    return text if len(text) <= MISTAKE_LENGTH else f"{text[: MISTAKE_LENGTH - 2]} …"


def trained_config(run: Path) -> TrainConfig:
    """Return the config of a finished run; raises DataError if the folder holds no trained model."""
    if not (run / MODEL / "config.json").is_file():
        raise DataError(f"error: {run}: no {MODEL}/: the run has not finished; continue it with train --resume {run}")
    return load_preset(TrainConfig, run / "config.yaml")


def evaluate(run: Path, config: EvaluateConfig) -> None:
    """Test the model of a finished run again; runs in each process, and needs no Colossal-AI.

    Raises:
        DataError: the folder holds no trained model.
    """
    trained = trained_config(run)
    trained = dataclasses.replace(trained, data_dir=config.data_dir or trained.data_dir, test=True)
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    device = launch.choose_device(config.device)
    dist.init_process_group(launch.backend_for(device.type))
    model, tokenizer = load_trained(run / MODEL)
    dataset = data.load(trained)
    test_and_report(model.to(device), tokenizer, dataset, trained, device, results.RunFolder(run), {})
    launch.leave_together()


if __name__ == "__main__":
    from colossal_bert_agnews import cli

    sys.exit(cli.evaluate())
