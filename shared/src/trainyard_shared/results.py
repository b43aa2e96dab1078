"""The run folder: everything a run leaves behind, written so that a crash never leaves half a file.

    results/<package>/<YYYYMMDD-HHMMSS>-<config>/
        config.yaml      the resolved configuration; feed it back with --config
        metrics.jsonl    one record a line, as training goes
        summary.json     what came out, and on what: metrics with protocol, versions, memory, time
        checkpoints/     see `checkpoints.py`
        plots/*.png
        report.html      all of the above at a glance

Only rank 0 writes.
"""

import contextlib
import datetime
import functools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from trainyard_shared.errors import DataError, UsageError


def reserve_run_dir(out_dir: Path, package: str, config_name: str) -> Path:
    """Make a new, empty run folder; two runs in the same second get different ones.

    Raises:
        UsageError: the folder cannot be made.
    """
    parent = out_dir / package
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{config_name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
            # mkdir either makes the folder or fails: no other process can be given the same one.
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise UsageError(f"error: --out-dir {out_dir}: cannot make a run folder there: {error.strerror}") from error
    raise UsageError(f"error: --out-dir {out_dir}: a thousand run folders of this second already exist")


def newest_run_dir(out_dir: Path, package: str) -> Path:
    """Return the run folder of `package` that was started last; raises UsageError if there is none."""
    runs = [path.parent for path in (out_dir / package).glob("*/summary.json")]
    if not runs:
        raise UsageError(f"error: no run of {package} in {out_dir}: train first, or name a run folder with --run")
    return max(runs, key=lambda run: str(read_json(run / "summary.json").get("started_at", "")))


class RunFolder:
    """Writes the files of one run.

    Args:
        path: an existing folder, new or left by an interrupted run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plots = path / "plots"
        self.checkpoints = path / "checkpoints"

    def log(self, kind: str, **values: float) -> None:
        """Append one record to metrics.jsonl; a NaN or infinity is stored as text, since JSON has neither."""
        record = {"kind": kind} | {name: _json_number(value) for name, value in values.items()}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Return what was logged so far, oldest first; a last line cut off by a crash is left out."""
        return read_records(self.path)

    def forget_after(self, step: int) -> None:
        """Drop the records of steps after `step`: a run that resumes there will make them again."""
        kept = [record for record in self.records() if record.get("step", 0) <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json; keys given here replace those of an earlier summary of this run, others stay."""
        path = self.path / "summary.json"
        merged = (read_json(path) if path.is_file() else {}) | dict(summary)
        write_atomically(path, json.dumps(_json_ready(merged), indent=2, ensure_ascii=False) + "\n")


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics.jsonl; a last line cut off by a crash is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise DataError(f"error: {path}, line {number}: not a JSON record: {line[:60]!r}") from error
    return records


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises DataError naming the file if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"error: {path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"error: {path}: must hold one JSON object, found {type(content).__name__}")
    return content


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` so that a reader, or a crash, sees the old file or the new one, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success it becomes `path`, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def _umask() -> int:
    # mkstemp makes files that only their owner can read; give them the usual rights instead.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def provenance(distributions: tuple[str, ...]) -> dict[str, Any]:
    """Say what ran: command, git commit, and the versions of Python and of the distributions named."""
    return {
        "command": os.environ.get("TRAINYARD_COMMAND") or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: metadata.version(name) for name in distributions},
        },
    }


def git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, with `+changes` if files differ; None outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # A package installed into a .venv inside some other checkout is not part of that checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """The current time, to the second, with the offset from UTC."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _json_number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _json_ready(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return _json_number(value)
