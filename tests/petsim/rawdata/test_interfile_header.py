"""Interfile headers: what counts as the same key, and one line for every mistake."""

import pytest

from data_recipes.errors import DataError
from petsim.rawdata.interfile_header import header_bytes, read_header


def parsed(tmp_path, text, name="a.hs"):
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    return read_header(path)


def test_keys_ignore_case_marks_blanks_and_underscores(tmp_path):
    header = parsed(
        tmp_path,
        "!INTERFILE  :=\r\n!Number_of  BYTES per pixel:=4\r\n%TOF mashing factor := 3\n  matrix size [2] := { 1,2 , 3}\n"
        "matrix size[1]:= 7\n; a comment := 1\nnumber format := float ; as said\nimage duration (sec) := 60\n"
        "%study time (hh:mm:ss GMT+00:00):=17:33:38\nlist := {1,\\\n2}\nempty :=\nEND OF INTERFILE :=\nlate := 1\n",
    )
    assert header.integer("number of bytes per pixel") == 4
    assert header.integer("tof mashing factor") == 3
    assert (header.integers("matrix size", 1), header.integers("Matrix Size", 2)) == ([7], [1, 2, 3])
    assert header.text("number format") == "float"
    assert header.number("image duration (sec)", 1) == 60
    assert header.integers("list") == [1, 2]
    assert header.find("empty") is None and header.find("late") is None and header.find("a comment") is None
    assert header.find("study time (hh:mm:ss gmt+00:00)") == "17:33:38"


def test_an_index_beyond_the_first_is_not_taken_from_a_key_without_one(tmp_path):
    assert parsed(tmp_path, "!INTERFILE :=\nx := 1\n").find("x", 2) is None


def test_lines_come_back(tmp_path):
    lines = [("name [1]", "a b"), ("numbers", [1, -2]), ("precise", 0.1 + 0.2), ("GENERAL DATA", None), ("words", ["None"])]
    header = parsed(tmp_path, header_bytes(lines).decode())
    assert header.text("name", 1) == "a b"
    assert header.numbers("numbers") == [1, -2]
    assert header.number("precise") == 0.1 + 0.2
    assert header.texts("words") == ["None"]


@pytest.mark.parametrize("text, message", [
    ("", "a.hs: the file is empty; copy it again"),
    ("number format := float\n", "a.hs: does not begin with '!INTERFILE :='; give the header"),
    ("\x00\xff" * 100, "a.hs: does not begin with '!INTERFILE :='"),
])  # fmt: skip
def test_what_is_no_header(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        parsed(tmp_path, text)


def test_a_missing_header(tmp_path):
    with pytest.raises(DataError, match=r"^a.hs: No such file or directory; give a readable Interfile header$"):
        read_header(tmp_path / "a.hs")


@pytest.mark.parametrize("read, message", [
    (lambda h: h.number("word"), "a.hs: 'word' is 'x', which is no number"),
    (lambda h: h.number("endless"), "a.hs: 'endless' is 'inf', which is no number"),
    (lambda h: h.integer("half"), "a.hs: 'half' is '0.5', which is no whole number"),
    (lambda h: h.integers("list"), "a.hs: 'list' is 'b', which is no number"),
    (lambda h: h.text("absent", 2), r"a.hs: the header has no 'absent \[2\]'"),
    (lambda h: h.sizes(1), r"a.hs: 'matrix size \[1\]' is below 1"),
])  # fmt: skip
def test_wrong_values(tmp_path, read, message):
    text = "!INTERFILE :=\nword := x\nendless := inf\nhalf := 0.5\nlist := {1,b}\nmatrix size [1] := 0\n"
    with pytest.raises(DataError, match=message):
        read(parsed(tmp_path, text))
