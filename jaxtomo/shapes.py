"""Solid bodies given by their signed distance, random fields, and their rendering on any voxel grid: what phantoms
are made of.

Coordinates are x, y, z from the specimen's centre in units of the shorter of the volume's x and z sides, so that one
description renders on any grid. A distance is a function of three arrays that broadcast together, negative inside;
it need be a true distance only near the surface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from .errors import InputError

Distance = Callable[[Any, Any, Any], np.ndarray]
Vector = Sequence[float] | np.ndarray  # x, y, z


@dataclass(frozen=True)
class Body:
    """One solid of a specimen.

    Attributes:
        distance: signed distance to the surface, of coordinates relative to `centre`.
        value: intensity inside, or a function of the same coordinates.
        centre: x, y, z.
        reach: no part of the body is farther than this from `centre`.
    """

    distance: Distance
    value: float | Distance = 1.0
    centre: Vector = (0.0, 0.0, 0.0)
    reach: float = np.inf


def grid(shape: tuple[int, int, int]) -> tuple[float, list[np.ndarray]]:
    """Voxel size and the coordinates [z, y, x] along the three sides of a volume of `shape` (z, y, x).

    Raises InputError for a shape that is not three positive numbers.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"phantom: shape {tuple(shape)} is not a volume. Give three sizes (z, y, x), all at least 1.")
    voxel = 1.0 / min(shape[0], shape[2])
    return voxel, [((np.arange(n) - (n - 1) / 2) * voxel).astype(np.float32) for n in shape]


def render(shape: tuple[int, int, int], bodies: Iterable[Body]) -> np.ndarray:
    """`[z, y, x]` float32 of `bodies` in vacuum; a later body replaces what it overlaps.

    A voxel that a surface cuts takes the fraction 1/2 - distance/voxel of the body, clipped to 0..1: its volume
    fraction for a face square to an axis, and close to it otherwise, so averaging a finer rendering gives this one.
    """
    voxel, sides = grid(shape)
    volume = np.zeros(shape, np.float32)
    for body in bodies:
        centre, margin = np.asarray(body.centre, np.float32)[::-1], body.reach + voxel
        box = tuple(slice(*np.searchsorted(s, (c - margin, c + margin))) for s, c in zip(sides, centre, strict=True))
        z, y, x = np.ix_(*(s[b] - c for s, b, c in zip(sides, box, centre, strict=True)))
        if min(x.size, y.size, z.size) == 0:
            continue
        inside = np.clip(0.5 - body.distance(x, y, z) / voxel, 0, 1)
        value = body.value(x, y, z) if callable(body.value) else body.value
        part = volume[box]
        part += inside * (value - part)
    return volume


def ball(radius: float) -> Distance:
    return lambda x, y, z: np.sqrt(x * x + y * y + z * z) - radius


def ellipsoid(radii: Vector) -> Distance:
    """|q| (|q| - 1) / |q/r| with q = p/r: the distance to first order, exact on the surface."""
    a, b, c = radii

    def distance(x, y, z):
        size = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2)
        return size * (size - 1) / np.maximum(slope, 1e-6)

    return distance


def rod(start: Vector, end: Vector, radius: float) -> Distance:
    """Round-ended rod between two points."""
    (a, b, c), (u, v, w) = start, np.subtract(end, start)
    square = u * u + v * v + w * w

    def distance(x, y, z):
        x, y, z = x - a, y - b, z - c
        along = np.clip((u * x + v * y + w * z) / square, 0, 1)
        return np.sqrt((x - along * u) ** 2 + (y - along * v) ** 2 + (z - along * w) ** 2) - radius

    return distance


def half_space(normal: Vector, offset: float) -> Distance:
    a, b, c = map(float, normal)
    return lambda x, y, z: a * x + b * y + c * z - offset


def intersection(*parts: Distance) -> Distance:
    return lambda x, y, z: reduce(np.maximum, (part(x, y, z) for part in parts))


def union(*parts: Distance) -> Distance:
    return lambda x, y, z: reduce(np.minimum, (part(x, y, z) for part in parts))


def without(whole: Distance, *holes: Distance) -> Distance:
    return lambda x, y, z: reduce(np.maximum, (-hole(x, y, z) for hole in holes), whole(x, y, z))


def turned(part: Distance, rotation: np.ndarray) -> Distance:
    """`part` turned by the matrix `rotation` (3, 3) about the origin."""
    r = np.asarray(rotation, float).tolist()
    return lambda x, y, z: part(*(r[0][i] * x + r[1][i] * y + r[2][i] * z for i in range(3)))


def wulff(radius: float, cube: float) -> Distance:
    """Crystal of {111} faces at distance `radius` and {100} faces at `cube` times that.

    `cube` 0.58 is a cube, 0.87 a cuboctahedron, 1.15 a truncated octahedron, 1.73 an octahedron.
    """
    faces = [half_space(np.array(n) / 3**0.5, radius) for n in product((-1, 1), repeat=3)]
    faces += [half_space(s * np.eye(3)[i], cube * radius) for i in range(3) for s in (-1, 1)]
    return intersection(*faces)


def icosahedron(radius: float) -> Distance:
    """Faces at distance `radius`: the multiply twinned particle."""
    long, short = (1 + 5**0.5) / 2, 2 / (1 + 5**0.5)
    normals = list(product((-1.0, 1.0), repeat=3))
    for s, t in product((-1, 1), repeat=2):
        normals += [np.roll((0, s * short, t * long), i) for i in range(3)]
    return intersection(*(half_space(np.array(n) / 3**0.5, radius) for n in normals))


def prism(radius: float, height: float, sides: int = 6) -> Distance:
    """Regular prism along z, faces at distance `radius`, `height` between its ends: plates and pentagonal rods."""
    angles = 2 * np.pi * np.arange(sides) / sides
    ends = [half_space((0, 0, s), height / 2) for s in (-1, 1)]
    return intersection(*(half_space((np.cos(a), np.sin(a), 0), radius) for a in angles), *ends)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Uniformly random rotation matrix, from a uniform unit quaternion."""
    a, b, c, d = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)],
        ]
    )


@dataclass(frozen=True)
class Waves:
    """Smooth random field of unit variance: the sum of plane waves cos(k·p + phase) sqrt(2/n).

    The sum is analytic, hence the same at every sampling. On open grids (as from `np.ix_`) it is one matrix product.

    Attributes:
        vectors: `[n, 3]` wave vectors (x, y, z), rad per unit length.
        phases: `[n]` rad.
    """

    vectors: np.ndarray
    phases: np.ndarray

    @staticmethod
    def draw(rng: np.random.Generator, wavelength: float, spread: float = 0.2, count: int = 120) -> Waves:
        """Isotropic waves whose spatial frequency scatters by `spread` (relative) about 1/`wavelength`."""
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        frequency = np.abs(1 + spread * rng.normal(size=(count, 1))) / wavelength
        return Waves(2 * np.pi * frequency * directions, rng.uniform(0, 2 * np.pi, count))

    def __call__(self, x, y, z) -> np.ndarray:
        return self._sum(np.ones(len(self.phases)), x, y, z)

    def gradient(self, x, y, z) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Along x, y, z."""
        gx, gy, gz = (self._sum(1j * self.vectors[:, i], x, y, z) for i in range(3))
        return gx, gy, gz

    def _sum(self, weights, x, y, z):
        """Real part of Σ weights · exp(i (k·p + phase)) · sqrt(2/n)."""
        x, y, z = (np.asarray(a, np.float32) for a in (x, y, z))
        k = self.vectors.astype(np.float32)
        weights = (weights * np.exp(1j * self.phases) * (2 / len(self.phases)) ** 0.5).astype(np.complex64)
        shape = np.broadcast_shapes(x.shape, y.shape, z.shape)
        if len(shape) == 3 and x.shape[:2] == (1, 1) and y.size * z.size * x.size == np.prod(shape):
            phase = (y[..., None] * k[:, 1] + z[..., None] * k[:, 2]).reshape(-1, len(k))
            rows = weights * np.exp(1j * phase)
            columns = np.exp(1j * k[:, :1] * x.reshape(1, -1))
            return (np.real(rows) @ np.real(columns) - np.imag(rows) @ np.imag(columns)).reshape(shape)
        phase = x[..., None] * k[:, 0] + y[..., None] * k[:, 1] + z[..., None] * k[:, 2]
        return (np.exp(1j * phase) @ weights).real
