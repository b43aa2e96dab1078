"""What trainyard_shared.searching does with trials; its own package has no Optuna to test it with.

The training is a toy that logs made-up accuracies, so that a search takes a second.
"""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from trainyard_shared.errors import DataError, TrainyardError
from trainyard_shared.searching import TrialOutcome, run_trials, write_table

# Optuna warns of an epoch that is reported twice.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

# Accuracy peaks at a learning rate of 0.3, and grows by 0.01 with each of 3 epochs.
TRAIN = """
import json, signal, sys, time
from pathlib import Path

flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(flags) + "\\n")
if Path("break").exists():
    sys.exit("error: it is broken")
run = Path(flags["--out-dir"]) / "toy-project" / "20300131-120000-sample"
(run / "checkpoints").mkdir(parents=True)
accuracy = 0.9 - abs(float(flags["--learning-rate"]) - 0.3)
for epoch in (1, 2, 3):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": epoch}) + "\\n")
        file.write(json.dumps({"kind": "val", "step": epoch, "accuracy": accuracy + 0.01 * epoch}) + "\\n")
    time.sleep(30 if Path("hang").exists() else 0.4 if epoch == 1 and Path("slow").exists() else 0)
"""
SEARCH = """
from pathlib import Path
from trainyard_shared.searching import run_trials

def suggest(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 0.0, 1.0)}

run_trials(
    "toy_train", "sample", {}, suggest, Path("search"), num_trials=4, num_epochs=3, num_unpruned=9, seed=0
)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy_train.py").write_text(TRAIN)
    (tmp_path / "search").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "search"


def search(folder: Path, num_trials: int, **changes: Any) -> list[TrialOutcome]:
    settings = {"num_epochs": 3, "num_unpruned": 99, "seed": 0} | changes
    return run_trials(
        "toy_train",
        "sample",
        {"data_dir": Path("my data")},
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 0.0, 1.0)},
        folder,
        num_trials=num_trials,
        **settings,
    )


def test_trials_are_judged_by_their_best_epoch(folder: Path) -> None:
    outcomes = search(folder, 3)
    assert [outcome.number for outcome in outcomes] == [0, 1, 2]
    for outcome in outcomes:
        rate = outcome.parameters["learning_rate"]
        assert outcome.value == pytest.approx(0.93 - abs(rate - 0.3))
        assert (outcome.state, outcome.num_epochs) == ("finished", 3)
    assert not list(folder.rglob("checkpoints"))
    calls = Path("calls.jsonl").read_text()
    assert calls.count('"--data-dir": "my data"') == 3


def test_search_goes_on_where_it_ended(folder: Path) -> None:
    first = search(folder, 2)
    together = search(folder, 4)
    assert together[:2] == first
    assert len(Path("calls.jsonl").read_text().splitlines()) == 4
    rates = [outcome.parameters["learning_rate"] for outcome in together]
    assert len(set(rates)) == 4, "no parameters are drawn twice"
    assert search(folder, 3) == together, "more than enough"


def test_same_seed_gives_the_same_trials(folder: Path) -> None:
    first = search(folder, 2)
    (folder / "again").mkdir()
    assert search(folder / "again", 2) == first


def test_hopeless_trials_are_stopped_early(folder: Path) -> None:
    Path("slow").touch()
    outcomes = search(folder, 6, num_unpruned=1)
    pruned = [outcome for outcome in outcomes if outcome.state == "pruned"]
    finished = [outcome for outcome in outcomes if outcome.state == "finished"]
    assert pruned
    assert finished
    assert all(outcome.num_epochs < 3 for outcome in pruned)
    first = finished[0].value
    assert first is not None
    for outcome in pruned:
        assert outcome.value is not None
        assert outcome.value < first, "worse than the only one before it, or than the median of several"


def test_first_trial_that_fails_ends_the_search(folder: Path) -> None:
    Path("break").touch()
    with pytest.raises(TrainyardError, match="trial 0 failed: error: it is broken"):
        search(folder, 2)


def test_later_failure_is_counted(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    search(folder, 1)
    Path("break").touch()
    outcomes = search(folder, 2)
    assert [outcome.state for outcome in outcomes] == ["finished", "failed"]
    assert outcomes[1].value is None
    assert "trial 1 failed: error: it is broken" in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_search_makes_its_last_trial_again(folder: Path, number: int) -> None:
    Path("hang").touch()
    process = subprocess.Popen([sys.executable, "-c", SEARCH], stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        deadline = time.monotonic() + 60
        while not list(folder.rglob("metrics.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        for child in children:
            subprocess.run(["kill", "-9", child], capture_output=True)
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
        assert "stopped; to go on with the search: search --resume search" in said
    Path("hang").unlink()
    outcomes = search(folder, 2)
    assert [outcome.number for outcome in outcomes] == [1, 2], "number 0 was killed"
    calls = Path("calls.jsonl").read_text().splitlines()
    killed, again = (line.split('"--learning-rate": "')[1].split('"')[0] for line in calls[:2])
    assert killed == again


def test_damaged_memory(folder: Path) -> None:
    (folder / "study.db").write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(DataError, match=r"study\.db: cannot be read"):
        search(folder, 1)


def test_table(tmp_path: Path) -> None:
    outcomes = [
        TrialOutcome(0, "finished", 0.9, 3, {"learning_rate": 0.1, "batch": 16}),
        TrialOutcome(1, "failed", None, 0, {}),
    ]
    write_table(tmp_path / "trials.csv", outcomes, "val_accuracy")
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "trial": "0",
        "state": "finished",
        "val_accuracy": "0.9",
        "epochs": "3",
        "learning_rate": "0.1",
        "batch": "16",
    }
    assert rows[1]["val_accuracy"] == rows[1]["learning_rate"] == ""
