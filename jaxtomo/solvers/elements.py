"""Elements: HAADF images and maps of counts reconstructed together, by a preconditioned primal-dual method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..elemental import USUAL, contrast, exponent, moments, shadowing, unexplained
from ..errors import InputError
from ..likelihood import noise_variance
from ..penalty import Field, divergence, gradient, squared_length
from ..solve import Solver
from .fit import rough, typical
from .sirt import inverse, ray_lengths
from .tvq import around, neighbours

RELAXATION = 1.8
BALANCE = 4  # dual steps over λ, as in tv
LEAST = 0.05  # of the average: a detector that sees less says nothing
TOGETHER = 1.5  # λ of all matter over that of an element
MODEL = 0.02  # of the intensity: what a HAADF image may differ by from the sum of its elements, beside noise


class Known(NamedTuple):
    """What is known of elements and microscope, and what is to be found out."""

    numbers: jax.Array  # Z, [element]
    sensitivity: jax.Array  # k, [element]
    gamma: jax.Array
    gamma_fitted: jax.Array
    shadows_fitted: jax.Array
    weight: jax.Array  # λ, in units of the log-likelihood


class State(NamedTuple):
    volume: jax.Array  # [element, z, x, y] in units of the densities
    maps: jax.Array  # dual of the maps, [element, tilt, x, y]
    haadf: jax.Array  # dual of the HAADF, [tilt, x, y]
    field: Field  # dual of the gradients of each element and, last, of all matter
    density: jax.Array  # counts per voxel length, [element, 1, 1, 1]
    bright: jax.Array  # HAADF intensity per voxel length
    contrast: jax.Array  # of an element at its density, in units of `bright`, [element]
    matter: jax.Array  # the same in units of the density of all matter
    shadows: jax.Array  # [element, tilt, 1, 1]
    gamma: jax.Array
    gamma_error: jax.Array
    unexplained: jax.Array  # share of the HAADF
    precision: jax.Array  # of the HAADF in units of `bright`, [tilt, x, y]
    rows: jax.Array  # 1 / A 1
    columns: jax.Array  # Aᵀ 1
    known: Known


def elements(
    numbers: Sequence[int],
    weight: float = 0.35,
    gamma: float | None = None,
    *,
    sensitivity: Sequence[float] | None = None,
    shadows: bool = True,
    haadf: float = 1.0,
) -> Solver:
    """min over ρ_e >= 0, s and γ of Σ_e P(y_e | s_e A ρ_e) + ½ Σ w (y_H - Σ_e c k_e Z_e^γ A ρ_e)²
    + λ (Σ_e Σ |∇u_e| + 1.5 Σ |∇u|).

    P(y | m) = Σ (m - y log m) is that of Poisson counts, u_e is ρ_e in units of the element's typical density, u all
    matter Σ_e k_e ρ_e in units of its own, and w the inverse variance of the HAADF, measured in its own images. All
    channels share geometry and poses; what ties them is the HAADF, and that matter as a whole has few edges: where one
    element takes the place of another it has none. Penalties that tie edges of the same sign, √Σ_e |∇u_e|² or one
    weighted by what the HAADF shows, mixed elements that lie inside each other. What part of the HAADF the sum of the
    maps leaves unexplained is measured first (`elemental.unexplained`), and counts as its error.

    The images `[1 + element, tilt, y, x]` are the HAADF, of 0 where there is none, and the counts y_e of each element.
    The volume `[1 + element, z, y, x]` explains them channel by channel: first what the HAADF shows, Σ_e c k_e Z_e^γ
    ρ_e, then each ρ_e, in counts per voxel length of a detector that is not in the shadow.

    Chambolle and Pock's iteration, as in `tv`; every proximal step has a closed form. The shadowing factors s (one a
    map and tilt, on average 1) are the most likely for the volume of every step, in closed form too. c and γ are what
    the images themselves say, by sums of them and of their products less the noise of the counts, γ with 1.7 ± 0.1
    expected (`elemental.exponent`); fitted to the volume it would run away, which at few counts can follow any γ.

    Args:
        numbers: Z of each element, in the order of the maps.
        weight: λ, in units of the log-likelihood.
        gamma: exponent of Z in the HAADF; None fits it. 1.6 to 1.8 is usual.
        sensitivity: k_e, how much matter one count stands for, as a Cliff-Lorimer factor in atoms has it; 1 by default.
        shadows: whether to fit s; without, it is 1.
        haadf: how much of the HAADF's log-likelihood is believed; 0 for none, to see what the counts alone say.

    Raises InputError for numbers that are no elements, factors that are not positive, and, at the start, for a problem
    without a map for each. [Chambolle & Pock 2011; Condat 2013; Zhong et al. 2018 for HAADF
    beside counts]
    """
    numbers = tuple(int(z) for z in numbers)
    factors = (1.0,) * len(numbers) if sensitivity is None else tuple(float(k) for k in sensitivity)
    if not numbers or not all(1 <= z <= 118 for z in numbers):
        raise InputError(f"elements of the numbers {list(numbers)}. Give Z of each, from 1 to 118.")
    if len(factors) != len(numbers) or not all(0 < k < float("inf") for k in factors):
        raise InputError(
            f"sensitivity is {list(factors)} for {len(numbers)} elements. Give a positive factor for each."
        )
    if not 0 < weight < float("inf"):
        raise InputError(f"elements: weight is {weight}. Give a positive number.")
    if not 0 <= haadf < float("inf"):
        raise InputError(f"elements: haadf is {haadf}. Give 1 to believe it, 0 to leave it out.")
    if gamma is not None and not 0 < gamma < 4:
        raise InputError(f"elements: gamma is {gamma}. Give 1.6 to 1.8, or None to fit it.")

    def init(problem, key):
        if problem.images.ndim != 4 or problem.images.shape[0] != len(numbers) + 1:
            raise InputError(
                f"images of shape {problem.images.shape} for {len(numbers)} elements. Give the HAADF and a map for "
                "each, see elemental.stacked."
            )
        known = Known(
            numbers=jnp.asarray(numbers, jnp.float32),
            sensitivity=jnp.asarray(factors, jnp.float32),
            gamma=jnp.asarray(USUAL if gamma is None else gamma, jnp.float32),
            gamma_fitted=jnp.asarray(gamma is None and len(numbers) > 1),
            shadows_fitted=jnp.asarray(shadows),
            weight=jnp.asarray(weight, jnp.float32),
        )
        return _init(problem, known, jnp.asarray(haadf, jnp.float32))

    settings = {
        "method": "elements",
        "numbers": list(numbers),
        "weight": weight,
        "gamma": gamma,
        "sensitivity": list(factors),
        "shadows": shadows,
        "haadf": haadf,
    }
    return Solver(init, _step, _read, settings, steps=300, channels=True)


def noise_and_level(images, weights):
    """(variance of the noise, what pixels are to be compared with) of HAADF images `[tilt, x, y]`: noise grows with
    the intensity, as counts do, by the size that the images show."""
    live = jnp.broadcast_to(weights, images.shape)
    counted = jnp.maximum(images, 0)
    level = around(counted) + 0.3 * jnp.sum(live * counted) / jnp.maximum(jnp.sum(live), 1e-20)
    return noise_variance(images / jnp.sqrt(jnp.maximum(level, 1e-30)), live > 0) * level, level


def precision(noise, level, weights, model):
    """1/σ² of HAADF images of which no sum of elements explains the share `model`; 0 where there are none."""
    variance = noise + (model * level) ** 2
    return jnp.where(level > 0, weights / jnp.where(variance > 0, variance, 1), 0)


@jax.jit
def _init(problem, known, believed):
    weights = jnp.broadcast_to(problem.weights, problem.images.shape)
    counted = problem.images[1:]
    smooth = twice_around(counted)  # single counts say nothing of a density
    volume, density = rough(problem.replace(images=jnp.concatenate([problem.images[:1], smooth])))
    noise, level = noise_and_level(problem.images[0], weights[0])
    trust = believed * precision(noise, level, weights[0], MODEL)
    # What the HAADF shows is not in the shadow, and tells how much of the specimen each tilt has in view.
    reference = jnp.where(
        jnp.any(trust > 0), volume[0] / density[0], jnp.sum(volume[1:] / density[1:, None, None, None], 0)
    )
    reference = jnp.broadcast_to(problem.project(reference), counted.shape)
    shadows = jnp.where(known.shadows_fitted, shadowing(reference, counted, weights[1:]), 1.0)
    shadowed = jnp.maximum(shadows, LEAST)
    corrected = counted / shadowed
    found, energy = image_moments(problem.images[0], corrected, shadowed, trust, noise)
    fitted, error = exponent(found, known.numbers, known.sensitivity)
    gamma = jnp.where(known.gamma_fitted, fitted, known.gamma)
    scale = contrast(problem.images[0], corrected, weights[0], known.numbers, known.sensitivity, gamma)
    left = unexplained(found, energy, scale)
    trust = believed * precision(noise, level, weights[0], jnp.maximum(MODEL, left))
    matter = known.sensitivity * density[1:] / typical(jnp.einsum("e,ezxy->zxy", known.sensitivity, volume[1:]))
    bright, density = density[0], density[1:, None, None, None]
    volume = volume[1:] / density
    return State(
        volume=volume,
        maps=jnp.zeros_like(counted),
        haadf=jnp.zeros_like(problem.images[0]),
        field=gradient(jnp.zeros((len(volume) + 1, *volume.shape[1:]), volume.dtype)),
        density=density,
        bright=bright,
        contrast=scale * density.ravel() / bright,
        matter=matter,
        shadows=shadows,
        gamma=gamma,
        gamma_error=jnp.where(known.gamma_fitted, error, 0.0),
        unexplained=left,
        precision=trust * bright**2,
        rows=inverse(ray_lengths(problem), 0.01),
        columns=problem.back_project(jnp.ones_like(problem.images[0])),
        known=known,
    )


def image_moments(haadf, maps, shadows, trust, noise):
    """`moments` of measured maps and, `[tilt]`, Σ w y² of each HAADF image, freed of their noise. All are smoothed by
    the same S, which the sum of elements does not mind and their noise does: of independent noise of variance σ² it
    leaves Σ_j S_ij² σ_j². Pixels count by the noise of HAADF and maps together.

    Args:
        haadf: `[tilt, x, y]`.
        maps: `[element, tilt, x, y]`, counts over `shadows [element, tilt, 1, 1]`.
        trust: `[tilt, x, y]`, the inverse variance of the HAADF, 0 where a pixel says nothing.
        noise: `[tilt, x, y]`, its variance.
    """
    haadf, maps, noise, counted = (jnp.where(trust > 0, a, 0) for a in (haadf, maps, noise, maps / shadows))
    per_count = jnp.sum(haadf) / jnp.maximum(jnp.sum(maps), 1e-20)
    pixels = trust / (1 + trust * per_count * jnp.maximum(around(haadf), 0))
    energy = jnp.sum(pixels * (twice_around(haadf) ** 2 - twice_around(noise, 2)), (1, 2))
    return moments(twice_around(maps), twice_around(haadf), pixels, twice_around(counted, 2)), energy


def twice_around(images, power: int = 1):
    """Means over 3 × 3 pixels, of those that exist, of such means, by weights to this `power`."""
    for axis in (-2, -1):
        length = images.shape[axis]
        mean = np.pad(1 / neighbours(length), 1)
        before, here, after = mean[:-2], mean[1:-1], mean[2:]
        taps = (here * np.stack([before, before + here, before + here + after, here + after, after])) ** power
        pads = [(0, 0)] * images.ndim
        pads[axis] = (2, 2)
        padded = jnp.pad(images, pads)
        shifted = (lax.slice_in_dim(padded, k, k + length, axis=axis % images.ndim) for k in range(5))
        weighed = (part * (tap[:, None] if axis == -2 else tap) for part, tap in zip(shifted, taps, strict=True))
        images = sum(weighed, start=jnp.zeros_like(images))
    return images


def poisson_dual(dual, rate, counted, step):
    """prox of step F*, F(p) = Σ (rate p - counted log p): (d + rate - √((d - rate)² + 4 step counted)) / 2."""
    return (dual + rate - jnp.sqrt((dual - rate) ** 2 + 4 * step * counted)) / 2


def _step(problem, state, key):
    known, weights = state.known, jnp.broadcast_to(problem.weights, problem.images.shape)[1:]
    counted, measured = problem.images[1:], problem.images[0] / state.bright
    mixing, matter = (a[:, None, None, None] for a in (state.contrast, state.matter))
    columns = 1 / (BALANCE * known.weight * (state.columns * (1 + mixing) + 6 * (1 + matter)))
    pulled = divergence(state.field)
    slope = problem.back_project(state.maps + mixing * state.haadf) - pulled[:-1] - matter * pulled[-1]
    volume = jnp.maximum(state.volume - columns * slope, 0)
    ahead = 2 * volume - state.volume
    thick = problem.project(ahead)

    step = BALANCE * known.weight * state.rows
    rate = weights * state.shadows * state.density
    maps = poisson_dual(state.maps + step * thick, rate, weights * counted, step)
    shown = jnp.sum(mixing * thick, 0)
    step = step / jnp.maximum(jnp.sum(state.contrast), 1e-6)
    haadf = state.haadf + step * (shown - measured)
    haadf = haadf * state.precision / jnp.maximum(state.precision + step, 1e-30)
    edges = gradient(jnp.concatenate([ahead, jnp.sum(matter * ahead, 0)[None]]))
    each = jnp.ones(len(ahead))
    step = BALANCE * known.weight / 2 / jnp.append(each, jnp.sum(state.matter))[:, None, None, None]
    field = jax.tree.map(lambda g, d: g + step * d, state.field, edges)
    # What all matter adds is nothing new where it is one element.
    most = known.weight * jnp.append(each, TOGETHER if len(ahead) > 1 else 0.0)[:, None, None, None]
    shrink = jnp.minimum(1, most / jnp.maximum(jnp.sqrt(squared_length(field)), 1e-30))
    field = jax.tree.map(lambda g: g * shrink, field)

    thick = jnp.maximum(thick, 0)
    expected = state.density * thick
    shadows = jnp.where(known.shadows_fitted, shadowing(expected, counted, weights), state.shadows)

    residual = jnp.concatenate([(shown - measured)[None], state.shadows * thick - counted / state.density])
    live = jnp.broadcast_to(problem.weights, problem.images.shape)
    units = jnp.concatenate([measured[None], counted / state.density])
    shares = jnp.sum(live * residual**2, (1, 2, 3)) / jnp.maximum(jnp.sum(live * units**2, (1, 2, 3)), 1e-30)
    misfit = jnp.sqrt(jnp.mean(shares))
    old, new = (state.volume, state.maps, state.haadf, state.field), (volume, maps, haadf, field)
    volume, maps, haadf, field = jax.tree.map(lambda a, b: a + RELAXATION * (b - a), old, new)
    state = state._replace(volume=volume, maps=maps, haadf=haadf, field=field, shadows=shadows)
    found = {name: getattr(state, name) for name in ("gamma", "gamma_error", "unexplained")}
    return state, {"misfit": misfit, **found}


def _read(problem, state):
    volume = jnp.maximum(state.volume, 0)
    shown = state.bright * jnp.sum(state.contrast[:, None, None, None] * volume, 0)
    return jnp.concatenate([shown[None], state.density * volume]), problem.pose
