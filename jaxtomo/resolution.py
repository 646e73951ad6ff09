"""Resolution by direction: down to what size volumes agree along the beam and across it, how much longer structures
are along it, how wide edges are, and how far samples agree.

NumPy in, NumPy and Python numbers out. Volumes are `[z, y, x]`: z the beam at zero tilt, along which a missing wedge
takes frequencies away; x across it; y the tilt axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import metrics
from .errors import InputError

AXES: Mapping[str, tuple[float, float, float]] = {"z": (1, 0, 0), "x": (0, 0, 1), "y": (0, 1, 0)}
HALF_ANGLE = 30.0  # degrees: of the cones
SURE = 2.0  # standard deviations of the FSC of noise, below which an agreement is none
TELLING = 0.5  # a shell in which noise may reach more than that says nothing
LOOKED_AT = 2**22  # voxels, at most, of the middle of a volume, that edges are looked for in
EDGES, LEAST = 400, 10  # how many of the strongest edges, and how few tell nothing
REACH = 10  # voxels to both sides of one
FACING = np.cos(np.deg2rad(25))  # of the gradient: edges farther from the direction are not fitted
TEN_TO_NINETY = 2.5631  # standard deviations of a Gaussian from 10 % to 90 % of its integral


class Cone(NamedTuple):
    """A Fourier shell correlation within a cone.

    Attributes:
        frequency: `[shell]`, in 1/nm or cycles per voxel.
        curve: `[shell]`; 0 in a shell without samples or signal.
        samples: `[shell]`, how many independent Fourier samples it is made from.
        noise: `[shell]`, its standard deviation where the two have nothing in common, 1/√(2 samples).
    """

    frequency: np.ndarray
    curve: np.ndarray
    samples: np.ndarray
    noise: np.ndarray


def directional_fsc(
    a,
    b,
    directions: Mapping[str, Sequence[float]] = AXES,
    half_angle_deg: float = HALF_ANGLE,
    *,
    voxel_nm: float | None = None,
    mask=None,
) -> dict[str, Cone]:
    """Fourier shell correlation of two volumes `[z, y, x]` in a cone about each of `directions` (z, y, x).

        FSC(k) = Re Σ w A B* / sqrt(Σ w|A|² Σ w|B|²),  w = cos²(π θ / 2α) within the half angle α of the cone, else 0

    θ is the angle between frequency and direction; shells, units and `mask` are those of `metrics.fsc`. So few samples
    agree by chance, to 1/√(2n) [Saxton & Baumeister 1982], n the independent ones: half of the frequencies, weighted
    as (Σw)²/Σw², times the share (Σm²)²/(N Σm⁴) that a mask m leaves (or a little more). Halves that share a missing
    wedge share a prior there: in a cone along the beam their agreement says how far that repeats.

    Raises InputError for other shapes, no direction, or an angle not between 0 and 90°.
    """
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    if a.ndim != 3 or a.shape != b.shape:
        raise InputError(f"directional_fsc: volumes {a.shape} and {b.shape}. Give two of one shape [z, y, x].")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("directional_fsc: a volume has values that are not finite. Repair them first.")
    if not 0 < half_angle_deg <= 90:
        raise InputError(f"directional_fsc: a half angle of {half_angle_deg:g}°. Give more than 0° and at most 90°.")
    share = 1.0
    if mask is not None:
        mask = np.asarray(mask, np.float32)
        if mask.shape != a.shape:
            raise InputError(f"directional_fsc: the mask is {mask.shape}, the volume {a.shape}. Make them one shape.")
        a, b = a * mask, b * mask
        share = float(np.sum(mask**2) ** 2 / max(mask.size * np.sum(mask**4), 1e-30))
    from scipy.fft import rfftn

    fa, fb = np.asarray(rfftn(a)), np.asarray(rfftn(b))
    n, shell, count = metrics.shells(a.shape)
    limit = n // 2 + 1
    kz, ky, kx = np.ix_(*(np.fft.fftfreq(m).astype(np.float32) for m in a.shape[:2]), np.fft.rfftfreq(a.shape[2]))
    length = np.sqrt(kz**2 + ky**2 + kx**2).astype(np.float32)
    length[0, 0, 0] = 1  # the mean has no direction
    found = {}
    for name, direction in directions.items():
        along = np.asarray(direction, np.float32)
        size = np.linalg.norm(along)
        if along.shape != (3,) or not (np.isfinite(size) and size > 0):
            raise InputError(f"directional_fsc: {direction} is no direction. Give three numbers (z, y, x).")
        along = along / size
        cosine = np.abs(kz * along[0] + ky * along[1] + kx * along[2]) / length
        inside = np.nonzero((cosine > np.cos(np.deg2rad(half_angle_deg))) & (shell < limit))
        angle = np.rad2deg(np.arccos(np.minimum(cosine[inside], 1)))
        weight = np.cos(np.deg2rad(90 / half_angle_deg * angle)) ** 2
        p, q = weight**0.5 * fa[inside], weight**0.5 * fb[inside]
        cross, power_a, power_b, first, second = (
            np.bincount(shell[inside], count[inside] * part, limit).astype(float)
            for part in ((p.conj() * q).real, np.abs(p) ** 2, np.abs(q) ** 2, weight, weight**2)
        )
        scale = np.sqrt(power_a * power_b)
        curve = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
        samples = share * np.divide(first**2, 2 * second, out=np.zeros_like(first), where=second > 0)
        noise = np.sqrt(np.divide(0.5, samples, out=np.full_like(samples, np.inf), where=samples > 0))
        found[name] = Cone(np.arange(limit) / n / (voxel_nm or 1.0), curve, samples, noise)
    return found


def resolved(cone: Cone, threshold: float = 0.143) -> float:
    """Length at which the FSC in a cone first falls below `threshold`, or below twice its noise where that is more; in
    the units of `cone.frequency`.

    Shells in which twice the noise is above 0.5 say nothing and are passed over. Infinity where the first of the others
    is below already, NaN where there is none.
    """
    telling = np.isfinite(cone.noise) & (SURE * cone.noise <= TELLING)
    telling[0] = False
    if not telling.any():
        return math.nan
    over = cone.curve - np.maximum(threshold, SURE * np.where(telling, cone.noise, 0))
    return metrics.resolution(np.append(0, cone.frequency[telling]), np.append(1, over[telling]), 0.0)


def missing_wedge(tilt_deg) -> float:
    """Degrees of the half turn between the last tilt and the first one turned by 180; 0 for a full half turn."""
    tilt = np.unique(np.asarray(tilt_deg) % 180)
    gaps = np.diff([*tilt, tilt[0] + 180]) if tilt.size else np.array([180.0])
    usual = float(np.median(gaps)) if gaps.size > 2 else 0.0
    widest = float(gaps.max())
    return widest if widest > 1.5 * usual else 0.0


def wedge_elongation(tilt_deg) -> float:
    """How much longer than across it the response of a linear method to a point is along the beam, from the tilts:

        e = sqrt((α + sin α cos α) / (α - sin α cos α)),  2α the range of the tilts

    [Radermacher & Hoppe 1980] 1 of a full half turn, infinity of a single direction.
    """
    a = np.deg2rad((180 - missing_wedge(tilt_deg)) / 2)
    less = a - np.sin(a) * np.cos(a)
    return float(np.sqrt((a + np.sin(a) * np.cos(a)) / less)) if less > 1e-9 else math.inf


def elongation(volume) -> float:
    """How much longer structures of a volume `[z, y, x]` are along the beam than across it: e = r_z / r_x.

    r_i is where the autocorrelation C along axis i, of the volume less its median, has fallen to half. Of an isotropic
    specimen stretched along z, with vacuum around it, C(z, 0) = C(0, z / e), and that is e exactly. C(0) is taken from
    the lags of 1 and 2 voxels, (4 C(1) - C(2)) / 3, so that noise without correlation counts for nothing. A specimen
    that itself lies flat or stands upright counts too. NaN where C does not fall to half.
    """
    volume = _checked(volume, "elongation")
    volume = volume - np.median(volume)
    lines = [_autocorrelation(volume, axis) for axis in (0, 2)]
    if min(line.size for line in lines) < 3:
        return math.nan
    level = sum(4 * float(line[1]) - float(line[2]) for line in lines) / 12
    along, across = (_falls_to(line, level) for line in lines)
    return along / across


class Edges(NamedTuple):
    """The edges that face along one axis.

    Attributes:
        width: from 10 % to 90 % of the step, in voxels, the median; NaN where there are too few.
        low, high: a quarter of them are sharper, and a quarter less sharp.
        count: how many.
    """

    width: float
    low: float
    high: float
    count: int


def edge_widths(volume) -> tuple[Edges, ...]:
    """How wide edges are from 10 % to 90 %, along each axis of a volume `[z, y, x]`, an image or a profile `[x]`.

    Of each axis the strongest edges are taken whose gradient is within 25° of it, and fitted along it by
    b + h Φ((t - t₀) / σ), Φ the integral of a Gaussian, as far as the profile rises (or falls). Oblique edges look
    wider: one with the normal n has σ² = σᵢ² + Σⱼ (nⱼ / nᵢ)² sⱼ along axis i. sⱼ, from least absolute differences over
    all edges, is σⱼ² of a Gaussian blur, and not taken for more than edges along j show. The width is 2.563 σᵢ, that
    of the voxels (0.7) included. Edges whose step is less than a quarter of the volume's range, which the function does
    not fit to 15 % of it, or which are wider than 13 voxels do not count.
    """
    volume = _checked(volume, "edge_widths", dims=(1, 2, 3))
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(volume, 1.0, truncate=3)
    slopes = [np.gradient(smooth, axis=i) if smooth.shape[i] > 1 else np.zeros_like(smooth) for i in range(smooth.ndim)]
    steepest = np.sqrt(sum(slope**2 for slope in slopes))
    low, high = np.percentile(smooth, (1, 99.9)) if volume.ndim > 1 else (smooth.min(), smooth.max())
    seen = [_edges(volume, slopes, steepest, axis, float(high - low)) for axis in range(volume.ndim)]
    most = np.array([np.median(variances) if variances.size else np.inf for variances, _ in seen])
    return tuple(_straight(*one, most, LEAST if volume.ndim > 1 else 1) for one in seen)


def spectral_snr(samples, voxel_nm: float | None = None, mask=None) -> tuple[np.ndarray, np.ndarray]:
    """Spectral signal-to-noise ratio of samples `[sample, z, y, x]`: frequency and ratio, `[shell]` each.

        SSNR(k) = (Σ|F̄|² - V/m) / V,  V = Σ Σᵢ |Fᵢ - F̄|² / (m - 1)

    over the shell k and the m samples, F̄ their mean. V is what a sample differs by, not the mean: members of an
    ensemble share their images, and averaging more of them takes no error away. (For m independent images of one thing
    that of the mean is m times as much. [Unser, Trus & Steven 1987]) Two samples have the FSC SSNR / (1 + SSNR). Units
    and `mask` as for `metrics.fsc`. Not below 0; infinity where all samples agree.
    """
    samples = np.asarray(samples)
    if samples.ndim != 4 or samples.shape[0] < 2:
        raise InputError(f"spectral_snr: samples of shape {samples.shape}. Give two or more, [sample, z, y, x].")
    from scipy.fft import rfftn

    weight = np.float32(1) if mask is None else np.asarray(mask, np.float32)
    n, shell, count = metrics.shells(samples.shape[1:])

    def by_shell(power):
        return np.bincount(shell.ravel(), (count * power).ravel())[: n // 2 + 1]

    together, powers = np.zeros(shell.shape, np.complex64), np.zeros(n // 2 + 1)
    for sample in samples:
        transform = np.asarray(rfftn(np.asarray(sample, np.float32) * weight))
        together, powers = together + transform, powers + by_shell(np.abs(transform) ** 2)
    m = len(samples)
    mean = by_shell(np.abs(together / m) ** 2)
    varied = np.maximum(powers - m * mean, 0) / (m - 1)
    # What is left of equal samples is rounding.
    ratio = np.divide(mean - varied / m, varied, out=np.full_like(mean, np.inf), where=varied > 1e-12 * mean)
    return np.arange(n // 2 + 1) / n / (voxel_nm or 1.0), np.maximum(ratio, 0)


def sharpness(volume) -> dict[str, Any]:
    """What a volume `[z, y, x]` shows of its resolution by itself: `edge_width_voxels`, a dict by axis, of edges that
    face it, and `elongation`, the factors by which structures and edges are longer along z than along x.

    Of a large volume some slices in the middle are looked at.
    """
    volume = middle(volume)
    widths = {name: edge.width for name, edge in zip("zyx", edge_widths(volume), strict=True)}
    stretched = {
        "structures": elongation(volume),
        "edges": widths["z"] / widths["x"] if widths["x"] > 0 else math.nan,
    }
    return {"edge_width_voxels": widths, "elongation": stretched}


def by_direction(a, b) -> dict[str, Any]:
    """What is recorded of the FSC of two volumes `[z, y, x]` in cones about the axes: their half angle, the mask in
    words, frequency in cycles per voxel, and by axis curve, noise, and `resolved` in voxels at 0.143 and 0.5."""
    a, b = middle(a), middle(b)
    cones = directional_fsc(a, b, mask=metrics.cylinder(a.shape))
    found: dict[str, Any] = {
        "half_angle_deg": HALF_ANGLE,
        "mask": f"cylinder about the tilt axis, soft edge, middle {a.shape[1]} slices",
        "frequency": cones["z"].frequency,
    }
    for name, cone in cones.items():
        lengths = {"resolution_voxels": resolved(cone), "resolution_voxels_at_0.5": resolved(cone, 0.5)}
        found[name] = {"curve": cone.curve, "noise": cone.noise, **lengths}
    return found


def assessed(volume, tilt_deg, samples=None) -> dict[str, Any]:
    """What a run records of its volume beside FSC: `sharpness`, with the elongation of a linear method at these tilts,
    and of `samples` the `spectral_snr`. Nothing of several channels or of a volume that is not finite."""
    volume = np.asarray(volume)
    if volume.ndim != 3 or not np.isfinite(volume).all():
        return {}
    found = sharpness(volume)
    found["elongation"]["of_the_wedge"] = wedge_elongation(tilt_deg)
    if samples is not None and np.ndim(samples) == 4 and min(np.shape(samples)[1:]) >= 8:
        cut = np.stack([middle(sample) for sample in samples])
        frequency, ratio = spectral_snr(cut, mask=metrics.cylinder(cut.shape[1:]))
        found["ssnr"] = {"frequency": frequency, "ratio": ratio}
    return found


def middle(volume) -> np.ndarray:
    """The slices in the middle of a volume, at most `LOOKED_AT` voxels of them."""
    volume = np.asarray(volume, np.float32)
    nz, ny, nx = volume.shape
    rows = min(ny, max(16, LOOKED_AT // (nz * nx)))
    return volume[:, (ny - rows) // 2 : (ny - rows) // 2 + rows]


def _checked(volume, name: str, dims: tuple[int, ...] = (3,)) -> np.ndarray:
    volume = np.asarray(volume, np.float32)
    if volume.ndim not in dims:
        raise InputError(f"{name}: an array of shape {volume.shape}. Give one volume [z, y, x].")
    if not np.isfinite(volume).all():
        raise InputError(f"{name}: the volume has values that are not finite. Repair them first.")
    return volume


def _autocorrelation(volume, axis: int) -> np.ndarray:
    """Sum over all pairs a lag apart along one axis, `[lag]`: nothing wraps around."""
    from scipy.fft import irfft, rfft

    n = volume.shape[axis]
    power = np.abs(np.asarray(rfft(volume, 2 * n, axis=axis))) ** 2
    power = power.sum(tuple(i for i in range(volume.ndim) if i != axis), dtype=np.float64)
    return np.asarray(irfft(power, 2 * n))[:n]


def _falls_to(line: np.ndarray, level: float) -> float:
    """Where, between two lags, a line first falls below the level."""
    below = np.flatnonzero(line[1:] < level) + 1
    if not level > 0 or not below.size or below[0] < 2:
        return math.nan
    i = below[0]
    return float(i - 1 + (line[i - 1] - level) / (line[i - 1] - line[i]))


def _beyond(stop: np.ndarray) -> np.ndarray:
    """Of windows `[edge, place]`: what lies at or behind the first stop to either side of the middle."""
    right = np.logical_or.accumulate(stop[:, REACH:], axis=1)
    left = np.logical_or.accumulate(stop[:, REACH::-1], axis=1)
    return np.concatenate([left[:, :0:-1], right], axis=1)


def _edges(volume, slopes, steepest, axis: int, contrast: float) -> tuple[np.ndarray, np.ndarray]:
    """Of edges that face along an axis: σ² along it `[edge]`, and (nⱼ / nᵢ)² of every other axis `[edge, axis]`, 0 of
    their own."""
    none = np.zeros(0), np.zeros((0, volume.ndim))
    if volume.shape[axis] < 8:
        return none
    slope, lines = np.moveaxis(slopes[axis], axis, -1), np.moveaxis(volume, axis, -1)
    size = np.abs(slope)
    inner = size[..., 1:-1]
    peak = (inner >= size[..., :-2]) & (inner > size[..., 2:]) & (inner > 0.01 * contrast)
    peak &= inner >= FACING * np.moveaxis(steepest, axis, -1)[..., 1:-1]
    places = np.flatnonzero(peak)
    places = places[np.argsort(-inner.ravel()[places], kind="stable")[:EDGES]]
    if not places.size:
        return none
    *where, at = np.unravel_index(places, inner.shape)
    at, t = at + 1, np.arange(-REACH, REACH + 1)
    reached = at[:, None] + t
    known = (reached >= 0) & (reached < lines.shape[-1])
    index = (*(w[:, None] for w in where), np.clip(reached, 0, lines.shape[-1] - 1))
    steep = slope[(*where, at)]
    known &= ~_beyond(slope[index] * np.sign(steep)[:, None] < -0.1 * np.abs(steep)[:, None])
    deviation, step, good = _fitted(lines[index].astype(float), known, steep.astype(float))
    good &= np.abs(step) >= 0.25 * contrast
    others = [np.moveaxis(other, axis, -1)[(*where, at)] if k != axis else 0 * steep for k, other in enumerate(slopes)]
    return deviation[good] ** 2, (np.stack(others, 1) / steep[:, None])[good] ** 2


def _straight(variances: np.ndarray, oblique: np.ndarray, most: np.ndarray, least: int) -> Edges:
    """Of σ² `[edge]`, what they are of edges that face the axis."""
    if variances.size < least:
        return Edges(math.nan, math.nan, math.nan, int(variances.size))
    columns, weight = np.insert(oblique, 0, 1, axis=1), np.ones_like(variances)
    for _ in range(20):  # least squares again and again, weighted for least absolute differences
        slopes = np.linalg.lstsq(columns * weight[:, None], variances * weight, rcond=1e-9)[0]
        left = np.abs(variances - columns @ slopes)
        weight = 1 / np.sqrt(left + 1e-3 * np.median(variances) + 1e-12)
    straight = np.percentile(variances - oblique @ np.clip(slopes[1:], 0, most), (50, 25, 75))
    middle, low, high = TEN_TO_NINETY * np.sqrt(np.maximum(straight, 0))
    return Edges(float(middle), float(low), float(high), int(variances.size))


def _fitted(profiles: np.ndarray, known: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(σ, h, whether it is an edge) of profiles `[edge, place]`, by damped Gauss-Newton steps for all at once."""
    from scipy.special import ndtr

    if not len(profiles):
        return np.zeros(0), np.zeros(0), np.zeros(0, bool)
    t = np.arange(-REACH, REACH + 1.0)
    low, high = np.where(known, profiles, np.inf).min(1), np.where(known, profiles, -np.inf).max(1)
    step = (high - low) * np.sign(slope)
    base = np.where(slope > 0, low, high)
    logarithm = np.log(np.clip((high - low) / (2.5 * np.abs(slope)), 0.3, REACH / 3))
    place = np.zeros_like(base)
    for _ in range(15):
        u = (t - place[:, None]) / np.exp(logarithm)[:, None]
        risen, density = ndtr(u), np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)
        left = np.where(known, profiles - base[:, None] - step[:, None] * risen, 0)
        columns = (np.ones_like(u), risen, -step[:, None] * density / np.exp(logarithm)[:, None])
        jacobian = np.stack([*columns, -step[:, None] * density * u], -1) * known[..., None]
        normal = np.einsum("eti,etj->eij", jacobian, jacobian)
        normal += np.eye(4) * (1e-3 * np.einsum("eii->ei", normal)[:, None] + 1e-12 * (1 + step**2)[:, None, None])
        change = np.linalg.solve(normal, np.einsum("eti,et->ei", jacobian, left)[..., None])[..., 0]
        base, step = base + change[:, 0], step + change[:, 1]
        place = np.clip(place + np.clip(change[:, 2], -1, 1), -REACH, REACH)
        logarithm = np.clip(logarithm + np.clip(change[:, 3], -0.7, 0.7), np.log(0.05), np.log(2 * REACH))
    width, count = np.exp(logarithm), known.sum(1)
    left = np.sqrt((left**2).sum(1) / np.maximum(count, 1))
    good = (left < 0.15 * np.abs(step)) & (np.abs(place) < 1.5) & (count >= 6) & (width < REACH / 2) & (width > 0.06)
    return width, step, good & (np.abs(step) < 3 * (high - low))
