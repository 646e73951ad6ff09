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
from . import device
from .measuring import Measuring, find
from .options import NONE, Outcome, Showing, UsageError, required

FILES = ("atoms.xyz", "atoms.csv", "defects.csv", "summary.json", "atoms.png")


@dataclass(frozen=True)
class FindAtoms:
    """Find the atoms of a volume at atomic resolution: positions, species by intensity, vacancies and other defects.

    The atoms of a run are then refined against its images, in which a missing wedge makes nothing longer; of a file
    there is the volume only. Particles of more than some thousand atoms want a sharper volume than few steps of sirt:
    `--method root-tv --weight 0.01`. Writes atoms.xyz, which OVITO opens, a table, the defects of the lattice if there
    is one, a figure and a summary.
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
    measuring: Measuring = field(default_factory=Measuring)
    showing: Showing = field(default_factory=Showing)


def run(settings: FindAtoms, console: Console) -> Outcome:
    place = Path(required(settings.volume, "RUN or FILE"))
    for name, value in (("apart", settings.apart), ("threshold", settings.threshold)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"--{name} {value:g}: give a number above 0.")
    if not 1 <= settings.species <= 5:
        raise UsageError(f"--species {settings.species}: give 1 to 5, or their --elements.")
    if settings.elements is not None and settings.species != 1:
        raise UsageError("--species: not beside --elements, which say how many there are.")
    out = settings.measuring.folder(place, "atoms", FILES)
    from .. import atoms, plot
    from ..io.atomic import replacing_all

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
        share = atoms.explained(volume, voxel_nm, found)
        if share < atoms.CONVINCING:
            console.warn(
                f"the atoms explain {100 * share:.0f} % of the detail in {source}. Noise, which has none, can look so; "
                "atoms that are clearly seen explain 80 % or more. Look at atoms.png before you trust them."
            )
        if problem is not None:
            console.say(f"{traced} atoms; refining them against {problem.images.shape[0]} images")
            found = atoms.refine(problem, found, threshold=settings.threshold, apart=settings.apart)
        found = atoms.species(found, len(names) or settings.species, numbers)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    lacking = atoms.defects(found) if len(found.positions) >= 20 else None
    document = {
        "source": str(source),
        "voxel_nm": voxel_nm,
        "threshold": settings.threshold,
        "apart_A": settings.apart,
        "refined": problem is not None,
        "likelihood": None if problem is None else problem.likelihood.__qualname__.split(".")[0],
        "found_in_volume": traced,
        "explained": share,
        "elements": names,
        **_facts(found, lacking, len(names) or settings.species),
    }
    voxel, size = 10 * voxel_nm, [10 * voxel_nm * n for n in volume.shape[::-1]]
    shown = names or [f"species {k}" for k in range(settings.species)]
    figure = plot.atoms(volume, found.positions / voxel, found.species, found.amplitude, shown)
    with replacing_all(out, FILES) as partial:
        atoms.write_xyz(partial / "atoms.xyz", found, names, size, f"jaxtomo atoms {source}")
        atoms.write_table(partial / "atoms.csv", found)
        if lacking is not None:
            atoms.write_defects(partial / "defects.csv", lacking)
        figure.savefig(partial / "atoms.png", dpi=150, facecolor="white")
        (partial / "summary.json").write_text(as_json(document) + "\n")
    rows = [*_rows(document, shown), ("written to", out)]
    return Outcome(f"atoms of {source}\n{table(rows)}", {**document, "folder": str(out)})


def _facts(found, lacking, count: int) -> dict[str, Any]:
    """What is said of atoms of `count` species, and of the defects of their lattice if it could be looked for."""
    import numpy as np

    refined = np.isfinite(found.position_error).all()
    kinds = [] if lacking is None else lacking.kind.tolist()
    return {
        "atoms": len(found.positions),
        "species": [int((found.species == k).sum()) for k in range(count)],
        "confidence": float(found.confidence.mean()),
        "width_A": float(found.width[0]),
        "position_error_A": np.median(found.position_error, 0).tolist() if refined else None,
        "lattice": "too few atoms to tell a lattice." if lacking is None else lacking.message,
        "defects": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def _rows(document: dict[str, Any], names: list[str]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [("atoms", document["atoms"]), *zip(names, document["species"], strict=True)]
    if len(names) > 1:
        rows.append(("mean probability of a species", f"{document['confidence']:.3f}"))
    rows.append(("width", f"{document['width_A']:.3g} Å"))
    if document["position_error_A"] is not None:
        x, y, z = (100 * error for error in document["position_error_A"])
        rows.append(("noise leaves open, at least", f"{x:.2g}, {y:.2g}, {z:.2g} pm in x, y, z"))
    rows.append(("lattice", document["lattice"].removesuffix(".")))
    return rows + [(f"{kind} defects", number) for kind, number in document["defects"].items()]


def _read(place: Path, settings: FindAtoms) -> tuple[Path, Any, float, Any]:
    """(file, volume, side of a voxel in nm, what to refine against)."""
    source, volume, voxel_nm, result = find(place, settings.measuring.voxel_nm)
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
