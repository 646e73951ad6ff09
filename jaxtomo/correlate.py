"""How far one picture is displaced from another, to a fraction of a pixel: masked cross-correlation, in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Pairs correlated at a time, so that the transforms stay small however long the series.
CHUNK = 256


class Displacement(NamedTuple):
    """`shift [n, 2]` pixels (u, v) from each reference to its moved picture; `score [n]`, the correlation there."""

    shift: np.ndarray
    score: np.ndarray


def centred(size: int) -> np.ndarray:
    """Pixel coordinates measured from the middle of the image."""
    return np.arange(size) - (size - 1) / 2


def taper(size: int, share: float) -> np.ndarray:
    """A window of ones that falls to zero over `share` of the length at either end (sin²)."""
    rise = np.clip((size / 2 - np.abs(centred(size))) / (share * size), 0, 1)
    return (np.sin(np.pi / 2 * rise) ** 2).astype(np.float32)


def binned(images: np.ndarray, factor: int) -> np.ndarray:
    """Means over `factor` × `factor` pixels of `images [n, y, x]`, about the same centre (a rest is cut evenly)."""
    if factor == 1:
        return np.asarray(images, np.float32)
    n, ny, nx = images.shape
    my, mx = ny // factor, nx // factor
    y0, x0 = (ny - my * factor) // 2, (nx - mx * factor) // 2
    cut = images[:, y0 : y0 + my * factor, x0 : x0 + mx * factor]
    return cut.reshape(n, my, factor, mx, factor).mean((2, 4), dtype=np.float32)


def straightened(images: np.ndarray, axis: float, shift, order: int = 1) -> np.ndarray:
    """`images [tilt, y, x]` resampled as if their tilt axis, `axis` rad off y, were along y and their `shift [tilt, 2]`
    zero: out(w) = in(R(axis) w + shift), splines of `order`; zero where nothing was imaged."""
    from scipy import ndimage

    c, s = np.cos(axis), np.sin(axis)
    turn = np.array([[c, s], [-s, c]])  # for (v, u)
    middle = (np.array(images.shape[1:]) - 1) / 2
    out = np.empty_like(images, dtype=np.float32)
    for image, (u, v), result in zip(images, shift, out, strict=True):
        offset: Any = middle - turn @ middle + (v, u)
        ndimage.affine_transform(image, turn, offset, output=result, order=order)
    return out


def bandpass(images: np.ndarray, weight: np.ndarray, fine: float, coarse: float) -> np.ndarray:
    """`images [n, y, x]` between two Gaussian scales (pixels), using only what `weight` trusts: independent of offsets
    and slow backgrounds, and without the noise of single pixels."""
    from scipy import ndimage

    def smooth(sigma):
        sigmas = (0, sigma, sigma)
        return ndimage.gaussian_filter(images * weight, sigmas) / np.maximum(
            ndimage.gaussian_filter(weight, sigmas), 1e-3
        )

    return smooth(fine) - smooth(coarse)


def displacement(
    reference, reference_weight, moved, moved_weight, reach: tuple[int, int], overlap: float = 0.4, caution: float = 0.0
) -> Displacement:
    """Where each `moved [n, y, x]` best matches its `reference [n, y, x]`, within `reach` = (v, u) pixels.

    At every displacement the correlation coefficient of the overlapping, weighted pixels is computed exactly, from six
    cross-correlations by FFT, so borders and masked pixels do not pull towards zero [Padfield 2012, Masked object
    registration in the Fourier domain]. Displacements that leave less than `overlap` of the largest overlapping weight
    do not count, and one as far as the reach is worth `caution` less. The peak is refined by a parabola each way.
    """
    parts = [
        _displacement(reference[i], reference_weight[i], moved[i], moved_weight[i], reach, overlap, caution)
        for i in (slice(start, start + CHUNK) for start in range(0, len(reference), CHUNK))
    ]
    shifts, scores = zip(*parts, strict=True)
    return Displacement(np.concatenate(shifts), np.concatenate(scores))


def _displacement(f, f_weight, g, g_weight, reach, overlap, caution):
    from scipy import fft

    (ry, rx), (ny, nx) = reach, f.shape[1:]
    size = fft.next_fast_len(ny + ry, real=True), fft.next_fast_len(nx + rx, real=True)
    near = np.ix_(np.arange(-ry, ry + 1), np.arange(-rx, rx + 1))

    def transform(a, weight=1):
        return fft.rfft2(np.asarray(a * weight, np.float32), size, workers=2)

    def correlated(a, b):
        return np.asarray(fft.irfft2(np.conj(a) * b, size, workers=2))[:, *near]

    # Means are removed first: what follows subtracts large numbers in single precision.
    f, g = (
        a - (a * w).sum((1, 2), keepdims=True) / np.maximum(w.sum((1, 2), keepdims=True), 1e-9)
        for a, w in ((f, f_weight), (g, g_weight))
    )
    f1, f2, fw = transform(f, f_weight), transform(f * f, f_weight), transform(f_weight)
    g1, g2, gw = transform(g, g_weight), transform(g * g, g_weight), transform(g_weight)
    shared = np.maximum(correlated(fw, gw), 1e-6)
    f_sum, g_sum = correlated(f1, gw), correlated(fw, g1)
    f_power, g_power = correlated(f2, gw) - f_sum**2 / shared, correlated(fw, g2) - g_sum**2 / shared
    scale = np.sqrt(np.maximum(f_power, 0) * np.maximum(g_power, 0))
    floor = 1e-4 * scale.max((1, 2), keepdims=True) + 1e-30
    enough = (shared > overlap * shared.max((1, 2), keepdims=True)) & (scale > floor)
    score = np.where(enough, (correlated(f1, g1) - f_sum * g_sum / shared) / np.maximum(scale, floor), -1)
    return _peak(score, caution)


def _peak(score, caution):
    """(u, v) of the maximum of `score [n, 2 ry + 1, 2 rx + 1]` from its middle, and its height."""
    n, ny, nx = score.shape
    each = np.arange(n)
    far = (2 * centred(ny)[:, None] / ny) ** 2 + (2 * centred(nx) / nx) ** 2
    y, x = np.unravel_index((score - caution * far).reshape(n, -1).argmax(1), (ny, nx))

    def vertex(below, here, above):
        bend = below - 2 * here + above
        return np.where(bend < 0, np.clip((below - above) / (2 * np.where(bend < 0, bend, -1)), -0.5, 0.5), 0)

    yc, xc = np.clip(y, 1, max(ny - 2, 1)), np.clip(x, 1, max(nx - 2, 1))
    v, u = y - (ny - 1) / 2, x - (nx - 1) / 2
    if ny > 2:
        v = v + np.where(y == yc, vertex(score[each, yc - 1, x], score[each, yc, x], score[each, yc + 1, x]), 0)
    if nx > 2:
        u = u + np.where(x == xc, vertex(score[each, y, xc - 1], score[each, y, xc], score[each, y, xc + 1]), 0)
    return np.stack([u, v], 1), score[each, y, x]
