"""Coordinate networks: every encoding with every body, on any grid; laws of grids, encodings and stochastic steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxtomo as jt
from jaxtomo.grid import Grid
from jaxtomo.poses import carried
from jaxtomo.priors import inr

ENCODINGS = {
    "coordinates": inr.coordinates(),
    "fourier": inr.fourier(8, 4.0),
    "tables": inr.tables(2, 4),
    "hashed": inr.tables(2, 4, rows=50),
    "planes": inr.planes(4),
}
BODIES = {
    "siren": inr.sines(8, 2),
    "h-siren": inr.sines(8, 2, warp=inr.sinh),
    "finer": inr.sines(8, 2, warp=inr.finer),
    "perceptron": inr.perceptron(8),
}
SHAPE = (9, 10, 7)


def made(encoding="tables", body="perceptron", shape=SHAPE, seed=0, **options):
    module = inr.INR(shape, 2.0, 0.1, encoding=ENCODINGS[encoding], body=BODIES[body], rngs=nnx.Rngs(seed), **options)
    # The last layer starts at zero; these laws are about what a trained network does.
    last = module.body.layers[-1]
    last.kernel[...] = 0.3 * jax.random.normal(jax.random.key(seed), last.kernel.shape)
    return module


@pytest.mark.parametrize(
    ("encoding", "body"), [*((name, "perceptron") for name in ENCODINGS), *(("coordinates", name) for name in BODIES)]
)
def test_any_part_of_a_grid_is_that_part_of_the_whole(encoding, body):
    module = made(encoding, body)
    whole, grid = module(), Grid.of(SHAPE)
    assert whole.shape == SHAPE and float(whole.min()) >= 0 and np.ptp(np.asarray(whole)) > 0
    np.testing.assert_allclose(module(grid.rows(2, 3)), whole[:, :, 2:5], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(module(grid.moved((1.0, 0, 0)))[:-1], whole[1:], rtol=2e-3, atol=2e-3)
    twice = module(grid.finer(2))
    assert twice.shape == (18, 20, 14)


def test_axes_of_grids():
    grid = Grid.of((4, 5, 6))
    z, x, y = grid.axes()
    np.testing.assert_allclose(z, [-1.5, -0.5, 0.5, 1.5])
    np.testing.assert_allclose(grid.finer(2).axes()[1].reshape(5, 2).mean(1), x, atol=1e-6)
    np.testing.assert_allclose(grid.rows(1, 2).axes()[2], y[1:3])
    np.testing.assert_allclose(jax.jit(lambda start: grid.rows(start, 2).axes()[2])(3), y[3:5])


def test_tables_interpolate_and_share_rows():
    plain = inr.Tables((9, 9, 9), [5], 3, 1 << 20, nnx.Rngs(0))
    nodes = tuple(jnp.linspace(-1, 1, 5) for _ in range(3))
    np.testing.assert_allclose(plain(nodes).reshape(125, 3), plain.tables[0][...], rtol=1e-5, atol=1e-6)
    middle = plain((jnp.array([-0.75]), nodes[1], nodes[2]))[0]
    expected = plain.tables[0][...].reshape(5, 5, 5, 3)[:2].mean(0)
    np.testing.assert_allclose(middle, expected, rtol=1e-4, atol=1e-6)
    shared = inr.Tables((9, 9, 9), [5], 3, 20, nnx.Rngs(0))
    assert shared.tables[0][...].shape == (20, 3) and len(np.unique(np.asarray(shared(nodes))[..., 0])) <= 20


def test_sine_is_a_sine():
    x = jnp.linspace(-300, 300, 40001)
    np.testing.assert_allclose(inr.sine(x), np.sin(np.asarray(x, np.float64)), atol=4e-5)
    near = jnp.linspace(-8, 8, 4001)
    np.testing.assert_allclose(inr.sine(near), np.sin(np.asarray(near, np.float64)), atol=2e-6)
    slope = jax.vmap(jax.grad(inr.sine))(near)
    np.testing.assert_allclose(slope, np.cos(np.asarray(near, np.float64)), atol=1e-5)


def test_blocks_change_nothing(monkeypatch):
    module = made("planes", "siren")
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)

    def loss(parameters):
        return jnp.sum(nnx.merge(graph, parameters, rest)() ** 2)

    whole, slopes = module(), jax.grad(loss)(parameters)
    monkeypatch.setattr(inr, "POINTS", 150)
    np.testing.assert_allclose(module(), whole, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(jax.grad(loss)(parameters)), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_several_channels_come_out_of_one_network():
    module = made(shape=(2, *SHAPE))
    assert module().shape == (2, *SHAPE) and module(Grid.of(SHAPE).rows(0, 2)).shape == (2, 9, 10, 2)
    assert float(module.penalty(module())) > 0


@pytest.fixture(scope="module")
def block():
    volume = np.zeros((16, 12, 16), np.float32)
    volume[5:11, 3:9, 4:12] = 1
    tilts = np.linspace(-70, 70, 15)
    images = np.asarray(jt.project(jnp.asarray(volume), jt.Pose.nominal(tilts)))
    return jt.TiltSeries(images, tilts), volume


def relative_error(result, volume):
    return float(np.linalg.norm(result.volume - volume) / np.linalg.norm(volume))


@pytest.mark.parametrize("options", [{}, {"rows": 5}, {"jitter": 1.0}, {"rows": 12, "jitter": 0.5}])
def test_stochastic_steps_find_the_same_volume(block, options):
    series, volume = block
    problem = jt.Problem(series, jt.Pose.nominal(series.tilt_deg).replace(shift=jnp.zeros((15, 2))))
    result = jt.reconstruct(problem, jt.inr(0.05, steps=400, **options), callbacks=(), assess=False)
    assert relative_error(result, volume) < (0.3 if options else 0.12)


def test_a_fitted_network_is_drawn_finer(block):
    from jaxtomo.solvers.fit import model_of

    series, _ = block
    states = []
    result = jt.reconstruct(
        jt.Problem(series), jt.inr(0.05, steps=100), callbacks=(lambda now: states.append(now.state),), assess=False
    )
    model, grid = model_of(states[-1]), Grid.of((16, 16, 12))
    np.testing.assert_allclose(model(), result.volume.swapaxes(1, 2), rtol=1e-4, atol=1e-5)
    fine = np.asarray(model(grid.finer(2)))
    means = fine.reshape(16, 2, 16, 2, 12, 2).mean((1, 3, 5))
    coarse = np.asarray(model())
    assert np.abs(means - coarse).mean() < 0.15 * coarse.mean()  # a voxel off would be 0.4


def test_a_slab_of_all_rows_is_the_whole(block):
    series, _ = block
    problem = jt.Problem(series)
    results = [
        jt.reconstruct(problem, jt.inr(steps=20, rows=rows), 5, callbacks=(), assess=False) for rows in (None, 12, 99)
    ]
    for result in results[1:]:
        np.testing.assert_allclose(result.volume, results[0].volume, rtol=1e-4, atol=1e-5)


def test_slabs_see_tilts_that_are_shifted_along_the_axis(block):
    """Shifts of many rows: all tilts are compared, at the rows that show the slab."""
    from jaxtomo.solvers.fit import _part

    series, volume = block
    shift = jnp.stack([jnp.zeros(15), jnp.linspace(-6, 6.5, 15)], 1)
    pose = jt.Pose.nominal(series.tilt_deg).replace(shift=shift)
    tall = np.pad(volume, ((0, 0), (8, 8), (0, 0)))
    problem = jt.Problem(jt.TiltSeries(np.asarray(jt.project(jnp.asarray(tall), pose)), series.tilt_deg), pose)
    for seed in range(5):
        grid, part, weights, _ = _part(problem, problem.weights, jax.random.key(seed), 8, 0.0)
        start = round(float(grid.axes()[2][0]) + (28 - 1) / 2)
        slab = jnp.asarray(tall.swapaxes(1, 2)[:, :, start : start + 8])
        error = weights * (part.project(slab) - part.images)
        assert float(jnp.abs(error).max()) < 1e-3
        assert np.median(np.asarray(weights).max(1).sum(1)) >= 4


def test_rows_refuse_what_mixes_them(block):
    series, _ = block
    turned = jt.Problem(series, jt.Pose.nominal(series.tilt_deg).replace(rotation=jnp.full(15, 0.1)))
    with pytest.raises(jt.InputError, match="rows"):
        jt.reconstruct(turned, jt.inr(rows=4), 2, callbacks=(), assess=False)
    with pytest.raises(jt.InputError, match="rows"):
        jt.fit(jt.voxels(), optax.adam(0.1), rows=0)
    with pytest.raises(jt.InputError, match="Voxels"):
        jt.reconstruct(jt.Problem(series), jt.fit(jt.voxels(), optax.adam(0.1), rows=4), 2, callbacks=())
    maps = jt.Problem(jt.TiltSeries(np.stack([series.images] * 2), series.tilt_deg))
    with pytest.raises(jt.InputError, match="channels"):
        jt.reconstruct(maps, jt.inr(rows=4), 2, callbacks=(), assess=False)
    with pytest.raises(jt.InputError, match="jitter"):
        jt.inr(jitter=-1.0)


def test_a_carried_pose_sees_a_moved_specimen_in_its_old_place(block):
    series, volume = block
    pose = jt.Pose.nominal(series.tilt_deg)
    moved = np.roll(volume, (1, 1, 1), (0, 1, 2))  # by (z, x, y) of (1, 1, 1)
    seen = jt.project(jnp.asarray(moved), pose)
    carried_there = jt.project(jnp.asarray(volume), carried(pose, (1.0, 1.0, 1.0)))
    assert float(jnp.abs(seen - carried_there).mean()) < 0.02 * float(seen.mean())


@pytest.mark.parametrize("body", BODIES)
def test_every_initialisation_trains(block, body):
    """None of ten starts dead."""
    series, _ = block
    problem = jt.Problem(series)
    encoding = "tables" if body == "perceptron" else "coordinates"
    rate = 0.03 if body == "perceptron" else 0.01
    solver = jt.inr(0.05, steps=100, rate=rate, encoding=ENCODINGS[encoding], body=BODIES[body])
    for seed in range(10):
        result = jt.reconstruct(problem, solver, key=jax.random.key(seed), callbacks=(), assess=False)
        assert result.history["misfit"][-1] < 0.7, seed  # a dead one stays where it starts, at 1


def test_learns_poses_with_the_network(block):
    series, volume = block
    rng = np.random.default_rng(0)
    true = jt.Pose.nominal(series.tilt_deg).replace(shift=jnp.asarray(rng.normal(size=(15, 2)), jnp.float32))
    images = np.asarray(jt.project(jnp.asarray(volume), true))
    start = true.replace(shift=jnp.zeros((15, 2)))
    from jaxtomo.poses import movement
    from jaxtomo.solvers.fit import falling_adam, fit

    solver = fit(inr.network(0.1), falling_adam(0.03, 300), falling_adam(0.1, 300, 20), steps=300)
    problem = jt.Problem(jt.TiltSeries(images, series.tilt_deg), start)
    result = jt.reconstruct(problem, solver, callbacks=(), assess=False)
    apart = movement(problem, {"shift": result.pose.shift - true.shift})["shift"]
    assert float(jnp.sqrt(jnp.mean(apart**2))) < 0.15
