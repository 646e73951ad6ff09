"""What tilts near each other say about the pose: their displacement, and how parts of them move against each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .correlate import centred, displacement, taper

# Each tilt is compared with its next three, so that one bad image cannot break the chain.
GAPS = (1, 2, 3)
# Patches are compared between tilts this many degrees apart: enough for depth to show, little enough to look alike.
SPANS_DEG = (8.0, 16.0)
PATCH, STEP, PATCH_REACH = 24, 12, 4
# By how much the scatter of the patches understates the error of the axis, found on simulated series.
AXIS_CAUTION = 1.5
# Fewer places than these do not tell the axis from chance.
PLACES = 12
# A displacement as far as it is sought must be this much better correlated than none.
CAUTION = 0.1
# A displacement between two images is never trusted better than this, pixels of the images compared.
PAIR_FLOOR = 0.1


class Pairs(NamedTuple):
    """Pairs of tilts: `low` and `high` (indices; low has the smaller tilt), the factor `stretch` by which low was
    compressed across the axis, the displacement `shift [pair, 2]` of high from low, and its correlation `score`."""

    low: np.ndarray
    high: np.ndarray
    stretch: np.ndarray
    shift: np.ndarray
    score: np.ndarray


def compare(frames, weight, tilt, reach: tuple[int, int], flat: bool) -> Pairs:
    """Correlates every tilt of `frames [tilt, y, x]` with the next three in angle.

    `flat` compresses the image of the smaller tilt by the ratio of the cosines first, as tilting does to a flat
    specimen, but not to a round one.
    """
    order = np.argsort(tilt, kind="stable")
    first, second = _steps(len(tilt))
    low, high, stretch = _by_tilt(order[first], order[second], tilt, flat)
    parts = []
    for i in range(0, len(low), 128):
        a, b, c = low[i : i + 128], high[i : i + 128], stretch[i : i + 128]
        parts.append(
            displacement(
                compressed(frames[a], c), compressed(weight[a], c), frames[b], weight[b], reach, caution=CAUTION
            )
        )
    shift, score = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Pairs(low, high, stretch, shift, score)


def _steps(n):
    gaps = [g for g in GAPS if g < n]
    return np.concatenate([np.arange(n - g) for g in gaps]), np.concatenate([np.arange(g, n) for g in gaps])


def _by_tilt(first, second, tilt, flat):
    swap = np.abs(tilt[first]) > np.abs(tilt[second])
    low, high = np.where(swap, second, first), np.where(swap, first, second)
    cosine = np.maximum(np.abs(np.cos(tilt)), 0.05)
    return low, high, np.maximum(cosine[high] / cosine[low], 0.3) if flat else np.ones(len(low))


def compressed(frames, factor):
    """`frames [n, y, x]` compressed by `factor [n]` about the middle of x; zero where nothing was imaged."""
    nx = frames.shape[2]
    out = np.empty_like(frames)
    for frame, c, result in zip(frames, factor, out, strict=True):
        place = centred(nx) / c + (nx - 1) / 2
        k = np.clip(np.floor(place), 0, nx - 2).astype(int)
        part = (place - k).astype(np.float32)
        inside = (place >= 0) & (place <= nx - 1)
        result[:] = (frame[:, k] * (1 - part) + frame[:, k + 1] * part) * inside
    return out


def solve(pairs: Pairs, tilt, error=None) -> tuple[np.ndarray, np.ndarray]:
    """Shifts `[tilt, 2]` that explain all pairs, x_high - stretch x_low = shift, and what they leave, `[pair, 2]`.

    Least squares in which pairs count by their correlation, and less the worse they fit (an L1 norm, by reweighting).
    With `error [tilt, 2]`, the standard errors in pixels of the shifts found before, those are measurements too, and
    the pairs err by as much as they scatter about them.
    """
    n = len(tilt)
    shift, left = np.zeros((n, 2)), np.zeros_like(pairs.shift)
    trust = np.clip(pairs.score, 1e-3, None) ** 2
    for axis, stretch in enumerate((pairs.stretch, np.ones(len(pairs.low)))):
        target = pairs.shift[:, axis]
        if error is None:
            hold = 1e6 * (np.arange(n) == np.abs(tilt).argmin())
        else:
            scatter = 1.4826 * float(np.median(np.abs(target)))
            hold = np.median(trust) * (max(scatter, PAIR_FLOOR) / np.maximum(error[:, axis], 1e-3)) ** 2
        shift[:, axis], left[:, axis] = _least(pairs, stretch, target, trust, hold, tilt)
    return shift, left


def _least(pairs, stretch, target, trust, hold, tilt):
    """argmin over x of Σ trust |x_high - stretch x_low - target| + Σ hold x², and what is left of the target.

    The first term is quadratic below 0.1 pixel. In the order of the tilts the normal equations are banded, as wide as
    the largest step between two tilts of a pair.
    """
    from scipy.linalg import solveh_banded

    order = np.argsort(tilt, kind="stable")
    rank = np.argsort(order)
    low, high = rank[pairs.low], rank[pairs.high]
    weight = trust
    for _ in range(10):
        bands, right = np.zeros((max(GAPS) + 1, len(tilt))), np.zeros(len(tilt))
        bands[0] = hold[order] + 1e-9
        np.add.at(bands[0], high, weight)
        np.add.at(bands[0], low, weight * stretch**2)
        np.add.at(bands, (np.abs(high - low), np.minimum(high, low)), -weight * stretch)
        np.add.at(right, high, weight * target)
        np.add.at(right, low, -weight * stretch * target)
        x = solveh_banded(bands, right, lower=True)
        left = target - (x[high] - stretch * x[low])
        weight = trust / np.maximum(np.abs(left) / PAIR_FLOOR, 1)
    return x[rank], left


def axis_from_patches(frames, weight, tilt) -> tuple[float, float]:
    """The angle (rad) still between the tilt axis and y in band-passed `frames [tilt, y, x]`, and its error.

    Whatever the specimen, its parts move at right angles to the axis when it is tilted. Patches are followed
    between tilts 8 and 16° apart; the slope of their movement along y against that across it is the angle.
    """
    order = np.argsort(tilt, kind="stable")
    first, second = _spans(tilt[order])
    if not first.size or min(frames.shape[1:]) < PATCH:
        return 0.0, np.inf
    low, high, stretch = _by_tilt(order[first], order[second], tilt, flat=True)
    window = taper(PATCH, 0.25)[:, None] * taper(PATCH, 0.25)
    found = []
    for i in range(0, len(low), 32):
        a, b, c = low[i : i + 32], high[i : i + 32], stretch[i : i + 32]
        f, fw = _patches(compressed(frames[a], c)), _patches(compressed(weight[a], c))
        g, gw = _patches(frames[b]), _patches(weight[b])
        pair, place = np.nonzero((fw.min((2, 3)) > 0.9) & (gw.min((2, 3)) > 0.9))
        if not pair.size:
            continue
        contrast = np.sqrt((f[pair, place] ** 2).mean((1, 2)) * (g[pair, place] ** 2).mean((1, 2)))
        strong = contrast > 0.3 * np.median(contrast)
        pair, place = pair[strong], place[strong]
        moved = displacement(
            f[pair, place], fw[pair, place] * window, g[pair, place], gw[pair, place], (PATCH_REACH, PATCH_REACH), 0.6
        )
        x = centred(frames.shape[2])[: -PATCH + 1 : STEP] + (PATCH - 1) / 2
        across = moved.shift[:, 0] + x[place % x.size] * (1 - 1 / c[pair])
        found.append(np.stack([pair + i, place, across, moved.shift[:, 1], moved.score, np.abs(moved.shift).max(1)]))
    if not found:
        return 0.0, np.inf
    pair, place, across, along, score, far = np.concatenate(found, 1)
    good = (far < PATCH_REACH - 0.5) & (score > 0.5)
    pair, place = pair[good].astype(int), place[good].astype(int)
    return _slope(pair, place, across[good], along[good], score[good] ** 4 / (1.02 - score[good]))


def _spans(tilt):
    """Pairs of sorted tilts about 8 and 16° apart."""
    first, second = [], []
    for span in np.deg2rad(SPANS_DEG):
        other = np.searchsorted(tilt, tilt + span - 1e-6)
        here = np.flatnonzero(other < tilt.size)
        here = here[tilt[other[here]] - tilt[here] < 2.1 * span]
        first.append(here)
        second.append(other[here])
    return np.concatenate(first), np.concatenate(second)


def _patches(frames):
    """`[n, place, PATCH, PATCH]`, overlapping by half."""
    views = np.lib.stride_tricks.sliding_window_view(frames, (PATCH, PATCH), (1, 2))[:, ::STEP, ::STEP]
    return views.reshape(len(frames), -1, PATCH, PATCH)


def _slope(pair, place, across, along, weight):
    """Slope of `along` on `across` within pairs, robustly (bisquare-like), and its error.

    What one image does to all its patches, and one feature to a patch in all images, is not averaged out: the error is
    that of the sums by pair or by place."""
    if np.unique(place).size < PLACES:
        return 0.0, np.inf
    trust = weight
    for _ in range(10):

        def within(values, w=trust):
            return values - (np.bincount(pair, w * values) / np.maximum(np.bincount(pair, w), 1e-9))[pair]

        x, y = within(across), within(along)
        power = (trust * x * x).sum()
        if not power > 0:
            return 0.0, np.inf
        slope = (trust * x * y).sum() / power
        left = y - slope * x
        trust = weight / np.maximum(1, np.abs(left) / (1.5 * (1.4826 * np.median(np.abs(left)) + 1e-3))) ** 2
    error = max(float((np.bincount(group, trust * x * left) ** 2).sum()) for group in (pair, place))
    return float(slope), AXIS_CAUTION * float(np.sqrt(error) / power)
