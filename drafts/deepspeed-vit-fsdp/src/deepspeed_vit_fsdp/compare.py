"""The same training shared out in nine ways, or on more and more processes: time, memory, communication, accuracy."""

from typing import Any

from trainyard_shared import comparing, plotting
from trainyard_shared.config import find_config, load_preset, preset_folder
from trainyard_shared.console import say
from trainyard_shared.metrics import format_value, mean_and_spread
from trainyard_shared.report import write_comparison_report
from trainyard_shared.results import provenance, reserve_run_dir

from deepspeed_vit_fsdp.config import CompareConfig, TrainConfig

PACKAGE = "deepspeed-vit-fsdp"
PARTS = ("parameters", "gradients", "optimizer", "activations")
HELD = "of rank 0 between backward pass and step; predicted beside"
METRICS: dict[str, dict[str, Any]] = {
    "images_per_second": {
        "unit": "images/s",
        "higher_is_better": True,
        "protocol": "training steps only, all processes together",
    },
    "test_accuracy": {"unit": "fraction", "higher_is_better": True, "protocol": "whole test set, each image once"},
    **{
        f"{part}_bytes": {"unit": "bytes", "higher_is_better": False, "protocol": f"measured, {HELD}"}
        for part in PARTS[:3]
    },
    "activations_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "measured: kept by the forward pass of a micro-batch for the backward pass; with checkpointing and "
        "what is computed again of one layer",
    },
    "predicted_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "predicted sum of the four parts, by the formulas of `plan`",
    },
    "measured_bytes": {"unit": "bytes", "higher_is_better": False, "protocol": "measured sum of the four parts"},
    "sent_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "counted at the collectives of one step; what each process sends in ring algorithms",
    },
    "predicted_sent_bytes": {
        "unit": "bytes",
        "higher_is_better": False,
        "protocol": "by the formula: twice the parameters, with ZeRO-3 and FSDP2 three times, x (N - 1) / N",
    },
    "peak_bytes": {"unit": "bytes", "higher_is_better": False, "protocol": "peak of the process of rank 0"},
}
SHARDING: dict[str, dict[str, Any]] = {
    "single process": {"engine": "ddp", "nproc": 1},
    "DDP": {"engine": "ddp"},
    "DDP, checkpointing": {"engine": "ddp", "activation_checkpointing": True},
    "ZeRO-1": {"deepspeed": "zero1"},
    "ZeRO-2": {"deepspeed": "zero2"},
    "ZeRO-3": {"deepspeed": "zero3"},
    "ZeRO-3, checkpointing": {"deepspeed": "zero3", "activation_checkpointing": True},
    "ZeRO-3, offload": {"deepspeed": "zero3_offload_all"},
    "FSDP2": {"engine": "fsdp2"},
}


def compare(config: CompareConfig) -> None:
    """Run all variants, then write table, pictures and conclusions.

    Raises:
        TrainyardError: a run failed.
    """
    path, name = find_config(config.config, preset_folder("deepspeed_vit_fsdp"))
    base = load_preset(TrainConfig, path)
    nproc = _processes() if config.nproc == "auto" else int(config.nproc)
    variants = make_variants(config.what, base, nproc)
    folder = config.resume or reserve_run_dir(config.out_dir, PACKAGE, f"compare-{config.what}-{name}")
    shared: dict[str, Any] = {"num_threads": config.num_threads, "count_communication": True}
    if config.data_dir is not None:
        shared["data_dir"] = config.data_dir
    if config.epochs is not None:
        shared["epochs"] = config.epochs
    outcomes = comparing.run_variants("deepspeed_vit_fsdp.train", config.config, shared, variants, config.seeds, folder)
    rows = comparing.rows(outcomes, readers())
    first = outcomes[0].summary
    note = "generated sample data" if first["data"]["kind"] == "sample" else ""
    pictures = [("images_per_second", "Throughput"), ("test_accuracy", "Test accuracy")]
    if config.what == "sharding":
        pictures += [("measured_bytes", "Memory of a process"), ("sent_bytes", "Sent by a process in a step")]
    else:
        for engine in ("ZeRO-3", "DDP"):
            own = [row for row in rows if row["variant"].startswith(engine)]
            plotting.scaling(
                [int(row["variant"].rpartition(" on ")[2]) for row in own],
                [row["values"]["images_per_second"] for row in own],
                folder / "plots" / f"scaling_{engine}.png",
                title=f"Scaling of {engine}",
                subtitle=f"the same global batch of {first['global_batch_size']} images",
                note=note,
            )
    for metric, title in pictures:
        unit = METRICS[metric]["unit"]
        plotting.comparison_bars(rows, metric, folder / "plots" / f"{metric}.png", unit=unit, title=title, note=note)
    comparison = {
        "title": "Ways to share out a step" if config.what == "sharding" else "More and more processes",
        "package": PACKAGE,
        "metrics": METRICS,
        "rows": rows,
        "data": first["data"],
        "protocol": f"Equal for all: global batch of {first['global_batch_size']} images, "
        f"{first['threads_per_process']} thread(s) a process, config '{config.config}', seeds 0 to {config.seeds - 1}, "
        f"variants in turn, each run in fresh processes on {first['device']}, {nproc} processes unless the name says "
        "otherwise.",
        "conclusions": conclusions(rows, config.what),
        "commands": [outcome.summary["command"] for outcome in outcomes],
        "notes": list(dict.fromkeys(note for outcome in outcomes for note in outcome.summary["notes"])),
    } | {"versions": provenance(("torch", "deepspeed"))["versions"]}
    report = write_comparison_report(folder, comparison)
    for row in rows:
        figures = (f"{metric} {_text(values, METRICS[metric]['unit'])}" for metric, values in row["values"].items())
        say(f"{row['variant']:<22} " + "   ".join(figures))
    for sentence in comparison["conclusions"]:
        say(sentence)
    say(f"report: {report}")


def make_variants(what: str, base: TrainConfig, nproc: int) -> list[comparing.Variant]:
    """Return what to compare, all with the global batch of the base config on `nproc` processes."""
    if what == "sharding":
        settings = {name: {"nproc": nproc} | values for name, values in SHARDING.items()}
    else:
        counts = [2**power for power in range(nproc.bit_length()) if 2**power < nproc] + [nproc]
        settings = {
            f"{name} on {count}": values | {"nproc": count}
            for name, values in (("ZeRO-3", {"deepspeed": "zero3"}), ("DDP", {"engine": "ddp"}))
            for count in counts
        }
    for values in settings.values():
        share = nproc / values["nproc"]
        if not share.is_integer() and base.micro_batch_size * nproc % values["nproc"]:
            raise ValueError(f"{base.micro_batch_size} x {nproc} images do not divide by {values['nproc']} processes")
        values["micro_batch_size"] = base.micro_batch_size * nproc // values["nproc"]
    return [comparing.Variant(name, values) for name, values in settings.items()]


def readers() -> dict[str, Any]:
    """Return for each metric how to read it from a summary."""
    return {
        "images_per_second": lambda s: s["throughput"]["images_per_second"],
        "test_accuracy": lambda s: s["metrics"]["test_accuracy"]["value"],
        **{f"{part}_bytes": lambda s, part=part: s["memory"]["measured_bytes"][part] for part in PARTS},
        "predicted_bytes": lambda s: sum(s["memory"]["predicted_bytes"][part] for part in PARTS),
        "measured_bytes": lambda s: sum(s["memory"]["measured_bytes"][part] for part in PARTS),
        "sent_bytes": lambda s: s["communication"]["sent_bytes"],
        "predicted_sent_bytes": lambda s: s["communication"]["predicted_sent_bytes"],
        "peak_bytes": lambda s: s["memory"]["peak_bytes"],
    }


def conclusions(rows: list[dict[str, Any]], what: str) -> list[str]:
    """Say in words what the figures show.

    Args:
        rows: of the table.
        what: sharding or scaling.
    """
    of = {row["variant"]: row["values"] for row in rows}
    sentences = []
    if what == "scaling":
        for engine in ("ZeRO-3", "DDP"):
            own = {int(name.rpartition(" on ")[2]): v for name, v in of.items() if name.startswith(engine)}
            one = mean_and_spread(own[min(own)]["images_per_second"]).mean
            for count, values in list(own.items())[1:]:
                gain = mean_and_spread(values["images_per_second"]).mean / one
                sentences.append(
                    f"{engine}: {gain:.2f} times the throughput on {count} processes, efficiency {gain / count:.0%}."
                )
        return sentences
    base = of["DDP"]
    speed = mean_and_spread(base["images_per_second"]).mean
    state = _state(base)
    for name, values in of.items():
        if name == "DDP":
            continue
        ratio = mean_and_spread(values["images_per_second"]).mean / speed
        text = f"{name}: {ratio:.2f} times the throughput of DDP, {_state(values) / state:.0%} of its training state"
        text += f", {values['activations_bytes'][0] / base['activations_bytes'][0]:.0%} of its activations"
        if base["sent_bytes"][0]:
            text += f", {values['sent_bytes'][0] / base['sent_bytes'][0]:.2f} times what it sends"
        sentences.append(text + ".")
    gaps = [abs(v["measured_bytes"][0] / v["predicted_bytes"][0] - 1) for v in of.values()]
    sentences.append(f"Memory is predicted within {max(gaps):.1%} of what was measured.")
    ranges = [(min(v["test_accuracy"]), max(v["test_accuracy"])) for v in of.values()]
    if len(base["test_accuracy"]) == 1:
        sentences.append("One seed says nothing of whether the accuracies differ.")
    elif max(low for low, _ in ranges) <= min(high for _, high in ranges):
        sentences.append("No difference in accuracy can be seen: the ranges of the seeds overlap.")
    else:
        sentences.append("Some accuracies differ: the ranges of the seeds do not all overlap.")
    return sentences


def _state(values: dict[str, list[float]]) -> float:
    return sum(values[f"{part}_bytes"][0] for part in PARTS[:3])


def _processes() -> int:
    import torch

    return torch.cuda.device_count() or 2


def _text(values: list[float], unit: str) -> str:
    spread = mean_and_spread(values)
    around = "" if spread.std is None else f" ± {format_value(spread.std, unit)}"
    return format_value(spread.mean, unit) + around
