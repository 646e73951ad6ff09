"""Laws of images that saturate with thickness."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtomo as jt
from jaxtomo import phantoms, saturation
from jaxtomo.likelihood import response
from jaxtomo.shapes import Body, ball, render
from jaxtomo.simulate import Microscope, expose

TILTS = np.arange(-70, 71, 10.0)


@pytest.fixture(scope="module")
def exposed():
    """Heavy balls on both sides of a faint support, by how far the thickest ray saturates."""
    bodies = [Body(lambda x, y, z: np.maximum(np.hypot(x, z) - 0.3, np.abs(y) - 0.2), 0.15)]
    bodies += [Body(ball(0.1), 1.0, (x, x, z)) for x in (-0.1, 0.1) for z in (-0.22, 0.22)]
    fine = render((64, 28, 64), bodies)
    return {asked: expose(fine, TILTS, Microscope(math.inf, saturation=asked)) for asked in (0.0, 2.0)}


@pytest.mark.parametrize("kappa", [0.0, 1e-5, 0.02, 0.5])
def test_linear_is_the_inverse_of_response(kappa):
    thickness = jnp.linspace(0, 3.8 / max(kappa, 0.1), 50)
    np.testing.assert_allclose(saturation.linear(response(thickness, kappa), kappa), thickness, rtol=2e-4)


def test_the_response_starts_with_slope_one_and_has_a_ceiling():
    assert float(jax.grad(response)(0.0, 0.3)) == 1
    assert float(response(1e4, 0.3)) == pytest.approx(1 / 0.3)
    assert float(jax.grad(response, 1)(2.0, 0.0)) == pytest.approx(-(2.0**2) / 2)
    assert np.isfinite(saturation.linear(jnp.asarray([1e6, 1 / 0.3]), 0.3)).all()


def test_nothing_saturates_at_zero():
    predicted, measured = (jnp.asarray(np.random.default_rng(i).uniform(0, 9, (3, 4, 5)), jnp.float32) for i in (0, 1))
    np.testing.assert_array_equal(response(predicted, 0.0), predicted)
    plain, zero = jt.gaussian(), jt.saturated(jt.gaussian(), 0.0)
    assert zero(predicted, measured, jnp.ones(())) == plain(predicted, measured, jnp.ones(()))
    series = jt.TiltSeries(np.asarray(measured), np.arange(3.0))
    np.testing.assert_array_equal(saturation.linearised(series, 0.0).images, measured)
    problem = jt.Problem(series)
    np.testing.assert_array_equal(saturation.trusted(problem, 0.0).weights, jnp.ones_like(problem.images))


def test_the_slope_of_the_misfit_is_its_finite_difference():
    rng = np.random.default_rng(0)
    predicted, measured, along = (jnp.asarray(rng.uniform(1, 5, (2, 3, 4)), jnp.float32) for _ in range(3))
    misfit = jt.saturated(jt.gaussian(), 0.2)
    slope = jnp.vdot(jax.grad(misfit)(predicted, measured, jnp.ones(())), along)
    ahead, behind = (misfit(predicted + h * along, measured, jnp.ones(())) for h in (0.01, -0.01))
    assert float(slope) == pytest.approx(float(ahead - behind) / 0.02, rel=1e-2)


def test_a_model_that_saturates_explains_images_that_do(exposed):
    bent = exposed[2.0]
    kappa = float(2 / bent.clean.max())
    plain = jt.Problem(bent.series)
    predicted = plain.project(jnp.asarray(bent.truth.swapaxes(1, 2)))
    explained = jt.saturated(jt.gaussian(), kappa).explained(predicted, plain.images, plain.weights)
    size = jnp.linalg.norm(plain.images)
    assert float(jnp.linalg.norm(explained - plain.images) / size) < 0.04
    assert float(jnp.linalg.norm(predicted - plain.images) / size) > 0.3


def test_saturation_of_the_microscope_is_that_of_the_thickest_ray(exposed):
    np.testing.assert_array_equal(exposed[0.0].clean, exposed[2.0].clean)
    ceiling = exposed[2.0].clean.max() / 2
    assert exposed[2.0].series.images.max() == pytest.approx(ceiling * (1 - math.exp(-2)), rel=0.01)


def test_saturation_is_found_and_none_where_there_is_none(exposed):
    for asked, one in exposed.items():
        found = saturation.find(jt.Problem(one.series))
        assert found.kappa * one.clean.max() == pytest.approx(asked, abs=0.2)
        assert found.error <= found.error_without


def test_texture_that_total_variation_suits_badly_is_not_taken_for_saturation():
    linear = expose(phantoms.tissue((96, 48, 96), 0), np.arange(-60, 61, 6.0), Microscope(100.0))
    assert saturation.find(jt.Problem(linear.series)).kappa == 0


def test_what_is_explained_has_the_gains_of_what_it_is_made_of():
    predicted = jnp.asarray(np.random.default_rng(0).uniform(1, 5, (3, 4, 5)), jnp.float32)
    gains = jnp.asarray([0.8, 1.0, 1.2])[:, None, None]
    measured = gains * response(predicted, 0.1) + 0.3
    both = jt.saturated(jt.fitted_intensity(jt.gaussian()), 0.1)
    np.testing.assert_allclose(both.explained(predicted, measured, jnp.ones(())), measured, rtol=1e-4)
    with pytest.raises(jt.InputError, match="linear"):
        jt.fitted_intensity(jt.saturated(jt.gaussian(), 0.1))


@pytest.mark.parametrize("kappa", [-1.0, math.inf])
def test_a_bad_kappa_is_named(kappa):
    with pytest.raises(jt.InputError, match="kappa is"):
        jt.saturated(jt.gaussian(), kappa)
    with pytest.raises(jt.InputError, match="kappa is"):
        saturation.linearised(jt.TiltSeries(np.ones((2, 8, 8), np.float32), np.arange(2.0)), kappa)


def test_too_few_tilts_are_named():
    with pytest.raises(jt.InputError, match="3 tilts"):
        saturation.find(jt.Problem(jt.TiltSeries(np.ones((3, 8, 8), np.float32), np.arange(3.0))))
