"""Documents to tokens: tokenizers, and sequences packed end to end from the shards of the training data.

A training sequence has T + 1 tokens, the last of which is the first of the next: each token of the stream is a target
once. Documents follow each other with an end-of-text token between them. Where a shard is, is a `Cursor` of 5 numbers.

    shard 0   d0 d0 d0 <|endoftext|> d8 d8 ...     one sequence of each shard in turn makes the global batch; which
    shard 1   d1 d1 d1 d1 d1 d1 d1 d1 d1 ...       process packs it depends on the number of processes, what is in
    ...                                            it does not
"""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from trainyard_shared.datasets import pile
from trainyard_shared.datasets.fetch import is_offline
from trainyard_shared.datasets.pile import PileFiles, Place, Stream
from trainyard_shared.errors import DataError, UsageError

from deepspeed_gpt2_pile.config import TrainConfig, weights_of

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
# Names of the files of a byte-level BPE: of transformers, and of OpenAI.
BPE_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def load(config: TrainConfig) -> PileFiles:
    """Return where the documents that `config` names are; raises DataError if they cannot be had."""
    if config.data == "sample":
        return pile.load_sample(num_documents=config.num_sample_documents)
    return pile.find_pile(config.data_dir, config.num_train_files)


def error_in(files: PileFiles, config: TrainConfig) -> DataError | None:
    """Read the documents of validation and test, and return what is wrong with them: better now than at the end."""
    try:
        for _ in pile.documents(files.val, config.num_val_documents):
            pass
        for _ in pile.documents(files.test, config.num_test_documents if config.test else 0):
            pass
    except DataError as error:
        return error
    return None


# ------------------------------------------------------------------------------------------------------------ tokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer that `--tokenizer` names; raises DataError if it cannot be had.

    It takes the letters `<|endoftext|>` in a document as letters, not as its end.
    """
    if name == "bytes":
        tokenizer = byte_tokenizer()
    elif (folder := Path(name)).is_dir():
        tokenizer = _from_folder(folder)
    else:
        tokenizer = _from_hub(name)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise DataError(f"error: --tokenizer {name}: it has no {END_OF_TEXT}, so it is none of GPT-2")
    tokenizer.encode_special_tokens = True
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Return a byte-level BPE without merges: 256 bytes in GPT-2's alphabet, and the end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _byte_level(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))


def end_of_text(tokenizer: Tokenizer) -> int:
    """Return the id of the end-of-text token."""
    return tokenizer.token_to_id(END_OF_TEXT)


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def _from_folder(folder: Path) -> Tokenizer:
    try:
        if (file := folder / TOKENIZER_FILE).is_file():
            return Tokenizer.from_file(str(file))
        for vocabulary, merges in BPE_FILES:
            if (folder / vocabulary).is_file() and (folder / merges).is_file():
                return _byte_level(models.BPE.from_file(str(folder / vocabulary), str(folder / merges)))
    except Exception as error:  # tokenizers raises nothing more precise
        raise DataError(f"error: --tokenizer {folder}: its files cannot be read: {error}") from error
    wanted = " or ".join(f"{vocabulary} and {merges}" for vocabulary, merges in BPE_FILES)
    raise DataError(f"error: --tokenizer {folder}: the folder has no tokenizer: expected {TOKENIZER_FILE}, or {wanted}")


def _from_hub(name: str) -> Tokenizer:
    from huggingface_hub import hf_hub_download

    try:
        return Tokenizer.from_file(hf_hub_download(name, TOKENIZER_FILE, local_files_only=is_offline()))
    except Exception as error:  # of the Hub's client, or of the libraries below it: each has its own
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"error: --tokenizer {name}: no folder of this name, and not to be had from the Hugging Face Hub: "
            f"{first_line} What to do: --tokenizer FOLDER with {TOKENIZER_FILE}, or --tokenizer bytes"
        ) from error


# -------------------------------------------------------------------------------------------------------------- packing


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a shard is, to the token: the document to go on with, how many of its tokens are used, and the last one."""

    epoch: int = 0
    file: int = 0
    line: int = 0
    offset: int = 0
    last_token: int | None = None


class Packer:
    """The sequences of one shard, endlessly.

    Args:
        stream: gives the documents.
        tokenizer: makes tokens of them.
        length: T, of a sequence without the one token that it shares with the next.
        cursor: where to go on.
    """

    def __init__(self, stream: Stream, tokenizer: Tokenizer, length: int, cursor: Cursor) -> None:
        self.stream, self.tokenizer, self.length = stream, tokenizer, length
        self.end = end_of_text(tokenizer)
        self.last = self.end if cursor.last_token is None else cursor.last_token
        self.documents = stream.documents(Place(cursor.epoch, cursor.file, cursor.line))
        self.tokens: list[int] = []
        self.offset, self.place = 0, Place(cursor.epoch, cursor.file, cursor.line)
        if cursor.offset:
            self._open_next()
            self.offset = cursor.offset

    def next(self) -> list[int]:
        """Return the next T + 1 tokens."""
        packed = [self.last]
        while len(packed) <= self.length:
            if self.offset >= len(self.tokens):
                self._open_next()
            piece = self.tokens[self.offset : self.offset + self.length + 1 - len(packed)]
            packed += piece
            self.offset += len(piece)
        self.last = packed[-1]
        return packed

    def cursor(self) -> Cursor:
        """Say where the next sequence begins."""
        return Cursor(self.place.epoch, self.place.file, self.place.line, self.offset, self.last)

    def _open_next(self) -> None:
        document, self.place = next(self.documents)
        self.tokens = [*self.tokenizer.encode(document.text, add_special_tokens=False).ids, self.end]
        self.offset = 0


class TrainBatches:
    """This process's part of each global batch, prepared one micro-batch ahead in a thread.

    A global batch takes one sequence of each shard in turn, as many rounds as it needs. A process owns the shards of
    its number modulo the number of processes, so it decompresses all documents, but tokenizes its own only.

    Args:
        files: of the training split.
        config: sizes, mixture, seed.
        tokenizer: for all documents.
        cursors: where each of the shards is.
        rank: of this process.
        world_size: number of processes.

    Raises:
        UsageError: shards, processes and global batch do not divide.
    """

    def __init__(
        self,
        files: PileFiles,
        config: TrainConfig,
        tokenizer: Tokenizer,
        cursors: list[Cursor],
        rank: int,
        world_size: int,
    ) -> None:
        check_shards(config, world_size)
        self.micro_batch_size = config.micro_batch_size
        self.own = range(rank, config.num_shards, world_size)
        weights = weights_of(config.mixture)
        streams = [Stream(files.train, s, config.num_shards, weights=weights, seed=config.seed) for s in self.own]
        self.packers = [
            Packer(stream, tokenizer, config.context_length, cursors[shard])
            for stream, shard in zip(streams, self.own, strict=True)
        ]
        self.turn = 0
        self.consumed = {shard: cursors[shard] for shard in self.own}
        self.thread = ThreadPoolExecutor(1)
        self.ahead: Future[tuple[Tensor, dict[int, Cursor]]] = self.thread.submit(self._pack)

    def next(self) -> Tensor:
        """Return the next micro-batch: (B, T + 1) token ids on the CPU."""
        batch, cursors = self.ahead.result()
        self.consumed |= cursors
        self.ahead = self.thread.submit(self._pack)
        return batch

    def first_error(self) -> DataError | None:
        """Wait for the batch that is prepared, and return what is wrong with its documents, if something is."""
        error = self.ahead.exception()
        return error if isinstance(error, DataError) else None

    def _pack(self) -> tuple[Tensor, dict[int, Cursor]]:
        rows, cursors = [], {}
        for _ in range(self.micro_batch_size):
            packer, shard = self.packers[self.turn], self.own[self.turn]
            rows.append(packer.next())
            cursors[shard] = packer.cursor()
            self.turn = (self.turn + 1) % len(self.packers)
        return torch.tensor(rows), cursors


def check_shards(config: TrainConfig, world_size: int) -> None:
    """Raise UsageError if the shards cannot be shared out evenly."""
    global_batch_size = config.micro_batch_size * config.gradient_accumulation_steps * world_size
    if config.num_shards % world_size:
        raise UsageError(
            f"error: num_shards: {config.num_shards} cannot be shared out among {world_size} processes: must be a "
            "multiple of their number"
        )
    if global_batch_size % config.num_shards:
        raise UsageError(
            f"error: num_shards: {config.num_shards} does not divide micro_batch_size x gradient_accumulation_steps x "
            f"processes = {config.micro_batch_size} x {config.gradient_accumulation_steps} x {world_size} = "
            f"{global_batch_size}: each global batch takes equally many sequences of each shard"
        )


def start_cursors(config: TrainConfig) -> list[Cursor]:
    """Return where each shard begins."""
    return [Cursor()] * config.num_shards


def cursors_to_json(cursors: dict[int, Cursor]) -> dict[str, Any]:
    """Return cursors by number of shard in a form for JSON."""
    return {str(shard): asdict(cursor) for shard, cursor in sorted(cursors.items())}


def cursors_from_json(found: dict[str, Any]) -> list[Cursor]:
    """Return the cursors that `cursors_to_json` wrote."""
    return [Cursor(**found[str(shard)]) for shard in range(len(found))]


# ----------------------------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a document for an evaluation: the targets from `first` on count, those before are context.

    Attributes:
        document: number of the document.
        tokens: at most T + 1.
        first: index of the first target that counts, at least 1.
    """

    document: int
    tokens: list[int]
    first: int


def windows(tokens: list[int], document: int, length: int, stride: int) -> Iterator[Window]:
    """Cut a document into windows in which each token but the first is a target that counts once.

    Args:
        tokens: with the end-of-text token in front, which is context for the first.
        document: its number.
        length: T, tokens that the model sees.
        stride: new targets in each window after the first; these then see at least T - stride tokens.
    """
    counted = 1
    while counted < len(tokens):
        end = min(counted + (length if counted == 1 else stride), len(tokens))
        begin = max(end - length - 1, 0)
        yield Window(document, tokens[begin:end], counted - begin)
        counted = end


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write the files from which `transformers.AutoTokenizer` and `load_tokenizer` make the same tokenizer."""
    tokenizer.save(str(folder / TOKENIZER_FILE))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
