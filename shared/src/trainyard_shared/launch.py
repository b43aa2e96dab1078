"""One command to N processes: start them, watch them, start again what was killed, and say whose fault it was.

    train --nproc 2          this module starts two processes and watches over them
    torchrun ... -m X.train  torchrun starts the processes; this module only finds out who they are

Both give a process the environment that `torch.distributed.init_process_group` reads (RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT), so a package's `train.py` cannot tell them apart. The watcher is small on purpose: it does
not import torch (which takes seconds), and where torchrun's restarts of gloo groups on CPU are erratic, it starts
fresh processes each time.
"""

import contextlib
import dataclasses
import errno
import faulthandler
import functools
import importlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard_shared.errors import TrainyardError, UsageError
from trainyard_shared.errors import message as message_of
from trainyard_shared.results import RunFolder, read_json, reserve_run_dir

if TYPE_CHECKING:
    import torch

# How long the other processes may take to end by themselves once one has failed, and to save when told to stop.
FAILURE_GRACE_S = 5.0
STOP_GRACE_S = 120.0
# Exit status of a process that was asked to stop and has saved its state.
STOPPED = 128 + signal.SIGTERM


def is_worker() -> bool:
    """Whether this process is one of a group, started by `launch` or by torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Number of this process among all, 0 if it is alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes on all machines together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


# ---------------------------------------------------------------------------------------------- the watching process


@dataclasses.dataclass(frozen=True)
class _Failure:
    """How a group of processes failed."""

    message: str
    exit_status: int
    worth_a_restart: bool


def launch(
    module: str,
    argv: Sequence[str],
    *,
    nproc: int | str,
    num_threads: int | str,
    max_restarts: int,
    run_dir: Path,
) -> int:
    """Run `python -m module *argv` in N processes until all have ended well; return the exit status.

    Processes that died by a signal, or lost a peer that did, are all started again, at most `max_restarts` times; they
    find their checkpoints in `run_dir`. A Python error is shown at once, whole, from the process that raised it first,
    and is not tried again. SIGTERM and Ctrl-C are passed on as a request to save and stop; a second one kills.

    Args:
        module: module to run; it must end in `run_worker`.
        argv: its arguments.
        nproc: number of processes, or "auto": one for each GPU, without a GPU 2.
        num_threads: CPU threads of each process, or "auto": the cores shared out.
        max_restarts: how often to start again.
        run_dir: the run folder; removed again if nothing was written into it.
    """
    processes = _default_nproc() if nproc == "auto" else int(nproc)
    threads = max(1, _cores() // processes) if num_threads == "auto" else int(num_threads)
    with Signals("stopping: saving a checkpoint first (once more to stop at once)") as signals:
        restarts = 0
        while failure := _run_once(module, argv, processes, threads, run_dir, restarts, signals):
            if signals.received:
                if not failure.worth_a_restart and failure.exit_status != STOPPED:
                    _say(failure.message)  # saving failed, say
                if _close(run_dir, "interrupted"):
                    _say(f"stopped; to go on: train --resume {run_dir}")
                return 128 + signals.received
            if not failure.worth_a_restart or restarts == max_restarts:
                break
            restarts += 1
            _say(f"{failure.message}; starting all {processes} processes again ({restarts} of {max_restarts})")
        else:
            return 0
    message = failure.message
    if failure.worth_a_restart and max_restarts:
        message += f"; gave up after {max_restarts} restarts"
    _say(message)
    _close(run_dir, "failed")
    return failure.exit_status


def _run_once(
    module: str,
    argv: Sequence[str],
    processes: int,
    threads: int,
    run_dir: Path,
    restart: int,
    signals: "Signals",
) -> _Failure | None:
    with tempfile.TemporaryDirectory(prefix="trainyard-") as errors, contextlib.ExitStack() as stack:
        # The workers hold the reading end. Should this process vanish, they read end-of-file and end as well.
        reading, writing = os.pipe()
        stack.callback(os.close, writing)
        environment = os.environ | {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": str(threads),
            "TRAINYARD_RUN_DIR": str(run_dir.resolve()),
            "TRAINYARD_RESTARTS": str(restart),
            "TRAINYARD_ERRORS": errors,
            "TRAINYARD_LIFELINE": str(reading),
            "TRAINYARD_COMMAND": shlex.join([*_script_and_verb(argv), *argv]),
            "TRAINYARD_STARTED": repr(_start_of_command()),
        }
        workers = []
        for number in range(processes):
            command = [sys.executable, "-m", module, *argv]
            own = {"RANK": str(number), "LOCAL_RANK": str(number)}
            # A session of their own: Ctrl-C in the terminal reaches this process alone, which then tells them in order.
            worker = subprocess.Popen(
                command, env=environment | own, pass_fds=[reading], start_new_session=True, stdin=subprocess.DEVNULL
            )
            workers.append(worker)
            stack.callback(_kill, worker)
        os.close(reading)
        _watch(workers, signals)
        return _failure(workers, Path(errors))


def _watch(workers: list[subprocess.Popen], signals: "Signals") -> None:
    """Wait until all workers have ended; once one has failed the others get a short while, then are killed."""
    deadline, told = float("inf"), False
    while any(worker.poll() is None for worker in workers):
        if signals.received and not told:
            told, deadline = True, time.monotonic() + STOP_GRACE_S
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    worker.send_signal(signal.SIGTERM)
        well = (None, 0, STOPPED) if told else (None, 0)
        if any(worker.poll() not in well for worker in workers):
            deadline = min(deadline, time.monotonic() + FAILURE_GRACE_S)
        if time.monotonic() > deadline or signals.count > 1:
            for worker in workers:
                _kill(worker)
        time.sleep(0.02)


def _failure(workers: list[subprocess.Popen], errors: Path) -> _Failure | None:
    statuses = [worker.returncode for worker in workers]
    if not any(statuses):
        return None
    reports = sorted((json.loads(path.read_text()) for path in errors.glob("*.json")), key=lambda r: r["time"])
    own_faults = [report for report in reports if report["kind"] != "lost peer"]
    if own_faults:
        return _Failure(own_faults[0]["message"], own_faults[0]["exit_status"], worth_a_restart=False)
    if STOPPED in statuses:
        return _Failure("a process was asked to stop", STOPPED, worth_a_restart=False)
    # Those killed by this process (because another had failed) have no say, unless nothing else explains the end.
    silent = [(n, status) for n, status in enumerate(statuses) if not (errors / f"{n}.json").exists()]
    for number, status in silent:
        if status >= 0 or getattr(workers[number], "killed", False):
            continue
        name = signal.Signals(-status).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return _Failure(f"process {number} of {len(workers)} was killed by {name}{hint}", 1, worth_a_restart=True)
    for number, status in silent:
        if status > 0:
            message = f"process {number} of {len(workers)} ended with status {status}"
            return _Failure(message, status, worth_a_restart=False)
    return _Failure(reports[0]["message"] if reports else "a process was lost", 1, worth_a_restart=True)


class Signals:
    """SIGINT, SIGTERM and SIGHUP as something to look at, while the block lasts.

    Args:
        announcement: what to tell the person at the keyboard at the first signal; nothing if empty.

    Attributes:
        received: number of the first signal, 0 before one came.
        count: how many came.
    """

    def __init__(self, announcement: str = "") -> None:
        self.announcement = announcement
        self.received = 0
        self.count = 0

    def __enter__(self) -> "Signals":
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.received = self.received or number
        self.count += 1
        if self.count == 1 and self.announcement:
            _say(self.announcement)


def _kill(worker: subprocess.Popen) -> None:
    if worker.poll() is None:
        worker.killed = True  # type: ignore[attr-defined]
    # The whole session, also of a worker that has died by itself: its loader processes may live on without it. (macOS
    # does not permit a signal to a group in which only zombies are left.)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _close(run_dir: Path, state: str) -> bool:
    """Note in the run's summary how it ended, and return True; a folder without a run in it is removed if empty."""
    summary = run_dir / "summary.json"
    if not summary.is_file():
        with contextlib.suppress(OSError):
            run_dir.rmdir()
        return False
    if read_json(summary).get("state") != "running":
        return False
    RunFolder(run_dir).write_summary({"state": state})
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_nproc() -> int:
    return _num_gpus() or min(2, _cores())


def _num_gpus() -> int:
    """Count NVIDIA GPUs without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1", "NoDevFiles")])
    found = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if not found and shutil.which("nvidia-smi"):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
        found = sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0
    return found


def _script_and_verb(argv: Sequence[str]) -> list[str]:
    """Return the script as it was entered, with its verb if it has one: `torchdist-cifar collectives`."""
    verb = [word for word in sys.argv[1:2] if not word.startswith("-") and word not in argv[:1]]
    return [Path(sys.argv[0]).name, *verb]


def _start_of_command() -> float:
    return float(os.environ.get("TRAINYARD_STARTED", _IMPORTED_AT))


_IMPORTED_AT = time.time()


# -------------------------------------------------------------------------------------------------- in each process


class StopRequest:
    """Whether SIGTERM or Ctrl-C asked this process to stop. The training loop looks at it between steps."""

    requested = False


class Interrupted(Exception):  # noqa: N818 - like KeyboardInterrupt, it reports no error
    """Raised by a training loop that saved its state because it was asked to stop."""


def run_worker(work: Callable[[], object]) -> int:
    """Run one process's share of a command and end the process with a status that `launch` understands.

    It never returns by way of Python's own shutdown, which can wait forever for a peer that is gone.
    """
    faulthandler.enable()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _request_stop)
    _follow_lifeline()
    status = 0
    try:
        work()
    except Interrupted:
        status = STOPPED
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE  # nobody reads the output any more: `train | head`
    except BaseException as error:
        status = _report(error)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def stop_request() -> type[StopRequest]:
    """The flag that SIGTERM and Ctrl-C set in this process."""
    return StopRequest


def run_dir(out_dir: Path, package: str, config_name: str, resume: Path | None) -> Path:
    """Return the run folder that all processes share; call it after `init_process_group`.

    Under `launch` the folder is known. Under torchrun rank 0 makes one and tells the others; after a restart by
    torchrun it finds the one it made before.
    """
    if "TRAINYARD_RUN_DIR" in os.environ:
        return Path(os.environ["TRAINYARD_RUN_DIR"])
    if resume is not None:
        return resume
    import torch.distributed as dist

    shared: list[Any] = [None]
    if rank() == 0:
        shared[0] = _torchrun_run_dir(out_dir, package, config_name)
    dist.broadcast_object_list(shared, src=0)
    return Path(shared[0])


def leave_together() -> None:
    """Wait until all processes are done; the last thing a worker does.

    It takes the place of `destroy_process_group`. In torch 2.13 that leaves the Gloo group to be freed together with
    the DDP module, while Python's global lock is held; a thread of the group that waits for this lock then waits
    forever (seen once in some ten runs). `run_worker` ends the process without freeing anything.
    """
    import torch.distributed as dist

    dist.barrier()


def choose_device(device: str) -> "torch.device":
    """Return this process's device for the config value `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: `cuda` was asked for and there are fewer GPUs on this machine than processes.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and gpus < local_world_size():
        raise UsageError(
            f"error: --device cuda: {local_world_size()} processes on this machine, but {gpus} GPUs; use --nproc {gpus}"
            if gpus
            else "error: --device cuda: torch finds no GPU here; use --device cpu"
        )
    if device == "cpu" or gpus < local_world_size():
        return torch.device("cpu")
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(chosen)
    return chosen


def num_restarts() -> int:
    """How often the processes of this command have been started again."""
    return int(os.environ.get("TRAINYARD_RESTARTS", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))


def seconds_since_command() -> float:
    """Wall time since the command was entered, in seconds."""
    return time.time() - _start_of_command()


def call(target: str, *arguments: object) -> object:
    """Import `module:function` and call it: keeps heavy imports off the way to `--help` and error messages."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


def _request_stop(_number: int, _frame: object) -> None:
    StopRequest.requested = True


def _follow_lifeline() -> None:
    if "TRAINYARD_LIFELINE" not in os.environ:
        return

    def wait_for_the_end(descriptor: int) -> None:
        os.read(descriptor, 1)  # returns only when the watching process is gone
        os._exit(1)

    descriptor = int(os.environ.pop("TRAINYARD_LIFELINE"))
    threading.Thread(target=wait_for_the_end, args=(descriptor,), daemon=True).start()


def _report(error: BaseException) -> int:
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        return error.code or 0
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        error = TrainyardError(f"error: {error.filename or 'the results'}: cannot be written: {error.strerror}")
    status = 1
    if isinstance(error, TrainyardError):
        kind, message, status = "user", message_of(error), error.exit_status
    else:
        kind = "lost peer" if _is_lost_peer(error) else "error"
        text = "".join(traceback.format_exception(error)).rstrip()
        what = "lost another process" if kind == "lost peer" else "failed"
        message = f"process {rank()} of {world_size()} {what}:\n{text}"
    if "TRAINYARD_ERRORS" in os.environ:
        report = {"rank": rank(), "time": time.time(), "kind": kind, "message": message, "exit_status": status}
        path = Path(os.environ["TRAINYARD_ERRORS"]) / f"{rank()}.json"
        partial = path.with_suffix(".partial")
        with contextlib.suppress(OSError):  # the watching process is gone, and its folder with it
            partial.write_text(json.dumps(report))
            partial.replace(path)
    elif kind != "user" or rank() == 0:
        hint = "\nstarted again with --resume RUN, it goes on from its newest checkpoint" if kind == "lost peer" else ""
        _say(message + hint)
    return status


def _is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process is gone (gloo and NCCL have no exception type for it)."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"DistNetworkError", "DistStoreError"}:
        return True
    if not names & {"RuntimeError", "DistError", "ConnectionError"}:
        return False
    signs = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "read error")
    text = str(error).lower()
    return (
        "DistBackendError" in names or any(sign in text for sign in signs) or ("gloo" in text and "timed out" in text)
    )


def _torchrun_run_dir(out_dir: Path, package: str, config_name: str) -> str:
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run_id == "none":
        run_id = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if num_restarts():
        for marker in sorted((out_dir / package).glob("*/torchrun-id"), reverse=True):
            if marker.read_text() == run_id:
                return str(marker.parent)
    folder = reserve_run_dir(out_dir, package, config_name)
    (folder / "torchrun-id").write_text(run_id)
    return str(folder)


@functools.cache
def backend_for(device_type: str) -> str:
    """The communication library for a type of device: NCCL between GPUs, Gloo between CPUs."""
    return "nccl" if device_type == "cuda" else "gloo"
