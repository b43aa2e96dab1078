"""What the trained model of a run says of tweets that it has never seen."""

import csv
import io
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from trainyard_shared import launch
from trainyard_shared.console import say
from trainyard_shared.datasets.sentiment140 import read_chunks
from trainyard_shared.datasets.tables import read_text
from trainyard_shared.errors import DataError
from trainyard_shared.results import write_atomically
from trainyard_shared.tensors.lengths import Sequences
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from deepspeed_bert_sentiment140 import data, evaluate  # noqa: E402
from deepspeed_bert_sentiment140.cleaning import Cleaner  # noqa: E402
from deepspeed_bert_sentiment140.config import PredictConfig  # noqa: E402
from deepspeed_bert_sentiment140.model import load_trained  # noqa: E402


class Prediction(NamedTuple):
    """What the model says of one tweet; empty for a tweet without text."""

    label: str
    probability: str
    """of the label"""


def predict(run: Path, config: PredictConfig) -> None:
    """Print or write what the model of a run says of a text, or of each tweet in a file.

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
    cleaner = Cleaner(trained.cleaning)
    cleaned = [cleaner(text) for text in texts]
    ids, lengths = data.encode(cleaned, tokenizer, trained)
    tweets = Sequences(torch.from_numpy(ids), torch.from_numpy(lengths))
    scores = evaluate.predict(model.to(device), tweets, torch.arange(len(texts)), tokenizer, trained, device)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    best = scores.logits.softmax(dim=1).max(dim=1)
    predictions = [
        Prediction(names[label], f"{probability:.4f}") if text else Prediction("", "")
        for text, probability, label in zip(cleaned, best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    if config.file is None:
        say(f"{predictions[0].label}, probability {predictions[0].probability}")
    elif config.out is None:
        sys.stdout.write(table(texts, predictions))
    else:
        write_atomically(config.out, table(texts, predictions))
        counts = ", ".join(f"{sum(p.label == name for p in predictions)} {name}" for name in names)
        say(f"{config.out}: {len(texts)} tweets: {counts}")
    if cut := int((lengths == trained.max_length).sum()):
        note = f"note: {cut} of {len(texts)} tweets fill the {trained.max_length} tokens that the model reads: the rest"
        print(f"{note} of them, if any, does not count", file=sys.stderr)
    if empty := sum(not prediction.label for prediction in predictions):
        print(f"note: {empty} of {len(texts)} tweets are empty: no prediction for them", file=sys.stderr)


def read(path: Path | None) -> list[str]:
    """Return the tweets of a file, in their order; raises DataError if it cannot be read or holds none."""
    assert path is not None
    if path.suffix == ".csv":
        return [text for chunk in read_chunks(path) for text in chunk.texts]
    texts = [line.rstrip("\n") for line in io.StringIO(read_text(path), newline=None)]
    if not any(text.strip() for text in texts):
        raise DataError(f"error: {path}: holds no tweet")
    return texts


def table(texts: list[str], predictions: list[Prediction]) -> str:
    """Return CSV with a row for each tweet."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["text", "label", "probability"])
    writer.writerows([text, *prediction] for text, prediction in zip(texts, predictions, strict=True))
    return file.getvalue()


if __name__ == "__main__":
    from deepspeed_bert_sentiment140 import cli

    sys.exit(cli.predict())
