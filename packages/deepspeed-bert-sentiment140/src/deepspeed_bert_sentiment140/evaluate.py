"""Test-set metrics, pictures and the worst mistakes; every tweet counts once, by however many processes."""

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
from trainyard_shared.errors import DataError
from trainyard_shared.report import write_report
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches
from trainyard_shared.tensors.lengths import Sequences
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from deepspeed_bert_sentiment140 import data  # noqa: E402
from deepspeed_bert_sentiment140.cleaning import Cleaner  # noqa: E402
from deepspeed_bert_sentiment140.config import EvaluateConfig, TrainConfig  # noqa: E402
from deepspeed_bert_sentiment140.model import load_trained  # noqa: E402

BATCH_SIZE = 128
MODEL = "model"  # folder within that of the run, in the form of transformers
NUM_MISTAKES = 15


class Scores(NamedTuple):
    """What the model says of a set of tweets, in their order; the same on every process."""

    logits: Tensor
    """(N, K) on the CPU"""
    seconds: float
    """wall time"""


def autocast(device: torch.device, config: TrainConfig) -> contextlib.AbstractContextManager:
    """Compute in 16 bits what was trained in 16 bits."""
    if config.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if config.precision == "bf16" else torch.float16)


@torch.inference_mode()
def predict(
    model: Any, tweets: Sequences, index: Tensor, tokenizer: Any, config: TrainConfig, device: torch.device
) -> Scores:
    """Return the outputs for the tweets of `index`; each process computes its share.

    Args:
        model: the whole network as transformers made it, on `device`. Not the engine: shares can differ by one batch,
            and its forward pass may wait for a peer that has already finished.
        tweets: token ids.
        index: (N,) which of them.
        tokenizer: of the model.
        config: precision and padding.
        device: where to compute.
    """
    start = launch.seconds_since_command()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    was_training = model.training
    model.eval()
    # Longest first: tweets of a batch have nearly the same length, and memory that is too small shows at once.
    order = tweets.lengths[index].argsort(descending=True, stable=True)
    pieces = [torch.empty(0, model.config.num_labels)]
    for places in shard_batches(len(index), BATCH_SIZE, rank, world_size):
        ids, mask = tweets.padded(index[order[places]], tokenizer.pad_token_id, device, multiple_of=config.pad_multiple)
        with autocast(device, config):
            pieces.append(model(input_ids=ids, attention_mask=mask).logits.float().cpu())
    model.train(was_training)
    logits = torch.empty(len(index), model.config.num_labels)
    logits[order] = gather_in_order(torch.cat(pieces), len(index))
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
    tweets: data.Tweets,
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
        tweets: give the test set, which is left alone if the config says so.
        config: of the run.
        device: where to compute.
        folder: of the run.
        summary: what is known of the run already.
        train_end_s: seconds from the command to the end of training, None if this is a later evaluation.
    """
    test_index = tweets.index[data.TEST]
    scores = predict(model, tweets.sequences, test_index, tokenizer, config, device) if config.test else None
    if launch.rank() != 0:
        return
    note = "generated sample data" if tweets.kind == "sample" else ""
    plotting.training_curves(folder.records(), folder.plots / "curves.png", note=note)
    baseline = results.read_json(folder.path / "summary.json").get("baseline")
    if scores is not None:
        if config.baseline and baseline is None:
            baseline = fit_baseline(tweets, config)
        summary |= tabulate(scores, tweets, config, baseline)
        summary["evaluation_tweets_per_second"] = round(len(test_index) / scores.seconds, 1)
        draw(scores.logits, tweets, folder.plots, note)
    else:
        protocol = "best of all epochs on the tweets of users held out to validate; the test set was left alone"
        value = {"value": summary["val_accuracy"], "unit": "fraction", "protocol": protocol}
        summary |= {"metrics": {"val_accuracy": value}, "tables": data_tables(tweets)}
    if train_end_s is not None:
        start_up_s = summary.pop("start_up_s")
        summary["phases_s"] = {
            "start_up": round(start_up_s, 1),
            "train": round(train_end_s - start_up_s, 1),
            "test_and_plots": round(launch.seconds_since_command() - train_end_s, 1),
        }
        summary["wall_time_s"] = round(launch.seconds_since_command(), 1)
        summary["finished_at"] = results.now()
    if tweets.kind == "sample":
        summary["next_command"] = "train --config cpu --model FOLDER     # real tweets on a CPU; --config full on a GPU"
    folder.write_summary(summary)
    report = write_report(folder.path)
    for name, metric in summary["metrics"].items():
        interval = ""
        if "interval" in metric:
            low, high = metric["interval"]
            interval = f" (95 % interval {low:.1%} to {high:.1%})"
        console.say(f"{metrics.metric_label(name)} {metrics.format_value(metric['value'], metric['unit'])}{interval}")
    if tweets.kind == "sample":
        console.say("these data are a generated sample: the figures say nothing about Sentiment140")
    console.say(f"results: {folder.path}\nreport:  {report}")
    if tweets.kind == "sample":
        console.say(f"the real thing: {summary['next_command']}")


def fit_baseline(tweets: data.Tweets, config: TrainConfig) -> dict[str, Any]:
    """Return what TF-IDF and logistic regression reach on the same tweets."""
    from deepspeed_bert_sentiment140.baseline import fit_and_test  # scikit-learn takes seconds to import

    train, _, test = tweets.index
    cleaner = Cleaner(config.cleaning)
    cleaned = [[cleaner(text) for text in tweets.texts(index)] for index in (train, test)]
    labels = [tweets.labels[index].numpy() for index in (train, test)]
    return fit_and_test(cleaned[0], labels[0], cleaned[1], labels[1])


def tabulate(
    scores: Scores, tweets: data.Tweets, config: TrainConfig, baseline: dict[str, Any] | None
) -> dict[str, Any]:
    """Return metrics, results by class, tables and the worst mistakes, as summary.json has them."""
    test_index = tweets.index[data.TEST]
    labels = tweets.labels[test_index].numpy()
    names = tweets.class_names
    probabilities = scores.logits.softmax(dim=1).numpy()
    predictions = probabilities.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predictions, len(names))
    correct = int((labels == predictions).sum())
    which = "tweets of users held out of the training file" if config.test_set == "held_out" else "official test tweets"
    chosen = (
        f"weights of the epoch with the best accuracy on {len(tweets.index[data.VAL]):,} tweets of other held-out users"
        if len(tweets.index[data.VAL])
        else "weights of the last epoch, no selection"
    )
    per_class = metrics.per_class(confusion)
    found: dict[str, Any] = {
        "test_accuracy": {
            "value": metrics.accuracy(labels, predictions),
            "unit": "fraction",
            "protocol": f"{len(labels):,} {which}, each counted once; {chosen}",
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
            "value": F.cross_entropy(scores.logits, torch.from_numpy(labels)).item(),
            "unit": "nats",
            "protocol": "cross-entropy, without weights of classes",
        },
    }
    if len(names) == 2:
        found["test_roc_auc"] = {
            "value": metrics.roc_auc(labels, probabilities[:, 1]),
            "unit": "",
            "protocol": f"area under the ROC curve of the probability of {names[1]}",
        }
    if baseline is not None:
        found["baseline_accuracy"] = {
            "value": baseline["accuracy"],
            "unit": "fraction",
            "protocol": f"{baseline['protocol']}; same test tweets",
            "interval": baseline["interval"],
        }
    wrong = [i for i in (-probabilities.max(axis=1)).argsort(kind="stable") if predictions[i] != labels[i]]
    shown = wrong[:NUM_MISTAKES]
    texts = tweets.texts(test_index[shown])
    mistakes = {
        "title": "Worst mistakes",
        "columns": ["tweet", "true", "predicted", "probability"],
        "rows": [
            [
                text,
                names[labels[i]],
                names[predictions[i]],
                metrics.format_value(float(probabilities[i].max()), "fraction"),
            ]
            for text, i in zip(texts, shown, strict=True)
        ],
        "note": f"The {len(shown)} of {len(wrong):,} mistakes of which the model was most certain. Labels come from "
        "emoticons that were taken out of the tweets: some of these are right, and the label is not.",
    }
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
        "tables": [*data_tables(tweets), mistakes],
    }


def data_tables(tweets: data.Tweets) -> list[dict[str, Any]]:
    """Return what was cleaned, what was dropped, and how the rest was split."""
    report = tweets.report
    cleaned, splits = report["cleaning"], report["splits"]
    return [
        {
            "title": "Cleaning",
            "columns": ["rule", "tweets changed", "share", "places", "before", "after"],
            "rows": [
                [
                    rule,
                    f"{counts['tweets']:,}",
                    metrics.format_value(counts["tweets"] / cleaned["num_tweets"], "fraction"),
                    f"{counts['places']:,}",
                    *counts["examples"][0],
                ]
                for rule, counts in cleaned["rules"].items()
            ],
            "note": f"Of {cleaned['num_tweets']:,} tweets; rules are applied in this order, each with one example.",
        },
        {
            "title": "Splits by user",
            "columns": ["split", "tweets", "users", *tweets.class_names],
            "rows": [
                [name, f"{split['tweets']:,}", f"{split['users']:,}", *(f"{count:,}" for count in split["by_class"])]
                for name, split in splits.items()
            ],
            "note": f"{report['users_in_two_splits']} users are in two splits. Of {report['rows']:,} rows dropped: "
            + ("; ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items()) or "none")
            + ".",
        },
    ]


def draw(logits: Tensor, tweets: data.Tweets, plots: Path, note: str) -> None:
    """Draw confusion matrix and, of two classes, the ROC curve of the test set."""
    labels, names = tweets.labels[tweets.index[data.TEST]].numpy(), tweets.class_names
    confusion = metrics.confusion_matrix(labels, logits.argmax(dim=1).numpy(), len(names))
    plotting.confusion_matrix(confusion, names, plots / "confusion_matrix.png", note=note)
    if len(names) == 2:
        scores = logits.softmax(dim=1)[:, 1].numpy()
        plotting.roc_curve(labels, scores, plots / "roc_curve.png", positive=names[1], note=note)


def trained_config(run: Path) -> TrainConfig:
    """Return the config of a finished run; raises DataError if the folder holds no trained model."""
    if not (run / MODEL / "config.json").is_file():
        raise DataError(f"error: {run}: no {MODEL}/: the run has not finished; continue it with train --resume {run}")
    return load_preset(TrainConfig, run / "config.yaml")


def evaluate(run: Path, config: EvaluateConfig) -> None:
    """Test the model of a finished run again; runs in each process, and needs no DeepSpeed.

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
    tweets = data.load(data.find(trained), tokenizer, trained)
    test_and_report(model.to(device), tokenizer, tweets, trained, device, results.RunFolder(run), {})
    launch.leave_together()


if __name__ == "__main__":
    from deepspeed_bert_sentiment140 import cli

    sys.exit(cli.evaluate())
