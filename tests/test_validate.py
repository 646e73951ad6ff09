"""Quality without a truth: held-out tilts, halves, and the weight chosen by them."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxtomo as jt
from jaxtomo import validate
from jaxtomo.simulate import Microscope


@pytest.fixture(scope="module")
def simulated():
    fine = jt.phantoms.core_shell((48,) * 3, seed=1)
    series, truth, pose = jt.simulate.simulate(fine, np.arange(-60, 61, 10), Microscope(dose=60), seed=1, pixel_nm=0.5)
    return jt.Problem(series, pose), truth


def test_held_out_tilts_are_not_seen_and_are_predicted(simulated):
    problem, _ = simulated
    held = validate.spread(13, 3)
    kept, left = validate.hold_out(problem, held)
    assert (np.flatnonzero(np.asarray(kept.weights).ravel() == 0) == held).all()
    blind = validate.solve(kept, jt.sirt(), 30)
    spoilt = kept.replace(images=kept.images.at[held].set(-5.0))
    np.testing.assert_allclose(validate.solve(spoilt, jt.sirt(), 30), blind, atol=1e-5)
    error = np.asarray(validate.prediction_error(left, blind))[held]
    assert (error < 0.5).all()


def test_held_out_tilts_are_spread_and_spare_the_ends():
    assert validate.spread(13, 3).tolist() == [2, 6, 10]
    assert len(validate.spread(77, 15)) == 15
    with pytest.raises(jt.InputError, match="Hold out 1 to 6"):
        validate.spread(13, 7)
    for tilts in range(3, 70):
        for count in range(1, tilts // 2 + 1):
            held = validate.spread(tilts, count)
            assert len(set(held.tolist())) == count and held.min() >= 1 and held.max() <= tilts - 2


def test_cross_check_tells_good_from_bad(simulated):
    problem, _ = simulated
    good = validate.cross_check(problem, jt.sirt(), 30)
    bad = validate.cross_check(problem, jt.sirt(relaxation=0.01), 2)
    assert good["prediction_error"] < bad["prediction_error"]
    assert good["fsc_curve"].shape == good["fsc_frequency"].shape
    assert good["resolution_nm"] == pytest.approx(0.5 * good["resolution_voxels"])
    assert good["prediction_error_by_tilt"].shape == (13,)


def test_cross_check_on_a_slab_equals_that_of_the_slab(simulated):
    problem, _ = simulated
    rows = slice(8, 16)
    series = problem.series.replace(images=problem.series.images[:, rows])
    alone = validate.cross_check(jt.Problem(series, problem.pose), jt.sirt(), 10)
    inside = validate.cross_check(problem, jt.sirt(), 10, slices=8)
    assert inside["prediction_error"] == pytest.approx(alone["prediction_error"], rel=1e-5)


def test_a_slab_forgets_pixels_whose_slices_were_cut_off(simulated):
    problem, _ = simulated
    pose = problem.pose.replace(shift=jnp.zeros((13, 2)).at[3, 1].set(2.5))
    cut = validate.slab(problem.replace(pose=pose), 8)
    assert np.asarray(cut.weights)[3, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert cut.shape == (24, 24, 8)


def test_too_few_tilts_are_not_judged(simulated):
    problem, _ = simulated
    few = jt.Problem(problem.series.select(slice(0, 3)))
    assert validate.cross_check(few, jt.sirt(), 3) == {}


def test_the_weight_that_predicts_best_is_near_the_best(simulated):
    problem, truth = simulated
    weights = [1e-3, 0.3, 30.0]
    chosen, errors = validate.choose_weight(problem, jt.tv, weights, 60)
    assert chosen == 0.3
    assert errors.shape == (3,)
    quality = {
        w: jt.metrics.psnr(jt.reconstruct(problem, jt.tv(w), 60, callbacks=(), assess=False).volume, truth)
        for w in weights
    }
    assert max(quality, key=quality.get) == chosen
