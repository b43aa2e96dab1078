"""For the tests of the data sets: a small web server that misbehaves in chosen ways, and a cache of their own."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@dataclass
class Script:
    """What the server holds, how it behaves, and what it has seen."""

    files: dict[str, bytes] = field(default_factory=dict)
    # Statuses that answer the first requests instead of the file, with their headers.
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    # Addresses that answer with a status, always.
    answers: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    ranges: bool = True
    etag: bool = True
    # Lengths after which the next answers are cut off.
    cuts: list[int] = field(default_factory=list)
    # Added to the Content-Length of every answer.
    length_error: int = 0
    delay_s: float = 0.0
    piece_bytes: int = 1 << 16
    # Called with the number of bytes sent so far after each piece.
    on_piece: Callable[[int], None] = lambda sent: None

    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def etag_of(self, path: str) -> str:
        return f'"{hashlib.md5(self.files[path]).hexdigest()}"'

    @property
    def num_gets(self) -> int:
        return sum(method == "GET" for method, _, _ in self.requests)

    def gets_of(self, start: str) -> list[str]:
        return [path for method, path, _ in self.requests if method == "GET" and path.startswith(start)]

    def publish_on_hub(self, repo: str, files: dict[str, bytes]) -> None:
        """Speak the Hub's API for a data set: addresses that announce a file's checksum and lead to its storage."""
        for path, content in files.items():
            sha256 = hashlib.sha256(content).hexdigest()
            resolve, storage = f"/datasets/{repo}/resolve/main/{path}", f"/storage/{sha256}"
            self.files[storage] = content
            # Another host, as far as the client can tell.
            self.redirects[resolve] = self.url.replace("127.0.0.1", "localhost") + storage
            self.headers[resolve] = {
                "X-Repo-Commit": "0" * 40,
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(content)),
            }


@pytest.fixture
def web() -> Iterator[Script]:
    """A running web server; change what it holds and does through its attributes."""
    with serve(Script()) as script:
        yield script


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `cache_dir()` returns in this test."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(folder / name))
    monkeypatch.delenv("TRAINYARD_OFFLINE", raising=False)
    return folder / "trainyard" / "datasets"


@contextlib.contextmanager
def serve(script: Script) -> Iterator[Script]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = self.path.split("?")[0]
            with script.lock:
                script.requests.append((self.command, path, self.headers.get("Range")))
                refusal = script.refusals.pop(0) if script.refusals else None
            time.sleep(script.delay_s)
            if refusal:
                self._empty(refusal[0], refusal[1])
            elif path in script.answers:
                self._empty(*script.answers[path])
            elif path in script.redirects:
                self._empty(302, {"Location": script.redirects[path], **script.headers.get(path, {})})
            elif path in script.files:
                self._file(path, with_body)
            else:
                self._empty(404, {})

        def _empty(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, path: str, with_body: bool) -> None:
            content, start = script.files[path], 0
            wanted = self.headers.get("Range")
            fresh = self.headers.get("If-Range", script.etag_of(path)) == script.etag_of(path)
            if wanted and script.ranges and fresh:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                if start >= len(content):
                    self._empty(416, {"Content-Range": f"bytes */{len(content)}"})
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if script.etag:
                self.send_header("ETag", script.etag_of(path))
            for name, value in script.headers.get(path, {}).items():
                self.send_header(name, value)
            body = content[start:]
            self.send_header("Content-Length", str(len(body) + script.length_error))
            self.end_headers()
            if not with_body:
                return
            with script.lock:
                cut = script.cuts.pop(0) if script.cuts else None
            body = body[:cut]
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(body), script.piece_bytes):
                    piece = body[at : at + script.piece_bytes]
                    self.wfile.write(piece)
                    with script.lock:
                        script.sent_bytes += len(piece)
                    script.on_piece(at + len(piece))
            self.close_connection = cut is not None or script.length_error != 0

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
