"""Windows, normalisation and splits: nothing of an unseen engine, or of the future, gets in."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fairscale_turbofan_anomaly import data
from fairscale_turbofan_anomaly.config import TrainConfig
from fairscale_turbofan_anomaly.data import Normalizer, Windows
from trainyard_shared.datasets.cmapss import Fleet, load_cmapss
from trainyard_shared.errors import DataError


def fleet_of(lengths: list[int], seed: int = 0) -> Fleet:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sensors = rng.normal(100, 5, (offsets[-1], 21))
    sensors[:, [0, 4]] = 518.67
    remaining = np.concatenate([np.arange(length)[::-1] for length in lengths])
    settings = rng.normal(0, 0.001, (offsets[-1], 3))
    return Fleet(np.arange(1, len(lengths) + 1), offsets, settings, sensors, remaining)


def test_a_window_holds_one_engine_and_ends_at_its_cycle() -> None:
    fleet = fleet_of([3, 1, 7])
    windows = Windows.of(fleet, Normalizer.fit(fleet, 1), 5)
    assert len(windows) == 11
    values = windows.values
    assert torch.equal(windows.take(torch.tensor([10]))[0], values[6:11])
    assert torch.equal(windows.take(torch.tensor([2]))[0], values[[0, 0, 0, 1, 2]]), "the first cycle is repeated"
    assert torch.equal(windows.take(torch.tensor([3]))[0], values[[3, 3, 3, 3, 3]]), "an engine with one cycle"
    assert torch.equal(windows.take(torch.tensor([4]))[0], values[[4, 4, 4, 4, 4]])


def test_labels_follow_the_horizon() -> None:
    fleet = fleet_of([5, 2])
    windows = Windows.of(fleet, Normalizer.fit(fleet, 1), 2)
    assert windows.labels(1).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert windows.healthy(2).tolist() == [True, True, False, False, False, False, False]


def test_engines_are_divided_not_windows_and_only_training_engines_are_fitted() -> None:
    config = TrainConfig(num_sample_engines=10)
    dataset = data.load(config)
    parts = data.split(dataset, config)
    groups = [set(part.fleet.units.tolist()) for part in (parts.train, parts.val, parts.test)]
    assert [len(group) for group in groups] == [6, 2, 2]
    assert set.union(*groups) == set(range(1, 11))
    other = data.split(dataset, dataclasses.replace(config, seed=1))
    assert set(other.test.fleet.units.tolist()) != groups[2], "the seed draws"

    # Other readings of unseen engines change nothing that was fitted.
    unseen = np.isin(dataset.train.units[dataset.train.engine_of_row], [*groups[1], *groups[2]])
    changed = dataclasses.replace(
        dataset, train=dataclasses.replace(dataset.train, sensors=dataset.train.sensors + 50 * unseen[:, None])
    )
    assert data.split(changed, config).normalizer.to_dict() == parts.normalizer.to_dict()
    seen = dataclasses.replace(
        dataset, train=dataclasses.replace(dataset.train, sensors=dataset.train.sensors + 50 * ~unseen[:, None])
    )
    assert data.split(seen, config).normalizer.to_dict() != parts.normalizer.to_dict(), "the test can fail"


def test_constant_sensors_are_dropped_and_conditions_normalised_apart() -> None:
    config = TrainConfig(subset="FD002", num_sample_engines=10)
    parts = data.split(data.load(config), config)
    normalizer = parts.normalizer
    assert len(normalizer.centres) == 6
    assert set(normalizer.kept.tolist()) == set(range(21)) - {0, 4, 9, 15, 17, 18}
    condition = data._nearest(parts.train.fleet.settings, normalizer.centres, normalizer.scale)
    altitude = parts.train.fleet.settings[:, 0].round()
    for k in range(6):
        values = parts.train.values[torch.from_numpy(condition == k)]
        assert len(np.unique(altitude[condition == k])) == 1, "a flight condition is one altitude"
        assert values.mean(dim=0).abs().max() < 0.02
        assert values.std(dim=0) == pytest.approx(torch.ones(15), abs=0.05)
    again = Normalizer.from_dict(normalizer.to_dict())
    np.testing.assert_array_equal(again(parts.test.fleet), normalizer(parts.test.fleet))


def test_a_broken_sensor_is_cut_off() -> None:
    fleet = fleet_of([50])
    normalizer = Normalizer.fit(fleet, 1)
    fleet.sensors[7, 1] = 1e9
    assert np.abs(normalizer(fleet)).max() == data.MAX_DEVIATIONS


def test_engines_that_teach_nothing() -> None:
    fleet = fleet_of([20])
    fleet.sensors[:] = 1.0
    with pytest.raises(DataError, match="All 21 sensors of the training engines are constant"):
        Normalizer.fit(fleet, 1)
    with pytest.raises(DataError, match="1 different settings, expected 6 flight conditions"):
        Normalizer.fit(fleet_of([20]), 6)


def real_data() -> Path:
    given = os.environ.get("TRAINYARD_TEST_DATA")
    folder = (Path(given) if given else Path(__file__).resolve().parents[4] / "shared" / "data") / "cmapss"
    if not (folder / "train_FD001.txt").is_file():
        pytest.skip(f"no real engines in {folder}: set TRAINYARD_TEST_DATA to the folder that holds cmapss/")
    return folder


def test_the_real_engines_keep_the_sensors_known_to_vary() -> None:
    config = TrainConfig(data="real", data_dir=real_data())
    parts = data.split(load_cmapss("FD001", config.data_dir), config)
    assert len(parts.train.fleet.units) == 60
    # As in the literature, and sensor 6, which takes two values.
    assert [sensor + 1 for sensor in parts.normalizer.kept] == [2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21]
    assert int(parts.stopped.labels(30).sum()) == 332
