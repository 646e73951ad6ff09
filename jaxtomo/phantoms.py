"""Specimens of known truth that look like the field's: each a pure function `name(shape, seed, ...)` of the shape
`(z, y, x)` of the volume to render, returning `[z, y, x]` float32 intensities per voxel length, about 1 at most.

`__all__` is the list of them. They are analytic (see `jaxtomo.shapes`): the seed chooses the specimen, the shape only
how finely it is sampled, so render at twice the size for `jaxtomo.simulate`. A specimen fills the cube whose side is
the shorter of x and z and stays inside the field of view at every tilt. Classes, for benchmarks:
piecewise-constant (supported_particles, core_shell, porous_support, hollow_particles, chiral), graded (graded_needle,
atoms), textured (tissue).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from importlib import resources

import numpy as np

from .errors import InputError
from .shapes import (
    Body,
    Distance,
    Waves,
    ball,
    ellipsoid,
    grid,
    half_space,
    icosahedron,
    intersection,
    prism,
    random_rotation,
    render,
    rod,
    turned,
    union,
    without,
    wulff,
)

__all__ = [
    "atoms",
    "chiral",
    "core_shell",
    "graded_needle",
    "hollow_particles",
    "porous_support",
    "supported_particles",
    "tissue",
]

Shape = tuple[int, int, int]


def supported_particles(shape: Shape, seed: int = 0, particles: int = 22, support: float = 0.15) -> np.ndarray:
    """Faceted metal particles of two elements on both sides of a thin, wavy, holed film of intensity `support`.

    Sizes are log-normal (median radius 0.06); shapes are truncated octahedra, cuboctahedra, icosahedra, plates, rods
    and balls, each cut flat where it touches the film.
    """
    rng = np.random.default_rng(seed)
    film, surface = _film(rng, thickness=0.05, value=support)
    bodies, placed = [film], []
    for radius in np.sort(np.clip(rng.lognormal(np.log(0.06), 0.4, particles), 0.022, 0.12))[::-1]:
        contact = rng.uniform(0.45, 0.9) * radius
        for _ in range(200):
            where, normal, room = surface(*_in_disc(rng, 0.4), rng.choice([-1, 1], p=[0.3, 0.7]))
            centre = where + contact * normal
            if room > 0.3 * radius and _in_view(centre, 1.3 * radius) and _apart(centre, radius, placed):
                break
        else:
            continue
        placed.append((centre, radius))
        solid = intersection(_crystal(rng, radius), half_space(-normal, contact))
        bodies.append(Body(solid, float(rng.choice([0.75, 1.0])), centre, 2 * radius))
    return render(shape, bodies)


def core_shell(shape: Shape, seed: int = 0, particles: int = 9, shell: float = 0.4) -> np.ndarray:
    """A chain-like aggregate of particles with a bright faceted core, often off-centre, in a shell of `shell`."""
    rng = np.random.default_rng(seed)
    bodies = []
    for centre, radius in _aggregate(rng, rng.uniform(0.085, 0.14, particles)):
        core = rng.uniform(0.5, 0.75) * radius
        off = _direction(rng) * rng.uniform(0, 0.6) * (radius - core)
        outside = ball(radius) if rng.random() < 0.5 else intersection(_wulff(rng, 0.85 * radius), ball(radius))
        inside = intersection(_wulff(rng, 0.85 * core), ball(core))
        bodies += [Body(outside, shell, centre, radius), Body(inside, 1.0, centre + off, core)]
    return render(shape, bodies)


def porous_support(shape: Shape, seed: int = 0, particles: int = 40, support: float = 0.3) -> np.ndarray:
    """A grain of mesoporous support, about half of it pores, with small metal particles on the pore walls.

    The walls are where a random field of one wavelength is positive [Cahn 1965].
    """
    rng = np.random.default_rng(seed)
    bumps, pores = Waves.draw(rng, 0.5, count=40), Waves.draw(rng, 0.17, spread=0.1)

    def grain(x, y, z):
        return np.sqrt(x * x + (y / 1.05) ** 2 + (z / 0.9) ** 2) - 0.385 - 0.025 * np.clip(bumps(x, y, z), -2, 2)

    def walls(x, y, z):
        slope = np.sqrt(sum(g * g for g in pores.gradient(x, y, z)))
        return -pores(x, y, z) / np.maximum(slope, 0.3 * 2 * np.pi / 0.17)

    bodies, placed = [Body(intersection(grain, walls), support)], []
    for radius in rng.uniform(0.016, 0.032, particles):
        for _ in range(100):
            point = rng.uniform(-0.42, 0.42, 3)
            for _ in range(6):  # Newton steps to the wall
                slope = np.array(pores.gradient(*point))
                point = point - np.clip(pores(*point) / (slope @ slope), -1, 1) * slope
            if abs(pores(*point)) < 0.05 and grain(*point) < -0.02 and _apart(point, radius, placed):
                break
        else:
            continue
        placed.append((point, radius))
        bodies.append(Body(_wulff(rng, 0.9 * radius), 1.0, point, 2 * radius))
    return render(shape, bodies)


def hollow_particles(shape: Shape, seed: int = 0, particles: int = 10, support: float = 0.1) -> np.ndarray:
    """Hollow shells and cages on a thin film: closed, open (a hole in the wall), and rattles with a loose yolk."""
    rng = np.random.default_rng(seed)
    film, surface = _film(rng, thickness=0.03, value=support)
    bodies, placed = [film], []
    for radius in np.sort(rng.uniform(0.065, 0.14, particles))[::-1]:
        for _ in range(300):
            where, normal, room = surface(*_in_disc(rng, 0.38), rng.choice([-1, 1]))
            centre = where + 0.95 * radius * normal
            if room > 0.3 * radius and _in_view(centre, radius) and _apart(centre, radius, placed):
                break
        else:
            continue
        placed.append((centre, radius))
        wall = rng.uniform(0.028, 0.042)
        if rng.random() < 0.6:
            outside, inside = ball(radius), ball(radius - wall)
        else:  # a cage: a cube with its corners rounded off
            face, turn = 0.72 * radius, random_rotation(rng)
            outside = turned(intersection(wulff(1.5 * face, 1 / 1.5), ball(radius)), turn)
            inside = turned(intersection(wulff(1.5 * (face - wall), 1 / 1.5), ball(radius - wall)), turn)
        kind = rng.choice(["closed", "open", "rattle"])
        if kind == "open":
            inside = union(inside, rod((0, 0, 0), 2 * radius * _direction(rng), 0.35 * radius))
        bodies.append(Body(without(outside, inside), 0.8, centre, radius))
        if kind == "rattle":
            yolk = 0.35 * radius
            off = 0.7 * (radius - wall - yolk) * _direction(rng)
            bodies.append(Body(_wulff(rng, yolk), 1.0, centre + off, 2 * yolk))
    return render(shape, bodies)


def graded_needle(shape: Shape, seed: int = 0, precipitates: int = 14) -> np.ndarray:
    """A milled needle along the tilt axis: diffuse layers, a radial gradient, diffuse precipitates, a faded surface.

    Nothing in it is constant and no edge is sharp: layers and surface are tanh profiles, precipitates Gaussian.
    """
    rng = np.random.default_rng(seed)
    bumps, waviness = Waves.draw(rng, 0.6, count=40), Waves.draw(rng, 0.5, count=40)
    edges = np.sort(rng.uniform(-0.4, 0.42, 7))
    steps, widths = rng.uniform(0.2, 0.95, 8), rng.uniform(0.012, 0.06, 7)
    tilt = rng.normal(scale=0.1, size=2)
    bend = rng.normal(scale=0.03, size=2)

    def surface(x, y, z):
        """Distance to a cone of round tip."""
        thick = 0.08 + 0.19 * np.sqrt(np.clip((0.45 - y) / 0.9, 0, 1))
        radius = np.hypot(x - bend[0] * y, z - bend[1] * y)
        sides = radius - thick - 0.012 * bumps(x, y, z)
        ends = np.maximum(y - 0.44 + radius**2 / 0.16, -0.45 - y)
        return np.maximum(sides, ends)

    def value(x, y, z):
        height = y + tilt[0] * x + tilt[1] * z + 0.012 * waviness(x, y, z)
        layer = np.full_like(height, steps[0])
        for edge, step, width, before in zip(edges, steps[1:], widths, steps, strict=False):
            layer += (step - before) * 0.5 * (1 + np.tanh((height - edge) / width))
        depth = np.clip(-surface(x, y, z) / 0.2, 0, 1)
        return layer * (0.75 + 0.25 * depth)

    _, (zs, ys, xs) = grid(shape)
    z, y, x = np.ix_(zs, ys, xs)
    volume = value(x, y, z)
    for _ in range(precipitates):
        height, angle = rng.uniform(-0.42, 0.3), rng.uniform(0, 2 * np.pi)
        out = 0.2 * np.sqrt(rng.random() * (0.45 - height) / 0.9)
        sizes, sign = rng.uniform(0.02, 0.05, 3), rng.choice([-0.3, 0.4])
        cx, cy, cz = out * np.cos(angle) + bend[0] * height, height, out * np.sin(angle) + bend[1] * height
        gaussians = (np.exp(-(((p - c) / s) ** 2) / 2) for p, c, s in zip((z, y, x), (cz, cy, cx), sizes, strict=True))
        volume += sign * reduce(np.multiply, gaussians)
    inside = 0.5 * (1 - np.tanh(surface(x, y, z) / 0.012))
    return (np.clip(volume, 0, None) * inside).astype(np.float32)


def atoms(shape: Shape, seed: int = 0, radius_A: float = 10.0, width_A: float = 0.55) -> np.ndarray:
    """A ball of `radius_A` cut at random from a measured CoPdPt metallic glass, each atom a Gaussian.

    `width_A` is the Gaussian's standard deviation (probe and thermal motion), heights go as Z^1.7 (Pt 1, Pd 0.41,
    Co 0.17). The ball's diameter and a margin of 3 `width_A` fill 0.94 of the cube: 0.39 Å voxels at 64³ by default.
    Voxels hold averages over the voxel, exactly. Coordinates: Yang et al., Nature 592, 60 (2021).
    """
    from scipy.special import erf

    rng = np.random.default_rng(seed)
    with np.load(str(resources.files("jaxtomo") / "samples" / "aet_CoPdPt.npz")) as sample:
        places, species = sample["xyz_A"].astype(float), sample["type"].reshape(-1)
    places = places - places.mean(0)
    if not 3 <= radius_A <= 50:
        raise InputError(f"atoms: radius_A is {radius_A}; the measured particle's is about 45. Give 3 to 50.")
    middle = _direction(rng) * rng.random() * max(32 - 0.7 * radius_A, 0)
    near = np.linalg.norm(places - middle, axis=1) < radius_A
    unit = 0.94 / (2 * radius_A + 6 * width_A)
    places, width = (places[near] - middle) @ random_rotation(rng).T * unit, width_A * unit
    height = (np.array([27, 46, 78])[species[near].astype(int) - 1] / 78) ** 1.7

    voxel, sides = grid(shape)
    volume = np.zeros(shape, np.float32)
    for place, peak in zip(places, height, strict=True):
        box, profiles = [], []
        for side, c in zip(sides, place[::-1], strict=True):
            part = slice(*np.searchsorted(side, (c - 5 * width - voxel, c + 5 * width + voxel)))
            bounds = (np.concatenate([side[part] - voxel / 2, side[part][-1:] + voxel / 2]) - c) / (2**0.5 * width)
            box.append(part)
            profiles.append(np.diff(erf(bounds)) * (np.pi / 2) ** 0.5 * width / voxel)
        volume[tuple(box)] += peak * np.einsum("i,j,k->ijk", *profiles)
    return volume


def tissue(shape: Shape, seed: int = 0, cells: int = 24) -> np.ndarray:
    """A pillar of stained neural tissue: cells with bright membranes, granular cytoplasm, mitochondria and vesicles.

    Stain is bright, as in HAADF. The pillar stands along the tilt axis, so that no tilt sees it cut off. Cells are a
    power diagram in a warped, stretched space.
    """
    rng = np.random.default_rng(seed)
    seeds, weights = rng.uniform(-0.5, 0.5, (cells, 3)), rng.uniform(0, 0.03, cells)
    levels = rng.uniform(0.2, 0.48, cells).astype(np.float32)
    turn = random_rotation(rng)
    stretch = turn @ np.diag([1.0, 1.0, 0.55]) @ turn.T
    warp = [Waves.draw(rng, 0.35, count=60) for _ in range(3)]
    grains, clumps = Waves.draw(rng, 0.07, spread=0.4, count=250), Waves.draw(rng, 0.2, spread=0.4)
    bumps = Waves.draw(rng, 0.5, count=40)

    def pillar(x, y, z):
        return np.maximum(np.sqrt(x * x + z * z) - 0.42 - 0.012 * bumps(x, y, z), np.abs(y) - 0.45)

    def cytoplasm(x, y, z):
        warped = np.stack([a + 0.035 * w(x, y, z) for a, w in zip((x, y, z), warp, strict=True)])
        points = np.tensordot(stretch.astype(np.float32), warped, 1)
        owner, wall = _nearest_two(points, (seeds @ stretch).astype(np.float32), weights.astype(np.float32))
        inside = np.clip(levels[owner] + 0.045 * grains(x, y, z) + 0.045 * clumps(x, y, z), 0.02, None)
        return inside + (0.72 - inside) * np.exp(-((wall / 0.015) ** 2))

    bodies = [Body(pillar, cytoplasm)]
    for _ in range(8):
        centre, turn = _in_pillar(rng, 0.33), random_rotation(rng)
        radii, wiggle = rng.uniform([0.045, 0.045, 0.09], [0.065, 0.065, 0.16]), rng.uniform(0, 6)

        def cristae(x, y, z, wiggle=wiggle):
            return 0.58 + 0.12 * np.cos(2 * np.pi * (z / 0.045 + 0.5 * np.sin(x / 0.03 + wiggle)))

        bodies.append(Body(turned(ellipsoid(radii), turn), 0.8, centre, radii.max()))
        bodies.append(Body(turned(ellipsoid(radii - 0.013), turn), turned(cristae, turn), centre, radii.max()))
    for _ in range(3):
        cluster = _in_pillar(rng, 0.3)
        for place, radius in zip(rng.normal(scale=0.045, size=(16, 3)), rng.uniform(0.018, 0.026, 16), strict=True):
            bodies.append(Body(ball(radius), 0.75, cluster + place, radius))
            bodies.append(Body(ball(radius - 0.011), 0.2, cluster + place, radius))
    return render(shape, bodies)


def chiral(shape: Shape, seed: int = 0) -> np.ndarray:
    """A right-handed helix about the tilt axis with a large ball where it starts, at low y, and a small one off axis.

    Right-handed in the coordinates (x, y, z): towards +y the helix turns from z to x. Its mirror image is another
    object, so a wrong sign of the tilt angles or a flipped axis shows. `seed` turns it about its axis (not for 0).
    """
    start = 0.0 if seed == 0 else np.random.default_rng(seed).uniform(0, 2 * np.pi)
    radius, pitch, turns = 0.26, 0.38, 1.75

    def curve(turn):
        angle = 2 * np.pi * turn + start
        return radius * np.sin(angle), pitch * (turn - turns / 2), radius * np.cos(angle)

    def helix(x, y, z):
        turn = (np.arctan2(x, z) - start) / (2 * np.pi)
        turn = np.clip(turn + np.round(y / pitch + turns / 2 - turn), 0, turns)
        # Equal azimuth is near the foot of the perpendicular; a Newton step along the curve goes there.
        cx, cy, cz = curve(turn)
        along = 2 * np.pi * (cz * (x - cx) - cx * (z - cz)) + pitch * (y - cy)
        cx, cy, cz = curve(np.clip(turn + along / (pitch**2 + (2 * np.pi * radius) ** 2), 0, turns))
        return np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) - 0.05

    marker = 0.12 * np.sin(start + 1.0), 0.22, 0.12 * np.cos(start + 1.0)
    return render(
        shape, [Body(helix, 0.7), Body(ball(0.09), 1.0, curve(0.0), 0.09), Body(ball(0.06), 1.0, marker, 0.06)]
    )


def _nearest_two(points, seeds, weights) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest of weighted `seeds` `[n, 3]` to each of `points` `[3, ...]`, and how far its wall is."""
    x, y, z = points
    nearest = np.full_like(x, np.inf)
    second = nearest.copy()
    owner, rival = np.zeros(x.shape, np.int8), np.zeros(x.shape, np.int8)
    for i, ((a, b, c), weight) in enumerate(zip(seeds, weights, strict=True)):
        # |p|² is common to all, so what is left is linear in p
        here = -2 * (a * x + b * y + c * z) + (a * a + b * b + c * c - weight)
        closer, next_closest = here < nearest, here < second
        np.copyto(rival, i, where=next_closest)
        np.copyto(rival, owner, where=closer)
        np.copyto(owner, i, where=closer)
        second = np.minimum(second, np.maximum(nearest, here))
        nearest = np.minimum(nearest, here)
    gap = np.linalg.norm(seeds[:, None] - seeds[None], axis=-1) + np.eye(len(seeds), dtype=np.float32)
    return owner, (second - nearest) / (2 * gap[owner, rival])


def _film(rng: np.random.Generator, thickness: float, value: float) -> tuple[Body, Callable]:
    """A thin wavy film across the beam with an irregular outline and two holes, and its surface.

    `surface(x, y, side)` is the point (x, y, z) above (side 1) or below (-1), the unit normal there, and the distance
    to the nearest rim, negative off the film.
    """
    waves, swells = (
        Waves(w.vectors * (1, 1, 0), w.phases) for w in (Waves.draw(rng, 0.8, 0.3, 12), Waves.draw(rng, 0.5, 0.3, 12))
    )
    bowl, tip_x, tip_y = rng.uniform(-0.5, 0.5), *rng.normal(scale=0.15, size=2)
    lobes = [(k, rng.normal(scale=0.06 / k), rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5)]
    holes = [(*_in_disc(rng, 0.3), rng.uniform(0.04, 0.07)) for _ in range(2)]
    flat = np.zeros((1, 1, 1))

    def middle(x, y):
        """Height of the film's middle and its slopes along x and y."""
        gx, gy, _ = waves.gradient(x, y, flat)
        height = bowl * (x * x + y * y - 0.08) + tip_x * x + tip_y * y + 0.022 * waves(x, y, flat)
        return height, 2 * bowl * x + tip_x + 0.022 * gx, 2 * bowl * y + tip_y + 0.022 * gy

    def half_thickness(x, y):
        return 0.5 * thickness * (1 + 0.2 * swells(x, y, flat))

    def outline(x, y):
        angle, radius = np.arctan2(y, x), np.sqrt(x * x + y * y)
        edge = radius - np.minimum(0.41 * (1 + sum(a * np.cos(k * angle + phase) for k, a, phase in lobes)), 0.43)
        for a, b, hole in holes:
            edge = np.maximum(edge, hole - np.sqrt((x - a) ** 2 + (y - b) ** 2))
        return edge

    def distance(x, y, z):
        height, gx, gy = middle(x, y)
        across = np.abs(z - height) / np.sqrt(1 + gx**2 + gy**2) - half_thickness(x, y)
        return np.maximum(across, outline(x, y))

    def surface(x, y, side):
        at = np.full((1, 1, 1), x), np.full((1, 1, 1), y)
        height, gx, gy = (float(a.item()) for a in middle(*at))
        normal = side * np.array([-gx, -gy, 1.0]) / np.sqrt(1 + gx**2 + gy**2)
        return np.array([x, y, height]) + half_thickness(*at).item() * normal, normal, -outline(*at).item()

    return Body(distance, value), surface


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def _in_disc(rng: np.random.Generator, radius: float) -> tuple[float, float]:
    out, angle = radius * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
    return out * np.cos(angle), out * np.sin(angle)


def _in_pillar(rng: np.random.Generator, radius: float) -> np.ndarray:
    x, z = _in_disc(rng, radius)
    return np.array([x, rng.uniform(-0.35, 0.35), z])


def _in_view(centre, radius: float) -> bool:
    """Whether a ball stays inside the field of view when the specimen turns about y."""
    return max(np.hypot(centre[0], centre[2]), abs(centre[1])) + radius < 0.46


def _apart(centre, radius: float, placed) -> bool:
    return all(np.linalg.norm(centre - c) > 1.1 * (radius + r) for c, r in placed)


def _aggregate(rng: np.random.Generator, radii) -> list[tuple[np.ndarray, float]]:
    """Touching balls of `radii` inside the field of view, each stuck at random to one before it."""
    placed = [(np.zeros(3), float(radii[0]))]
    for radius in radii[1:]:
        for _ in range(300):
            centre, other = placed[rng.integers(len(placed))]
            centre = centre + 0.98 * (other + radius) * _direction(rng)
            free = all(np.linalg.norm(centre - c) > 0.97 * (radius + r) for c, r in placed)
            if free and _in_view(centre, radius):
                placed.append((centre, float(radius)))
                break
    return placed


def _wulff(rng: np.random.Generator, radius: float) -> Distance:
    return turned(wulff(radius, rng.uniform(0.8, 1.2)), random_rotation(rng))


def _crystal(rng: np.random.Generator, radius: float) -> Distance:
    """One of the shapes that metal nanoparticles grow in, about `radius`, turned at random."""
    kind = rng.choice(["wulff", "wulff", "wulff", "icosahedron", "plate", "rod", "ball"])
    if kind == "wulff":
        return _wulff(rng, 0.9 * radius)
    if kind == "ball":
        return ball(radius)
    shape = {
        "icosahedron": icosahedron(0.92 * radius),
        "plate": prism(1.2 * radius, 0.9 * radius),
        "rod": intersection(prism(0.65 * radius, 2.4 * radius, sides=5), ball(1.25 * radius)),
    }[kind]
    return turned(shape, random_rotation(rng))
