"""C-MAPSS: the real files, broken ones, the ways they come here, and generated engines."""

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trainyard_shared.datasets import catalogue, cmapss
from trainyard_shared.datasets.cmapss import load_cmapss, load_sample, make_sample, read_engines
from trainyard_shared.datasets.fetch import HttpFile, changed_files
from trainyard_shared.errors import DataError

SIZES = {"num_train": 4, "num_test": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sample, as a user would have the real files."""
    made = make_sample(tmp_path / "data", "FD001", seed=0, **SIZES)
    (made / "ORIGIN.txt").unlink()
    return made


def edit(path: Path, change: Callable[[list[list[str]]], object]) -> None:
    rows = [line.split() for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(" ".join(row) + " \n" for row in rows))


def row(unit: int, cycle: int) -> str:
    return " ".join([str(unit), str(cycle), *["1.5"] * 24])


# Samples


@pytest.mark.parametrize(("subset", "conditions"), [("FD001", 1), ("FD002", 6), ("FD003", 1), ("FD004", 6)])
def test_a_sample_is_read_by_the_reader_of_the_real_data(cache, subset, conditions):
    data = load_sample(subset, seed=0, **SIZES)
    assert (data.name, data.kind) == (subset, "sample")
    assert data.source.startswith(f"generated sample, seed 0: 4 training and 3 test engines as in C-MAPSS {subset}")
    assert data.train.units.tolist() == [1, 2, 3, 4]
    assert data.train.remaining[data.train.offsets[1:] - 1].tolist() == [0] * 4
    assert (data.test.remaining > 0).all()
    assert len(np.unique(np.rint(data.train.settings[:, [0, 2]]), axis=0)) == conditions
    made = next(cache.glob("samples/*/engines"))
    again = load_cmapss(subset, made)
    assert again.kind == "sample"
    np.testing.assert_array_equal(again.test.sensors, data.test.sensors)


def test_generated_engines_degrade(cache):
    fleet = load_sample("FD001", seed=1, num_train=20, num_test=1).train
    early, late = fleet.remaining > 120, fleet.remaining < 10
    change = np.abs(fleet.sensors[late].mean(axis=0) - fleet.sensors[early].mean(axis=0))
    noise = fleet.sensors[early].std(axis=0)
    varies = noise > 1e-6
    assert varies.sum() == 15, "six are constant"
    assert (change[varies] > noise[varies]).mean() > 0.9


def test_the_seed_alone_decides_the_sample(tmp_path):
    one, same, other = (
        (make_sample(tmp_path / name, "FD004", seed=seed, **SIZES) / "train_FD004.txt").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same != other


def test_a_damaged_sample_is_named(cache):
    load_sample("FD001", seed=0, **SIZES)
    made = next(cache.glob("samples/*/engines"))
    (made / "RUL_FD001.txt").write_text("7\n")
    with pytest.raises(DataError, match=r"The cached sample is damaged. Remove the folder .*cmapss-FD001"):
        load_sample("FD001", seed=0, **SIZES)


def test_samples_need_engines_and_a_new_folder(folder, tmp_path):
    with pytest.raises(DataError, match="exists already"):
        make_sample(folder, "FD001", seed=0, **SIZES)
    with pytest.raises(DataError, match="at least 1 engine to train and 1 to test, not 0 and 3"):
        make_sample(tmp_path / "none", "FD001", seed=0, num_train=0, num_test=3)
    with pytest.raises(DataError, match="There is no subset 'FD005'"):
        load_sample("FD005")


# Reading


def test_what_is_read_is_what_is_written(tmp_path):
    (tmp_path / "engines.txt").write_text(f"{row(7, 1)}\n{row(7, 2)}\n\n{row(3, 1)}\r\n")
    (tmp_path / "rul.txt").write_text("5 \n0\n")
    fleet = read_engines(tmp_path / "engines.txt", tmp_path / "rul.txt")
    assert fleet.units.tolist() == [7, 3]
    assert fleet.offsets.tolist() == [0, 2, 3]
    assert fleet.lengths.tolist() == [2, 1]
    assert fleet.engine_of_row.tolist() == [0, 0, 1]
    assert fleet.remaining.tolist() == [6, 5, 0]
    assert fleet.settings.shape == (3, 3)
    assert fleet.sensors.shape == (3, 21)
    assert read_engines(tmp_path / "engines.txt").remaining is None


def test_taking_engines_takes_their_rows(folder):
    fleet = load_cmapss("FD001", folder).train
    taken = fleet.take(np.array([2, 0]))
    assert taken.units.tolist() == [3, 1]
    assert taken.lengths.tolist() == [fleet.lengths[2], fleet.lengths[0]]
    np.testing.assert_array_equal(taken.sensors[: taken.lengths[0]], fleet.sensors[fleet.offsets[2] : fleet.offsets[3]])
    np.testing.assert_array_equal(taken.remaining[taken.lengths[0] :], fleet.remaining[: fleet.offsets[1]])
    np.testing.assert_array_equal(taken.settings[taken.lengths[0] :], fleet.settings[: fleet.offsets[1]])


def test_files_that_are_not_nasas_are_read_and_said_to_be_others(folder):
    data = load_cmapss("FD001", folder)
    assert data.kind == "real"
    assert "not the original files (checksums differ)" in data.source
    shutil.move(folder, folder.parent / "CMAPSSData")
    assert len(load_cmapss("FD001", folder.parent).train.units) == 4


def set_cell(line: int, column: int, text: str) -> Callable[[list[list[str]]], object]:
    def change(rows: list[list[str]]) -> None:
        rows[line - 1][column - 1] = text

    return change


def set_column(column: int, text: str) -> Callable[[list[list[str]]], object]:
    def change(rows: list[list[str]]) -> None:
        for cells in rows:
            cells[column - 1] = text

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [cells.pop() for cells in rows], "train_FD001.txt, line 1: 25 columns, expected 26: unit, cycle"),
        (lambda rows: rows[4].append("1"), "line 5: 27 columns, expected 26"),
        (lambda rows: rows.insert(0, ["unit", "cycle", *["x"] * 24]), "line 1: unit (column 1) is 'unit'"),
        (set_cell(3, 9, "1,5"), "line 3: sensor 4 (column 9) is '1,5', in 1 of"),
        (set_column(12, "NaN"), "line 1: sensor 7 (column 12) is 'NaN', in 809 of 809 rows: must be a number"),
        (set_cell(3, 9, "1_5"), "line 3: sensor 4 (column 9) is '1_5', in 1 of"),
        (set_cell(2, 4, "inf"), "line 2: setting 2 (column 4) is 'inf'"),
        (set_cell(2, 1, "1.5"), "line 2: the unit is 1.5: must be a whole number"),
        (set_cell(2, 2, "0"), "line 2: the cycle is 0: must be a whole number from 1 on"),
        (lambda rows: rows.pop(9), "line 10: cycle 11 of unit 1, expected cycle 10"),
        (lambda rows: rows.pop(0), "line 1: cycle 2 of unit 1, expected cycle 1"),
        (lambda rows: rows.append(["1", "1", *["2"] * 24]), "unit 1 begins a second time"),
        (lambda rows: rows.clear(), "train_FD001.txt is empty"),
    ],
)
def test_broken_tables_are_named(folder, change, words):
    edit(folder / "train_FD001.txt", change)
    with pytest.raises(DataError) as caught:
        load_cmapss("FD001", folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1\n2\n", "RUL_FD001.txt holds 2 numbers of remaining cycles, but"),
        ("1\n2\n3\n4\n", "RUL_FD001.txt holds 4 numbers"),
        ("1\n-2\n3\n", "RUL_FD001.txt, line 2: '-2', expected one whole number of cycles"),
        ("1\n2 5\n3\n", "line 2: '2 5', expected one whole number"),
        ("1\n2\n" + "9" * 30 + "\n", "line 3: '999999999999999999999999999999', expected one whole number"),
        ("", "RUL_FD001.txt is empty"),
        (None, "RUL_FD001.txt is missing"),
    ],
)
def test_broken_remaining_cycles_are_named(folder, content, words):
    path = folder / "RUL_FD001.txt"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        load_cmapss("FD001", folder)
    assert words in str(caught.value)


def test_a_folder_without_the_subset_says_what_is_there(folder):
    with pytest.raises(
        DataError, match=r"No C-MAPSS FD003 in .* which holds RUL_FD001.txt, .*Expected there: train_FD003"
    ):
        load_cmapss("FD003", folder)
    with pytest.raises(DataError, match="which does not exist"):
        load_cmapss("FD003", folder / "nowhere")


# Downloading


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def published(web, cache, tmp_path, monkeypatch) -> dict[str, bytes]:
    """All files, as if NASA had published these, at two addresses of a server on this machine."""
    files = {}
    for subset in ("FD001", "FD002", "FD003", "FD004"):
        made = make_sample(tmp_path / subset, subset, seed=0, **SIZES)
        files |= {path.name: path.read_bytes() for path in made.glob("*_FD*.txt")}
    blobs = {name: hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(cmapss, "GIT_BLOBS", blobs)
    monkeypatch.setattr(cmapss, "NASA", HttpFile("NASA", f"{web.url}/CMAPSSData.zip"))
    monkeypatch.setattr(cmapss, "NASA_MIRROR", HttpFile("NASA (mirror)", f"{web.url}/mirror.zip"))
    monkeypatch.setattr(cmapss, "KAGGLE_SLUG", "nobody/nothing")
    return files


def test_files_come_from_nasa_once(web, cache, published):
    web.files["/CMAPSSData.zip"] = zipped(published)
    data = load_cmapss("FD001")
    assert data.kind == "real"
    assert "checksums differ" not in data.source
    assert load_cmapss("FD004").train.units.tolist() == [1, 2, 3, 4]
    assert web.num_gets == 1
    assert not list(cache.glob("*downloads*"))
    entry = catalogue.entry("cmapss")
    assert entry.cached() == [cache / "cmapss"]
    assert changed_files(cache / "cmapss") == []
    assert entry.check(cache / "cmapss").count("NASA C-MAPSS FD00") == 4
    (cache / "cmapss" / "RUL_FD003.txt").write_text("1\n2\n3\n")
    with pytest.raises(DataError, match="FD003, not the original files"):
        entry.check(cache / "cmapss")


def test_the_mirror_holds_an_archive_within_an_archive(web, cache, published):
    # With the line ends of Windows, which are as good.
    inner = zipped({name: content.replace(b"\n", b"\r\n") for name, content in published.items()})
    web.files["/mirror.zip"] = zipped({"6. Turbofan/CMAPSSData.zip": inner})
    assert len(load_cmapss("FD002").test.units) == 3


def test_other_bytes_are_refused_and_every_failure_is_named(web, cache, published):
    web.files["/CMAPSSData.zip"] = zipped(published | {"test_FD003.txt": b"1 1\n"})
    web.files["/mirror.zip"] = zipped({"readme.txt": b"moved"})
    with pytest.raises(DataError) as caught:
        load_cmapss("FD001")
    message = str(caught.value)
    assert "what arrived as test_FD003.txt is not the original file" in message
    assert "the archive holds no " in message
    assert "Kaggle (nobody/nothing)" in message
    assert "unpack it and pass its folder as --data-dir" in message
    assert not (cache / "cmapss").exists()


def test_offline_says_what_to_do(cache, monkeypatch):
    monkeypatch.setenv("TRAINYARD_OFFLINE", "1")
    with pytest.raises(
        DataError, match=r"offline mode .* forbids a download. What to do: download https://data.nasa.gov"
    ):
        load_cmapss("FD001")


# The real data


@pytest.fixture
def real() -> Path:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    data = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    if not (data / "cmapss" / "train_FD001.txt").is_file():
        pytest.skip(f"no real engines in {data}: set TRAINYARD_TEST_DATA to the folder that holds cmapss/")
    return data / "cmapss"


def test_real_fd001_is_the_original(real):
    data = load_cmapss("FD001", real)
    assert (data.kind, data.source) == ("real", f"NASA C-MAPSS FD001 ({real})")
    # As published: 100 engines each, 20,631 and 13,096 rows, lives from 128 to 362 cycles.
    assert (len(data.train.units), len(data.test.units)) == (100, 100)
    assert (len(data.train.sensors), len(data.test.sensors)) == (20_631, 13_096)
    assert (data.train.lengths.min(), data.train.lengths.max()) == (128, 362)
    assert data.test.remaining[data.test.offsets[1:] - 1][:3].tolist() == [112, 98, 69]
    assert data.train.sensors[0, :3].tolist() == [518.67, 641.82, 1589.70]


@pytest.mark.parametrize(("subset", "sizes"), [("FD002", (85, 128)), ("FD004", (68, 98))])
def test_real_engines_in_six_conditions_are_read(real, subset, sizes):
    data = load_cmapss(subset, real / "partial")
    assert (len(data.train.units), len(data.test.units)) == sizes
    assert len(np.unique(np.rint(data.train.settings[:, [0, 2]]), axis=0)) == 6
    assert "not the original files (checksums differ)" in data.source


def test_engines_from_a_csv_file(folder, tmp_path):
    original = read_engines(folder / "test_FD001.txt")
    lines = [",".join(line.split()) for line in (folder / "test_FD001.txt").read_text().splitlines()]
    for header in ([], [",".join(cmapss.COLUMN_NAMES)]):
        path = tmp_path / "engines.csv"
        path.write_text("\n".join([*header, *lines]) + "\n")
        fleet = read_engines(path)
        np.testing.assert_array_equal(fleet.sensors, original.sensors)
        np.testing.assert_array_equal(fleet.offsets, original.offsets)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (",".join(cmapss.COLUMN_NAMES) + "\n", "holds no row of measurements"),
        (",".join(["1"] * 25) + "\n", "line 1: 25 columns, expected 26.* separated by commas"),
        (",".join(["1", "1", "", *["1.5"] * 23]) + "\n", r"line 1: setting 1 \(column 3\) is ''"),
        (row(1, 1) + "\n", "line 1: 1 columns, expected 26"),
    ],
)
def test_csv_files_of_another_form(tmp_path, content, words):
    path = tmp_path / "engines.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        read_engines(path)
