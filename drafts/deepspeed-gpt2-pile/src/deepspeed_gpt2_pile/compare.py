"""The same training with DeepSpeed and with a plain loop, or with ways to fine-tune: time, memory, bits per byte.

All variants of a comparison see the same batches. What DeepSpeed saves is in the bytes that each process holds; peak
memory counts libraries as well. On two processes of one CPU, sharding can only cost time: it pays where models are
larger than a GPU.
"""

from typing import Any

from trainyard_shared import comparing, plotting
from trainyard_shared.comparing import Variant
from trainyard_shared.config import find_config, preset_folder
from trainyard_shared.console import say
from trainyard_shared.metrics import clearly_best, format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from deepspeed_gpt2_pile.config import CompareConfig

PACKAGE = "deepspeed-gpt2-pile"
ENGINES = (
    Variant("plain PyTorch", {"engine": "ddp"}),
    *(Variant(name, {"deepspeed": name}) for name in ("zero0", "zero1", "zero2", "zero3", "zero3_offload")),
    Variant("zero2, checkpointing", {"deepspeed": "zero2", "activation_checkpointing": True}),
)
TUNINGS = (
    Variant("full", {"tuning": "full", "learning_rate": 1e-3}),
    Variant("last layers", {"tuning": "last", "learning_rate": 1e-3}),
    Variant("LoRA", {"tuning": "lora", "learning_rate": 3e-3}),  # its few weights take, and need, a higher rate
)
METRICS: dict[str, dict[str, Any]] = {
    "test_bits_per_byte": {"unit": "bits/byte", "higher_is_better": False, "protocol": "as in evaluate"},
    "tokens_per_second": {
        "unit": "tokens/s",
        "higher_is_better": True,
        "protocol": "training steps only, all processes together",
    },
    "parameter_bytes": {"unit": "bytes", "protocol": "held by rank 0 between backward and step"},
    "gradient_bytes": {"unit": "bytes", "protocol": "likewise"},
    "optimizer_bytes": {"unit": "bytes", "protocol": "likewise"},
    "state_bytes": {"unit": "bytes", "higher_is_better": False, "protocol": "the three together"},
    "predicted_state_bytes": {"unit": "bytes", "protocol": "by the formulas of ZeRO"},
    "activation_bytes": {"unit": "bytes", "protocol": "kept by a forward pass of the full model, loss included"},
    "peak_bytes": {"unit": "bytes", "protocol": "peak of the process of rank 0; on a CPU with its libraries"},
}
STATE = ("parameters", "gradients", "optimizer")


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        TrainyardError: a run failed.
    """
    _, name = find_config(config.config, preset_folder("deepspeed_gpt2_pile"))
    variants = list(ENGINES if config.what == "engine" else TUNINGS)
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{config.what}-{name}")
    shared: dict[str, Any] = {"nproc": config.nproc, "num_threads": config.num_threads}
    for field in ("data_dir", "epochs", "steps_per_epoch", "model"):
        if getattr(config, field) is not None:
            shared[field] = getattr(config, field)
    outcomes = comparing.run_variants(
        "deepspeed_gpt2_pile.train", config.config, shared, variants, config.seeds, folder
    )
    rows = comparing.rows(
        outcomes,
        {
            "test_bits_per_byte": lambda s: s["metrics"]["test_bits_per_byte"]["value"],
            "tokens_per_second": lambda s: s["throughput"]["tokens_per_second"],
            "parameter_bytes": lambda s: s["memory"]["measured_bytes"]["parameters"],
            "gradient_bytes": lambda s: s["memory"]["measured_bytes"]["gradients"],
            "optimizer_bytes": lambda s: s["memory"]["measured_bytes"]["optimizer"],
            "state_bytes": lambda s: sum(s["memory"]["measured_bytes"][part] for part in STATE),
            "predicted_state_bytes": lambda s: sum(s["memory"]["predicted_bytes"][part] for part in STATE),
            "activation_bytes": lambda s: s["memory"]["measured_bytes"].get("activations", float("nan")),
            "peak_bytes": lambda s: s["memory"]["peak_bytes"],
        },
    )
    metrics = METRICS
    if config.what == "tuning":  # measured where all of the model is trained
        metrics = {key: metric for key, metric in METRICS.items() if key != "activation_bytes"}
        for row in rows:
            row["values"].pop("activation_bytes")
    first = outcomes[0].summary
    note = "generated sample data" if first["data"]["kind"] == "sample" else ""
    for metric, title in (
        ("test_bits_per_byte", "Bits per byte of the test documents"),
        ("tokens_per_second", "Throughput"),
        ("state_bytes", "Parameters, gradients and optimizer state of a process"),
    ):
        unit = metrics[metric]["unit"]
        plotting.comparison_bars(rows, metric, folder / "plots" / f"{metric}.png", unit=unit, title=title, note=note)
    comparison = {
        "title": "DeepSpeed and a plain loop" if config.what == "engine" else "Ways to fine-tune",
        "package": PACKAGE,
        "metrics": metrics,
        "rows": rows,
        "data": first["data"],
        "protocol": f"Equal for all: batches of {first['global_batch_size']} sequences, {config.nproc} process(es) of "
        f"{config.num_threads} thread(s), config '{config.config}', seeds 0 to {config.seeds - 1}, variants in turn, "
        f"each run in fresh processes on {first['device']}. Validation and the start of the processes are not "
        "in the throughput.",
        "conclusions": conclusions(rows, config.what),
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": first["notes"],
    } | {"versions": provenance(("torch", "deepspeed", "transformers", "peft"))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        shown = ("test_bits_per_byte", "tokens_per_second", "state_bytes")
        figures = (f"{metric} {_text(row['values'][metric], metrics[metric]['unit'])}" for metric in shown)
        say(f"{row['variant']:<22} " + "   ".join(figures))
    for sentence in comparison["conclusions"]:
        say(sentence)
    say(f"report: {report}")


def conclusions(rows: list[dict[str, Any]], what: str) -> list[str]:
    """Say in words what the variants cost and save, beside the first."""
    base = rows[0]

    def mean(row: dict[str, Any], metric: str) -> float:
        return mean_and_spread(row["values"][metric]).mean

    sentences = [
        f"{row['variant']}: {mean(row, 'tokens_per_second') / mean(base, 'tokens_per_second'):.2f} times the "
        f"throughput of {base['variant']}, {mean(row, 'state_bytes') / mean(base, 'state_bytes'):.0%} of the bytes of "
        "its state."
        for row in rows[1:]
    ]
    values_of = {row["variant"]: row["values"]["test_bits_per_byte"] for row in rows}
    seeds = len(next(iter(values_of.values())))
    if seeds == 1:
        return [*sentences, "One seed says nothing of whether the bits per byte differ."]
    best = clearly_best(values_of, higher_is_better=False)
    if best is not None:
        sentences.append(f"{best} has the fewest bits per byte: at {seeds} seeds its worst is better than all others.")
    elif what == "engine":
        sentences.append(f"No difference in bits per byte can be seen at {seeds} seeds: all compute the same training.")
    else:
        sentences.append(f"No way has the fewest bits per byte beyond doubt at {seeds} seeds: ranges overlap.")
    return sentences


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
