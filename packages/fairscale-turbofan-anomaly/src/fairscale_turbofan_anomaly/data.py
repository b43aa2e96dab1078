"""From NASA's files to windows of normalised sensors. Engines are kept apart: a window never holds two of them.

What is fitted (flight conditions, means, deviations, which sensors are constant) is fitted on training engines only.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trainyard_shared.datasets.cmapss import EngineDataset, Fleet, load_cmapss, load_sample
from trainyard_shared.errors import DataError

from fairscale_turbofan_anomaly.config import TrainConfig

NUM_CONDITIONS = {"FD001": 1, "FD002": 6, "FD003": 1, "FD004": 6}
CONSTANT = 1e-6  # a sensor whose deviation is below this share of its level shows nothing
MAX_DEVIATIONS = 10.0  # a normalised reading beyond is cut off: a broken sensor must not drown the others


def load(config: TrainConfig) -> EngineDataset:
    """Return generated engines or a subset of C-MAPSS; raises DataError if it cannot be had."""
    if config.data == "sample":
        count = config.num_sample_engines
        return load_sample(config.subset, seed=0, num_train=count, num_test=max(count // 2, 1))
    folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
    return load_cmapss(config.subset, Path(folder) if folder else None)


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """Makes readings comparable across flight conditions.

    Attributes:
        centres: (K, 3) settings of the flight conditions.
        scale: (3,) deviations of the settings, by which distances are measured.
        mean: (K, C) of the kept sensors in each condition.
        std: (K, C).
        kept: (C,) indices of the sensors that are not constant.
    """

    centres: NDArray[np.float64]
    scale: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    kept: NDArray[np.int64]

    @classmethod
    def fit(cls, fleet: Fleet, num_conditions: int) -> "Normalizer":
        """Learn from training engines; raises DataError if they cannot teach anything."""
        scale = np.maximum(fleet.settings.std(axis=0), 1e-9)
        if num_conditions == 1:
            centres = fleet.settings.mean(axis=0, keepdims=True)
        else:
            from sklearn.cluster import KMeans

            found = len(np.unique(fleet.settings.round(1), axis=0))
            if found < num_conditions:
                raise DataError(
                    f"The training engines fly under {found} different settings, expected {num_conditions} flight "
                    "conditions: this is not the subset that --subset names."
                )
            # The conditions are six tight heaps far from each other: several starts find them.
            means = KMeans(num_conditions, n_init=10, random_state=0).fit(fleet.settings / scale)
            centres = means.cluster_centers_ * scale
        condition = _nearest(fleet.settings, centres, scale)
        groups = [fleet.sensors[condition == k] for k in range(num_conditions)]
        mean = np.stack([group.mean(axis=0) for group in groups])
        std = np.stack([group.std(axis=0) for group in groups])
        varies = std > CONSTANT * np.maximum(np.abs(mean), 1e-9)  # (K, 21)
        kept = np.flatnonzero(varies.any(axis=0))
        if not len(kept):
            raise DataError("All 21 sensors of the training engines are constant: there is nothing to learn from.")
        return cls(centres, scale, mean[:, kept], np.where(varies, std, 1.0)[:, kept], kept)

    def __call__(self, fleet: Fleet) -> NDArray[np.float32]:
        """Return the kept sensors of each row in deviations from the mean of its flight condition, (R, C)."""
        condition = _nearest(fleet.settings, self.centres, self.scale)
        values = (fleet.sensors[:, self.kept] - self.mean[condition]) / self.std[condition]
        return values.clip(-MAX_DEVIATIONS, MAX_DEVIATIONS).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """As lists of numbers, for a JSON file."""
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Normalizer":
        """The inverse of `to_dict`."""
        arrays = {name: np.array(values[name]) for name in ("centres", "scale", "mean", "std")}
        return cls(**arrays, kept=np.array(values["kept"], dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Windows:
    """One window for each cycle of each engine, ending there; made when asked for, so that nothing is held twice.

    Before an engine's first cycle that cycle is repeated: an engine that has flown once has one window, and one whose
    life is shorter than a window has as many as cycles.

    Attributes:
        fleet: the engines.
        values: (R, C) normalised sensors.
        first: (R,) row of the first cycle of the same engine.
        length: T, cycles in a window.
    """

    fleet: Fleet
    values: Tensor
    first: Tensor
    length: int

    @classmethod
    def of(cls, fleet: Fleet, normalizer: Normalizer, length: int) -> "Windows":
        """Normalise the engines of a fleet."""
        first = torch.from_numpy(np.repeat(fleet.offsets[:-1], fleet.lengths))
        return cls(fleet, torch.from_numpy(normalizer(fleet)), first, length)

    def __len__(self) -> int:
        """Number of windows R, one for each row."""
        return len(self.values)

    def take(self, rows: Tensor) -> Tensor:
        """Return the windows that end at these rows: (n,) -> (n, T, C)."""
        places = rows[:, None] + torch.arange(1 - self.length, 1)
        return self.values[torch.maximum(places, self.first[rows][:, None])]

    def labels(self, horizon: int) -> NDArray[np.int64]:
        """Return for each window whether at most `horizon` cycles remain after it, (R,), 0 or 1."""
        assert self.fleet.remaining is not None
        return (self.fleet.remaining <= horizon).astype(np.int64)

    def healthy(self, more_than: int) -> NDArray[np.bool_]:
        """Return for each window whether more than this many cycles remain after it, (R,)."""
        assert self.fleet.remaining is not None
        return self.fleet.remaining > more_than


@dataclasses.dataclass(frozen=True)
class Parts:
    """Windows of engines that no two parts share.

    `train`, `val` and `test` are of engines that run to failure; `stopped` are those of the test file, whose recording
    ends some time before.
    """

    train: Windows
    val: Windows
    test: Windows
    stopped: Windows
    normalizer: Normalizer


def split(dataset: EngineDataset, config: TrainConfig) -> Parts:
    """Divide engines, not windows, into parts; the seed draws which go where.

    Raises:
        DataError: there are too few engines.
    """
    count = len(dataset.train.units)
    num_val, num_test = round(config.val_fraction * count), round(config.test_fraction * count)
    if min(num_val, num_test, count - num_val - num_test) < 1:
        raise DataError(
            f"{count} engines that run to failure cannot be divided into parts to train, validate and test: "
            f"val_fraction {config.val_fraction:g} and test_fraction {config.test_fraction:g} leave one of them empty."
        )
    order = np.random.default_rng(config.seed).permutation(count)
    val, test, train = np.split(order, [num_val, num_val + num_test])
    fleets = [dataset.train.take(np.sort(engines)) for engines in (train, val, test)]
    normalizer = Normalizer.fit(fleets[0], NUM_CONDITIONS[config.subset])
    parts = Parts(
        train=Windows.of(fleets[0], normalizer, config.window),
        val=Windows.of(fleets[1], normalizer, config.window),
        test=Windows.of(fleets[2], normalizer, config.window),
        stopped=Windows.of(dataset.test, normalizer, config.window),
        normalizer=normalizer,
    )
    if config.detector == "autoencoder" and not parts.train.healthy(config.healthy_cycles).any():
        longest = int(fleets[0].lengths.max())
        raise DataError(
            f"No training engine has a cycle with more than healthy_cycles {config.healthy_cycles} left: the longest "
            f"life is {longest}. The autoencoder needs healthy cycles; lower --healthy-cycles."
        )
    return parts


def _nearest(
    settings: NDArray[np.float64], centres: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the flight condition that each row is closest to, (R,)."""
    distances = ((settings[:, None] - centres) / scale) ** 2  # (R, K, 3)
    return distances.sum(axis=2).argmin(axis=1)
