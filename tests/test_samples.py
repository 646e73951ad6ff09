"""The data that ships: it is what the notices say, complete, readable and small."""

import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from jaxtomo import InputError, samples

# mrcfile 1.5 itself, on NumPy 2.5
pytestmark = pytest.mark.filterwarnings("ignore:Setting the dtype on a NumPy array:DeprecationWarning")

REAL = Path(__file__).parents[2] / "shared/data"
needs_real_data = pytest.mark.skipif(not REAL.exists(), reason="needs the real data beside the repository")


def open_needle(path):
    with pytest.warns(RuntimeWarning, match="Map ID|machine stamp"):
        return mrcfile.open(path, permissive=True)


def records(mrc):
    return np.frombuffer(mrc.extended_header.tobytes(), "<f4").reshape(-1, 32)


def test_the_needle_keeps_the_oddities_of_the_microscope_that_wrote_it():
    with open_needle(samples.path("needle.mrc")) as mrc:
        assert bytes(mrc.header.map).strip(b"\0") == b"" and mrc.header.machst.tolist() == [0, 0, 0, 0]
        assert mrc.data.shape == (77, 128, 128) and mrc.data.dtype == np.int16
        assert mrc.header.cella.tolist() == (128, 128, 77)  # the wrong 1 Å a pixel
        assert mrc.data.min() == mrc.header.dmin < -31_000  # the offset of the digitiser
        assert records(mrc).shape[0] == 1024
        angles, pixel_m = records(mrc)[:77, 0], records(mrc)[:77, 11]
    np.testing.assert_allclose(angles, np.arange(-76, 77, 2))
    np.testing.assert_allclose(angles, np.loadtxt(samples.path("needle.rawtlt")))
    np.testing.assert_allclose(pixel_m, 6.72e-9, rtol=1e-6)


@needs_real_data
def test_the_needle_is_the_published_one_binned(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks/make_sample.py"
    source = REAL / "formats/needle_fei2003.mrc"
    command = [sys.executable, script, source, source.with_suffix(".rawtlt"), tmp_path]
    subprocess.run(command, check=True)
    for name in ("needle.mrc", "needle.rawtlt"):
        assert (tmp_path / name).read_bytes() == samples.path(name).read_bytes()
    with open_needle(source) as full, open_needle(samples.path("needle.mrc")) as small:
        mean = full.data.reshape(77, 128, 2, 128, 2).mean((2, 4))
        assert np.abs(mean - small.data).max() <= 0.5
        untouched = np.delete(records(full), 11, axis=1)
        np.testing.assert_array_equal(untouched, np.delete(records(small), 11, axis=1))


@pytest.mark.parametrize("name", ["fib_sem", "porous_silicon", "nanoparticles"])
def test_a_spectrum_has_mean_one_over_the_frequencies_of_a_cube(name):
    spectrum = samples.spectrum(name)
    assert np.all(np.diff(spectrum.frequency) > 0) and np.all(spectrum.power > 0)
    assert spectrum.std > 0 and np.isfinite(spectrum.mean)
    for n in (48, 64):
        f = np.fft.fftfreq(n)
        radius = np.sqrt(f[:, None, None] ** 2 + f[:, None] ** 2 + f**2)
        # the peak at zero is narrower than the frequency step of a small cube
        assert np.interp(radius, spectrum.frequency, spectrum.power).mean() == pytest.approx(1, abs=0.35)


def test_a_spectrum_tells_a_rough_volume_from_a_smooth_one():
    tissue, silicon = samples.spectrum("fib_sem"), samples.spectrum("porous_silicon")
    assert tissue.power[-1] > 10 * silicon.power[-1]  # noise of the microscope against a filtered volume
    assert tissue.voxel_nm == 10 and np.isnan(silicon.voxel_nm)


@needs_real_data
def test_the_spectrum_is_that_of_the_real_volume():
    volume = np.load(REAL / "nanopores3d_si.npz")["volume"]
    spectrum = samples.spectrum("porous_silicon")
    assert (spectrum.mean, spectrum.std) == pytest.approx((volume.mean(), volume.std()))
    # half the mean squared step along an axis is the variance lost between neighbours, and the spectrum predicts it
    step = np.mean([np.mean(np.diff(volume.astype(float), axis=axis) ** 2) for axis in range(3)]) / volume.var()
    f = np.fft.fftfreq(128)
    radius = np.sqrt(f[:, None, None] ** 2 + f[:, None] ** 2 + f**2)
    power = np.interp(radius, spectrum.frequency, spectrum.power)
    assert np.mean(power * (2 - 2 * np.cos(2 * np.pi * f))) == pytest.approx(step, rel=0.1)


def test_the_atoms_are_those_of_the_paper():
    atoms = np.load(samples.path("aet_CoPdPt.npz"))
    assert atoms["xyz_A"].shape == (18356, 3)
    assert np.bincount(atoms["type"]).tolist() == [0, 8322, 6896, 3138]
    if REAL.exists():
        assert samples.path("aet_CoPdPt.npz").read_bytes() == (REAL / "aet_CoPdPt_glass_MIT.npz").read_bytes()


def test_every_sample_has_a_notice_beside_it_and_all_are_small():
    folder = samples.path("needle.mrc").parent
    for name in samples.names():
        notice = folder / (Path(name).stem + "_LICENSE.txt")
        assert name in notice.read_text("ascii")
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) < 4e6
    needle = (folder / "needle_LICENSE.txt").read_text()
    assert "NIST" in needle and "provided that this notice and disclaimer of warranty appears in all copies" in needle


@pytest.mark.parametrize("name", ["nothing.mrc", "../errors.py", "__init__.py", ""])
def test_an_unknown_sample_names_those_there_are(name):
    with pytest.raises(InputError, match=r"There are .*needle\.mrc"):
        samples.path(name)
    with pytest.raises(InputError, match="fib_sem, nanoparticles, porous_silicon"):
        samples.spectrum(name)
