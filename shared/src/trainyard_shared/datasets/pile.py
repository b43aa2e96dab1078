"""The Pile (Gao et al. 2020, arXiv 2101.00027): streamed from its .jsonl.zst files, never held whole.

Each line of a file is a document: `{"text": ..., "meta": {"pile_set_name": "Wikipedia (en)"}}`. The original host is
gone. `monology/pile-uncopyrighted` on the Hugging Face Hub has the same files without Books3, BookCorpus2,
OpenSubtitles, YTSubtitles and OWT2; whoever has the originals passes their folder.

`Stream` deals the documents out to shards: which lines are a shard's own depends on nothing but the number of shards,
so that any number of processes that divides it reads the same. Its place in the files is three numbers, from which it
goes on.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass

from trainyard_shared.config import CONFIG
from trainyard_shared.datasets import articles, entry, opinions, wikitext
from trainyard_shared.datasets.fetch import HubFile, SourceError, building, cache_dir, download, is_offline, locked
from trainyard_shared.datasets.fetch import try_in_order as first_that_works
from trainyard_shared.datasets.tables import GENERATED, listing, read_origin, write_origin
from trainyard_shared.errors import DataError

TITLE = "The Pile"
LICENCE = "of each component its own; the collection is for research"
CITATION = "Gao et al. (2020), The Pile: An 800GB Dataset of Diverse Text for Language Modeling, arXiv 2101.00027"
HUB_REPO = "monology/pile-uncopyrighted"
HUB_LACKS = ("Books3", "BookCorpus2", "OpenSubtitles", "YTSubtitles", "OpenWebText2")
NUM_TRAIN_FILES = 30
SUFFIXES = (".jsonl.zst", ".jsonl")

# 2 KiB of zstd can hold 64 MiB at most (a block of 128 KiB takes 4 bytes), so a small file cannot fill the memory.
READ_BYTES = 2048
MAX_WINDOW_BYTES = 2**27
MAX_LINE_BYTES = 2**28

SAMPLE_VERSION = 1
_ADVICE = (
    f"download train/*.jsonl.zst, val.jsonl.zst and test.jsonl.zst of {HUB_REPO} from the Hugging Face Hub by hand, or "
    "take any folder of files in this form, and pass it as --data-dir"
)


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `component` is its pile_set_name, `line` where it stands in its file, counted from 1."""

    text: str
    component: str
    line: int


@dataclass(frozen=True)
class PileFiles:
    """Where the files of each split are. `kind`, `source` and `notes` are as in the other data sets."""

    name: str
    kind: Literal["real", "sample"]
    source: str
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    test: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a shard is: the next line to look at, in the files of a pass over the data."""

    epoch: int = 0
    file: int = 0
    line: int = 0


BEGINNING = Place()


class Stream:
    """The documents of one shard of a split, pass after pass without end.

    The files come in another order in each pass; within a file the order stays, since The Pile is shuffled already.

    Args:
        files: of the split.
        shard: number of this shard.
        num_shards: line n of a file belongs to shard n modulo this.
        weights: how often documents of a component are taken, relative to the others; 1 for a component that is not
            named, 0 leaves it out. In each pass, a document of component c is kept with probability
            w(c) / max(w), decided by a checksum of its place, so that no document comes twice in one pass.
        seed: of the order of the files and of that choice.

    Raises:
        DataError: while reading: a file is not as it should be, or a whole pass had nothing for this shard.
    """

    def __init__(
        self,
        files: Sequence[Path],
        shard: int = 0,
        num_shards: int = 1,
        *,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.files, self.shard, self.num_shards, self.seed = tuple(files), shard, num_shards, seed
        self.weights = dict(weights or {})
        self.largest = max(1.0, *self.weights.values()) if self.weights else 1.0

    def documents(self, place: Place = BEGINNING) -> Iterator[tuple[Document, Place]]:
        """Yield the documents from `place` on, each with its own place."""
        epoch = place.epoch
        while True:
            order = list(range(len(self.files)))
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            found = place.file > 0 or place.line > 0
            for number in range(place.file, len(order)):
                path = self.files[order[number]]
                first_line = place.line
                place = BEGINNING  # only the first file is entered in its middle
                for line, content in numbered_lines(path, first_line):
                    if (line - 1) % self.num_shards != self.shard:
                        continue
                    document = parse(path, line, content)
                    if self._is_kept(document.component, epoch, order[number], line):
                        found = True
                        yield document, Place(epoch, number, line - 1)
            if not found:
                raise DataError(
                    f"{self.files[0].parent}: shard {self.shard} of {self.num_shards} has no document in a whole pass: "
                    "there are too few documents, or the mixture leaves all of them out."
                )
            place, epoch = BEGINNING, epoch + 1

    def _is_kept(self, component: str, epoch: int, file: int, line: int) -> bool:
        share = self.weights.get(component, 1.0) / self.largest
        if share >= 1:
            return True
        digest = hashlib.blake2b(f"{self.seed} {epoch} {file} {line}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < share * 2**64


def documents(files: Sequence[Path], limit: int | None = None) -> Iterator[Document]:
    """Yield the documents of files once, in their order; at most `limit`.

    Raises:
        DataError: names the file and the line that is wrong.
    """
    count = 0
    for path in files:
        for line, content in numbered_lines(path):
            if count == limit:
                return
            count += 1
            yield parse(path, line, content)


def parse(path: Path, line: int, content: bytes) -> Document:
    """Return the document that a line holds; raises DataError naming file, line and what is wrong."""
    where = f"{path}, line {line}"
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        shown = content[:60].decode("utf-8", errors="replace")
        raise DataError(f"{where}: no JSON ({error}): {shown!r}.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: found {type(record).__name__}, expected an object with the keys text and meta.")
    text, meta = record.get("text"), record.get("meta")
    if not isinstance(text, str):
        raise DataError(f"{where}: {_missing(record, 'text')}, expected a string.")
    component = meta.get("pile_set_name") if isinstance(meta, dict) else None
    if not isinstance(component, str):
        found = _missing(meta, "pile_set_name") if isinstance(meta, dict) else _missing(record, "meta")
        raise DataError(f'{where}: {found}, expected {{"text": ..., "meta": {{"pile_set_name": ...}}}}.')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: the text has half a surrogate pair at character {error.start}.") from error
    return Document(text, component, line)


def numbered_lines(path: Path, first: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a .jsonl.zst or .jsonl file with their numbers, from 1, without the first `first` ones.

    Raises:
        DataError: the file cannot be read, a zstd frame is corrupt or cut off, or a line is longer than MAX_LINE_BYTES.
    """
    rest: list[bytes] = []
    rest_bytes, line = 0, 0
    for block in _blocks(path):
        *ended, last = block.split(b"\n")
        for piece in ended:
            line += 1
            if line > first:
                yield line, b"".join([*rest, piece])
            rest, rest_bytes = [], 0
        if last:
            rest.append(last)
            rest_bytes += len(last)
            if rest_bytes > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {line + 1}: longer than {MAX_LINE_BYTES // 2**20} MiB: no document.")
    if rest and line + 1 > first:
        yield line + 1, b"".join(rest)


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            if path.suffix == ".zst":
                yield from _decompressed(path, iter(partial(file.read, READ_BYTES), b""))
            else:
                yield from iter(partial(file.read, 2**16), b"")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _decompressed(path: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    # Not its stream_reader, which takes a file that was cut off for a whole one.
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    frame: Any = None
    position, line = 0, 1
    for piece in pieces:
        position += len(piece)
        while piece:
            frame = frame or decompressor.decompressobj()
            try:
                block = frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise DataError(
                    f"{path}, at line {line}: corrupt zstd frame before byte {position:,} ({error}). Download the file "
                    "again, or compare its checksum."
                ) from error
            line += block.count(b"\n")
            yield block
            piece, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise DataError(f"{path}, at line {line}: the file ends in the middle of a zstd frame: it is incomplete.")
    if position == 0:
        raise DataError(f"{path} is empty.")


def _missing(record: Mapping[str, Any], key: str) -> str:
    return f"{key} is {type(record[key]).__name__}" if key in record else f"no key {key!r}"


# ------------------------------------------------------------------------------------------------------- where they are


def find_pile(folder: Path | None = None, num_train_files: int = 1, *, offline: bool = False) -> PileFiles:
    """Return where the files are.

    Args:
        folder: with `train/` (or `train.jsonl.zst`), `val.jsonl.zst` and `test.jsonl.zst`, also as .jsonl. By default
            the cache, filled from the Hugging Face Hub.
        num_train_files: how many of the 30 training files to download (each has 11 GB); all that a folder of one's own
            holds are used.
        offline: do not use the network (also TRAINYARD_OFFLINE=1).

    Raises:
        DataError: the data cannot be had.
    """
    if folder is not None:
        return _find(Path(folder))
    cached = cache_dir() / "pile"
    names = _names(min(num_train_files, NUM_TRAIN_FILES))
    if missing := [name for name in names if not (cached / name).is_file()]:
        if is_offline(offline):
            raise DataError(
                f"{TITLE}: {missing[0]} is not in {cached}, and offline mode (TRAINYARD_OFFLINE) forbids a download. "
                f"What to do: {_ADVICE}."
            )
        for name in missing:
            source = _hub_file(name)
            obtain = partial(_from_hub, source, cached / name)
            first_that_works(f"{TITLE}, {name}", [(f"{source.name} ({HUB_REPO})", obtain)], _ADVICE)
    found = _find(cached)
    return PileFiles(
        found.name,
        "real",
        f"{TITLE}, {HUB_REPO} on the Hugging Face Hub ({cached})",
        tuple(cached / name for name in names[:-2]),
        found.val,
        found.test,
        (f"{HUB_REPO} lacks {', '.join(HUB_LACKS)}: figures are not those of the whole Pile",),
    )


def make_sample(folder: Path, *, seed: int, num_documents: int) -> Path:
    """Write generated documents of four components into the new folder `folder`; val and test have a tenth each."""
    if folder.exists():
        raise DataError(f"{folder} exists already. Remove it or choose another folder.")
    counts = {"train/00": num_documents, "val": max(num_documents // 10, 4), "test": max(num_documents // 10, 4)}
    with building(folder) as draft:
        (draft / "train").mkdir()
        for index, (name, count) in enumerate(counts.items()):
            write_documents(draft / f"{name}.jsonl.zst", _sample_documents(count, seed * len(counts) + index))
        write_origin(
            draft,
            f"{GENERATED}, seed {seed}: {' + '.join(f'{count:,}' for count in counts.values())} documents of "
            f"{len(_COMPONENTS)} components in the form of {TITLE}",
            "Made by small grammars, not by people: results on them say nothing about the real Pile.",
        )
    return folder


def load_sample(seed: int = 0, num_documents: int = 2000) -> PileFiles:
    """Return a generated sample, written in the cache by whichever process comes first."""
    folder = cache_dir() / "samples" / f"pile-v{SAMPLE_VERSION}-seed{seed}-{num_documents}" / "documents"
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                make_sample(folder, seed=seed, num_documents=num_documents)
    return _find(folder)


def write_documents(path: Path, found: Iterator[tuple[str, str]]) -> None:
    """Write pairs of text and component as a .jsonl.zst file, one document after the other."""
    import zstandard

    with path.open("wb") as file, zstandard.ZstdCompressor(level=6).stream_writer(file) as writer:
        for text, component in found:
            record = {"text": text, "meta": {"pile_set_name": component}}
            writer.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def _names(num_train_files: int) -> list[str]:
    return [*(f"train/{number:02d}.jsonl.zst" for number in range(num_train_files)), "val.jsonl.zst", "test.jsonl.zst"]


def _hub_file(name: str) -> HubFile:
    return HubFile("Hugging Face Hub", HUB_REPO, name)


def _from_hub(source: HubFile, path: Path) -> None:
    download(source, path)
    try:
        for _ in documents([path], limit=1):
            return
    except DataError as error:
        path.unlink()
        raise SourceError(str(error)) from error


def _find(folder: Path) -> PileFiles:
    splits = {split: _files_of(folder, split) for split in ("train", "val", "test")}
    for split, files in splits.items():
        if not files:
            raise DataError(
                f"No {TITLE} ({split}) in {folder}, which {listing(folder)}. Expected there: {split}.jsonl.zst, "
                f"{split}.jsonl or a folder {split} with such files. What to do: {_ADVICE}."
            )
    origin = read_origin(folder)
    is_sample = origin is not None and origin.startswith(GENERATED)
    source = f"{origin} ({folder})" if is_sample else f"files in the form of {TITLE}, {origin or 'local'} ({folder})"
    kind: Literal["real", "sample"] = "sample" if is_sample else "real"
    return PileFiles("pile", kind, source, splits["train"], splits["val"], splits["test"], ())


def _files_of(folder: Path, split: str) -> tuple[Path, ...]:
    for suffix in SUFFIXES:
        if (path := folder / f"{split}{suffix}").is_file():
            return (path,)
        if found := tuple(sorted((folder / split).glob(f"*{suffix}"))):
            return found
    return ()


# ----------------------------------------------------------------------------------------------------------- the sample


def _sample_documents(count: int, seed: int) -> Iterator[tuple[str, str]]:
    rng = random.Random(seed)
    encyclopedia = iter(wikitext.articles(articles.write(count, seed)))
    reviews = iter(opinions.write([rng.randrange(2) for _ in range(count)], seed))
    for _ in range(count):
        component = rng.choice(_COMPONENTS)
        if component == "Wikipedia (en)":
            text = next(encyclopedia).strip()
        elif component == "Pile-CC":
            text = next(reviews)
        else:
            text = _program(rng) if component == "Github" else _exercises(rng)
        yield text, component


def _program(rng: random.Random) -> str:
    """Return a few functions in Python, whose names, arguments and bodies belong together."""
    parts = []
    for _ in range(rng.randint(2, 5)):
        name = f"{rng.choice(('add', 'find', 'count', 'sum', 'make', 'load'))}_{rng.choice(_NOUNS)}"
        one, other = rng.sample(("x", "y", "value", "other", "left", "right"), 2)
        operator = rng.choice(("+", "-", "*"))
        body = rng.choice(
            (
                f"    return {one} {operator} {other}\n",
                f"    result = {one} {operator} {other}\n    return result\n",
                f"    if {one} > {other}:\n        return {one}\n    return {other}\n",
                f"    total = 0\n    for item in {one}:\n        total += item {operator} {other}\n    return total\n",
            )
        )
        parts.append(f"def {name}({one}, {other}):\n{body}")
    return "\n\n".join(parts)


def _exercises(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(4, 12)):
        one, other = rng.randint(1, 20), rng.randint(1, 20)
        question, answer = rng.choice(
            ((f"What is {one} + {other}?", one + other), (f"What is {one} - {other}?", one - other))
        )
        lines.append(f"{question}\n{answer}")
    return "\n".join(lines)


_COMPONENTS = ("DM Mathematics", "Github", "Pile-CC", "Wikipedia (en)")
_NOUNS = ("item", "row", "node", "word", "file", "user", "path", "page")


@config_dataclass(frozen=True, kw_only=True, config=CONFIG)
class PileConfig(entry.DownloadConfig):
    """How much of it to download."""

    num_train_files: Annotated[int, Field(gt=0, le=NUM_TRAIN_FILES)] = 1
    """training files of 11 GB each, beside those to validate and to test"""


def _download(config: PileConfig) -> str:
    return find_pile(num_train_files=config.num_train_files, offline=config.offline).source


def _check(path: Path) -> str:
    return f"{sum(1 for _ in documents([path])):,} documents"


ENTRIES = (
    entry.Entry(
        name="pile",
        title=f"{TITLE}, without what has been taken down",
        task="language modelling",
        size=f"{NUM_TRAIN_FILES} files to train, of 11 GB each, one to validate and one to test",
        licence=LICENCE,
        terms=f"mind the licence of each component; lacks {', '.join(HUB_LACKS)}",
        citation=CITATION,
        places=(
            entry.Place("Hugging Face Hub", tuple(entry.File(_hub_file(name)) for name in _names(NUM_TRAIN_FILES))),
        ),
        verified="the Hub's sha256; each file has to begin with a document",
        folder="pile",
        contents=("train/*.jsonl.zst", "val.jsonl.zst", "test.jsonl.zst"),
        download=_download,
        check=_check,
        options=PileConfig,
    ),
)
