"""An HTTP server on loopback that serves files, badly when told to."""

import hashlib
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Shop(ThreadingHTTPServer):
    """Serves ``files``; ``faults`` are used up, one for each request, before a path is served well.

    A fault is a status code, "cut" (half of what was asked for, then the connection ends), "stuck" (the same,
    but with nothing new), "wrong" (other bytes of the same length), "page" (a web page), "whole" (ranges are
    ignored) or "elsewhere" (a range that was not asked for).
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests, self.versions = {}, {}, [], {}

    def handle_error(self, request, client_address):
        """Say nothing of clients that went away."""

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.lstrip("/")
        asked = self.headers.get("Range")
        self.server.requests.append((path, asked))
        faults = self.server.faults.get(path, [])
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int) or path not in self.server.files:
            self.send_error(fault or 404)
            return
        body = self.server.files[path]
        tag = f'"{hashlib.sha256(body).hexdigest()[:12]}"'
        if fault == "wrong":
            body = bytes(255 - byte for byte in body)
        start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if self.headers.get("If-Range") != tag or fault == "whole":
            start = 0
        if start >= len(body):
            self.send_error(416)
            return
        first = start + 7 if fault == "elsewhere" else start
        part = b"<html>sign in</html>" if fault == "page" else body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Type", "text/html" if fault == "page" else "application/octet-stream")
        self.send_header("ETag", tag)
        if start:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if fault in ("cut", "stuck"):
            self.wfile.write(part[: len(part) // 2 if fault == "cut" else 0])
            self.close_connection = True
            return
        self.wfile.write(part)

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def open_shop():
    shop = Shop()
    thread = threading.Thread(target=shop.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield shop
    finally:
        shop.shutdown()
        shop.server_close()
        thread.join()
