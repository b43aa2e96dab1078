"""The run folder: reserved for one run, written so that a crash never leaves half a file."""

import json
import math
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from trainyard_shared import results
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.results import RunFolder, atomic_path, reserve_run_dir


class _OneMoment(results.datetime.datetime):
    @classmethod
    def now(cls, tz: object = None) -> "_OneMoment":
        return cls(2030, 1, 31, 12, 0, 0)


@pytest.fixture
def one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.datetime, "datetime", _OneMoment)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.mark.usefixtures("one_moment")
def test_runs_of_the_same_second_get_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(20) as pool:
        paths = list(pool.map(lambda _: reserve_run_dir(tmp_path, "toy-project", "sample"), range(20)))
    names = {"20300131-120000-sample", *(f"20300131-120000-sample-{number}" for number in range(2, 21))}
    assert {path.relative_to(tmp_path / "toy-project").as_posix() for path in paths} == names
    assert all(path.is_dir() for path in paths)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    for out_dir, reason in [
        (tmp_path / "taken", "Not a directory"),
        (tmp_path / "taken" / "below", "Not a directory"),
        (Path("/proc/none"), "No such file or directory"),
    ]:
        with pytest.raises(UsageError) as caught:
            reserve_run_dir(out_dir, "toy-project", "sample")
        assert str(caught.value) == f"error: --out-dir {out_dir}: cannot make a run folder there: {reason}"


def test_newest_run_is_the_one_started_last(tmp_path: Path) -> None:
    for name, started_at in [("b", "2030-01-01T10:00:00+01:00"), ("a", "2030-01-02T09:00:00+01:00"), ("c", None)]:
        run = tmp_path / "toy-project" / name
        run.mkdir(parents=True)
        if started_at:
            (run / "summary.json").write_text(json.dumps({"started_at": started_at}))
    assert results.newest_run_dir(tmp_path, "toy-project").name == "a"
    with pytest.raises(
        UsageError, match=r"no run of other-project in .*: train first, or name a run folder with --run"
    ):
        results.newest_run_dir(tmp_path, "other-project")


def test_records_and_the_line_that_a_crash_cut_off(folder: RunFolder) -> None:
    assert folder.records() == []
    folder.log("train", step=10, loss=1.5)
    folder.log("train", step=20, loss=math.nan, scale=math.inf)
    expected = [
        {"kind": "train", "step": 10, "loss": 1.5},
        {"kind": "train", "step": 20, "loss": "nan", "scale": "inf"},
    ]
    path = folder.path / "metrics.jsonl"
    whole = path.read_text()
    assert folder.records() == expected
    for length in range(len('{"kind": "val"')):
        path.write_text(whole + '{"kind": "val"'[:length])
        assert folder.records() == expected

    path.write_text("{broken\n" + whole)
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1: not a JSON record: '\{broken'"):
        folder.records()


def test_resumed_run_forgets_what_it_will_do_again(folder: RunFolder) -> None:
    folder.log("note", seconds=1)
    for step in (10, 20, 30):
        folder.log("train", step=step)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    folder.forget_after(20)
    assert [record.get("step") for record in folder.records()] == [None, 10, 20]
    folder.log("train", step=30)
    assert [record.get("step") for record in folder.records()] == [None, 10, 20, 30]


def test_summary_keeps_what_it_is_not_told_anew(folder: RunFolder) -> None:
    folder.write_summary({"state": "running", "seed": 0})
    folder.write_summary({"state": "finished", "loss": math.nan, "nested": [{"path": Path("a"), "t": (1, math.inf)}]})
    assert results.read_json(folder.path / "summary.json") == {
        "state": "finished",
        "seed": 0,
        "loss": "nan",
        "nested": [{"path": "a", "t": [1, "inf"]}],
    }


def test_json_that_holds_no_object(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for content, message in [("{", "cannot be read as JSON"), ("[1]", "must hold one JSON object, found list")]:
        path.write_text(content)
        with pytest.raises(DataError, match=rf"summary\.json: {message}"):
            results.read_json(path)
    with pytest.raises(DataError, match=r"gone\.json: cannot be read as JSON: .*No such file"):
        results.read_json(tmp_path / "gone.json")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "plot.png"
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".png"  # matplotlib looks at it
        assert temporary.parent == path.parent  # a rename from elsewhere would copy
        temporary.write_text("old")
        assert not path.exists()

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [entry.name for entry in path.parent.iterdir()] == ["plot.png"]
    assert path.read_text() == "old"

    results.write_atomically(path, "größer")
    assert path.read_bytes() == "größer".encode()
    plain = tmp_path / "plain"
    plain.write_text("with the usual rights")
    assert path.stat().st_mode == plain.stat().st_mode


def test_git_commit_is_that_of_the_checkout_with_this_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("git"):
        pytest.skip("needs git")

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@example.com", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    installed = tmp_path / "installed.py"
    code = tmp_path / "results.py"
    code.write_text("old")
    monkeypatch.setattr(results, "__file__", str(code))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.git_commit() is None

    git("init", "-q")
    git("add", "results.py")
    assert results.git_commit() is None  # no commit yet
    git("commit", "-q", "-m", "First")
    assert results.git_commit() == git("rev-parse", "HEAD")
    installed.write_text("untracked files change nothing")
    assert results.git_commit() == git("rev-parse", "HEAD")
    code.write_text("new")
    assert results.git_commit() == git("rev-parse", "HEAD") + "+changes"

    # In a .venv inside a checkout lies what is no part of it.
    monkeypatch.setattr(results, "__file__", str(installed))
    assert results.git_commit() is None


def test_provenance_names_command_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINYARD_COMMAND", raising=False)
    monkeypatch.setattr(results.sys, "argv", ["/usr/bin/train", "--config", "my file.yaml"])
    facts = results.provenance(("pydantic",))
    assert facts["command"] == "train --config 'my file.yaml'"
    assert facts["versions"]["pydantic"] == results.metadata.version("pydantic")
    monkeypatch.setenv("TRAINYARD_COMMAND", "train --seed 1")
    assert results.provenance(())["command"] == "train --seed 1"
