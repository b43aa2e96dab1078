"""GPT-2's byte-level tokenizer: OpenAI's from files, or a small one made of the training text."""

from collections import Counter
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from trainyard_shared.errors import DataError

END_OF_TEXT = "<|endoftext|>"
FORMS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder, in the file names of transformers or of OpenAI.

    Raises:
        DataError: there is none, or it is not byte-level BPE with an end of text.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            return wrap(Tokenizer.from_file(str(folder / "tokenizer.json")))
        for vocabulary, merges in FORMS:
            if (folder / vocabulary).is_file() and (folder / merges).is_file():
                return wrap(byte_level(models.BPE.from_file(str(folder / vocabulary), str(folder / merges))))
    except DataError:
        raise
    except Exception as error:  # of tokenizers, which has only this one
        raise DataError(f"error: --tokenizer {folder}: its files cannot be read: {error}") from error
    wanted = ", ".join(f"{one} and {other}" for one, other in FORMS)
    raise DataError(f"error: --tokenizer {folder}: holds no tokenizer: expected tokenizer.json, or {wanted}")


def make_tokenizer(text: str, vocab_size: int) -> Any:
    """Return a tokenizer in the form of GPT-2's: all bytes, and whole the most frequent words of a text.

    A word that is not in it falls into its longest known beginning and bytes. The trainers of the tokenizers library
    would find better pieces, but others each time (version 0.23), where every process, and a run that is continued,
    has to come to the same.
    """
    counts = Counter(word for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text))
    pieces = dict.fromkeys([END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    merges: dict[tuple[str, str], None] = {}
    # Words after a space only: all their pieces begin with it, so no merge of one comes in the way of another.
    for word in sorted((word for word in counts if word.startswith("Ġ")), key=lambda word: (-counts[word], word)):
        if len(pieces) + len(word) > vocab_size:
            break
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
            pieces[word[: end + 1]] = None
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return wrap(byte_level(models.BPE(vocabulary, list(merges))))


def byte_level(model: models.BPE) -> Tokenizer:
    """Put a BPE model to work on bytes, as GPT-2 does."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def wrap(tokenizer: Tokenizer) -> Any:
    """Return it as a tokenizer of transformers, which saves itself beside a model."""
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise DataError(f"error: the tokenizer has no {END_OF_TEXT}: it is not GPT-2's")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )
