"""What is counted and measured is what is there."""

import csv
import functools
import json

import numpy as np
import pytest
from scipy import ndimage

import jaxtomo as jt
from jaxtomo import cli, quantify
from jaxtomo.quantify import Search


def balls(places, shape=(48, 48, 48), value=1.0, noise=0.0, seed=0):
    """Ellipsoids `(z, y, x, rz, ry, rx)` in voxels, their edges a voxel soft."""
    grid = np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")
    volume = np.zeros(shape)
    for place in places:
        centre, radii = np.array(place[:3]), np.array(place[3:])
        far = np.sqrt(sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)))
        volume = np.maximum(volume, value * np.clip(0.5 + (1 - far) * radii.min(), 0, 1))
    return volume + noise * np.random.default_rng(seed).normal(size=shape)


THREE = [(12, 12, 12, 8, 8, 8), (34, 14, 30, 6, 6, 6), (20, 36, 34, 9, 4, 4)]


def test_balls_have_their_sizes_and_places():
    found = quantify.particles(balls(THREE), voxel_nm=2.0)
    table = found.table
    assert found.summary["count"] == 3 and found.unit == "nm" and found.labels.max() == 3
    np.testing.assert_allclose(table["diameter"], 2 * np.array([16, 12, 2 * (9 * 16) ** (1 / 3)]), rtol=0.02)
    np.testing.assert_allclose(np.stack([table[a] for a in "zyx"], 1), [t[:3] for t in THREE], atol=0.05)
    np.testing.assert_allclose(table["aspect"], [1, 1, 2.25], rtol=0.04)
    np.testing.assert_allclose(table["elongation"], [1, 1, 2.25], rtol=0.04)
    np.testing.assert_allclose(table["length"][2], 36, rtol=0.03)
    assert table["tilted"][2] < 2
    np.testing.assert_allclose(table["surface"][:2], [np.pi * 32**2, np.pi * 24**2], rtol=0.02)
    np.testing.assert_allclose(table["sphericity"], [1, 1, 0.906], atol=0.015)
    centres = np.array([t[:3] for t in THREE], float)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + 1e9 * np.eye(3)
    np.testing.assert_allclose(table["neighbour"], 2 * apart.min(1), rtol=0.01)


@pytest.mark.parametrize("axis", range(3))
def test_directions_are_told_apart(axis):
    radii = np.full(3, 4.0)
    radii[axis] = 10
    table = quantify.particles(balls([(24, 24, 24, *radii)])).table
    assert table["tilted"][0] == pytest.approx(0 if axis == 0 else 90, abs=2)
    assert table["elongation"][0] == pytest.approx(2.5 if axis == 0 else 1 / np.sqrt(2.5), rel=0.05)


def test_touching_bodies_are_parted_where_asked():
    volume = balls([(24, 24, 16, 8, 8, 8), (24, 24, 30, 8, 8, 8)])
    assert quantify.particles(volume).summary["count"] == 1
    table = quantify.particles(volume, search=Search(split=1.0)).table
    np.testing.assert_allclose(sorted(table["x"]), [16, 30], atol=0.5)
    assert quantify.particles(balls(THREE[2:]), search=Search(split=1.0)).summary["count"] == 1
    plate = volume.copy()
    plate[40:44, 8:40, 8:40] = 1  # thinner than what is asked of a neck, and still there
    assert quantify.particles(plate, search=Search(split=4.0)).table["z"].max() > 40


def test_what_is_small_or_cut_does_not_count_as_whole():
    volume = balls([(24, 24, 24, 8, 8, 8), (24, 24, 0, 8, 8, 8), (5, 5, 40, 1, 1, 1)])
    found = quantify.particles(volume)
    np.testing.assert_array_equal(found.table["whole"], [1, 0])
    assert found.summary["count"] == 2 and found.summary["cut"] == 1 and found.sizes.size == 1
    assert found.summary["diameter_mean"] == pytest.approx(16, rel=0.02) and found.summary["diameter_std"] == 0


def test_three_classes_find_particles_on_a_support():
    volume = balls([(24, 24, 24, 8, 8, 8)], noise=0.02)
    volume[20:28] = np.maximum(volume[20:28], 0.35)
    two, three = quantify.thresholds(volume), quantify.thresholds(volume, 3)
    assert len(two) == 1 and 0.1 < three[0] < 0.35 < three[1] < 0.9
    found = quantify.particles(volume, search=Search(classes=3))
    assert found.summary["count"] == 1 and found.table["diameter"][0] == pytest.approx(16, rel=0.05)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_few_voxels_of_matter_are_found_in_much_of_nothing(noise):
    volume = balls([(40, 40, 40, 4, 4, 4)], (80, 80, 80), noise=noise)
    found = quantify.particles(volume)
    assert found.summary["count"] == 1 and found.table["diameter"][0] == pytest.approx(8, rel=0.06)


def test_volumes_of_two_values_have_their_surface_midway():
    cube = np.zeros((16, 16, 16))
    cube[4:12, 4:12, 4:12] = 3
    found = quantify.particles(cube)
    assert found.threshold == 1.5 and found.table["volume"][0] == 512
    assert found.table["surface"][0] == pytest.approx(6 * 64, rel=0.1)
    ends = quantify.intervals(found)["volume"]
    assert ends.low[0] == ends.high[0] == 512
    with pytest.raises(jt.InputError, match="fewer than 3"):
        quantify.particles(cube, search=Search(classes=3))
    cube[7:9, 7:9, 7:9] = 0
    assert quantify.pores(cube, search=Search(threshold=0, smallest=8)).table["volume"][0] == 8


def test_noise_around_a_specimen_is_none_of_its_pores():
    solid = balls([(24, 24, 24, 15, 15, 15)])
    holes = balls([(24, 24, 24, 5, 5, 5)])
    found = quantify.pores(np.clip(solid - holes, 0, 1) + balls([], noise=0.2))
    assert found.summary["fraction"] == pytest.approx(5**3 / 15**3, abs=0.02)


def test_pores_and_porosity():
    """Closed ones and one that opens to the outside; a hollow is no pore if it is wider than the reach."""
    solid = balls([(24, 24, 24, 18, 18, 18)])
    holes = balls([(24.3, 18.2, 20.4, 5, 5, 5), (24.4, 30.3, 30.2, 4, 4, 4), (7, 24, 24, 4, 4, 4)])
    found = quantify.pores(np.clip(solid - holes, 0, 1), search=Search(threshold=0.5))
    assert found.summary["count"] == 3 and found.sign == -1
    np.testing.assert_allclose(found.table["diameter"][:2], [10, 8], rtol=0.03)
    assert found.summary["fraction"] == pytest.approx((5**3 + 4**3 + 0.36 * 4**3) / 18**3, rel=0.03)
    assert (found.table["intensity"] < 0.5).all() and (found.table["intensity"] >= 0).all()
    wide = np.clip(solid - balls([(24, 24, 44, 16, 16, 16)]), 0, 1)
    assert quantify.pores(wide, search=Search(threshold=0.5, reach=2.0)).summary["fraction"] < 0.05


@pytest.mark.parametrize("threshold", [0.35, 0.5, 0.6])
@pytest.mark.parametrize("support", [0.0, 0.3])
def test_bodies_end_at_half_height_however_they_are_found(threshold, support):
    """On a support or on nothing, bright or less so, and blurred: half height is where their surface was."""
    volume = balls([(16, 24, 12, 7, 7, 7)]) + balls([(32, 24, 34, 6, 6, 6)], value=0.8)
    blurred = ndimage.gaussian_filter(np.maximum(volume, support * (np.arange(48)[:, None, None] > 24)), 0.8)
    found = quantify.particles(blurred, search=Search(threshold=threshold + support / 3))
    np.testing.assert_allclose(found.table["diameter"], [14, 12], rtol=0.06)
    ends = quantify.intervals(found)["diameter"]
    assert (ends.high - ends.low < 1.2).all() and (ends.high - ends.low > 0.2).all()


@pytest.mark.parametrize("seed", range(4))
def test_bodies_are_of_one_piece_and_largest_first(seed):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(40, 40, 40)), 2)
    labels = quantify.particles(field, search=Search(threshold=float(np.quantile(field, 0.9)))).labels
    sizes = np.bincount(labels.ravel())[1:]
    assert len(sizes) > 5 and (np.diff(sizes) <= 0).all()
    assert all(ndimage.label(labels == k)[1] == 1 for k in range(1, labels.max() + 1))


def test_what_is_too_small_joins_no_neighbour():
    volume = np.zeros((20, 20, 20))
    volume[4:10, 4:10, 4:10] = volume[5:7, 5:7, 11:13] = 1
    assert np.count_nonzero(quantify.particles(volume).labels) == 216


@pytest.mark.optimised(False)
def test_intervals_cover_what_samples_are_drawn_around():
    """About nine of ten bodies: every sample has its own sizes, as the truth has."""
    rng, inside, widths = np.random.default_rng(0), [], []
    find = functools.partial(quantify.particles, search=Search(threshold=0.5))
    for _ in range(12):
        radii = 5 + rng.normal(0, 0.3, (6, 5))
        truth, *samples = (
            balls([(*t[:3], r, r, r) for t, r in zip(PLACES, row, strict=True)]) for row in radii.T[:, :]
        )
        bodies = find(np.mean(samples, 0))
        ends = quantify.intervals(bodies, samples)
        real = find(truth).table
        order = [
            int(np.argmin(np.hypot(real["z"] - z, real["x"] - x)))
            for z, x in zip(*(bodies.table[a] for a in "zx"), strict=True)
        ]
        volumes = real["volume"][order]
        inside += [*((ends["volume"].low < volumes) & (volumes < ends["volume"].high))]
        assert ends["count"].low[0] == ends["count"].high[0] == 6
        widths += [*((ends["volume"].high - ends["volume"].low) / bodies.table["volume"])]
    assert 0.8 < np.mean(inside) < 0.99 and len(inside) == 72
    # Of volumes that vary by 18 %, with five samples each.
    assert np.median(widths) < 1.2


PLACES = [(z, 24, x) for z in (12, 36) for x in (10, 24, 38)]


def test_a_body_that_samples_lack_may_be_nothing():
    bodies = quantify.particles(balls(THREE), search=Search(threshold=0.5))
    samples = [balls(THREE), balls(THREE[:2]), balls(THREE)]
    ends = quantify.intervals(bodies, samples)
    which = int(np.argmax(bodies.table["aspect"]))
    assert ends["volume"].low[which] == 0 < bodies.table["volume"][which] and ends["count"].low[0] < 3
    empty = quantify.intervals(bodies, [*samples, 0 * samples[0]])
    assert (empty["diameter"].low == 0).all() and (empty["tilted"].high <= 90).all()
    with pytest.raises(jt.InputError, match="2 or more"):
        quantify.intervals(bodies, samples[:1])
    broken = np.where(samples[0] > 0.9, np.inf, samples[0])
    with pytest.raises(jt.InputError, match="sample 2"):
        quantify.intervals(bodies, [samples[0], broken])


@pytest.mark.parametrize(
    ("volume", "options", "said"),
    [
        (np.zeros((8, 8)), {}, "z, y, x"),
        (np.zeros((8, 8, 8)), {}, "even"),
        (np.full((8, 8, 8), np.nan), {}, "not finite"),
        (balls(THREE), {"threshold": 5.0}, "no voxel"),
        (balls(THREE), {"threshold": -5.0}, "every voxel"),
        (balls(THREE), {"classes": 9}, "2 to 5"),
    ],
)
def test_what_cannot_be_measured_is_said(volume, options, said):
    with pytest.raises(jt.InputError, match=said):
        quantify.particles(volume, search=Search(**options))


def test_nothing_large_enough_is_an_empty_table(tmp_path):
    found = quantify.particles(balls([(24, 24, 24, 2, 2, 2)]), search=Search(smallest=1000))
    assert found.summary == {"count": 0, "cut": 0, "fraction": 0}
    quantify.write_table(tmp_path / "t.csv", found)
    assert (tmp_path / "t.csv").read_text().splitlines() == [",".join(found.table)]


def test_the_command_measures_a_volume(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jt.write("balls.mrc", balls(THREE).astype(np.float32), voxel_nm=2.0)
    assert cli.main(["quantify", "balls.mrc", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["summary"]["count"] == 3 and said["unit"] == "nm" and said["samples"] == 0
    low, high = said["intervals"]["diameter_mean"]
    assert low < said["summary"]["diameter_mean"] < high
    folder = tmp_path / "balls_particles"
    assert {p.name for p in folder.iterdir()} == {"bodies.csv", "summary.json", "labels.mrc", "bodies.png"}
    rows = [*csv.DictReader((folder / "bodies.csv").read_text().splitlines())]
    assert len(rows) == 3 and float(rows[0]["diameter"]) == pytest.approx(32, rel=0.02)
    labels, voxel_nm = jt.read_volume(folder / "labels.mrc")
    assert labels.max() == 3 and voxel_nm == 2
    assert cli.main(["quantify", "balls.mrc"]) == 3 and "--overwrite" in capsys.readouterr().err
    assert cli.main(["quantify", "balls.mrc", "--overwrite", "--threshold", "9"]) == 3
    assert "balls.mrc" in capsys.readouterr().err
    assert cli.main(["quantify", "balls.mrc", "--overwrite", "--pores", "--threshold", "0.5"]) == 0
    for wrong in (["--voxel-nm", "0"], ["--threshold", "nan"], ["--classes", "9"], ["--split", "-1"]):
        assert cli.main(["quantify", "balls.mrc", "--overwrite", *wrong]) == 2
    assert cli.main(["quantify", "nothing.mrc"]) == 3 and cli.main(["quantify"]) == 2
    assert cli.main(["quantify", str(tmp_path)]) == 3 and "no finished run" in capsys.readouterr().err


@pytest.mark.optimised(False)
def test_the_command_measures_a_run_with_its_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fine = balls([(24, 24, 24, 12, 12, 12)], (48, 48, 48)).astype(np.float32)
    series, _, _ = jt.simulate.simulate(fine, np.arange(-60, 61, 10.0), jt.simulate.Microscope(dose=50.0), pixel_nm=1.0)
    jt.write("series.mrc", series)
    arguments = ["reconstruct", "series.mrc", "--method", "sirt", "--steps", "20", "--members", "4", "--out", "run"]
    assert cli.main([*arguments, "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["quantify", "run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    low, high = said["intervals"]["diameter_mean"]
    assert said["samples"] == 4 and low < said["summary"]["diameter_mean"] < high < 1.5 * low
    assert said["summary"]["diameter_mean"] == pytest.approx(12, rel=0.15)
    header = (tmp_path / "run" / "particles" / "bodies.csv").read_text().splitlines()[0]
    assert "volume_low,volume_high" in header
    page = (tmp_path / "run" / "particles" / "report.html").read_text()
    assert 'id="particles"' in page and "elongation" in page
