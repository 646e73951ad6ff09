"""Bad input to every command: the exit code, a message with its cure, one JSON document, nothing left behind."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import jaxtomo as jt
from jaxtomo import cli, run_folder
from jaxtomo.commands import device, running, solving
from jaxtomo.plan import NEEDS, PROGRAM, Memory

ANGLES = "-60:60:10"


@pytest.fixture(autouse=True)
def nothing_lasting(monkeypatch, tmp_path):
    """No compiled code in the user's cache folder, no report, and every path in a folder of the test."""
    monkeypatch.setattr(device, "start", lambda: None)
    monkeypatch.setattr(running, "report", lambda path, result: path.write_text("a report"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images():
    """Thirteen images of a ball that is seen from everywhere."""
    y, x = np.mgrid[-16:16, -16:16] + 0.5
    ball = np.sqrt(np.maximum(81 - x**2 - y**2, 0))
    return (ball + np.random.default_rng(1).normal(0, 0.1, (13, 32, 32))).astype(np.float32)


@pytest.fixture
def series(images, tmp_path):
    jt.write(tmp_path / "s.mrc", jt.TiltSeries(images, np.arange(-60.0, 61, 10), 1.0))
    return tmp_path / "s.mrc"


@pytest.fixture
def refused(capfd):
    """Runs a command that must fail: its message, after checking all that holds for every failure."""

    def run(*argv, code=3, leaves=()) -> str:
        before = {*os.listdir(), *leaves}
        capfd.readouterr()
        assert cli.main([str(word) for word in argv]) == code, capfd.readouterr().err
        said = capfd.readouterr()
        assert said.out == "" and "Traceback" not in said.err
        assert {*os.listdir()} == before
        assert cli.main([str(word) for word in (*argv, "--json", "--quiet")]) == code
        again = capfd.readouterr()
        told = json.loads(again.out)
        assert told["exit_code"] == code and told["error"] in again.err
        return told["error"]

    return run


def test_missing_files(refused):
    for argv in (["inspect", "a.mrc"], ["align", "a.mrc"], ["reconstruct", "a.mrc"], ["compare", "a.mrc", "b.mrc"]):
        assert "a.mrc: there is no such file" in refused(*argv)
    assert "a.mrc" in refused("report", "a.mrc")


@pytest.mark.parametrize("command", ["inspect", "align", "reconstruct"])
def test_damaged_files(command, refused, series):
    whole = series.read_bytes()
    for name, content in (
        ("empty.mrc", b""),
        ("short.mrc", whole[:-900]),
        ("stub.mrc", whole[:700]),
        ("text.mrc", b"hello, " * 400),
    ):
        Path(name).write_bytes(content)
        assert name in refused(command, name)


@pytest.mark.parametrize("command", ["align", "reconstruct"])
def test_bad_pixels(command, refused, images):
    given = ("--angles", ANGLES, "--tilt-axis", "y", "--pixel-nm", "1")
    spoilt = images.copy()
    spoilt[2, 3, 4:7] = np.nan
    np.save("nan.npy", spoilt)
    message = refused(command, "nan.npy", *given)
    assert "nan.npy" in message and "3 of 13312 pixels" in message and "--fill-nan" in message
    np.save("equal.npy", np.ones_like(images))
    assert "equal" in refused(command, "equal.npy", *given)
    np.save("one.npy", images[:1])
    assert "one" in refused(command, "one.npy", "--angles", "0:0:1", *given[2:])


def test_nan_pixels_can_be_filled(images):
    images[2, 3, 4:7] = np.nan
    np.save("nan.npy", images)
    argv = ["reconstruct", "nan.npy", "--angles", ANGLES, "--tilt-axis", "y", "--pixel-nm", "1", "--fill-nan"]
    assert cli.main([*argv, "--method", "wbp", "--no-assess", "--no-align", "--out", "run", "--quiet"]) == 0


def test_bad_angles(refused, images):
    np.save("s.npy", images)
    given = ("reconstruct", "s.npy", "--tilt-axis", "y", "--pixel-nm", "1")
    Path("rad.txt").write_text("\n".join(f"{a:.5f}" for a in np.deg2rad(np.arange(-60, 61, 10))))
    Path("few.txt").write_text("1\n2\n3\n")
    Path("binary.txt").write_bytes(bytes(range(256)) * 4)
    for angles, hint in (
        (None, "--angles"),
        ("few.txt", "13 images"),
        ("rad.txt", "radians"),
        ("binary.txt", "binary.txt"),
        ("-40:40", "start:stop:step"),
        ("none.txt", "none.txt"),
    ):
        assert hint in refused(*given, *([] if angles is None else ["--angles", angles]))
    for axis in ("z", "nan"):
        assert "tilt_axis" in refused(
            "reconstruct", "s.npy", "--tilt-axis", axis, "--pixel-nm", "1", "--angles", ANGLES
        )
    assert "none.xf" in refused(*given, "--angles", ANGLES, "--xf", "none.xf")
    assert "--pixel-nm" in refused("reconstruct", "s.npy", "--tilt-axis", "y", "--angles", ANGLES)


def test_settings_that_cannot_be(refused, series):
    for argv, hint in (
        (["--likelihood", "poisson"], "sirt"),
        (["--method", "cgls", "--fit-intensity"], "sirt"),
        (["--method", "sirt", "--weight", "3"], "tvq"),
        (["--weight=-1"], "positive"),
        (["--slabs", "2", "--method", "cgls"], "sirt"),
        (["--memory", "0"], "--memory"),
        (["--bin", "9"], "--bin"),
        (["--bin", "0"], "--bin"),
        (["--steps", "0"], "--steps"),
        (["--thickness", "0"], "--thickness"),
        (["--hold-out", "12"], "13 tilts"),
        (["--hold-out", "99", "--method", "auto"], "13 tilts"),
        (["--hold-out=-3"], "0 or more"),
        (["--slab", "30:40"], "rows"),
        (["--method", "gaussian", "--spectrum", "moon"], "fib_sem"),
        (["--skip", "77"], "77"),
    ):
        assert hint in refused("reconstruct", series, "--out", "run", "--no-align", *argv), argv


def test_places_that_cannot_be_written(refused, series):
    Path("file").write_text("in the way")
    argv = ("reconstruct", series, "--method", "wbp", "--no-assess", "--no-align")
    assert "is a file" in refused(*argv, "--out", "file")
    assert "file/run" in refused(*argv, "--out", "file/run")
    if Path("/proc/self").is_dir():
        assert "/proc/self/run" in refused(*argv, "--out", "/proc/self/run")
        assert "/proc/self/a.mrc" in refused("align", series, "--out", "/proc/self/a.mrc")
    assert "nowhere" in refused("align", series, "--out", "nowhere/a.mrc")
    assert "suffix" in refused("align", series, "--out", "a.jpeg")
    assert "suffix" in refused("simulate", "chiral", "--size", "16", "--tilts", "0:10:5", "--out", "a.jpeg")


def test_a_disk_that_fills_while_writing_results(refused, series, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 0))
    argv = (series, "--method", "wbp", "--no-assess", "--no-align", "--out", "run")
    assert "free" in refused("reconstruct", *argv)
    assert "free" in refused("align", series)


def test_a_disk_that_fills_during_the_run(refused, series, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: full() if self.name == run_folder.METRICS else real(self, *a, **k)
    )
    message = refused(
        "reconstruct", series, "--method", "sirt", "--steps", "3", "--no-assess", "--no-align", "--out", "run"
    )
    assert "no space left" in message and run_folder.METRICS in message


def test_a_run_that_diverges_leaves_nothing(refused, series, monkeypatch):
    real = solving.reconstruct

    def diverging(*argv, **options):
        result = real(*argv, **options)
        return result.replace(history={"misfit": np.array([1.0, np.nan])}, message="misfit became non-finite at step 2")

    monkeypatch.setattr(solving, "reconstruct", diverging)
    assert "diverged" in refused(
        "reconstruct", series, "--method", "sirt", "--steps", "2", "--no-align", "--out", "run"
    )


def test_too_large_for_the_memory(refused, series, monkeypatch):
    monkeypatch.setattr(device, "memory", lambda most: Memory(PROGRAM + NEEDS["tv"].code + 900_000))
    message = refused("reconstruct", series, "--out", "run", code=4)
    assert "--bin 2" in message and "s.mrc" in message and "MB" in message
    assert "--bin" in refused("reconstruct", series, "--thickness", "200", "--dry-run", code=4)
    monkeypatch.setattr(device, "memory", lambda most: Memory(PROGRAM + 6_000_000))
    thick = ("reconstruct", series, "--thickness", "200", "--out", "run")
    assert "--method sirt" in refused(*thick, "--method", "cgls", code=4)
    assert "in 1 slabs" not in refused(*thick, "--method", "tv", "--slabs", "1", code=4)
    monkeypatch.setattr(device, "memory", lambda most: Memory(PROGRAM + NEEDS["tv"].code + 900_000))
    argv = [
        "reconstruct",
        str(series),
        "--bin",
        "2",
        "--out",
        "run",
        "--method",
        "wbp",
        "--no-assess",
        "--no-align",
        "--quiet",
    ]
    assert cli.main(argv) == 0  # the cure cures
    monkeypatch.setattr(device, "memory", lambda most: Memory(100))
    assert "more memory" in refused("reconstruct", series, "--out", "other", code=4)


def test_a_device_out_of_memory_is_no_bug(refused, series, monkeypatch):
    def exhausted(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.")

    monkeypatch.setattr(solving, "reconstruct", exhausted)
    assert "--bin 2" in refused("reconstruct", series, "--no-align", "--weight", "1", "--out", "run", code=4)


def test_a_run_folder_that_is_damaged(refused, series):
    assert (
        cli.main(
            ["reconstruct", str(series), "--method", "wbp", "--no-assess", "--no-align", "--out", "run", "--quiet"]
        )
        == 0
    )
    argv = ("reconstruct", series, "--method", "wbp", "--no-assess", "--no-align", "--out", "run", "--resume")
    Path("run/run.json").write_text("{")
    assert "run.json" in refused(*argv)
    Path("run/config.toml").write_text("[solving")
    assert "config.toml" in refused(*argv)
    os.remove("run/reconstruction.h5")
    assert "unfinished" in refused("report", "run")
    Path("run/reconstruction.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "reconstruction.h5" in refused("report", "run")


def test_spectral_maps_need_a_channel(refused, images):
    jt.write("maps.h5", jt.TiltSeries(np.stack([images, 2 * images]), np.arange(-60.0, 61, 10), 1.0))
    assert "--channel" in refused("reconstruct", "maps.h5", "--method", "wbp", "--no-assess", "--no-align")
    assert "0 to 1" in refused(
        "reconstruct", "maps.h5", "--method", "wbp", "--no-assess", "--no-align", "--channel", "5"
    )
    argv = [
        "reconstruct",
        "maps.h5",
        "--method",
        "wbp",
        "--no-assess",
        "--no-align",
        "--channel",
        "1",
        "--out",
        "run",
        "--quiet",
    ]
    assert cli.main(argv) == 0


@pytest.mark.parametrize("command", ["quantify", "atoms"])
def test_a_series_is_no_volume_to_measure(command, refused, series):
    message = refused(command, series)
    assert str(series) in message and "13 images" in message and "jaxtomo reconstruct" in message
