"""What flows between the parts: Pose, Problem, Reconstruction. Frozen, with shapes and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


@dataclass(frozen=True)
class Reconstruction:
    """A volume, and what is needed to trust it.

    Attributes:
        volume: `[z, y, x]` float32, intensity per voxel length.
        pose: the poses it was computed with (learned ones, where the solver learns them).
        series: the (aligned) tilt series it was computed from; None if the problem was built from bare arrays.
        history: per step, `[step]` arrays by name; always `misfit`.
        metrics: quality numbers by name; curves are arrays. See `jaxtomo.metrics.cross_check`.
        settings: solver, parameters, steps, seed, versions, device, timings: plain JSON values.
        message: why the run stopped, and what to do if that was not wanted.
    """

    volume: np.ndarray
    pose: Pose
    series: TiltSeries | None = None
    history: Mapping[str, np.ndarray] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""

    @property
    def voxel_nm(self) -> float | None:
        return None if self.series is None else self.series.pixel_nm

    def replace(self, **changes) -> Reconstruction:
        return replace(self, **changes)
