"""What the trained model of a run says of articles that it has never seen."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from trainyard_shared import launch
from trainyard_shared.console import say
from trainyard_shared.datasets.ag_news import read_news
from trainyard_shared.errors import DataError
from trainyard_shared.results import write_atomically

from colossal_bert_agnews import data, evaluate
from colossal_bert_agnews.config import PredictConfig
from colossal_bert_agnews.model import load_trained


class Prediction(NamedTuple):
    """What the model says of one article; empty for an article without text."""

    label: str
    probability: str
    """of the label"""


def predict(run: Path, config: PredictConfig) -> None:
    """Print or write what the model of a run says of a text, or of each article in a file.

    Raises:
        DataError: the folder holds no trained model, or the file cannot be read.
    """
    trained = evaluate.trained_config(run)
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    # Read first: a file that is not there should not cost the time to load a model.
    texts = [config.text] if config.text is not None else read(config.file)
    device = launch.choose_device(config.device)
    model, tokenizer = load_trained(run / evaluate.MODEL)
    articles = data.encode(data.prepared(texts, trained), tokenizer, trained)
    scores = evaluate.predict(model.to(device), articles, tokenizer.pad_token_id, trained, device)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    best = scores.logits.softmax(dim=1).max(dim=1)
    predictions = [
        Prediction(names[label], f"{probability:.4f}") if text.strip() else Prediction("", "")
        for text, probability, label in zip(texts, best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    if config.file is None:
        say(f"{predictions[0].label}, probability {predictions[0].probability}")
    elif config.out is None:
        sys.stdout.write(table(texts, predictions))
    else:
        write_atomically(config.out, table(texts, predictions))
        counts = ", ".join(f"{sum(p.label == name for p in predictions)} {name}" for name in names)
        say(f"{config.out}: {len(texts)} articles: {counts}")
    if cut := int((articles.lengths == trained.max_length).sum()):
        note = f"note: {cut} of {len(texts)} articles fill the {trained.max_length} tokens that the model reads: the"
        print(f"{note} rest of them, if any, does not count", file=sys.stderr)
    if empty := sum(not prediction.label for prediction in predictions):
        print(f"note: {empty} of {len(texts)} articles are empty: no prediction for them", file=sys.stderr)


def read(path: Path | None) -> list[str]:
    """Return the articles of a file, in their order; raises DataError if it cannot be read or holds none."""
    assert path is not None
    texts, _ = read_news(path)
    if not any(text.strip() for text in texts):
        raise DataError(f"error: {path}: holds no article")
    return texts


def table(texts: Sequence[str], predictions: Sequence[Prediction]) -> str:
    """Return CSV with a row for each article."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["text", "label", "probability"])
    writer.writerows([text, *prediction] for text, prediction in zip(texts, predictions, strict=True))
    return file.getvalue()


if __name__ == "__main__":
    from colossal_bert_agnews import cli

    sys.exit(cli.predict())
