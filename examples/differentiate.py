"""The projector as a JAX function: gradients in the volume and in every pose parameter, batches, second derivatives.

Run it with `python examples/differentiate.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxtomo as jt


def main(size: int = 64):
    volume = jnp.asarray(jt.phantoms.core_shell((size,) * 3, seed=1))
    tilt_deg = np.arange(-60, 61, 10)
    tilts = len(tilt_deg)
    pose = jt.Pose.nominal(tilt_deg).replace(shift=jnp.zeros((tilts, 2)), rotation=jnp.zeros(tilts))
    measured = jt.project(volume, pose.replace(shift=jnp.ones((tilts, 2))))

    @jax.jit
    def misfit(volume, pose):
        return 0.5 * jnp.mean((jt.project(volume, pose) - measured) ** 2)

    by_volume, by_pose = jax.grad(misfit, argnums=(0, 1))(volume, pose)
    print("slope by volume", by_volume.shape, "by shift", by_pose.shift.shape, "by rotation", by_pose.rotation.shape)

    batch = jax.vmap(jt.project, in_axes=(0, None))(jnp.stack([volume, 2 * volume]), pose)
    print("a batch of volumes gives images", batch.shape)

    def along(amount):
        return misfit(volume, pose.replace(shift=pose.shift + amount))

    print("curvature along a common shift", float(jax.grad(jax.grad(along))(0.3)))

    smeared = jt.back_project(measured, pose, volume.shape)
    left, right = jnp.vdot(jt.project(volume, pose), measured), jnp.vdot(volume, smeared)
    print(f"<A v, p> = {left:.4f}, <v, A' p> = {right:.4f}")


if __name__ == "__main__":
    main()
