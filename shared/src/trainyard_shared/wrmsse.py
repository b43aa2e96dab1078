"""The score of the M5 competition: WRMSSE over 12 levels of aggregation, exact and in NumPy.

Forecasts are made for N products in stores, and are right only if their sums are: of each product over the stores, of
each department in each store, up to the total. For every one of these S series (42,840 in M5) the root of the mean
squared error is divided by that of the naive forecast one step ahead within the history (RMSSE), and weighted by what
the series brought in over the last 28 days. From the M5 Competitors' Guide; Makridakis, Spiliotis & Assimakopoulos
(2022), M5 accuracy competition: Results, findings, and conclusions, International Journal of Forecasting 38, 1346-1364.

    hierarchy = Hierarchy.of(item=..., dept=..., cat=..., store=..., state=...)
    scorer = Scorer.of_history(hierarchy, history, revenue(history[:, -28:], price_of_day[:, -28:]))
    scorer.score(actual, forecast).wrmsse
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainyard_shared.errors import DataError

# In the order of the competition's guide: what the series of a level have in common. Level 1 is the total.
LEVELS: tuple[tuple[str, ...], ...] = (
    (),
    ("state",),
    ("store",),
    ("cat",),
    ("dept",),
    ("state", "cat"),
    ("state", "dept"),
    ("store", "cat"),
    ("store", "dept"),
    ("item",),
    ("item", "state"),
    ("item", "store"),
)
NUM_LEVELS = len(LEVELS)
WEIGHT_DAYS = 28
# Rows of the history that are turned into float64 at once: memory stays bounded whatever the number of series.
CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Hierarchy:
    """Which of N bottom series belong to which of the S series of the 12 levels.

    `offsets` (13,) int64 says where in the S series each level begins; those of one level are sorted by their key, as
    strings. `keys` are S tuples of strings: the values of what the level has in common, such as `("CA_1", "FOODS_1")`.
    `group_of` (12, N) int64 is the position within the level of the group that a bottom series belongs to.
    """

    offsets: NDArray[np.int64]
    keys: tuple[tuple[str, ...], ...]
    group_of: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        *,
        item: Sequence[str],
        dept: Sequence[str],
        cat: Sequence[str],
        store: Sequence[str],
        state: Sequence[str],
    ) -> "Hierarchy":
        """Build the hierarchy of N products in stores from what each of them is, N strings a time.

        Raises:
            DataError: A product is in the same store twice, or in two departments.
        """
        columns = {"item": item, "dept": dept, "cat": cat, "store": store, "state": state}
        sizes = {name: len(values) for name, values in columns.items()}
        if len(set(sizes.values())) > 1 or not sizes["item"]:
            raise ValueError(f"every series has an item, dept, cat, store and state; found so many: {sizes}")
        # Each column as codes in the order of its strings, so that keys can be compared as numbers.
        names: dict[str, list[str]] = {}
        codes: dict[str, NDArray[np.int64]] = {}
        for column, values in columns.items():
            names[column] = sorted(set(values))
            code_of = {name: code for code, name in enumerate(names[column])}
            codes[column] = np.fromiter((code_of[value] for value in values), np.int64, len(values))
        for lower, upper in (("item", "dept"), ("dept", "cat"), ("store", "state")):
            _check_nested(lower, upper, names, codes)
        keys: list[tuple[str, ...]] = []
        offsets = [0]
        group_of = np.empty((NUM_LEVELS, len(item)), np.int64)
        for index, level in enumerate(LEVELS):
            joint = np.zeros(len(item), np.int64)
            for column in level:
                joint = joint * len(names[column]) + codes[column]
            _, first, group_of[index] = np.unique(joint, return_index=True, return_inverse=True)
            keys += [tuple(names[column][codes[column][row]] for column in level) for row in first]
            offsets.append(len(keys))
        if len(keys) - offsets[-2] != len(item):
            doubled = int(np.bincount(group_of[-1]).argmax())
            rows = np.flatnonzero(group_of[-1] == doubled)[:2]
            raise DataError(
                f"Item {item[rows[0]]} is in store {store[rows[0]]} twice, as series {rows[0] + 1} and {rows[1] + 1}."
            )
        return cls(np.array(offsets, np.int64), tuple(keys), group_of)

    @property
    def num_bottom(self) -> int:
        """Number of bottom series, N."""
        return self.group_of.shape[1]

    @property
    def num_series(self) -> int:
        """Number of series of all levels, S."""
        return int(self.offsets[-1])

    def level(self, number: int) -> slice:
        """Where the series of level 1 to 12 stand among the S series."""
        return slice(int(self.offsets[number - 1]), int(self.offsets[number]))

    def aggregate(self, bottom: ArrayLike) -> NDArray[np.float64]:
        """Add up bottom series (N, T) to all S series, (S, T): the bottom-up forecasts of every level."""
        values = _of_shape("bottom series", bottom, self.num_bottom)
        total = np.empty((self.num_series, values.shape[1]))
        for number, sums in self._sums(values):
            total[self.level(number)] = sums
        return total

    def naive_mse(self, bottom: ArrayLike) -> NDArray[np.float64]:
        """Return the `naive_mse` of all S series, (S,), without holding them all: 1.2 GB less for M5."""
        values = _of_shape("bottom series", bottom, self.num_bottom)
        scales = np.empty(self.num_series)
        for number, sums in self._sums(values):
            scales[self.level(number)] = naive_mse(sums)
        return scales

    def _sums(self, values: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the number of each level and its series (groups, T)."""
        # Level 10 adds up level 11, and levels 1 to 8 add up level 9, which have fewer rows than the bottom.
        for finer, coarser in ((12, ()), (11, (10,)), (9, (8, 7, 6, 5, 4, 3, 2, 1))):
            groups = self.group_of[finer - 1]
            sums = _add_up(values, groups)
            yield finer, sums
            _, first = np.unique(groups, return_index=True)
            for number in coarser:
                yield number, _add_up(sums, self.group_of[number - 1][first])


@dataclass(frozen=True)
class Score:
    """How good forecasts are, relative to the naive forecast within the history: smaller is better.

    `wrmsse` is the competition's score, the mean of `levels` (12,). `rmsse` (S,) is the unweighted error of each
    series; NaN where it has no scale and counts for nothing.
    """

    wrmsse: float
    levels: NDArray[np.float64]
    rmsse: NDArray[np.float64]


@dataclass(frozen=True)
class Scorer:
    """What the score needs beside forecasts: of each of the S series its weight and its scale, both (S,) float64.

    Weights sum to 1 within each level. A scale is the `naive_mse` of the series' history.

    Raises:
        DataError: A series that counts has no scale, since its history never changes.
    """

    hierarchy: Hierarchy
    weights: NDArray[np.float64]
    scales: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, values in (("weights", self.weights), ("scales", self.scales)):
            if values.shape != (self.hierarchy.num_series,):
                raise ValueError(f"expected {self.hierarchy.num_series} {name}, found shape {values.shape}")
        sums = [self.weights[self.hierarchy.level(number)].sum() for number in range(1, NUM_LEVELS + 1)]
        # Also where there is NaN among them; the organisers' file has 12 decimals.
        if not np.allclose(sums, 1, rtol=0, atol=1e-6) or (self.weights < 0).any():
            raise ValueError(
                f"weights must be at least 0 and sum to 1 in each level, found sums of {np.round(sums, 6)}"
            )
        unscaled = (self.weights > 0) & ~(self.scales > 0)
        if unscaled.any():
            key = ", ".join(self.hierarchy.keys[int(unscaled.argmax())]) or "the total"
            raise DataError(
                f"{unscaled.sum():,} of {len(unscaled):,} series have revenue but no scale, first {key}: after its "
                "first sale, its history has no change by which errors could be measured. Take a longer history."
            )

    @classmethod
    def of_history(cls, hierarchy: Hierarchy, history: ArrayLike, revenue: ArrayLike) -> "Scorer":
        """Build it as the competition did.

        Args:
            hierarchy: Of the N bottom series.
            history: Units sold before the forecast, (N, T).
            revenue: What each bottom series brought in over the last 28 days of the history, (N,); see `revenue`.
        """
        income = hierarchy.aggregate(np.asarray(revenue, np.float64)[:, None])[:, 0]
        if not income[0] > 0:
            raise DataError(f"The revenue of all series together is {income[0]:g}: there is nothing to weight them by.")
        return cls(hierarchy, income / income[0], hierarchy.naive_mse(history))

    def score(self, actual: ArrayLike, forecast: ArrayLike) -> Score:
        """Return the score of forecasts of the bottom series, both (N, H). A forecast of NaN makes the score NaN."""
        true = _of_shape("actual values", actual, self.hierarchy.num_bottom)
        predicted = _of_shape("forecasts", forecast, self.hierarchy.num_bottom)
        if true.shape != predicted.shape or not true.shape[1]:
            raise ValueError(f"actual values of shape {true.shape} do not go with forecasts of shape {predicted.shape}")
        # The error of a sum is the sum of the errors.
        errors = self.hierarchy.aggregate(true.astype(np.float64) - predicted)
        scales = np.where(self.scales > 0, self.scales, np.nan)
        rmsse = np.sqrt(np.einsum("st,st->s", errors, errors) / errors.shape[1] / scales)
        weighted = np.where(self.weights > 0, self.weights * rmsse, 0)
        levels = np.add.reduceat(weighted, self.hierarchy.offsets[:-1])
        return Score(float(levels.mean()), levels, rmsse)


def revenue(units: ArrayLike, prices: ArrayLike) -> NDArray[np.float64]:
    """Return what each series brought in, (N,), of units sold and their prices, both (N, T).

    A price of NaN stands for a product that was not on sale, and counts for nothing, as in the competition.
    """
    sold, price = np.asarray(units), np.asarray(prices, np.float64)
    if sold.shape != price.shape or sold.ndim != 2:
        raise ValueError(f"units of shape {sold.shape} do not go with prices of shape {price.shape}")
    return np.nansum(sold * price, axis=1)


def naive_mse(history: ArrayLike) -> NDArray[np.float64]:
    """Return the mean squared change from one day to the next of each series (N, T), from its first non-zero value on.

    That is the error of the naive forecast one step ahead. NaN where there are not two values from there on.
    """
    values = np.asarray(history)
    if values.ndim != 2:
        raise ValueError(f"expected a history of shape (N, T), found {values.shape}")
    scales = np.full(len(values), np.nan)
    for begin in range(0, len(values), CHUNK_ROWS):
        rows = values[begin : begin + CHUNK_ROWS].astype(np.float64)
        changes = np.diff(rows, axis=1)
        squares = np.einsum("nt,nt->n", changes, changes)
        first = (rows != 0).argmax(axis=1)
        at_first = rows[np.arange(len(rows)), first]
        # Before the first value nothing changes; the step up to it is no error of the forecast.
        squares -= np.where(first > 0, at_first**2, 0)
        num_changes = rows.shape[1] - 1 - first
        known = (at_first != 0) & (num_changes > 0)
        scales[begin : begin + CHUNK_ROWS][known] = squares[known] / num_changes[known]
    return scales


def _of_shape(name: str, values: ArrayLike, num_rows: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 2 or len(array) != num_rows:
        raise ValueError(f"{name} must have the shape ({num_rows}, T), found {array.shape}")
    return array


def _add_up(rows: NDArray[Any], groups: NDArray[np.int64]) -> NDArray[Any]:
    """Return the sum of the rows of each group, 0 to the largest, none of which is empty."""
    order = np.argsort(groups, kind="stable")
    if len(order) == groups.max() + 1:  # each row is a group
        return rows[order]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)


def _check_nested(lower: str, upper: str, names: dict[str, list[str]], codes: dict[str, NDArray[np.int64]]) -> None:
    """Check that each item has one department, and so on."""
    pairs = np.unique(codes[lower] * len(names[upper]) + codes[upper])
    belongs, counts = np.unique(pairs // len(names[upper]), return_counts=True)
    if (counts > 1).any():
        name = names[lower][belongs[counts.argmax()]]
        found = [
            names[upper][pair % len(names[upper])] for pair in pairs if names[lower][pair // len(names[upper])] == name
        ]
        raise DataError(f"The {lower} {name} has more than one {upper}: {', '.join(found)}.")
