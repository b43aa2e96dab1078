"""Search hyperparameters: trials trained in fresh processes, judged by the validation images alone.

The test set is left alone: the best setting is one of many, and to choose it by the test set would make the test
accuracy too good to be true. `train --config best.yaml` tests it, once.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard_shared import plotting, searching
from trainyard_shared.config import Parsed, find_config, load_preset, preset_folder, to_yaml
from trainyard_shared.console import say
from trainyard_shared.errors import UsageError
from trainyard_shared.metrics import format_value
from trainyard_shared.report import write_report
from trainyard_shared.results import RunFolder, provenance, reserve_run_dir, write_atomically

from deepspeed_efficientnet_cifar.config import SearchConfig, TrainConfig

if TYPE_CHECKING:
    import optuna

PACKAGE = "deepspeed-efficientnet-cifar"
SETTINGS = "search.yaml"
MAY_CHANGE = ("num_trials", "nproc", "num_threads", "resume")


def search(parsed: Parsed[SearchConfig]) -> None:
    """Make the trials, then write table, picture, the best config and a report.

    Raises:
        UsageError: the config holds no validation images, or a search is continued with other settings.
        TrainyardError: trials fail.
    """
    config = settings(parsed)
    path, name = find_config(config.config, preset_folder("deepspeed_efficientnet_cifar"))
    shared: dict[str, Any] = {"test": False, "max_restarts": 0}
    for field in ("data_dir", "epochs", "nproc", "num_threads"):
        if getattr(config, field) not in (None, "auto"):
            shared[field] = getattr(config, field)
    base = dataclasses.replace(load_preset(TrainConfig, path), **shared)
    if not base.num_val:
        raise UsageError(f"error: --config {config.config}: num_val is 0, so that nothing judges the trials")

    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"search-{name}")
    if config.resume is None:
        write_atomically(folder / SETTINGS, to_yaml(config))
    outcomes = searching.run_trials(
        "deepspeed_efficientnet_cifar.train",
        config.config,
        shared,
        lambda trial: suggest(trial, config),
        folder,
        num_trials=config.num_trials,
        num_epochs=base.epochs,
        num_unpruned=config.num_unpruned,
        seed=config.seed,
    )
    write(folder, config, base, outcomes)


def settings(parsed: Parsed[SearchConfig]) -> SearchConfig:
    """Return the settings of a new search, or of the one that is continued; raises UsageError if they differ."""
    config = parsed.config
    if config.resume is None:
        return config
    path = config.resume / SETTINGS
    if not path.is_file():
        raise UsageError(f"error: --resume {config.resume}: no search folder: it has no {SETTINGS}")
    if wrong := [name for name in parsed.changed if name not in MAY_CHANGE]:
        raise UsageError(
            f"error: --{wrong[0].replace('_', '-')} does not go with --resume: a search keeps its settings, but for "
            f"{', '.join(MAY_CHANGE[:-1])}"
        )
    before = load_preset(SearchConfig, path)
    return dataclasses.replace(before, **{name: getattr(config, name) for name in parsed.changed})


def suggest(trial: "optuna.Trial", config: SearchConfig) -> dict[str, Any]:
    """Ask for the config fields of a trial."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", *config.learning_rate, log=True),
        "weight_decay": trial.suggest_float("weight_decay", *config.weight_decay, log=True),
        "label_smoothing": trial.suggest_float("label_smoothing", *config.label_smoothing),
        "micro_batch_size": trial.suggest_categorical("micro_batch_size", config.micro_batch_size),
    }


def write(folder: Path, config: SearchConfig, base: TrainConfig, outcomes: list[searching.TrialOutcome]) -> None:
    """Write trials.csv, best.yaml, the picture and the report of a search that has ended."""
    note = "generated sample data" if base.data == "sample" else ""
    searching.write_table(folder / "trials.csv", outcomes, "val_accuracy")
    names = list(outcomes[0].parameters)
    plotting.search_history(
        [outcome.value for outcome in outcomes],
        [outcome.state == "pruned" for outcome in outcomes],
        {name: [outcome.parameters[name] for outcome in outcomes] for name in names},
        folder / "plots" / "search_history.png",
        unit="fraction",
        logarithmic=("learning_rate", "weight_decay", "micro_batch_size"),
        note=note,
    )
    finished = [(o.value, o) for o in outcomes if o.state == "finished" and o.value is not None]
    value, best = max(finished, key=lambda pair: pair[0])
    write_atomically(folder / "best.yaml", to_yaml(dataclasses.replace(base, test=True, **best.parameters)))
    ranked = sorted(outcomes, key=lambda outcome: (outcome.state != "finished", -(outcome.value or 0)))
    conclusions = [
        f"Best of {len(outcomes)} trials is number {best.number}: {format_value(value, 'fraction')} of "
        f"{base.num_val:,} validation images. Being the best of many, it is a little too good: the test set will say.",
        f"{sum(outcome.state == 'pruned' for outcome in outcomes)} trials were stopped early.",
    ]
    summary = {
        "package": PACKAGE,
        "config": f"search-{config.config}",
        "state": "finished",
        "data": {"kind": base.data, "name": "cifar10"},
        "seed": config.seed,
        "conclusions": conclusions,
        "tables": [
            {
                "title": "Trials, best first",
                "columns": ["trial", "state", "validation accuracy", "epochs", *(n.replace("_", " ") for n in names)],
                "rows": [
                    [
                        str(outcome.number),
                        outcome.state,
                        format_value(outcome.value, "fraction"),
                        str(outcome.num_epochs),
                        *(f"{outcome.parameters[name]:.3g}" for name in names),
                    ]
                    for outcome in ranked
                ],
                "note": "Trials that were stopped early come last: their accuracy is that of fewer epochs.",
            }
        ],
        "next_command": f"train --config {folder / 'best.yaml'}",
        **provenance((PACKAGE, "trainyard-shared", "optuna", "torch", "deepspeed")),
    }
    RunFolder(folder).write_summary(summary)
    report = write_report(folder)
    for sentence in conclusions:
        say(sentence)
    say(f"report: {report}\nthe best config: {summary['next_command']}")
