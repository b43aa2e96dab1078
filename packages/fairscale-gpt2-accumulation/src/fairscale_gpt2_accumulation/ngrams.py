"""What a perplexity has to beat: the frequency of each token by itself, and after the one before it."""

import numpy as np
from numpy.typing import NDArray

DISCOUNT = 0.75
Tokens = NDArray[np.int64]


def unigram(train: Tokens, test: Tokens, vocab_size: int) -> float:
    """Return the perplexity of `test` under the frequencies in `train`, each count raised by one."""
    return float(np.exp(-np.log(_unigram_probabilities(train, vocab_size)[test]).mean()))


def bigram(train: Tokens, test: Tokens, vocab_size: int) -> float:
    """Return the perplexity of `test` under the frequencies after each token, backed off to those by themselves.

    Absolute discounting with interpolation: every count of a pair is lowered by DISCOUNT, and what that frees is given
    out by the frequencies of single tokens.

    Args:
        train: (N,) the first token is what precedes the text and is not predicted; so in `test`.
        test: (M,)
        vocab_size: V.
    """
    single = _unigram_probabilities(train[1:], vocab_size)
    pairs, counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    before = pairs // vocab_size
    num_after = np.bincount(before, weights=counts, minlength=vocab_size)
    num_different = np.bincount(before, minlength=vocab_size)

    wanted = test[:-1] * vocab_size + test[1:]
    place = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    count = np.where(pairs[place] == wanted, counts[place], 0)
    total = num_after[test[:-1]]
    freed = np.where(total > 0, DISCOUNT * num_different[test[:-1]] / np.maximum(total, 1), 1.0)
    found = np.maximum(count - DISCOUNT, 0) / np.maximum(total, 1)
    return float(np.exp(-np.log(found + freed * single[test[1:]]).mean()))


def _unigram_probabilities(train: Tokens, vocab_size: int) -> NDArray[np.float64]:
    return (np.bincount(train, minlength=vocab_size) + 1) / (len(train) + vocab_size)
