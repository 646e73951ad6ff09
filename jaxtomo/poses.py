"""Poses that are learned: which of their parameters may move, how far is to be expected, and what no series can tell.

Three movements of the specimen change all poses together and leave every image as it is. They are taken out of what is
learned, so that no image has to be held fast:

- a shift by (a, c, b) along (x, y, z): a cos θ + b sin θ across the tilt axis, c along it;
- a rotation about the tilt axis: one offset of all tilt angles; about x, where second tilts are learned: one offset of
  all of them; about z, where rotations are learned too: second tilts as tan θ with rotations as 1 / cos θ;
- growth, where magnifications are learned: a common one.

What remains across the axis after the first, a constant above all, is the rotation centre, which the images tell.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from .data import Pose, Problem
from .freedom import Freedom

BLOCK = 8  # pixels: as far as the errors of a model are taken to reach


def movable(problem: Problem, freedom: Freedom) -> dict[str, jax.Array]:
    """The parameters that `freedom` lets move, at rest: pixels by which they move what is at the rim of the field."""
    tilts = problem.pose.tilt.shape[0]
    shapes = {"shift": (tilts, 2), "axis": (), "centre": ()}
    free = [name for name, (known, _) in units(problem).items() if getattr(freedom, known) > 0]
    if "shift" in free and "centre" in free:
        free.remove("centre")
    return {name: jnp.zeros(shapes.get(name, (tilts,))) for name in free}


def _radius(problem: Problem) -> float:
    return max(problem.shape[1], problem.images.shape[-2]) / 2


def _without(values, *curves):
    """`values [tilt]` less their projection onto `curves`, one after the other made orthogonal (Gram-Schmidt)."""
    basis: list[jax.Array] = []
    for curve in curves:
        rest = curve - sum((jnp.sum(b * curve) * b for b in basis), jnp.zeros_like(curve))
        length = jnp.linalg.norm(rest)
        known = length > 1e-4 * (jnp.linalg.norm(curve) + 1e-20)
        basis.append(jnp.where(known, rest / jnp.where(known, length, 1), 0))
    for b in basis:
        values = values - jnp.sum(b * values) * b
    return values


def movement(problem: Problem, moves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`moves` less what they have of the specimen's own movements."""
    tilt = problem.pose.tilt
    ones, steep = jnp.ones_like(tilt), jnp.tan(jnp.clip(tilt, -1.4, 1.4))
    unseen = {"tilt": [ones], "magnification": [ones], "second_tilt": [ones, *([steep] if "rotation" in moves else [])]}
    if "axis" in moves:
        unseen["rotation"] = [ones]
    left = {name: _without(move, *unseen[name]) if name in unseen else move for name, move in moves.items()}
    if "shift" in moves:
        across, along = moves["shift"].T
        across = _without(across, jnp.cos(tilt), jnp.sin(tilt))
        left["shift"] = jnp.stack([across, _without(along, ones)], 1)
    return left


def displaced(problem: Problem, moves: dict[str, jax.Array]) -> Pose:
    """The problem's pose with `moves` made. Shifts are along and across the tilt axis as it lies in the image."""
    pose, radius = problem.pose, _radius(problem)
    nothing = jnp.zeros_like(pose.tilt)
    changes: dict[str, jax.Array] = {}
    if "tilt" in moves:
        changes["tilt"] = pose.tilt + moves["tilt"] / radius
    if "second_tilt" in moves:
        start = nothing if pose.second_tilt is None else pose.second_tilt
        changes["second_tilt"] = start + moves["second_tilt"] / radius
    if "magnification" in moves:
        start = 1.0 if pose.magnification is None else pose.magnification
        changes["magnification"] = start * (1 + moves["magnification"] / radius)
    if "rotation" in moves or "axis" in moves:
        start = nothing if pose.rotation is None else pose.rotation
        changes["rotation"] = start + (moves.get("rotation", nothing) + moves.get("axis", 0.0)) / radius
    if "shift" in moves or "centre" in moves:
        shift = moves.get("shift", jnp.zeros((nothing.shape[0], 2)))
        across, along = shift[:, 0] + moves.get("centre", 0.0), shift[:, 1]
        turned = changes.get("rotation", pose.rotation)
        if turned is not None:
            c, s = jnp.cos(turned), jnp.sin(turned)
            across, along = across * c - along * s, across * s + along * c
        start = 0.0 if pose.shift is None else pose.shift
        changes["shift"] = start + jnp.stack([across, along], 1)
    return pose.replace(**changes)


def carried(pose: Pose, by) -> Pose:
    """The pose of a specimen that was moved by (z, x, y) voxels: its images are where those of the first were."""
    z, x, y = by
    across, along = x * jnp.cos(pose.tilt) + z * jnp.sin(pose.tilt), y + jnp.zeros_like(pose.tilt)
    if pose.rotation is not None:
        c, s = jnp.cos(pose.rotation), jnp.sin(pose.rotation)
        across, along = across * c - along * s, across * s + along * c
    seen = jnp.stack([across, along], 1)
    seen = seen if pose.magnification is None else pose.magnification[:, None] * seen
    return pose.replace(shift=seen if pose.shift is None else pose.shift + seen)


def at_scale(moves: dict[str, jax.Array], old: Problem, new: Problem, factor: float) -> dict[str, jax.Array]:
    """`moves` of one problem as those of another that has `factor` times as many pixels a side, or nearly: what is at
    the rim moves in proportion to how far out that is."""
    rim = _radius(new) / _radius(old)
    return {name: move * (factor if name in ("shift", "centre") else rim) for name, move in moves.items()}


def moved(problem: Problem, moves: dict[str, jax.Array]) -> Pose:
    """The problem's pose with `moves` made, but for what they have of the specimen's own movements."""
    return displaced(problem, movement(problem, moves))


def units(problem: Problem) -> dict[str, tuple[str, float]]:
    """Of every parameter: its name in `Freedom`, and how many pixels at the rim of the field one of its units is."""
    radius = _radius(problem)
    degree = math.radians(radius)
    return {
        "shift": ("shift_px", 1.0),
        "tilt": ("tilt_deg", degree),
        "rotation": ("rotation_deg", degree),
        "second_tilt": ("second_tilt_deg", degree),
        "magnification": ("magnification", radius),
        "axis": ("axis_deg", degree),
        "centre": ("centre_px", 1.0),
    }


def widths(problem: Problem, freedom: Freedom) -> dict[str, float]:
    """Of every parameter the expected standard deviation, in pixels at the rim of the field."""
    return {name: pixels * getattr(freedom, known) for name, (known, pixels) in units(problem).items()}


def surprise(problem: Problem, freedom: Freedom, moves: dict[str, jax.Array]) -> jax.Array:
    """Σ (move / its expected standard deviation)²: twice minus the logarithm of the prior of the poses."""
    expected = widths(problem, freedom)
    total = sum((jnp.sum((move / expected[name]) ** 2) for name, move in moves.items()), jnp.zeros(()))
    if math.isfinite(freedom.jump_px):
        order = jnp.argsort(problem.pose.tilt)
        jumps = [jnp.diff(move[order], axis=0) for move in moves.values() if move.ndim]
        total = total + sum((jnp.sum((jump / freedom.jump_px) ** 2) for jump in jumps), jnp.zeros(()))
    return total


def independent_pixels(residual, weights) -> jax.Array:
    """As how many independent ones the pixels of `residual [tilt, x, y]` count: all of them, where it is white noise;
    where it is a model's error, which neighbours share, fewer.

    N Σ z² / Σ_B (Σ_{i in B} z_i)², z = √w residual and B blocks of 8 × 8 pixels.
    """
    white = (jnp.sqrt(weights) * residual).reshape(-1, *residual.shape[-2:])
    blocks = jax.lax.reduce_window(white, 0.0, jax.lax.add, (1, BLOCK, BLOCK), (1, BLOCK, BLOCK), "VALID")
    pixels = jnp.sum(jnp.broadcast_to(weights, residual.shape) > 0)
    covered = jnp.sum(jax.lax.reduce_window(white**2, 0.0, jax.lax.add, (1, BLOCK, BLOCK), (1, BLOCK, BLOCK), "VALID"))
    shared = jnp.sum(blocks**2) / jnp.maximum(covered, 1e-30)
    return pixels / jnp.clip(shared, 1, BLOCK**2)
