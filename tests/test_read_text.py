"""Lists of angles in every way people write them, and IMOD's transforms against the geometry of a pose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtomo.errors import InputError
from jaxtomo.io.angles import from_file, from_range, is_range
from jaxtomo.io.xf import from_pose, read_xf, to_pose, write_xf

ANGLES = [-60.0, 0.5, 60.0]


@pytest.mark.parametrize(
    "text",
    [
        " -60.00\n   0.50\n  60.00\n",
        "-60\r\n0.5\r\n60",
        "# degrees\n-60\n0.5 # zero\n\n60\n",
        "-60,0\n0,5\n60,0\n",
        "1,-60\n2,0.5\n3,60\n",
        "tilt\n-60\n0.5\n60\n",
        "image,tilt angle\n1,-60\n2,0.5\n3,60\n",
        "0\t-60\n1\t0.5\n2\t60\n",
        "name;alpha;dose\na;-60,0;1\nb;0,5;2\nc;60,0;3\n",
        "\u221260\n0.5\n60\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_angle_files(tmp_path, text, encoding):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode(encoding))
    np.testing.assert_array_equal(from_file(path), ANGLES)


def test_latin_1_is_read(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes("Kippung \u00b0 tilt\n-60\n0.5\n60\n".replace(" \u00b0 ", "\u00b0").encode("latin-1"))
    np.testing.assert_array_equal(from_file(path), ANGLES)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "holds no angles"),
        ("tilt\n", "holds no angles"),
        ("-60\nnothing\n60\n", r"line 2 \('nothing'\) is not an angle"),
        ("1 2 3\n4 5 6\n", "3 columns and no heading"),
        ("5 -60\n9 0\n", "2 columns and no heading"),
        ("alpha,beta tilt\n1,2\n", "Keep one column named 'tilt'"),
        ("a\0b", "is a binary file"),
    ],
)
def test_angle_files_that_are_not(tmp_path, text, match):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=rf"x.csv: .*{match}"):
        from_file(tmp_path / "x.csv")


def test_ranges():
    assert from_range("-70:70:2").size == 71 and from_range("0:1:0.1")[-1] == pytest.approx(1)
    np.testing.assert_allclose(from_range("60:-60:-60"), [60, 0, -60])
    assert is_range("-70:70:2") and not is_range("C:/x.rawtlt") and not is_range("12")
    for text in ("1:2", "0:10:0", "0:10:-1", "0:1e9:1e-9", "0:nan:1", "a:b:c"):
        with pytest.raises(InputError, match="angles"):
            from_range(text)


@settings(max_examples=50, deadline=1000)
@given(
    st.lists(st.tuples(*[st.floats(-30, 30)] * 2, st.floats(-3, 3), st.floats(0.9, 1.1)), min_size=1, max_size=5),
    st.integers(-4, 4),
)
def test_xf_and_pose_are_inverse(poses, turns):
    shift, rotation, magnification = np.array(poses)[:, :2], *np.array(poses)[:, 2:].T
    back = to_pose(from_pose(shift, rotation, magnification, quarter_turns=turns), quarter_turns=turns)
    np.testing.assert_allclose(back.shift, shift, atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * back.rotation), np.exp(1j * rotation), atol=1e-9)
    np.testing.assert_allclose(back.magnification, magnification, atol=1e-9)


def test_xf_maps_a_measured_point_to_where_the_pose_has_it():
    """x = m R(φ) x' + s measured, x' aligned; IMOD: x' = A x + d."""
    shift, rotation, magnification = np.array([[3.0, -5.0]]), np.array([0.3]), np.array([1.05])
    a11, a12, a21, a22, dx, dy = from_pose(shift, rotation, magnification)[0]
    ideal = np.array([7.0, 2.0])
    cos, sin = np.cos(0.3), np.sin(0.3)
    measured = 1.05 * np.array([[cos, -sin], [sin, cos]]) @ ideal + shift[0]
    np.testing.assert_allclose(np.array([[a11, a12], [a21, a22]]) @ measured + [dx, dy], ideal, atol=1e-12)


def test_xf_of_turned_images():
    """np.rot90 by k takes the raw point to the turned one, so A_raw = A_turned · turn."""
    images = np.zeros((1, 5, 5))
    images[0, 1, 4] = 1  # raw point (x, y) = (2, -1) from the centre
    for k in range(4):
        _, y, x = np.argwhere(np.rot90(images, k, axes=(1, 2)))[0] - 2
        matrix = from_pose(np.zeros((1, 2)), quarter_turns=k)[0, :4].reshape(2, 2)
        np.testing.assert_allclose(matrix @ [2, -1], [x, y], atol=1e-12)


def test_xf_files(tmp_path):
    transforms = from_pose(np.array([[1.5, 2], [0, -7.25]]), np.array([0.1, -0.2]))
    write_xf(tmp_path / "x.xf", transforms)
    np.testing.assert_allclose(read_xf(tmp_path / "x.xf"), transforms, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["x.xf"]
    (tmp_path / "bad.xf").write_text("1 0 0 1 0 0\n1 0 0 1 0\n")
    with pytest.raises(InputError, match=r"bad.xf: line 2 .* is not six numbers"):
        read_xf(tmp_path / "bad.xf")
    with pytest.raises(InputError, match="view 0 stretches"):
        to_pose(np.array([[1.2, 0, 0, 1, 0, 0]]))
    with pytest.raises(InputError, match="mirrors"):
        to_pose(np.array([[-1.0, 0, 0, 1, 0, 0]]))
