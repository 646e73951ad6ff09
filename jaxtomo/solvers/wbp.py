"""Weighted back-projection: a ramp filter across the tilt axis, then the adjoint, with the correct scale."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..projector.split import by_rows
from ..solve import Solver


def ramp(distance):
    """The band-limited ramp in real space, h(n) = 1/4, 0, -1/(π n)²: exact at zero frequency, where a sampled |f| is
    not. [Kak & Slaney 1988, eq. 3.61]"""
    odd = jnp.where(distance % 2 == 1, distance, 1)
    return jnp.where(distance == 0, 0.25, jnp.where(distance % 2 == 1, -1 / (jnp.pi * odd) ** 2, 0))


WINDOWS = {
    "ramp": lambda f: jnp.ones_like(f),
    "shepp-logan": lambda f: jnp.sinc(f),
    "hann": lambda f: 0.5 * (1 + jnp.cos(2 * jnp.pi * f)),
}
"""Factors on the ramp, by frequency f in cycles per pixel (0.5 is Nyquist)."""


def tilt_steps(tilt, live):
    """The angle each live tilt stands for, rad: half the way to both neighbours, around half a turn.

    A gap wider than 1.5 times the median, the missing wedge, is not filled: its two ends reach no further than to
    their other neighbour. `[tilt]`; 0 where `live` is False.
    """
    count = live.sum()
    angle = jnp.where(live, jnp.mod(tilt, jnp.pi), 10.0)
    order = jnp.argsort(angle)
    angle = angle[order]
    index = jnp.arange(angle.size)
    after = jnp.where(index < count - 1, jnp.roll(angle, -1), angle[0] + jnp.pi) - angle
    after = jnp.where(index < count, after, jnp.nan)
    usual = jnp.nanmedian(after)
    before = jnp.where(index == 0, after[count - 1], jnp.roll(after, 1))
    wide = 1.5 * usual
    after, before = (
        jnp.where(after > wide, jnp.minimum(before, usual), after),
        jnp.where(before > wide, jnp.minimum(after, usual), before),
    )
    return jnp.zeros_like(tilt).at[order].set(jnp.where(index < count, (after + before) / 2, 0))


def wbp(window: str = "ramp") -> Solver:
    """Weighted (filtered) back-projection, f = Σ_i Δθ_i A_iᵀ (h * p_i): one step. Images are taken for ray sums,
    whatever the likelihood of the problem.

    `window` is "ramp", "shepp-logan" or "hann". [Radermacher 1992; Kak & Slaney 1988, ch. 3]
    """
    if window not in WINDOWS:
        raise InputError(f"no window {window!r}. Take one of {', '.join(WINDOWS)}.")
    return Solver(_init, _STEPS[window], _read, {"method": "wbp", "window": window}, steps=1)


def _init(problem, key):
    return jnp.zeros(problem.shape, problem.images.dtype)


def _stepper(window):
    def step(problem, state, key):
        """Filter every image and smear it back."""
        width = problem.images.shape[1]
        size = 1 << int(np.ceil(np.log2(2 * width)))
        index = jnp.arange(size)
        response = jnp.fft.rfft(ramp(jnp.minimum(index, size - index))).real * window(jnp.fft.rfftfreq(size))
        live = jnp.broadcast_to(problem.weights, problem.images.shape)
        images = jnp.where(live > 0, problem.images, 0)

        def filtered(images, response):
            return jnp.fft.irfft(jnp.fft.rfft(images, size, axis=1) * response[:, None], size, axis=1)[:, :width]

        steps = tilt_steps(problem.pose.tilt, live.any((1, 2)))
        images = by_rows(filtered, problem.mesh)(images, response)
        volume = problem.back_project(images * steps[:, None, None])
        # A gap of 0: there is nothing to gain from a second step.
        return volume, {"misfit": problem.misfit(problem.project(volume))[0], "gap": jnp.zeros(())}

    return step


_STEPS = {name: _stepper(window) for name, window in WINDOWS.items()}


def _read(problem, state):
    return state, problem.pose
