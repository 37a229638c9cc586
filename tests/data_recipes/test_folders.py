"""Folders and archives that are damaged, or made to do harm: one line each, and nothing written."""

import gzip
import stat
import zipfile
from pathlib import Path

import pytest

from data_recipes.collections.folders import files_below, read_gzipped, unpack
from data_recipes.errors import DataError


def refused(call, *words):
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in entries.items():
            archive.writestr(name, contents)
    return path


def test_an_archive_unpacks_whole(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"one/x.txt": b"x", "y.txt": b"yy"})
    files = unpack(archive, tmp_path / "out")
    assert [p.relative_to(tmp_path / "out").as_posix() for p in files] == ["one/x.txt", "y.txt"]
    assert files[1].read_bytes() == b"yy"
    refused(lambda: unpack(archive, tmp_path / "out"), "--out out", "there already")


@pytest.mark.parametrize("name", ["../x", "one/../../x", "/etc/x", "..\\x", "C:/x"])
def test_entries_that_leave_the_folder_are_refused(tmp_path, name):
    archive = zipped(tmp_path / "a.zip", {"good": b"g", name: b"bad"})
    (tmp_path / "in").mkdir()
    refused(lambda: unpack(archive, tmp_path / "in" / "out"), "a.zip", "leaves the folder")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "in"]


def test_links_in_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    refused(lambda: unpack(tmp_path / "a.zip", tmp_path / "out"), "is a link")
    assert not (tmp_path / "out").exists()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"zeros": bytes(201 << 20)})
    assert archive.stat().st_size < 1 << 20
    refused(lambda: unpack(archive, tmp_path / "out"), "bomb")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip"]


def test_damaged_archives_are_refused(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x": bytes(range(256)) * 40})
    whole = archive.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    refused(lambda: unpack(tmp_path / "cut.zip", tmp_path / "out"), "cut.zip", "damaged")
    turned = bytearray(whole)
    turned[60] ^= 255
    (tmp_path / "turned.zip").write_bytes(turned)
    refused(lambda: unpack(tmp_path / "turned.zip", tmp_path / "out"), "turned.zip", "damaged")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.tmp").exists()


def test_links_that_leave_a_folder_are_refused(tmp_path):
    inside = tmp_path / "data"
    (inside / "sub").mkdir(parents=True)
    (inside / "real.txt").write_text("x")
    (inside / "sub" / "near").symlink_to("../real.txt")
    assert [p.name for p in files_below(inside)] == ["real.txt", "sub", "near"]
    (inside / ".git").mkdir()
    assert len(files_below(inside)) == 3
    (tmp_path / "secret").write_text("s")
    (inside / "sub" / "far").symlink_to("../../secret")
    refused(lambda: files_below(inside), "far", "leaves the folder")
    refused(lambda: files_below(tmp_path / "none"), "no such folder")


def test_gzipped_files_are_bounded(tmp_path):
    (tmp_path / "plain").write_bytes(b"abcd")
    (tmp_path / "small.gz").write_bytes(gzip.compress(b"abcd"))
    assert read_gzipped(tmp_path / "plain", (4,)) == read_gzipped(tmp_path / "small.gz", (2, 4)) == b"abcd"
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(50 << 20)))
    refused(lambda: read_gzipped(tmp_path / "bomb.gz", (4, 8)), "bomb.gz", "more than 8")
    refused(lambda: read_gzipped(tmp_path / "small.gz", (8,)), "4 bytes where 8")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(bytes(range(256)) * 9)[:-30])
    refused(lambda: read_gzipped(tmp_path / "cut.gz", (2304,)), "cut.gz", "damaged")
    bad = bytearray(gzip.compress(bytes(range(256)) * 9))
    bad[40] ^= 255
    (tmp_path / "bad.gz").write_bytes(bad)
    refused(lambda: read_gzipped(tmp_path / "bad.gz", (2304,)), "bad.gz", "damaged")
