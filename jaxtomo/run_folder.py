"""The folder of one run: what lies in it, how it is begun, resumed and finished.

    config.toml         the settings, which `--config` reads again
    run.json            versions, device, input with its SHA-256, seed, command line, times, message, metrics, status
    metrics.jsonl       one line of numbers per step
    checkpoint/         the state to go on from, while there is something left to do
    volume.mrc          the volume, with volume.rawtlt, the angles it came from
    reconstruction.h5   everything: volume, poses, aligned series, history, metrics
    report.html         for a person
    volume.zarr         the volume as OME-Zarr, if that was asked for
    spread.mrc          of an ensemble or of samples, the standard deviation of every voxel
    poses.csv           of refined poses, a line a tilt, with what is left open of each

Results appear together and whole, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .console import as_json, plain
from .errors import InputError
from .io.atomic import explain, replacing

CONFIG, RECORD, METRICS, CHECKPOINT = "config.toml", "run.json", "metrics.jsonl", "checkpoint"
SLABS = "slabs.json"  # in the checkpoint of a run in slabs: what is known of those that are finished
RESULTS = ("volume.mrc", "volume.rawtlt", "reconstruction.h5", "report.html")
ZARR, SPREAD, POSES = "volume.zarr", "spread.mrc", "poses.csv"  # only where they are asked for
_STAGE, _WORK = ".results", ".work"


def check_place(folder: Path, resume: bool, overwrite: bool) -> None:
    """Raises InputError if a run may not or cannot be written to `folder`. Leaves nothing behind."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file. Give another folder with --out.")
    if is_run(folder):
        if not (resume or overwrite):
            raise InputError(
                f"{folder}: holds a run already. Go on with --resume, replace it with --overwrite, or give another "
                "folder with --out."
            )
    elif folder.is_dir() and any(entry.name != _WORK for entry in folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no run of jaxtomo. Give another folder with --out.")
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(explain(folder, error)) from error


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run, finished or not."""
    return any((folder / name).is_file() for name in (CONFIG, RECORD))


def begin(folder: Path, config: str) -> None:
    """An empty run with its settings in `folder`; an older run there is removed, and nothing but it."""
    with naming_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
    configure(folder, config)


def configure(folder: Path, config: str) -> None:
    """Write `config.toml`."""
    with replacing(folder / CONFIG) as partial:
        partial.write_text(config, encoding="utf-8")


def record(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `run.json`."""
    with replacing(folder / RECORD) as partial:
        partial.write_text(as_json(facts) + "\n", encoding="utf-8")


def recorded(folder: Path) -> dict[str, Any]:
    """What `run.json` says. Raises InputError if it is not there or damaged."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / RECORD}: cannot be read ({error}). Start afresh with --overwrite.") from error


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a state to go on from."""
    place = folder / CHECKPOINT
    steps = place.iterdir() if place.is_dir() else ()
    return (place / SLABS).is_file() or any(entry.is_dir() and entry.name.isdigit() for entry in steps)


def drop_checkpoint(folder: Path) -> None:
    """There is nothing left to do for it."""
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)


def step_log(folder: Path, done: int = 0) -> Callable:
    """A callback of the loop that adds a line for every step to `metrics.jsonl`, after the first `done` of them."""
    file = folder / METRICS
    written = done
    kept = file.read_text(encoding="utf-8").splitlines()[:done] if done and file.is_file() else []
    with naming_disk_errors(file):
        file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def log(now) -> None:
        nonlocal written
        names = list(now.history)
        lines = [
            json.dumps({"step": i + 1, **{name: plain(now.history[name][i]) for name in names}}, allow_nan=False)
            for i in range(written, now.step)
        ]
        written = now.step
        with naming_disk_errors(file), file.open("a", encoding="utf-8") as out:
            out.writelines(f"{line}\n" for line in lines)

    return log


def work_place(folder: Path) -> Path:
    """Where `working` puts what is needed during the run only."""
    return folder / _WORK


@contextlib.contextmanager
def working(folder: Path) -> Iterator[Path]:
    """A place in `folder` for what is needed during the run only; of a folder that was not there, nothing is left."""
    place = work_place(folder)
    try:
        with naming_disk_errors(folder):
            place.mkdir(parents=True, exist_ok=True)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it is empty


@contextlib.contextmanager
def results(folder: Path) -> Iterator[Path]:
    """A place to write results to; when the block ends well they move into `folder` together."""
    stage = folder / _STAGE
    try:
        with naming_disk_errors(folder):
            stage.mkdir(exist_ok=True)
        yield stage
        with naming_disk_errors(folder):
            for file in sorted(stage.iterdir()):
                if file.is_dir():  # which cannot be renamed over another one
                    shutil.rmtree(folder / file.name, ignore_errors=True)
                os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def as_it_was(folder: Path) -> Callable[[], None]:
    """A function that puts the records of a run back to what they are now."""
    before = {file: file.read_bytes() for name in (RECORD, METRICS) if (file := folder / name).is_file()}

    def undo() -> None:
        with naming_disk_errors(folder):
            for file, content in before.items():
                file.write_bytes(content)

    return undo


def discard(folder: Path) -> None:
    """Remove a run that came to nothing, and the folder if it is empty then."""
    _clear(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into an InputError that names the fact and the cure."""
    try:
        yield
    except OSError as error:
        raise InputError(explain(path, error)) from error


def _clear(folder: Path) -> None:
    for name in (CHECKPOINT, _STAGE, ZARR):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (CONFIG, RECORD, METRICS, SPREAD, POSES, *RESULTS):
        (folder / name).unlink(missing_ok=True)
