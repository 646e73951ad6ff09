"""Every solver through the one loop: a table of solvers × laws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxtomo as jt
from jaxtomo import callbacks, solve, solvers

pytestmark = pytest.mark.optimised(False)

SOLVERS = {
    "wbp": jt.wbp(),
    "sirt": jt.sirt(),
    "sart": jt.sart(),
    "cgls": jt.cgls(),
    "tv": jt.tv(),
    "tvq": jt.tvq(steps=40),
    "gaussian": solvers.gaussian(),
    "fit": jt.fit(jt.voxels(), optax.adam(0.05)),
    "fit with poses": jt.fit(jt.voxels(), optax.adam(0.05), optax.adam(1e-3)),
    "dip-tv": solvers.dip_tv(steps=40, channels=(4, 8), skips=(4,)),
    "inr": jt.inr(steps=40),
}
ITERATIVE = [name for name in SOLVERS if name != "wbp"]
STEPS = 12


def series(tilts=9, size=12, seed=0):
    """A bright block and its noiseless images, from jaxtomo's own projector: laws, not quality, are tested here."""
    volume = np.zeros((size, 6, size), np.float32)
    volume[4:8, 1:5, 3:9] = 1
    pose = jt.Pose.nominal(np.linspace(-60, 60, tilts))
    images = np.asarray(jt.project(jnp.asarray(volume), pose))
    return jt.TiltSeries(images, np.linspace(-60, 60, tilts), pixel_nm=1.0), volume


@pytest.fixture(scope="module")
def problem():
    shift = jnp.tile(jnp.asarray([0.0, 0.0]), (9, 1))
    tilt_series, _ = series()
    return jt.Problem(tilt_series, jt.Pose.nominal(tilt_series.tilt_deg).replace(shift=shift))


def run(problem, name, steps=STEPS, **options):
    options = {"callbacks": (), "assess": False, "key": jax.random.key(3)} | options
    return jt.reconstruct(problem, SOLVERS[name], steps, **options)


def compiled():
    """How many step programs there are."""
    return solve.scanned._cache_size() + solve.stepped._cache_size()


def same(a, b):
    np.testing.assert_array_equal(a.volume, b.volume)
    for name in a.history:
        np.testing.assert_array_equal(a.history[name], b.history[name], err_msg=name)


@pytest.mark.parametrize("name", ITERATIVE)
def test_the_misfit_falls(problem, name):
    history = run(problem, name, 40).history["misfit"]
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("name", SOLVERS)
def test_deterministic_whatever_the_chunks(problem, name, monkeypatch):
    first = run(problem, name)
    same(first, run(problem, name))
    monkeypatch.setattr(solve, "SECONDS", 1e-9)  # one step a chunk
    same(first, run(problem, name))


@pytest.mark.parametrize("name", ITERATIVE)
def test_resumed_equals_uninterrupted(problem, name, tmp_path):
    whole = run(problem, name)
    run(problem, name, 5, callbacks=(callbacks.checkpoint(tmp_path),))
    resume = callbacks.restore(tmp_path, problem, SOLVERS[name], jax.random.key(3))
    assert resume[0] == 5
    same(whole, run(problem, name, resume=resume))


@pytest.mark.parametrize("name", SOLVERS)
def test_stepping_by_hand_is_the_same(problem, name):
    solver, key = SOLVERS[name], jax.random.key(3)
    state = solver.init(problem, key)
    step = jax.jit(solver.step)
    for i in range(3):
        state, _ = step(problem, state, jax.random.fold_in(key, i))
    volume, _ = solver.read(problem, state)
    np.testing.assert_allclose(run(problem, name, 3).volume, np.asarray(volume).swapaxes(1, 2), atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_new_data_compile_nothing_new(problem, name):
    run(problem, name, 3)
    before = compiled()
    run(problem.replace(images=problem.images * 1.5), name, 3)
    run(problem.replace(weights=problem.weights * 0.5), name, 5)
    assert compiled() == before


@pytest.mark.parametrize("name", SOLVERS)
def test_intensity_scales_through(problem, name):
    """Images a thousand times as bright give a volume a thousand times as dense."""
    if name.startswith("fit with"):
        pytest.skip("Adam's steps in the pose are not in proportion to anything")
    # Few steps: conjugate gradients have no more to do on so small a problem, and then only amplify rounding.
    bright = run(problem.replace(images=problem.images * 1000), name, 4).volume
    plain = run(problem, name, 4).volume
    np.testing.assert_allclose(bright / 1000, plain, atol=3e-3 * np.abs(plain).max())


@pytest.mark.parametrize("name", [n for n in ITERATIVE if n != "sart"])
def test_weightless_tilts_say_nothing(problem, name):
    weights = problem.weights.at[4].set(0)
    spoilt = problem.replace(weights=weights, images=problem.images.at[4].set(77.0))
    clean = problem.replace(weights=weights, images=problem.images.at[4].set(0.0))
    if name in ("gaussian", "cgls"):  # their noise level, and nothing else, is measured on all images
        pytest.skip("covered by the residual")
    np.testing.assert_allclose(run(spoilt, name, 5).volume, run(clean, name, 5).volume, atol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("case", ["one slice, two tilts", "thin and wide"])
def test_odd_sizes(name, case):
    if case == "one slice, two tilts":
        tilt_series = series(tilts=2)[0]
        problem = jt.Problem(tilt_series.replace(images=tilt_series.images[:, 2:3]))
    else:
        problem = jt.Problem(series(tilts=5)[0], thickness=5, width=17)
    result = run(problem, name, 3)
    nz, nx, ny = problem.shape
    assert result.volume.shape == (nz, ny, nx)
    assert np.isfinite(result.volume).all()


def test_wbp_has_the_right_scale():
    tilt_deg = np.arange(0, 180, 1.5)
    disc = np.hypot(*np.mgrid[-32:32, -32:32] + 0.5) < 20
    volume = np.repeat(disc[:, None].astype(np.float32), 2, axis=1)
    images = np.asarray(jt.project(jnp.asarray(volume), jt.Pose.nominal(tilt_deg)))
    for window in ("ramp", "shepp-logan", "hann"):
        problem = jt.Problem(jt.TiltSeries(images, tilt_deg))
        result = jt.reconstruct(problem, jt.wbp(window), callbacks=(), assess=False)
        radius = np.hypot(*np.mgrid[-32:32, -32:32] + 0.5)
        assert result.volume[:, 0][radius < 15].mean() == pytest.approx(1, abs=0.01), window
        assert abs(result.volume[:, 0][(radius > 25) & (radius < 31)].mean()) < 0.01


def test_wbp_steps_of_uneven_and_missing_tilts():
    from jaxtomo.solvers.wbp import tilt_steps as steps

    tilt = jnp.deg2rad(jnp.asarray([-60.0, -50, -30, 0, 20, 60]))
    live = jnp.asarray([True, True, True, False, True, True])
    assert steps(tilt, live)[3] == 0
    even = jnp.deg2rad(jnp.arange(-60.0, 61, 10))
    np.testing.assert_allclose(steps(even, jnp.ones(13, bool)), np.deg2rad(10), rtol=1e-4)
    full = jnp.deg2rad(jnp.arange(0.0, 180, 5))
    np.testing.assert_allclose(steps(full, jnp.ones(36, bool)).sum(), np.pi, rtol=1e-4)


def test_cgls_solves_the_normal_equations(float64):
    rng = np.random.default_rng(0)
    tilt_deg = np.linspace(-80, 80, 30)
    volume = rng.standard_normal((6, 2, 6))
    pose = jt.Pose(jnp.asarray(np.deg2rad(tilt_deg)))
    images = np.asarray(jt.project(jnp.asarray(volume), pose, (2, 10)))
    problem = jt.Problem(jt.TiltSeries(images, tilt_deg), pose, width=6)
    problem = problem.replace(images=jnp.asarray(images.swapaxes(1, 2)), weights=problem.weights.astype(float))
    state, step = solvers.cgls().init(problem, None), jax.jit(solvers.cgls().step)
    for _ in range(60):
        state, _ = step(problem, state, None)
    slope = problem.back_project(problem.images - problem.project(state.volume))
    assert float(jnp.abs(slope).max()) < 1e-6


def test_tv_closes_its_duality_gap(problem):
    result = jt.reconstruct(
        problem, jt.tv(0.05), 3000, callbacks=(callbacks.stop_when_converged(gap=1e-4),), assess=False
    )
    assert "gap" in result.message
    longer = jt.reconstruct(problem, jt.tv(0.05), 3000, callbacks=(), assess=False)
    np.testing.assert_allclose(result.volume, longer.volume, atol=0.03)


@pytest.mark.parametrize("name", ["cgls", "tv", "gaussian"])
def test_quadratic_solvers_refuse_other_likelihoods(name):
    with pytest.raises(jt.InputError, match="Gaussian"):
        run(jt.Problem(series()[0], likelihood=jt.poisson()), name)


@pytest.mark.parametrize("likelihood", [jt.poisson(), jt.robust(), jt.fitted_intensity(jt.gaussian())])
@pytest.mark.parametrize("name", ["sirt", "fit"])
def test_every_likelihood_lowers_the_misfit(name, likelihood):
    tilt_series, _ = series()
    history = run(jt.Problem(tilt_series, likelihood=likelihood), name, 40).history["misfit"]
    assert history[-1] < 0.7 * history[0]


def test_poses_are_learned():
    """Wrong shifts are found again, up to the gauge, while the volume is."""
    truth, volume = series(tilts=15)
    rng = np.random.default_rng(1)
    shift = rng.normal(0, 0.7, (15, 2)).astype(np.float32)
    pose = jt.Pose.nominal(truth.tilt_deg)
    images = np.asarray(jt.project(jnp.asarray(volume), pose.replace(shift=jnp.asarray(shift))))
    problem = jt.Problem(truth.replace(images=images), pose.replace(shift=jnp.zeros((15, 2))))
    learner = jt.fit(jt.voxels(), optax.adam(0.05), optax.adam(0.02))
    result = jt.reconstruct(problem, learner, 400, callbacks=(), assess=False)

    def beyond_gauge(shift):
        """What is left of shifts after a rigid move of the specimen is taken out of them."""
        tilt = np.deg2rad(truth.tilt_deg)
        across = np.stack([np.cos(tilt), np.sin(tilt)], 1)
        u = shift[:, 0] - across @ np.linalg.lstsq(across, shift[:, 0], rcond=None)[0]
        return np.stack([u, shift[:, 1] - shift[:, 1].mean()], 1)

    error = beyond_gauge(np.asarray(result.pose.shift) - shift)
    assert np.sqrt(np.mean(error**2)) < 0.35 * np.sqrt(np.mean(beyond_gauge(shift) ** 2))


def test_a_diverging_run_stops_and_says_so(problem):
    result = jt.reconstruct(problem, jt.sirt(relaxation=1e30), 50, callbacks=(), assess=False)
    assert "non-finite at step" in result.message


def test_an_interruption_leaves_a_checkpoint(problem, tmp_path):
    def interrupt(now):
        if now.message is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jt.reconstruct(problem, jt.sirt(), 20, callbacks=(interrupt, callbacks.checkpoint(tmp_path, every=1e9)))
    assert callbacks.restore(tmp_path, problem, jt.sirt())[0] >= 1


def test_a_checkpoint_of_another_problem_is_refused(problem, tmp_path):
    jt.reconstruct(problem, jt.sirt(), 3, callbacks=(callbacks.checkpoint(tmp_path),), assess=False)
    with pytest.raises(jt.InputError, match="same input"):
        callbacks.restore(tmp_path, jt.Problem(series(size=10)[0]), jt.sirt())
    with pytest.raises(jt.InputError, match="no checkpoint"):
        callbacks.restore(tmp_path / "none", problem, jt.sirt())


def test_bad_problems_are_named():
    tilt_series, _ = series()
    with pytest.raises(jt.InputError, match="9 images but 5 poses"):
        jt.Problem(tilt_series, jt.Pose.nominal(np.arange(5)))
    broken = tilt_series.images.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(jt.InputError, match="1 pixels are NaN"):
        jt.Problem(tilt_series.replace(images=broken))
    with pytest.raises(jt.InputError, match="at least 1"):
        jt.reconstruct(jt.Problem(tilt_series), jt.sirt(), 0)
