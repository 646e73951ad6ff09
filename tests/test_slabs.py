"""Slabs between two files: the same volume as in one piece, whatever happens on the way."""

import errno
import json
import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtomo as jt
from jaxtomo import cli, phantoms, plan, prepare, run_folder, simulate
from jaxtomo.commands import device, running, solving, streaming
from jaxtomo.io.stored import Stored
from jaxtomo.plan import HALO, PROGRAM, Memory
from jaxtomo.prepare import rows_of
from jaxtomo.slabs import Survey, cuts, for_report, reconstruct_slabs, survey, whole
from jaxtomo.solve import scanned
from jaxtomo.solvers.fit import rough

pytestmark = pytest.mark.optimised(False)


@pytest.fixture(scope="module", params=["supported_particles", "tissue"])
def specimen(request):
    """A noisy series of 15 tilts, 48 rows of 24 pixels; with shifts of whole pixels and masked corners."""
    fine = getattr(phantoms, request.param)((48, 96, 48), seed=3)
    series, _, pose = simulate.simulate(fine, np.linspace(-60, 60, 15), simulate.Microscope(dose=200), 0, 1.0)
    mask = np.ones(series.images.shape, bool)
    mask[:, :3, :5] = False
    return series.replace(mask=mask), pose.replace(shift=jnp.asarray(np.arange(30).reshape(15, 2) % 3 - 1.0))


def in_slabs(specimen, solver, steps, slabs, margin, order=None, **watched):
    """The volume `[z, y, x]` from slabs, and how often a step was compiled."""
    series, pose = specimen
    height, width = series.images.shape[1:]
    volume = np.full((width, height, width), np.nan, np.float32)

    def read(rows):
        return jt.Problem(*rows_of(series, pose, rows))

    def write(slab, part, energy):
        assert energy >= 0 and np.isnan(volume[:, slab.kept]).all()
        volume[:, slab.kept] = part.volume[:, slab.inside]
        return lambda: None

    parts = cuts(height, slabs, margin)
    before = scanned._cache_size()
    watch = watched.get("callbacks", lambda slab: [])
    reconstruct_slabs(
        parts if order is None else [parts[i] for i in order], read, write, solver, steps, callbacks=watch
    )
    return volume, scanned._cache_size() - before


def total(specimen, slabs):
    """What `tv` has to know of the whole."""
    series, pose = specimen
    parts = cuts(series.images.shape[1], slabs, HALO)
    found = survey(parts, lambda rows: jt.Problem(*rows_of(series, pose, rows)), lambda slab: None)
    return whole(found, int(np.prod(jt.Problem(series, pose).shape)))


def one_piece(specimen, solver, steps):
    return jt.reconstruct(jt.Problem(*specimen), solver, steps, callbacks=[], assess=False).volume


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 101])
@pytest.mark.parametrize("slabs", [1, 2, 5, 7, 200])
@pytest.mark.parametrize("margin", [0, 2, 8])
def test_slabs_cover_all_rows_once_and_have_one_shape(rows, slabs, margin):
    parts = cuts(rows, slabs, margin)
    assert [row for part in parts for row in range(part.kept.start, part.kept.stop)] == list(range(rows))
    assert len({part.computed.stop - part.computed.start for part in parts}) == 1 and len(parts) == min(rows, slabs)
    for part in parts:
        assert part.computed.start <= max(0, part.kept.start - margin)
        assert min(rows, part.kept.stop + margin) <= part.computed.stop <= rows
        assert part.computed.start + part.inside.start == part.kept.start
        assert part.inside.stop - part.inside.start == part.kept.stop - part.kept.start


@pytest.mark.parametrize("make", [jt.wbp, jt.sirt, jt.sart])
@pytest.mark.parametrize("slabs", [3, 60])
def test_independent_slices_are_the_same_in_slabs(make, slabs, specimen):
    solver = make()
    steps = 1 if make is jt.wbp else 4
    expected = one_piece(specimen, solver, steps)
    volume, compiled = in_slabs(specimen, solver, steps, slabs, plan.MARGIN)
    np.testing.assert_allclose(volume, expected, atol=2e-5 * np.abs(expected).max())
    assert compiled <= 1


def test_shifts_of_parts_of_a_pixel_do_not_show(specimen):
    series, pose = specimen
    shift = np.random.default_rng(0).uniform(-2, 2, (15, 2))
    moved = series, pose.replace(shift=jnp.asarray(shift, jnp.float32))
    expected = one_piece(moved, jt.sirt(), 10)
    volume, _ = in_slabs(moved, jt.sirt(), 10, 4, plan.MARGIN)
    assert np.abs(volume - expected).max() < 0.01 * expected.max()


def test_a_survey_of_slabs_knows_the_whole(specimen):
    problem = jt.Problem(*specimen)
    for slabs in (1, 2, 5):
        found = total(specimen, slabs)
        assert found.energy == pytest.approx(float(jnp.sum(problem.weights * problem.images**2)), rel=1e-4)
        assert found.density == pytest.approx(float(rough(problem)[1]), rel=1e-4)
        assert found.voxels == 24 * 48 * 24
    assert whole([Survey(0.0, 0.0, 0.0, 0.0)], 8).density == 1


@pytest.mark.optimised(True)
def test_total_variation_in_slabs_is_that_of_the_whole(specimen):
    """At any number of steps, and at the seams too: nearer to the one piece than that is to its own minimum when its
    gap is 1 %, where a run stops."""
    known, compiled = total(specimen, 3), 0
    expected = {steps: one_piece(specimen, jt.tv(0.3), steps) for steps in (40, 200, 800)}
    for steps in (40, 200):
        volume, new = in_slabs(specimen, jt.tv(0.3, known), steps, 3, HALO, order=[1, 2, 0])
        compiled += new
        left = np.linalg.norm(expected[200] - expected[800]) / np.linalg.norm(expected[800])
        error = np.linalg.norm(volume - expected[steps]) / np.linalg.norm(expected[steps])
        seams = [15, 16, 31, 32]
        at_seams = np.linalg.norm((volume - expected[steps])[:, seams]) / np.linalg.norm(expected[steps][:, seams])
        assert error < left and at_seams < left, (error, at_seams, left)
    assert compiled <= 1


def test_a_slab_without_signal_stays_empty(specimen):
    series, pose = specimen
    images = series.images.copy()
    images[:, :28] = 0
    dark = series.replace(images=images), pose.replace(shift=None)
    volume, _ = in_slabs(dark, jt.tv(0.3, total(dark, 6)), 20, 6, HALO)
    assert np.isfinite(volume).all() and (volume[:, :16] == 0).all() and volume[:, 32:].max() > 0


def test_all_slabs_take_as_many_steps_as_the_first(specimen):
    taken = []

    def watch(slab):
        first = not taken
        taken.append(0)

        def count(now):
            taken[-1] = now.step
            return "enough" if first and now.step >= 6 else None

        return [count]

    in_slabs(specimen, jt.sirt(), 30, 4, plan.MARGIN, callbacks=watch)
    assert taken[0] < 30 and taken == [taken[0]] * 4


def test_what_goes_wrong_in_a_thread_is_told(specimen):
    series, pose = specimen

    def read(rows):
        if rows.start:
            raise OSError("gone")
        return jt.Problem(*rows_of(series, pose, rows))

    def full(*_):
        raise OSError("full")

    def fine(*_):
        return lambda: None

    def near(rows):
        return read(slice(0, 20))

    for reading, write, message in ((read, fine, "gone"), (near, full, "full"), (near, lambda *_: full, "full")):
        with pytest.raises(OSError, match=message):
            reconstruct_slabs(cuts(48, 4, 2), reading, write, jt.wbp(), 1, callbacks=lambda slab: [])


def test_stored_arrays_read_like_numpy(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    stored = Stored(tmp_path / "a", array.shape, offset=12).allocate()
    assert (stored.ndim, stored.end) == (3, 12 + array.nbytes) and (stored[...] == 0).all()
    for rows in (slice(0, 2), slice(5, 6), slice(2, 5)):
        stored.put(rows, array[:, rows])
    for index in (0, np.s_[1:3], np.s_[..., 2:4, :], np.s_[:, 1], np.s_[[0, 3]], np.s_[:, ::2, :3]):
        np.testing.assert_array_equal(stored[index], array[index])
    np.testing.assert_array_equal(np.asarray(stored), array)
    assert [image.shape for image in stored] == [(6, 7)] * 5


def test_a_series_on_disk_is_the_same_series(specimen, tmp_path):
    series, pose = specimen
    stored = prepare.on_disk(series, tmp_path)
    for rows in (slice(0, 48), slice(3, 9), slice(47, 48)):
        for there, here in zip(rows_of(stored, pose, rows), rows_of(series, pose, rows), strict=True):
            for name in ("images", "mask") if isinstance(here, jt.TiltSeries) else ("shift",):
                np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    np.testing.assert_array_equal(prepare.binned(stored, 2).images, prepare.binned(series, 2).images)
    small = [for_report(jt.Reconstruction(np.zeros((8, 48, 24)), pose, s), 16) for s in (stored, series)]
    np.testing.assert_array_equal(small[0].series.images, small[1].series.images)
    with pytest.MonkeyPatch.context() as patch:
        usage = namedtuple("usage", "total used free")
        patch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 0))
        with pytest.raises(jt.InputError, match="free"):
            prepare.on_disk(series, tmp_path)


@pytest.mark.parametrize("name", ["s.mrc", "s.h5", "s.npy"])
@pytest.mark.parametrize("factor", [1, 2])
def test_reading_to_disk_is_reading(name, factor, specimen, tmp_path, monkeypatch):
    """A few rows at a time, with borders of an earlier alignment, and turned by a quarter."""
    series = specimen[0].replace(mask=None)
    images = series.images + 5 + np.random.default_rng(0).normal(0, 0.1, series.images.shape).astype(np.float32)
    images[4, :6] = images[4].mean()
    jt.write(tmp_path / name, series.replace(images=images))
    given = {"angles": series.tilt_deg, "pixel_nm": 1.0}
    for part, axis in ((4 * 15 * 24 * 9, "y"), (1, "y"), (1 << 30, "y"), (4 * 15 * 48 * 5, "x")):
        monkeypatch.setattr(prepare, "PART", part)
        expected = prepare.read_binned(tmp_path / name, factor, **given, tilt_axis=axis)
        stored = prepare.read_to_disk(tmp_path / name, tmp_path, factor, **given, tilt_axis=axis)
        assert isinstance(stored.images, Stored) and stored.mask is None
        np.testing.assert_array_equal(stored.images, expected.images)
        assert set(stored.provenance) == set(expected.provenance)
        (clean, pose), (there, same) = prepare.as_it_is(expected), prepare.as_it_is(stored)
        np.testing.assert_array_equal(there.images, clean.images)
        assert (there.mask is None) == (clean.mask is None) and np.array_equal(same.tilt, pose.tilt)
        if clean.mask is not None:
            np.testing.assert_array_equal(there.mask, clean.mask)
        assert there.provenance["background"] == clean.provenance["background"]


def test_reading_to_disk_refuses_what_reading_refuses(tmp_path):
    given = {"angles": np.arange(5.0), "tilt_axis": "y", "pixel_nm": 1.0}
    images = np.random.default_rng(0).normal(size=(5, 16, 16)).astype(np.float32)
    np.save(tmp_path / "equal.npy", np.ones_like(images))
    with pytest.raises(jt.InputError, match="equal"):
        prepare.read_to_disk(tmp_path / "equal.npy", tmp_path, **given)
    images[2, 3, 4] = np.nan
    np.save(tmp_path / "nan.npy", images)
    with pytest.raises(jt.InputError, match="NaN"):
        prepare.read_to_disk(tmp_path / "nan.npy", tmp_path, **given)
    filled = prepare.read_to_disk(tmp_path / "nan.npy", tmp_path, **given, fill_nan=True)
    assert np.asarray(filled.mask).sum() == images.size - 1
    with pytest.raises(jt.InputError, match="Bin by 2"):
        prepare.read_to_disk(tmp_path / "nan.npy", tmp_path, 3, **given, fill_nan=True)


# Through the command line.


@pytest.fixture
def command(capfd, monkeypatch, tmp_path):
    """Runs a command with --json in a folder of the test: (exit code, document)."""
    monkeypatch.setattr(device, "start", lambda: None)
    monkeypatch.setattr(running, "report", lambda path, result: path.write_text(f"{result.volume.shape}"))
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        capfd.readouterr()
        code = cli.main([*map(str, argv), "--json"])
        return code, json.loads(capfd.readouterr().out)

    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """17 shifted images of 24 × 40 pixels."""
    fine = phantoms.core_shell((48, 80, 48), seed=1)
    microscope = simulate.Microscope(dose=200, shift_jitter_px=1)
    series = simulate.simulate(fine, np.arange(-64.0, 65, 8), microscope, 0, 1.0)[0]
    path = tmp_path_factory.mktemp("series") / "core.mrc"
    jt.write(path, series)
    return path


TV = ("--method", "tv", "--weight", "0.3", "--steps", "12", "--no-assess")


def test_a_run_of_total_variation_in_slabs(command, file):
    """Aligned, with a chosen weight, held-out tilts and a judgement; nothing but results is left."""
    argv = ("reconstruct", file, "--steps", "6", "--hold-out", "3")
    code, one = command(*argv, "--out", "whole")
    assert code == 0
    code, parts = command(*argv, "--slabs", "3", "--zarr", "--out", "parts")
    assert code == 0 and parts["weight"] == one["weight"] and "3 slabs" in parts["message"]
    assert parts["metrics"]["misfit"] == pytest.approx(one["metrics"]["misfit"], rel=1e-2)
    assert parts["metrics"]["prediction_error"] > 0 and parts["metrics"]["held_out_error"] > 0
    volumes = [jt.read_volume(f"{name}/volume.mrc") for name in ("whole", "parts")]
    assert np.linalg.norm(volumes[1][0] - volumes[0][0]) < 5e-3 * np.linalg.norm(volumes[0][0])
    assert volumes[1][1] == volumes[0][1] and {*os.listdir("parts")} == {*os.listdir("whole"), "volume.zarr"}
    np.testing.assert_array_equal(jt.read_volume("parts/volume.zarr")[0], volumes[1][0])
    np.testing.assert_array_equal(jt.read_volume("parts/reconstruction.h5", dataset="volume")[0], volumes[1][0])
    assert Path("parts/volume.rawtlt").read_text() == Path("whole/volume.rawtlt").read_text()
    kept = [
        jt.read(f"{name}/reconstruction.h5", dataset="series/data", angles="-64:64:8", tilt_axis="y", pixel_nm=1)
        for name in ("whole", "parts")
    ]
    np.testing.assert_array_equal(kept[0].images, kept[1].images)


def interrupted_in(monkeypatch, slab):
    """Sends Ctrl-C to this process while the slab of that number is computed."""
    counted = iter(range(100))

    def progress():
        now_here = next(counted) == slab
        return lambda now: os.kill(os.getpid(), signal.SIGINT) if now_here and now.message is None else None

    monkeypatch.setattr(solving, "progress", progress)


def test_a_resumed_run_in_slabs_equals_an_uninterrupted_one(command, file, monkeypatch):
    argv = ("reconstruct", file, *TV, "--slabs", "3", "--no-align", "--out", "run")
    assert command(*argv)[0] == 0
    straight = {name: Path("run", name).read_bytes() for name in ("volume.mrc", "metrics.jsonl")}
    names = {*os.listdir("run")}
    for slab in (0, 2):
        with monkeypatch.context() as patch:
            interrupted_in(patch, slab)
            assert command(*argv, "--overwrite")[0] == 130
        record = json.loads(Path("run/checkpoint/slabs.json").read_text())
        assert len(record["finished"]) == slab and len(record["surveys"]) == 3
        assert not any(Path("run", name).exists() for name in (*run_folder.RESULTS, ".work"))
        with monkeypatch.context() as patch:
            patch.setattr(streaming, "survey", None)  # is not made again
            assert command(*argv, "--resume")[0] == 0
        assert {*os.listdir("run")} == names
        for name, content in straight.items():
            assert Path("run", name).read_bytes() == content


def test_a_run_keeps_the_slabs_that_it_was_begun_with(command, file, monkeypatch):
    monkeypatch.setattr(device, "memory", lambda most: Memory(PROGRAM + 8_000_000))
    argv = ("reconstruct", file, "--method", "sirt", "--steps", "4", "--no-assess", "--thickness", "600")
    code, planned = command(*argv, "--dry-run")
    assert code == 0 and planned["slabs"] > 1 and "fewest" in planned["slabs_because"]
    with monkeypatch.context() as patch:
        interrupted_in(patch, 1)
        assert command(*argv, "--out", "run")[0] == 130
    monkeypatch.setattr(device, "memory", lambda most: Memory(10**12))
    code, facts = command(*argv, "--out", "run", "--resume")
    assert code == 0 and facts["slabs"] == planned["slabs"] and f"{planned['slabs']} slabs" in facts["message"]
    assert command(*argv, "--dry-run")[1]["slabs"] == 1


def test_thin_slabs_and_one_slice(command, file):
    assert command("reconstruct", file, *TV, "--no-align", "--slabs", "99", "--slab", "10:22", "--out", "thin")[0] == 0
    assert command("reconstruct", file, *TV, "--no-align", "--slab", "10:22", "--out", "whole")[0] == 0
    volumes = [jt.read_volume(f"{name}/volume.mrc")[0] for name in ("thin", "whole")]
    assert np.linalg.norm(volumes[0] - volumes[1]) < 5e-3 * np.linalg.norm(volumes[1])
    code, facts = command(
        "reconstruct", file, *TV, "--no-align", "--slab", "8:9", "--slabs", "2", "--thickness", "16", "--out", "slice"
    )
    assert code == 0 and facts["shape"] == [16, 1, 24]


def test_a_full_disk_leaves_what_was_finished_or_nothing(command, file, monkeypatch):
    argv = ("reconstruct", file, *TV, "--slabs", "3", "--no-align", "--out", "run")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 0))
        code, told = command(*argv)
        assert code == 3 and "free" in told["error"] and not Path("run").exists()
    real = Stored.put

    def full(self, rows, block):
        if self.path.name == streaming.VOLUME and rows.start > 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, rows, block)

    with monkeypatch.context() as patch:
        patch.setattr(Stored, "put", full)
        code, told = command(*argv)
    assert code == 3 and "no space left" in told["error"] and not Path("run/volume.mrc").exists()
    kept = Path("run/checkpoint/slabs.json")
    assert not kept.exists() or len(json.loads(kept.read_text())["finished"]) <= 1
    assert command(*argv, *(["--resume"] if kept.exists() else []))[0] == 0


def test_a_lost_volume_is_made_again(command, file, monkeypatch):
    argv = ("reconstruct", file, *TV, "--slabs", "3", "--out", "run")
    with monkeypatch.context() as patch:
        interrupted_in(patch, 2)
        assert command(*argv)[0] == 130
    os.remove(f"run/checkpoint/{streaming.VOLUME}")
    assert command(*argv, "--resume")[0] == 0


def test_unreadable_input_leaves_an_old_run_alone(command, file):
    argv = ("--method", "sirt", "--steps", "2", "--no-assess", "--slabs", "2", "--out", "run")
    assert command("reconstruct", file, *argv)[0] == 0
    before = {name: Path("run", name).read_bytes() for name in os.listdir("run")}
    images = jt.read(file).images.copy()
    images[3, 4, 5] = np.nan
    np.save("nan.npy", images)
    given = ("--angles", "-64:64:8", "--tilt-axis", "y", "--pixel-nm", "1", "--overwrite")
    assert command("reconstruct", "nan.npy", *argv, *given)[0] == 3
    assert {name: Path("run", name).read_bytes() for name in os.listdir("run")} == before
    turned = ("--no-align", "--tilt-axis", "5")
    code, told = command("reconstruct", file, *turned, *argv[:-1], "other")
    assert code == 3 and "mixed" in told["error"] and not Path("other").exists()


def test_slabs_are_as_few_as_fit():
    one = plan.Plan("tv", 61, 256, 256, 256, steps=10)
    assert plan.fewest_slabs(one, Memory(10**12)).slabs == 1 and plan.fewest_slabs(one, Memory(None)).slabs == 1
    for method in plan.SLICED:
        for share in (0.9, 0.5, 0.3):
            run = plan.Plan(method, 61, 256, 512, 512, steps=10)
            memory = Memory(PROGRAM + int(share * (run.host_bytes - PROGRAM)))
            chosen = plan.fewest_slabs(run, memory)
            assert plan.fits(chosen, memory) and chosen.slabs > 1
            assert all(
                not plan.fits(plan.replace(run, slabs=fewer), memory)
                for fewer in range(1, chosen.slabs)
                if -(-256 // fewer) > -(-256 // chosen.slabs)
            )
    assert plan.fewest_slabs(plan.Plan("cgls", 61, 256, 256, 256, steps=10), Memory(10**9)).slabs == 1
    assert not plan.fits(plan.fewest_slabs(one, Memory(10)), Memory(10))
    assert jax.default_backend() == "cpu"
