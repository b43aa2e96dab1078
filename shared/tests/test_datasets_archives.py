"""Unpacking: sound archives whole, all others not at all."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
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
