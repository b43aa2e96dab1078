"""Tokens, packing and shards: nothing lost, nothing twice, the same for any number of processes, from any place on."""

import itertools
import json
from pathlib import Path

import pytest
from deepspeed_gpt2_pile import data
from deepspeed_gpt2_pile.config import TrainConfig
from deepspeed_gpt2_pile.data import Cursor, Packer, TrainBatches
from trainyard_shared.datasets import pile
from trainyard_shared.datasets.pile import PileFiles, Stream
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.testing import run, script
from transformers import AutoTokenizer

TEXTS = [f"document {n}: " + "é" * (n % 7) + "x" * (n * 37 % 150) for n in range(40)]


@pytest.fixture
def files(tmp_path: Path) -> PileFiles:
    folder = tmp_path / "pile"
    folder.mkdir()
    for split in ("train", "val", "test"):
        pile.write_documents(folder / f"{split}.jsonl.zst", ((text, "X") for text in TEXTS))
    return pile.find_pile(folder)


def test_bytes_are_tokens_and_end_of_text_is_no_text() -> None:
    tokenizer = data.load_tokenizer("bytes")
    assert tokenizer.get_vocab_size() == 257
    text = "naïve\n日本 <|endoftext|> \x00"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(text.encode())
    assert data.end_of_text(tokenizer) not in ids
    assert tokenizer.decode(ids) == text


def test_the_real_tokenizer_gives_the_tokens_of_gpt2(gpt2_tokenizer: Path) -> None:
    tokenizer = data.load_tokenizer(str(gpt2_tokenizer))
    assert tokenizer.get_vocab_size() == 50257
    assert data.end_of_text(tokenizer) == 50256
    # "Hello world" is 15496, 995: the example that everybody prints.
    assert tokenizer.encode("Hello world").ids == [15496, 995]
    text = "In 1969, naïve  users wrote:\n\n\tx = 'don’t' <|endoftext|>"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert 50256 not in ids


def test_a_saved_tokenizer_is_the_same_for_transformers(tmp_path: Path) -> None:
    tokenizer = data.load_tokenizer("bytes")
    data.write_tokenizer(tokenizer, tmp_path, 128)
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert other.eos_token == "<|endoftext|>"
    assert other.eos_token_id == data.end_of_text(tokenizer)
    assert other("naïve 日本")["input_ids"] == tokenizer.encode("naïve 日本").ids
    assert data.load_tokenizer(str(tmp_path)).encode("naïve").ids == tokenizer.encode("naïve").ids


def test_wrong_tokenizers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"the folder has no tokenizer: expected tokenizer.json, or vocab.json and"):
        data.load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="its files cannot be read"):
        data.load_tokenizer(str(tmp_path))
    monkeypatch.setenv("TRAINYARD_OFFLINE", "1")
    with pytest.raises(DataError, match="no-such-name: no folder of this name, and not to be had"):
        data.load_tokenizer("no-such-name")


def test_sequences_are_the_documents_end_to_end(files: PileFiles) -> None:
    tokenizer = data.load_tokenizer("bytes")
    end = data.end_of_text(tokenizer)
    packer = Packer(Stream(files.train), tokenizer, 50, Cursor())
    wanted = [end, *itertools.chain(*([*tokenizer.encode(text).ids, end] for text in TEXTS * 2))]
    for begin in range(0, len(wanted) - 51, 50):
        assert packer.next() == wanted[begin : begin + 51]


@pytest.mark.parametrize("length", [1, 13, 300])
def test_packing_goes_on_from_any_cursor(files: PileFiles, length: int) -> None:
    tokenizer = data.load_tokenizer("bytes")
    packer = Packer(Stream(files.train, 1, 3), tokenizer, length, Cursor())
    sequences, cursors = [], []
    for _ in range(60):
        cursors.append(packer.cursor())
        sequences.append(packer.next())
    for index in (0, 1, 7, 30, 59):
        stored = data.cursors_from_json(json.loads(json.dumps(data.cursors_to_json({0: cursors[index]}))))[0]
        again = Packer(Stream(files.train, 1, 3), tokenizer, length, stored)
        assert [again.next() for _ in range(60 - index)] == sequences[index:]


def batches_of_all(files: PileFiles, world_size: int, micro: int, accumulation: int, steps: int) -> list[list]:
    config = TrainConfig(
        micro_batch_size=micro, gradient_accumulation_steps=accumulation, num_shards=4, context_length=16
    )
    tokenizer = data.load_tokenizer("bytes")
    ranks = [
        TrainBatches(files, config, tokenizer, data.start_cursors(config), rank, world_size)
        for rank in range(world_size)
    ]
    return [
        sorted(row for batches in ranks for _ in range(accumulation) for row in batches.next().tolist())
        for _ in range(steps)
    ]


def test_global_batches_are_the_same_for_any_number_of_processes_and_accumulation(files: PileFiles) -> None:
    alone = batches_of_all(files, 1, 8, 1, 5)
    assert all(len(batch) == 8 for batch in alone)
    assert batches_of_all(files, 2, 4, 1, 5) == alone
    assert batches_of_all(files, 2, 2, 2, 5) == alone
    assert batches_of_all(files, 4, 1, 2, 5) == alone


def test_cursors_are_those_of_what_was_taken_not_of_what_is_prepared(files: PileFiles) -> None:
    config = TrainConfig(micro_batch_size=4, num_shards=4, context_length=16)
    tokenizer = data.load_tokenizer("bytes")
    batches = TrainBatches(files, config, tokenizer, data.start_cursors(config), 0, 1)
    for _ in range(3):
        batches.next()
    cursors = data.cursors_from_json(data.cursors_to_json(batches.consumed))
    again = TrainBatches(files, config, tokenizer, cursors, 0, 1)
    assert again.next().tolist() == batches.next().tolist()


def test_shards_that_do_not_divide_are_explained() -> None:
    with pytest.raises(UsageError, match="8 cannot be shared out among 3 processes"):
        data.check_shards(TrainConfig(), 3)
    with pytest.raises(UsageError, match="= 2 x 1 x 2 = 4: each global batch takes equally many"):
        data.check_shards(TrainConfig(micro_batch_size=2), 2)


@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 4), (8, 1), (100, 50)])
def test_windows_count_each_token_once_with_enough_context(length: int, stride: int) -> None:
    tokens = list(range(30))
    found = list(data.windows(tokens, 0, length, stride))
    counted = [token for window in found for token in window.tokens[window.first :]]
    assert counted == tokens[1:]
    for window in found:
        assert len(window.tokens) <= length + 1
        assert window.first >= min(length - stride + 1, window.tokens[window.first])


GOOD = b'{"text": "a", "meta": {"pile_set_name": "X"}}\n'
LONG = json.dumps({"text": "x" * 3000, "meta": {"pile_set_name": "X"}}).encode() + b"\n"


def with_a_bad_file(folder: Path, split: str, content: bytes | list[bytes]) -> Path:
    """A folder of good files but one, of which the lines or, as bytes, the whole content is given."""
    import zstandard

    folder.mkdir()
    for name in ("train", "val", "test"):
        pile.write_documents(folder / f"{name}.jsonl.zst", ((text, "X") for text in TEXTS))
    bad = content if isinstance(content, bytes) else zstandard.ZstdCompressor().compress(b"".join(content))
    (folder / f"{split}.jsonl.zst").write_bytes(bad)
    return folder


@pytest.mark.parametrize(
    ("split", "content", "words", "trains"),
    [
        ("train", b"no zstd at all", "train.jsonl.zst, at line 1: corrupt zstd frame", False),
        ("train", [LONG * 8, b"{no json\n", GOOD * 20], "train.jsonl.zst, line 9: no JSON", True),
        ("test", [GOOD * 3, b'{"text": "a"}\n'], "test.jsonl.zst, line 4: no key 'meta', expected", False),
    ],
    ids=["at the beginning", "in mid-stream", "in the test set"],
)
def test_bad_files_end_a_run_with_one_message_and_leave_no_folder(
    tmp_path: Path, split: str, content: bytes | list[bytes], words: str, trains: bool
) -> None:
    folder = with_a_bad_file(tmp_path / "bad", split, content)
    flags = ["--data", "real", "--data-dir", str(folder), "--hidden-size", "32", "--num-layers", "1", "--nproc", "1"]
    finished = run([script("train"), *flags, "--log-every", "1"], tmp_path)
    assert finished.status == 1
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert ("training 'sample'" in finished.stdout) == trains, "it begins only where nothing could be found before"
    assert not list((tmp_path / "results" / "deepspeed-gpt2-pile").iterdir())


def test_validation_and_test_files_are_read_as_far_as_they_are_used(tmp_path: Path) -> None:
    folder = with_a_bad_file(tmp_path / "bad", "val", [GOOD * 3, b"{no json\n"])
    files = pile.find_pile(folder)
    assert "val.jsonl.zst, line 4: no JSON" in str(data.error_in(files, TrainConfig()))
    assert data.error_in(files, TrainConfig(num_val_documents=3)) is None


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere, which does not exist"):
        data.load(TrainConfig(data="real", data_dir=tmp_path / "nowhere"))
