"""Scores and alarms for engines of a file."""

import csv
from pathlib import Path

import pytest
from trainyard_shared.datasets.cmapss import COLUMN_NAMES, make_sample
from trainyard_shared.testing import run, run_folder, script

TINY = ["--num-sample-engines", "10", "--epochs", "3", "--window", "20", "--hidden-size", "16"]
TINY += ["--nproc", "1", "--num-threads", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, with the engines of its data set beside it."""
    folder = tmp_path_factory.mktemp("detect")
    finished = run([script("train"), *TINY, "--out-dir", "out"], folder)
    assert finished.status == 0, finished.stderr
    make_sample(folder / "engines", "FD001", seed=0, num_train=10, num_test=5)
    return run_folder(folder / "out")


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_each_cycle_has_a_score_and_the_future_does_not_change_the_past(trained: Path, tmp_path: Path) -> None:
    source = trained.parents[2] / "engines" / "train_FD001.txt"
    lines = source.read_text().splitlines()
    finished = run([script("detect"), "--run", str(trained), "--engines", str(source)], tmp_path)
    assert finished.status == 0, finished.stderr
    whole = read(trained / "detections" / "train_FD001.csv")
    assert len(whole) == len(lines)
    assert (trained / "detections" / "train_FD001.png").is_file()
    assert "generated sample" in finished.stdout
    assert "10 of 10 engines have an alarm at their last cycle" in finished.stdout, "they are about to fail"
    assert "engine 1: alarm since cycle" in finished.stdout
    assert [row["alarm"] for row in whole[:30]] == ["0"] * 30

    # The first engine alone, 100 cycles of it, separated by commas and with a header.
    first = [",".join(line.split()) for line in lines[:100]]
    (tmp_path / "flying.csv").write_text("\n".join([",".join(COLUMN_NAMES), *first]) + "\n")
    flags = ["--run", str(trained), "--engines", "flying.csv", "--to", str(tmp_path / "scores.csv")]
    finished = run([script("detect"), *flags], tmp_path)
    assert finished.status == 0, finished.stderr
    for one, other in zip(read(tmp_path / "scores.csv"), whole[:100], strict=True):
        assert (one["unit"], one["cycle"], one["alarm"]) == (other["unit"], other["cycle"], other["alarm"])
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ([], 2, "--engines: name a file of engines"),
        (["--engines", "nowhere.txt"], 1, "--engines nowhere.txt: no such file"),
        (["--engines", "narrow.csv"], 1, "narrow.csv, line 1: 25 columns, expected 26"),
        (["--engines", "hole.csv"], 1, "hole.csv, line 1: setting 1 (column 3) is ''"),
    ],
)
def test_files_that_cannot_be_scored(trained: Path, tmp_path: Path, flags: list[str], status: int, words: str) -> None:
    (tmp_path / "narrow.csv").write_text(",".join(["1"] * 25) + "\n")
    (tmp_path / "hole.csv").write_text(",".join(["1", "1", "", *["1.5"] * 23]) + "\n")
    finished = run([script("detect"), "--run", str(trained), *flags], tmp_path)
    assert finished.status == status
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (trained / "detections" / "narrow.csv").exists()


def test_detect_without_a_run(tmp_path: Path) -> None:
    finished = run([script("detect"), "--engines", "x.txt"], tmp_path)
    assert finished.status == 2
    assert "train first" in finished.stderr
