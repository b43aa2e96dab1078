"""WikiText-2: from the Hub or local files, word-level and raw, and a generated sample in the same format.

Every form ends in the text that Merity et al. (2016) published: one paragraph a line, each line between two spaces,
` = Title = ` headings, and one reader for all. In the word-level form rare words are `<unk>`; the raw form keeps them.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

from trainyard_shared.datasets import articles as generated
from trainyard_shared.datasets.archives import extract
from trainyard_shared.datasets.entry import DownloadConfig, Entry, File, Place
from trainyard_shared.datasets.fetch import (
    HubFile,
    SourceError,
    building,
    cache_dir,
    download,
    file_digest,
    is_offline,
    locked,
    record_checksums,
    together,
    try_in_order,
)
from trainyard_shared.datasets.tables import GENERATED, listing, read_origin, read_parquet, read_text, write_origin
from trainyard_shared.errors import DataError

LICENCE = "CC BY-SA 3.0 and GFDL, as the articles of Wikipedia that it was taken from"
CITATION = "Merity et al. (2016), Pointer Sentinel Mixture Models, arXiv 1609.07843"

TITLE = "WikiText-2"
Form = Literal["word", "raw"]
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
NUM_LINES = {"train": 36_718, "valid": 3_760, "test": 4_358}
UNKNOWN = "<unk>"

# How each form is called: the ending of its files, its folder and archive, its configuration on the Hub.
SUFFIX = {"word": "tokens", "raw": "raw"}
FOLDER = {"word": "wikitext-2", "raw": "wikitext-2-raw"}
HUB_FOLDER = {"word": "wikitext-2-v1", "raw": "wikitext-2-raw-v1"}
HUB_SPLIT = {"train": "train", "valid": "validation", "test": "test"}
HUB_REPO = "Salesforce/wikitext"
# The original archive of the raw form, which has gone from its first address.
ARCHIVE = HubFile("the original archive on the Hugging Face Hub", "ggml-org/ci", "wikitext-2-raw-v1.zip")
ARCHIVE_SHA256 = "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"
ARCHIVE_BYTES = 4_721_645

# Part of the name of cached samples: raise it whenever the same seed gives other articles.
SAMPLE_VERSION = 1
_ADVICE = f"download the files of {HUB_REPO} from the Hugging Face Hub by hand and pass their folder as --data-dir"
_HEADING = re.compile(r"(?:^|(?<=\n)) \n(?= = (?!= )[^\n]* (?<!= )= \n \n)")


@dataclass(frozen=True)
class TextDataset:
    """Texts for training, validation and testing, whole in memory.

    `texts` holds those splits that were asked for, each as published. `kind` says whether they are the real data set or
    a generated sample, `source` where they come from, for people, and `notes` what is to be known of them.
    """

    name: str
    kind: Literal["real", "sample"]
    source: str
    texts: dict[str, str]
    notes: tuple[str, ...]


def load_wikitext(
    folder: Path | None = None, form: Form = "raw", splits: Sequence[Split] = SPLITS, *, offline: bool = False
) -> TextDataset:
    """Return WikiText-2.

    Args:
        folder: A folder with `wiki.train.raw` (raw form), `wiki.train.tokens` (word-level) or `train.txt` (either) and
            so on for `valid` and `test`, or with the Hub's parquet files, or with the original archive; such folders
            may lie one level deeper, under their usual names. Nothing is written to it. By default the cache, filled
            from the Hugging Face Hub.
        form: `word`: rare words replaced by `<unk>`, as in published word-level results; `raw`: all words.
        splits: Which of the three to read; the others may be missing.
        offline: Do not use the network (also TRAINYARD_OFFLINE=1).

    Raises:
        DataError: the data cannot be had, or a file is not of the expected form.
    """
    if folder is not None:
        return _load_local(Path(folder), form, splits)
    cached = cache_dir() / "wikitext-2" / form
    with locked(cached):
        if not cached.exists():
            _obtain(cached, form, offline)
    return _load_local(cached, form, splits)


def make_sample(folder: Path, *, seed: int, num_articles: int) -> Path:
    """Write generated articles into the new folder `folder`: train.txt, and valid.txt and test.txt of a tenth each."""
    if folder.exists():
        raise DataError(f"{folder} exists already. Remove it or choose another folder.")
    counts = {"train": num_articles, "valid": max(num_articles // 10, 1), "test": max(num_articles // 10, 1)}
    with building(folder) as draft:
        for index, (split, count) in enumerate(counts.items()):
            text = generated.write(count, seed * len(counts) + index)
            (draft / f"{split}.txt").write_text(text, encoding="utf-8")
        write_origin(
            draft,
            f"{GENERATED}, seed {seed}: {' + '.join(f'{counts[split]:,}' for split in SPLITS)} articles in the form of "
            f"{TITLE}",
            "Made by a small grammar, not by people: results on them say nothing about the real WikiText-2.",
        )
    return folder


def load_sample(seed: int = 0, num_articles: int = 300) -> TextDataset:
    """Return generated articles, written in the cache by whichever process comes first."""
    folder = cache_dir() / "samples" / f"wikitext-2-v{SAMPLE_VERSION}-seed{seed}-{num_articles}" / "articles"
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                make_sample(folder, seed=seed, num_articles=num_articles)
    try:
        return _load_local(folder, "raw", SPLITS)
    except DataError as error:
        raise DataError(f"The cached sample is damaged. Remove the folder {folder.parent}. ({error})") from error


def articles(text: str) -> list[str]:
    """Divide a text at its ` = Title = ` headings, which stand between blank lines; joined, the parts are the text."""
    starts = [match.start() for match in _HEADING.finditer(text)]
    bounds = [0, *(start for start in starts if start > 0), len(text)]
    return [text[begin:end] for begin, end in pairwise(bounds)]


def num_words(text: str) -> int:
    """Count words as published results do: what stands between white space, and an end-of-line token for each line."""
    return len(text.split()) + text.count("\n")


def _obtain(folder: Path, form: Form, offline: bool) -> None:
    if is_offline(offline):
        raise DataError(
            f"{TITLE} ({form}) is not in {folder}, and offline mode (TRAINYARD_OFFLINE) forbids a download. "
            f"What to do: {_ADVICE}."
        )
    downloads = folder.with_name(f"{form}-downloads")
    attempts: list[tuple[str, Callable[[], None]]] = [
        (f"Hugging Face Hub ({HUB_REPO})", partial(_from_hub, downloads, folder, form))
    ]
    if form == "raw":
        attempts.append((f"{ARCHIVE.name} ({ARCHIVE.repo})", partial(_from_archive, downloads, folder)))
    try_in_order(TITLE, attempts, _ADVICE)
    record_checksums(folder)
    shutil.rmtree(downloads, ignore_errors=True)


def _hub_files(form: Form) -> dict[Split, HubFile]:
    return {
        split: HubFile("Hugging Face Hub", HUB_REPO, f"{HUB_FOLDER[form]}/{HUB_SPLIT[split]}-00000-of-00001.parquet")
        for split in SPLITS
    }


def _from_hub(downloads: Path, folder: Path, form: Form) -> None:
    texts = {}
    sources = _hub_files(form)
    files = together(*(partial(download, source, downloads / source.path) for source in sources.values()))
    for (split, source), file in zip(sources.items(), files, strict=True):
        texts[split] = _read_parquet(file)
        if (found := texts[split].count("\n")) != NUM_LINES[split]:
            file.unlink()
            raise SourceError(f"{source.path} has {found:,} lines, expected {NUM_LINES[split]:,}")
    with building(folder) as draft:
        for split, text in texts.items():
            (draft / f"wiki.{split}.{SUFFIX[form]}").write_text(text, encoding="utf-8")
        write_origin(draft, f"Hugging Face Hub ({HUB_REPO})")


def _from_archive(downloads: Path, folder: Path) -> None:
    archive = download(ARCHIVE, downloads / Path(ARCHIVE.path).name, sha256=ARCHIVE_SHA256, size_bytes=ARCHIVE_BYTES)
    unpacked = extract(archive, downloads / "unpacked") / FOLDER["raw"]
    write_origin(unpacked, f"{ARCHIVE.name} ({ARCHIVE.repo})")
    unpacked.rename(folder)


def _load_local(folder: Path, form: Form, splits: Sequence[Split]) -> TextDataset:
    archive = folder if folder.suffix == ".zip" else folder / f"{HUB_FOLDER[form]}.zip"
    if archive.is_file():
        # By its checksum: another archive of this name is another folder.
        unpacked = cache_dir() / "wikitext-2" / f"archive-{file_digest(archive, 'sha256')[:16]}"
        extract(archive, unpacked)
        folder = unpacked
    texts: dict[str, str] = {split: _read_split(folder, form, split) for split in splits}
    origin = read_origin(folder)
    notes = [
        f"{split}: {text.count(chr(10)):,} lines, where {TITLE} has {NUM_LINES[split]:,}"
        for split, text in texts.items()
        if text.count("\n") != NUM_LINES[split]
    ]
    if origin is not None and origin.startswith(GENERATED):
        return TextDataset("wikitext-2", "sample", f"{origin} ({folder})", texts, ())
    origin = origin or "local files"
    return TextDataset("wikitext-2", "real", f"{TITLE}, {form} form, {origin} ({folder})", texts, tuple(notes))


def _read_split(folder: Path, form: Form, split: Split) -> str:
    hub_name = f"{HUB_SPLIT[split]}-00000-of-00001.parquet"
    folders = (folder, folder / FOLDER[form], folder / HUB_FOLDER[form])
    for parent in folders:
        for name in (f"wiki.{split}.{SUFFIX[form]}", f"{split}.txt", hub_name):
            path = parent / name
            if not path.is_file():
                continue
            text = _read_parquet(path) if path.suffix == ".parquet" else read_text(path).replace("\r\n", "\n")
            if not text.strip():
                raise DataError(f"{path} is empty.")
            if form == "raw" and f" {UNKNOWN} " in text:
                line = text[: text.index(f" {UNKNOWN} ")].count("\n") + 1
                raise DataError(
                    f"{path}, line {line}: {UNKNOWN} stands for a rare word in the word-level form, and the raw form "
                    "was asked for; use --form word, or the raw files."
                )
            return text if text.endswith("\n") else text + "\n"
    raise DataError(
        f"No {TITLE} ({form} form, {split}) in {folder}, which {listing(folder)}. Expected there: "
        f"wiki.{split}.{SUFFIX[form]}, {split}.txt, {hub_name} or {HUB_FOLDER[form]}.zip, or one of the folders "
        f"{FOLDER[form]} and {HUB_FOLDER[form]} with them. What to do: {_ADVICE}."
    )


def _read_parquet(path: Path) -> str:
    """Return the text of one of the Hub's files, whose rows are lines; it has lost the spaces of blank lines."""
    (lines,) = read_parquet(path, f"the Hub's {TITLE}", text=str)
    return "".join(line or " \n" for line in lines)


def _entry_of(form: Form, places: tuple[Place, ...]) -> Entry:
    return Entry(
        name=f"wikitext-2-{form}",
        title=f"{TITLE}, {'all words' if form == 'raw' else 'rare words replaced by <unk>'}",
        task="language modelling",
        size=" + ".join(f"{NUM_LINES[split]:,}" for split in SPLITS) + " lines to train, validate and test",
        licence=LICENCE,
        terms="name Wikipedia as the source, and pass on under the same licence",
        citation=CITATION,
        places=places,
        verified="sha256 of the archive; from the Hub, its sha256 and the number of lines of each split",
        folder=f"wikitext-2/{form}",
        contents=(".",),
        download=partial(_download, form),
        check=partial(_check, form),
    )


def _download(form: Form, config: DownloadConfig) -> str:
    return load_wikitext(None, form, offline=config.offline).source


def _check(form: Form, folder: Path) -> str:
    data = _load_local(folder, form, SPLITS)
    if data.notes:
        raise DataError(f"{folder} is not {TITLE}: {'; '.join(data.notes)}")
    return data.source


def _hub_place(form: Form) -> Place:
    return Place("Hugging Face Hub", tuple(File(source) for source in _hub_files(form).values()))


ENTRIES = (
    _entry_of(
        "raw", (_hub_place("raw"), Place(ARCHIVE.name, (File(ARCHIVE, f"sha256 {ARCHIVE_SHA256}", ARCHIVE_BYTES),)))
    ),
    _entry_of("word", (_hub_place("word"),)),
)
