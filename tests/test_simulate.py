"""Laws of the simulated microscope."""

import math

import numpy as np
import pytest

from jaxtomo import InputError, phantoms
from jaxtomo.shapes import Body, ball, render
from jaxtomo.simulate import Microscope, average, expose, simulate

TILTS = np.arange(-60, 61, 20)
PERFECT = Microscope(dose=math.inf)


@pytest.fixture(scope="module")
def fine():
    return phantoms.supported_particles((48, 48, 48), seed=1)


@pytest.fixture(scope="module")
def perfect(fine):
    return expose(fine, TILTS, PERFECT)


def marker(at, size=64, radius=0.06):
    """A ball at `at` (x, y, z in voxels of the truth, from the centre)."""
    return render((size, size, size), [Body(ball(radius), 1.0, np.array(at) / (size / 2), radius)])


def centroid(images):
    """(u, v) `[tilt, 2]` from the detector's centre."""
    _, ny, nx = images.shape
    mass = images.sum((1, 2), dtype=float)
    u = (images.sum(1, dtype=float) @ (np.arange(nx) - (nx - 1) / 2)) / mass
    v = (images.sum(2, dtype=float) @ (np.arange(ny) - (ny - 1) / 2)) / mass
    return np.stack([u, v], -1)


def test_truth_is_the_fine_volume_averaged(fine, perfect):
    expected = fine.reshape(24, 2, 24, 2, 24, 2).mean((1, 3, 5))
    np.testing.assert_allclose(perfect.truth, expected, atol=1e-6)
    assert perfect.series.images.shape == (len(TILTS), 24, 24)
    assert perfect.series.images.dtype == np.float32


def test_every_image_holds_the_mass_of_the_truth(perfect):
    mass = perfect.series.images.sum((1, 2), dtype=float)
    np.testing.assert_allclose(mass, perfect.truth.sum(dtype=float), rtol=5e-3)  # ray sums sample the detector


def test_ray_sums_are_in_voxels_of_the_truth():
    """A slab of density 0.5 and thickness 6 voxels shows 3, and 3 / cos at a tilt."""
    slab = np.zeros((32, 8, 64), np.float32)
    slab[10:22] = 0.5
    images = expose(slab, [0, 40], PERFECT).series.images
    np.testing.assert_allclose(images[0], 3, rtol=1e-5)
    np.testing.assert_allclose(images[1, :, 12:20], 3 / np.cos(np.deg2rad(40)), rtol=0.02)


def test_images_are_where_the_true_pose_says():
    x, y, z = at = (5.0, -4.0, 7.0)
    microscope = Microscope(
        math.inf,
        tilt_jitter_deg=3,
        shift_jitter_px=1.5,
        rotation_jitter_deg=4,
        magnification_jitter=0.03,
        second_tilt_jitter_deg=5,
    )
    exposure = expose(marker(at), TILTS, microscope, seed=3)
    tilt, second, turn, scale, shift = (
        np.asarray(getattr(exposure.pose, n), float)
        for n in ("tilt", "second_tilt", "rotation", "magnification", "shift")
    )
    across = x * np.cos(tilt) + (y * np.sin(second) + z * np.cos(second)) * np.sin(tilt)
    along = y * np.cos(second) - z * np.sin(second)
    u = scale * (across * np.cos(turn) - along * np.sin(turn)) + shift[:, 0]
    v = scale * (across * np.sin(turn) + along * np.cos(turn)) + shift[:, 1]
    np.testing.assert_allclose(centroid(exposure.clean), np.stack([u, v], -1), atol=0.05)


def test_the_series_says_the_nominal_angles_and_the_pose_the_true_ones():
    tilts = np.linspace(-60, 60, 400)
    microscope = Microscope(math.inf, tilt_jitter_deg=0.5, shift_jitter_px=2.0)
    series, _, pose = simulate(marker((0, 0, 0), size=16), tilts, microscope, seed=4)
    np.testing.assert_array_equal(series.tilt_deg, tilts)
    assert np.std(np.rad2deg(pose.tilt) - tilts) == pytest.approx(0.5, rel=0.15)
    np.testing.assert_allclose(np.std(pose.shift, axis=0), 2, rtol=0.15)
    assert pose.rotation is pose.magnification is pose.second_tilt is None


def test_dose_is_the_mean_count_and_its_noise_is_poisson(fine):
    exposure = expose(fine, TILTS, Microscope(dose=40), seed=5)
    mean = exposure.clean.mean(dtype=float)
    counts = exposure.series.images.astype(float) * 40 / mean
    expected = exposure.clean.astype(float) * 40 / mean
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-2)
    pixels = counts.size
    assert counts.mean() == pytest.approx(40, abs=4 * np.sqrt(40 / pixels))
    lit = expected > 20
    variance = np.mean((counts - expected)[lit] ** 2 / expected[lit])
    assert variance == pytest.approx(1, abs=5 * np.sqrt(2 / lit.sum()))
    assert counts[expected < 1e-6].max() == 0


def test_readout_noise_is_gaussian_of_the_stated_width(perfect, fine):
    exposure = expose(fine, TILTS, Microscope(math.inf, readout=0.2), seed=6)
    noise = (exposure.series.images - perfect.clean) / perfect.clean.mean()
    assert noise.std() == pytest.approx(0.2, rel=0.05)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert np.mean(noise**4) / np.mean(noise**2) ** 2 == pytest.approx(3, abs=0.4)


def test_gain_and_offset_are_what_happened_to_the_images(perfect, fine):
    exposure = expose(fine, TILTS, Microscope(math.inf, gain=0.2, offset=0.1), seed=7)
    expected = exposure.gain[:, None, None] * perfect.clean + exposure.offset[:, None, None]
    np.testing.assert_allclose(exposure.series.images, expected, rtol=1e-5, atol=1e-6)
    assert exposure.gain.min() > 0
    assert np.ptp(exposure.gain) > 0.05
    assert np.ptp(exposure.offset) > 0


def test_diffraction_adds_light_where_the_specimen_is(perfect, fine):
    exposure = expose(fine, TILTS, Microscope(math.inf, outliers=1.0), seed=8)
    np.testing.assert_allclose(exposure.series.images, perfect.clean + exposure.outliers, rtol=1e-5)
    assert exposure.outliers.min() >= 0
    struck = exposure.outliers.max((1, 2)) > 0
    assert 0 < struck.sum() < len(TILTS)
    assert np.all(exposure.outliers[perfect.clean == 0] == 0)
    assert np.all(exposure.outliers <= 3.01 * perfect.clean)


def test_everything_is_decided_by_the_seed(fine):
    microscope = Microscope(30, 0.05, 1, 1, 1, 0.01, gain=0.1, offset=0.1, outliers=0.5)
    one, same, other = (expose(fine, TILTS, microscope, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.series.images, same.series.images)
    np.testing.assert_array_equal(one.pose.shift, same.pose.shift)
    assert np.abs(one.series.images - other.series.images).max() > 0
    assert not np.array_equal(one.pose.tilt, other.pose.tilt)


def test_one_effect_leaves_the_draws_of_the_others(fine):
    few = expose(fine, TILTS, Microscope(math.inf, shift_jitter_px=1, gain=0.1), seed=1)
    more = expose(fine, TILTS, Microscope(math.inf, 0.1, 1, 1, gain=0.1, outliers=1), seed=1)
    np.testing.assert_array_equal(few.pose.shift, more.pose.shift)
    np.testing.assert_array_equal(few.gain, more.gain)


def test_the_wrong_sign_of_the_tilts_mirrors_the_specimen():
    """What the chiral phantom is for: mirrored in z, it makes the same images at the opposite tilts."""
    fine = phantoms.chiral((48, 48, 48))
    images = expose(fine, TILTS, PERFECT).series.images
    mirrored = expose(fine[::-1], -TILTS, PERFECT).series.images
    np.testing.assert_allclose(images, mirrored, atol=1e-3 * images.max())
    assert np.abs(images - expose(fine, -TILTS, PERFECT).series.images).max() > 0.2 * images.max()


def test_the_series_says_where_it_came_from(fine):
    series, _, _ = simulate(fine, TILTS, Microscope(dose=30, gain=0.1), seed=9, pixel_nm=0.5)
    assert series.pixel_nm == 0.5
    assert "seed 9" in series.provenance["images"]
    assert "dose 30" in series.provenance["images"]
    assert set(series.provenance) == {"images", "tilt_deg", "pixel_nm", "tilt_axis"}


def test_average_is_the_mean_of_pairs():
    volume = np.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    assert average(volume).shape == (1, 2, 3)
    assert average(volume)[0, 0, 0] == volume[:, :2, :2].mean()


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        (np.ones((4, 4)), "twice"),
        (np.ones((4, 5, 4)), "twice"),
        (-np.ones((4, 4, 4)), "negative"),
        (np.full((4, 4, 4), np.nan), "non-finite"),
        (np.zeros((4, 4, 4)), "none above 0"),
    ],
)
def test_bad_volume_is_named_with_its_cure(volume, words):
    with pytest.raises(InputError, match=words):
        simulate(volume, TILTS)


@pytest.mark.parametrize("tilts", [[], [0, math.nan]])
def test_bad_tilts_are_named_with_their_cure(tilts, fine):
    with pytest.raises(InputError, match="at least one angle"):
        simulate(fine, tilts)


@pytest.mark.parametrize(
    "settings", [{"dose": 0}, {"dose": -1}, {"gain": -0.1}, {"readout": math.nan}, {"offset": math.inf}]
)
def test_bad_microscope_is_named_with_its_cure(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Microscope(**settings)
