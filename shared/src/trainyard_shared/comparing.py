"""Honest comparisons: every variant in fresh processes, with several seeds, in turn, and its spread beside its mean.

A comparison folder holds one run folder for each variant and seed, so each figure in its table can be looked into.
"""

import contextlib
import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainyard_shared.config import to_flags
from trainyard_shared.console import say
from trainyard_shared.errors import TrainyardError
from trainyard_shared.launch import Signals
from trainyard_shared.results import read_json


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run the training.

    Attributes:
        name: how tables and pictures call it.
        overrides: config fields and the values that make this variant.
    """

    name: str
    overrides: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One finished run of a variant."""

    variant: str
    seed: int
    summary: dict[str, Any]
    run_dir: Path


def run_variants(
    module: str, base: str, shared: Mapping[str, Any], variants: Sequence[Variant], seeds: int, folder: Path
) -> list[Outcome]:
    """Train every variant with seeds 0 to `seeds - 1` and return the outcomes.

    The variants take turns within a seed, so that a machine that grows slower or busier does so for all of them.
    Runs that have finished in `folder` before are taken as they are, which lets an interrupted comparison go on.

    Args:
        module: training module, run as `python -m module`.
        base: preset or YAML file all variants share.
        shared: config fields that all variants share.
        variants: what to compare.
        seeds: runs of each.
        folder: where run folders go.

    Raises:
        TrainyardError: a run failed; its own message was printed.
        SystemExit: this process was asked to stop; the training has saved a checkpoint and ended.
    """
    outcomes: list[Outcome] = []
    total = seeds * len(variants)
    for seed in range(seeds):
        for variant in variants:
            out_dir = folder / "runs" / f"{variant.name}-seed{seed}".replace(" ", "-")
            finished = _finished(out_dir)
            number = len(outcomes) + 1
            if finished is None:
                say(f"[{number}/{total}] {variant.name}, seed {seed}")
                values = {**shared, **variant.overrides, "seed": seed, "out_dir": out_dir}
                command = [sys.executable, "-m", module, "--config", base, *to_flags(values)]
                # A run that was stopped starts anew: its times would be those of a part.
                hint = f"to go on with the runs that are not finished: compare --resume {folder}"
                status = run_training(command, hint)
                finished = _finished(out_dir)
                if status or finished is None:
                    raise TrainyardError(
                        f"error: '{variant.name}' with seed {seed} failed with status {status}; "
                        f"to see it run: {shlex.join(['python', *command[1:]])}"
                    )
            else:
                say(f"[{number}/{total}] {variant.name}, seed {seed}: finished before")
            outcomes.append(Outcome(variant.name, seed, read_json(finished / "summary.json"), finished))
    return outcomes


def rows(outcomes: Sequence[Outcome], values: Mapping[str, Callable[[dict[str, Any]], float]]) -> list[dict[str, Any]]:
    """Return one row for each variant: {"variant": name, "values": {metric: [one value for each seed]}}.

    Args:
        outcomes: of `run_variants`.
        values: for each metric, how to read it from a summary.
    """
    names = dict.fromkeys(outcome.variant for outcome in outcomes)
    return [
        {
            "variant": name,
            "values": {
                metric: [read(o.summary) for o in outcomes if o.variant == name] for metric, read in values.items()
            },
        }
        for name in names
    ]


def run_training(
    command: Sequence[str], hint: str, enough: Callable[[], bool] = lambda: False, errors: Path | None = None
) -> int:
    """Run a training to its end and return its exit status; a signal to stop is passed on, and ends this process, too.

    A second signal is passed on as well: the training then stops at once.

    Args:
        command: to run; what it prints is not shown, but for its errors.
        hint: said after a signal: how to go on.
        enough: asked again and again whether the training may stop early; its checkpoint is then awaited.
        errors: file for the errors that it prints, instead of showing them.

    Raises:
        SystemExit: this process was asked to stop.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with Signals() as signals, errors.open("w") if errors else contextlib.nullcontext() as stderr:
        # In a session of its own: Ctrl-C in the terminal reaches this process alone, which waits for the checkpoint.
        training = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment, start_new_session=True
        )
        passed_on, stopped = 0, False
        while training.poll() is None:
            if passed_on < signals.count:
                training.send_signal(signals.received)
                passed_on += 1
            elif not signals.received and not stopped and enough():
                training.terminate()
                stopped = True
            time.sleep(0.05)
    if signals.received:
        say(f"stopped; {hint}")
        raise SystemExit(128 + signals.received)
    return training.returncode


def _finished(out_dir: Path) -> Path | None:
    for path in sorted(out_dir.glob("*/*/summary.json")):
        if read_json(path).get("state") == "finished":
            return path.parent
    return None
