"""Interfile headers: lines `key [index] := value` from `!INTERFILE :=` to `!END OF INTERFILE :=`.

In keys case does not matter, `!` and a leading `%` are marks, blanks and underscores are alike; `;` begins a comment, `\\`
at the end of a line continues it, and `{a, b}` is a list (as STIR reads them: KeyParser.cxx,
interfile_keyword_functions.cxx).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_recipes.errors import DataError

Line = tuple[str, object]
"""A key (with its index, if it has one) and its value: text, a number, a list of them, or None for no value."""

_LONGEST = 1 << 20
"""Bytes that are searched for keys; no header is longer."""

_LINE = re.compile(r"([^\[]*?)\s*(?:\[\s*(\d+)\s*\])?\s*:=(.*)")
_COMMENT = re.compile(r"(^|\s);.*")


@dataclass(frozen=True)
class InterfileHeader:
    """Keys and values of a header. Missing and malformed values raise `DataError`.

    Parameters
    ----------
    path : Path
        Of the header; messages name it without its folder.
    values : dict
        Text by key and index; index 0 for a key without one.
    """

    path: Path
    values: dict[tuple[str, int], str]

    @property
    def name(self) -> str:
        """File name for messages."""
        return self.path.name

    def find(self, key: str, index: int = 0) -> str | None:
        """Text of a key, None where it is missing or empty. The first item of an indexed key may come without its index."""
        text = self.values.get((_plain(key), index))
        if text is None and index == 1:
            text = self.values.get((_plain(key), 0))
        return text or None

    def text(self, key: str, index: int = 0) -> str:
        """Text of a key that must be there."""
        found = self.find(key, index)
        if found is None:
            at = f" [{index}]" if index else ""
            raise DataError(f"{self.name}: the header has no '{key}{at}'; add it, or write the file again")
        return found

    def word(self, key: str, default: str = "", index: int = 0) -> str:
        """A value of a fixed set: in lower case, blanks and underscores alike."""
        return _plain(self.find(key, index) or default)

    def number(self, key: str, index: int = 0) -> float:
        """Number that must be there."""
        return self._number(key, self.text(key, index))

    def find_number(self, key: str, index: int = 0) -> float | None:
        """Number, None where it is missing."""
        text = self.find(key, index)
        return None if text is None else self._number(key, text)

    def integer(self, key: str, index: int = 0) -> int:
        """Whole number that must be there."""
        return self._integer(key, self.text(key, index))

    def find_integer(self, key: str, default: int, index: int = 0) -> int:
        """Whole number, or a default."""
        text = self.find(key, index)
        return default if text is None else self._integer(key, text)

    def texts(self, key: str, index: int = 0) -> list[str]:
        """Items of a list, empty where it is missing; a value without braces is a list of one."""
        text = self.find(key, index) or ""
        items = text.strip("{} \t").split(",") if text.startswith("{") else [text]
        return [item.strip() for item in items if item.strip()]

    def numbers(self, key: str, index: int = 0) -> list[float]:
        """Numbers of a list, empty where it is missing."""
        return [self._number(key, item) for item in self.texts(key, index)]

    def integers(self, key: str, index: int = 0) -> list[int]:
        """Whole numbers of a list, empty where it is missing."""
        return [self._integer(key, item) for item in self.texts(key, index)]

    def sizes(self, axis: int) -> list[int]:
        """Sizes of an axis, at least 1 each."""
        self.text("matrix size", axis)
        found = self.integers("matrix size", axis)
        if not found or min(found) < 1:
            raise DataError(f"{self.name}: 'matrix size [{axis}]' is below 1; mend the header")
        return found

    def _number(self, key: str, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{self.name}: '{key}' is '{text}', which is no number; mend the header")
        return number

    def _integer(self, key: str, text: str) -> int:
        number = self._number(key, text)
        if not number.is_integer():
            raise DataError(f"{self.name}: '{key}' is '{text}', which is no whole number; mend the header")
        return int(number)


def read_header(path: Path) -> InterfileHeader:
    """Keys and values of a header.

    Raises
    ------
    DataError
        A missing or empty file, or one that does not begin as an Interfile header.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST)
    except OSError as error:
        raise DataError(f"{path.name}: {error.strerror}; give a readable Interfile header") from None
    if not raw:
        raise DataError(f"{path.name}: the file is empty; copy it again")
    text = re.sub(r"\\\r?\n", "", raw.decode("utf-8", "surrogateescape"))
    values: dict[tuple[str, int], str] = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(_COMMENT.sub("", line).strip())
        if found is None:
            continue
        key, index, value = found.groups()
        if not values and _plain(key) != "interfile":
            break
        if _plain(key) == "end of interfile":
            break
        values[_plain(key), int(index or 0)] = value.strip()
    if not values:
        raise DataError(f"{path.name}: does not begin with '!INTERFILE :='; give the header (.hs, .hv, .hdr), not the data")
    return InterfileHeader(path, values)


def header_bytes(lines: Iterable[Line]) -> bytes:
    """A header that is to be written; its first and last line are added."""
    body = "".join(f"{key} := {_as_text(value)}".rstrip() + "\n" for key, value in lines)
    return f"!INTERFILE  :=\n{body}!END OF INTERFILE :=\n".encode("utf-8", "surrogateescape")


def _plain(key: str) -> str:
    return re.sub(r"[\s_!]+", " ", key.lower().strip(" \t_!%")).strip()


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "{" + ",".join(_as_text(item) for item in value) + "}"
    return repr(float(value)) if isinstance(value, float) else str(value)
