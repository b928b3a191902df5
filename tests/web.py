"""A server for the tests of downloads, in the very process that asks it: right, broken, silent and lying answers."""

import hashlib
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SIZE, SHA256 = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
HALF = SIZE // 2


class Server(ThreadingHTTPServer):
    """Answers /name by `Answers.name`; `log` has a (name, Range header) for each request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.log, self.sent, self.over = [], 0, threading.Event()

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.log.append((self.path[1:], self.headers.get("Range")))
        with suppress(ConnectionError):  # the client may leave
            getattr(self, self.path[1:])()

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, length=True, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length:
            self.send_header("Content-Length", str(SIZE if length is True else length))
        self.end_headers()
        self.wfile.write(content)

    def good(self):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        span = {"status": 206, "length": SIZE - start, "Content-Range": f"bytes {start}-{SIZE - 1}/{SIZE}"}
        self.answer(CONTENT[start:], **(span if start else {}))

    def without_range(self):
        self.answer(CONTENT)

    def without_length(self):
        self.answer(CONTENT, length=False)

    def other_range(self):
        self.answer(CONTENT[HALF + 1 :], 206, SIZE - HALF - 1, Content_Range=f"bytes {HALF + 1}-{SIZE - 1}/{SIZE}")

    def broken(self):
        self.answer(CONTENT[:HALF])

    def slow(self):
        self.answer(CONTENT[:HALF])
        time.sleep(0.3)
        self.wfile.write(CONTENT[HALF:])

    def silent(self):
        self.server.over.wait(30)

    def slow_to_start(self):
        self.answer(b"")
        self.silent()

    def stalled(self):
        self.answer(CONTENT[:HALF])
        self.silent()

    def other(self):
        self.answer(CONTENT[::-1])

    def shorter(self):
        self.answer(CONTENT[:-1], length=SIZE - 1)

    def endless(self):
        self.answer(CONTENT, length=False)
        for self.server.sent in range(50):  # megabytes: an end after all, should the client not leave
            self.wfile.write(CONTENT)

    def page(self):
        self.answer(b"<html>Sign in</html>", length=False, Content_Type="text/html; charset=utf-8")

    def gone(self):
        self.send_error(404)

    def nonsense(self):
        self.wfile.write(b"EHLO\r\n")
