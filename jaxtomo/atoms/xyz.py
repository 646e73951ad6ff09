"""Atoms as extended XYZ, which OVITO and ASE read: a count, a line that says what the columns are, a line an atom.

    2
    Lattice="20 0 0 0 20 0 0 0 20" Origin="-10 -10 -10" pbc="F F F" Properties=species:S:1:pos:R:3:amplitude:R:1…
    Pt 0.1000 0.2000 0.3000 1.03 …

Positions are in Å from the middle of the volume. `kind` numbers the species from 0, -1 where none has been told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..io.atomic import replacing
from ..io.raw import guarded
from .table import Atoms
from .table import atoms as bare

COLUMNS = (
    *("species:S:1", "pos:R:3", "kind:I:1", "amplitude:R:1", "width:R:1", "confidence:R:1"),
    *("position_error:R:3", "amplitude_error:R:1"),
)
UNNAMED = "X"


def write_xyz(
    path: str | Path, atoms: Atoms, names: Sequence[str] = (), size: Sequence[float] | None = None, note: str = ""
) -> None:
    """Write `atoms`.

    Args:
        names: the symbol of every species, from 0; X where there is none.
        size: (x, y, z) in Å of the box about the middle; by default what holds all atoms.
        note: goes into the second line.

    Raises InputError for names that are not one word each, or fewer than there are species.
    """
    if any(not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name) for name in names):
        raise InputError(f"{', '.join(names)}: names of species are single words, such as Co,Pd,Pt.")
    if names and atoms.species.size and atoms.species.max() >= len(names):
        raise InputError(f"{len(names)} names for {atoms.species.max() + 1} species. Give one for each.")
    most = np.abs(atoms.positions).max(0, initial=0.0)
    box = np.maximum(2 * most + 1e-3, 1.0) if size is None else np.asarray(size, float)
    lattice = " ".join(f"{value:.6g}" for value in np.diag(box).ravel())
    origin = " ".join(f"{-value / 2:.6g}" for value in box)
    quoted = re.sub(r"[^ -~]|[\"\\]", " ", note)
    head = f'Lattice="{lattice}" Origin="{origin}" pbc="F F F" Properties={":".join(COLUMNS)}'
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f"{len(atoms.positions)}\n{head}" + (f' note="{quoted}"' if note else "") + "\n")
        for place, amplitude, width, error, uncertain, kind, sure in zip(*atoms, strict=True):
            name = names[kind] if names and kind >= 0 else UNNAMED
            numbers = (amplitude, width, sure, *error, uncertain)
            where = " ".join(f"{value:.5f}" for value in place)
            file.write(f"{name} {where} {kind} {' '.join(f'{value:.6g}' for value in numbers)}\n")


def read_xyz(path: str | Path) -> tuple[Atoms, list[str]]:
    """(atoms, the symbol of every species): of the first frame of an XYZ file, extended or plain.

    What a file does not state is not known; amplitudes are then 1. Without a column `kind` the species are the symbols
    in alphabetical order.

    Raises InputError, naming the file and the line, for a file that is none.
    """
    path = Path(path)
    with guarded(path, "an XYZ file"):
        lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    try:
        count = int(lines[0])
    except (IndexError, ValueError) as error:
        raise InputError(f"{path}: line 1 is not a number of atoms. Give an XYZ file.") from error
    if count < 0 or len(lines) < count + 2:
        raise InputError(f"{path}: states {count} atoms and has {max(len(lines) - 2, 0)} lines of them. Repair it.")
    columns = _columns(path, lines[1])
    symbols, numbers = [], {name: np.full((count, width), np.nan) for name, (_, width) in columns.items()}
    total = max(start + width for start, width in columns.values())
    for i, line in enumerate(lines[2 : count + 2]):
        words = line.split()
        if len(words) < total:
            raise InputError(f"{path}: line {i + 3} has {len(words)} of {total} columns. Repair it.")
        for name, (start, width) in columns.items():
            if name == "species":
                symbols.append(words[start])
                continue
            try:
                numbers[name][i] = [float(word) for word in words[start : start + width]]
            except ValueError as error:
                raise InputError(f"{path}: line {i + 3}, {name}: {error}. Repair it.") from error
    if not np.isfinite(numbers["pos"]).all():
        raise InputError(f"{path}: positions are not finite. Repair it.")
    single = {name: values[:, 0] for name, values in numbers.items() if name not in ("pos", "position_error")}
    found = bare(numbers["pos"], single.get("amplitude", 1.0), single.get("width", math.nan))
    if "kind" in single:
        kinds = single["kind"]
        if not np.isin(kinds, np.arange(-1, 1000)).all():
            raise InputError(f"{path}: kinds are whole numbers from -1 to 999. Repair it.")
        found = found._replace(species=kinds.astype(int))
        named = dict(zip(found.species.tolist(), symbols, strict=True))
        names = [named.get(k, UNNAMED) for k in range(int(kinds.max(initial=-1)) + 1)]
    else:
        names = sorted(set(symbols))
        found = found._replace(species=np.array([names.index(symbol) for symbol in symbols], int))
    known = {name: single[name] for name in ("confidence", "amplitude_error") if name in single}
    if "position_error" in numbers:
        known["position_error"] = numbers["position_error"]
    return found._replace(**known), names


WIDTHS = {"pos": 3, "position_error": 3}


def _columns(path: Path, comment: str) -> dict[str, tuple[int, int]]:
    """First column and number of them, of those that are of use; `species` and `pos` always."""
    stated = re.search(r'Properties=("[^"]*"|\S+)', comment)
    if not stated:
        return {"species": (0, 1), "pos": (1, 3)}
    words = stated[1].strip('"').split(":")
    columns, start = {}, 0
    if len(words) % 3 or not all(width.isdecimal() and 0 < int(width) < 1000 for width in words[2::3]):
        raise InputError(f"{path}: line 2 has Properties that are not name:type:columns. Repair it.")
    wanted = {column.partition(":")[0] for column in COLUMNS}
    for name, width in zip(words[::3], map(int, words[2::3]), strict=True):
        if name in wanted:
            if width != WIDTHS.get(name, 1):
                raise InputError(f"{path}: line 2 has {width} columns of {name}. Repair it.")
            columns[name] = start, width
        start += width
    if not {"species", "pos"} <= set(columns):
        raise InputError(f"{path}: line 2 has no species or no pos among its Properties. Repair it.")
    return columns
