"""CIFAR: the reader against original, sample, damaged and hostile files, and the ways the data come here."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trainyard_shared.datasets import catalogue, cifar, drawings, fetch, py2pickle
from trainyard_shared.datasets.cifar import load_cifar, load_sample, make_sample
from trainyard_shared.errors import DataError

SIZES = {"num_train": 200, "num_test": 100}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@pytest.fixture
def batches(tmp_path) -> Path:
    """A sample of CIFAR-10, to be damaged."""
    return make_sample(tmp_path / "data", "cifar10", **SIZES)


def change(path: Path, **entries: object) -> None:
    """Rewrite a batch with other entries, as a user's script would; None removes one."""
    content = {**py2pickle.read(path), **entries}
    path.write_bytes(pickle.dumps({key: value for key, value in content.items() if value is not None}))


# Samples


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_a_sample_is_read_by_the_reader_of_the_real_data(cache, name, num_classes):
    data = load_sample(name, **SIZES)
    assert data.kind == "sample"
    assert data.source.startswith("generated sample, seed 0: 200 training and 100 test images")
    assert data.train_images.shape == (200, 3, 32, 32)
    assert data.train_images.dtype == np.uint8
    assert data.test_labels.shape == (100,)
    assert data.train_labels.dtype == np.int64
    assert len(set(data.class_names)) == num_classes
    assert np.bincount(data.train_labels).tolist() == [200 // num_classes] * num_classes
    data.train_images[0] = 0  # writable, as torch.from_numpy wants it
    folder = next(cache.glob(f"samples/*/{FOLDERS[name]}"))
    assert "not the real CIFAR" in (folder / "README.txt").read_text()
    assert load_cifar(name, folder.parent).kind == "sample"


def test_coarse_and_fine_labels_of_a_sample_belong_together(cache):
    data = load_sample("cifar100", **SIZES)
    for fine, coarse in zip(data.test_labels, data.test_coarse_labels, strict=True):
        assert data.class_names[fine].endswith(f"_{data.coarse_class_names[coarse]}")


def test_the_seed_alone_decides_the_sample(tmp_path):
    def digest(folder: str, seed: int) -> str:
        made = make_sample(tmp_path / folder, "cifar10", seed=seed, **SIZES)
        return hashlib.sha256(b"".join((made / file).read_bytes() for file in cifar.LAYOUTS["cifar10"].md5)).hexdigest()

    assert digest("a", 1) == digest("b", 1) != digest("c", 2)


def test_a_sample_has_other_test_images_than_training_images(cache):
    data = load_sample("cifar10", **SIZES)
    train = {image.tobytes() for image in data.train_images}
    assert len(train) == 200
    assert not train & {image.tobytes() for image in data.test_images}


def test_figures_can_be_told_apart_by_shape_but_not_by_pixels():
    rng = np.random.default_rng(0)
    figures = np.arange(4000) % len(drawings.FIGURES)
    images = drawings.draw(figures, rng).astype(np.float32)
    means = np.stack([images[figures == figure].mean(axis=0) for figure in range(len(drawings.FIGURES))])
    nearest = ((images[:400, None] - means) ** 2).sum(axis=(2, 3, 4)).argmin(axis=1)
    assert (nearest == figures[:400]).mean() < 0.35  # chance is 0.1
    u, v = np.meshgrid(*[np.linspace(-1, 1, 64, dtype=np.float32)] * 2)
    covers = [outline(u, v) < 0 for outline in drawings.OUTLINES]
    for i, one in enumerate(covers):
        assert 0.1 < one.mean() < 0.9
        for other in covers[:i]:
            assert (one != other).mean() > 0.1


def test_a_sample_is_not_written_over_something_else(batches):
    with pytest.raises(DataError, match="exists already"):
        make_sample(batches.parent, "cifar10")


def test_processes_make_a_sample_together(cache, tmp_path):
    script = (
        "import sys, platformdirs\n"
        "platformdirs.user_cache_dir = lambda name: sys.argv[1]\n"
        "from trainyard_shared.datasets.cifar import load_sample\n"
        "print(load_sample('cifar10', num_train=2000, num_test=100).train_images.sum())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "together")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sums[0] == sums[1]


# The reader


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files_pickled_by_users_are_read(batches, protocol):
    original = py2pickle.read(batches / "test_batch")
    for keys in (str, lambda key: key.encode()):
        content = {keys(key): value for key, value in original.items()}
        (batches / "test_batch").write_bytes(pickle.dumps(content, protocol))
        found = py2pickle.read(batches / "test_batch")
        assert found["labels"] == original["labels"]
        assert np.array_equal(found["data"], original["data"])


def test_labels_may_be_an_array(batches):
    labels = py2pickle.read(batches / "test_batch")["labels"]
    change(batches / "test_batch", labels=np.array(labels))
    assert load_cifar("cifar10", batches).test_labels.tolist() == labels


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return (self.function, self.arguments, self.state)


@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "touch hacked", r"posix\.system"),
        (eval, "open('hacked', 'w')", r"\w+\.eval"),
        (exec, "open('hacked', 'w')", r"\w+\.exec"),
        (getattr, "x", r"\w+\.getattr"),
        (subprocess.run, "touch hacked", r"\w+\.run"),
        (np.load, "hacked", r"numpy\.load"),
        (np.zeros, 10**12, r"numpy.*\.zeros"),
        (np.frombuffer, b"hacked", r"numpy.*\.frombuffer"),
        (np.memmap, "hacked", r"numpy\.memmap"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_hostile_pickles_execute_nothing(batches, monkeypatch, function, argument, name, protocol):
    monkeypatch.chdir(batches)
    batch = batches / "data_batch_3"
    batch.write_bytes(pickle.dumps({"data": Call(function, argument)}, protocol))
    with pytest.raises(DataError, match=rf"data_batch_3 asks to load {name}, which no CIFAR file needs"):
        load_cifar("cifar10", batches)
    assert not (batches / "hacked").exists()


def test_an_array_that_claims_more_than_the_file_holds_is_refused(batches):
    whole = np.zeros((2, 3072), np.uint8)
    function, arguments, state = whole.__reduce__()
    for huge_arguments, huge_state in [
        ((np.ndarray, (1 << 30, 1 << 10), b"b"), state),  # allocated at once by NumPy's own function
        (arguments, (1, (1 << 30, 3072), *state[2:])),
    ]:
        claim = Call(function, *huge_arguments, state=huge_state)
        (batches / "test_batch").write_bytes(pickle.dumps({"data": claim, "labels": [0, 1]}, 2))
        if huge_state is state:
            assert np.array_equal(py2pickle.read(batches / "test_batch")["data"], whole)
        else:
            with pytest.raises(DataError, match=r"test_batch .* is damaged or no CIFAR file"):
                py2pickle.read(batches / "test_batch")


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # the standard reader makes room for 2**31 memos
        b"\x80\x05\x96" + (1 << 29).to_bytes(8, "little") + b"x.",  # ... for a bytearray of half a gigabyte
        b"\x80\x05\x96" + (1 << 62).to_bytes(8, "little") + b"x.",
        b"\x80\x02}U\x01ac__main__\nCall\n.",
        b"\x80\x02}(" + b")" + b"\x85" * 200_000 + b"K\x01u.",  # a key nested so deeply that hashing it would crash
        b"\x80\x02c_codecs\nencode\nN}X\x04\x00\x00\x00evilK\x01s\x86b.",  # would set an attribute of a function
        b"(dp0\nS'a'\np1\nI1\ns.",  # protocol 0
        b"\x80\x02]q\x00.",
        b"\x80\x02}q\x00.extra",
        b"\x80\x02}q\x00",
        b"not a pickle",
        b"",
    ],
)
def test_odd_programs_are_refused(tmp_path, program):
    import tracemalloc

    path = tmp_path / "test_batch"
    path.write_bytes(program)
    tracemalloc.start()
    try:
        if program == b"\x80\x02}r\xff\xff\xff\x7f.":
            assert py2pickle.read(path) == {}
        else:
            with pytest.raises(DataError, match="test_batch"):
                py2pickle.read(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
        assert not hasattr(py2pickle._encode, "evil")
    finally:
        tracemalloc.stop()


def test_a_file_larger_than_any_of_cifar_is_not_read(tmp_path):
    path = tmp_path / "test_batch"
    with path.open("wb") as file:
        file.truncate(py2pickle.MAX_FILE_BYTES + 1)  # sparse: takes no room
    with pytest.raises(DataError, match="test_batch has 1,073,741,825 bytes"):
        py2pickle.read(path)


def test_a_missing_batch_is_named(batches):
    (batches / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"data_batch_4 is missing; its folder holds README.txt, batches.meta"):
        load_cifar("cifar10", batches)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_batch_is_named(batches, fraction):
    batch = batches / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[: int(batch.stat().st_size * fraction)])
    with pytest.raises(DataError, match="data_batch_2"):
        load_cifar("cifar10", batches)


def test_a_flipped_bit_is_an_error_or_another_value_but_never_a_crash(batches):
    batch = batches / "test_batch"
    sound = batch.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    # The head holds the structure; in the pixels a flip cannot be seen without a checksum.
    for position in rng.integers(0, 1200, 100):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        batch.write_bytes(damaged)
        with contextlib.suppress(DataError):
            load_cifar("cifar10", batches)
            continue
        with pytest.raises(DataError) as caught:
            load_cifar("cifar10", batches)
        messages.append(str(caught.value))
    assert len(messages) > 10
    assert all("test_batch" in message for message in messages)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"labels": None}, "has no entry 'labels', only batch_label, data, filenames"),
        ({"data": None}, "has no entry 'data'"),
        ({"data": np.zeros((100, 3071), np.uint8)}, r"array of uint8 with the shape \(100, 3071\), expected .*3072"),
        ({"data": np.zeros((100, 3072), np.int16)}, "array of int16"),
        ({"data": np.zeros((99, 3072), np.uint8)}, "labels is a list of 100 entries .* expected 99 integers"),
        ({"data": [1, 2]}, "data is a list of 2 entries"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "holds no images"),
        ({"labels": [0] * 57 + [10] + [0] * 42}, "the entry 57 of labels is 10, expected 0 to 9"),
        ({"labels": [-1] + [0] * 99}, "the entry 0 of labels is -1"),
        ({"labels": ["cat"] * 100}, "labels is a list"),
        ({"labels": [[1], 2] + [0] * 98}, "labels is a list"),
    ],
)
def test_a_batch_of_the_wrong_form_is_described(batches, entries, message):
    change(batches / "test_batch", **entries)
    with pytest.raises(DataError, match=rf"test_batch.*{message}"):
        load_cifar("cifar10", batches)


@pytest.mark.parametrize("names", [["one", "two"], None, "names", [1] * 10])
def test_names_of_the_wrong_form_are_described(batches, names):
    change(batches / "batches.meta", label_names=names)
    with pytest.raises(DataError, match=r"batches.meta.*label_names"):
        load_cifar("cifar10", batches)


# Where the data come from


def test_a_folder_of_other_files_says_so(batches):
    for file in cifar.LAYOUTS["cifar10"].batch_files:
        change(batches / file, batch_label="my own batch")
    data = load_cifar("cifar10", batches)
    assert data.kind == "real"
    assert "not the original files (checksums differ); 200 of 50,000 training and 100 of 10,000" in data.source


def test_a_folder_without_cifar_is_described(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(DataError, match=r"holds something. Expected there: .*test_batch.*c58f30108f718f92721af3b9"):
        load_cifar("cifar10", tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_cifar("cifar100", tmp_path / "nowhere")


def test_a_damaged_archive_is_described(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"truncated")
    with pytest.raises(DataError, match=r"has 9 bytes and md5 .*, expected 170,498,071 bytes and md5 c58f30108f718"):
        load_cifar("cifar10", tmp_path)


def test_offline_says_what_is_missing(cache):
    with pytest.raises(DataError, match=r"CIFAR-100 is not in .*offline mode.*cifar-100-python.tar.gz"):
        load_cifar("cifar100", offline=True)


def pack(folder: Path, archive: Path) -> bytes:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return archive.read_bytes()


@pytest.fixture(params=["cifar10", "cifar100"])
def published(request, web, tmp_path, cache, monkeypatch):
    """A small data set published as the real one is, with checksums of its own, on the local server."""
    name = request.param
    folder = make_sample(tmp_path / "published", name, **SIZES)
    layout = cifar.LAYOUTS[name]
    for file in layout.batch_files:
        change(folder / file, batch_label="original batch")
    (folder / "README.txt").unlink()
    splits = [cifar._read_batch(layout, folder / file)[0] for file in layout.batch_files]
    train, test = cifar._join(splits[:-1]), splits[-1]
    content = pack(folder, tmp_path / layout.archive)
    layout = replace(
        layout,
        archive_md5=hashlib.md5(content).hexdigest(),
        archive_bytes=len(content),
        md5={file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in layout.md5},
        train_fingerprint=train.fingerprint(),
        test_fingerprint=test.fingerprint(),
    )
    monkeypatch.setitem(cifar.LAYOUTS, name, layout)
    url = f"{web.url}/{layout.archive}"
    monkeypatch.setattr(cifar, "_toronto", lambda layout: fetch.HttpFile("University of Toronto", url))
    monkeypatch.setattr(fetch, "DEFAULT_RETRY", fetch.RetryPolicy(attempts=2, first_wait_s=0.01))
    web.files[f"/{layout.archive}"] = content
    monkeypatch.setattr(fetch.HubFile, "download", refuse("no Hub here"))
    monkeypatch.setattr(fetch.KaggleFile, "download", refuse("no Kaggle here"))
    return layout, folder, train, test


def refuse(reason: str):
    def download(self, part, want, retry):
        raise fetch.SourceError(reason)

    return download


def test_the_archive_is_downloaded_once_and_kept_unpacked(published, web, cache, capsys):
    layout, _, train, _ = published
    data = load_cifar(layout.name)
    assert "no Hub here" in capsys.readouterr().err
    assert np.array_equal(data.train_images, train.images)
    assert data.kind == "real"
    assert "original files" in data.source
    assert load_cifar(layout.name, offline=True).source == data.source
    assert web.num_gets == 1
    kept = {entry.name for entry in (cache / layout.name).iterdir()}
    assert kept == {layout.folder, f".{layout.folder}.lock", f".{layout.folder}.sha256", ".unpacked.lock"}
    entry = catalogue.entry(layout.name)
    (folder,) = entry.cached()
    assert fetch.changed_files(folder) == []
    assert entry.check(folder) == data.source
    change(folder / layout.test_file, batch_label="another")
    assert len(fetch.changed_files(folder)) == 1
    images = py2pickle.read(folder / layout.test_file)["data"].copy()
    images[0, 0] ^= 1
    change(folder / layout.test_file, data=images)
    with pytest.raises(DataError, match="checksums differ"):
        entry.check(folder)


def test_a_damaged_cache_is_replaced(published, web, cache, capsys):
    layout, *_ = published
    load_cifar(layout.name)
    (cache / layout.name / layout.folder / layout.test_file).write_bytes(b"damaged")
    assert load_cifar(layout.name).kind == "real"
    assert "is damaged: making it anew" in capsys.readouterr().err
    assert web.num_gets == 2


def test_a_local_archive_is_unpacked_into_the_cache(published, web, tmp_path, cache):
    layout, _, train, _ = published
    before = sorted(tmp_path.iterdir())
    data = load_cifar(layout.name, tmp_path, offline=True)
    assert np.array_equal(data.train_images, train.images)
    assert set(tmp_path.iterdir()) - set(before) <= {tmp_path / "cache"}
    assert load_cifar(layout.name, tmp_path / layout.archive).source == data.source
    assert web.num_gets == 0


def test_every_source_that_failed_is_named(published, web):
    layout, *_ = published
    web.files.clear()
    with pytest.raises(DataError) as caught:
        load_cifar(layout.name)
    message = str(caught.value)
    for part in ("no Hub here", "404 Not Found", "no Kaggle here", "--data-dir", layout.archive_md5):
        assert part in message


def test_kaggle_delivers_single_files(published, web, cache, monkeypatch):
    layout, folder, train, _ = published
    web.files.clear()

    def download(self, part, want, retry):
        assert self.path.startswith(layout.kaggle_folder)
        shutil.copyfile(folder / self.path.removeprefix(layout.kaggle_folder), part)

    monkeypatch.setattr(fetch.KaggleFile, "download", download)
    data = load_cifar(layout.name)
    assert np.array_equal(data.train_images, train.images)
    assert "original files" in data.source


def to_parquet(layout: cifar._Layout, split: cifar._Split, names: tuple[tuple[str, ...], ...]) -> bytes:
    """The form of the Hub: PNG files in a column, names of the classes in the metadata."""
    pa = pytest.importorskip("pyarrow")
    from PIL import Image

    encoded = []
    for image in split.images:
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    columns = {column: list(level) for column, level in zip(layout.hub_columns, split.labels, strict=True)}
    features = {
        column: {"names": list(level), "_type": "ClassLabel"}
        for column, level in zip(layout.hub_columns, names, strict=True)
    }
    table = pa.table({"img": encoded, **columns}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"img": {"_type": "Image"}, **features}}})}
    )
    file = io.BytesIO()
    pa.parquet.write_table(table, file)
    return file.getvalue()


@pytest.fixture
def on_the_hub(published, monkeypatch):
    pytest.importorskip("pyarrow.parquet")
    layout, _, train, test = published
    names = cifar._sample_names(layout)
    files = {}

    def publish(train: cifar._Split, test: cifar._Split) -> None:
        for source, split in zip(layout.hub, (train, test), strict=True):
            files[source.path] = to_parquet(layout, split, names)

    monkeypatch.setattr(fetch.HubFile, "download", lambda self, part, want, retry: part.write_bytes(files[self.path]))
    publish(train, test)
    return layout, train, test, publish, files


def test_parquet_from_the_hub_is_turned_into_the_original_format(on_the_hub, web, cache):
    layout, train, _, _, _ = on_the_hub
    data = load_cifar(layout.name)
    assert web.num_gets == 0
    assert np.array_equal(data.train_images, train.images)
    assert np.array_equal(data.train_labels, train.labels[-1])
    assert "original images and labels in other files" in data.source
    assert sorted(entry.name for entry in (cache / layout.name / layout.folder).iterdir()) == sorted(layout.md5)
    assert load_cifar(layout.name, offline=True).source == data.source


def test_parquet_in_another_order_is_the_same_data_set(on_the_hub):
    layout, train, test, publish, _ = on_the_hub
    order = np.random.default_rng(0).permutation(len(train.images))
    publish(cifar._Split(train.images[order], train.labels[:, order]), test)
    assert "original images and labels" in load_cifar(layout.name).source


@pytest.mark.parametrize("what", ["pixel", "label", "fewer", "broken"])
def test_parquet_with_other_content_is_not_accepted(on_the_hub, web, cache, capsys, what):
    layout, train, test, publish, files = on_the_hub
    images, labels = train.images.copy(), train.labels.copy()
    if what == "pixel":
        images[17, 1, 5, 5] ^= 1
    elif what == "label":
        labels[-1, 17] = (labels[-1, 17] + 1) % 10
    elif what == "fewer":
        images, labels = images[1:], labels[:, 1:]
    publish(cifar._Split(images, labels), test)
    if what == "broken":
        files[layout.hub[0].path] = b"PAR1 or so"
    assert "original files" in load_cifar(layout.name).source  # from the next source
    reason = "is not readable as the Hub's" if what == "broken" else "the train set is not the original"
    assert reason in capsys.readouterr().err
    assert web.num_gets == 1


# The real data, where they are at hand


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    data = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (data / "unpack.py").is_file():
        pytest.skip(f"no real data in {data}: set TRAINYARD_TEST_DATA to the folder that holds unpack.py")
    pytest.importorskip("PIL")
    out = tmp_path_factory.mktemp("real")
    for name in ("cifar10", "cifar100"):
        subprocess.run([sys.executable, data / "unpack.py", name, out], check=True, stdout=subprocess.DEVNULL)
    return out


def test_real_cifar10(real):
    data = load_cifar("cifar10", real)
    assert data.source.startswith("CIFAR-10, original files")
    assert data.class_names[3] == "cat"
    assert np.bincount(data.train_labels).tolist() == [5000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    means = data.train_images.mean(axis=(0, 2, 3)) / 255
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    layout = cifar.LAYOUTS["cifar10"]
    assert cifar._Split(data.train_images, data.train_labels[None]).fingerprint() == layout.train_fingerprint
    assert cifar._Split(data.test_images, data.test_labels[None]).fingerprint() == layout.test_fingerprint


def test_writing_real_batches_gives_the_original_bytes(real, tmp_path):
    layout = cifar.LAYOUTS["cifar10"]
    for file in ("data_batch_1", "batches.meta"):
        py2pickle.write(tmp_path / file, py2pickle.read(real / layout.folder / file))
        assert fetch.file_digest(tmp_path / file, "md5") == layout.md5[file]


def test_a_flipped_bit_in_real_data_is_noticed(real, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    shutil.copytree(real / folder.name, folder)
    with (folder / "test_batch").open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))
    assert "not the original files (checksums differ)" in load_cifar("cifar10", folder).source


def test_real_cifar100(real):
    # Its training set is a part here, so only the test set can be compared as a whole.
    data = load_cifar("cifar100", real)
    assert "30,000 of 50,000 training" in data.source
    assert data.class_names[0] == "apple"
    assert data.coarse_class_names[4] == "fruit_and_vegetables"
    labels = np.stack([data.test_coarse_labels, data.test_labels])
    assert cifar._Split(data.test_images, labels).fingerprint() == cifar.LAYOUTS["cifar100"].test_fingerprint
    assert np.bincount(data.train_labels).tolist() == [300] * 100
    means = data.train_images.mean(axis=(0, 2, 3)) / 255
    assert means == pytest.approx([0.5071, 0.4865, 0.4409], abs=2e-3)
