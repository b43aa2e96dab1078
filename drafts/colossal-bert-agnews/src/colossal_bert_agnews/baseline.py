"""What the network has to beat: word counts and a straight line, on the same articles and the same split."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from trainyard_shared import metrics

NAME = "TF-IDF and logistic regression"


def fit_and_test(
    train_texts: Sequence[str], train_labels: np.ndarray, test_texts: Sequence[str], test_labels: np.ndarray
) -> dict[str, Any]:
    """Return accuracy and F1 on the test articles of a logistic regression on single words and pairs of words.

    Args:
        train_texts: as the network gets them.
        train_labels: (N,)
        test_texts: likewise.
        test_labels: (M,)
    """
    start = time.perf_counter()
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=200_000, token_pattern=r"\S+")
    classifier = LogisticRegression(C=1.0, max_iter=200)
    classifier.fit(vectorizer.fit_transform(train_texts), train_labels)
    predictions = classifier.predict(vectorizer.transform(test_texts))
    confusion = metrics.confusion_matrix(test_labels, predictions, int(train_labels.max()) + 1)
    correct = int((predictions == test_labels).sum())
    return {
        "name": NAME,
        "accuracy": correct / len(test_labels),
        "interval": list(metrics.wilson_interval(correct, len(test_labels))),
        "f1": metrics.macro_f1(confusion),
        "seconds": round(time.perf_counter() - start, 1),
        "protocol": f"{NAME}, single words and pairs of words, fitted to the same {len(train_texts):,} articles",
    }
