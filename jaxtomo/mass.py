"""What must not change while a specimen is tilted: the mass in each row along the axis, and how its centre moves.

With the tilt axis along v, the first two moments of every image row across it obey, whatever the specimen [Helgason
1965; Ludwig 1966],

    Σ_u p_i(u, v)                       = g_i M(v - dv_i)                                mass: the same in every tilt
    Σ_u u p_i(u, v) / Σ_u p_i(u, v)     = A(v) cos θ_i + B(v) sin θ_i + du_i - δ v       its centre: a sinusoid

where g_i, du_i and dv_i are the gain and the shifts of tilt i, and δ is the angle still left between the axis and v.
Both are linear in the unknowns. They hold for a specimen that lies inside the field across the axis; along it, it may
be longer than the field.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .correlate import centred, displacement

# Frames come here smoothed by this many pixels, which leaves these shares of the noise in a pixel and in a row sum.
SMOOTHED = 1.0
PIXEL_NOISE, ROW_NOISE = 0.28, 0.53
# A row is isolated if its ends are empty to this share of its peak, in one tilt and on the average of all.
EMPTY, EMPTY_ON_AVERAGE = 0.05, 0.02
# If rows change their mass over the tilts by more than this, beyond the noise, they hold more than the field shows.
CONSERVED = 0.08
# By how much the scatter of the rows understates the error of the axis, found on simulated series.
AXIS_CAUTION = 2.0
# No angle is trusted to be better than this, rad.
AXIS_FLOOR = np.deg2rad(0.03)


class Mass(NamedTuple):
    """What the rows say about the pose still left, in pixels and radians: `shift [tilt, 2]` (u, v) and its standard
    `error [tilt, 2]`, infinite for a tilt that shows the specimen cut; the angle `axis` δ and its error; `rows [y]`,
    those that were used; `gain [tilt]`, of median 1; `change`, by how much the masses vary beyond the noise."""

    shift: np.ndarray
    error: np.ndarray
    axis: float
    axis_error: float
    rows: np.ndarray
    gain: np.ndarray
    change: float


def common_mass(frames, measured, noise: float, tilt, first: bool = False) -> Mass | None:
    """The pose left in `frames [tilt, y, x]`, or None if the specimen does not lie inside the field across the axis.

    The frames have vacuum 0 and their axis already nearly along y, and are smoothed by 1 pixel. `measured [tilt, y, x]`
    is 1 where a pixel was measured, `noise` the standard deviation of a pixel before smoothing, `tilt` in rad. On the
    `first` call the rows may be far from each other, and v is sought farther. A `change` above `CONSERVED`, once shift
    and axis are right, says that the specimen is larger than the field after all.
    """
    window, strong = _support(frames, noise)
    known, whole, rows = _uncut(frames, measured, noise, strong)
    if rows.sum() < 3 or whole.sum() < max(2, 0.5 * len(tilt)):
        return None
    mass, moment = (frames * window).sum(2), (frames * window * centred(frames.shape[2])).sum(2)
    gain, profile = _levelled(mass, known, rows)
    inside = (profile * rows).sum() > 0.5 * (profile * strong).sum()
    change = _change(mass / gain[:, None] - profile, profile, known & rows, noise, window)
    if not inside:
        return None
    mass, moment = mass / gain[:, None], moment / gain[:, None]
    # The variance of a centre of mass is that of the noise times the third power of the width, by the mass squared.
    weight = (known & rows) * profile**2 / np.maximum(window.sum(1), 1) ** 3
    centre = moment / np.where(profile > 0, profile, 1)
    across, across_error, moments, axis_by_centres = _centres(centre, profile, weight, tilt)
    seen = known & (known.mean(0) > 0.4)
    reach = max(3, len(profile) // (6 if first else 16))
    reference, shared = np.broadcast_to(profile, seen.shape), np.broadcast_to(seen.any(0), seen.shape)
    columns = (np.asarray(a, np.float32)[..., None] for a in (reference, shared, mass, seen))
    along = displacement(*columns, reach=(reach, 0)).shift[:, 1]
    off, slope = np.abs(mass - profile)[known & rows], np.gradient(profile)[rows]
    along_error = 1.4826 * np.median(off) / np.sqrt((slope**2).sum())
    # A rotation by δ moves the mass of a row by δ times its centre of mass.
    axis, axis_error = combined([axis_by_centres, _axis_from_mass(mass, -np.gradient(moments, axis=1), seen)])
    shift = np.stack([across, along], 1)
    order = np.flatnonzero(whole)[np.argsort(tilt[whole])]
    shift[~whole] = np.stack([np.interp(tilt[~whole], tilt[order], part[order]) for part in shift.T], 1)
    error = np.where(whole[:, None], (across_error, along_error), np.inf)
    return Mass(shift, error, axis, axis_error, rows, gain, change)


def combined(estimates) -> tuple[float, float]:
    """Mean and standard error of (value, error) pairs, by inverse variance."""
    value, error = np.array(list(estimates), float).T
    weight = 1 / (error**2 + AXIS_FLOOR**2)
    if not weight.sum() > 0:
        return 0.0, np.inf
    return float((weight * value).sum() / weight.sum()), float(1 / np.sqrt(weight.sum()))


def _uncut(frames: np.ndarray, measured: np.ndarray, noise: float, strong: np.ndarray):
    """Where the specimen ends inside the field: `[tilt, y]`, and the tilts and the `strong` rows where it always does.

    A shift cuts a small specimen in some tilts, but then in most rows. One that is cut here and there is larger.
    """
    from scipy import ndimage

    n, _, nx = frames.shape
    inside = measured > 0.99
    present = ndimage.binary_erosion(inside[:, :, nx // 3 : -(nx // 3)].all(2), np.ones((1, 5)))
    width = max(2, nx // 25)
    first, last = inside.argmax(2)[..., None], nx - 1 - inside[:, :, ::-1].argmax(2)[..., None]
    columns = [np.clip(side, 0, nx - 1) for side in (first + np.arange(width), last - np.arange(width))]
    ends = np.stack([np.take_along_axis(frames, column, 2).mean(2) for column in columns])
    peak, sigma = frames.max(2), PIXEL_NOISE * noise * np.sqrt(2 / width)
    known = present & (ends.max(0) < np.maximum(EMPTY * peak, 4 * sigma))
    rows = strong & (known.sum(0) > 0.5 * np.maximum(present.sum(0), 0.5 * n))
    whole = (known & rows).sum(1) > 0.9 * np.maximum((present & rows).sum(1), 0.5 * rows.sum())
    known &= whole[:, None]
    count = np.maximum(known.sum(0), 1)
    bar = EMPTY_ON_AVERAGE * (peak * known).sum(0) / count + 4 * sigma / np.sqrt(n)
    steady = (np.where(known, ends, 0).sum(1) / count).max(0) < bar
    return known, whole, rows & steady & (known.sum(0) > 0.8 * np.maximum(present[whole].sum(0), 0.5 * whole.sum()))


def _support(frames, noise):
    """`[y, x]` from the left to the right end of the specimen over the tilts, and `[y]` the rows with much mass."""
    from scipy import ndimage

    ceiling = np.percentile(frames, 95, axis=0, method="lower")
    there = ceiling > max(0.03 * float(np.median(frames.max((1, 2)))), 4 * PIXEL_NOISE * noise)
    grown = ndimage.binary_dilation(there, np.ones((5, 2 * max(2, frames.shape[2] // 25) + 1)))
    window = np.logical_or.accumulate(grown, 1) & np.logical_or.accumulate(grown[:, ::-1], 1)[:, ::-1]
    mass = (np.median(frames, 0) * window).sum(1)
    noise_left = 4 * ROW_NOISE * noise * np.sqrt(window.sum(1) / len(frames))
    return window, there.any(1) & (mass > np.maximum(0.05 * mass.max(), noise_left))


def _levelled(mass, known, rows):
    """`gain [tilt]` and the typical `profile [y]`, so that mass_i(v) ≈ gain_i profile(v)."""

    def typical(values):
        return np.nanmedian(np.where(known | ~known.any(0), values, np.nan), 0)

    profile, use = typical(mass), known & rows
    gain = (mass * profile * use).sum(1) / np.maximum((profile**2 * use).sum(1), 1e-30)
    gain = np.clip(gain / np.median(gain), 0.05, 20) if np.median(gain) > 0 else np.ones(len(mass))
    return gain, typical(mass / gain[:, None])


def _change(rest, profile, known, noise, window) -> float:
    """The change `rest [tilt, y]` of the masses beyond the noise, relative to the masses, in a typical tilt."""
    expected = (ROW_NOISE * noise) ** 2 * window.sum(1)
    some = known.any(1)
    excess = (known * (rest**2 - expected))[some].sum(1) / np.maximum((known * profile**2)[some].sum(1), 1e-30)
    return float(np.sqrt(max(np.median(excess), 0))) if some.any() else np.inf


def _sinusoids(values, weight, basis):
    """Amplitudes `[y, 2]` of `basis [tilt, 2]` in each row of `values [tilt, y]`, and their `[y, 2, 2]` precision."""
    precision = (weight.T @ (basis[:, :, None] * basis[:, None]).reshape(-1, 4)).reshape(-1, 2, 2)
    precision = precision + (1e-9 * weight.sum(0) + 1e-30)[:, None, None] * np.eye(2)
    return np.linalg.solve(precision, ((weight * values).T @ basis)[..., None])[..., 0], precision


def _centres(centre, profile, weight, tilt):
    """u of every tilt and its error, the first moments `[tilt, y]`, and (axis, error), from `centre [tilt, y]`.

    Least squares over u, the angle and the two amplitudes of every row, with the amplitudes eliminated; what fits badly
    counts less (Huber). What u cannot tell from a movement of the specimen, a cos θ + b sin θ, is fixed by putting its
    centre of mass on the axis.
    """
    n, ny = centre.shape
    basis = np.stack([np.cos(tilt), np.sin(tilt)], 1)
    lever = np.broadcast_to(-centred(ny), centre.shape)
    trust = weight
    for _ in range(4):

        def free(values, w=trust):
            return values - basis @ _sinusoids(values, w, basis)[0].T

        half = np.linalg.cholesky(_sinusoids(centre, trust, basis)[1])
        explained = np.linalg.solve(half, (trust.T[:, :, None] * basis).swapaxes(1, 2)).reshape(-1, n)
        normal = np.zeros((n + 1, n + 1))
        normal[:n, :n] = np.diag(trust.sum(1)) - explained.T @ explained + trust.sum() / n**2 * basis @ basis.T
        normal[:n, n] = normal[n, :n] = (trust * free(lever)).sum(1)
        normal[n, n] = (trust * free(lever) * lever).sum()
        hold = np.append(np.full(n, 1e-3 * np.median(trust.sum(1))), 1e-9 * normal[n, n])
        normal += np.diag(hold) + 1e-30 * np.eye(n + 1)  # a tilt without rows stays where it is
        target = np.append((trust * free(centre)).sum(1), (trust * free(centre) * lever).sum())
        last = np.zeros(n + 1)
        last[n] = 1
        solution, towards_axis = np.linalg.solve(normal, np.stack([target, last], 1)).T
        across, axis = solution[:n], float(solution[n])
        left = free(centre - across[:, None] - axis * lever)
        misfit = np.abs(left) * np.sqrt(weight)
        influence = trust * free(towards_axis[:n, None] + towards_axis[n] * lever) * left
        amplitude, _ = _sinusoids(centre - across[:, None] - axis * lever, trust, basis)
        trust = weight / np.maximum(1, misfit / (2 * 1.4826 * np.median(misfit[weight > 0]) + 1e-30))
    share = profile * (profile > 0) * (weight.sum(0) > 0)
    whole = share @ amplitude / max(share.sum(), 1e-30)
    moments = np.where(share > 0, profile * (basis @ (amplitude - whole).T), 0)
    error = np.sqrt((trust * left**2).sum() / trust.sum() / np.median(np.maximum((trust > 0).sum(1), 1)))
    return across + basis @ whole, error, moments, (axis, _scatter(influence))


def _scatter(influence):
    """Standard error of the sum of `influence [tilt, y]`, whose terms hang together within rows and within tilts."""
    every = max(2, influence.shape[1] // 24)
    blocks = np.add.reduceat(influence.sum(0), np.arange(0, influence.shape[1], every))
    return AXIS_CAUTION * float(np.sqrt(max((blocks**2).sum(), (influence.sum(1) ** 2).sum())))


def _axis_from_mass(mass, turned, known):
    """The axis angle and its error from `mass [tilt, y]`: where it changes the way a rotation changes it.

    Regression on `turned [tilt, y]`, the derivative by the angle, after the gain, shift, offset and slope of every tilt
    and the mean of every row are taken out of both.
    """
    weight = known.astype(float)
    ny = mass.shape[1]
    mean = (mass * weight).sum(0) / np.maximum(weight.sum(0), 1e-9)
    basis = np.stack([mean, np.gradient(mean), np.ones(ny), centred(ny)], 1)
    basis = basis / (np.linalg.norm(basis, axis=0) + 1e-30)
    precision = (weight @ (basis[:, :, None] * basis[:, None]).reshape(ny, 16)).reshape(-1, 4, 4) + 1e-9 * np.eye(4)

    def free(values):
        for _ in range(4):
            values = values - (values * weight).sum(0) / np.maximum(weight.sum(0), 1e-9)
            values = values - np.linalg.solve(precision, ((weight * values) @ basis)[..., None])[..., 0] @ basis.T
        return values

    change, slope = free(mass), free(turned)
    trust = weight
    for _ in range(5):
        power = (trust * slope**2).sum()
        if not power > 0:
            return 0.0, np.inf
        axis = float((trust * slope * change).sum() / power)
        left = change - axis * slope
        trust = weight / np.maximum(1, np.abs(left) / (2 * 1.4826 * np.median(np.abs(left[known])) + 1e-30))
    return axis, _scatter(trust * slope * left) / power
