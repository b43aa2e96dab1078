"""One command, several processes: who ends how, who is started again, what is said, and that nothing is left over.

The workers are toys without torch. Each test writes the body of their `work()`; a small script launches them.
"""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from trainyard_shared import launch

WORKER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from trainyard_shared import launch
from trainyard_shared.errors import DataError, UsageError

rank, restarts, here = launch.rank(), launch.num_restarts(), Path.cwd()

def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.01)

def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    time.sleep(60)

def lose_peer():
    raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")

def work():
    (here / f"started-{rank}-{restarts}").touch()
BODY

if __name__ == "__main__":
    launch.run_worker(work)
"""

SCRIPT = """
import sys
from pathlib import Path
from trainyard_shared import launch

launch.FAILURE_GRACE_S, launch.STOP_GRACE_S = {failure_grace_s}, {stop_grace_s}
run_dir = Path("run")
run_dir.mkdir()
{prepare}
sys.exit(launch.launch("toy", {argv}, nproc={nproc}, num_threads=1, max_restarts={max_restarts}, run_dir=run_dir))
"""


class Command:
    """A running script that launches toys in a folder of their own."""

    def __init__(self, folder: Path, body: str, **settings: Any) -> None:
        self.folder = folder
        defaults = {"failure_grace_s": 0.3, "stop_grace_s": 60, "prepare": "", "argv": []}
        script = SCRIPT.format(**defaults | {"nproc": 2, "max_restarts": 2} | settings)
        worker = WORKER.replace("BODY", textwrap.indent(textwrap.dedent(body).strip(), "    "))
        (folder / "toy.py").write_text(worker)
        ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        environment = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith("TRAINYARD_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # As in a terminal: a group of its own in the foreground.
            process_group=0,
        )
        self.begin = time.monotonic()

    def end(self) -> tuple[int, str]:
        """Wait; return exit status and stderr."""
        _, self.err = self.process.communicate("typed by somebody", timeout=30)
        self.seconds = time.monotonic() - self.begin
        assert not self.left_over()
        return self.process.returncode, self.err

    def left_over(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def started(self) -> list[str]:
        return sorted(path.name.removeprefix("started-") for path in self.folder.glob("started-*"))

    def wait_until_started(self, count: int = 2) -> None:
        wait_until(lambda: len(self.started()) == count)
        time.sleep(0.05)  # work() has made its file; now it is in the loop


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    commands = []

    def start(body: str, **settings: Any) -> Command:
        commands.append(Command(tmp_path, body, **settings))
        return commands[-1]

    yield start
    for command in commands:
        for process in [command.process, *command.left_over()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        command.process.communicate()


# ------------------------------------------------------------------------------------------------------- all ends well


def test_every_worker_knows_who_it_is(toys: Callable[..., Command], tmp_path: Path) -> None:
    body = """
        names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"]
        found = {name: os.environ[name] for name in [*names, "MASTER_ADDR", "MASTER_PORT"]} | {
            "argv": sys.argv[1:],
            "worker": launch.is_worker(),
            "run_dir": str(launch.run_dir(Path("elsewhere"), "toy-project", "sample", None)),
            "numbers": [launch.world_size(), launch.local_world_size(), launch.num_restarts()],
            "seconds": launch.seconds_since_command(),
            "stdin": sys.stdin.read(),
        }
        (here / f"worker-{rank}.json").write_text(json.dumps(found))
    """
    command = toys(body, nproc=3, argv=["--epochs", "2"])
    assert command.end() == (0, "")
    assert command.started() == ["0-0", "1-0", "2-0"]
    found = [json.loads((tmp_path / f"worker-{rank}.json").read_text()) for rank in range(3)]
    assert [(worker["RANK"], worker["LOCAL_RANK"]) for worker in found] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert len({worker["MASTER_PORT"] for worker in found}) == 1
    for worker in found:
        assert worker["WORLD_SIZE"] == worker["LOCAL_WORLD_SIZE"] == "3"
        assert (worker["OMP_NUM_THREADS"], worker["MASTER_ADDR"]) == ("1", "127.0.0.1")
        assert (worker["argv"], worker["worker"], worker["numbers"]) == (["--epochs", "2"], True, [3, 3, 0])
        assert worker["run_dir"] == str(tmp_path / "run")
        assert 0 < worker["seconds"] < 30
        assert worker["stdin"] == ""


# ------------------------------------------------------------------------------------------------------- Python errors


@pytest.mark.parametrize("other", ["lose_peer()", "1 / 0", "subprocess.run(['sleep', '60'])"])
def test_error_is_shown_whole_from_the_process_that_raised_it(other: str, toys: Callable[..., Command]) -> None:
    body = f"""
        if rank == 0:
            wait_for("raised")
            time.sleep(0.1)
            {other}
        try:
            raise KeyError("inner")
        except KeyError as error:
            (here / "raised").touch()
            raise ValueError("the true cause") from error
    """
    command = toys(body)
    status, err = command.end()
    assert status == 1
    assert command.started() == ["0-0", "1-0"]
    assert command.seconds < 10
    lines = err.splitlines()
    assert lines[:2] == ["process 1 of 2 failed:", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: the true cause"
    assert "KeyError: 'inner'" in lines
    assert err.count("process ") == err.count("ValueError: ") == 1


def test_error_for_the_user_is_shown_once_with_its_status(toys: Callable[..., Command]) -> None:
    command = toys("raise UsageError('error: --device cuda: torch finds no GPU here')")
    assert command.end() == (2, "error: --device cuda: torch finds no GPU here\n")
    assert command.started() == ["0-0", "1-0"]
    assert not (command.folder / "run").exists()


def test_full_disk_is_an_error_for_the_user(toys: Callable[..., Command]) -> None:
    command = toys(f"raise OSError({errno.ENOSPC}, 'No space left on device', 'metrics.jsonl')")
    assert command.end() == (1, "error: metrics.jsonl: cannot be written: No space left on device\n")


def test_exit_of_a_worker(toys: Callable[..., Command]) -> None:
    command = toys("if rank == 1: sys.exit(3)\nelse: time.sleep(60)")
    assert command.end() == (3, "process 1 of 2 ended with status 3\n")
    assert command.started() == ["0-0", "1-0"]


def test_exit_of_a_worker_with_a_message(toys: Callable[..., Command]) -> None:
    status, err = toys("sys.exit('some library gives up')").end()
    assert status == 1
    assert err.endswith("SystemExit: some library gives up\n")


def test_output_that_nobody_reads_any_more(toys: Callable[..., Command]) -> None:
    command = toys("if rank == 0:\n    for _ in range(10_000): print('a line', flush=True)")
    assert command.process.stdout is not None
    assert command.process.stdout.readline() == "a line\n"
    command.process.stdout.close()
    status = command.process.wait(timeout=20)
    assert (status, command.started()) == (141, ["0-0", "1-0"])


# --------------------------------------------------------------------------------------------------- killed processes


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("other", ["lose_peer()", "time.sleep(60)"])
def test_killed_process_is_started_again_with_the_others(victim: int, other: str, toys: Callable[..., Command]) -> None:
    body = f"""
        if restarts == 0 and rank == {victim}:
            die()
        if restarts == 0:
            {other}
    """
    command = toys(body)
    expected = (
        f"process {victim} of 2 was killed by SIGKILL (out of memory?); starting all 2 processes again (1 of 2)\n"
    )
    assert command.end() == (0, expected)
    assert command.started() == ["0-0", "0-1", "1-0", "1-1"]


def test_restarts_come_to_an_end(toys: Callable[..., Command]) -> None:
    command = toys("if rank == 1: die(signal.SIGSEGV)")
    status, err = command.end()
    assert status == 1
    # Where a process died of a signal of its own making, faulthandler has shown its stack first.
    said = [line for line in err.splitlines() if line.startswith("process ")]
    killed = "process 1 of 2 was killed by SIGSEGV; "
    assert said == [
        killed + "starting all 2 processes again (1 of 2)",
        killed + "starting all 2 processes again (2 of 2)",
        killed + "gave up after 2 restarts",
    ]
    assert "Fatal Python error: Segmentation fault" in err
    assert command.started() == [f"{rank}-{restart}" for rank in range(2) for restart in range(3)]


def test_no_restart_where_none_is_wanted(toys: Callable[..., Command]) -> None:
    command = toys("if rank == 0: die()", max_restarts=0)
    assert command.end() == (1, "process 0 of 2 was killed by SIGKILL (out of memory?)\n")
    assert command.started() == ["0-0", "1-0"]


def test_lost_peer_alone_is_worth_a_restart(toys: Callable[..., Command]) -> None:
    status, err = toys("if restarts == 0: lose_peer()").end()
    assert status == 0
    assert "Connection closed by peer [127.0.0.1]:1234; starting all 2 processes again (1 of 2)\n" in err


def test_children_of_a_worker_that_dies_by_itself_go_with_it(toys: Callable[..., Command]) -> None:
    # The loader processes of a DataLoader, say. `end` looks for what is left over.
    command = toys("subprocess.Popen(['sleep', '60'])\nif rank == 0: die()\nelse: lose_peer()", max_restarts=0)
    assert command.end() == (1, "process 0 of 2 was killed by SIGKILL (out of memory?)\n")


# ------------------------------------------------------------------------------------------------- stopping on request

SAVE_WHEN_ASKED = """
    before = signal.getsignal(signal.SIGTERM)
    def note(*arguments):
        with (here / f"signals-{rank}").open("a") as file:
            file.write("T")
        before(*arguments)
    signal.signal(signal.SIGTERM, note)
    (here / f"ready-{rank}").touch()
    while not launch.stop_request().requested:
        time.sleep(0.01)
    time.sleep(0.3 + 0.6 * rank)  # longer apart than processes may take to end after a failure
    (here / "run" / f"saved-{rank}").touch()
    raise launch.Interrupted
"""
STOPPING = "stopping: saving a checkpoint first (once more to stop at once)\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_workers_are_asked_once_and_may_save(
    number: signal.Signals, status: int, toys: Callable[..., Command], tmp_path: Path
) -> None:
    command = toys(SAVE_WHEN_ASKED)
    wait_until(lambda: (tmp_path / "ready-0").exists() and (tmp_path / "ready-1").exists())
    # Ctrl-C in a terminal reaches the whole foreground group: here, as there, the workers are not in it.
    os.killpg(command.process.pid, number)
    assert command.end() == (status, STOPPING)
    for rank in range(2):
        assert (tmp_path / f"signals-{rank}").read_text() == "T"
        assert (tmp_path / "run" / f"saved-{rank}").exists()
    assert command.started() == ["0-0", "1-0"]


def test_interrupted_run_is_marked_and_its_continuation_named(toys: Callable[..., Command], tmp_path: Path) -> None:
    prepare = '(run_dir / \'summary.json\').write_text(\'{"state": "running", "seed": 1}\')'
    command = toys(SAVE_WHEN_ASKED, prepare=prepare)
    wait_until(lambda: (tmp_path / "ready-0").exists() and (tmp_path / "ready-1").exists())
    command.process.terminate()
    assert command.end() == (143, STOPPING + "stopped; to go on: train --resume run\n")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"state": "interrupted", "seed": 1}


def test_run_that_ends_in_spite_of_the_request_has_ended_well(toys: Callable[..., Command]) -> None:
    command = toys("while not launch.stop_request().requested: time.sleep(0.01)")
    command.wait_until_started()
    command.process.terminate()
    assert command.end() == (0, STOPPING)


def test_error_while_saving_is_shown(toys: Callable[..., Command]) -> None:
    body = """
        while not launch.stop_request().requested:
            time.sleep(0.01)
        if rank == 0:
            raise DataError("error: the checkpoint cannot be written: disk full")
        time.sleep(60)
    """
    command = toys(body)
    command.wait_until_started()
    command.process.terminate()
    assert command.end() == (143, STOPPING + "error: the checkpoint cannot be written: disk full\n")
    assert command.seconds < 15


def test_second_request_kills(toys: Callable[..., Command]) -> None:
    command = toys("time.sleep(60)")
    command.wait_until_started()
    command.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert command.process.poll() is None
    command.process.send_signal(signal.SIGTERM)
    assert command.end() == (130, STOPPING)


def test_worker_that_does_not_stop_is_killed_with_its_own_children(toys: Callable[..., Command]) -> None:
    command = toys("subprocess.Popen(['sleep', '60'])\ntime.sleep(60)", stop_grace_s=0.3)
    command.wait_until_started()
    wait_until(lambda: len(command.left_over()) == 5)
    command.process.terminate()
    assert command.end() == (143, STOPPING)


def test_request_before_the_workers_are_ready(toys: Callable[..., Command]) -> None:
    command = toys("time.sleep(60)", stop_grace_s=5)
    # Not yet in run_worker, they know nothing of the signal and die of it.
    wait_until(lambda: len(command.left_over()) == 3)
    command.process.terminate()
    status, err = command.end()
    assert status == 143
    assert err.startswith(STOPPING)
    assert "starting all" not in err


def test_worker_that_is_asked_directly_ends_the_run(toys: Callable[..., Command]) -> None:
    command = toys("while not launch.stop_request().requested: time.sleep(0.01)\nraise launch.Interrupted")
    command.wait_until_started()
    worker = next(p for p in command.left_over() if p.pid != command.process.pid)
    worker.terminate()
    status, err = command.end()
    assert (status, err) == (143, "a process was asked to stop\n")


def test_workers_end_with_the_process_that_watches_them(toys: Callable[..., Command]) -> None:
    command = toys("time.sleep(60)")
    command.wait_until_started()
    assert len(command.left_over()) == 3
    command.process.kill()
    command.process.wait()
    wait_until(lambda: not command.left_over(), seconds=5)


# ---------------------------------------------------------------------------------------------------------- run folder


@pytest.mark.parametrize("body", ["raise ValueError", "die()"])
def test_empty_run_folder_is_removed_after_a_failure(body: str, toys: Callable[..., Command], tmp_path: Path) -> None:
    assert toys(body, nproc=1, max_restarts=0).end()[0] == 1
    assert not (tmp_path / "run").exists()


def test_failed_run_keeps_its_files_and_is_marked(toys: Callable[..., Command], tmp_path: Path) -> None:
    prepare = "(run_dir / 'summary.json').write_text('{\"state\": \"running\"}')"
    assert toys("raise ValueError", nproc=1, prepare=prepare).end()[0] == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"state": "failed"}


def test_run_folder_without_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINYARD_RUN_DIR", raising=False)
    assert launch.run_dir(tmp_path, "toy-project", "sample", tmp_path / "old") == tmp_path / "old"

    def torchrun(run_id: str, restarts: int) -> str:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        return launch._torchrun_run_dir(tmp_path, "toy-project", "sample")

    first, second = torchrun("a", 0), torchrun("b", 0)
    assert first != second
    assert torchrun("a", 1) == first
    assert torchrun("b", 2) == second
    assert torchrun("a", 0) not in (first, second)


# --------------------------------------------------------------------------------------------------------- small parts


def test_worker_of_torchrun_reports_by_itself(tmp_path: Path) -> None:
    code = "from trainyard_shared import errors, launch\ndef work():\n    raise {}\nlaunch.run_worker(work)"

    def run(rank: int, error: str) -> tuple[int, str]:
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
        command = [sys.executable, "-c", code.format(error)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
        return done.returncode, done.stderr

    assert run(0, "errors.UsageError('error: wrong')") == (2, "error: wrong\n")
    assert run(1, "errors.UsageError('error: wrong')") == (2, "")
    status, err = run(1, "ValueError('mine')")
    assert status == 1
    assert err.startswith("process 1 of 2 failed:\nTraceback")
    assert err.endswith("ValueError: mine\n")
    status, err = run(1, "ConnectionResetError('Connection reset by peer')")
    assert status == 1
    assert err.startswith("process 1 of 2 lost another process:\nTraceback")
    assert err.endswith("\nstarted again with --resume RUN, it goes on from its newest checkpoint\n")


class DistNetworkError(RuntimeError):
    """Named as torch's."""


class DistBackendError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]:5"), True),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:553] Read error [10.0.0.1]:5: Connection reset by peer"), True),
        (RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"), True),
        (DistNetworkError("The client socket has failed to connect"), True),
        (DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), True),
        (RuntimeError("CUDA out of memory"), False),
        (RuntimeError("Timed out waiting for the data"), False),
        (ValueError("Connection closed by peer"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
    ],
)
def test_errors_that_only_say_that_a_peer_is_gone(error: Exception, lost: bool) -> None:
    assert launch._is_lost_peer(error) is lost


@pytest.mark.parametrize(
    ("entered", "argv", "script"),
    [
        (["/bin/train", "--seed", "1"], ["--seed", "1"], ["train"]),
        (["/bin/toy-project", "train", "--seed", "1"], ["--seed", "1"], ["toy-project", "train"]),
        (["/bin/toy-project", "train"], [], ["toy-project", "train"]),
        (["/bin/evaluate"], ["--run", "results/a"], ["evaluate"]),
    ],
)
def test_command_is_recorded_as_entered(
    entered: list[str], argv: list[str], script: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", entered)
    assert launch._script_and_verb(argv) == script


@pytest.mark.parametrize(("visible", "gpus"), [("0,1", 2), ("GPU-8932f937", 1), ("", 0), ("-1", 0), ("NoDevFiles", 0)])
def test_number_of_gpus(visible: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launch._num_gpus() == gpus
    assert launch._default_nproc() == (gpus or min(2, launch._cores()))


def test_number_of_gpus_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has GPUs, and counts them in /proc")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch._num_gpus() == 0
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA Some GPU (UUID: GPU-1)'\necho '  MIG 1g Device 0: (UUID: MIG-1)'\n"
        "echo 'GPU 1: NVIDIA Some GPU (UUID: GPU-2)'\n"
    )
    tool.chmod(0o755)
    assert launch._num_gpus() == 2
