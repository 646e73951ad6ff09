"""The score network and what is made of it: laws of the network, of its training and of its samplers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from untrained import tiny, weights

import jaxtomo as jt
from jaxtomo import denoising, exposures, metrics, phantoms, plan, solve, solvers, train
from jaxtomo.freedom import ALL, Freedom
from jaxtomo.methods import UNLIKE
from jaxtomo.poses import moved, movement
from jaxtomo.priors import density as densities
from jaxtomo.priors import score as scores
from jaxtomo.simulate import Microscope, simulate
from jaxtomo.solvers import consistent, posing, samplers, told
from jaxtomo.solvers.stacked import left_out, shares

pytestmark = pytest.mark.optimised(False)


@pytest.fixture(scope="module")
def problem():
    fine = np.zeros((24, 24, 24), np.float32)
    fine[6:18, 4:20, 8:20] = 1
    series, _, _ = simulate(fine, np.linspace(-60, 60, 9), Microscope(dose=100), 0)
    return jt.Problem(series)


@pytest.mark.parametrize("options", [{}, {"deep": False, "patch": (8, 1, 1)}, {"deep": False, "patch": (1, 2, 2)}])
@pytest.mark.parametrize("shape", [(8, 12, 16), (7, 9, 5), (6, 6, 1)])
def test_every_network_takes_every_shape(options, shape):
    network = tiny(channels=(4, 8), **options)
    noisy, *guides = (jax.random.normal(jax.random.key(i), shape) for i in range(1 + scores.GUIDES))
    found = jax.jit(network)(noisy, jnp.float32(0.5), jnp.stack(guides), jnp.ones(scores.GEOMETRY))
    assert found.shape == shape and np.isfinite(found).all()


def test_an_untrained_network_weighs_noise_against_guide():
    network = jax.jit(scores.Score(channels=(4,), rngs=nnx.Rngs(0)))
    noisy, *guides = (jax.random.normal(jax.random.key(i), (8, 8, 8)) for i in range(1 + scores.GUIDES))
    guides, told = jnp.stack(guides), jnp.zeros(scores.GEOMETRY)
    guide = guides.mean(0)
    np.testing.assert_allclose(network(noisy, jnp.float32(1e-3), guides, told), noisy, atol=1e-4)
    np.testing.assert_allclose(network(noisy, jnp.float32(scores.SIGMA_MAX), guides, told), guide, atol=1e-3)
    np.testing.assert_allclose(network(noisy, jnp.float32(0.5), guides, told), (noisy + guide) / 2, atol=1e-5)


@pytest.mark.parametrize("patch", [(2, 2, 2), (8, 1, 1), (1, 2, 2), (1, 1, 1)])
def test_patches_unfold_to_what_was_folded(patch):
    from jaxtomo.priors.dip import unfolded

    volume = jax.random.normal(jax.random.key(0), (5, 6, 7))
    np.testing.assert_array_equal(unfolded(scores.folded(volume[..., None], patch), patch, volume.shape), volume)


def test_units_go_there_and_back():
    network, volume = tiny(), jax.random.normal(jax.random.key(0), (4, 4, 4))
    np.testing.assert_allclose(network.outward(network.inward(volume, 3.0), 3.0), volume, atol=1e-6)


def test_the_geometry_is_that_of_the_images_that_count(problem):
    one, first, last, count, noise = map(float, scores.geometry(problem))
    assert one == 1
    np.testing.assert_allclose((first, last), np.deg2rad((-60, 60)), rtol=1e-6)
    np.testing.assert_allclose(np.exp(4 * count), 9, rtol=1e-5)
    assert 0.03 < np.exp(4 * noise) < 0.4  # 100 electrons a pixel on average, and more where the specimen is
    less = problem.replace(weights=problem.weights.at[0].set(0))
    np.testing.assert_allclose(scores.geometry(less)[1], np.deg2rad(-45), rtol=1e-6)
    turned = scores.mirrored(scores.geometry(less))
    np.testing.assert_allclose(turned[1:3], np.deg2rad((-60, 45)), rtol=1e-6)


def test_weights_are_kept_and_read(tmp_path):
    given = weights()
    scores.save(tmp_path / "w", given)
    found = scores.load(tmp_path / "w")
    noisy = jax.random.normal(jax.random.key(0), (8, 8, 8))
    args = noisy, jnp.float32(0.3), jnp.stack([noisy] * scores.GUIDES), jnp.ones(scores.GEOMETRY)
    np.testing.assert_allclose(found.score(*args), given.score(*args), atol=5e-3)  # half precision
    np.testing.assert_allclose(found.spectrum.power, given.spectrum.power, rtol=1e-6)
    with pytest.raises(jt.InputError, match="there already"):
        scores.save(tmp_path / "w", given)
    with pytest.raises(jt.InputError, match="no weights there"):
        scores.load(tmp_path / "nothing")


def test_the_density_is_learned_from_examples():
    """Guides that are thinner, the narrower the range of tilts."""
    rng = np.random.default_rng(0)
    truths = [np.clip(rng.normal(0.2, 0.3, (8, 8, 8)), 0, 1).astype(np.float32) for _ in range(60)]
    halves = np.exp(rng.uniform(np.log(0.1), np.log(1.2), 60))
    guides = [t / (1 + 0.2 / h) for t, h in zip(truths, halves, strict=True)]
    geometries = [np.array([1, -h, h, 0.7, -0.5], np.float32) for h in halves]
    table = densities.learned(truths[:40], guides[:40], geometries[:40])
    found = [float(densities.density(g, s, table)) for g, s in zip(guides[40:], geometries[40:], strict=True)]
    np.testing.assert_allclose(found, [float(densities.typical(t)) for t in truths[40:]], rtol=0.08)
    brighter = float(densities.density(1000 * guides[0], geometries[0], table))
    assert brighter == pytest.approx(1000 * float(densities.density(guides[0], geometries[0], table)), rel=1e-4)


def test_consistency_solves_its_equations(problem):
    """Against a dense solution in float64."""
    small = problem.replace(images=problem.images[:, :, 4:6], weights=problem.weights, shape=(12, 12, 2))
    images = consistent.measured(small)
    start, variance = jax.random.uniform(jax.random.key(0), small.shape), 0.01
    found = consistent.consistent(small, images, start, variance, steps=300)
    basis = jnp.eye(start.size).reshape(-1, *small.shape)
    matrix = np.asarray(jax.lax.map(small.project, basis), float).reshape(start.size, -1).T
    precision = np.asarray(images.precision, float).ravel()
    normal = matrix.T @ (precision[:, None] * matrix) + np.eye(start.size) / variance
    right = (
        matrix.T @ (precision * np.asarray(small.images, float).ravel()) + np.asarray(start, float).ravel() / variance
    )
    np.testing.assert_allclose(np.asarray(found).ravel(), np.linalg.solve(normal, right), atol=2e-3)


def test_consistency_leaves_alone_what_is_certain_or_unmeasured(problem):
    images, start = consistent.measured(problem), jax.random.uniform(jax.random.key(0), problem.shape)
    certain = jnp.ones(problem.shape).at[:6].set(0)
    found = consistent.consistent(problem, images, start, certain)
    np.testing.assert_array_equal(found[:6], start[:6])
    assert not np.allclose(found[6:], start[6:])
    nothing = problem.replace(weights=0 * problem.weights)
    np.testing.assert_array_equal(consistent.consistent(nothing, consistent.measured(nothing), start, 1.0), start)


def test_robust_consistency_is_not_pulled_by_an_outlier(problem):
    truth = jnp.zeros(problem.shape).at[3:9, 4:10, 2:10].set(1.0)
    clean = problem.replace(images=problem.project(truth))
    spoilt = clean.replace(images=clean.images.at[4, 6, 6].add(100.0))
    images = consistent.Images(jnp.ones_like(clean.images), jnp.asarray(clean.images.size))

    def pulled(likelihood):
        asked = spoilt.replace(likelihood=likelihood)
        return float(jnp.abs(consistent.consistent(asked, images, truth, 0.1) - truth).max())

    assert pulled(jt.robust()) < 0.1 * pulled(jt.gaussian())


COUNTS, DETECTOR = [Microscope(dose=20), Microscope(dose=200)], Microscope(dose=1e5, readout=0.1)


@pytest.mark.parametrize(
    ("microscope", "background"),
    [*((m, b) for m in COUNTS for b in (0.0, 0.05, 0.5)), (DETECTOR, 0.0), (DETECTOR, 0.5)],
)
def test_chi_square_of_the_truth_is_one(background, microscope):
    fine = np.full((64, 64, 64), background, np.float32)
    fine[16:48, 10:50, 20:50] = 1
    series, truth, _ = simulate(fine, np.linspace(-60, 60, 15), microscope, 0)
    problem = jt.Problem(series)
    found = consistent.chi_square(
        problem, consistent.measured(problem), problem.project(jnp.asarray(truth.swapaxes(1, 2)))
    )
    assert 0.6 < float(found) < 1.25  # edges count as noise


GAUSSIAN = 0.5


def exact(noisy, sigma):
    """The denoiser of white noise of standard deviation `GAUSSIAN`."""
    return noisy * GAUSSIAN**2 / (GAUSSIAN**2 + sigma**2)


@pytest.mark.parametrize(
    ("sampler", "steps"), [(samplers.ddim(0.0), 60), (samplers.ddim(0.85), 60), (samplers.heun(), 20)]
)
def test_samplers_draw_from_a_gaussian(sampler, steps):
    levels = samplers.levels(steps)
    assert levels[0] == pytest.approx(80) and levels[-1] == 0 and (np.diff(levels) < 0).all()
    noisy = 80 * jax.random.normal(jax.random.key(0), (20_000,))
    for i in range(steps):
        clean = exact(noisy, levels[i])
        noisy = sampler(exact, noisy, clean, levels[i], levels[i + 1], jax.random.key(i))
    assert float(noisy.std()) == pytest.approx(GAUSSIAN, rel=0.08)
    assert abs(float(noisy.mean())) < 0.02


def test_heun_follows_the_closed_form():
    """x(0) = x(T) s / √(s² + T²) of the probability flow; Heun is of second order, Euler is not."""
    start = jnp.linspace(-100.0, 100.0, 11)
    there = start * GAUSSIAN / np.sqrt(GAUSSIAN**2 + 80.0**2)

    def error(sampler, steps):
        noisy, levels = start, samplers.levels(steps, least=0.002)
        for i in range(steps):
            noisy = sampler(exact, noisy, exact(noisy, levels[i]), levels[i], levels[i + 1], jax.random.key(0))
        return float(jnp.abs(noisy - there).max())

    assert error(samplers.heun(), 40) < 0.35 * error(samplers.heun(), 20)
    assert error(samplers.heun(), 20) < error(samplers.ddim(0.0), 40)


SOLVERS = {
    "expected": solvers.expected(weights(), 4),
    "sample": solvers.sample(weights(), 4, samples=1, freedom=ALL),
    "samples": solvers.sample(weights(), 4, samples=2, start=1.0, sampler=samplers.heun()),
    "prior alone": solvers.sample(weights(), 4, samples=1, guided=False),
    "plug-and-play": solvers.plug_and_play(weights(), (1.0, 0.5, 0.3, 0.2)),
    "adapt": solvers.adapt(weights(), rank=1, steps=20),
    "stacked": solvers.stacked(weights(), 4),
}


def run(problem, name, **options):
    return jt.reconstruct(problem, SOLVERS[name], 4, callbacks=(), assess=False, key=jax.random.key(3), **options)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_deterministic_resume_and_compile_once(problem, name, tmp_path):
    whole = run(problem, name)
    assert whole.volume.shape == (12, 12, 12) and np.isfinite(whole.volume).all()
    before = solve.stepped._cache_size()
    key = jax.random.key(3)
    jt.reconstruct(problem, SOLVERS[name], 2, callbacks=(jt.callbacks.checkpoint(tmp_path),), assess=False, key=key)
    run(problem.replace(images=1.5 * problem.images), name)
    assert solve.stepped._cache_size() == before
    again = run(problem, name, resume=jt.callbacks.restore(tmp_path, problem, SOLVERS[name], key))
    np.testing.assert_array_equal(whole.volume, again.volume)
    if name == "samples":
        assert whole.spread is not None and whole.spread.min() >= 0 and whole.spread.max() > 0


def test_several_devices_draw_the_same_samples(problem):
    """And under a noise model that is not Gaussian."""
    problem, solver = problem.replace(likelihood=jt.robust()), solvers.sample(weights(), 2, samples=2)
    one = jt.reconstruct(problem, solver, callbacks=(), assess=False)
    split = jt.parallel.split(problem, solver, jt.parallel.mesh(4))
    four = jt.reconstruct(*split, callbacks=(), assess=False)
    near = 3e-2 * np.abs(one.volume).max()  # conjugate gradients of an ill-conditioned guide amplify rounding
    np.testing.assert_allclose(four.volume, one.volume, atol=near)
    np.testing.assert_allclose(four.spread, one.spread, atol=near)


@pytest.mark.parametrize("name", ["expected", "sample"])
def test_intensity_scales_through(problem, name):
    bright = run(problem.replace(images=problem.images * 1024), name).volume  # a power of two: no other rounding
    plain = run(problem, name).volume
    np.testing.assert_allclose(bright / 1024, plain, atol=1e-4 * np.abs(plain).max())


def test_an_adapted_network_starts_as_itself_and_explains_the_images_better(problem):
    given, solver = weights(), SOLVERS["adapt"]
    start = solver.init(problem, jax.random.key(0))
    from jaxtomo.solvers.fit import model_of

    known = told.tell(problem, given)
    plain = given.score.outward(told.seen_mirrored(given.score, known, 0), known.density)
    np.testing.assert_allclose(model_of(start)(), plain, atol=1e-4)
    history = jt.reconstruct(problem, solver, callbacks=(), assess=False).history
    assert history["loss"][-1] < history["loss"][0]


def test_shares_are_those_that_predict_left_out_tilts():
    """Of volumes with the truth among them all to it; of two of which it is the mean half each."""
    fine = phantoms.core_shell((24, 24, 24), seed=1)
    series, truth, _ = simulate(fine, np.arange(-60, 61, 10.0), Microscope(dose=1e4), seed=1)
    problem, truth = jt.Problem(series), jnp.asarray(truth.swapaxes(1, 2))
    kept, left = left_out(problem)
    assert (kept.weights + left.weights == problem.weights).all() and int((left.weights[:, 0, 0] > 0).sum()) == 3
    other = jax.random.uniform(jax.random.key(0), truth.shape)
    found = shares(left, jnp.stack([other, 0.3 * truth, truth]))
    assert found[2] > 0.97 and float(found.sum()) == pytest.approx(1, abs=1e-5)
    found = shares(left, jnp.stack([0.5 * truth, 1.5 * truth, other]))
    np.testing.assert_allclose(found, [0.5, 0.5, 0], atol=0.02)
    nothing = left.replace(weights=0 * left.weights)
    np.testing.assert_array_equal(shares(nothing, jnp.stack([other, truth])), [1, 0])
    one = jt.Problem(jt.TiltSeries(series.images[:1], series.tilt_deg[:1]))
    assert not left_out(one)[1].weights.any()


def test_a_network_that_knows_nothing_is_given_no_share():
    fine = phantoms.core_shell((32, 32, 32), seed=1)
    series, truth, _ = simulate(fine, np.arange(-60, 61, 5.0), Microscope(dose=100.0), seed=1)
    problem, misled = jt.Problem(series), weights()
    result = jt.reconstruct(problem, solvers.stacked(misled, 4), callbacks=(), assess=False)
    alone = jt.reconstruct(problem, solvers.expected(misled, 4), callbacks=(), assess=False)
    assert result.history["network_share"][-1] < 0.3
    assert metrics.psnr(result.volume, truth) > metrics.psnr(alone.volume, truth) + 1


def test_mirror_images_of_a_symmetric_answer_agree(problem):
    """A network that knows nothing gives back the mean of its guides, whichever mirror image it is shown."""
    given = weights()._replace(score=scores.Score(channels=(4, 8), rngs=nnx.Rngs(0)))
    known = told.tell(problem, given)
    for number in range(16):
        seen = told.seen_mirrored(given.score, known, number)
        np.testing.assert_allclose(seen, known.guide.mean(0), atol=1e-2 * float(jnp.abs(known.guide).max()))


@pytest.mark.parametrize("shape", [(8, 8, 60), (8, 8, 33)])
def test_slabs_of_a_large_volume_have_no_seams(monkeypatch, problem, shape):
    """Each row's answers weigh 1 in all, none jumps, and a network that looks at its own rows only answers alike."""
    monkeypatch.setattr(plan, "SEEN", 8 * 8 * 32)
    monkeypatch.setattr(told, "OVERLAP", 8)
    parts, shares = told.slabs(shape)
    assert len(parts) > 1 and all(part.stop - part.start == 32 for part in parts)
    np.testing.assert_allclose(shares.sum(0), 1)
    assert np.abs(np.diff(shares, axis=1)).max() < 0.25
    for part, share in zip(parts, shares, strict=True):
        assert not share[: part.start].any() and not share[part.stop :].any()
    guide = jax.random.normal(jax.random.key(0), (scores.GUIDES, *shape))
    known = told.tell(problem, weights())._replace(guide=guide)
    plain = scores.Score(channels=(4, 8), rngs=nnx.Rngs(0))  # knows nothing: every voxel by itself
    found = jax.jit(lambda: told.denoised(plain, jnp.ones((2, *shape)), 0.5, known))()
    np.testing.assert_allclose(found, jnp.stack([(1 + guide.mean(0)) / 2] * 2), atol=1e-5)


def test_slabs_are_differentiable(monkeypatch, problem):
    known, given = told.tell(problem, weights()), weights().score
    monkeypatch.setattr(plan, "SEEN", 12 * 12 * 8)
    monkeypatch.setattr(plan, "LEAST", 8)
    monkeypatch.setattr(told, "OVERLAP", 4)

    @jax.jit
    def total(guide):
        return jnp.sum(told.denoised(given, jnp.zeros((1, *guide.shape[1:])), 0.5, known._replace(guide=guide)) ** 2)

    way = jax.random.normal(jax.random.key(0), known.guide.shape)
    by = (total(known.guide + 1e-2 * way) - total(known.guide - 1e-2 * way)) / 2e-2
    assert float(jnp.sum(jax.grad(total)(known.guide) * way)) == pytest.approx(float(by), rel=0.02)


def test_poses_follow_the_volume_that_the_images_show():
    fine = np.zeros((48, 48, 48), np.float32)
    fine[12:30, 8:34, 16:40] = 1
    fine[20:28, 14:24, 20:30] = 2
    series, truth, _ = simulate(fine, np.linspace(-60, 60, 13), Microscope(dose=1000), 0)
    shift = np.random.default_rng(0).normal(0, 0.7, (13, 2)).astype(np.float32)
    nominal = jt.Pose.nominal(series.tilt_deg)
    problem = jt.Problem(series, nominal.replace(shift=jnp.asarray(shift)))
    how = posing.following(Freedom(), 6)
    volume, images = jnp.asarray(truth.swapaxes(1, 2)), consistent.measured(problem)
    follow = jax.jit(lambda state: posing.followed(problem, how, state, images, volume))
    state = posing.at_rest(problem, how)
    for _ in range(6):
        state = follow(state)
    left = moved(problem, state["moves"]).shift
    wrong = movement(problem, {"shift": jnp.asarray(shift)})["shift"]  # but for movements of the specimen
    assert float(jnp.std(movement(problem, {"shift": left})["shift"])) < 0.2 * float(jnp.std(wrong))


@pytest.mark.optimised(True)
def test_weights_that_ship_know_their_kind():
    """`nano` is ahead of all its guides on a specimen it never saw, and tissue is unlike it."""
    nano = scores.load("nano")
    assert {"about", "data", "sources", "licence", "command", "machine", "minutes", "metrics"} <= nano.card.keys()
    fine = phantoms.core_shell((64, 64, 64), seed=1)
    series, truth, _ = simulate(fine, np.arange(-60, 61, 6), Microscope(dose=60), 1)
    problem = jt.Problem(series)
    known = told.tell(problem, nano)
    guides = np.asarray(nano.score.outward(known.guide, known.density)).swapaxes(2, 3)
    answer = jt.reconstruct(problem, solvers.expected(nano, 1), callbacks=(), assess=False).volume
    assert metrics.psnr(answer, truth) > max(metrics.psnr(guide, truth) for guide in guides)
    assert float(known.unlike) < UNLIKE < float(told.tell(problem, scores.load("fibsem")).unlike)


def test_bad_settings_are_named(problem):
    with pytest.raises(jt.InputError, match="2 or more"):
        solvers.sample(weights(), 1)
    with pytest.raises(jt.InputError, match="noise level"):
        solvers.sample(weights(), 4, start=100.0)
    with pytest.raises(jt.InputError, match="positive"):
        solvers.plug_and_play(weights(), (0.0,))


@pytest.fixture(scope="module")
def library():
    rng = np.random.default_rng(0)
    blocks = np.ones((4, 4, 4), np.uint8)
    volumes = [np.kron(200 * (rng.random((10, 10, 10)) < 0.5), blocks).astype(np.uint8) for _ in range(21)]
    return exposures.Library.of(volumes, 16)


@pytest.mark.optimised(True)
def test_examples_are_those_of_their_seed(library):
    a, b = (exposures.Batches(library.example, 2, (16, 8, 8), seed=3) for _ in range(2))
    exposures_seen = exposures.POOL, exposures.RENEWED
    late = a(exposures_seen[1] + 1)
    for early in (0, 5):
        b(early)
    np.testing.assert_array_equal(late.guide, b(exposures_seen[1] + 1).guide)
    assert late.truth.shape == (2, 16, 8, 8) and late.geometry.shape == (2, scores.GEOMETRY)
    assert all(np.isfinite(part).all() for part in late)


@pytest.fixture(autouse=True)
def small_pool(monkeypatch):
    """Each example costs a reconstruction."""
    monkeypatch.setattr(exposures, "POOL", 3)
    monkeypatch.setattr(denoising, "VALIDATION", 2)


def test_what_is_kept_is_never_shown():
    marked = np.full((170, 170, 170), 100, np.uint8)
    marked[-128:, -128:, -128:] = 200
    library = exposures.Library([marked], 20, None)
    assert library.keeps_corner
    for i in range(30):
        assert (library.cut(np.random.default_rng(i)) == 100).all()
        assert (library.cut(np.random.default_rng(i), validation=True) == 200).all()
    many = [np.full((32, 32, 32), 1 + (i % 20 == 19), np.uint8) for i in range(40)]
    library = exposures.Library(many, 16, None)
    assert not library.keeps_corner
    for i in range(30):
        assert (library.cut(np.random.default_rng(i)) == 1).all()
        assert (library.cut(np.random.default_rng(i), validation=True) == 2).all()
    assert [len(exposures.Library(many[:n], 16, None).shown(False)) for n in (1, 2, 5, 19, 20, 40)] == [
        1,
        1,
        4,
        18,
        19,
        38,
    ]


def test_empty_places_are_no_examples():
    sparse = np.zeros((32, 320, 32), np.uint8)
    sparse[:, 100:108] = 1
    library = exposures.Library([sparse], 16, None)
    assert all(library.cut(np.random.default_rng(i)).mean() >= 1e-3 for i in range(30))
    sparse[:] = 0
    sparse[0, 0, 0] = 1
    with pytest.raises(jt.InputError, match="all but empty"):
        library.cut(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("volumes", "said"),
    [
        ([], "no volume"),
        ([np.ones((8, 8, 8))], "need 32"),
        ([np.zeros((32, 32, 32))], "empty"),
        ([np.full((32, 32, 32), np.nan)], "non-finite"),
    ],
)
def test_bad_volumes_are_named(volumes, said):
    with pytest.raises(jt.InputError, match=said):
        exposures.Library.of(volumes, 16)


def trained(folder, library, steps, **options):
    batches = exposures.Batches(library.example, 2, (16, 8, 8))
    network = scores.Score(channels=(4,), rngs=nnx.Rngs(0))
    return train.train(
        network,
        batches,
        folder,
        loss=denoising.denoising_loss,
        steps=steps,
        rate=1e-3,
        say=lambda said: None,
        **options,
    )


@pytest.mark.optimised(True)
def test_a_training_that_goes_on_gives_the_same_weights(library, tmp_path):
    whole = trained(tmp_path / "whole", library, 6)

    class Stop(Exception):
        pass

    batches = exposures.Batches(library.example, 2, (16, 8, 8))

    def until(i):
        if i == 3:
            raise Stop
        return batches(i)

    network = scores.Score(channels=(4,), rngs=nnx.Rngs(0))
    options = {"loss": denoising.denoising_loss, "steps": 6, "rate": 1e-3, "say": lambda said: None}
    with pytest.raises(Stop):
        train.train(network, until, tmp_path / "part", **options)
    part = trained(tmp_path / "part", library, 6, resume=True)
    for a, b in zip(jax.tree.leaves(nnx.state(whole)), jax.tree.leaves(nnx.state(part)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(jt.InputError, match="holds a training"):
        trained(tmp_path / "part", library, 6)


def test_devices_share_a_batch(library, tmp_path, monkeypatch):
    """Eight devices take the step that one does."""
    batch = exposures.Batches(library.example, 8, (16, 8, 8))(0)

    def after(folder):
        network = scores.Score(channels=(4,), rngs=nnx.Rngs(0))
        options = {"loss": denoising.denoising_loss, "steps": 2, "rate": 1e-3, "say": lambda said: None}
        return jax.tree.leaves(nnx.state(train.train(network, lambda i: batch, folder, **options), nnx.Param))

    eight = after(tmp_path / "eight")
    monkeypatch.setattr(train.jax, "devices", lambda: [eight[0].addressable_shards[0].device])
    for a, b in zip(eight, after(tmp_path / "one"), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.optimised(True)
def test_the_loss_falls_and_the_folder_is_whole(library, tmp_path):
    facts = denoising.train_score(
        library.volumes,
        tmp_path / "t",
        network={"channels": (4, 8)},
        side=16,
        patch=(16, 8, 8),
        batch=2,
        steps=120,
        rate=3e-3,
        say=lambda said: None,
    )
    lines = [json.loads(line) for line in (tmp_path / "t" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 120]
    assert facts["alone"] < 0.99  # 1 of a network that knows nothing
    assert {p.name for p in (tmp_path / "t").iterdir()} >= {"weights", "loss.png", "examples.png", "checkpoint"}
    assert scores.load(tmp_path / "t" / "weights").card["parameters"] == facts["parameters"]
