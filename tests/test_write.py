"""What `write` leaves behind: every format as independent programs read it, handedness, and nothing half-written."""

import errno
import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import jax.numpy as jnp
import mrcfile
import numpy as np
import pytest
import tifffile

import jaxtomo as jt
from jaxtomo.data import Pose, Reconstruction
from jaxtomo.io import outgoing as outgoing_module
from jaxtomo.io.new_hdf5 import put_slab
from jaxtomo.io.reconstruction import read_reconstruction
from jaxtomo.io.write import write
from jaxtomo.series import TiltSeries

# mrcfile 1.5 itself, on NumPy 2.5
pytestmark = pytest.mark.filterwarnings("ignore:Setting the dtype on a NumPy array:DeprecationWarning")

write_module = importlib.import_module("jaxtomo.io.write")  # the package's attribute of that name is the function
try:
    import zarr
except ImportError:
    zarr: Any = None
needs_zarr = pytest.mark.skipif(zarr is None, reason="Zarr is not installed")
ZARR = pytest.param(".zarr", marks=needs_zarr)
SUFFIXES = [".mrc", ".h5", ".emd", ZARR, ".tif", ".npy"]
TILTS = np.array([-60.0, -33.25, 0.0, 10.5, 61.125])


def chiral_volume(shape=(5, 7, 9)):
    """No rotation, reflection or exchange of axes maps these values onto themselves."""
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def series(**changes):
    images = np.random.default_rng(4).normal(100, 5, (5, 6, 8)).astype(np.float32)
    return TiltSeries(images, TILTS, pixel_nm=0.75, source="made.mrc", provenance={"pixel_nm": "made"}).replace(
        **changes
    )


def reconstruction():
    pose = Pose.nominal(TILTS).replace(shift=jnp.arange(10.0).reshape(5, 2))
    return Reconstruction(
        chiral_volume(),
        pose,
        series(mask=np.ones((5, 6, 8), bool), exposure_order=np.array([2, 1, 0, 3, 4]), tilt_axis_deg=0.5),
        history={"misfit": np.array([3.0, 2.0, 1.0])},
        metrics={
            "held_out": 0.25,
            "fsc": {"frequency": np.arange(3.0), "threshold": 0.143},
            "verdict": "good",
            "n": None,
            "ragged": [[1], [2, 3]],
        },
        settings={"solver": "sirt", "steps": 3, "seed": np.int64(1)},
        message="finished",
    )


def digest(path):
    return {file: file.read_bytes() for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()}


def stored_volume(path):
    """The volume `[z, y, x]` as a program that knows nothing of jaxtomo reads it, and the voxel size it finds in nm."""
    match path.suffix:
        case ".mrc":
            with mrcfile.open(path) as file:
                return file.data.copy(), float(file.voxel_size.z) / 10
        case ".h5":
            with h5py.File(path) as file:
                return file["volume"][()], file["volume"].attrs.get("voxel_nm", 0)
        case ".emd":
            with h5py.File(path) as file:
                group = file["data/tomography"]
                assert [group[f"dim{i}"].attrs["name"] for i in (1, 2, 3)] == [b"x", b"y", b"z"]
                return group["data"][()].transpose(2, 1, 0), float(group["dim3"][1])
        case ".zarr":
            group = zarr.open_group(path, mode="r")
            multiscale = group.attrs["ome"]["multiscales"][0]
            assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
            return group["0"][...], multiscale["datasets"][0]["coordinateTransformations"][0]["scale"][0]
        case ".tif":
            with tifffile.TiffFile(path) as file:
                return file.asarray(), file.imagej_metadata["spacing"]
        case _:
            return np.load(path), None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_volume_reads_back_in_other_programs_with_its_axes_and_size(tmp_path, suffix):
    volume = chiral_volume()
    path = tmp_path / f"volume{suffix}"
    assert write(path, volume, voxel_nm=0.375) == path
    back, voxel_nm = stored_volume(path)
    np.testing.assert_array_equal(back, volume)
    assert back.dtype == np.float32
    assert voxel_nm is None or voxel_nm == pytest.approx(0.375)
    assert list(tmp_path.iterdir()) == [path]  # nothing else: no partial file, no angles


@pytest.mark.parametrize("suffix", SUFFIXES[:-1])
def test_a_volume_reads_back_through_jaxtomo(tmp_path, suffix):
    path = tmp_path / f"volume{suffix}"
    jt.write(path, chiral_volume(), voxel_nm=0.1)  # 1 Å, which in an MRC file often means "unknown"
    back, voxel_nm = jt.read_volume(path)
    np.testing.assert_array_equal(back, chiral_volume())
    assert voxel_nm == pytest.approx(0.1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_series_reads_back_through_jaxtomo(tmp_path, suffix):
    path = tmp_path / f"series{suffix}"
    jt.write(path, series())
    given = {".tif": {"tilt_axis": "y"}, ".npy": {"tilt_axis": "y", "pixel_nm": 0.75}}.get(suffix, {})
    back = jt.read(path, **given)
    np.testing.assert_array_equal(back.images, series().images)
    np.testing.assert_allclose(back.tilt_deg, TILTS, atol=1e-5)
    assert back.pixel_nm == pytest.approx(0.75) and back.tilt_axis_deg == 0


def test_mask_and_order_of_a_series_read_back(tmp_path):
    mask = np.random.default_rng(0).random((5, 6, 8)) > 0.5
    jt.write(tmp_path / "series.h5", series(mask=mask, exposure_order=np.array([4, 2, 0, 1, 3])))
    back = jt.read(tmp_path / "series.h5")
    np.testing.assert_array_equal(back.mask, mask)
    np.testing.assert_array_equal(back.exposure_order, [4, 2, 0, 1, 3])


@pytest.mark.parametrize("suffix", [".mrc", ".h5", ".emd", ZARR])
def test_the_angle_left_between_axis_and_y_reads_back(tmp_path, suffix):
    jt.write(tmp_path / f"series{suffix}", series(tilt_axis_deg=-1.75))
    assert jt.read(tmp_path / f"series{suffix}").tilt_axis_deg == pytest.approx(-1.75)


def test_mrc_is_valid_and_says_what_it_is(tmp_path):
    write(tmp_path / "volume.mrc", 1e4 + chiral_volume(), voxel_nm=0.5)
    write(tmp_path / "unknown.mrc", chiral_volume())
    write(tmp_path / "series.mrc", series())
    for name in ("volume.mrc", "unknown.mrc", "series.mrc"):
        with open(os.devnull, "w") as nowhere:
            assert mrcfile.validate(tmp_path / name, nowhere)
    with mrcfile.open(tmp_path / "volume.mrc") as file:
        assert file.is_volume() and file.header.mode == 2 and not file.header.nsymbt
        assert file.voxel_size.tolist() == pytest.approx((5.0, 5.0, 5.0))
        assert any("trimvol -rx" in label for label in file.get_labels())
    with mrcfile.open(tmp_path / "series.mrc") as file:
        assert file.is_image_stack()
        records = file.indexed_extended_header
        np.testing.assert_array_equal(records["Alpha tilt"], TILTS)
        np.testing.assert_array_equal(records["Tilt axis angle"], 0)
        np.testing.assert_allclose(records["Pixel size X"], 0.75e-9)
        np.testing.assert_allclose(records["Pixel size Y"], 0.75e-9)
        assert np.all(records["Metadata size"] == 768) and np.all(records["Bitmask 1"] & (1 << 7 | 1 << 12 | 1 << 14))
    np.testing.assert_allclose(np.loadtxt(tmp_path / "series.rawtlt"), TILTS)
    with mrcfile.open(tmp_path / "unknown.mrc") as file:
        assert file.voxel_size.tolist() == (0, 0, 0)


@pytest.mark.parametrize("suffix", [".rec", ".st", ".ali", ".mrcs", ".map", ".MRC"])
def test_the_other_names_of_mrc(tmp_path, suffix):
    write(tmp_path / f"volume{suffix}", chiral_volume())
    with mrcfile.open(tmp_path / f"volume{suffix}") as file:
        np.testing.assert_array_equal(file.data, chiral_volume())


# --- handedness: one bright point, seen by other programs' own equations


POINT = np.array([6.0, -4.0, 5.0])  # x, y, z from the centre, in voxels
N = 25


def blob(*centre):
    """An image or volume with a smooth spot at `centre`, counted from the centre of the array, last axis first."""
    axes = np.meshgrid(*[np.arange(N) - (N - 1) / 2] * len(centre), indexing="ij")
    return np.exp(-sum((axis - c) ** 2 for axis, c in zip(axes, centre[::-1], strict=True)) / 4).astype(np.float32)


def where(array):
    """The centre of the spot, from the centre of the array, in the order of the axes of `array`."""
    axes = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in array.shape], indexing="ij")
    return np.array([(axis * array).sum() / array.sum() for axis in axes])


def point_series():
    """The spot as the convention of `Pose` has it: u = x cos + z sin, v = y."""
    x, y, z = POINT
    theta = np.deg2rad(TILTS)
    images = [blob(u, y) for u in x * np.cos(theta) + z * np.sin(theta)]
    return TiltSeries(np.stack(images), TILTS, pixel_nm=1.0)


def test_the_spot_is_where_project_puts_it():
    images = jt.project(jnp.asarray(blob(*POINT)), Pose.nominal(TILTS))
    for image, expected in zip(images, point_series().images, strict=True):
        np.testing.assert_allclose(where(np.asarray(image)), where(expected), atol=0.05)


def test_handedness_agrees_with_imod(tmp_path):
    """IMOD's `tilt` puts slice row i of a tomogram at image x = x cos - i sin; `trimvol -rx` then makes z = -i."""
    write(tmp_path / "volume.mrc", blob(*POINT), voxel_nm=1)
    write(tmp_path / "series.mrc", point_series())
    with mrcfile.open(tmp_path / "volume.mrc") as volume, mrcfile.open(tmp_path / "series.mrc") as stack:
        z, y, x = where(volume.data)
        row = -z
        for image, tilt in zip(stack.data, np.deg2rad(np.loadtxt(tmp_path / "series.rawtlt")), strict=True):
            np.testing.assert_allclose(where(image), (y, x * np.cos(tilt) - row * np.sin(tilt)), atol=0.05)


def as_tomviz_reads(path):
    """What tomviz makes of an EMD file: an array `[x, y, z]`, or `[x, y, tilt]` with its angles in degrees."""
    with h5py.File(path) as file:
        assert file.attrs["version_major"].dtype == np.uint32
        group = file["data/tomography"]
        assert group.attrs["emd_group_type"] == 1 and group["data"].dtype == np.dtype("<f4")
        dims = [group[f"dim{number}"] for number in (1, 2, 3)]
        assert all(dim.dtype == np.dtype("<f4") and dim.ndim == 1 for dim in dims)
        assert [dim.size for dim in dims] == list(group["data"].shape)
        data = group["data"][()]
        if dims[0].attrs["units"] == b"[deg]":
            assert dims[0].attrs["name"] == b"angles"
            return data.transpose(2, 1, 0), dims[0][()]
        assert dims[0].attrs["units"] == b"[n_m]"
        return data, None


def test_handedness_agrees_with_tomviz(tmp_path):
    """tomviz tilts about its x; its "Generate Tilt Series" puts (y, z) at image y = y cos - z sin."""
    write(tmp_path / "volume.emd", blob(*POINT), voxel_nm=1)
    write(tmp_path / "series.emd", point_series())
    volume, _ = as_tomviz_reads(tmp_path / "volume.emd")
    images, angles = as_tomviz_reads(tmp_path / "series.emd")
    np.testing.assert_allclose(angles, TILTS)
    x, y, z = where(volume)
    np.testing.assert_allclose((x, y, z), POINT, atol=0.01)
    x, y = y, -x  # a quarter turn of the specimen about the beam brings its tilt axis to tomviz's; no mirror
    for number, tilt in enumerate(np.deg2rad(angles)):
        np.testing.assert_allclose(where(images[:, :, number]), (x, y * np.cos(tilt) - z * np.sin(tilt)), atol=0.05)


# --- jaxtomo's own HDF5 file


def test_a_reconstruction_reads_back_whole(tmp_path):
    result = reconstruction()
    write(tmp_path / "result.h5", result)
    back = read_reconstruction(tmp_path / "result.h5")
    np.testing.assert_array_equal(back.volume, result.volume)
    np.testing.assert_array_equal(back.pose.tilt, result.pose.tilt)
    np.testing.assert_array_equal(back.pose.shift, result.pose.shift)
    assert back.pose.rotation is None and back.message == "finished" and back.voxel_nm == 0.75
    assert back.settings == {"solver": "sirt", "steps": 3, "seed": 1}
    np.testing.assert_array_equal(back.history["misfit"], [3, 2, 1])
    assert back.metrics["held_out"] == 0.25 and back.metrics["verdict"] == "good" and back.metrics["n"] is None
    assert back.metrics["ragged"] == [[1], [2, 3]]
    np.testing.assert_array_equal(back.metrics["fsc"]["frequency"], [0, 1, 2])
    for name in ("images", "tilt_deg", "mask", "exposure_order"):
        np.testing.assert_array_equal(getattr(back.series, name), getattr(result.series, name))
    for name in ("pixel_nm", "tilt_axis_deg", "source", "provenance"):
        assert getattr(back.series, name) == getattr(result.series, name)
    volume, voxel_nm = jt.read_volume(tmp_path / "result.h5")
    np.testing.assert_array_equal(volume, result.volume)
    assert voxel_nm == 0.75


def test_a_reconstruction_without_series_or_size(tmp_path):
    write(tmp_path / "result.h5", reconstruction().replace(series=None))
    back = read_reconstruction(tmp_path / "result.h5")
    assert back.series is None and back.voxel_nm is None
    assert jt.read_volume(tmp_path / "result.h5")[1] is None


def test_slabs_of_an_hdf5_volume_are_chunks_of_their_own(tmp_path):
    write(tmp_path / "volume.h5", np.zeros((40, 50, 300), np.float32))
    with h5py.File(tmp_path / "volume.h5") as file:
        assert file["volume"].compression == "gzip"
        assert all(n <= most for n, most in zip(file["volume"].chunks, (16, 16, 256), strict=True))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cannot be read"),
        (lambda path: write(path, chiral_volume()), "not a reconstruction"),
        (lambda path: path.unlink(), "no such file"),
    ],
)
def test_what_is_no_reconstruction(tmp_path, damage, says):
    path = tmp_path / "result.h5"
    write(path, reconstruction())
    damage(path)
    with pytest.raises(jt.InputError, match=f"result.h5.*{says}"):
        read_reconstruction(path)


@pytest.mark.parametrize("suffix", [".mrc", ".emd", ZARR, ".tif", ".npy"])
def test_the_volume_of_a_reconstruction_in_other_formats(tmp_path, suffix):
    write(tmp_path / f"volume{suffix}", reconstruction())
    volume, voxel_nm = stored_volume(tmp_path / f"volume{suffix}")
    np.testing.assert_array_equal(volume, chiral_volume())
    assert voxel_nm is None or voxel_nm == pytest.approx(0.75)
    if suffix == ".mrc":
        np.testing.assert_allclose(np.loadtxt(tmp_path / "volume.rawtlt"), TILTS, atol=1e-4)


# --- OME-Zarr and TIFF


@needs_zarr
def test_the_pyramid_of_an_ome_zarr(tmp_path):
    volume = np.random.default_rng(0).normal(size=(67, 130, 33)).astype(np.float32)
    write(tmp_path / "volume.zarr", volume, voxel_nm=2)
    group = zarr.open_group(tmp_path / "volume.zarr", mode="r")
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    assert all(axis["type"] == "space" and axis["unit"] == "nanometer" for axis in ome["multiscales"][0]["axes"])
    datasets = ome["multiscales"][0]["datasets"]
    assert [group[level["path"]].shape for level in datasets] == [(67, 130, 33), (34, 65, 17), (17, 33, 9)]
    even = volume[:66, :, :32].reshape(33, 2, 65, 2, 16, 2).mean((1, 3, 5))
    np.testing.assert_allclose(group["1"][:33, :, :16], even, atol=1e-6)
    np.testing.assert_allclose(group["1"][33, :, 16], volume[66, :, 32].reshape(65, 2).mean(1), atol=1e-6)
    for number, level in enumerate(datasets):
        scale, translation = level["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [2.0 * 2**number] * 3}
        assert translation == {"type": "translation", "translation": [2.0**number - 1.0] * 3}


@needs_zarr
def test_a_series_as_ome_zarr_keeps_every_image(tmp_path):
    images = np.random.default_rng(0).normal(size=(5, 70, 90)).astype(np.float32)
    write(tmp_path / "series.zarr", series(images=images))
    group = zarr.open_group(tmp_path / "series.zarr", mode="r")
    assert group["1"].shape == (5, 35, 45)
    assert group.attrs["jaxtomo"]["tilt_deg"] == TILTS.tolist()
    scale = group.attrs["ome"]["multiscales"][0]["datasets"][1]["coordinateTransformations"][0]["scale"]
    assert scale == [1.0, 1.5, 1.5]


def test_without_zarr_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(jt.InputError, match=r'pip install "jaxtomo\[zarr\]"'):
        write(tmp_path / "volume.zarr", chiral_volume())
    monkeypatch.setitem(sys.modules, "zarr", SimpleNamespace(__version__="2.18.0"))
    with pytest.raises(jt.InputError, match=r"zarr 2\.18\.0 is too old"):
        write(tmp_path / "volume.zarr", chiral_volume())
    assert list(tmp_path.iterdir()) == []


def test_tiff_is_a_calibrated_stack_of_imagej(tmp_path):
    write(tmp_path / "volume.tif", chiral_volume(), voxel_nm=0.34)
    with tifffile.TiffFile(tmp_path / "volume.tif") as file:
        assert file.is_imagej and file.imagej_metadata["unit"] == "nm" and file.imagej_metadata["slices"] == 5
        across, pixels = file.pages[0].tags["XResolution"].value
        assert pixels / across == pytest.approx(0.34)


def test_tiff_over_4_gib_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(write_module, "require_space", lambda *_: None)
    with pytest.raises(jt.InputError, match=r"big.tif: .*4 GiB.*4\.3 GB.*\.mrc, \.h5 or \.zarr"):
        write(tmp_path / "big.tif", np.broadcast_to(np.float32(0), (1 << 10, 1 << 10, 1 << 10)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_channels(tmp_path, suffix):
    channels = chiral_volume((2, 5, 7, 9))
    path = tmp_path / f"channels{suffix}"
    if suffix in (".mrc", ".emd", ".tif"):
        with pytest.raises(jt.InputError, match=r"one channel and the array has 2.*\.h5, \.zarr or \.npy"):
            write(path, channels)
        return
    write(path, channels)
    back = {".h5": lambda: h5py.File(path)["volume"][()], ".zarr": lambda: zarr.open_group(path)["0"][...]}
    np.testing.assert_array_equal(back.get(suffix, lambda: np.load(path))(), channels)


# --- arrays of every kind, larger than memory


class Lazy:
    """An array that exists only a slab at a time, and remembers the thickest one it was asked for."""

    shape, dtype = (50, 20, 30), np.dtype(np.float64)

    def __init__(self, stops=None):
        self.thickest, self.stops = 0, stops

    def __getitem__(self, index):
        sections = index[0]
        self.thickest = max(self.thickest, sections.stop - sections.start)
        if self.stops is not None and sections.start > 0:
            raise self.stops
        return np.broadcast_to(np.arange(50.0)[sections, None, None], (sections.stop - sections.start, 20, 30))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_volume_larger_than_memory_is_read_by_slabs(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(outgoing_module, "SLAB_BYTES", 4 * 20 * 30 * 3)
    monkeypatch.setattr(outgoing_module, "MOST_BYTES", 4 * 20 * 30 * 8)
    volume = Lazy()
    write(tmp_path / f"volume{suffix}", volume, voxel_nm=1)
    assert volume.thickest <= 8
    np.testing.assert_array_equal(stored_volume(tmp_path / f"volume{suffix}")[0], np.asarray(volume[slice(0, 50),]))


@pytest.mark.parametrize(
    "kind",
    ["memmap", "big-endian", "h5py", pytest.param("zarr", marks=needs_zarr), "jax", "list", "int16", "bool", "fortran"],
)
def test_any_array_will_do(tmp_path, kind):
    volume = chiral_volume()
    if kind in ("int16", "bool"):
        volume = (100 * volume).astype(np.int16) if kind == "int16" else volume > 0
    np.save(tmp_path / "source.npy", volume)
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file["volume"] = volume
        thing = {
            "memmap": lambda: np.load(tmp_path / "source.npy", mmap_mode="r"),
            "big-endian": lambda: volume.astype(">f8"),
            "h5py": lambda: file["volume"],
            "zarr": lambda: zarr.array(volume),
            "jax": lambda: jnp.asarray(volume),
            "list": volume.tolist,
            "fortran": lambda: np.asfortranarray(volume),
        }.get(kind, lambda: volume)()
        write(tmp_path / "volume.mrc", thing, voxel_nm=1)
    np.testing.assert_array_equal(stored_volume(tmp_path / "volume.mrc")[0], volume)


def test_a_file_may_be_rewritten_from_itself(tmp_path):
    path = tmp_path / "volume.npy"
    np.save(path, chiral_volume())
    write(path, np.load(path, mmap_mode="r")[::-1])
    np.testing.assert_array_equal(np.load(path), chiral_volume()[::-1])


# --- what is refused


@pytest.mark.parametrize("name", ["volume", "volume.raw", "volume.mrc.gz", "volume.ome.tif", "volume.dm3"])
def test_an_unknown_suffix_lists_those_known(tmp_path, name):
    with pytest.raises(jt.InputError, match=r"suffix.*\.mrc.*\.h5.*\.emd.*\.zarr.*\.tif.*\.npy"):
        write(tmp_path / name, chiral_volume())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (np.where(np.arange(315).reshape(5, 7, 9) % 100 == 7, np.nan, 1), "4 of 315 values are NaN"),
        (np.full((1, 2, 3), -np.inf), "6 of 6 values"),
        (np.full((1, 2, 3), 1e60), "too large for float32"),
        (np.zeros((2, 2, 2), complex), "complex128.*real numbers"),
        (np.array([[["a"]]]), "real numbers"),
        (np.zeros((0, 4, 4)), r"\(0, 4, 4\) is no volume"),
        (np.zeros((4, 4)), r"\(4, 4\) is no volume"),
        (None, "real numbers|no volume"),
    ],
)
def test_what_is_no_finite_volume_is_refused(tmp_path, thing, says):
    for suffix in (".mrc", ".h5", ".emd", ".tif", ".npy"):
        with pytest.raises(jt.InputError, match=f"volume{suffix}: not written.*{says}"):
            write(tmp_path / f"volume{suffix}", thing)
    assert list(tmp_path.iterdir()) == []


def test_a_series_that_is_not_finite_names_its_cure(tmp_path):
    images = series().images.copy()
    images[1, 2, 3] = np.nan
    with pytest.raises(jt.InputError, match=r"1 of 240 values.*fill_nan=True"):
        write(tmp_path / "series.mrc", series(images=images))
    assert list(tmp_path.iterdir()) == []  # neither images nor angles


@pytest.mark.parametrize("voxel_nm", [0.0, -1.0, np.nan, np.inf])
def test_a_voxel_size_that_makes_no_sense(tmp_path, voxel_nm):
    with pytest.raises(jt.InputError, match=r"voxel size of .* nm makes no sense"):
        write(tmp_path / "volume.mrc", chiral_volume(), voxel_nm=voxel_nm)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_place_that_cannot_be_written_to(tmp_path, suffix):
    with pytest.raises(jt.InputError, match=r"there is no folder .*nowhere\. Make it"):
        write(tmp_path / f"nowhere/volume{suffix}", chiral_volume())
    (tmp_path / "file").write_text("x")
    with pytest.raises(jt.InputError, match=r"there is no folder"):
        write(tmp_path / f"file/volume{suffix}", chiral_volume())
    taken = tmp_path / f"taken{suffix}"
    taken.mkdir()
    (taken / "precious.txt").write_text("mine")
    with pytest.raises(jt.InputError, match=r"folder of that name|no Zarr folder"):
        write(taken, chiral_volume())
    with pytest.raises(jt.InputError, match="name is too long"):
        write(tmp_path / ("n" * 300 + suffix), chiral_volume())
    assert (taken / "precious.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_a_read_only_folder(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write anywhere")
    for suffix in (".mrc", ".h5", ".emd", ".tif", ".npy"):
        with pytest.raises(jt.InputError, match=rf"volume{suffix}: not written, no permission to write in .*locked"):
            write(folder / f"volume{suffix}", chiral_volume())


# --- whole or not at all


def fails(monkeypatch, error):
    """The disk, or the user, stops the second slab of every array."""
    monkeypatch.setattr(outgoing_module, "SLAB_BYTES", 1)
    monkeypatch.setattr(outgoing_module, "MOST_BYTES", 1)
    slabs = outgoing_module.Outgoing.slabs

    def broken(self, *multiple):
        for number, slab in enumerate(slabs(self, *multiple)):
            if number:
                raise error
            yield slab

    monkeypatch.setattr(outgoing_module.Outgoing, "slabs", broken)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left.*Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left.*quota"),
        (OSError("1000 requested and 0 written"), "no space left"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission to write in"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error.*Check the disk"),
        (KeyboardInterrupt(), None),
        (MemoryError(), None),
    ],
)
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, suffix, error, says):
    path = tmp_path / f"series{suffix}"
    write(path, series())
    before, listing = digest(path), sorted(tmp_path.iterdir())
    angles = path.with_suffix(".rawtlt")
    old_angles = angles.read_bytes() if angles.exists() else None
    fails(monkeypatch, error)
    with pytest.raises(
        type(error) if says is None else jt.InputError, match=says and f"series{suffix}: not written.*{says}"
    ):
        write(path, series(tilt_deg=TILTS + 1))
    assert digest(path) == before and sorted(tmp_path.iterdir()) == listing
    assert old_angles is None or angles.read_bytes() == old_angles


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_source_that_cannot_be_read_is_not_blamed_on_the_disk(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(outgoing_module, "SLAB_BYTES", 1)
    monkeypatch.setattr(outgoing_module, "MOST_BYTES", 1)
    with pytest.raises(jt.InputError, match="its data could not be read: truncated"):
        write(tmp_path / f"volume{suffix}", Lazy(OSError("truncated")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_old_file_is_replaced_whole(tmp_path, suffix):
    path = tmp_path / f"volume{suffix}"
    write(path, np.ones((70, 80, 90)), voxel_nm=1)
    write(path, chiral_volume(), voxel_nm=1)
    np.testing.assert_array_equal(stored_volume(path)[0], chiral_volume())
    assert list(tmp_path.iterdir()) == [path]
    if suffix == ".zarr":
        assert sorted(zarr.open_group(path, mode="r").array_keys()) == ["0"]  # no level of the old pyramid


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk/volume.mrc"
    target.write_bytes(b"old")
    link = tmp_path / "volume.mrc"
    link.symlink_to(target)
    write(link, chiral_volume())
    assert link.is_symlink() and target.stat().st_size > 1024
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["disk", "volume.mrc", "volume.mrc"]


@pytest.mark.parametrize("suffix", [".mrc", ".emd", ".tif", ".npy"])
def test_a_disk_known_to_be_too_small_is_named_before_writing(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(jt.InputError, match=r"needs 0\.0 MB, and the disk that holds .* has 0\.0 MB free"):
        write(tmp_path / f"volume{suffix}", chiral_volume())
    assert list(tmp_path.iterdir()) == []


WRITE_ALL = """
import importlib, os, sys, warnings
import numpy as np
from jaxtomo import InputError
module = importlib.import_module("jaxtomo.io.write")
module.require_space = lambda *_: None  # what is tested is a disk that fills while it is written to
warnings.simplefilter("error")
folder, says = sys.argv[1:]
volume = np.random.default_rng(0).normal(size=(64, 250, 300)).astype(np.float32)
for suffix in (".mrc", ".h5", ".emd", ".zarr", ".tif", ".npy"):
    try:
        module.write(f"{folder}/volume{suffix}", volume)
        print(suffix, "written")
    except InputError as error:
        print(suffix, says in str(error), os.listdir(folder))
"""


@needs_zarr
@pytest.mark.parametrize(
    ("mount", "says"),
    [("mount -t tmpfs -o size=16m", "no space left"), ("mount -t tmpfs -o ro", "no permission to write in")],
)
def test_a_real_disk_that_fills_or_is_read_only(tmp_path, mount, says):
    """HDF5 and Zarr write from caches and threads of their own, so a patched function is no test of them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "write_all.py").write_text(WRITE_ALL)
    private = ["unshare", "-rm", "sh", "-c"]  # the small disk is seen by this process alone
    if not shutil.which("unshare") or subprocess.run([*private, f"{mount} x {disk}"], capture_output=True).returncode:
        pytest.skip("this system does not let a user mount a small disk")
    command = f"{mount} x {disk} && exec {sys.executable} {tmp_path}/write_all.py {disk} '{says}'"
    env = {**os.environ, "PYTHONPATH": str(Path(jt.__file__).parents[1])}
    done = subprocess.run([*private, command], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.splitlines() == [
        f"{suffix} True []" for suffix in (".mrc", ".h5", ".emd", ".zarr", ".tif", ".npy")
    ]


def test_ctrl_c_stops_an_hdf5_file_between_slabs():
    class Dataset:
        done = False

        def __setitem__(self, index, block):
            signal.raise_signal(signal.SIGINT)
            self.done = True

    dataset, usual = Dataset(), signal.default_int_handler
    before = signal.signal(signal.SIGINT, usual)  # tests that run in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            put_slab(dataset, (slice(0, 1),), np.zeros((1, 1, 1)))
        assert dataset.done and signal.getsignal(signal.SIGINT) is usual
    finally:
        signal.signal(signal.SIGINT, before)


def test_writing_starts_neither_jax_nor_the_libraries_of_other_formats(tmp_path):
    code = (
        "import sys, numpy as np, jaxtomo as jt\n"
        f"jt.write({str(tmp_path / 'series.mrc')!r}, jt.TiltSeries(np.ones((2, 3, 4), np.float32), [0, 1]))\n"
        "print([name for name in ('jax', 'scipy', 'matplotlib', 'zarr', 'tifffile') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(jt.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "[]", done.stderr
