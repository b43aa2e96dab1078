"""What is said of a test set, compared with figures worked out by hand."""

import numpy as np
import pytest
import torch
from torchdist_imdb.config import TrainConfig
from torchdist_imdb.evaluate import MISTAKE_LENGTH, Scores, shortened, tabulate
from trainyard_shared import metrics, plotting
from trainyard_shared.datasets.imdb import ReviewDataset


def results() -> dict:
    """Of six reviews, two wrong: number 1 with 90 %, number 4 with 60 %."""
    positive = torch.tensor([0.2, 0.9, 0.3, 0.8, 0.4, 0.7])
    labels = np.array([0, 0, 0, 1, 1, 1])
    texts = [f"review {i}<br />" + "x" * 500 * (i == 1) for i in range(6)]
    dataset = ReviewDataset("imdb", "sample", "", [], labels[:0], texts, labels, ("negative", "positive"), ())
    logits = torch.stack([1 - positive, positive], dim=1).log()
    return tabulate(Scores(logits, 1.0), dataset, TrainConfig(num_val=20))


def test_metrics_by_hand() -> None:
    found = results()
    values = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert values["test_accuracy"] == pytest.approx(4 / 6)
    assert values["test_f1"] == pytest.approx(2 / 3)  # each class: precision 2/3, recall 2/3
    # Of the nine pairs of a positive and a negative, those with 0.9 are lost, the others are won.
    assert values["test_roc_auc"] == pytest.approx(6 / 9)
    probabilities_of_truth = [0.8, 0.1, 0.7, 0.8, 0.4, 0.7]
    assert values["test_loss"] == pytest.approx(-np.log(probabilities_of_truth).mean())
    low, high = found["metrics"]["test_accuracy"]["interval"]
    assert low < 4 / 6 < high
    assert [row["support"] for row in found["per_class"]] == [3, 3]


def test_worst_mistakes_come_first() -> None:
    (table,) = results()["tables"]
    assert [row[1:] for row in table["rows"]] == [
        ["negative", "positive", "90.00 %"],
        ["positive", "negative", "60.00 %"],
    ]
    assert table["rows"][0][0].startswith("review 1 xxx")
    assert len(table["rows"][0][0]) == MISTAKE_LENGTH
    assert table["rows"][1][0] == "review 4"
    assert "2 of 2 mistakes" in table["note"]


def test_long_reviews_are_shown_from_both_ends() -> None:
    text = "".join(chr(0x4E00 + i) for i in range(1000))
    short = shortened(text)
    assert len(short) == MISTAKE_LENGTH
    assert text.startswith(short.split(" … ")[0])
    assert text.endswith(short.split(" … ")[1])
    assert shortened("short") == "short"


def test_roc_auc_is_the_share_of_pairs_in_order() -> None:
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 2, 200), generator.random(200).round(1)  # many equal scores
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None]
    by_pairs = ((positive > negative) + 0.5 * (positive == negative)).mean()
    assert metrics.roc_auc(labels, scores) == pytest.approx(by_pairs)
    false_rate, true_rate = metrics.roc_curve(labels, scores)
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    assert (np.diff(false_rate) >= 0).all()
    assert (np.diff(true_rate) >= 0).all()


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([1, 1], [0.1, 0.2], "labels must be of both classes, found only 1"),
        ([0, 1], [0.1], "2 labels do not go with scores of shape"),
        ([0, 1], [0.1, float("nan")], "scores hold NaN, first at position 1"),
        ([0, 2], [0.1, 0.2], "labels must be between 0 and 1, found 2"),
    ],
)
def test_roc_curve_of_what_has_none(labels: list, scores: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metrics.roc_curve(labels, scores)


def test_pictures(tmp_path) -> None:
    path = plotting.roc_curve([0, 1, 1, 0], [0.1, 0.9, 0.4, 0.6], tmp_path / "roc.png", positive="$5 films")
    assert path.read_bytes().startswith(b"\x89PNG")
    parameters = {"learning_rate": [1e-4, 1e-3, 2e-3], "global_batch_size": [16, 32, 16]}
    path = plotting.search_history(
        [0.8, 0.7, None], [False, True, False], parameters, tmp_path / "search.png", logarithmic=["learning_rate"]
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="3 values, but not as many pruned or parameters"):
        plotting.search_history([0.8, 0.7, None], [False], parameters, tmp_path / "wrong.png")
    assert plotting.search_history([None], [False], {"dropout": [0.1]}, tmp_path / "nothing.png").is_file()
