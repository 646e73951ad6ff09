"""The plan of a run: what it predicts is what XLA says, and what it advises fits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxtomo as jt
from jaxtomo import methods, plan, solvers
from jaxtomo.plan import Memory, Plan
from jaxtomo.priors import gan, score
from jaxtomo.solve import scanned, stepped
from jaxtomo.solvers.gan import filled
from jaxtomo.spectrum import Spectrum

pytestmark = pytest.mark.optimised(False)


def abstract(tilts, rows, width, thickness):
    """A problem of shapes alone."""
    series = jt.TiltSeries(np.ones((tilts, 4, 4), np.float32), np.linspace(-60, 60, tilts))
    small = jt.Problem(series, jt.Pose.nominal(series.tilt_deg).replace(shift=jnp.zeros((tilts, 2))))
    stack = jax.ShapeDtypeStruct((tilts, width, rows), jnp.float32)
    return small.replace(images=stack, weights=stack, shape=(thickness, width, rows), series=None)


def untrained(method):
    """A solver with a network of the size of those that ship."""
    spectrum, table = Spectrum(np.linspace(0, 0.9, 8), np.ones(8), 1.0, 1.0), np.zeros((3, 13), np.float32)
    if method == "gan":
        return solvers.gan(gan.Weights(gan.Pair({}, {}, nnx.Rngs(0)), spectrum, table, {}))
    return solvers.sample(score.Weights(score.Score(rngs=nnx.Rngs(0)), spectrum, table, {}))


@functools.cache
def compiled_bytes(method, tilts, rows, width, thickness):
    """Peak memory of a step of the solver, by XLA's own account; of gan where its networks are asked."""
    solver = untrained(method) if method in methods.LEARNED else methods.maker(methods.Asked(method))(None)
    problem = abstract(tilts, rows, width, thickness)
    state = jax.eval_shape(solver.init, problem, jax.random.key(0))
    if method == "gan":
        fills, cleans = filled.lower(problem, state["shown"]), solver.read.lower(problem, state)
        return max(peak(fills), peak(cleans))
    if method in ("dip", "dip-tv", "diffusion"):
        lowered = stepped.lower(problem, state, jax.random.key(0), 0, step=solver.step)
    else:
        lowered = scanned.lower(problem, state, jax.random.key(0), 0, 1, step=solver.step)
    return peak(lowered)


def peak(lowered):
    used = lowered.compile().memory_analysis()
    return used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes + used.temp_size_in_bytes


@pytest.mark.parametrize(
    ("method", "shape"),
    [(method, (61, 128, width, 256)) for method in methods.NAMES for width in (256, 512)]
    + [("gan", (61, 128, 256, 16))],
)
def test_the_table_agrees_with_the_compiler(method, shape):
    """Where arrays are large beside what the program needs anyway."""
    tilts, rows, width, thickness = shape
    members = methods.Asked(method).samples
    predicted = Plan(method, tilts, rows, width, thickness, steps=1, members=members).solver_bytes
    measured = compiled_bytes(method, *shape)
    assert 0.9 * measured <= predicted <= 1.35 * measured, (predicted / 1e6, measured / 1e6)


def test_elements_plan_for_each():
    """As above, of two elements and a HAADF series."""
    problem, solver = abstract(61, 128, 256, 256), solvers.elements((28, 78))
    problem = problem.replace(images=jax.ShapeDtypeStruct((3, *problem.images.shape), jnp.float32))
    state = jax.eval_shape(solver.init, problem, jax.random.key(0))
    measured = peak(scanned.lower(problem, state, jax.random.key(0), 0, 1, step=solver.step))
    predicted = Plan("elements", 61, 128, 256, 256, steps=1, elements=2).solver_bytes
    assert 0.9 * measured <= predicted <= 1.35 * measured, (predicted / 1e6, measured / 1e6)


@pytest.mark.parametrize("method", methods.NAMES)
@pytest.mark.parametrize("free", [3e6, 2e7, 2e8])
def test_the_advice_fits(method, free):
    run = Plan(method, 61, 200, 200, 200, steps=100)
    memory = Memory(plan.PROGRAM + plan.NEEDS[method].code + int(free))
    assert not plan.fits(run, memory)
    with pytest.raises(jt.DoesNotFitError) as caught:
        plan.require(run, memory, "needle.mrc")
    words = str(caught.value).replace(".", " ").split()
    assert "needle" in str(caught.value) and plan.size(run.host_bytes) in str(caught.value)
    if "--bin" in words:
        binned = run.binned(int(words[words.index("--bin") + 1]))
        assert plan.fits(plan.fewest_slabs(binned, memory), memory)
    if "--slabs" in words:
        sliced = method if method in plan.SLICED else "sirt"
        slabs = int(words[words.index("--slabs") + 1])
        assert plan.fits(Plan(sliced, 61, 200, 200, 200, steps=100, slabs=slabs), memory)
    assert "--bin" in words or "--slabs" in words or free == 3e6


def test_atoms_need_room():
    plan.require_for_atoms((64, 64, 64), 41, None, "run")
    plan.require_for_atoms((64, 64, 64), 41, 10**9, "run")
    for free, cure in ((10**9, "Crop"), (1.2 * 10**10, "--from-volume")):
        with pytest.raises(jt.DoesNotFitError, match=cure):
            plan.require_for_atoms((512, 512, 512), 401, int(free), "run")


def test_gan_plans_for_the_angles_it_makes():
    assert plan.NEEDS["gan"].angles == gan.ANGLES


def test_a_device_has_its_own_limit():
    run = Plan("tv", 61, 256, 256, 256, steps=100, device="gpu")
    assert plan.fits(run, Memory(10**12, 10**12)) and plan.fits(run, Memory(None))
    with pytest.raises(jt.DoesNotFitError, match="device memory"):
        plan.require(run, Memory(10**12, 10**8), "a.mrc")
    with pytest.raises(jt.DoesNotFitError, match=r"MB of memory"):
        plan.require(run, Memory(10**8, 10**12), "a.mrc")


def test_plans_grow_with_the_work():
    small = Plan("sirt", 31, 64, 64, 64, steps=50)
    assert small.binned(2).solver_bytes < small.solver_bytes / 3
    for more in ({"steps": 500}, {"tilts": 61}, {"thickness": 128}, {"rows": 128}):
        larger = Plan(
            **{**{f: getattr(small, f) for f in ("method", "tilts", "rows", "width", "thickness", "steps")}, **more}
        )
        assert larger.seconds > small.seconds
    assert (
        Plan("sirt", 31, 640, 64, 64, steps=50, slabs=10).host_bytes
        < Plan("sirt", 31, 640, 64, 64, steps=50).host_bytes
    )


def test_free_memory_is_known_here():
    free = plan.free_memory()
    assert free is None or 10**6 < free < 10**14


@pytest.mark.parametrize(("count", "text"), [(900, "0.9 kB"), (2.5e6, "2.5 MB"), (1.25e9, "1.25 GB"), (3e12, "3 TB")])
def test_sizes_in_words(count, text):
    assert plan.size(count) == text
