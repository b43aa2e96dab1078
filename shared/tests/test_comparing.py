"""Comparisons: every variant in fresh processes, in turn, and finished runs taken as they are."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainyard_shared.comparing import Outcome, Variant, rows, run_variants
from trainyard_shared.errors import TrainyardError

TRAIN = """
import json, os, sys
from pathlib import Path

flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(flags | {"threads": os.environ.get("OMP_NUM_THREADS")}) + "\\n")
print("the output of a run is not shown")
run = Path(flags["--out-dir"]) / "toy-project" / "20300131-120000-sample"
run.mkdir(parents=True, exist_ok=True)
state = "running" if Path("break").exists() else "finished"
speed = 10 * int(flags["--nproc"]) + int(flags["--seed"])
(run / "summary.json").write_text(json.dumps({"state": state, "speed": speed}))
sys.exit(9 if Path("break").exists() else 0)
"""
VARIANTS = [Variant("1 process", {"nproc": 1}), Variant("2 processes", {"nproc": 2})]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy_train.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    return tmp_path / "comparison"


def compare(folder: Path, seeds: int) -> list[Outcome]:
    return run_variants("toy_train", "sample", {"data_dir": Path("my data")}, VARIANTS, seeds, folder)


def calls() -> list[dict[str, str]]:
    return [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()]


def test_variants_take_turns_and_finished_runs_are_not_repeated(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcomes = compare(folder, 1)
    assert capfd.readouterr().out.splitlines() == ["[1/2] 1 process, seed 0", "[2/2] 2 processes, seed 0"]
    out_dir = folder / "runs" / "2-processes-seed0"
    assert calls()[1] == {
        "--config": "sample",
        "--data-dir": "my data",
        "--nproc": "2",
        "--seed": "0",
        "--out-dir": str(out_dir),
        "threads": None,  # each run shares out the cores by itself
    }
    assert outcomes[1].run_dir == out_dir / "toy-project" / "20300131-120000-sample"
    assert outcomes[1].summary == {"state": "finished", "speed": 20}

    outcomes = compare(folder, 2)
    order = [("1", "0"), ("2", "0"), ("1", "1"), ("2", "1")]
    assert [(call["--nproc"], call["--seed"]) for call in calls()] == order
    assert [(outcome.variant.split()[0], str(outcome.seed)) for outcome in outcomes] == order
    assert capfd.readouterr().out.splitlines() == [
        "[1/4] 1 process, seed 0: finished before",
        "[2/4] 2 processes, seed 0: finished before",
        "[3/4] 1 process, seed 1",
        "[4/4] 2 processes, seed 1",
    ]
    assert rows(outcomes, {"speed": lambda summary: summary["speed"], "double": lambda s: s["speed"] * 2}) == [
        {"variant": "1 process", "values": {"speed": [10, 11], "double": [20, 22]}},
        {"variant": "2 processes", "values": {"speed": [20, 21], "double": [40, 42]}},
    ]


def test_failed_run_is_named_with_its_command_and_tried_again(folder: Path) -> None:
    Path("break").touch()
    with pytest.raises(TrainyardError) as caught:
        compare(folder, 1)
    assert str(caught.value) == (
        "error: '1 process' with seed 0 failed with status 9; to see it run: python -m toy_train --config sample "
        f"--data-dir 'my data' --nproc 1 --seed 0 --out-dir {folder}/runs/1-process-seed0"
    )
    Path("break").unlink()
    assert [outcome.summary["state"] for outcome in compare(folder, 1)] == ["finished", "finished"]
    assert len(calls()) == 3


TRAIN_UNTIL_TOLD = """
import signal, sys, time
from pathlib import Path

def save(number, frame):
    told.append(number)
    time.sleep(0.5)  # longer than a parent that has no time to wait
    Path(f"saved-{number:d}").touch()
    sys.exit(128 + number)

told = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
Path("started").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_may_save_when_the_comparison_is_told_to_stop(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "toy_train.py").write_text(TRAIN_UNTIL_TOLD)
    script = (
        "from pathlib import Path\nfrom trainyard_shared.comparing import Variant, run_variants\n"
        "run_variants('toy_train', 'sample', {}, [Variant('alone', {})], 1, Path('comparison'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True, process_group=0
    )
    try:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal: to the whole foreground group
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert (tmp_path / f"saved-{number:d}").exists()
    assert output.splitlines()[-1].endswith("compare --resume comparison")
