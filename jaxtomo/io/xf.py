"""IMOD's alignment transforms (.xf, .prexg): six numbers a view, read, written, and converted to and from poses.

IMOD maps a point of the raw image to the aligned one, both from the image centre: x' = A x + d. A `Pose` maps the
other way, from the ideal (aligned) image to the measured one: x = m R(φ) x' + s. Hence A = R(-φ)/m and d = -A s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .raw import guarded
from .text import read_text


@dataclass(frozen=True)
class PoseNumbers:
    """The in-plane part of `jaxtomo.Pose` as NumPy arrays: `shift` `[tilt, 2]` pixels, `rotation` `[tilt]` rad,
    `magnification` `[tilt]`."""

    shift: np.ndarray
    rotation: np.ndarray
    magnification: np.ndarray


def read_xf(path) -> np.ndarray:
    """`[view, 6]`: A11 A12 A21 A22 DX DY, shifts in pixels."""
    path = Path(path)
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = [float(cell) for cell in line.split()]
        except ValueError:
            row = []
        if len(row) != 6 or not np.isfinite(row).all():
            raise InputError(f"{path}: line {number} ({line.strip()[:40]!r}) is not six numbers A11 A12 A21 A22 DX DY.")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: holds no transforms. Give a file with six numbers a line.")
    return np.array(rows, np.float64)


def write_xf(path, transforms: np.ndarray) -> None:
    """Write `[view, 6]` in IMOD's columns (f12.7 for the matrix, f12.3 for the shifts)."""
    path = Path(path)
    transforms = np.asarray(transforms, np.float64)
    if transforms.ndim != 2 or transforms.shape[1] != 6 or not np.isfinite(transforms).all():
        raise InputError(f"{path}: transforms have shape {transforms.shape}. Give finite [view, 6].")
    lines = ["".join(f"{a:12.7f}" for a in row[:4]) + "".join(f"{d:12.3f}" for d in row[4:]) for row in transforms]
    beside = path.with_name(path.name + ".part")
    with guarded(path, "a transform file"):
        beside.write_text("\n".join(lines) + "\n")
        beside.replace(path)


def to_pose(transforms: np.ndarray, *, quarter_turns: int = 0, stretch: float = 0.01) -> PoseNumbers:
    """The pose that `[view, 6]` states.

    Args:
        quarter_turns: k of the `np.rot90(images, k)` by which the images were turned after reading.
        stretch: largest anisotropy accepted; a `Pose` has none.

    Raises InputError when a transform stretches the image or mirrors it.
    """
    transforms = np.asarray(transforms, np.float64)
    matrix = transforms[:, :4].reshape(-1, 2, 2) @ _turn(-quarter_turns)
    size = np.linalg.svd(matrix, compute_uv=False)
    bad = (size[:, 0] > (1 + stretch) * size[:, 1]) | (np.linalg.det(matrix) <= 0)
    if bad.any():
        raise InputError(
            f"transform of view {int(np.flatnonzero(bad)[0])} stretches or mirrors the image, which a pose does not. "
            "Apply it to the images in IMOD (newstack -xform) and read those."
        )
    back = np.linalg.inv(matrix)
    return PoseNumbers(
        shift=-(back @ transforms[:, 4:, None])[..., 0],
        rotation=np.arctan2(back[:, 1, 0] - back[:, 0, 1], back[:, 0, 0] + back[:, 1, 1]),
        magnification=1 / np.sqrt(size.prod(axis=1)),
    )


def from_pose(shift, rotation=None, magnification=None, *, quarter_turns: int = 0) -> np.ndarray:
    """`[view, 6]` of poses: the inverse of `to_pose`. Arrays as in `PoseNumbers`; None is nominal."""
    shift = np.asarray(shift, np.float64)
    rotation = np.zeros(len(shift)) if rotation is None else np.asarray(rotation, np.float64)
    magnification = np.ones(len(shift)) if magnification is None else np.asarray(magnification, np.float64)
    cos, sin = np.cos(rotation), np.sin(rotation)
    matrix = np.stack([cos, sin, -sin, cos], axis=1).reshape(-1, 2, 2) / magnification[:, None, None]
    moved = -(matrix @ shift[:, :, None])[..., 0]
    return np.concatenate([(matrix @ _turn(quarter_turns)).reshape(-1, 4), moved], axis=1)


def _turn(k: int) -> np.ndarray:
    """What `np.rot90(images, k)` does to a point (x, y), y along the rows: a rotation by -90 k degrees."""
    return np.linalg.matrix_power(np.array([[0.0, 1.0], [-1.0, 0.0]]), k % 4)
