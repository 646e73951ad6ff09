"""How near a volume is to the truth, and how far two volumes agree: PSNR, SSIM, RMSE, Fourier shell correlation.

NumPy in, NumPy and Python numbers out. Intensities are compared as they are: nothing is ever rescaled to fit.
"""

from __future__ import annotations

import math

import numpy as np

from .errors import InputError

FADING = 0.1  # of the radius: how softly the cylinder falls off


def rmse(volume, truth) -> float:
    """Root mean square difference over all voxels. Arrays of any one shape.

    Raises InputError if the shapes differ or a value is not finite (also in the other metrics).
    """
    volume, truth = _pair(volume, truth)
    return float(np.sqrt(np.mean((volume - truth) ** 2)))


def psnr(volume, truth, data_range: float | None = None) -> float:
    """20 log10(data_range / rmse) in dB; infinite for equal volumes.

    `data_range` is the truth's own range, max - min, unless given.
    """
    error = rmse(volume, truth)
    data_range = _range(truth, data_range)
    return math.inf if error == 0 else 20 * math.log10(data_range / error)


def ssim(volume, truth, data_range: float | None = None, window: int = 7) -> float:
    """Mean structural similarity [Wang 2004], in one, two or three dimensions as the arrays have them.

    Local statistics come from a uniform window of `window` (odd) voxels a side, with sample covariances, K1 = 0.01
    and K2 = 0.03 (scikit-image's defaults); `data_range` is the truth's own range unless given.
    """
    from skimage.metrics import structural_similarity

    volume, truth = _pair(volume, truth)
    if window % 2 == 0 or window < 3 or window > min(volume.shape):
        raise InputError(
            f"ssim: a window of {window} on {volume.shape}. Give an odd window from 3 to the shortest side."
        )
    score = structural_similarity(volume, truth, win_size=window, data_range=_range(truth, data_range))
    return float(np.asarray(score))


def fsc(a, b, voxel_nm: float | None = None, mask=None) -> tuple[np.ndarray, np.ndarray]:
    """Fourier shell correlation (ring correlation for images): frequency and curve, `[shell]` each.

        FSC(k) = Re Σ A B* / sqrt(Σ|A|² Σ|B|²), the sums over the shell of spatial frequency k

    Shells are 1/n wide (n the shortest side of 16 or more, so that every side fills every shell), from 0 to the Nyquist
    frequency; a shell without any signal in one of the two counts as 0. Frequencies are in 1/nm if `voxel_nm` is
    given, else cycles per voxel. Both volumes are multiplied by `mask` (an array of their shape, see `soft_mask`); a
    hard-edged mask raises the curve by itself. Halves that shared a mask, a missing wedge or an alignment agree in that
    too. [Harauz & van Heel 1986]
    """
    a, b = _pair(a, b)
    if mask is not None:
        a, b = a * _same_shape(mask, a, "mask"), b * np.asarray(mask, float)
    n, shell, count = shells(a.shape)
    fa, fb = np.fft.rfftn(a), np.fft.rfftn(b)
    cross, power_a, power_b = (
        np.bincount(shell.ravel(), (count * (p.conj() * q).real).ravel())[: n // 2 + 1]
        for p, q in ((fa, fb), (fa, fa), (fb, fb))
    )
    scale = np.sqrt(power_a * power_b)
    curve = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
    return np.arange(n // 2 + 1) / n / (voxel_nm or 1.0), curve


def shells(shape: tuple[int, ...]) -> tuple[int, np.ndarray, np.ndarray]:
    """(n, shell, count) of the half transform, `np.fft.rfftn`, of an array: shells are 1/n wide, `shell` is the one of
    every frequency, and `count` how many it stands for: 2 where its conjugate is left out, else 1."""
    n = min((side for side in shape if side >= 16), default=max(shape))
    axes = [np.fft.fftfreq(m) for m in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    shell = np.rint(n * np.sqrt(sum(k**2 for k in np.ix_(*axes)))).astype(int)
    # Left out are the conjugates of every column but the first and, for an even side, the last.
    column = np.arange(shape[-1] // 2 + 1)
    count = np.broadcast_to(np.where((column == 0) | (2 * column == shape[-1]), 1.0, 2.0), shell.shape)
    return n, shell, count


def resolution(frequency, curve, threshold: float = 0.143) -> float:
    """Length at which an FSC first falls below `threshold`: 1/frequency, in nm (or voxels) as `fsc` was.

    Interpolated between shells; the zeroth shell is passed over. A curve that never falls gives the length of its
    last shell (the sampling limit), one that starts below gives infinity. 0.143 is for two independent halves
    [Rosenthal & Henderson 2003], 0.5 the cautious choice.
    """
    frequency, curve = np.asarray(frequency, float)[1:], np.asarray(curve, float)[1:]
    below = np.flatnonzero(curve < threshold)
    if below.size == 0:
        return float(1 / frequency[-1])
    i = below[0]
    if i == 0:
        return math.inf
    part = (curve[i - 1] - threshold) / (curve[i - 1] - curve[i])
    return float(1 / (frequency[i - 1] + part * (frequency[i] - frequency[i - 1])))


def soft_mask(region, edge: float = 5.0) -> np.ndarray:
    """1 in the boolean `region`, a raised cosine falling to 0 over `edge` voxels outside it, 0 beyond: for `fsc`."""
    from scipy.ndimage import distance_transform_edt

    region = np.asarray(region, bool)
    if not region.any():
        raise InputError("soft_mask: the region is empty. Give one with at least one voxel.")
    distance = np.asarray(distance_transform_edt(~region))
    return np.where(distance < edge, 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance / edge, 1)), 0.0)


def cylinder(shape: tuple[int, int, int]) -> np.ndarray:
    """A soft mask `[z, y, x]`: what every tilt sees around the axis, and softly ended slices."""
    nz, ny, nx = shape
    radius = np.hypot(
        (np.arange(nz) - (nz - 1) / 2)[:, None] / (nz / 2), (np.arange(nx) - (nx - 1) / 2)[None] / (nx / 2)
    )
    along = np.abs(np.arange(ny) - (ny - 1) / 2) / (ny / 2)

    def falling(distance):
        return 0.5 * (1 + np.cos(np.pi * np.clip((distance - 1 + FADING) / FADING, 0, 1)))

    return (falling(radius)[:, None, :] * falling(along)[None, :, None]).astype(np.float32)


def _pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    a = np.asarray(a, float)
    b = _same_shape(b, a, "the second volume")
    for name, array in (("first", a), ("second", b)):
        bad = array.size - np.count_nonzero(np.isfinite(array))
        if bad:
            raise InputError(f"metrics: the {name} volume has {bad} values that are not finite. Repair them first.")
    return a, b


def _same_shape(array, like: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(array, float)
    if array.shape != like.shape:
        raise InputError(
            f"metrics: {name} is {array.shape}, the volume {like.shape}. Crop or bin one to match the other."
        )
    return array


def _range(truth, data_range: float | None) -> float:
    data_range = float(np.ptp(truth)) if data_range is None else data_range
    if not data_range > 0:
        raise InputError("metrics: the truth is constant, so it has no range. Give data_range.")
    return data_range
