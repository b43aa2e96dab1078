"""The same training in one large batch, accumulated, with AdaScale, or sharded in five ways; and a grid of batches."""

import math
from typing import Any

import numpy as np
from trainyard_shared import comparing, plotting
from trainyard_shared.config import find_config, load_preset, preset_folder
from trainyard_shared.console import say
from trainyard_shared.errors import UsageError
from trainyard_shared.metrics import format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from fairscale_gpt2_accumulation.config import CompareConfig, TrainConfig

PACKAGE = "fairscale-gpt2-accumulation"
METRICS: dict[str, dict[str, Any]] = {
    "activation_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "kept by the forward pass of a micro-batch for its backward pass, measured",
    },
    "gradient_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "on rank 0 after a step; while they are accumulated, every process holds those of all parameters",
    },
    "optimizer_bytes": {"unit": "bytes", "higher_is_better": False, "protocol": "two moments, on rank 0"},
    "tokens_per_second": {
        "unit": "tokens/s",
        "higher_is_better": True,
        "protocol": "training steps only, all processes together",
    },
    "train_s": {"unit": "s", "higher_is_better": False, "protocol": "training and validation, until the test begins"},
    "steps": {"unit": "", "protocol": "optimizer steps"},
    "test_perplexity": {
        "unit": "",
        "higher_is_better": False,
        "protocol": "per BPE token, whole test text as one stream, windows that do not overlap",
    },
}
ONE_BATCH, ACCUMULATED, ADASCALE, SMALL = "one large batch", "accumulated", "accumulated, AdaScale", "small batches"
SHARDINGS = ("ddp", "oss", "fairscale_fsdp", "zero_redundancy", "fsdp2")


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        TrainyardError: a run failed.
    """
    path, name = find_config(config.config, preset_folder("fairscale_gpt2_accumulation"))
    base = load_preset(TrainConfig, path)
    variants = make_variants(config, base)
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{config.what}-{name}")
    shared: dict[str, Any] = {"num_threads": config.num_threads, "nproc": config.nproc, "num_prompts": 0}
    for field in ("data_dir", "tokenizer", "epochs"):
        if getattr(config, field) is not None:
            shared[field] = getattr(config, field)
    seeds = 1 if config.what == "grid" else config.seeds
    outcomes = comparing.run_variants(
        "fairscale_gpt2_accumulation.train", config.config, shared, variants, seeds, folder
    )
    rows = comparing.rows(
        outcomes,
        {
            "activation_bytes": lambda s: s["memory"]["measured_bytes"]["activations"],
            "gradient_bytes": lambda s: s["memory"]["measured_bytes"]["gradients"],
            "optimizer_bytes": lambda s: s["memory"]["measured_bytes"]["optimizer"],
            "tokens_per_second": lambda s: s["throughput"]["tokens_per_second"],
            "train_s": lambda s: s["phases_s"]["train"],
            "steps": lambda s: s["steps"],
            "test_perplexity": lambda s: s["metrics"]["test_perplexity"]["value"],
        },
    )
    first = outcomes[0].summary
    note = "generated sample data" if first["data"]["kind"] == "sample" else ""
    plots = folder / "plots"
    drawn = (
        ("activation_bytes", "Activations"),
        ("tokens_per_second", "Throughput"),
        ("test_perplexity", "Perplexity"),
    )
    for metric, title in drawn:
        unit = METRICS[metric]["unit"]
        if config.what == "grid":
            plotting.heat_map(
                grid(rows, metric, config),
                [str(size) for size in config.micro_batch_sizes],
                [str(steps) for steps in config.accumulation_steps],
                plots / f"{metric}.png",
                row_label="micro-batch size",
                column_label="accumulation steps",
                unit=unit,
                title=title,
                subtitle=METRICS[metric]["protocol"],
                note=note,
            )
        else:
            plotting.comparison_bars(rows, metric, plots / f"{metric}.png", unit=unit, title=title, note=note)
    equal = (
        "micro-batches and accumulation as named"
        if config.what == "grid"
        else f"global batch of {max(o.summary['global_batch_size'] for o in outcomes)} blocks, but for {SMALL}"
        if config.what == "accumulation"
        else f"global batch of {first['global_batch_size']} blocks"
    )
    comparison = {
        "title": {
            "accumulation": "Accumulation and AdaScale against one large batch",
            "sharding": "Five ways to share out an accumulated step",
            "grid": "Micro-batch size and accumulation steps",
        }[config.what],
        "package": PACKAGE,
        "metrics": METRICS,
        "rows": rows,
        "data": first["data"],
        "protocol": f"{equal[0].upper()}{equal[1:]}; {first['world_size']} processes with "
        f"{first['threads_per_process']} thread(s) each, config '{config.config}', seeds 0 to {seeds - 1}, variants in "
        f"turn, each run in fresh processes on {first['device']}.",
        "conclusions": conclusions(rows, config.what),
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": [],
    } | {"versions": provenance(("torch", "fairscale", "transformers"))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{metric} {_text(values, METRICS[metric]['unit'])}" for metric, values in row["values"].items())
        say(f"{row['variant']:<22} " + "   ".join(figures))
    for sentence in comparison["conclusions"]:
        say(sentence)
    say(f"report: {report}")


def make_variants(config: CompareConfig, base: TrainConfig) -> list[comparing.Variant]:
    """Return what is to be compared; raises UsageError if that asks for no accumulation."""
    if config.what == "sharding":
        return [comparing.Variant(way, {"sharding": way, "adascale": False}) for way in SHARDINGS]
    if config.what == "grid":
        return [
            comparing.Variant(cell(size, steps), {"micro_batch_size": size, "gradient_accumulation_steps": steps})
            for size in config.micro_batch_sizes
            for steps in config.accumulation_steps
        ]
    size, steps = base.micro_batch_size, max(config.accumulation_steps)
    if steps == 1:
        raise UsageError("error: --accumulation-steps: 1 is no accumulation: 2 or more are wanted")
    # All with plain DDP, over which AdaScale works; `sharding` compares the other ways.
    batches = {ONE_BATCH: (size * steps, 1), ACCUMULATED: (size, steps), ADASCALE: (size, steps), SMALL: (size, 1)}
    return [
        comparing.Variant(
            name,
            {
                "micro_batch_size": micro,
                "gradient_accumulation_steps": accumulated,
                "sharding": "ddp",
                "adascale": name == ADASCALE,
            },
        )
        for name, (micro, accumulated) in batches.items()
    ]


def cell(size: int, steps: int) -> str:
    """Name a cell of the grid."""
    return f"{size} x {steps}"


def grid(rows: list[dict[str, Any]], metric: str, config: CompareConfig) -> Any:
    """Return one metric as (micro-batch sizes, accumulation steps)."""
    values = {row["variant"]: row["values"][metric][0] for row in rows}
    return np.array(
        [[values[cell(size, steps)] for steps in config.accumulation_steps] for size in config.micro_batch_sizes]
    )


def conclusions(rows: list[dict[str, Any]], what: str) -> list[str]:
    """Say in words what the figures show of memory, speed and perplexity."""

    def mean(row: dict[str, Any], metric: str) -> float:
        return mean_and_spread(row["values"][metric]).mean

    base = rows[0]
    if what == "grid":
        best = min(rows, key=lambda row: mean(row, "test_perplexity"))
        fastest = max(rows, key=lambda row: mean(row, "tokens_per_second"))
        return [
            "Activations grow with the micro-batch and not with the accumulation steps.",
            f"Lowest perplexity: {best['variant']} (micro-batch x accumulation); one seed, and cells with larger "
            "batches make fewer steps at the same learning rate.",
            f"Most tokens/s: {fastest['variant']}.",
        ]
    sentences = []
    for row in rows[1:]:
        parts = [f"{mean(row, 'tokens_per_second') / mean(base, 'tokens_per_second'):.2f} times the tokens/s"]
        if what == "accumulation":
            parts.append(f"{mean(row, 'activation_bytes') / mean(base, 'activation_bytes'):.1%} of the activations")
        else:
            held = (sum(mean(r, f"{part}_bytes") for part in ("gradient", "optimizer")) for r in (row, base))
            own, whole = held
            parts.append(f"{own / whole:.0%} of the bytes for gradients and optimizer state on rank 0")
        parts.append(f"{mean(row, 'test_perplexity') / mean(base, 'test_perplexity') - 1:+.1%} perplexity")
        sentences.append(f"{row['variant']} against {base['variant']}: {', '.join(parts)}.")
    same = [
        row["variant"]
        for row in rows[1:]
        if all(
            math.isclose(own, other, rel_tol=0.01)
            for own, other in zip(row["values"]["test_perplexity"], base["values"]["test_perplexity"], strict=True)
        )
    ]
    if same:
        sentences.append(f"Within 1 % of the perplexity of {base['variant']} at each seed: {', '.join(same)}.")
    if what == "accumulation":
        sentences.append(
            f"{SMALL.capitalize()} make more steps with the same learning rate, which is what AdaScale's larger one is "
            "meant to be worth."
        )
    return sentences


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
