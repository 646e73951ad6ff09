"""What of the poses may be learned, and how far it is expected to be wrong. Free of JAX, for the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True)
class Freedom:
    """What is learned of the poses: the standard deviation that is expected of each parameter before the images are
    seen. 0 leaves it alone, `inf` is for one of which nothing is known.

    Attributes:
        shift_px: of each tilt, along each image axis.
        tilt_deg: of each tilt angle. Encoders are good to 0.1°, holders often worse.
        rotation_deg: of each image in its plane, beside that of the axis.
        second_tilt_deg: of each tilt about x.
        magnification: of each image, relative to 1.
        axis_deg: of the direction of the tilt axis: one rotation of all images.
        centre_px: of the rotation centre: one shift of all images across the axis. Part of free shifts.
        jump_px: of what one tilt has moved from the next, in pixels at the rim of the field, where drift is smooth.
    """

    shift_px: float = math.inf
    tilt_deg: float = 0.0
    rotation_deg: float = 0.0
    second_tilt_deg: float = 0.0
    magnification: float = 0.0
    axis_deg: float = 0.0
    centre_px: float = 0.0
    jump_px: float = math.inf

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value >= 0:
                raise InputError(f"Freedom: {name} is {value}. Give a standard deviation, 0 for none, or inf.")
        if self.jump_px == 0:
            raise InputError("Freedom: jump_px is 0, so nothing could move. Give pixels above 0, or inf.")

    @property
    def expects(self) -> bool:
        """Whether anything that may move is expected within bounds."""
        return any(0 < value < math.inf for value in vars(self).values())


ALL = Freedom(tilt_deg=0.3, axis_deg=math.inf)
"""What the alignment of a real series leaves open: shifts, the axis, and the angles that an encoder cannot know."""

USUAL = {
    "shift": math.inf,
    "axis": math.inf,
    "centre": math.inf,
    "tilt": 0.1,
    "rotation": 0.1,
    "second-tilt": 0.1,
    "magnification": 0.002,
    "jump": 0.5,
}
"""Parameters by the names they have on the command line, and what is expected of each if it is only named."""


UNITS = {"shift": "_px", "centre": "_px", "jump": "_px", "magnification": ""}


def freedom(text: str) -> Freedom:
    """The `Freedom` that a text such as `shift,axis,tilt=0.3` asks for, in pixels and degrees.

    Raises InputError for a name or a number that there is not.
    """
    asked = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, given, number = part.partition("=")
        if name not in USUAL:
            raise InputError(
                f"{text}: there is no {name!r}. Take some of {', '.join(USUAL)}, as in shift,axis,tilt=0.3."
            )
        try:
            asked[name] = float(number) if given else USUAL[name]
        except ValueError:
            raise InputError(f"{text}: {number!r} is no number. Write {name}={min(USUAL[name], 1.0):g}.") from None
    if not {*asked} - {"jump"}:
        raise InputError(f"{text!r}: names nothing to refine. Write shift,axis, for example.")
    if not any(width for name, width in asked.items() if name != "jump"):
        raise InputError(f"{text!r}: leaves everything as it is. Write shift,axis, for example.")
    known = {name: name.replace("-", "_") + UNITS.get(name, "_deg") for name in asked}
    return Freedom(**{"shift_px": 0.0} | {known[name]: width for name, width in asked.items()})
