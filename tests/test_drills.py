"""The drills of tools/, in short: what breaks is noticed in time, and started again the training ends as undisturbed.

They need torch, which the environment of these tests lacks: each runs in one made by `uv run --isolated`.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = 77

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(uv: list[str], environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    own = ["run", "--quiet", "--isolated", "--group", "test", "--package", "torchdist-cifar", "python"]
    return subprocess.run([*uv, *own, *words], cwd=ROOT, env=environ, capture_output=True, text=True)


def test_three_random_kills(uv: list[str], clean_environ: dict[str, str]) -> None:
    done = run(uv, clean_environ, "tools/drill_kills.py", "--kills", "3", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [number for number, _ in re.findall(r"^ +(\d+)  killed rank ([01]) at", done.stdout, re.M)] == [
        "1",
        "2",
        "3",
    ]
    assert done.stdout.endswith("verdict: equal to the undisturbed run, bit for bit\n")


def test_two_hosts_lose_a_process_and_then_the_link(uv: list[str], clean_environ: dict[str, str]) -> None:
    done = run(uv, clean_environ, "tools/drill_two_hosts.py", "--drill", "twice", "--timeout-s", "8")
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    row = done.stdout.splitlines()[-1]
    what, seconds, statuses, message, again = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert (what, statuses, again) == ("ends on every host", "1, 1", "yes")
    assert 8 <= float(seconds.removesuffix(" s")) < 30, "noticed by the time-out, not before and not much later"
    # Gloo says at which of the two ends of a ring a process waited; either may be told first.
    assert re.fullmatch("RuntimeError: Timed out waiting 8000ms for (recv|send) operation to complete", message), (
        message
    )
