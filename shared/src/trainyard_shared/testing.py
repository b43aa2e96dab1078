"""The contract every project keeps, as tests that a package runs on itself.

    class TestContract(ProjectContract):
        package = "torchdist-cifar"
        tiny = {"epochs": 2, ...}      # flags of a run of a few seconds

The tests go through the installed commands, as a user does. What only the package can know (loss by loss equality,
what its technique saves) is tested in the package's own files.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from trainyard_shared.config import load_preset, preset_folder, preset_names, to_flags
from trainyard_shared.results import read_json, read_records

TIMEOUT_S = 120.0


@dataclasses.dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str
    seconds: float


def script(name: str) -> str:
    """Path of an installed command of the environment the tests run in."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"no command {name} beside {sys.executable}"
    return str(path)


def run(arguments: Sequence[str], cwd: Path, timeout_s: float = TIMEOUT_S, **environment: str) -> Finished:
    """Run a command to its end; a process it leaves behind fails the test."""
    start = time.monotonic()
    process = start_command(arguments, cwd, **environment)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    finally:
        kill_tree(process.pid)
    return Finished(process.returncode, stdout, stderr, time.monotonic() - start)


def start_command(arguments: Sequence[str], cwd: Path, **environment: str) -> subprocess.Popen:
    """Start a command with captured output, outside any process group the tests may run in."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TRAINYARD_") and name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    }
    return subprocess.Popen(
        list(arguments),
        cwd=cwd,
        env=inherited | {"OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def kill_tree(pid: int) -> None:
    """Kill a process and all it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def workers(pid: int) -> dict[int, psutil.Process]:
    """Return the worker processes of a running command by rank."""
    found = {}
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            rank = child.environ().get("RANK")
            if rank is not None:
                found[int(rank)] = child
    return found


def run_folder(out_dir: Path) -> Path:
    """Return the only run folder below `out_dir`."""
    folders = [path for path in out_dir.glob("*/*") if path.is_dir()]
    assert len(folders) == 1, f"expected one run folder in {out_dir}, found {folders}"
    return folders[0]


def wait_for_step(
    process: subprocess.Popen, out_dir: Path, step: int, timeout_s: float = TIMEOUT_S, *, restarts: int = 0
) -> None:
    """Wait until a running command, started again `restarts` times, has logged a training step of at least `step`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ended early: {process.communicate()}"
        for summary in out_dir.glob("*/*/summary.json"):
            # A start writes its summary once it has dropped the records of the steps that it will make again.
            in_time = read_json(summary).get("restarts") == restarts
            if in_time and any(r["kind"] == "train" and r["step"] >= step for r in read_records(summary.parent)):
                return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {timeout_s} s")


def weights_digest(folder: Path) -> str:
    """SHA-256 of the final weights of a run: equal digests mean equal weights, bit for bit."""
    return hashlib.sha256(weights_file(folder).read_bytes()).hexdigest()


def weights_file(folder: Path) -> Path:
    """Path of the final weights of a run: in its folder or, where that is exported for others, in `model/`."""
    exported = folder / "model" / "model.safetensors"
    return exported if exported.is_file() else folder / "model.safetensors"


class ProjectContract:
    """What every project promises. Subclass it in a package's tests and set the attributes."""

    package: ClassVar[str]
    """name of the distribution"""
    tiny: ClassVar[Mapping[str, Any]]
    """config fields that make a run of a few seconds with at least 12 logged steps in at least 2 epochs"""
    steps_per_epoch: ClassVar[int]
    """optimizer steps of an epoch with `tiny`"""
    bad_flags: ClassVar[Sequence[tuple[Sequence[str], str]]]
    """further wrong flags of `train` and what the message must hold"""

    @property
    def module(self) -> str:
        """Import name of the package."""
        return self.package.replace("-", "_")

    @classmethod
    def train(cls, out_dir: Path, **fields: Any) -> list[str]:
        """Command line of a tiny training run."""
        return [script("train"), *to_flags({**cls.tiny, "out_dir": out_dir, **fields})]

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A tiny run of two processes that nothing disturbed; other tests only read it."""
        out_dir = tmp_path_factory.mktemp("reference")
        finished = run(cls.train(out_dir), out_dir)
        assert finished.status == 0, finished.stderr
        return run_folder(out_dir)

    # ------------------------------------------------------------------------------------------------- command line

    @pytest.mark.parametrize("verb", ["train", "evaluate", "compare"])
    def test_help_is_quick_and_names_the_package(self, verb: str, tmp_path: Path) -> None:
        shown = run([script(verb), "--help"], tmp_path)
        assert shown.status == 0
        assert self.package in shown.stdout
        again = run([script(self.package), verb, "--help"], tmp_path)
        assert again.stdout == shown.stdout
        # The machine may be busy with something else for a moment: one quick answer of several is enough.
        seconds = [shown.seconds, again.seconds]
        while min(seconds) >= 1.5 and len(seconds) < 5:
            seconds.append(run([script(verb), "--help"], tmp_path).seconds)
        assert min(seconds) < 1.5

    def test_help_and_errors_import_no_backend(self, tmp_path: Path) -> None:
        code = (
            f"import sys\nfrom {self.module} import cli\n"
            "for argv in (['--help'], ['--epochs', 'x']):\n"
            "    try: cli.train(argv)\n    except SystemExit: pass\n"
            "heavy = {'torch', 'transformers', 'deepspeed', 'fairscale', 'colossalai', 'matplotlib'}\n"
            "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
        )
        assert run([sys.executable, "-c", code], tmp_path).status == 0

    @pytest.mark.timeout(500)  # a dozen commands, some of which import the backend
    def test_wrong_arguments_are_named_and_leave_nothing_behind(self, tmp_path: Path) -> None:
        (tmp_path / "typo.yaml").write_text("epohcs: 3\n")
        (tmp_path / "broken.yaml").write_text("epochs: [1\n")
        cases = [
            (["--epohcs", "3"], "perhaps you meant --epochs"),
            (["--epochs", "x"], "--epochs: x is not allowed: must be a whole number"),
            (["--micro-batch-size", "-4"], "--micro-batch-size: -4 is not allowed: must be greater than 0"),
            (["--config", "ful"], "perhaps you meant full"),
            (["--config", "typo.yaml"], "typo.yaml: 'epohcs' is no field of train; perhaps you meant epochs"),
            (["--config", "broken.yaml"], "broken.yaml, line 2: not valid YAML"),
            (["--resume", "nowhere"], "--resume nowhere: no run folder"),
            *self.bad_flags,
        ]
        for flags, words in cases:
            finished = run([script("train"), *flags], tmp_path)
            assert finished.status == 2, (flags, finished)
            assert words in finished.stderr, (flags, finished.stderr)
            assert finished.stderr.count(words) == 1, "said once, not once per process"
            assert "Traceback" not in finished.stderr
            assert not (tmp_path / "results").exists() or not list((tmp_path / "results").glob("*/*"))

    def test_results_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("a file where the folder should go")
        finished = run([script("train"), "--out-dir", "taken"], tmp_path)
        assert finished.status == 2
        assert "--out-dir taken: cannot make a run folder there" in finished.stderr

    def test_presets_parse(self) -> None:
        config_class = importlib.import_module(f"{self.module}.config").TrainConfig
        names = preset_names(preset_folder(self.module))
        assert {"sample", "full"} <= set(names)
        for name in names:
            load_preset(config_class, preset_folder(self.module) / f"{name}.yaml")

    # --------------------------------------------------------------------------------------------------- run folder

    def test_run_folder_is_complete(self, reference: Path) -> None:
        summary = read_json(reference / "summary.json")
        assert summary["state"] == "finished"
        assert summary["package"] == self.package
        assert summary["data"]["kind"] == "sample"
        assert summary["world_size"] == 2
        assert summary["seed"] == self.tiny.get("seed", 0)
        for key in (
            "metrics",
            "command",
            "device",
            "wall_time_s",
            "phases_s",
            "throughput",
            "next_command",
            "versions",
        ):
            assert summary[key], key
        assert all(metric["protocol"] for metric in summary["metrics"].values())
        memory = summary["memory"]
        assert memory["peak_bytes"] > 0
        assert len(memory["measured_bytes_per_rank"]) == 2
        for name, measured in memory["measured_bytes"].items():
            assert measured == pytest.approx(memory["predicted_bytes"][name], rel=0.05), name
        records = read_records(reference)
        train_steps = [r["step"] for r in records if r["kind"] == "train"]
        assert train_steps == sorted(set(train_steps))
        assert len(train_steps) >= 12
        assert any(r["kind"] == "val" for r in records)
        page = (reference / "report.html").read_text()
        assert "generated" in page.lower(), "a report on generated data must say so"
        assert list((reference / "plots").glob("*.png"))
        assert not [path for path in reference.rglob("*") if ".partial" in path.name or path.name.startswith(".")]

    def test_written_config_is_the_one_that_ran(self, reference: Path) -> None:
        config_class = importlib.import_module(f"{self.module}.config").TrainConfig
        config = load_preset(config_class, reference / "config.yaml")
        for name, value in self.tiny.items():
            assert getattr(config, name) == value

    # --------------------------------------------------------------------------------------------- kill, stop, resume

    def test_killed_processes_are_replaced_and_the_weights_are_the_same(self, reference: Path, tmp_path: Path) -> None:
        # In the middle of the second epoch, after a checkpoint within it: first one rank, then the other.
        process = start_command(self.train(tmp_path, checkpoint_every=3), tmp_path)
        try:
            for rank in (0, 1):
                wait_for_step(process, tmp_path, self.steps_per_epoch + self.steps_per_epoch // 2 + rank, restarts=rank)
                workers(process.pid)[rank].kill()
            _, stderr = process.communicate(timeout=TIMEOUT_S)
        finally:
            kill_tree(process.pid)
        assert process.returncode == 0, stderr
        for rank in (0, 1):
            assert f"process {rank} of 2 was killed by SIGKILL" in stderr
        folder = run_folder(tmp_path)
        assert read_json(folder / "summary.json")["restarts"] == 2
        assert weights_digest(folder) == weights_digest(reference)
        steps = [r["step"] for r in read_records(folder) if r["kind"] == "train"]
        assert steps == sorted(set(steps)), "each step is recorded once, however often it was made"

    def test_stopped_run_saves_and_continues_to_the_same_weights(self, reference: Path, tmp_path: Path) -> None:
        process = start_command(self.train(tmp_path), tmp_path)
        try:
            wait_for_step(process, tmp_path, self.steps_per_epoch + 2)
            children = list(workers(process.pid).values())
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        finally:
            kill_tree(process.pid)
        assert process.returncode == 128 + signal.SIGINT, stderr
        assert not [child for child in children if child.is_running()], "processes left behind"
        folder = run_folder(tmp_path)
        assert f"train --resume {folder}" in stderr
        assert read_json(folder / "summary.json")["state"] == "interrupted"
        assert list((folder / "checkpoints").iterdir())
        finished = run([script("train"), "--resume", str(folder)], tmp_path)
        assert finished.status == 0, finished.stderr
        assert weights_digest(folder) == weights_digest(reference)
        assert read_json(folder / "summary.json")["state"] == "finished"

    def test_damaged_checkpoint_falls_back_to_the_one_before(self, reference: Path, tmp_path: Path) -> None:
        folder = tmp_path / "results" / self.package / reference.name
        shutil.copytree(reference, folder)
        newest, *_ = sorted((folder / "checkpoints").iterdir(), reverse=True)
        state = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
        weights_file(folder).unlink()
        finished = run([script("train"), "--resume", str(folder)], tmp_path)
        assert finished.status == 0, finished.stderr
        assert f"checkpoint {newest.name} is damaged" in finished.stdout
        assert weights_digest(folder) == weights_digest(reference)

    # ------------------------------------------------------------------------------------------------------ evaluation

    def test_evaluation_is_the_same_for_another_number_of_processes(self, reference: Path, tmp_path: Path) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(reference, folder)
        before = read_json(folder / "summary.json")
        finished = run([script("evaluate"), "--run", str(folder), "--nproc", "3"], tmp_path)
        assert finished.status == 0, finished.stderr
        after = read_json(folder / "summary.json")
        for name, metric in before["metrics"].items():
            assert after["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-5), name

    def test_evaluate_without_a_trained_model(self, tmp_path: Path) -> None:
        finished = run([script("evaluate"), "--out-dir", "nowhere"], tmp_path)
        assert finished.status == 2
        assert "train first" in finished.stderr

    # --------------------------------------------------------------------------------------------------------- torchrun

    def test_torchrun_on_two_nodes_gives_the_same_weights(self, reference: Path, tmp_path: Path) -> None:
        """Two torchrun agents with one process each, as on two machines that share a file system."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        rendezvous = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        fields = {name: value for name, value in self.tiny.items() if name != "nproc"}  # torchrun says how many
        training = ["-m", f"{self.module}.train", *to_flags({**fields, "out_dir": tmp_path / "out"})]
        nodes = [
            start_command([*torchrun, "--node-rank", str(node), *rendezvous, *training], tmp_path) for node in (0, 1)
        ]
        try:
            for node in nodes:
                _, stderr = node.communicate(timeout=TIMEOUT_S)
                assert node.returncode == 0, stderr
        finally:
            for node in nodes:
                kill_tree(node.pid)
        assert weights_digest(run_folder(tmp_path / "out")) == weights_digest(reference)
