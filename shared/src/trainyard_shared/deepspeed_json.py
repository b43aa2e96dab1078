"""DeepSpeed's JSON configs: read from a preset or a file, completed from a project's config, checked before it runs.

DeepSpeed has its own config file, and most of what it can do is switched on there. The projects keep these files as
they would be written by hand, with the word `"auto"` wherever the project's own config (a flag, a YAML preset) decides.
What a file and the config say differently is an error that names both: neither wins silently.

The algebra of batches, a frequent complaint of DeepSpeed's users, is checked here and explained with its numbers:

    train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x processes
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from trainyard_shared.errors import UsageError

AUTO = "auto"
# DeepSpeed's names for the three factors and their product.
MICRO, ACCUMULATION, GLOBAL = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"

Settings = dict[str, Any]


def find(chosen: str, folder: Traversable) -> Path | Traversable:
    """Return the JSON file that `chosen` means, a name in `folder` (without `.json`) or a path; UsageError if none."""
    names = sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
    if chosen in names:
        return folder / f"{chosen}.json"
    if (path := Path(chosen)).is_file():
        return path
    close = difflib.get_close_matches(chosen, names, n=1)
    hint = f"; perhaps you meant {close[0]}" if close else ""
    raise UsageError(
        f"error: --deepspeed {chosen}: no preset and no file of this name; presets: {', '.join(names)}{hint}"
    )


def read(file: Path | Traversable) -> Settings:
    """Return the object in a JSON file; raises UsageError naming file and line if it holds none."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise UsageError(f"error: {file.name}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"error: {file.name}: cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"error: {file.name}: must hold a JSON object, found {type(settings).__name__}")
    return settings


def complete(
    settings: Mapping[str, Any],
    source: str,
    *,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    world_size: int,
    values: Mapping[str, Any],
) -> Settings:
    """Return settings in which every "auto" has become a value.

    Args:
        settings: what `read` gave; not changed.
        source: name of the file, for messages.
        micro_batch_size: samples per process and forward pass.
        gradient_accumulation_steps: forward passes before an optimizer step.
        world_size: processes that share out the data (without those of tensor or pipeline parallelism).
        values: what "auto" stands for at other places, by dotted name: {"optimizer.params.lr": 3e-4}.

    Raises:
        UsageError: the batch sizes do not multiply, an "auto" has no value, or the file says something else than the
            config; one line for each.
    """
    factors = (micro_batch_size, gradient_accumulation_steps, world_size)
    product = micro_batch_size * gradient_accumulation_steps * world_size
    batches = {MICRO: micro_batch_size, ACCUMULATION: gradient_accumulation_steps, GLOBAL: product}
    completed: Settings = json.loads(json.dumps(settings)) | {
        name: settings.get(name, AUTO) for name in (MICRO, ACCUMULATION, GLOBAL)
    }
    algebra = (
        "micro_batch_size x gradient_accumulation_steps x processes = "
        f"{' x '.join(map(str, factors))} = {product} = {GLOBAL}"
    )
    findings = []
    for name, parent, key in list(_leaves(completed)):
        found = parent[key]
        wanted = {**values, **batches}.get(name)
        if found == AUTO and wanted is not None:
            parent[key] = wanted
        elif found == AUTO:
            findings.append(f'{source}: {name} is "auto", but nothing in the config decides it: write a value')
        elif name in batches and found != wanted:
            findings.append(f'{source}: {name} is {found}, which does not fit {algebra}; write "auto"')
        elif wanted is not None and found != wanted:
            findings.append(f'{source}: {name} is {found}, but the config says {wanted}; write "auto" or change one')
    if findings:
        raise UsageError("\n".join(f"error: {finding}" for finding in findings))
    return completed


def _leaves(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Settings, str]]:
    """Yield dotted name, dictionary and key of everything that is not itself a dictionary."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", settings, key


def _without_repetition(pairs: list[tuple[str, Any]]) -> Settings:
    """Refuse a key given twice, of which JSON would silently take the last."""
    settings = dict(pairs)
    if len(settings) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"'{twice}' is given twice")
    return settings
