"""Unpacking: sound archives whole, all others not at all."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from trainyard_shared.datasets import tables
from trainyard_shared.datasets.archives import extract
from trainyard_shared.errors import DataError

NOISE = os.urandom(200_000)
FILES = {"set/one.bin": NOISE, "set/deeper/two.txt": b"two\n", "set/empty": b""}


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def make_archive(path: Path) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
        return path
    members = [(tarfile.TarInfo(name), content) for name, content in FILES.items()]
    return make_tar(path, *members, mode="w" if path.suffix == ".tar" else "w:gz")


def assert_nothing_left(tmp_path: Path, archive: Path) -> None:
    assert {entry.name for entry in tmp_path.iterdir()} - {".out.lock"} == {archive.name}


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar", "a.zip", "tar-without-its-ending.zip.tgz"])
def test_unpacks_every_file(tmp_path, name):
    out = extract(make_archive(tmp_path / name), tmp_path / "out")
    found = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert found == FILES


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar", "a.zip"])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_named(tmp_path, name, fraction):
    archive = make_archive(tmp_path / name)
    whole = archive.read_bytes()
    # The padding of a plain tar is no loss.
    end = len(whole.rstrip(b"\0")) + 512 if name == "a.tar" else len(whole)
    archive.write_bytes(whole[: int(end * fraction)])
    with pytest.raises(DataError, match=rf"{name} \([\d,]+ bytes\) is damaged or incomplete"):
        extract(archive, tmp_path / "out")
    assert_nothing_left(tmp_path, archive)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
@pytest.mark.parametrize("position", [0.3, 0.6, 0.9])
def test_a_flipped_bit_is_found(tmp_path, name, position):
    archive = make_archive(tmp_path / name)
    content = bytearray(archive.read_bytes())
    content[int(len(content) * position)] ^= 16
    archive.write_bytes(content)
    with pytest.raises(DataError, match="damaged or incomplete"):
        extract(archive, tmp_path / "out")
    assert_nothing_left(tmp_path, archive)


def test_the_checksum_at_the_end_of_a_gzip_file_is_compared(tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz")
    content = bytearray(archive.read_bytes())
    content[-6] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="CRC check failed"):
        extract(archive, tmp_path / "out")


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    archive = make_archive(tmp_path / "a.tar")
    content = bytearray(archive.read_bytes())
    second_header = 512 + -(-len(NOISE) // 512) * 512
    content[second_header + 150] ^= 4
    archive.write_bytes(content)
    with pytest.raises(DataError, match="unreadable data after the last readable member"):
        extract(archive, tmp_path / "out")


def test_a_tar_cut_between_two_members_is_not_whole(tmp_path):
    archive = make_archive(tmp_path / "a.tar")
    archive.write_bytes(archive.read_bytes()[: 512 + -(-len(NOISE) // 512) * 512])
    with pytest.raises(DataError, match="without the end mark"):
        extract(archive, tmp_path / "out")


def test_something_else_than_an_archive_is_named(tmp_path):
    page = tmp_path / "a.tar.gz"
    page.write_text("<html>Please log in</html>")
    with pytest.raises(DataError, match=r"a.tar.gz \(26 bytes\) is no tar, tar.gz or zip file"):
        extract(page, tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..", "a\\..\\evil", "C:evil"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_lead_out_are_refused(tmp_path, name, kind):
    (tmp_path / "deep").mkdir()
    archive = tmp_path / "deep" / f"a.{kind}"
    if kind == "tar":
        make_tar(archive, (tarfile.TarInfo("fine"), b"1"), (tarfile.TarInfo(name), b"evil"))
    else:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("fine", b"1")
            file.writestr(zipfile.ZipInfo(name), b"evil")
    with pytest.raises(DataError, match="leads out of its folder"):
        extract(archive, tmp_path / "deep" / "out")
    assert_nothing_left(tmp_path / "deep", archive)
    assert [entry.name for entry in tmp_path.iterdir()] == ["deep"]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "special"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind, word):
    info = tarfile.TarInfo("odd")
    info.type, info.linkname = kind, "/etc/passwd"
    archive = make_tar(tmp_path / "a.tar.gz", (info, b""))
    with pytest.raises(DataError, match=f"'odd' is .*{word}"):
        extract(archive, tmp_path / "out")
    assert_nothing_left(tmp_path, archive)


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("odd")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        extract(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_more_data_or_files_than_allowed_are_refused(tmp_path, name):
    archive = make_archive(tmp_path / name)
    with pytest.raises(DataError, match="unpacks to more than 100,000 bytes"):
        extract(archive, tmp_path / "out", max_bytes=100_000)
    with pytest.raises(DataError, match="holds more than 2 files"):
        extract(archive, tmp_path / "out", max_members=2)
    assert_nothing_left(tmp_path, archive)
    extract(archive, tmp_path / "out", max_bytes=200_004, max_members=3)


def test_a_header_that_claims_gigabytes_is_not_read_into_memory(tmp_path):
    # An extended header of 4 GiB, which tarfile reads whole, of which gzip makes a few bytes per megabyte.
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 4 << 30
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20)))
    with pytest.raises(DataError, match="unpacks to more than"):
        extract(archive, tmp_path / "out", max_bytes=1 << 20, max_members=10)


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    archive = make_tar(tmp_path / "a.tar", (tarfile.TarInfo("x"), b"1"), (tarfile.TarInfo("x"), b"2"), mode="w")
    with pytest.raises(DataError, match="'x' occurs twice"):
        extract(archive, tmp_path / "out")


def test_an_encrypted_zip_is_refused(tmp_path):
    archive = make_archive(tmp_path / "a.zip")
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # the flag in the header of the first file
    directory = content.index(b"PK\x01\x02")
    content[directory + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be unpacked: .*encrypted"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("mode", [0o010644, 0o020644, 0o060644, 0o140644], ids=["fifo", "character", "block", "socket"])
def test_devices_in_a_zip_are_refused(tmp_path, mode):
    info = zipfile.ZipInfo("odd")
    info.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, b"")
    with pytest.raises(DataError, match="'odd' is a link or another special file"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    assert_nothing_left(tmp_path, tmp_path / "a.zip")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_stopped_at_the_limit_and_costs_no_memory(tmp_path, kind):
    """A hundred megabytes of zeros in a hundred kilobytes."""
    zeros, archive = bytes(100 << 20), tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            file.writestr("zeros", zeros)
    else:
        info = tarfile.TarInfo("zeros")
        info.size = len(zeros)
        with gzip.open(archive, "wb", compresslevel=1) as file:
            file.write(info.tobuf())
            file.write(zeros)
    del zeros
    assert archive.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="unpacks to more than 10,000,000 bytes"):
            extract(archive, tmp_path / "out", max_bytes=10_000_000)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert_nothing_left(tmp_path, archive)


def test_a_zip_whose_members_overlap_is_stopped_at_the_limit(tmp_path):
    """A bomb whose directory names the same data again and again, and so needs no size of its own."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(1 << 20))
        original = file.infolist()[0]
        for i in range(50):
            info = zipfile.ZipInfo(f"copy{i}")
            for field in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(info, field, getattr(original, field))
            info.orig_filename = original.filename
            file.filelist.append(info)
    with pytest.raises(DataError):
        extract(archive, tmp_path / "out", max_bytes=10 << 20)
    assert_nothing_left(tmp_path, archive)


@pytest.mark.parametrize("names", [["x", "x/y"], ["x/y", "x"], ["x", "x/y/z"]])
def test_a_file_that_is_a_folder_too_is_refused(tmp_path, names):
    archive = make_tar(tmp_path / "a.tar", *((tarfile.TarInfo(name), b"1") for name in names), mode="w")
    with pytest.raises(DataError, match=r"occurs twice|lies in something that is a file in it"):
        extract(archive, tmp_path / "out")
    assert_nothing_left(tmp_path, archive)


@pytest.mark.parametrize("name", ["a" * 300, "é" * 200, "a/" * 600 + "b"])
def test_names_too_long_for_a_disk_are_refused(tmp_path, name):
    archive = make_tar(tmp_path / "a.tar", (tarfile.TarInfo(name), b"1"), mode="w")
    with pytest.raises(DataError, match="is too long"):
        extract(archive, tmp_path / "out")
    assert_nothing_left(tmp_path, archive)


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".bz2", bz2.compress), (".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_compressed_text_is_read_up_to_a_limit(tmp_path, monkeypatch, suffix, compress):
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(compress(b"a" * 1000) + compress(b"b"))  # streams one after the other are one file
    monkeypatch.setattr(tables, "MAX_TEXT_BYTES", 1001)
    assert tables.read_text(path) == "a" * 1000 + "b"
    path.write_bytes(compress(b"a" * (30 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"was not read: it unpacks to more than 1,001 bytes"):
            tables.read_text(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # xz keeps a dictionary of 8 MiB
    finally:
        tracemalloc.stop()
