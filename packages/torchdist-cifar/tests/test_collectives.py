"""`collectives`: every rank holds what it must, a wrong result is noticed, and figures follow from times."""

import csv
import dataclasses
import re
import sys
from pathlib import Path

import pytest
from trainyard_shared.testing import run, run_folder, script

QUICK = ["--min-bytes", "1200", "--max-bytes", "5000", "--time-per-point-s", "0.001"]
# Before and after on each rank, as they are shown.
EXAMPLES = {
    2: {
        "broadcast": ["10 11 | 10 11", "20 21 | 10 11"],
        "scatter": ["10 11 | 10", "20 21 | 11"],
        "gather": ["10 | 10 20", "20 | nothing"],
        "all-gather": ["10 | 10 20", "20 | 10 20"],
        "all-reduce": ["10 11 | 30 32", "20 21 | 30 32"],
        "reduce-scatter": ["10 11 | 30", "20 21 | 32"],
    },
    3: {
        "broadcast": ["10 11 12 | 10 11 12", "20 21 22 | 10 11 12", "30 31 32 | 10 11 12"],
        "scatter": ["10 11 12 | 10", "20 21 22 | 11", "30 31 32 | 12"],
        "gather": ["10 | 10 20 30", "20 | nothing", "30 | nothing"],
        "all-gather": ["10 | 10 20 30", "20 | 10 20 30", "30 | 10 20 30"],
        "all-reduce": ["10 11 12 | 60 63 66", "20 21 22 | 60 63 66", "30 31 32 | 60 63 66"],
        "reduce-scatter": ["10 11 12 | 60", "20 21 22 | 63", "30 31 32 | 66"],
    },
}
BUS_FACTORS = {
    "broadcast": (1, 1),
    "scatter": (1 / 2, 2 / 3),
    "gather": (1 / 2, 2 / 3),
    "all-gather": (1 / 2, 2 / 3),
    "all-reduce": (1, 4 / 3),
    "reduce-scatter": (1 / 2, 2 / 3),
}
BROKEN = """
import dataclasses, sys
from pathlib import Path
from torchdist_cifar import collectives
from torchdist_cifar.config import CollectivesConfig
from trainyard_shared import launch

def forgets_rank_1(mine):
    kept = mine.clone()
    done = by_name["all-reduce"].run(mine)
    return kept if launch.rank() == 1 and len(mine) > 2 else done

by_name = {collective.name: collective for collective in collectives.COLLECTIVES}
collectives.COLLECTIVES = [dataclasses.replace(by_name["all-reduce"], run=forgets_rank_1)]
if launch.is_worker():
    launch.run_worker(lambda: collectives.collectives(CollectivesConfig()))
Path("run").mkdir()
sys.exit(launch.launch("broken", [], nproc=2, num_threads=1, max_restarts=0, run_dir=Path("run")))
"""


@dataclasses.dataclass(frozen=True)
class Measured:
    world_size: int
    stdout: str
    folder: Path


@pytest.fixture(scope="module", params=[2, 3])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """One run of all collectives, by 2 and by 3 processes."""
    folder = tmp_path_factory.mktemp("collectives")
    finished = run([script("torchdist-cifar"), "collectives", "--nproc", str(request.param), *QUICK], folder)
    assert finished.status == 0, finished.stderr
    return Measured(request.param, finished.stdout, run_folder(folder / "results"))


def test_what_every_rank_holds_is_shown(measured: Measured) -> None:
    shown = {
        block.partition(":")[0]: [
            re.sub(r"  +", " | ", line.partition(f"rank {rank}")[2].strip())
            for rank, line in enumerate(block.splitlines()[2:])
        ]
        for block in measured.stdout.split("\n\n")
        if "before" in block
    }
    assert shown == EXAMPLES[measured.world_size]


def test_bandwidth_follows_from_time_and_bytes(measured: Measured) -> None:
    with (measured.folder / "bandwidth.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [(point["collective"], int(point["message_bytes"])) for point in points] == [
        (name, size) for size in (1200, 4800) for name in BUS_FACTORS
    ]
    for point in points:
        seconds, seen = float(point["time_s"]), float(point["algorithm_bandwidth"])
        assert 0 < seconds < 1
        assert seen == pytest.approx(int(point["message_bytes"]) / seconds)
        factor = BUS_FACTORS[point["collective"]][measured.world_size - 2]
        assert float(point["bus_bandwidth"]) == pytest.approx(seen * factor)


def test_report_and_picture(measured: Measured) -> None:
    assert f"report: {measured.folder / 'report.html'}" in measured.stdout
    page = (measured.folder / "report.html").read_text()
    assert f"{measured.world_size} processes, gloo, CPU" in page
    assert all(name in page for name in BUS_FACTORS)
    assert (measured.folder / "plots" / "bandwidth.png").stat().st_size > 10_000


def test_wrong_result_is_noticed(tmp_path: Path) -> None:
    """The tiny example is right; only the longer message shows the fault, and only on rank 1."""
    (tmp_path / "broken.py").write_text(BROKEN)
    finished = run([sys.executable, "broken.py"], tmp_path)
    assert finished.status == 1
    assert finished.stderr == (
        "error: all-reduce: rank 1 holds 20 21 22 23 24 25 26 27 ..., but it must hold 30 32 34 36 38 40 42 44 ...\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nproc", "1"], "--nproc: 1 is not allowed: must be 'auto' or at least 2"),
        (["--min-bytes", "9000", "--max-bytes", "8000"], "--min-bytes: 9000 is more than --max-bytes 8000"),
        (["--max-byte", "5"], "--max-byte: no flag of collectives; perhaps you meant --max-bytes"),
    ],
)
def test_wrong_flags(flags: list[str], words: str, tmp_path: Path) -> None:
    finished = run([script("torchdist-cifar"), "collectives", *flags], tmp_path)
    assert finished.status == 2, finished
    assert words in finished.stderr
    assert finished.stderr.count("error:") == 1
    assert not list(tmp_path.iterdir())


def test_one_process_of_torchrun(tmp_path: Path) -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    finished = run([script("torchdist-cifar"), "collectives"], tmp_path, **alone)
    assert (finished.status, finished.stderr) == (2, "error: one process has nobody to talk to; use --nproc 2\n")
