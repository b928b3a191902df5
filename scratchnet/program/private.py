"""A web server for whoever started the program, and for nobody else.

It listens on the loopback address, which every user of the machine and every page in a browser can reach. So each request
has to prove that it is wanted:
    the path       begins with a token of 128 random bits, which only the printed address has
    the Host       is the address itself: a foreign name that was made to lead here (DNS rebinding) is another host
    the method     is GET: nothing here can be changed
and there is a fixed list of names behind the token, no folder. What fails any of it gets 403 or 404, and no reason. What is
sent may be kept, framed and read by no other page, and a page may load nothing from elsewhere.
"""

import base64
import hashlib
import hmac
import http.server
import os
import re
import secrets
import socketserver
import sys
import threading
from typing import Any

HOST = "127.0.0.1"
MOST = 32  # connections at a time: who opens more, and says nothing, waits in vain
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Private:
    """Serves documents at `url` until it is closed.

    Args:
        port: to listen at; 0 takes one that is free.
        documents: name -> (type of content, function that gives the bytes); the name "" is the page.

    Raises:
        OSError: the port is taken, or not for this user.
    """

    def __init__(self, port, documents):
        self.token = secrets.token_urlsafe(16)
        self._server: Any = _Server((HOST, port), _Handler)
        self._server.documents, self._server.token = documents, self.token.encode()
        self.port = self._server.server_address[1]
        self._server.hosts = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True, name="watch").start()

    @property
    def url(self):
        """The address of the page, which is the secret."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    def close(self):
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    documents: dict = {}
    token = b""
    hosts: set = set()
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = os.name == "posix"  # there a port in use stays refused, elsewhere it would be taken over
    request_queue_size = MOST

    def __init__(self, *args):
        self._room = threading.BoundedSemaphore(MOST)
        super().__init__(*args)

    def verify_request(self, *_):
        """Whether there is room for one more."""
        return self._room.acquire(blocking=False)

    def process_request_thread(self, *args):
        """Answer, and make room."""
        try:
            super().process_request_thread(*args)
        finally:
            self._room.release()

    def handle_error(self, request, client_address):
        """Say what went wrong here."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # but who goes away in the middle is no error


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Any
    timeout = 10  # seconds, for whoever connects and says nothing

    def parse_request(self):
        """Whether there is something to answer."""
        if not super().parse_request():
            return False
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts or self.command != "GET":
            self._refuse(403)
            return False
        return True

    def do_GET(self):  # noqa: N802 (http.server's name)
        """A document, for whoever knows the token."""
        path = self.requestline.split()[1].partition("?")[0].encode("latin-1")  # as it was asked for
        before, token, name = (path.split(b"/", 2) + [b"", b""])[:3]  # "/token/name"
        known = hmac.compare_digest(token, self.server.token)
        document = self.server.documents.get(name.decode("latin-1"))
        if before or not known or document is None or path.count(b"/") != 2:
            self._refuse(404)
            return
        kind, make = document
        self._send(200, kind, make())

    def send_error(self, code, message=None, explain=None):
        """No page, which would quote what was asked for."""
        self._refuse(code)

    def _refuse(self, code):
        self.close_connection = True
        self._send(code, "text/plain; charset=utf-8", b"")

    def _send(self, code, kind, body):
        self.send_response(code)
        policy = content_policy(body) if kind.startswith("text/html") else "default-src 'none'"
        more = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": policy}
        for name, value in (HEADERS | more).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self):
        """Not which Python this is."""
        return "scratchnet"

    def log_message(self, *_):
        """Nothing: the terminal is the run's."""


def content_policy(page):
    """What a page may do: run the scripts and styles that stand in it, show pictures in data: URLs, ask this server."""
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for kind, text in re.findall(rb"<(script|style)>(.*?)</\1>", page, re.DOTALL):
        hashes[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'")
    return (
        f"default-src 'none'; script-src {' '.join(hashes[b'script'])}; style-src {' '.join(hashes[b'style'])}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
