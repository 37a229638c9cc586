"""Open files from their source: resumed, checked for size and checksum, over https only."""

import hashlib
import os
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from data_recipes.collections.recipe import Download
from data_recipes.errors import DataError

TIMEOUT_S = 60.0
_PIECE = 1 << 20

Open = Callable[[Request], Any]
"""Request -> response with `status`, `headers` and `read(n)`, a context manager."""

Progress = Callable[[int, int | None], None]
"""Told of bytes that are there, and bytes in all where they are known."""


class _OnlyHttps(HTTPRedirectHandler):
    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme != "https":
            raise DataError(f"{urlsplit(req.full_url).hostname}: sends to an address without https; nothing was downloaded")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_https(request: Request) -> Any:
    """Open an https address; others, and redirections to others, are refused."""
    if urlsplit(request.full_url).scheme != "https":
        raise DataError(f"{request.full_url}: only https addresses are downloaded")
    return build_opener(_OnlyHttps()).open(request, timeout=TIMEOUT_S)


def download(wanted: Download, folder: Path, progress: Progress = lambda there, total: None,
             opened: Open = open_https) -> Path:  # fmt: skip
    """Download a file, or go on with what an interrupted download left (NAME.part).

    Parameters
    ----------
    wanted : Download
    folder : Path
        There already.
    progress : callable
    opened : callable
        Opens a request.

    Returns
    -------
    Path
        The file, whose size and checksum are right.

    Raises
    ------
    DataError
        One line: no connection, a wrong size or checksum (nothing is kept then), or a full disk.
    """
    final, part = folder / wanted.file, folder / f"{wanted.file}.part"
    if final.exists():
        _check(final, wanted, "remove it, and download it again")
        return final
    try:
        _fetch(wanted, part, progress, opened)
        _check_or_remove(part, wanted)
        os.replace(part, final)
    except HTTPError as error:
        error.close()
        raise DataError(f"{wanted.file}: its server answers {error.code}; try later, or see petsim recipes show") from None
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise DataError(f"{wanted.file}: download broke off ({reason}); run the same command again to go on") from None
    except OSError as error:
        raise DataError(
            f"{wanted.file}: cannot be written: {error.strerror}; free some space and run the command again"
        ) from None
    return final


def _fetch(wanted: Download, part: Path, progress: Progress, opened: Open) -> None:
    there = part.stat().st_size if part.exists() else 0
    if wanted.bytes is not None and there == wanted.bytes:
        return
    request = Request(wanted.url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        response = opened(request)
    except HTTPError as error:
        # What is there is all, or more than all: the checksum decides.
        if error.code == 416 and there:
            error.close()
            return
        raise
    with response:
        if there and not (
            response.status == 206 and str(response.headers.get("Content-Range")).startswith(f"bytes {there}-")
        ):
            there = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else there + int(length)
        if wanted.bytes is not None and total is not None and total != wanted.bytes:
            raise DataError(
                f"{wanted.file}: its server has {total:,} bytes where {wanted.bytes:,} are expected; the file was changed"
            )
        with part.open("ab" if there else "wb") as handle:
            while piece := response.read(_PIECE):
                handle.write(piece)
                there += len(piece)
                progress(there, total)
    if total is not None and there < total:
        raise ConnectionError(f"{there:,} of {total:,} bytes")


def _check_or_remove(part: Path, wanted: Download) -> None:
    try:
        _check(part, wanted, "it was removed; run the same command again")
    except DataError:
        part.unlink()
        raise


def _check(path: Path, wanted: Download, mend: str) -> None:
    size = path.stat().st_size
    if wanted.bytes is not None and size != wanted.bytes:
        raise DataError(f"{wanted.file}: {size:,} bytes where {wanted.bytes:,} are expected; {mend}")
    algorithm, _, digest = wanted.checksum.partition(":")
    found = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as handle:
        while piece := handle.read(_PIECE):
            found.update(piece)
    if found.hexdigest() != digest:
        raise DataError(f"{wanted.file}: its {algorithm} is not the published one; {mend}")
