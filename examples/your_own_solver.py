"""A method of your own in twenty lines: momentum on the likelihood's slope, with everything else for free.

Run it with `python examples/your_own_solver.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxtomo as jt
from jaxtomo.simulate import Microscope


class State(NamedTuple):
    volume: jax.Array
    velocity: jax.Array
    scale: jax.Array  # largest of AᵀA 1: steps of 1/scale cannot diverge


def accelerated(momentum: float = 0.9) -> jt.Solver:
    """Projected gradient descent with momentum: non-negative, no other prior."""

    def init(problem, key):
        empty = jnp.zeros(problem.shape)
        return State(empty, empty, problem.back_project(problem.project(empty + 1)).max())

    def step(problem, state, key):
        misfit, residual = problem.misfit(problem.project(state.volume))
        velocity = momentum * state.velocity + problem.back_project(residual) / state.scale
        volume = jnp.maximum(state.volume + velocity, 0)
        return State(volume, volume - state.volume, state.scale), {"misfit": misfit}

    def read(problem, state):
        return state.volume, problem.pose

    return jt.Solver(init, step, read, {"method": "accelerated", "momentum": momentum})


def main(size: int = 48, steps: int = 60):
    fine = jt.phantoms.core_shell((2 * size,) * 3, seed=1)
    series, truth, pose = jt.simulate.simulate(fine, np.arange(-60, 61, 5), Microscope(dose=60), seed=1)
    problem = jt.Problem(series, pose, likelihood=jt.robust())
    result = jt.reconstruct(problem, accelerated(), steps)
    print(f"{result.message}: PSNR {jt.metrics.psnr(result.volume, truth):.2f} dB,", end=" ")
    print(f"tilts left out are predicted to {result.metrics['prediction_error']:.1%}")


if __name__ == "__main__":
    main()
