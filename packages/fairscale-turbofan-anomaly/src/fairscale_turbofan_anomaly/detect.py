"""Score engines that a file describes, cycle by cycle, as if they were flying now; one process is enough."""

import csv
import io
from pathlib import Path

import numpy as np
import torch
from trainyard_shared import plotting_anomalies
from trainyard_shared.config import load_preset
from trainyard_shared.console import say
from trainyard_shared.datasets.cmapss import read_engines
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.results import read_json, write_atomically

from fairscale_turbofan_anomaly import scoring
from fairscale_turbofan_anomaly.config import DetectConfig, TrainConfig
from fairscale_turbofan_anomaly.data import Windows
from fairscale_turbofan_anomaly.evaluate import NUM_LIVES, load_detector, score


def detect(run: Path, config: DetectConfig) -> None:
    """Write a CSV file with a line for each cycle, and a picture beside it; say which engines have an alarm now.

    Raises:
        UsageError: no file is named.
        DataError: there is no trained network, or the file is not of the expected form.
    """
    if config.engines is None:
        raise UsageError("error: --engines: name a file of engines, for example test_FD001.txt")
    if not config.engines.is_file():
        raise DataError(f"error: --engines {config.engines}: no such file")
    if not (run / "config.yaml").is_file():
        raise UsageError(f"error: --run {run}: no run folder: it has no config.yaml")
    trained = load_preset(TrainConfig, run / "config.yaml")
    model, normalizer, threshold = load_detector(run, trained)
    fleet = read_engines(config.engines)
    windows = Windows.of(fleet, normalizer, trained.window)
    scores = scoring.smooth(score(model, windows, trained, torch.device("cpu")), fleet, trained.smoothing)
    alarms = scores > threshold

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["unit", "cycle", "score", "threshold", "alarm"])
    cycles = np.arange(len(scores)) - np.repeat(fleet.offsets[:-1], fleet.lengths) + 1
    units = np.repeat(fleet.units, fleet.lengths)
    for unit, cycle, value, alarm in zip(units, cycles, scores, alarms, strict=True):
        writer.writerow([unit, cycle, f"{value:.6g}", f"{threshold:.6g}", int(alarm)])
    target = config.to or run / "detections" / f"{config.engines.stem}.csv"
    write_atomically(target, table.getvalue())

    last = scoring.last_rows(fleet)
    is_sample = read_json(run / "summary.json").get("data", {}).get("kind") == "sample"
    for engine in np.flatnonzero(alarms[last]):
        start, _ = scoring.episodes(alarms[fleet.offsets[engine] : fleet.offsets[engine + 1]])[-1]
        say(f"engine {fleet.units[engine]}: alarm since cycle {start + 1} of {fleet.lengths[engine]}")
    say(
        f"{int(alarms[last].sum())} of {len(fleet.units)} engines have an alarm at their last cycle: expected to fail "
        f"within {trained.horizon} cycles"
    )
    # Those that look worst now.
    shown = np.argsort(-scores[last], kind="stable")[:NUM_LIVES]
    plotting_anomalies.scores_over_life(
        {f"engine {fleet.units[i]}": scores[fleet.offsets[i] : fleet.offsets[i + 1]] for i in shown},
        threshold,
        None,
        target.with_suffix(".png"),
        log_scale=trained.detector == "autoencoder",
        title="Score of each cycle",
        subtitle="the engines with the highest scores at their last cycle",
        note="detector trained on generated sample data" if is_sample else None,
    )
    if is_sample:
        say("this detector was trained on a generated sample: it knows nothing about NASA's or your engines")
    say(f"scores: {target}\npicture: {target.with_suffix('.png')}")
