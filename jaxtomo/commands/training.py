"""What `jaxtomo train score` and `jaxtomo train gan` share: volumes in, a folder that is resumed and never overwritten,
weights and their card out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import UseAppendAction, arg

from ..console import Console, table
from ..errors import InputError
from . import device
from .options import NONE, Outcome, Showing, UsageError, required

CARD = "training.json"


@dataclass(frozen=True)
class Training:
    """What every training is told."""

    data: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE|FOLDER", help_behavior_hint=NONE)] = ()
    """Volumes of any readable format, or a folder of them; may be given several times. They are binned by two: the
    network learns what is twice as coarse. The last corner of 64³ binned voxels of each is kept for validation, or, if
    they are small, every twentieth volume."""
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint=NONE)] = None
    """The folder of the training; the weights will be in DIR/weights."""
    invert: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """The volumes are dark where there is more matter, as FIB-SEM is: turn that round, as a dark-field image is."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of everything random."""
    resume: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Go on with the training in that folder."""
    showing: Showing = field(default_factory=Showing)


def carry_out(
    settings: Any,
    box: tuple[int, int, int],
    asked: Mapping[str, Any],
    teach: Callable[..., dict[str, Any]],
    said: Callable[[dict[str, Any]], tuple[str, str]],
    method: str,
    console: Console,
) -> Outcome:
    """Train on the volumes of `settings`, a `Training`.

    Args:
        settings: of the command.
        box: voxels (z, y, x) that every volume must have, in any order.
        asked: settings that the weights depend on.
        teach: `(volumes, folder, card=..., say=...)` to the facts of the card.
        said: from these to what is said of what was kept.
        method: that uses the weights.
        console: of the command.
    """
    folder = Path(required(settings.out, "--out DIR"))
    if not settings.data:
        raise UsageError("--data is missing.")
    files = _files(settings.data)
    asked = {**_known(settings, files), **asked}
    if settings.resume and (folder / CARD).is_file():
        before = json.loads((folder / CARD).read_text())
        for name, now in asked.items():
            if before.get(name) != now:
                raise InputError(
                    f"{folder}: {name} was {before.get(name)} and is {now} now. Give the same, or a new --out."
                )
    elif not settings.resume and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty. Give a new folder, or --resume a training.")
    device.start()
    from ..io import read_volume

    console.say(f"{len(files)} volume{'s' if len(files) > 1 else ''} to learn from")
    volumes = [read_volume(file)[0] for file in files]
    if settings.invert:
        largest = max(volume.max() for volume in volumes)
        volumes = [largest - volume for volume in volumes]
    for file, volume in zip(files, volumes, strict=True):
        if volume.ndim != 3 or any(n < need for n, need in zip(sorted(volume.shape), sorted(box), strict=True)):
            raise InputError(
                f"{file}: has {' × '.join(map(str, volume.shape))} voxels; {' × '.join(map(str, box))} are needed. "
                "Give a smaller --side, or larger volumes."
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).write_text(json.dumps(asked, indent=1) + "\n")
    began = time.time()
    card = {**asked, "command": " ".join(console.command), **device.describe()}
    facts = teach(volumes, folder, card=card, say=console.say)
    rows = [
        ("weights", folder / "weights"),
        ("steps", facts["steps"]),
        said(facts),
        ("took", f"{(time.time() - began) / 60:.0f} min"),
        ("use it", f"jaxtomo reconstruct FILE --method {method} --weights {folder / 'weights'}"),
    ]
    return Outcome(f"trained\n{table(rows)}", {"folder": str(folder), **facts})


def refuse_below_one(settings: Any, *names: str) -> None:
    """Raises InputError for a setting that is not 1 or more."""
    for name in names:
        if getattr(settings, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(settings, name)}: give 1 or more.")


def refuse_rate(rate: float) -> None:
    """Raises InputError for a step length that is none."""
    if not 0 < rate < 1:
        raise InputError(f"--rate {rate:g}: give a number between 0 and 1.")


def _files(given: tuple[str, ...]) -> list[Path]:
    """Every file that was named, and every file in a folder that was. Raises InputError where there is none."""
    files: list[Path] = []
    for name in given:
        path = Path(name)
        inside = (
            sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith(".")) if path.is_dir() else []
        )
        if not inside and not path.is_file():
            raise InputError(f"--data {name}: {'an empty folder' if path.is_dir() else 'no such file or folder'}.")
        files += inside or [path]
    return files


def _known(settings: Training, files: list[Path]) -> dict[str, Any]:
    """What was learned from, with its checksum."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    names = {"data": [file.name for file in files], "sha256": digest.hexdigest()}
    return {**names, "invert": settings.invert, "seed": settings.seed}
