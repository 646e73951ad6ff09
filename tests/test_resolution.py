"""Resolution by direction, on volumes of which it is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

import jaxtomo as jt
from jaxtomo import InputError, metrics, reporting, resolution, validate
from jaxtomo.simulate import Microscope

SIDE = 48
RNG = np.random.default_rng(0)
WIDTH = resolution.TEN_TO_NINETY


def away(side=SIDE, stretched=(1, 1, 1)):
    """Distance of every voxel from the middle."""
    place = np.ogrid[:side, :side, :side]
    return np.sqrt(sum(((p - (side - 1) / 2) / e) ** 2 for p, e in zip(place, stretched, strict=True)))


def ball(blur, side=64, radius=20, noise=0.0):
    volume = gaussian_filter(np.clip(radius + 0.5 - away(side), 0, 1), blur)
    return volume + noise * np.random.default_rng(1).normal(size=volume.shape)


def kept(volume, where):
    """Only the frequencies where `where(kz, ky, kx)` is true."""
    k = np.ix_(*(np.fft.fftfreq(n) for n in volume.shape))
    return np.fft.ifftn(np.fft.fftn(volume) * where(*k)).real


def test_in_every_cone_of_isotropic_noise_fsc_is_the_ordinary_one():
    signal = RNG.normal(size=(SIDE,) * 3)
    a, b = signal + RNG.normal(size=(2, SIDE, SIDE, SIDE))
    frequency, curve = metrics.fsc(a, b)
    cones = resolution.directional_fsc(a, b, {**resolution.AXES, "slanted": (1, -1, 2)})
    for cone in cones.values():
        np.testing.assert_allclose(cone.frequency, frequency)
        wrong = (cone.curve - curve)[3:] / cone.noise[3:]
        assert np.abs(wrong).max() < 4 and np.sqrt(np.mean(wrong**2)) < 1.2
        assert np.mean(cone.curve[10:]) == pytest.approx(0.5, abs=0.03)


def test_a_cone_of_the_same_is_one_and_its_samples_are_counted():
    a = RNG.normal(size=(32, 20, 24))
    cones = resolution.directional_fsc(a, 3 * a)
    for cone in cones.values():
        np.testing.assert_allclose(cone.curve[cone.samples > 0], 1, atol=1e-5)
    # As many frequencies have a positive as a negative one; weighted by cos² they count less than those in the cone.
    one = resolution.directional_fsc(a, a, {"z": (1, 0, 0)}, 30)["z"]
    k = np.ix_(*(np.fft.fftfreq(n) for n in a.shape))
    length = np.sqrt(sum(f**2 for f in k))
    inside = np.abs(k[0]) > np.cos(np.pi / 6) * np.maximum(length, 1e-9)
    whole = np.bincount(np.rint(20 * length)[inside].astype(int), minlength=20)[:11] / 2
    assert (one.samples[2:] <= whole[2:] + 1e-6).all() and one.samples[5:].sum() > 0.5 * whole[5:].sum()


@pytest.mark.parametrize("masked", [False, True])
def test_volumes_with_nothing_in_common_agree_to_the_stated_noise(masked):
    mask = metrics.cylinder((24,) * 3) if masked else None
    curves = [resolution.directional_fsc(*RNG.normal(size=(2, 24, 24, 24)), mask=mask) for _ in range(60)]
    for axis in "zyx":
        seen = np.std([cones[axis].curve for cones in curves], axis=0)[3:]
        stated = curves[0][axis].noise[3:]
        assert 0.6 < np.median(seen / stated) < 1.15
        assert (seen < 1.5 * stated).all()
        assert sum(math.isinf(resolution.resolved(cones[axis])) for cones in curves) > 50


def test_what_a_wedge_hides_is_missing_along_the_beam_only():
    truth = RNG.normal(size=(SIDE,) * 3)
    seen = kept(truth, lambda kz, ky, kx: np.abs(kz) * np.tan(np.deg2rad(30)) <= np.abs(kx)) + 0 * truth
    cones = resolution.directional_fsc(seen + 1e-3 * RNG.normal(size=truth.shape), truth)
    assert np.abs(cones["z"].curve[6:]).max() < 0.3 and math.isinf(resolution.resolved(cones["z"], 0.5))
    for axis in "xy":
        assert resolution.resolved(cones[axis], 0.5) == pytest.approx(2)
    assert cones["x"].curve[2:].min() > 0.99
    # Two thirds of a cone about the tilt axis lie outside the wedge.
    assert np.mean(cones["y"].curve[8:]) == pytest.approx(math.sqrt(2 / 3), abs=0.03)


def test_resolution_of_a_copy_that_is_low_passed_along_one_axis():
    a, b = RNG.normal(size=(2, 64, 64, 64))
    mixed = kept(a, lambda kz, ky, kx: (np.abs(kz) < 0.25) + 0 * ky + 0 * kx)
    mixed += kept(b, lambda kz, ky, kx: (np.abs(kz) >= 0.25) + 0 * ky + 0 * kx)
    lengths = {axis: resolution.resolved(cone, 0.5) for axis, cone in resolution.directional_fsc(a, mixed).items()}
    assert 1 / lengths["z"] == pytest.approx(0.26, abs=0.02)
    assert lengths["x"] == lengths["y"] == pytest.approx(2)


def test_a_cone_without_enough_frequencies_says_nothing():
    flat = RNG.normal(size=(32, 1, 32))
    cones = resolution.directional_fsc(flat, flat)
    assert math.isnan(resolution.resolved(cones["y"])) and cones["y"].samples.max() == 0
    assert resolution.resolved(cones["z"], 0.5) == pytest.approx(2)


@pytest.mark.parametrize("noise", [0, 0.04])
@pytest.mark.parametrize("blur", [(2, 2, 2), (3, 1.2, 1.2), (1, 1, 2.5), (1, 2.5, 1), (0.6, 0.6, 0.6)])
def test_edges_are_as_wide_as_they_were_blurred(blur, noise):
    """The voxels' own width is that of a box, 1/√12."""
    edges = resolution.edge_widths(ball(blur, noise=noise))
    for edge, sigma in zip(edges, blur, strict=True):
        assert edge.width / WIDTH == pytest.approx(math.hypot(sigma, 0.2), rel=0.12)
        assert edge.low <= edge.width <= edge.high and edge.count > 100


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_profile_has_its_edge_wherever_it_lies_between_voxels(sigma, sign):
    from scipy.special import ndtr

    for place in (30.0, 30.3, 30.5):
        (edge,) = resolution.edge_widths(5 + sign * 7 * ndtr((np.arange(60) - place) / sigma))
        assert edge.width == pytest.approx(WIDTH * sigma, rel=0.02) and edge.count == 1


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(1e-3, 1e5), offset=st.floats(-10, 10))
def test_widths_and_elongation_know_no_units(factor, offset):
    volume = ball((2, 1, 1), side=40, radius=11)
    one, other = (resolution.sharpness(v) for v in (volume, factor * (volume + offset)))
    for name in "zyx":
        assert other["edge_width_voxels"][name] == pytest.approx(one["edge_width_voxels"][name], rel=0.01)
    assert other["elongation"]["structures"] == pytest.approx(one["elongation"]["structures"], rel=0.01)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4, 2.0])
def test_elongation_of_stretched_bodies(factor):
    """Of Gaussians the widths of the edges say it too; of solid bodies their length alone does."""
    distance = away(80, (factor, 1, 1))
    solid, soft = np.clip(9.5 - distance, 0, 1), np.exp(-((distance / 2.5) ** 2) / 2)
    for volume in (solid, soft, soft + 0.01 * RNG.normal(size=soft.shape)):
        assert resolution.elongation(volume) == pytest.approx(factor, rel=0.03)
        assert resolution.elongation(volume.T) == pytest.approx(1 / factor, rel=0.03)
    many = sum(np.roll(soft, shift, (0, 1, 2)) for shift in 18 * RNG.integers(-1, 2, (9, 3)))
    assert resolution.sharpness(many)["elongation"]["edges"] == pytest.approx(factor, rel=0.15)


def test_blur_along_the_beam_elongates_small_bodies_by_as_much_as_stated():
    """A Gaussian of σ blurred by b has σ' = √(σ² + b²)."""
    soft = gaussian_filter(np.exp(-((away(64) / 2) ** 2) / 2), (3, 0, 0))
    assert resolution.elongation(soft) == pytest.approx(math.hypot(2, 3) / 2, rel=0.02)


def test_elongation_of_the_wedge():
    assert resolution.wedge_elongation(np.arange(-60, 61, 2)) == pytest.approx(1.55, abs=0.01)  # [Radermacher 1988]
    assert resolution.wedge_elongation(np.arange(-90, 90, 2)) == 1
    assert math.isinf(resolution.wedge_elongation([0.0]))
    narrower = [resolution.wedge_elongation(np.arange(-a, a + 1)) for a in (70, 60, 45, 30, 10)]
    assert narrower == sorted(narrower)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_spectral_snr_of_known_signal_and_noise(noise):
    """White both: 1/noise² in every shell, whatever the number of samples; noise is what a sample differs by."""
    signal = RNG.normal(size=(32,) * 3)
    for m in (2, 6):
        samples = signal + noise * RNG.normal(size=(m, 32, 32, 32))
        frequency, ratio = resolution.spectral_snr(samples)
        assert np.mean(ratio[5:]) == pytest.approx(1 / noise**2, rel=0.1)
        assert frequency.shape == ratio.shape and frequency[-1] == 0.5
    expected = ratio / (1 + ratio)
    np.testing.assert_allclose(metrics.fsc(samples[0], samples[1])[1][8:], expected[8:], atol=0.12)
    nothing = resolution.spectral_snr(RNG.normal(size=(4, 32, 32, 32)))[1]
    assert np.mean(nothing[5:]) < 0.05
    assert np.isinf(resolution.spectral_snr(np.stack([signal, signal]))[1]).all()


def test_what_is_recorded_is_kept_and_reported(tmp_path):
    fine = jt.phantoms.core_shell((32,) * 3, seed=1)
    series = jt.simulate.simulate(fine, np.arange(-60, 61, 20), Microscope(dose=60), seed=1, pixel_nm=0.5)[0]
    problem = jt.Problem(series)
    found = validate.cross_check(problem, jt.sirt(), 5)
    volume = ball((2, 1, 1), side=32, radius=9).astype(np.float32)
    samples = volume + 0.1 * RNG.normal(size=(3, 32, 32, 32)).astype(np.float32)
    found |= resolution.assessed(volume, series.tilt_deg, samples)
    assert set(found["fsc_cones"]) == {"z", "y", "x", "frequency", "mask", "half_angle_deg"}
    assert found["elongation"]["of_the_wedge"] == resolution.wedge_elongation(series.tilt_deg)
    assert found["elongation"]["edges"] > 1.5
    result = jt.Reconstruction(volume, problem.pose, series, metrics=found)
    jt.write(tmp_path / "r.h5", result)
    again = jt.io.reconstruction.read_reconstruction(tmp_path / "r.h5").replace(series=None)  # which is slow to draw
    np.testing.assert_array_equal(again.metrics["fsc_cones"]["z"]["curve"], found["fsc_cones"]["z"]["curve"])
    text = reporting.report(tmp_path / "r.html", again).read_text()
    assert 'id="resolution"' in text and "along the beam, z" in text and "SSNR" in text
    # Results of before have the one curve, or none.
    older = {name: found[name] for name in ("fsc_frequency", "fsc_curve")}
    assert "all directions" in reporting.report(tmp_path / "o.html", again.replace(metrics=older)).read_text()
    assert 'id="resolution"' not in reporting.report(tmp_path / "n.html", again.replace(metrics={})).read_text()


@settings(max_examples=25, deadline=None)
@given(
    volume=arrays(np.float32, st.tuples(*[st.integers(1, 12)] * 3), elements=st.floats(-1e6, 1e6, width=32)),
    tilts=st.lists(st.floats(-80, 80), min_size=1, max_size=5),
)
def test_whatever_the_volume_there_is_an_answer(volume, tilts):
    found = resolution.assessed(volume, np.array(tilts), np.stack([volume, volume + 1]))
    assert set(found["edge_width_voxels"]) == set("zyx") and found["elongation"]["of_the_wedge"] >= 1
    assert all(value > 0 or math.isnan(value) for value in found["elongation"].values())


def test_what_is_no_volume_is_left_out_of_a_run():
    assert resolution.assessed(np.full((8, 8, 8), np.nan), [0.0]) == {}
    assert resolution.assessed(np.zeros((2, 8, 8, 8)), [0.0]) == {}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda v: resolution.directional_fsc(v, v[:4]), "one shape"),
        (lambda v: resolution.directional_fsc(v[0], v[0]), "one shape"),
        (lambda v: resolution.directional_fsc(v, np.where(v > 0, v, np.nan)), "not finite"),
        (lambda v: resolution.directional_fsc(v, v, {"no": (0, 0, 0)}), "no direction"),
        (lambda v: resolution.directional_fsc(v, v, half_angle_deg=0), "half angle"),
        (lambda v: resolution.directional_fsc(v, v, mask=np.ones(3)), "mask"),
        (lambda v: resolution.elongation(v[0]), "one volume"),
        (lambda v: resolution.edge_widths(v * np.inf), "not finite"),
        (lambda v: resolution.spectral_snr(v), "two or more"),
    ],
)
def test_bad_input_is_named_with_its_cure(call, words):
    with pytest.raises(InputError, match=words):
        call(RNG.normal(size=(8, 8, 8)))
