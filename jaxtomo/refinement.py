"""Joint refinement of poses: volume and poses learned from one misaligned series, first on binned images, then finer.

Its poses serve any method: `refine` comes after `align` and before `reconstruct`. The volume that it learns beside them
is one of squared voxels with a total variation of the root. Its prior is strong while the poses settle, so that the
volume does not explain what they do wrong, and weak in the end, so that it does not bend them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .curvature import uncertainty
from .data import Pose, Problem
from .errors import InputError
from .freedom import ALL, Freedom
from .poses import at_scale, movable, moved, movement, units
from .priors.voxels import root_voxels
from .solve import reconstruct
from .solvers.fit import falling_adam, fit
from .solvers.tvq import count_weights

COARSEST, FINEST = 24, 128  # pixels: longest side of the images at the first and, at most, at the last level
WEIGHT, COARSE_WEIGHT = 0.1, 0.3  # of the penalty at the finest level, and at those before, where poses settle
COARSE_STEPS = 3  # times as many steps at those, which cost little
RATE, POSE_RATE = 0.1, 0.1  # of Adam: of the voxels, and of the poses in pixels
WAITING = 30  # steps before the poses of the first level move


@dataclass(frozen=True)
class Refined:
    """What `refine` found.

    Attributes:
        pose: of every tilt.
        error: the standard deviation of what was learned, by the names of `Freedom`'s parameters: `shift_px`
            `[tilt, 2]`, `tilt_deg` `[tilt]`, …, `axis_deg` a number; see `curvature.uncertainty`.
        change: by how much each of them was changed, likewise.
        history: per step of the last level, `[step]` arrays by name.
        message: why it ended.
    """

    pose: Pose
    error: Mapping[str, np.ndarray]
    change: Mapping[str, np.ndarray]
    history: Mapping[str, np.ndarray]
    message: str

    def plain(self) -> dict[str, Any]:
        """What was learned, a line of numbers each, for `Reconstruction.settings["alignment"]`."""
        lines: dict[str, Any] = {}
        for kind, values in (("refined", self.change), ("error", self.error)):
            for name, value in values.items():
                if np.ndim(value) == 2:
                    lines |= {f"{kind}_shift_{axis}_px": value[:, i].tolist() for i, axis in enumerate("uv")}
                else:
                    lines[f"{kind}_{name}"] = np.asarray(value).tolist()
        return lines


def pose_table(pose: Pose, learned: Mapping[str, Any]) -> str:
    """The pose of every tilt as comma-separated values with a heading, and what `learned`, of `Refined.plain`, says is
    left open of it."""
    tilt = np.asarray(pose.tilt)
    columns = {"tilt_deg": np.rad2deg(tilt)}
    if pose.shift is not None:
        columns |= {f"shift_{axis}_px": np.asarray(pose.shift)[:, i] for i, axis in enumerate("uv")}
    for name in ("rotation", "second_tilt"):
        if getattr(pose, name) is not None:
            columns[f"{name}_deg"] = np.rad2deg(getattr(pose, name))
    if pose.magnification is not None:
        columns["magnification"] = np.asarray(pose.magnification)
    columns |= {name: np.broadcast_to(v, tilt.shape) for name, v in learned.items() if name.startswith("error_")}
    rows = zip(*columns.values(), strict=True)
    return "\n".join([",".join(columns), *(",".join(f"{value:.6g}" for value in row) for row in rows)]) + "\n"


def refine(
    problem: Problem,
    freedom: Freedom = ALL,
    *,
    steps: int = 300,
    key: jax.Array | None = None,
    callbacks: Callable[[int], Sequence[Callable]] = lambda binning: (),
) -> Refined:
    """The poses of a series that is aligned coarsely, by gradient, together with its volume.

    Args:
        problem: the series with the pose to start from. Its likelihood decides what outliers and jumps of intensity
            do: `fitted_intensity(gaussian())` lets every image have its own gain and offset.
        freedom: what of the poses may move, and how far they are expected to be wrong.
        steps: of the finest level, at 128 pixels a side or less; each before it has half the pixels, down to 24, and
            three times the steps.
        callbacks: from the binning of a level to what watches its run; see `jaxtomo.callbacks`.

    Raises InputError for a single tilt, several channels, or a problem that is split over devices.
    """
    if problem.images.ndim == 4:
        raise InputError("several channels: poses are refined with one. Choose one channel, or their sum.")
    if problem.mesh is not None:
        raise InputError("poses are refined on one device. Refine them first, then split the problem.")
    if problem.images.shape[0] < 2:
        raise InputError("one image: there is nothing to refine its pose by. Give at least two tilts.")
    if not movable(problem, freedom):
        raise InputError(f"{freedom}: leaves nothing to refine. Free something, shift_px for example.")
    longest = max(problem.images.shape[1:])
    factors = [-(-longest // FINEST)]
    while longest // (2 * factors[0]) >= COARSEST:
        factors.insert(0, 2 * factors[0])
    moves: dict[str, jax.Array] = {}
    root: Any = None
    before = coarse = problem
    for level, factor in enumerate(factors):
        coarse = coarser(problem, factor)
        last = level == len(factors) - 1
        count = steps if last else COARSE_STEPS * steps
        solver = fit(
            root_voxels(WEIGHT if last else COARSE_WEIGHT),
            falling_adam(RATE, count),
            falling_adam(POSE_RATE, count, min(WAITING, count // 3) if level == 0 else 0),
            freedom,
            pixel_weights=count_weights,
            settings={"method": "refine", "binning": factor},
            steps=count,
        )
        state = solver.init(coarse, key if key is not None else jax.random.key(0))
        if moves:
            state["moves"] = at_scale(moves, before, coarse, 2)
            state["parameters"]["root"][...] = _finer(root, coarse.shape)
        found: dict[str, Any] = {}
        keep = _keeper(found)
        result = reconstruct(
            coarse, solver, count, key=key, callbacks=(*callbacks(factor), keep), resume=(0, state, {}), assess=False
        )
        moves, root, before = found["state"]["moves"], found["state"]["parameters"]["root"][...], coarse
        if not all(np.isfinite(move).all() for move in moves.values()):
            raise InputError(
                f"the poses left the finite numbers ({result.message}). Align the series first, or free less."
            )
    errors = uncertainty(coarse, freedom, jnp.asarray(result.volume.swapaxes(1, 2)), moves)
    scaled = at_scale(moves, coarse, problem, factor)
    error = {name: value * (factor if name.endswith("px") else 1) for name, value in errors.items()}
    change = {
        units(problem)[name][0]: np.asarray(move / units(problem)[name][1])
        for name, move in movement(problem, scaled).items()
    }
    return Refined(moved(problem, scaled), error, change, result.history, result.message)


def _keeper(found: dict[str, Any]) -> Callable:
    def keep(now):
        if now.message is not None:
            found["state"] = now.state

    return keep


def _finer(volume, shape: tuple[int, int, int]):
    """`volume` interpolated to twice as many voxels, cut to `shape`."""
    return jax.image.resize(volume, [2 * n for n in volume.shape], "linear")[tuple(slice(0, n) for n in shape)]


def coarser(problem: Problem, factor: int) -> Problem:
    """The same problem on images binned `factor`-fold, padded behind by pixels without weight where they do not divide.

    Intensities are per voxel length, and of these `factor` times fewer go into a ray sum.
    """
    if factor == 1:
        return problem

    def blocks(images):
        padding = [(0, 0), *((0, -n % factor) for n in images.shape[1:])]
        tilts, nx, ny = (padded := jnp.pad(images, padding)).shape
        return padded.reshape(tilts, nx // factor, factor, ny // factor, factor).sum((2, 4))

    weights = jnp.broadcast_to(problem.weights, problem.images.shape)
    total = blocks(weights)
    images = blocks(weights * problem.images) / jnp.maximum(total, 1e-12) / factor
    # Of a block with too many pixels that say nothing the mean over the others is not that of all.
    whole = blocks(jnp.asarray(weights > 0, jnp.float32)) > 0.7 * factor**2
    _, nx, ny = problem.images.shape
    shape = [-(-n // factor) for n in problem.shape]
    extra = jnp.array([-nx % factor, -ny % factor]) / 2  # how far padding has moved the centre, pixels
    pose, tilts = problem.pose, problem.pose.tilt.shape[0]
    shift = jnp.zeros((tilts, 2)) if pose.shift is None else pose.shift
    along = jnp.zeros(tilts) + extra[1]
    turned, grown = pose.rotation, 1.0 if pose.magnification is None else pose.magnification
    if turned is None:
        seen = jnp.stack([jnp.zeros(tilts), grown * along], 1)
    else:
        seen = jnp.stack([-grown * along * jnp.sin(turned), grown * along * jnp.cos(turned)], 1)
    shift = (shift + seen - extra) / factor
    return problem.replace(
        images=images,
        weights=total / factor**2 * whole,
        pose=pose.replace(shift=shift),
        shape=tuple(shape),
        voxel_nm=None if problem.voxel_nm is None else factor * problem.voxel_nm,
        series=None,
    )
