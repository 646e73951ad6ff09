"""Bad input: each is an error that names the file, the fact and the cure. Damaged bytes never do anything worse."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from microscope_files import ANGLES, NM, dxchange, mdoc, mrc, specimen
from test_read_formats import COMPLETE

from jaxtomo import io
from jaxtomo.errors import DoesNotFitError, InputError
from jaxtomo.io import reading
from jaxtomo.io.repair import fill_with_neighbours

IMAGES = specimen()
GIVEN = {"angles": ANGLES, "tilt_axis": "y", "pixel_nm": NM}


def refused(path, match: str, **given) -> str:
    """The message of the InputError that reading raises; it names the file and a cure."""
    with pytest.raises(InputError, match=match) as caught:
        io.read(path, **given)
    message = str(caught.value)
    assert Path(path).name in message and message.endswith((".", "?", ")")) and len(message) < 900
    return message


@pytest.mark.parametrize(
    ("angles", "match"),
    [
        (None, r"no tilt angles in it or beside it \(looked for x.rawtlt, x.tlt, x.mdoc, x.csv\).*--angles"),
        (ANGLES[:6], r"7 images but 6 angles in the numbers given.*skip=\[6\]"),
        ("-60:60:10", "7 images but 13 angles in the range -60:60:10 given"),
        (np.full(7, 3.0), "all 7 angles .* are 3 degrees"),
        ([0, 1, 2, np.nan, 4, 5, 6], "1 of 7 angles .* not finite"),
        (np.arange(7) * 100.0, "angles from 0 to 600 degrees"),
    ],
)
def test_angles_that_cannot_be(tmp_path, angles, match):
    refused(mrc(tmp_path / "x.mrc", IMAGES), match, **{**GIVEN, "angles": angles})


@pytest.mark.parametrize("angles", [np.deg2rad(np.arange(-60, 61, 10)), np.deg2rad(np.arange(0, 180, 15))])
def test_radians_by_mistake(tmp_path, angles):
    path = mrc(tmp_path / "x.mrc", specimen(len(angles)))
    refused(path, r"look like radians. Give them in degrees", **{**GIVEN, "angles": angles})
    assert io.read(path, **{**GIVEN, "angles": np.rad2deg(angles)}).tilt_deg.size == len(angles)
    assert io.inspect(dxchange(tmp_path / "x.h5", specimen(len(angles)), angles))["problems"]


def test_a_small_range_of_degrees_is_none(tmp_path):
    angles = np.arange(-4, 4.1, 0.5)
    assert io.read(mrc(tmp_path / "x.mrc", specimen(17)), **{**GIVEN, "angles": angles}).tilt_deg[0] == -4


def test_all_lacks_are_named_at_once(tmp_path):
    message = refused(mrc(tmp_path / "x.mrc", IMAGES, pixel_nm=0), "no tilt angles.*pixel size.*tilt axis")
    assert "Hint: the mass profile" in message and "suggests y" in message
    found = io.inspect(tmp_path / "x.mrc")
    assert len(found["problems"]) == 3 and all(p["cure"].startswith(("Give", "Say")) for p in found["problems"])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"tilt_axis": "z"}, "neither x, y nor degrees"),
        ({"tilt_axis": float("nan")}, "not a finite angle"),
        ({"pixel_nm": -1}, "not a positive size"),
        ({"pixel_nm": "big"}, "not a number"),
        ({"angles": "nowhere.rawtlt"}, "nowhere.rawtlt: there is no such file"),
        ({"angles": {"a": 1}}, "not numbers in degrees"),
        ({"skip": [7]}, "images are numbered 0 to 6"),
        ({"skip": "first"}, "not image numbers"),
        ({"rows": slice(5, 5)}, "rows 5 to 5 of 12 hold nothing"),
        ({"rows": slice(0, 9, 2)}, "hold nothing|step"),
        ({"rows": 3}, "not a slice"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path, given, match):
    with pytest.raises(InputError, match=match):
        io.read(mrc(tmp_path / "x.mrc", IMAGES), **{**GIVEN, **given})


def test_skip_fits_lists_with_and_without_the_skipped_image(tmp_path):
    path = mrc(tmp_path / "x.mrc", IMAGES)
    for angles in (ANGLES, np.delete(ANGLES, 2)):
        series = io.read(path, **{**GIVEN, "angles": angles}, skip=[2])
        np.testing.assert_array_equal(series.tilt_deg, np.delete(ANGLES, 2))
        np.testing.assert_array_equal(series.images, np.delete(IMAGES, 2, axis=0))
        assert "Left out with skip: [2]" in series.provenance["images"]


def test_pixels_that_are_no_numbers_are_counted_and_repaired(tmp_path):
    images = IMAGES.copy()
    images[2, 3:5, 4], images[5, 0, 0] = np.nan, np.inf
    path = mrc(tmp_path / "x.mrc", images)
    refused(
        path, r"3 of 840 pixels in 2 images are NaN or infinite. Repair them with fill_nan=True \(--fill-nan\)", **GIVEN
    )
    series = io.read(path, fill_nan=True, **GIVEN)
    assert np.isfinite(series.images).all() and np.count_nonzero(~series.mask) == 3
    np.testing.assert_array_equal(series.images[series.mask], IMAGES[series.mask])
    assert series.images[5, 0, 0] == np.median([IMAGES[5, 0, 1], IMAGES[5, 1, 0], IMAGES[5, 1, 1]])
    assert "3 of 840" in series.provenance["images"]
    images[4] = np.nan
    refused(
        mrc(tmp_path / "x.mrc", images), r"image 4 has no finite pixel. Drop it with skip=\[4\]", fill_nan=True, **GIVEN
    )


@settings(max_examples=30, deadline=2000, derandomize=True)
@given(st.integers(2, 9), st.integers(2, 9), st.data())
def test_repair_stays_between_its_neighbours(ny, nx, data):
    image = np.arange(ny * nx, dtype=np.float32).reshape(ny, nx)
    bad = np.array(data.draw(st.lists(st.booleans(), min_size=ny * nx, max_size=ny * nx))).reshape(ny, nx)
    filled = fill_with_neighbours(np.where(bad, np.nan, image).astype(np.float32), bad)
    if not bad.all():
        assert np.isfinite(filled).all() and np.array_equal(filled[~bad], image[~bad])
        assert filled.min() >= image[~bad].min() and filled.max() <= image[~bad].max()


def test_images_without_content(tmp_path):
    refused(mrc(tmp_path / "a.mrc", np.full((7, 4, 4), 5.0)), "all 7 images are equal, and every pixel is 5", **GIVEN)
    refused(mrc(tmp_path / "b.mrc", np.repeat(IMAGES[:1], 7, axis=0)), "all 7 images are equal, so nothing", **GIVEN)
    refused(mrc(tmp_path / "c.mrc", IMAGES[:1]), "one image only", **{**GIVEN, "angles": [0]})
    np.save(tmp_path / "d.npy", IMAGES[0])
    refused(tmp_path / "d.npy", r"shape \(12, 10\), not \[tilt, y, x\]", **GIVEN)
    np.save(tmp_path / "e.npy", IMAGES + 1j)
    refused(tmp_path / "e.npy", "complex64, not real numbers", **GIVEN)


def test_files_that_are_not_what_they_say(tmp_path):
    for name, data, match in [
        ("empty.mrc", b"", r"is empty \(0 bytes\)"),
        ("short.mrc", b"\1\0\0\0" * 9, "less than an MRC header"),
        ("text.mrc", b"-60\n-58\n" * 200, "MRC header is damaged|is a text file"),
        ("text.tif", b"-60\n-58\n", "is a text file, not images"),
        ("packed.mrc", b"\x1f\x8b\x08" + bytes(2000), "is a gzip archive.*gunzip"),
        ("picture.tif", b"\x89PNG\r\n\x1a\n" + bytes(2000), "is a PNG picture"),
        ("page.h5", b"<html>" + b" " * 2000, "XML or HTML"),
        ("noise.h5", bytes(range(256)) * 8, "is not a HDF5 file, whatever its name says"),
        ("x.abc", bytes(range(255, -1, -1)) * 8, "is of no known format"),
    ]:
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, match, **GIVEN)


def test_paths_that_are_not_there(tmp_path):
    mrc(tmp_path / "needle.mrc", IMAGES)
    refused(tmp_path / "nedle.mrc", r"there is no such file. Did you mean needle.mrc\?", **GIVEN)
    refused(tmp_path / "folder" / "needle.mrc", "there is no such file. Check the path", **GIVEN)
    refused(tmp_path / "*.tiff", "no kinds of numbered images", **GIVEN)
    refused(tmp_path, "no kinds of numbered images", **GIVEN)
    with pytest.raises(InputError, match="is no path"):
        io.read("")


def test_no_permission(tmp_path, monkeypatch):
    path = mrc(tmp_path / "x.mrc", IMAGES)
    if os.geteuid():
        path.chmod(0)
    else:  # root may read everything
        real = Path.open

        def closed(self, *args, **more):
            if self.suffix == ".mrc":
                raise PermissionError(13, "Permission denied", str(self))
            return real(self, *args, **more)

        monkeypatch.setattr(Path, "open", closed)
    refused(path, "no permission to read it.*chmod", **GIVEN)


def test_unreadable_side_files_are_errors_too(tmp_path):
    path = mrc(tmp_path / "x.mrc", IMAGES)
    (tmp_path / "x.rawtlt").write_bytes(b"\0\1\2" * 50)
    with pytest.raises(InputError, match=r"x.rawtlt: is a binary file.*Or give angles="):
        io.read(path)
    assert io.read(path, **GIVEN).tilt_deg[0] == -60  # not needed, so no obstacle
    (tmp_path / "x.rawtlt").unlink()
    mdoc(tmp_path / "x.mdoc", ANGLES).write_text("[ZValue = 0]\nTiltAngle = 1\n[ZValue = 5]\nTiltAngle = 2\n")
    with pytest.raises(InputError, match=r"x.mdoc: its blocks are numbered"):
        io.read(path)


def test_too_large_for_memory_names_a_slab_that_fits(tmp_path, monkeypatch):
    path = mrc(tmp_path / "x.mrc", IMAGES)
    monkeypatch.setattr(reading, "_free_memory", lambda: 1000)
    with pytest.raises(DoesNotFitError, match=r"x.mrc: \(7, 12, 10\) as float32 needs .* rows=slice\(0, 1\)"):
        io.read(path, **GIVEN)
    assert io.read(path, rows=slice(0, 1), **GIVEN).images.shape == (7, 1, 10)


def test_headers_that_promise_more_than_the_file_holds(tmp_path):
    data = bytearray(mrc(tmp_path / "x.mrc", IMAGES).read_bytes())
    for at, value in ((0, 2**19), (4, 2**19), (8, 2**19)):
        damaged = bytearray(data)
        damaged[at : at + 4] = value.to_bytes(4, "little")
        (tmp_path / "x.mrc").write_bytes(damaged)
        refused(tmp_path / "x.mrc", "truncated: its header promises", **GIVEN)
    (tmp_path / "x.mrc").write_bytes(data[:-100])
    refused(tmp_path / "x.mrc", "6 whole images. Copy it again", **GIVEN)
    np.save(tmp_path / "x.npy", IMAGES)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-4])
    refused(tmp_path / "x.npy", "needs 3360 bytes, the file holds 3356", **GIVEN)
    tifffile.imwrite(tmp_path / "x.tif", IMAGES)
    (tmp_path / "x.tif").write_bytes((tmp_path / "x.tif").read_bytes()[:2000])
    refused(tmp_path / "x.tif", "cannot be read as a TIFF file|holds", **GIVEN)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> dict[str, tuple[str, bytes, dict]]:
    """Name, bytes and arguments of one good file of every format."""
    files = {}
    for case, (make, needed) in COMPLETE.items():
        path = make(tmp_path_factory.mktemp("whole"))
        files[case] = (path.name, path.read_bytes(), needed)
    folder = tmp_path_factory.mktemp("mrc")
    for dialect in ("plain", "FEI2003", "FEI1", "FEI2", "SERI"):
        path = mrc(folder / "x.mrc", IMAGES, dialect=dialect, angles=ANGLES, axis=3.0, records=9)
        files[dialect] = ("x.mrc", path.read_bytes(), GIVEN if dialect == "plain" else {"tilt_axis": "y"})
    tifffile.imwrite(folder / "x.tif", IMAGES)
    files["tiff"] = ("x.tif", (folder / "x.tif").read_bytes(), GIVEN)
    tifffile.imwrite(folder / "x.tif", IMAGES, compression="zlib")
    files["tiff zlib"] = ("x.tif", (folder / "x.tif").read_bytes(), GIVEN)
    np.save(folder / "x.npy", IMAGES)
    files["npy"] = ("x.npy", (folder / "x.npy").read_bytes(), GIVEN)
    return files


def reads_or_refuses(path: Path, needed: dict) -> None:
    """Any outcome but a series, a description, or one of jaxtomo's own errors fails the test."""
    for attempt in (
        lambda: io.inspect(path),
        lambda: io.read(path, **needed),
        lambda: io.read_volume(path, slice(1, 4)),
    ):
        try:
            attempt()
        except (InputError, DoesNotFitError) as error:
            assert path.name in str(error)


@pytest.mark.parametrize("case", [*COMPLETE, "plain", "FEI2003", "FEI1", "FEI2", "SERI", "tiff", "tiff zlib", "npy"])
@settings(
    max_examples=12, deadline=10_000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_files_of_every_format(whole_files, tmp_path, case, data):
    name, whole, needed = whole_files[case]
    (tmp_path / name).write_bytes(damaged(data, whole))
    reads_or_refuses(tmp_path / name, needed)


@pytest.mark.parametrize("name", ["needle_fei2003.mrc", "needle_fei2003.rawtlt", "needle_xplore_log.txt"])
@settings(
    max_examples=8, deadline=20_000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_copies_of_the_needle(shared, tmp_path, name, data):
    for other in (shared / "formats").iterdir():
        shutil.copy(other, tmp_path)
    (tmp_path / name).chmod(0o644)
    (tmp_path / name).write_bytes(damaged(data, (shared / "formats" / name).read_bytes()))
    try:
        io.inspect(tmp_path / "needle_fei2003.mrc")
        io.read(tmp_path / "needle_fei2003.mrc", rows=slice(100, 110))
    except InputError as error:
        assert "needle" in str(error)


def damaged(data, whole: bytes) -> bytes:
    """A truncated or bit-flipped copy; flips favour the beginning, where headers are."""
    if data.draw(st.booleans(), label="truncate"):
        return whole[: data.draw(st.integers(0, len(whole) - 1), label="length")]
    copy = bytearray(whole)
    reach = data.draw(st.sampled_from([64, 300, 1100, len(whole)]), label="reach")
    for at in data.draw(st.lists(st.integers(0, min(reach, len(whole)) - 1), min_size=1, max_size=6), label="at"):
        copy[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    return bytes(copy)
