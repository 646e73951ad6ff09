"""Figures of a tilt series and its reconstruction. Every function takes arrays and returns a matplotlib `Figure`
of its own; matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2328", "#59636e", "#d5dae0"
BLUE, ORANGE, GREEN = "#0a6aa6", "#c2570b", "#1b7f52"
THEME = {INK: "ink", MUTED: "muted", GRID: "grid", BLUE: "blue", ORANGE: "orange", GREEN: "green"}
WIDE, HALF = 11.0, 5.35  # inches; a page is WIDE across, so that text is equally large in every figure


def slices(volume, at: Sequence[int], voxel_nm: float | None = None, size: Sequence[int] | None = None) -> Figure:
    """The three planes of `volume` `[z, y, x]` through the voxel `at = (z, y, x)`, y and z upwards, one scale for all.

    `size` is the extent `(z, y, x)` in voxels when `volume` was binned; `at` then still counts unbinned voxels.
    """
    size = tuple(volume.shape if size is None else size)
    iz, iy, ix = (min(int(a * n / s), n - 1) for a, n, s in zip(at, volume.shape, size, strict=True))
    nz, ny, nx = size
    panels = [
        (volume[iz], (nx, ny), ("x", "y, tilt axis"), f"xy at z = {at[0]}"),
        (volume[:, iy], (nx, nz), ("x", "z, beam"), f"xz at y = {at[1]}"),
        (volume[:, :, ix].T, (nz, ny), ("z, beam", "y, tilt axis"), f"zy at x = {at[2]}"),
    ]
    panels = [p for p in panels if min(p[1]) > 1] or panels
    low, high = window(np.concatenate([p[0].ravel() for p in panels]))

    left, top, bottom, gap = 0.35, 0.3, 0.62, 0.55
    across, tallest = sum(p[1][0] for p in panels), max(p[1][1] for p in panels)
    scale = min((WIDE - left - gap * len(panels)) / across, 4.6 / tallest)  # inches a voxel
    height = max(tallest * scale, 0.3) + top + bottom
    figure = _blank(WIDE, height)
    corner = (WIDE - across * scale - gap * (len(panels) - 1)) / 2
    for image, (w, h), (right, up), title in panels:
        box = (corner / WIDE, bottom / height, w * scale / WIDE, h * scale / height)
        axes = figure.add_axes(box)
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="none", aspect="auto")
        _style(axes, title=title, xlabel=f"{right} →", ylabel=f"{up} →", frame=False)
        axes.set_xticks([])
        axes.set_yticks([])
        corner += w * scale + gap
    first = panels[0][1][0]
    length, label = scale_bar(first, voxel_nm)
    start = figure.axes[0].get_position().x0
    y = 0.16 / height
    _line(figure, [start, start + length * scale / WIDE], y)
    figure.text(start + length * scale / WIDE + 0.1 / WIDE, y, label, va="center", color=INK, fontsize=8.5)
    return figure


def sinogram(measured, predicted, tilt_deg, pixel_nm: float | None = None) -> Figure:
    """One image row over all tilts, `[tilt, x]`: measured, predicted, and what is left, each row one tilt."""
    order = np.argsort(tilt_deg, kind="stable")
    tilt, measured, predicted = np.asarray(tilt_deg)[order], measured[order], predicted[order]
    residual = measured - predicted
    low, high = window(measured[np.isfinite(measured)])
    reach = _reach(residual)
    n = measured.shape[1]
    half, unit = (n / 2 * pixel_nm, "nm") if pixel_nm else (n / 2, "pixels")
    figure = _blank(WIDE, 3.3)
    grid = figure.add_gridspec(1, 3, left=0.05, right=0.955, top=0.9, bottom=0.15, wspace=0.2)
    for k, (image, title) in enumerate(((measured, "measured"), (predicted, "predicted"), (residual, "residual"))):
        axes = figure.add_subplot(grid[0, k])
        colours: dict[str, Any] = dict(cmap="RdBu_r", vmin=-reach, vmax=reach) if k == 2 else {}
        colours = colours or dict(cmap="gray", vmin=low, vmax=high)
        shown = axes.imshow(
            np.ma.masked_invalid(image),
            origin="lower",
            aspect="auto",
            interpolation="none",
            extent=(-half, half, -0.5, tilt.size - 0.5),
            **colours,
        )
        _style(axes, title=title, xlabel=f"u, {unit}", ylabel="tilt, °" if k == 0 else "", frame=False)
        rows = np.unique(np.linspace(0, tilt.size - 1, min(tilt.size, 9)).round().astype(int))
        axes.set_yticks(rows, [f"{tilt[i]:.4g}".replace("-", "−") for i in rows] if k == 0 else [])
        if k:
            bar = figure.colorbar(shown, ax=axes, fraction=0.04, pad=0.03)
            bar.outline.set_visible(False)  # type: ignore[union-attr]
            bar.ax.tick_params(labelsize=7.5, colors=MUTED, length=2)
            bar.ax.yaxis.get_offset_text().set(color=MUTED, size=7.5)
    return figure


def residuals(tilt_deg, relative, ratio, flagged=(), held_out=None) -> Figure:
    """Per tilt `[tilt]`: the residual RMS relative to the measured RMS, and measured over predicted total intensity.

    `flagged` tilts (indices) are drawn in the second colour; `held_out [tilt]`, the residual of a volume that was made
    without the tilt, as dots. The first axes carry a movable cursor, gid `tilt-cursor`.
    """
    tilt = np.asarray(tilt_deg, float)
    figure = _blank(WIDE, 3.3)
    grid = figure.add_gridspec(2, 1, left=0.06, right=0.985, top=0.94, bottom=0.14, hspace=0.28, height_ratios=(2, 1))
    upper = figure.add_subplot(grid[0, 0])
    colours = [ORANGE if i in set(flagged) else BLUE for i in range(tilt.size)]
    upper.bar(tilt, 100 * np.asarray(relative), width=0.8 * _spacing(tilt), color=colours)
    upper.axhline(100 * float(np.median(relative)), color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    if held_out is not None:
        upper.plot(tilt, 100 * np.asarray(held_out), "o", color=INK, markersize=2.8)
    _style(upper, ylabel="residual, %")
    lower = figure.add_subplot(grid[1, 0], sharex=upper)
    lower.axhline(1, color=MUTED, linewidth=0.8)
    order = np.argsort(tilt, kind="stable")
    lower.plot(tilt[order], np.asarray(ratio)[order], color=BLUE, linewidth=1.2, marker="o", markersize=2.4)
    _style(lower, xlabel="tilt, °", ylabel="intensity ratio")
    reach = 1.25 * max(float(np.max(np.abs(np.asarray(ratio) - 1), initial=0.0)), 0.01)
    lower.set_ylim(1 - reach, 1 + reach)
    upper.tick_params(labelbottom=False)
    upper.axvline(tilt[0], color=INK, linewidth=1.2, gid="tilt-cursor")
    pad = _spacing(tilt)
    upper.set_xlim(tilt.min() - pad, tilt.max() + pad)
    return figure


def lines(
    panels: Sequence[tuple[str, np.ndarray, Mapping[str, np.ndarray]]],
    xlabel: str,
    *,
    width: float = HALF,
    log: bool = False,
    height: float = 1.7,
) -> Figure:
    """Curves in panels above each other with one x axis: `(ylabel, x, {label: y})` each.

    With `log` a panel whose values are all positive and span more than a factor of 4 gets a logarithmic axis.
    Values that are not finite are left out.
    """
    tall = height * len(panels) + 0.55
    figure = _blank(width, tall)
    left = 0.85 / width
    grid = figure.add_gridspec(
        len(panels), 1, left=left, right=1 - 0.12 / width, top=1 - 0.15 / tall, bottom=0.48 / tall, hspace=0.18
    )
    first: Axes | None = None
    for k, (ylabel, x, curves) in enumerate(panels):
        axes = figure.add_subplot(grid[k, 0], sharex=first)
        first = first or axes
        for colour, (label, y) in zip((BLUE, ORANGE, GREEN, MUTED, INK), curves.items(), strict=False):
            keep = np.isfinite(y) & np.isfinite(x)
            marker = "o" if keep.sum() <= 80 else ""
            axes.plot(x[keep], y[keep], color=colour, linewidth=1.4, marker=marker, markersize=2.6, label=label)
        values = np.concatenate([np.asarray(y, float)[np.isfinite(y)] for y in curves.values()] or [np.zeros(0)])
        if log and values.size and values.min() > 0 and values.max() > 4 * values.min():
            _logarithmic(axes, values)
        _style(axes, xlabel=xlabel if k == len(panels) - 1 else "", ylabel=ylabel)
        axes.tick_params(labelbottom=k == len(panels) - 1)
        if len(curves) > 1:
            axes.legend(loc="best", frameon=False, fontsize=8, labelcolor=INK, handlelength=1.4)
    return figure


def fsc(
    frequency,
    curve,
    voxel_nm: float | None = None,
    thresholds=(0.5, 0.143),
    more: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> Figure:
    """Fourier shell correlation against spatial frequency in cycles a voxel, with the thresholds as lines; `more`
    curves `(frequency, curve)` by name, thinner."""
    tall = 2.9 if not more else 3.6
    figure = _blank(HALF, tall)
    axes = figure.add_axes((0.68 / HALF, 0.5 / tall, 1 - 0.8 / HALF, 1 - 1.05 / tall))
    for level in thresholds:
        axes.axhline(level, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(0.002, level + 0.015, f"{level:g}", color=MUTED, fontsize=8)
    keep = np.isfinite(curve)
    axes.plot(np.asarray(frequency)[keep], np.asarray(curve)[keep], color=BLUE, linewidth=1.5, label="all directions")
    styles = ((ORANGE, "-"), (GREEN, "-"), (MUTED, "-"), (INK, (0, (1, 1.5))))
    for (colour, style), (name, (x, y)) in zip(styles, (more or {}).items(), strict=False):
        shown = np.isfinite(y)
        axes.plot(np.asarray(x)[shown], np.asarray(y)[shown], color=colour, linewidth=1.1, linestyle=style, label=name)
    if more:
        axes.legend(loc="best", frameon=False, fontsize=8, labelcolor=INK, handlelength=1.4)
    drawn = [curve, *(y for _, y in (more or {}).values())]
    low = min([0.0, *(float(np.min(np.asarray(y)[np.isfinite(y)], initial=0.0)) for y in drawn)])
    axes.set_ylim(max(low, -0.5) - 0.03, 1.04)
    axes.set_xlim(0, max(0.5, float(np.max(frequency, initial=0.5))))
    _style(axes, xlabel="spatial frequency, cycles per voxel", ylabel="FSC")
    periods = np.array([20, 10, 5, 4, 3, 2.5, 2])
    top = axes.secondary_xaxis("top")
    top.set_xticks(1 / periods, [f"{p * voxel_nm:.3g}" if voxel_nm else f"{p:g}" for p in periods])
    top.set_xlabel(f"period, {'nm' if voxel_nm else 'voxels'}", fontsize=8.5, color=MUTED)
    top.tick_params(labelsize=8, colors=MUTED, length=2.5, width=0.7)
    top.spines["top"].set_visible(False)
    return figure


def audit(plane, frequency, outside, empty) -> Figure:
    """Of a plane across the tilt axis `[3, z, x]`: itself, what of it is determined, and the share that is supplied;
    and the share of power where no image says anything, by frequency, over what it is of noise."""
    tall = 3.1
    figure = _blank(WIDE, tall)
    low, high = window(plane[0])
    for k, (image, title) in enumerate(
        zip(plane, ("the volume", "what the images determine", "share that they do not"), strict=True)
    ):
        axes = figure.add_axes((0.02 + 0.235 * k, 0.3 / tall, 0.22, 1 - 0.6 / tall))
        grey = {"cmap": "gray", "vmin": low, "vmax": high} if k < 2 else {"cmap": "magma", "vmin": 0, "vmax": 1}
        axes.imshow(image, origin="lower", interpolation="none", **grey)
        _style(axes, title=title, xlabel="x →", ylabel="z, beam →" if k == 0 else "", frame=False)
        axes.set_xticks([])
        axes.set_yticks([])
    axes = figure.add_axes((0.765, 0.5 / tall, 0.225, 1 - 0.8 / tall))
    axes.plot(frequency, outside, color=BLUE, linewidth=1.4, label="of the volume")
    axes.plot(frequency, empty, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), label="of all frequencies")
    axes.set_ylim(0, 1.03)
    _style(axes, title="unmeasured share of the power", xlabel="cycles per voxel")
    axes.legend(loc="best", frameon=False, fontsize=8, labelcolor=INK, handlelength=1.4)
    return figure


OUTLINED = 100  # bodies, one by one; more have one outline


def bodies(volume, labels, diameters, unit: str, kind: str) -> Figure:
    """The plane across the tilt axis with most of `labels` `[z, y, x]` outlined in it, and how many bodies have which
    diameter. `kind` is what they are."""
    at = int(np.argmax((labels > 0).sum((0, 2))))
    image, here = volume[:, at], labels[:, at]
    shown = np.setdiff1d(here, 0)
    tall = 3.2
    figure = _blank(WIDE, tall)
    axes = figure.add_axes((0.35 / WIDE, 0.45 / tall, 0.42, 1 - 0.75 / tall))
    low, high = window(image)
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="none")
    for mask in [here == label for label in shown] if shown.size <= OUTLINED else [here > 0]:
        if min(here.shape) > 1 and not mask.all():
            axes.contour(mask, [0.5], colors=ORANGE, linewidths=0.8)
    _style(axes, title=f"xz at y = {at}", xlabel="x →", ylabel="z, beam →", frame=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes = figure.add_axes((0.56, 0.5 / tall, 0.42, 1 - 0.8 / tall))
    known = np.asarray(diameters)
    if known.size:
        count = int(np.clip(2 * np.sqrt(known.size), 5, 30))
        axes.hist(known, count, color=BLUE, edgecolor="white", linewidth=0.5)
    _style(axes, title=f"{known.size} whole {kind}", xlabel=f"diameter, {unit}", ylabel="how many")
    return figure


def atoms(volume, places, species, amplitude, names: Sequence[str]) -> Figure:
    """The plane of `volume` `[z, y, x]` across the beam that has most atoms, with those within a voxel of it, and how
    many atoms of which species have which amplitude.

    `places [atom, 3]` are (x, y, z) in voxels from the middle, `species [atom]` counts `names` from 0.
    """
    places = np.asarray(places) + (np.array(volume.shape[::-1]) - 1) / 2
    levels = np.clip(np.rint(places[:, 2]).astype(int), 0, len(volume) - 1)
    at = int(np.argmax(np.convolve(np.bincount(levels, minlength=len(volume)), np.ones(3), "same")))
    near = np.abs(places[:, 2] - at) < 1
    colours = [(BLUE, ORANGE, GREEN, INK, MUTED)[k % 5] for k in range(len(names))]
    tall = 4.6
    figure = _blank(WIDE, tall)
    axes = figure.add_axes((0.35 / WIDE, 0.45 / tall, 0.42, 1 - 0.75 / tall))
    low, high = window(volume[at])
    axes.imshow(volume[at], cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="none")
    for k, colour in enumerate(colours):
        x, y, _ = places[near & (species == k)].T
        axes.plot(x, y, "o", markersize=4, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=0.9)
    _style(axes, title=f"xy at z = {at}", xlabel="x →", ylabel="y, tilt axis →", frame=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes = figure.add_axes((0.56, 0.5 / tall, 0.42, 1 - 0.8 / tall))
    kinds = [np.asarray(amplitude)[species == k] for k in range(len(names))]
    count = int(np.clip(2 * np.sqrt(len(places)), 5, 80))
    axes.hist(kinds, count, color=colours, stacked=True, label=list(names), edgecolor="white", linewidth=0.3)
    if len(names) > 1:
        axes.legend(loc="best", frameon=False, fontsize=8, labelcolor=INK, handlelength=1.4)
    _style(axes, title=f"{len(places)} atoms", xlabel="amplitude", ylabel="how many")
    return figure


def to_svg(figure: Figure, label: str) -> str:
    """`figure` as an SVG element to stand inside HTML: no external reference, text as text, the colours of `THEME`
    as CSS variables (`--ink` and so on), `label` for those who cannot see it."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "svg.image_inline": True}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\s(?:xmlns(?::xlink)?="[^"]*"|id="[A-Za-z.0-9]+_\d+"|version="1.1")', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"\n\s*", "\n", svg)
    for colour, name in THEME.items():
        svg = svg.replace(colour, f"var(--{name})")
    quoted = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{quoted}"', 1)


def window(values, outside: float = 0.1) -> tuple[float, float]:
    """The grey window of `values`: all but `outside` percent at either end, never empty."""
    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (outside, 100 - outside)))
    if not high > low:
        low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def scale_bar(width: int, voxel_nm: float | None) -> tuple[float, str]:
    """A round length of about a quarter of `width` voxels: in voxels, and in words."""
    full = width * (voxel_nm or 1.0)
    power = 10.0 ** np.floor(np.log10(full / 4))
    length = max((m * power for m in (1, 2, 5) if m * power <= full / 3), default=power)
    if not voxel_nm:
        return float(max(length, 1.0)), f"{max(length, 1.0):g} voxels"
    text = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm" if length >= 1 else f"{length * 10:g} Å"
    return float(length / voxel_nm), text


def _blank(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((width, height), facecolor="none")


def _style(axes: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "", frame: bool = True) -> None:
    axes.set_facecolor("none")
    axes.tick_params(labelsize=8, colors=MUTED, length=2.5, width=0.7)
    axes.tick_params(which="minor", labelsize=7.5, colors=MUTED, length=1.5, width=0.5)
    for side, spine in axes.spines.items():
        spine.set_visible(frame and side in ("left", "bottom"))
        spine.set(color=MUTED, linewidth=0.7)
    axes.xaxis.get_offset_text().set(color=MUTED, size=8)
    axes.yaxis.get_offset_text().set(color=MUTED, size=8)
    if frame:
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, fontsize=8.5, color=MUTED)
    axes.set_ylabel(ylabel, fontsize=8.5, color=MUTED)
    axes.set_title(title, fontsize=9, color=INK, loc="left", pad=5)


def _logarithmic(axes: Axes, values: np.ndarray) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    few = values.max() < 20 * values.min()  # then a decade line may be the only one, or none: label 2 and 5 too
    shown = FuncFormatter(lambda v, _: f"{v:g}" if round(v / 10 ** np.floor(np.log10(v) + 1e-9)) in (2, 5) else "")
    axes.yaxis.set_minor_formatter(shown if few else NullFormatter())


def _line(figure: Figure, x: list[float], y: float) -> None:
    from matplotlib.lines import Line2D

    figure.add_artist(Line2D(x, [y, y], color=INK, linewidth=2.5, solid_capstyle="butt"))


def _spacing(tilt: np.ndarray) -> float:
    steps = np.diff(np.unique(tilt))
    return float(steps.min()) if steps.size else 1.0


def _reach(residual: np.ndarray) -> float:
    finite = np.abs(residual[np.isfinite(residual)])
    return float(np.percentile(finite, 99.5)) or 1.0 if finite.size else 1.0


def pictures(rows: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Images side by side, a row for each name, those of a column on the scale of its first."""
    count, (tall, across) = max(map(len, rows.values())), next(iter(rows.values()))[0].shape
    unit = (WIDE - 0.9) / count
    figure = _blank(WIDE, unit * tall / across * len(rows) + 0.1)
    grid = figure.add_gridspec(
        len(rows), count, left=0.075, right=0.995, top=0.99, bottom=0.01, wspace=0.03, hspace=0.03
    )
    scales = [window(image) for image in next(iter(rows.values()))]
    for i, (name, images) in enumerate(rows.items()):
        for k, (image, (low, high)) in enumerate(zip(images, scales, strict=True)):
            axes = figure.add_subplot(grid[i, k])
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="none")
            _style(axes, ylabel=name if k == 0 else "", frame=False)
            axes.set_xticks([])
            axes.set_yticks([])
    return figure
