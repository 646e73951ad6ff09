"""The pair that fills sinograms and cleans tomograms: laws of the networks, their critics, and what is made of them."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage
from untrained import pair, weights

import jaxtomo as jt
from jaxtomo import adversaries, exposures, metrics, phantoms, plan, sinograms, solve, solvers, train
from jaxtomo.priors import gan as gans
from jaxtomo.priors import nets, reach
from jaxtomo.priors.score import geometry
from jaxtomo.simulate import Microscope, simulate
from jaxtomo.solvers import coarse_to_fine
from jaxtomo.solvers.consistent import AGREED, agreeing, chi_square
from jaxtomo.solvers.gan import NEAR, cleaned, extended, fill, projected, show, slice_by_slice

pytestmark = pytest.mark.optimised(False)


def posed(tilts, side=16, rows=4, dose=100.0, **microscope):
    fine = phantoms.core_shell((2 * side, 2 * rows, 2 * side), seed=1)
    series, truth, _ = simulate(fine, tilts, Microscope(dose=dose, **microscope), seed=1)
    return jt.Problem(series), truth


@pytest.fixture(autouse=True)
def few_tilts(monkeypatch):
    """In simulated series: every number of them is compiled by itself."""
    monkeypatch.setattr(sinograms, "COUNTS", (8,))


@pytest.fixture(scope="module")
def problem():
    return posed(np.arange(-60, 61, 10.0))[0]


def test_what_is_seen_from_behind_is_turned_round(problem):
    """The projector says so too."""
    volume = np.random.default_rng(0).random(problem.shape).astype(np.float32)
    seen = projected(problem, volume).transpose(2, 0, 1)[..., None]
    wide = nets.half_turn(seen, 3)[..., 0].transpose(1, 2, 0)
    step = math.pi / gans.ANGLES
    beyond = gans.grid()[-1] + step * jnp.arange(1, 4)
    images = jnp.zeros((3, *problem.images.shape[1:]))
    found = problem.replace(images=images, pose=jt.Pose(beyond)).project(volume)
    np.testing.assert_allclose(wide[-3:], found, atol=1e-3)


def test_an_untrained_pair_gives_what_it_is_shown():
    fill, clean = (
        gans.SinogramFill(channels=4, growth=2, blocks=1, rngs=nnx.Rngs(0)),
        gans.TomogramClean(channels=(4, 8), rngs=nnx.Rngs(0)),
    )
    seen = jax.random.normal(jax.random.key(0), (gans.GUIDES, gans.ANGLES, 9, 4))
    answer = jax.jit(fill)(seen, jnp.zeros((gans.ANGLES, gans.TOLD)))
    np.testing.assert_allclose(answer, seen.mean(0)[..., 1:-1], atol=1e-6)
    volumes = jax.random.normal(jax.random.key(0), (1 + gans.GUIDES, 8, 9, 4))
    np.testing.assert_allclose(jax.jit(clean)(volumes, jnp.zeros(gans.GEOMETRY)), volumes[0, ..., 1:-1], atol=1e-6)


def test_the_ends_of_half_a_turn_see_each_other():
    """The last angle is beside the first, turned round."""
    fill = pair().pair.fill
    seen = jax.random.normal(jax.random.key(0), (gans.GUIDES, gans.ANGLES, 8, 3))
    known = jnp.zeros((gans.ANGLES, gans.TOLD))
    felt = jax.jacrev(lambda seen: fill(seen, known)[0, 0, 0])(seen)
    assert jnp.abs(felt[:, -1, -2:]).max() > 0 and not felt[:, gans.ANGLES // 2].any()


def test_how_far_angles_are_from_what_is_measured():
    tilt, live = jnp.deg2rad(jnp.array([-60.0, 0, 60, 89])), jnp.array([True, True, True, False])
    far = gans.unmeasured(tilt, live) * 180 / gans.ANGLES
    grid = np.rad2deg(gans.grid())
    expected = np.abs(grid[:, None] - np.array([-60.0, 0, 60, 120, -120])).min(1)
    np.testing.assert_allclose(far, expected, atol=1e-3)


def test_mass_and_its_centre_are_the_same_at_all_angles(problem):
    """Helgason and Ludwig: no matter how two volumes differ, if mass and centre are the same."""
    volume = np.zeros(problem.shape, np.float32)
    volume[5:11, 5:11] = np.random.default_rng(0).random((6, 6, problem.shape[2]))
    sinogram = projected(problem, volume)
    turned = projected(problem, volume[::-1, ::-1])
    moved = projected(problem, np.roll(volume, 2, 0))
    size = float(jnp.mean(sinogram.mean(1) ** 2))
    centred = 0.5 * (sinogram + turned)
    spread = projected(problem, 0.5 * (np.roll(volume, 1, 0)[::-1, ::-1] + np.roll(volume, 1, 0)))
    assert adversaries.moments(spread - centred) < 1e-6 * size
    assert adversaries.moments(moved - sinogram) > 1e-3 * size
    assert float(adversaries.moments(0.1 * sinogram)) == pytest.approx(
        0.01 * float(adversaries.moments(sinogram)), rel=1e-4
    )


def test_what_a_critic_amplifies_is_bounded():
    layer = nets.SpectralConv(3, 8, 2, nnx.Rngs(0))
    layer.kernel[...] = 100 * layer.kernel[...]
    flat = layer.kernel[...].reshape(-1, 8)
    zero, one = jnp.zeros((1, 8, 8, 3)), jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    gain = jnp.linalg.norm(layer(one) - layer(zero)) / jnp.linalg.norm(one)
    assert gain < 2.1  # every pixel is seen by four kernels of norm 1
    np.testing.assert_allclose(jnp.linalg.norm(flat, 2), jnp.linalg.svd(flat)[1][0], rtol=1e-5)


def test_rivals_learn_opposite_things():
    """The network what fools the critic, by its weight, and the critic what tells them apart, whatever that weight."""

    class Scale(nnx.Module):
        def __init__(self):
            self.factor = nnx.Param(jnp.asarray(0.5))

    truths = jax.random.normal(jax.random.key(0), (4, 16, 16, 2))

    def slopes(critical):
        rivals = adversaries.Rivals(Scale(), critical, nnx.Rngs(0))
        graph, parameters, rest = nnx.split(rivals, nnx.Param, ...)

        def loss(parameters):
            rivals = nnx.merge(graph, parameters, rest)
            return adversaries.rivalry(rivals, rivals.network.factor[...] * truths, truths)

        found = nnx.merge(graph, jax.grad(loss)(parameters), rest)
        return found.network.factor[...], jax.tree.leaves(nnx.state(found.critic, nnx.Param))

    (none, idle), (some, alone), (twice, with_weight) = slopes(0.0), slopes(1.0), slopes(2.0)
    assert none == 0 and some != 0 and float(twice) == pytest.approx(2 * float(some), rel=1e-4)
    for a, b in zip(alone, with_weight, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert any(jnp.abs(leaf).max() > 0 for leaf in alone) and not any(leaf.any() for leaf in idle)


@pytest.mark.parametrize("tilts", [np.arange(-60, 61, 10.0), np.array([0.0]), np.arange(-90, 90, 1.40625)])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_what_is_measured_stays_and_the_rest_is_filled(tilts, shift):
    problem, _ = posed(tilts, shift_jitter_px=0.0)
    problem = problem.replace(pose=problem.pose.replace(shift=jnp.full((len(tilts), 2), shift)))
    whole = jax.jit(lambda p: extended(p, jnp.full((gans.ANGLES, *p.images.shape[1:]), 7.0), _far(p)))(problem)
    count = len(tilts)
    np.testing.assert_array_equal(whole.images[:count], problem.images)
    np.testing.assert_array_equal(whole.pose.shift[:count], problem.pose.shift)
    used = np.asarray(whole.weights[count:]).any((1, 2))
    np.testing.assert_array_equal(used, _far(problem) > NEAR)
    assert used.any() == (count < 100) and not whole.pose.shift[count:].any()


def _far(problem):
    return gans.unmeasured(problem.pose.tilt, jnp.ones(len(problem.pose.tilt), bool))


def test_any_solver_takes_a_filled_sinogram(problem):
    """And held-out tilts are filled, not seen."""
    seen = np.ones(13, np.float32)
    seen[4] = 0
    hidden = problem.replace(weights=jnp.asarray(seen)[:, None, None])
    changed = hidden.replace(images=hidden.images.at[4].set(100.0))
    a, b = (jt.reconstruct(fill(p, pair()), jt.wbp(), callbacks=(), assess=False).volume for p in (hidden, changed))
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


def test_slices_one_after_the_other_change_nothing(problem, monkeypatch):
    told = show(problem, pair())
    volume = told.guide.mean(0)
    whole = jax.jit(cleaned)(told, volume)
    monkeypatch.setattr(plan, "SEEN", 1)
    monkeypatch.setattr(plan, "LEAST", 1)
    parts = jax.jit(lambda told, volume: cleaned(told, volume))(told, volume)
    np.testing.assert_allclose(parts, whole, atol=1e-4 * np.abs(whole).max())
    seen = []
    same = slice_by_slice(lambda part: seen.append(part.shape) or part[0, ..., 1:-1], told.guide)
    assert [shape[-1] for shape in seen] == [3, 3, 3, 3]  # each between its neighbours
    np.testing.assert_array_equal(same, told.guide[0])


@pytest.mark.parametrize("dose", [20.0, 500.0, math.inf])
def test_the_answer_agrees_with_the_images(dose):
    problem, _ = posed(np.arange(-60, 61, 5.0), dose=dose)
    told = show(problem, pair())
    wrong = 1.3 * told.guide[1]
    volume = jax.jit(agreeing)(problem, told.images, wrong, 0.1 * told.error * told.density**2)
    before, after = (chi_square(problem, told.images, problem.project(v)) for v in (wrong, volume))
    assert before > 2 and (after < 1.3 * AGREED if math.isfinite(dose) else after < before / 5)


@pytest.mark.parametrize("likelihood", [jt.gaussian(), jt.robust()])
def test_what_no_volume_explains_is_not_explained(likelihood):
    problem, truth = posed(np.arange(-60, 61, 3.0), side=24, dose=60.0)
    outliers = np.random.default_rng(0).random(problem.images.shape) < 0.01
    problem = problem.replace(images=jnp.where(outliers, 5 * problem.images, problem.images), likelihood=likelihood)
    told, right = show(problem, pair()), jnp.asarray(truth.swapaxes(1, 2))
    volume = jax.jit(agreeing)(problem, told.images, right, 0.001 * told.density**2)
    assert jnp.linalg.norm(volume - right) < 0.1 * jnp.linalg.norm(right)


def test_gan_reconstructs(problem):
    result = jt.reconstruct(problem, solvers.gan(pair()), callbacks=(), assess=False)
    assert result.volume.shape == (16, 4, 16) and np.isfinite(result.volume).all()
    assert {"misfit", "unlike"} <= result.history.keys() and (result.history["network_share"] >= 0.25).all()
    assert result.settings["solver"]["inner"]["method"] == "sirt"
    other = jt.reconstruct(problem, solvers.gan(pair(), jt.wbp()), callbacks=(), assess=False)
    assert np.corrcoef(other.volume.ravel(), result.volume.ravel())[0, 1] > 0.8
    bright = jt.reconstruct(
        problem.replace(images=1024 * problem.images), solvers.gan(pair()), callbacks=(), assess=False
    )
    np.testing.assert_allclose(bright.volume / 1024, result.volume, atol=1e-3 * result.volume.max())


@pytest.mark.parametrize(("answer", "least", "most", "side"), [("nothing", 0.25, 0.3, 18), ("the truth", 0.7, 1.0, 20)])
def test_a_network_weighs_as_much_as_it_predicts(answer, least, most, side, monkeypatch):
    problem, truth = posed(np.arange(-60, 61, 5.0), side=side)  # of a shape that nothing was compiled for
    said = jnp.asarray(truth.swapaxes(1, 2)) if answer == "the truth" else jnp.zeros(problem.shape)
    monkeypatch.setattr(sys.modules["jaxtomo.solvers.gan"], "cleaned", lambda shown, volume: said)
    shares = solvers.gan(pair()).init(problem, None)["shares"]
    assert least <= shares[0] <= most and jnp.sum(shares) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("side", "rows", "tilts"), [(16, 4, 13), (9, 1, 5), (8, 3, 1)])
def test_coarse_to_fine_takes_every_shape(side, rows, tilts):
    problem, _ = posed(np.linspace(-60, 60, tilts) if tilts > 1 else [0.0], side, rows)
    volume = coarse_to_fine.coarse_to_fine(problem)
    assert volume.shape == problem.shape and np.isfinite(volume).all() and (volume >= 0).all()


def test_coarse_to_fine_ends_nearer_the_truth_than_as_many_steps_from_nothing():
    problem, truth = posed(np.arange(-60, 61, 3.0), side=32, rows=4)
    noise = float(jnp.exp(4 * geometry(problem)[-1]))
    plain = solvers.root_tv(coarse_to_fine.ROOT * noise, steps=coarse_to_fine.FINE, rate=0.2)
    far = jt.reconstruct(problem, plain, callbacks=(), assess=False).volume
    near = np.asarray(coarse_to_fine.coarse_to_fine(problem)).swapaxes(1, 2)
    assert metrics.psnr(near, truth) > metrics.psnr(far, truth)


def test_coarser_images_are_those_of_coarser_volumes():
    volume = np.kron(np.random.default_rng(0).random((6, 5, 3)), np.ones((2, 2, 2))).astype(np.float32)
    problem, _ = posed([0.0], 12, 6)
    problem = problem.replace(shape=volume.shape, images=jnp.zeros((1, 10, 6)))
    fine = problem.replace(images=problem.project(volume))
    coarse = coarse_to_fine.coarser(fine)
    np.testing.assert_allclose(coarse.images, coarse.project(volume[::2, ::2, ::2]), atol=1e-4)


@pytest.mark.parametrize("odd", [(0, 1), (1, 0), (1, 1)])
def test_coarser_grids_of_odd_sizes_turn_about_the_same_middle(odd):
    whole = np.zeros((24, 24, 4), np.float32)
    whole[6:16, 4:18] = ndimage.gaussian_filter(np.random.default_rng(0).random((10, 14, 4)), 1)
    problem, _ = posed([-60.0, -20, 0, 50], 12, 2)
    volume = whole[: 24 - odd[0], : 24 - odd[1]]
    problem = problem.replace(shape=volume.shape, images=jnp.zeros((4, volume.shape[1], 4)))
    coarse = coarse_to_fine.coarser(problem.replace(images=problem.project(volume)))
    seen = coarse.project(whole.reshape(12, 2, 12, 2, 2, 2).mean((1, 3, 5)))
    assert jnp.linalg.norm(seen - coarse.images) < 0.01 * jnp.linalg.norm(coarse.images)


def test_weights_are_kept_and_read(tmp_path):
    given = pair()
    gans.save(tmp_path / "w", given)
    found = gans.load(tmp_path / "w")
    seen = jax.random.normal(jax.random.key(0), (1 + gans.GUIDES, 8, 8, 3))
    args = seen, jnp.ones(gans.GEOMETRY)
    np.testing.assert_allclose(found.pair.clean(*args), given.pair.clean(*args), atol=5e-3)  # half precision
    assert found.name == given.name and found.card["method"] == "gan"
    from jaxtomo.priors import score

    with pytest.raises(jt.InputError, match="weights of --method"):
        score.load(tmp_path / "w")
    score.save(tmp_path / "s", weights())
    with pytest.raises(jt.InputError, match="weights of --method"):
        gans.load(tmp_path / "s")


def test_what_is_beyond_what_was_learned_is_said():
    def told(most, count, noise):
        return [1, -np.deg2rad(most), np.deg2rad(most), np.log(count) / 4, np.log(noise) / 4]

    learned = reach.reach([told(20, 41, 0.1), told(60, 61, 0.5)])
    assert learned == {"tilt_deg": [20.0, 60.0], "step_deg": [1.0, 2.0], "noise": [0.1, 0.5]}
    assert not reach.beyond(learned, told(62, 60, 0.3)) and not reach.beyond({}, told(89, 2, 9))
    (said,) = reach.beyond(learned, told(10, 21, 0.3))
    assert "tilts to 10°" in said and "20 to 60" in said
    assert len(reach.beyond(learned, told(89, 3, 3))) == 3 and not reach.beyond(learned, told(60, 61, 0.01))


@pytest.fixture(scope="module")
def volumes():
    rng = np.random.default_rng(0)
    blocks = np.ones((4, 4, 4), np.uint8)
    return [np.kron(200 * (rng.random((8, 4, 8)) < 0.3), blocks).astype(np.uint8) for _ in range(3)]


SMALL = {
    "fill": {"channels": 4, "growth": 2, "blocks": 1},
    "clean": {"channels": (4, 8)},
    "side": 16,
    "rows": 4,
    "say": lambda text: None,
}


def test_slabs_are_simulated_once(volumes, tmp_path):
    slabs = sinograms.Slabs(exposures.Library.of(volumes, 16, 4), tmp_path)
    one = slabs((0, 0, 1))
    assert [*tmp_path.iterdir()] == [tmp_path / "0_0_1.npz"]
    stamp = (tmp_path / "0_0_1.npz").stat().st_mtime_ns
    again = slabs((0, 0, 1))
    assert (tmp_path / "0_0_1.npz").stat().st_mtime_ns == stamp
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.truth.shape == (16, 16, 4) and one.sinogram.shape == one.seen.shape[1:] == (gans.ANGLES, 16, 4)
    example = slabs.filling((0, 0, 1))
    part = example.patch((16, 2), np.random.default_rng(0))
    assert part.sinogram.shape == (gans.ANGLES, 16, 2) and part.seen.shape == (gans.GUIDES, gans.ANGLES, 16, 2)
    # What is perfect explains what was measured but for its noise.
    near = np.abs(one.sinogram - one.seen[0])[one.far < 0.5].mean()
    assert near < np.abs(one.sinogram).mean()


def test_a_slab_like_another_compiles_nothing(volumes, tmp_path, caplog):
    slabs = sinograms.Slabs(exposures.Library.of(volumes, 16, 4), tmp_path)
    slabs.simulated(np.random.default_rng(0), False)
    with jax.log_compiles():
        slabs.simulated(np.random.default_rng(0), False)
    assert not [record for record in caplog.messages if "Finished XLA compilation" in record]


def test_a_training_that_goes_on_gives_the_same_weights(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(exposures, "POOL", 2)
    monkeypatch.setattr(adversaries, "POOL", 2)
    monkeypatch.setattr(adversaries, "VALIDATION", 2)
    facts = adversaries.train_gan(volumes, tmp_path / "whole", fill_steps=3, clean_steps=3, **SMALL)
    assert {"weights", "fill", "clean", "slabs"} == {p.name for p in (tmp_path / "whole").iterdir()}
    assert 0 < facts["reach"]["step_deg"][0] <= facts["reach"]["step_deg"][1] and facts["error"] > 0
    stopped = False

    def until(module, batches, folder, **options):
        nonlocal stopped
        if folder.name == "clean" and not stopped:
            stopped = True
            as_for_all = {"steps": 1, "optimizer": lambda rate, steps: adversaries.apart(rate, 3)}
            train.train(module, batches, folder, **{**options, **as_for_all})
            raise KeyboardInterrupt
        return train.train(module, batches, folder, **options)

    with monkeypatch.context() as patched:
        patched.setattr(adversaries, "train", until)
        with pytest.raises(KeyboardInterrupt):
            adversaries.train_gan(volumes, tmp_path / "part", fill_steps=3, clean_steps=3, **SMALL)
    adversaries.train_gan(volumes, tmp_path / "part", fill_steps=3, clean_steps=3, resume=True, **SMALL)
    a, b = (jax.tree.leaves(nnx.state(gans.load(tmp_path / n / "weights").pair, nnx.Param)) for n in ("whole", "part"))
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def test_losses_fall(volumes, tmp_path):
    """Of each of the two, on one batch."""
    slabs = sinograms.Slabs(exposures.Library.of(volumes, 16, 4), tmp_path / "slabs")
    network = gans.SinogramFill(**SMALL["fill"], rngs=nnx.Rngs(0))
    batch = exposures.Batches(slabs.filling, 2, (16, 4), validation=True)(0)
    rivals = adversaries.Rivals(network, 0.005, nnx.Rngs(1))
    before = adversaries.filling_error(rivals, batch)
    kept = train.train(rivals, lambda i: batch, tmp_path / "f", loss=adversaries.filling_loss, steps=40, rate=3e-3)
    assert adversaries.filling_error(kept, batch) < 0.97 * before
    example = functools.partial(slabs.cleaning, kept.network)
    batch = exposures.Batches(example, 2, (16, 16, 4), validation=True)(0)
    rivals = adversaries.Rivals(gans.TomogramClean(**SMALL["clean"], rngs=nnx.Rngs(0)), 0.005, nnx.Rngs(1))
    before = adversaries.cleaning_error(rivals, batch)
    kept = train.train(rivals, lambda i: batch, tmp_path / "c", loss=adversaries.cleaning_loss, steps=40, rate=3e-3)
    assert adversaries.cleaning_error(kept, batch) < 0.9 * before


def test_several_devices_give_the_same(problem):
    solver = solvers.gan(pair())
    one = jt.reconstruct(problem, solver, callbacks=(), assess=False).volume
    split = jt.parallel.split(problem, solver, jt.parallel.mesh(4))
    four = jt.reconstruct(*split, callbacks=(), assess=False).volume
    np.testing.assert_allclose(four, one, atol=2e-2 * np.abs(one).max())


def test_no_step_compiles_again(problem):
    solver = solvers.gan(pair())
    jt.reconstruct(problem, solver, 2, callbacks=(), assess=False)
    before = solve.scanned._cache_size()
    jt.reconstruct(problem.replace(images=2 * problem.images), solvers.gan(pair()), 3, callbacks=(), assess=False)
    assert solve.scanned._cache_size() == before
