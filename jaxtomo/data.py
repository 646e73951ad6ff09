"""What flows between the parts: Pose, Problem, Reconstruction. Frozen, with shapes and units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .errors import InputError
from .series import TiltSeries


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pose:
    """How each tilt saw the specimen. A parameter that is None is nominal, and costs nothing.

    A specimen point r = (x, y, z), measured from the rotation centre, is seen at (u, v) from the detector's centre:

        (X, Y, ·) = R_y(tilt) R_x(second_tilt) r
        (u, v)    = magnification · R(rotation) (X, Y) + shift

    with R_y(θ): X = x cos θ + z sin θ; R_x(β): Y = y cos β - z sin β; R(φ): u = X cos φ - Y sin φ,
    v = X sin φ + Y cos φ.

    Attributes:
        tilt: `[tilt]` rad, about y.
        shift: `[tilt, 2]` pixels, (u across the tilt axis, v along it).
        rotation: `[tilt]` rad, in the image plane.
        magnification: `[tilt]`.
        second_tilt: `[tilt]` rad, of the specimen about its x, before `tilt`.
    """

    tilt: jax.Array
    shift: jax.Array | None = None
    rotation: jax.Array | None = None
    magnification: jax.Array | None = None
    second_tilt: jax.Array | None = None

    @staticmethod
    def nominal(tilt_deg) -> Pose:
        """The pose of a perfect microscope at these angles in degrees."""
        return Pose(jnp.asarray(np.deg2rad(np.asarray(tilt_deg, np.float64)), jnp.float32))

    def replace(self, **changes) -> Pose:
        return replace(self, **changes)

    def select(self, tilts) -> Pose:
        """The same pose with only `tilts`."""
        return jax.tree.map(lambda a: a[tilts], self)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, init=False)
class Problem:
    """What is asked of a solver: measured images, how they were taken, and how much each pixel is believed.

    Arrays are in the axes of the kernels, tilt axis last, transposed here once. A pytree, so an argument of jitted
    functions; `series` does not travel into them.

    Attributes:
        images: `[tilt, x, y]` float32, or `[channel, tilt, x, y]` of a series with several channels, which `fit` and
            the methods made of it reconstruct together, as a volume `[channel, z, x, y]`.
        weights: broadcasts against `images`; 0 where a pixel says nothing (unmeasured, held out, or looking past the
            end of the volume along the tilt axis).
        pose: how each tilt saw the specimen.
        likelihood: `(predicted, measured, weights) -> misfit`; see `jaxtomo.likelihood`.
        shape: (nz, nx, ny) of the volume.
        footprint: of the projector.
        voxel_nm: size of a voxel; None if it is not known.
        series: where the images came from.
        mesh: the devices that share the work, or None for one; see `jaxtomo.parallel.split`.
    """

    images: jax.Array
    weights: jax.Array
    pose: Pose
    likelihood: Callable
    shape: tuple[int, int, int]
    footprint: Any
    voxel_nm: float | None
    series: TiltSeries | None
    mesh: jax.sharding.Mesh | None

    def __init__(
        self,
        series: TiltSeries,
        pose: Pose | None = None,
        likelihood: Callable | None = None,
        *,
        weights=None,
        thickness: int | None = None,
        width: int | None = None,
        footprint=None,
        rows: slice | None = None,
    ):
        """Pose a reconstruction problem.

        Args:
            series: the (aligned) tilt series.
            pose: by default nominal at the series' angles and tilt axis.
            likelihood: by default `jaxtomo.gaussian()`.
            weights: extra weights, `[tilt]` or `[tilt, y, x]`.
            thickness: voxels along the beam, nz; by default that of the width.
            width: voxels across the tilt axis, nx; by default that of the detector.
            footprint: by default `jaxtomo.projector.trapezoid`.
            rows: which rows of the images this is about, where several hosts hold a part each; by default all. Only
                they are read from a series that is on disk.
        """
        from .likelihood import gaussian
        from .projector import trapezoid

        tilts, height, detector = series.images.shape[-3:]
        rows = slice(0, height) if rows is None else rows
        images = np.asarray(series.images[..., rows, :])
        if pose is None:
            pose = Pose.nominal(series.tilt_deg)
            if series.tilt_axis_deg:
                pose = pose.replace(rotation=jnp.full(tilts, np.deg2rad(series.tilt_axis_deg), jnp.float32))
        if pose.tilt.shape[0] != tilts:
            raise InputError(f"{series.source}: {tilts} images but {pose.tilt.shape[0]} poses. Give one pose an image.")
        if not np.isfinite(images).all():
            bad = int((~np.isfinite(images)).sum())
            raise InputError(f"{series.source}: {bad} pixels are NaN or infinite. Read it with fill_nan=True.")
        believed = np.ones((tilts, 1, 1), np.float32)
        if series.mask is not None:
            believed = believed * np.asarray(series.mask[:, rows]).swapaxes(1, 2)
        if pose.shift is not None:
            row = np.arange(rows.start, rows.stop) - np.asarray(pose.shift)[:, 1, None]
            believed = believed * ((row >= 0) & (row <= height - 1))[:, None, :]
        if weights is not None:
            weights = np.asarray(weights, np.float32)
            if not (np.isfinite(weights).all() and (weights >= 0).all()):
                raise InputError(f"{series.source}: weights are negative or not finite. Give 0 for what says nothing.")
            believed = believed * (weights[:, None, None] if weights.ndim == 1 else weights[:, rows].swapaxes(1, 2))
        width = detector if width is None else width
        self._set(
            jnp.asarray(np.ascontiguousarray(images.swapaxes(-2, -1)), jnp.float32),
            jnp.asarray(believed, jnp.float32),
            pose,
            likelihood=gaussian() if likelihood is None else likelihood,
            shape=(width if thickness is None else thickness, width, rows.stop - rows.start),
            footprint=trapezoid if footprint is None else footprint,
            voxel_nm=series.pixel_nm,
            series=series,
            mesh=None,
        )

    def _set(self, images, weights, pose, **rest):
        for name, value in {"images": images, "weights": weights, "pose": pose, **rest}.items():
            object.__setattr__(self, name, value)

    def tree_flatten(self):
        static = (self.likelihood, self.shape, self.footprint, self.voxel_nm, self.mesh)
        return (self.images, self.weights, self.pose), static

    @classmethod
    def tree_unflatten(cls, static, arrays):
        names = ("likelihood", "shape", "footprint", "voxel_nm", "mesh")
        problem = object.__new__(cls)
        problem._set(*arrays, **dict(zip(names, static, strict=True)), series=None)
        return problem

    def replace(self, **changes) -> Problem:
        problem = object.__new__(Problem)
        problem._set(**{f.name: changes.get(f.name, getattr(self, f.name)) for f in fields(self)})
        return problem

    @property
    def volume_shape(self) -> tuple[int, ...]:
        """(nz, nx, ny), with the channels before them where there are several."""
        return (*self.images.shape[:-3], *self.shape)

    def project(self, volume) -> jax.Array:
        """Predicted `images` of `volume [z, x, y]`, or of each channel of one."""
        from .projector import forward

        if volume.ndim == 4:
            return jax.lax.map(self.project, volume)
        return forward(volume, self.pose, self.images.shape[-2], self.footprint, self.mesh)

    def back_project(self, images) -> jax.Array:
        """The exact adjoint of `project`."""
        from .projector import adjoint

        if images.ndim == 4:
            return jax.lax.map(self.back_project, images)
        return adjoint(images, self.pose, self.shape[:2], self.footprint, self.mesh)

    def explained(self, predicted) -> jax.Array:
        """`predicted` with whatever nuisances the likelihood fits, such as gain and offset, applied."""
        fitted = getattr(self.likelihood, "explained", None)
        return predicted if fitted is None else each_channel(fitted)(predicted, self.images, self.weights)

    def misfit(self, predicted):
        """(relative residual norm, -∂ likelihood / ∂ predicted): what a person watches, and what is back-projected."""
        slope = jax.grad(lambda p: each_channel(self.likelihood)(p, self.images, self.weights).sum())(predicted)
        residual = jnp.sum(self.weights * (self.explained(predicted) - self.images) ** 2)
        return jnp.sqrt(residual / (jnp.sum(self.weights * self.images**2) + jnp.finfo(jnp.float32).tiny)), -slope

    def curvature(self):
        """∂² likelihood / ∂ predicted² of each pixel where it is predicted as measured: the weights, for a Gaussian."""
        slope = jax.grad(self.likelihood)
        ones = jnp.ones_like(self.images)
        return jax.jvp(lambda predicted: slope(predicted, self.images, self.weights), (self.images,), (ones,))[1]


def each_channel(function: Callable) -> Callable:
    """A function of (predicted, measured, weights), `[tilt, x, y]` each, that also takes several channels of the first
    two, `[channel, tilt, x, y]`, and then gives a result for each."""

    def of_each(predicted, measured, weights):
        if measured.ndim == 3:
            return function(predicted, measured, weights)
        return jax.vmap(function, (0, 0, 0 if weights.ndim == 4 else None))(predicted, measured, weights)

    return of_each


@dataclass(frozen=True)
class Reconstruction:
    """A volume, and what is needed to trust it.

    Attributes:
        volume: `[z, y, x]` float32, intensity per voxel length; `[channel, z, y, x]` of several channels.
        pose: the poses it was computed with (learned ones, where the solver learns them).
        series: the (aligned) tilt series it was computed from; None if the problem was built from bare arrays.
        history: per step, `[step]` arrays by name; always `misfit`.
        metrics: quality numbers by name; curves are arrays. See `jaxtomo.validate.cross_check`.
        settings: solver, parameters, steps, key, versions, device, timings: plain JSON values.
        message: why the run stopped, and what to do if that was not wanted.
        samples: `[sample, z, y, x]` float32, of an ensemble or of a posterior, two or more; None if there is the one
            volume only. `volume` need not be their mean.
    """

    volume: np.ndarray
    pose: Pose
    series: TiltSeries | None = None
    history: Mapping[str, np.ndarray] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    samples: np.ndarray | None = None

    @property
    def spread(self) -> np.ndarray | None:
        """`[z, y, x]`, the standard deviation of every voxel over the samples."""
        return None if self.samples is None else self.samples.std(0, ddof=1)

    @property
    def voxel_nm(self) -> float | None:
        return None if self.series is None else self.series.pixel_nm

    def replace(self, **changes) -> Reconstruction:
        return replace(self, **changes)
