"""From a file of tweets to batches: read in chunks, cleaned, split by user, tokenised once into a cache on the disk.

The cache holds NumPy arrays that are mapped into memory, not read: however many tweets there are, a process holds what
it touches. It is made chunk by chunk, each written atomically, so that a process that was killed goes on with the chunk
it had reached. Its name is a hash of the files' content and of every setting that matters: other data, another
tokenizer or another rule have another cache.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from trainyard_shared.datasets.fetch import cache_dir, file_digest, locked, say
from trainyard_shared.datasets.sentiment140 import (
    CLASS_NAMES,
    Chunk,
    Position,
    TweetFiles,
    find_sample,
    find_tweets,
    read_chunks,
    read_texts,
)
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.results import atomic_path, read_json, write_atomically
from trainyard_shared.tensors.lengths import Sequences

from deepspeed_bert_sentiment140.cleaning import Cleaner, Report
from deepspeed_bert_sentiment140.config import TrainConfig

# Part of the name of caches: raise it whenever the same input gives other arrays.
CACHE_VERSION = 1
TRAIN, VAL, TEST = 0, 1, 2
SPLITS = ("train", "val", "test")
NEUTRAL_SAMPLE = 1 / 3  # share of neutral tweets in the generated training file for 3 classes
# What happens to a tweet, in the order in which it is decided.
KEPT, NEUTRAL, EMPTY, OF_TEST_USER, IN_OTHER_SPLIT, COPY, CONTRADICTED = range(7)
REASONS = {
    NEUTRAL: "neutral, left out with 2 classes",
    EMPTY: "nothing left after cleaning",
    OF_TEST_USER: "of a user who is in the test set",
    IN_OTHER_SPLIT: "same text as a tweet held out for validation or test",
    COPY: "same text as an earlier tweet",
    CONTRADICTED: "same text in several classes",
}
ARRAYS = {
    "ids": np.int32,  # (T,) the tokens of all tweets, one behind the other
    "lengths": np.int64,  # (N,) tokens of each
    "labels": np.int64,  # (N,)
    "splits": np.int8,  # (N,)
    "hashes": np.uint64,  # (N,) of the cleaned text, without regard to upper case
    "users": np.uint64,  # (N,) of the user's name
    "files": np.int8,  # (N,) 0 training file, 1 test file
    "offsets": np.int64,  # (N,) byte at which the row begins
}


@dataclass(frozen=True)
class Tweets:
    """All tweets of a data set, tokenised; N of them, kept or not. `TRAIN`, `VAL` and `TEST` index `index`."""

    kind: Literal["real", "sample"]
    source: str
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    sequences: Sequences
    labels: Tensor
    """(N,) int64"""
    index: tuple[Tensor, Tensor, Tensor]
    """of each split, which tweets belong to it, int64"""
    report: dict[str, Any]
    """what was cleaned and dropped, for people"""
    files: TweetFiles
    where: tuple[np.ndarray, np.ndarray]
    """file and byte at which the row of each tweet begins"""

    def texts(self, index: Tensor) -> list[str]:
        """Return the texts of these tweets as published, read again from the file."""
        files, offsets = (array[index.numpy()] for array in self.where)
        order = np.lexsort((offsets, files))
        found: dict[int, str] = {}
        for number, path in enumerate((self.files.train, self.files.test)):
            places = order[files[order] == number]
            if len(places):
                assert path is not None
                found |= zip(places.tolist(), read_texts(path, offsets[places].tolist()), strict=True)
        return [found[place] for place in range(len(order))]


def find(config: TrainConfig) -> TweetFiles:
    """Return where the generated sample or the real tweets are; raises DataError if they cannot be had."""
    if config.data == "sample":
        neutral = NEUTRAL_SAMPLE if config.num_classes == 3 else 0.0
        files = find_sample(0, config.num_sample_tweets, neutral=neutral, negative=config.sample_negative)
    else:
        folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
        files = find_tweets(Path(folder) if folder else None)
    if config.test_set == "official" and files.test is None:
        raise DataError(
            f"error: --test-set official: there is none beside {files.train}; Stanford's archive and the Hub have it"
        )
    return files


def class_names(config: TrainConfig) -> tuple[str, ...]:
    """Names of the classes, in the order of their labels."""
    return tuple(name for polarity, name in CLASS_NAMES.items() if config.num_classes == 3 or polarity != 2)


def splits_of(chunk: Chunk, number: int, config: TrainConfig) -> np.ndarray:
    """Return the split of each tweet, (N,) int8, which depends on its user alone: nobody is in two of them."""
    if number == 1:
        return np.full(len(chunk.users), TEST, np.int8)
    place = hashes(user.lower() for user in chunk.users) / 2.0**64  # even in [0, 1)
    test_share = config.test_share if config.test_set == "held_out" else 0.0
    return np.where(place < test_share, TEST, np.where(place < test_share + config.val_share, VAL, TRAIN)).astype(
        np.int8
    )


def training_texts(files: TweetFiles, config: TrainConfig) -> Iterator[str]:
    """Yield the cleaned texts of the training tweets."""
    cleaner = Cleaner(config.cleaning)
    for chunk in read_chunks(files.train, config.chunk_rows):
        splits = splits_of(chunk, 0, config)
        yield from (cleaner(text) for text, split in zip(chunk.texts, splits, strict=True) if split == TRAIN)


def load(files: TweetFiles, tokenizer: Any, config: TrainConfig) -> Tweets:
    """Return the tweets, from the cache or, once, by way of the file; every process calls it, one does the work.

    Raises:
        DataError: names the file, the line and what is wrong there, or the class that is missing.
        UsageError: more tweets are asked for than there are.
    """
    cache = prepare(files, tokenizer, config)
    # Copy on write: torch wants arrays that may be written to. Nobody does, so nothing is copied.
    arrays = {name: np.load(cache / f"{name}.npy", mmap_mode="c") for name in [*ARRAYS, "fates"]}
    report = read_json(cache / "report.json")
    kept = arrays["fates"] == KEPT
    index = []
    for split, most in ((TRAIN, config.num_train), (VAL, None), (TEST, config.num_test)):
        places = np.flatnonzero(kept & (arrays["splits"] == split))
        if most is not None and most > len(places):
            raise UsageError(f"error: num_{SPLITS[split]}: {most} is not allowed: there are {len(places)} tweets")
        if most is not None:
            # The file is sorted by class. In the order of hashes, any stretch is a fair sample.
            places = np.sort(places[np.argsort(arrays["hashes"][places])[:most]])
        index.append(torch.from_numpy(places))
    names = class_names(config)
    for split in (TRAIN, TEST):
        present = np.unique(arrays["labels"][index[split].numpy()]).tolist()
        missing = [name for label, name in enumerate(names) if label not in present]
        if missing and (split == TRAIN or config.test):
            hint = " (Sentiment140 has neutral tweets in its official test set only)" if "neutral" in missing else ""
            raise DataError(
                f"error: {files.train}: no {' and no '.join(missing)} tweets to {SPLITS[split]}{hint}; see "
                "--num-classes, --test-share and --num-train"
            )
    notes = [f"{count:,} tweets dropped: {reason}" for reason, count in report["dropped"].items()]
    if config.num_train is not None or config.num_test is not None:
        notes.append(f"{len(index[TRAIN]):,} tweets to train and {len(index[TEST]):,} to test, the first by checksum")
    return Tweets(
        kind=files.kind,
        source=files.source,
        class_names=names,
        notes=tuple(notes),
        sequences=Sequences(torch.from_numpy(arrays["ids"]), torch.from_numpy(arrays["lengths"])),
        labels=torch.from_numpy(arrays["labels"]),
        index=(index[TRAIN], index[VAL], index[TEST]),
        report=report,
        files=files,
        where=(arrays["files"], arrays["offsets"]),
    )


def prepare(files: TweetFiles, tokenizer: Any, config: TrainConfig) -> Path:
    """Return the folder of the cache with the arrays of `ARRAYS`, `fates` and report.json, made by whoever is first."""
    used = [path for path in (files.train, files.test if config.test_set == "official" else None) if path is not None]
    settings = {
        "version": CACHE_VERSION,
        "files": [file_digest(path, "sha256") for path in used],
        "tokenizer": hashlib.sha256(_words(tokenizer).encode()).hexdigest(),
        "cleaning": sorted(config.cleaning),
        **{
            name: getattr(config, name)
            for name in ("max_length", "num_classes", "test_set", "test_share", "val_share", "chunk_rows")
        },
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]
    cache = cache_dir() / "sentiment140" / "tokens" / key
    if not (cache / "report.json").is_file():
        with locked(cache):
            if not (cache / "report.json").is_file():
                chunks = _tokenise(used, tokenizer, config, cache)
                _finish(chunks, cache, settings)
    return cache


def hashes(texts: Iterator[str]) -> np.ndarray:
    """Return a number of 64 bits for each text; of a million texts two have the same with a chance of 1 in 10^7."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def decide(
    splits: np.ndarray, labels: np.ndarray, texts: np.ndarray, users: np.ndarray, lost: np.ndarray
) -> np.ndarray:
    """Return what happens to each tweet, (N,) int8: `KEPT` or the reason why it is dropped.

    Held-out tweets come first: a text is kept where it is furthest from training, once. A text that has several labels
    in training is dropped there; held out, its first copy stays, so that the test is not made easier.

    Args:
        splits: (N,) `TRAIN`, `VAL` or `TEST`.
        labels: (N,)
        texts: (N,) hashes; equal ones are equal texts.
        users: (N,) hashes.
        lost: (N,) int8, fates decided already, else `KEPT`.
    """
    fates = lost.copy()
    of_test_user = (splits != TEST) & np.isin(users, np.unique(users[splits == TEST]))
    fates[(fates == KEPT) & of_test_user] = OF_TEST_USER
    open_ = np.flatnonzero(fates == KEPT)
    # Equal texts beside each other; of these the one furthest from training first, then by their order in the file.
    order = open_[np.lexsort((open_, -splits[open_], texts[open_]))]
    is_first = np.append(True, np.diff(texts[order].astype(np.uint64)) != 0) if len(order) else np.empty(0, bool)
    group = np.cumsum(is_first) - 1
    first = order[is_first]
    winner = first[group]
    fates[order] = np.where(is_first, KEPT, np.where(splits[order] < splits[winner], IN_OTHER_SPLIT, COPY))
    in_conflict = np.zeros(len(first), bool)
    np.logical_or.at(in_conflict, group, labels[order] != labels[winner])
    fates[first[in_conflict & (splits[first] == TRAIN)]] = CONTRADICTED
    return fates


def oversampled(index: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Return the index with tweets of smaller classes repeated until all classes are as large as the largest."""
    generator = torch.Generator().manual_seed(seed)
    parts = [index[labels[index] == label] for label in labels[index].unique().tolist()]
    most = max(map(len, parts))
    filled = []
    for part in parts:
        whole, rest = divmod(most, len(part))
        filled += [part] * whole + [part[torch.randperm(len(part), generator=generator)[:rest]]]
    return torch.cat(filled)


def encode(texts: Sequence[str], tokenizer: Any, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of cleaned texts, one behind the other, (T,) int32, and the lengths, (N,) int64."""
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=config.max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    flat = np.fromiter((token for ids in encoded for token in ids), np.int32, int(lengths.sum()))
    return flat, lengths


def _words(tokenizer: Any) -> str:
    """Return what a tokenizer knows, without how it was last called: it remembers that, too."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({name: value for name, value in content.items() if name not in ("truncation", "padding")})


def _tokenise(files: Sequence[Path], tokenizer: Any, config: TrainConfig, cache: Path) -> list[Path]:
    """Return one file with arrays for each chunk; those that a process before this one has made are not made again."""
    chunks: list[Path] = []
    folder = cache / "chunks"
    folder.mkdir(parents=True, exist_ok=True)
    reused = 0
    for number, path in enumerate(files):
        start = Position()
        while (made := folder / f"{number}-{start.byte:012d}.npz").is_file():
            chunks.append(made)
            reused += 1
            with np.load(made) as arrays:
                start = Position(*arrays["end"].tolist())
        for chunk in read_chunks(path, config.chunk_rows, start) if start.byte < path.stat().st_size else ():
            made = folder / f"{number}-{start.byte:012d}.npz"
            arrays_of_chunk = _arrays_of(chunk, number, tokenizer, config)
            with atomic_path(made) as temporary:
                np.savez(temporary, allow_pickle=False, **arrays_of_chunk)
            chunks.append(made)
            start = chunk.end
    if reused:
        say(f"tokenising went on after {reused} of {len(chunks)} chunks, which were there already")
    return chunks


def _arrays_of(chunk: Chunk, number: int, tokenizer: Any, config: TrainConfig) -> dict[str, np.ndarray]:
    """Clean and tokenise a chunk of file `number`."""
    cleaner = Cleaner(config.cleaning)
    texts = [cleaner(text) for text in chunk.texts]
    ids, lengths = encode(texts, tokenizer, config)
    fates = np.full(len(texts), KEPT, np.int8)
    fates[[not text for text in texts]] = EMPTY
    if config.num_classes == 2:
        fates[chunk.polarities == 2] = NEUTRAL
    return {
        "ids": ids,
        "lengths": lengths,
        "labels": chunk.polarities.astype(np.int64) // (2 if config.num_classes == 3 else 4),
        "splits": splits_of(chunk, number, config),
        "hashes": hashes(text.lower() for text in texts),
        "users": hashes(user.lower() for user in chunk.users),
        "files": np.full(len(texts), number, np.int8),
        "offsets": chunk.offsets,
        "fates": fates,
        "end": np.array(chunk.end, np.int64),
        "report": np.array(json.dumps(cleaner.report.to_dict())),
    }


def _finish(chunks: Sequence[Path], cache: Path, settings: dict[str, Any]) -> None:
    """Join the chunks, decide what happens to each tweet, and write the report, which marks the cache as whole."""
    cleaned, sizes = Report(), {"tokens": 0, "tweets": 0}
    for path in chunks:
        with np.load(path) as arrays:
            cleaned.add(json.loads(str(arrays["report"])))
            sizes["tokens"] += len(arrays["ids"])
            sizes["tweets"] += len(arrays["lengths"])
    dtypes: dict[str, Any] = {**ARRAYS, "fates": np.int8}
    with contextlib.ExitStack() as stack:
        joined = {}
        for name, dtype in dtypes.items():
            path = stack.enter_context(atomic_path(cache / f"{name}.npy"))
            size = sizes["tokens" if name == "ids" else "tweets"]
            joined[name] = np.lib.format.open_memmap(path, "w+", dtype, (size,))
        filled = dict.fromkeys(dtypes, 0)
        for path in chunks:
            with np.load(path) as arrays:
                for name in dtypes:
                    part = arrays[name]
                    joined[name][filled[name] : filled[name] + len(part)] = part
                    filled[name] += len(part)
        columns = (joined[name] for name in ("splits", "labels", "hashes", "users", "fates"))
        joined["fates"][:] = decide(*columns)
        report = _describe(joined, cleaned)
        for array in joined.values():
            array.flush()
    write_atomically(cache / "report.json", json.dumps({**report, "settings": settings}, indent=1))
    shutil.rmtree(cache / "chunks")


def _describe(arrays: Mapping[str, np.ndarray], cleaned: Report) -> dict[str, Any]:
    fates, splits = arrays["fates"], arrays["splits"]
    kept = fates == KEPT
    users = [np.unique(arrays["users"][kept & (splits == split)]) for split in (TRAIN, VAL, TEST)]
    return {
        "rows": len(fates),
        "tokens": len(arrays["ids"]),
        "cleaning": cleaned.to_dict(),
        "dropped": {words: int((fates == fate).sum()) for fate, words in REASONS.items() if (fates == fate).any()},
        "splits": {
            name: {
                "tweets": int((kept & (splits == split)).sum()),
                "users": len(users[split]),
                "by_class": np.bincount(arrays["labels"][kept & (splits == split)]).tolist(),
            }
            for split, name in enumerate(SPLITS)
        },
        "users_in_two_splits": sum(
            len(np.intersect1d(users[one], users[other])) for one, other in ((TRAIN, VAL), (TRAIN, TEST), (VAL, TEST))
        ),
    }
