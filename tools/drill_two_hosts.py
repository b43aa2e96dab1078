"""A training on two hosts that lose a process, a host or the link between them, and what comes of it.

    uv run --group test --package torchdist-cifar python tools/drill_two_hosts.py [--drill NAME] [--timeout-s 20]

The hosts are two network namespaces of this machine, joined by a virtual cable: each has an address of its own, no way
to the other but the cable, and the file system in common, as nodes of a cluster have. On each, torchrun starts one
process of the project's own training. In the middle of an epoch something breaks. The job has to end by itself, on
every host that is left, within the time-out of its collectives and some seconds more; and when it is started again,
with `--resume` or by a supervisor on each host, it has to end with the weights of the undisturbed run. Prints a table;
the exit status is 0 if all of this held, 1 if not, and 77 if network namespaces cannot be made here, which takes root
and iproute2.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drill_kills import contract_of
from trainyard_shared.config import to_flags
from trainyard_shared.testing import ProjectContract, run_folder, wait_for_step, weights_digest

SKIPPED = 77  # what automake and meson take for "skipped"
PORT = 29400
INTERFACE = "eth0"
EPOCHS = 3
# From the time-out of the collectives to the end of torchrun, which first stops what it has started.
GRACE_S = 30.0
# A job that nothing disturbs takes some 20 s, most of it imports.
JOB_TIMEOUT_S = 120.0
BLIP_S = 3.0
OUTAGE_S = 30.0
# On each host: start the same command again until it ends well. See docs/running.md.
SUPERVISOR = ["bash", "-c", 'until "$@"; do sleep 1; done', "supervisor"]


class CannotMakeHostsError(Exception):
    """This machine lets nobody make network namespaces."""


@dataclass(frozen=True)
class Host:
    """A network namespace with one end of the cable."""

    namespace: str
    address: str

    def start(self, command: Sequence[str], log: Path, cwd: Path, **variables: str) -> subprocess.Popen:
        """Start a command on this host, with its output in a file."""
        # Without the name of the interface Gloo takes the address that the host's name resolves to, which need not be
        # one that the other host can reach.
        environment = os.environ | {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1", **variables}
        with log.open("w") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command], cwd=cwd, env=environment, stdout=file, stderr=file
            )

    def processes(self) -> list[int]:
        """Return the processes that run on this host."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def workers(self) -> list[int]:
        """Return the training processes among them."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if b"\0RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(pid)
        return found

    def plug(self, state: str) -> None:
        """Cut the cable at this end ("down"), or mend it ("up")."""
        _ip("-n", self.namespace, "link", "set", INTERFACE, state)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts and the cable between them; at the end they go, with all that runs on them.

    Raises:
        CannotMakeHostsError: not root, or no iproute2, or a system that does not allow it.
    """
    a, b = hosts = tuple(Host(f"trainyard-{os.getpid()}-{name}", f"10.77.0.{i}") for i, name in ((1, "a"), (2, "b")))
    if shutil.which("ip") is None:
        raise CannotMakeHostsError("there is no command `ip` (iproute2)")
    try:
        try:
            for host in hosts:
                _ip("netns", "add", host.namespace)
            _ip(*f"link add {INTERFACE} netns {a.namespace} type veth peer {INTERFACE} netns {b.namespace}".split())
            for host in hosts:
                _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", INTERFACE)
                _ip("-n", host.namespace, "link", "set", "lo", "up")
                host.plug("up")
        except subprocess.CalledProcessError as error:
            raise CannotMakeHostsError(error.stderr.strip()) from error
        yield a, b
    finally:
        for host in hosts:
            with contextlib.suppress(subprocess.CalledProcessError):
                kill(host.processes())
                _ip("netns", "delete", host.namespace)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def kill(pids: Sequence[int]) -> None:
    """Kill processes, in one go."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Job:
    """The same training, started by torchrun on every host.

    Args:
        hosts: where to run it; the first holds rank 0.
        contract: whose tiny training it is.
        folder: where logs go, and the results into `out`.
        flags: further flags of `train`.
        supervised: start it again on each host until it ends well; it then has a run folder of a fixed name.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        contract: type[ProjectContract],
        folder: Path,
        flags: Sequence[str],
        *,
        supervised: bool = False,
    ) -> None:
        self.hosts, self.folder = hosts, folder
        folder.mkdir(parents=True, exist_ok=True)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(hosts)), "--nproc-per-node", "1"]
        torchrun += ["--max-restarts", "0", "--master-addr", hosts[0].address, "--master-port", str(PORT)]
        if supervised:
            torchrun = [*SUPERVISOR, *torchrun]
        run_dir = {"TRAINYARD_RUN_DIR": str(folder / "out" / contract.package / "supervised")} if supervised else {}
        training = ["-m", f"{contract.package.replace('-', '_')}.train", *flags]
        self.logs = [folder / f"{host.namespace[-1]}-{time.monotonic_ns()}.log" for host in hosts]
        self.processes = [
            host.start([*torchrun, "--node-rank", str(rank), *training], log, folder, **run_dir)
            for rank, (host, log) in enumerate(zip(hosts, self.logs, strict=True))
        ]

    def wait(self, timeout_s: float, hosts: Sequence[Host]) -> list[int | None]:
        """Wait until torchrun has ended on `hosts`; return the exit status of every host, None where it hangs."""
        deadline = time.monotonic() + timeout_s
        for host, process in zip(self.hosts, self.processes, strict=True):
            if host in hosts:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        return [process.poll() for process in self.processes]

    def message(self) -> str | None:
        """Return what a process that lost another one said, None if none did."""
        for log in self.logs:
            found = re.search(r"^process \d+ of \d+ lost another process:\n(?:.*\n)*?(\w+: .*)", log.read_text(), re.M)
            if found:
                # Without the place in Gloo's source, and without the advice that follows the first sentence.
                return re.sub(r"\[/\S+\] ", "", found[1]).partition(". ")[0]
        return None


Strike = Callable[[Host, Host], None]


@dataclass(frozen=True)
class Drill:
    """Something that breaks, and which hosts are left to notice it."""

    title: str
    strikes: tuple[Strike, ...]
    """what breaks: the first in the middle of epoch 2, the next, once the job was started again, in that of epoch 3"""
    struck: tuple[int, ...] = ()
    """hosts on which torchrun itself is killed"""
    survives: bool = False
    """whether the job comes to its end without being started again by hand"""
    supervised: bool = False
    """whether something on each host starts torchrun again"""
    silent: bool = False
    """whether the job ends in order, so that there is nothing to complain about"""


def kill_first_worker(a: Host, _: Host) -> None:
    kill(a.workers())


def kill_other_worker(_: Host, b: Host) -> None:
    kill(b.workers())


def kill_host(_: Host, b: Host) -> None:
    kill(b.processes())


def cut(_: Host, b: Host) -> None:
    b.plug("down")


def cut_for(seconds: float) -> Strike:
    def strike(_: Host, b: Host) -> None:
        b.plug("down")
        time.sleep(seconds)
        b.plug("up")

    return strike


def tell_to_stop(a: Host, b: Host) -> None:
    for pid in {*a.processes(), *b.processes()} - {*a.workers(), *b.workers()}:
        os.kill(pid, signal.SIGTERM)


DRILLS = {
    "worker": Drill("the process on host b is killed", (kill_other_worker,)),
    "first-worker": Drill("the process on host a (rank 0) is killed", (kill_first_worker,)),
    "host": Drill("all processes on host b are killed, torchrun too", (kill_host,), struck=(1,)),
    "link": Drill("the link is cut (or a host loses power)", (cut,)),
    "blip": Drill(f"the link is cut for {BLIP_S:.0f} s", (cut_for(BLIP_S),), survives=True),
    "supervised": Drill(
        f"the link is cut for {OUTAGE_S:.0f} s, under the supervisor",
        (cut_for(OUTAGE_S),),
        survives=True,
        supervised=True,
    ),
    "stop": Drill("torchrun gets SIGTERM on both hosts (end of a Slurm job)", (tell_to_stop,), silent=True),
    "twice": Drill("a process is killed and, once started again, the link is cut", (kill_other_worker, cut)),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a drill."""

    title: str
    what: str
    noticed_s: float
    statuses: list[int | None]
    message: str | None
    equal: bool
    wrong: list[str]


def run_drill(
    drill: Drill,
    hosts: tuple[Host, Host],
    contract: type[ProjectContract],
    reference: str,
    timeout_s: float,
    folder: Path,
) -> Outcome:
    """Disturb a job in the middle of an epoch, wait for its end, start it again, and compare the weights."""
    wrong = []
    out_dir = folder / "out"
    left = [host for i, host in enumerate(hosts) if i not in drill.struck]
    flags = training_flags(contract, out_dir, timeout_s)
    for number, strike in enumerate(drill.strikes, start=1):
        job = Job(hosts, contract, folder, flags, supervised=drill.supervised)
        wait_for_step(job.processes[0], out_dir, number * contract.steps_per_epoch + contract.steps_per_epoch // 2)
        start = time.monotonic()
        strike(*hosts)
        statuses = job.wait(JOB_TIMEOUT_S if drill.survives else timeout_s + GRACE_S, left)
        seconds = time.monotonic() - start
        for host, status in zip(hosts, statuses, strict=True):
            name = host.namespace[-1]
            if status is None:
                wrong.append(f"host {name} still hangs after {seconds:.0f} s")
            elif host.processes():
                wrong.append(f"host {name} has processes left over")
            if drill.survives and status:
                wrong.append(f"host {name} ended with status {status}")
            if not drill.survives and status == 0:
                wrong.append(f"host {name} took no notice")
            kill(host.processes())
        if not drill.survives and not drill.silent and job.message() is None:
            wrong.append(f"no clear message: {job.logs[0].read_text()[-3000:]}")
        hosts[1].plug("up")
        flags = ["--resume", str(run_folder(out_dir))]
    if not drill.survives:
        again = Job(hosts, contract, folder, [*flags, "--collective-timeout-s", str(JOB_TIMEOUT_S)])
        if any(again.wait(JOB_TIMEOUT_S, hosts)):
            wrong.append(f"started again, it failed: {again.logs[0].read_text()[-3000:]}")
    weights = run_folder(out_dir) / "model.safetensors"
    equal = weights.is_file() and weights_digest(weights.parent) == reference
    if not equal:
        wrong.append("the final weights differ from those of the undisturbed job")
    by_itself = "is started again by the supervisor" if drill.supervised else "goes on"
    what = "hangs" if None in statuses else "ends on every host" if any(statuses) else by_itself
    return Outcome(drill.title, what, seconds, statuses, job.message(), equal, wrong)


def training_flags(contract: type[ProjectContract], out_dir: Path, timeout_s: float) -> list[str]:
    # torchrun says how many processes there are.
    tiny = {name: value for name, value in contract.tiny.items() if name != "nproc"}
    own = {"epochs": EPOCHS, "checkpoint_every": 3, "collective_timeout_s": timeout_s, "out_dir": out_dir}
    return to_flags({**tiny, **own})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="torchdist-cifar", help="project whose training is disturbed")
    parser.add_argument("--drill", action="append", choices=list(DRILLS), help="only this one (repeat for more)")
    parser.add_argument("--timeout-s", type=float, default=20.0, help="collective_timeout_s of the training")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the hosts are taken down then, too
    contract = contract_of(options.package)
    outcomes = []
    try:
        with two_hosts() as hosts, tempfile.TemporaryDirectory(prefix="drill-hosts-") as folder:
            start = time.monotonic()
            flags = training_flags(contract, Path(folder) / "undisturbed" / "out", JOB_TIMEOUT_S)
            job = Job(hosts, contract, Path(folder) / "undisturbed", flags)
            if any(job.wait(JOB_TIMEOUT_S, hosts)):
                print(f"error: the undisturbed job failed: {job.logs[0].read_text()}", file=sys.stderr)
                return 1
            reference = weights_digest(run_folder(Path(folder) / "undisturbed" / "out"))
            print(
                f"{options.package}: the undisturbed job on two hosts took {time.monotonic() - start:.0f} s", flush=True
            )
            for name in options.drill or DRILLS:
                outcome = run_drill(DRILLS[name], hosts, contract, reference, options.timeout_s, Path(folder) / name)
                outcomes.append(outcome)
                print(f"{name}: {'; '.join(outcome.wrong) or 'as it should be'}", flush=True)
    except CannotMakeHostsError as error:
        print(f"skipped: network namespaces cannot be made here: {error}")
        return SKIPPED
    print_table(outcomes, options.timeout_s)
    return int(any(outcome.wrong for outcome in outcomes))


def print_table(outcomes: Sequence[Outcome], timeout_s: float) -> None:
    """Print the outcomes as a table in Markdown."""
    print(f"\nTime-out of the collectives: {timeout_s:g} s.\n")
    print("| What breaks | The job | Ended after | Exit status on a, b | Message | Started again: same weights? |")
    print("| --- | --- | --- | --- | --- | --- |")
    for o in outcomes:
        statuses = ", ".join("none" if status is None else str(status) for status in o.statuses)
        weights = "yes" if o.equal else "NO"
        again = f"not needed, {weights}" if all(status == 0 for status in o.statuses) else weights
        print(f"| {o.title} | {o.what} | {o.noticed_s:.1f} s | {statuses} | {o.message or 'none'} | {again} |")


if __name__ == "__main__":
    sys.exit(main())
