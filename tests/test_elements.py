"""Elements: proximal steps next to brute force, nuisances in closed form, recovery of what is known, the command."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtomo as jt
from jaxtomo import cli, elemental, plan, solvers
from jaxtomo.commands import device
from jaxtomo.elemental import atomic_number, composition, contrast, exponent, moments, shadowing, stacked, unexplained
from jaxtomo.solvers.elements import image_moments, poisson_dual, twice_around
from jaxtomo.solvers.tvq import around
from jaxtomo.thinning import choose, deviance, thinned

TILTS = np.linspace(-70, 70, 15)
NUMBERS = (28, 78)


def specimen(size=16):
    """Two bodies `[element, z, y, x]` of one element each, and one of both."""
    volume = np.zeros((2, size, 10, size), np.float32)
    volume[0, 4:8, 2:8, 3:7] = 1
    volume[1, 9:13, 2:8, 8:13] = 1
    volume[:, 4:8, 2:8, 9:12] = 0.5
    return volume


def recorded(counts=None, shadows=1.0, gamma=1.9, seed=0):
    """A series `[1 + element, tilt, y, x]`, and the volumes `[element, z, y, x]` in counts."""
    rng, truth = np.random.default_rng(seed), specimen()
    clean = np.stack([np.asarray(jt.project(jnp.asarray(v), jt.Pose.nominal(TILTS))) for v in truth])
    haadf = sum((z / 28) ** gamma * p for z, p in zip(NUMBERS, clean, strict=True))
    scale = 1.0 if counts is None else counts / clean.mean()
    maps = scale * clean * np.broadcast_to(shadows, (2, len(TILTS)))[:, :, None, None]
    if counts is not None:
        maps, noise = rng.poisson(maps), 0.01 * haadf.mean() * rng.normal(size=haadf.shape)
        haadf = haadf + noise
    return jt.TiltSeries(np.stack([haadf, *maps]).astype(np.float32), TILTS, pixel_nm=1.0), scale * truth


def seen_by_the_detector():
    rng = np.random.default_rng(5)
    shadows = np.exp(0.3 * rng.normal(size=(2, len(TILTS))))
    return shadows / shadows.mean(1, keepdims=True)


def solved(series, steps=200, **settings):
    solver = solvers.elements(NUMBERS, **{"weight": 0.1, **settings})
    return jt.reconstruct(jt.Problem(series), solver, steps, callbacks=(), assess=False)


def error(found, truth):
    return np.sqrt(np.mean((found - truth) ** 2) / np.mean(truth**2))


@pytest.mark.parametrize(
    ("dual", "rate", "counted", "step"), [(0.3, 0.7, 2, 0.5), (-2, 0.1, 0, 3.0), (5, 1.0, 7, 0.01)]
)
def test_the_poisson_step_is_the_proximal_one(dual, rate, counted, step):
    # Moreau: prox of step F* at d is d - step p, with p the least of F(p) + step/2 (p - d/step)².
    p = np.geomspace(1e-6, 1e3, 400_001)
    cost = rate * p - counted * np.log(p) + step / 2 * (p - dual / step) ** 2
    brute = dual - step * p[np.argmin(cost)]
    found = float(poisson_dual(jnp.float32(dual), jnp.float32(rate), jnp.float32(counted), jnp.float32(step)))
    assert found == pytest.approx(brute, abs=2e-3)
    assert found < rate or counted == 0


def test_shadowing_is_the_most_likely_and_averages_to_one():
    rng = np.random.default_rng(0)
    predicted = jnp.asarray(rng.uniform(1, 2, (2, 5, 8, 8)), jnp.float32)
    seen = jnp.asarray(rng.uniform(0.5, 1.5, (2, 5, 1, 1)), jnp.float32)
    seen = seen / seen.mean(1, keepdims=True)
    weights = jnp.ones((2, 5, 1, 1)).at[:, 3].set(0)
    found = shadowing(predicted, predicted * seen, jnp.ones((2, 5, 1, 1)))
    np.testing.assert_allclose(found, seen, rtol=1e-5)
    found = shadowing(predicted, predicted * seen, jnp.broadcast_to(weights, predicted.shape))
    np.testing.assert_allclose(found[:, 3], 1)  # a tilt that says nothing
    assert float(found[:, [0, 1, 2, 4]].mean()) == pytest.approx(1, rel=1e-5)
    slope = jax.grad(lambda s: jnp.sum(s * predicted - predicted * seen * jnp.log(s * predicted)))(seen)
    np.testing.assert_allclose(slope, 0, atol=1e-4)


@pytest.mark.parametrize("gamma", [1.2, 1.7, 2.2])
def test_the_exponent_is_found_where_the_images_tell(gamma):
    rng = np.random.default_rng(1)
    maps = jnp.asarray(rng.uniform(0, 1, (3, 9, 8, 8)), jnp.float32)
    numbers, sensitivity = jnp.asarray([14.0, 29.0, 79.0]), jnp.asarray([1.0, 0.5, 2.0])
    factors = 0.01 * sensitivity * numbers**gamma
    haadf = jnp.einsum("e,etyx->tyx", factors, maps)
    found = moments(maps, haadf, jnp.ones_like(haadf))
    fitted, deviation = jax.jit(exponent)(found, numbers, sensitivity)
    assert float(fitted) == pytest.approx(gamma, abs=0.02) and float(deviation) < 0.03
    np.testing.assert_allclose(contrast(haadf, maps, 1.0, numbers, sensitivity, gamma), factors, rtol=1e-3)


def test_the_exponent_is_the_usual_one_where_they_do_not():
    maps = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (2, 9, 8, 8)), jnp.float32)
    haadf = jnp.asarray(np.random.default_rng(2).uniform(0, 1, (9, 8, 8)), jnp.float32)
    fitted, deviation = jax.jit(exponent)(
        moments(maps, haadf, jnp.ones_like(haadf)), jnp.asarray([28.0, 29.0]), jnp.ones(2)
    )
    assert float(fitted) == pytest.approx(1.7, abs=0.05) and float(deviation) == pytest.approx(0.1, rel=0.1)
    one = exponent(moments(maps[:1], haadf, jnp.ones_like(haadf)), jnp.asarray([28.0]), jnp.ones(1))
    assert float(one[0]) == pytest.approx(1.7)


def test_moments_are_freed_of_the_noise_of_counts():
    rng = np.random.default_rng(3)
    mean = rng.uniform(0, 0.5, (2, 6, 80, 80))
    ones = jnp.ones(mean.shape[1:])
    counts = jnp.asarray(rng.poisson(mean), jnp.float32)
    clean = moments(jnp.asarray(mean, jnp.float32), ones, ones)[0].sum(0)
    freed = moments(counts, ones, ones, counts)[0].sum(0)
    assert np.abs(freed / clean - 1).max() < 0.05
    assert float(moments(counts, ones, ones)[0].sum(0)[0, 0] / clean[0, 0]) > 2


def test_what_no_mixture_explains_is_measured():
    rng = np.random.default_rng(4)
    maps, other = rng.uniform(0, 1, (2, 6, 16, 16)), rng.normal(size=(6, 16, 16))
    factors, ones = jnp.asarray([1.0, 3.0]), jnp.ones((6, 16, 16))
    mixture = np.einsum("e,etyx->tyx", factors, maps)
    for share, haadf in ((0.0, 2 * mixture), (0.3, mixture + 0.3145 * np.sqrt(np.mean(mixture**2)) * other)):
        haadf = jnp.asarray(haadf, jnp.float32)
        found = moments(jnp.asarray(maps, jnp.float32), haadf, ones)
        assert float(unexplained(found, jnp.sum(haadf**2, (1, 2)), factors)) == pytest.approx(share, abs=0.02)


def test_a_haadf_of_something_else_is_believed_less(monkeypatch):
    series, truth = recorded(counts=5.0)
    stray = np.zeros((16, 10, 16), np.float32)
    stray[1:4, 1:9, 2:14] = 3  # has no map
    seen = np.asarray(jt.project(jnp.asarray(stray), jt.Pose.nominal(TILTS)))
    spoilt = series.replace(images=series.images + np.stack([seen, 0 * seen, 0 * seen]).astype(np.float32))
    result = solved(spoilt)
    assert 0.2 < result.history["unexplained"][-1] < 0.9
    assert solved(series).history["unexplained"][-1] < 0.15
    module = sys.modules["jaxtomo.solvers.elements"]
    monkeypatch.setattr(module, "unexplained", lambda *_: 0.0)
    monkeypatch.setattr(module, "_init", module._init.__wrapped__)
    believed = solved(spoilt)
    assert error(result.volume[1:], truth) < 0.8 * error(believed.volume[1:], truth)


def test_counts_are_thinned():
    rng = np.random.default_rng(6)
    counts = rng.poisson(3.0, (3, 5, 20, 20)).astype(np.float32)
    problem = jt.Problem(jt.TiltSeries(counts, np.linspace(-60, 60, 5)))
    kept, held = thinned(problem, 0.25)
    np.testing.assert_array_equal((kept.images + held.images)[1:], problem.images[1:])
    np.testing.assert_array_equal(kept.images[0], problem.images[0])
    assert float(held.images[1:].sum() / problem.images[1:].sum()) == pytest.approx(0.25, abs=0.02)
    # Independent: what is held of a pixel says nothing of what is kept.
    assert abs(np.corrcoef(np.ravel(kept.images[1:]), np.ravel(held.images[1:]))[0, 1]) < 0.06
    with pytest.raises(jt.InputError, match="between 0 and 1"):
        thinned(problem, 1.0)
    for images in (counts / 7, counts * 1e10, counts - 1, counts * np.nan):
        with pytest.raises(jt.InputError, match="whole numbers"):
            thinned(problem.replace(images=jnp.asarray(images)))


@pytest.mark.parametrize("counts", [0.005, 0.05, 0.2])
def test_few_counts_of_a_true_mixture_say_nothing_against_it(counts):
    found = []
    for seed in range(20):
        series, _ = recorded(counts, gamma=1.7, seed=seed)
        state = solvers.elements(NUMBERS).init(jt.Problem(series), jax.random.key(0))
        found.append(float(state.unexplained))
        assert float(state.gamma) == pytest.approx(1.7, abs=0.15)
    assert np.count_nonzero(found) <= 2  # two standard errors


@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 1, 2), (3, 2, 1)])
def test_means_of_means(shape):
    images = jnp.asarray(np.random.default_rng(8).normal(size=shape), jnp.float32)
    np.testing.assert_allclose(twice_around(images), around(around(images)), rtol=1e-5, atol=1e-6)
    units = jnp.eye(shape[1] * shape[2]).reshape(-1, *shape[1:])  # each pixel's weights, column by column
    squares = jnp.einsum("j,jxy->xy", images[0].ravel() ** 2, around(around(units)) ** 2)
    np.testing.assert_allclose(twice_around(images[:1] ** 2, 2)[0], squares, rtol=1e-5)


def test_moments_of_images_are_freed_of_noise_at_borders_and_masks():
    rng = np.random.default_rng(7)
    mean = rng.uniform(0.1, 0.6, (2, 5, 20, 18))
    mean[:, :, 5:12, 4:12] += 2
    clean = np.einsum("e,etxy->txy", [1.0, 3.0], mean)
    shadows = np.array([0.5, 1.4])[:, None, None, None] * np.ones((1, 5, 1, 1))
    live = np.ones((5, 20, 18))
    live[:, :3] = live[:, 8:10, 9] = live[2] = 0
    trust, noise = jnp.asarray(live / 0.3, jnp.float32), jnp.full(live.shape, 0.3)
    found = jax.jit(image_moments)

    def of(haadf, counts, anything):
        images = (jnp.asarray(np.where(live > 0, a, anything), jnp.float32) for a in (haadf, counts / shadows))
        return found(*images, jnp.asarray(shadows, jnp.float32), trust, noise)

    drawn = [
        of(clean + np.sqrt(0.3) * rng.normal(size=live.shape), rng.poisson(shadows * mean), 1e4) for _ in range(200)
    ]
    exact = found(*(jnp.asarray(live * a, jnp.float32) for a in (clean, mean)), jnp.float32(1e9), trust, 0 * noise)
    (products, against), energy = jax.tree.map(lambda *a: np.mean(a, 0), *drawn)
    (true_products, true_against), true_energy = exact
    np.testing.assert_allclose(products.sum(0), true_products.sum(0), rtol=0.02)
    np.testing.assert_allclose(against.sum(0), true_against.sum(0), rtol=0.02)
    np.testing.assert_allclose(energy.sum(), true_energy.sum(), rtol=0.02)


def test_the_first_of_equal_weights_is_taken():
    series, _ = recorded(counts=0.5)
    problem = jt.Problem(series)
    choice = choose(problem, lambda weight: solvers.elements(NUMBERS, 0.1), 2)
    assert choice.weight == 0.35 and not choice.ended and len(choice.tried) == 3
    choice = choose(problem, lambda weight: solvers.elements(NUMBERS, weight), 5, start=0.0001)
    assert choice.ended and choice.weight == max(choice.tried) and len(choice.tried) == 6


def test_the_weight_is_that_which_predicts_held_counts():
    series, truth = recorded(counts=0.5)
    problem = jt.Problem(series)
    weight, tried = choose(problem, lambda weight: solvers.elements(NUMBERS, weight), 60)
    assert min(tried) < weight < max(tried) and 3 <= len(tried) <= 6
    kept, held = thinned(problem)
    whole = jnp.asarray(np.concatenate([truth[:1], truth]).swapaxes(-2, -1))
    assert deviance(kept, held, whole) < deviance(kept, held, jnp.full_like(whole, float(truth.mean())))


def test_clean_images_give_the_specimen_back():
    series, truth = recorded()
    result = solved(series, 300, weight=0.02)
    assert result.volume.shape == (3, *truth.shape[1:])
    assert error(result.volume[1:], truth) < 0.12
    seen = jt.project(jnp.asarray(result.volume[0]), jt.Pose.nominal(TILTS))
    assert error(np.asarray(seen), series.images[0]) < 0.05  # channel 0 explains the HAADF
    shares = composition(result.volume)
    inside = truth.sum(0) > 0.5
    assert np.sqrt(np.mean((shares[0] - truth[0])[inside] ** 2)) < 0.12


def test_counts_gamma_and_shadows_are_recovered():
    shadows = seen_by_the_detector()
    series, truth = recorded(counts=20.0, shadows=shadows)
    problem, result = jt.Problem(series), solved(series)
    assert result.history["gamma"][-1] == pytest.approx(1.9, abs=0.05)
    assert 0 < result.history["gamma_error"][-1] < 0.1
    volume = jnp.asarray(result.volume[1:].swapaxes(-2, -1))
    found = shadowing(problem.project(volume), problem.images[1:], jnp.ones_like(problem.images[1:]))[:, :, 0, 0]
    np.testing.assert_allclose(found, shadows, rtol=0.05)
    assert error(result.volume[1:], truth) < 0.16


def test_haadf_helps_where_counts_are_few():
    series, truth = recorded(counts=0.1)
    without = solved(series, weight=0.7, haadf=0.0)
    assert error(solved(series, weight=0.7, gamma=1.9).volume[1:], truth) < 0.8 * error(without.volume[1:], truth)
    zero = series.replace(images=np.concatenate([0 * series.images[:1], series.images[1:]]))
    np.testing.assert_allclose(solved(zero, weight=0.7).volume[1:], without.volume[1:], atol=1e-3)


def test_one_element_and_held_out_tilts():
    series, truth = recorded(counts=1.0)
    spoilt = series.images[[0, 2]].copy()
    spoilt[:, 4] = 50
    weights = np.ones(len(TILTS), np.float32)
    weights[4] = 0
    results = []
    for images in (series.images[[0, 2]], spoilt):
        problem = jt.Problem(series.replace(images=images), weights=weights)
        results.append(jt.reconstruct(problem, solvers.elements((78,)), 30, callbacks=(), assess=False).volume)
    assert results[0].shape == (2, *truth.shape[1:]) and results[0][1].max() > 0
    np.testing.assert_allclose(results[0], results[1], rtol=0.05, atol=0.02 * results[0].max())


def test_what_cannot_be_meant():
    series, _ = recorded()
    for arguments, hint in (
        (((),), "Z of each"),
        (((0, 29),), "Z of each"),
        (((28, 78), -1.0), "positive"),
        (((28, 78), 1.0, 9.0), "1.6 to 1.8"),
    ):
        with pytest.raises(jt.InputError, match=hint):
            solvers.elements(*arguments)
    with pytest.raises(jt.InputError, match="factor for each"):
        solvers.elements((28, 78), sensitivity=(1.0,))
    with pytest.raises(jt.InputError, match="a map for each"):
        jt.reconstruct(jt.Problem(series), solvers.elements((28,)), 1)
    haadf, maps = (series.replace(images=images) for images in (series.images[0], series.images[1]))
    assert stacked(None, {"Ni": maps}).images.shape == (2, *maps.images.shape)
    for wrong, hint in (
        (maps.replace(images=maps.images[:, :-1]), "same tilts"),
        (maps.replace(tilt_deg=TILTS + 3), "other tilts"),
        (maps.replace(images=maps.images - 1), "below 0"),
    ):
        with pytest.raises(jt.InputError, match=hint):
            stacked(haadf, {"Ni": wrong})
    with pytest.raises(jt.InputError, match="no maps"):
        stacked(haadf, {})
    assert [atomic_number(symbol) for symbol in ("H", "Ni", "Au", "Og")] == [1, 28, 79, 118]
    assert len(elemental.SYMBOLS) == len(set(elemental.SYMBOLS)) == 118
    with pytest.raises(jt.InputError, match="symbol"):
        atomic_number("Gold")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    series, _ = recorded(counts=2.0)
    for name, images in zip(("haadf", "ni", "pt"), series.images, strict=True):
        jt.write(f"{name}.mrc", series.replace(images=images))


def test_the_command(files, capsys):
    argv = ["elements", "haadf.mrc", "--maps", "Ni=ni.mrc", "Pt=pt.mrc", "--tilt-axis", "y", "--no-align"]
    argv += ["--steps", "20", "--quiet"]
    assert cli.main([*argv, "--json", "--out", "run"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["elements"] == {"Ni": 28, "Pt": 78} and facts["shape"] == [16, 10, 16]
    names = {"haadf.mrc", "haadf.rawtlt", "reconstruction.h5", "report.html", "shadows.csv"}
    assert {*facts["files"]} == names | {f"{symbol}{end}.mrc" for symbol in ("Ni", "Pt") for end in ("", "_share")}
    assert json.loads(Path("run/run.json").read_text())["status"] == "done"
    nickel, _ = jt.read_volume("run/Ni.mrc")
    assert nickel.shape == (16, 10, 16) and nickel.max() > 0
    page = Path("run/report.html").read_text()
    for said in ('id="elements"', "Ni (Z 28)", "Pt (Z 78)", "to the power of", "Detector shadowing of each tilt"):
        assert said in page, said
    shadows = np.loadtxt("run/shadows.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(shadows[:, 0], TILTS, atol=1e-3)
    np.testing.assert_allclose(shadows[:, 1:].mean(0), 1, atol=1e-3)
    assert cli.main([*argv, "--out", "run"]) == 3  # is there already
    assert cli.main(["elements", "--config", "run/config.toml", "--out", "again", "--quiet"]) == 0
    assert cli.main([*argv[:4], *argv[5:], "--out", "run", "--overwrite"]) == 0
    assert not Path("run/Pt.mrc").exists() and Path("run/Ni.mrc").exists()


def test_the_command_names_what_is_wrong(files, capsys):
    for argv, code, hint in (
        (["haadf.mrc"], 2, "--maps"),
        (["haadf.mrc", "--maps", "Ni"], 2, "ELEMENT=FILE"),
        (["haadf.mrc", "--maps", "Nickel=ni.mrc"], 3, "symbol"),
        (["haadf.mrc", "--maps", "Ni=ni.mrc", "--sensitivity", "Cu=2"], 2, "Cu"),
        (["haadf.mrc", "--maps", "Ni=ni.mrc", "--steps", "0"], 3, "--steps"),
        (["nothing.mrc", "--maps", "Ni=ni.mrc", "--weight", "0"], 3, "--weight 0"),
        (["nothing.mrc", "--maps", "Ni=ni.mrc", "--gamma", "0"], 3, "--gamma 0"),
    ):
        assert cli.main(["elements", *argv]) == code, argv
        assert hint in capsys.readouterr().err, argv


def test_maps_that_are_no_counts_are_not_thinned(files, capsys):
    for name in ("ni", "pt"):
        series = jt.read(f"{name}.mrc")
        jt.write(f"{name}.mrc", series.replace(images=series.images / 7))
    argv = ["haadf.mrc", "--maps", "Ni=ni.mrc", "Pt=pt.mrc", "--tilt-axis", "y", "--no-align", "--steps", "3"]
    assert cli.main(["elements", *argv, "--json", "--out", "run"]) == 0
    said = capsys.readouterr()
    assert "no whole numbers" in said.err
    facts = json.loads(said.out)
    assert facts["weight"] == 0.35 and facts["weights_tried"] == []


def test_the_command_says_that_it_does_not_fit(files, capsys, monkeypatch):
    monkeypatch.setattr(device, "memory", lambda most=None: plan.Memory(plan.PROGRAM + 10**6))
    assert cli.main(["elements", "haadf.mrc", "--maps", "Ni=ni.mrc", "Pt=pt.mrc", "--tilt-axis", "y"]) == 4
    said = capsys.readouterr().err
    assert "haadf.mrc: elements" in said and "--method" not in said


def test_a_turned_axis_goes_into_the_pose():
    from dataclasses import replace

    from jaxtomo.alignment import apply, coarse
    from jaxtomo.commands.elements import _turned

    series, _ = recorded()
    series = series.replace(images=np.pad(series.images, ((0, 0), (0, 0), (8, 8), (8, 8))))
    found = replace(coarse(series.replace(images=series.images[0])), turn=True, axis_deg=10.0)
    shift = np.random.default_rng(0).normal(size=found.shift.shape)
    found = replace(found, shift=shift)
    _, pose = apply(series.replace(images=series.images[0]), replace(found, turn=False))
    pose = _turned(pose, found)
    angle = np.deg2rad(10.0)
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(pose.shift, shift @ turned.T, atol=1e-5)  # (u, v) as Pose.rotation turns it
    np.testing.assert_allclose(pose.rotation, angle, rtol=1e-6)
