"""The report: a whole, valid, offline page from whatever a result holds, and a viewer that runs in a real browser."""

import dataclasses
import functools
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxtomo as jt
from jaxtomo import findings, plot, viewer
from jaxtomo.data import Pose, Reconstruction
from jaxtomo.errors import InputError
from jaxtomo.series import TiltSeries

VOID = {"meta", "link", "input", "br", "img", "image", "path", "use", "stop", "rect", "circle", "line"}


class Page(HTMLParser):
    """Follows the open elements and collects ids, references and text."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.ids, self.links, self.said, self.problems = [], [], [], "", []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.collect(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.collect(attrs)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.said += data

    def collect(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)


@functools.cache
def made(shape=(12, 14, 16), tilts=9) -> Reconstruction:
    """A ball, its projections with a little noise, and what a run would have recorded."""
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    volume = (z**2 + y**2 + x**2 < (min(shape) / 3) ** 2 + 1).astype(np.float32)
    tilt = np.linspace(-60, 60, tilts)
    pose = Pose.nominal(tilt).replace(
        shift=jnp.asarray(np.random.default_rng(0).normal(0, 0.3, (tilts, 2)), jnp.float32)
    )
    images = np.array(findings._project(jnp.asarray(volume), pose, shape[1:]))  # compiled once, for the report too
    images += np.random.default_rng(1).normal(0, 0.1, images.shape).astype(np.float32)
    series = TiltSeries(
        images, tilt, 1.5, provenance={"tilt_deg": "the header", "alignment": "none needed"}, source="ball.mrc"
    )
    return Reconstruction(
        volume,
        pose,
        series,
        history={"misfit": np.geomspace(1, 0.01, 20), "gap": np.geomspace(1, 1e-4, 20)},
        metrics={
            "fsc_frequency": np.arange(9) / 16,
            "fsc_curve": np.linspace(1, 0, 9),
            "prediction_error": 0.05,
            "prediction_error_by_tilt": np.full(tilts, 0.05),
            "resolution_nm": np.nan,
        },
        settings={"solver": {"method": "sirt"}, "steps": 20, "seed": 0, "versions": {"jax": "0.10.2"}},
        message="all 20 steps done",
    )


def test_the_page_is_whole_offline_and_small(tmp_path):
    path = jt.report(tmp_path / "report.html", made())
    page = Page(path)
    assert path == tmp_path / "report.html"
    assert page.problems == [] and page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert "http:" not in page.text and "https:" not in page.text
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    sections = ("summary", "volume", "fit", "alignment", "convergence", "quality", "provenance", "settings")
    assert [i for i in page.ids if i in sections] == list(sections)
    for said in ("SIRT", "1.5 nm", "all 20 steps done", "the header", "jax", "Missing wedge", "even and odd"):
        assert said in page.said
    assert path.stat().st_size < 1e6
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_same_result_gives_the_same_page(tmp_path):
    pages = [jt.report(tmp_path / f"{k}.html", made()).read_bytes() for k in range(2)]
    assert pages[0] == pages[1]


def test_a_large_volume_stays_a_few_megabytes(tmp_path):
    noise = np.random.default_rng(0).normal(size=(150, 160, 170)).astype(np.float32)
    path = jt.report(tmp_path / "r.html", made().replace(volume=noise, series=None))
    assert path.stat().st_size < 5e6
    assert "binned 2-fold to 75 × 80 × 85 voxels" in Page(path).said


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "a<b & \"c\" 'd'", "${title} $style \\u0041"])
def test_every_string_is_escaped(tmp_path, text):
    result = made().replace(message=text, history={text: np.ones(3), "misfit": np.ones(3)}, metrics={text: text})
    result = result.replace(settings={text: text, "alignment": {text: [1.0] * 9, "x": text}, "device": text})
    series = dataclasses.replace(result.series, source=f"/data/{text}", provenance={text: text})
    page = Page(jt.report(tmp_path / "r.html", result.replace(series=series)))
    assert page.problems == []
    assert "<script>alert" not in page.text
    assert page.said.count(text) >= 6


def with_series(result, **changes):
    return result.replace(series=result.series.replace(**changes))


def scaled(result, factor):
    return with_series(result.replace(volume=result.volume * factor), images=result.series.images * factor)


def with_curve(result, curve):
    return result.replace(metrics={"fsc_frequency": np.arange(len(curve)) / 16, "fsc_curve": curve})


DEGRADED = {
    "nothing but a volume": lambda r: Reconstruction(r.volume, r.pose),
    "no metrics": lambda r: r.replace(metrics={}),
    "no shift": lambda r: r.replace(pose=r.pose.replace(shift=None)),
    "every pose parameter": lambda r: r.replace(
        pose=r.pose.replace(rotation=jnp.zeros(9), magnification=jnp.ones(9), second_tilt=jnp.zeros(9))
    ),
    "no pixel size": lambda r: with_series(r, pixel_nm=None),
    "a mask": lambda r: with_series(r, mask=np.arange(16) > np.zeros(r.series.images.shape) + 2),
    "nothing measured": lambda r: with_series(r, mask=np.zeros(r.series.images.shape, bool)),
    "one step": lambda r: r.replace(history={"misfit": np.array([2.0])}),
    "a scalar history": lambda r: r.replace(history={"misfit": 2.0}),
    "odd history": lambda r: r.replace(
        history={"misfit": np.array([1, np.nan, np.inf]), "gain": np.ones((3, 9)), "": []}
    ),
    "negative history": lambda r: r.replace(history={"misfit": np.array([-1.0, -2, -3])}),
    "poses of another series": lambda r: r.replace(pose=r.pose.select(slice(4))),
    "volume of odd height": lambda r: r.replace(volume=np.zeros((12, 15, 16), np.float32)),
    "empty volume": lambda r: r.replace(volume=np.zeros_like(r.volume)),
    "not finite": lambda r: r.replace(volume=np.where(r.volume > 0, np.nan, np.inf).astype(np.float32)),
    "huge values": lambda r: scaled(r, 1e30),
    "tiny values": lambda r: scaled(r, 1e-30),
    "fitted intensities": lambda r: r.replace(settings={"likelihood": "fitted_intensity"}),
    "a channel axis": lambda r: with_series(r.replace(volume=r.volume[None]), images=r.series.images[None]),
    "strange metrics": lambda r: r.replace(
        metrics={"nested": {"a": 1, "b": [1, 2]}, "none": None, "fsc_frequency": np.zeros(1), "fsc_curve": np.ones(1)}
    ),
    "a curve that never falls": lambda r: with_curve(r, np.ones(9)),
    "a curve that starts below": lambda r: with_curve(r, np.zeros(9)),
    "repeated angles": lambda r: r.replace(pose=Pose.nominal(np.zeros(9))),
    "one slice": lambda r: made((12, 1, 16)),
    "one plane": lambda r: made((1, 14, 16)),
    "one column": lambda r: made((12, 14, 1)),
    "one voxel": lambda r: made((1, 1, 1)),
    "a long thin volume": lambda r: made((40, 6, 300)),
    "one tilt": lambda r: made(tilts=1),
    "two tilts": lambda r: made(tilts=2),
}


@pytest.mark.parametrize("change", DEGRADED.values(), ids=DEGRADED.keys())
def test_what_is_missing_or_strange_is_left_out_or_said(tmp_path, change):
    page = Page(jt.report(tmp_path / "r.html", change(made())))
    assert page.problems == [] and page.open == []
    assert not re.search(r"\b(nan|inf)\b", page.said), re.findall(r".{30}\b(?:nan|inf)\b.{30}", page.said)


def test_nothing_is_left_behind_when_the_page_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        jt.report(tmp_path / "missing" / "r.html", made())
    assert list(tmp_path.iterdir()) == []


def test_the_fit_is_that_of_the_projector():
    result = made(tilts=21)
    fit = findings.fit(result)
    assert fit is not None
    assert fit.overall == pytest.approx(0.1 / np.sqrt(np.mean(result.series.images**2)), rel=0.05)
    assert abs(fit.structure) < 0.05  # white noise
    assert np.allclose(fit.ratio, 1, atol=0.1)
    assert fit.outliers.size == 0 and fit.truncated.size == 0


def test_a_bad_tilt_and_a_truncated_object_are_found():
    result = made(tilts=21)
    images = np.array(result.series.images)
    images[4] = np.roll(images[4], 4, axis=1)
    bad = result.replace(series=result.series.replace(images=images))
    fit = findings.fit(bad)
    assert fit is not None
    assert fit.outliers.tolist() == [4]
    assert any(findings.degrees(fit.tilt_deg[4]) in w for w in findings.warnings(bad, fit))
    cut = result.replace(series=result.series.replace(images=result.series.images[:, :, 4:-4]))
    fit = findings.fit(cut)
    assert fit is not None and fit.truncated.size == 21


def test_fitted_intensities_are_part_of_the_prediction():
    result = made(tilts=21)
    gain = np.linspace(0.5, 1.5, 21, dtype=np.float32)[:, None, None]
    scaled_images = with_series(result, images=result.series.images * gain + 2)
    plain = findings.fit(scaled_images)
    fitted = findings.fit(scaled_images.replace(settings={"likelihood": "fitted_intensity"}))
    assert plain is not None and fitted is not None
    assert not plain.rescaled and fitted.rescaled
    assert fitted.overall < 0.05 < 0.2 < plain.overall


@pytest.mark.parametrize(
    ("tilt", "missing"),
    [(np.arange(-60, 61, 2), 60), (np.arange(0, 180, 5), 0), (np.arange(-90, 91, 10), 0), (np.arange(-4, 5, 1), 172)],
)
def test_missing_wedge(tilt, missing):
    assert findings.missing_wedge(tilt) == pytest.approx(missing)


@pytest.mark.parametrize(("shape", "factor"), [((6, 8, 9), 2), ((5, 7, 11), 3), ((4, 4, 4), 1)])
def test_shrink_takes_block_means(shape, factor):
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    small = viewer.shrink(volume, factor)
    assert small.shape == tuple(math.ceil(n / factor) for n in shape)
    assert np.allclose(small[0, 0, 0], volume[:factor, :factor, :factor].mean(), atol=1e-6)
    last = tuple(slice((n - 1) // factor * factor, None) for n in shape)
    assert np.allclose(small[-1, -1, -1], volume[last].mean(), atol=1e-6)


@pytest.mark.parametrize("width", [1, 7, 100, 4096])
@pytest.mark.parametrize("voxel", [None, 0.01, 0.3, 6.72, 5000.0])
def test_the_scale_bar_is_round_and_fits(width, voxel):
    length, words = plot.scale_bar(width, voxel)
    assert 0 < length <= max(width / 2, 1)
    assert re.fullmatch(r"[125]0*(\.0+)? (voxels|nm|µm|Å)|0\.0*[125] Å", words)


def chromium() -> str | None:
    return next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)


@pytest.mark.skipif(chromium() is None, reason="no chromium to open the page in")
@pytest.mark.parametrize("gpu", [True, False], ids=["webgl", "without webgl"])
def test_a_browser_runs_the_page_without_complaint(tmp_path, gpu):
    path = jt.report(tmp_path / "report.html", made())
    graphics = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"] if gpu else ["--disable-3d-apis"]
    offline = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    done = subprocess.run(
        [str(chromium()), "--headless", "--no-sandbox", "--disable-gpu", *graphics, *offline, "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "GL Driver Message" not in line]
    assert said == []
    assert re.search(r"data-tilt-value[^>]*>0°, image 4, residual [\d.]+ %<", done.stdout)
    assert re.search(r"data-readout[^>]*>value 1 · x 12, y 10.5, z 9 nm<", done.stdout)
    assert ("No WebGL2 here" in re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S)) is not gpu
