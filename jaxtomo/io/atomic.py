"""Writing files so that they are there whole or not at all: beside the old ones, flushed, then renamed over them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import InputError


@contextlib.contextmanager
def replacing(path: str | os.PathLike, folder: bool = False) -> Iterator[Path]:
    """Yields `.<name>.partial-<pid>` beside `path`; when the block ends well, that takes the place of `path`.

    Whatever stops the block (an error, a full disk, Ctrl-C), the partial file is removed and an old `path` stays as it
    was. `folder` says that the block makes a folder, which only ever takes the place of a folder that holds Zarr.

    Raises InputError, naming the file, the fact and the cure, for every OSError in the block.
    """
    final = Path(os.path.realpath(path))  # through a symbolic link, so that the link survives
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    try:
        _check_place(path, final, folder)
        yield partial
        _flush(partial)
        if folder:
            _swap_folders(partial, final)
        else:
            os.replace(partial, final)
        _flush_entry(final.parent)
    except OSError as error:
        _remove(partial)
        raise InputError(explain(path, error)) from error
    except BaseException:
        _remove(partial)
        raise


@contextlib.contextmanager
def replacing_all(folder: str | os.PathLike, names: Collection[str]) -> Iterator[Path]:
    """Yields an empty folder inside `folder`, which is made if need be; when the block ends well, what was written
    there takes the place of `names` in `folder`, and those that were not written are removed, so that none is of an
    earlier run. Whatever stops the block, `folder` stays as it was.

    Raises InputError, naming the folder, the fact and the cure, for every OSError in the block.
    """
    folder = Path(folder)
    partial = folder / f".partial-{os.getpid()}"
    made = not folder.exists()
    try:
        partial.mkdir(parents=True)
        yield partial
        _flush(partial)
        for name in names:
            if (partial / name).exists():
                os.replace(partial / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        partial.rmdir()
        _flush_entry(folder)
    except BaseException as error:
        _remove(partial)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise InputError(explain(partial, error)) from error
        raise


def require_space(path: str | os.PathLike, size: int) -> None:
    """Raises InputError if the disk that will hold `path` has fewer than `size` bytes free."""
    folder = Path(os.path.realpath(path)).parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # a folder that is not there is reported by `replacing`
    if free < size:
        raise InputError(
            f"{path}: needs {size / 1e6:.1f} MB, and the disk that holds {folder} has {free / 1e6:.1f} MB free. "
            "Free some space, or write to another disk."
        )


def explain(path: str | os.PathLike, error: OSError) -> str:
    """What went wrong with `path` and what to do about it."""
    folder = Path(os.path.realpath(path)).parent
    # NumPy reports a file that took only part of an array, and no error number
    number = errno.ENOSPC if error.errno is None and " requested and " in str(error) else error.errno
    match number:
        case errno.ENOSPC | errno.EDQUOT:
            return (
                f"{path}: not written, no space left on the disk (or quota) that holds {folder}. "
                "Free some space, or write to another disk."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{path}: not written, no permission to write in {folder}. Choose a folder that you may write to."
        case errno.ENOENT | errno.ENOTDIR if not folder.is_dir():
            return f"{path}: not written, there is no folder {folder}. Make it first, or choose another."
        case errno.EISDIR:
            return f"{path}: not written, there is a folder of that name. Choose another name, or remove the folder."
        case errno.ENAMETOOLONG:
            return f"{path}: not written, the name is too long for this disk. Choose a shorter one."
        case _:
            return f"{path}: not written: {error}. Check the disk, or write elsewhere."


def _check_place(path, final: Path, folder: bool) -> None:
    if final.is_dir() and not folder:
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(final))
    if folder and final.exists() and not _is_zarr(final):
        raise InputError(
            f"{path}: there is already something of that name that is no Zarr folder. "
            "Choose another name, or remove it."
        )
    if not final.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(final.parent))


def _is_zarr(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    inside = {entry.name for entry in folder.iterdir()}
    return not inside or bool(inside & {"zarr.json", ".zgroup", ".zarray"})


def _flush(partial: Path) -> None:
    for file in [partial] if partial.is_file() else [entry for entry in partial.rglob("*") if entry.is_file()]:
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())


def _flush_entry(folder: Path) -> None:
    """Makes the rename itself last through a power cut, where the system has a way to say so."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap_folders(partial: Path, final: Path) -> None:
    """A folder cannot be renamed over one with content, so the old one steps aside first, and back if that fails."""
    if not final.exists():
        os.rename(partial, final)
        return
    aside = final.with_name(f".{final.name}.old-{os.getpid()}")
    try:
        os.rename(final, aside)
        os.rename(partial, final)
    except BaseException:
        if aside.exists() and not final.exists():
            os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _remove(partial: Path) -> None:
    with contextlib.suppress(OSError):
        if not partial.is_dir():
            partial.unlink(missing_ok=True)
            return
        for _ in range(20):  # a thread of Zarr may still be writing a chunk into it
            shutil.rmtree(partial, ignore_errors=True)
            if not partial.exists():
                return
            time.sleep(0.05)
