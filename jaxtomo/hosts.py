"""Many hosts, one process on each: how they find each other, agree, and end.

The same command is started on all of them by srun, mpirun or Kubernetes, or by hand with JAX_COORDINATOR_ADDRESS
(host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID. The first process is the one that speaks, and writes
what there is only one of.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from .errors import InputError

BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
STARTED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # how many processes srun or mpirun started
WATCHED = "JAXTOMO_WATCHED"  # set in the environment of a process that `watched` started
SILENT = 30  # seconds after which a process that says nothing counts as gone
GONE = 6  # exit code of a process that ends because another one is gone


def several() -> bool:
    """Whether this process was started as one of several; from the environment alone.

    Raises InputError if that says something else than a number.
    """
    counts = {name: os.environ.get(name) or "1" for name in (*STARTED, BY_HAND[1])}
    for name, number in counts.items():
        if not number.isdigit():
            raise InputError(f"{name}={number} is no number of processes. Set it to one, or not at all.")
    return (
        max(map(int, counts.values())) > 1 or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    )


def watched(command: Sequence[str]) -> int:
    """Run `command` in a process of its own; returns its exit code, after a message if it was ended by force.

    JAX aborts a process whose companions are gone, which the process itself cannot catch.
    """
    child = subprocess.Popen(command, env={**os.environ, WATCHED: "1"}, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: child.send_signal(number))
    code = child.wait()
    if code == -signal.SIGABRT:
        print(f"jaxtomo: {gone()}", file=sys.stderr)
        return GONE
    return code if code >= 0 else 128 - code


def join() -> None:
    """Join the other processes of this run, if there are any; before JAX is used for anything else.

    Raises InputError if they do not meet.
    """
    if not several():
        return
    import jax

    given = {name: os.environ[name] for name in BY_HAND if name in os.environ}
    if 0 < len(given) < len(BY_HAND):
        lacking = ", ".join(name for name in BY_HAND if name not in given)
        raise InputError(f"{', '.join(given)} are set and {lacking} are not. Set all three, or none.")
    # The library that connects CPUs writes to stdout, which belongs to results alone.
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    number, own = (int(given[name]) for name in BY_HAND[1:]) if given else (None, None)
    try:
        jax.distributed.initialize(num_processes=number, process_id=own, heartbeat_timeout_seconds=SILENT)
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise InputError(
            f"the processes of this run did not find each other ({said}). Check that all were started, and that the "
            "first can be reached; or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID by hand."
        ) from error
    wait("joined")  # now, as processes connect when they first talk, and wait only half a minute for each other then


def count() -> int:
    """How many processes there are; asking does not start JAX."""
    if "jax" not in sys.modules:
        return 1
    import jax

    return jax.process_count()


def first() -> bool:
    """Whether this is the first process, or the only one."""
    if count() == 1:
        return True
    import jax

    return jax.process_index() == 0


def agreed(said: bool) -> bool:
    """Whether any process says so. Every process must ask."""
    if count() == 1:
        return said
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(said))))


def same(number: int) -> int:
    """The first process's number. Every process must ask."""
    if count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.asarray(number)))


def wait(place: str) -> None:
    """Go on when all processes are here."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(place)


def gone() -> str:
    """What to say when another process does not answer any more."""
    return (
        "another process of this run is gone, so this one ends too. Look for the message of the other; then go on with "
        "the same command and --resume, on as many hosts as there are."
    )


def leave(code: int) -> None:
    """End a process that failed without waiting, as JAX would, for others that wait for it."""
    if code and "jax" in sys.modules and count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
