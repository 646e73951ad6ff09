"""What is known of atoms, a row for each."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..io.atomic import replacing


class Atoms(NamedTuple):
    """Atoms, a row for each.

    Attributes:
        positions: `[atom, 3]` (x, y, z) in Å, from the middle of the volume: y along the tilt axis, z along the beam.
        amplitude: `[atom]` integral of the intensity over an atom, in that of a voxel: what it adds to every image.
        width: `[atom]` standard deviation in Å, across the beam, with what pixels and blur add.
        position_error: `[atom, 3]` Å, standard deviation that noise alone leaves with all else known: a lower bound.
            NaN of atoms that were not refined.
        amplitude_error: `[atom]` likewise.
        species: `[atom]` 0, 1, … from the faintest; -1 where none has been told.
        confidence: `[atom]` probability of that species; NaN where none has been told.
    """

    positions: np.ndarray
    amplitude: np.ndarray
    width: np.ndarray
    position_error: np.ndarray
    amplitude_error: np.ndarray
    species: np.ndarray
    confidence: np.ndarray

    def select(self, which) -> Atoms:
        """Only those that an index or a mask names."""
        return Atoms(*(values[which] for values in self))


def atoms(positions, amplitude, width) -> Atoms:
    """Atoms of which no more is known. `width` may be one number."""
    positions = np.asarray(positions, float).reshape(-1, 3)
    n = len(positions)
    amplitude, width = (np.broadcast_to(np.asarray(a, float), (n,)).copy() for a in (amplitude, width))
    unknown = np.full(n, np.nan)
    return Atoms(positions, amplitude, width, np.full((n, 3), np.nan), unknown, np.full(n, -1), unknown.copy())


def write_table(path: str | Path, atoms: Atoms) -> None:
    """A CSV file, an atom a line; what is not known is empty."""
    axes = "xyz"
    columns = {f"{axis}_A": atoms.positions[:, k] for k, axis in enumerate(axes)}
    columns |= {"amplitude": atoms.amplitude, "width_A": atoms.width}
    columns |= {f"{axis}_error_A": atoms.position_error[:, k] for k, axis in enumerate(axes)}
    columns |= {"amplitude_error": atoms.amplitude_error}
    columns |= {"species": np.where(atoms.species < 0, np.nan, atoms.species), "confidence": atoms.confidence}
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        rows = zip(*columns.values(), strict=True)
        writer.writerows([f"{value:.6g}" if np.isfinite(value) else "" for value in row] for row in rows)
