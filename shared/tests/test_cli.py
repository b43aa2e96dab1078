"""The outermost layer of the commands."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from trainyard_shared.cli import command, dispatch
from trainyard_shared.errors import DataError, TrainyardError, UsageError


@command
def train(argv: Sequence[str]) -> int | None:
    """Train a network.

    At length.
    """
    print("train", *argv)
    return 3 if "--bad" in argv else None


@pytest.mark.parametrize(("error", "status"), [(UsageError, 2), (DataError, 1), (TrainyardError, 1)])
def test_error_gives_its_message_and_status(
    error: type[TrainyardError], status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)

    @command
    def fail(argv: Sequence[str]) -> None:
        raise error("error: what was found and what to do")

    assert fail([]) == status
    assert capsys.readouterr() == ("", "error: what was found and what to do\n")


def test_status_is_that_of_the_function_and_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--bad"])
    assert train() == 3
    assert train([]) == 0

    @command
    def wrong(argv: Sequence[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wrong([])


def test_control_c_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def interrupted(argv: Sequence[str]) -> None:
        raise KeyboardInterrupt

    assert interrupted([]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("rest", ["print('more')", "for n in range(100_000): print('more', n)"])
def test_reader_that_goes_away_is_no_error(rest: str) -> None:
    code = (
        "import sys\nfrom trainyard_shared.cli import command\n"
        f"@command\ndef talk(argv):\n    print('first', flush=True)\n    input()\n    {rest}\n"
        "sys.exit(talk([]))"
    )
    # Buffered, as it is unless somebody asks otherwise: what is in the buffer must not be complained about at exit.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    arguments, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(arguments, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as talk:
        assert talk.stdin is not None
        assert talk.stdout is not None
        assert talk.stderr is not None
        assert talk.stdout.readline() == "first\n"
        talk.stdout.close()
        talk.stdin.write("go on\n")
        talk.stdin.close()
        assert talk.wait(timeout=20) == 141
        assert talk.stderr.read() == ""


def test_dispatch(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*argv: str) -> tuple[int, str, str]:
        status = dispatch("toy-project", "A toy.", {"train": train}, argv)
        return status, *capsys.readouterr()

    assert run("train", "--bad", "x") == (3, "train --bad x\n", "")
    assert run("trian") == (2, "", "error: trian: no command of toy-project; perhaps you meant train\n")
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert "  train        Train a network.\n" in out
    assert "At length" not in out
    assert run() == (2, "", out)
