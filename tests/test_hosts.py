"""One run on two hosts: two processes on this computer, started as srun starts them, give the answer of one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxtomo as jt
from jaxtomo import cli, hosts

LIMIT = 240.0  # seconds for a pair of processes to end
PROGRAM = """
import sys
from jaxtomo import cli
from jaxtomo.commands import solving
solving.SAVED_AFTER = 0.5
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A small series, 9 tilts of 24 × 21 pixels: neither rows nor tilts divide by the devices."""
    file = tmp_path_factory.mktemp("series") / "core.mrc"
    argv = ["simulate", "core_shell", "--size", "24", "--tilts", "-60:60:15", "--out", str(file), "--dose", "200"]
    assert cli.main([*argv, "--quiet"]) == 0
    return file


def start(argv, folder, processes=2):
    """Processes of one run, as srun would start them: two devices each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", *hosts.BY_HAND)}
    common |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    common |= {"PYTHONPATH": str(Path(jt.__file__).parents[1])}
    common |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "SLURM_STEP_NUM_TASKS": str(processes)}
    if processes > 1:
        common |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes)}
    started = []
    for number in range(processes):
        own = common | ({"JAX_PROCESS_ID": str(number)} if processes > 1 else {})
        with open(folder / f"out{number}", "w") as out, open(folder / f"err{number}", "w") as err:
            command = [sys.executable, "-c", PROGRAM, *map(str, argv)]
            started.append(subprocess.Popen(command, env=own, stdout=out, stderr=err, cwd=folder))
    return started


def end(started, folder):
    """Their exit codes; what they said is in the message if they do not end."""
    until = time.monotonic() + LIMIT
    try:
        return [process.wait(max(1.0, until - time.monotonic())) for process in started]
    except subprocess.TimeoutExpired:
        said = "".join((folder / f"err{i}").read_text()[-2000:] for i in range(len(started)))
        raise AssertionError(f"the processes do not end:\n{said}") from None
    finally:
        for process in started:
            process.kill()


def arguments(series, out, *more):
    return ["reconstruct", series, "--out", out, "--no-align", "--no-assess", *more]


def test_two_hosts_give_the_answer_of_one(series, tmp_path):
    argv = arguments(series, "two", "--method", "tv", "--weight", "0.3", "--steps", "30")
    assert end(start([*argv, "--json"], tmp_path), tmp_path) == [0, 0], (tmp_path / "err0").read_text()[-3000:]
    assert json.loads((tmp_path / "out0").read_text())["exit_code"] == 0
    assert (tmp_path / "out1").read_text() == ""  # the first process speaks for all
    assert end(
        start(arguments(series, "one", "--method", "tv", "--weight", "0.3", "--steps", "30"), tmp_path, 1), tmp_path
    ) == [0]
    (two, nm), (one, _) = (jt.read_volume(tmp_path / name / "volume.mrc") for name in ("two", "one"))
    assert nm
    np.testing.assert_allclose(two, one, atol=2e-5 * np.abs(one).max())
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["status"] == "done"
    assert record["device"]["hosts"] == 2
    assert record["device"]["count"] == 4
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == record["steps"]
    assert not (tmp_path / "two" / ".work").exists()
    assert (tmp_path / "two" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("killed", [0, 1])
def test_one_that_dies_ends_the_other_and_the_run_goes_on(series, tmp_path, killed):
    argv = arguments(series, "run", "--method", "sirt", "--steps", "400000")
    started = start(argv, tmp_path)
    place, until = tmp_path / "run" / "checkpoint", time.monotonic() + LIMIT
    while not (place.is_dir() and any(entry.name.isdigit() for entry in place.iterdir())):
        assert time.monotonic() < until and all(process.poll() is None for process in started), (
            tmp_path / "err0"
        ).read_text()[-3000:] + (tmp_path / "err1").read_text()[-3000:]
        time.sleep(0.2)
    (child,) = _children(started[killed].pid)
    os.kill(child, signal.SIGKILL)
    codes = end(started, tmp_path)
    assert codes[killed] == 128 + signal.SIGKILL
    assert codes[1 - killed] == hosts.GONE
    assert "another process of this run is gone" in (tmp_path / f"err{1 - killed}").read_text()
    assert "--resume" in (tmp_path / f"err{1 - killed}").read_text()
    steps = max(int(entry.name) for entry in place.iterdir() if entry.name.isdigit())
    more = arguments(series, "run", "--method", "sirt", "--steps", steps + 10, "--resume")
    assert end(start(more, tmp_path, 1), tmp_path) == [0], (tmp_path / "err0").read_text()[-3000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["device"]["hosts"]) == ("done", 1)


def _children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_plan_and_a_missed_gate_on_two_hosts(series, tmp_path):
    """Both end well for all: nobody waits for a process that has nothing more to do."""
    argv = arguments(series, "run", "--method", "wbp")
    assert end(start([*argv, "--dry-run"], tmp_path), tmp_path) == [0, 0]
    assert (tmp_path / "out0").read_text() and not (tmp_path / "out1").read_text()
    assert end(start([*argv, "--fail-under", "misfit=1e-9"], tmp_path), tmp_path) == [5, 0]


def test_processes_that_do_not_know_of_each_other(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert hosts.several()
    with pytest.raises(jt.InputError, match="JAX_PROCESS_ID are not"):
        hosts.join()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(jt.InputError, match="no number of processes"):
        hosts.several()


@pytest.mark.parametrize(("name", "value"), [("SLURM_STEP_NUM_TASKS", "1"), ("OMPI_COMM_WORLD_SIZE", "1")])
def test_a_single_task_of_a_job_is_no_host_of_many(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not hosts.several()
