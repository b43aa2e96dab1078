"""Break one training in every way that machines and people do; it has to keep what it promises, and lose nothing.

    uv run --group test --package torchdist-cifar python tools/drill_faults.py [--package NAME] [--drill NAME ...]

The training is the tiny one of the project's contract tests (2 processes, CPU). Prints one row of a Markdown table for
each drill: what broke, what was promised, what happened. "Nothing lost" means that the run, gone on with where it did
not go on by itself, ends with the weights of an undisturbed one, bit for bit, each step recorded once. The exit status
is 0 if every promise was kept. Random kills have a script of their own, `drill_kills.py`.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drill_kills import contract_of, train_records
from trainyard_shared.config import to_flags
from trainyard_shared.results import read_json, read_records
from trainyard_shared.testing import (
    Finished,
    ProjectContract,
    kill_tree,
    run,
    run_folder,
    script,
    start_command,
    wait_for_step,
    weights_digest,
    workers,
)

COLLECTIVE_TIMEOUT_S = 10
PAUSE_S = 4.0
# Learning rates at which the loss is no number after a step or two.
EXPLODING: dict[str, dict[str, object]] = {
    "fairscale-turbofan-anomaly": {"learning_rate": 1e37, "warmup_fraction": 0},
    "torchdist-stocks": {"learning_rate": 1e36, "max_grad_norm": None},
}
HEADER = "| Project | What breaks | Promised | What happened | Nothing lost |\n| --- | --- | --- | --- | --- |"


class BrokenPromise(Exception):  # noqa: N818 - a finding, not an error of this program
    """What happened instead of what was promised."""


class NotHere(Exception):  # noqa: N818
    """Why a drill cannot be held on this machine."""


@dataclass(frozen=True)
class Drills:
    """The drills of one project, each a method that returns what happened or raises BrokenPromise."""

    contract: type[ProjectContract]
    reference: Path
    """folder of an undisturbed run"""
    folder: Path

    # ------------------------------------------------------------------------------------------------- people and hosts

    def ctrl_c(self) -> str:
        """Ctrl-C: saves a checkpoint, leaves no process behind, says how to go on."""
        return self._stopped_by(signal.SIGINT)

    def sigterm(self) -> str:
        """SIGTERM (the end of a job): saves a checkpoint, leaves no process behind, says how to go on."""
        return self._stopped_by(signal.SIGTERM)

    def same_second(self) -> str:
        """Two runs are started at once: each has a folder of its own."""
        out_dir = self.folder / "same-second"
        both = [start_command(self.contract.train(out_dir), self.folder) for _ in range(2)]
        try:
            for process in both:
                _, stderr = process.communicate(timeout=600)
                expect(process.returncode == 0, f"one ended with status {process.returncode}: {stderr}")
        finally:
            for process in both:
                kill_tree(process.pid)
        folders = sorted(path for path in out_dir.glob("*/*") if path.is_dir())
        expect(len(folders) == 2, f"folders: {[path.name for path in folders]}")
        for path in folders:
            self._nothing_lost(path)
        return f"folders {folders[0].name} and {folders[1].name}"

    # -------------------------------------------------------------------------------------------------------- processes

    def slow_rank(self) -> str:
        """A process is held up for some seconds: the others wait for it."""
        with self._running("slow") as (process, out_dir):
            held = workers(process.pid)[1]
            held.suspend()
            time.sleep(PAUSE_S)
            held.resume()
            finished = ended(process)
        expect(finished.status == 0, f"status {finished.status}: {finished.stderr}")
        self._nothing_lost(run_folder(out_dir))
        return f"held up for {PAUSE_S:g} s; went on"

    def hanging_rank(self) -> str:
        """A process hangs: after --collective-timeout-s all end, and the one that waited says where."""
        with self._running("hanging", collective_timeout_s=COLLECTIVE_TIMEOUT_S, max_restarts=0) as (process, out_dir):
            start = time.monotonic()
            workers(process.pid)[1].suspend()
            finished, seconds = ended(process), time.monotonic() - start
        expect(finished.status == 1, f"status {finished.status}: {finished.stderr}")
        expect("imed out" in finished.stderr and "Traceback" in finished.stderr, finished.stderr)
        self._go_on(run_folder(out_dir))
        return f"ended after {seconds:.0f} s (time-out {COLLECTIVE_TIMEOUT_S} s) with the stack of process 0"

    # ------------------------------------------------------------------------------------------------ files and numbers

    def disk_full(self) -> str:
        """The disk fills up: one message; the last whole checkpoint stays."""
        if os.geteuid() != 0 or not shutil.which("mount"):
            raise NotHere("a small file system can be mounted by root only")
        disk = self.folder / "disk"
        disk.mkdir()
        newest = max((self.reference / "checkpoints").iterdir())
        # Room for two checkpoints and a little, but not for all that a run writes.
        size = int(2.4 * sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())) + (64 << 10)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "drill", str(disk)], check=True)
        try:
            finished = run(self.contract.train(disk / "out", checkpoint_every=3), self.folder)
            expect(finished.status == 1, f"status {finished.status}: {finished.stderr}")
            expect("No space left on device" in finished.stderr, finished.stderr)
            expect("Traceback" not in finished.stderr, finished.stderr)
            found = run_folder(disk / "out")
            elsewhere = self.folder / "larger-disk" / self.contract.package / found.name
            shutil.copytree(found, elsewhere)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        self._go_on(elsewhere)
        return f"{one_line(finished.stderr)}; gone on with on a larger disk"

    def truncated_checkpoint(self) -> str:
        """The newest checkpoint is cut off: says so, and goes on from the one before."""
        return self._damaged("truncated", lambda content: content[: len(content) // 2])

    def flipped_bit(self) -> str:
        """One bit of the newest checkpoint is another: says so, and goes on from the one before."""

        def flip(content: bytes) -> bytes:
            changed = bytearray(content)
            changed[len(changed) // 2] ^= 1
            return bytes(changed)

        return self._damaged("flipped", flip)

    def no_number(self) -> str:
        """The loss is no number any more: stops, says at which step, keeps the last checkpoint."""
        folder = self._copy("no-number")
        shutil.rmtree(max((folder / "checkpoints").iterdir()))  # that of the end, after which nothing would be trained
        flags = to_flags(EXPLODING.get(self.contract.package, {"learning_rate": 1e30}))
        finished = run([script("train"), "--resume", str(folder), *flags], self.folder, 600.0)
        expect(finished.status == 1, f"status {finished.status}: {finished.stderr}")
        expect("loss is" in finished.stderr and "at step" in finished.stderr, finished.stderr)
        expect("Traceback" not in finished.stderr, finished.stderr)
        expect((state := read_json(folder / "summary.json")["state"]) == "failed", f"the run says it is {state}")
        self._go_on(folder)
        return f"{one_line(finished.stderr)}; gone on with the learning rate of before"

    def clock_goes_back(self) -> str:
        """The clock goes back between two checkpoints: the newest is that of the latest step."""
        folder = self._copy("clock")
        checkpoints = sorted((folder / "checkpoints").iterdir())
        for age, checkpoint in enumerate(checkpoints):
            for path in [checkpoint, *checkpoint.rglob("*")]:
                os.utime(path, times=(time.time() - 86_400 * age,) * 2)
        finished = self._go_on(folder)
        expect("damaged" not in finished.stdout, finished.stdout)
        return f"went on from {checkpoints[-1].name}, the oldest by the clock"

    # -------------------------------------------------------------------------------------------------- what they share

    def _stopped_by(self, number: signal.Signals) -> str:
        with self._running(number.name) as (process, out_dir):
            children = list(workers(process.pid).values())
            start = time.monotonic()
            process.send_signal(number)
            finished, seconds = ended(process), time.monotonic() - start
        expect(finished.status == 128 + number, f"status {finished.status}: {finished.stderr}")
        expect(not [child for child in children if child.is_running()], "processes were left behind")
        folder = run_folder(out_dir)
        expect(f"train --resume {folder}" in finished.stderr, finished.stderr)
        self._go_on(folder)
        return f"ended after {seconds:.1f} s with status {finished.status}; gone on with --resume"

    def _damaged(self, name: str, damage: Callable[[bytes], bytes]) -> str:
        folder = self._copy(name)
        newest = max((folder / "checkpoints").iterdir())
        largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        largest.write_bytes(damage(largest.read_bytes()))
        finished = self._go_on(folder)
        expect(f"checkpoint {newest.name} is damaged" in finished.stdout, finished.stdout)
        return f'"checkpoint {newest.name} is damaged"; went on from the one before'

    @contextmanager
    def _running(self, name: str, **fields: object) -> Iterator[tuple[subprocess.Popen, Path]]:
        """A training that is in the middle of its second epoch."""
        out_dir = self.folder / name
        process = start_command(self.contract.train(out_dir, **fields), self.folder)
        try:
            wait_for_step(process, out_dir, self.contract.steps_per_epoch + 2, 300.0)
            yield process, out_dir
        finally:
            kill_tree(process.pid)

    def _copy(self, name: str) -> Path:
        """The undisturbed run without its final weights, as if it had been killed at its end."""
        folder = self.folder / name / self.contract.package / self.reference.name
        shutil.copytree(self.reference, folder)
        for weights in folder.rglob("model.safetensors"):
            if "checkpoints" not in weights.parts:
                weights.unlink()
        return folder

    def _go_on(self, folder: Path) -> Finished:
        """Continue a run to its end and look whether anything is lost."""
        finished = run([script("train"), "--resume", str(folder), "--collective-timeout-s", "600"], self.folder, 600.0)
        expect(finished.status == 0, f"going on ended with status {finished.status}: {finished.stderr}")
        self._nothing_lost(folder)
        return finished

    def _nothing_lost(self, folder: Path) -> None:
        expect(weights_digest(folder) == weights_digest(self.reference), "the final weights differ")
        steps = [record["step"] for record in read_records(folder) if record["kind"] == "train"]
        expect(steps == sorted(train_records(self.reference)), f"the recorded steps are {steps}: not each once")


NAMES = [name for name in vars(Drills) if not name.startswith("_") and callable(vars(Drills)[name])]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="torchdist-cifar", help="project whose training is disturbed")
    parser.add_argument("--drill", nargs="+", choices=NAMES, default=NAMES, help="these only")
    options = parser.parse_args(argv)
    contract = contract_of(options.package)
    broken = 0
    with tempfile.TemporaryDirectory(prefix="drill-faults-") as name:
        folder = Path(name)
        undisturbed = run(contract.train(folder / "undisturbed"), folder, 600.0)
        if undisturbed.status:
            print(f"the undisturbed run failed: {undisturbed.stderr}", file=sys.stderr)
            return 1
        drills = Drills(contract, run_folder(folder / "undisturbed"), folder)
        print(HEADER, flush=True)
        for drill in options.drill:
            what, _, promise = (getattr(Drills, drill).__doc__ or "").removesuffix(".").partition(": ")
            try:
                happened, kept = getattr(drills, drill)(), "yes"
            except NotHere as reason:
                happened, kept = f"not tried: {reason}", ""
            except (BrokenPromise, AssertionError, subprocess.SubprocessError) as finding:
                happened, kept, broken = f"BROKEN: {one_line(str(finding))}", "no", broken + 1
            print(f"| {contract.package} | {what} | {promise} | {happened} | {kept} |", flush=True)
    return int(bool(broken))


def expect(kept: bool, otherwise: str) -> None:
    """Raise BrokenPromise unless a promise was kept."""
    if not kept:
        raise BrokenPromise(otherwise)


def ended(process: subprocess.Popen) -> Finished:
    """Wait for a command to end."""
    start = time.monotonic()
    stdout, stderr = process.communicate(timeout=300)
    return Finished(process.returncode, stdout, stderr, time.monotonic() - start)


def one_line(text: str) -> str:
    """Return the last line of a message, fit for a cell of a table."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].replace("|", "/")[:200] if lines else "no message"


if __name__ == "__main__":
    sys.exit(main())
