"""Downloads against a web server on this machine: what goes wrong on real networks must end well or be said."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest
from trainyard_shared.datasets import fetch as fetching
from trainyard_shared.datasets.fetch import (
    HttpFile,
    KaggleFile,
    RetryPolicy,
    SourceError,
    building,
    changed_files,
    download,
    fetch,
    locked,
    record_checksums,
    together,
)
from trainyard_shared.errors import DataError

CONTENT = bytes(range(256)) * 8192  # 2 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
QUICK = RetryPolicy(attempts=3, first_wait_s=0.01, max_wait_s=2.0, timeout_s=0.5)


@pytest.fixture
def get(web, tmp_path, monkeypatch):
    """Fetch CONTENT from the server's /a/file.bin."""
    monkeypatch.delenv("TRAINYARD_OFFLINE", raising=False)
    web.files["/a/file.bin"] = CONTENT

    def run(*paths, **options):
        sources = [HttpFile(f"mirror {i}", web.url + path) for i, path in enumerate(paths or ["/a/file.bin"], start=1)]
        options = {"sha256": SHA256, "retry": QUICK, **options}
        return fetch(sources, tmp_path / "data" / "file.bin", **options)

    return run


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_downloads_once_and_leaves_only_the_file(web, get):
    path = get()
    assert path.read_bytes() == CONTENT
    assert leftovers(path.parent) == ["file.bin"]
    assert get() == path
    assert web.num_gets == 1


def test_follows_a_redirect(web, get):
    web.redirects["/old"] = "/a/file.bin"
    assert get("/old").read_bytes() == CONTENT


@pytest.mark.parametrize("checksum", [{"md5": MD5, "sha256": None}, {"sha256": SHA256}, {"size_bytes": len(CONTENT)}])
def test_accepts_each_kind_of_check(get, checksum):
    assert get(**checksum).read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_resumed_if_the_server_can(web, get, ranges):
    web.ranges = ranges
    web.cuts = [1_500_000]
    assert get().read_bytes() == CONTENT
    first, second = (asked for _, _, asked in web.requests)
    kept = int(second.removeprefix("bytes=").removesuffix("-"))
    assert first is None
    assert kept == 1_500_000  # nothing that had arrived is lost
    assert web.sent_bytes == len(CONTENT) + 1_500_000 - (kept if ranges else 0)


def test_a_server_that_always_cuts_is_given_up(web, get):
    web.ranges = False
    web.cuts = [1000] * 20
    with pytest.raises(DataError, match=r"connection cut after 1,000 of 2,097,152 bytes \(tried 3 times\)"):
        get()
    assert web.num_gets == 3


def test_attempts_that_bring_the_file_forward_do_not_count_as_failures(web, get, monkeypatch):
    monkeypatch.setattr(fetching, "WORTHWHILE_BYTES", 100_000)
    web.cuts = [200_000] * 8
    assert get().read_bytes() == CONTENT


@pytest.mark.parametrize(
    "refusals", [[(503, {})], [(429, {"Retry-After": "0"})], [(500, {}), (502, {})], [(429, {}), (504, {})]]
)
def test_passing_refusals_are_waited_out(web, get, refusals):
    web.refusals = list(refusals)
    assert get().read_bytes() == CONTENT
    assert web.num_gets == len(refusals) + 1


def test_retry_after_is_honoured(web, get):
    web.refusals = [(429, {"Retry-After": "1"})]
    start = time.monotonic()
    get()
    assert time.monotonic() - start >= 1.0


def test_a_retry_after_beyond_patience_ends_the_source(web, get):
    web.refusals = [(429, {"Retry-After": "3600"})]
    with pytest.raises(DataError, match="429 Too Many Requests, and asks to wait 3600 s"):
        get()
    assert web.num_gets == 1


def test_a_refusal_that_lasts_ends_the_source(web, get):
    web.refusals = [(503, {})] * 9
    with pytest.raises(DataError, match=r"503 Service Unavailable \(tried 3 times\)"):
        get()
    assert web.num_gets == 3


def test_a_silent_server_times_out(web, get):
    web.delay_s = 0.6
    with pytest.raises(DataError, match="no answer in time"):
        get(retry=RetryPolicy(attempts=2, first_wait_s=0.01, timeout_s=0.2))


def test_a_server_that_drips_is_given_up(web, get):
    web.piece_bytes = 1000
    web.on_piece = lambda sent: time.sleep(0.05)
    slow = RetryPolicy(attempts=2, first_wait_s=0.01, timeout_s=0.3, min_bytes_per_s=100_000)
    with pytest.raises(DataError, match=r"too slow: [\d,]+ bytes in 0 s \(tried 2 times\)"):
        get(retry=slow)
    assert web.num_gets == 2
    web.on_piece = lambda sent: None
    assert get(retry=slow).read_bytes() == CONTENT
    assert web.requests[-1][2].startswith("bytes=")  # what dripped in was not lost


def test_a_slow_server_that_brings_enough_is_waited_for(web, get):
    web.piece_bytes = 1 << 18
    web.on_piece = lambda sent: time.sleep(0.1)
    assert get(retry=RetryPolicy(attempts=1, timeout_s=0.3, min_bytes_per_s=1000)).read_bytes() == CONTENT


def test_a_redirect_in_a_circle_ends_the_source(web, get):
    web.redirects = {"/a": "/b", "/b": "/a"}
    with pytest.raises(DataError, match="Exceeded 30 redirects"):
        get("/a")


def test_a_retry_after_may_be_a_date():
    policy = RetryPolicy()
    assert policy.wait_s(1, "Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert 3.4e9 < policy.wait_s(1, "Fri, 21 Oct 2140 07:28:00 GMT") < 3.9e9
    assert policy.wait_s(1, "soon") == 1


def test_files_are_downloaded_together(web, tmp_path):
    names = [f"file{i}" for i in range(5)]
    web.files = {f"/{name}": CONTENT + name.encode() for name in names}
    web.delay_s = 0.4
    start = time.monotonic()
    calls = [partial(download, HttpFile("server", f"{web.url}/{name}"), tmp_path / name) for name in names]
    assert [path.name for path in together(*calls)] == names
    assert time.monotonic() - start < 5 * web.delay_s
    assert all((tmp_path / name).read_bytes() == CONTENT + name.encode() for name in names)


def test_one_failure_stops_what_runs_together(web, tmp_path):
    web.files = {"/slow": CONTENT}
    web.piece_bytes = 1 << 14
    web.on_piece = lambda sent: time.sleep(0.05)  # 6 s in all
    calls = [partial(download, HttpFile("server", f"{web.url}/{name}"), tmp_path / name) for name in ("slow", "none")]
    start = time.monotonic()
    with pytest.raises(SourceError, match="404 Not Found"):
        together(*calls)
    assert time.monotonic() - start < 4
    assert not (tmp_path / "slow").exists()
    assert 0 < (tmp_path / "slow.part").stat().st_size < len(CONTENT)
    web.on_piece = lambda sent: None
    assert calls[0]().read_bytes() == CONTENT
    assert web.requests[-1][2].startswith("bytes=")


def test_ctrl_c_does_not_wait_for_downloads_together(web, tmp_path):
    web.files = {"/slow": CONTENT}
    web.piece_bytes = 1 << 10
    web.on_piece = lambda sent: time.sleep(0.1)  # minutes in all
    code = (
        "import sys\nfrom functools import partial\nfrom pathlib import Path\n"
        "from trainyard_shared.cli import command\n"
        "from trainyard_shared.datasets.fetch import HttpFile, download, together\n"
        "@command\ndef run(argv):\n"
        "    together(*(partial(download, HttpFile('server', argv[0]), Path(argv[1]) / name) for name in 'ab'))\n"
        "sys.exit(run())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"{web.url}/slow", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell ignores it for what it starts in the background, and this is passed on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not ((tmp_path / "a.part").exists() and (tmp_path / "b.part").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in said


def test_later_damage_is_found_by_the_checksums_taken_at_arrival(tmp_path):
    folder = tmp_path / "set"
    (folder / "deeper").mkdir(parents=True)
    (folder / "one two").write_text("1")
    (folder / "deeper" / "three").write_text("3")
    assert changed_files(folder) is None
    record_checksums(folder)
    assert changed_files(folder) == []
    run = subprocess.run(["sha256sum", "-c", ".set.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (folder / "one two").write_text("2")
    (folder / "deeper" / "three").unlink()
    assert changed_files(folder) == [
        f"{folder / 'deeper' / 'three'} is missing",
        f"{folder / 'one two'} has changed since it was downloaded",
    ]


def test_the_next_mirror_serves_when_one_fails(web, get, capsys):
    web.files["/wrong"] = CONTENT[:-1] + b"!"
    assert get("/missing", "/wrong", "/a/file.bin").read_bytes() == CONTENT
    said = capsys.readouterr().err
    assert "404 Not Found" in said
    assert "Downloading file.bin (2.1 MB)" in said


def test_the_error_names_every_mirror_and_what_to_do(web, get, tmp_path):
    web.files["/wrong"] = b"something else"
    with pytest.raises(DataError) as caught:
        get("/missing", "/wrong")
    message = str(caught.value)
    assert f"mirror 1 ({web.url}/missing): 404 Not Found" in message
    found = hashlib.sha256(b"something else").hexdigest()
    assert f"mirror 2 ({web.url}/wrong): what arrived has the sha256 {found}, expected {SHA256}" in message
    assert f"What to do: download {web.url}/missing by hand and save it as" in message
    assert f"sha256 {SHA256}" in message.splitlines()[-1]
    assert leftovers(tmp_path / "data") == []


def test_a_refused_connection_is_named(web, get):
    web.redirects["/gone"] = "http://127.0.0.1:1/nothing"
    with pytest.raises(DataError, match=r"no connection: .*[Rr]efused"):
        get("/gone")


def test_a_wrong_length_is_refused_before_the_download(get, tmp_path):
    with pytest.raises(DataError, match="offers 2,097,152 bytes, expected 5"):
        get(size_bytes=5)
    assert leftovers(tmp_path / "data") == []


def test_a_body_shorter_than_announced_is_no_file(web, get, tmp_path):
    web.length_error = 10
    web.ranges = False
    with pytest.raises(DataError, match="tried 3 times"):
        get(sha256=None)
    assert not (tmp_path / "data" / "file.bin").exists()


def test_a_damaged_file_on_disk_is_found_and_replaced(web, get, capsys):
    path = get()
    path.write_bytes(CONTENT[:-1] + b"?")
    assert get().read_bytes() == CONTENT
    assert "downloading it again" in capsys.readouterr().err


def test_a_part_of_another_version_is_not_built_upon(web, get, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file.bin.part").write_bytes(b"x" * 1000)
    (folder / "file.bin.part.etag").write_text('"older"')
    assert get().read_bytes() == CONTENT
    assert web.num_gets == 1  # If-Range made the server send the whole file at once


def test_a_wrong_part_without_etag_is_found_by_the_checksum(web, get, tmp_path):
    web.etag = False
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file.bin.part").write_bytes(b"x" * 1000)
    assert get().read_bytes() == CONTENT
    assert [asked for _, _, asked in web.requests] == ["bytes=1000-", None]


def test_a_part_that_nothing_can_check_is_dropped(web, get, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file.bin.part").write_bytes(b"x" * 1000)
    assert get(sha256=None).read_bytes() == CONTENT
    assert web.requests[0][2] is None


@pytest.mark.parametrize(("size", "asked"), [(len(CONTENT), 1), (len(CONTENT) + 7, 2)])
def test_a_part_that_is_whole_or_too_long(web, get, tmp_path, size, asked):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file.bin.part").write_bytes((CONTENT + b"more...")[:size])
    assert get().read_bytes() == CONTENT
    assert web.num_gets == asked


FETCH_SCRIPT = """
import sys
from pathlib import Path
from trainyard_shared.datasets.fetch import HttpFile, fetch
fetch([HttpFile("server", sys.argv[1])], Path(sys.argv[2]), sha256=sys.argv[3])
"""


def start_fetch(url: str, destination: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH_SCRIPT, url, str(destination), SHA256], stderr=subprocess.PIPE, text=True
    )


def test_two_processes_download_once(web, get, tmp_path):
    web.delay_s = 1.5  # so that both are certainly there
    destination = tmp_path / "file.bin"
    processes = [start_fetch(f"{web.url}/a/file.bin", destination) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert web.num_gets == 1
    assert sum("Downloading" in text for text in errors) == 1
    assert destination.read_bytes() == CONTENT


def test_a_killed_download_is_resumed(web, get, tmp_path):
    destination = tmp_path / "file.bin"
    part = tmp_path / "file.bin.part"

    def stall(sent: int) -> None:
        if sent > 1_000_000 and len(web.requests) == 1:
            time.sleep(0.2)

    web.on_piece = stall
    process = start_fetch(f"{web.url}/a/file.bin", destination)
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= 500_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = part.stat().st_size
    assert not destination.exists()
    assert 500_000 <= kept < len(CONTENT)
    fetch([HttpFile("server", f"{web.url}/a/file.bin")], destination, sha256=SHA256)
    assert web.requests[-1][2] == f"bytes={kept}-"
    assert destination.read_bytes() == CONTENT


def test_a_full_disk_is_said_and_nothing_is_trusted(web, get, tmp_path, monkeypatch):
    class FullFile:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def write(self, data):
            self.file.write(data[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

        def tell(self):
            return self.file.tell()

    real_open = Path.open

    def open_part(path, mode="r", *args, **kwargs):
        file = real_open(path, mode, *args, **kwargs)
        return FullFile(file) if path.suffix == ".part" and mode in ("wb", "ab") else file

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_part)
        with pytest.raises(DataError, match="disk is full"):
            get("/a/file.bin", "/a/file.bin")
    assert web.num_gets == 1  # another mirror would not help
    assert not (tmp_path / "data" / "file.bin").exists()
    assert get().read_bytes() == CONTENT


def test_a_disk_too_small_is_said_before_the_download(web, get, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"1 MB free, and file.bin needs 2 MB more"):
        get()


def test_an_unwritable_folder_is_said(web, tmp_path):
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"Cannot write to .*data.*XDG_CACHE_HOME"):
        fetch([HttpFile("server", web.url)], tmp_path / "data" / "file.bin", retry=QUICK)


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_offline_uses_what_is_there_and_says_what_is_missing(web, get, monkeypatch, by):
    options = {"offline": True} if by == "argument" else {}
    if by == "environment":
        monkeypatch.setenv("TRAINYARD_OFFLINE", "1")
    with pytest.raises(DataError, match=r"file.bin is missing, and offline mode .*What to do"):
        get(**options)
    assert web.num_gets == 0
    monkeypatch.delenv("TRAINYARD_OFFLINE", raising=False)
    path = get()
    if by == "environment":
        monkeypatch.setenv("TRAINYARD_OFFLINE", "1")
    assert get(**options) == path
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="offline mode forbids"):
        get(**options)


def test_progress_on_a_terminal_is_a_bar(get, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    get()
    assert "Downloading" not in capsys.readouterr().err


def test_building_leaves_all_or_nothing(tmp_path):
    def fill(fail: bool) -> None:
        with locked(tmp_path / "made"), building(tmp_path / "made") as draft:
            (draft / "one").write_text("1")
            if fail:
                raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fill(fail=True)
    assert leftovers(tmp_path) == []
    (tmp_path / ".made.building").mkdir()
    (tmp_path / ".made.building" / "stale").write_text("from a killed process")
    fill(fail=False)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["one"]


HUB_SCRIPT = """
import json, sys
from pathlib import Path
from trainyard_shared.datasets.fetch import DEFAULT_RETRY, HubFile, RetryPolicy, download
from trainyard_shared.errors import DataError
for name, repo, path, revision, expected in json.loads(sys.argv[2]):
    retry = RetryPolicy(attempts=3, first_wait_s=0.01, max_wait_s=2.0, timeout_s=5)
    try:
        file = download(HubFile("Hub", repo, path, revision), Path(sys.argv[1]) / name, retry=retry, **expected)
        print(json.dumps([name, file.read_bytes().hex()[:8]]))
    except DataError as error:
        print(json.dumps([name, str(error)]))
"""


def test_the_real_hub_client_at_another_endpoint(web, tmp_path):
    """One process, whose HF_ENDPOINT is a server on this machine, asks for files good and bad."""
    pytest.importorskip("huggingface_hub")
    big = CONTENT * 6  # the client keeps what was cut in pieces of 10 MiB
    files = {"folder/file.bin": CONTENT, "big.bin": big, "small.txt": b"small", "wrong.bin": CONTENT}
    web.publish_on_hub("owner/set", files)
    storage = f"/storage/{hashlib.sha256(big).hexdigest()}"
    resolve = "/datasets/{}/resolve/main/file.bin"
    git_name = hashlib.sha1(b"blob 5\0small").hexdigest()
    web.headers["/datasets/owner/set/resolve/main/small.txt"]["X-Linked-Etag"] = f'"{git_name}"'
    web.headers["/datasets/owner/set/resolve/main/wrong.bin"]["X-Linked-Etag"] = f'"{"0" * 64}"'
    web.publish_on_hub("owner/huge", {"file.bin": CONTENT})
    web.headers[resolve.format("owner/huge")]["X-Linked-Size"] = str(1 << 60)
    web.answers = {
        resolve.format("owner/gated"): (403, {"X-Error-Code": "GatedRepo"}),
        resolve.format("owner/nothing"): (404, {"X-Error-Code": "RepoNotFound"}),
        resolve.format("owner/private"): (401, {"X-Error-Code": "RepoNotFound"}),
        resolve.format("owner/token"): (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        resolve.format("owner/set"): (404, {"X-Error-Code": "EntryNotFound"}),
        "/datasets/owner/set/resolve/old/file.bin": (404, {"X-Error-Code": "RevisionNotFound"}),
        resolve.format("owner/busy"): (429, {"Retry-After": "3600"}),
        resolve.format("owner/down"): (503, {}),
    }
    cases = [
        ("big", "owner/set", "big.bin", "main", {}),
        ("good", "owner/set", "folder/file.bin", "main", {"sha256": SHA256}),
        ("again", "owner/set", "folder/file.bin", "main", {"sha256": "0" * 64}),
        ("small", "owner/set", "small.txt", "main", {}),
        ("announced", "owner/set", "wrong.bin", "main", {}),
        ("length", "owner/set", "folder/file.bin", "main", {"size_bytes": 5}),
        ("huge", "owner/huge", "file.bin", "main", {}),
        ("gated", "owner/gated", "file.bin", "main", {}),
        ("nothing", "owner/nothing", "file.bin", "main", {}),
        ("private", "owner/private", "file.bin", "main", {}),
        ("token", "owner/token", "file.bin", "main", {}),
        ("entry", "owner/set", "file.bin", "main", {}),
        ("revision", "owner/set", "file.bin", "old", {}),
        ("busy", "owner/busy", "file.bin", "main", {}),
        ("down", "owner/down", "file.bin", "main", {}),
    ]
    web.cuts = [11_000_000]  # the first answer with a body
    command = [sys.executable, "-c", HUB_SCRIPT, str(tmp_path / "data"), json.dumps(cases)]
    environment = {**os.environ, "HF_ENDPOINT": web.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    found = dict(json.loads(line) for line in run.stdout.splitlines())
    page = f"{web.url}/datasets/owner"
    expected = {
        "big": CONTENT.hex()[:8],
        "good": CONTENT.hex()[:8],
        "again": f"what arrived has the sha256 {SHA256}, expected {'0' * 64}",
        "small": b"small".hex()[:8],
        "announced": f"what arrived has the sha256 {SHA256}, expected {'0' * 64}, as the Hub announces it",
        "length": "offers 2,097,152 bytes, expected 5",
        "gated": f"403: log in and accept the terms at {page}/gated, then set HF_TOKEN to a token of yours",
        "nothing": f"404: there is no data set {page}/nothing, or it is private; then set HF_TOKEN",
        "token": "401: the Hub does not accept the token, which is that of HF_TOKEN or of 'hf auth login'",
        "private": f"401: there is no data set {page}/private, or it is private; then set HF_TOKEN",
        "entry": f"404: {page}/set has no file file.bin",
        "revision": f"404: {page}/set has no revision old",
        "busy": "429 Too Many Requests, and asks to wait 3600 s",
        "down": "503 Service Unavailable (tried 3 times)",
    }
    assert "and huge needs 1,152,921,504,607 MB more" in found.pop("huge")
    assert found == expected
    assert leftovers(tmp_path / "data") == ["big", "good", "small"]
    assert "Downloading good (2.1 MB)" in run.stderr
    ranges = [asked for method, path, asked in web.requests if (method, path) == ("GET", storage)]
    assert ranges == [None, f"bytes={10 << 20}-"]


@pytest.fixture
def kaggle_at(web, monkeypatch, tmp_path):
    """Point the real Kaggle client at the local server, with credentials of no value."""
    pytest.importorskip("kaggle")
    from kagglesdk import kaggle_env

    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, web.url)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    monkeypatch.setenv("KAGGLE_USERNAME", "nobody")
    monkeypatch.setenv("KAGGLE_KEY", "nothing")
    return web


@pytest.mark.parametrize("competition", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_real_kaggle_client_at_another_endpoint(kaggle_at, tmp_path, competition, zipped):
    kaggle_at.redirects = {
        "/v1/datasets.DatasetApiService/DownloadDataset": "/storage/file.bin",
        "/v1/competitions.CompetitionApiService/DownloadDataFile": "/storage/file.bin",
    }
    content = CONTENT
    if zipped:  # as Kaggle sends some files, with or without saying so in the name
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("file.bin", CONTENT)
        content = file.getvalue()
    kaggle_at.files["/storage/file.bin"] = content
    slug = "some-competition" if competition else "owner/set"
    download(KaggleFile("Kaggle", slug, "folder/file.bin", competition), tmp_path / "data" / "file.bin", md5=MD5)
    assert (tmp_path / "data" / "file.bin").read_bytes() == CONTENT
    assert leftovers(tmp_path / "data") == ["file.bin"]


@pytest.mark.parametrize("competition", [False, True])
def test_kaggle_says_what_to_do_about_a_forbidden_file(kaggle_at, tmp_path, competition):
    kaggle_at.refusals = [(403, {})] * 5
    slug = "some-competition" if competition else "owner/set"
    with pytest.raises(SourceError) as caught:
        download(KaggleFile("Kaggle", slug, "file.bin", competition), tmp_path / "file.bin", md5=MD5)
    asks = "accept the competition's rules first, at https://www.kaggle.com/competitions/some-competition/rules"
    assert (asks if competition else "open https://www.kaggle.com/datasets/owner/set while") in str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"401: .*does not accept the credentials; make a new token at https://www\.kaggle\.com/settings/api"),
        (404, r"404: there is no file file\.bin at https://www\.kaggle\.com/datasets/owner/set"),
        (400, "400 Bad Request"),
        (503, r"503 Service Unavailable \(tried 2 times\)"),
    ],
)
def test_kaggle_names_what_went_wrong(kaggle_at, tmp_path, status, words):
    kaggle_at.refusals = [(status, {})] * 9
    with pytest.raises(SourceError, match=words):
        download(KaggleFile("Kaggle", "owner/set", "file.bin"), tmp_path / "file.bin", retry=RetryPolicy(2, 0.01))
    assert kaggle_at.num_gets == 0  # the client asks by POST


def test_kaggle_is_asked_again_when_it_is_busy_and_resumed_when_it_cuts(kaggle_at, tmp_path, capsys):
    kaggle_at.redirects["/v1/datasets.DatasetApiService/DownloadDataset"] = "/storage/file.bin"
    kaggle_at.files["/storage/file.bin"] = CONTENT
    kaggle_at.refusals = [(429, {"Retry-After": "0"})]
    kaggle_at.cuts = [1_500_000]
    download(KaggleFile("Kaggle", "owner/set", "file.bin"), tmp_path / "file.bin", md5=MD5, retry=QUICK)
    assert "429 Too Many Requests; trying again" in capsys.readouterr().err


def test_kaggle_says_how_to_log_in(kaggle_at, tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(SourceError, match=r"kaggle.com/settings/api and save it as ~/.kaggle/access_token"):
        download(KaggleFile("Kaggle", "owner/set", "file.bin"), tmp_path / "file.bin", md5=MD5)


def test_importing_is_cheap():
    script = (
        "import sys, trainyard_shared.datasets.cifar\n"
        "heavy = {'torch', 'requests', 'pyarrow', 'PIL', 'huggingface_hub', 'kaggle', 'rich', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
