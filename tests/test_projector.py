"""The projector's laws: float64 reference, exact adjoint, pose derivatives against finite differences, odd shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtomo import InputError, Pose, back_project, project
from jaxtomo.projector import joseph, trapezoid, xla

pytestmark = pytest.mark.optimised(False)

FOOTPRINTS = [trapezoid, joseph]
SHAPES = {  # (nz, ny, nx), (height, width)
    "cube": ((9, 6, 9), (6, 9)),
    "one slice": ((8, 1, 8), (1, 8)),
    "thin": ((3, 4, 17), (4, 17)),
    "tall": ((15, 2, 6), (2, 6)),
    "wide detector": ((9, 4, 9), (8, 20)),
    "narrow detector": ((12, 6, 12), (4, 5)),
    "large": ((40, 3, 70), (3, 70)),
    "one plane": ((1, 4, 9), (4, 9)),
    "one column": ((9, 4, 1), (4, 9)),
    "one pixel": ((5, 4, 5), (4, 1)),
}
POSES = {
    "tilt": ["tilt"],
    "shift": ["tilt", "shift"],
    "rotation": ["tilt", "rotation"],
    "planar": ["tilt", "shift", "rotation", "magnification"],
    "second tilt": ["tilt", "second_tilt"],
    "all": ["tilt", "shift", "rotation", "magnification", "second_tilt"],
}


def make_pose(names, tilts=7, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    everything = {
        "tilt": rng.uniform(-np.pi / 2, np.pi / 2, tilts),
        "shift": rng.uniform(-2, 2, (tilts, 2)),
        "rotation": rng.uniform(-0.2, 0.2, tilts),
        "magnification": rng.uniform(0.95, 1.05, tilts),
        "second_tilt": rng.uniform(-0.3, 0.3, tilts),
    }
    return Pose(**{name: jnp.asarray(everything[name], dtype) for name in names})


def random(shape, seed, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def reference(volume, pose, detector, footprint):
    """The sum over every voxel in float64 NumPy, straight from the definition of the footprint."""
    nz, ny, nx = volume.shape
    height, width = detector
    x, z, u = (np.arange(n) - (n - 1) / 2 for n in (nx, nz, width))
    images = []
    for i, tilt in enumerate(np.asarray(pose.tilt, np.float64)):
        c, s = np.cos(tilt), np.sin(tilt)
        along = max(abs(c), abs(s))
        shift = 0 if pose.shift is None else float(pose.shift[i, 0])
        d = np.abs(u[:, None, None] - shift - x * c - z[:, None] * s)
        if footprint is trapezoid:
            weight = np.clip(((1 + along) / 2 - d) / along, 0, 1)
        else:
            weight = np.clip(1 - d / along, 0, 1) / along
        images.append(np.einsum("uzx,zyx->yu", weight, volume))
    images = np.stack(images)
    start = (ny - height) // 2
    return images[:, start : start + height] if start >= 0 else np.pad(images, ((0, 0), (-start, -start), (0, 0)))


@pytest.mark.parametrize("footprint", FOOTPRINTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_float64_reference(shape, footprint):
    size, detector = SHAPES[shape]
    volume, pose = random(size, 1), make_pose(["tilt"])
    expected = reference(np.asarray(volume, np.float64), pose, detector, footprint)
    images = project(volume, pose, detector, footprint)
    np.testing.assert_allclose(images, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("shape", "pose", "footprint"),
    [(s, "tilt", f) for s in SHAPES for f in FOOTPRINTS]
    + [(s, "all", trapezoid) for s in SHAPES]
    + [("thin", p, trapezoid) for p in POSES],
)
def test_back_project_is_the_exact_adjoint(shape, pose, footprint):
    size, detector = SHAPES[shape]
    pose = make_pose(POSES[pose])
    volume, images = random(size, 1), random((7, *detector), 2)
    projected, smeared = project(volume, pose, detector, footprint), back_project(images, pose, size, footprint)
    left, right = np.vdot(projected, images), np.vdot(volume, smeared)
    assert abs(left - right) < 1e-5 * np.linalg.norm(projected) * np.linalg.norm(images)


@pytest.mark.parametrize(
    ("pose", "direction"),
    [(p, "forward") for p in ("shift", "planar", "second tilt", "all")] + [(p, "adjoint") for p in ("shift", "planar")],
)
def test_pose_gradients_equal_finite_differences(pose, direction, float64):
    size, detector = (9, 8, 9), (8, 11)
    pose = make_pose(POSES[pose], dtype=np.float64)
    volume, images = random(size, 1, np.float64), random((7, *detector), 2, np.float64)
    if direction == "forward":
        misfit = jax.jit(lambda p: jnp.sum((project(volume, p, detector) - images) ** 2))
    else:
        misfit = jax.jit(lambda p: jnp.sum((back_project(images, p, size) - volume) ** 2))
    gradient, along = jax.jit(jax.grad(misfit))(pose), make_pose(POSES["all"], seed=5, dtype=np.float64)
    for name in (n for n in POSES["all"] if getattr(pose, n) is not None):
        step, direction = 1e-7, getattr(along, name)
        low, high = (misfit(pose.replace(**{name: getattr(pose, name) + s * direction})) for s in (-step, step))
        slope = jnp.vdot(getattr(gradient, name), direction)
        np.testing.assert_allclose(slope, (high - low) / (2 * step), rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("pose", ["shift", "planar"])
def test_second_derivatives_equal_finite_differences_of_the_first(pose, float64):
    size, detector = (7, 4, 7), (4, 7)
    pose = make_pose(POSES[pose], tilts=3, dtype=np.float64)
    volume, images = random(size, 1, np.float64), random((3, *detector), 2, np.float64)
    along = (random(size, 3, np.float64), jax.tree.map(lambda a: random(a.shape, 4, np.float64), pose))

    @jax.jit
    def slope(volume, pose):
        gradient = jax.grad(lambda v, p: jnp.sum((project(v, p) - images) ** 2), (0, 1))(volume, pose)
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, along)))

    curvature = jax.jit(jax.grad(slope, (0, 1)))(volume, pose)
    moved = [jax.tree.map(lambda a, d, s=s: a + s * 1e-6 * d, (volume, pose), along) for s in (-1, 1)]
    expected = (slope(*moved[1]) - slope(*moved[0])) / 2e-6
    measured = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, curvature, along)))
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_gradient_in_the_volume_is_the_adjoint():
    pose, volume, images = make_pose(POSES["planar"]), random((9, 6, 9), 1), random((7, 6, 9), 2)
    gradient = jax.grad(lambda v: jnp.vdot(project(v, pose), images))(volume)
    np.testing.assert_allclose(gradient, back_project(images, pose, volume.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pose", ["shift", "all"])
def test_vmap_and_channels_equal_a_loop(pose):
    pose, volumes = make_pose(POSES[pose]), random((3, 6, 4, 6), 1)
    expected = jnp.stack([project(v, pose) for v in volumes])
    np.testing.assert_allclose(jax.vmap(lambda v: project(v, pose))(volumes), expected, atol=1e-5)
    np.testing.assert_allclose(project(volumes, pose), expected, atol=1e-5)
    adjoint = back_project(expected, pose, volumes.shape[1:])
    np.testing.assert_allclose(adjoint[1], back_project(expected[1], pose, volumes.shape[1:]), atol=1e-4)


def test_vmap_over_poses():
    volume, poses = random((6, 4, 6), 1), [make_pose(POSES["planar"], seed=s) for s in (1, 2)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *poses)
    images = jax.vmap(lambda p: project(volume, p))(stacked)
    np.testing.assert_allclose(images[1], project(volume, poses[1]), atol=1e-5)


@pytest.mark.parametrize("tilts", [1, 2, 5])
def test_few_tilts(tilts):
    volume, pose, images = random((9, 4, 9), 1), make_pose(["tilt"], tilts), random((tilts, 4, 9), 2)
    expected = reference(np.asarray(volume, np.float64), pose, (4, 9), trapezoid)
    np.testing.assert_allclose(project(volume, pose), expected, atol=1e-4)
    np.testing.assert_allclose(
        np.vdot(project(volume, pose), images), np.vdot(volume, back_project(images, pose, volume.shape)), rtol=1e-4
    )


def test_blocks_change_nothing(monkeypatch):
    """Slices in two parts, planes in many chunks, voxels plane by plane."""
    volume, tilt, images = random((11, 13, 128), 1), make_pose(["tilt"]).tilt, random((7, 13, 128), 2)

    def both():
        return xla.forward(volume, tilt, 0 * tilt, 13), xla.adjoint(images, tilt, 0 * tilt, (11, 13))

    whole = both()
    monkeypatch.setattr(xla, "_blocks", lambda: xla.Blocks(planes=3, rays=1, pixels=1, voxels=1))
    for one, other in zip(whole, both(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_half_precision_is_only_stored():
    volume, pose, images = random((9, 4, 9), 1), make_pose(["tilt", "shift"]), random((7, 4, 9), 2)
    rounded = volume.astype(jnp.bfloat16)
    np.testing.assert_allclose(project(rounded, pose), project(rounded.astype(np.float32), pose), atol=1e-5)
    gradient = jax.grad(lambda v: jnp.vdot(project(v, pose), images))(rounded)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient, back_project(images, pose, volume.shape), rtol=1e-2, atol=1e-2)


def test_mass_is_conserved_over_half_a_turn():
    volume = jnp.zeros((24, 3, 24)).at[8:16, :, 8:16].set(random((8, 3, 8), 1))
    images = project(volume, Pose.nominal(np.arange(0, 180, 7)), (3, 40))
    expected = jnp.broadcast_to(volume.sum((0, 2)), images.shape[:2])
    np.testing.assert_allclose(images.sum(2), expected, atol=1e-4)


def test_a_uniform_slab_gives_its_thickness_along_the_ray():
    images = project(jnp.ones((10, 1, 101)), Pose.nominal([0.0, 30.0, -45.0]))
    np.testing.assert_allclose(images[:, 0, 50], 10 / np.cos(np.deg2rad([0, 30, 45])), rtol=1e-5)


def test_signs_of_the_pose():
    """A point at +x, +y, +z moves as the docstring of Pose says."""
    volume = jnp.zeros((33, 33, 33)).at[16 + 5, 16 + 4, 16 + 3].set(1.0)

    def seen(**pose):
        image = project(volume, Pose(**{k: jnp.asarray([v], jnp.float32) for k, v in pose.items()}))[0]
        y, x = np.indices(image.shape) - 16
        return float((image * x).sum() / image.sum()), float((image * y).sum() / image.sum())

    a, b, f = 0.3, 0.2, 0.4
    assert seen(tilt=0) == pytest.approx((3, 4), abs=1e-4)
    assert seen(tilt=a) == pytest.approx((3 * np.cos(a) + 5 * np.sin(a), 4), abs=0.05)
    assert seen(tilt=0, shift=(2.5, -1.25)) == pytest.approx((5.5, 2.75), abs=1e-3)
    rotated = 3 * np.cos(f) - 4 * np.sin(f), 3 * np.sin(f) + 4 * np.cos(f)
    assert seen(tilt=0, rotation=f) == pytest.approx(rotated, abs=0.1)
    assert seen(tilt=0, magnification=2.0) == pytest.approx((6, 8), abs=0.1)
    y, z = 4 * np.cos(b) - 5 * np.sin(b), 4 * np.sin(b) + 5 * np.cos(b)
    expected = (3 * np.cos(a) + z * np.sin(a), y)
    assert seen(tilt=a, second_tilt=b) == pytest.approx(expected, abs=0.1)


def test_every_way_of_no_shift_agrees():
    volume, tilt = random((8, 6, 8), 1), make_pose(["tilt"]).tilt
    plain = project(volume, Pose(tilt))
    zeros, ones = jnp.zeros_like(tilt), jnp.ones_like(tilt)
    np.testing.assert_allclose(project(volume, Pose(tilt, shift=jnp.zeros((7, 2)))), plain, atol=1e-5)
    np.testing.assert_allclose(project(volume, Pose(tilt, rotation=zeros, magnification=ones)), plain, atol=1e-5)
    np.testing.assert_allclose(
        project(volume, Pose(tilt, second_tilt=zeros)), project(volume, Pose(tilt), footprint=joseph), atol=1e-4
    )


@pytest.mark.parametrize("detector", [(4, 8), (10, 8), (4, 14)])
def test_matter_beyond_the_detector_is_moved_into_it(detector):
    """A rotation of zero changes nothing, however far images are shifted and however small the detector is."""
    volume, pose = random((8, 4, 12), 1), make_pose(["tilt"])
    shift = jnp.tile(jnp.asarray([4.0, 3.0]), (7, 1))
    still = project(volume, pose.replace(shift=shift), detector)
    turned = project(volume, pose.replace(shift=shift, rotation=jnp.zeros(7)), detector)
    np.testing.assert_allclose(turned, still, atol=1e-4)
    if detector[0] == 10:
        assert float(jnp.abs(still[:, -1]).max()) > 0


def test_no_recompilation_for_new_poses_and_volumes():
    traces = []

    @jax.jit
    def run(volume, pose):
        traces.append(1)
        return project(volume, pose)

    for seed in range(3):
        run(random((6, 4, 6), seed), make_pose(POSES["planar"], seed=seed))
    assert len(traces) == 1


def test_bad_shapes_are_named():
    with pytest.raises(InputError, match="7 images but 3 poses"):
        back_project(jnp.ones((7, 4, 4)), make_pose(["tilt"], 3), (4, 4, 4))
    with pytest.raises(InputError, match="even number"):
        project(jnp.ones((4, 4, 4)), make_pose(["tilt"]), (5, 4))
