"""Likelihoods and penalties: closed forms, slopes, and the nuisances of the microscope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtomo as jt
from jaxtomo.likelihood import intensity, response, saturation
from jaxtomo.penalty import divergence, gradient, total_variation


def images(seed, shape=(4, 5, 6)):
    return jnp.asarray(np.random.default_rng(seed).uniform(0.5, 2, shape), jnp.float32)


@pytest.mark.parametrize("likelihood", [jt.gaussian(), jt.poisson(), jt.robust()])
def test_the_truth_has_the_least_misfit(likelihood):
    truth, weights = images(1), jnp.ones((4, 1, 1))
    slope = jax.grad(likelihood)(truth, truth, weights)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    assert likelihood(truth + 0.3, truth, weights) > likelihood(truth, truth, weights)


@pytest.mark.parametrize("likelihood", [jt.gaussian(), jt.poisson(), jt.robust()])
def test_weightless_pixels_say_nothing(likelihood):
    weights = jnp.ones((4, 1, 1)).at[2].set(0)
    spoilt = images(1).at[2].set(99.0)
    assert likelihood(images(2), images(1), weights) == pytest.approx(
        float(likelihood(images(2), spoilt, weights)), rel=0.2
    )
    np.testing.assert_array_equal(jax.grad(likelihood)(images(2), spoilt, weights)[2], 0)


def test_makers_return_the_same_function():
    assert jt.gaussian() is jt.gaussian()
    assert jt.robust(0.2) is jt.robust(0.2)
    assert jt.fitted_intensity(jt.gaussian()) is jt.fitted_intensity(jt.gaussian())


def test_robust_is_linear_in_outliers():
    near, far = (jt.robust(0.1)(jnp.full((1, 1, 1), p), jnp.ones((1, 1, 1)), jnp.ones(1)) for p in (11.0, 21.0))
    assert float(far - near) == pytest.approx(0.1 * 10, rel=1e-5)


def test_gain_and_offset_are_found():
    rng = np.random.default_rng(0)
    predicted = images(1, (6, 20, 20))
    gain = rng.uniform(0.7, 1.3, (6, 1, 1))
    gain /= gain.mean()
    base = rng.uniform(-0.5, 0.5, (6, 1, 1))
    found = intensity(predicted, gain * predicted + base, jnp.ones((6, 1, 1)))
    np.testing.assert_allclose(found[0], gain, rtol=1e-4)
    np.testing.assert_allclose(found[1], base, atol=1e-3)
    misfit = jt.fitted_intensity(jt.gaussian())
    assert float(misfit(predicted, jnp.asarray(gain * predicted + base), jnp.ones((6, 1, 1)))) < 1e-5


def test_divergence_is_minus_the_adjoint_of_gradient():
    rng = np.random.default_rng(0)
    for shape in [(4, 5, 6), (1, 3, 1), (2, 1, 7)]:
        volume, *field = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(4))
        left = sum(jnp.vdot(a, b) for a, b in zip(gradient(volume), field, strict=True))
        assert float(left) == pytest.approx(-float(jnp.vdot(volume, divergence(tuple(field)))), abs=1e-4)


def test_total_variation_of_a_step_is_its_area():
    volume = jnp.zeros((8, 8, 8)).at[:4].set(1.0)
    assert float(total_variation(volume)) == pytest.approx(64 / 512)
    assert float(total_variation(2 * volume, 0.5)) == pytest.approx(2**0.5 * 64 / 512)


def test_a_saturation_is_found_and_keeps_the_unit():
    predicted, weights = 5 * images(1), jnp.ones((4, 1, 1))
    for kappa in (0.0, 0.03, 0.2):
        measured = response(predicted, jnp.float32(kappa))
        for likelihood in (jt.gaussian(), jt.robust()):
            found = saturation(likelihood, predicted, measured, weights)
            assert float(found) == pytest.approx(kappa, abs=0.004)
            misfit = jt.saturating(likelihood)
            assert float(misfit(predicted, measured, weights)) < 1e-3 * float(likelihood(0 * predicted, measured, 1.0))
    assert jax.grad(response)(jnp.float32(0.0), jnp.float32(0.2)) == pytest.approx(1)


def test_a_saturation_is_not_told_by_outliers():
    predicted, weights = 5 * images(1), jnp.ones((4, 1, 1))
    measured = response(predicted, jnp.float32(0.1)).at[:, 0, 0].mul(4)
    robust, plain = (float(saturation(m, predicted, measured, weights)) for m in (jt.robust(), jt.gaussian()))
    assert abs(robust - 0.1) < 0.03 and abs(robust - 0.1) < 0.5 * abs(plain - 0.1)


def test_the_slope_of_a_saturating_misfit_is_that_at_its_saturation():
    predicted, weights = images(1), jnp.ones((4, 1, 1))
    measured = response(predicted, jnp.float32(0.3)) + 0.1 * (images(2) - 1)
    kappa = saturation(jt.gaussian(), predicted, measured, weights)
    slope = jax.grad(jt.saturating(jt.gaussian()))(predicted, measured, weights)
    direct = (response(predicted, kappa) - measured) * jnp.exp(-kappa * predicted)
    np.testing.assert_allclose(slope, direct, atol=1e-5)
    assert jt.saturating(jt.robust()) is jt.saturating(jt.robust())
