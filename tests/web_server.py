"""Local web server with scripted behaviour, including failures, for each request."""

from __future__ import annotations

import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers each request with the next behaviour of its path's script."""

    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self):
        script = self.server.scripts[self.path]
        with self.server.lock:
            turn = len(self.server.asked(self.path))
            self.server.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        script[min(turn, len(script) - 1)](self)

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b"", **headers):
        """Send status, headers (``_`` stands for ``-``) and body; a header of None is not sent."""
        headers = {"Content_Length": str(len(body)), **headers}
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


Behaviour = Callable[[Handler], None]


class WebServer(ThreadingHTTPServer):
    """Web server that plays ``scripts[path]``, one behaviour per request; the last one repeats."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts: dict[str, list[Behaviour]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.lock = threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # the client may hang up
            super().handle_error(request, client_address)

    def url(self, path, *script):
        """Set the script of a path and return its URL."""
        self.scripts[path] = list(script)
        return f"http://127.0.0.1:{self.server_port}{path}"

    def asked(self, path):
        """Return the headers of all requests for a path, in order."""
        return [headers for asked, headers in self.requests if asked == path]


def gives(
    data: bytes,
    etag: str | None = '"1"',
    breaks_after: int | None = None,
    heeds_range: bool = True,
    heeds_if_range: bool = True,
    takes: float = 0.0,
    **headers,
) -> Behaviour:
    """Serve a file with range requests; disconnect ``breaks_after`` bytes of the response body."""

    def behave(request):
        start, status, sent = 0, 200, dict(headers)
        found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        version = etag or headers.get("Last_Modified")
        same = request.headers.get("If-Range") == version or not heeds_if_range
        if found and heeds_range and same:
            start, status = int(found[1]), 206
            sent = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}", **sent}
        if etag:
            sent["ETag"] = etag
        body = data[start:]
        time.sleep(takes)
        request.answer(status, body[:breaks_after], **{"Content_Length": str(len(body)), **sent})

    return behave


def gives_in_chunks(data: bytes, breaks_after: int | None = None, **headers) -> Behaviour:
    """Serve a file with chunked encoding, without a Content-Length."""

    def behave(request):
        request.answer(200, **{"Content_Length": None, "Transfer_Encoding": "chunked", **headers})
        for start in range(0, len(data[:breaks_after]), 5000):
            chunk = data[:breaks_after][start : start + 5000]
            request.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if breaks_after is None:
            request.wfile.write(b"0\r\n\r\n")

    return behave


def fails(status: int, body: bytes = b"", **headers) -> Behaviour:
    """Respond with an error status."""
    return lambda request: request.answer(status, body, **headers)


def resets(request: Handler) -> None:
    """Reset the connection without a response."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()


def hangs(seconds: float, body: bytes = b"", **headers) -> Behaviour:
    """Start a response if headers are given, then send nothing for some seconds."""

    def behave(request):
        if headers:
            request.answer(200, body, **headers)
            request.wfile.flush()
        time.sleep(seconds)

    return behave


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
