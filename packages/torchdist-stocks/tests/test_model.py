"""The network: untrained it says "tomorrow = today", its quantiles are in order, and it cannot see what comes."""

import dataclasses
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torchdist_stocks.config import TrainConfig
from torchdist_stocks.data import Panel, make_panel
from torchdist_stocks.evaluate import predict
from torchdist_stocks.features import FEATURES
from torchdist_stocks.model import Forecaster, build_model, pinball

CPU = torch.device("cpu")
CONFIG = dataclasses.replace(TrainConfig(), window=12, horizon=4, hidden_size=8)


@pytest.fixture(scope="module")
def panel(make_prices: Callable) -> Panel:
    return make_panel(make_prices(3), 12, 4)


def make_model(panel: Panel, *, trained: bool, **fields: object) -> Forecaster:
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(CONFIG, **fields), 3)  # type: ignore[arg-type]
    model.fit_scaling(panel.features, panel.log_price, panel.ticker)
    if trained:
        with torch.no_grad():
            model.head.weight.normal_()
    return model


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_untrained_network_is_a_random_walk(panel: Panel, kind: str) -> None:
    origins = panel.origins()
    said = predict(make_model(panel, trained=False, model=kind), panel, origins, CPU).log_price
    last = panel.log_price[origins, None]
    assert torch.equal(said[:, :, 1], last.expand(-1, 4)), "tomorrow = today, to the last bit"
    z = NormalDist().inv_cdf(0.95)
    torch.testing.assert_close(said[:, :, 2] - last, z * panel.moves(origins), rtol=1e-5, atol=0)
    torch.testing.assert_close(last - said[:, :, 0], z * panel.moves(origins), rtol=1e-5, atol=0)


@pytest.mark.parametrize("fields", [{}, {"target": "log_price"}, {"ticker_embedding_size": 3}, {"num_layers": 2}])
def test_quantiles_do_not_cross_and_forecasts_differ(panel: Panel, fields: dict) -> None:
    origins = panel.origins()
    said = predict(make_model(panel, trained=True, **fields), panel, origins, CPU).log_price
    assert said.shape == (len(origins), 4, 3)
    assert (said.diff(dim=2) > 0).all()
    assert len(torch.unique(said[:, 0, 1] - panel.log_price[origins])) > len(origins) // 2


def test_log_price_target_starts_at_the_mean_of_the_training_days(panel: Panel) -> None:
    said = predict(make_model(panel, trained=False, target="log_price"), panel, panel.origins(), CPU).log_price
    for number in range(3):
        own = panel.log_price[panel.ticker == number]
        of_stock = said[panel.ticker[panel.origins()] == number]
        assert of_stock[:, :, 1].unique().item() == pytest.approx(own.mean().item())


def test_stock_without_a_training_day_gets_the_level_of_the_others(panel: Panel) -> None:
    model = make_model(panel, trained=False)
    known = panel.ticker < 2
    model.fit_scaling(panel.features[known], panel.log_price[known], panel.ticker[known])
    assert model.level_mean[2].item() == pytest.approx(panel.log_price[known].mean().item())
    assert model.level_mean[0] != model.level_mean[2]


def test_only_the_level_of_the_target_log_price_is_looked_at(panel: Panel) -> None:
    windows, tickers = panel.windows(torch.tensor([50])), torch.tensor([0])
    for target, looked_at in (("return", False), ("log_price", True)):
        model = make_model(panel, trained=True, target=target)
        outputs = [model(windows, torch.full((1, 12), level), tickers) for level in (3.0, 4.0)]
        assert torch.equal(*outputs) != looked_at


def test_embedding_tells_stocks_apart(panel: Panel) -> None:
    windows, levels = (part.expand(2, *part.shape[1:]) for part in (
        panel.windows(torch.tensor([50])), panel.levels(torch.tensor([50]))))  # fmt: skip
    for size in (0, 3):
        first, second = make_model(panel, trained=True, ticker_embedding_size=size)(
            windows, levels, torch.tensor([0, 2])
        )
        assert torch.equal(first, second) == (size == 0)


def test_crash_is_cut_off(panel: Panel) -> None:
    model = make_model(panel, trained=True)
    window, levels, ticker = torch.zeros(1, 12, len(FEATURES)), torch.zeros(1, 12), torch.tensor([0])
    window[0, 5, 0] = -0.2  # some 13 standard deviations
    worse = window.clone()
    worse[0, 5, 0] = -0.4
    assert torch.equal(model(window, levels, ticker), model(worse, levels, ticker))


def test_pinball_by_hand_and_smallest_at_the_quantile() -> None:
    forecast, actual = torch.zeros(2, 1, 1), torch.tensor([[3.0], [-1.0]])
    assert pinball(forecast, actual, (0.9,)).item() == pytest.approx((0.9 * 3 + 0.1 * 1) / 2)
    values = torch.tensor(np.random.default_rng(0).normal(size=(20_000, 1)))
    places = torch.linspace(-2, 2, 81)
    losses = [pinball(place.expand(20_000, 1, 1), values, (0.8,)).item() for place in places]
    assert places[int(np.argmin(losses))].item() == pytest.approx(NormalDist().inv_cdf(0.8), abs=0.06)


@pytest.mark.parametrize("fields", [{}, {"target": "log_price"}])
def test_forecast_does_not_change_with_the_future(
    make_prices: Callable, alter_future: Callable, panel: Panel, fields: dict
) -> None:
    """Of a trained network: all forecasts made up to a day stay the same, to the last bit, whatever comes after it."""
    model, row = make_model(panel, trained=True, **fields), 300
    altered = make_panel({name: alter_future(table, row) for name, table in make_prices(3).items()}, 12, 4)
    day = int(np.searchsorted(panel.dates, make_prices(3)["T0"].index[row].to_datetime64()))
    origins = panel.origins()
    up_to, after = origins[panel.day[origins] <= day], origins[panel.day[origins] == day + 1]
    assert torch.equal(predict(model, panel, up_to, CPU).log_price, predict(model, altered, up_to, CPU).log_price)
    assert not torch.equal(predict(model, panel, after, CPU).log_price, predict(model, altered, after, CPU).log_price)
