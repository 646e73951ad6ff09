"""Many devices give the answer of one, and nobody gathers a volume by accident."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jaxtomo as jt
from jaxtomo import callbacks, parallel
from jaxtomo.projector import adjoint, forward
from jaxtomo.solve import scanned

pytestmark = pytest.mark.optimised(False)

TILTS, NZ, NY, NX = 7, 11, 13, 16  # neither rows nor tilts nor planes divide by 4 or 8
TILT_DEG = np.linspace(-58, 61, TILTS)  # not 0: a footprint has a kink there, and learned tilts would hop about it


def _poses():
    rng = np.random.default_rng(3)
    nominal = jt.Pose.nominal(TILT_DEG)
    shift = jnp.asarray(rng.normal(size=(TILTS, 2)), jnp.float32)
    small = jnp.asarray(0.05 * rng.normal(size=(2, TILTS)), jnp.float32)
    return {
        "nominal": nominal,
        "shifted": nominal.replace(shift=shift),
        "turned": nominal.replace(shift=shift, rotation=small[0], magnification=1 + small[1]),
        "oblique": nominal.replace(second_tilt=small[0]),
    }


POSES = _poses()
SOLVERS = {
    "wbp": jt.wbp(),
    "sirt": jt.sirt(),
    "sart": jt.sart(),
    "cgls": jt.cgls(),
    "tv": jt.tv(),
    "tvq": jt.tvq(),
    "gaussian": jt.solvers.gaussian(),
    "fit": jt.fit(jt.voxels(0.1), optax.sgd(1e-2), optax.sgd(1e-4)),
}
CASES = [(name, "nominal") for name in SOLVERS] + [
    *((name, "shifted") for name in ("sirt", "sart", "tv", "fit")),
    *((name, "turned") for name in ("wbp", "sirt", "fit")),
    ("sirt", "oblique"),
]


@pytest.fixture(scope="module")
def problems():
    rng = np.random.default_rng(0)
    volume = np.zeros((NZ, NY, NX), np.float32)
    volume[2:8, 3:10, 4:12] = 0.5 + rng.random((6, 7, 8))

    def problem(pose):
        images = np.asarray(jt.project(volume, pose)) + 0.05 * rng.normal(size=(TILTS, NY, NX))
        series = jt.TiltSeries(images.astype(np.float32), TILT_DEG, pixel_nm=1.0, source="made")
        return jt.Problem(series, pose, thickness=NZ)

    return {name: problem(pose) for name, pose in POSES.items()}


def run(problem, solver, steps=4, **more):
    return jt.reconstruct(problem, solver, steps, callbacks=(), assess=False, **more)


def close(found, expected, tolerance=1e-5):
    return np.max(np.abs(found - expected)) <= tolerance * np.max(np.abs(expected))


@pytest.mark.parametrize(("name", "pose"), CASES)
def test_four_devices_give_the_answer_of_one(problems, name, pose):
    problem, solver = problems[pose], SOLVERS[name]
    # Conjugate gradients and Adam's g / |g| amplify rounding; see the test in double precision.
    tolerance = {"cgls": 1e-3, "gaussian": 1e-4, "tvq": 1e-3}.get(name, 1e-5)
    one, four = run(problem, solver), run(*parallel.split(problem, solver, parallel.mesh(4)))
    assert four.volume.shape == one.volume.shape
    assert close(four.volume, one.volume, tolerance)
    np.testing.assert_allclose(four.history["misfit"], one.history["misfit"], rtol=1e-3, atol=1e-5)
    for a, b in zip(jax.tree.leaves(four.pose), jax.tree.leaves(one.pose), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert four.settings["devices"] == 4


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("name", ["sirt", "tv"])
def test_any_number_of_devices(problems, name, devices):
    problem, solver = problems["shifted"], SOLVERS[name]
    many = run(*parallel.split(problem, solver, parallel.mesh(devices)))
    assert close(many.volume, run(problem, solver).volume)


@pytest.mark.parametrize("height", [1, 3])
def test_fewer_rows_than_devices(problems, height):
    problem = jt.validate.slab(problems["nominal"], height)
    assert problem.shape[2] == height
    for solver in (SOLVERS["sirt"], SOLVERS["tv"]):
        assert close(run(*parallel.split(problem, solver, parallel.mesh(4))).volume, run(problem, solver).volume)


def test_as_the_readme_has_it(problems):
    """With everything at its default: progress, stop rule and the quality numbers, which are those of one device."""
    problem = problems["shifted"]
    one = jt.reconstruct(problem, jt.sirt(), 5)
    four = jt.reconstruct(*parallel.split(problem, jt.sirt(), parallel.mesh(4)), 5)
    assert four.metrics["prediction_error"] == pytest.approx(one.metrics["prediction_error"], rel=1e-4)
    cut = jt.validate.cross_check(problem, jt.sirt(), 3, slices=6)
    shared = jt.validate.cross_check(*parallel.split(problem, jt.sirt(), parallel.mesh(4)), 3, slices=6)
    assert shared["prediction_error"] == pytest.approx(cut["prediction_error"], rel=1e-4)


def test_masks_are_split_too(problems):
    problem = problems["nominal"]
    mask = np.random.default_rng(1).random(problem.images.shape) > 0.3
    problem = problem.replace(weights=jnp.asarray(mask, jnp.float32))
    many = run(*parallel.split(problem, jt.sirt(), parallel.mesh(4)))
    assert close(many.volume, run(problem, jt.sirt()).volume)


@pytest.mark.parametrize("name", ["cgls", "gaussian", "tvq"])
def test_double_precision_leaves_no_difference(problems, float64, name):
    """What these make of rounding in float32 is nothing but rounding."""
    problem, solver = problems["nominal"], SOLVERS[name]
    problem = jax.tree.map(lambda a: a.astype(jnp.float64), problem)
    one, four = run(problem, solver, 12), run(*parallel.split(problem, solver, parallel.mesh(4)), 12)
    assert close(four.volume, one.volume, 1e-6)  # the volume is delivered in float32


def exchanged(problem, solver, mesh):
    """Collectives of one step in the compiled program: how often each, by its name and the size of what it moves."""
    problem, solver = parallel.split(problem, solver, mesh)
    key = jax.random.key(0)
    state = solver.init(problem, key)
    text = scanned.lower(problem, state, key, 0, 1, step=solver.step).compile().as_text()
    found = re.findall(
        r"= \(?\w+\[([\d,]*)\].*? (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(",
        text,
    )
    return Counter((name, int(np.prod([int(n) for n in shape.split(",") if n]))) for shape, name in found)


@pytest.mark.parametrize(
    ("name", "pose"), [*((name, "nominal") for name in SOLVERS), ("sirt", "turned"), ("sart", "shifted")]
)
def test_nobody_gathers_a_volume(problems, name, pose):
    found = exchanged(problems[pose], SOLVERS[name], parallel.mesh(4))
    assert not any(kind in ("all-gather", "reduce-scatter") for kind, _ in found), found
    for kind, size in found:
        # A sum over devices is a scalar or a number a tilt; a face between neighbours is one row.
        limit = {"all-reduce": 2 * TILTS + 2, "collective-permute": NZ * NX}.get(kind)
        assert limit is None or size <= limit, found


def test_what_a_step_exchanges(problems):
    """The communication, in full: a projection needs none, a shift two all-to-alls each way, TV a face each way."""
    mesh = parallel.mesh(4)
    aligned, moved = (exchanged(problems[pose], jt.sirt(), mesh) for pose in ("nominal", "shifted"))
    assert set(aligned) == {("all-reduce", 1)}
    stack = 2 * NX * 4  # of one device: two of eight tilts, four of sixteen rows
    assert moved == aligned + Counter({("all-to-all", stack): 4})
    tv = exchanged(problems["nominal"], jt.tv(), mesh)
    assert set(tv) == {("all-reduce", 1), ("collective-permute", NZ * NX)}


def test_the_state_rests_split(problems):
    problem, solver = parallel.split(problems["nominal"], jt.tv(), parallel.mesh(4))
    state = solver.init(problem, jax.random.key(0))
    assert state.state.volume.sharding.spec == PartitionSpec(None, None, ("rows",))
    assert state.state.volume.addressable_shards[0].data.shape == (NZ, NX, 4)
    assert problem.images.addressable_shards[0].data.shape == (TILTS, NX, 4)


def test_steps_are_compiled_once(problems):
    mesh = parallel.mesh(4)
    before = scanned._cache_size()
    for weight in (0.1, 0.2):
        run(*parallel.split(problems["nominal"], jt.tv(weight), mesh))
    assert scanned._cache_size() <= before + 1


@pytest.mark.parametrize("then", [1, 3, 8])
@pytest.mark.parametrize("name", ["tv", "fit"])
def test_a_run_goes_on_elsewhere(problems, tmp_path, name, then):
    """A checkpoint of four devices is resumed on one, three or eight."""
    problem, solver = problems["shifted"], SOLVERS[name]
    began = parallel.split(problem, solver, parallel.mesh(4))
    jt.reconstruct(*began, 3, callbacks=[callbacks.checkpoint(tmp_path)], assess=False)
    other = (problem, solver) if then == 1 else parallel.split(problem, solver, parallel.mesh(then))
    resume = callbacks.restore(tmp_path, *other)
    assert resume[0] == 3
    assert close(run(*other, 6, resume=resume).volume, run(problem, solver, 6).volume)


def test_a_checkpoint_of_other_rows_is_refused(problems, tmp_path):
    problem, solver = parallel.split(problems["nominal"], jt.sirt(), parallel.mesh(4))
    jt.reconstruct(problem, solver, 2, callbacks=[callbacks.checkpoint(tmp_path)], assess=False)
    fewer = jt.validate.slab(problems["nominal"], NY - 1)
    with pytest.raises(jt.InputError, match="Resume with the same input"):
        callbacks.restore(tmp_path, fewer, jt.sirt())


def test_what_cannot_be_split(problems):
    problem, solver = parallel.split(problems["nominal"], jt.sirt(), parallel.mesh(2))
    with pytest.raises(jt.InputError, match="split over devices already"):
        parallel.split(problem, solver, parallel.mesh(2))
    with pytest.raises(jt.InputError, match="Give 1 to"):
        parallel.mesh(99)
    with pytest.raises(jt.InputError, match=r"Take both from parallel\.split"):
        run(problems["nominal"], solver)


# The projector and every step are ordinary functions of JAX: they work under the user's own transformations.


def test_tilts_over_devices_by_pmap_vmap_and_shard_map(problems):
    problem = problems["shifted"]
    pose = problem.pose.select(np.arange(4))
    volume = jnp.asarray(np.random.default_rng(0).random(problem.shape), jnp.float32)
    expected = forward(volume, pose, NX)

    def one(volume, pose):
        return forward(volume, jax.tree.map(lambda a: a[None], pose), NX)[0]

    np.testing.assert_allclose(jax.vmap(one, (None, 0))(volume, pose), expected, atol=1e-5)
    np.testing.assert_allclose(jax.pmap(one, in_axes=(None, 0))(volume, pose), expected, atol=1e-5)
    mesh = jax.make_mesh((4,), ("tilt",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    whole, split = PartitionSpec(), PartitionSpec("tilt")
    mapped = jax.shard_map(lambda v, p: forward(v, p, NX), mesh=mesh, in_specs=(whole, split), out_specs=split)
    np.testing.assert_allclose(jax.jit(mapped)(volume, pose), expected, atol=1e-5)

    def summed(images, pose):
        return jax.lax.psum(adjoint(images, pose, (NZ, NX)), "tilt")

    mapped = jax.shard_map(summed, mesh=mesh, in_specs=(split, split), out_specs=whole)
    np.testing.assert_allclose(jax.jit(mapped)(expected, pose), adjoint(expected, pose, (NZ, NX)), rtol=1e-4, atol=1e-3)

    def loss(volume, pose):
        return jax.lax.psum(jnp.sum(forward(volume, pose, NX) ** 2), "tilt")

    mapped = jax.shard_map(loss, mesh=mesh, in_specs=(whole, split), out_specs=whole)
    slope = jax.jit(jax.grad(mapped, (0, 1)))(volume, pose)
    wanted = jax.grad(lambda v, p: jnp.sum(forward(v, p, NX) ** 2), (0, 1))(volume, pose)
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-3 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", ["sirt", "cgls"])
def test_an_ensemble_by_pmap_equals_one_by_one(problems, name):
    problem, solver = problems["nominal"], SOLVERS[name]
    keys = jax.random.split(jax.random.key(1), 4)

    def member(key):
        noisy = problem.replace(images=problem.images + 0.1 * jax.random.normal(key, problem.images.shape))
        state = solver.init(noisy, key)
        for i in range(2):
            state, _ = solver.step(noisy, state, jax.random.fold_in(key, i))
        return solver.read(noisy, state)[0]

    alone = jnp.stack([jax.jit(member)(key) for key in keys])
    np.testing.assert_allclose(jax.pmap(member)(keys), alone, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(member))(keys), alone, atol=1e-4)


@pytest.mark.parametrize("name", ["dip-tv", "inr", "ensemble"])
def test_networks_and_ensembles_on_four_devices(problems, name):
    """They give what one device gives; their convolutions are not promised to be shared out."""
    from jaxtomo.ensembles import in_turn

    solver = {
        "dip-tv": jt.dip_tv(0.1, channels=(4, 8), skips=(4,)),
        "inr": jt.inr(0.1),
        "ensemble": in_turn(jt.root_tv(0.1), 2),
    }[name]
    problem = problems["nominal"]
    one = jt.reconstruct(problem, solver, 4, callbacks=(), assess=False)
    four = jt.reconstruct(*parallel.split(problem, solver, parallel.mesh(4)), 4, callbacks=(), assess=False)
    np.testing.assert_allclose(four.volume, one.volume, atol=2e-3 * np.abs(one.volume).max())
    if name == "ensemble":
        np.testing.assert_allclose(four.spread, one.spread, atol=2e-3 * np.abs(one.volume).max())
