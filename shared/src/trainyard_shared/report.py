"""The report of a run, or of a comparison: one HTML file that needs nothing else, neither network nor scripts."""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainyard_shared.errors import DataError
from trainyard_shared.metrics import clearly_best, format_value, mean_and_spread, metric_label
from trainyard_shared.results import read_json, read_records, write_atomically

# The order in which to show what is there; other pictures follow in alphabetical order.
FIRST_PLOTS = ("curves", "confusion_matrix", "per_class_accuracy", "misclassified")
LABELS = {
    "num_train": "training samples",
    "num_val": "validation samples",
    "num_test": "test samples",
    "world_size": "processes",
    "val_accuracy": "validation accuracy",
    "peak_of": "counted for the peak",
}
UNITS_BY_ENDING = {"accuracy": "fraction", "_bytes": "bytes", "_s": "s"}
MAX_OPEN_ROWS = 20  # longer tables are folded up


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, from its config.yaml, metrics.jsonl, summary.json and plots/*.png.

    Whatever is not there, as in a run that is still going, is left out. Besides what every project has, a summary may
    hold `conclusions`, which are sentences, and `tables`: `{"title", "columns", "rows"}` of text, and perhaps a `note`.

    Raises:
        DataError: the folder holds neither a configuration nor a summary, or a file of it cannot be read.
    """
    if not any((run_dir / name).is_file() for name in ("config.yaml", "summary.json")):
        raise DataError(f"error: {run_dir}: not a run folder: it holds neither config.yaml nor summary.json")
    summary_path = run_dir / "summary.json"
    summary = read_json(summary_path) if summary_path.is_file() else {}
    _check_form(summary, summary_path)
    memory = summary.get("memory", {})
    return _write(
        run_dir / "report.html",
        "report.html.j2",
        summary=summary,
        title=" · ".join(str(summary[key]) for key in ("package", "config") if key in summary) or run_dir.name,
        state=summary.get("state", "no summary yet"),
        metrics=[_headline(name, metric) for name, metric in summary.get("metrics", {}).items()],
        plots=_plots(run_dir),
        tables=summary.get("tables", []),
        validation=_validation_table(read_records(run_dir)),
        per_class=summary.get("per_class", []),
        run_facts=_run_facts(summary),
        data_facts=_facts(summary.get("data", {})),
        version_facts=_facts(summary.get("versions", {})),
        memory_facts=_facts({name: value for name, value in memory.items() if not isinstance(value, Mapping | list)}),
        memory_parts=_memory_parts(memory),
        memory_ranks=_memory_of_ranks(memory.get("measured_bytes_per_rank", [])),
        config=_configuration(run_dir / "config.yaml"),
        config_changed=summary.get("config_changed", []),
    )


def write_comparison_report(dir: Path, comparison: Mapping[str, Any]) -> Path:
    """Write `report.html` into the folder of a comparison, with the pictures in its plots/*.png.

    Args:
        dir: The folder.
        comparison: `title`; `rows`, each `{"variant": name, "values": {metric: [one value for each seed]}}` with an
            optional `description`; `metrics`, `{name: {"unit", "higher_is_better", "protocol"}}` in the order of the
            columns, where a metric without `higher_is_better` has no best variant. Optional: `package`, `protocol`
            (what was held equal), `data` and `next_command` as in summary.json, `commands`, `conclusions`, `notes`.
    """
    columns, verdicts = [], []
    for name, metric in comparison["metrics"].items():
        values_of = {
            row["variant"]: [float(value) for value in row["values"][name]]
            for row in comparison["rows"]
            if row["values"].get(name)
        }
        best = None
        if "higher_is_better" in metric and len(values_of) > 1:
            best = clearly_best(values_of, metric["higher_is_better"])
            verdicts.append((metric_label(name), _verdict(best, values_of)))
        unit = metric.get("unit", "")
        cells = {variant: _cell(values, unit) for variant, values in values_of.items()}
        columns.append({"label": metric_label(name), "cells": cells, "best": best, **metric})
    return _write(
        dir / "report.html",
        "comparison.html.j2",
        summary=comparison,
        title=comparison["title"],
        state="comparison",
        rows=comparison["rows"],
        columns=columns,
        verdicts=verdicts,
        plots=_plots(dir),
    )


def _write(path: Path, template: str, **values: Any) -> Path:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainyard_shared"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": _shown, "label": metric_label}
    data = values["summary"].get("data", {})
    page = environment.get_template(template).render(
        is_sample=data.get("kind") == "sample", max_open_rows=MAX_OPEN_ROWS, **values
    )
    write_atomically(path, page)
    return path


def _check_form(summary: Mapping[str, Any], path: Path) -> None:
    objects = ("data", "metrics", "throughput", "phases_s", "memory", "versions")
    for names, form, words in (
        (objects, Mapping, "an object"),
        (("conclusions", "per_class", "notes", "config_changed", "tables"), list, "a list"),
    ):
        for name in names:
            if name in summary and not isinstance(summary[name], form):
                found = type(summary[name]).__name__
                raise DataError(f"error: {path}: '{name}' must be {words}, found {found}: {str(summary[name])[:60]}")
    for name in ("metrics", "per_class", "tables"):
        entries = summary.get(name, [])
        for entry in entries.values() if isinstance(entries, Mapping) else entries:
            if not isinstance(entry, Mapping):
                raise DataError(f"error: {path}: '{name}' must hold objects, found {str(entry)[:60]}")


def _headline(name: str, metric: Mapping[str, Any]) -> dict[str, str]:
    unit = metric.get("unit", "")
    interval = " to ".join(_shown(bound, unit) for bound in metric.get("interval") or [])
    return {
        "label": metric_label(name),
        "value": _shown(metric.get("value"), unit),
        "interval": f"95 % interval: {interval}" if interval else "",
        "protocol": metric.get("protocol", ""),
    }


def _plots(folder: Path) -> list[dict[str, str]]:
    def place(path: Path) -> tuple[int, str]:
        return (FIRST_PLOTS.index(path.stem) if path.stem in FIRST_PLOTS else len(FIRST_PLOTS), path.name)

    return [
        {"alt": metric_label(path.stem), "base64": base64.b64encode(path.read_bytes()).decode("ascii")}
        # A hidden file is a picture that is being written.
        for path in sorted((folder / "plots").glob("[!.]*.png"), key=place)
    ]


def _run_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    # In an order to read them in; then whatever else a package has put down that is one figure or word.
    first = (
        "world_size",
        "device",
        "precision",
        "seed",
        "global_batch_size",
        "started_at",
        "finished_at",
        "wall_time_s",
    )
    elsewhere = ("package", "config", "state", "git_commit", "command", "next_command")
    facts = {name: summary[name] for name in first if name in summary}
    facts |= summary.get("throughput", {})
    facts |= {
        name: value
        for name, value in summary.items()
        if name not in elsewhere and not isinstance(value, Mapping | list)
    }
    phases = summary.get("phases_s", {})
    return _facts(facts) + [(f"time to {metric_label(name)}", _shown(value, "s")) for name, value in phases.items()]


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(LABELS.get(name, metric_label(name)), _shown(value, _unit(name))) for name, value in values.items()]


def _unit(name: str) -> str:
    return next((unit for ending, unit in UNITS_BY_ENDING.items() if name.endswith(ending)), "")


def _memory_parts(memory: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return part, predicted bytes, measured bytes and the measured as a share of the predicted."""
    predicted, measured = memory.get("predicted_bytes", {}), memory.get("measured_bytes", {})
    parts = []
    for name in dict.fromkeys([*predicted, *measured]):
        expected, found = predicted.get(name), measured.get(name)
        both = isinstance(expected, int | float) and isinstance(found, int | float) and expected > 0
        share = f"{100 * found / expected:.1f} %" if both else "–"
        parts.append((metric_label(name), _shown(expected, "bytes"), _shown(found, "bytes"), share))
    return parts


def _memory_of_ranks(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # What every rank has measured; rank 0 has its peak elsewhere.
    names = [name for name in (ranks[0] if ranks else []) if all(name in rank for rank in ranks)]
    return {
        "names": [metric_label(name) for name in names],
        "rows": [[str(index), *(_shown(rank[name], "bytes") for name in names)] for index, rank in enumerate(ranks)],
    }


def _validation_table(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [record for record in records if record.get("kind") == "val"]
    names = list(dict.fromkeys(name for row in rows for name in row if name != "kind"))
    return {
        "names": [metric_label(name) for name in names],
        "rows": [[_shown(row.get(name), _unit(name)) for name in names] for row in rows],
    }


def _configuration(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        return []
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"error: {path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"error: {path}: must hold one mapping of fields, found {type(content).__name__}")
    return [(str(name), _as_yaml(value)) for name, value in content.items()]


def _as_yaml(value: Any) -> str:
    # Not rounded and not prettified: somebody may want to copy it. A list is what YAML writes in one line.
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf).strip()[1:-1]


def _cell(values: Sequence[float], unit: str) -> dict[str, str]:
    spread = mean_and_spread(values)
    num_broken = sum(not math.isfinite(value) for value in values)
    if num_broken:
        return {"figure": f"not finite in {num_broken} of {spread.n}", "details": ""}
    if spread.std is None:
        return {"figure": format_value(spread.mean, unit), "details": "n = 1"}
    return {
        "figure": f"{format_value(spread.mean, unit)} ± {format_value(spread.std, unit)}",
        "details": f"{format_value(spread.min, unit)} to {format_value(spread.max, unit)}, n = {spread.n}",
    }


def _verdict(best: str | None, values_of: Mapping[str, Sequence[float]]) -> str:
    num_seeds = min(map(len, values_of.values()))
    if best is not None:
        return f"{best} is best: its worst seed is better than the best seed of every other variant."
    if num_seeds == 1:
        return "no clear difference at 1 seed: the spread is not known."
    return f"no clear difference at {num_seeds} seeds."


def _shown(value: Any, unit: str = "") -> str:
    """Write any value of a JSON file; NaN and infinity are text there."""
    if value in ("nan", "inf", "-inf"):
        value = float(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, int | float):
        return format_value(value, unit)
    if isinstance(value, list):
        return ", ".join(_shown(item, unit) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{metric_label(str(name))} {_shown(item, unit)}" for name, item in value.items())
    return str(value)
