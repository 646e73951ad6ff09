"""What the report's pages are made of: the page itself, its scripts, and arrays packed into bytes they can draw.

A view is a piece of HTML with its data inside: gzip'd bytes in base64, unpacked by the browser. Nothing is loaded
from anywhere.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template

import numpy as np

VOXELS = 128**3  # of a volume shown in the page; a browser draws it smoothly and the page stays near 2 MB
LONGEST = 256  # voxels along one axis: what every WebGL2 device can hold
PIXELS = 1_400_000  # of all tilt images shown, measured and residual together
SIDE = 128  # pixels, the longer side of a tilt image


def page(title: str, body: str) -> str:
    """The whole HTML page: `title` is text, `body` is HTML."""
    script = "\n".join(asset(name) for name in ("common.js", "raycast.js", "volume.js", "tilts.js"))
    return fill("page.html", title=escape(title), style=asset("page.css"), script=script, body=body)


def volume_view(volume, at: Sequence[int], voxel_nm: float | None = None) -> tuple[str, str]:
    """`volume` `[z, y, x]` as linked slices and a ray-cast view, first shown at the voxel `at`, and a sentence that
    says what was done to it: binned until it has at most `VOXELS` voxels, and cut to 256 grey levels."""
    size = volume.shape
    factor = 1
    while np.prod([-(-n // factor) for n in size]) > VOXELS or max(size) / factor > LONGEST:
        factor += 1
    binned = shrink(volume, factor)
    low, high = (float(v) for v in np.percentile(binned, (0.05, 99.95)))
    if not high > low:
        low, high = float(binned.min()), float(binned.max())
    data = to_bytes(binned, low, high)
    about = {
        "shape": list(binned.shape),
        "size": list(size),
        "voxel": voxel_nm,
        "low": low,
        "high": high,
        "at": [int(a) for a in at],
    }
    shape = " × ".join(str(n) for n in binned.shape)
    how = f"binned {factor}-fold to {shape} voxels" if factor > 1 else f"{shape} voxels, not binned"
    said = (
        f"Shown: {how} [z, y, x], in 256 grey levels between {low:.4g} and {high:.4g}. "
        "The volume itself is in the run's files."
    )
    return fill("volume.html", about=to_json(about), data=pack(data)), said


def tilt_view(measured, predicted, facts: Sequence[str], cursor: Sequence[float], first: int = 0) -> str:
    """A slider over tilt images `[tilt, y, x]`: measured, predicted, residual; `facts` is a line of text each.

    `cursor` is, per tilt, how far the chart's `tilt-cursor` moves from its first place; `first` is shown first.
    Pixels that were not measured are NaN in `measured`.
    """
    factor = max(1, -(-max(measured.shape[1:]) // SIDE))
    kept = shrink_images(measured, factor)
    residual = np.nan_to_num(kept - shrink_images(predicted, factor))
    kept = np.nan_to_num(kept)
    low, high = (float(v) for v in np.percentile(kept, (0.1, 99.9)))
    reach = float(np.percentile(np.abs(residual), 99.9)) or 1.0
    data = np.stack([to_bytes(kept, low, high), to_bytes(residual, -reach, reach)], 1)
    about = {
        "shape": list(kept.shape),
        "size": list(measured.shape[1:]),
        "facts": list(facts),
        "cursor": [round(float(c), 2) for c in cursor],
        "low": low,
        "high": high,
        "reach": reach,
        "first": first,
    }
    return fill("tilts.html", about=to_json(about), data=pack(data), last=str(len(facts) - 1), first=str(first))


def tilts_that_fit(count: int, shape: Sequence[int], always: int) -> np.ndarray:
    """Which of `count` tilts of `shape` the page has room for: evenly spread, and the tilt `always` among them."""
    factor = max(1, -(-max(shape) // SIDE))
    pixels = 2 * int(np.prod([-(-n // factor) for n in shape]))
    room = max(2, PIXELS // pixels)
    if count <= room:
        return np.arange(count)
    return np.unique([*np.linspace(0, count - 1, room - 1).round().astype(int), always])


def shrink(volume, factor: int) -> np.ndarray:
    """Block means of `[z, y, x]`; the last block of an axis may be smaller. float32, not finite becomes 0."""
    if factor == 1:
        return np.nan_to_num(np.asarray(volume, np.float32), posinf=0.0, neginf=0.0)
    planes = []
    for z in range(0, volume.shape[0], factor):  # one slab at a time: the volume may be large
        slab = np.nan_to_num(np.asarray(volume[z : z + factor], np.float32), posinf=0.0, neginf=0.0)
        planes.append(shrink_images(slab.mean(0, dtype=np.float32)[None], factor)[0])
    return np.stack(planes)


def shrink_images(images, factor: int) -> np.ndarray:
    """Block means of `[tilt, y, x]` over y and x; the last block may be smaller."""
    for axis in (1, 2):
        starts = np.arange(0, images.shape[axis], factor)
        counts = np.diff([*starts, images.shape[axis]]).astype(np.float32)
        images = np.add.reduceat(images, starts, axis) / counts.reshape([-1 if k == axis else 1 for k in range(3)])
    return images


def to_bytes(array, low: float, high: float) -> np.ndarray:
    """`array` in 256 levels, `low` is 0 and `high` 255."""
    scale = 255 / (high - low) if high > low else 0.0
    return np.clip((array - low) * scale + 0.5, 0, 255).astype(np.uint8)


def pack(data: np.ndarray) -> str:
    return base64.b64encode(gzip.compress(np.ascontiguousarray(data).tobytes(), 6, mtime=0)).decode()


def to_json(values: Mapping) -> str:
    """JSON that may stand inside a script element: no `<` that could close it."""
    return json.dumps(values).replace("<", "\\u003c")


def escape(text: object) -> str:
    from html import escape as quoted

    return quoted(str(text))


def asset(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")


def fill(name: str, **values: str) -> str:
    return Template(asset(name)).substitute(values)
