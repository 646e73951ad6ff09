"""JAX as the command line wants it: compiled code kept between runs, and what the device is and has free."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import InputError
from ..plan import Memory, free_memory

if TYPE_CHECKING:
    from jax.sharding import Mesh


def start() -> None:
    """Called by commands that compute, before anything is compiled. Importing jaxtomo does none of this.

    XLA's compiled code is kept in the user's cache folder (JAX_COMPILATION_CACHE_DIR, if set), so that a second run of
    the same shapes starts at once. Its chatter on stderr is turned off.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.ERROR)
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jaxtomo" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder() -> Path:
    """Where this system keeps what can be made again."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    match sys.platform:
        case "darwin":
            return Path.home() / "Library" / "Caches"
        case "win32":
            return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
        case _:
            return Path.home() / ".cache"


def describe() -> dict[str, Any]:
    """The device that computes and the versions of what runs on it."""
    import jax

    from ..projector import kernels

    device = jax.devices()[0]
    return {
        "device": {
            "backend": jax.default_backend(),
            "kind": device.device_kind,
            "count": jax.device_count(),
            "hosts": jax.process_count(),
            "projector": kernels().__name__.rpartition(".")[2],
        },
        "versions": {
            "jaxtomo": __version__,
            **{name: version(name) for name in ("jax", "jaxlib", "numpy")},
            "python": platform.python_version(),
            "system": platform.platform(),
        },
    }


def backend() -> str:
    """ "cpu", "gpu" or "tpu"."""
    import jax

    return jax.default_backend()


def mesh(asked: int | None) -> Mesh | None:
    """The devices that share the work: as many as asked for, or all; None if that is one.

    Raises InputError if there are not so many, or if several hosts are to use only some.
    """
    import jax

    if jax.process_count() > 1 and asked is not None and asked != jax.device_count():
        raise InputError(
            f"--devices {asked}: this run has {jax.process_count()} processes with {jax.device_count()} devices. Leave "
            "it out, and start fewer processes instead."
        )
    if jax.device_count() == 1 and asked in (None, 1):
        return None
    from ..parallel import mesh

    chosen = mesh(asked)
    return chosen if chosen.size > 1 else None


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(most: float | None = None) -> Memory:
    """What is free, of the computer (at most `most` bytes, if given) and of the device."""
    import jax

    free = min((n for n in (free_memory(), most) if n is not None), default=None)
    host = None if free is None else int(free)
    if jax.default_backend() == "cpu":
        return Memory(host)
    known = jax.devices()[0].memory_stats() or {}
    limit = known.get("bytes_limit")
    return Memory(host, None if limit is None else limit - known.get("bytes_in_use", 0))


def release() -> None:
    """Give memory that was freed, but is kept by the C library for later, back to the system, where it can do that."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def peak_memory() -> int | None:
    """The most bytes this process had in memory so far; None where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
