"""Atoms are found where they are, by volume and by images; species, defects and files say what is there."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial import KDTree

import jaxtomo as jt
from jaxtomo import atoms, cli
from jaxtomo.atoms import tracing

VOXEL = 0.4  # Å
FULL = jt.Pose(
    tilt=jnp.deg2rad(jnp.array([-40.0, 10.0, 60.0])),
    shift=jnp.array([[0.5, -1.0], [2.0, 0.3], [-1.2, 0.7]]),
    rotation=jnp.array([0.1, -0.2, 0.05]),
    magnification=jnp.array([1.02, 0.97, 1.0]),
    second_tilt=jnp.array([0.15, -0.1, 0.05]),
)


def scattered(count, side, apart, seed=0):
    """`[atom, 3]` Å in a cube of `side`, none nearer than `apart` to another."""
    rng, places = np.random.default_rng(seed), []
    while len(places) < count:
        place = rng.uniform(-side / 2, side / 2, 3)
        if all(np.linalg.norm(place - other) > apart for other in places):
            places.append(place)
    return np.array(places)


def in_volume(places, amplitude, shape, width=1.0, along=1.0):
    """`[z, y, x]` of Gaussians, made in NumPy."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))[::-1]
    widths = np.array([width, width, along])[:, None, None, None]
    volume = np.zeros(shape)
    for place, a in zip(places / VOXEL, amplitude, strict=True):
        away = (grid - place[:, None, None, None]) / widths
        volume += a * np.exp(-0.5 * (away**2).sum(0)) / ((2 * np.pi) ** 1.5 * width**2 * along)
    return volume.astype(np.float32)


def images_of(places, amplitude, pose, side, width=1.0):
    guess = tracing.Guess(jnp.asarray(places / VOXEL), jnp.asarray(amplitude), jnp.array([width]))
    return np.asarray(tracing.rendered(guess, pose, (side, side), 6)).swapaxes(1, 2)


def problem_of(places, amplitude, side=40, noise=0.0, seed=0, most=60, tilts=15):
    angles = np.linspace(-most, most, tilts)
    images = images_of(places, amplitude, jt.Pose.nominal(angles), side)
    images = images + noise * np.random.default_rng(seed).normal(size=images.shape)
    return jt.Problem(jt.TiltSeries(images.astype(np.float32), angles, VOXEL / 10))


def nearest(places, found):
    distances, which = KDTree(found).query(places)
    assert len(set(which)) == len(places)
    return distances, which


PLACES = scattered(30, 11.0, 2.2)
BRIGHT = np.where(np.arange(30) % 3, 1.0, 3.0)


def test_atoms_of_a_volume_are_where_they_are():
    found = atoms.find(in_volume(PLACES, BRIGHT, (40, 38, 41), along=1.3), VOXEL / 10)
    distances, which = nearest(PLACES, found.positions)
    assert len(found.positions) == 30 and distances.max() < 0.005
    np.testing.assert_allclose(found.amplitude[which], BRIGHT, rtol=0.02)  # the tails that are cut
    np.testing.assert_allclose(found.width, VOXEL, rtol=0.01)
    assert np.isnan(found.position_error).all() and (found.species == -1).all()


def test_wide_atoms_are_found_as_wide_as_they_are():
    """Far from the width that the fit begins with."""
    places = scattered(8, 13.0, 4.5, seed=2)
    found = atoms.find(in_volume(places, np.ones(8), (40,) * 3, width=1.6, along=1.6), VOXEL / 10)
    assert len(found.positions) == 8
    np.testing.assert_allclose(found.width, 1.6 * VOXEL, rtol=0.02)
    np.testing.assert_allclose(found.amplitude, 1, rtol=0.04)


def test_noise_is_no_volume_of_atoms(tmp_path, capsys, monkeypatch):
    """Its maxima pass for atoms, which explain little of it; those of atoms explain nearly all, in noise too."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    jt.write("noise.mrc", noise, voxel_nm=VOXEL / 10)
    assert cli.main(["atoms", "noise.mrc", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["explained"] < 0.4 and "can look so" in said.err
    volume = in_volume(PLACES, BRIGHT, (40, 38, 41), along=1.3)
    volume += 0.05 * volume.max() * np.random.default_rng(0).normal(size=volume.shape).astype(np.float32)
    assert atoms.explained(volume, VOXEL / 10, atoms.find(volume, VOXEL / 10, threshold=0.3)) > 0.8


def test_faint_and_near_ones_are_left_out_where_asked():
    volume = in_volume(PLACES, [*BRIGHT[:-1], 0.2], (40, 38, 41))
    assert len(atoms.find(volume, VOXEL / 10).positions) == 29
    assert len(atoms.find(volume, VOXEL / 10, threshold=0.03).positions) == 30
    assert len(atoms.find(volume, VOXEL / 10, apart=4.0).positions) < 20


def test_a_point_is_seen_where_the_projector_has_it():
    places, side = scattered(4, 5.0, 1.0, 3), 32
    volumes = np.stack([in_volume(place[None], [1.0], (side,) * 3, 1.5, 1.5) for place in places])
    images = np.asarray(jt.project(volumes, FULL))
    mass = images.sum((2, 3))
    middles = [(images * line).sum((2, 3)) / mass for line in np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2)]
    want = np.stack(middles, -1).swapaxes(0, 1)
    np.testing.assert_allclose(tracing.seen(jnp.asarray(places / VOXEL), FULL), want, atol=0.01)


def test_derivatives_of_the_images_are_those_of_finite_differences(float64):
    rng = np.random.default_rng(0)
    guess = tracing.Guess(jnp.asarray(PLACES[:5] / VOXEL), jnp.asarray(BRIGHT[:5]), jnp.array([1.1]))
    move = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), guess)

    def draw(t):
        moved = jax.tree.map(lambda a, m: a + t * m, guess, move)
        return tracing.rendered(moved, FULL, (40, 36), 9)

    slope = jax.jvp(draw, (0.0,), (1.0,))[1]
    want = (draw(1e-5) - draw(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, want, atol=1e-4 * float(jnp.abs(want).max()))


def test_images_move_atoms_to_where_they_are():
    start = atoms.atoms(PLACES + 0.15 * np.random.default_rng(1).normal(size=PLACES.shape), 2.0, 0.5)
    found = atoms.refine(problem_of(PLACES, BRIGHT), start, rounds=1)
    distances, which = nearest(PLACES, found.positions)
    assert len(found.positions) == 30 and distances.max() < 1e-3
    np.testing.assert_allclose(found.amplitude[which], BRIGHT, rtol=1e-3)
    np.testing.assert_allclose(found.width, VOXEL, rtol=1e-3)


def test_images_show_missed_atoms_and_false_ones():
    false = np.array([[0.0, 7.0, 0.0]])
    start = atoms.atoms(np.concatenate([PLACES[2:], false]), [*BRIGHT[2:], 0.3], VOXEL)
    found = atoms.refine(problem_of(PLACES, BRIGHT, noise=0.002), start)
    distances, _ = nearest(PLACES, found.positions)
    assert len(found.positions) == 30 and distances.max() < 0.02


def test_stated_errors_are_those_that_noise_makes():
    places = scattered(24, 12.0, 3.2, 5)
    start, apart, bright = atoms.atoms(places, 1.0, VOXEL), [], []
    for seed in range(6):
        found = atoms.refine(problem_of(places, np.ones(24), noise=0.02, seed=seed), start, rounds=1)
        distances, which = nearest(places, found.positions)
        assert distances.max() < 0.2
        apart.append((found.positions[which] - places) / found.position_error[which])
        bright.append((found.amplitude[which] - 1) / found.amplitude_error[which])
    assert np.sqrt(np.mean(np.square(apart))) == pytest.approx(1, abs=0.2)
    assert np.sqrt(np.mean(np.square(bright))) == pytest.approx(1, abs=0.3)
    assert np.all(found.position_error[:, 2] > found.position_error[:, 0])  # along the beam the wedge is missing


@pytest.mark.parametrize("numbers", [None, [27, 46, 78]])
def test_species_are_told_by_brightness(numbers):
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 900, p=[0.5, 0.4, 0.1])
    bright = 5.0 * np.array([27, 46, 78])[truth] ** 1.7
    known = atoms.species(atoms.atoms(rng.normal(size=(900, 3)), bright * (1 + 0.08 * rng.normal(size=900)), 1.0), 3)
    told = atoms.species(known, 3, numbers)
    assert np.mean(told.species == truth) > 0.995
    assert np.all((told.confidence > 1 / 3) & (told.confidence <= 1))
    wrong = told.species != truth
    assert not wrong.any() or told.confidence[wrong].mean() < 0.95


@pytest.mark.parametrize(("there", "asked"), [([78], [28, 78]), ([27], [27, 78]), ([27, 78], [27, 46, 78])])
def test_an_element_that_is_not_there_gets_no_atoms(there, asked):
    rng = np.random.default_rng(2)
    truth = rng.choice(there, 80)
    bright = 3.0 * truth**1.7 * (1 + 0.04 * rng.normal(size=80))
    told = atoms.species(atoms.atoms(np.zeros((80, 3)), bright, 1.0), len(asked), asked)
    assert len(set(told.species)) == len(there)
    assert all(len(set(told.species[truth == z])) == 1 for z in there)


def test_confidence_is_how_often_it_is_right():
    rng = np.random.default_rng(1)
    truth = np.arange(4000) % 2
    told = atoms.species(atoms.atoms(np.zeros((4000, 3)), 1.0 + truth + 0.35 * rng.normal(size=4000), 1.0), 2)
    right = told.species == truth
    assert told.confidence.mean() == pytest.approx(right.mean(), abs=0.02)
    assert told.confidence[~right].mean() < told.confidence[right].mean() - 0.15


def crystal(kind, n=6, a=4.0):
    """`[atom, 3]` Å: a cube of an elementary crystal, about the middle."""
    cell = {
        "fcc": [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        "bcc": [[0, 0, 0], [0.5, 0.5, 0.5]],
        "sc": [[0, 0, 0]],
    }[kind]
    corners = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    places = a * (corners + np.array(cell)).reshape(-1, 3)
    return places - places.mean(0)


@pytest.mark.parametrize(("kind", "volume"), [("fcc", 16.0), ("bcc", 32.0), ("sc", 64.0)])
def test_planted_defects_of_a_strained_crystal_are_listed(kind, volume):
    rng, places = np.random.default_rng(0), crystal(kind)
    inner = np.flatnonzero(np.abs(places).max(1) < 6.5)
    gone = rng.choice(inner, 3, replace=False)
    beside = places[np.setdiff1d(inner, gone)[0]] + [1.0, 0.9, 0.8]
    held = np.concatenate([np.delete(places, gone, 0), [beside]])
    strain = np.eye(3) + 0.03 * rng.normal(size=(3, 3))
    held = held @ strain + 0.08 * rng.normal(size=held.shape)
    found = atoms.defects(atoms.atoms(held, 1.0, 0.3))
    assert sorted(found.kind) == ["interstitial", "vacancy", "vacancy", "vacancy"]
    assert abs(np.linalg.det(found.lattice)) == pytest.approx(volume * abs(np.linalg.det(strain)), rel=0.03)
    empty = found.kind == "vacancy"
    distances, _ = nearest(places[gone] @ strain, found.positions[empty])
    assert distances.max() < 0.2 and (found.atom[empty] == -1).all()
    assert found.atom[~empty] == [len(held) - 1] and found.share > 0.99


def test_whole_crystals_have_no_defects_and_their_surfaces_are_none():
    places = crystal("fcc")
    for held in (places, places[np.linalg.norm(places, axis=1) < 10]):
        assert atoms.defects(atoms.atoms(held, 1.0, 0.3)).kind.size == 0


def test_an_atom_that_left_its_site_is_displaced():
    places = crystal("fcc")
    middle = int(np.linalg.norm(places, axis=1).argmin())
    places[middle] += [0.8, 0, 0]
    found = atoms.defects(atoms.atoms(places, 1.0, 0.3))
    assert list(found.kind) == ["displaced"] and found.atom == [middle]


def test_antisites_of_an_ordered_alloy_are_listed_and_a_random_one_has_none():
    places = crystal("fcc")
    layer = (np.rint((places[:, 2] - places[:, 2].min()) / 2).astype(int)) % 2  # L1_0
    swapped = [200, 333, 500]
    species = layer.copy()
    species[swapped] = 1 - species[swapped]
    alloy = atoms.atoms(places, 1.0, 0.3)
    found = atoms.defects(alloy._replace(species=species))
    assert set(found.kind) == {"substitution"} and sorted(found.atom) == swapped
    random = np.random.default_rng(0).integers(0, 2, len(places))
    assert atoms.defects(alloy._replace(species=random)).kind.size == 0


def test_a_glass_has_no_lattice_and_says_so():
    found = atoms.defects(atoms.atoms(scattered(400, 20.0, 2.0), 1.0, 0.3))
    assert found.lattice is None and found.kind.size == 0 and "no lattice" in found.message


FINITE = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 6), st.integers(0, 3), st.text(max_size=20))
def test_xyz_comes_back(tmp_path_factory, data, count, kinds, note):
    path = tmp_path_factory.mktemp("xyz") / "a.xyz"
    draw = lambda *shape: data.draw(arrays(float, shape, elements=FINITE))  # noqa: E731
    kind = data.draw(arrays(int, count, elements=st.integers(-1, kinds - 1)))
    whole = atoms.Atoms(
        draw(count, 3), draw(count), draw(count), draw(count, 3), np.full(count, np.nan), kind, draw(count)
    )
    names = ["Co", "Pd", "Pt"][:kinds]
    atoms.write_xyz(path, whole, names, (30, 40, 50), note)
    back, read = atoms.read_xyz(path)
    np.testing.assert_allclose(back.positions, whole.positions, atol=1e-5)
    for name in ("amplitude", "width", "position_error", "amplitude_error", "confidence"):
        np.testing.assert_allclose(getattr(back, name), getattr(whole, name), rtol=1e-5, atol=1e-30)
    np.testing.assert_array_equal(back.species, kind)
    assert [read[k] for k in kind if k >= 0] == [names[k] for k in kind if k >= 0]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_xyz_is_an_input_error_or_atoms(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("xyz") / "a.xyz"
    atoms.write_xyz(path, atoms.atoms(PLACES[:3], 1.0, 0.3), ())
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(text[: data.draw(st.integers(0, len(text)))]))
    try:
        found, _ = atoms.read_xyz(path)
    except jt.InputError as error:
        assert "a.xyz" in str(error)
    else:
        assert np.isfinite(found.positions).all()


def test_a_plain_xyz_is_read(tmp_path):
    (tmp_path / "p.xyz").write_text("3\nmade by hand\nPt 0 0 1\nCo 1 2 3.5\nPt 4 5 6\n")
    found, names = atoms.read_xyz(tmp_path / "p.xyz")
    assert names == ["Co", "Pt"] and list(found.species) == [1, 0, 1]
    np.testing.assert_array_equal(found.positions[1], [1, 2, 3.5])


def test_what_cannot_be_done_names_the_cure(tmp_path):
    volume, few = in_volume(PLACES, BRIGHT, (40, 38, 41)), atoms.atoms(PLACES[:5], 1.0, 0.3)
    problem = problem_of(PLACES[:2], BRIGHT[:2], side=12, tilts=3)
    for call, hint in (
        (lambda: atoms.find(volume[0], 0.04), "z, y, x"),
        (lambda: atoms.find(volume, None), "--voxel-nm"),
        (lambda: atoms.find(np.where(volume > 0.1, np.nan, volume), 0.04), "not finite"),
        (lambda: atoms.find(0 * volume, 0.04), "stands out"),
        (lambda: atoms.refine(problem, few.select([])), "no atoms"),
        (lambda: atoms.refine(problem.replace(voxel_nm=None), few), "--voxel-nm"),
        (lambda: atoms.species(few, 3), "three atoms"),
        (lambda: atoms.species(few, 1, [3, 4]), "ascending"),
        (lambda: atoms.atomic_number("Xx"), "no chemical element"),
        (lambda: atoms.defects(few), "20"),
        (lambda: atoms.write_xyz(tmp_path / "a.xyz", few, ["a b"]), "single words"),
        (
            lambda: atoms.write_xyz(
                tmp_path / "a.xyz", atoms.species(few, 1)._replace(species=few.species + 3), ["Co"]
            ),
            "3",
        ),
        (lambda: atoms.read_xyz(tmp_path / "none.xyz"), "no such file"),
    ):
        with pytest.raises(jt.InputError, match=hint):
            call()


def test_the_command_finds_refines_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jt.write("series.mrc", problem_of(PLACES, BRIGHT, noise=0.004).series)
    how = ["--no-align", "--method", "sirt", "--steps", "20", "--no-assess", "--quiet"]
    assert cli.main(["reconstruct", "series.mrc", *how]) == 0
    run = next(p.parent for p in tmp_path.rglob("reconstruction.h5"))
    capsys.readouterr()
    assert cli.main(["atoms", str(run), "--elements", "Pt,Fe", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["atoms"] == 30 and said["refined"] and said["elements"] == ["Fe", "Pt"] and said["species"] == [20, 10]
    assert "no lattice" in said["lattice"] and said["defects"] == {}
    assert {p.name for p in (run / "atoms").iterdir()} == {
        *("atoms.xyz", "atoms.csv", "defects.csv", "summary.json", "atoms.png")
    }
    found, names = atoms.read_xyz(run / "atoms" / "atoms.xyz")
    distances, which = nearest(PLACES, found.positions)
    assert distances.max() < 0.05 and [names[k] for k in found.species[which[:2]]] == ["Pt", "Fe"]
    rows = [*csv.DictReader((run / "atoms" / "atoms.csv").read_text().splitlines())]
    assert len(rows) == 30 and float(rows[0]["x_error_A"]) > 0
    assert cli.main(["atoms", str(run)]) == 3 and "--overwrite" in capsys.readouterr().err
    arguments = ["atoms", str(run / "volume.mrc"), "--out", "here", "--species", "2"]
    assert cli.main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert not said["refined"] and 29 <= said["atoms"] <= 33
    for wrong in (["--apart", "0"], ["--species", "0"], ["--voxel-nm", "nan"], ["--threshold", "-1"]):
        assert cli.main([*arguments, "--overwrite", *wrong]) == 2
    assert cli.main([*arguments[:4], "--overwrite", "--elements", "Pt,Qq"]) == 3 and "Qq" in capsys.readouterr().err
    assert cli.main(["atoms", "nothing.mrc"]) == 3 and cli.main(["atoms"]) == 2
    assert cli.main(["atoms", str(tmp_path)]) == 3 and "no finished run" in capsys.readouterr().err
