"""What a run shows while it goes."""

import sys

import pytest
from trainyard_shared import console
from trainyard_shared.console import TrainingProgress, bytes_text, duration_text, preflight


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 * 1024**2, "5.0 MiB"),
        (1.25 * 1024**3, "1.2 GiB"),
        (3000 * 1024**4, "3000.0 TiB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3599.7, "1 h 00 min"),
        (7384, "2 h 03 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_preflight(capsys: pytest.CaptureFixture[str]) -> None:
    preflight("toy on a sample", [("model", "small"), ("processes", "2 (gloo)")], ["the data are a generated sample"])
    assert capsys.readouterr().out.splitlines() == [
        "toy on a sample",
        "  model      small",
        "  processes  2 (gloo)",
        "  note: the data are a generated sample",
    ]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_plain_lines_when_piped(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A line every five seconds and at the end, and once an estimate of the whole."""
    with TrainingProgress(1000) as progress:
        for second in range(1, 21):
            clock.now = 100.0 + second
            progress.update(second * 50, {"loss": f"{1 / second:.2f}"})
            if second == 10:
                progress.say("epoch 1/2: val accuracy 50 % [of all]")
    assert capsys.readouterr().out.splitlines() == [
        "about 16 s to go",
        " 25%  loss 0.20  15 s to go",
        " 50%  loss 0.10  10 s to go",
        "epoch 1/2: val accuracy 50 % [of all]",
        " 75%  loss 0.07  5 s to go",
        "100%  loss 0.05  0 s to go",
    ]


def test_estimate_of_a_resumed_run_counts_only_what_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainingProgress(1000, done=900)
    clock.now += 5
    progress.update(950, {"loss": "1.00"})
    progress.update(960, {"accuracy": "0.5"})
    clock.now += 5
    progress.update(975, {"loss": "0.50"})
    assert capsys.readouterr().out.splitlines() == [
        " 95%  loss 1.00  5 s to go",
        "about 3 s to go",
        " 98%  loss 0.50  accuracy 0.5  3 s to go",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_show_nothing(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    with TrainingProgress(10, show=False) as progress:
        progress.update(10, {"loss": "1"})
        progress.say("epoch 1/2")
    assert capsys.readouterr() == ("", "")


def test_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with TrainingProgress(200, done=50) as progress:
        progress.update(100, {"epoch": "1.0", "loss": "1.234", "images/s": "8000"})
        progress.say("epoch 1/2: val accuracy 50 % [of all]")
    out = capsys.readouterr().out
    assert "epoch 1/2: val accuracy 50 % [of all]\n" in out
    last = out.split("\r")[-1]
    assert "epoch 1.0  loss 1.234  images/s 8000 " in last
    assert " 50%" in last
    assert ":" in last.split("50%")[1]  # the time
    assert "to go" in last
