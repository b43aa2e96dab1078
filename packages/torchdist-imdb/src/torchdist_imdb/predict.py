"""What the trained model of a run says of reviews that it has never seen."""

import csv
import io
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from trainyard_shared import launch
from trainyard_shared.console import say
from trainyard_shared.datasets.imdb import clean, read_reviews
from trainyard_shared.errors import DataError
from trainyard_shared.results import write_atomically
from trainyard_shared.tensors.lengths import Sequences
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from torchdist_imdb import data, evaluate  # noqa: E402
from torchdist_imdb.config import PredictConfig  # noqa: E402
from torchdist_imdb.model import load_trained  # noqa: E402


class Prediction(NamedTuple):
    """What the model says of one review; empty for a review without text."""

    label: str
    probability: str
    """of the label, from 0.5 to 1"""
    tokens_cut: int
    """that the model has not seen, because the review is longer than it reads"""


def predict(run: Path, config: PredictConfig) -> None:
    """Print or write what the model of a run says of a text, or of each review in a file.

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
    reviews, cut = data.Encoder(tokenizer, trained)(texts)
    scores = evaluate.predict(model.to(device), reviews, tokenizer.pad_token_id, trained, device)
    predictions = describe(
        texts, scores.logits, cut, [model.config.id2label[i] for i in range(model.config.num_labels)]
    )
    if config.file is None:
        say(f"{predictions[0].label}, probability {predictions[0].probability}")
    elif config.out is None:
        sys.stdout.write(table(texts, predictions))
    else:
        write_atomically(config.out, table(texts, predictions))
        counts = ", ".join(
            f"{sum(p.label == name for p in predictions)} {name}" for name in model.config.id2label.values()
        )
        say(f"{config.out}: {len(texts)} reviews: {counts}")
    notes(predictions, trained.max_length, trained.truncation, reviews)


def read(path: Path | None) -> list[str]:
    """Return the reviews of a file, in their order; raises DataError if it cannot be read or holds none."""
    assert path is not None
    texts, _ = read_reviews(path)
    if not any(clean(text) for text in texts):
        raise DataError(f"error: {path}: holds no review")
    return texts


def describe(texts: list[str], logits: torch.Tensor, cut: torch.Tensor, names: list[str]) -> list[Prediction]:
    """Return a prediction for each text, in their order."""
    best = logits.softmax(dim=1).max(dim=1)
    return [
        Prediction(names[label], f"{probability:.4f}", num_cut) if clean(text) else Prediction("", "", 0)
        for text, probability, label, num_cut in zip(
            texts, best.values.tolist(), best.indices.tolist(), cut.tolist(), strict=True
        )
    ]


def table(texts: list[str], predictions: list[Prediction]) -> str:
    """Return CSV with a row for each review."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["review", "label", "probability", "tokens_cut"])
    writer.writerows([text, *prediction] for text, prediction in zip(texts, predictions, strict=True))
    return file.getvalue()


def notes(predictions: list[Prediction], max_length: int, truncation: str, reviews: Sequences) -> None:
    """Say what the model has not seen."""
    if cut := sum(prediction.tokens_cut > 0 for prediction in predictions):
        kept = {"head": "beginning", "tail": "end", "head_tail": "beginning and end"}[truncation]
        print(
            f"note: {cut} of {len(reviews)} texts are longer than the {max_length} tokens that the model reads: only "
            f"{kept} counted",
            file=sys.stderr,
        )
    if empty := sum(not prediction.label for prediction in predictions):
        print(f"note: {empty} of {len(reviews)} reviews are empty: no prediction for them", file=sys.stderr)


if __name__ == "__main__":
    from torchdist_imdb import cli

    sys.exit(cli.predict())
