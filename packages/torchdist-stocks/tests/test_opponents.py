"""Baselines and ensembles: forecasts at the right place, from the past alone, with weights from validation alone."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from torchdist_stocks import opponents
from torchdist_stocks.config import TrainConfig
from torchdist_stocks.data import Fold, Panel, make_folds, make_panel
from torchdist_stocks.opponents import Forecasts, ensemble, last_value, run_opponents, stacking_weights
from trainyard_shared.baselines import FitError, Naive

CONFIG = dataclasses.replace(
    TrainConfig(), window=12, horizon=4, num_folds=2, test_days=40, val_days=25, baselines="simple"
)


@pytest.fixture(scope="module")
def panel(make_prices: Callable) -> Panel:
    prices = make_prices(3)
    prices["T2"] = prices["T2"].iloc[170:]  # too young for the baselines of the first fold
    return make_panel(prices, 12, 4)


@pytest.fixture(scope="module")
def folds(panel: Panel) -> list[Fold]:
    return make_folds(panel, CONFIG)


def test_last_value_repeats_the_price_of_the_origin(panel: Panel, folds: list[Fold]) -> None:
    naive = last_value(panel, folds)
    np.testing.assert_array_equal(naive.test[1][7], np.full(4, panel.log_price[folds[1].test[7]]))
    assert [len(part) for part in naive.val] == [len(fold.val) for fold in folds]


def test_drift_is_made_at_its_origin(panel: Panel, folds: list[Fold]) -> None:
    drift = run_opponents(panel, folds, CONFIG)["drift"]
    for fold, val, test in zip(folds, drift.val, drift.test, strict=True):
        for origins, said in ((fold.val, val), (fold.test, test)):
            for origin, row in zip(origins.tolist(), said, strict=True):
                ticker = panel.ticker[origin]
                own = fold.train_rows[panel.ticker[fold.train_rows] == ticker]
                past = panel.log_price[own[0] : origin + 1].numpy() if len(own) >= opponents.MIN_HISTORY else None
                slope = 0.0 if past is None else (past[-1] - past[0]) / (len(past) - 1)
                expected = panel.log_price[origin].item() + slope * np.arange(1, 5)
                np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_stock_with_a_short_history_is_said_and_gets_the_last_value(panel: Panel, folds: list[Fold]) -> None:
    found = run_opponents(panel, folds, CONFIG)["moving average (20)"]
    assert found.failures == ("T2, fold 1: 46 training days",)
    young = (panel.ticker[folds[0].test] == 2).numpy()
    naive = last_value(panel, folds)
    np.testing.assert_array_equal(found.test[0][young], naive.test[0][young])
    assert not np.array_equal(found.test[0][~young], naive.test[0][~young])


def test_fit_that_fails_is_said(panel: Panel, folds: list[Fold], monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(Naive):
        def fit(self, history: object) -> "Stubborn":
            raise FitError("does not converge")

    monkeypatch.setattr(opponents, "SIMPLE", {"stubborn": Stubborn})
    found = run_opponents(panel, folds, CONFIG)["stubborn"]
    assert len(found.failures) == 6
    assert "T0, fold 2: does not converge" in found.failures
    np.testing.assert_array_equal(found.test[1], last_value(panel, folds).test[1])


def test_all_baselines_forecast_from_the_past_alone(
    make_prices: Callable, alter_future: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prices after a day are altered: what was forecast up to that day stays the same, and later ones change."""
    monkeypatch.setitem(opponents.LEARNED, "ARIMA", lambda: opponents.Arima(max_p=1, max_q=0, max_d=1))  # quick
    prices = make_prices(1)
    config = dataclasses.replace(CONFIG, num_folds=1, baselines="all")
    before = make_panel(prices, 12, 4)
    (fold,) = make_folds(before, config)
    day = int(before.day[fold.test[20]])
    row = int(np.searchsorted(prices["T0"].index, before.dates[day]))
    after = make_panel({"T0": alter_future(prices["T0"], row)}, 12, 4)
    said, said_after = (run_opponents(panel, make_folds(panel, config), config) for panel in (before, after))
    assert set(said) == {"drift", "moving average (20)", "ARIMA", "XGBoost"}
    for name in said:
        np.testing.assert_array_equal(said[name].val[0], said_after[name].val[0], err_msg=name)
        np.testing.assert_array_equal(said[name].test[0][:21], said_after[name].test[0][:21], err_msg=name)
        assert not np.isclose(said[name].test[0][21:], said_after[name].test[0][21:]).any(), name


# ------------------------------------------------------------------------------------------------------------ ensembles


def made_up(seed: int = 0) -> tuple[dict[str, Forecasts], Forecasts, list[np.ndarray], list[np.ndarray]]:
    """Two folds; "good" knows half of what comes, "noise" nothing."""
    rng = np.random.default_rng(seed)
    shape = (200, 3)
    base = [np.repeat(rng.normal(4, 1, (200, 1)), 3, axis=1) for _ in range(4)]
    moves = [rng.normal(0, 0.02, shape) for _ in range(4)]
    actual = [b + m for b, m in zip(base, moves, strict=True)]

    def forecasts(make: Callable[[int], np.ndarray]) -> Forecasts:
        return Forecasts([make(0), make(1)], [make(2), make(3)])

    members = {
        "good": forecasts(lambda i: base[i] + 0.5 * moves[i] + rng.normal(0, 0.005, shape)),
        "noise": forecasts(lambda i: base[i] + rng.normal(0, 0.02, shape)),
    }
    return members, forecasts(lambda i: base[i]), actual[:2], [np.full(shape, 0.02)] * 2


def test_mean_and_weights_by_error() -> None:
    members, naive, actual, moves = made_up()
    combined, weights = ensemble(members, naive, actual, moves)
    mean = (members["good"].test[1] + members["noise"].test[1]) / 2
    np.testing.assert_allclose(combined["ensemble, mean"].test[1], mean)
    errors = [np.abs(member.val[1] - actual[1]).mean() for member in members.values()]
    expected = (1 / errors[0]) / (1 / errors[0] + 1 / errors[1])
    assert weights["weighted by error"]["good"][1] == pytest.approx(expected)
    assert weights["weighted by error"]["noise"][1] == pytest.approx(1 - expected)


def test_stacking_finds_the_member_that_knows_something() -> None:
    members, naive, actual, moves = made_up()
    combined, weights = ensemble(members, naive, actual, moves)
    assert (weights["stacking"]["good"] > 1.2).all(), "half of the move times two, less the noise in it"
    assert (weights["stacking"]["noise"] < 0.1).all()
    np.testing.assert_allclose(
        combined["ensemble, stacking"].val[0] - naive.val[0],
        sum(weights["stacking"][name][0] * (members[name].val[0] - naive.val[0]) for name in members),
    )


def test_stacking_weights_minimise_the_penalised_error_and_are_never_negative() -> None:
    rng = np.random.default_rng(0)
    changes = rng.normal(0, 1, (500, 2))
    target = 0.7 * changes[:, 0] - 0.4 * changes[:, 1] + rng.normal(0, 1, 500)
    found = stacking_weights(changes, target)
    assert found[1] == 0
    ridge = opponents.RIDGE * 500
    assert found[0] == pytest.approx(changes[:, 0] @ target / (changes[:, 0] @ changes[:, 0] + ridge))


def test_weights_do_not_depend_on_test_forecasts() -> None:
    members, naive, actual, moves = made_up()
    blind = {name: Forecasts(own.val, [np.full_like(part, 99.0) for part in own.test]) for name, own in members.items()}
    _, weights = ensemble(members, naive, actual, moves)
    _, of_blind = ensemble(blind, naive, actual, moves)
    for kind in weights:
        for name in members:
            np.testing.assert_array_equal(weights[kind][name], of_blind[kind][name])


def test_each_fold_has_weights_of_its_own() -> None:
    members, naive, actual, moves = made_up()
    actual[1] = naive.val[1]  # in the second fold, no price moves
    _, weights = ensemble(members, naive, actual, moves)
    assert weights["stacking"]["good"][0] > 1
    assert weights["stacking"]["good"][1] == pytest.approx(0, abs=1e-9)
