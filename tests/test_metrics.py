"""Laws of the quality numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtomo import InputError, metrics

RNG = np.random.default_rng(0)


def test_psnr_and_rmse_in_closed_form():
    truth = np.linspace(0, 2, 24).reshape(2, 3, 4)
    assert metrics.rmse(truth + 0.1, truth) == pytest.approx(0.1)
    assert metrics.psnr(truth + 0.1, truth) == pytest.approx(20 * math.log10(2 / 0.1))
    assert metrics.psnr(truth + 0.1, truth, data_range=1.0) == pytest.approx(20)
    assert metrics.psnr(truth, truth) == math.inf
    assert isinstance(metrics.psnr(truth + 0.1, truth), float)


def test_intensities_are_not_rescaled():
    truth = RNG.random((8, 8, 8))
    assert metrics.psnr(2 * truth, truth) < 10
    assert metrics.ssim(2 * truth, truth) < 0.9


def test_ssim():
    truth = RNG.random((9, 10, 11))
    assert metrics.ssim(truth, truth) == pytest.approx(1)
    some, more = (metrics.ssim(truth + s * RNG.normal(size=truth.shape), truth) for s in (0.1, 0.4))
    assert 1 > some > more > 0
    # Two constants differ in luminance alone: (2ab + c) / (a² + b² + c) with c = (0.01 range)².
    a, b = np.full((7, 7), 0.5), np.full((7, 7), 0.25)
    assert metrics.ssim(a, b, data_range=1.0) == pytest.approx((2 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4))


@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 7, 7), (6, 9, 12), (1, 16, 15), (12, 9)])
def test_fsc_is_that_of_the_full_transform(shape):
    a, b = RNG.normal(size=(2, *shape))
    b = b + 0.7 * a
    n = max(shape)
    k = np.sqrt(sum(f**2 for f in np.ix_(*(np.fft.fftfreq(m) for m in shape))))
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    expected = []
    for shell in range(n // 2 + 1):
        here = np.rint(k * n) == shell
        expected.append(
            np.sum(fa[here] * fb[here].conj()).real / np.sqrt(np.sum(abs(fa[here]) ** 2) * np.sum(abs(fb[here]) ** 2))
        )
    frequency, curve = metrics.fsc(a, b)
    np.testing.assert_allclose(curve, expected, atol=1e-12)
    np.testing.assert_allclose(frequency, np.arange(n // 2 + 1) / n)


def test_fsc_of_the_same_is_one_whatever_the_scale():
    a = RNG.normal(size=(16, 16, 16)) + 1
    np.testing.assert_allclose(metrics.fsc(a, a)[1], 1)
    np.testing.assert_allclose(metrics.fsc(a, 3 * a)[1], 1)
    np.testing.assert_allclose(metrics.fsc(a, -a)[1], -1)
    assert metrics.resolution(*metrics.fsc(a, a)) == pytest.approx(2)
    assert metrics.resolution(*metrics.fsc(a, a, voxel_nm=0.4)) == pytest.approx(0.8)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_fsc_of_two_noisy_copies_tells_the_noise(noise):
    """White signal and noise: every shell has the expectation 1 / (1 + noise²)."""
    signal = RNG.normal(size=(32, 32, 32))
    copies = signal + noise * RNG.normal(size=(2, 32, 32, 32))
    _, curve = metrics.fsc(*copies)
    np.testing.assert_allclose(curve[6:], 1 / (1 + noise**2), atol=0.12)
    assert np.mean(curve[6:]) == pytest.approx(1 / (1 + noise**2), abs=0.02)


def test_fsc_of_a_shell_without_signal_is_zero():
    wave = np.cos(2 * np.pi * np.arange(16) / 4)[:, None, None] * np.ones((16, 16, 16))
    _, curve = metrics.fsc(wave, np.zeros_like(wave))
    assert np.all(curve == 0)


def test_mask_hides_what_is_outside_it():
    a, b = RNG.normal(size=(2, 24, 24, 24))
    z, y, x = np.ogrid[:24, :24, :24]
    radius = np.sqrt((z - 11.5) ** 2 + (y - 11.5) ** 2 + (x - 11.5) ** 2)
    region = radius < 6
    b[radius < 9] = a[radius < 9]
    mask = metrics.soft_mask(region, edge=3)
    assert np.all(mask[region] == 1)
    assert np.all(mask[radius > 10] == 0)
    assert 0 < mask[(radius > 7) & (radius < 8)].mean() < 1
    np.testing.assert_allclose(metrics.fsc(a, b, mask=mask)[1], 1, atol=1e-9)
    assert metrics.fsc(a, b)[1][5:].max() < 0.6


def test_resolution_where_a_line_crosses():
    frequency = np.linspace(0, 0.5, 11)
    curve = 1 - 2 * frequency
    assert metrics.resolution(frequency, curve, 0.5) == pytest.approx(4)
    assert metrics.resolution(frequency, curve, 0.143) == pytest.approx(2 / (1 - 0.143))
    assert metrics.resolution(frequency, np.zeros(11)) == math.inf
    assert metrics.resolution(frequency, np.full(11, 0.2)) == pytest.approx(2)


@settings(max_examples=25, deadline=None)
@given(cut=st.floats(0.06, 0.44), threshold=st.sampled_from([0.143, 0.5]))
def test_resolution_of_a_low_passed_copy(cut, threshold):
    """A copy whose high frequencies are another's noise resolves down to the cut, to a shell."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 32, 32, 32))
    k = np.sqrt(sum(f**2 for f in np.ix_(*(np.fft.fftfreq(32),) * 3)))
    mixed = np.fft.ifftn(np.where(k < cut, np.fft.fftn(a), np.fft.fftn(b))).real
    assert 1 / metrics.resolution(*metrics.fsc(a, mixed), threshold) == pytest.approx(cut, abs=1.5 / 32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda v: metrics.psnr(v, v[:4]), "Crop or bin"),
        (lambda v: metrics.psnr(v, np.zeros_like(v)), "data_range"),
        (lambda v: metrics.rmse(np.where(v > 0, v, np.nan), v), "not finite"),
        (lambda v: metrics.ssim(v, v, window=8), "odd window"),
        (lambda v: metrics.ssim(v, v, window=9), "shortest side"),
        (lambda v: metrics.fsc(v, v, mask=np.ones(3)), "mask"),
        (lambda v: metrics.soft_mask(v > 9), "empty"),
    ],
)
def test_bad_input_is_named_with_its_cure(call, words):
    with pytest.raises(InputError, match=words):
        call(RNG.normal(size=(8, 8, 8)))
