"""Pieces of a report in HTML: sections, figures, tables, lists."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from . import plot
from .viewer import escape

Section = tuple[str, str, str]
"""The name in the address, the title, and the content of a part of a report."""
PICTURE = 640  # voxels: a longer slice is binned before it is put into the page


def figure(drawn, label: str, caption: str, kind: str = "") -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{plot.to_svg(drawn, label)}{below}</figure>'


def as_table(rows: Iterable[tuple], head: tuple[str, ...] = ()) -> str:
    def line(row: tuple) -> str:
        return (
            f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(c)}</td>" for c in row[1:]) + "</tr>"
        )

    top = "<thead><tr>" + "".join(f'<th scope="col">{escape(h)}</th>' for h in head) + "</tr></thead>" if head else ""
    return f"<table>{top}<tbody>{''.join(line(tuple(r)) for r in rows)}</tbody></table>"


def as_list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def look_at(volume: np.ndarray) -> tuple[int, ...]:
    """The middle of the volume or, along an axis where the middle is nearly empty, the plane with most in it."""
    step = max(1, max(volume.shape) // 128)
    power = np.nan_to_num(volume[::step, ::step, ::step].astype(np.float64), posinf=0.0, neginf=0.0)
    largest = np.abs(power).max(initial=0)
    power = (power / largest) ** 2 if largest > 0 else power
    at = []
    for axis, n in enumerate(volume.shape):
        profile = power.sum(tuple(k for k in range(3) if k != axis))
        best = int(profile.argmax()) * step
        at.append(n // 2 if profile[n // 2 // step] >= 0.25 * profile.max() else min(best, n - 1))
    return tuple(at)
