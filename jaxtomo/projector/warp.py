"""What happens to a projected image in its own plane: rotation, magnification and shift, which commute with projection.

Images are `[tilt, u, y]`, N/T times smaller than the volume, so this is the cheap place for them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@jax.custom_vjp
def slide(images, shift):
    """`images [tilt, u, y]` moved along y by `shift [tilt]` pixels, linearly interpolated; zero flows in."""
    return _slide(images, shift)


def _slide(images, shift):
    whole = jnp.floor(shift)
    part = (shift - whole)[:, None, None]
    return (1 - part) * _moved(images, whole) + part * _moved(images, whole + 1)


def _moved(images, whole):
    """`images` moved along y by `whole [tilt]` pixels."""
    size = images.shape[2]
    source = jnp.arange(size) - whole[:, None].astype(jnp.int32)
    taken = jnp.take_along_axis(images, jnp.clip(source, 0, size - 1)[:, None, :], axis=2)
    return jnp.where(((source >= 0) & (source < size))[:, None, :], taken, 0)


def _slide_pulled_back(saved, cotangent):
    images, shift = saved
    whole = jnp.floor(shift)
    slope = _moved(images, whole + 1) - _moved(images, whole)
    return slide(cotangent, -shift), jnp.sum(slope * cotangent, axis=(1, 2))


slide.defvjp(lambda images, shift: (slide(images, shift), (images, shift)), _slide_pulled_back)


def _gather(image, i, j):
    return image.reshape(-1).at[i * image.shape[1] + j].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _nearby(position, size, offsets):
    """Whole indices near `position`, clipped to the image, and whether each was inside."""
    for offset in offsets:
        k = jnp.floor(position) + offset
        yield k, jnp.clip(k, 0, size - 1).astype(jnp.int32), (k >= 0) & (k < size)


def _seen_at(u, v, rotation, magnification, shift):
    """Where on the detector the point (u, v) of the unwarped image is seen, from the centre."""
    c, s = jnp.cos(rotation), jnp.sin(rotation)
    return magnification * (u * c - v * s) + shift[0], magnification * (u * s + v * c) + shift[1]


def _seen_from(u, v, rotation, magnification, shift):
    """The inverse of `_seen_at`."""
    c, s = jnp.cos(rotation), jnp.sin(rotation)
    u, v = (u - shift[0]) / magnification, (v - shift[1]) / magnification
    return u * c + v * s, v * c - u * s


def _hat(distance):
    return jnp.maximum(1 - jnp.abs(distance), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def warp(images, rotation, magnification, shift, frame: tuple[int, int]):
    """`images [tilt, u, y]` as a detector of `frame` (u, y) pixels sees them that is rotated, magnified and shifted.

    w(q) = p(R(-rotation) (q - shift) / magnification), bilinear, about the detector's centre; zero outside.
    `rotation [tilt]` rad, `magnification [tilt]`, `shift [tilt, 2]` pixels (u, v).
    The adjoint is exact while magnification · (|cos rotation| + |sin rotation|) <= 2.
    """
    return jax.vmap(lambda image, *pose: _sample(image, *_grid(frame, pose)))(images, rotation, magnification, shift)


def _sample(image, u, v):
    """Bilinear `image` at (u, v) from its centre; zero outside."""
    nu, nv = image.shape
    u, v = u + (nu - 1) / 2, v + (nv - 1) / 2
    total = jnp.zeros_like(u)
    for ku, i, inside_u in _nearby(u, nu, (0, 1)):
        for kv, j, inside_v in _nearby(v, nv, (0, 1)):
            weight = jnp.where(inside_u & inside_v, _hat(u - ku) * _hat(v - kv), 0)
            total = total + weight * _gather(image, i, j)
    return total


def _grid(shape, pose):
    """Where every detector pixel is seen from: two `[u, y]` arrays."""
    nu, nv = shape
    return _seen_from(jnp.arange(nu)[:, None] - (nu - 1) / 2, jnp.arange(nv)[None] - (nv - 1) / 2, *pose)


def _unwarp_one(image, pose, frame):
    """The adjoint of warping one image, as a gather: every detector pixel whose bilinear square holds a point."""
    (nu, nv), (wide, high) = image.shape, frame
    u, v = jnp.arange(wide)[:, None] - (wide - 1) / 2, jnp.arange(high)[None] - (high - 1) / 2
    seen_u, seen_v = _seen_at(u, v, *pose)
    total = jnp.zeros(frame, image.dtype)
    for ku, i, inside_u in _nearby(seen_u + (nu - 1) / 2, nu, (-1, 0, 1, 2)):
        for kv, j, inside_v in _nearby(seen_v + (nv - 1) / 2, nv, (-1, 0, 1, 2)):
            back_u, back_v = _seen_from(ku - (nu - 1) / 2, kv - (nv - 1) / 2, *pose)
            weight = jnp.where(inside_u & inside_v, _hat(back_u - u) * _hat(back_v - v), 0)
            total = total + weight * _gather(image, i, j)
    return total


def _plane_gradient(images, cotangent, pose):
    """∂⟨cotangent, warp(images)⟩ by rotation, magnification and shift.

    With g = cotangent · (∂p/∂u, ∂p/∂v) at (u, v) = R(-φ) (a, b), (a, b) = (q - shift) / m, all four derivatives are
    combinations of the first moments of g over the detector, six products of a matrix and a vector.
    """
    (rotation, magnification, shift), (tilts, nu, nv) = pose, cotangent.shape
    grid = jax.vmap(lambda *pose: _grid((nu, nv), pose))(*pose)
    _, pull = jax.vjp(lambda u, v: jax.vmap(_sample)(images, u, v), *grid)
    q = jnp.stack(jnp.meshgrid(jnp.arange(nu) - (nu - 1) / 2, jnp.arange(nv) - (nv - 1) / 2, indexing="ij"), -1)
    basis = jnp.concatenate([q, jnp.ones((nu, nv, 1))], -1).reshape(-1, 3).astype(images.dtype)

    def moments(g):
        """Σ g a, Σ g b and Σ g / m, each `[tilt]`."""
        first, second, total = jnp.matmul(g.reshape(tilts, -1), basis, precision="highest").T / magnification
        return first - shift[:, 0] * total, second - shift[:, 1] * total, total

    (ua, ub, u), (va, vb, v) = (moments(g) for g in pull(cotangent))
    c, s = jnp.cos(rotation), jnp.sin(rotation)
    turned = ub * c - ua * s - va * c - vb * s
    grown = -(ua * c + ub * s + vb * c - va * s) / magnification
    return turned, grown, jnp.stack([v * s - u * c, -u * s - v * c], 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def unwarp(images, rotation, magnification, shift, frame: tuple[int, int]):
    """The exact adjoint of `warp`, as a gather: images of `frame` (u, y) pixels."""
    return jax.vmap(lambda image, *pose: _unwarp_one(image, pose, frame))(images, rotation, magnification, shift)


warp.defvjp(
    lambda images, *rest: (warp(images, *rest), (images, rest[:3])),
    lambda frame, saved, g: (unwarp(g, *saved[1], saved[0].shape[1:]), *_plane_gradient(saved[0], g, saved[1])),
)
unwarp.defvjp(
    lambda images, *rest: (unwarp(images, *rest), (images, rest[:3])),
    lambda frame, saved, g: (warp(g, *saved[1], saved[0].shape[1:]), *_plane_gradient(g, saved[0], saved[1])),
)
