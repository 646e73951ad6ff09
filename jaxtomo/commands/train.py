"""`jaxtomo train`: teach a prior from volumes of the kind of specimen that is to be reconstructed."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from ..console import Console, table
from ..errors import InputError
from . import device
from .options import NONE, Numbers, Outcome, Showing, UsageError, required

NETWORKS: dict[str, dict[str, Any]] = {
    "3d": {},
    "slab": {"deep": False, "patch": (8, 1, 1)},
    "slice": {"deep": False, "patch": (1, 2, 2)},
}
"""What a network sees: three dimensions, eight slices as channels, or one slice."""
CARD = "training.json"


@dataclass(frozen=True)
class Train:
    """Train the prior of --method diffusion on volumes; they are sent through a simulated microscope.

    Takes hours on a CPU. Ctrl-C stops it with a checkpoint, and --resume goes on to the same weights.
    """

    kind: Annotated[Literal["score"] | None, Positional, arg(metavar="score", help_behavior_hint=NONE)] = None
    """What is trained: score, the network of --method diffusion."""
    data: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE|FOLDER", help_behavior_hint=NONE)] = ()
    """Volumes of any readable format, or a folder of them; may be given several times. They are binned by two: the
    network learns what is twice as coarse. The last corner of 64³ binned voxels of each is kept for validation, or, if
    they are small, every twentieth volume."""
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint=NONE)] = None
    """The folder of the training; the weights will be in DIR/weights."""
    invert: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """The volumes are dark where there is more matter, as FIB-SEM is: turn that round, as a dark-field image is."""
    network: Annotated[Literal["3d", "slab", "slice"], arg(metavar="3d|slab|slice")] = "3d"
    """What the network sees: three dimensions, eight slices as channels, or slice by slice."""
    channels: Annotated[Numbers, arg(metavar="N,N,N")] = (40, 80, 128)
    """Features of its levels."""
    start: Annotated[str | None, arg(metavar="nano|fibsem|DIR", help_behavior_hint=NONE)] = None
    """Weights to begin with instead of random ones: those that ship, or of an earlier training. The network is theirs,
    and a few hundred steps go far."""
    side: Annotated[int, arg(metavar="N")] = 48
    """Voxels a side of the specimens that are simulated."""
    patch: Annotated[Numbers, arg(metavar="Z,X,Y")] = (48, 32, 32)
    """Voxels of what the network is shown of one."""
    batch: Annotated[int, arg(metavar="N")] = 3
    """Patches in a step; they are shared by all devices if these divide them."""
    steps: Annotated[int, arg(metavar="N")] = 6000
    """Of training."""
    rate: Annotated[float, arg(metavar="NUMBER")] = 1.5e-3
    """The largest step length."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of everything random."""
    resume: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Go on with the training in that folder."""
    showing: Showing = field(default_factory=Showing)


def run(settings: Train, console: Console) -> Outcome:
    required(settings.kind, "score")
    folder = Path(required(settings.out, "--out DIR"))
    if not settings.data:
        raise UsageError("--data is missing.")
    _check(settings)
    files = _files(settings.data)
    asked = _asked(settings, files)
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
    from ..denoising import train_score
    from ..io import read_volume
    from ..priors.score import load

    start = None if settings.start is None else load(settings.start)
    console.say(f"{len(files)} volume{'s' if len(files) > 1 else ''} to learn from")
    volumes = [read_volume(file)[0] for file in files]
    if settings.invert:
        largest = max(volume.max() for volume in volumes)
        volumes = [largest - volume for volume in volumes]
    for file, volume in zip(files, volumes, strict=True):
        if volume.ndim != 3 or min(volume.shape) < 2 * settings.side:
            raise InputError(
                f"{file}: has {' × '.join(map(str, volume.shape))} voxels; --side {settings.side} needs "
                f"{2 * settings.side} along every axis. Give a smaller --side (and --patch), or larger volumes."
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).write_text(json.dumps(asked, indent=1) + "\n")
    began = time.time()
    facts = train_score(
        volumes,
        folder,
        network={**NETWORKS[settings.network], "channels": settings.channels},
        start=start,
        side=settings.side,
        patch=(settings.patch[0], settings.patch[1], settings.patch[2]),
        batch=settings.batch,
        steps=settings.steps,
        rate=settings.rate,
        seed=settings.seed,
        resume=settings.resume,
        card={**asked, "command": " ".join(console.command), **device.describe()},
        say=console.say,
    )
    rows = [
        ("weights", folder / "weights"),
        ("steps", settings.steps),
        ("loss", f"{facts['loss']:.4g}"),
        ("on what was kept", f"{facts['guided']:.4g} told the images, {facts['alone']:.4g} denoising"),
        ("took", f"{(time.time() - began) / 60:.0f} min"),
        ("use it", f"jaxtomo reconstruct FILE --method diffusion --weights {folder / 'weights'}"),
    ]
    return Outcome(f"trained\n{table(rows)}", {"folder": str(folder), **facts})


def _check(settings: Train) -> None:
    for name in ("side", "batch", "steps"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name} {getattr(settings, name)}: give 1 or more.")
    if len(settings.patch) != 3 or min(settings.patch) < 8 or max(settings.patch) > settings.side:
        raise InputError(f"--patch {settings.patch}: give three numbers from 8 to --side, {settings.side}.")
    if not settings.channels or min(settings.channels) < 4 or any(c % 4 for c in settings.channels):
        raise InputError(f"--channels {settings.channels}: give multiples of 4, a number for each level.")
    default = Train()
    if settings.start and (settings.network, settings.channels) != (default.network, default.channels):
        raise InputError("--start: the network is that of the weights. Leave --network and --channels out.")
    if not 0 < settings.rate < 1:
        raise InputError(f"--rate {settings.rate:g}: give a number between 0 and 1.")


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


def _asked(settings: Train, files: list[Path]) -> dict[str, Any]:
    """What the weights depend on."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    names = ("invert", "network", "start", "side", "batch", "steps", "rate", "seed")
    return {
        "data": [file.name for file in files],
        "sha256": digest.hexdigest(),
        **{name: getattr(settings, name) for name in names},
        "channels": list(settings.channels),
        "patch": list(settings.patch),
    }
