"""Learn what coarse alignment left over: the shift of every tilt, by gradient, while the volume is reconstructed.

Run it with `python examples/learn_poses.py`.
"""

import jax.numpy as jnp
import numpy as np
import optax

import jaxtomo as jt
from jaxtomo.poses import movement
from jaxtomo.simulate import Microscope


def main(size: int = 48, steps: int = 300):
    fine = jt.phantoms.supported_particles((2 * size,) * 3, seed=1)
    tilt_deg = np.arange(-60, 61, 5)
    microscope = Microscope(dose=60, shift_jitter_px=1.0)
    series, _, true_pose = jt.simulate.simulate(fine, tilt_deg, microscope, seed=1)

    believed = jt.Pose.nominal(tilt_deg).replace(shift=jnp.zeros((len(tilt_deg), 2)))
    problem, prior = jt.Problem(series, believed), jt.voxels(weight=0.3)
    solvers = {
        "poses believed": jt.fit(prior, optax.adam(0.1)),
        "poses learned": jt.fit(prior, optax.adam(0.1), optax.adam(0.05)),
    }
    for name, solver in solvers.items():
        result = jt.reconstruct(problem, solver, steps, assess=False)
        # Less what moving the specimen would cause, which no series can tell from shifts.
        error = movement(problem, {"shift": result.pose.shift - true_pose.shift})["shift"]
        print(f"{name}: misfit {result.history['misfit'][-1]:.4f}, shifts wrong by {error.std():.2f} px")


if __name__ == "__main__":
    main()
