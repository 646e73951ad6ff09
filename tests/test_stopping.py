"""When a fit stops: what is held out is not seen, the best average is what comes back, and the reason is said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxtomo as jt
from jaxtomo import callbacks, solve, solvers, stopping

TINY = {"channels": (4, 8), "skips": (2,)}


def noisy(tilts=9, size=12, seed=0, angles=None):
    volume = np.zeros((size, 6, size), np.float32)
    volume[4:8, 1:5, 3:9] = 1
    angles = np.linspace(-60, 60, tilts) if angles is None else angles
    images = np.asarray(jt.project(jnp.asarray(volume), jt.Pose.nominal(angles)))
    images = images + np.random.default_rng(seed).normal(0, 0.7, images.shape).astype(np.float32)
    return jt.Problem(jt.TiltSeries(images, angles)), volume


RULES = {
    "pixels": stopping.held_out_pixels(0.2),
    "tilts": stopping.held_out_tilts(0.2),
    "variance": stopping.moving_variance(),
}


@pytest.mark.parametrize("name", ["pixels", "tilts"])
def test_what_is_held_out_changes_nothing(name):
    """Held-out pixels may be anything: the parameters that are fitted do not feel them."""
    problem, _ = noisy()
    solver = jt.fit(jt.voxels(), optax.adam(0.05), stopping=RULES[name])
    key = jax.random.key(0)
    state = solver.init(problem, key)
    mask = np.asarray(jnp.broadcast_to(state["watch"].mask, problem.images.shape))
    assert 0 < mask.sum() < 0.5 * mask.size
    spoilt = problem.replace(images=jnp.where(mask > 0, 50.0, problem.images))
    step = jax.jit(solver.step)
    other = {**state}
    for i in range(5):
        state, _ = step(problem, state, jax.random.fold_in(key, i))
        other, info = step(spoilt, other, jax.random.fold_in(key, i))
    # Only the scale of the loss, Σ w y², is common to both; Adam does not feel it.
    for a, b in zip(jax.tree.leaves(state["parameters"]), jax.tree.leaves(other["parameters"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert info["held_out"] > 0.9


def test_repeats_are_found():
    angles = np.array([-40.0, -40.0, 0.0, 0.0, 0.0, 40.0])
    problem, _ = noisy(angles=angles)
    mask = stopping.held_out_repeats().held(problem, jax.random.key(0))
    assert mask.ravel().tolist() == [0, 1, 0, 1, 0, 0]
    with pytest.raises(jt.InputError, match="recorded twice"):
        stopping.held_out_repeats().held(noisy()[0], jax.random.key(0))


@pytest.mark.parametrize("name", RULES)
def test_the_best_average_comes_back(name):
    """The volume is the average of the step with the least score, whatever came after."""
    problem, _ = noisy()
    solver = jt.fit(jt.voxels(), optax.adam(0.1), stopping=RULES[name])
    run = {"callbacks": (), "assess": False}
    long = jt.reconstruct(problem, solver, 120, **run)
    best = callbacks.best_step(long.history)
    assert stopping.SETTLED < best <= 120 and f"up to step {best}" in long.message
    np.testing.assert_allclose(long.volume, jt.reconstruct(problem, solver, best, **run).volume, atol=1e-5)


class Signed(nnx.Module):
    """Voxels free to be negative, which fit the noise as soon as they can."""

    def __init__(self, problem, density, key):
        self.voxels = nnx.Param(jnp.zeros(problem.shape))

    def __call__(self):
        return self.voxels[...]


def test_a_fit_that_overfits_is_stopped_and_is_better_for_it():
    problem, truth = noisy(tilts=15)
    optimizer = optax.adam(0.03)
    watched = jt.fit(Signed, optimizer, stopping=stopping.held_out_pixels(0.1))
    last = jt.reconstruct(problem, jt.fit(Signed, optimizer), 600, callbacks=(), assess=False)
    best = jt.reconstruct(problem, watched, 600, callbacks=(callbacks.stop_when_overfitting(60),), assess=False)
    assert best.settings["steps"] < 600 and "no better volume in 60 steps" in best.message
    assert np.mean((best.volume - truth) ** 2) < np.mean((last.volume - truth) ** 2)


def test_convolutions_are_stepped_from_python_on_a_cpu(monkeypatch):
    """And give what a compiled loop gives."""
    problem, _ = noisy()
    solver = solvers.dip(20, **TINY)
    run = {"callbacks": (), "assess": False, "key": jax.random.key(1)}
    before = solve.stepped._cache_size(), solve.scanned._cache_size()
    stepped = jt.reconstruct(problem, solver, 6, **run)
    assert solve.stepped._cache_size() > before[0] and solve.scanned._cache_size() == before[1]
    monkeypatch.setattr(solve, "_slow_in_a_loop", lambda *_: False)
    looped = jt.reconstruct(problem, solver, 6, **run)
    np.testing.assert_allclose(stepped.volume, looped.volume, atol=1e-4 * looped.volume.max())


def test_every_network_shape_fits():
    """Two dimensions, slices as channels, three dimensions: odd sizes included."""
    problem, _ = noisy(size=11)
    for options in ({}, {"deep": False, "patch": (1, 1, 1)}, {"deep": False, "patch": (4, 2, 2)}):
        result = jt.reconstruct(problem, solvers.dip_tv(0.1, 20, **options, **TINY), callbacks=(), assess=False)
        assert result.volume.shape == (11, 6, 11)
        assert result.history["misfit"][-1] < 0.9 * result.history["misfit"][0]


def test_slices_are_independent_in_two_dimensions():
    """A network that sees slice by slice does not mix them: spoiling one leaves the others as they were."""
    from jaxtomo.priors.nets import UNet

    net = UNet(3, 2, (4, 8), (2,), False, nnx.Rngs(0))
    net.out.kernel[...] = jnp.ones_like(net.out.kernel[...])
    features = jax.random.normal(jax.random.key(0), (5, 9, 8, 3))
    plain, spoilt = net(features), net(features.at[2].set(7.0))
    changed = np.abs(np.asarray(plain - spoilt)).max((1, 2, 3))
    assert changed[2] > 0.01 and changed[[0, 1, 3, 4]].max() < 1e-6


def test_neighbours_as_channels_are_a_convolution_in_three_dimensions():
    from jaxtomo.priors.nets import beside

    features = jax.random.normal(jax.random.key(0), (5, 7, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 9, 4))
    flat = jax.lax.conv_general_dilated(
        beside(features), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    solid = kernel.reshape(3, 3, 3, 3, 4).transpose(2, 0, 1, 3, 4)
    true = jax.lax.conv_general_dilated(
        features[None], solid, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )[0]
    np.testing.assert_allclose(flat, true, atol=1e-4)


def test_an_ensemble_knows_where_it_is_unsure():
    from jaxtomo.ensembles import in_turn

    problem, truth = noisy()
    solver = solvers.root_tv(0.05, 60)
    for together in (jt.ensemble(solver, 4), in_turn(solver, 4)):
        result = jt.reconstruct(problem, together, callbacks=(), assess=False)
        assert result.spread.shape == result.volume.shape and (result.spread >= 0).all()
        error, spread = (np.argsort(np.argsort(a.ravel())) for a in (np.abs(result.volume - truth), result.spread))
        assert np.corrcoef(error, spread)[0, 1] > 0.3
    with pytest.raises(jt.InputError, match="2 members"):
        jt.ensemble(solver, 1)


def test_samples_are_kept(tmp_path):
    problem, _ = noisy()
    result = jt.reconstruct(problem, jt.ensemble(solvers.root_tv(0.05, 10), 2), callbacks=(), assess=False)
    jt.write(tmp_path / "a.h5", result)
    from jaxtomo.io.reconstruction import read_reconstruction

    assert result.samples.shape == (2, *result.volume.shape)
    np.testing.assert_allclose(result.samples.mean(0), result.volume, atol=1e-5)
    kept = read_reconstruction(tmp_path / "a.h5")
    np.testing.assert_array_equal(kept.samples, result.samples)
    np.testing.assert_array_equal(kept.spread, result.spread)


def test_channels_come_out_of_one_network():
    """Two channels together: volumes, histories and penalties as of one, and equal ones as of one alone."""
    problem, _ = noisy()
    both = jt.Problem(problem.series.replace(images=np.stack([problem.series.images, 3 * problem.series.images])))
    run = {"callbacks": (), "assess": False}
    for solver in (solvers.root_tv(0.1, 30), solvers.dip_tv(0.1, 10, **TINY)):
        result = jt.reconstruct(both, solver, **run)
        assert result.volume.shape == (2, 12, 6, 12)
        if solver.settings["method"] == "root-tv":
            alone = jt.reconstruct(problem, solver, **run)
            # Adam feels its ε at the start, where slopes are tiny, and those of two channels are half as steep.
            np.testing.assert_allclose(result.volume[0], alone.volume, atol=0.01)
            np.testing.assert_allclose(result.volume[1], 3 * alone.volume, atol=0.03)
    with pytest.raises(jt.InputError, match="one channel"):
        jt.reconstruct(both, jt.sirt(), 2, **run)
