"""Laws of the specimens and of the shapes they are made of."""

import inspect

import numpy as np
import pytest

from jaxtomo import InputError, phantoms, shapes
from jaxtomo.simulate import average

NAMES = phantoms.__all__


def rendered(name, size, seed=1):
    return getattr(phantoms, name)((size, size, size), seed)


@pytest.fixture(scope="module")
def volumes():
    return {name: rendered(name, 64) for name in NAMES}


def coordinates(volume):
    return np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in volume.shape), indexing="ij")


@pytest.mark.parametrize("name", NAMES)
def test_specimen_is_decided_by_its_seed(name, volumes):
    assert volumes[name].dtype == np.float32
    np.testing.assert_array_equal(rendered(name, 64), volumes[name])
    assert np.abs(rendered(name, 64, seed=2) - volumes[name]).max() > 0.3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_specimen_is_bright_enough_and_never_cut_off(name, seed):
    volume = rendered(name, 64, seed)
    assert volume.min() >= 0
    assert 0.7 < volume.max() < 1.4
    z, y, x = coordinates(volume)
    there = volume > 0.01
    assert 0.02 < there.mean() < 0.6
    assert np.hypot(z, x)[there].max() < 32
    assert np.abs(y)[there].max() < 32


@pytest.mark.parametrize("name", NAMES)
def test_every_grid_shows_the_same_specimen(name, volumes):
    """A coarse rendering is the mean of a fine one, to second order in the voxel."""
    binned, coarse = average(rendered(name, 128)), volumes[name]
    assert coarse.mean(dtype=float) == pytest.approx(binned.mean(dtype=float), rel=0.02)
    assert np.sqrt(np.mean((binned - coarse) ** 2) / np.mean(binned**2)) < 0.06


def test_atoms_are_exact_averages_over_voxels(volumes):
    np.testing.assert_allclose(average(volumes["atoms"]), rendered("atoms", 32), atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(32, 1, 32), (24, 40, 33), (41, 17, 30)])
def test_any_shape(name, shape):
    volume = getattr(phantoms, name)(shape, seed=1)
    assert volume.shape == shape
    assert np.isfinite(volume).all()
    assert volume.any()


def test_a_short_y_is_a_slab_of_the_whole():
    whole = phantoms.core_shell((32, 32, 32), seed=1)
    np.testing.assert_allclose(phantoms.core_shell((32, 8, 32), seed=1), whole[:, 12:20], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_can_call_it(name):
    parameters = list(inspect.signature(getattr(phantoms, name)).parameters.values())
    assert [p.name for p in parameters[:2]] == ["shape", "seed"]
    assert all(p.default is not inspect.Parameter.empty for p in parameters[1:])


def helix_turns(volume):
    """Turns from z towards x on the way up y, of the bright material away from the axis."""
    z, _, x = coordinates(volume)
    azimuth = []
    for row in range(volume.shape[1] // 4, 3 * volume.shape[1] // 4):
        weight = volume[:, row] * (np.hypot(z, x)[:, row] > 0.18 * len(volume))
        azimuth.append(np.arctan2((weight * x[:, row]).sum(), (weight * z[:, row]).sum()))
    return np.ptp(np.unwrap(azimuth)) / (2 * np.pi) * np.sign(np.unwrap(azimuth)[-1] - azimuth[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_chiral_specimen_is_right_handed(seed):
    volume = rendered("chiral", 64, seed)
    assert helix_turns(volume) > 1
    for axis in range(3):
        assert helix_turns(np.flip(volume, axis)) < -1


def test_metal_sits_on_the_film():
    """Particles touch the support: every bright voxel cluster has film beside it."""
    from scipy.ndimage import binary_dilation, label

    volume = rendered("supported_particles", 128)
    particles, count = label(volume > 0.5)
    beside = binary_dilation((volume > 0.1) & (volume < 0.2), iterations=3)
    touching = np.unique(particles[beside & (particles > 0)])
    assert count > 10
    assert len(touching) >= 0.9 * count


@pytest.mark.parametrize("shape", [(8, 8), (0, 8, 8), (8, 8, 8, 8)])
def test_bad_shape_is_named_with_its_cure(shape):
    with pytest.raises(InputError, match="three sizes"):
        phantoms.core_shell(shape)


def test_atoms_that_the_model_does_not_have():
    with pytest.raises(InputError, match="Give 3 to 50"):
        phantoms.atoms((16, 16, 16), radius_A=200.0)


SOLIDS = {
    "ball": (shapes.ball(0.3), 4 / 3 * np.pi * 0.3**3),
    "ellipsoid": (shapes.ellipsoid((0.2, 0.3, 0.4)), 4 / 3 * np.pi * 0.2 * 0.3 * 0.4),
    "rod": (shapes.rod((-0.2, 0, 0), (0.1, 0.1, 0.2), 0.1), np.pi * 0.1**2 * (0.14**0.5 + 4 / 3 * 0.1)),
    "cube": (shapes.wulff(0.5, 0.5), 0.5**3),
    "octahedron": (shapes.wulff(0.25, 1.74), 4 * 3**0.5 * 0.25**3),
    "cuboctahedron": (shapes.wulff(0.3 * 2 / 3**0.5, 3**0.5 / 2), 20 / 3 * 0.3**3),
    "icosahedron": (shapes.icosahedron(0.3), 5.0541 * 0.3**3),
    "prism": (shapes.prism(0.3, 0.4), 2 * 3**0.5 * 0.3**2 * 0.4),
    "half ball": (
        shapes.intersection(shapes.ball(0.3), shapes.half_space((0, 0, 1), 0.0)),
        2 / 3 * np.pi * 0.3**3,
    ),
    "shell": (shapes.without(shapes.ball(0.3), shapes.ball(0.2)), 4 / 3 * np.pi * (0.3**3 - 0.2**3)),
}


@pytest.mark.parametrize("name", SOLIDS)
@pytest.mark.parametrize("turn", [False, True])
def test_solids_have_their_volume(name, turn):
    distance, expected = SOLIDS[name]
    if turn:
        distance = shapes.turned(distance, shapes.random_rotation(np.random.default_rng(1)))
    volume = shapes.render((48, 48, 48), [shapes.Body(distance, 0.5, (0.01, -0.02, 0.03))])
    assert volume.sum() / 48**3 / 0.5 == pytest.approx(expected, rel=0.015)


def test_rotation_is_one():
    rotation = shapes.random_rotation(np.random.default_rng(3))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_turning_moves_a_body_by_the_matrix():
    """A quarter turn about z takes +x to +y."""
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    distance = shapes.turned(shapes.rod((0, 0, 0), (0.3, 0, 0), 0.05), quarter)
    assert distance(0.0, 0.3, 0.0) < 0 < distance(0.3, 0.0, 0.0)


def test_waves_have_unit_variance_and_a_true_gradient():
    waves = shapes.Waves.draw(np.random.default_rng(0), 0.1)
    z, y, x = np.ix_(*(np.linspace(-0.5, 0.5, 20),) * 3)
    on_grid = waves(x, y, z)
    assert on_grid.std() == pytest.approx(1, abs=0.15)
    points = np.broadcast_arrays(x, y, z)
    np.testing.assert_allclose(waves(*points), on_grid, atol=2e-4)
    step = 1e-3
    for i, slope in enumerate(waves.gradient(x, y, z)):
        ahead, behind = ([p + s * step * (i == j) for j, p in enumerate((x, y, z))] for s in (1, -1))
        np.testing.assert_allclose((waves(*ahead) - waves(*behind)) / (2 * step), slope, atol=0.5)
