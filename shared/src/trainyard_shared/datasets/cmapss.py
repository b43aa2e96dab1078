"""NASA's C-MAPSS turbofan engines: from NASA, Kaggle or a local folder, and a generated sample in the same format.

Four subsets, FD001 to FD004, of three text files each: `train_FD001.txt` with engines that run to failure,
`test_FD001.txt` with engines whose recording stops some time before, and `RUL_FD001.txt` with the number of cycles that
these had left (their remaining useful life). A row is one flight: 26 numbers without a header. Saxena et al. (2008),
Damage propagation modeling for aircraft engine run-to-failure simulation.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainyard_shared.datasets.archives import extract
from trainyard_shared.datasets.entry import DownloadConfig, Entry, File, Place
from trainyard_shared.datasets.fetch import (
    HttpFile,
    KaggleFile,
    SourceError,
    building,
    cache_dir,
    download,
    is_offline,
    locked,
    record_checksums,
    try_in_order,
)
from trainyard_shared.datasets.tables import GENERATED, listing, read_origin, read_text, write_origin
from trainyard_shared.errors import DataError

Subset = Literal["FD001", "FD002", "FD003", "FD004"]

LICENCE = "a work of the United States government"
CITATION = "Saxena, Goebel, Simon & Eklund (2008), NASA Ames Prognostics Data Repository"
NOT_ORIGINAL = "not the original files (checksums differ)"
NUM_SETTINGS, NUM_SENSORS = 3, 21
NUM_COLUMNS = 2 + NUM_SETTINGS + NUM_SENSORS
COLUMN_NAMES = (
    "unit",
    "cycle",
    *(f"setting {i}" for i in range(1, NUM_SETTINGS + 1)),
    *(f"sensor {i}" for i in range(1, NUM_SENSORS + 1)),
)
# What git calls the original files, as they lie in many repositories: NASA publishes no checksums.
GIT_BLOBS = {
    "train_FD001.txt": "d2809918c8b75fa3319714658ae994deb2017a89",
    "train_FD002.txt": "694e39f99609f098025ef444d6fe89828ca74cbc",
    "train_FD003.txt": "0f2ef76638aee1e182850e5c4a79b142bbebb7b5",
    "train_FD004.txt": "a7ab3c7897db150cb061099bce7b426500c90ab8",
    "test_FD001.txt": "7844fbf8d6ad32176f92544ad4f4c456481d930d",
    "test_FD002.txt": "9799aaeb4b4960f28089e8e46cb1565dd1680f55",
    "test_FD003.txt": "ed4f6f67a44f9962f2f95c6cbfab08f07617bd78",
    "test_FD004.txt": "228c6ee54591218b3f4e7981d6ff7d77ff3506be",
    "RUL_FD001.txt": "e8dd7cfeee96d2dfd55166f5758227d36c096dd3",
    "RUL_FD002.txt": "f0c8ec24dbdc9d981ddec636a7a96d74344a0d2c",
    "RUL_FD003.txt": "221785454fae67554713aa3ee66bb26ba56ef4e1",
    "RUL_FD004.txt": "263ab77cfc0ae3a63b20715bd1488b437f9b0f43",
}
NASA = HttpFile("NASA", "https://data.nasa.gov/docs/legacy/CMAPSSData.zip")
# The same archive within another one.
NASA_MIRROR = HttpFile(
    "NASA (mirror)",
    "https://phm-datasets.s3.amazonaws.com/NASA/6.+Turbofan+Engine+Degradation+Simulation+Data+Set.zip",
)
KAGGLE_SLUG = "behnamfouladi/nasa-turbofan-engine-degradation-simulation-data-set"

# Part of the name of cached samples: raise it whenever the same seed gives other engines.
SAMPLE_VERSION = 1


@dataclass(frozen=True)
class Fleet:
    """The recordings of E engines, one after the other: R rows in all, one for each flight (cycle).

    `units` (E,) int64 are the numbers of the engines, `offsets` (E + 1,) int64 the row at which each begins and, last,
    R. `settings` (R, 3) float64 are altitude in thousand feet, Mach number and throttle angle, `sensors` (R, 21)
    float64 the measurements. `remaining` (R,) int64 are the cycles that an engine runs after this one, 0 at the last
    before failure; None where the failure is not known.
    """

    units: NDArray[np.int64]
    offsets: NDArray[np.int64]
    settings: NDArray[np.float64]
    sensors: NDArray[np.float64]
    remaining: NDArray[np.int64] | None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Recorded cycles of each engine, (E,)."""
        return np.diff(self.offsets)

    @property
    def engine_of_row(self) -> NDArray[np.int64]:
        """Index of the engine that each row belongs to, (R,)."""
        return np.repeat(np.arange(len(self.units)), self.lengths)

    def take(self, engines: NDArray[np.int64]) -> "Fleet":
        """Return the engines with these indices, (n,), in this order."""
        rows = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in engines])
        offsets = np.concatenate([[0], np.cumsum(self.lengths[engines])])
        remaining = None if self.remaining is None else self.remaining[rows]
        return Fleet(self.units[engines], offsets, self.settings[rows], self.sensors[rows], remaining)


@dataclass(frozen=True)
class EngineDataset:
    """Engines that run to failure, and engines that do not, whole in memory.

    `kind` says whether they are the real data set or a generated sample, `source` where they come from, for people.
    """

    name: Subset
    kind: Literal["real", "sample"]
    source: str
    train: Fleet
    test: Fleet


def load_cmapss(subset: Subset, folder: Path | None = None, *, offline: bool = False) -> EngineDataset:
    """Return one subset.

    Args:
        subset: FD001 (one flight condition, one fault), FD002 (six, one), FD003 (one, two) or FD004 (six, two).
        folder: Holds train_, test_ and RUL_FD00x.txt, itself or in a folder `CMAPSSData`; by default the cache, filled
            from NASA or Kaggle.
        offline: Do not use the network (also TRAINYARD_OFFLINE=1).

    Raises:
        DataError: the data cannot be had, or a file is not of the expected form.
    """
    _check_subset(subset)
    if folder is not None:
        return _load_local(subset, Path(folder))
    cached = cache_dir() / "cmapss"
    if not _is_complete(cached):
        with locked(cached):
            if not _is_complete(cached):
                shutil.rmtree(cached, ignore_errors=True)
                _obtain(cached, offline)
    return _read(subset, cached)


def read_engines(path: Path, remaining_path: Path | None = None) -> Fleet:
    """Read a file in the form of `test_FD001.txt`, and the cycles its engines have left if `remaining_path` is given.

    An engine's rows stand together, and its cycles are numbered 1, 2, 3, ... In a file whose name ends in `.csv` the
    same columns are separated by commas; its first line may name them.

    Raises:
        DataError: names the file, the line and the column that are wrong.
    """
    units, offsets, table = _read_table(path)
    settings, sensors = table[:, 2 : 2 + NUM_SETTINGS], table[:, 2 + NUM_SETTINGS :]
    remaining = None
    if remaining_path is not None:
        left = _read_remaining(remaining_path)
        if len(left) != len(units):
            raise DataError(
                f"{remaining_path} holds {len(left)} numbers of remaining cycles, but {path} has {len(units)} engines. "
                "Expected one for each."
            )
        remaining = np.repeat(left, np.diff(offsets)) + _cycles_to_come(offsets)
    return Fleet(units, offsets, settings, sensors, remaining)


def make_sample(folder: Path, subset: Subset, *, seed: int, num_train: int, num_test: int) -> Path:
    """Write generated engines into the new folder `folder`, in NASA's form.

    An engine starts with some wear; a fault then grows exponentially until it reaches 1, at failure. Most sensors
    follow it, with noise; some are constant. FD002 and FD004 have six flight conditions, each with its own levels;
    FD003 and FD004 have two kinds of faults, which move the sensors differently. Nothing of NASA's simulation is in it.
    """
    _check_subset(subset)
    if folder.exists():
        raise DataError(f"{folder} exists already. Remove it or choose another folder.")
    if num_train < 1 or num_test < 1:
        raise DataError(f"A sample needs at least 1 engine to train and 1 to test, not {num_train} and {num_test}.")
    rng = np.random.default_rng(seed)
    plant = _Plant(subset, rng)
    with building(folder) as draft:
        _write_table(draft / f"train_{subset}.txt", [plant.life(rng) for _ in range(num_train)])
        lives = [plant.life(rng) for _ in range(num_test)]
        # The last recorded flight lies anywhere in the last two thirds of the life, as in the real test sets.
        stops = [int(rng.integers(len(life) // 3, len(life))) for life in lives]
        _write_table(draft / f"test_{subset}.txt", [life[:stop] for life, stop in zip(lives, stops, strict=True)])
        left = [len(life) - stop for life, stop in zip(lives, stops, strict=True)]
        (draft / f"RUL_{subset}.txt").write_text("".join(f"{count} \n" for count in left))
        write_origin(
            draft,
            f"{GENERATED}, seed {seed}: {num_train} training and {num_test} test engines as in C-MAPSS {subset}",
            "Not NASA's data: results on them say nothing about it.",
        )
    return folder


def load_sample(subset: Subset = "FD001", *, seed: int = 0, num_train: int = 40, num_test: int = 20) -> EngineDataset:
    """Return generated engines, written in the cache by whichever process comes first."""
    _check_subset(subset)
    name = f"cmapss-{subset}-v{SAMPLE_VERSION}-seed{seed}-{num_train}-{num_test}"
    folder = cache_dir() / "samples" / name / "engines"
    if not folder.exists():
        with locked(folder):
            if not folder.exists():
                make_sample(folder, subset, seed=seed, num_train=num_train, num_test=num_test)
    try:
        return _read(subset, folder)
    except DataError as error:
        raise DataError(f"The cached sample is damaged. Remove the folder {folder.parent}. ({error})") from error


def _check_subset(subset: str) -> None:
    if subset not in get_args(Subset):
        raise DataError(f"There is no subset {subset!r} of C-MAPSS: choose {', '.join(get_args(Subset))}.")


def _files(subset: str) -> tuple[str, str, str]:
    return f"train_{subset}.txt", f"test_{subset}.txt", f"RUL_{subset}.txt"


def _load_local(subset: Subset, folder: Path) -> EngineDataset:
    for candidate in (folder, folder / "CMAPSSData"):
        if (candidate / _files(subset)[0]).is_file():
            return _read(subset, candidate)
    raise DataError(
        f"No C-MAPSS {subset} in {folder}, which {listing(folder)}. Expected there: {', '.join(_files(subset))}. "
        f"What to do: {_advice()}."
    )


def _advice() -> str:
    return f"download {NASA.url} by hand, unpack it and pass its folder as --data-dir"


def _read(subset: Subset, folder: Path) -> EngineDataset:
    train_file, test_file, remaining_file = (folder / name for name in _files(subset))
    units, offsets, table = _read_table(train_file)
    settings, sensors = table[:, 2 : 2 + NUM_SETTINGS], table[:, 2 + NUM_SETTINGS :]
    train = Fleet(units, offsets, settings, sensors, _cycles_to_come(offsets))
    test = read_engines(test_file, remaining_file)
    origin = read_origin(folder)
    is_sample = origin is not None and origin.startswith(GENERATED)
    source = origin or f"NASA C-MAPSS {subset}"
    if not is_sample and not all(_is_original(folder / name) for name in _files(subset)):
        source += f", {NOT_ORIGINAL}"
    return EngineDataset(subset, "sample" if is_sample else "real", f"{source} ({folder})", train, test)


def _read_table(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the numbers of the engines (E,), where each begins (E + 1,), and the whole table (R, 26)."""
    # Lines without a number, such as a last empty one, are passed over; `lines` are the numbers of the others.
    is_csv = path.suffix.lower() == ".csv"
    numbered = enumerate(read_text(path).splitlines(), start=1)
    rows = [(number, line.split("," if is_csv else None)) for number, line in numbered if line.strip()]
    if is_csv and len(rows[0][1]) == NUM_COLUMNS and np.isnan([_number(word) for word in rows[0][1]]).all():
        del rows[0]  # the names of the columns
    if not rows:
        raise DataError(f"{path} holds no row of measurements.")
    for number, words in rows:
        if len(words) != NUM_COLUMNS:
            raise DataError(
                f"{path}, line {number}: {len(words)} columns, expected {NUM_COLUMNS}: unit, cycle, {NUM_SETTINGS} "
                f"settings and {NUM_SENSORS} sensors, separated by "
                + ("commas." if is_csv else "spaces, without a header.")
            )
    lines = np.array([number for number, _ in rows])
    table = _to_numbers(path, lines, [words for _, words in rows])
    for column in (0, 1):
        if (wrong := table[:, column] != np.floor(table[:, column])).any() or (wrong := table[:, column] < 1).any():
            row = int(wrong.argmax())
            raise DataError(
                f"{path}, line {lines[row]}: the {COLUMN_NAMES[column]} is {table[row, column]:g}: must be a whole "
                "number from 1 on."
            )
    units, cycles = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    starts = np.flatnonzero(np.diff(units, prepend=units[0] - 1))
    expected = np.arange(len(units)) - np.repeat(starts, np.diff([*starts, len(units)])) + 1
    if (wrong := cycles != expected).any():
        row = int(wrong.argmax())
        raise DataError(
            f"{path}, line {lines[row]}: cycle {cycles[row]} of unit {units[row]}, expected cycle {expected[row]}: the "
            "cycles of a unit are numbered 1, 2, 3, ... without a gap."
        )
    found, counts = np.unique(units[starts], return_counts=True)
    if (counts > 1).any():
        unit = found[counts.argmax()]
        again = starts[units[starts] == unit][1]
        raise DataError(f"{path}, line {lines[again]}: unit {unit} begins a second time; its rows must stand together.")
    return units[starts], np.array([*starts, len(units)], dtype=np.int64), table


def _to_numbers(path: Path, lines: NDArray[np.int64], rows: list[list[str]]) -> NDArray[np.float64]:
    try:
        # Python would take 1_0 for 10.
        table = np.array(rows, dtype=np.float64) if not any("_" in word for words in rows for word in words) else None
    except ValueError:
        table = None
    if table is None:
        table = np.array([[_number(word) for word in words] for words in rows])
    if not (finite := np.isfinite(table)).all():
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        same = int((~finite[:, column]).sum())
        raise DataError(
            f"{path}, line {lines[row]}: {COLUMN_NAMES[column]} (column {column + 1}) is {rows[row][column][:20]!r}, "
            f"in {same:,} of {len(rows):,} rows: must be a number. Missing measurements are not filled in."
        )
    return table


def _number(word: str) -> float:
    try:
        return float(word) if "_" not in word else float("nan")
    except ValueError:
        return float("nan")


def _read_remaining(path: Path) -> NDArray[np.int64]:
    """Return the cycles that each engine has left, (E,)."""
    words = [(number, line.split()) for number, line in enumerate(read_text(path).splitlines(), start=1)]
    for number, line in words:
        # Nothing runs for a million cycles, and longer numbers would not fit into what holds them.
        if line and (len(line) != 1 or not (line[0].isdecimal() and line[0].isascii() and len(line[0]) <= 6)):
            raise DataError(f"{path}, line {number}: {' '.join(line)[:40]!r}, expected one whole number of cycles.")
    return np.array([int(line[0]) for _, line in words if line], dtype=np.int64)


def _cycles_to_come(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the recorded cycles of the same engine after each row, (R,)."""
    return np.repeat(offsets[1:], np.diff(offsets)) - np.arange(offsets[-1]) - 1


def _is_original(path: Path) -> bool:
    """Whether this is NASA's file, with whatever line ends."""
    content = path.read_bytes().replace(b"\r\n", b"\n")
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return digest.hexdigest() == GIT_BLOBS[path.name]


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() and _is_original(folder / name) for name in GIT_BLOBS)


def _obtain(folder: Path, offline: bool) -> None:
    if is_offline(offline):
        raise DataError(
            f"C-MAPSS is not in {folder}, and offline mode (TRAINYARD_OFFLINE) forbids a download. What to do: "
            f"{_advice()}."
        )
    attempts: list[tuple[str, Callable[[], None]]] = [
        (f"{source.name} ({source.url})", partial(_from_nasa, source, folder)) for source in (NASA, NASA_MIRROR)
    ]
    attempts.append((f"Kaggle ({KAGGLE_SLUG})", partial(_from_kaggle, folder)))
    try_in_order("C-MAPSS", attempts, _advice())
    record_checksums(folder)
    shutil.rmtree(_downloads(folder), ignore_errors=True)


def _downloads(folder: Path) -> Path:
    return folder.with_name("cmapss-downloads")


def _from_nasa(source: HttpFile, folder: Path) -> None:
    downloads = _downloads(folder)
    archive = download(source, downloads / f"{source.name}.zip")
    unpacked = downloads / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        extract(archive, unpacked, max_bytes=1 << 28, max_members=100)
        for inner in sorted(unpacked.rglob("CMAPSSData.zip")):
            extract(inner, unpacked / "inner", max_bytes=1 << 28, max_members=100)
    except DataError as error:
        archive.unlink(missing_ok=True)
        raise SourceError(str(error)) from error
    with building(folder) as draft:
        for name in GIT_BLOBS:
            found = next(unpacked.rglob(name), None)
            if found is None:
                raise SourceError(f"the archive holds no {name}")
            _accept(found, draft / name)


def _from_kaggle(folder: Path) -> None:
    with building(folder) as draft:
        for name in GIT_BLOBS:
            _accept(download(KaggleFile("Kaggle", KAGGLE_SLUG, name), _downloads(folder) / name), draft / name)


def _accept(found: Path, place: Path) -> None:
    """Move a file to its place if it is the original one."""
    if not _is_original(found):
        found.unlink()
        raise SourceError(f"what arrived as {found.name} is not the original file")
    found.rename(place)


class _Plant:
    """Where generated engines come from: what all of them have in common."""

    # Nominal altitude in thousand feet, Mach number and throttle angle of the flight conditions, as published.
    CONDITIONS = np.array(
        [[0, 0, 100], [10, 0.25, 100], [20, 0.7, 100], [25, 0.62, 60], [35, 0.84, 100], [42, 0.84, 100]]
    )
    SETTING_NOISE = np.array([0.003, 0.0003, 0.0])
    CONSTANT = (0, 4, 9, 15, 17, 18)  # sensors that show nothing in FD001 either

    def __init__(self, subset: Subset, rng: np.random.Generator) -> None:
        self.conditions = self.CONDITIONS if subset in ("FD002", "FD004") else self.CONDITIONS[:1]
        num_faults = 2 if subset in ("FD003", "FD004") else 1
        follows = np.ones(NUM_SENSORS)
        follows[list(self.CONSTANT)] = 0
        self.levels = rng.uniform(100, 1000, (len(self.conditions), NUM_SENSORS))
        self.noise = follows * rng.uniform(0.5, 1.5, NUM_SENSORS)
        # A fault moves a sensor by a few standard deviations of its noise, up or down.
        self.response = (
            self.noise * rng.choice([-1, 1], (num_faults, NUM_SENSORS)) * rng.uniform(2, 5, (num_faults, NUM_SENSORS))
        )

    def life(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the settings and sensors of an engine from its first flight to its failure, (T, 24)."""
        num_cycles = int(np.clip(rng.lognormal(np.log(190), 0.22), 120, 360))
        to_come = np.arange(num_cycles)[::-1]
        fault = rng.uniform(0, 0.1) + np.exp(-to_come / rng.uniform(25, 40))
        condition = rng.integers(len(self.conditions), size=num_cycles)
        settings = self.conditions[condition] + self.SETTING_NOISE * rng.standard_normal((num_cycles, NUM_SETTINGS))
        response = self.response[rng.integers(len(self.response))]
        noise = self.noise * rng.standard_normal((num_cycles, NUM_SENSORS))
        return np.hstack([settings, self.levels[condition] + fault[:, None] * response + noise])


def _write_table(path: Path, lives: list[NDArray[np.float64]]) -> None:
    with path.open("w") as file:
        for unit, life in enumerate(lives, start=1):
            for cycle, row in enumerate(life, start=1):
                settings = " ".join(f"{value:.4f}" for value in row[:NUM_SETTINGS])
                sensors = " ".join(f"{value:.2f}" for value in row[NUM_SETTINGS:])
                file.write(f"{unit} {cycle} {settings} {sensors}  \n")


def _download(config: DownloadConfig) -> str:
    return "; ".join(load_cmapss(subset, offline=config.offline).source for subset in get_args(Subset))


def _check(folder: Path) -> str:
    sources = [_read(subset, folder).source for subset in get_args(Subset)]
    if wrong := [source for source in sources if NOT_ORIGINAL in source]:
        raise DataError("; ".join(wrong))
    return "; ".join(sources)


ENTRIES = (
    Entry(
        name="cmapss",
        title="C-MAPSS turbofan engines",
        task="remaining life of engines, anomaly detection",
        size="four subsets of 100 to 260 engines that run to failure and as many that do not, 21 sensors",
        licence=LICENCE,
        terms="name the citation in what you publish",
        citation=CITATION,
        places=(
            Place("NASA", (File(NASA),)),
            Place("NASA (mirror)", (File(NASA_MIRROR),)),
            Place(
                "Kaggle",
                tuple(File(KaggleFile("Kaggle", KAGGLE_SLUG, n), f"git blob {b}") for n, b in GIT_BLOBS.items()),
            ),
        ),
        verified="the names that git gives the files, in archives after unpacking",
        folder="cmapss",
        contents=(".",),
        download=_download,
        check=_check,
    ),
)
