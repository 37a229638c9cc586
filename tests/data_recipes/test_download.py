"""Downloads against a server of this machine: resumed, checked, and nothing wrong is kept."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from data_recipes.collections.download import download, open_https
from data_recipes.collections.recipe import Download
from data_recipes.errors import DataError

CONTENTS = bytes(range(256)) * 20_000


class Handler(BaseHTTPRequestHandler):
    ranges = True
    breaks_after: int | None = None
    asked: list[str | None] = []  # noqa: RUF012

    def do_GET(self):
        if self.path != "/data":
            self.send_error(404)
            return
        span = self.headers.get("Range")
        self.asked.append(span)
        first = int(span.split("=")[1].rstrip("-")) if span and self.ranges else 0
        if first > len(CONTENTS):
            self.send_error(416)
            return
        self.send_response(206 if span and self.ranges else 200)
        if span and self.ranges:
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENTS) - 1}/{len(CONTENTS)}")
        self.send_header("Content-Length", str(len(CONTENTS) - first))
        self.end_headers()
        self.wfile.write(CONTENTS[first:][: self.breaks_after])

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    Handler.ranges, Handler.breaks_after, Handler.asked = True, None, []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()
    thread.join()


def plain(request: Request):
    return build_opener(ProxyHandler({})).open(request, timeout=10)


def wanted(server, path="/data", size: int | None = len(CONTENTS), checksum=None):
    digest = hashlib.sha256(CONTENTS).hexdigest()
    return Download(server + path, "data.bin", checksum or f"sha256:{digest}", size)


def refused(call, *words):
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_whole_file_with_progress(server, tmp_path):
    told = []
    path = download(wanted(server), tmp_path, lambda *t: told.append(t), plain)
    assert path.read_bytes() == CONTENTS
    assert told[-1] == (len(CONTENTS), len(CONTENTS)) and [t[0] for t in told] == sorted(t[0] for t in told)
    download(wanted(server), tmp_path, opened=plain)
    assert len(Handler.asked) == 1, "what is there is not asked for again"
    md5 = "md5:" + hashlib.md5(CONTENTS).hexdigest()
    assert download(wanted(server, checksum=md5, size=None), tmp_path, opened=plain) == path


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server, tmp_path, ranges):
    Handler.breaks_after = 1_000_000
    refused(lambda: download(wanted(server), tmp_path, opened=plain), "data.bin", "broke off", "run the same command again")
    assert (tmp_path / "data.bin.part").stat().st_size == 1_000_000
    Handler.breaks_after, Handler.ranges = None, ranges
    assert download(wanted(server), tmp_path, opened=plain).read_bytes() == CONTENTS
    assert Handler.asked == [None, "bytes=1000000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["data.bin"]


def test_wrong_files_are_not_kept(server, tmp_path):
    refused(lambda: download(wanted(server, checksum="sha256:" + "0" * 64), tmp_path, opened=plain), "sha256", "removed")
    refused(lambda: download(wanted(server, size=7), tmp_path, opened=plain), "5,120,000 bytes where 7")
    refused(lambda: download(wanted(server, "/other"), tmp_path, opened=plain), "404")
    (tmp_path / "data.bin.part").write_bytes(CONTENTS + b"more")
    refused(lambda: download(wanted(server, size=None), tmp_path, opened=plain), "sha256")
    assert not list(tmp_path.iterdir())
    (tmp_path / "data.bin").write_bytes(b"old")
    refused(lambda: download(wanted(server), tmp_path, opened=plain), "3 bytes where 5,120,000", "remove it")


def test_nothing_but_https(server, tmp_path):
    refused(lambda: download(wanted(server), tmp_path), "https")
    refused(lambda: open_https(Request("file:///etc/passwd")), "https")
    assert not Handler.asked


def test_no_connection_is_one_line(tmp_path):
    refused(lambda: download(wanted("http://127.0.0.1:1"), tmp_path, opened=plain), "data.bin", "broke off")
