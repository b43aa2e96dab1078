"""How long M5 of the full size takes to be read and scored, and how much memory.

    uv run --package trainyard-shared --extra m5 python tools/bench_m5_data.py
    ... --folder DIR        use the files in DIR instead of generated ones

Each step runs in a process of its own, whose highest resident memory is given, libraries included:

    generate  the three files of 30,490 series and 1,941 days, as csv
    read      all three into arrays, checked
    score     WRMSSE: scales from the history without the last 28 days, weights from its last 28, and the score of
              forecasts of the last 28 days; the history is a random one, so that this step needs no files
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from trainyard_shared.datasets import m5, shops
from trainyard_shared.wrmsse import Hierarchy, Scorer, revenue


def generate(folder: Path, num_items: int, num_days: int) -> str:
    m5.make_sample(folder, seed=0, num_items=num_items, num_days=num_days)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.csv"))}
    return ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())


def read(folder: Path) -> str:
    data = m5.load_m5(folder)
    units, rows = data.sales.units, np.isfinite(data.prices).sum()
    print("\n".join([f"  {data.source}", *(f"  {note}" for note in data.notes)]))
    return (
        f"{units.shape[0]:,} x {units.shape[1]:,} sales, mean {units.mean():.2f}, {(units == 0).mean():.1%} are 0; "
        f"{rows:,} prices"
    )


def score(num_items: int, num_days: int) -> str:
    labels = [
        (f"{dept}_{number:03d}", dept, dept[:-2], store, store[:-2])
        for store in shops.STORES
        for dept, numbers in shops.item_numbers(num_items).items()
        for number in numbers
    ]
    rng = np.random.default_rng(0)
    units = rng.poisson(1.0, (len(labels), num_days)).astype(np.int16)
    prices = rng.uniform(1, 10, (len(labels), m5.HORIZON))
    history, actual = units[:, : -m5.HORIZON], units[:, -m5.HORIZON :]
    start = time.perf_counter()
    item, dept, cat, store, state = zip(*labels, strict=True)
    hierarchy = Hierarchy.of(item=item, dept=dept, cat=cat, store=store, state=state)
    built = time.perf_counter()
    scorer = Scorer.of_history(hierarchy, history, revenue(history[:, -m5.HORIZON :], prices))
    scaled = time.perf_counter()
    found = scorer.score(actual, np.ones(actual.shape)).wrmsse
    scored = time.perf_counter()
    return (
        f"{hierarchy.num_series:,} series; hierarchy {built - start:.2f} s, weights and scales {scaled - built:.2f} s, "
        f"score {scored - scaled:.3f} s (WRMSSE {found:.4f})"
    )


def measured(step: Callable[..., str], *arguments: object) -> None:
    """Run a step in a fresh process and print what it took."""
    process = multiprocessing.get_context("spawn").Process(target=_timed, args=(step, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{step.__name__} ended with exit status {process.exitcode}")


def _timed(step: Callable[..., str], *arguments: object) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    said = step(*arguments)
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{step.__name__:<8} {wall:6.1f} s wall {used:6.1f} s CPU {highest:7,.0f} MiB   {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--items", type=int, default=sum(shops.DEPARTMENTS.values()))
    parser.add_argument("--days", type=int, default=m5.NUM_DAYS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "m5"
        if arguments.folder is None:
            measured(generate, folder, arguments.items, arguments.days)
        measured(read, folder)
        measured(score, arguments.items, arguments.days)


if __name__ == "__main__":
    main()
