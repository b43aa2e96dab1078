"""What a user may get wrong, and what may break: one clear message each, or a rule that the run names."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from trainyard_shared.datasets.cmapss import make_sample
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, run_folder, script

TINY = ["--epochs", "1", "--window", "10", "--hidden-size", "8", "--num-layers", "1", "--log-every", "1"]
TINY += ["--micro-batch-size", "64", "--nproc", "1", "--num-threads", "1"]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines as a user would have NASA's."""
    folder = make_sample(tmp_path_factory.mktemp("data") / "engines", "FD001", seed=0, num_train=6, num_test=3)
    (folder / "ORIGIN.txt").unlink()
    return folder


def edited(engines: Path, to: Path, name: str, change: Callable[[list[list[str]]], list[list[str]]]) -> Path:
    """Copy the engines and change the rows of one file."""
    shutil.copytree(engines, to)
    rows = change([line.split() for line in (to / name).read_text().splitlines()])
    (to / name).write_text("".join(" ".join(row) + "\n" for row in rows))
    return to


def nan_column(rows: list[list[str]]) -> list[list[str]]:
    return [[*row[:8], "NaN", *row[9:]] for row in rows]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("train_FD001.txt", nan_column, "sensor 4 (column 9) is 'NaN', in"),
        ("train_FD001.txt", lambda rows: [row[:-1] for row in rows], "line 1: 25 columns, expected 26"),
        ("RUL_FD001.txt", lambda rows: rows[:-1], "holds 2 numbers of remaining cycles, but"),
        ("test_FD001.txt", lambda rows: [], "test_FD001.txt is empty"),
    ],
    ids=["a column of NaN", "25 columns", "RUL of another length", "empty file"],
)
def test_wrong_files(engines: Path, tmp_path: Path, name: str, change: Callable, words: str) -> None:
    folder = edited(engines, tmp_path / "data", name, change)
    flags = ["--data", "real", "--data-dir", str(folder), "--out-dir", "out"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 1
    assert words in finished.stderr
    assert name in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list((tmp_path / "out").glob("*/*")), "a run that never began leaves no folder"


def test_missing_data(tmp_path: Path) -> None:
    flags = ["--data", "real", "--data-dir", str(tmp_path / "nowhere"), "--out-dir", "out"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 1
    assert str(tmp_path / "nowhere") in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list((tmp_path / "out").glob("*/*"))


def test_an_engine_with_one_cycle_and_a_window_longer_than_a_life(engines: Path, tmp_path: Path) -> None:
    """The rule: each cycle has a window, and in front of the first cycle that one is repeated; the run says so."""

    def one_cycle(rows: list[list[str]]) -> list[list[str]]:
        return [row for row in rows if row[0] != "2" or row[1] == "1"]

    folder = edited(engines, tmp_path / "data", "test_FD001.txt", one_cycle)
    flags = ["--data", "real", "--data-dir", str(folder), "--window", "400", "--out-dir", "out", "--chunk", "200"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 0, finished.stderr
    summary = read_json(run_folder(tmp_path / "out") / "summary.json")
    assert "3 stopped engine(s) have flown fewer cycles than the 400 of a window" in " ".join(summary["notes"])
    rows = sum(1 for _ in (folder / "test_FD001.txt").open())
    assert summary["detectors"][0]["stopped"]["num_windows"] == rows
    assert summary["detectors"][0]["last"]["num_windows"] == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--val-fraction", "0.05"], "6 engines that run to failure cannot be divided"),
        (["--subset", "FD002"], "No C-MAPSS FD002 in"),
        (["--detector", "autoencoder", "--healthy-cycles", "999"], "lower --healthy-cycles"),
    ],
)
def test_settings_that_do_not_fit_the_data(engines: Path, tmp_path: Path, flags: list[str], words: str) -> None:
    flags = ["--data", "real", "--data-dir", str(engines), "--out-dir", "out", *flags]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 1
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    flags = ["--num-sample-engines", "6", "--learning-rate", "1e37", "--warmup-fraction", "0", "--out-dir", "out"]
    finished = run([script("train"), *TINY, *flags], tmp_path)
    assert finished.status == 1
    assert re.search("the training loss is (nan|inf) at step", finished.stderr), finished.stderr
    assert "Traceback" not in finished.stderr
    assert read_json(run_folder(tmp_path / "out") / "summary.json")["state"] == "failed"
