"""The page's server: it answers whoever has the address, and nobody else, whatever is asked."""

import errno
import http.client
import re
import socket
import time

import pytest

from scratchnet.program import private
from scratchnet.program.private import HOST, Private, content_policy

PAGE = b"<!doctype html><style>b{}</style><script>1</script>"


@pytest.fixture(scope="module")
def server():
    documents = {"": ("text/html; charset=utf-8", lambda: PAGE), "state": ("application/json", lambda: b'{"a": 1}')}
    found = Private(0, documents)
    yield found
    found.close()


def ask(server, path=None, method="GET", host=None, **headers):
    """(status, headers, body)."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=5)
    try:
        connection.putrequest(method, f"/{server.token}/" if path is None else path, skip_host=True)
        for value in [f"{HOST}:{server.port}"] if host is None else host:
            connection.putheader("Host", value)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def raw(server, text):
    """All that it says to these bytes."""
    with socket.create_connection((HOST, server.port), timeout=5) as link:
        link.sendall(text)
        link.shutdown(socket.SHUT_WR)
        said = b""
        while piece := link.recv(1 << 16):
            said += piece
        return said


def test_who_has_the_address_gets_the_documents(server):
    assert re.fullmatch(rf"http://127\.0\.0\.1:{server.port}/[\w-]{{22}}/", server.url)
    assert ask(server)[::2] == (200, PAGE)
    status, headers, body = ask(server, f"/{server.token}/state?since=3", host=[f"localhost:{server.port}"])
    assert (status, body, headers["Content-Type"]) == (200, b'{"a": 1}', "application/json")
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["Server"] == "scratchnet" and "Access-Control-Allow-Origin" not in headers
    policy = ask(server)[1]["Content-Security-Policy"]
    assert policy == content_policy(PAGE) and "default-src 'none'; script-src 'sha256-" in policy
    assert "frame-ancestors 'none'" in policy and "unsafe" not in policy


def test_it_listens_on_the_loopback_address_alone(server):
    assert server._server.server_address[0] == "127.0.0.1"
    assert Private(0, {}).token != server.token


PATHS = [
    "/", "", "/state", "//", "/{t}", "/{t}/index.html", "/{t}/..", "/{t}/../state", "/{t}//state", "//{t}/", "/./{t}/",
    "/{t}/state/", "/{t}/state/..", "/{t}/%73tate", "/{t}/..%2fstate", "/{t}%2f", "/{t}/watch.html", "/{t}/\\state",
    "/{t}x/", "/x{t}/", "/{short}/", "/{upper}/", "/{t}/STATE", "/{t}/state%00", "/{t};/", "http://127.0.0.1/{t}/",
    "*", "/{t}#/", "/{t}/etc/passwd", "/etc/passwd", "/\xff\xfe/", "/{t}/\xe9",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_another_path_is_not_found(server, path):
    t = server.token
    path = path.format(t=t, short=t[:-1], upper=t.swapcase())
    host = f"Host: {HOST}:{server.port}".encode()
    said = raw(server, b"GET " + path.encode("latin-1") + b" HTTP/1.1\r\n" + host + b"\r\n\r\n")
    head, _, body = said.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1.0 40[034] ", head) and not body or not path and not said
    assert t.encode() not in said and b"Python" not in said and b"html" not in said


@pytest.mark.parametrize(
    "host",
    [
        [], [""], ["evil.example"], ["evil.example:{p}"], ["127.0.0.1"], ["localhost"], ["127.0.0.1:1"], ["127.1:{p}"],
        ["[::1]:{p}"], ["0.0.0.0:{p}"], ["127.0.0.1:{p}.evil.example"], ["127.0.0.1:{p}", "127.0.0.1:{p}"],
        ["127.0.0.1:{p}", "evil.example"], ["localhost.:{p}"],
    ],
)  # fmt: skip
def test_another_host_is_refused_even_with_the_token(server, host):
    host = [name.format(p=server.port) for name in host]
    for path in (None, f"/{server.token}/state", "/"):
        assert ask(server, path, host=host)[::2] == (403, b"")


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "X"]
)
def test_nothing_can_be_written_and_only_get_is_answered(server, method):
    assert ask(server, method=method)[::2] == (403, b"")
    assert ask(server, method=method, Content_Length="3", Expect="100-continue")[0] == 403


@pytest.mark.parametrize(
    "said", [b"\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000 + b"\r\n\r\n",
             b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n"]
)  # fmt: skip
def test_what_is_no_request_is_refused_and_ends_nothing(server, said, capsys):
    answer = raw(server, said)
    assert b" 200 " not in answer and b"<" not in answer and ask(server)[0] == 200
    assert capsys.readouterr() == ("", "")


def test_who_says_nothing_is_put_out_and_takes_no_room_from_others(server, monkeypatch):
    monkeypatch.setattr(private._Handler, "timeout", 0.5)
    silent = [socket.create_connection((HOST, server.port), timeout=5) for _ in range(private.MOST + 20)]
    try:
        time.sleep(1.0)
        for link in silent:
            link.settimeout(3)
            assert link.recv(10) == b""
        assert ask(server)[0] == 200
    finally:
        for link in silent:
            link.close()


def test_a_port_that_is_taken_is_an_error_and_what_is_closed_answers_no_more(server):
    with pytest.raises(OSError) as caught:
        Private(server.port, {})
    assert caught.value.errno == errno.EADDRINUSE
    other = Private(0, {"": ("text/plain", lambda: b"")})
    assert other.port != server.port and ask(other)[0] == 200
    other.close()
    with pytest.raises(ConnectionRefusedError):
        ask(other)
    assert ask(server)[0] == 200


def test_a_token_is_compared_in_a_time_that_does_not_depend_on_it(server, monkeypatch):
    seen = []
    monkeypatch.setattr(private.hmac, "compare_digest", lambda a, b: seen.append((a, b)) or a == b)
    assert ask(server, "/wrong/")[0] == 404 and ask(server)[0] == 200
    assert seen == [(b"wrong", server.token.encode()), (server.token.encode(),) * 2]


def test_who_goes_away_in_the_middle_is_no_error_and_what_breaks_here_is_said(capsys):
    def broken():
        raise KeyError("broken here")

    found = Private(0, {"": ("text/plain", lambda: b"x" * 10_000_000), "broken": ("text/plain", broken)})
    link = socket.create_connection((HOST, found.port))
    link.sendall(f"GET /{found.token}/ HTTP/1.0\r\nHost: {HOST}:{found.port}\r\n\r\n".encode())
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closed as by a crash
    link.close()
    time.sleep(0.3)
    assert capsys.readouterr().err == ""
    with pytest.raises(http.client.HTTPException):
        ask(found, f"/{found.token}/broken")
    assert "broken here" in capsys.readouterr().err
    found.close()
