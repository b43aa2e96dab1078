"""The reader of The Pile: what it yields, what it refuses, and that it never holds much."""

import itertools
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from trainyard_shared.datasets import pile
from trainyard_shared.datasets.pile import BEGINNING, Place, Stream
from trainyard_shared.errors import DataError


def record(text: str, component: str = "Github") -> str:
    return json.dumps({"text": text, "meta": {"pile_set_name": component}})


def compressed(path: Path, *frames: str) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(frame.encode()) for frame in frames))
    return path


def texts(path: Path) -> list[str]:
    return [document.text for document in pile.documents([path])]


def test_documents_come_with_component_and_line_also_across_frames_and_without_a_last_newline(tmp_path: Path) -> None:
    # The second document begins in one frame and ends in the next.
    whole = "\n".join(record(text, component) for text, component in [("a", "X"), ("é\n", "Y"), ("", "X")])
    path = compressed(tmp_path / "a.jsonl.zst", whole[:60], whole[60:])
    found = list(pile.documents([path]))
    assert [(d.text, d.component, d.line) for d in found] == [("a", "X", 1), ("é\n", "Y", 2), ("", "X", 3)]
    (tmp_path / "a.jsonl").write_text(whole + "\n")
    assert texts(tmp_path / "a.jsonl") == ["a", "é\n", ""]
    assert len(list(pile.documents([path, path], limit=4))) == 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{text: 1}", "line 2: no JSON"),
        ("", "line 2: no JSON"),
        ("[1]", "line 2: found list, expected an object"),
        ('{"meta": {"pile_set_name": "X"}}', "line 2: no key 'text', expected a string"),
        ('{"text": 5, "meta": {"pile_set_name": "X"}}', "line 2: text is int, expected a string"),
        ('{"text": "a"}', "line 2: no key 'meta'"),
        ('{"text": "a", "meta": "X"}', "line 2: meta is str"),
        ('{"text": "a", "meta": {"set": "X"}}', "line 2: no key 'pile_set_name'"),
        ('{"text": "\\ud800", "meta": {"pile_set_name": "X"}}', "line 2: the text has half a surrogate pair"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = compressed(tmp_path / "bad.jsonl.zst", f"{record('good')}\n{line}\n{record('good')}\n")
    with pytest.raises(DataError) as error:
        texts(path)
    assert f"{path}, {words}" in str(error.value)


def test_damage_is_named(tmp_path: Path) -> None:
    whole = "".join(record(f"document {number * 7919 % 1000}") + "\n" for number in range(5000))
    path = compressed(tmp_path / "whole.jsonl.zst", whole)
    content = path.read_bytes()
    cut = tmp_path / "cut.jsonl.zst"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut.jsonl.zst, at line \d+: the file ends in the middle of a zstd frame"):
        texts(cut)
    flipped = tmp_path / "flipped.jsonl.zst"
    flipped.write_bytes(content[:200] + bytes(100) + content[300:])
    with pytest.raises(DataError, match=r"flipped.jsonl.zst, at line \d+: corrupt zstd frame before byte"):
        texts(flipped)
    other = tmp_path / "other.jsonl.zst"
    other.write_bytes(whole.encode())
    with pytest.raises(DataError, match="at line 1: corrupt zstd frame"):
        texts(other)
    (tmp_path / "empty.jsonl.zst").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        texts(tmp_path / "empty.jsonl.zst")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        texts(tmp_path / "none.jsonl.zst")


def test_a_large_file_is_read_in_little_memory_and_a_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compressed(tmp_path / "large.jsonl.zst", (record("x" * 1000) + "\n") * 100_000)  # 100 MB of text
    bomb = compressed(tmp_path / "bomb.jsonl.zst", '{"text": "' + "x" * 300_000_000)
    assert bomb.stat().st_size < 100_000
    monkeypatch.setattr(pile, "MAX_LINE_BYTES", 2**24)
    tracemalloc.start()
    assert sum(1 for _ in pile.documents([path])) == 100_000
    with pytest.raises(DataError, match="line 1: longer than 16 MiB"):
        texts(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6, f"{peak / 1e6:.0f} MB"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [
        compressed(
            tmp_path / f"{name}.jsonl.zst",
            "".join(record(f"{name}{line}", "XY"[line % 2]) + "\n" for line in range(20)),
        )
        for name in "abc"
    ]


def take(stream: Stream, count: int, place: Place = BEGINNING) -> list[tuple[str, Place]]:
    return [(d.text, at) for d, at in itertools.islice(stream.documents(place), count)]


def test_shards_share_out_each_document_once_in_every_pass(files: list[Path]) -> None:
    shards = [[text for text, _ in take(Stream(files, shard, 4), 15)] for shard in range(4)]
    assert sorted(itertools.chain(*shards)) == sorted(f"{name}{line}" for name in "abc" for line in range(20))
    again = [text for text, at in take(Stream(files, 0, 4), 30) if at.epoch == 1]
    assert sorted(again) == sorted(shards[0])


def test_a_stream_goes_on_from_any_place(files: list[Path]) -> None:
    for shard in (0, 3):
        stream = Stream(files, shard, 4, weights={"X": 0.5}, seed=1)
        whole = take(stream, 40)
        for index in (0, 1, 7, 16, 29):
            assert take(stream, 40 - index, whole[index][1]) == whole[index:]


def test_the_mixture_is_kept_and_no_document_comes_twice_in_a_pass(tmp_path: Path) -> None:
    path = compressed(tmp_path / "m.jsonl.zst", "".join(record(str(n), "XYZ"[n % 3]) + "\n" for n in range(6000)))
    stream = Stream([path], weights={"X": 2.0, "Z": 0.0}, seed=3)
    one_pass = list(itertools.takewhile(lambda found: found[1].epoch == 0, stream.documents()))
    counts = Counter(document.component for document, _ in one_pass)
    assert counts["X"] == 2000
    assert counts["Y"] == pytest.approx(1000, abs=80)  # 3.6 standard deviations
    assert counts["Z"] == 0
    assert len({document.text for document, _ in one_pass}) == len(one_pass)
    following = take(stream, len(one_pass) + 3000)[len(one_pass) :]
    assert {text for text, at in following if at.epoch == 1} != {document.text for document, _ in one_pass}


def test_a_shard_without_documents_is_an_error_instead_of_an_endless_loop(files: list[Path]) -> None:
    with pytest.raises(DataError, match="shard 25 of 30 has no document in a whole pass"):
        take(Stream(files, 25, 30), 1)
    with pytest.raises(DataError, match="the mixture leaves all of them out"):
        take(Stream(files, weights={"X": 0.0, "Y": 0.0}), 1)


def test_the_sample_has_four_components_and_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    one, two, other = (
        pile.make_sample(tmp_path / name, seed=seed, num_documents=200) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    first = pile.find_pile(one)
    assert first.kind == "sample"
    assert "generated" in first.source
    found = list(pile.documents(first.train))
    assert len(found) == 200
    assert len({document.component for document in found}) == 4
    assert found == list(pile.documents(pile.find_pile(two).train))
    assert found != list(pile.documents(pile.find_pile(other).train))
    assert not {d.text for d in found} & {d.text for d in pile.documents(first.test) if d.component == "Wikipedia (en)"}


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed(tmp_path / "train" / "00.jsonl.zst", record("a"))
    with pytest.raises(DataError, match=r"No The Pile \(val\) in .*, which holds train. Expected there: val.jsonl.zst"):
        pile.find_pile(tmp_path)
    monkeypatch.setenv("TRAINYARD_OFFLINE", "1")
    monkeypatch.setattr(pile, "cache_dir", lambda: tmp_path / "cache")
    with pytest.raises(DataError, match=r"train/00.jsonl.zst is not in .*offline mode"):
        pile.find_pile()
