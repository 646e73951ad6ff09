"""`jaxtomo atoms`: find the atoms of a volume, refine them against the images, tell their species and point defects."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from .. import plan
from ..console import Console, as_json, table
from ..errors import InputError
from . import device, measuring
from .options import NONE, Outcome, Showing, UsageError, refuse_taken, required

FILES = ("atoms.xyz", "atoms.csv", "defects.csv", "summary.json", "atoms.png")


@dataclass(frozen=True)
class FindAtoms:
    """Find the atoms of a volume at atomic resolution: positions, species by intensity, vacancies and other defects.

    The atoms of a run are then refined against its images, in which a missing wedge makes nothing longer; of a file
    there is the volume only. Writes atoms.xyz, which OVITO opens, a table, the defects of the lattice if there is one,
    a figure and a summary.
    """

    volume: Annotated[str | None, Positional, arg(metavar="RUN|FILE", help_behavior_hint=NONE)] = None
    """The folder of a run, or a volume."""
    elements: Annotated[str | None, arg(metavar="SYMBOL,...", help_behavior_hint=NONE)] = None
    """What the specimen is made of, such as Co,Pd,Pt: species are told by intensity, which grows as Z^1.7."""
    species: Annotated[int, arg(metavar="N")] = 1
    """How many species there are, where their elements are not known."""
    threshold: Annotated[float, arg(metavar="NUMBER")] = 0.1
    """Intensity of the faintest atom over that of the bright ones. Lower it to find light elements."""
    apart: Annotated[float, arg(metavar="ANGSTROM")] = 1.5
    """Least distance of two atoms."""
    from_volume: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Do not refine against the images of the run."""
    voxel_nm: Annotated[float | None, arg(metavar="NM", help_behavior_hint="(default: as the file states)")] = None
    """Side of a voxel."""
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: RUN/atoms, or FILE_atoms)")] = None
    """Where to write."""
    overwrite: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Replace results that are there already."""
    showing: Showing = field(default_factory=Showing)


def run(settings: FindAtoms, console: Console) -> Outcome:
    place = Path(required(settings.volume, "RUN or FILE"))
    for name, value in (("voxel-nm", settings.voxel_nm), ("apart", settings.apart), ("threshold", settings.threshold)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"--{name} {value:g}: give a number above 0.")
    if not 1 <= settings.species <= 5:
        raise UsageError(f"--species {settings.species}: give 1 to 5, or their --elements.")
    if settings.elements is not None and settings.species != 1:
        raise UsageError("--species: not beside --elements, which say how many there are.")
    out = Path(settings.out or (place / "atoms" if place.is_dir() else place.with_name(f"{place.stem}_atoms")))
    refuse_taken([out / name for name in FILES], settings.overwrite)
    from .. import atoms, plot
    from ..io.atomic import replacing

    numbers = None
    names: list[str] = []
    if settings.elements is not None:
        words = {word.strip() for word in settings.elements.split(",") if word.strip()}
        names = sorted(words, key=atoms.atomic_number)
        numbers = [atoms.atomic_number(name) for name in names]
    source, volume, voxel_nm, problem = _read(place, settings)
    tilts = 0 if problem is None else problem.images.shape[0]
    plan.require_for_atoms(volume.shape, tilts, device.memory().host, str(source))
    console.say(f"{source}: looking for atoms in {' × '.join(map(str, volume.shape))} voxels")
    try:
        found = atoms.find(volume, voxel_nm, threshold=settings.threshold, apart=settings.apart)
        traced = len(found.positions)
        if problem is not None:
            console.say(f"{traced} atoms; refining them against {problem.images.shape[0]} images")
            found = atoms.refine(problem, found, threshold=settings.threshold, apart=settings.apart)
        found = atoms.species(found, len(names) or settings.species, numbers)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    lacking = atoms.defects(found) if len(found.positions) >= 20 else None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror}. Give another --out.") from error
    voxel = 10 * voxel_nm
    size = [voxel * n for n in volume.shape[::-1]]
    counts = [int((found.species == k).sum()) for k in range(len(names) or settings.species)]
    defects = {} if lacking is None else {str(k): int((lacking.kind == k).sum()) for k in sorted(set(lacking.kind))}
    message = "too few atoms to tell a lattice." if lacking is None else lacking.message
    document = {
        "source": str(source),
        "voxel_nm": voxel_nm,
        "threshold": settings.threshold,
        "apart_A": settings.apart,
        "refined": problem is not None,
        "likelihood": None if problem is None else problem.likelihood.__qualname__.split(".")[0],
        "found_in_volume": traced,
        "atoms": len(found.positions),
        "elements": names,
        "species": counts,
        "confidence": float(found.confidence.mean()),
        "width_A": float(found.width[0]),
        "position_error_A": [float(e) for e in _median(found.position_error)] if problem is not None else None,
        "lattice": message,
        "defects": defects,
    }
    atoms.write_xyz(out / "atoms.xyz", found, names, size, f"jaxtomo atoms {source}")
    atoms.write_table(out / "atoms.csv", found)
    if lacking is None:
        (out / "defects.csv").unlink(missing_ok=True)  # of an earlier run
    else:
        atoms.write_defects(out / "defects.csv", lacking)
    with replacing(out / "atoms.png") as partial:
        shown = [names[k] if names else f"species {k}" for k in range(len(counts))]
        plot.atoms(volume, found.positions / voxel, found.species, found.amplitude, shown).savefig(
            partial, format="png", dpi=150, facecolor="white"
        )
    with replacing(out / "summary.json") as partial:
        partial.write_text(as_json(document) + "\n")
    rows = [("atoms", len(found.positions)), *zip(shown, counts, strict=True)]
    rows += [("mean probability of a species", f"{document['confidence']:.3f}")] if len(counts) > 1 else []
    rows += [("width", f"{document['width_A']:.3g} Å")]
    if problem is not None:
        x, y, z = _median(100 * found.position_error)
        rows += [("noise leaves open, at least", f"{x:.2g}, {y:.2g}, {z:.2g} pm in x, y, z")]
    rows += [("lattice", message.removesuffix(".")), *((f"{kind} defects", n) for kind, n in defects.items())]
    return Outcome(f"atoms of {source}\n{table([*rows, ('written to', out)])}", {**document, "folder": str(out)})


def _median(errors):
    import numpy as np

    return np.median(errors, 0)


def _read(place: Path, settings: FindAtoms) -> tuple[Path, Any, float, Any]:
    """(file, volume, side of a voxel in nm, what to refine against)."""
    source, volume, voxel_nm, result = measuring.find(place, settings.voxel_nm)
    if not voxel_nm:
        raise InputError(
            f"{source}: the side of a voxel is not known, and atoms are apart by Å. Give it with --voxel-nm."
        )
    if result is None:
        return source, volume, voxel_nm, None
    if settings.from_volume or result.series is None:
        return source, result.volume, voxel_nm, None
    nz, ny, nx = result.volume.shape
    if result.series.images.shape[1] != ny:
        raise InputError(
            f"{source}: the volume has {ny} rows, its images {result.series.images.shape[1]}. Add --from-volume."
        )
    from .. import likelihood
    from ..data import Problem

    name = result.settings.get("likelihood", "gaussian")
    models = {"poisson": likelihood.poisson, "robust": likelihood.robust, "gaussian": likelihood.gaussian}
    noise = models[name]() if name in models else likelihood.fitted_intensity(likelihood.gaussian())
    problem = Problem(result.series, result.pose, noise, thickness=nz, width=nx)
    return source, result.volume, voxel_nm, problem.replace(voxel_nm=voxel_nm)
