"""What a person sees: messages on stderr, results and JSON on stdout, colour only where a terminal wants it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

BOLD, DIM, RED, YELLOW = "1", "2", "31", "33"


@dataclass(frozen=True)
class Console:
    """Where messages go, and what was typed.

    Attributes:
        quiet: errors only.
        command: the command line, for the record.
    """

    quiet: bool = False
    command: tuple[str, ...] = ()

    def say(self, message: str) -> None:
        """Tell what is going on."""
        if not self.quiet:
            _print(message, sys.stderr)

    def warn(self, message: str) -> None:
        """Tell what the user should look at."""
        if not self.quiet:
            _print(f"{coloured('note:', YELLOW, sys.stderr)} {message}", sys.stderr)


def complain(message: str) -> None:
    """An error, which `quiet` does not silence."""
    _print(f"{coloured('error:', RED, sys.stderr)} {message}", sys.stderr)


def result(text: str) -> None:
    """What was asked for."""
    _print(text, sys.stdout)


def table(rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values in two columns, names dimmed; rows whose value is None are left out."""
    rows = [(name, str(value)) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        first, *more = value.splitlines() or [""]
        lines.append(f"  {coloured(name.ljust(width), DIM, sys.stdout)}  {first}")
        lines += [f"  {'':{width}}  {line}" for line in more]
    return "\n".join(lines)


def coloured(text: str, code: str, stream: TextIO) -> str:
    """`text` in an ANSI style, if `stream` is a terminal that shows it. [no-color.org]"""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\033[{code}m{text}\033[0m"


def as_json(document: Any) -> str:
    """Strict JSON: arrays as lists, and null for what is not a finite number."""
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` as JSON knows it: dicts, lists, strings, finite numbers, true, false, null."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy and JAX, numbers and arrays
        return plain(value.tolist())
    return str(value)


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:  # a terminal or pipe that knows ASCII only
        encoding = stream.encoding or "ascii"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
