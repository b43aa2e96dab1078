"""The test of all folds, beside all baselines, with every test window counted once by however many processes."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from trainyard_shared import console, launch, plotting, results
from trainyard_shared.config import load_preset
from trainyard_shared.datasets.stocks import PriceDataset
from trainyard_shared.errors import DataError
from trainyard_shared.report import write_report
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches

from torchdist_stocks import data, scoring
from torchdist_stocks.config import EvaluateConfig, TrainConfig
from torchdist_stocks.data import Fold, Panel
from torchdist_stocks.model import Forecaster, build_model, normal_bound
from torchdist_stocks.opponents import LAST_VALUE, LEARNED, Forecasts, ensemble, last_value, run_opponents
from torchdist_stocks.significance import Comparison, verdict

BATCH_SIZE = 1000
WEIGHTS = "model.safetensors"
MAX_PICTURES = 4
PICTURE_DAYS = 120
FAR_OFF = 1.2


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the network says of a set of samples, in their order; on the CPU, the same on every process."""

    scaled: Tensor
    """(N, H, 3) float32: low, middle and high in units of the frame"""
    start: Tensor
    """(N, 1) float64"""
    unit: Tensor
    """(N, H) float64"""

    @property
    def log_price(self) -> Tensor:
        """(N, H, 3) float64: low, middle and high."""
        return self.start[:, :, None] + self.unit[:, :, None] * self.scaled

    def scale(self, log_price: Tensor) -> Tensor:
        """Return log prices (N, H) in units of the frame, as float32."""
        return ((log_price - self.start) / self.unit).float()


@torch.inference_mode()
def predict(model: Forecaster, panel: Panel, origins: Tensor, device: torch.device) -> Prediction:
    """Return the forecasts from all origins (N,); each process computes its share.

    Pass the plain module: shares can differ by one batch, and the forward pass of a DDP module may wait for a peer
    that has already finished.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    was_training = model.training
    model.eval()
    origins = origins.to(device)
    pieces = [torch.empty(0, model.horizon, 3)]
    for index in shard_batches(len(origins), BATCH_SIZE, rank, world_size):
        own = origins[index.to(device)]
        pieces.append(model(panel.windows(own), panel.levels(own), panel.ticker[own]).cpu())
    model.train(was_training)
    start, unit = model.frame(panel.log_price[origins], panel.moves(origins), panel.ticker[origins])
    return Prediction(gather_in_order(torch.cat(pieces), len(origins)), start.cpu(), unit.cpu())


def test_and_report(
    weights: list[dict[str, Tensor]],
    dataset: PriceDataset,
    panel: Panel,
    config: TrainConfig,
    device: torch.device,
    folder: results.RunFolder,
    summary: dict[str, Any],
    train_end_s: float | None = None,
) -> None:
    """Test each fold's network on its test days beside all baselines; rank 0 writes whatever comes out.

    Args:
        weights: of each fold; all processes hold the same.
        dataset: where the prices come from.
        panel: made of the prices.
        config: of the run.
        device: where to compute.
        folder: of the run.
        summary: what is known of the run already.
        train_end_s: seconds from the command to the end of training, None if this is a later evaluation.
    """
    on_device, panel = panel.to(device), panel.to(torch.device("cpu"))
    folds = data.make_folds(panel, config)
    model = build_model(config, len(panel.tickers)).to(device)
    on_val, on_test = [], []
    for fold, of_fold in zip(folds, weights, strict=True):
        model.load_state_dict(of_fold)
        on_val.append(predict(model, on_device, fold.val, device))
        on_test.append(predict(model, on_device, fold.test, device))
    known = summary if train_end_s is not None else results.read_json(folder.path / "summary.json")
    train_s = known["phases_s"]["train"] if train_end_s is None else train_end_s - known["start_up_s"]
    network = Forecasts(
        [part.log_price[:, :, 1].numpy() for part in on_val],
        [part.log_price[:, :, 1].numpy() for part in on_test],
        wall_time_s=train_s * known["world_size"],
    )
    network_end_s = launch.seconds_since_command()

    opponents = run_opponents(panel, folds, config)
    if launch.rank() != 0:
        return
    opponents_end_s = launch.seconds_since_command()
    name, naive = config.model.upper(), last_value(panel, folds)
    members = {member: opponents[member] for member in LEARNED if member in opponents} | {name: network}
    ensembles: dict[str, Forecasts] = {}
    member_weights: dict[str, dict[str, NDArray[np.float64]]] = {}
    if len(members) > 1:
        val = [fold.val for fold in folds]
        ensembles, member_weights = ensemble(
            members, naive, [panel.future(part).numpy() for part in val], [panel.moves(part).numpy() for part in val]
        )
    forecasts = {LAST_VALUE: naive, **opponents, name: network, **ensembles}

    test = scoring.make_test_set(panel, folds)
    figures = {
        forecaster: scoring.measure(np.concatenate(own.test), test, panel.tickers) | {"wall_time_s": own.wall_time_s}
        for forecaster, own in forecasts.items()
    }
    bounds = {
        name: torch.cat([part.log_price for part in on_test])[:, :, [0, 2]].numpy(),
        "a random walk": test.last[:, None, None] + test.moves[:, :, None] * normal_bound(config.interval) * [-1, 1],
    }
    intervals = {of: scoring.measure_interval(own, test, config.interval) for of, own in bounds.items()}
    conclusion = verdict(
        [
            Comparison(forecaster, own["mae_to_last_value"], tuple(own["mae_to_last_value_interval"]))
            for forecaster, own in figures.items()
            if forecaster != LAST_VALUE
        ]
    )

    own, num_windows, num_days = figures[name], len(test.day), len(np.unique(test.day))
    protocol = (
        f"{num_windows:,} test windows of {len(panel.tickers)} stocks on {num_days} days in {len(folds)} walk-forward "
        f"folds, 1 to {config.horizon} days ahead; weights of the epoch with the best validation loss of each fold"
    )
    summary |= {
        "conclusions": [conclusion],
        "tickers": list(panel.tickers),
        "forecasters": figures,
        "intervals": intervals,
        "ensemble_weights": {kind: {m: w.tolist() for m, w in of.items()} for kind, of in member_weights.items()},
        "metrics": {
            "mae_to_last_value": {
                "value": own["mae_to_last_value"],
                "unit": "",
                "protocol": f"mean absolute error of the log price, {name} / last value; {protocol}",
                "interval": own["mae_to_last_value_interval"],
            },
            "mae": {"value": own["mae"], "unit": "fraction", "protocol": "of the log price, about the relative error"},
            "rmse": {"value": own["rmse"], "unit": "fraction", "protocol": "of the log price"},
            "mape": {"value": own["mape"], "unit": "fraction", "protocol": "of the price"},
            "mase": {
                "value": own["mase"],
                "unit": "",
                "protocol": f"mean over the stocks; the last value has {figures[LAST_VALUE]['mase']:.4f}",
            },
            "directional_accuracy": {
                "value": own["directional_accuracy"],
                "unit": "fraction",
                "protocol": "of tomorrow's change; interval from blocks of days, since all stocks move together. "
                f"Always saying 'up' is right in {_share_of_ups(test):.2%}",
                "interval": own["directional_accuracy_interval"],
            },
            "interval_coverage": {
                "value": intervals[name]["coverage"],
                "unit": "fraction",
                "protocol": f"outcomes within the interval that should hold {config.interval:.0%}",
            },
        },
        "tables": [
            scoring.forecaster_table(figures),
            scoring.horizon_table(figures),
            scoring.interval_table(intervals, config.interval),
            *([scoring.weight_table(member_weights)] if member_weights else []),
            scoring.fold_table(folds),
            scoring.stock_table(figures),
        ],
    }
    failed = [
        f"{forecaster}: {len(own.failures)} of {len(folds) * len(panel.tickers)} fits failed, there the last value "
        "stands in: " + "; ".join(own.failures[:5])
        for forecaster, own in forecasts.items()
        if own.failures
    ]
    summary["notes"] = list(dict.fromkeys([*known.get("notes", []), *failed]))
    save_file(
        {f"fold{n}.{key}": tensor.contiguous() for n, of in enumerate(weights, start=1) for key, tensor in of.items()},
        folder.path / WEIGHTS,
    )
    draw(folder, dataset, panel, folds, config, figures, forecasts, on_test[-1])
    if train_end_s is not None:
        start_up_s = summary.pop("start_up_s")
        summary["phases_s"] = {
            "start_up": round(start_up_s, 1),
            "train": round(train_end_s - start_up_s, 1),
            "test": round(network_end_s - train_end_s, 1),
            "baselines": round(opponents_end_s - network_end_s, 1),
            "report": round(launch.seconds_since_command() - opponents_end_s, 1),
        }
        summary["wall_time_s"] = round(launch.seconds_since_command(), 1)
        summary["finished_at"] = results.now()
    if dataset.kind == "sample":
        summary["next_command"] = "train --config cpu --data-dir DIR      # real prices; --config full downloads them"
    folder.write_summary(summary)
    report = write_report(folder.path)
    for forecaster, values in figures.items():
        console.say(f"{forecaster:<28} MAE {values['mae']:.4%}, {values['mae_to_last_value']:.4f} of the last value's")
    console.say(conclusion)
    if dataset.kind == "sample":
        console.say("these prices are generated random walks: the figures say nothing about real ones")
    console.say(f"results: {folder.path}\nreport:  {report}")
    if dataset.kind == "sample":
        console.say(f"the real thing: {summary['next_command']}")


def draw(
    folder: results.RunFolder,
    dataset: PriceDataset,
    panel: Panel,
    folds: list[Fold],
    config: TrainConfig,
    figures: dict[str, dict[str, Any]],
    forecasts: dict[str, Forecasts],
    prediction: Prediction,
) -> None:
    """Write the pictures: curves, errors, and forecasts beside what came for some stocks in the last fold."""
    note, plots = "generated sample data" if dataset.kind == "sample" else "", folder.plots
    plotting.training_curves(folder.records(), plots / "curves.png", subtitle="all folds in turn", note=note)
    # A forecaster that is far off would squeeze all others into one line; its figures are in the tables.
    far = [name for name, own in figures.items() if own["mae_to_last_value"] > FAR_OFF]
    near = {name: own for name, own in figures.items() if name not in far}
    without = f"; off the picture: {', '.join(far)}" if far else ""
    plotting.comparison_bars(
        [{"variant": name, "values": {"mae_to_last_value": [own["mae_to_last_value"]]}} for name, own in near.items()],
        "mae_to_last_value",
        plots / "errors.png",
        title="Mean absolute error",
        subtitle="as a share of the last value's" + without,
        note=note,
    )
    plotting.errors_by_horizon(
        {name: own["mae_to_last_value_by_days_ahead"] for name, own in near.items()},
        plots / "errors_by_days_ahead.png",
        metric="mae / last value's",
        title="Mean absolute error by days ahead",
        subtitle="as a share of the last value's" + without,
        note=note,
    )
    origins, ahead, name = folds[-1].test, config.horizon, config.model.upper()
    for number, ticker in enumerate(panel.tickers[:MAX_PICTURES]):
        rows = (panel.ticker[origins] == number).nonzero()[-PICTURE_DAYS:, 0]
        if not len(rows):
            continue
        # What was said `ahead` days before stands at the day it was said of.
        low, middle, high = prediction.log_price[rows, -1].exp().numpy().T
        plotting.forecast(
            panel.dates[panel.day[origins[rows] + ahead].numpy()],
            panel.log_price[origins[rows] + ahead].exp().numpy(),
            {name: middle, LAST_VALUE: np.exp(forecasts[LAST_VALUE].test[-1][rows, -1])},
            plots / f"forecast_{ticker}.png",
            interval=(low, high),
            interval_label=f"{config.interval:.0%} interval of {name}",
            y_label="adjusted price",
            title=f"{ticker}, forecast {ahead} days before",
            subtitle=f"the last {len(rows)} test days of the last fold",
            note=note,
        )


def load_weights(run: Path, config: TrainConfig, tickers: tuple[str, ...]) -> list[dict[str, Tensor]]:
    """Return the weights of each fold of a finished run.

    Raises:
        DataError: the folder holds no trained network, or one for other stocks.
    """
    if not (run / WEIGHTS).is_file():
        raise DataError(f"error: {run}: no {WEIGHTS}: the run has not finished; continue it with train --resume {run}")
    trained_on = results.read_json(run / "summary.json").get("tickers", [])
    if list(tickers) != trained_on:
        raise DataError(
            f"error: {run}: trained on {', '.join(trained_on)}, but the data hold {', '.join(tickers)}: the same "
            "stocks are needed as in training"
        )
    tensors = load_file(run / WEIGHTS)
    return [
        {key.removeprefix(f"fold{n}."): tensor for key, tensor in tensors.items() if key.startswith(f"fold{n}.")}
        for n in range(1, config.num_folds + 1)
    ]


def evaluate(run: Path, config: EvaluateConfig) -> None:
    """Test the networks of a finished run again; runs in each process.

    Raises:
        DataError: the folder holds no trained network.
    """
    trained = load_preset(TrainConfig, run / "config.yaml")
    trained = dataclasses.replace(
        trained, data_dir=config.data_dir or trained.data_dir, baselines=config.baselines or trained.baselines
    )
    device = launch.choose_device(config.device)
    dist.init_process_group(launch.backend_for(device.type))
    dataset = data.load(trained)
    panel = data.make_panel(dataset.prices, trained.window, trained.horizon)
    weights = load_weights(run, trained, panel.tickers)
    test_and_report(weights, dataset, panel, trained, device, results.RunFolder(run), {})
    launch.leave_together()


def _share_of_ups(test: scoring.TestSet) -> float:
    change = test.log_price[:, 0] - test.last
    return float((change > 0).sum() / (change != 0).sum())


if __name__ == "__main__":
    from torchdist_stocks import cli

    sys.exit(cli.evaluate())
