"""An ensemble over seeds on many devices, in the form of `pmap` that many groups have, and in the recommended one; and
one large volume shared by all devices.

Run it with `python examples/many_devices.py`. A computer without GPUs can pretend to have several:
XLA_FLAGS=--xla_force_host_platform_device_count=4 python examples/many_devices.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxtomo as jt
from jaxtomo.simulate import Microscope


def main(size: int = 32, steps: int = 20):
    specimen = jt.phantoms.supported_particles((2 * size,) * 3, seed=1)
    series, _, _ = jt.simulate.simulate(specimen, np.arange(-60, 61, 10), Microscope(dose=60), seed=1)
    problem, solver, devices = jt.Problem(series), jt.sirt(), jax.device_count()

    def member(key):
        """The volume from images with noise of its own: one of an ensemble that shows what noise does."""
        noise = 0.05 * problem.images.std() * jax.random.normal(key, problem.images.shape)
        noisy = problem.replace(images=problem.images + noise)
        state = solver.init(noisy, key)
        state = jax.lax.fori_loop(0, steps, lambda i, state: solver.step(noisy, state, key)[0], state)
        return solver.read(noisy, state)[0]

    keys = jax.random.split(jax.random.key(0), devices)

    # As it used to be written: one seed a device.
    before = jax.pmap(member)(keys)

    # As it is written now: any number of seeds, split over the devices by where their keys are.
    mesh = jt.parallel.mesh()
    keys = jax.device_put(keys, NamedSharding(mesh, PartitionSpec("rows")))
    now = jax.jit(jax.vmap(member))(keys)

    print(f"{devices} seeds on {devices} devices: the two forms differ by {float(jnp.abs(now - before).max()):.1e}")
    print(f"spread over the seeds: {float(now.std(0).mean() / now.mean()):.1%} of the mean density")

    # One volume on all devices: the only line that changes is the second.
    alone = jt.reconstruct(problem, solver, steps, callbacks=(), assess=False)
    shared = jt.reconstruct(*jt.parallel.split(problem, solver, mesh), steps, callbacks=(), assess=False)
    print(f"one volume on 1 and on {devices} devices: they differ by {np.abs(alone.volume - shared.volume).max():.1e}")
    return before, now, alone, shared


if __name__ == "__main__":
    main()
