"""Point defects of a crystal: where its lattice has a site and no atom, an atom and no site, or another species."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..io.atomic import replacing
from .table import Atoms

REACH = 1.7  # nearest distances within which neighbours tell the lattice
NEAR = 0.2  # nearest distances: as far as neighbours may be from where the lattice has them
SHARED = 0.35  # of the atoms, those that must have a neighbour along a vector of the lattice
WHOLE = 0.5  # of the atoms, those that must be on a lattice for there to be one
ENCLOSED = 0.75  # of the neighbours of an empty site, those that must be there for it to be a vacancy
ORDERED = 0.75  # of the atoms of a sublattice, those that must be of one species

VACANCY, INTERSTITIAL, DISPLACED, SUBSTITUTION = "vacancy", "interstitial", "displaced", "substitution"


class Defects(NamedTuple):
    """Point defects, a row for each.

    Attributes:
        kind: `[defect]` of the words vacancy, interstitial (an atom beside occupied sites), displaced (an atom far
            from the empty site that is its own) and substitution (a species that its sublattice is not made of:
            antisites and foreign atoms).
        positions: `[defect, 3]` (x, y, z) in Å, of a vacancy where its neighbours have the site.
        atom: `[defect]` which atom, -1 of a vacancy.
        lattice: `[3, 3]` Å, a primitive vector a row; None where there is no lattice.
        share: of the atoms, those that are on it.
        message: what that means, in a sentence.
    """

    kind: np.ndarray
    positions: np.ndarray
    atom: np.ndarray
    lattice: np.ndarray | None
    share: float
    message: str


def defects(atoms: Atoms) -> Defects:
    """Vacancies and other point defects of a crystal with one atom a primitive cell (FCC, BCC, simple cubic and what
    they become by strain), ordered alloys on these included.

    The vectors to near neighbours that most atoms share give the lattice; sites are numbered from neighbour to
    neighbour, so that the lattice may bend. An empty site is a vacancy where three quarters of its neighbours are
    there, so that steps of a surface are none; voids larger than a few sites are not listed.

    In a glass, or of several grains alike, no lattice takes in half of the atoms: then `lattice` is None, no defects
    are listed and `message` says so.

    Raises InputError for fewer than 20 atoms.
    """
    places = np.asarray(atoms.positions, float)
    if len(places) < 20:
        raise InputError(f"{len(places)} atoms are too few to tell a lattice. Give 20 or more.")
    vectors = _shared_vectors(places)
    basis = _primitive(vectors)
    if basis is None:
        return _none(0.0, "the neighbours of its atoms share no three directions")
    steps = np.rint(vectors @ np.linalg.inv(basis)).astype(int)
    basis = np.linalg.lstsq(steps.astype(float), vectors, rcond=None)[0]
    lengths = np.linalg.norm(vectors, axis=1)
    near = lengths < 1.25 * lengths.min()
    vectors, steps = vectors[near], steps[near]
    numbered = _numbered(places, vectors, steps)
    share = len(numbered) / len(places)
    if share < WHOLE:
        return _none(share, f"only {100 * share:.0f} % of its atoms are on one")
    site_of, taken = _settled(places, numbered, vectors, steps)
    found: list[tuple[str, np.ndarray, int]] = []
    spoken_for = set()
    for atom, site in _strays(places, site_of, basis):
        found.append((INTERSTITIAL if site in taken else DISPLACED, places[atom], atom))
        spoken_for.add(site)
    for site, place, filled in _empty(places, taken, vectors, steps):
        if filled >= ENCLOSED * len(steps) and site not in spoken_for:
            found.append((VACANCY, place, -1))
    found += [(SUBSTITUTION, places[atom], atom) for atom in _foreign(atoms.species, taken)]
    message = f"{100 * len(taken) / len(places):.0f} % of the atoms are on one lattice"
    return Defects(
        np.array([kind for kind, _, _ in found], "U12"),
        np.array([place for _, place, _ in found]).reshape(-1, 3),
        np.array([atom for _, _, atom in found], int),
        basis,
        len(taken) / len(places),
        message,
    )


def write_defects(path: str | Path, found: Defects) -> None:
    """A CSV file, a defect a line; `atom` counts from 0 and is empty of a vacancy."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "x_A", "y_A", "z_A", "atom"])
        for kind, place, atom in zip(found.kind, found.positions, found.atom, strict=True):
            writer.writerow([kind, *(f"{value:.4f}" for value in place), atom if atom >= 0 else ""])


def _none(share: float, why: str) -> Defects:
    message = f"there is no lattice: {why}. In a glass point defects have no meaning, and none are listed."
    return Defects(np.array([], "U12"), np.zeros((0, 3)), np.array([], int), None, share, message)


def _pairs(places, reach: float) -> np.ndarray:
    """`[pair, 2]`, both ways."""
    from scipy.spatial import KDTree

    pairs = KDTree(places).query_pairs(reach, output_type="ndarray")
    return np.concatenate([pairs, pairs[:, ::-1]])


def _nearest(places) -> float:
    from scipy.spatial import KDTree

    distances: Any = KDTree(places).query(places, 2)[0]
    return float(np.median(distances[:, 1]))


def _shared_vectors(places) -> np.ndarray:
    """`[vector, 3]`: those from one atom to another that `SHARED` of the atoms have, the commonest first."""
    from scipy.spatial import KDTree

    away = _nearest(places)
    pairs = _pairs(places, REACH * away)
    vectors = places[pairs[:, 1]] - places[pairs[:, 0]]
    sample = vectors if len(vectors) < 40000 else vectors[np.random.default_rng(0).permutation(len(vectors))[:40000]]
    tree, weight = KDTree(sample), len(vectors) / len(sample)
    crowd = np.asarray(tree.query_ball_point(sample, 0.15 * away, return_length=True), float) * weight
    found: list[np.ndarray] = []
    while len(sample) and crowd.max() > SHARED * len(places):
        centre = sample[crowd.argmax()]
        for _ in range(3):
            centre = sample[tree.query_ball_point(centre, 0.15 * away)].mean(0)
        found.append(centre)
        crowd[tree.query_ball_point(centre, 0.4 * away)] = 0
    return np.array(found).reshape(-1, 3)


def _primitive(vectors) -> np.ndarray | None:
    """Three of the shortest that span the smallest cell."""
    shortest = vectors[np.argsort(np.linalg.norm(vectors, axis=1))][:14]
    best, least = None, np.inf
    for three in itertools.combinations(shortest, 3):
        cell, lengths = abs(np.linalg.det(three)), np.prod(np.linalg.norm(three, axis=1))
        if cell > 0.2 * lengths and cell < 0.99 * least:
            best, least = np.array(three), cell
    return best


def _numbered(places, vectors, steps) -> dict[int, tuple[int, ...]]:
    """Of every atom that a chain of neighbours ties to most others, its site in the lattice."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    away = np.linalg.norm(vectors, axis=1)
    pairs = _pairs(places, 1.3 * away.max())
    apart = places[pairs[:, 1]] - places[pairs[:, 0]]
    which = np.linalg.norm(apart[:, None] - vectors, axis=2)
    nearest = which.argmin(1)
    held = which.min(1) < NEAR * away.min()
    (i, j), k = pairs[held].T, nearest[held]
    graph = csr_array((np.ones(len(i)), (i, j)), shape=(len(places),) * 2)
    parts: Any = connected_components(graph, directed=False)
    largest = np.flatnonzero(parts[1] == np.bincount(parts[1]).argmax())
    bonds = np.bincount(i, minlength=len(places))
    start = int(largest[bonds[largest].argmax()])
    order, before = breadth_first_order(graph, start, directed=True)
    step_of = {(a, b): tuple(steps[c]) for a, b, c in zip(i.tolist(), j.tolist(), k.tolist(), strict=True)}
    sites = {start: (0, 0, 0)}
    for atom in order[1:].tolist():
        a, b, c = sites[int(before[atom])]
        u, v, w = step_of[int(before[atom]), atom]
        sites[atom] = a + int(u), b + int(v), c + int(w)
    return sites


def _expected(places, taken, site, vectors, steps):
    """(where the neighbours of a site have it, how many there are)."""
    there = [
        places[atom] + vector
        for vector, step in zip(vectors, steps.tolist(), strict=True)
        if (atom := taken.get((site[0] - step[0], site[1] - step[1], site[2] - step[2]))) is not None
    ]
    return np.mean(there, 0) if there else np.full(3, np.nan), len(there)


def _settled(places, numbered, vectors, steps):
    """(site by atom, atom by site): of two at one site the one nearer to where its neighbours have it."""
    at: dict[tuple[int, ...], list[int]] = {}
    for atom, site in numbered.items():
        at.setdefault(site, []).append(atom)
    taken = {site: rivals[0] for site, rivals in at.items()}
    for site, rivals in at.items():
        if len(rivals) > 1:
            centre, _ = _expected(places, taken, site, vectors, steps)
            distances = [float(np.linalg.norm(places[atom] - centre)) for atom in rivals]
            taken[site] = rivals[int(np.argmin(distances))]
    return {atom: site for site, atom in taken.items()}, taken


def _strays(places, site_of, basis):
    """(atom, the site nearest to it) of atoms that are on none."""
    from scipy.spatial import KDTree

    settled = np.array(sorted(site_of))
    strays = np.setdiff1d(np.arange(len(places)), settled)
    if not strays.size:
        return
    nearest: Any = KDTree(places[settled]).query(places[strays])[1]
    for atom, neighbour in zip(strays.tolist(), settled[nearest].tolist(), strict=True):
        shift = np.rint((places[atom] - places[neighbour]) @ np.linalg.inv(basis)).astype(int)
        yield atom, tuple(int(a + b) for a, b in zip(site_of[neighbour], shift, strict=True))


def _empty(places, taken, vectors, steps):
    """(site, where it is, how many of its neighbours are there) of empty sites beside atoms."""
    beside = {tuple(a + b for a, b in zip(site, step, strict=True)) for site in taken for step in steps.tolist()}
    for site in sorted(beside - set(taken)):
        place, filled = _expected(places, taken, site, vectors, steps)
        yield site, place, filled


def _foreign(species, taken) -> list[int]:
    """Atoms of another species than the rest of their sublattice, of the eight that doubling every vector makes."""
    sites, atoms = np.array(list(taken)), np.array(list(taken.values()))
    kinds = np.asarray(species)[atoms]
    if kinds.min() < 0:
        return []
    group = (sites % 2) @ np.array([1, 2, 4])
    majority = np.full(8, -1)
    for g in range(8):
        counts = np.bincount(kinds[group == g]) if (group == g).any() else np.zeros(1)
        if counts.max() < ORDERED * max(counts.sum(), 1):
            return []  # a random alloy, in which every species is at home everywhere
        majority[g] = counts.argmax()
    return atoms[kinds != majority[group]].tolist()
