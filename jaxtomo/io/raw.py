"""What a reader hands to the door: lazily read images, and every fact the file states, each with its source."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..errors import DoesNotFitError, InputError

# What the format libraries raise on damaged bytes. The names are spelt out so that a mistake of ours stays visible.
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    OverflowError,
    EOFError,
    ArithmeticError,
    AssertionError,
    SyntaxError,
    TokenError,
    BadZipFile,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Fact:
    """A value (angles in degrees, an axis in degrees, a pixel in nm) and the words that say where it was found.

    `beside` is True when it comes from a side file, not from the file with the images.
    """

    value: Any
    source: str
    beside: bool = False


@dataclass(frozen=True)
class Trouble:
    """A fact that is lacking or contradictory, and what the user can do about it."""

    fact: str
    cure: str

    def __str__(self):
        return f"{self.fact} {self.cure}"


@dataclass(frozen=True)
class Images:
    """An array still on disk. `fetch` opens the file, reads the asked box (one slice per axis) and closes it.

    `whole` says that a part costs as much as all of it (compressed in one piece).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[tuple[slice, ...]], np.ndarray]
    whole: bool = False

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        return self.fetch(box)

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)  # Python integers: a damaged header must not wrap around

    def moved(self, *axes: int) -> Images:
        """The same images with their axes in the order `axes`, as `np.transpose` counts them."""
        back = [axes.index(i) for i in range(len(axes))]
        return Images(
            tuple(self.shape[a] for a in axes),
            self.dtype,
            lambda box: self.fetch(tuple(box[b] for b in back)).transpose(axes),
            self.whole,
        )

    def taken(self, which: np.ndarray) -> Images:
        """Only the images `which` (increasing indices along the first axis)."""
        which = np.asarray(which)

        def fetch(box):
            wanted = which[box[0]]
            first = int(wanted[0])
            return self.fetch((slice(first, int(wanted[-1]) + 1), *box[1:]))[wanted - first]

        return Images((which.size, *self.shape[1:]), self.dtype, fetch, self.whole)


@dataclass(frozen=True)
class Raw:
    """One file as found, before anything is decided.

    Attributes:
        path: the file (or folder, or first file of a sequence).
        format, dialect: for a person.
        images: `[tilt, y, x]` or `[channel, tilt, y, x]`; `[z, y, x]` when the file is a volume.
        mask: False where a pixel was never measured, shaped as one channel of `images`.
        angles: facts with `[tilt]` degrees.   axis: facts in degrees, counter-clockwise from +y (y = row index).
        pixel_nm: facts in nm.   order: fact with the acquisition order `[tilt]`.
        convention: the axis that the format's documentation prescribes, used only if nothing states one.
        range: (min, max) as the header states it.   notes: sentences for the provenance of the images.
        files: the files that hold the images, when there are several.   beside: side files that were read.
        transformed: the images were shifted or rotated since they were recorded, so a recorded axis is not theirs.
        unread: side files that could not be read; they matter only if what they hold is needed.
    """

    path: Path
    format: str
    dialect: str
    images: Images
    angles: tuple[Fact, ...] = ()
    axis: tuple[Fact, ...] = ()
    pixel_nm: tuple[Fact, ...] = ()
    order: Fact | None = None
    mask: Images | None = None
    convention: Fact | None = None
    range: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    beside: tuple[str, ...] = ()
    unread: tuple[Trouble, ...] = ()
    transformed: bool = False

    def replace(self, **changes) -> Raw:
        return replace(self, **changes)

    @property
    def name(self) -> str:
        return self.path.name


@contextmanager
def guarded(path: Path, what: str) -> Iterator[None]:
    """Turn what the system and the format libraries raise inside into an InputError that names file, fact and cure."""
    try:
        yield
    except (InputError, DoesNotFitError):
        raise
    except PermissionError as error:
        raise InputError(
            f"{path}: no permission to read it. Ask its owner, or make it readable with chmod u+r."
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"{error.filename or path}: there is no such file. Check the path.") from error
    except MemoryError as error:
        raise DoesNotFitError(
            f"{path}: not enough memory to read it. Read a slab with rows=slice(0, 64), or bin the images first."
        ) from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as {what} ({reason}). The file is damaged, truncated or of an unsupported "
            "variant: copy it again from the microscope, or export it as MRC or TIFF."
        ) from error


def check_held(path: Path, what: str, claimed: int, held: int, *, packed: bool = False) -> None:
    """Raise before a damaged header makes us allocate: `claimed` bytes must be held by `held` bytes on disk.

    zlib packs at most 1032:1, so `packed` data claiming more than that cannot be true either.
    """
    if claimed > held * (1032 if packed else 1):
        raise InputError(
            f"{path}: {what} needs {claimed} bytes, the file holds {held}. It is truncated or its header is damaged: "
            "copy it again from the microscope."
        )
