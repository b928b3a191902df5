"""Downloads, from a server in this very process: whole, resumed, refused; bounded in time; one request each."""

import fcntl
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.request import Request

import pytest
from web import CONTENT, HALF, SHA256, SIZE, Server

from scratchnet.data import cifar10
from scratchnet.data.cifar10 import ARCHIVE, DataError, find_or_download
from scratchnet.data.download import DownloadError, _stream, fetch


def await_downloads():
    """A download that was given up, for whatever reason, leaves no thread that goes on or keeps the program alive."""
    for thread in [thread for thread in threading.enumerate() if thread.name == "download"]:
        thread.join(5)
        assert thread.daemon and not thread.is_alive()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        await_downloads()
        server.over.set()
        server.shutdown()


def get(server, name, target, timeout=5.0):
    fetch(server.url(name), target, size=SIZE, sha256=SHA256, timeout=timeout)


@pytest.mark.parametrize("name", ["good", "without_length"])
def test_a_whole_file_gets_its_name_with_nothing_beside_it_and_no_bar_in_a_log(server, tmp_path, capsys, name):
    target = tmp_path / "new" / "file"
    get(server, name, target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert capsys.readouterr() == ("", "")


def test_a_program_without_standard_error_downloads_too(server, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    get(server, "good", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_broken_download_keeps_what_came_and_the_next_one_asks_for_the_rest_only(server, tmp_path):
    target = tmp_path / "file"
    with pytest.raises(DownloadError, match=f"the connection broke after {HALF:,} of {SIZE:,} bytes"):
        get(server, "broken", target)
    assert target.with_name("file.part").read_bytes() == CONTENT[:HALF] and not target.exists()
    get(server, "good", target)
    assert target.read_bytes() == CONTENT
    assert server.log == [("broken", None), ("good", f"bytes={HALF}-")]


@pytest.mark.parametrize(("name", "kept"), [("without_range", CONTENT[:HALF]), ("good", CONTENT + b"-")])
def test_a_download_starts_over_where_the_server_cannot_resume_or_too_much_was_kept(server, tmp_path, name, kept):
    (tmp_path / "file.part").write_bytes(kept)
    get(server, name, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_part_is_only_checked(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    get(server, "good", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and server.log == []


def test_a_damaged_part_is_found_by_its_hash_and_the_next_download_starts_over(server, tmp_path):
    target = tmp_path / "file"
    target.with_name("file.part").write_bytes(b"-" + CONTENT[1:HALF])
    with pytest.raises(DownloadError, match=f"another file: its SHA-256 is [0-9a-f]{{64}}, expected {SHA256}"):
        get(server, "good", target)
    assert list(tmp_path.iterdir()) == []
    get(server, "good", target)
    assert target.read_bytes() == CONTENT


WRONG = {
    "other": "another file: its SHA-256",
    "endless": "another file: its SHA-256",
    "shorter": f"offers {SIZE - 1} bytes, expected {SIZE}",
    "page": "answers with a web page",
    "gone": "404",
    "nonsense": "EHLO",
}


@pytest.mark.parametrize("name", WRONG)
def test_another_answer_than_the_file_is_refused_after_one_request_and_not_kept(server, tmp_path, name):
    with pytest.raises(DownloadError, match=WRONG[name]) as raised:
        get(server, name, tmp_path / "file")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [] and len(server.log) == 1 and server.sent < 40


def test_another_range_than_asked_for_is_refused_and_the_part_is_kept(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:HALF])
    with pytest.raises(DownloadError, match=f"go on at byte {HALF:,}, the server answers with bytes {HALF + 1}-"):
        get(server, "other_range", tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:HALF]


@pytest.mark.parametrize("name", ["silent", "slow_to_start", "stalled"])
def test_no_wait_is_longer_than_the_timeout(server, tmp_path, name):
    start = time.perf_counter()
    with pytest.raises(DownloadError, match="timed out|sent nothing for 0.5 s"):
        get(server, name, tmp_path / "file", timeout=0.5)
    assert 0.4 < time.perf_counter() - start < 4
    assert [kept.read_bytes() for kept in tmp_path.iterdir()] == ([CONTENT[:HALF]] if name == "stalled" else [])


def test_a_name_lookup_that_hangs_is_abandoned_and_its_late_answer_is_ignored(server, tmp_path, monkeypatch):
    lookup, answer = socket.getaddrinfo, threading.Event()

    def hang(*args, **kwargs):
        answer.wait(30)
        return lookup(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.perf_counter()
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:\d+ sent nothing for 0.3 s"):
        get(server, "good", tmp_path / "file", timeout=0.3)
    assert time.perf_counter() - start < 4
    answer.set()
    await_downloads()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_while_the_inbox_is_full_frees_the_thread(server):
    with closing(_stream(Request(server.url("endless")), 5.0)) as stream:
        next(stream)
        time.sleep(0.2)  # the server is faster; `server` then waits for the thread


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match=r"cannot write .*in_it\.part: (Not a directory|File exists)"):
        get(server, "good", tmp_path / "file" / "in_it")


@pytest.mark.parametrize("plant", ["symlink", "link", "mkfifo", "mkdir"])
def test_a_link_pipe_or_folder_in_place_of_the_part_is_neither_followed_nor_waited_for(server, tmp_path, plant):
    victim, part = tmp_path / "victim", tmp_path / "file.part"
    victim.write_text("precious")
    getattr(os, plant)(*([victim, part] if "link" in plant else [part]))
    with pytest.raises(
        DownloadError, match=r"cannot write .*file\.part: (it is|Is) an? (\w+ link|.*directory)|no regular"
    ):
        get(server, "good", tmp_path / "file")
    assert victim.read_text() == "precious" and server.log == []


@pytest.mark.parametrize(("name", "requests"), [("slow", 1), ("broken", 4)])
def test_of_four_at_once_one_downloads_and_the_others_wait_and_find_it_there(server, tmp_path, name, requests):
    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(get, server, name, tmp_path / "file") for _ in range(4)]
    errors = [task.exception() for task in tasks if task.exception()]
    assert [offset for _, offset in server.log] == [None, *[f"bytes={HALF}-"] * (requests - 1)]
    if name == "slow":
        assert not errors and (tmp_path / "file").read_bytes() == CONTENT and os.listdir(tmp_path) == ["file"]
    else:  # each waits for the one before it, and goes on where that one stopped
        assert len(errors) == 4 and os.listdir(tmp_path) == ["file.part"]


def test_a_process_that_holds_the_part_and_does_nothing_is_not_waited_for_for_ever(server, tmp_path):
    with open(tmp_path / "file.part", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match=r"another process holds .*file\.part, and nothing came for 0.6 s"):
            get(server, "good", tmp_path / "file", timeout=0.2)
    get(server, "good", tmp_path / "file", timeout=0.2)
    assert len(server.log) == 1


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content[:-1] + b"-"])
def test_a_damaged_archive_in_the_cache_is_replaced_once_there_is_a_whole_one(server, tmp_path, change):
    place = tmp_path / ARCHIVE
    place.write_bytes(change(CONTENT))
    with pytest.raises(
        DataError, match=f"{ARCHIVE} is another file or damaged, and cannot download CIFAR-10 from .*404"
    ):
        find_or_download(tmp_path, url=server.url("gone"), size=SIZE, sha256=SHA256)
    assert place.read_bytes() == change(CONTENT) and os.listdir(tmp_path) == [ARCHIVE]
    assert find_or_download(tmp_path, url=server.url("good"), size=SIZE, sha256=SHA256) == place
    assert place.read_bytes() == CONTENT and os.listdir(tmp_path) == [ARCHIVE]


def test_a_whole_archive_in_a_cache_that_takes_no_file_is_used(server, tmp_path, monkeypatch):
    (tmp_path / ARCHIVE).write_bytes(CONTENT)
    monkeypatch.setattr("scratchnet.data.download._locked", None)
    assert find_or_download(tmp_path, url=server.url("gone"), size=SIZE, sha256=SHA256) == tmp_path / ARCHIVE
    assert server.log == []


@pytest.mark.parametrize("variable", ["SCRATCHNET_CACHE", "XDG_CACHE_HOME", "HOME", None])
def test_the_cache_folder_is_found_filled_once_and_read_from_then_on(server, tmp_path, monkeypatch, variable):
    for name in ("SCRATCHNET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    below = {"SCRATCHNET_CACHE": "", "XDG_CACHE_HOME": "scratchnet", "HOME": ".cache/scratchnet", None: ""}[variable]
    for _ in range(2):
        folder = None if variable else tmp_path
        place = find_or_download(folder, url=server.url("good"), size=SIZE, sha256=SHA256, progress=False)
        assert place == tmp_path / below / ARCHIVE and place.read_bytes() == CONTENT
    assert len(server.log) == 1


def test_a_failed_download_of_cifar10_says_from_where_and_why(server, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=f"cannot download CIFAR-10 from {server.url('gone')}: HTTP Error 404"):
        find_or_download(tmp_path, url=server.url("gone"))
    asked = []
    monkeypatch.setattr(cifar10, "fetch", lambda *args, **options: asked.extend([*args, options]))
    find_or_download(tmp_path)
    url, target, options = asked
    assert url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" and target == tmp_path / ARCHIVE
    assert options == {"size": 170_052_171, "sha256": cifar10.ARCHIVE_SHA256, "timeout": 10.0, "progress": True}
