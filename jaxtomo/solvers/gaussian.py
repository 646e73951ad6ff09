"""A stationary Gaussian prior whose spectrum comes from example volumes: the linear method to beat on texture."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import likelihood, samples
from ..errors import InputError
from ..projector.split import across_rows, by_rows
from ..solve import Solver
from ..spectrum import Spectrum
from .sirt import ray_lengths

PADDING = 16  # voxels on each side, so that opposite faces, neighbours to an FFT, are not correlated


class State(NamedTuple):
    white: jax.Array  # ξ on the padded grid
    residual: jax.Array  # y - A (μ + L ξ)
    direction: jax.Array
    energy: jax.Array  # |Lᵀ Aᵀ w residual - λ σ² ξ|²
    least: jax.Array  # energy at which rounding takes over, and steps would only amplify it
    root: jax.Array  # square root of the prior's spectrum on the padded grid, half of it
    mean: jax.Array  # μ
    noise: jax.Array  # λ σ²


def gaussian(spectrum: str | Spectrum = "fib_sem", weight: float = 1.0) -> Solver:
    """The posterior mean under v ~ N(μ, S), y ~ N(A v, λ σ²/w), S stationary with the given spectrum.

    v = μ + L ξ with L = S^½, and conjugate gradients on (Lᵀ Aᵀ w A L + λ σ²) ξ = Lᵀ Aᵀ w (y - A μ): preconditioned by
    the prior itself. μ is the mean density along all rays, the prior's contrast std/mean is that of the examples, and
    the noise σ is measured in the images. Densities can be negative.

    Args:
        spectrum: `jaxtomo.spectrum.spectrum_of(volumes)`, or the name of one that ships: see `samples.spectrum`.
        weight: λ, in units of the measured noise variance.

    Raises InputError for another likelihood than `gaussian()`.
    """
    known = samples.spectrum(spectrum) if isinstance(spectrum, str) else spectrum
    name = spectrum if isinstance(spectrum, str) else "given"

    def init(problem, key):
        if problem.likelihood is not likelihood.gaussian():
            raise InputError("the Gaussian prior solves the Gaussian likelihood only.")
        finer = problem.voxel_nm / known.voxel_nm if problem.voxel_nm and np.isfinite(known.voxel_nm) else 1.0
        return _init(problem, finer, known.frequency, known.power, known.std / abs(known.mean), weight)

    return Solver(init, _step, _read, {"method": "gaussian", "spectrum": name, "weight": weight}, steps=100)


def _frequencies(shape):
    """|f| in cycles per voxel on the padded grid, the half that a real FFT along x keeps."""
    z, x, y = (n + 2 * PADDING for n in shape)
    fz, fx, fy = jnp.fft.fftfreq(z), jnp.fft.rfftfreq(x), jnp.fft.fftfreq(y)
    return jnp.sqrt(fz[:, None, None] ** 2 + fx[:, None] ** 2 + fy**2)


# The three-dimensional FFT is taken in two parts, so that devices that share the rows exchange them once on the way
# there and once on the way back; rows are padded and cut while they are together.


def _coloured(white, root, mesh):
    """L ξ = F⁻¹ (root · F ξ) on the volume's grid."""
    depth, width, _ = white.shape

    def along_y(spectrum, root):
        return _cut(jnp.fft.ifft(jnp.fft.fft(spectrum, axis=2) * root, axis=2), (2,))

    def back(spectrum):
        return _cut(jnp.fft.irfft2(spectrum, (depth, width), axes=(0, 1)), (0, 1))

    spectrum = by_rows(lambda v: jnp.fft.rfft2(v, axes=(0, 1)), mesh)(white)
    return by_rows(back, mesh)(across_rows(along_y, mesh)(spectrum, root))


def _whitened(volume, root, mesh):
    """Lᵀ v on the padded grid."""
    depth, width, _ = (n + 2 * PADDING for n in volume.shape)

    def there(volume):
        return jnp.fft.rfft2(_padded(volume, (0, 1)), axes=(0, 1))

    def along_y(spectrum, root):
        return jnp.fft.ifft(jnp.fft.fft(_padded(spectrum, (2,)), axis=2) * root, axis=2)

    spectrum = across_rows(along_y, mesh)(by_rows(there, mesh)(volume), root)
    return by_rows(lambda s: jnp.fft.irfft2(s, (depth, width), axes=(0, 1)), mesh)(spectrum)


def _cut(array, axes):
    return array[tuple(slice(PADDING, n - PADDING) if a in axes else slice(None) for a, n in enumerate(array.shape))]


def _padded(array, axes):
    return jnp.pad(array, [(PADDING * (a in axes),) * 2 for a in range(array.ndim)])


@jax.jit
def _init(problem, finer, frequency, power, contrast, weight):
    lengths = ray_lengths(problem)
    mean = jnp.sum(problem.weights * problem.images) / jnp.sum(problem.weights * lengths)
    # No noise at all would leave nothing to stop the iteration at: a thousandth of the signal is the least.
    believed = jnp.broadcast_to(problem.weights, problem.images.shape)
    least = 1e-6 * jnp.sum(believed * problem.images**2) / jnp.maximum(jnp.sum(believed), 1e-20)
    noise = jnp.maximum(likelihood.noise_variance(problem.images, believed > 0), least)
    power = jnp.interp(_frequencies(problem.shape) / finer, frequency, power).astype(problem.images.dtype)
    root = jnp.sqrt(power) * contrast * jnp.abs(mean)
    residual = problem.images - mean * lengths
    slope = _whitened(problem.back_project(problem.weights * residual), root, problem.mesh)
    energy = jnp.sum(slope**2)
    return State(jnp.zeros_like(slope), residual, slope, energy, 1e-10 * energy, root, mean, weight * noise)


def restarted(problem, state: State) -> State:
    """The state of a run to go on with for a problem whose poses have changed since."""
    residual = problem.images - problem.project(_read(problem, state)[0])
    slope = _whitened(problem.back_project(problem.weights * residual), state.root, problem.mesh)
    slope = slope - state.noise * state.white
    return state._replace(residual=residual, direction=slope, energy=jnp.sum(slope**2))


def _step(problem, state, key):
    scale = jnp.maximum(jnp.sum(problem.weights * problem.images**2), 1e-30)
    misfit = jnp.sqrt(jnp.sum(problem.weights * state.residual**2) / scale)
    projected = problem.project(_coloured(state.direction, state.root, problem.mesh))
    curvature = jnp.sum(problem.weights * projected**2) + state.noise * jnp.sum(state.direction**2)
    going = (curvature > 0) & (state.energy > state.least)
    length = jnp.where(going, state.energy / jnp.where(going, curvature, 1), 0)
    white, residual = state.white + length * state.direction, state.residual - length * projected
    slope = _whitened(problem.back_project(problem.weights * residual), state.root, problem.mesh) - state.noise * white
    energy = jnp.sum(slope**2)
    turn = jnp.where(state.energy > 0, energy / jnp.where(state.energy > 0, state.energy, 1), 0)
    new = state._replace(white=white, residual=residual, direction=slope + turn * state.direction, energy=energy)
    return new, {"misfit": misfit, "slope": jnp.sqrt(energy)}


def _read(problem, state):
    return state.mean + _coloured(state.white, state.root, problem.mesh), problem.pose
