"""`jaxtomo elements`: a volume of every element, from a HAADF tilt series and maps of counts of the same tilts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from .. import plan, run_folder
from .. import settings as config
from ..console import Console, plain, table
from ..errors import InputError
from . import device
from .options import NONE, TRANSIENT, Gates, Outcome, Reading, Showing, UsageError, images_after, required


def _files(words: list[str]) -> dict[str, str]:
    pairs = [part.partition("=") for word in words for part in word.split(",") if part.strip()]
    names = [name.strip() for name, _, _ in pairs]
    if not all(names) or not all(file for _, _, file in pairs) or len({*names}) < len(names):
        raise ValueError("write Au=au.mrc, and each element once")
    return {name.strip(): file for name, _, file in pairs}


Files = Annotated[
    Mapping[str, str],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="ELEMENT=FILE ...",
        instance_from_str=_files,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [f"{name}={file}" for name, file in value.items()],
    ),
]
"""Files by element, written Au=au.mrc Ag=ag.mrc."""
ORIGINS = {
    "given": "as given",
    "held-back counts": "by counts that were held back",
    "usual": "the usual one, as the maps are no counts",
}
"""What a weight comes from."""


@dataclass(frozen=True)
class Elements:
    """Reconstruct a volume of every element: HAADF and maps of counts (EDS, EELS) of the same tilts, together.

    The HAADF says where matter is, the counts say what; it helps most where the elements differ in Z, and is believed
    as far as they explain it. Maps are counts as they were detected, without smoothing and without background
    subtracted. All are aligned as the HAADF is. How far the detector was in the shadow is fitted for every tilt and
    element.

    The folder then holds a volume and the composition of each element (Au.mrc, Au_share.mrc), haadf.mrc, shadows.csv,
    reconstruction.h5 (everything), report.html, config.toml and run.json.
    """

    file: Annotated[str | None, Positional, arg(metavar="HAADF", help_behavior_hint=NONE)] = None
    """The raw or aligned HAADF tilt series."""
    maps: Annotated[Files, arg(help_behavior_hint=NONE)] = field(default_factory=dict)
    """A tilt series of counts for each element, by its symbol."""
    reading: Reading = field(default_factory=Reading)
    align: Annotated[bool, arg(help_behavior_hint=NONE)] = True
    """Take the images as aligned already, with the rotation axis in their middle."""
    bin: Annotated[int, arg(metavar="N")] = 1
    """Bin the images N × N; counts are added."""
    weight: Annotated[
        float | None, arg(metavar="NUMBER", help_behavior_hint="(default: found by held-back counts)")
    ] = None
    """How strongly volumes with few edges are preferred, in units of the log-likelihood."""
    gamma: Annotated[float | None, arg(metavar="NUMBER", help_behavior_hint="(default: fitted)")] = None
    """HAADF intensity grows with the atomic number to this power; 1.6 to 1.8 is usual."""
    sensitivity: Annotated[Gates, arg(help_behavior_hint="(default: 1)")] = field(default_factory=dict)
    """Matter that one count of an element stands for, as Cliff-Lorimer factors in atoms say; only ratios matter."""
    shadows: Annotated[bool, arg(help_behavior_hint=NONE)] = True
    """Take the maps as free of detector shadowing."""
    thickness: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the images' width)")] = None
    """Voxels along the beam."""
    steps: Annotated[int, arg(metavar="N")] = 300
    """How many steps."""
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: NAME-elements)")] = None
    """The folder of the run."""
    overwrite: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Replace the run in that folder."""
    showing: Showing = field(default_factory=Showing)


def run(settings: Elements, console: Console) -> Outcome:
    source = required(settings.file, "HAADF")
    numbers = _numbers(settings)
    if settings.weight is not None and not 0 < settings.weight < float("inf"):
        raise InputError(f"--weight {settings.weight:g}: give a positive number, or none to have it found.")
    if settings.gamma is not None and not 0 < settings.gamma < 4:
        raise InputError(f"--gamma {settings.gamma:g}: give 1.6 to 1.8, or none to have it fitted.")
    folder = Path(settings.out or f"{Path(source).stem.strip('*_.-') or 'series'}-elements")
    if run_folder.is_run(folder) and not settings.overwrite:
        raise InputError(f"{folder}: holds a run already. Replace it with --overwrite, or give another --out.")
    run_folder.check_place(folder, False, settings.overwrite)
    device.start()
    plan.require(_planned(settings), device.memory(), str(source))
    from ..callbacks import progress, stop_when_converged
    from ..data import Problem
    from ..solve import reconstruct
    from ..solvers import elements
    from ..thinning import START, choose, whole

    factors = [settings.sensitivity.get(symbol, 1.0) for symbol in numbers]
    given = {"gamma": settings.gamma, "sensitivity": factors, "shadows": settings.shadows}
    solver = partial(elements, [*numbers.values()], **given)
    console.say(f"reading {source} and the maps of {', '.join(numbers)}")
    series, pose, alignment = _aligned(settings, console)
    problem = Problem(series, pose, thickness=settings.thickness)
    weight, tried, origin = settings.weight, {}, "given"
    if weight is None and not whole(problem.images[1:]):
        weight, origin = START, "usual"
        console.warn(
            f"the maps are no whole numbers of counts, so none can be held back to find the weight: {weight:g} is "
            "taken. Give counts as they were detected, or --weight."
        )
    elif weight is None:
        console.say("finding the weight: a fifth of the counts is held back, and predicted by the others")
        choice = choose(problem, solver, say=console.say)
        (weight, tried), origin = choice, "held-back counts"
        if choice.ended:
            console.warn(
                f"no other weight was better than {weight:g}, the last that was tried: give --weight to go on."
            )
    console.say(f"reconstructing {', '.join(numbers)} with weight {weight:.3g}: at most {settings.steps} steps")
    watchers = [stop_when_converged(), *([] if console.quiet else [progress()])]
    result = reconstruct(problem, solver(weight), settings.steps, callbacks=watchers, assess=False)
    from .solving import refuse_diverged

    refuse_diverged(result)
    seen = _shadows(problem, result) if settings.shadows else None
    facts = _facts(settings, folder, numbers, series, result, seen)
    facts |= {
        "weight": weight,
        "weight_from": origin,
        "weights_tried": [[w, deviance] for w, deviance in sorted(tried.items())],
    }
    told = (
        "elements",
        "counts_per_pixel",
        "weight",
        "weight_from",
        "weights_tried",
        "gamma",
        "gamma_error",
        "unexplained",
        "shadows",
    )
    extra: dict[str, Any] = {"composition": {name: facts[name] for name in told if name in facts}}
    extra |= {} if alignment is None else {"alignment": alignment}
    result = result.replace(
        settings={**result.settings, **extra}, metrics={"misfit": float(result.history["misfit"][-1])}
    )
    _clear(folder)
    run_folder.begin(folder, config.dump(replace(settings, maps=dict(settings.maps)), leaving_out=TRANSIENT))
    try:
        facts["files"] = _write(folder, numbers, factors, result, seen)
        run_folder.record(folder, {**facts, "command": list(console.command)})
    except BaseException:
        run_folder.discard(folder)
        raise
    rows: list[tuple[str, Any]] = [(f"{symbol} (Z {z})", _line(facts, symbol)) for symbol, z in numbers.items()]
    if "gamma" in facts:
        error = facts["gamma_error"]
        rows.append(("Z to the power of", f"{facts['gamma']:.3g}" + (f" ± {error:.2g}" if error else ", as given")))
    if facts["unexplained"]:
        rows.append(("HAADF", f"{facts['unexplained']:.0%} of it, at least, is not explained by the maps"))
    rows.append(("weight", f"{weight:.3g}, {ORIGINS[origin]}"))
    rows += [("stopped", result.message), ("folder", folder)]
    return Outcome(f"{source}\n{table(rows)}", plain(facts))


def _planned(settings: Elements) -> plan.Plan:
    from ..io import inspect
    from ..thinning import STEPS

    tilts, rows, width = images_after(
        inspect(settings.file, **settings.reading.arguments()), settings.reading, settings.bin
    )
    return plan.Plan(
        method="elements",
        tilts=tilts,
        rows=rows,
        width=width,
        thickness=settings.thickness or width,
        steps=settings.steps + (4 * STEPS if settings.weight is None else 0),  # four trials, as a rule
        device=device.backend(),
        cores=device.cores(),
        judged=False,
        binning=settings.bin,
        elements=len(settings.maps),
    )


def _numbers(settings: Elements) -> dict[str, int]:
    """Atomic numbers by symbol. Raises UsageError or InputError for settings that cannot be meant."""
    from ..elemental import atomic_number

    if not settings.maps:
        raise UsageError("--maps is missing: a file of counts for each element, as in --maps Au=au.mrc Ag=ag.mrc.")
    numbers = {symbol: atomic_number(symbol) for symbol in settings.maps}
    for symbol in settings.sensitivity:
        if symbol not in numbers:
            raise UsageError(f"--sensitivity {symbol}: has no map. There are {', '.join(numbers)}.")
        if not 0 < settings.sensitivity[symbol] < float("inf"):
            raise InputError(f"--sensitivity {symbol}={settings.sensitivity[symbol]:g}: give a positive factor.")
    for name, value in (("--bin", settings.bin), ("--steps", settings.steps), ("--thickness", settings.thickness)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: give 1 or more.")
    return numbers


def _aligned(settings: Elements, console: Console):
    """HAADF and maps as one series, the pose, and what the alignment of the HAADF measured. The counts are not
    touched: the tilt axis goes into the pose, not into turned images."""
    from ..alignment import apply, coarse
    from ..elemental import stacked
    from ..prepare import as_it_is, read_binned

    given = settings.reading.arguments()
    haadf = read_binned(settings.file, settings.bin, **given)
    maps = {symbol: read_binned(file, settings.bin, **given) for symbol, file in settings.maps.items()}
    maps = {symbol: m.replace(images=m.images * settings.bin**2) for symbol, m in maps.items()}
    if haadf.images.ndim == 4:
        raise InputError(f"{settings.file}: holds {haadf.images.shape[0]} channels. Give the HAADF with --dataset.")
    if not settings.align:
        haadf, pose = as_it_is(haadf)
        return stacked(haadf, maps), pose, None
    found = coarse(haadf)
    if found.suspect.any():
        which = ",".join(map(str, found.suspect.nonzero()[0]))
        console.warn(f"images that agree badly with their neighbours: {which}. Look at them, or --skip them.")
    series, pose = apply(haadf, replace(found, turn=False))
    return stacked(series, maps), _turned(pose, found), found.plain()


def _turned(pose, found):
    """The pose in images that were not turned, of an alignment that would turn them."""
    import jax.numpy as jnp
    import numpy as np

    if not found.turn:
        return pose
    angle = np.deg2rad(found.axis_deg)
    c, s = np.cos(angle), np.sin(angle)
    shift = np.asarray(found.shift) @ np.array([[c, s], [-s, c]])
    return pose.replace(shift=jnp.asarray(shift, jnp.float32), rotation=jnp.full(len(shift), angle, jnp.float32))


def _shadows(problem, result):
    """`[element, tilt]`, from the volume."""
    import jax.numpy as jnp
    import numpy as np

    from ..elemental import shadowing

    volume = jnp.asarray(result.volume[1:].swapaxes(-2, -1))
    weights = jnp.broadcast_to(problem.weights, problem.images[1:].shape)
    return np.asarray(shadowing(problem.project(volume), problem.images[1:], weights))[:, :, 0, 0]


def _facts(settings: Elements, folder: Path, numbers, series, result, seen) -> dict[str, Any]:
    counts = {symbol: float(m.sum()) for symbol, m in zip(numbers, series.images[1:], strict=True)}
    pixels = series.images[0].size
    facts: dict[str, Any] = {
        "status": "done",
        "folder": str(folder),
        "method": "elements",
        "input": {"file": str(settings.file), "maps": {name: str(file) for name, file in settings.maps.items()}},
        "elements": dict(numbers),
        "counts": counts,
        "counts_per_pixel": {symbol: total / pixels for symbol, total in counts.items()},
        "shape": list(result.volume.shape[1:]),
        "voxel_nm": result.voxel_nm,
        "steps": int(result.settings["steps"]),
        "unexplained": float(result.history["unexplained"][-1]),
        "message": result.message,
        "metrics": {"misfit": float(result.history["misfit"][-1])},
    }
    if len(numbers) > 1:
        facts |= {name: float(result.history[name][-1]) for name in ("gamma", "gamma_error")}
    if seen is not None:
        facts["shadows"] = {symbol: part.tolist() for symbol, part in zip(numbers, seen, strict=True)}
    return facts


def _line(facts: dict[str, Any], symbol: str) -> str:
    text = f"{facts['counts_per_pixel'][symbol]:.3g} counts a pixel"
    if "shadows" in facts:
        seen = facts["shadows"][symbol]
        text += f", detector sees {min(seen):.2f} to {max(seen):.2f} of its average"
    return text


def _clear(folder: Path) -> None:
    """Remove the volumes of an older run, whose names are those of its elements."""
    if (folder / run_folder.RECORD).is_file():
        for name in run_folder.recorded(folder).get("files", []):
            (folder / Path(name).name).unlink(missing_ok=True)


def _write(folder: Path, numbers, factors, result, seen) -> list[str]:
    """All results, or none of them; their names."""
    import numpy as np

    from ..elemental import composition
    from ..io import write
    from ..reporting import report

    shares = composition(result.volume, factors)
    with run_folder.results(folder) as stage:
        write(stage / "haadf.mrc", result.replace(volume=result.volume[0]))
        for symbol, volume, share in zip(numbers, result.volume[1:], shares, strict=True):
            write(stage / f"{symbol}.mrc", volume, result.voxel_nm)
            write(stage / f"{symbol}_share.mrc", share, result.voxel_nm)
        if seen is not None:
            head = ",".join(["tilt_deg", *numbers])
            rows = np.column_stack([np.rad2deg(np.asarray(result.pose.tilt)), seen.T])
            np.savetxt(stage / "shadows.csv", rows, "%.5g", ",", header=head, comments="")
        write(stage / "reconstruction.h5", result)
        report(stage / "report.html", result)
        return sorted(file.name for file in stage.iterdir())
