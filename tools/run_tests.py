"""Run the tests of every package, each in an environment that holds that package alone, then those of the workspace.

    python3 tools/run_tests.py                                everything, as CI does
    python3 tools/run_tests.py --package torchdist-cifar      one package (repeat for more)
    python3 tools/run_tests.py --package workspace            what is true of the workspace as a whole
    python3 tools/run_tests.py --package trainyard-shared -- -k results -x

The packages are tested with the Python that runs this script, which needs nothing but its standard library; uv is
installed into build/ if it is missing. The tests' output is shown as it comes. The last line is `N passed, N failed`;
a package that crashes, runs out of time or has no tests counts as failed.
"""

import argparse
import contextlib
import difflib
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workspace import ROOT, Member, WorkspaceError, find_uv, members

WORKSPACE = "workspace"
SECONDS_TO_STOP = 15


@dataclass
class Outcome:
    """What came of one package's tests."""

    name: str
    passed: int = 0
    failed: int = 0
    """tests that failed"""
    errors: int = 0
    """tests that could not be set up, and 1 for a run that did not end as it should"""
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)
    """why tests were skipped"""
    trouble: str = ""
    """why the run as a whole failed"""
    wall_time_s: float = 0.0

    @classmethod
    def of_trouble(cls, name: str, trouble: str) -> "Outcome":
        """Make the outcome of a run that gave no test results."""
        return cls(name, errors=1, trouble=trouble)


@dataclass(frozen=True)
class Suite:
    """One set of tests and how to make the environment it runs in."""

    name: str
    folder: Path
    """where pytest is started; its tests are in `tests` below it"""
    sync: Sequence[str]
    """arguments of `uv sync`, which removes from the environment whatever they do not ask for"""

    @property
    def environment(self) -> Path:
        """The virtual environment of this suite."""
        return ROOT / "build" / "environments" / self.name

    @property
    def report(self) -> Path:
        """Where pytest writes its results."""
        return ROOT / "build" / "reports" / f"{self.name}.xml"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", action="append", metavar="NAME", help="test this one only (repeat for more)")
    parser.add_argument("--no-workspace", action="store_true", help="leave out the tests of the workspace as a whole")
    parser.add_argument("--timeout", type=float, default=15, metavar="MIN", help="time for each package (default: 15)")
    parser.add_argument("pytest_args", nargs="*", metavar="PYTEST_ARG", help="after --: passed on to every pytest")
    options = parser.parse_args(argv)

    suites = choose_suites(options.package, with_workspace=not options.no_workspace)
    uv = find_uv()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a CI job is handled as Ctrl-C is

    outcomes: list[Outcome] = []
    stopped = False
    for i, suite in enumerate(suites, start=1):
        print(f"\n===== {suite.name} ({i} of {len(suites)})", flush=True)
        start = time.monotonic()
        try:
            outcome = run_suite(suite, uv, 60 * options.timeout, options.pytest_args)
        except KeyboardInterrupt:
            outcome, stopped = Outcome.of_trouble(suite.name, "stopped"), True
        outcome.wall_time_s = time.monotonic() - start
        outcomes.append(outcome)
        if stopped:
            outcomes += [Outcome.of_trouble(rest.name, "not run") for rest in suites[i:]]
            break
    print_summary(outcomes)
    failed = any(outcome.failed + outcome.errors for outcome in outcomes)
    return 130 if stopped else int(failed)


def choose_suites(names: Sequence[str] | None, *, with_workspace: bool) -> list[Suite]:
    """Return the suites named (None: of all packages and, `with_workspace`, of the workspace).

    Raises:
        WorkspaceError: there is no package of that name.
    """
    suites = {member.name: _suite_of(member) for member in members()}
    if with_workspace:
        suites[WORKSPACE] = Suite(WORKSPACE, ROOT, ["--only-group", "dev"])
    for name in names or ():
        if name not in suites:
            close = difflib.get_close_matches(name, suites, n=1)
            hint = f"perhaps you meant {close[0]}" if close else f"there are: {', '.join(suites)}"
            raise WorkspaceError(f"--package {name}: no package of the workspace; {hint}")
    return [suite for name, suite in suites.items() if not names or name in names]


def _suite_of(member: Member) -> Suite:
    wanted = ["--all-extras", "--no-default-groups", "--group", "test"]
    return Suite(member.name, member.path, ["--package", member.name, *wanted])


def run_suite(suite: Suite, uv: Sequence[str], timeout_s: float, pytest_args: Sequence[str]) -> Outcome:
    """Make the suite's environment and run its tests there.

    Raises:
        KeyboardInterrupt: this script was asked to end; the tests have ended by then.
    """
    # One thread each: the tests start several processes at a time, which would otherwise fight for the cores.
    environment = os.environ | {"UV_PROJECT_ENVIRONMENT": str(suite.environment), "OMP_NUM_THREADS": "1"}
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"):
        environment.pop(name, None)
    deadline = time.monotonic() + timeout_s
    sync = [*uv, "sync", "--quiet", "--python", sys.executable, *suite.sync]
    if (status := _run(sync, ROOT, environment, deadline)) != 0:
        return Outcome.of_trouble(suite.name, _ending("uv sync", status, timeout_s))

    suite.report.parent.mkdir(parents=True, exist_ok=True)
    suite.report.unlink(missing_ok=True)
    python = suite.environment / "bin" / "python"
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), f"--junitxml={suite.report}"]
    tests = [str(python), "-m", "pytest", *settings, *pytest_args, "tests"]
    status = _run(tests, suite.folder, environment, deadline)
    if not suite.report.is_file():
        return Outcome.of_trouble(suite.name, _ending("pytest", status, timeout_s))
    outcome = read_report(suite.name, suite.report)
    if status is None:
        outcome.errors += 1
        outcome.trouble = _ending("pytest", status, timeout_s)
    elif status == 5:
        outcome.errors += 1
        outcome.trouble = "no tests were run"
    elif status != 0 and not outcome.failed + outcome.errors:
        outcome.errors += 1
        outcome.trouble = _ending("pytest", status, timeout_s)
    return outcome


def _run(command: Sequence[str], folder: Path, environment: dict[str, str], deadline: float) -> int | None:
    """Run a command to its end and return its exit status, or None if it had to be stopped at the deadline."""
    # A session of its own: a signal reaches all that the tests have started, and Ctrl-C comes to this script alone.
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        return process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)  # pytest then says which test it was in, and writes its report
        try:
            process.wait(timeout=SECONDS_TO_STOP)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            print("the tests do not stop: killing them", flush=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(what: str, status: int | None, timeout_s: float) -> str:
    if status is None:
        return f"{what} did not end within {timeout_s / 60:g} minutes"
    if status < 0:
        return f"{what} died of {signal.Signals(-status).name}"
    return f"{what} failed with exit status {status}"


def read_report(name: str, path: Path) -> Outcome:
    """Count the results in a JUnit file."""
    outcome = Outcome(name)
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        if case.get("name") is None:
            continue  # the test in which pytest was interrupted
        if case.find("failure") is not None:
            outcome.failed += 1
        elif case.find("error") is not None:
            outcome.errors += 1
        elif (skip := case.find("skipped")) is not None:
            outcome.skipped += 1
            outcome.reasons.append(str(skip.get("message")))
        else:
            outcome.passed += 1
    return outcome


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """Print the table, the reasons of skips and, last, `N passed, N failed`."""
    width = max(len(outcome.name) for outcome in outcomes)
    print(f"\n{'':{width}}  passed  failed  errors  skipped     time")
    for o in outcomes:
        counts = f"{o.passed:6}  {o.failed:6}  {o.errors:6}  {o.skipped:7}  {o.wall_time_s:5.0f} s"
        print(f"{o.name:{width}}  {counts}" + (f"  {o.trouble}" if o.trouble else ""))
    for o in outcomes:
        for reason, number in Counter(o.reasons).items():
            print(f"skipped in {o.name}: {number} ({reason})")
    passed, skipped = sum(o.passed for o in outcomes), sum(o.skipped for o in outcomes)
    failed = sum(o.failed + o.errors for o in outcomes)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""), flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except WorkspaceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
