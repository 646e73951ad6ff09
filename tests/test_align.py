"""Coarse alignment against specimens whose projections are known in closed form, and against the published needle."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxtomo as jt
from jaxtomo.alignment import align, apply, coarse
from jaxtomo.background import unmeasured, vacuum
from jaxtomo.correlate import bandpass, binned, centred, displacement, straightened
from jaxtomo.data import Pose
from jaxtomo.series import TiltSeries

SIZE = 96
SIXTY, SEVENTY, THIRTY = np.arange(-60, 61, 10.0), np.arange(-70, 71, 5.0), np.arange(-30, 31, 2.0)


def balls(name, seed):
    """Centres `[n, 3]` (x, y, z), radii and densities of a specimen of balls, in pixels of a 96-pixel image."""
    rng = np.random.default_rng(seed)
    count, box, radius = {
        "particles": (20, (52, 60, 30), (2.5, 7)),
        "few": (4, (40, 52, 24), (4, 8)),
        "film": (90, (190, 190, 8), (2, 5)),  # wider than the field in both directions
        "lamella": (400, (220, 220, 24), (2, 7)),
        "rod": (60, (14, 150, 14), (4, 7)),  # leaves the field along the axis
        "helix": (40, (0, 0, 0), (3, 3)),
    }[name]
    place = (rng.random((count, 3)) - 0.5) * box
    if name == "helix":
        turn = np.linspace(0, 4 * np.pi, count)
        place = np.stack([24 * np.cos(turn), np.linspace(-32, 32, count), 24 * np.sin(turn)], 1)
        place[0, 1] -= 3
    return place, rng.uniform(*radius, count), rng.uniform(0.5, 1.5, count)


def images(specimen, tilt_deg, shift, axis_deg=0.0, size=SIZE):
    """Exact ray sums through balls: a density times the chord 2 sqrt(r² - d²)."""
    place, radius, density = specimen
    c, s = np.cos(np.deg2rad(axis_deg)), np.sin(np.deg2rad(axis_deg))
    out = np.zeros((len(tilt_deg), size, size))
    for image, t, (u0, v0) in zip(out, np.deg2rad(tilt_deg), shift, strict=True):
        u, v = centred(size)[None, :] - u0, centred(size)[:, None] - v0
        across, along = u * c + v * s, v * c - u * s
        for (x, y, z), r, d in zip(place, radius, density, strict=True):
            where = x * np.cos(t) + z * np.sin(t)
            image += 2 * d * np.sqrt(np.maximum(r**2 - (across - where) ** 2 - (along - y) ** 2, 0))
    return out


def recorded(name, tilt_deg, seed=0, axis_deg=0.0, jitter=3.0, noise=0.04, gain=0.2):
    """A series with shifts, noise, gain jumps and a drifting background about -300, and its true shifts."""
    rng = np.random.default_rng(seed + 100)
    shift = jitter * rng.normal(size=(len(tilt_deg), 2))
    clean = images(balls(name, seed), tilt_deg, shift, axis_deg)
    noisy = clean + noise * clean.max() * rng.normal(size=clean.shape)
    gains, offsets = 1 + gain * rng.uniform(-1, 1, (len(tilt_deg), 1, 1)), rng.normal(-300, 1, (len(tilt_deg), 1, 1))
    return TiltSeries((gains * noisy + offsets).astype(np.float32), tilt_deg), shift


def disagreement(found, truth, tilt_deg, axis_deg=0.0):
    """RMS difference (u, v) in pixels of two alignments `[tilt, 2]` in the frame of the raw images.

    Only what no tilt series can tell is removed, by least squares over three numbers: a rigid movement of the specimen,
    a cos θ + b sin θ across the axis and c along it. No constant across the axis: that is the rotation centre.
    """
    tilt, axis = np.deg2rad(tilt_deg), np.deg2rad(axis_deg)
    across, along = np.array([np.cos(axis), np.sin(axis)]), np.array([-np.sin(axis), np.cos(axis)])
    gauge = [np.outer(np.cos(tilt), across), np.outer(np.sin(tilt), across), np.outer(np.ones_like(tilt), along)]
    basis, difference = np.stack([g.ravel() for g in gauge], 1), (np.asarray(found) - truth).ravel()
    rest = (difference - basis @ np.linalg.lstsq(basis, difference, rcond=None)[0]).reshape(-1, 2)
    return np.sqrt(np.mean((rest @ across) ** 2)), np.sqrt(np.mean((rest @ along) ** 2))


def in_raw_frame(alignment):
    """The shifts of an alignment as seen in the images before they were turned."""
    axis = np.deg2rad(alignment.axis_deg) if alignment.turn else 0.0
    c, s = np.cos(axis), np.sin(axis)
    return alignment.shift @ np.array([[c, s], [-s, c]])


def test_raw_needle_agrees_with_the_published_alignment(shared):
    data = np.load(shared / "needle_haadf_raw.npz")
    raw = np.rot90(data["projections"], k=-1, axes=(-2, -1)).astype(np.float32)
    series = TiltSeries(raw, data["tilts_deg"])
    alignment = coarse(series)
    # Turning by a quarter makes (y, x) of the published shifts (u, -v); their axis is turned against ours by its sign.
    axis = -float(data["etspy_tiltaxis_deg"])
    lateral = -float(data["etspy_global_yshift_px"]) * np.array([np.cos(np.deg2rad(axis)), np.sin(np.deg2rad(axis))])
    published = data["etspy_shifts_yx"] * [1, -1] + lateral
    u, v = disagreement(in_raw_frame(alignment), published, series.tilt_deg, axis)
    assert np.hypot(u, v) < 0.5  # the bar is 1.5
    assert abs(alignment.axis_deg - axis) < 0.3
    assert not alignment.suspect.any()
    aligned, _ = apply(series, alignment)
    assert np.allclose(alignment.background, np.median(raw, (1, 2)), rtol=0, atol=25)
    assert aligned.images.min() < 0  # subtracted, not clipped
    assert aligned.tilt_axis_deg == 0 and aligned.mask is not None and not aligned.mask.all()


@pytest.mark.parametrize(
    ("name", "tilt_deg", "bar"),
    [
        ("particles", SIXTY, 0.2),
        ("particles", THIRTY, 0.2),
        ("few", SEVENTY, 0.2),
        ("rod", SIXTY, 0.2),
        ("rod", SEVENTY, 0.2),
        ("helix", SIXTY, 0.3),  # turning a helix looks like moving it along its axis
        ("film", SIXTY, 0.35),
        ("film", THIRTY, 0.35),
        ("lamella", SEVENTY, 0.9),
    ],
)
def test_simulated_series(name, tilt_deg, bar):
    series, truth = recorded(name, tilt_deg, axis_deg=3.0)
    alignment = coarse(series)
    assert max(disagreement(in_raw_frame(alignment), truth, tilt_deg, 3.0)) < bar
    assert abs(alignment.axis_deg - 3.0) < max(0.5, 3 * alignment.axis_error_deg)
    assert not alignment.suspect.any()
    assert abs(alignment.shift[:, 1].mean()) < 1e-6


@pytest.mark.parametrize("name", ["particles", "rod", "film", "lamella"])
def test_an_aligned_series_stays_aligned(name):
    series, truth = recorded(name, SIXTY, jitter=0.0)
    alignment = coarse(series)
    assert max(disagreement(alignment.shift, truth, SIXTY)) < 0.5
    assert not alignment.turn


def test_large_shifts():
    series, truth = recorded("few", SEVENTY, seed=1, jitter=7.0)
    assert np.abs(truth).max() > 15  # of 96 pixels, as 39 of 256
    assert max(disagreement(coarse(series).shift, truth, SEVENTY)) < 0.2


def test_images_larger_than_are_correlated():
    place, radius, density = balls("few", 2)
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 15, (len(SIXTY), 2))
    large = images((5 * place, 5 * radius, density), SIXTY, truth, size=5 * SIZE)
    large += 0.1 * large.max() * rng.normal(size=large.shape)
    alignment = coarse(TiltSeries(large.astype(np.float32), SIXTY))
    assert max(disagreement(alignment.shift, truth, SIXTY)) < 0.3
    assert not alignment.suspect.any()


def test_a_bad_image_is_named_and_harms_no_other():
    series, truth = recorded("particles", SEVENTY, seed=2)
    rng = np.random.default_rng(0)
    series.images[9] = series.images.mean() + series.images.std() * rng.normal(size=series.images[9].shape)
    alignment = coarse(series)
    assert np.flatnonzero(alignment.suspect).tolist() == [9]
    assert "--skip 9" in alignment.notes["alignment"]
    others = np.arange(len(SEVENTY)) != 9
    assert max(disagreement(alignment.shift[others], truth[others], SEVENTY[others])) < 0.2


def test_the_order_of_the_tilts_does_not_matter():
    series, _ = recorded("particles", SIXTY)
    order = np.random.default_rng(0).permutation(len(SIXTY))
    np.testing.assert_allclose(coarse(series.select(order)).shift, coarse(series).shift[order], atol=1e-3)


@pytest.mark.parametrize("tilt_deg", [np.arange(0, 180, 6.0), np.arange(-90, 91, 6.0), [-10.0, 10], [-20.0, 0, 0, 20]])
def test_unusual_tilts(tilt_deg):
    series, truth = recorded("few", np.asarray(tilt_deg), seed=3)
    assert max(disagreement(coarse(series).shift, truth, tilt_deg)) < 0.3


def test_specimen_cut_in_some_tilts_only():
    series, truth = recorded("few", SEVENTY, jitter=0.0)
    for i in (3, 11, 12, 20):
        truth[i] = (30.0 if i % 2 else -30.0, 2.0)
    moved = images(balls("few", 0), SEVENTY, truth)
    rng = np.random.default_rng(5)
    series = TiltSeries((moved + 0.03 * moved.max() * rng.normal(size=moved.shape)).astype(np.float32), SEVENTY)
    found = disagreement(coarse(series).shift, truth, SEVENTY)
    assert max(found) < 0.8


def test_turned_images_have_their_axis_along_y_and_keep_their_pose():
    series, _ = recorded("particles", SEVENTY, axis_deg=-4.0, noise=0.02)
    aligned, pose = align(series)
    assert aligned.tilt_axis_deg == 0 and pose.shift is not None and pose.rotation is None
    for fact in ("background", "tilt_axis", "alignment"):
        assert any(digit in aligned.provenance[fact] for digit in "0123456789")
    again = coarse(aligned)
    assert not again.turn
    assert max(disagreement(again.shift, np.asarray(pose.shift), SEVENTY)) < 0.1
    clean = images(balls("particles", 0), SEVENTY, np.asarray(pose.shift))
    inside = binned(aligned.images * aligned.mask, 1)
    assert np.corrcoef(clean.ravel(), inside.ravel())[0, 1] > 0.95 or "a movement of the specimen is left"
    assert not aligned.mask.all() and (aligned.images[~aligned.mask] == 0).all()


def test_axis_from_the_file_given_or_left_alone():
    series, _ = recorded("particles", SEVENTY, axis_deg=12.0)
    found = coarse(series.replace(tilt_axis_deg=10.0))
    assert abs(found.axis_deg - 12.0) < 0.4 and found.turn
    given = coarse(series, tilt_axis_deg=11.0)
    assert given.axis_deg == pytest.approx(11.0) and "given" in given.notes["tilt_axis"]
    few = series.select(slice(0, 3)).replace(tilt_axis_deg=10.0)
    assert coarse(few).axis_deg == pytest.approx(10.0)  # three tilts cannot tell


def test_images_are_not_resampled_without_need():
    series, _ = recorded("particles", SIXTY)
    alignment = coarse(series)
    aligned, _ = apply(series, alignment)
    assert not alignment.turn and aligned.mask is None
    np.testing.assert_array_equal(
        aligned.images, series.images - alignment.background.astype(np.float32)[:, None, None]
    )


def test_specimen_is_centred():
    place, radius, density = balls("particles", 0)
    mass = density * radius**3
    truth = np.tile([7.0, -5.0], (len(SIXTY), 1))
    clean = images((place, radius, density), SIXTY, truth)
    series = TiltSeries((clean + 0.1 * np.random.default_rng(0).normal(size=clean.shape)).astype(np.float32), SIXTY)
    alignment = coarse(series)
    centre = mass @ place / mass.sum()
    tilt = np.deg2rad(SIXTY)
    expected = 7.0 + centre[0] * np.cos(tilt) + centre[2] * np.sin(tilt)
    np.testing.assert_allclose(alignment.shift[:, 0], expected, atol=0.3)


def test_spectral_maps_share_one_alignment():
    series, truth = recorded("particles", SIXTY)
    maps = np.stack([series.images, 0.5 * series.images + 40])
    alignment = coarse(series.replace(images=maps))
    assert alignment.background.shape == (2, len(SIXTY))
    assert max(disagreement(alignment.shift, truth, SIXTY)) < 0.2
    aligned, pose = apply(series.replace(images=maps), alignment)
    assert aligned.images.shape == maps.shape and pose.shift.shape == (len(SIXTY), 2)
    turned, _ = align(series.replace(images=maps), tilt_axis_deg=5.0)
    assert turned.images.shape == maps.shape and turned.mask.shape == series.images.shape


def test_the_curves_are_plain_json():
    series, _ = recorded("few", SIXTY)
    alignment = coarse(series)
    plain = json.loads(json.dumps(alignment.plain()))
    for name in ("shift_u_px", "shift_v_px", "background", "confidence", "neighbour_residual_px"):
        assert len(plain[name]) == len(SIXTY)
    assert ((alignment.confidence > 0) & (alignment.confidence <= 1)).all()


def test_what_cannot_be_aligned_names_the_cure():
    series, _ = recorded("few", SIXTY)

    def broken(value, at):
        changed = series.images.copy()
        changed[at] = value
        return series.replace(images=changed)

    for bad, words in (
        (series.select(slice(0, 1)), "at least two"),
        (series.replace(images=series.images[:, :8]), "cut slabs from the result"),
        (broken(7.0, 4), "--skip 4"),
        (broken(np.nan, (2, 5, 5)), "--fill-nan"),
        (series.replace(mask=np.arange(len(SIXTY))[:, None, None] != np.zeros((1, SIZE, SIZE))), "--skip 0"),
    ):
        with pytest.raises(jt.InputError, match=words):
            coarse(bad)
    with pytest.raises(jt.InputError, match="one number, or one an image"):
        coarse(series, background=[1.0, 2.0])
    with pytest.raises(jt.InputError, match="Align this series itself"):
        apply(series.select(slice(0, 5)), coarse(series))


def test_a_given_background_is_used():
    series, _ = recorded("few", SIXTY)
    aligned, _ = align(series, background=-300.0)
    np.testing.assert_allclose(aligned.images, series.images + 300, rtol=1e-5)
    assert "given" in aligned.provenance["background"]


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_unit_of_intensity_does_not_matter(scale):
    series, _ = recorded("few", SIXTY)
    scaled = series.replace(images=(series.images * scale).astype(np.float32))
    np.testing.assert_allclose(coarse(scaled).shift, coarse(series).shift, atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 16), (17, 200), (120, 30)])
@pytest.mark.parametrize("what", ["noise", "a hot pixel", "a ramp", "counts"])
def test_images_of_nothing_do_no_harm(shape, what):
    rng = np.random.default_rng(0)
    nothing = {
        "noise": rng.normal(size=(13, *shape)),
        "a hot pixel": np.zeros((13, *shape)),
        "a ramp": np.broadcast_to(np.linspace(0, 1, shape[1]), (13, *shape)).copy(),
        "counts": rng.poisson(0.05, (13, *shape)).astype(float),
    }[what]
    nothing[:, shape[0] // 2, shape[1] // 2] += 1
    aligned, pose = align(TiltSeries(nothing.astype(np.float32), SIXTY))
    assert np.isfinite(aligned.images).all() and np.isfinite(np.asarray(pose.shift)).all()


# The vacuum and what was never measured


def test_vacuum_of_a_drifting_background():
    rng = np.random.default_rng(0)
    level = rng.normal(-31900, 30, len(SIXTY))
    clean = images(balls("particles", 1), SIXTY, np.zeros((len(SIXTY), 2)))
    found = vacuum((50 * clean + rng.normal(0, 5, clean.shape) + level[:, None, None]).astype(np.float32))
    assert found.seen.all() and (found.share > 0.5).all()
    np.testing.assert_allclose(found.level, level, atol=1.5)
    np.testing.assert_allclose(found.noise, 5, rtol=0.2)


def test_a_specimen_that_fills_the_images_has_no_vacuum_of_its_own():
    rng = np.random.default_rng(0)
    thickness = 1 / np.cos(np.deg2rad(SIXTY))[:, None, None]
    rough = bandpass(rng.normal(size=(len(SIXTY), SIZE, SIZE)), np.ones((len(SIXTY), SIZE, SIZE)), 1.0, 20.0)
    full = (100 + 50 * thickness * (2 + rough / rough.std() / 3)).astype(np.float32)
    found = vacuum(full)
    assert not found.seen.any() and np.ptp(found.level) == 0
    assert "no vacuum visible" in coarse(TiltSeries(full, SIXTY)).notes["background"]


@pytest.mark.parametrize("value", [0.0, -400.0, -290.0])
@pytest.mark.parametrize("axis", [0.0, 0.08])
def test_borders_filled_by_an_earlier_alignment_are_masked(value, axis):
    series, truth = recorded("particles", SEVENTY, jitter=4.0, gain=0.0, noise=0.003)
    moved = straightened(series.images - 1000, axis, truth)  # -1000: no measured pixel is zero
    filled = moved == 0
    found = unmeasured(np.where(filled, value, moved + 1000).astype(np.float32))
    assert found is not None
    assert (found == filled).mean() > 0.995
    alignment = coarse(series.replace(images=np.where(filled, value, moved + 1000).astype(np.float32)))
    assert alignment.measured is not None
    assert max(disagreement(in_raw_frame(alignment), 0 * truth, SEVENTY, -np.rad2deg(axis))) < 0.5


def test_a_vacuum_without_noise_is_not_taken_for_a_filled_border():
    clean = images(balls("particles", 0), SIXTY, np.zeros((len(SIXTY), 2)))
    assert unmeasured(clean.astype(np.float32)) is None
    rng = np.random.default_rng(0)
    assert unmeasured(rng.poisson(3 * clean).astype(np.float32)) is None
    assert unmeasured(rng.poisson(0.1 * clean + 0.2).astype(np.float32)) is None


# The correlation


@pytest.mark.parametrize("moved", [(0.0, 0.0), (0.4, -0.3), (17.6, -12.3)])
def test_displacement_to_a_fraction_of_a_pixel(moved):
    specimen = balls("particles", 4)
    still, seen = images(specimen, [0.0], [(0, 0)]), images(specimen, [0.0], [moved])
    weight = np.ones_like(still)
    f, g = (bandpass(2 + a, weight, 1.0, 8.0) for a in (still, 3 * seen))
    found = displacement(f, weight, g, weight, (32, 32))
    np.testing.assert_allclose(found.shift[0], moved, atol=0.06)
    assert found.score[0] > 0.98


def test_masked_pixels_do_not_pull():
    specimen = balls("film", 4)
    still, seen = images(specimen, [0.0], [(0, 0)]), images(specimen, [0.0], [(6.0, -5.0)])
    weight = np.ones_like(still)
    weight[:, :, :20] = 0
    found = displacement(np.where(weight > 0, still, 50), weight, np.where(weight > 0, seen, 50), weight, (16, 16))
    np.testing.assert_allclose(found.shift[0], (6.0, -5.0), atol=0.1)


def test_straightening_is_the_inverse_of_the_pose():
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(centred(48),) * 3, indexing="ij")
    volume = sum(
        np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 18) for a, b, c in rng.uniform(-12, 12, (6, 3))
    ).astype(np.float32)
    nominal = Pose.nominal(SIXTY)
    shift, axis = rng.normal(0, 3, (len(SIXTY), 2)), np.deg2rad(7.0)
    pose = nominal.replace(shift=jnp.asarray(shift, jnp.float32), rotation=jnp.full(len(SIXTY), axis, jnp.float32))
    seen = np.asarray(jt.project(jnp.asarray(volume), pose))
    back = straightened(seen, axis, shift, order=3)
    clean = np.asarray(jt.project(jnp.asarray(volume), nominal))
    assert np.sqrt(np.mean((back - clean)[:, 10:-10, 10:-10] ** 2)) < 0.01 * clean.max()
