"""What is measured of every body."""

from __future__ import annotations

import numpy as np

Table = dict[str, np.ndarray]
NAMES = (
    *("label", "z", "y", "x", "volume", "diameter", "surface", "sphericity", "length", "breadth", "thickness"),
    *("aspect", "tilted", "elongation", "neighbour", "intensity", "whole"),
)


def measured(labels, volume, level, sign: int, voxel_nm: float | None = None) -> Table:
    """Values of every body of `labels`, with `volume` above the level `[z, y, x]` inside (`sign` 1) or below it (-1),
    `[body]` by name:

    label; z, y, x of the centre in voxels; volume; diameter of the ball of that volume; surface, of the isosurface at
    the level; sphericity, that of a ball with as much inside over it [Wadell 1932]; length, breadth and thickness
    of the ellipsoid with the same second moments; aspect, length over thickness; tilted, the angle of the length from
    the beam in degrees; elongation, the extent along the beam over that across it; neighbour, the distance to the
    nearest other centre; intensity, its mean; whole, 0 of bodies that the border cuts.
    """
    from scipy.ndimage import find_objects
    from scipy.spatial import KDTree

    unit = voxel_nm or 1.0
    rows = []
    for label, box in enumerate(find_objects(labels), 1):
        if box is None:
            continue
        wide = tuple(slice(max(b.start - 1, 0), b.stop + 1) for b in box)
        mine = labels[wide] == label
        places = np.argwhere(mine).astype(float)
        count, centre = len(places), places.mean(0)
        # A voxel is a cube, not a point: its own second moment is 1/12 along each side.
        moments = np.cov(places.T, bias=True).reshape(3, 3) + np.eye(3) / 12
        sizes, axes = np.linalg.eigh(moments)
        thickness, breadth, length = 2 * np.sqrt(5 * sizes) * unit
        z, y, x = np.sqrt(np.diag(moments))
        diameter = (6 * count / np.pi) ** (1 / 3) * unit
        field = sign * (volume[wide].astype(float) - level[wide])
        surface, inside = _surface(mine, (labels[wide] > 0) & ~mine, field)
        cut = any(b.start == 0 or b.stop == n for b, n in zip(box, labels.shape, strict=True))
        rows.append(
            {
                "label": label,
                **dict(zip("zyx", centre + [w.start for w in wide], strict=True)),
                "volume": count * unit**3,
                "diameter": diameter,
                "surface": surface * unit**2,
                "sphericity": np.pi ** (1 / 3) * (6 * inside) ** (2 / 3) / surface,
                "length": length,
                "breadth": breadth,
                "thickness": thickness,
                "aspect": length / thickness,
                "tilted": np.degrees(np.arccos(min(1.0, abs(axes[0, 2])))),
                "elongation": z / np.sqrt(y * x),
                "neighbour": np.nan,
                "intensity": volume[wide][mine].mean(dtype=float),
                "whole": float(not cut),
            }
        )
    table = {name: np.array([row[name] for row in rows], float) for name in (rows[0] if rows else NAMES)}
    if len(rows) > 1:
        centres = np.stack([table[axis] for axis in "zyx"], 1)
        table["neighbour"] = np.asarray(KDTree(centres).query(centres, 2)[0])[:, 1] * unit
    return table


def _surface(mine, others, field) -> tuple[float, float]:
    """Area of the isosurface at 0 around the voxels `mine` where no other body is, and the volume inside, in voxels."""
    from scipy.ndimage import binary_dilation
    from skimage.measure import marching_cubes, mesh_surface_area

    # As far below as the body is above: the surface is midway to what is left out.
    low = -field[mine].mean()
    if not low < 0:
        field, low = mine - 0.5, -0.5
    seen = np.pad(np.where(binary_dilation(mine) & ~others, field, low), 1, constant_values=low)
    points, faces = marching_cubes(seen, 0)[:2]
    a, b, c = (points[faces[:, i]].astype(float) for i in range(3))
    inside = abs(np.einsum("ij,ij->", a, np.cross(b, c))) / 6
    return float(mesh_surface_area(points, faces)), float(inside)
