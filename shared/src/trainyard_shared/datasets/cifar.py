"""CIFAR-10 and CIFAR-100: from the Hub, Toronto, Kaggle or a local folder, and a generated sample in the same format.

All ways end in the same folder of Python 2 pickles, as published by Krizhevsky (2009), and in the same reader.
"""

import hashlib
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from trainyard_shared.datasets import drawings, py2pickle
from trainyard_shared.datasets.archives import extract
from trainyard_shared.datasets.entry import DownloadConfig, Entry, File, Place
from trainyard_shared.datasets.fetch import (
    HttpFile,
    HubFile,
    KaggleFile,
    SourceError,
    building,
    cache_dir,
    download,
    file_digest,
    is_offline,
    locked,
    record_checksums,
    say,
    together,
    try_in_order,
)
from trainyard_shared.errors import DataError

CifarName = Literal["cifar10", "cifar100"]

LICENCE = "no explicit licence; published for research, to be cited"
CITATION = "Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images, University of Toronto"

GENERATED = "generated sample"
NOT_ORIGINAL = "not the original files (checksums differ)"
# Part of the name of cached samples: raise it whenever the same seed gives other pictures.
SAMPLE_VERSION = 1
NUM_TRAIN, NUM_TEST = 50_000, 10_000


@dataclass(frozen=True)
class ImageDataset:
    """Labelled pictures for training and testing, whole in memory.

    Images are uint8 of shape (N, 3, 32, 32), labels int64 of shape (N,). `kind` says whether they are the real data set
    or a generated sample, `source` where they come from, for people. Only CIFAR-100 has coarse labels.
    """

    name: str
    kind: Literal["real", "sample"]
    source: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    train_coarse_labels: np.ndarray | None = None
    test_coarse_labels: np.ndarray | None = None
    coarse_class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Layout:
    """How one of the two data sets is published."""

    name: CifarName
    title: str
    folder: str
    archive: str
    archive_md5: str
    archive_bytes: int
    train_files: tuple[str, ...]
    test_file: str
    meta_file: str
    # Per level of labels, coarsest first: the key in the batches, the key of the names, how many.
    levels: tuple[tuple[str, str, int], ...]
    md5: dict[str, str]
    # `fingerprint` of the original training and test set.
    train_fingerprint: str
    test_fingerprint: str
    hub: tuple[HubFile, HubFile]
    hub_columns: tuple[str, ...]
    kaggle_slug: str
    kaggle_folder: str

    @property
    def batch_files(self) -> tuple[str, ...]:
        return (*self.train_files, self.test_file)


LAYOUTS: dict[str, _Layout] = {
    "cifar10": _Layout(
        name="cifar10",
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        archive_bytes=170_498_071,
        train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test_file="test_batch",
        meta_file="batches.meta",
        levels=(("labels", "label_names", 10),),
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        train_fingerprint="fc36ff26702a9efdf08d3de274034c378032d3423bf7dd6c1022bebe6a7b810a",
        test_fingerprint="11be7cf3ed0bf1df2a473c0d4d3db6eafcac4518b49a5b4224077d754106b38d",
        hub=(
            HubFile("Hugging Face Hub", "uoft-cs/cifar10", "plain_text/train-00000-of-00001.parquet"),
            HubFile("Hugging Face Hub", "uoft-cs/cifar10", "plain_text/test-00000-of-00001.parquet"),
        ),
        hub_columns=("label",),
        kaggle_slug="pankrzysiu/cifar10-python",
        kaggle_folder="cifar-10-batches-py/",
    ),
    "cifar100": _Layout(
        name="cifar100",
        title="CIFAR-100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        archive_bytes=169_001_437,
        train_files=("train",),
        test_file="test",
        meta_file="meta",
        levels=(("coarse_labels", "coarse_label_names", 20), ("fine_labels", "fine_label_names", 100)),
        md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
        train_fingerprint="6fe0e59d48a3558d75488d63513dd7a539a930542f49822aaeb578f8de1c4863",
        test_fingerprint="e820232c6bea6fb092e87d32e1ba4493c8b294362b016228f1bcda08aff135e7",
        hub=(
            HubFile("Hugging Face Hub", "uoft-cs/cifar100", "cifar100/train-00000-of-00001.parquet"),
            HubFile("Hugging Face Hub", "uoft-cs/cifar100", "cifar100/test-00000-of-00001.parquet"),
        ),
        hub_columns=("coarse_label", "fine_label"),
        kaggle_slug="fedesoriano/cifar100",
        kaggle_folder="",
    ),
}


@dataclass(frozen=True)
class _Split:
    """Images (N, 3, 32, 32) and one row of labels per level, coarsest first (levels, N)."""

    images: np.ndarray
    labels: np.ndarray

    def fingerprint(self) -> str:
        """Return a checksum of images and labels that does not depend on their order."""
        pixels = self.images.reshape(len(self.images), -1)
        rows = np.ascontiguousarray(np.concatenate([pixels, self.labels.T.astype(np.uint8)], axis=1))
        return hashlib.sha256(b"".join(sorted(hashlib.sha256(row).digest() for row in rows))).hexdigest()


def load_cifar(name: CifarName, data_dir: Path | None = None, *, offline: bool = False) -> ImageDataset:
    """Return the whole data set.

    Args:
        name: Which of the two.
        data_dir: A folder that is or contains `cifar-10-batches-py` (`cifar-100-python`), or contains the original
            archive, or that archive itself. The archive is unpacked into the cache; nothing is written to `data_dir`.
            By default the cache, filled from the Hugging Face Hub, the Toronto archive or Kaggle.
        offline: Do not use the network (also TRAINYARD_OFFLINE=1).
    """
    layout = _layout(name)
    if data_dir is not None:
        return _load_local(layout, Path(data_dir))
    return _load_cached(layout, partial(_obtain, layout, offline))


def make_sample(
    folder: Path, name: CifarName, *, seed: int = 0, num_train: int = 10_000, num_test: int = 2_000
) -> Path:
    """Draw a sample, write it into `folder` in the original format, and return the folder of the batches.

    The pictures show ten simple figures (CIFAR-100: in five hues, on dark or light ground); see `drawings.py`.
    """
    layout = _layout(name)
    target = Path(folder) / layout.folder
    if target.exists():
        raise DataError(f"{target} exists already. Remove it or choose another folder.")
    if num_train < len(layout.train_files) or num_test < 1:
        raise DataError(
            f"A sample of {layout.title} needs at least {len(layout.train_files)} training images and 1 test image, "
            f"not {num_train} and {num_test}."
        )
    train_rng, test_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    train, test = _draw(layout, num_train, train_rng), _draw(layout, num_test, test_rng)
    with building(target) as draft:
        _write(layout, draft, train, test, _sample_names(layout), f"{GENERATED}, seed {seed}: ")
        (draft / "README.txt").write_text(
            f"A generated sample in the format of {layout.title}, seed {seed}: {num_train:,} training and {num_test:,} "
            f"test images.\nDrawn figures, not the real {layout.title}: results on them say nothing about it.\n"
        )
    return target


def load_sample(name: CifarName, *, seed: int = 0, num_train: int = 10_000, num_test: int = 2_000) -> ImageDataset:
    """Return a generated sample, made in the cache by whichever process comes first."""
    layout = _layout(name)
    parent = cache_dir() / "samples" / f"{name}-v{SAMPLE_VERSION}-seed{seed}-{num_train}-{num_test}"
    folder = parent / layout.folder
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                make_sample(parent, name, seed=seed, num_train=num_train, num_test=num_test)
    try:
        return _read(layout, folder)
    except DataError as error:
        raise DataError(f"The cached sample is damaged. Remove the folder {parent}. ({error})") from error


def _layout(name: str) -> _Layout:
    if name not in LAYOUTS:
        raise DataError(f"There is no data set {name!r} here: choose {' or '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def _advice(layout: _Layout) -> str:
    return (
        f"download {_toronto(layout).url} (md5 {layout.archive_md5}, {layout.archive_bytes:,} bytes) by hand and pass "
        "its folder as --data-dir"
    )


def _load_local(layout: _Layout, data_dir: Path) -> ImageDataset:
    if data_dir.is_file():
        return _load_archive(layout, data_dir)
    for folder in (data_dir, data_dir / layout.folder):
        if (folder / layout.test_file).is_file() or (folder / layout.meta_file).is_file():
            return _read(layout, folder)
    if (data_dir / layout.archive).is_file():
        return _load_archive(layout, data_dir / layout.archive)
    entries = sorted(entry.name for entry in data_dir.iterdir()) if data_dir.is_dir() else None
    found = "does not exist" if entries is None else f"holds {', '.join(entries[:10]) or 'nothing'}"
    raise DataError(
        f"No {layout.title} in {data_dir}, which {found}. Expected there: the folder {layout.folder} with "
        f"{', '.join((*layout.batch_files, layout.meta_file))}, or the archive {layout.archive}. What to do: "
        f"{_advice(layout)}."
    )


def _load_archive(layout: _Layout, archive: Path) -> ImageDataset:
    md5 = file_digest(archive, "md5")
    if md5 != layout.archive_md5:
        raise DataError(
            f"{archive} is not the original {layout.archive}: it has {archive.stat().st_size:,} bytes and md5 {md5}, "
            f"expected {layout.archive_bytes:,} bytes and md5 {layout.archive_md5}. Download it again, or pass the "
            "unpacked folder if you mean these files."
        )
    return _load_cached(layout, partial(_unpack, layout, archive))


def _load_cached(layout: _Layout, fill: Callable[[Path], None]) -> ImageDataset:
    """Return the real data set from the cache; where it is not there or damaged, one process fills the folder."""
    folder = cache_dir() / layout.name / layout.folder
    if cached := _read_cached(layout, folder):
        return cached
    with locked(folder):
        if cached := _read_cached(layout, folder):
            return cached
        if folder.exists():
            say(f"{folder} is damaged: making it anew")
            shutil.rmtree(folder)
        fill(folder)
    return _read(layout, folder)


def _read_cached(layout: _Layout, folder: Path) -> ImageDataset | None:
    """Return what the cache holds, or None unless it is the real data set, whole."""
    if not folder.exists():
        return None
    try:
        data = _read(layout, folder)
    except DataError as error:
        say(str(error))
        return None
    return data if data.kind == "real" and NOT_ORIGINAL not in data.source else None


def _obtain(layout: _Layout, offline: bool, folder: Path) -> None:
    if is_offline(offline):
        raise DataError(
            f"{layout.title} is not in {folder}, and offline mode (TRAINYARD_OFFLINE) forbids a download. What to do: "
            f"{_advice(layout)}."
        )
    toronto = _toronto(layout)
    attempts = [
        (f"{layout.hub[0].name} ({layout.hub[0].repo})", partial(_from_hub, layout, folder)),
        (f"{toronto.name} ({toronto.address})", partial(_from_toronto, layout, folder)),
        (f"Kaggle ({layout.kaggle_slug})", partial(_from_kaggle, layout, folder)),
    ]
    try_in_order(layout.title, attempts, _advice(layout))
    record_checksums(folder)
    shutil.rmtree(_downloads(folder), ignore_errors=True)


def _toronto(layout: _Layout) -> HttpFile:
    return HttpFile("University of Toronto", f"https://www.cs.toronto.edu/~kriz/{layout.archive}")


def _downloads(folder: Path) -> Path:
    return folder.with_name("downloads")


def _from_toronto(layout: _Layout, folder: Path) -> None:
    archive = download(_toronto(layout), _downloads(folder) / layout.archive, md5=layout.archive_md5)
    _unpack(layout, archive, folder)


def _unpack(layout: _Layout, archive: Path, folder: Path) -> None:
    unpacked = folder.with_name("unpacked")
    # Left by a process that was killed between the next two steps.
    shutil.rmtree(unpacked, ignore_errors=True)
    extract(archive, unpacked, max_bytes=1 << 29, max_members=100)
    (unpacked / layout.folder).rename(folder)
    shutil.rmtree(unpacked)


def _from_kaggle(layout: _Layout, folder: Path) -> None:
    with building(folder) as draft:
        for file, md5 in layout.md5.items():
            source = KaggleFile("Kaggle", layout.kaggle_slug, layout.kaggle_folder + file)
            download(source, _downloads(folder) / file, md5=md5).rename(draft / file)


def _from_hub(layout: _Layout, folder: Path) -> None:
    """Bring the Hub's parquet files into the original format; they have the images and labels, not the file names."""
    try:
        import PIL  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise SourceError(f"needs the package {error.name}: pip install 'trainyard-shared[hub]'") from error
    splits, names = [], None
    split_names = ("train", "test")
    files = together(
        *(
            partial(download, source, _downloads(folder) / f"{split}.parquet")
            for split, source in zip(split_names, layout.hub, strict=True)
        )
    )
    for split, parquet, fingerprint in zip(
        split_names, files, (layout.train_fingerprint, layout.test_fingerprint), strict=True
    ):
        say(f"Reading the {split} images of {layout.title}")
        try:
            decoded, names = _read_parquet(layout, parquet)
        except SourceError:
            parquet.unlink()
            raise
        if decoded.fingerprint() != fingerprint:
            parquet.unlink()
            raise SourceError(
                f"the {split} set is not the original: {len(decoded.images):,} images with the content checksum "
                f"{decoded.fingerprint()}, expected {fingerprint}"
            )
        splits.append(decoded)
    assert names is not None
    with building(folder) as draft:
        _write(layout, draft, splits[0], splits[1], names, "")


def _read_parquet(layout: _Layout, parquet: Path) -> tuple[_Split, tuple[tuple[str, ...], ...]]:
    """Return the images and labels of one file of the Hub, and the names of the classes that it declares."""
    import json

    import pyarrow
    import pyarrow.parquet
    from PIL import Image, UnidentifiedImageError

    try:
        table = pyarrow.parquet.read_table(parquet, columns=["img", *layout.hub_columns])
        declared = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        names = tuple(tuple(declared[column]["names"]) for column in layout.hub_columns)
        labels = np.stack([table[column].to_numpy() for column in layout.hub_columns])
        images = np.empty((len(table), 3, 32, 32), np.uint8)
        for i, encoded in enumerate(table["img"].combine_chunks().field("bytes")):
            picture = Image.open(io.BytesIO(encoded.as_py()), formats=["PNG"])
            if picture.size != (32, 32):
                raise ValueError(f"image {i} has {picture.size[0]} x {picture.size[1]} pixels")
            images[i] = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    except (pyarrow.ArrowException, UnidentifiedImageError, OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"what arrived is not readable as the Hub's {layout.title}: {error!r}") from error
    return _Split(images, labels), names


def _read(layout: _Layout, folder: Path) -> ImageDataset:
    """Read and check a folder of batches, whatever it came from, and say what it is."""
    names = _read_names(layout, folder / layout.meta_file)
    batches = [_read_batch(layout, folder / file) for file in layout.batch_files]
    train, test = _join([split for split, _ in batches[:-1]]), _join([batches[-1][0]])
    generated = {label.split(":")[0] for _, label in batches if label.startswith(GENERATED)}
    kind: Literal["real", "sample"] = "sample" if generated else "real"
    if generated:
        count = f"{len(train.images):,} training and {len(test.images):,} test images"
        source = f"{' and '.join(sorted(generated))}: {count} in the format of {layout.title} ({folder})"
    else:
        source = f"{layout.title}, {_authenticity(layout, folder, train, test)} ({folder})"
    has_coarse = len(layout.levels) > 1
    return ImageDataset(
        name=layout.name,
        kind=kind,
        source=source,
        train_images=train.images,
        train_labels=train.labels[-1],
        test_images=test.images,
        test_labels=test.labels[-1],
        class_names=names[-1],
        train_coarse_labels=train.labels[0] if has_coarse else None,
        test_coarse_labels=test.labels[0] if has_coarse else None,
        coarse_class_names=names[0] if has_coarse else None,
    )


def _authenticity(layout: _Layout, folder: Path, train: _Split, test: _Split) -> str:
    if all(file_digest(folder / file, "md5") == md5 for file, md5 in layout.md5.items()):
        return "original files"
    if train.fingerprint() == layout.train_fingerprint and test.fingerprint() == layout.test_fingerprint:
        return "original images and labels in other files"
    count = ""
    if (len(train.images), len(test.images)) != (NUM_TRAIN, NUM_TEST):
        count = (
            f"; {len(train.images):,} of {NUM_TRAIN:,} training and {len(test.images):,} of {NUM_TEST:,} test images"
        )
    return f"{NOT_ORIGINAL}{count}"


def _read_names(layout: _Layout, path: Path) -> tuple[tuple[str, ...], ...]:
    meta = _read_file(path)
    names = []
    for _, key, num_classes in layout.levels:
        found = _entry(meta, key, path)
        if not isinstance(found, list) or len(found) != num_classes or not all(isinstance(n, str) for n in found):
            raise DataError(f"{path}: {key} is {_describe(found)}, expected {num_classes} names.")
        names.append(tuple(found))
    return tuple(names)


def _read_batch(layout: _Layout, path: Path) -> tuple[_Split, str]:
    """Return the images and labels of one file, and what it says of itself."""
    batch = _read_file(path)
    data = _entry(batch, "data", path)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        raise DataError(f"{path}: data is {_describe(data)}, expected an array of uint8 with the shape (N, 3072).")
    if len(data) == 0:
        raise DataError(f"{path}: holds no images.")
    levels = []
    for key, _, num_classes in layout.levels:
        found = _entry(batch, key, path)
        try:
            labels = np.asarray(found)
        except ValueError:
            labels = np.empty(0)  # a list of unlike things; the message below describes it
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(data):
            raise DataError(f"{path}: {key} is {_describe(found)}, expected {len(data):,} integers, one per image.")
        if labels.min() < 0 or labels.max() >= num_classes:
            row = int(np.argmax((labels < 0) | (labels >= num_classes)))
            raise DataError(
                f"{path}: the entry {row} of {key} is {labels[row]}, expected 0 to {num_classes - 1} in every entry."
            )
        levels.append(labels.astype(np.int64))
    label = batch.get("batch_label", "")
    return _Split(data.reshape(-1, 3, 32, 32), np.stack(levels)), label if isinstance(label, str) else ""


def _read_file(path: Path) -> dict[str, py2pickle.Value]:
    if not path.is_file():
        present = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(
            f"{path} is missing; its folder holds {', '.join(present[:10]) or 'nothing'}. Unpack the whole original "
            "archive there."
        )
    return py2pickle.read(path)


def _entry(content: dict[str, py2pickle.Value], key: str, path: Path) -> py2pickle.Value:
    if key not in content:
        raise DataError(f"{path}: has no entry {key!r}, only {', '.join(sorted(content)) or 'nothing'}.")
    return content[key]


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with the shape {value.shape}"
    if isinstance(value, list):
        return f"a list of {len(value):,} entries like {str(value[:1])[:40]}"
    return f"a {type(value).__name__}"


def _join(splits: Sequence[_Split]) -> _Split:
    # Also for one: concatenate copies, and what the reader returns is not writable.
    return _Split(np.concatenate([s.images for s in splits]), np.concatenate([s.labels for s in splits], axis=1))


def _write(
    layout: _Layout, folder: Path, train: _Split, test: _Split, names: tuple[tuple[str, ...], ...], label: str
) -> None:
    """Write the original files: the same keys in the same order, encoded in the same way."""
    num_files = len(layout.train_files)
    for i, (file, rows) in enumerate(
        zip(layout.train_files, np.array_split(np.arange(len(train.images)), num_files), strict=True), start=1
    ):
        part = _Split(train.images[rows], train.labels[:, rows])
        _write_batch(layout, folder / file, part, f"{label}training batch {i} of {num_files}")
    _write_batch(layout, folder / layout.test_file, test, f"{label}testing batch 1 of 1")
    name_lists: dict[str, py2pickle.Value] = {
        key: list(level) for (_, key, _), level in reversed(list(zip(layout.levels, names, strict=True)))
    }
    if layout.name == "cifar10":
        per_batch = len(train.images) // num_files
        name_lists = {"num_cases_per_batch": per_batch, **name_lists, "num_vis": 3072}
    py2pickle.write(folder / layout.meta_file, name_lists)


def _write_batch(layout: _Layout, path: Path, split: _Split, label: str) -> None:
    data = split.images.reshape(-1, 3 * 32 * 32)
    file_names: py2pickle.Value = [f"{path.name}_{i:05d}.png" for i in range(len(data))]
    labels: dict[str, py2pickle.Value] = {
        key: level.tolist() for (key, _, _), level in reversed(list(zip(layout.levels, split.labels, strict=True)))
    }
    if layout.name == "cifar10":
        py2pickle.write(path, {"batch_label": label, **labels, "data": data, "filenames": file_names})
    else:
        py2pickle.write(path, {"filenames": file_names, "batch_label": label, **labels, "data": data})


def _draw(layout: _Layout, count: int, rng: np.random.Generator) -> _Split:
    """Draw equally many pictures of each class, in random order."""
    num_classes = layout.levels[-1][2]
    labels = rng.permutation(np.arange(count) % num_classes)
    wrong = rng.random(count) > drawings.LABEL_PURITY
    shown = np.where(wrong, (labels + rng.integers(1, num_classes, count)) % num_classes, labels)
    if layout.name == "cifar10":
        return _Split(drawings.draw(shown, rng), labels[None])
    num_hues = len(drawings.HUES)
    coarse = shown // num_hues
    images = drawings.draw(coarse // 2, rng, hues=shown % num_hues, light=coarse % 2 == 1)
    return _Split(images, np.stack([labels // num_hues, labels]))


def _sample_names(layout: _Layout) -> tuple[tuple[str, ...], ...]:
    if layout.name == "cifar10":
        return (drawings.FIGURES,)
    coarse = tuple(f"{figure}_on_{ground}" for figure in drawings.FIGURES for ground in ("dark", "light"))
    return coarse, tuple(f"{hue}_{group}" for group in coarse for hue in drawings.HUES)


def _entry_of(layout: _Layout, task: str) -> Entry:
    toronto = File(_toronto(layout), f"md5 {layout.archive_md5}", layout.archive_bytes)
    kaggle = (
        File(KaggleFile("Kaggle", layout.kaggle_slug, layout.kaggle_folder + file), f"md5 {md5}")
        for file, md5 in layout.md5.items()
    )
    return Entry(
        name=layout.name,
        title=layout.title,
        task=task,
        size=f"{NUM_TRAIN:,} training and {NUM_TEST:,} test images of 32 x 32 pixels",
        licence=LICENCE,
        terms="name the report of the citation in what you publish",
        citation=CITATION,
        places=(
            Place("Hugging Face Hub", tuple(File(source) for source in layout.hub)),
            Place("University of Toronto", (toronto,)),
            Place("Kaggle", tuple(kaggle)),
        ),
        verified="md5 of the archive or files; from the Hub, a sha256 of all images and labels",
        folder=layout.name,
        contents=(layout.folder,),
        download=partial(_download, layout.name),
        check=partial(_check, layout.name),
    )


def _download(name: CifarName, config: DownloadConfig) -> str:
    return load_cifar(name, offline=config.offline).source


def _check(name: CifarName, folder: Path) -> str:
    data = _read(_layout(name), folder)
    if data.kind != "real" or NOT_ORIGINAL in data.source:
        raise DataError(data.source)
    return data.source


ENTRIES = (
    _entry_of(LAYOUTS["cifar10"], "image classification, 10 classes"),
    _entry_of(LAYOUTS["cifar100"], "image classification, 100 classes in 20 groups"),
)
