"""The package as a whole: what importing it does, and that its names and examples work."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxtomo as jt

EXAMPLES = Path(__file__).parents[1] / "examples"


def loaded_by(code: str) -> set[str]:
    run = f"import sys; {code}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True).stdout.split())


def test_importing_loads_nothing_heavy():
    heavy = {"jax", "matplotlib", "scipy", "h5py", "flax", "skimage"}
    assert not heavy & loaded_by("import jaxtomo")
    assert not heavy - {"h5py"} & loaded_by("import jaxtomo as jt; jt.read; jt.TiltSeries; jt.InputError")


def test_every_public_name_is_there_and_no_module_hides_one():
    code = (
        "import jaxtomo.reporting, jaxtomo.alignment, jaxtomo as jt; assert callable(jt.report) and callable(jt.align)"
    )
    loaded_by(code)
    assert all(getattr(jt, name) is not None for name in jt.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        jt.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simulate_and_compare", {"size": 16, "steps": 20}),
        ("your_own_solver", {"size": 16, "steps": 20}),
        ("learn_poses", {"size": 16, "steps": 20}),
        ("differentiate", {"size": 16}),
        ("few_tilts", {"size": 16, "steps": 4, "tilt_steps": (20,)}),
        ("samples_of_a_wedge", {"size": 16, "steps": 2, "ranges_deg": (30,)}),
        ("many_devices", {"size": 16, "steps": 2}),
        ("atoms_of_a_glass", {"radius": 5.0, "picture": "PNG"}),
        ("layers_of_a_needle", {"steps": 12, "bin": 4, "picture": "PNG"}),
        ("elements_of_a_dust_grain", {"data": "NPZ", "bin": 2, "steps": 3, "picture": "PNG"}),
        ("alignment_study", {"size": 16, "steps": 2, "amounts": (0.5,), "kinds": ("all",), "out": "PNG"}),
    ],
)
def test_examples_run(name, options, capsys, tmp_path):
    files = {"PNG": tmp_path / "figure.png", "NPZ": tmp_path / "dust.npz"}
    if "data" in options:
        dust(files["NPZ"])
    options = {k: str(files[v]) if isinstance(v, str) and v in files else v for k, v in options.items()}
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(**options)
    assert capsys.readouterr().out
    assert files["PNG"].is_file() == (str(files["PNG"]) in options.values())


def dust(path):
    """A small stand-in for the real series: a ball, seen by a HAADF detector and in seven lines of X-rays."""
    y, x = np.mgrid[-16:16, -16:16] + 0.5
    ball = np.sqrt(np.maximum(100 - x**2 - y**2, 0))
    counts = np.random.default_rng(1).poisson(0.3 * ball, (16, 32, 32)).astype(np.uint16)
    lines = dict.fromkeys(("O_Ka", "Mg_Ka", "Si_Ka", "S_Ka", "Fe_Ka", "Cu_Ka", "Pt_La"), counts)
    np.savez(path, haadf=1000 * counts, tilts_deg=np.arange(-40.0, 36, 5), pixel_size_nm=13.0, **lines)
