"""A web server of a folder on 127.0.0.1, slow or faulty as asked; it knows no ranges, as whole files are fetched."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHUNK = 1 << 16


class Web:
    """What was asked for, and what is to go wrong.

    Attributes:
        url: Of the folder.
        gets: Requests for the content of each file, by path.
        bytes: Sent.
        latency_s: Before each answer.
        bytes_per_s: Of all answers together.
        fault: Called with a path and the number of the request for it, from 1; says the status to answer with, or
            changes the content that is sent (the announced length is that of the changed content).
    """

    def __init__(self, folder: Path):
        self.folder, self.gets, self.bytes, self.url = folder, Counter[str](), 0, ""
        self.latency_s, self.bytes_per_s = 0.0, float("inf")
        self.fault: Callable[[str, int, bytes], int | bytes] = lambda path, number, data: data
        self._lock, self.free_at = threading.Lock(), 0.0

    def send(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        """One answer."""
        time.sleep(self.latency_s)
        path = handler.path.lstrip("/")
        with self._lock:
            self.gets[path] += body
        file = self.folder / path
        data = file.read_bytes() if file.is_file() else 404
        if isinstance(data, bytes):
            data = self.fault(path, self.gets[path], data) if body else data
        if isinstance(data, int):
            handler.send_error(data)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("Last-Modified", str(file.stat().st_mtime_ns))
        handler.end_headers()
        for at in range(0, len(data) if body else 0, CHUNK):
            with self._lock:
                self.bytes += len(data[at:at + CHUNK])
                self.free_at = max(self.free_at, time.monotonic()) + len(data[at:at + CHUNK]) / self.bytes_per_s
                wait = self.free_at - time.monotonic()
            time.sleep(max(wait, 0))
            handler.wfile.write(data[at:at + CHUNK])


@contextmanager
def serve(folder: Path) -> Iterator[Web]:
    """Serves a folder."""
    web_server = Web(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            web_server.send(self, True)

        def do_HEAD(self) -> None:
            web_server.send(self, False)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # a client that was killed
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    web_server.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web_server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
