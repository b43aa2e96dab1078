"""Bring data files onto this machine: checked, resumable, from several places, once per machine.

`fetch` is the whole of it for one file that several places offer. What arrives is first a `.part` file that nobody
trusts; only when its checksum is right does it get its name. `try_in_order` is for the case that the places offer the
same data in different forms (see `cifar.py`).
"""

import contextlib
import errno
import hashlib
import io
import os
import random
import re
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import platformdirs

from trainyard_shared.errors import DataError

if TYPE_CHECKING:
    import requests
    from rich.progress import Progress

T = TypeVar("T")

CHUNK_BYTES = 1 << 16
NUM_AT_ONCE = 4
PLAIN_PROGRESS_EVERY_S = 15.0
# An attempt that brought less than this is counted as failed, so that a line that drops now and then can finish a
# large file, while a server that cuts every answer short is given up.
WORTHWHILE_BYTES = 1 << 20
PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})


class SourceError(DataError):
    """One source failed in a way that says nothing about the others."""


@dataclass(frozen=True)
class RetryPolicy:
    """How patiently one HTTP address is tried."""

    attempts: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0
    timeout_s: float = 30.0
    min_bytes_per_s: float = 1000.0
    """a connection that brings less over `timeout_s` is given up: a server can drip for days without a time-out"""

    def wait_s(self, failures: int, retry_after: str | None) -> float:
        """Return the seconds to wait after so many failures in a row, as the server asked or doubling each time."""
        if retry_after is not None:
            return _retry_after_s(retry_after)
        doubled = min(self.first_wait_s * 2 ** (failures - 1), self.max_wait_s)
        # Spread out clients that failed at the same moment.
        return doubled * random.uniform(0.5, 1.0)


DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True)
class Source:
    """One place that has the file. `name` is what people call it."""

    name: str
    # What the user needs to have there; empty for open places.
    credentials: ClassVar[str] = ""

    @property
    def address(self) -> str:
        """Where a person can look at it."""
        raise NotImplementedError

    def download(self, part: Path, want: "Expected", retry: RetryPolicy) -> None:
        """Put the whole file at `part`, which may hold the beginning of it; raise SourceError where that fails."""
        raise NotImplementedError


@dataclass(frozen=True)
class Expected:
    """What is known of a file beforehand. With neither checksum, the caller checks the content."""

    filename: str
    sha256: str | None = None
    md5: str | None = None
    size_bytes: int | None = None

    def mismatch(self, path: Path) -> str | None:
        """Say how the file differs from what is expected, or None if it does not."""
        size = path.stat().st_size
        if self.size_bytes is not None and size != self.size_bytes:
            return f"has {size:,} bytes, expected {self.size_bytes:,}"
        for algorithm, expected in (("sha256", self.sha256), ("md5", self.md5)):
            if expected is not None and (found := file_digest(path, algorithm)) != expected:
                return f"has the {algorithm} {found}, expected {expected}"
        return None

    @property
    def checksum(self) -> str | None:
        """The checksum in the words of an error message."""
        if self.sha256:
            return f"sha256 {self.sha256}"
        return f"md5 {self.md5}" if self.md5 else None


@dataclass(frozen=True)
class HttpFile(Source):
    """A file at a plain HTTP or HTTPS address."""

    url: str

    @property
    def address(self) -> str:
        """The URL itself."""
        return self.url

    def download(self, part: Path, want: Expected, retry: RetryPolicy) -> None:
        """Download, resuming what is there, and try again after passing failures."""
        _persist(partial(_transfer, self.url, part, want, retry), part, want, retry)


@dataclass(frozen=True)
class HubFile(Source):
    """A file of a data set on the Hugging Face Hub (or the mirror that HF_ENDPOINT names)."""

    repo: str
    path: str
    revision: str = "main"

    @property
    def address(self) -> str:
        """The page of the file."""
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{endpoint}/datasets/{self.repo}/blob/{self.revision}/{self.path}"

    def download(self, part: Path, want: Expected, retry: RetryPolicy) -> None:
        """Download with the Hub's own client, which resumes by itself; compare with the checksum the Hub announces."""
        try:
            import huggingface_hub  # noqa: F401
        except ImportError as error:
            raise SourceError("needs the package huggingface_hub: pip install 'trainyard-shared[hub]'") from error
        # Not the Hub's shared cache: a file that turns out wrong must not be there for the next run.
        staging = part.with_name(part.name + ".hub")
        with contextlib.ExitStack() as bars:
            _persist(partial(self._transfer, staging, part, want, bars), part, want, retry)
        shutil.rmtree(staging, ignore_errors=True)

    def _transfer(self, staging: Path, part: Path, want: Expected, bars: contextlib.ExitStack) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        url = hf_hub_url(self.repo, self.path, repo_type="dataset", revision=self.revision)
        try:
            announced = get_hf_file_metadata(url)
            if None not in (want.size_bytes, announced.size) and want.size_bytes != announced.size:
                raise SourceError(f"offers {announced.size:,} bytes, expected {want.size_bytes:,}")
            with _local_failures(staging):
                _check_space(staging.parent, want.filename, announced.size)
                found = hf_hub_download(
                    self.repo,
                    self.path,
                    repo_type="dataset",
                    revision=self.revision,
                    local_dir=staging,
                    tqdm_class=_hub_bar(partial(_progress, want.filename, self.address), bars),
                )
                if (wrong := _unlike_etag(Path(found), announced.etag)) is not None:
                    shutil.rmtree(staging)
                    raise SourceError(f"what arrived {wrong}, as the Hub announces it")
                Path(found).replace(part)
        except DataError:
            raise
        except Exception as error:
            # The client has a family of errors of its own on top of those of its HTTP library.
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        from huggingface_hub import errors

        page = self.address.partition("/blob/")[0]
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return SourceError(
                f"{status}: log in and accept the terms at {page}, then set HF_TOKEN to a token of yours"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return SourceError(f"{status}: there is no data set {page}, or it is private; then set HF_TOKEN")
        if status == 401:
            return SourceError(
                "401: the Hub does not accept the token, which is that of HF_TOKEN or of 'hf auth login'"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return SourceError(f"{status}: {page} has no revision {self.revision}")
        if isinstance(error, errors.EntryNotFoundError) and status is not None:
            return SourceError(f"{status}: {page} has no file {self.path}")
        if status in PASSING_STATUS and response is not None:
            return _PassingError(f"{status} {response.reason_phrase}", response.headers.get("Retry-After"))
        if status is not None and response is not None:
            return SourceError(f"{status} {response.reason_phrase}")
        # Whatever the name of its HTTP library, this is the ancestor of time-outs and broken connections.
        if any(ancestor.__name__ == "TransportError" for ancestor in type(error).__mro__):
            return _PassingError(f"no connection: {_one_line(error)}")
        return SourceError(_one_line(error))


@dataclass(frozen=True)
class KaggleFile(Source):
    """A file of a Kaggle data set (`owner/slug`) or, with `competition`, of a competition (`slug`)."""

    slug: str
    path: str
    competition: bool = False
    credentials: ClassVar[str] = "a Kaggle token"

    @property
    def address(self) -> str:
        """The page of the data set or competition."""
        return f"https://www.kaggle.com/{'competitions' if self.competition else 'datasets'}/{self.slug}"

    def download(self, part: Path, want: Expected, retry: RetryPolicy) -> None:
        """Download with Kaggle's own client, with the credentials of the user."""
        api = self._client()
        staging = part.with_name(part.name + ".kaggle")
        say(f"Downloading {want.filename} from {self.address}")
        _persist(partial(self._transfer, api, staging, part), part, want, retry)
        shutil.rmtree(staging, ignore_errors=True)

    def _transfer(self, api: Any, staging: Path, part: Path) -> None:
        import requests

        try:
            with _local_failures(staging), contextlib.redirect_stdout(io.StringIO()):
                staging.mkdir(parents=True, exist_ok=True)
                if self.competition:
                    api.competition_download_file(self.slug, self.path, path=str(staging), quiet=True)
                else:
                    api.dataset_download_file(self.slug, self.path, path=str(staging), quiet=True)
                _take_kaggle_file(staging, Path(self.path).name, part)
        except requests.HTTPError as error:
            if error.response.status_code in PASSING_STATUS:
                reason = f"{error.response.status_code} {error.response.reason}"
                raise _PassingError(reason, error.response.headers.get("Retry-After")) from error
            raise SourceError(self._explain(error)) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _PassingError(f"no connection: {_one_line(error)}") from error
        except (requests.RequestException, ValueError, zipfile.BadZipFile) as error:
            raise SourceError(_one_line(error)) from error

    def _client(self) -> Any:  # its type exists only where kaggle is installed
        try:
            # Importing kaggle already tries to log in and prints advice for its own command line.
            with contextlib.redirect_stdout(io.StringIO()):
                from kaggle.api.kaggle_api_extended import KaggleApi

                api = KaggleApi()
                api.authenticate()
        except ImportError as error:
            raise SourceError("needs the package kaggle: pip install 'trainyard-shared[kaggle]'") from error
        except SystemExit as error:
            raise SourceError(
                "no Kaggle credentials found: create a token at https://www.kaggle.com/settings/api and save it as "
                "~/.kaggle/access_token (or kaggle.json), or set KAGGLE_API_TOKEN"
            ) from error
        except Exception as error:
            raise SourceError(f"logging in to Kaggle failed: {_one_line(error)}") from error
        return api

    def _explain(self, error: "requests.HTTPError") -> str:
        status = error.response.status_code
        if status == 401:
            return (
                "401: Kaggle does not accept the credentials; make a new token at https://www.kaggle.com/settings/api"
            )
        if status == 403 and self.competition:
            return f"403: accept the competition's rules first, at {self.address}/rules"
        if status == 403:
            return f"403: open {self.address} while logged in, and accept its licence"
        if status == 404:
            return f"404: there is no file {self.path} at {self.address}"
        return f"{status} {error.response.reason}"


def cache_dir() -> Path:
    """Return the folder for downloaded and generated data (on Linux ~/.cache/trainyard/datasets)."""
    return Path(platformdirs.user_cache_dir("trainyard")) / "datasets"


def is_offline(offline: bool = False) -> bool:
    """Whether the network must not be used, by argument or by TRAINYARD_OFFLINE=1."""
    return offline or os.environ.get("TRAINYARD_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def fetch(
    sources: Sequence[Source],
    destination: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size_bytes: int | None = None,
    offline: bool = False,
    retry: RetryPolicy | None = None,
    advice: str = "",
) -> Path:
    """Return `destination`, downloaded from the first source that delivers the right bytes.

    A file that is there already is checked and kept. Several processes may ask at once: one downloads.

    Args:
        sources: Tried in this order.
        destination: Where the file shall be; `.part` and `.lock` files appear beside it.
        sha256: Expected checksum in hexadecimal.
        md5: Expected checksum, for data sets that publish only this one.
        size_bytes: Expected length.
        offline: Use only what is there (also TRAINYARD_OFFLINE=1).
        retry: How patiently each HTTP source is tried.
        advice: What the user can do when every source fails; by default: put the file there by hand.
    """
    want = Expected(destination.name, sha256, md5, size_bytes)
    advice = advice or f"download {sources[0].address} by hand and save it as {destination}"
    if want.checksum:
        advice += f" ({want.checksum})"
    # Without the lock first: a prepared cache may be read-only.
    if destination.exists() and want.mismatch(destination) is None:
        return destination
    with locked(destination):
        if destination.exists():
            wrong = want.mismatch(destination)
            if wrong is None:
                return destination
            if is_offline(offline):
                raise DataError(f"{destination} {wrong}, and offline mode forbids a download. What to do: {advice}.")
            say(f"{destination} {wrong}: downloading it again")
            destination.unlink()
        if is_offline(offline):
            raise DataError(
                f"{destination} is missing, and offline mode (TRAINYARD_OFFLINE) forbids a download. "
                f"What to do: {advice}."
            )
        attempts = [
            (f"{source.name} ({source.address})", partial(_obtain, source, destination, want, retry or DEFAULT_RETRY))
            for source in sources
        ]
        try_in_order(want.filename, attempts, advice)
        if not want.checksum:
            record_checksums(destination)
    return destination


def download(
    source: Source,
    destination: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size_bytes: int | None = None,
    retry: RetryPolicy | None = None,
) -> Path:
    """Return `destination` from this one source, or raise SourceError with nothing but the reason.

    For use within an attempt of `try_in_order`, which adds the rest. The arguments are those of `fetch`.
    """
    want = Expected(destination.name, sha256, md5, size_bytes)
    with locked(destination):
        if not destination.exists() or want.mismatch(destination) is not None:
            destination.unlink(missing_ok=True)
            _obtain(source, destination, want, retry or DEFAULT_RETRY)
    return destination


def together(*calls: Callable[[], T]) -> list[T]:
    """Return the results of calls that download, several at a time; if one fails, the others are stopped.

    What they have brought so far is kept and resumed. Ctrl-C does not wait for them. Not for Kaggle, whose client
    cannot do two things at once.

    Raises:
        Exception: whatever the first call that failed has raised.
    """
    results: dict[int, T] = {}
    errors: list[Exception] = []
    waiting = list(enumerate(calls))
    stop, turn = threading.Event(), threading.Lock()

    def work() -> None:
        while not stop.is_set():
            with turn:
                if not waiting:
                    return
                number, call = waiting.pop(0)
            try:
                results[number] = call()
            except _StoppedError:
                return
            except Exception as error:
                errors.append(error)
                stop.set()

    # Daemons, so that they do not outlive an interrupted program.
    threads = [_Worker(stop, target=work, daemon=True) for _ in range(min(NUM_AT_ONCE, len(calls)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        raise
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(calls))]


def try_in_order(what: str, attempts: Sequence[tuple[str, Callable[[], T]]], advice: str) -> T:
    """Return the result of the first attempt that raises no SourceError; name every failure if all do.

    Any other error, such as a full disk, ends the search at once: another source would not mend it.
    """
    failures = []
    for label, attempt in attempts:
        try:
            return attempt()
        except SourceError as error:
            failures.append(f"  - {label}: {error}")
            say(f"{what}: {label} failed: {error}")
    raise DataError("\n".join([f"{what} could not be had. Tried:", *failures, f"What to do: {advice}."]))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time past, for work that ends in `path`. A killed process leaves no lock behind."""
    from filelock import FileLock, Timeout

    lock_path = path.with_name(f".{path.name}.lock")
    with _local_failures(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            say(f"Waiting for another process that prepares {path}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `folder` if the block succeeds and removed if it does not.

    Hold `locked(folder)` around it where several processes may build the same folder.
    """
    draft = folder.with_name(f".{folder.name}.building")
    with _local_failures(folder.parent):
        # A process that was killed here may have left its draft.
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield draft
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def record_checksums(path: Path) -> None:
    """Write down the checksums of a file or folder that has just come into the cache, for `changed_files`.

    Only that tells later damage where the place it came from publishes no checksum, or where the files were converted.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{file_digest(file, 'sha256')}  {file.relative_to(path.parent)}\n" for file in files]
    with _local_failures(path.parent):
        _checksums_of(path).write_text("".join(lines), encoding="utf-8")


def changed_files(path: Path) -> list[str] | None:
    """Say which files of a file or folder are not what they were when they came; None if that was not written down."""
    if not _checksums_of(path).is_file():
        return None
    lines = [line.split("  ", 1) for line in _checksums_of(path).read_text(encoding="utf-8").splitlines()]
    found = {file: path.parent / name for _, name in lines for file in [name]}
    return [
        f"{found[name]} {'has changed since it was downloaded' if found[name].is_file() else 'is missing'}"
        for digest, name in lines
        if not found[name].is_file() or file_digest(found[name], "sha256") != digest
    ]


def _checksums_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")  # in the form of the command sha256sum


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal checksum of a file."""
    with path.open("rb") as file:
        # Used to tell files apart and to find damage, not to keep secrets: md5 is what the data sets publish.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def say(message: str) -> None:
    """Tell the person at the keyboard, apart from the output of the program."""
    print(message, file=sys.stderr, flush=True)


class _StoppedError(Exception):
    """Another file that was to be had together with this one could not be."""


class _Worker(threading.Thread):
    """A thread of `together`, whose downloads end when `stop` is set."""

    def __init__(self, stop: threading.Event, **options: Any):
        super().__init__(**options)
        self.stop = stop


class _PassingError(Exception):
    """A failure that may be gone in a moment."""

    def __init__(self, message: str, retry_after: str | None = None):
        super().__init__(message)
        self.retry_after = retry_after


def _persist(attempt: Callable[[], None], part: Path, want: Expected, retry: RetryPolicy) -> None:
    """Attempt until no passing failure comes; raise SourceError if they do not pass."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            attempt()
            return
        except _PassingError as passing:
            if _size(part) >= furthest + WORTHWHILE_BYTES:
                failures = 0
            furthest = max(furthest, _size(part))
            failures += 1
            if failures >= retry.attempts:
                raise SourceError(f"{passing} (tried {failures} times)") from passing
            wait_s = retry.wait_s(failures, passing.retry_after)
            if wait_s > retry.max_wait_s:
                raise SourceError(f"{passing}, and asks to wait {wait_s:.0f} s") from passing
            say(f"{want.filename}: {passing}; trying again in {wait_s:.1f} s")
            time.sleep(wait_s)


def _obtain(source: Source, destination: Path, want: Expected, retry: RetryPolicy) -> None:
    part = destination.with_name(destination.name + ".part")
    resumed = part.exists()
    source.download(part, want, retry)
    wrong = want.mismatch(part)
    if wrong is not None and resumed:
        # The beginning may have come from another source or an older version of the file.
        _forget(part)
        source.download(part, want, retry)
        wrong = want.mismatch(part)
    if wrong is not None:
        _forget(part)
        raise SourceError(f"what arrived {wrong}")
    with _local_failures(destination.parent):
        part.replace(destination)
    _forget(part)


def _transfer(url: str, part: Path, want: Expected, retry: RetryPolicy) -> None:
    """Make one request for what `part` lacks and append what comes."""
    import requests
    import urllib3

    etag_file = _etag_file(part)
    etag = etag_file.read_text() if etag_file.exists() else None
    if etag is None and want.checksum is None:
        _forget(part)  # nothing could tell whether the beginning belongs to this file
    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # lengths and ranges are those of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag:
            headers["If-Range"] = etag
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(10, retry.timeout_s)) as response:
            if response.status_code == 416:
                # The part is as long as the file or longer; the checksum tells which, so do not ask for more.
                if have and response.headers.get("Content-Range") == f"bytes */{have}":
                    return
                _forget(part)
                raise _PassingError("416, the part on disk does not fit the file")
            if response.status_code in PASSING_STATUS:
                raise _PassingError(f"{response.status_code} {response.reason}", response.headers.get("Retry-After"))
            if not response.ok:
                raise SourceError(f"{response.status_code} {response.reason}")
            if response.status_code != 206:
                have = 0  # the whole file comes: it changed since, or the server knows no ranges
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                _forget(part)
                raise _PassingError(f"answers with another range: {response.headers.get('Content-Range')}")
            total = _total_bytes(response, have)
            if want.size_bytes is not None and total is not None and total != want.size_bytes:
                raise SourceError(f"offers {total:,} bytes, expected {want.size_bytes:,}")
            with _local_failures(part.parent):
                _check_space(part.parent, want.filename, None if total is None else total - have)
                _remember_etag(etag_file, response.headers.get("ETag"))
                with part.open("ab" if have else "wb") as file, _progress(want.filename, url, have, total) as report:
                    for chunk in _pieces(response, retry):
                        file.write(chunk)
                        report(len(chunk))
                        if want.size_bytes is not None and file.tell() > want.size_bytes:
                            raise SourceError(f"sends more than the expected {want.size_bytes:,} bytes")
    except requests.exceptions.SSLError as error:
        raise SourceError(f"no secure connection: {_one_line(error)}") from error
    except requests.Timeout as error:
        raise _PassingError("no answer in time") from error
    except (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError) as error:
        if isinstance(error, urllib3.exceptions.TimeoutError):
            raise _PassingError("no answer in time") from error
        of = f" of {total:,}" if total is not None else ""
        raise _PassingError(f"connection cut after {_size(part):,}{of} bytes") from error
    except requests.ConnectionError as error:
        raise _PassingError(f"no connection: {_one_line(error)}") from error
    except requests.RequestException as error:
        raise SourceError(_one_line(error)) from error


def _pieces(response: "requests.Response", retry: RetryPolicy) -> Iterator[bytes]:
    """Yield what comes as it comes, as long as it does not come too slowly."""
    start, arrived = time.monotonic(), 0
    # requests' own iterator waits until a whole chunk is there, and never takes a slow connection for a silent one.
    while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
        yield chunk
        arrived += len(chunk)
        if (passed_s := time.monotonic() - start) >= retry.timeout_s:
            if arrived < retry.min_bytes_per_s * passed_s:
                raise _PassingError(f"too slow: {arrived:,} bytes in {passed_s:.0f} s")
            start, arrived = time.monotonic(), 0


def _unlike_etag(path: Path, etag: str | None) -> str | None:
    """Say how a file differs from what the Hub's ETag promises: a sha256, or for small files the name git gives it."""
    if etag is None:
        return None
    if re.fullmatch("[0-9a-f]{64}", etag):
        found = file_digest(path, "sha256")
        return None if found == etag else f"has the sha256 {found}, expected {etag}"
    if re.fullmatch("[0-9a-f]{40}", etag):
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return None if found == etag else f"has the git name {found}, expected {etag}"
    return None


def _hub_bar(progress: Callable[[int, int | None], Any], bars: contextlib.ExitStack) -> type:
    """Return a class that takes the place of the Hub client's own progress bar."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            have, total = options.get("initial") or 0, options.get("total")
            super().__init__(*args, **{**options, "disable": True})
            self.report = bars.enter_context(progress(have, total))

        def update(self, n: float | None = 1) -> None:
            self.report(int(n or 0))

    return Bar


def _total_bytes(response: "requests.Response", have: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return have + int(length) if length.isdigit() else None


def _retry_after_s(value: str) -> float:
    """Read a Retry-After header: seconds, or a date."""
    from email.utils import parsedate_to_datetime

    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 1.0


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _remember_etag(etag_file: Path, etag: str | None) -> None:
    # A weak ETag does not promise equal bytes, so a range cannot be asked for with it.
    if etag and not etag.startswith("W/"):
        etag_file.write_text(etag)
    else:
        etag_file.unlink(missing_ok=True)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _take_kaggle_file(staging: Path, filename: str, part: Path) -> None:
    """Move the downloaded file to `part`; Kaggle sends some files zipped, under the name plus `.zip`."""
    # Newer clients keep the folders of the data set, older ones do not.
    found = next((file for name in (filename, f"{filename}.zip") for file in staging.rglob(name)), None)
    if found is None:
        raise SourceError(f"Kaggle's client left no file {filename}")
    if zipfile.is_zipfile(found) and not filename.endswith(".zip"):
        with zipfile.ZipFile(found) as archive, archive.open(filename) as member, part.open("wb") as file:
            shutil.copyfileobj(member, file)
    else:
        found.replace(part)


def _check_space(folder: Path, filename: str, needed_bytes: int | None) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes is not None and needed_bytes > free:
        raise DataError(
            f"The disk of {folder} has {free / 1e6:,.0f} MB free, and {filename} needs {needed_bytes / 1e6:,.0f} MB "
            "more. Free some space, or set XDG_CACHE_HOME to a folder on a larger disk."
        )


@contextlib.contextmanager
def _local_failures(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with this machine's disk into an error that a person can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"The disk is full while writing to {folder}. Free some space, or set XDG_CACHE_HOME to a folder on a "
                "larger disk."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DataError(
                f"Cannot write to {folder}: {error.strerror}. Make it writable, or set XDG_CACHE_HOME to a folder "
                "that is."
            ) from error
        raise


@contextlib.contextmanager
def _progress(filename: str, url: str, have: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, and now and then a line elsewhere."""
    stop = getattr(threading.current_thread(), "stop", None)
    with _BARS.one(filename, have, total) if sys.stderr.isatty() else _plain(filename, url, have, total) as advance:

        def report(count: int) -> None:
            if stop is not None and stop.is_set():
                raise _StoppedError
            advance(count)

        yield report


class _Bars:
    """The bars of all downloads that run at the moment. rich shows one group at a time, so they share one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.group: Progress | None = None
        self.num_open = 0

    @contextlib.contextmanager
    def one(self, filename: str, have: int, total: int | None) -> Iterator[Callable[[int], None]]:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with self.lock:
            if self.group is None:
                self.group = Progress(*columns, console=Console(stderr=True))
                self.group.start()
            self.num_open += 1
            group = self.group
        task = group.add_task(filename, total=total, completed=have)
        try:
            yield lambda count: group.advance(task, count)
        finally:
            with self.lock:
                self.num_open -= 1
                if not self.num_open:
                    group.stop()
                    self.group = None


_BARS = _Bars()


@contextlib.contextmanager
def _plain(filename: str, url: str, have: int, total: int | None) -> Iterator[Callable[[int], None]]:
    lines = _PlainProgress(filename, have, total)
    beginning = f", resuming at {have / 1e6:,.1f} MB" if have else ""
    say(f"Downloading {filename}{'' if total is None else f' ({total / 1e6:,.1f} MB)'} from {url}{beginning}")
    yield lines.advance


@dataclass
class _PlainProgress:
    filename: str
    done_bytes: int
    total_bytes: int | None
    last_s: float = field(default_factory=time.monotonic)

    def advance(self, count: int) -> None:
        self.done_bytes += count
        if time.monotonic() - self.last_s >= PLAIN_PROGRESS_EVERY_S:
            self.last_s = time.monotonic()
            of = f" of {self.total_bytes / 1e6:,.1f}" if self.total_bytes else ""
            say(f"{self.filename}: {self.done_bytes / 1e6:,.1f}{of} MB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
