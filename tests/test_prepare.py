"""Between file and problem: binning, cutting rows, series that are aligned already, volumes made in slabs."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import jaxtomo as jt
from jaxtomo import phantoms, prepare
from jaxtomo.errors import DoesNotFitError, InputError
from jaxtomo.slabs import for_report


@pytest.fixture
def exposure():
    """A specimen, its pose with shifts, and what is seen of it."""
    rng = np.random.default_rng(0)
    volume = phantoms.core_shell((24, 24, 24), seed=2)
    tilt = np.arange(-60.0, 61, 15)
    pose = jt.Pose.nominal(tilt).replace(shift=jnp.asarray(rng.uniform(-3, 3, (tilt.size, 2)), jnp.float32))
    images = np.asarray(jt.project(volume, pose))
    return volume, jt.TiltSeries(images, tilt, 2.0, provenance={"images": "projected."}), pose


def test_binning_keeps_what_a_pixel_means(exposure):
    _, series, _ = exposure
    mask = np.ones(series.images.shape, bool)
    mask[0, 0, 0] = False
    small = prepare.binned(series.replace(mask=mask), 3)
    assert small.images.shape == (9, 8, 8) and small.pixel_nm == 6 and "Binned 3-fold" in small.provenance["images"]
    np.testing.assert_allclose(small.images[4, 2, 5], series.images[4, 6:9, 15:18].mean(), rtol=1e-5)
    assert not small.mask[0, 0, 0] and small.mask.sum() == small.mask.size - 1
    assert prepare.binned(series, 1) is series
    spectral = prepare.binned(series.replace(images=np.stack([series.images] * 2)), 2)
    assert spectral.images.shape == (2, 9, 12, 12)
    with pytest.raises(InputError, match="--bin"):
        prepare.binned(series, 4)


@pytest.mark.parametrize("tilt_axis", ["x", "y"])
def test_a_series_larger_than_memory_is_binned_as_it_is_read(exposure, tmp_path, monkeypatch, tilt_axis):
    _, series, _ = exposure
    np.save(tmp_path / "s.npy", series.images[:, :22])
    given = {"angles": "-60:60:15", "tilt_axis": tilt_axis, "pixel_nm": 2}
    whole = prepare.read_binned(tmp_path / "s.npy", 2, **given)
    read = prepare.read

    def small_memory(path, rows=None, **reading):
        if rows is None:
            raise DoesNotFitError("too large")
        return read(path, rows=rows, **reading)

    monkeypatch.setattr(prepare, "read", small_memory)
    parts = prepare.read_binned(tmp_path / "s.npy", 2, **given)
    np.testing.assert_array_equal(parts.images, whole.images)
    assert parts.pixel_nm == whole.pixel_nm == 4 and parts.mask is None


def test_rows_are_seen_where_the_whole_is(exposure):
    """Cutting by whole pixels and keeping the fraction in the pose changes nothing for the rows inside."""
    volume, series, pose = exposure
    part, part_pose = prepare.rows_of(series, pose, slice(6, 15))
    predicted = np.asarray(jt.project(volume[:, 6:15], part_pose))
    assert part.images.shape == (9, 9, 24) and np.abs(part_pose.shift[:, 1]).max() <= 0.5
    np.testing.assert_allclose(part.images[:, 1:-1], predicted[:, 1:-1], atol=1e-4 * series.images.max())
    end, _ = prepare.rows_of(series, pose, slice(0, 5))
    assert not end.mask.all() and end.mask.any()
    for rows in (slice(5, 5), slice(20, 25), slice(-3, 4)):
        with pytest.raises(InputError, match="0 to 24"):
            prepare.rows_of(series, pose, rows)
    with pytest.raises(InputError, match="mixed"):
        prepare.rows_of(series, pose.replace(rotation=jnp.zeros(9)), slice(3, 9))


def test_an_aligned_series_as_it_is(exposure):
    _, series, _ = exposure
    noisy = series.images + np.random.default_rng(1).normal(50, 0.1, series.images.shape).astype(np.float32)
    found, pose = prepare.as_it_is(series.replace(images=noisy))
    assert pose.shift is None and pose.rotation is None
    assert np.abs(found.images - series.images).mean() < 0.3 and "vacuum" in found.provenance["background"]
    kept, _ = prepare.as_it_is(series.replace(images=noisy), 0.0)
    np.testing.assert_array_equal(kept.images, noisy)
    _, pose = prepare.as_it_is(series.replace(tilt_axis_deg=2.0))
    np.testing.assert_allclose(pose.rotation, np.deg2rad(2), rtol=1e-6)


def test_shifts_are_taken_out_of_the_images(exposure):
    volume, series, pose = exposure
    still = np.asarray(jt.project(volume, pose.replace(shift=None)))
    moved = prepare.shifted(series, pose)
    difference = np.where(moved.mask, moved.images - still, 0)
    assert np.abs(difference).mean() < 0.3 * np.abs(series.images - still).mean()
    assert not moved.mask.all() and "splines" in moved.provenance["alignment"]
    assert prepare.shifted(series, pose.replace(shift=None)) is series


def test_a_coarse_result_for_the_report_still_predicts_its_images(exposure):
    volume, series, pose = exposure
    volume = gaussian_filter(volume, 2)
    series = series.replace(images=np.asarray(jt.project(volume, pose)))
    result = jt.Reconstruction(volume, pose, series)
    small = for_report(result, longest=12)
    assert small.volume.shape == (12, 12, 12) and small.series is not None and small.series.pixel_nm == 4
    predicted = np.asarray(jt.project(small.volume, small.pose))
    assert np.abs(predicted - small.series.images).mean() < 0.05 * small.series.images.mean()
    assert for_report(result, longest=24) is result
