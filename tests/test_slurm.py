"""docs/slurm.sbatch: well-formed, and its logic run for real with small stand-ins for Slurm's commands and torchrun."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import conventions
import pytest
from workspace import members

ROOT = Path(__file__).resolve().parent.parent
SBATCH = ROOT / "docs" / "slurm.sbatch"
# Options of sbatch with the form of their values, from its manual page.
DIRECTIVES = {
    "job-name": r"\S+",
    "nodes": r"\d+",
    "ntasks-per-node": r"1",  # one torchrun on each node: it starts the processes
    "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "time": r"\d\d:\d\d:\d\d",
    "signal": r"B:TERM@\d+",
    "requeue": r"",
    "open-mode": r"append",  # the log of a job that is queued again goes on, too
    "output": r"%x-%j\.log",
}
# srun: both nodes at once, the first bad exit ends all. torchrun: says how it was called, then does as the test wants.
SRUN = """#!/usr/bin/env bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 99
shift
for node in 0 1; do SLURM_NODEID=$node "$@" & pids+=" $!"; done
trap 'kill -TERM $pids' TERM
for pid in $pids; do wait "$pid" || status=$?; done
for pid in $pids; do wait "$pid"; done
exit "${status:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> calls
[ "$1" = show ] && printf 'node7\\nnode8\\n'
exit 0
"""
TORCHRUN = """#!/usr/bin/env bash
echo "torchrun$(printf ' %q' "$@") in ${TRAINYARD_RUN_DIR#"$PWD"/}" >> calls
"""


class Job:
    """The batch script as Slurm would start it on the first of two nodes."""

    def __init__(self, folder: Path, torchrun: str) -> None:
        self.folder = folder
        commands = folder / "bin"
        commands.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", TORCHRUN + torchrun)):
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        slurm = {"JOB_ID": "41234", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[7-8]", "GPUS_ON_NODE": "4"}
        self.process = subprocess.Popen(
            ["bash", str(SBATCH), "--config", "full", "--data-dir", "my data"],
            cwd=folder,
            env={"PATH": f"{commands}:{os.environ['PATH']}", "ATTEMPTS": "3"}
            | {f"SLURM_{name}": value for name, value in slurm.items()},
            stdout=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, list[str]]:
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output.splitlines()

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


def test_script_is_well_formed() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)


def test_directives_are_those_of_sbatch_and_come_before_the_first_command() -> None:
    head = SBATCH.read_text().partition("\nset ")[0]
    found = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", head, flags=re.MULTILINE))
    assert SBATCH.read_text().count("\n#SBATCH") == len(found) == head.count("\n#SBATCH")
    assert set(found) == set(DIRECTIVES)
    for name, value in found.items():
        assert re.fullmatch(DIRECTIVES[name], value), (name, value)
    assert all(line.startswith("#") for line in head.splitlines()), "sbatch reads no directive behind a command"


def test_every_node_starts_torchrun_with_its_number(tmp_path: Path) -> None:
    job = Job(tmp_path, "")
    assert job.end() == (0, [])
    known = {member.name: member for member in members(ROOT)}
    first, second = sorted(call for call in job.calls() if call.startswith("torchrun"))
    for node, call in enumerate((first, second)):
        assert call == (
            f"torchrun --nnodes 2 --node-rank {node} --nproc-per-node 4 --max-restarts 0 --master-addr node7 "
            "--master-port 21234 -m torchdist_cifar.train --config full --data-dir my\\ data "
            "in results/torchdist-cifar/slurm-41234"
        )
        assert not list(conventions._wrong_in(call.partition(" in ")[0], known, ROOT))
    assert (tmp_path / "results" / "torchdist-cifar" / "slurm-41234").is_dir()


def test_training_that_fails_is_started_again(tmp_path: Path) -> None:
    job = Job(tmp_path, '[ "$SLURM_NODEID" = 0 ] || [ "$(grep -c "node-rank 1" calls)" -gt 1 ] || exit 7')
    assert job.end() == (0, ["attempt 1 of 3 ended with status 7"])
    assert sum(call.startswith("torchrun") for call in job.calls()) == 4


def test_training_that_always_fails_comes_to_an_end(tmp_path: Path) -> None:
    job = Job(tmp_path, "exit 1")
    assert job.end() == (1, [f"attempt {i} of 3 ended with status 1" for i in (1, 2, 3)])


@pytest.mark.parametrize("status", [0, 1])
def test_signal_at_the_end_of_the_time_reaches_torchrun_and_the_job_is_queued_again(
    status: int, tmp_path: Path
) -> None:
    save = f"trap 'sleep 0.5; echo saved >> calls; exit {status}' TERM; touch ready-$SLURM_NODEID\n"
    job = Job(tmp_path, save + "for _ in {1..300}; do sleep 0.1; done")
    deadline = time.monotonic() + 20
    while not ((tmp_path / "ready-0").exists() and (tmp_path / "ready-1").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.process.send_signal(signal.SIGTERM)  # to the batch script alone: B: in --signal
    assert job.end() == (0, ["time is nearly up: queued again"])
    assert job.calls()[-3:] == ["saved", "saved", "scontrol requeue 41234"]
