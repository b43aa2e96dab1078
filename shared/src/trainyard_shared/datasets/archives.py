"""Unpack downloaded archives without trusting them."""

import errno
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any

from trainyard_shared.datasets.fetch import _one_line, building, locked
from trainyard_shared.errors import DataError

MAX_BYTES = 4 << 30
MAX_MEMBERS = 100_000
MAX_NAME_CHARACTERS = 1000


def extract(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS) -> Path:
    """Unpack a tar, tar.gz or zip file into the new folder `folder` and return it.

    The folder appears only when the whole archive was read and was sound. Only plain files and folders below it are
    accepted: no absolute or upward paths, no links, no devices.

    Args:
        archive: The file to unpack.
        folder: Must not exist yet, unless another process has just made it from the same archive.
        max_bytes: More unpacked data than this is taken for an attack.
        max_members: More files and folders than this are, too.
    """
    with locked(folder):
        if folder.exists():
            return folder
        with building(folder) as draft:
            _Extraction(archive, draft, max_bytes, max_members).run()
    return folder


class _Extraction:
    """One archive on its way into one folder, with what may still come out of it."""

    def __init__(self, archive: Path, draft: Path, max_bytes: int, max_members: int):
        self.archive = archive
        self.draft = draft
        self.max_bytes = max_bytes
        self.max_members = max_members
        self.num_bytes = 0
        self.num_members = 0

    def run(self) -> None:
        try:
            with self.archive.open("rb") as file:
                start = file.read(512)
                file.seek(0)
                if start.startswith(b"PK\x03\x04"):
                    self._unzip(file)
                elif start.startswith(b"\x1f\x8b"):
                    with gzip.open(file) as unzipped:
                        self._untar(unzipped)
                elif start[257:262] == b"ustar":
                    self._untar(file)
                else:
                    raise DataError(
                        f"{self.archive} ({self.archive.stat().st_size:,} bytes) is no tar, tar.gz or zip file. "
                        "Remove it and download it again."
                    )
        except DataError:
            raise
        except (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise self._damaged(str(error)) from error
        except (ValueError, OverflowError, struct.error, gzip.BadGzipFile) as error:
            # What the readers fall over when numbers or names in a header are wrong.
            raise self._damaged(_one_line(error)) from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # a position before the beginning of the file
                raise
            raise self._damaged(_one_line(error)) from error
        except (NotImplementedError, RuntimeError) as error:
            # How zipfile refuses compression methods that it does not know, and encrypted members.
            raise DataError(f"{self.archive} cannot be unpacked: {error}.") from error

    def _untar(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        bounded: Any = _BoundedReader(stream, self)
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    kind = "a link" if member.islnk() or member.issym() else "a device or another special file"
                    raise self._refused(f"{member.name!r} is {kind}")
                self._place(member.name, member.isdir(), tar.extractfile(member))
            # tarfile takes an unreadable header for the end. After the real end come only zeros, at least a block of
            # them. Reading on to the last byte also makes gzip compare its checksum.
            num_zeros = 0
            while rest := bounded.read(1 << 16):
                if rest.strip(b"\0"):
                    raise self._damaged("unreadable data after the last readable member")
                num_zeros += len(rest)
            if num_zeros < tarfile.BLOCKSIZE:
                raise self._damaged("it ends without the end mark of a tar file")

    def _unzip(self, file: IO[bytes]) -> None:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                mode = member.external_attr >> 16
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise self._refused(f"{member.filename!r} is a link or another special file")
                if member.is_dir():
                    self._place(member.filename, True, None)
                else:
                    with archive.open(member) as source:
                        self._place(member.filename, False, source)

    def _place(self, name: str, is_folder: bool, source: IO[bytes] | None) -> None:
        self.num_members += 1
        if self.num_members > self.max_members:
            raise self._refused(f"it holds more than {self.max_members:,} files")
        path = PurePosixPath(name)
        # Backslashes and colons are separators elsewhere, and no data set here has them in its names.
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
            raise self._refused(f"{name!r} leads out of its folder")
        if len(name) > MAX_NAME_CHARACTERS or any(len(part.encode()) > 255 for part in path.parts):
            raise self._refused(f"the name {name[:40]!r}... is too long")
        target = self.draft / path
        try:
            (target if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise self._refused(f"{name!r} lies in something that is a file in it") from None
        if is_folder:
            return
        if target.exists():
            raise self._refused(f"{name!r} occurs twice")
        assert source is not None  # plain files have content, if of length zero
        with target.open("xb") as file:
            while chunk := source.read(1 << 20):
                self.num_bytes += len(chunk)
                if self.num_bytes > self.max_bytes:
                    raise self.too_large()
                file.write(chunk)

    def too_large(self) -> DataError:
        return self._refused(f"it unpacks to more than {self.max_bytes:,} bytes")

    def _refused(self, reason: str) -> DataError:
        return DataError(f"{self.archive} was not unpacked: {reason}. Use the original archive.")

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"{self.archive} ({self.archive.stat().st_size:,} bytes) is damaged or incomplete: {reason}. "
            "Remove it and download it again."
        )


class _BoundedReader:
    """A readable stream that refuses to be asked for more than the archive may hold.

    A few kilobytes of gzip can claim a header of many gigabytes, which tarfile would read into memory.
    """

    # Headers and padding: two blocks a member, and the padding of the whole.
    OVERHEAD_BYTES = 1 << 20

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, extraction: _Extraction):
        self.stream = stream
        self.extraction = extraction
        self.limit = extraction.max_bytes + self.OVERHEAD_BYTES + 4 * tarfile.BLOCKSIZE * extraction.max_members

    def read(self, size: int = -1) -> bytes:
        if size > self.limit:
            raise self.extraction.too_large()
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset > self.limit:
            raise self.extraction.too_large()
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()
