"""Every other format: the same tilt series comes out, whatever the order of its axes and the units of its angles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from microscope_files import ANGLES, NM, dxchange, hspy, mat73, mrc, ncem, nxtomo, specimen, velox

from jaxtomo import io
from jaxtomo.errors import InputError
from jaxtomo.series import TiltSeries

IMAGES = specimen()
TURNED = np.rot90(IMAGES, 1, axes=(1, 2)).copy()  # the tilt axis along +x, as tomviz and ETSpy have it


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def mat5(path, compressed=False, **arrays):
    from scipy.io import savemat

    savemat(path, arrays, do_compression=compressed)
    return path


LAST = np.moveaxis(IMAGES, 0, 2)  # [y, x, tilt]
KEYED = {"tilt_deg": ANGLES, "pixel_nm": NM, "tilt_axis": "y"}
EULER = np.stack([0 * ANGLES, ANGLES, 0 * ANGLES], axis=1)

# each entry: a file that states everything, and what `read` needs besides
COMPLETE = {
    "ncem degrees": (lambda p: ncem(p / "x.emd", IMAGES, ANGLES, group="data/stack"), {"tilt_axis": "y"}),
    "ncem radians": (
        lambda p: ncem(p / "x.emd", IMAGES, np.deg2rad(ANGLES), unit="[rad]", group="data/stack"),
        {"tilt_axis": "y"},
    ),
    "tomviz": (lambda p: ncem(p / "x.emd", TURNED, ANGLES), {}),
    "tomviz fortran": (lambda p: ncem(p / "x.emd", TURNED, ANGLES, fortran=True), {}),
    "tomviz axis stated": (lambda p: ncem(p / "x.emd", TURNED, ANGLES, tilt_axis="x"), {}),
    "velox": (lambda p: velox(p / "x.emd", IMAGES, ANGLES), {"tilt_axis": 0}),
    "velox by detector": (
        lambda p: velox(p / "x.emd", IMAGES, ANGLES, detectors=("HAADF", "BF")),
        {"tilt_axis": 0, "dataset": "HAADF"},
    ),
    "dxchange": (lambda p: dxchange(p / "x.h5", IMAGES, ANGLES), {}),
    "dxchange radians": (lambda p: dxchange(p / "x.h5", IMAGES, np.deg2rad(ANGLES), unit="rad"), {}),
    "nxtomo": (lambda p: nxtomo(p / "x.nxs", IMAGES, ANGLES), {}),
    "hspy tilt_alpha": (lambda p: hspy(p / "x.hspy", IMAGES, alpha=ANGLES), {"tilt_axis": "y"}),
    "hspy calibrated": (lambda p: hspy(p / "x.hspy", IMAGES, calibrated=True), {"tilt_axis": "y"}),
    "hspy etspy": (lambda p: hspy(p / "x.hspy", TURNED, alpha=ANGLES + 9, sig_tilts=ANGLES), {}),
    "npz": (lambda p: npz(p / "x.npz", projections=IMAGES, **KEYED), {}),
    "npz tilts last": (lambda p: npz(p / "x.npz", data=LAST, **KEYED), {}),
    "npz named": (lambda p: npz(p / "x.npz", haadf=IMAGES, eds=IMAGES, **KEYED), {"dataset": "haadf"}),
    "mat5": (lambda p: mat5(p / "x.mat", tiltSeries=LAST, angles=ANGLES[None], pixel_nm=NM, tilt_axis="y"), {}),
    "mat5 compressed": (
        lambda p: mat5(p / "x.mat", True, tiltSeries=LAST, angles=ANGLES[:, None], pixel_nm=NM, tilt_axis="y"),
        {},
    ),
    "mat5 Euler": (lambda p: mat5(p / "x.mat", projections=LAST, angles=EULER, pixel_nm=NM), {"tilt_axis": "y"}),
    "mat5 radians": (
        lambda p: mat5(p / "x.mat", images=LAST, angles_rad=np.deg2rad(ANGLES)),
        {"tilt_axis": "y", "pixel_nm": NM},
    ),
    "mat73": (lambda p: mat73(p / "x.mat", stack=LAST, angles=ANGLES[:, None], pixel_nm=[[NM]]), {"tilt_axis": "y"}),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPLETE)
def test_the_same_series_comes_out(tmp_path, case):
    make, needed = COMPLETE[case]
    path = make(tmp_path)
    series = io.read(path, **needed)
    np.testing.assert_allclose(series.images, IMAGES, rtol=1e-6)
    np.testing.assert_allclose(series.tilt_deg, ANGLES, atol=1e-4)
    assert series.pixel_nm == pytest.approx(NM, rel=1e-5) and series.tilt_axis_deg == 0
    assert all(series.provenance[key] for key in ("images", "tilt_deg", "pixel_nm", "tilt_axis"))
    slab = io.read(path, rows=slice(2, 5), **needed)
    np.testing.assert_array_equal(slab.images, series.images[:, 2:5])
    found = io.inspect(path, **needed)
    assert found["problems"] == [] and found["angles"]["count"] == 7 and found["shape"][0] == 7


def test_tiff_multi_page_folder_pattern_and_first_file(tmp_path):
    whole = tmp_path / "stack.tif"
    tifffile.imwrite(whole, IMAGES)
    folder = tmp_path / "single"
    folder.mkdir()
    for i, image in enumerate(IMAGES, 5):  # 5 to 11: natural order puts 9 before 10
        tifffile.imwrite(folder / f"tilt_{i}.tif", image)
    for path in (whole, folder, folder / "tilt_*.tif", folder / "tilt_5.tif"):
        series = io.read(path, angles="-60:60:20", tilt_axis="y", pixel_nm=NM)
        np.testing.assert_array_equal(series.images, IMAGES)
        rows = io.read(path, angles="-60:60:20", tilt_axis="y", pixel_nm=NM, rows=slice(1, 3)).images
        np.testing.assert_array_equal(rows, IMAGES[:, 1:3])
    with pytest.raises(InputError, match=r"tilt_7.tif: is one of 7 numbered files but not the first, tilt_5.tif"):
        io.read(folder / "tilt_7.tif", angles="-60:60:20", tilt_axis="y", pixel_nm=NM)
    tifffile.imwrite(folder / "tilt_9.tif", IMAGES[0, :5])
    with pytest.raises(InputError, match=r"tilt_9.tif: is \(5, 10\) pixels"):
        io.read(folder, angles="-60:60:20", tilt_axis="y", pixel_nm=NM)


def test_tiff_compressed_and_with_imagej_calibration(tmp_path):
    tifffile.imwrite(tmp_path / "z.tif", IMAGES, compression="zlib")
    np.testing.assert_array_equal(io.read_volume(tmp_path / "z.tif")[0], IMAGES)
    tifffile.imwrite(
        tmp_path / "ij.tif", IMAGES, imagej=True, resolution=(1 / NM, 1 / NM), metadata={"unit": "nm", "axes": "ZYX"}
    )
    assert io.read_volume(tmp_path / "ij.tif")[1] == pytest.approx(NM, rel=1e-5)


def test_mdoc_beside_a_tiff_is_turned_for_its_rows(tmp_path):
    from microscope_files import mdoc

    tifffile.imwrite(tmp_path / "x.tif", IMAGES)
    mdoc(tmp_path / "x.mdoc", ANGLES, rotation=170.0)
    series = io.read(tmp_path / "x.tif")
    assert series.tilt_axis_deg == pytest.approx(10) and "TIFF rows" in series.provenance["tilt_axis"]


def test_several_stacks_are_listed_never_chosen(tmp_path):
    with pytest.raises(InputError, match=r"2 arrays could be the images. Name one of a .*b .*--dataset"):
        io.read(npz(tmp_path / "x.npz", a=IMAGES, b=IMAGES))
    with pytest.raises(InputError, match=r"2 image stacks: .*HAADF.*BF|2 image stacks: .*BF.*HAADF"):
        io.read(velox(tmp_path / "x.emd", IMAGES, ANGLES, detectors=("HAADF", "BF")))


VOLUME = IMAGES  # any [z, y, x]


@pytest.mark.parametrize("name", ["v.mrc", "v.h5", "v.emd", "v.tif", "v.npy", "v.zarr"])
def test_a_written_volume_reads_back_whole_and_by_slab(tmp_path, name):
    if name.endswith("zarr"):
        pytest.importorskip("zarr")
    path = io.write(tmp_path / name, VOLUME, voxel_nm=NM)
    volume, voxel_nm = io.read_volume(path)
    np.testing.assert_array_equal(volume, VOLUME)
    assert volume.dtype == np.float32
    assert voxel_nm == (None if name == "v.npy" else pytest.approx(NM, rel=1e-5))
    np.testing.assert_array_equal(io.read_volume(path, slice(3, 8))[0], VOLUME[:, 3:8])


@pytest.mark.parametrize("name", ["s.mrc", "s.h5", "s.emd", "s.zarr"])
def test_a_written_series_reads_back_with_all_it_states(tmp_path, name):
    if name.endswith("zarr"):
        pytest.importorskip("zarr")
    mask = np.ones(IMAGES.shape, bool)
    mask[:, :2] = False
    series = TiltSeries(
        IMAGES, ANGLES, NM, 0.0 if name.endswith("zarr") else 2.5, mask=mask, exposure_order=np.arange(7)[::-1]
    )
    back = io.read(io.write(tmp_path / name, series))
    np.testing.assert_array_equal(back.images, IMAGES)
    np.testing.assert_allclose(back.tilt_deg, ANGLES, atol=1e-4)
    assert back.pixel_nm == pytest.approx(NM, rel=1e-5)
    assert back.tilt_axis_deg == pytest.approx(series.tilt_axis_deg, abs=1e-5)
    if name == "s.h5":
        np.testing.assert_array_equal(back.mask, mask)
        np.testing.assert_array_equal(back.exposure_order, series.exposure_order)


def test_channels_are_kept(tmp_path):
    channels = np.stack([IMAGES, 2 * IMAGES])
    npz(tmp_path / "x.npz", maps=channels, **KEYED)
    series = io.read(tmp_path / "x.npz", dataset="maps", tilt_axis="x", skip=[0])
    np.testing.assert_array_equal(series.images, np.rot90(channels[:, 1:], -1, axes=(-2, -1)))


def test_content_is_believed_before_the_extension(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", IMAGES)
    (tmp_path / "x.tif").rename(tmp_path / "x.mrc")
    series = io.read(tmp_path / "x.mrc", angles=ANGLES, tilt_axis="y", pixel_nm=NM)
    assert "The file is TIFF, although its name ends in .mrc." in series.provenance["images"]
    mrc(tmp_path / "y.tif", IMAGES, dialect="FEI2003", angles=ANGLES, axis=4.0)
    assert io.read(tmp_path / "y.tif").tilt_axis_deg == pytest.approx(4)


def test_em_formats_name_the_extra(tmp_path, monkeypatch):
    (tmp_path / "x.dm3").write_bytes(b"\0\0\0\3" + bytes(200))
    monkeypatch.setitem(sys.modules, "rsciio", None)
    monkeypatch.setitem(sys.modules, "rsciio.digitalmicrograph", None)
    with pytest.raises(InputError, match=r'x.dm3: .*pip install "jaxtomo\[em\]"'):
        io.read(tmp_path / "x.dm3")


def test_dm_signals_through_rosettasciio(tmp_path, monkeypatch):
    """A stand-in for rosettasciio, since it is not installed with the tests: its list of signals is what is read."""
    import types

    stack = {
        "data": IMAGES,
        "axes": [
            {"name": "z", "units": "deg", "scale": 20.0, "offset": -60.0, "size": 7},
            {"name": "y", "units": "µm", "scale": NM / 1000, "offset": 0, "size": 12},
            {"name": "x", "units": "µm", "scale": NM / 1000, "offset": 0, "size": 10},
        ],
        "metadata": {},
    }

    def one(i: int) -> dict:
        tags = {
            "ImageList": {
                "TagGroup0": {"ImageTags": {"Microscope Info": {"Stage Position": {"Stage Alpha": ANGLES[i]}}}}
            }
        }
        return {"data": IMAGES[i], "axes": stack["axes"][1:], "metadata": {}, "original_metadata": tags}

    module = types.ModuleType("rsciio.digitalmicrograph")
    module.file_reader = lambda path, lazy: [stack] if "stack" in path else [one(int(path[-5]))]
    monkeypatch.setitem(sys.modules, "rsciio", types.ModuleType("rsciio"))
    monkeypatch.setitem(sys.modules, "rsciio.digitalmicrograph", module)
    names = ["stack.dm4", *(f"bf_{i}.dm3" for i in range(7))]
    for name in names:
        (tmp_path / name).write_bytes(b"\0\0\0" + (b"\4" if name.endswith("4") else b"\3") + bytes(200))
    for name in ("stack.dm4", "bf_0.dm3", "bf_*.dm3"):
        series = io.read(tmp_path / name, tilt_axis="y")
        np.testing.assert_array_equal(series.images, IMAGES)
        np.testing.assert_allclose(series.tilt_deg, ANGLES)
        assert series.pixel_nm == pytest.approx(NM)


def test_inspect_is_quick_to_import(tmp_path):
    mrc(tmp_path / "x.mrc", IMAGES, dialect="FEI1", angles=ANGLES, axis=5.0)
    dxchange(tmp_path / "x.h5", IMAGES, ANGLES)
    mat5(tmp_path / "x.mat", tiltSeries=LAST, angles=ANGLES[None])
    code = (
        "import sys, json; from jaxtomo import io\n"
        "for name in ('x.mrc', 'x.h5', 'x.mat'): print(json.dumps(io.inspect(sys.argv[1] + '/' + name)))\n"
        "sys.exit(str(found) if (found := {'jax', 'scipy', 'matplotlib', 'skimage'} & set(sys.modules)) else 0)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_sha256_of_a_file_and_of_a_folder(tmp_path):
    import hashlib

    (tmp_path / "a.tif").write_bytes(b"abc")
    assert io.sha256(tmp_path / "a.tif") == hashlib.sha256(b"abc").hexdigest()
    before = io.sha256(tmp_path)
    (tmp_path / "b.tif").write_bytes(b"d")
    assert io.sha256(tmp_path) != before
    with pytest.raises(InputError, match="there is no such file"):
        io.sha256(tmp_path / "none")


def test_velox_pixels_are_not_read_by_inspect(tmp_path, monkeypatch):
    path = velox(tmp_path / "x.emd", IMAGES, ANGLES)
    monkeypatch.setattr("jaxtomo.io.hdf5._fetch", None)
    assert io.inspect(path)["angles"]["step"] == pytest.approx(20)


def test_hdf5_of_any_layout_by_name(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["scan/HAADF"], file["scan/BF"] = IMAGES, IMAGES
        file["scan/tilts"] = ANGLES
    series = io.read(tmp_path / "x.h5", dataset="scan/HAADF", tilt_axis="y", pixel_nm=NM)
    np.testing.assert_array_equal(series.tilt_deg, ANGLES)
    with pytest.raises(InputError, match="Name one of"):
        io.read(tmp_path / "x.h5")
