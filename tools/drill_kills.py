"""Kill random processes of one training, again and again; it has to end with the weights of an undisturbed run.

    uv run --group test --package torchdist-cifar python tools/drill_kills.py [--kills 20] [--seed 0] [--package NAME]

The training is the tiny one of the project's contract tests (2 processes, CPU), started with as many `--max-restarts`
as there are kills. Ranks and steps are drawn from `--seed`. Prints one line for each kill and a verdict; the exit
status is 0 if the run ended well, its weights and losses equal the undisturbed ones bit for bit, and each step is
recorded once.
"""

import argparse
import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard_shared.results import read_json, read_records
from trainyard_shared.testing import (
    ProjectContract,
    kill_tree,
    run,
    run_folder,
    start_command,
    wait_for_step,
    weights_digest,
    workers,
)
from workspace import ROOT

RESTART_TIMEOUT_S = 60.0
# A kill within the last steps could come too late: nothing would be left to disturb.
LAST_STEPS_LEFT_ALONE = 3


@dataclass(frozen=True)
class Kill:
    """One process to kill, once the run has recorded a step."""

    rank: int
    step: int


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="torchdist-cifar", help="project whose training is disturbed")
    parser.add_argument("--kills", type=int, default=20, help="how many processes are killed, one after the other")
    parser.add_argument("--seed", type=int, default=0, help="draws ranks and steps")
    options = parser.parse_args(argv)
    contract = contract_of(options.package)
    with tempfile.TemporaryDirectory(prefix="drill-kills-") as folder:
        findings = list(drill(contract, options.kills, options.seed, Path(folder)))
    print(
        "\n".join(f"WRONG: {finding}" for finding in findings) or "verdict: equal to the undisturbed run, bit for bit"
    )
    return int(bool(findings))


def contract_of(package: str) -> type[ProjectContract]:
    """Return the contract tests of a project, which know how to make a tiny run of it."""
    path = ROOT / "packages" / package / "tests" / "test_contract.py"
    spec = importlib.util.spec_from_file_location("test_contract", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise SystemExit(f"error: --package {package}: there is no {path.relative_to(ROOT)}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TestContract


def drill(contract: type[ProjectContract], num_kills: int, seed: int, folder: Path) -> Iterator[str]:
    """Train undisturbed and disturbed, and yield whatever is not as it should be."""
    undisturbed = run(contract.train(folder / "undisturbed"), folder)
    if undisturbed.status:
        yield f"the undisturbed run failed: {undisturbed.stderr}"
        return
    reference = run_folder(folder / "undisturbed")
    num_steps = max(train_records(reference))
    print(f"{contract.package}: {num_steps} steps, {num_kills} kills, seed {seed}", flush=True)

    out_dir = folder / "disturbed"
    process = start_command(contract.train(out_dir, checkpoint_every=3, max_restarts=num_kills), folder)
    try:
        for number, kill in enumerate(plan(num_kills, num_steps, seed)):
            start = time.monotonic()
            wait_for_step(process, out_dir, kill.step, RESTART_TIMEOUT_S, restarts=number)
            workers(process.pid)[kill.rank].kill()
            step, seconds = max(train_records(run_folder(out_dir))), time.monotonic() - start
            print(f"{number + 1:3}  killed rank {kill.rank} at step {step:3}, after {seconds:4.1f} s", flush=True)
        _, stderr = process.communicate(timeout=RESTART_TIMEOUT_S)
    finally:
        kill_tree(process.pid)

    if process.returncode:
        yield f"the disturbed run ended with status {process.returncode}: {stderr}"
        return
    disturbed = run_folder(out_dir)
    if (restarts := read_json(disturbed / "summary.json")["restarts"]) != num_kills:
        yield f"{num_kills} processes were killed, but the run counts {restarts} restarts"
    if weights_digest(disturbed) != weights_digest(reference):
        yield "the final weights differ from those of the undisturbed run"
    steps = [record["step"] for record in read_records(disturbed) if record["kind"] == "train"]
    if steps != sorted(train_records(reference)):
        yield f"the recorded steps are {steps}: not each once"
    if train_records(disturbed) != train_records(reference):
        yield "the recorded losses differ from those of the undisturbed run"


def plan(num_kills: int, num_steps: int, seed: int, num_ranks: int = 2) -> list[Kill]:
    """Draw whom to kill at which step; in the order of the steps, since a run only gets on."""
    draw = random.Random(seed)
    steps = sorted(draw.randint(1, num_steps - LAST_STEPS_LEFT_ALONE) for _ in range(num_kills))
    return [Kill(draw.randrange(num_ranks), step) for step in steps]


def train_records(run_dir: Path) -> dict[int, Any]:
    """Return the recorded training losses by step."""
    return {record["step"]: record["loss"] for record in read_records(run_dir) if record["kind"] == "train"}


if __name__ == "__main__":
    sys.exit(main())
