"""Which species an atom is of, by how bright it is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ..elemental import USUAL
from ..errors import InputError
from .table import Atoms

STEPS = 200  # of expectation maximisation
LEAST = 0.01  # standard deviation of a species' amplitudes, over their mean
APART = 3.0  # spreads of two classes on either side, by which they are two and not halves of one


def species(atoms: Atoms, count: int, numbers: Sequence[int] | None = None) -> Atoms:
    """The atoms with a species each, from 0 of the faintest, and the probability that it is this one.

    The amplitudes are taken for a mixture of `count` normal distributions, fitted by expectation maximisation from
    where least variance parts their logarithms [Otsu 1979], or, with the species' atomic `numbers` in ascending order,
    from where a common factor times Z^1.7 explains them best. If that leaves a species without atoms, none are given
    to it, unless the amplitudes by themselves fall into as many classes that are clearly apart: then the detector
    follows another power.

    Raises InputError for fewer atoms than three a species, numbers that do not ascend, or another number of them.
    """
    amplitude = np.maximum(np.asarray(atoms.amplitude, float), 1e-12)
    if count < 1 or amplitude.size < 3 * count:
        raise InputError(f"{count} species of {amplitude.size} atoms. Give 1 or more, and three atoms for each.")
    if numbers is not None and (len(numbers) != count or np.any(np.diff(numbers) <= 0) or min(numbers) < 1):
        raise InputError(f"atomic numbers {list(numbers)} for {count} species. Give as many, in ascending order.")
    if count == 1:
        return atoms._replace(species=np.zeros(amplitude.size, int), confidence=np.ones(amplitude.size))
    middles = _parted(amplitude, count) if numbers is None else _scaled(amplitude, numbers)
    nearest = _nearest(amplitude, middles)
    if numbers is not None and np.bincount(nearest, minlength=count).min() == 0:
        blindly = _clearly_apart(amplitude, count)
        nearest = nearest if blindly is None else blindly
    belongs = np.eye(count)[nearest]
    for _ in range(STEPS):
        weight = belongs.sum(0) + 1e-9
        middles = np.where(weight > 0.5, belongs.T @ amplitude / weight, middles)
        spread = np.sqrt(np.sum(belongs * (amplitude[:, None] - middles) ** 2, 0) / weight)
        spread = np.maximum(spread, LEAST * middles)
        likely = np.log(weight) - np.log(spread) - 0.5 * ((amplitude[:, None] - middles) / spread) ** 2
        # Of two wide tails the wrong one can win far out: no atom is brighter than those of a brighter species.
        likely = np.where(_beyond(amplitude, middles), -np.inf, likely)
        new = np.exp(likely - likely.max(1, keepdims=True))
        new /= new.sum(1, keepdims=True)
        if np.abs(new - belongs).max() < 1e-6:
            break
        belongs = new
    order = np.argsort(middles)
    belongs = belongs[:, order]
    return atoms._replace(species=belongs.argmax(1), confidence=belongs.max(1))


def _clearly_apart(amplitude, count: int) -> np.ndarray | None:
    """The class of each amplitude, blindly, if their logarithms fall into so many that are apart."""
    try:
        kind = _nearest(amplitude, _parted(amplitude, count))
    except InputError:
        return None
    logs = np.log(amplitude)
    classes = [logs[kind == k] for k in range(count)]
    if min(map(len, classes)) < 3:
        return None
    spread = [float(c.std()) for c in classes]
    gaps = [float(b.mean() - a.mean()) for a, b in itertools.pairwise(classes)]
    wide = all(gap > APART * (a + b) for gap, (a, b) in zip(gaps, itertools.pairwise(spread), strict=True))
    return kind if wide else None


def _nearest(amplitude, middles) -> np.ndarray:
    return np.abs(np.log(amplitude)[:, None] - np.log(middles)).argmin(1)


def _beyond(amplitude, middles) -> np.ndarray:
    """`[atom, species]`: whether the middle of another species lies between."""
    low, high = np.minimum(amplitude[:, None], middles), np.maximum(amplitude[:, None], middles)
    between = (low[..., None] < middles) & (middles < high[..., None])
    return between.any(-1)


def _parted(amplitude, count: int) -> np.ndarray:
    """Middles of classes of least variance of the logarithm."""
    from skimage.filters import threshold_multiotsu

    if count > 5:
        raise InputError(f"{count} species: more than 5 cannot be told apart blindly. Give fewer, or their elements.")
    logs = np.log(amplitude)
    logs = np.clip(logs, *np.percentile(logs, (0.5, 99.5)))
    try:
        ends = threshold_multiotsu(logs, count, nbins=128)
    except ValueError as error:
        raise InputError(f"there are fewer than {count} different amplitudes. Give fewer species.") from error
    kind = np.digitize(logs, ends)
    return np.exp(np.array([np.median(logs[kind == k]) if (kind == k).any() else logs[0] + k for k in range(count)]))


def _scaled(amplitude, numbers) -> np.ndarray:
    ratios = USUAL * np.log(np.asarray(numbers, float))
    logs = np.log(amplitude)
    shifts = np.linspace(logs.min() - ratios.max(), logs.max() - ratios.min(), 400)
    costs = [np.minimum(np.abs(logs[:, None] - ratios - s).min(1), 0.5).sum() for s in shifts]
    return np.exp(ratios + shifts[int(np.argmin(costs))])
