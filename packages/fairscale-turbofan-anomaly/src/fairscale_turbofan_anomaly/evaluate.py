"""Figures and pictures on unseen engines: every window is scored once, by however many processes."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from trainyard_shared import console, launch, plotting, plotting_anomalies, results
from trainyard_shared.config import load_preset
from trainyard_shared.datasets.cmapss import EngineDataset
from trainyard_shared.errors import DataError
from trainyard_shared.metrics import format_value
from trainyard_shared.report import write_report
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches

from fairscale_turbofan_anomaly import baselines, data, scoring
from fairscale_turbofan_anomaly.config import EvaluateConfig, TrainConfig
from fairscale_turbofan_anomaly.data import Normalizer, Parts, Windows
from fairscale_turbofan_anomaly.model import build_model

BATCH_SIZE = 500
WEIGHTS = "model.safetensors"
DETECTOR = "detector.json"
NUM_LIVES = 6  # engines in the picture of scores over life


@torch.inference_mode()
def score(model: nn.Module, windows: Windows, config: TrainConfig, device: torch.device) -> NDArray[np.float64]:
    """Return the score of each window, (R,), not smoothed; each process computes its share.

    Pass a module that is not wrapped: shares can differ by one batch, and a sharded forward pass waits for its peers.

    Args:
        model: the network, on `device`.
        windows: of any engines.
        config: says which detector.
        device: where to compute.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    was_training = model.training
    model.eval()
    pieces = [torch.empty(0)]
    for rows in shard_batches(len(windows), BATCH_SIZE, rank, world_size):
        batch = windows.take(rows).to(device)
        output = model(batch)
        if config.detector == "autoencoder":
            output = (output - batch).square().mean(dim=(1, 2))
        pieces.append(output.float().cpu())
    model.train(was_training)
    return gather_in_order(torch.cat(pieces), len(windows)).double().numpy()


def test_and_report(
    model: nn.Module,
    parts: Parts,
    dataset: EngineDataset,
    config: TrainConfig,
    device: torch.device,
    folder: results.RunFolder,
    summary: dict[str, Any],
    train_end_s: float | None = None,
) -> None:
    """Test network and baselines once; rank 0 writes weights, figures, pictures, summary and report.

    Args:
        model: the chosen weights; all processes hold the same.
        parts: the engines.
        dataset: where they come from.
        config: of the run.
        device: where to compute.
        folder: of the run.
        summary: what is known of the run already.
        train_end_s: seconds from the command to the end of training, None if this is a later evaluation.
    """
    start = launch.seconds_since_command()
    tested = (parts.val, parts.test, parts.stopped)
    scores = [scoring.smooth(score(model, w, config, device), w.fleet, config.smoothing) for w in tested]
    seconds = launch.seconds_since_command() - start
    others = score_baselines(parts, config)
    if launch.rank() != 0:
        return
    name = f"{config.model.upper() if config.model != 'transformer' else 'transformer'}, {config.detector}"
    own = scoring.judge(name, scores, parts, config.horizon)
    judged = [own, *(scoring.judge(other, found, parts, config.horizon) for other, found in others.items())]
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder.path / WEIGHTS)
    about = {"threshold": own["threshold"], "normalizer": parts.normalizer.to_dict()}
    results.write_atomically(folder.path / DETECTOR, json.dumps(about, indent=2))

    summary["metrics"] = headline(own, parts, config)
    summary["detectors"] = judged
    summary["tables"] = tables(judged, config)
    summary["conclusions"] = conclusions(judged)
    note = "generated sample data" if dataset.kind == "sample" else ""
    draw(judged, scores, parts, config, folder, note)
    if train_end_s is not None:
        start_up_s = summary.pop("start_up_s")
        summary["phases_s"] = {
            "start_up": round(start_up_s, 1),
            "train": round(train_end_s - start_up_s, 1),
            "test_and_plots": round(launch.seconds_since_command() - train_end_s, 1),
        }
        summary["wall_time_s"] = round(launch.seconds_since_command(), 1)
        summary["finished_at"] = results.now()
    summary["evaluation_windows_per_second"] = round(sum(map(len, tested)) / seconds, 1)
    if dataset.kind == "sample":
        summary["next_command"] = "train --config cpu --data-dir DIR      # NASA's engines on a CPU"
    folder.write_summary(summary)
    report = write_report(folder.path)
    for metric in ("test_f1", "stopped_f1", "last_f1"):
        console.say(f"{metric.replace('_', ' ')}: {format_value(summary['metrics'][metric]['value'], 'fraction')}")
    for sentence in summary["conclusions"]:
        console.say(sentence)
    if dataset.kind == "sample":
        console.say("these data are a generated sample: the figures say nothing about NASA's engines")
    console.say(f"results: {folder.path}\nreport:  {report}")
    if dataset.kind == "sample":
        console.say(f"the real thing: {summary['next_command']}")


def score_baselines(parts: Parts, config: TrainConfig) -> dict[str, list[NDArray[np.float64]]]:
    """Return each baseline's smoothed scores of validation, test and stopped engines; processes share the work."""
    tested = [parts.val, parts.test, parts.stopped]
    healthy = parts.train.healthy(config.healthy_cycles)
    if not healthy.any():
        return {}
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # The slowest first, so that no process gets two of them.
    names = sorted(baselines.NAMES, key=lambda name: name != "ARIMA residual")
    own = {
        name: baselines.scores(name, parts.train, healthy, tested, config.window) for name in names[rank::world_size]
    }
    found: list[Any] = [own]
    if dist.is_initialized():
        found = [None] * world_size
        dist.all_gather_object(found, own)
    together = {name: scores for part in found for name, scores in part.items()}
    return {
        name: [
            scoring.smooth(values, windows.fleet, config.smoothing)
            for values, windows in zip(together[name], tested, strict=True)
        ]
        for name in baselines.NAMES
    }


def headline(own: dict[str, Any], parts: Parts, config: TrainConfig) -> dict[str, Any]:
    """Return the metrics of summary.json with their protocols."""
    count = len(parts.val.fleet.units)
    rule = f"positive: at most {config.horizon} cycles left; threshold with the best F1 on {count} validation engines"
    where = {
        "test": f"all {own['test']['num_windows']:,} windows ({own['test']['num_positive']:,} positive) of "
        f"{len(parts.test.fleet.units)} unseen engines that run to failure, drawn by the seed",
        "stopped": f"all {own['stopped']['num_windows']:,} windows ({own['stopped']['num_positive']:,} positive) of "
        f"the {len(parts.stopped.fleet.units)} engines in the test file, whose recording stops before failure",
        "last": f"the last window only of each of these {own['last']['num_windows']} engines "
        f"({own['last']['num_positive']} positive)",
    }
    found = {
        f"{part}_{figure}": {"value": own[part][figure], "unit": "fraction", "protocol": f"{where[part]}; {rule}"}
        for part in where
        for figure in ("f1", "precision", "recall", "pr_auc")
    }
    lead_times = np.array(own["lead_times"])
    warned = lead_times[~np.isnan(lead_times)]
    found["lead_time"] = {
        "value": float(np.median(warned)) if len(warned) else None,
        "unit": "cycles",
        "protocol": f"median over the {len(warned)} of {len(lead_times)} unseen engines with an alarm that goes off "
        f"before failure and lasts into the last {config.horizon} cycles",
    }
    found["false_alarms_per_engine"] = {
        "value": own["false_alarms_per_engine"],
        "unit": "alarms",
        "protocol": f"alarms that end again while more than {config.horizon} cycles are left, on unseen engines that "
        "run to failure",
    }
    # No figure can be had where a part has no positive window at all.
    for metric in found.values():
        if metric["value"] is not None and np.isnan(metric["value"]):
            metric["value"] = None
    return found


def tables(judged: list[dict[str, Any]], config: TrainConfig) -> list[dict[str, Any]]:
    """Return the detectors side by side, once for each set of windows, as the report shows them."""
    titles = {
        "test": "Unseen engines that run to failure, all windows",
        "stopped": "Engines of the test file, all windows",
        "last": "Engines of the test file, last window only",
    }
    found = []
    for part, title in titles.items():
        columns, rows = ["detector", "F1", "precision", "recall", "PR-AUC"], []
        for one in judged:
            rows.append([one["name"], *(_percent(one[part][key]) for key in ("f1", "precision", "recall", "pr_auc"))])
            if part == "test":
                leads = np.array(one["lead_times"])
                warned = leads[~np.isnan(leads)]
                rows[-1] += [
                    f"{np.median(warned):g} cycles" if len(warned) else "–",
                    f"{one['missed_engines']} of {len(leads)}",
                    f"{one['false_alarms_per_engine']:.2f}",
                ]
        if part == "test":
            columns += ["median lead time", "failed without alarm", "false alarms per engine"]
        note = f"All thresholds come from the validation engines; positive: at most {config.horizon} cycles left."
        found.append({"title": title, "columns": columns, "rows": rows, "note": note})
    return found


def conclusions(judged: list[dict[str, Any]]) -> list[str]:
    """Say in words how the network compares with the best baseline."""
    own, *others = judged
    if not others:
        return ["No training engine has healthy cycles, so there are no baselines to compare with."]
    best = max(others, key=lambda other: np.nan_to_num(other["test"]["f1"]))
    ahead = own["test"]["f1"] - best["test"]["f1"]
    return [
        f"F1 on all windows of unseen engines: {own['test']['f1']:.3f} for {own['name']}, "
        f"{best['test']['f1']:.3f} for the best baseline ({best['name']}): the network is {abs(ahead):.3f} "
        f"{'ahead' if ahead > 0 else 'behind'}."
    ]


def draw(
    judged: list[dict[str, Any]],
    scores: list[NDArray[np.float64]],
    parts: Parts,
    config: TrainConfig,
    folder: results.RunFolder,
    note: str,
) -> None:
    """Write the pictures of a run."""
    own, plots, fleet = judged[0], folder.plots, parts.test.fleet
    assert fleet.remaining is not None
    plotting.training_curves(folder.records(), plots / "curves.png", note=note)
    # From the shortest to the longest life, so that the choice does not flatter.
    shown = np.argsort(fleet.lengths, kind="stable")[
        np.linspace(0, len(fleet.units) - 1, NUM_LIVES).round().astype(int)
    ]
    lives = {
        f"engine {fleet.units[engine]}": scores[1][fleet.offsets[engine] : fleet.offsets[engine + 1]]
        for engine in dict.fromkeys(shown.tolist())
    }
    plotting_anomalies.scores_over_life(
        lives,
        own["threshold"],
        config.horizon,
        plots / "scores_over_life.png",
        log_scale=config.detector == "autoencoder",
        subtitle=f"{own['name']}; unseen engines, from the shortest life to the longest",
        note=note,
    )
    plotting_anomalies.lead_times(
        np.array(own["lead_times"]),
        config.horizon,
        plots / "lead_times.png",
        subtitle=f"{len(own['lead_times'])} unseen engines that run to failure",
        note=note,
    )
    labels = (fleet.remaining <= config.horizon).astype(int)
    plotting_anomalies.precision_recall(
        labels,
        scores[1],
        own["threshold"],
        plots / "precision_recall.png",
        subtitle="all windows of unseen engines that run to failure",
        note=note,
    )


def evaluate(run: Path, config: EvaluateConfig) -> None:
    """Test the detector of a finished run again; runs in each process.

    Raises:
        DataError: the folder holds no trained network.
    """
    trained = load_preset(TrainConfig, run / "config.yaml") if (run / "config.yaml").is_file() else TrainConfig()
    trained = dataclasses.replace(trained, data_dir=config.data_dir or trained.data_dir)
    model, _, _ = load_detector(run, trained)
    device = launch.choose_device(config.device)
    dist.init_process_group(launch.backend_for(device.type))
    dataset = data.load(trained)
    parts = data.split(dataset, trained)
    test_and_report(model.to(device), parts, dataset, trained, device, results.RunFolder(run), {})
    launch.leave_together()


def load_detector(run: Path, trained: TrainConfig) -> tuple[nn.Module, Normalizer, float]:
    """Return the network of a finished run, how it normalises, and its threshold.

    Raises:
        DataError: the folder holds no trained network.
    """
    if not (run / WEIGHTS).is_file():
        raise DataError(f"error: {run}: no {WEIGHTS}: the run has not finished; continue it with train --resume {run}")
    about = results.read_json(run / DETECTOR)
    normalizer = Normalizer.from_dict(about["normalizer"])
    model = build_model(dataclasses.replace(trained, checkpointing="none"), len(normalizer.kept))
    model.load_state_dict(load_file(run / WEIGHTS))
    return model, normalizer, about["threshold"]


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"


if __name__ == "__main__":
    from fairscale_turbofan_anomaly import cli

    sys.exit(cli.evaluate())
