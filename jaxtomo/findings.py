"""What a finished reconstruction says about itself: how well it explains each tilt, what its numbers mean in plain
words, and what to be careful about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .data import Reconstruction
from .errors import InputError
from .likelihood import intensity
from .metrics import resolution
from .projector import project
from .resolution import missing_wedge, wedge_elongation

_project = jax.jit(project, static_argnames="detector")  # compiled once for all reports of one shape


ACRONYMS = {"wbp", "sirt", "sart", "cgls", "tv", "tvq", "dip", "inr"}


@dataclass(frozen=True)
class Fit:
    """The measured images beside those predicted from the volume.

    Attributes:
        tilt_deg: `[tilt]` degrees, the poses' own.
        measured: `[tilt, y, x]`, NaN where nothing was measured.
        predicted: `[tilt, y, x]`.
        relative: `[tilt]` RMS of measured - predicted over RMS of measured.
        ratio: `[tilt]` total measured over total predicted intensity.
        rescaled: whether a gain and an offset per tilt were fitted to `predicted` after that, as the run did.
        overall: RMS of all residuals over RMS of all measurements.
        structure: correlation of neighbouring residual pixels: 0 for noise that differs from pixel to pixel, towards 1
            for residuals that still show an object.
        truncated: tilts (indices) in which the object reaches a side border of the image.
        outliers: tilts (indices) that fit far worse than the others.
    """

    tilt_deg: np.ndarray
    measured: np.ndarray
    predicted: np.ndarray
    relative: np.ndarray
    ratio: np.ndarray
    rescaled: bool
    overall: float
    structure: float
    truncated: np.ndarray
    outliers: np.ndarray


@dataclass(frozen=True)
class Number:
    """One headline number: its value in words, a second line, and how it reads: "good", "fair", "check" or ""."""

    name: str
    value: str
    detail: str = ""
    state: str = ""
    meaning: str = ""


def fit(result: Reconstruction) -> Fit | None:
    """Project the volume as it was measured and compare; of spectral maps the first channel. None without images,
    or when poses, volume and images do not match, or no measured pixel sees the volume."""
    if result.series is None or np.size(result.pose.tilt) != result.series.images.shape[-3]:
        return None
    images, volume = first_channel(result.series.images, 3), first_channel(result.volume, 3)
    volume = np.nan_to_num(np.asarray(volume, np.float32), posinf=0.0, neginf=0.0)
    try:
        predicted = np.asarray(_project(jnp.asarray(volume), result.pose, images.shape[1:]))
    except InputError:
        return None
    seen = np.isfinite(images) if result.series.mask is None else np.isfinite(images) & result.series.mask
    if result.pose.shift is not None:  # rows that look past the end of the volume say nothing about it
        row = np.arange(images.shape[1]) - np.asarray(result.pose.shift)[:, 1, None]
        seen = seen & ((row >= 0) & (row <= images.shape[1] - 1))[:, :, None]
    if not seen.any():
        return None
    measured = np.asarray(images if seen.all() else np.where(seen, images, np.nan), np.float32)

    ratio = _intensity_ratio(measured, predicted)
    rescaled = result.settings.get("likelihood") == "fitted_intensity"
    if rescaled:
        gain, base = intensity(jnp.asarray(predicted), jnp.nan_to_num(measured), jnp.asarray(seen, jnp.float32))
        predicted = predicted * np.asarray(gain) + np.asarray(base)

    # Sums in float64, one tilt at a time: intensities can be large, and a second stack of residuals too.
    count = measured.shape[0]
    left, whole, pairs, squares = np.zeros(count), np.zeros(count), 0.0, 0.0
    for i, (m, p) in enumerate(zip(measured, predicted, strict=True)):
        seen = np.isfinite(m)
        residual = np.where(seen, m.astype(np.float64) - p, 0)
        left[i] = np.sum(residual**2)
        whole[i] = np.sum(np.where(seen, m, 0).astype(np.float64) ** 2)
        residual -= np.where(seen, residual.sum() / max(seen.sum(), 1), 0)
        pairs += (np.sum(residual[1:] * residual[:-1]) + np.sum(residual[:, 1:] * residual[:, :-1])) / 2
        squares += np.sum(residual**2)
    relative = np.sqrt(left / np.where(whole > 0, whole, 1))
    return Fit(
        tilt_deg=np.rad2deg(np.asarray(result.pose.tilt, np.float64)),
        measured=measured,
        predicted=predicted,
        relative=relative,
        ratio=ratio,
        rescaled=rescaled,
        overall=float(np.sqrt(left.sum() / whole.sum())) if whole.sum() > 0 else float("nan"),
        structure=float(pairs / squares) if squares > 0 else 0.0,
        truncated=_truncated(measured),
        outliers=_outliers(relative, np.asarray(result.pose.tilt)),
    )


def headline(result: Reconstruction, fit: Fit | None) -> list[Number]:
    """The numbers to read first."""
    settings = result.settings
    tilt = np.rad2deg(np.asarray(result.pose.tilt, np.float64))
    numbers = [_method(result), _volume(result), _tilts(tilt), _shifts(result)]
    if fit is not None:
        small = fit.overall < 0.03 or (fit.overall < 0.1 and fit.structure < 0.6)
        state = "good" if small else "fair" if fit.overall < 0.3 else "check"
        pattern = "noise-like" if fit.structure < 0.25 else "partly structured" if fit.structure < 0.6 else "structured"
        numbers.append(
            Number(
                "Misfit",
                percent(fit.overall),
                f"of the measured signal; residual {pattern} (neighbour correlation {fit.structure:.2f})",
                state,
                "RMS difference between the measured images and the projections of this volume, over the RMS of the "
                "measured images. A few percent is usual for a clean series; at low dose the noise alone can be tens "
                "of percent, and a smaller misfit would then mean that noise was fitted. What is left should look like "
                "noise: outlines in the residual images point to misalignment, a truncated object or a detector that "
                "is not linear. Images that were rotated or resampled have correlated noise, 0.2 to 0.5.",
            )
        )
    numbers.append(_prediction(result, fit))
    numbers.append(_resolution(result))
    seconds, first = first_of(settings, "seconds"), first_of(settings, "seconds_to_first_step")
    where = settings.get("device") or settings.get("backend")
    detail = f"{duration(first)} to the first step, compilation included" if first is not None else ""
    detail = "; ".join(part for part in (f"on {where}" if where else "", detail) if part)
    numbers.append(Number("Run time", duration(seconds), detail, "", "Wall time of the solve, without its assessment."))
    return numbers


def warnings(result: Reconstruction, fit: Fit | None) -> list[str]:
    """What a careful user would check before believing this volume; each says what to do."""
    found = []
    volume = np.asarray(result.volume)
    bad = int(volume.size - np.count_nonzero(np.isfinite(volume)))
    if bad:
        found.append(
            f"{bad} of {volume.size} voxels are not finite; they are shown as 0. Lower the step size or restart."
        )
    elif volume.size and float(volume.max()) == float(volume.min()):
        found.append("All voxels are equal: the reconstruction is empty.")
    misfit = np.asarray(result.history.get("misfit", []), np.float64).ravel()
    if misfit.size and not np.isfinite(misfit).all():
        found.append(f"The misfit became non-finite at step {int(np.argmin(np.isfinite(misfit))) + 1}.")
    elif misfit.size > 2 and misfit[-1] > 1.05 * misfit.min():
        found.append(
            f"The misfit ended {misfit[-1] / misfit.min():.3g} times above its lowest value, reached at step "
            f"{int(misfit.argmin()) + 1}: stop there, or lower the step size."
        )
    if result.series is None:
        found.append("No tilt series is stored with this result, so its fit to the images cannot be shown.")
    elif result.series.pixel_nm is None:
        found.append("The pixel size is unknown: all lengths are in voxels. Give it when reading (--pixel-nm).")
    if result.series is not None and result.series.images.ndim == 4:
        found.append("Spectral maps: this report shows the first channel only.")
    if result.series is not None and fit is None:
        found.append(
            "The fit to the images is not shown: poses, volume and images do not match, or no pixel sees the volume."
        )
    if result.pose.shift is None and result.series is not None and "alignment" not in result.series.provenance:
        found.append("The images were used as they are, without alignment. If they drift, run jaxtomo align first.")
    if fit is not None:
        found += _fit_warnings(result, fit)
    return found


def limits(result: Reconstruction) -> list[str]:
    """What this geometry cannot show, however good the fit."""
    tilt = np.sort(np.rad2deg(np.asarray(result.pose.tilt, np.float64)))
    said = []
    missing = missing_wedge(tilt)
    if missing > 179:
        said.append("All images look along one direction: nothing about the depth of the specimen was measured.")
    elif missing > 1:
        said.append(
            f"Missing wedge: no image was taken over {missing:.3g}° of the half turn. Faces that lie across the beam "
            "are weak or absent, and small features look about "
            f"{wedge_elongation(tilt):.2g} times longer along z than they are (for a method without prior "
            "knowledge). What a prior fills in there was not measured."
        )
    step = float(np.median(np.diff(np.unique(np.round(tilt, 3))))) if np.unique(np.round(tilt, 3)).size > 1 else 0.0
    if step:
        said.append(
            f"Tilt step {step:.3g}°: an object D wide is sampled completely only down to {np.deg2rad(step):.2g} D "
            f"(Crowther's rule); for 100 voxels that is {100 * np.deg2rad(step):.2g} voxels. Prior knowledge such as "
            "smooth or few-valued objects can do better, and cannot be told apart from data there."
        )
    said.append(
        "Handedness: the two signs of the tilt angle give mirror images, and one single-axis series cannot tell them "
        "apart. The convention here: x = right, y = tilt axis, z towards the viewer, u = x cos θ + z sin θ."
    )
    return said


def first_channel(array, ndim: int):
    """`array` without leading axes beyond `ndim`: their first entry."""
    while array.ndim > ndim:
        array = array[0]
    return array


def first_of(values: Mapping[str, Any], *names: str) -> float | None:
    """The first of `names` in `values` that is a finite number."""
    for name in names:
        value = values.get(name)
        if isinstance(value, int | float | np.number) and not isinstance(value, bool) and np.isfinite(value):
            return float(value)
    return None


def degrees(value: float) -> str:
    return f"{value:.4g}°".replace("-", "−")


def percent(value: float) -> str:
    return f"{100 * value:.3g} %" if np.isfinite(value) else "not finite"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "not recorded"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _method(result: Reconstruction) -> Number:
    settings = result.settings
    solver = settings.get("solver")
    name = str(solver.get("method", "own method") if isinstance(solver, Mapping) else solver or "unknown method")
    misfit = np.asarray(result.history.get("misfit", []), np.float64).ravel()
    steps = settings.get("steps", misfit.size or None)
    detail = "steps not recorded" if steps is None else f"{steps} step" + ("s" if steps != 1 else "")
    if settings.get("seed") is not None:
        detail += f", seed {settings['seed']}"
    if misfit.size > 1 and misfit[-1] > 0 and np.isfinite(misfit[[0, -1]]).all():
        detail += f"; misfit fell {misfit[0] / misfit[-1]:.3g}-fold"
    return Number("Method", name.upper() if name in ACRONYMS else name, detail)


def _volume(result: Reconstruction) -> Number:
    shape = result.volume.shape[-3:]
    nm = result.voxel_nm
    if not nm:
        return Number("Voxel", "size unknown", " × ".join(map(str, shape)) + " voxels [z, y, x]", "check")
    size = " × ".join(f"{n * nm:.4g}" for n in shape)
    return Number("Voxel", f"{nm:.4g} nm", f"{' × '.join(map(str, shape))} voxels [z, y, x], {size} nm")


def _tilts(tilt: np.ndarray) -> Number:
    steps = np.diff(np.unique(np.round(tilt, 3)))
    if not tilt.size:
        return Number("Tilts", "none", "", "check")
    step = f"step {np.median(steps):.3g}°" if steps.size else "one angle"
    missing = missing_wedge(tilt)
    state = "good" if missing <= 60 and tilt.size >= 30 else "fair" if missing <= 120 and tilt.size >= 12 else "check"
    return Number(
        "Tilts",
        str(tilt.size),
        f"{degrees(tilt.min())} to {degrees(tilt.max())}, {step}, missing wedge {missing:.3g}°",
        state,
        "How much of the specimen was looked at. Beyond ±60° and with steps of 2° or less, classical methods work "
        "well; below ±45° or with 10° steps, the prior decides much of what you see.",
    )


def _shifts(result: Reconstruction) -> Number:
    if result.pose.shift is None:
        return Number("Alignment", "none", "images used as they are")
    shift = np.asarray(result.pose.shift, np.float64)
    u, v = np.abs(shift).max(0, initial=0)
    return Number("Alignment", f"{u:.3g} px", f"largest shift across the tilt axis; {v:.3g} px along it")


def _prediction(result: Reconstruction, fit: Fit | None) -> Number:
    meaning = (
        "A volume is made from half of the tilts and has to predict the others, which it has not seen, and the other "
        "way round. This is the most direct test without a ground truth. It is an upper bound, since each half has "
        "twice the tilt step. Near the misfit is good; several times the misfit means that the volume is bent to the "
        "tilts it saw: fewer steps, more regularisation, or more tilts."
    )
    error = first_of(result.metrics, "prediction_error")
    if error is None:
        return Number("Held-out tilts", "not measured", "", "", meaning)
    detail, state = "each half of the tilts predicts the other", ""
    if fit is not None and fit.overall > 0:
        worse = error / fit.overall
        detail = f"{worse:.2g} times the misfit; {detail}"
        state = "good" if worse < 2 else "fair" if worse < 4 else "check"
    return Number("Held-out tilts", percent(error), detail, state, meaning)


def _resolution(result: Reconstruction) -> Number:
    metrics, nm = result.metrics, result.voxel_nm
    meaning = (
        "The tilts are split into even and odd ones, each half gives a volume, and the two are correlated shell by "
        "shell in Fourier space. Where the correlation falls through the threshold, the halves stop agreeing. Both "
        "halves share the missing wedge, the alignment and the prior, and each has half the tilts: the number says how "
        "far the result repeats, not how far it is true, and a strong prior can make it look too good. Less than two "
        "voxels cannot be resolved."
    )
    frequency, curve = metrics.get("fsc_frequency"), metrics.get("fsc_curve")
    if frequency is None or curve is None or np.size(frequency) < 2 or np.size(frequency) != np.size(curve):
        return Number("Even/odd FSC", "not measured", "", "", meaning)

    def length(level: float) -> str:
        period = resolution(frequency, curve, level)
        if not np.isfinite(period):
            return "no agreement"
        return ("≤ " if period <= 1 / frequency[-1] else "") + (
            f"{period * nm:.3g} nm" if nm else f"{period:.3g} voxels"
        )

    mask = metrics.get("fsc_mask", "mask not recorded")
    return Number("Even/odd FSC", length(0.5), f"at FSC 0.5; {length(0.143)} at 0.143; {mask}", "", meaning)


def _fit_warnings(result: Reconstruction, fit: Fit) -> list[str]:
    found = []
    if fit.truncated.size:
        found.append(
            f"In {fit.truncated.size} of {fit.tilt_deg.size} tilts the object reaches a side border of the image, so "
            "part of what the beam crossed lies outside the volume. Values near the x and z borders are not reliable; "
            "a wider volume or a tighter background helps."
        )
    if fit.outliers.size:
        angles = fit.tilt_deg[fit.outliers[:6]].tolist()
        named = [f"{degrees(t)} (image {i})" for t, i in zip(angles, fit.outliers.tolist(), strict=False)]
        more = " and others" if fit.outliers.size > len(named) else ""
        found.append(
            f"Fits much worse than its neighbours: {', '.join(named)}{more}. Look at the images below; leave out what "
            "is damaged with --skip."
        )
    away = float(np.max(np.abs(fit.ratio - 1), initial=0))
    if away > 0.1:
        i = int(np.argmax(np.abs(fit.ratio - 1)))
        found.append(
            f"The total intensity differs from the prediction by up to {percent(away)} (at "
            f"{degrees(fit.tilt_deg[i])}). If the microscope scaled each image by itself, fit a gain per tilt."
        )
    if result.pose.shift is not None:
        shift = np.abs(np.asarray(result.pose.shift))
        width = fit.measured.shape[-1]
        if shift.size and shift[:, 0].max() > width / 4:
            found.append(
                f"A shift of {shift[:, 0].max():.3g} pixels is more than a quarter of the image width: part of the "
                "specimen left the image. Check the alignment."
            )
    return found


def _intensity_ratio(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    seen = np.isfinite(measured)
    total = np.sum(predicted, axis=(1, 2), where=seen, dtype=np.float64)
    known = total != 0
    return np.where(known, np.sum(measured, axis=(1, 2), where=seen, dtype=np.float64) / np.where(known, total, 1), 1.0)


def _outliers(relative: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """Tilts whose residual is far above that of their neighbours in angle; high tilts always fit worse."""
    order = np.argsort(tilt, kind="stable")
    padded = np.pad(relative[order], 3, mode="reflect" if relative.size > 3 else "edge")
    usual = np.empty_like(relative)
    usual[order] = np.median(np.lib.stride_tricks.sliding_window_view(padded, 7), axis=1)
    excess = relative - usual
    return np.flatnonzero((excess > 8 * np.median(np.abs(excess))) & (excess > 0.5 * usual))


def _truncated(measured: np.ndarray) -> np.ndarray:
    """Tilts whose outermost columns carry more than a tenth of the series' bright level, on average along y."""
    width = max(1, measured.shape[2] // 64)
    seen = measured[:, ::2, ::2] if measured[0].size > 10_000 else measured
    bright = float(np.percentile(np.abs(seen[np.isfinite(seen)]), 99)) if np.isfinite(seen).any() else 0.0
    sides = np.stack([measured[:, :, :width], measured[:, :, -width:]])
    known = np.isfinite(sides)
    level = np.abs(np.where(known, sides, 0).sum((2, 3)) / np.maximum(known.sum((2, 3)), 1)).max(0)
    return np.flatnonzero(level > 0.1 * bright) if bright > 0 else np.zeros(0, int)
