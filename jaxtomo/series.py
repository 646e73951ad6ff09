"""The tilt series as measured: images, angles and sizes, each with where it came from. NumPy only, so that
reading and inspecting a file never starts JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from .errors import InputError


@dataclass(frozen=True)
class TiltSeries:
    """Projections of one specimen, the tilt axis along image **y**.

    Attributes:
        images: `[tilt, y, x]` float32, or `[channel, tilt, y, x]` for spectral maps.
        tilt_deg: `[tilt]` degrees, in the order of `images`.
        pixel_nm: pixel size in nm; None when the user said it is unknown (lengths are then in pixels).
        tilt_axis_deg: in-plane angle still left between the tilt axis and y, degrees, counter-clockwise from +y
            as seen with y up (IMOD's `RotationAngle`). Whole quarter turns are already taken out of `images`.
        provenance: for `images`, `tilt_deg`, `pixel_nm`, `tilt_axis` and whatever else was decided: a sentence on
            where it came from.
        source: the file the images came from.
        mask: `[tilt, y, x]` bool, False where a pixel was never measured (a border filled in by an earlier
            alignment or a rotation); None when all were.
        exposure_order: `[tilt]` acquisition order (0 = first exposed), or None when not recorded.
    """

    images: np.ndarray
    tilt_deg: np.ndarray
    pixel_nm: float | None = None
    tilt_axis_deg: float = 0.0
    provenance: Mapping[str, str] = field(default_factory=dict)
    source: str = "memory"
    mask: np.ndarray | None = None
    exposure_order: np.ndarray | None = None

    def __post_init__(self):
        object.__setattr__(self, "tilt_deg", np.asarray(self.tilt_deg, np.float64).reshape(-1))
        if self.images.ndim not in (3, 4):
            raise InputError(
                f"{self.source}: images have shape {self.images.shape}. Give [tilt, y, x] or [channel, tilt, y, x]."
            )
        if self.images.shape[-3] != self.tilt_deg.size:
            raise InputError(
                f"{self.source}: {self.images.shape[-3]} images but {self.tilt_deg.size} angles. "
                "Give one angle an image with angles=... (--angles)."
            )

    def replace(self, **changes) -> TiltSeries:
        return replace(self, **changes)

    def select(self, tilts) -> TiltSeries:
        """The same series with only `tilts` (indices, mask or slice), in that order."""
        return replace(
            self,
            images=self.images[..., tilts, :, :],
            tilt_deg=self.tilt_deg[tilts],
            mask=None if self.mask is None else self.mask[tilts],
            exposure_order=None if self.exposure_order is None else self.exposure_order[tilts],
        )
