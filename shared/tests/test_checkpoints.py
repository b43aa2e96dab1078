"""Checkpoints survive crashes, full disks and flipped bits."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from trainyard_shared import checkpoints
from trainyard_shared.checkpoints import MANIFEST, CheckpointFolder, manifest
from trainyard_shared.errors import DataError, TrainyardError


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints")


def write(folder: CheckpointFolder, *steps: int) -> None:
    for step in steps:
        with folder.write(step, epoch=step // 10) as path:
            (path / "state.pt").write_bytes(b"weights of step %d " % step * 100)
            (path / "optimizer").mkdir()
            (path / "optimizer" / "rank0.pt").write_bytes(b"momentum")


def newest(folder: CheckpointFolder) -> tuple[str | None, list[str]]:
    warnings: list[str] = []
    path = folder.newest(warnings.append)
    return path.name if path else None, warnings


def names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def test_newest_two_are_kept(folder: CheckpointFolder) -> None:
    assert newest(folder) == (None, [])
    write(folder, 9, 10, 100)
    assert names(folder) == ["step-00000010", "step-00000100"]
    assert newest(folder) == ("step-00000100", [])
    facts = manifest(folder.path / "step-00000100")
    assert (facts["step"], facts["epoch"]) == (100, 10)
    assert set(facts["sha256"]) == {"state.pt", "optimizer/rank0.pt"}


def test_one_alone_is_never_kept(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path, keep=1).keep == 2
    more = CheckpointFolder(tmp_path, keep=3)
    write(more, 1, 2, 3, 4)
    assert names(more) == ["step-00000002", "step-00000003", "step-00000004"]


def test_same_step_again_replaces_it(folder: CheckpointFolder) -> None:
    write(folder, 10, 20)
    with folder.write(20, epoch=7) as path:
        assert not list(path.iterdir())
    assert manifest(folder.path / "step-00000020")["epoch"] == 7
    assert newest(folder) == ("step-00000020", [])


@pytest.mark.parametrize("error", [ZeroDivisionError("in the block"), KeyboardInterrupt(), RuntimeError("CUDA error")])
def test_error_inside_the_block_leaves_nothing(folder: CheckpointFolder, error: BaseException) -> None:
    def fail() -> None:
        with folder.write(20) as path:
            (path / "state.pt").write_bytes(b"half")
            raise error

    write(folder, 10)
    with pytest.raises(type(error)):
        fail()
    assert names(folder) == ["step-00000010"]
    assert newest(folder) == ("step-00000010", [])


@pytest.mark.parametrize("moment", ["block", "fsync", "rename"])
def test_full_disk_leaves_the_older_ones(
    moment: str, folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail() -> None:
        with folder.write(20) as path:
            (path / "state.pt").write_bytes(b"half")
            if moment == "block":
                no_space()

    write(folder, 9, 10)
    if moment == "fsync":
        monkeypatch.setattr(checkpoints.os, "fsync", no_space)
    if moment == "rename":
        monkeypatch.setattr(Path, "rename", no_space)
    with pytest.raises(TrainyardError, match=r"step 20 cannot be written to .*checkpoints: No space left on device \("):
        fail()
    monkeypatch.undo()
    assert names(folder) == ["step-00000009", "step-00000010"]
    assert newest(folder) == ("step-00000010", [])


def truncate(path: Path) -> None:
    content = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(content[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "state.pt").write_bytes(content)


def change_a_fact(path: Path) -> None:
    content = (path / MANIFEST).read_text()
    assert '"epoch": 2' in content
    (path / MANIFEST).write_text(content.replace('"epoch": 2', '"epoch": 3'))


DAMAGES = {
    "truncated": (truncate, "state.pt has changed"),
    "flipped bit": (flip_a_bit, "state.pt has changed"),
    "file missing": (lambda path: (path / "optimizer" / "rank0.pt").unlink(), "FileNotFoundError: "),
    "manifest missing": (lambda path: (path / MANIFEST).unlink(), "FileNotFoundError: "),
    "manifest empty": (lambda path: (path / MANIFEST).write_text(""), "JSONDecodeError: "),
    "manifest is no text": (lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe"), "UnicodeDecodeError: "),
    "manifest is a list": (lambda path: (path / MANIFEST).write_text("[]"), "TypeError: "),
    "manifest without hashes": (lambda path: (path / MANIFEST).write_text('{"step": 20}'), "KeyError: "),
    "manifest changed": (change_a_fact, "manifest.json has changed"),
    "folder empty": (lambda path: [shutil.rmtree(path), path.mkdir()], "FileNotFoundError: "),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_checkpoint_gives_way_to_the_one_before(kind: str, folder: CheckpointFolder) -> None:
    damage, reason = DAMAGES[kind]
    write(folder, 10, 20)
    damage(folder.path / "step-00000020")
    name, warnings = newest(folder)
    assert name == "step-00000010"
    assert len(warnings) == 1
    assert warnings[0].startswith(f"checkpoint step-00000020 is damaged ({reason}")
    assert warnings[0].endswith("): falling back to the one before")


def test_all_damaged_is_no_reason_to_start_afresh(folder: CheckpointFolder) -> None:
    write(folder, 10, 20)
    truncate(folder.path / "step-00000010")
    flip_a_bit(folder.path / "step-00000020")
    warnings: list[str] = []
    with pytest.raises(DataError, match=r"checkpoints: every checkpoint is damaged; remove the folder to start afresh"):
        folder.newest(warnings.append)
    assert [warning.split()[1] for warning in warnings] == ["step-00000020", "step-00000010"]


def test_what_a_crash_left_half_written_is_ignored(folder: CheckpointFolder) -> None:
    partial = folder.path / "step-00000020.partial"
    partial.mkdir(parents=True)
    (partial / "state.pt").write_bytes(b"half")
    assert newest(folder) == (None, [])
    write(folder, 10)
    assert newest(folder) == ("step-00000010", [])
    write(folder, 20)
    assert names(folder) == ["step-00000010", "step-00000020"]
    assert json.loads((folder.path / "step-00000020" / MANIFEST).read_text())["step"] == 20
    assert newest(folder) == ("step-00000020", [])


def test_run_that_fell_back_drops_the_damaged_one_first(folder: CheckpointFolder) -> None:
    write(folder, 10, 20)
    truncate(folder.path / "step-00000020")
    assert newest(folder)[0] == "step-00000010"
    write(folder, 15)
    assert names(folder) == ["step-00000010", "step-00000015"]
    assert newest(folder) == ("step-00000015", [])
