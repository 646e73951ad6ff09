"""Learned poses: what they may not do (move the specimen), what they find, and what is said of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxtomo as jt
from jaxtomo.curvature import uncertainty
from jaxtomo.data import Pose, Problem
from jaxtomo.freedom import Freedom, freedom
from jaxtomo.poses import at_scale, displaced, independent_pixels, movable, moved, movement, units
from jaxtomo.refinement import coarser, pose_table, refine
from jaxtomo.series import TiltSeries
from jaxtomo.simulate import Microscope

TILTS = np.arange(-60, 61, 10.0)
EVERYTHING = Freedom(
    tilt_deg=0.5, rotation_deg=0.2, second_tilt_deg=0.2, magnification=0.01, axis_deg=np.inf, jump_px=1.0
)


def problem_of(size=12, tilts=TILTS, **pose):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(len(tilts), size, size)).astype(np.float32)
    return Problem(TiltSeries(images, tilts), Pose.nominal(tilts).replace(**pose))


def specimens_own(tilt):
    """Moves that the specimen makes itself, by the parameter that would show them."""
    ones = np.ones_like(tilt)
    return {
        "shift": [
            np.stack([np.cos(tilt), 0 * tilt], 1),
            np.stack([np.sin(tilt), 0 * tilt], 1),
            np.stack([0 * tilt, ones], 1),
        ],
        "tilt": [ones],
        "second_tilt": [ones, np.tan(tilt)],
        "magnification": [ones],
        "rotation": [ones],  # beside the axis
    }


@pytest.mark.parametrize("name", ["shift", "tilt", "second_tilt", "magnification", "rotation"])
def test_moves_of_the_specimen_are_none_of_the_poses(name):
    problem = problem_of()
    tilt = np.asarray(problem.pose.tilt)
    rest = movable(problem, EVERYTHING)
    for own in specimens_own(tilt)[name]:
        left = movement(problem, {**rest, name: jnp.asarray(own, jnp.float32)})[name]
        assert np.abs(left).max() < 1e-5
    random = jax.random.normal(jax.random.key(1), rest[name].shape)
    once = movement(problem, {**rest, name: random})
    twice = movement(problem, once)
    np.testing.assert_allclose(twice[name], once[name], atol=1e-5)


def test_what_is_taken_out_leaves_every_image_as_it_is():
    """A specimen moved by (1, 1, 1) voxels looks as if all poses had the moves that are taken out."""
    fine = np.zeros((20, 20, 20), np.float32)
    fine[6:12, 8:13, 7:13] = 1
    pose = Pose.nominal(TILTS)
    tilt = pose.tilt
    a, c, b = 1, 1, 1  # along x, y, z
    moved_volume = np.roll(fine, (b, c, a), (0, 1, 2))
    shifts = jnp.stack([a * jnp.cos(tilt) + b * jnp.sin(tilt), c * jnp.ones_like(tilt)], 1)
    seen = jt.project(jnp.asarray(moved_volume), pose)
    same = jt.project(jnp.asarray(fine), pose.replace(shift=shifts))
    assert np.abs(seen - same).max() < 0.5  # pixels at edges interpolate differently
    assert np.abs(seen - same).mean() < 0.03 * np.abs(seen).mean()


def test_a_specimen_turned_about_the_beam_shows_as_second_tilts_and_rotations():
    """R_y(θ) R_z(γ) is R_z(γ / cos θ) R_y(θ) R_x(γ tan θ): not second tilts alone, which are then left as they are."""
    z, y, x = np.meshgrid(*[np.arange(24) - 11.5] * 3, indexing="ij")
    gamma, tilt = 0.03, np.deg2rad(TILTS)

    def blobs(x, y):
        return sum(np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 14) for a, b, c in ((5, 2, 1), (-4, -5, 3)))

    turned = blobs(x * np.cos(gamma) + y * np.sin(gamma), y * np.cos(gamma) - x * np.sin(gamma)).astype(np.float32)
    pose = Pose.nominal(TILTS)
    second, plane = (jnp.asarray(gamma * curve, jnp.float32) for curve in (np.tan(tilt), 1 / np.cos(tilt)))
    seen = jt.project(jnp.asarray(turned), pose.replace(second_tilt=jnp.zeros(13)))
    as_poses = [
        jt.project(jnp.asarray(blobs(x, y).astype(np.float32)), pose.replace(second_tilt=s, rotation=r))
        for s, r in ((second, plane), (second, None), (0 * second, None))
    ]
    both, tilts_only, nothing = (float(jnp.abs(seen - other).mean()) for other in as_poses)
    assert both < 0.4 * nothing and tilts_only > 0.8 * nothing  # what is left of both is interpolation
    alone = movable(problem_of(), Freedom(second_tilt_deg=1.0))
    steep = jnp.asarray(np.tan(tilt), jnp.float32)
    np.testing.assert_allclose(movement(problem_of(), {**alone, "second_tilt": steep})["second_tilt"], steep, atol=1e-5)


def test_displaced_poses_move_the_rim_by_the_pixels_asked():
    problem = problem_of(size=20)
    for name, (_, pixels) in units(problem).items():
        if name in ("shift", "centre"):
            assert pixels == 1
        else:
            assert pixels == pytest.approx(10 * (np.deg2rad(1) if name != "magnification" else 1), rel=1e-6)
    pose = displaced(problem, {"axis": jnp.asarray(1.0), "shift": jnp.zeros((13, 2)).at[:, 0].set(2.0)})
    np.testing.assert_allclose(pose.rotation, 0.1, rtol=1e-6)
    np.testing.assert_allclose(pose.shift[0], [2 * np.cos(0.1), 2 * np.sin(0.1)], rtol=1e-5)
    np.testing.assert_array_equal(moved(problem, movable(problem, EVERYTHING)).tilt, problem.pose.tilt)


@pytest.mark.parametrize("tilts", [[0.0], [0.0, 0.0], [-5.0, 5.0], [80.0, 85.0]])
def test_few_or_equal_tilts_stay_finite(tilts):
    problem = problem_of(tilts=np.array(tilts))
    rest = jax.tree.map(lambda a: a + 0.3, movable(problem, EVERYTHING))
    slope = jax.grad(lambda moves: sum(jnp.sum(a**2) for a in jax.tree.leaves(moved(problem, moves))))(rest)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))


def test_white_residuals_count_by_the_pixel_and_shared_ones_by_the_block():
    weights = jnp.ones((3, 1, 1))
    white = jax.random.normal(jax.random.key(0), (3, 64, 64))
    assert independent_pixels(white, weights) == pytest.approx(white.size, rel=0.15)
    assert independent_pixels(jnp.ones((3, 64, 64)), weights) == pytest.approx(white.size / 64)
    assert np.isfinite(independent_pixels(jnp.zeros((3, 4, 4)), weights))


@pytest.mark.parametrize("size", [(24, 24), (25, 23), (26, 21)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_coarser_problem_sees_the_specimen_in_the_same_place(size, turned):
    """Projections of a blob at the coarser pose have their centres where those of the binned images are."""
    width, height = size

    def blob(z, x, y):
        return np.exp(-((z - 1) ** 2 + (x + 1.5) ** 2 + (y - 0.5) ** 2) / 14).astype(np.float32)

    z, x, y = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (width, width, height)), indexing="ij")
    pose = Pose.nominal(TILTS).replace(shift=jnp.asarray(np.linspace(-1, 1, 26).reshape(13, 2), jnp.float32))
    pose = pose.replace(rotation=jnp.full(len(TILTS), 0.1) if turned else None)
    images = np.asarray(jt.project(jnp.asarray(blob(z, x, y).swapaxes(1, 2)), pose))
    problem = Problem(TiltSeries(images, TILTS), pose)
    coarse = coarser(problem, 2)
    # The rotation centre is in the middle across the axis; along it row j is the rows 2 j and 2 j + 1.
    wide, high = -(-width // 2), -(-height // 2)
    across, along = 2 * (np.arange(wide) - (wide - 1) / 2), 2 * np.arange(high) + 0.5 - (height - 1) / 2
    predicted = np.asarray(coarse.project(jnp.asarray(blob(*np.meshgrid(across, across, along, indexing="ij")))))

    def centres(stack):
        mass = stack.sum((1, 2))
        return [stack.sum(2) @ np.arange(stack.shape[1]) / mass, stack.sum(1) @ np.arange(stack.shape[2]) / mass]

    for found, wanted in zip(centres(predicted), centres(np.asarray(coarse.images)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=0.06)
    np.testing.assert_allclose(predicted.sum((1, 2)), np.asarray(coarse.images).sum((1, 2)), rtol=0.03)
    assert coarser(problem, 1) is problem
    assert float(coarse.weights.max()) == 1 and float(coarse.weights.min()) >= 0


@pytest.fixture(scope="module")
def misaligned():
    fine = jt.phantoms.supported_particles((64,) * 3, seed=1)
    tilt_deg = np.arange(-60, 61, 5.0)
    microscope = Microscope(dose=200, shift_jitter_px=1.0, tilt_jitter_deg=0.5)
    series, _, true_pose = jt.simulate.simulate(fine, tilt_deg, microscope, seed=2)
    start = Pose.nominal(tilt_deg).replace(shift=jnp.zeros((len(tilt_deg), 2)))
    return series, start, true_pose


def wrong(found, true, nominal, name, pixels=1.0):
    """RMS of what is wrong beyond the specimen's own movements."""
    problem = problem_of(tilts=np.rad2deg(np.asarray(nominal)))
    apart = movement(problem, {name: jnp.asarray(found - true)})[name]
    return float(jnp.sqrt(jnp.mean(apart**2))) * pixels


def test_refinement_finds_the_poses(misaligned):
    series, start, true = misaligned
    result = refine(Problem(series, start), dataclasses.replace(Freedom(), tilt_deg=0.5), steps=200)
    before = wrong(start.shift, true.shift, start.tilt, "shift")
    after = wrong(result.pose.shift, true.shift, start.tilt, "shift")
    assert before > 0.8 and after < 0.06
    tilts = [np.rad2deg(wrong(pose.tilt, true.tilt, start.tilt, "tilt")) for pose in (start, result.pose)]
    assert tilts[0] > 0.35 and tilts[1] < 0.6 * tilts[0]
    assert result.error["shift_px"].shape == (25, 2) and 0 < result.error["shift_px"].max() < 0.1
    table = pose_table(result.pose, result.plain()).splitlines()
    assert table[0].startswith("tilt_deg,shift_u_px,shift_v_px,error_shift_u_px") and len(table) == 26


def test_what_is_not_free_stays(misaligned):
    series, start, _ = misaligned
    result = refine(Problem(series, start), Freedom(shift_px=0, axis_deg=np.inf, centre_px=np.inf), steps=20)
    np.testing.assert_array_equal(result.pose.tilt, start.tilt)
    assert np.ptp(np.asarray(result.pose.rotation)) == 0
    assert {*result.change} == {"axis_deg", "centre_px"}


def test_an_expectation_holds_what_the_images_do_not_tell():
    """A needle that is round about the tilt axis says nothing of the tilts: they stay where they are expected."""
    z, y, x = np.meshgrid(*[np.arange(40) - 19.5] * 3, indexing="ij")
    fine = (np.hypot(z, x) < 9 + 3 * np.sin(y / 4)).astype(np.float32)
    series, _, _ = jt.simulate.simulate(fine, TILTS, Microscope(dose=100), seed=1)
    problem = Problem(series, Pose.nominal(TILTS).replace(shift=jnp.zeros((13, 2))))
    result = refine(problem, Freedom(tilt_deg=0.1), steps=150)
    assert np.std(result.change["tilt_deg"]) < 0.2
    assert np.median(result.error["tilt_deg"]) > 0.05


def test_nothing_is_known_of_what_nothing_shows():
    """With no specimen the standard deviations are those that were expected."""
    problem = problem_of()
    free = Freedom(shift_px=0.7, tilt_deg=0.5, axis_deg=2.0)
    found = uncertainty(problem, free, jnp.zeros(problem.shape), movable(problem, free))
    np.testing.assert_allclose(found["shift_px"], 0.7, rtol=1e-5)
    np.testing.assert_allclose(found["tilt_deg"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(found["axis_deg"], 2.0, rtol=1e-5)


def test_poses_wait_for_a_volume(misaligned):
    from jaxtomo.solvers.fit import falling_adam, pose_of

    series, start, _ = misaligned
    problem = Problem(series, start)
    solver = jt.fit(jt.voxels(), optax.adam(0.1), falling_adam(0.1, 20, waiting=10))
    key = jax.random.key(0)
    state, step = solver.init(problem, key), jax.jit(solver.step)
    for i in range(12):
        state, _ = step(problem, state, key)
        moved_so_far = float(np.abs(pose_of(problem, state).shift).max())
        assert (moved_so_far > 0) == (i >= 10)


def test_freedom_is_read_from_words():
    assert freedom("shift,axis") == Freedom(axis_deg=np.inf)
    assert freedom("tilt=0.3, second-tilt").tilt_deg == 0.3
    assert freedom("tilt=0.3, second-tilt").shift_px == 0
    assert freedom("shift,jump=2").jump_px == 2
    for text in ("", "jump", "tilts", "tilt=x", "tilt=-1", "tilt=nan", "shift=0", "shift,jump=0"):
        with pytest.raises(jt.InputError):
            freedom(text)
    with pytest.raises(jt.InputError):
        refine(problem_of(tilts=np.array([0.0])))
    with pytest.raises(jt.InputError, match="nothing to refine"):
        refine(problem_of(), Freedom(shift_px=0))


@pytest.mark.parametrize("width", [33, 65])
def test_moves_keep_their_angles_from_level_to_level(width):
    problem = problem_of(size=width)
    coarse = coarser(problem, 4)
    moves = {"axis": jnp.asarray(1.0), "shift": jnp.ones((13, 2))}
    scaled = at_scale(moves, coarse, problem, 4)
    fine, rough = displaced(problem, scaled).rotation, displaced(coarse, moves).rotation
    np.testing.assert_allclose(fine, rough, rtol=1e-6)
    np.testing.assert_allclose(scaled["shift"], 4)
