"""What a HAADF image and maps of X-ray (or energy-loss) counts say of elements: contrast by atomic number, detectors in
the shadow of the holder, composition. Channel 0 of a series is the HAADF image, the others are the maps."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .errors import InputError
from .series import TiltSeries

SYMBOLS = tuple(
    """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo
    Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl
    Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
    """.split()  # noqa: SIM905
)
EXPONENTS = np.linspace(0.0, 4.0, 401)
"""Exponents of Z that are tried; bare Rutherford scattering has 2."""
USUAL, SPREAD = 1.7, 0.1
"""The exponent of HAADF detectors and its standard deviation, which decide where the images do not."""


def atomic_number(symbol: str) -> int:
    """Z of a chemical symbol. Raises InputError for any other text."""
    if symbol not in SYMBOLS:
        raise InputError(f"{symbol!r}: no chemical element. Write its symbol, as in Au.")
    return SYMBOLS.index(symbol) + 1


def stacked(haadf: TiltSeries | None, maps: Mapping[str, TiltSeries]) -> TiltSeries:
    """One series `[1 + element, tilt, y, x]` of a HAADF series and a map of counts for each element, all of the same
    tilts. Without a HAADF series its channel is 0, which says nothing.

    Raises InputError for maps of other tilts or pixels than the HAADF, for counts below 0, and for no map at all.
    """
    if not maps:
        raise InputError("no maps. Give one tilt series of counts for each element.")
    first = next(iter(maps.values())) if haadf is None else haadf
    for symbol, counted in maps.items():
        what = f"{counted.source}: the map of {symbol}"
        if counted.images.shape != first.images.shape or counted.images.ndim != 3:
            raise InputError(
                f"{what} is {counted.images.shape}, {first.source} is {first.images.shape}. Give maps of the same "
                "tilts and pixels; bin or crop one to match the other."
            )
        if np.abs(counted.tilt_deg - first.tilt_deg).max() > 0.5:
            raise InputError(f"{what} has other tilts than {first.source}. Give maps of the same tilts (--angles).")
        if np.nanmin(counted.images) < 0:
            raise InputError(f"{what} has values below 0, so they are no counts. Give them without background removal.")
    images = np.zeros(first.images.shape, np.float32) if haadf is None else haadf.images
    masks = [series.mask for series in ([] if haadf is None else [haadf]) + [*maps.values()] if series.mask is not None]
    note = f"channels: HAADF, {', '.join(maps)}"
    return first.replace(
        images=np.stack([images, *(counted.images for counted in maps.values())]).astype(np.float32),
        mask=np.logical_and.reduce(masks) if masks else None,
        provenance={**first.provenance, "channels": note},
    )


def shadowing(predicted, counted, weights):
    """Factor s_i by which the detector saw less or more in each tilt, `[element, tilt, 1, 1]`, on average 1.

    Where counts y are Poisson numbers of mean s_i p, s_i = Σ w y / Σ w p is the most likely one.
    """
    live = jnp.broadcast_to(jnp.sum(weights, (-2, -1), keepdims=True) > 0, (*counted.shape[:2], 1, 1))
    seen, expected = (jnp.sum(weights * a, (-2, -1), keepdims=True) for a in (counted, predicted))
    known = live & (expected > 0)
    factor = jnp.where(known, seen / jnp.where(known, expected, 1), 1)
    mean = jnp.sum(jnp.where(live, factor, 0), 1, keepdims=True) / jnp.maximum(jnp.sum(live, 1, keepdims=True), 1)
    return jnp.where(live & (mean > 0), factor / jnp.where(mean > 0, mean, 1), 1)


def moments(maps, haadf, precision, noise: jax.Array | float = 0.0):
    """(M, b) of each tilt, `[tilt, element, element]` and `[tilt, element]`: Σ w p p' and Σ w p y of maps p and HAADF
    y, of which least squares of y by p are made. Of measured maps the `noise`, their variance of the same shape, is
    taken out of M."""
    weighted = precision * maps
    products = jnp.einsum("etxy,ftxy->tef", weighted, maps)
    own = jnp.sum(jnp.broadcast_to(precision * noise, maps.shape), (2, 3)).T
    return products - own[:, :, None] * jnp.eye(len(maps)), jnp.sum(weighted * haadf, (2, 3)).T


def unexplained(found, energy, factors):
    """Share of the HAADF that is not in proportion to Σ_e a_e p_e of the maps, as a root mean square:

        √(1 - (Σ w y Σ_e a_e p_e)² / (Σ w y² Σ w (Σ_e a_e p_e)²))

    less two standard errors, so 0 where counts are too few to say. Of a hundred series of a true mixture up to three
    had more. How sure the images are is seen by leaving out one tilt after the other. [Efron 1982, the jackknife]

    Args:
        found: `moments` of each tilt.
        energy: `[tilt]`, Σ w y² of the HAADF without noise.
        factors: `[element]`, a_e.
    """
    products, against = found
    parts = jnp.stack([jnp.einsum("e,tef,f->t", factors, products, factors), against @ factors, energy])

    def share(explained, against, energy):
        known = (explained > 0) & (energy > 0)
        matched = jnp.maximum(against, 0) ** 2 / jnp.where(known, explained * energy, 1)
        return jnp.where(known, jnp.clip(1 - matched, -1, 1), -1)

    whole = jnp.sum(parts, 1)
    tilts, others = len(against), share(*(whole[:, None] - parts))
    variance = (tilts - 1) / tilts * jnp.sum((others - jnp.mean(others)) ** 2)
    sure = share(*whole) - 2 * jnp.sqrt(variance)
    return jnp.where(tilts > 2, jnp.sqrt(jnp.maximum(sure, 0)), 0)


def contrast(haadf, maps, weights, numbers, sensitivity, gamma):
    """a_e = c k_e Z_e^γ, `[element]`: HAADF intensity per count of each element, c by the sums over all images, in
    which counts are many."""
    shape = sensitivity * (numbers / jnp.mean(numbers)) ** gamma
    counted = shape @ jnp.sum(weights * maps, (1, 2, 3))
    return jnp.maximum(jnp.sum(weights * haadf), 0) / jnp.where(counted > 0, counted, jnp.inf) * shape


def exponent(found, numbers, sensitivity):
    """(γ, its standard error) of a_e = c k_e Z_e^γ, by least squares and by what is expected of it, 1.7 ± 0.1.

    How sure the images are of it is seen by leaving out one tilt after the other. [Efron 1982, the jackknife]
    """
    shapes = sensitivity * (numbers / jnp.mean(numbers)) ** jnp.asarray(EXPONENTS, jnp.float32)[:, None]

    def best(products, against):
        curvature = jnp.einsum("ge,ef,gf->g", shapes, products, shapes)
        explained = jnp.where(curvature > 0, jnp.maximum(shapes @ against, 0) ** 2 / jnp.maximum(curvature, 1e-30), 0)
        i = jnp.clip(jnp.argmax(explained), 1, len(EXPONENTS) - 2)
        before, here, after = explained[i - 1], explained[i], explained[i + 1]
        bend = before + after - 2 * here  # the parabola through the three has its summit there
        between = jnp.where(bend < 0, (before - after) / (2 * jnp.where(bend < 0, bend, -1)), 0)
        inside = (bend < 0) & (jnp.abs(between) <= 1)
        return EXPONENTS[0] + (i + between) * (EXPONENTS[1] - EXPONENTS[0]), inside

    products, against = found
    whole, inside = best(products.sum(0), against.sum(0))
    without = [part.sum(0) - part for part in found]
    others, sure = lax.map(lambda part: best(*part), tuple(without))
    tilts = len(products)
    variance = (tilts - 1) / tilts * jnp.sum((others - jnp.mean(others)) ** 2)
    told = jnp.where(inside & jnp.all(sure) & (tilts > 2), 1 / (variance + 1e-6), 0)
    expected = 1 / SPREAD**2
    return (expected * USUAL + told * jnp.where(told > 0, whole, 0)) / (expected + told), 1 / jnp.sqrt(expected + told)


def composition(volume, sensitivity=None, least: float = 0.1) -> np.ndarray:
    """Share of each element in every voxel, `[element, z, y, x]`, by k_e ρ_e; 0 where there is less matter than `least`
    times the densest (its 99.9th percentile).

    `volume` is `[1 + element, z, y, x]`, as `jaxtomo.solvers.elements` returns it, `sensitivity` k_e is matter per
    count, 1 by default.
    """
    parts = np.maximum(np.asarray(volume, np.float32)[1:], 0)
    if sensitivity is not None:
        parts = parts * np.asarray(sensitivity, np.float32)[:, None, None, None]
    matter = parts.sum(0)
    enough = matter > max(least * float(np.percentile(matter, 99.9)), 1e-30)
    return np.where(enough, parts / np.where(enough, matter, 1), 0)
