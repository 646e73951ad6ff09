"""What is asked of a reconstruction: its settings, and what contradicts itself among them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from .. import hosts, methods, plan
from ..errors import InputError
from ..freedom import freedom
from .options import NONE, Gates, Reading, Showing, UsageError, check_gates, required, rows_asked

METRICS = ("misfit", "prediction_error", "held_out_error", "resolution_voxels", "resolution_nm")
BY_METHOD = "(default: the method's)"


@dataclass(frozen=True)
class Preparing:
    """What happens to the images before the reconstruction."""

    bin: Annotated[int, arg(metavar="N")] = 1
    """Bin the images N × N: N³ times less memory, and more than that less time."""
    align: Annotated[bool, arg(help_behavior_hint=NONE)] = True
    """Take the images as aligned already, with the rotation axis in their middle."""
    xf: Annotated[str | None, arg(metavar="FILE.xf", help_behavior_hint=NONE)] = None
    """Use the alignment in an IMOD transform file (.xf), one line a view, instead of finding one."""
    refine_poses: Annotated[str | None, arg(metavar="WHAT", help_behavior_hint=NONE)] = None
    """Refine the alignment together with a volume before the reconstruction. WHAT are some of shift, axis, tilt,
    centre, rotation, second-tilt, magnification, each with how far it is expected to be wrong if you know (pixels,
    degrees): shift,axis is what every series can tell, shift,axis,tilt=0.3 for angles good to 0.3 degrees. Tilts that
    are held out are refined with the others."""
    background: Annotated[float | None, arg(metavar="LEVEL", help_behavior_hint="(default: the vacuum's)")] = None
    """The intensity where there is no specimen, to be subtracted; 0 subtracts nothing."""
    saturation: Annotated[
        float | Literal["auto"] | None, arg(metavar="auto|LEVEL", help_behavior_hint="(default: images are linear)")
    ] = None
    """Take out how an annular detector saturates with thickness, which makes supports look porous near heavy
    particles. LEVEL is the intensity above background that no thickness exceeds; auto takes the one with which left-out
    tilts are predicted much better, in a minute or so, for bodies of even density that lie within the field. All
    tilts must be on one scale of intensity. Alignments and poses are found from the images as recorded."""
    channel: Annotated[int | None, arg(metavar="N", help_behavior_hint=NONE)] = None
    """Which of several spectral maps to reconstruct, numbered from 0; they are aligned by their sum."""
    slab: Annotated[str | None, arg(metavar="A:B", help_behavior_hint=NONE)] = None
    """Only rows A to B along the tilt axis: a quick look at a part."""


@dataclass(frozen=True)
class Solving:
    """How the volume is computed."""

    method: Annotated[
        Literal[
            "wbp",
            "sirt",
            "sart",
            "cgls",
            "tv",
            "tvq",
            "root-tv",
            "dip",
            "dip-tv",
            "inr",
            "gaussian",
            "diffusion",
            "gan",
            "auto",
        ],
        arg(metavar="NAME"),
    ] = "tv"
    """tv: total variation, a good start for most specimens. tvq: sparse gradients, for particles with sharp edges.
    root-tv: few tilts or a wide missing wedge. inr: a network of coordinates, ahead of tv in many cases and slower.
    dip-tv: an untrained network beside voxels, for texture, slower still; dip: only that.
    gaussian: textured volumes such as tissue. diffusion: a network that has learned what such specimens look like, for
    a wide missing wedge. gan: two networks, one of which fills the missing wedge, and the other cleans the volume;
    nothing to choose. wbp, sirt, sart, cgls: the classical ones, without prior knowledge.
    auto: tries sirt, tv, tvq and root-tv on some slices, and goes on with the one that predicts left-out
    tilts best."""
    minutes: Annotated[float, arg(metavar="N")] = 10.0
    """The time in which --method auto tries methods, the quickest first; the first is always tried."""
    weight: Annotated[float | Literal["auto"] | None, arg(metavar="auto|NUMBER", help_behavior_hint=NONE)] = None
    """How strongly the methods with a prior (all but wbp, sirt, sart, cgls, dip, diffusion and gan) prefer a smooth
    volume: larger is smoother. auto, the default from six tilts, tries some, and takes the one that predicts left-out
    tilts best."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint=BY_METHOD)] = None
    """How many steps at most."""
    thickness: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the images' width)")] = None
    """Voxels along the beam."""
    likelihood: Annotated[Literal["gaussian", "poisson", "robust"], arg(metavar="gaussian|poisson|robust")] = "gaussian"
    """How images are noisy: poisson for low counts, robust for outliers (both with sirt, sart, tvq, root-tv, dip,
    dip-tv, inr, diffusion and gan)."""
    fit_intensity: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Fit a gain and an offset for each tilt, for images scaled one by one (with the same methods)."""
    members: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1, of diffusion 4)")] = None
    """Reconstruct N times, each with other random numbers and other weights of the pixels (8 is usual): the volume is
    the mean, and spread.mrc tells where it is less sure (it ranks voxels; the errors are larger than it says). Of
    diffusion, N samples of what the specimen can be, side by side."""
    spectrum: Annotated[str, arg(metavar="NAME")] = "fib_sem"
    """What kind of volume gaussian expects: fib_sem, porous_silicon or nanoparticles."""
    weights: Annotated[
        str | None, arg(metavar="nano|fibsem|DIR", help_behavior_hint="(default: nano, of gan slices)")
    ] = None
    """What diffusion has learned: nano from particles, pores and crystals, fibsem from tissue; or the weights of a
    jaxtomo train score, or, for gan, of a jaxtomo train gan; its own, slices, are of all of these."""
    adapt: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Weigh the network of diffusion against solutions without one by how well each predicts left-out tilts, for a
    specimen unlike those it was trained on."""
    hold_out: Annotated[int, arg(metavar="N")] = 0
    """Leave N tilts out, spread over the range, and report how well the volume predicts them."""
    assess: Annotated[bool, arg(help_behavior_hint=NONE)] = True
    """Skip the quality numbers, which take two more reconstructions of half the tilts."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of whatever is random in a method."""

    @property
    def asked(self) -> methods.Asked:
        return methods.Asked(self.method, self.steps, self.spectrum, self.weights, self.members, self.adapt)


@dataclass(frozen=True)
class Running:
    """Where the results go."""

    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: NAME-METHOD)")] = None
    """The folder of the run."""
    resume: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Go on with the interrupted run in that folder, or give a finished one more steps."""
    overwrite: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Replace the run in that folder."""
    dry_run: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Only say what would be done, with how much memory and time."""
    slabs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as few as fit into the memory)")] = None
    """Reconstruct N parts along the tilt axis one after the other, for volumes larger than memory
    (with wbp, sirt, sart, tv, and the plain Gaussian noise model)."""
    devices: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Share the work between N devices of this computer. Started by srun or mpirun, all devices of all hosts do."""
    memory: Annotated[float | None, arg(metavar="GB", help_behavior_hint="(default: what is free)")] = None
    """How much memory the run may use."""
    zarr: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Also write the volume as OME-Zarr (volume.zarr), for napari and for the cloud."""
    fail_under: Annotated[Gates, arg(help_behavior_hint=NONE)] = field(default_factory=dict)
    """Exit with 5 where a number is worse (larger): misfit, prediction_error, held_out_error, resolution_nm or
    resolution_voxels."""


@dataclass(frozen=True)
class Reconstruct:
    """Reconstruct a volume from a tilt series: read, align, solve, judge, write, report.

    The folder of the run then holds volume.mrc, reconstruction.h5 (everything), report.html, config.toml and run.json.
    """

    file: Annotated[str | None, Positional, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    """The raw or aligned tilt series: a file, a folder of images, or a pattern such as 'tilt_*.tif'."""
    reading: Reading = field(default_factory=Reading)
    preparing: Preparing = field(default_factory=Preparing)
    solving: Solving = field(default_factory=Solving)
    running: Running = field(default_factory=Running)
    showing: Showing = field(default_factory=Showing)


def by(method: str, settings: Reconstruct) -> Reconstruct:
    """The settings with that method."""
    return replace(settings, solving=replace(settings.solving, method=method))  # type: ignore[arg-type]


def lasting(settings: Reconstruct) -> Reconstruct:
    """The settings with paths that mean the same in every folder, as config.toml keeps them."""
    reading, preparing = settings.reading, settings.preparing
    angles, xf, weights = reading.angles, preparing.xf, settings.solving.weights
    if weights is not None and weights not in sum(methods.SHIPPED.values(), ()):
        weights = os.path.abspath(weights)
    return replace(
        settings,
        file=os.path.abspath(required(settings.file, "FILE")),
        reading=replace(reading, angles=os.path.abspath(angles) if angles and Path(angles).is_file() else angles),
        preparing=replace(preparing, xf=os.path.abspath(xf) if xf else None),
        solving=replace(settings.solving, weights=weights),
    )


def check(settings: Reconstruct) -> None:
    """Raises UsageError or InputError for settings that contradict each other, before anything is read."""
    solving, running, preparing = settings.solving, settings.running, settings.preparing
    check_gates(running.fail_under, METRICS)
    plain_noise = solving.likelihood == "gaussian" and not solving.fit_intensity
    if solving.method == "auto":
        _check_auto(settings)
    elif not plain_noise and solving.method not in methods.ANY_LIKELIHOOD:
        flag = "--fit-intensity" if solving.fit_intensity else f"--likelihood {solving.likelihood}"
        able = ", ".join(methods.ANY_LIKELIHOOD)
        raise InputError(f"{flag}: {solving.method} cannot. Take --method with one of {able}.")
    if solving.weight is not None and solving.method not in methods.WEIGHTED:
        raise InputError(
            f"--weight: {solving.method} has no prior to weigh. Leave it out, or take one of "
            f"{', '.join(methods.WEIGHTED)}."
        )
    if isinstance(solving.weight, float) and not solving.weight > 0:
        raise InputError(f"--weight {solving.weight:g}: is not above 0. Give a positive number, or auto.")
    slabs, members = running.slabs or 1, solving.members or 1
    if slabs > 1 and not plain_noise:
        raise InputError(
            f"--slabs {slabs}: that noise model is fitted to all slices together. "
            "Leave --likelihood and --fit-intensity out, or bin the images with --bin."
        )
    if slabs > 1 and solving.method not in plan.SLICED:
        raise InputError(
            f"--slabs {slabs}: {solving.method} ties all slices together. Take --method with one of "
            f"{', '.join(plan.SLICED)}, or bin the images with --bin."
        )
    if members > 1 and solving.method == "wbp":
        raise InputError("--members: wbp does not weigh pixels, so all would be the same. Take another --method.")
    if slabs > 1 and members > 1:
        raise InputError(f"--members {members}: not in slabs. Leave --slabs out, or bin the images with --bin.")
    learned = solving.method in methods.LEARNED
    if learned and solving.fit_intensity:
        raise InputError(
            f"--fit-intensity: not with --method {solving.method}, which asks linearly. Take root-tv or dip-tv."
        )
    if solving.method == "diffusion" and solving.steps == 1:
        raise InputError("--steps 1: diffusion goes from noise to none in 2 steps or more. Leave it out.")
    if learned:
        methods.weights_folder(solving.weights, solving.method)
    if solving.weights is not None and not learned:
        raise InputError(
            f"--weights: what {' or '.join(methods.LEARNED)} has learned, and only that. Give such a --method, or none."
        )
    if solving.adapt and (solving.method != "diffusion" or members > 1):
        raise InputError("--adapt: weighs the network of --method diffusion, and not with --members. Leave it out.")
    if hosts.several() and learned:
        raise InputError(f"--method {solving.method}: not on several hosts. Start it on one.")
    if hosts.several() and members > 1:
        raise InputError(f"--members {members}: not on several hosts. Start it on one, or leave it out.")
    if slabs > 1 and hosts.several():
        raise InputError(f"--slabs {slabs}: several hosts hold a part of the volume each. Leave it out.")
    if preparing.saturation is not None:
        if preparing.saturation != "auto" and not (math.isfinite(preparing.saturation) and preparing.saturation > 0):
            raise InputError(f"--saturation {preparing.saturation:g}: give an intensity above 0, or auto.")
        if solving.fit_intensity or solving.likelihood == "poisson":
            flag = "--fit-intensity" if solving.fit_intensity else "--likelihood poisson"
            raise InputError(
                f"{flag}: not with --saturation, after which images are no counts and have one scale. Leave one out."
            )
    if running.memory is not None and not running.memory > 0:
        raise InputError(f"--memory {running.memory:g}: is no amount of memory. Give GB, or leave it out.")
    for name, value, least in (
        ("--bin", preparing.bin, 1),
        ("--slabs", running.slabs, 1),
        ("--devices", running.devices, 1),
        ("--steps", solving.steps, 1),
        ("--thickness", solving.thickness, 1),
        ("--hold-out", solving.hold_out, 0),
        ("--members", solving.members, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"{name} {value}: give {least} or more.")
    if preparing.xf and not preparing.align:
        raise UsageError("--xf is an alignment, and --no-align asks for none. Give one of them.")
    rows_asked(preparing.slab)
    if preparing.refine_poses is not None:
        if mixing(preparing) and (preparing.slab or slabs > 1):
            raise InputError(
                f"--refine-poses {preparing.refine_poses}: what is turned or tilted image by image mixes rows, so none "
                "can be cut out. Leave --slab and --slabs out, or refine shift, tilt and, of a raw series, axis only."
            )
        if hosts.several():
            raise InputError("--refine-poses: not on several hosts. Refine on one with jaxtomo align --joint.")


def check_held(count: int, facts: dict[str, Any], reading: Reading) -> None:
    """Raises InputError where so many tilts of the series with these headers cannot be held out."""
    tilts = facts["shape"][-3] - len(reading.skip)
    if count and (tilts < 3 or not 1 <= count <= tilts // 2):
        raise InputError(
            f"--hold-out {count}: {facts['file']} has {tilts} tilts. Give half of them or less, a tenth is usual, or "
            "leave it out."
        )


def _check_auto(settings: Reconstruct) -> None:
    """Raises UsageError or InputError for what can be asked of a method with a name only."""
    solving, slabs = settings.solving, settings.running.slabs or 1
    for flag, given in (
        ("--weight", solving.weight is not None),
        ("--steps", solving.steps is not None),
        ("--slabs", slabs > 1),
    ):
        if given:
            raise InputError(f"{flag}: with --method auto every method has its own. Leave it out, or name a method.")
    if hosts.several():
        raise InputError("--method auto: not on several hosts. Start it on one, or name a method.")
    if not (math.isfinite(solving.minutes) and solving.minutes > 0):
        raise UsageError(f"--minutes {solving.minutes:g}: give a number above 0.")


def mixing(preparing: Preparing) -> bool:
    """Whether refined poses may mix rows: an axis does not where the images can still be turned."""
    if preparing.refine_poses is None:
        return False
    free = freedom(preparing.refine_poses)
    raw = preparing.align and preparing.xf is None
    return bool(free.rotation_deg or free.second_tilt_deg or free.magnification or (free.axis_deg and not raw))
