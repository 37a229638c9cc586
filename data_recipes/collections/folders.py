"""Folders and archives of others, which may be damaged, or made to do harm."""

import gzip
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data_recipes.errors import DataError

LARGEST_RATIO = 200
"""Times its size that an archive may unpack to: images reach some 20, a bomb thousands."""

_PIECE = 1 << 20


def files_below(folder: Path) -> list[Path]:
    """All files and folders below a folder, sorted; hidden ones are left out.

    Raises
    ------
    DataError
        No such folder, or a link that leaves it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder.name}: no such folder; check the name")
    home = folder.resolve()
    found = []
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise DataError(f"{path.name}: a link that leaves the folder {folder.name}; copy the file itself there")
        found.append(path)
    return found


def read_gzipped(path: Path, sizes: tuple[int, ...]) -> bytes:
    """Contents of a file, unpacked where it is gzipped; never more than one byte beyond the largest size is unpacked.

    Raises
    ------
    DataError
        Damaged, or of none of the sizes.
    """
    try:
        with path.open("rb") as handle:
            zipped = handle.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as handle:
            contents = handle.read(max(sizes) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: damaged, it cannot be unpacked; copy it again") from error
    if len(contents) not in sizes:
        size = f"more than {max(sizes):,}" if len(contents) > max(sizes) else f"{len(contents):,}"
        raise DataError(
            f"{path.name}: {size} bytes where {' or '.join(f'{n:,}' for n in sizes)} are expected; copy it again"
        )
    return contents


def unpack(archive: Path, out: Path) -> list[Path]:
    """Unpack a zip archive into a folder that is not there yet: all of it, or nothing.

    Raises
    ------
    DataError
        A damaged archive, one that unpacks to `LARGEST_RATIO` times its size or to more than the disk has, an entry that is
        a link or whose path leaves the folder, or a folder that is there.
    """
    if out.exists():
        raise DataError(f"--out {out.name}: is there already; remove it, or choose another folder")
    temporary = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [e for e in opened.infolist() if not e.is_dir()]
            _check_entries(archive, entries, shutil.disk_usage(out.parent).free)
            for entry in entries:
                target = temporary / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, target.open("wb") as handle:
                    for piece in _pieces(source, entry, archive):
                        handle.write(piece)
        temporary.rename(out)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive.name}: a damaged zip archive; download it again") from error
    except OSError as error:
        raise DataError(
            f"{archive.name}: cannot be unpacked: {error.strerror}; free some space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(p for p in out.rglob("*") if p.is_file())


def _check_entries(archive: Path, entries: list[zipfile.ZipInfo], free: int) -> None:
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
            raise DataError(f"{archive.name}: an entry's path leaves the folder ({parts.name}); do not unpack this archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(f"{archive.name}: {parts.name} is a link; do not unpack this archive")
    total = sum(entry.file_size for entry in entries)
    if total > LARGEST_RATIO * max(archive.stat().st_size, _PIECE):
        raise DataError(
            f"{archive.name}: would unpack to {total / 1e9:.1f} GB, {LARGEST_RATIO} times its size and more (a zip bomb)"
        )
    if total > free:
        raise DataError(f"{archive.name}: unpacks to {total / 1e9:.1f} GB but {free / 1e9:.1f} GB are free; free some space")


def _pieces(source: "zipfile.ZipExtFile | object", entry: zipfile.ZipInfo, archive: Path) -> Iterator[bytes]:
    """What an entry holds; no more than it says, which is what was checked."""
    left = entry.file_size
    while piece := source.read(_PIECE):  # pyright: ignore[reportAttributeAccessIssue]
        left -= len(piece)
        if left < 0:
            raise DataError(
                f"{archive.name}: {PurePosixPath(entry.filename).name} is longer than it says; a damaged archive"
            )
        yield piece
