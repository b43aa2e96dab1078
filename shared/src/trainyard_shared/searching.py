"""Hyperparameter search with Optuna: every trial is a training in fresh processes, and a killed search goes on.

A search folder holds `study.db`, Optuna's own memory, and a run folder for each trial. Trials are judged by what they
log for validation, epoch by epoch; one that is worse than the median of the others at its epoch is stopped early.
"""

import csv
import dataclasses
import io
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard_shared.comparing import run_training
from trainyard_shared.config import to_flags
from trainyard_shared.console import say
from trainyard_shared.errors import DataError, TrainyardError
from trainyard_shared.results import read_records, write_atomically

# Optuna takes a second to import: only a process that searches pays for it.
if TYPE_CHECKING:
    import optuna

Suggest = Callable[["optuna.Trial"], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class TrialOutcome:
    """What became of a trial.

    Attributes:
        number: from 0 on.
        state: "finished", "pruned" (stopped early) or "failed".
        value: best of its epochs, higher is better; None if no epoch was finished.
        num_epochs: how many were finished.
        parameters: what Optuna has suggested.
    """

    number: int
    state: str
    value: float | None
    num_epochs: int
    parameters: dict[str, Any]


def run_trials(
    module: str,
    base: str,
    shared: Mapping[str, Any],
    suggest: Suggest,
    folder: Path,
    *,
    num_trials: int,
    num_epochs: int,
    num_unpruned: int,
    seed: int,
    metric: str = "accuracy",
) -> list[TrialOutcome]:
    """Make trials until `folder` holds `num_trials`, and return all of them in order.

    Trials that have ended in `folder` before are kept. One that was running when the search was killed is made again,
    with the same parameters.

    Args:
        module: training module, run as `python -m module`.
        base: preset or YAML file all trials share.
        shared: config fields that all trials share.
        suggest: asks a trial for the config fields that make it.
        folder: of the search.
        num_trials: in all.
        num_epochs: of each trial; after the last one, stopping early gains nothing.
        num_unpruned: finished trials before the first may be stopped early.
        seed: of the sampler.
        metric: field of the `val` records that judges; higher is better.

    Raises:
        DataError: the folder's study.db cannot be read.
        TrainyardError: the first trial failed, so that the others most likely would, too.
        SystemExit: this process was asked to stop.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    states = {
        optuna.trial.TrialState.COMPLETE: "finished",
        optuna.trial.TrialState.PRUNED: "pruned",
        optuna.trial.TrialState.FAIL: "failed",
    }

    def outcomes() -> list[TrialOutcome]:
        return [
            TrialOutcome(
                trial.number,
                states[trial.state],
                max(trial.intermediate_values.values(), default=None),
                len(trial.intermediate_values),
                trial.params,
            )
            for trial in study.get_trials(deepcopy=False)
            # One that failed without saying why was running when the search was killed.
            if trial.state in states and (states[trial.state] != "failed" or "failure" in trial.user_attrs)
        ]

    try:
        study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            study_name="search",
            load_if_exists=True,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=num_unpruned),
        )
        before = study.get_trials(deepcopy=False)
    except Exception as error:  # of SQLAlchemy or Optuna, whatever is wrong with the file
        raise DataError(f"error: {folder / 'study.db'}: cannot be read: {str(error).splitlines()[0]}") from error
    # With the seed alone, a search that goes on would draw its first parameters a second time.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(before))
    for trial in before:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
            shutil.rmtree(_trial_dir(folder, trial.number), ignore_errors=True)

    while len(ended := outcomes()) < num_trials:
        trial = study.ask()
        values = suggest(trial)
        say(f"[{len(ended) + 1}/{num_trials}] {_in_words(values)}")
        out_dir = _trial_dir(folder, trial.number)
        out_dir.mkdir(parents=True, exist_ok=True)
        judge = _Judge(trial, out_dir, metric, num_epochs)
        command = [sys.executable, "-m", module, "--config", base, *to_flags({**shared, **values, "out_dir": out_dir})]
        errors = out_dir / "errors.txt"
        status = run_training(command, f"to go on with the search: search --resume {folder}", judge.is_hopeless, errors)
        judge.look()
        for checkpoints in out_dir.glob("*/*/checkpoints"):  # nobody goes on with a trial
            shutil.rmtree(checkpoints)
        if judge.hopeless:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif status or judge.best is None:
            words = errors.read_text().strip() or f"ended with status {status} and without validation"
            trial.set_user_attr("failure", words)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if not any(outcome.state == "finished" for outcome in ended):
                raise TrainyardError(f"error: trial {trial.number} failed: {words}")
            say(f"trial {trial.number} failed: {words}")
        else:
            study.tell(trial, judge.best)
        best = "none" if judge.best is None else f"{judge.best:.4g}"
        say(f"    val {metric} {best}{', stopped early' if judge.hopeless else ''}")
    return ended


def write_table(path: Path, outcomes: list[TrialOutcome], metric: str) -> None:
    """Write one row of CSV for each trial."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.parameters))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", metric, "epochs", *names])
    for outcome in outcomes:
        value = "" if outcome.value is None else outcome.value
        parameters = [outcome.parameters.get(name, "") for name in names]
        writer.writerow([outcome.number, outcome.state, value, outcome.num_epochs, *parameters])
    write_atomically(path, text.getvalue())


class _Judge:
    """Follows the records of a running trial and tells them to Optuna."""

    def __init__(self, trial: "optuna.Trial", out_dir: Path, metric: str, num_epochs: int) -> None:
        self.trial, self.out_dir, self.metric, self.num_epochs = trial, out_dir, metric, num_epochs
        self.num_seen, self.hopeless = 0, False
        self.best: float | None = None

    def is_hopeless(self) -> bool:
        """Look at what was logged, and return whether the trial is to be stopped."""
        self.look()
        return self.hopeless

    def look(self) -> None:
        for run_dir in self.out_dir.glob("*/*/"):
            records = [record for record in read_records(run_dir) if record["kind"] == "val"]
            for epoch, record in enumerate(records[self.num_seen :], start=self.num_seen + 1):
                value = float(record[self.metric])
                self.trial.report(value, step=epoch)
                self.best = value if self.best is None else max(self.best, value)
                self.num_seen = epoch
                self.hopeless = self.hopeless or (epoch < self.num_epochs and self.trial.should_prune())


def _trial_dir(folder: Path, number: int) -> Path:
    return folder / "runs" / f"trial-{number:03d}"


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {format(value, '.3g') if isinstance(value, float) else value}"
        for name, value in values.items()
    )
