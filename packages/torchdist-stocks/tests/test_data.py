"""Panel and folds: the right windows, no day in two parts, nothing of the future in the past."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchdist_stocks.config import TrainConfig
from torchdist_stocks.data import Panel, TrainBatches, make_folds, make_panel
from torchdist_stocks.features import FEATURES, indicators
from torchdist_stocks.model import build_model
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.tensors.images import BatchOrder

WINDOW, HORIZON = 12, 4
CONFIG = dataclasses.replace(
    TrainConfig(), window=WINDOW, horizon=HORIZON, num_folds=3, test_days=40, val_days=25, micro_batch_size=8
)


@pytest.fixture(scope="module")
def panel(make_prices: Callable) -> Panel:
    prices = make_prices(3)
    prices["T1"] = prices["T1"].drop(prices["T1"].index[[200, 290, 330]])  # days on which it was not traded
    prices["T2"] = prices["T2"].iloc[120:]  # came to the exchange later
    return make_panel(prices, WINDOW, HORIZON)


def days_of(panel: Panel, origins: torch.Tensor) -> set[tuple[int, int]]:
    """All days of the windows and targets of samples, by stock."""
    rows = origins[:, None] + torch.arange(-WINDOW + 1, HORIZON + 1)
    return set(zip(panel.ticker[rows].ravel().tolist(), panel.day[rows].ravel().tolist(), strict=True))


def test_windows_and_targets_are_those_of_the_stock(panel: Panel, make_prices: Callable) -> None:
    prices = make_prices(3)["T0"]
    expected = indicators(prices).astype(np.float32)
    origins = panel.origins()[:5]
    for origin, window, levels, future in zip(
        origins, panel.windows(origins), panel.levels(origins), panel.future(origins), strict=True
    ):
        day = int(np.searchsorted(prices.index, panel.dates[panel.day[origin]]))
        log_price = np.log(prices["adjusted_close"].to_numpy())
        np.testing.assert_array_equal(window, expected[day - WINDOW + 1 : day + 1])
        np.testing.assert_array_equal(levels, log_price[day - WINDOW + 1 : day + 1])
        np.testing.assert_array_equal(future, log_price[day + 1 : day + 1 + HORIZON])


def test_windows_are_views_of_one_table(panel: Panel) -> None:
    views = panel.features.unfold(0, WINDOW, 1)
    assert views.untyped_storage().data_ptr() == panel.features.untyped_storage().data_ptr()
    assert torch.equal(panel.windows(torch.tensor([WINDOW - 1]))[0], views[0].T)


def test_no_sample_mixes_stocks(panel: Panel) -> None:
    rows = panel.origins()[:, None] + torch.arange(-WINDOW + 1, HORIZON + 1)
    assert (panel.ticker[rows] == panel.ticker[rows[:, :1]]).all()
    assert len(rows) == len(panel.day) - 3 * (WINDOW + HORIZON - 1), "all others are samples"


def test_moves_are_those_of_a_random_walk(panel: Panel) -> None:
    volatility = panel.features[100, FEATURES.index("volatility_20")].item()
    assert panel.moves(torch.tensor([100]))[0].tolist() == pytest.approx([volatility * h**0.5 for h in (1, 2, 3, 4)])


@pytest.mark.parametrize("train_days", [None, 80])
def test_no_day_is_in_samples_of_two_parts(panel: Panel, train_days: int | None) -> None:
    for fold in make_folds(panel, dataclasses.replace(CONFIG, train_days=train_days)):
        train, val, test = (days_of(panel, part) for part in (fold.train, fold.val, fold.test))
        assert train
        assert val
        assert test
        assert max(day for _, day in train) < min(day for _, day in val)
        assert max(day for _, day in val) < min(day for _, day in test)
        rows = panel.day[fold.train_rows]
        assert rows.max() < min(day for _, day in val), "scalers and baselines see the training days only"


def test_gap_between_origins_is_window_and_horizon(panel: Panel) -> None:
    for fold in make_folds(panel, CONFIG):
        assert panel.day[fold.val].min() - panel.day[fold.train].max() == WINDOW + HORIZON
        assert panel.day[fold.test].min() - panel.day[fold.val].max() == WINDOW + HORIZON
        assert panel.day[fold.val].max() - panel.day[fold.val].min() + 1 == CONFIG.val_days


def test_test_days_of_the_folds_follow_each_other_up_to_the_end(panel: Panel) -> None:
    days = [sorted(set(panel.day[fold.test].tolist())) for fold in make_folds(panel, CONFIG)]
    together = [day for of_fold in days for day in of_fold]
    assert together == list(range(len(panel.dates) - HORIZON - 3 * 40, len(panel.dates) - HORIZON))
    assert [len(of_fold) for of_fold in days] == [40, 40, 40]


def test_training_part_grows_or_slides(panel: Panel) -> None:
    growing = [len(torch.unique(panel.day[fold.train_rows])) for fold in make_folds(panel, CONFIG)]
    sliding = make_folds(panel, dataclasses.replace(CONFIG, train_days=80))
    assert growing == [growing[0], growing[0] + 40, growing[0] + 80]
    assert [len(torch.unique(panel.day[fold.train_rows])) for fold in sliding] == [80, 80, 80]


def test_too_few_days_for_the_folds(panel: Panel) -> None:
    with pytest.raises(UsageError, match=r"need at least 371 days, but there are 351 \(2015-03-11 to"):
        make_folds(panel, dataclasses.replace(CONFIG, test_days=100))
    # The message speaks the truth: 20 days less do, 17 do not.
    assert make_folds(panel, dataclasses.replace(CONFIG, test_days=93))
    with pytest.raises(UsageError):
        make_folds(panel, dataclasses.replace(CONFIG, test_days=94))


def test_stock_with_too_few_days_is_named(make_prices: Callable) -> None:
    prices = make_prices(2)
    prices["T1"] = prices["T1"].iloc[:60]
    with pytest.raises(DataError, match="T1: 60 days of prices are too few: 49 go into the first features"):
        make_panel(prices, WINDOW, HORIZON)


def test_batches_of_any_number_of_processes_are_the_same(panel: Panel) -> None:
    origins = make_folds(panel, CONFIG)[0].train

    def batches(world_size: int, rank: int, used: int = 0) -> list[list[int]]:
        order = BatchOrder(len(origins), 16 // world_size, 1, rank, world_size, seed=0)
        return [batch.tolist() for batch in TrainBatches(panel, origins, order).epoch(1, used)]

    alone = batches(1, 0)
    assert len({origin for batch in alone for origin in batch}) == len(alone) * 16
    assert [a + b for a, b in zip(batches(2, 0), batches(2, 1), strict=True)] == alone
    assert batches(1, 0, used=3 * 16) == alone[3:]


def test_scaling_does_not_depend_on_the_days_after_the_training_part(
    make_prices: Callable, alter_future: Callable
) -> None:
    prices = make_prices(3)
    before = make_panel(prices, WINDOW, HORIZON)
    fold = make_folds(before, CONFIG)[0]
    last_day = int(before.day[fold.train_rows].max())
    row = int(np.searchsorted(prices["T0"].index, before.dates[last_day]))
    after = make_panel({name: alter_future(table, row) for name, table in prices.items()}, WINDOW, HORIZON)
    assert not torch.equal(before.features, after.features)
    scalings = []
    for panel in (before, after):
        fold = make_folds(panel, CONFIG)[0]
        model = build_model(CONFIG, 3)
        rows = fold.train_rows
        model.fit_scaling(panel.features[rows], panel.log_price[rows], panel.ticker[rows])
        scalings.append({name: buffer.clone() for name, buffer in model.named_buffers()})
    assert scalings[0].keys() == {"feature_mean", "feature_std", "level_mean", "level_std"}
    for name, buffer in scalings[0].items():
        assert torch.equal(buffer, scalings[1][name]), name
    # So the test can fail: one day more, and the altered prices show.
    more = torch.cat([fold.train_rows, fold.train_rows.max()[None] + 1])
    model.fit_scaling(after.features[more], after.log_price[more], after.ticker[more])
    assert not torch.equal(model.feature_mean, scalings[0]["feature_mean"])
