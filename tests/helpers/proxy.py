"""A proxy before a tracking server: it can be slow, and it knows what was asked."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `target` after `delay` seconds; `asked` lists method and path of each."""

    daemon_threads = True

    def __init__(self, target: str, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.delay, self.asked = target, delay, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers[
            "Transfer-Encoding"
        ]:  # requests sends an empty file in chunks: the last one alone
            assert self.rfile.readline() + self.rfile.readline() == b"0\r\n\r\n"
        self.server.asked.append(f"{self.command} {self.path.split('?')[0]}")
        time.sleep(self.server.delay)
        own = ("host", "connection", "transfer-encoding")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in own}
        data = None if self.command == "GET" else body
        request = urllib.request.Request(
            self.server.target + self.path, data, headers, method=self.command
        )
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        except OSError:
            self.send_error(503)
            return
        content = answer.read()
        self.send_response(answer.status)
        for key in ("Content-Type", "Content-Disposition"):
            if answer.headers[key]:
                self.send_header(key, answer.headers[key])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *parts: object) -> None:
        pass


@contextmanager
def proxy(target: str, delay: float = 0.0) -> Iterator[Proxy]:
    """A running proxy."""
    with Proxy(target, delay) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()
