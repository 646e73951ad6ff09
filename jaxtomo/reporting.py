"""The report on one reconstruction: a single HTML file that needs nothing else, now or in ten years."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import findings, plot, viewer
from .answers import bodies, elements
from .data import Reconstruction
from .findings import Fit, Number
from .io.atomic import replacing
from .markup import PICTURE, Section, as_list, as_table, figure, look_at
from .metrics import resolution
from .quantify import Measured
from .viewer import escape

RESOLVED = {"fsc_curve", "fsc_cones", "edge_width_voxels", "elongation", "ssnr"}  # metrics with a section of their own
DIRECTIONS = {"z": "along the beam, z", "x": "across it, x", "y": "along the tilt axis, y"}


def report(path, result: Reconstruction, measured: Measured | None = None) -> Path:
    """Write what `result` holds, and what to think of it, to `path` as one HTML file of a few MB; returns the path.
    `measured` bodies, see `jaxtomo.quantify`, get a section of their own.

    The volume is projected once to be compared with the images it came from. Whatever is missing (metrics, the tilt
    series, shifts, a history) leaves its section out or says so. The file appears whole or not at all.
    """
    fit = findings.fit(result)
    source = "reconstruction" if result.series is None else Path(result.series.source).name
    sections = [
        _summary(result, fit),
        _volume(result),
        *([_audit(result)] if "audit" in result.metrics else []),
        *([_agreement(fit, result)] if fit is not None else []),
        _alignment(result),
        _convergence(result),
        *([_resolution(result)] if RESOLVED & set(result.metrics) else []),
        _quality(result),
        *([bodies(measured)] if measured is not None else []),
        *([elements(result)] if "composition" in result.settings else []),
        _provenance(result),
        _settings(result),
    ]
    links = "".join(f'<a href="#{name}">{name.capitalize()}</a>' for name, _, _ in sections)
    body = (
        f'<header><p class="kind">Tomography report</p><h1>{escape(source)}</h1><p class="lead">{escape(_lead(result))}'
        f'</p></header><nav aria-label="Sections">{links}</nav><main>'
        + "".join(f'<section id="{n}"><h2>{escape(t)}</h2>{content}</section>' for n, t, content in sections)
        + "</main>"
    )
    with replacing(path) as partial:
        partial.write_text(viewer.page(f"{source}: tomography report", body), encoding="utf-8")
    return Path(path)


def _summary(result: Reconstruction, fit: Fit | None) -> Section:
    numbers = findings.headline(result, fit)
    cards = "".join(
        f'<div class="card {n.state}"><dt>{escape(n.name)}</dt><dd class="value">{escape(n.value)}</dd>'
        f"<dd>{escape(n.detail)}</dd>{_state(n)}</div>"
        for n in numbers
    )
    warned, limits = findings.warnings(result, fit), findings.limits(result)
    parts = [f'<dl class="cards">{cards}</dl>']
    if result.message:
        parts.append(f'<p class="message"><b>Why it stopped.</b> {escape(result.message)}</p>')
    title = "To check" if warned else "Nothing conspicuous was found"
    parts.append(
        f'<div class="two"><div class="box {"warn" if warned else "calm"}"><h3>{title}</h3>{as_list(warned)}</div>'
    )
    parts.append(f'<div class="box"><h3>What this geometry cannot show</h3>{as_list(limits)}</div></div>')
    rows = [(n.name, n.meaning) for n in numbers if n.meaning]
    parts.append(f"<details><summary>How to read these numbers</summary>{as_table(rows)}</details>")
    return "summary", "Summary", "".join(parts)


def _state(number: Number) -> str:
    return f'<dd class="state">{number.state}</dd>' if number.state else ""


def _lead(result: Reconstruction) -> str:
    shape = " × ".join(map(str, result.volume.shape))
    tilts = np.size(result.pose.tilt)
    return f"{shape} voxels [z, y, x] from {tilts} tilt{'s' if tilts != 1 else ''}"


def _volume(result: Reconstruction) -> Section:
    volume = np.asarray(findings.first_channel(result.volume, 3))
    at = look_at(volume)
    factor = -(-max(volume.shape) // PICTURE)
    drawn = plot.slices(viewer.shrink(volume, factor), at, result.voxel_nm, volume.shape)
    binned = f" Binned {factor}-fold for this page." if factor > 1 else ""
    slices = figure(
        drawn,
        "Three orthogonal slices of the volume",
        f"Slices through voxel z {at[0]}, y {at[1]}, x {at[2]}, with one grey window (all but 0.1 % of the values at "
        f"either end) and one scale. The beam at zero tilt runs along z; the specimen was turned about y.{binned}",
    )
    view, said = viewer.volume_view(volume, at, result.voxel_nm)
    how = (
        "Drag in a slice to move the crosshair; drag the 3-D view to turn it. After a click on a view the arrow keys "
        "and the mouse wheel work on it. Cut opens the volume at the z slice."
    )
    caption = f'<figcaption class="below">{how} {escape(said)}</figcaption>'
    return "volume", "Volume", f'{slices}<figure class="panel screen">{view}{caption}</figure>'


def _audit(result: Reconstruction) -> Section:
    found, share = result.metrics["audit"], float(result.metrics["supplied_share"])
    drawn = figure(
        plot.audit(*(np.asarray(found[name]) for name in ("plane", "frequency", "outside", "empty"))),
        "What the images determine of the volume, and what the method supplied",
        "From the left: the middle slice; what linear algebra makes of its own projections at the noise of the images; "
        "the share of the power of its detail that is not in that, bright where the images do not say what is there; "
        "and the share of the power at frequencies that no image reaches: a method that supplies nothing stays near "
        "zero, one whose specimen is alike in all directions comes to the dashed line.",
    )
    text = (
        f"<p>{100 * share:.0f} % of the power of the detail, what varies over a few voxels, is not determined by the "
        "images at their noise: the method supplied it, or let noise through. It can be right; no image says so.</p>"
    )
    return "measured", "What was measured", text + drawn


def _agreement(fit: Fit, result: Reconstruction) -> Section:
    predicted = _numbers(result.metrics.get("prediction_error_by_tilt"))
    predicted = predicted if predicted is not None and predicted.size == fit.tilt_deg.size else None
    chart = plot.residuals(fit.tilt_deg, fit.relative, fit.ratio, fit.outliers, predicted)
    dots = "" if predicted is None else "; dots, the same when the volume was made from the other half of the tilts"
    row = fit.measured.shape[1] // 2
    sinogram = plot.sinogram(fit.measured[:, row], fit.predicted[:, row], fit.tilt_deg, result.voxel_nm)
    parts = (
        figure(
            chart,
            "Residual and intensity ratio per tilt",
            "Above: RMS of measured minus predicted over RMS of measured, for each tilt; dashed, the median; orange, "
            f"tilts that stand out{dots}. Below: total measured over total predicted intensity; a smooth curve near 1 "
            "is right, jumps mean that the brightness changed between images"
            + (
                " (the run fitted a gain and an offset per tilt, which the residual takes into account)"
                if fit.rescaled
                else ""
            )
            + ". Click a bar to see its images below.",
        ),
        _tilt_images(fit, chart),
        figure(
            sinogram,
            "Sinogram of the central row: measured, predicted, residual",
            f"Image row y = {row} over all tilts. Jagged edges are shifts between tilts, which the prediction should "
            "repeat; in the residual, stripes along a row are intensity jumps, and bands that follow the edges of the "
            "object a wrong rotation centre or axis.",
            "sharp",
        ),
    )
    return "fit", "Fit to the images", "".join(parts)


def _tilt_images(fit: Fit, chart) -> str:
    """The slider over tilt images, tied to the cursor of `chart`."""
    count = fit.tilt_deg.size
    order = np.argsort(fit.tilt_deg, kind="stable")
    worst = int(np.argmax(fit.relative[order]))
    shown = order[viewer.tilts_that_fit(count, fit.measured.shape[1:], worst)]
    place = chart.axes[0].transData.transform(
        np.column_stack([[fit.tilt_deg[0], *fit.tilt_deg[shown]], np.zeros(shown.size + 1)])
    )
    moved = (place[1:, 0] - place[0, 0]) * 72 / chart.dpi  # an SVG counts in points
    facts = [
        f"{findings.degrees(fit.tilt_deg[i])}, image {i}, residual {findings.percent(fit.relative[i])}"
        for i in map(int, shown)
    ]
    nearest = int(np.argmin(np.abs(fit.tilt_deg[shown])))
    view = viewer.tilt_view(fit.measured[shown], fit.predicted[shown], facts, moved, nearest)
    which = "all tilts" if shown.size == count else f"{shown.size} of {count} tilts, the worst among them"
    return (
        f'<figure class="panel">{view}<figcaption class="below">Tilt images, y (the tilt axis) up: {which}, binned to '
        f"{viewer.SIDE} pixels or less. In the residual, red is measured more than predicted. Outlines there point to "
        "misalignment; noise is what should remain.</figcaption></figure>"
    )


def _alignment(result: Reconstruction) -> Section:
    tilt = np.rad2deg(np.asarray(result.pose.tilt, np.float64))
    order = np.argsort(tilt, kind="stable")
    panels = []
    if result.pose.shift is not None:
        shift = np.asarray(result.pose.shift, np.float64)
        panels += [
            ("shift u, px", tilt[order], {"u": shift[order, 0]}),
            ("shift v, px", tilt[order], {"v": shift[order, 1]}),
        ]
    for name, unit, scale in (
        ("rotation", "°", 180 / np.pi),
        ("magnification", "", 1.0),
        ("second_tilt", "°", 180 / np.pi),
    ):
        value = getattr(result.pose, name)
        if value is not None:
            label = name.replace("_", " ") + (f", {unit}" if unit else "")
            panels.append((label, tilt[order], {name: scale * np.asarray(value, np.float64)[order]}))
    said = {} if result.series is None else result.series.provenance
    said = {
        k: v
        for k, v in said.items()
        if k in ("alignment", "refinement", "background", "saturation", "tilt_axis", "shift", "mask")
    }
    parts = [as_table((k.replace("_", " "), v) for k, v in said.items())] if said else []
    if panels:
        drawn = plot.lines(panels, "tilt, °", width=plot.WIDE, height=1.15)
        caption = (
            "Pose of each tilt: u across the tilt axis, v along it. A damaged or mistracked image stands out as a jump."
        )
        parts.append(figure(drawn, "Shift of each tilt", caption))
    else:
        parts.append("<p>Nominal poses: no shift, rotation or magnification was applied to any image.</p>")
    details = result.settings.get("alignment")
    if isinstance(details, Mapping):
        parts.append(_alignment_details(details, tilt, order))
    return "alignment", "Alignment", "".join(parts)


def _alignment_details(details: Mapping, tilt: np.ndarray, order: np.ndarray) -> str:
    """One value a tilt is drawn over the tilts, a curve `{"x": …, "y": …}` as it is; the rest is a table."""
    figures, rows = [], []
    for name, value in details.items():
        label, curve = str(name).replace("_", " "), _numbers(value)
        if name in ("shift_u_px", "shift_v_px", "notes"):
            continue  # drawn from the pose, and told by the provenance
        if isinstance(value, Mapping):
            x, y = _numbers(value.get("x")), _numbers(value.get("y"))
            if x is None or y is None or x.size != y.size:
                rows += _flat(value)
                continue
            drawn = plot.lines([(label, x, {label: y})], str(value.get("xlabel", "")))
        elif curve is not None and curve.size == tilt.size > 1:
            drawn = plot.lines([(label, tilt[order], {label: curve[order]})], "tilt, °")
        else:
            rows.append((label, _short(value)))
            continue
        figures.append(figure(drawn, label, ""))
    return (f'<div class="two left">{"".join(figures)}</div>' if figures else "") + (as_table(rows) if rows else "")


def _convergence(result: Reconstruction) -> Section:
    curves = {str(k): _numbers(v) for k, v in result.history.items()}
    curves = {k: v for k, v in curves.items() if v is not None and v.size and np.isfinite(v).any()}
    if not curves:
        return "convergence", "Convergence", "<p>No history was recorded.</p>"
    names = sorted(curves, key=lambda k: (k != "misfit", k))
    if max(v.size for v in curves.values()) == 1:
        rows = [(k, f"{curves[k][0]:.5g}") for k in names]
        return "convergence", "Convergence", "<p>A single step, so there is no curve.</p>" + as_table(rows)
    figures = []
    for name in names[:8]:
        x = np.arange(1, curves[name].size + 1)
        label = name.replace("_", " ")
        drawn = plot.lines([(label, x, {label: curves[name]})], "step", log=True, height=2.1)
        figures.append(figure(drawn, f"{label} per step", ""))
    note = (
        "<p>A curve that still falls steeply at the end wants more steps; a flat one has nothing more to give. "
        "A falling misfit alone is not success: late steps of an unregularised method fit noise.</p>"
    )
    return "convergence", "Convergence", f'{note}<div class="two left">{"".join(figures)}</div>'


def _resolution(result: Reconstruction) -> Section:
    metrics, nm = result.metrics, result.voxel_nm
    cones, widths = metrics.get("fsc_cones", {}), metrics.get("edge_width_voxels", {})
    frequency, curve = _numbers(metrics.get("fsc_frequency")), _numbers(metrics.get("fsc_curve"))
    rows, more, drawn = [], {}, ""
    has_curve = frequency is not None and curve is not None and frequency.size == curve.size > 1
    if has_curve:
        rows.append(
            ("all directions", *(_length(resolution(frequency, curve, level), nm) for level in (0.5, 0.143)), "")
        )
    for axis, name in DIRECTIONS.items():
        one = cones.get(axis, {})
        found = (one.get("resolution_voxels_at_0.5"), one.get("resolution_voxels"))
        rows.append((name, *(_length(value, nm) for value in found), _length(widths.get(axis), nm, "none found")))
        if one:
            told = 2 * np.asarray(one["noise"]) <= 0.5
            more[name] = np.asarray(cones["frequency"]), np.where(told, one["curve"], np.nan)
    snr = metrics.get("ssnr", {})
    if snr:
        ratio = np.asarray(snr["ratio"])
        expected = np.where(np.isfinite(ratio), ratio / (1 + ratio), 1.0)
        more["samples, SSNR / (1 + SSNR)"] = np.asarray(snr["frequency"]), expected
        rows.append(("samples, where SSNR is 1", _length(resolution(snr["frequency"], expected, 0.5), nm), "", ""))
    if has_curve:
        mask = metrics.get("fsc_mask", "mask not recorded")
        cone = (
            f" In cones of {cones['half_angle_deg']:.3g}° about the axes ({cones['mask']}) shells with so few samples "
            "that noise may reach 0.5 are left out, and lengths are where the curve falls below the threshold or twice "
            "its noise. Along the beam there is little but the missing wedge, where halves agree in what the method "
            "supplies."
            if cones
            else ""
        )
        drawn = figure(
            plot.fsc(frequency, curve, nm, more=more),
            "Fourier shell correlation of even and odd tilts",
            "Agreement of two volumes from even and odd tilts, by feature size. The thresholds 0.5 and 0.143 are "
            f"dashed; {mask}. The halves share the missing wedge, the alignment and the prior, so this bounds "
            f"repeatability, not truth.{cone}",
        )
    table = as_table(rows, ("", "FSC 0.5", "FSC 0.143", "edges, 10 to 90 %"))
    longer = {name: _ratio(value) for name, value in metrics.get("elongation", {}).items()}
    told = ""
    if longer:
        told = (
            f"<p>Along the beam, over across it: structures are {longer.get('structures', '-')} times as long (half "
            f"width of the autocorrelation) and edges {longer.get('edges', '-')} times as wide. A method without prior "
            f"knowledge makes a point {longer.get('of_the_wedge', '-')} times as long with these tilts; a specimen "
            "that itself lies flat or stands upright counts in the first.</p>"
        )
    return "resolution", "Resolution", f'<div class="two">{drawn}<div>{table}{told}</div></div>'


def _length(voxels: Any, nm: float | None, none: str = "") -> str:
    """A length in voxels, in words; of none at all `none`."""
    value = np.nan if voxels is None else float(voxels)
    if np.isnan(value):
        return none or "not told"
    if np.isinf(value):
        return "no agreement"
    return f"{value * nm:.3g} nm" if nm else f"{value:.3g} voxels"


def _ratio(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "(not told)"


def _quality(result: Reconstruction) -> Section:
    left = {k: v for k, v in result.metrics.items() if k not in RESOLVED}
    rows = [(k, _short(v)) for k, v in _flat(left) if _numbers(v) is None or np.size(v) == 1]
    body = as_table(rows) if rows else "<p>No quality numbers were computed for this run.</p>"
    return "quality", "Quality numbers", body


def _provenance(result: Reconstruction) -> Section:
    series = result.series
    if series is None:
        return "provenance", "Where every number came from", "<p>No tilt series is stored with this result.</p>"
    tilt = series.tilt_deg
    values = {
        "images": f"{series.images.shape} {series.images.dtype}",
        "tilt_deg": f"{tilt.size} angles, {findings.degrees(tilt.min())} to {findings.degrees(tilt.max())}"
        if tilt.size
        else "none",
        "pixel_nm": f"{series.pixel_nm:.6g} nm" if series.pixel_nm else "unknown",
        "tilt_axis": f"{series.tilt_axis_deg:.4g}° from y",
    }
    names = [*values, *(k for k in series.provenance if k not in values)]
    rows = [(n.replace("_", " "), values.get(n, ""), series.provenance.get(n, "not recorded")) for n in names]
    rows.insert(0, ("source", Path(series.source).name, series.source))
    if series.mask is not None:
        rows.append(
            ("mask", f"{100 * np.mean(series.mask):.3g} % measured", "pixels never measured are left out of the fit")
        )
    body = as_table(rows, ("what", "value", "from"))
    angles = ", ".join(f"{t:.6g}" for t in tilt)
    return (
        "provenance",
        "Where every number came from",
        f"{body}<details><summary>All {tilt.size} angles, °</summary><p class='small'>{escape(angles)}</p></details>",
    )


def _settings(result: Reconstruction) -> Section:
    shown = {k: v for k, v in result.settings.items() if k not in ("alignment", "composition")}  # have sections
    rows = [(name, _short(value)) for name, value in _flat(shown)]
    if not rows:
        return "settings", "Settings and versions", "<p>No settings were recorded.</p>"
    text = json.dumps(result.settings, indent=1, default=str)
    whole = f"<details><summary>As JSON</summary><pre>{escape(text[:200_000])}</pre></details>"
    return "settings", "Settings and versions", f'<div class="columns">{as_table(rows)}</div>{whole}'


def _flat(values: Mapping, before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} · ")
        else:
            yield f"{before}{name}".replace("_", " "), value


def _short(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.5g}" if np.isfinite(value) else "not defined"
    if isinstance(value, list | tuple | np.ndarray):
        items = np.asarray(value, object).ravel()
        if not items.size:
            return "none"
        text = ", ".join(_short(v) for v in items[:8])
        return f"{text}, … ({items.size} values)" if items.size > 8 else text
    return "none" if value is None else str(value)


def _numbers(value: Any) -> np.ndarray | None:
    """`value` as a line of float64, or None if it is not one."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    return array.reshape(-1) if array.ndim <= 1 and value is not None else None
