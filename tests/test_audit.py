"""What is said to be measured is measured, and what is not is not."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import rankdata

import jaxtomo as jt
from jaxtomo import audit, reporting
from jaxtomo.simulate import Microscope, expose

SIDE = 48
TILTS = np.arange(-60, 61, 3.0)


def planted(seed=0, step=1):
    """(a ball with gratings in it, where they vary along the beam, where across it), `step` voxels a side each."""
    n = SIDE * step
    rng = np.random.default_rng(seed)
    place = (np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij")) - (n - 1) / 2) / step
    volume = np.clip(0.5 + 21 - np.sqrt((place**2).sum(0)), 0, 1)
    where = np.zeros((2, *volume.shape), bool)
    corners = np.array([(z, y, x) for z in (-8, 8) for y in (-8, 8) for x in (-8, 8)], float)
    for k, centre in enumerate(rng.permutation(corners)):
        away = np.sqrt(((place - centre[:, None, None, None]) ** 2).sum(0))
        angle = np.deg2rad(rng.uniform(-18, 18) if k % 2 == 0 else rng.uniform(-50, 50))
        along = np.array([np.cos(angle), 0, np.sin(angle)])[:: 1 if k % 2 == 0 else -1]
        wave = np.cos(2 * np.pi * np.tensordot(along, place, 1) / rng.uniform(4, 7))
        volume = volume + 0.3 * np.exp(-(away**2) / 18) * wave
        where[k % 2] |= away < 3.5
    return np.maximum(volume, 0).astype(np.float32), *where


@pytest.fixture(scope="module")
def problem():
    return jt.Problem(expose(planted(step=2)[0], TILTS, Microscope(dose=200.0), 1).series)


def area(inside, outside):
    """Under the curve of true over false positives."""
    ranks = rankdata(np.concatenate([inside, outside]))[: inside.size]
    return (ranks.sum() - inside.size * (inside.size + 1) / 2) / (inside.size * outside.size)


def test_what_lies_in_the_wedge_is_flagged_and_what_is_measured_is_not(problem):
    """The volume could come from any method: this one is the truth."""
    volume, along, across = planted()
    found = audit.audit(problem, volume)
    assert found.supplied.min() >= 0 and found.supplied.max() <= 1
    assert area(found.supplied[along], found.supplied[across]) > 0.95
    assert found.supplied[along].mean() > 3 * found.supplied[across].mean()


def test_more_images_determine_more(problem):
    volume = planted()[0]
    half = problem.replace(weights=problem.weights * (np.abs(TILTS) < 31)[:, None, None])
    few, many = (audit.audit(p, volume) for p in (half, problem))
    assert few.share > 1.3 * many.share and (few.empty >= many.empty).all() and few.empty[-1] > many.empty[-1]
    assert np.linalg.norm(many.determined - volume) < 0.5 * np.linalg.norm(volume)
    # Other programs have other units.
    thousand = audit.audit(problem, 1000 * volume)
    assert thousand.share == pytest.approx(many.share, rel=1e-3)
    np.testing.assert_allclose(thousand.determined / 1000, many.determined, atol=2e-3)


def test_power_outside_what_is_measured(problem):
    """Of noise it is the share of the frequencies; of waves along the beam all, of waves across it none."""
    noise = np.random.default_rng(0).normal(size=(SIDE,) * 3).astype(np.float32)
    found = audit.audit(problem, noise)
    np.testing.assert_allclose(found.outside[8:], found.empty[8:], atol=0.05)
    z, x = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    for wave, expected in ((z, 1.0), (x, 0.0)):
        volume = np.broadcast_to(np.cos(2 * np.pi * 12 / SIDE * wave)[:, None], (SIDE,) * 3)
        found = audit.audit(problem, volume)
        assert found.frequency[11] == pytest.approx(12 / SIDE)
        assert found.outside[11] == pytest.approx(expected, abs=1e-3)


def test_planes_are_those_of_the_projector():
    """What tilts to one side measure, and images of a specimen that is tilted a second time."""
    z, y, x = np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij")
    for tilt, second, along in ((45.0, 0.0, (1, 0, -1)), (-45.0, 0.0, (1, 0, 1)), (0.0, 45.0, (1, 1, 0))):
        series = jt.TiltSeries(np.ones((1, SIDE, SIDE), np.float32), [tilt])
        pose = jt.Pose.nominal([tilt])
        pose = pose.replace(second_tilt=jnp.deg2rad(jnp.array([second]))) if second else pose
        problem = jt.Problem(series, pose)
        for sign in (1, -1):
            phase = 2 * np.pi * 8 / SIDE * (along[0] * z + sign * (along[1] * y + along[2] * x))
            wave = np.cos(phase).astype(np.float32)
            seen = np.asarray(problem.project(jnp.asarray(wave.swapaxes(1, 2))))[0, 16:-16, 16:-16]
            found = audit.audit(problem, wave)
            outside = found.outside[np.rint(8 * np.sqrt(2)).astype(int) - 1]
            assert (outside > 0.5) == (np.abs(seen).max() < 5)


def test_a_run_says_what_was_measured(problem, tmp_path):
    result = jt.reconstruct(problem, jt.sirt(), 10, callbacks=())
    assert 0 < result.metrics["supplied_share"] < 0.5  # a linear method from nothing supplies next to nothing
    assert result.metrics["audit"]["plane"].shape == (3, SIDE, SIDE)
    reporting.report(tmp_path / "r.html", result)
    assert 'id="measured"' in (tmp_path / "r.html").read_text()


def test_what_cannot_be_audited_is_left_out_or_said(problem):
    assert audit.audited(problem, np.full((SIDE,) * 3, np.nan)) == {}
    nothing = audit.audited(problem, np.zeros((SIDE,) * 3, np.float32))
    assert nothing["supplied_share"] == 0 and np.isfinite(nothing["audit"]["plane"]).all()
    with pytest.raises(jt.InputError, match="shape"):
        audit.audit(problem, np.zeros((4, 4, 4)))


@pytest.mark.parametrize(("shape", "tilts"), [((16, 1, 16), TILTS), ((9, 5, 12), np.zeros(1))])
def test_thin_volumes_and_single_images(shape, tilts):
    series = jt.TiltSeries(np.ones((len(tilts), shape[1], shape[2]), np.float32), tilts)
    problem = jt.Problem(series).replace(shape=(shape[0], shape[2], shape[1]))
    found = audit.audit(problem, np.random.default_rng(0).random(shape).astype(np.float32))
    assert all(np.isfinite(np.asarray(part)).all() for part in found)


def test_several_devices_say_the_same(problem):
    volume = planted()[0]
    split, _ = jt.parallel.split(problem, jt.sirt(), jt.parallel.mesh(4))
    one, four = audit.audited(problem, volume), audit.audited(split, volume)
    assert four["supplied_share"] == pytest.approx(one["supplied_share"], rel=1e-3)
    np.testing.assert_allclose(four["audit"]["plane"], one["audit"]["plane"], atol=1e-2)
    assert jnp.asarray(four["audit"]["plane"]).shape == (3, SIDE, SIDE)
