"""MRC stacks in their five dialects, .mdoc, and the real needle as the microscope wrote it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from microscope_files import ANGLES, NM, mdoc, mrc, specimen

from jaxtomo import io
from jaxtomo.errors import InputError
from jaxtomo.io.mass_hint import mass_variation

IMAGES = specimen()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dialect", ["FEI2003", "FEI1", "FEI2", "SERI"])
def test_each_dialect_states_angles_pixel_and_axis(tmp_path, dialect, order):
    labels = ("    Tilt axis angle = 12.0, binning = 2",) if dialect == "SERI" else ()
    mrc(
        tmp_path / "x.mrc", IMAGES, dialect=dialect, order=order, angles=ANGLES, axis=12.0, labels=labels, records=9,
        cell_nm=0.1 if dialect == "FEI2003" else None,
    )  # fmt: skip
    series = io.read(tmp_path / "x.mrc")
    np.testing.assert_array_equal(series.images, IMAGES)
    assert series.images.dtype == np.float32
    np.testing.assert_allclose(series.tilt_deg, ANGLES, atol=1e-5)
    assert series.pixel_nm == pytest.approx(NM, rel=1e-5)
    assert series.tilt_axis_deg == pytest.approx(12.0)
    assert series.source.endswith("x.mrc")
    assert {"images", "tilt_deg", "pixel_nm", "tilt_axis"} <= set(series.provenance)
    assert dialect.replace("FEI2003", "FEI 2003") in series.provenance["images"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("mode", "scale"), [(0, 1), (1, 100), (2, 1), (6, 500), (12, 1)])
def test_modes_and_byte_orders(tmp_path, mode, scale, order):
    images = np.round(IMAGES / 4) * scale
    mrc(tmp_path / "x.mrc", images, mode=mode, order=order)
    series = io.read(tmp_path / "x.mrc", angles=ANGLES, tilt_axis="y")
    np.testing.assert_array_equal(series.images, images)


@pytest.mark.parametrize(
    ("flags", "dmax", "stamp", "top"), [(1, 0, True, -56), (0, 0, True, 200), (0, 200, False, 200)]
)
def test_bytes_are_signed_as_the_header_says(tmp_path, flags, dmax, stamp, top):
    images = np.full((2, 3, 4), 200, np.uint8)
    images[0] = 7
    mrc(tmp_path / "x.mrc", images, mode=0, stamp=stamp, flags=flags, dmax=dmax)
    series = io.read(tmp_path / "x.mrc", angles=[0, 10], tilt_axis="y")
    assert {series.images.min(), series.images.max()} == {7, top} and "igned" in series.provenance["images"]


def test_int16_with_a_large_offset_is_kept(tmp_path):
    images = IMAGES - 31_900
    mrc(tmp_path / "x.mrc", images, mode=1)
    series = io.read(tmp_path / "x.mrc", angles=ANGLES, tilt_axis="y")
    np.testing.assert_array_equal(series.images, images.astype(np.int16))


def test_zero_records_mean_missing_and_fewer_records_are_an_error(tmp_path):
    mrc(tmp_path / "zero.mrc", IMAGES, dialect="FEI1", angles=None)
    with pytest.raises(InputError, match="no tilt angles in it or beside it"):
        io.read(tmp_path / "zero.mrc")
    mrc(tmp_path / "few.mrc", IMAGES, dialect="FEI2003", angles=ANGLES[:5], records=5, axis=5.0)
    with pytest.raises(InputError, match="7 images but 5 angles in the FEI extended header"):
        io.read(tmp_path / "few.mrc")


def test_a_zero_axis_counts_only_where_the_record_marks_it(tmp_path):
    mrc(tmp_path / "unset.mrc", IMAGES, dialect="FEI1", angles=ANGLES, axis=0.0)
    with pytest.raises(InputError, match="nothing states the direction of the tilt axis"):
        io.read(tmp_path / "unset.mrc")
    mrc(tmp_path / "set.mrc", IMAGES, dialect="FEI1", angles=ANGLES, axis=0.0, bitmask=1 << 12)
    assert "marked as valid" in io.read(tmp_path / "set.mrc").provenance["tilt_axis"]


def test_one_angstrom_is_not_a_pixel_size(tmp_path):
    mrc(tmp_path / "x.mrc", IMAGES, pixel_nm=0.1, dialect="SERI", angles=ANGLES, labels=("Tilt axis angle = 1.0",))
    with pytest.raises(InputError, match=r"nothing states the pixel size.*--pixel-nm NM"):
        io.read(tmp_path / "x.mrc")
    assert io.read(tmp_path / "x.mrc", pixel_nm="unknown").pixel_nm is None
    assert io.read(tmp_path / "x.mrc", pixel_nm=0.5).pixel_nm == 0.5


@pytest.mark.parametrize(
    ("axis", "turns", "left"),
    [("y", 0, 0), ("x", -1, 0), (90, 1, 0), (-90, -1, 0), (180, 2, 0), (84.5, 1, -5.5), (-95, -1, -5), (3, 0, 3)],
)
def test_quarter_turns_are_taken_out_and_the_rest_is_left(tmp_path, axis, turns, left):
    mrc(tmp_path / "x.mrc", IMAGES)
    series = io.read(tmp_path / "x.mrc", angles=ANGLES, tilt_axis=axis)
    np.testing.assert_array_equal(series.images, np.rot90(IMAGES, turns, axes=(-2, -1)))
    assert series.tilt_axis_deg == pytest.approx(left)


@pytest.mark.parametrize("axis", ["y", "x", 90, 180])
@pytest.mark.parametrize("rows", [slice(0, 3), slice(4, 9), slice(-3, None)])
def test_a_slab_is_the_same_rows_of_the_whole(tmp_path, axis, rows):
    mrc(tmp_path / "x.mrc", IMAGES)
    whole = io.read(tmp_path / "x.mrc", angles=ANGLES, tilt_axis=axis).images
    slab = io.read(tmp_path / "x.mrc", angles=ANGLES, tilt_axis=axis, rows=rows).images
    np.testing.assert_array_equal(slab, whole[:, rows])


def test_imod_convention_is_used_unless_the_images_contradict_it(tmp_path):
    (tmp_path / "x.rawtlt").write_text("\n".join(map(str, ANGLES)))
    mrc(tmp_path / "x.st", IMAGES)
    assert "IMOD's convention for .st files" in io.read(tmp_path / "x.st").provenance["tilt_axis"]
    mrc(tmp_path / "x.mrc", IMAGES, stamp=True)
    assert "IMOD's convention" in io.read(tmp_path / "x.mrc").provenance["tilt_axis"]
    turned = np.rot90(IMAGES, 1, axes=(1, 2)).copy()
    mrc(tmp_path / "x.st", turned)
    with pytest.raises(InputError, match="ambiguous"):
        io.read(tmp_path / "x.st")
    mrc(tmp_path / "x.mrc", IMAGES)
    with pytest.raises(InputError, match="nothing states the direction"):
        io.read(tmp_path / "x.mrc")


def test_a_recorded_axis_is_not_that_of_transformed_images(tmp_path):
    labels = ("    Tilt axis angle = 84.1, binning = 2", "NEWSTACK: Images copied, transformed, densities scaled")
    mrc(tmp_path / "x.ali", IMAGES, dialect="SERI", angles=ANGLES, labels=labels, stamp=True)
    with pytest.raises(InputError, match=r"84.1 degrees, but newstack has transformed .*tilt_axis='y'"):
        io.read(tmp_path / "x.ali")
    assert io.read(tmp_path / "x.ali", tilt_axis="y").tilt_axis_deg == 0


def test_mdoc_sorts_by_angle_and_keeps_the_order_of_exposure(tmp_path):
    shot = np.array([0.0, 20, -20, 40, -40, 60, -60])
    mrc(tmp_path / "x.mrc", IMAGES)
    mdoc(tmp_path / "x.mrc.mdoc", shot, rotation=3.0, title=3.0, times=[0, 1, 2, 3, 4, 5, 6])
    series = io.read(tmp_path / "x.mrc")
    order = np.argsort(shot)
    np.testing.assert_array_equal(series.tilt_deg, shot[order])
    np.testing.assert_array_equal(series.images, IMAGES[order])
    np.testing.assert_array_equal(series.exposure_order, order)
    assert series.pixel_nm == pytest.approx(NM)
    without = io.read(tmp_path / "x.mrc", skip=[1])
    np.testing.assert_array_equal(without.tilt_deg, [-60, -40, -20, 0, 40, 60])
    np.testing.assert_array_equal(without.exposure_order, [5, 3, 1, 0, 2, 4])


@pytest.mark.parametrize("name", ["x.mdoc", "x.mrc.mdoc"])
def test_mdoc_title_and_rotation_angle_may_disagree(tmp_path, name):
    mrc(tmp_path / "x.mrc", IMAGES)
    mdoc(tmp_path / name, ANGLES, rotation=0.0, title=-90.0)
    with pytest.raises(
        InputError, match=r"-90 degrees by the title .* 0 by RotationAngle .*tilt_axis=-90 or tilt_axis=0"
    ):
        io.read(tmp_path / "x.mrc")
    assert io.read(tmp_path / "x.mrc", tilt_axis=-90).images.shape == (7, 10, 12)


def test_disagreeing_angles_and_pixels_name_both_sources(tmp_path):
    mrc(tmp_path / "x.mrc", IMAGES, dialect="FEI1", angles=ANGLES, axis=5.0)
    (tmp_path / "x.rawtlt").write_text("\n".join(map(str, ANGLES + 0.5)))
    with pytest.raises(
        InputError, match=r"x.mrc: image 0 is at -60 .*FEI1.* but at -59.5 by x.rawtlt.*angles='header'"
    ):
        io.read(tmp_path / "x.mrc")
    assert io.read(tmp_path / "x.mrc", angles="header").tilt_deg[0] == -60
    assert io.read(tmp_path / "x.mrc", angles=tmp_path / "x.rawtlt").tilt_deg[0] == -59.5
    (tmp_path / "x.rawtlt").write_text("\n".join(map(str, ANGLES + 0.05)))
    assert "x.rawtlt agrees" in io.read(tmp_path / "x.mrc").provenance["tilt_deg"]
    mrc(tmp_path / "x.mrc", IMAGES, dialect="FEI1", angles=ANGLES, axis=5.0, pixel_nm=NM, cell_nm=1.2)
    with pytest.raises(InputError, match=r"0.8 nm by the FEI1 .* 1.2 nm by the MRC header.*--pixel-nm"):
        io.read(tmp_path / "x.mrc")


def test_refined_angles_stand_in_for_an_aligned_stack(tmp_path):
    mrc(tmp_path / "x.ali", IMAGES, dialect="SERI", angles=ANGLES, labels=("Tilt axis angle = 0.0",))
    (tmp_path / "x.tlt").write_text("\n".join(map(str, ANGLES + 2)))
    (tmp_path / "x.rawtlt").write_text("\n".join(map(str, ANGLES)))
    series = io.read(tmp_path / "x.ali")
    np.testing.assert_allclose(series.tilt_deg, ANGLES + 2)
    assert "refined" in series.provenance["tilt_deg"]


def test_needle_as_the_microscope_wrote_it(shared):
    path = shared / "formats" / "needle_fei2003.mrc"
    series = io.read(path)
    truth = np.load(shared / "needle_haadf_raw.npz")
    np.testing.assert_array_equal(series.images, np.rot90(truth["projections"], 1, axes=(1, 2)))
    np.testing.assert_array_equal(series.tilt_deg, truth["tilts_deg"])
    assert series.pixel_nm == pytest.approx(3.36)
    assert "needle_xplore_log.txt" in series.provenance["tilt_axis"]
    assert "metres" in series.provenance["pixel_nm"] and "agrees" in series.provenance["tilt_deg"]
    # By the common mass the axis is along y after either quarter turn, and not before.
    x_axis = io.read(path, tilt_axis="x").images
    np.testing.assert_array_equal(x_axis, series.images[:, ::-1, ::-1])
    for images in (series.images, x_axis):
        along, across = mass_variation(images)
        assert along < 0.5 * across


def test_needle_without_its_log_has_no_axis(shared, tmp_path):
    for name in ("needle_fei2003.mrc", "needle_fei2003.rawtlt"):
        shutil.copy(shared / "formats" / name, tmp_path)
    with pytest.raises(InputError, match=r"nothing states the direction of the tilt axis.*suggests x"):
        io.read(tmp_path / "needle_fei2003.mrc")
    found = io.inspect(tmp_path / "needle_fei2003.mrc")
    assert [problem["fact"] for problem in found["problems"]] == ["nothing states the direction of the tilt axis."]
    log = (shared / "formats" / "needle_xplore_log.txt").read_bytes()
    (tmp_path / "other.txt").write_bytes(log.replace(b"3.36", b"1.12"))
    with pytest.raises(InputError, match="nothing states the direction"):  # a log of another series is not believed
        io.read(tmp_path / "needle_fei2003.mrc")
