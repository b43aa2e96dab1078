"""`compare`: the variants it runs, what it writes, and what it concludes."""

from pathlib import Path
from typing import Any

import pytest
from fairscale_gpt2_accumulation.compare import conclusions, grid, make_variants
from fairscale_gpt2_accumulation.config import CompareConfig, TrainConfig
from fairscale_gpt2_accumulation.sharding import WAYS
from trainyard_shared.errors import UsageError
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script


def test_compare_trains_every_cell_of_a_grid_and_reports(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("num_sample_articles: 20\nlog_every: 1\nhidden_size: 32\nnum_layers: 1\n")
    flags = ["--config", "tiny.yaml", "--what", "grid", "--epochs", "1", "--nproc", "1", "--num-threads", "1"]
    flags += ["--micro-batch-sizes", "2", "4", "--accumulation-steps", "1"]
    finished = run([script("compare"), *flags], tmp_path, timeout_s=160)
    assert finished.status == 0, finished.stderr
    (folder,) = (tmp_path / "results" / "fairscale-gpt2-accumulation").iterdir()
    summaries = [read_json(path) for path in folder.glob("runs/*/*/*/summary.json")]
    assert {(s["micro_batch_size"], s["gradient_accumulation_steps"]) for s in summaries} == {(2, 1), (4, 1)}
    page = (folder / "report.html").read_text()
    assert "2 x 1" in page
    assert "4 x 1" in page
    assert (folder / "plots" / "activation_bytes.png").is_file()
    assert "Activations grow with the micro-batch" in finished.stdout


def test_accumulation_is_compared_at_the_same_global_batch() -> None:
    base = TrainConfig(micro_batch_size=3)
    variants = {v.name: v.overrides for v in make_variants(CompareConfig(accumulation_steps=(1, 8)), base)}
    shapes = {
        name: (v["micro_batch_size"], v["gradient_accumulation_steps"], v["adascale"]) for name, v in variants.items()
    }
    assert shapes == {
        "one large batch": (24, 1, False),
        "accumulated": (3, 8, False),
        "accumulated, AdaScale": (3, 8, True),
        "small batches": (3, 1, False),
    }
    with pytest.raises(UsageError, match="1 is no accumulation"):
        make_variants(CompareConfig(accumulation_steps=(1,)), base)


def test_every_way_of_sharding_is_compared() -> None:
    variants = make_variants(CompareConfig(what="sharding"), TrainConfig())
    assert {variant.overrides["sharding"] for variant in variants} == set(WAYS)


def test_the_grid_has_micro_batches_in_rows() -> None:
    config = CompareConfig(what="grid", micro_batch_sizes=(1, 2), accumulation_steps=(1, 4))
    variants = make_variants(config, TrainConfig())
    rows = [{"variant": v.name, "values": {"x": [float(i)]}} for i, v in enumerate(variants)]
    assert grid(rows, "x", config).tolist() == [[0, 1], [2, 3]]
    shapes = [(v.overrides["micro_batch_size"], v.overrides["gradient_accumulation_steps"]) for v in variants]
    assert shapes == [(1, 1), (1, 4), (2, 1), (2, 4)]


def row(name: str, speed: float, activations: float, perplexity: list[float]) -> dict[str, Any]:
    values = {
        "tokens_per_second": [speed] * 2,
        "activation_bytes": [activations] * 2,
        "gradient_bytes": [activations] * 2,
        "optimizer_bytes": [activations] * 2,
        "test_perplexity": perplexity,
    }
    return {"variant": name, "values": values}


def test_conclusions_name_memory_speed_and_perplexity() -> None:
    rows = [
        row("one large batch", 100, 800, [20.0, 22.0]),
        row("accumulated", 90, 100, [20.01, 22.01]),
        row("small batches", 50, 100, [10.0, 11.0]),
    ]
    first, second, same, _ = conclusions(rows, "accumulation")
    assert first.startswith("accumulated against one large batch: 0.90 times the tokens/s, 12.5% of the activations")
    assert "-50.0% perplexity" in second
    assert same == "Within 1 % of the perplexity of one large batch at each seed: accumulated."
    assert "12% of the bytes" in conclusions(rows, "sharding")[0]
