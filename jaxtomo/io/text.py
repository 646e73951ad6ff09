"""Small text files as people and microscopes leave them: any of the usual encodings, never a binary file."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .raw import guarded

_LIMIT = 16 * 2**20  # bytes; an .mdoc of a thousand views has one


def read_text(path: Path) -> str:
    """The text of `path`: UTF-8 or UTF-16 if it says so, else latin-1 (old microscope logs are).

    Raises InputError for a binary file or one that is too large to be a list of angles or a log.
    """
    with guarded(path, "a text file"):
        size = path.stat().st_size
        if size > _LIMIT:
            raise InputError(f"{path}: {size} bytes is too large for a text file of angles. Give another file.")
        data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") and len(data) % 2 == 0:
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        raise InputError(f"{path}: is a binary file, not text. Give a text file with one angle a line.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
