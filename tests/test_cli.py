"""The command line as its users meet it: what goes to stdout, what the exit code is, what is left in the folder."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxtomo as jt
from jaxtomo import cli, methods, run_folder
from jaxtomo.commands import contest, device, running, solving
from jaxtomo.commands.request import Preparing, Solving
from jaxtomo.console import Console
from jaxtomo.io.reconstruction import read_reconstruction

WEIGHT = ("--weight", "0.3")  # to choose one takes time, and has a test of its own
METHODS = {
    "wbp": 1,
    "sirt": 4,
    "sart": 2,
    "cgls": 3,
    "tv": 4,
    "tvq": 4,
    "root-tv": 4,
    "dip": 2,
    "dip-tv": 2,
    "inr": 2,
    "gaussian": 3,
    "diffusion": 2,
    "gan": 2,
}


@pytest.fixture(autouse=True)
def nothing_lasting(monkeypatch, tmp_path):
    """No compiled code in the user's cache folder, every default path in a folder of the test, and one device."""
    monkeypatch.setattr(device, "start", lambda: None)
    monkeypatch.setattr(device, "mesh", lambda asked: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def whole_report():
    """Asks for the real report."""


@pytest.fixture(autouse=True)
def quick_report(request, monkeypatch):
    """The report has tests of its own: most runs here write a line instead of drawing for seconds."""
    if "whole_report" not in request.fixturenames:
        monkeypatch.setattr(running, "report", lambda path, result: path.write_text("a report"))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A small series with its truth, 17 tilts of 24 × 24 pixels, shifted."""
    folder = tmp_path_factory.mktemp("simulated")
    series = folder / "core.mrc"
    argv = ["simulate", "core_shell", "--size", "24", "--tilts", "-64:64:8", "--out", str(series), "--dose", "200"]
    assert cli.main([*argv, "--shift-jitter-px", "1", "--quiet"]) == 0
    return series


@pytest.fixture
def command(capfd):
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def run(*argv) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main([str(word) for word in argv])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def document(command):
    """Runs a command with --json: (exit code, the one document on stdout)."""

    def strict(constant):
        raise AssertionError(f"{constant} is no JSON")

    def run(*argv, loud=False):
        code, out, _ = command(*argv, "--json", *([] if loud else ["--quiet"]))
        return code, json.loads(out, parse_constant=strict)

    return run


ROOT = str(Path(jt.__file__).parents[1])


def python(*argv):
    """A Python of its own, which finds this jaxtomo whether it is installed or not."""
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=120, env=environment)


def test_help_and_inspect_start_no_heavy_library(simulated):
    for argv in (["--help"], ["inspect", str(simulated)], ["inspect", "--help"], ["reconstruct", "--help"]):
        code = (
            "import sys; from jaxtomo import cli; code = cli.main(sys.argv[1:]);"
            "heavy = {'jax', 'matplotlib', 'scipy', 'skimage', 'orbax'} & set(sys.modules);"
            "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
        )
        done = python("-c", code, *argv)
        assert done.returncode == 0, (argv, done.stderr)
        assert done.stdout


def test_usage_errors_exit_with_2(command, simulated):
    for argv, hint in (
        (["reconstrukt"], "reconstruct"),
        (["reconstruct"], "FILE"),
        (["reconstruct", simulated, "--metod", "tv"], "--method"),
        (["reconstruct", simulated, "--method", "tx"], "tvq"),
        (["reconstruct", simulated, "--slab", "9:3"], "100:164"),
        (["reconstruct", simulated, "--fail-under", "beauty=3"], "resolution_nm"),
        (["compare", simulated], "B"),
    ):
        code, out, err = command(*argv)
        assert (code, out) == (2, ""), argv
        assert hint in err, (argv, err)


def test_help_goes_to_stdout(command):
    for name in cli.COMMANDS:
        code, out, err = command(*name.split(), "--help")
        assert (code, err) == (0, ""), name
        assert "--json" in out and "--quiet" in out
    assert command("--version")[1].strip() == f"jaxtomo {jt.__version__}"


def test_inspect(command, document, simulated):
    code, facts = document("inspect", simulated)
    assert code == 0
    assert facts["shape"] == [17, 24, 24] and facts["angles"]["step"] == 8 and facts["problems"] == []
    code, out, err = command("inspect", simulated)
    assert (code, err) == (0, "") and "-64° to 64°" in out and "\033" not in out


def test_inspect_tells_what_is_missing(command, document, tmp_path):
    np.save(tmp_path / "bare.npy", np.random.default_rng(0).random((5, 16, 16), np.float32))
    code, facts = document("inspect", "bare.npy")
    assert code == 3 and len(facts["problems"]) == 3
    code, out, err = command("inspect", "bare.npy")
    assert code == 3 and "bare.npy" in out and "--angles" in err and "--tilt-axis" in err and "--pixel-nm" in err


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fills_the_folder(method, document, simulated, trained):
    argv = ["reconstruct", simulated, "--method", method, "--steps", METHODS[method], "--out", "run"]
    argv += WEIGHT if method in methods.WEIGHTED else ()
    argv += ("--weights", trained[method]) if method in trained else ()
    code, facts = document(*argv, *([] if method in ("sirt", "tv") else ["--no-assess"]))
    assert code == 0
    folder = Path("run")
    sampled = {"spread.mrc"} if method == "diffusion" else set()
    kept = {*os.listdir(folder)} - {"checkpoint"}  # of a slow machine, to go on from
    assert kept == {"config.toml", "run.json", "metrics.jsonl", *run_folder.RESULTS, *sampled}
    assert facts["status"] == "done" and facts["steps"] == METHODS[method] and facts["shape"] == [24, 24, 24]
    assert json.loads((folder / "run.json").read_text()) | {"missed": [], "exit_code": 0} == facts
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, METHODS[method] + 1))
    assert facts["metrics"]["misfit"] == pytest.approx(lines[-1]["misfit"], rel=1e-6)
    assert ("prediction_error" in facts["metrics"]) == (method in ("sirt", "tv"))
    assert len(facts["input"]["sha256"]) == 64
    volume, voxel_nm = jt.read_volume(folder / "volume.mrc")
    assert voxel_nm == pytest.approx(1) and np.isfinite(volume).all() and volume.std() > 0


def test_samples_and_adaptation_of_diffusion(document, simulated, trained):
    argv = ["reconstruct", simulated, "--method", "diffusion", "--weights", trained["diffusion"], "--steps", "2"]
    argv.append("--no-assess")
    code, facts = document(*argv, "--members", "2", "--out", "samples")
    assert code == 0 and "spread.mrc" in facts["files"] and facts["steps"] == 2
    code, facts = document(*argv, "--adapt", "--out", "adapted")
    assert code == 0 and facts["steps"] == 2
    for wrong in (["--adapt", "--members", "2"], ["--adapt", "--method", "tv"], ["--method", "tv"], ["--weights", ""]):
        assert document(*argv, *wrong, "--out", "wrong")[0] == 3
    code, facts = document(*argv[:4], "--weights", "nowhere", "--out", "wrong")
    assert code == 3 and "nowhere: no weights there" in facts["error"]


def test_training_from_files(command, document, monkeypatch):
    """A few steps, told in words; then again, which is refused, and on, which has nothing to do; and from there."""
    import jax
    from flax import nnx

    from jaxtomo import denoising, exposures
    from jaxtomo.priors.score import load

    monkeypatch.setattr(exposures, "POOL", 3)
    monkeypatch.setattr(denoising, "VALIDATION", 2)
    rng = np.random.default_rng(0)
    for i in range(21):
        np.save(f"v{i:02d}.npy", (rng.random((32, 32, 32)) < 0.3).astype(np.uint8))
    names = [word for i in range(21) for word in ("--data", f"v{i:02d}.npy")]
    sizes = ["--channels", "4,8", "--side", "16", "--patch", "16,8,8", "--batch", "2", "--steps", "2"]
    code, out, err = command("train", "score", *names, *sizes, "--out", "t")
    assert code == 0 and "--method diffusion --weights t/weights" in out and "21 volumes" in err
    assert {"weights", "training.json", "log.jsonl", "loss.png", "examples.png"} <= {*os.listdir("t")}
    card = json.loads(Path("t/weights/card.json").read_text())
    assert card["steps"] == 2 and card["command"].startswith("jaxtomo train score") and len(card["sha256"]) == 64
    code, facts = document("train", "score", *names, *sizes, "--out", "t")
    assert code == 3 and "--resume" in facts["error"]
    code, facts = document("train", "score", *names, *sizes, "--out", "t", "--resume", "--rate", "0.01")
    assert code == 3 and "rate was" in facts["error"]
    assert document("train", "score", *names, *sizes, "--out", "t", "--resume")[0] == 0
    for wrong in (["--patch", "16,99,8"], ["--channels", "5,8"], ["--steps", "0"], ["--data", "nothing.mrc"]):
        assert document("train", "score", *names, *sizes, *wrong, "--out", "u")[0] == 3
    assert document("train", "score", "--out", "u")[0] == 2
    assert document("train", "score", *names, *sizes, "--start", "t/weights", "--out", "u")[0] == 3
    on = [*names, "--side", "16", "--patch", "16,8,8", "--steps", "1", "--rate", "1e-9", "--start", "t/weights"]
    assert document("train", "score", *on, "--out", "u")[0] == 0
    before, after = (jax.tree.leaves(nnx.state(load(f"{name}/weights").score)) for name in "tu")
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_training_of_the_pair_from_files(command, document, simulated, monkeypatch):
    from jaxtomo import adversaries, exposures, sinograms

    monkeypatch.setattr(sinograms, "COUNTS", (8,))
    monkeypatch.setattr(exposures, "POOL", 2)
    monkeypatch.setattr(adversaries, "POOL", 2)
    monkeypatch.setattr(adversaries, "VALIDATION", 2)
    rng = np.random.default_rng(0)
    for i in range(3):
        np.save(f"v{i}.npy", np.kron(rng.random((8, 4, 8)) < 0.3, np.ones((4, 4, 4))).astype(np.uint8))
    given = ["train", "gan", "--data", ".", "--side", "16", "--rows", "4", "--batch", "2"]
    given += ["--fill-steps", "1", "--clean-steps", "1"]
    code, out, _ = command(*given, "--out", "../t")
    assert code == 0 and "--method gan --weights ../t/weights" in out
    card = json.loads(Path("../t/weights/card.json").read_text())
    assert card["method"] == "gan" and card["command"].startswith("jaxtomo train gan") and card["steps"] == 2
    assert {"tilt_deg", "step_deg", "noise"} == card["reach"].keys()
    assert document(*given, "--out", "../t")[0] == 3
    for wrong in (["--critical", "-1"], ["--side", "8"], ["--side", "99"], ["--rows", "0"]):
        assert document(*given, *wrong, "--out", "../u")[0] == 3
    code, facts = document("reconstruct", simulated, "--method", "diffusion", "--weights", "../t/weights")
    assert code == 3 and "weights of --method gan" in facts["error"]
    code, facts = document("reconstruct", simulated, "--method", "gan", "--weights", "nano")
    assert code == 3 and "weights of --method diffusion" in facts["error"]
    code, facts = document("reconstruct", simulated, "--method", "gan", "--steps", "3")
    assert code == 0 and facts["weights"] == "slices" and 0.25 <= facts["network_share"] <= 1
    code, facts = document("train", "--data", ".")
    assert code == 2 and "train score or train gan" in facts["error"]


def test_a_person_sees_a_short_table(command, simulated):
    code, out, err = command("reconstruct", simulated, "--steps", "3", *WEIGHT)
    assert code == 0 and len(out.splitlines()) < 14
    for word in ("tv, 3 steps", "misfit", "prediction", "resolution", "core-tv/report.html", "1 nm"):
        assert word in out
    assert "aligning 17 images" in err and "\033" not in out + err
    assert command("reconstruct", simulated, "--steps", "3", *WEIGHT, "--out", "other", "--quiet")[2] == ""


def test_defaults_reconstruct_the_specimen(document, simulated):
    """The wedge, ten degrees of noise and one pixel of jitter in it, but clearly the specimen."""
    code, _ = document("reconstruct", simulated, "--steps", "60", "--out", "run", "--no-assess")
    assert code == 0
    truth = jt.read_volume(simulated.with_name("core_truth.mrc"))[0]
    volume = jt.read_volume("run/volume.mrc")[0]
    assert np.corrcoef(volume.ravel(), truth.ravel())[0, 1] > 0.8


def test_config_file_repeats_a_run_and_flags_win(document, simulated):
    code, first = document(
        "reconstruct", simulated, "--method", "sirt", "--steps", "3", "--hold-out", "2", "--out", "a"
    )
    assert code == 0
    assert first["metrics"]["held_out_error"] > 0 and len(first["metrics"]["held_out_tilts_deg"]) == 2
    code, again = document("reconstruct", "--config", "a/config.toml", "--out", "b")
    assert code == 0 and again["method"] == "sirt"
    assert np.array_equal(jt.read_volume("a/volume.mrc")[0], jt.read_volume("b/volume.mrc")[0])
    code, other = document("reconstruct", "--config=a/config.toml", "--steps", "2", "--out", "c")
    assert code == 0 and other["steps"] == 2


def test_config_file_with_mistakes(command, tmp_path, simulated):
    for text, hint in (
        ("stepps = 3", "stepps"),
        ("[solving]\nstepps = 3", "Did you mean steps?"),
        ("[solving]\nsteps = 'many'", "solving.steps"),
        ("[solving]\nassess = 3", "neither true nor false"),
        ("solving = 3", "[solving]"),
        ("[solving\n", "is no TOML file"),
    ):
        (tmp_path / "bad.toml").write_text(text)
        code, out, err = command("reconstruct", simulated, "--config", "bad.toml")
        assert (code, out) == (3, "") and "bad.toml" in err and hint in err, (text, err)
    assert command("reconstruct", simulated, "--config", "none.toml")[0] == 3


def test_an_existing_folder_is_safe(command, simulated, tmp_path):
    argv = ("reconstruct", simulated, "--method", "wbp", "--no-assess", "--out", "run")
    assert command(*argv)[0] == 0
    before = Path("run/run.json").read_bytes()
    code, _, err = command(*argv)
    assert code == 3 and "--resume" in err and "--overwrite" in err
    assert Path("run/run.json").read_bytes() == before
    Path("run/mine.txt").write_text("keep me")
    assert command(*argv, "--overwrite")[0] == 0
    assert Path("run/mine.txt").exists() and Path("run/run.json").read_bytes() != before
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    code, _, err = command(*argv[:-1], "home", "--overwrite")
    assert code == 3 and "no run of jaxtomo" in err and os.listdir("home") == ["letter.txt"]


def interrupt_after(monkeypatch, step):
    """Sends Ctrl-C to this process when the loop has done `step` steps."""

    def progress():
        def show(now):
            if now.step >= step and now.message is None:
                os.kill(os.getpid(), signal.SIGINT)

        return show

    monkeypatch.setattr(solving, "progress", progress)


@pytest.mark.parametrize("method", ["sirt", "tv"])
def test_resume_equals_the_uninterrupted_run(method, command, simulated, monkeypatch):
    argv = ("reconstruct", simulated, "--method", method, "--no-assess", *(WEIGHT if method == "tv" else ()))
    assert command(*argv, "--steps", "12", "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        code, out, err = command(*argv, "--steps", "12", "--out", "run")
    assert (code, out) == (130, "") and "--resume" in err
    assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"
    assert not any(Path("run", name).exists() for name in run_folder.RESULTS)
    code, _, err = command(*argv, "--steps", "12", "--out", "run", "--resume", "--seed", "5")
    assert code == 3 and "seed was 0 and is 5 now" in err
    code, _, err = command(*argv, "--steps", "12", "--out", "run", "--resume")
    assert code == 0 and "going on after step" in err
    assert np.array_equal(jt.read_volume("run/volume.mrc")[0], jt.read_volume("whole/volume.mrc")[0])
    lines = [Path(name, "metrics.jsonl").read_text() for name in ("run", "whole")]
    assert lines[0] == lines[1]
    code, out, err = command(*argv, "--steps", "12", "--out", "run", "--resume")
    assert code == 0 and "is finished" in err and "12 steps" in out
    code, out, _ = command(*argv, "--steps", "15", "--out", "run", "--resume")
    assert code == 0 and "15 steps" in out


def test_a_failed_extension_leaves_the_finished_run(command, simulated, monkeypatch):
    argv = ("reconstruct", simulated, "--method", "sirt", "--no-assess", "--out", "run")
    assert command(*argv, "--steps", "3")[0] == 0
    before = {name: Path("run", name).read_bytes() for name in os.listdir("run")}
    real = solving.reconstruct
    for failure in (KeyboardInterrupt, ZeroDivisionError):

        def failing(*given, failure=failure, **options):
            real(*given, **options)
            raise failure

        monkeypatch.setattr(solving, "reconstruct", failing)
        assert command(*argv, "--steps", "6", "--resume")[0] == (130 if failure is KeyboardInterrupt else 1)
        assert {name: Path("run", name).read_bytes() for name in os.listdir("run")} == before
    monkeypatch.setattr(solving, "reconstruct", real)
    code, out, _ = command(*argv, "--steps", "6", "--resume")
    assert code == 0 and "6 steps" in out and "steps = 6" in Path("run/config.toml").read_text()


def test_interrupted_before_the_first_step_leaves_nothing(command, simulated, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(solving, "reconstruct", lambda *_, **__: interrupted())
    code, out, err = command("reconstruct", simulated, "--out", "run")
    assert (code, out) == (130, "") and "run" in err and not Path("run").exists()


def test_resume_notices_another_input(command, simulated, tmp_path, monkeypatch):
    series = jt.read(simulated)
    jt.write("mine.mrc", series)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert command("reconstruct", "mine.mrc", "--steps", "9", *WEIGHT, "--out", "run")[0] == 130
    jt.write("mine.mrc", series.replace(images=series.images + 1))
    code, _, err = command("reconstruct", "mine.mrc", "--steps", "9", *WEIGHT, "--out", "run", "--resume")
    assert code == 3 and "not the file" in err


def test_weight_is_chosen_by_left_out_tilts(document, simulated, monkeypatch):
    """Which is the default. A run that goes on keeps the weight it was begun with."""
    argv = ("reconstruct", simulated, "--steps", "9", "--no-assess", "--out", "run")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert document(*argv, loud=True)[0] == 130
    chosen = json.loads(Path("run/run.json").read_text())["weight"]
    monkeypatch.setattr(running, "choose_weight", None)
    code, facts = document(*argv, "--resume")
    assert code == 0 and facts["weight_chosen"] and facts["weight"] == chosen and chosen in methods.WEIGHTS["tv"]


def test_slabs_give_the_same_volume(document, simulated, monkeypatch, tmp_path):
    argv = ("reconstruct", simulated, "--method", "sirt", "--steps", "5", "--no-assess", "--no-align")
    assert document(*argv, "--out", "whole")[0] == 0
    code, facts = document(*argv, "--slabs", "3", "--out", "parts")
    assert code == 0 and "3 slabs" in facts["message"]
    whole, parts = (jt.read_volume(f"{name}/volume.mrc")[0] for name in ("whole", "parts"))
    np.testing.assert_allclose(parts, whole, atol=1e-5 * whole.max())
    with monkeypatch.context() as patch:
        slabs = iter(range(3))

        def progress():
            second = next(slabs) == 1
            return lambda now: os.kill(os.getpid(), signal.SIGINT) if second and now.message is None else None

        patch.setattr(solving, "progress", progress)
        assert document(*argv, "--slabs", "3", "--out", "stopped", loud=True)[0] == 130
    code, told = document(*argv, "--slabs", "3", "--out", "stopped", "--resume", "--steps", "9")
    assert code == 3 and "steps was 5" in told["error"]
    assert len(json.loads(Path("stopped/checkpoint/slabs.json").read_text())["finished"]) == 1
    assert document(*argv, "--slabs", "3", "--out", "stopped", "--resume")[0] == 0
    np.testing.assert_array_equal(jt.read_volume("stopped/volume.mrc")[0], parts)
    assert {*os.listdir("stopped")} == {*os.listdir("whole")}


def test_slabs_of_an_aligned_series_meet(document, simulated):
    argv = ("reconstruct", simulated, "--method", "sirt", "--steps", "8")
    assert document(*argv, "--out", "whole")[0] == 0
    code, facts = document(*argv, "--slabs", "2", "--out", "parts")
    assert code == 0 and facts["metrics"]["prediction_error"] > 0
    whole, parts = (jt.read_volume(f"{name}/volume.mrc")[0] for name in ("whole", "parts"))
    assert np.abs(whole - parts).max() < 0.02 * whole.max()


def test_one_slab_is_the_middle_of_the_whole(document, simulated):
    argv = ("reconstruct", simulated, "--method", "sirt", "--steps", "5", "--no-assess", "--no-align")
    assert document(*argv, "--out", "whole")[0] == 0
    code, facts = document(*argv, "--slab", "8:15", "--out", "part")
    assert code == 0 and facts["shape"] == [24, 7, 24]
    whole, part = (jt.read_volume(f"{name}/volume.mrc")[0] for name in ("whole", "part"))
    np.testing.assert_allclose(part, whole[:, 8:15], atol=1e-5 * whole.max())


def test_gates(command, document, simulated):
    argv = ("reconstruct", simulated, "--method", "sirt", "--steps", "3", "--no-assess")
    assert document(*argv, "--fail-under", "misfit=0.99", "--out", "a")[0] == 0
    code, out, err = command(*argv, "--fail-under", "misfit=1e-9,resolution_nm=99", "--out", "b")
    assert code == 5 and "misfit is" in err and "resolution_nm was not measured" in err
    assert "report.html" in out and Path("b/volume.mrc").exists()


def test_compare(command, document, simulated):
    truth = simulated.with_name("core_truth.mrc")
    code, same = document("compare", truth, truth)
    assert code == 0 and same["rmse"] == 0 and same["psnr"] is None and same["ssim"] == pytest.approx(1)
    volume, nm = jt.read_volume(truth)
    jt.write("noisy.mrc", volume + np.random.default_rng(0).normal(0, 0.1, volume.shape), voxel_nm=nm)
    code, facts = document("compare", "noisy.mrc", truth, "--data-range", "1")
    assert code == 0 and facts["psnr"] == pytest.approx(20, abs=0.2) and facts["resolution_nm"] > 1
    assert "cylinder" in facts["fsc_mask"] == facts["fsc_cones"]["mask"]  # one mask, or they could not be compared
    outside = jt.metrics.cylinder(volume.shape) == 0
    jt.write("outside.mrc", np.where(outside, 9, volume), voxel_nm=nm)
    assert document("compare", "outside.mrc", truth)[1]["resolution_voxels"] == 2
    code, out, err = command("compare", "noisy.mrc", truth, "--fail-under", "psnr=60,ssim=0.1")
    assert code == 5 and "PSNR" in out and "FSC within" in out and "psnr is" in err and "ssim" not in err
    jt.write("small.mrc", volume[:5])
    code, _, err = command("compare", "small.mrc", truth)
    assert code == 3 and "5 × 24 × 24" in err and "24 × 24 × 24" in err


def test_report_again(command, document, simulated, whole_report):
    assert document("reconstruct", simulated, "--method", "wbp", "--no-assess", "--out", "run")[0] == 0
    assert "Alignment" in Path("run/report.html").read_text()
    Path("run/report.html").unlink()
    code, out, _ = command("report", "run")
    assert (code, out.strip()) == (0, "run/report.html") and Path("run/report.html").stat().st_size > 10_000
    code, facts = document("report", "run/reconstruction.h5", "--out", "page.html")
    assert code == 0 and Path(facts["report"]).is_file()
    code, _, err = command("report", "nowhere")
    assert code == 3 and "nowhere" in err
    assert document("compare", "run", "run")[1]["rmse"] == 0


def test_simulate(command, document):
    argv = (
        "simulate",
        "chiral",
        "--size",
        "16",
        "--tilts",
        "-20:20:10",
        "--dose",
        "30",
        "--out",
        "c.h5",
        "--seed",
        "4",
    )
    code, facts = document(*argv)
    assert code == 0 and facts["microscope"]["dose"] == 30 and facts["true_shift_px"] is None
    series = jt.read("c.h5")
    assert series.images.shape == (5, 16, 16) and series.pixel_nm == 1
    code, _, err = command(*argv)
    assert code == 3 and "--overwrite" in err
    assert command(*argv, "--overwrite")[0] == 0
    assert np.array_equal(jt.read("c.h5").images, series.images)
    for more, hint in (
        (["--tilts", "tilt.txt"], "tilt.txt"),
        (["--tilts", "3:1:5"], "3:1:5"),
    ):
        code, _, err = command("simulate", "chiral", "--out", "d.mrc", *more)
        assert code == 3 and hint in err and not Path("d.mrc").exists()
    for wrong in (("kitten",), ("chiral", "--dose", "-3")):
        assert command("simulate", *wrong, "--out", "d.mrc")[0] == 2 and not Path("d.mrc").exists()


def test_align_writes_an_aligned_series(document, simulated):
    code, facts = document("align", simulated, "--out", "aligned.mrc", "--xf", "aligned.xf")
    assert code == 0 and len(facts["shift_u_px"]) == 17
    aligned = jt.read("aligned.mrc")
    assert aligned.images.shape == (17, 24, 24) and aligned.pixel_nm == pytest.approx(1)
    found, before = (
        np.array(document("align", name, "--out", out)[1]["shift_u_px"])
        for name, out in (("aligned.mrc", "again.mrc"), (simulated, "first.mrc"))
    )
    assert np.abs(found).max() < 0.5 * np.abs(before).max()


def test_transforms_stand_for_the_alignment(document, simulated):
    assert document("align", simulated, "--out", "aligned.mrc", "--xf", "aligned.xf")[0] == 0
    argv = ("reconstruct", simulated, "--method", "sirt", "--steps", "5", "--no-assess")
    assert document(*argv, "--out", "own")[0] == 0
    assert document(*argv, "--xf", "aligned.xf", "--out", "imod")[0] == 0
    own, imod = (jt.read_volume(f"{name}/volume.mrc")[0] for name in ("own", "imod"))
    assert np.corrcoef(own.ravel(), imod.ravel())[0, 1] > 0.97


def test_binning(document, simulated):
    code, facts = document("reconstruct", simulated, "--method", "wbp", "--no-assess", "--bin", "2", "--no-align")
    assert code == 0 and facts["shape"] == [12, 12, 12] and facts["voxel_nm"] == 2


def test_demo(command, document, simulated, monkeypatch):
    """Its whole path, but with one step on a thin volume."""
    from jaxtomo.commands import demo

    monkeypatch.setattr(demo, "Solving", lambda **_: Solving(weight=0.1, thickness=8, steps=1, assess=False))
    monkeypatch.setattr(demo, "Preparing", lambda: Preparing(bin=4))
    code, out, err = command("demo")
    assert code == 0 and "jaxtomo-demo/report.html" in out and "77 images" in err
    assert document("demo")[0] == 0  # again, over the first one
    assert document("reconstruct", simulated, "--method", "wbp", "--no-assess", "--out", "mine")[0] == 0
    code, _, err = command("demo", "--out", "mine")
    assert code == 3 and "another series" in err


def test_no_colour_off_a_terminal_or_when_not_wanted(monkeypatch):
    from jaxtomo.console import coloured

    class Terminal:
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("x", "1", Terminal()) == "\033[1mx\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("x", "1", Terminal()) == "x"
    assert coloured("x", "1", sys.stdout) == "x"


def test_a_bug_is_one_line_unless_asked_for(command, simulated, monkeypatch):
    from jaxtomo.commands import inspect

    def broken(*_):
        raise ZeroDivisionError("of course")

    monkeypatch.setattr(inspect, "run", broken)
    code, out, err = command("inspect", simulated)
    assert (code, out) == (1, "") and len(err.splitlines()) == 1 and "ZeroDivisionError" in err
    code, out, err = command("inspect", simulated, "--debug", "--json")
    assert code == 1 and "Traceback" in err and json.loads(out)["exit_code"] == 1


def test_a_reader_that_stops_reading_is_no_error(simulated):
    argv = [sys.executable, "-m", "jaxtomo.cli", "inspect", str(simulated), "--json"]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(argv, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_ensemble_writes_its_spread(document, simulated):
    argv = ("reconstruct", simulated, "--no-align", "--method", "root-tv", "--steps", "4", "--weight", "0.2")
    code, facts = document(*argv, "--members", "2", "--no-assess", "--out", "run")
    assert code == 0 and facts["steps"] == 8 and "spread.mrc" in facts["files"]
    spread, voxel_nm = jt.read_volume("run/spread.mrc")
    assert spread.shape == (24, 24, 24) and spread.max() > 0 and voxel_nm == pytest.approx(1)


def test_poses_are_refined_and_told(simulated, command):
    argv = ("reconstruct", simulated, "--method", "sirt", "--steps", "3", "--no-assess", "--out", "run", "--quiet")
    code, _, said = command(*argv, "--refine-poses", "shift,tilt=0.2")
    assert code == 0, said
    lines = Path("run/poses.csv").read_text().splitlines()
    assert lines[0] == "tilt_deg,shift_u_px,shift_v_px,error_shift_u_px,error_shift_v_px,error_tilt_deg"
    table = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])
    assert table.shape == (17, 6) and np.isfinite(table).all() and (table[:, 3:] > 0).all()
    result = read_reconstruction("run/reconstruction.h5")
    assert len(result.settings["alignment"]["error_tilt_deg"]) == 17
    assert "refine_poses" in Path("run/config.toml").read_text()


def test_joint_alignment_for_other_programs(simulated, command, document):
    code, facts = document("align", simulated, "--joint", "shift,tilt=0.2", "--out", "a.mrc", "--xf", "a.xf")
    assert code == 0 and len(facts["refined_tilt_deg"]) == 17
    angles = np.loadtxt("a.tlt")
    np.testing.assert_allclose(angles, np.arange(-64, 65, 8) + np.array(facts["refined_tilt_deg"]), atol=1e-3)
    assert np.loadtxt("a.xf").shape == (17, 6)
    np.testing.assert_allclose(jt.read("a.mrc").tilt_deg, angles, atol=1e-3)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("reconstruct", "--refine-poses", "tilts"), 3, "no 'tilts'"),
        (("reconstruct", "--refine-poses", "tilt=x"), 3, "no number"),
        (("align", "--joint", "rotation"), 3, "--refine-poses"),
        (("align", "--joint", "jump"), 3, "names nothing"),
        (("reconstruct", "--refine-poses", "rotation", "--slab", "2:9"), 3, "--slab"),
        (("reconstruct", "--refine-poses", "axis", "--no-align", "--slab", "2:9"), 3, "--slab"),
    ],
)
def test_what_cannot_be_refined_is_said(simulated, command, argv, code, words):
    got, _, said = command(argv[0], simulated, *argv[1:], "--quiet")
    assert got == code and words in said


def test_methods_are_compared_on_tilts_they_have_not_seen(document, simulated):
    given = ["compare", "methods", simulated, "--out", "all", "--hold-out", "3"]
    code, facts = document(*given, "--methods", "wbp,sirt,cgls,gan", "--weights", "nano")
    assert code == 0 and set(facts["ranked"]) == {"wbp", "sirt", "cgls"}
    assert "weights of --method diffusion" in facts["left_out"]["gan"]
    errors = [facts["methods"][name]["metrics"]["held_out_error"] for name in facts["ranked"]]
    assert errors == sorted(errors) and errors[0] < errors[-1] and len(facts["held_out_tilts_deg"]) == 3
    page = Path("all/compare.html").read_text()
    assert all(f"{name}/report.html" in page for name in facts["ranked"]) and "weights of --method diffusion" in page
    assert json.loads(Path("all/compare.json").read_text())["ranked"] == facts["ranked"]
    stamp = Path("all/sirt/volume.mrc").stat().st_mtime_ns
    code, again = document(*given, "--methods", "wbp,sirt,tv", "--minutes", "1e-6")
    assert code == 0 and set(again["ranked"]) == {"wbp", "sirt"} and "were left" in again["left_out"]["tv"]
    assert Path("all/sirt/volume.mrc").stat().st_mtime_ns == stamp  # what is done is not done again
    assert again["methods"]["sirt"] == facts["methods"]["sirt"]


def test_a_contest_keeps_to_its_time_and_ranks_by_what_is_unseen():
    """The quickest first; what fails or has no error is never the winner."""
    tried, errors = [], {"quick": 0.3, "slow": 0.1, "blind": math.nan, "tied": 0.1}

    def attempt(name):
        tried.append(name)
        if name == "broken":
            raise jt.InputError("it cannot")
        return {"metrics": {"held_out_error": errors[name], "resolution_voxels": 3.0 if name == "slow" else 4.0}}

    seconds = {"slow": 50.0, "quick": 1.0, "broken": 2.0, "blind": 3.0, "tied": 4.0, "endless": 1e9}
    console = Console(quiet=True)
    found, left = contest.contest(seconds, attempt, 1.0, console)
    assert tried == ["quick", "broken", "blind", "tied", "slow"]
    assert list(found) == ["slow", "tied", "quick", "blind"]
    assert left["broken"] == "it cannot" and "were left" in left["endless"]
    assert list(contest.contest(seconds, attempt, 1e-9, console)[0]) == ["quick"]  # the first is always tried
    assert (
        "endless"
        in contest.contest({"endless": 1e9, "quick": 1}, lambda _: found["quick"], 1e-9, console, ["endless"])[0]
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 12))
def test_methods_are_equal_within_the_noise_of_their_difference(seed, tilts):
    rng = np.random.default_rng(seed)
    hard = rng.uniform(0.1, 0.5, tilts)  # some tilts are harder for all, which is no noise
    errors = {"a": hard, "b": hard * 1.1, "c": hard * (1 + 0.3 * rng.normal(size=tilts))}
    equal = contest.tied(errors)
    best = min(errors, key=lambda name: np.mean(errors[name] ** 2))
    assert best in equal and not {"a", "b"} <= contest.tied({"a": np.full(tilts, 0.1), "b": np.full(tilts, 0.11)})
    assert contest.tied({name: 2 * error for name, error in errors.items()}) == equal
    assert contest.tied(errors | {"twin": errors[best]}) == equal | {"twin"}


def test_noise_alone_makes_no_winner():
    """Two methods that differ by chance are told apart in about one of three cases."""
    rng, hard = np.random.default_rng(1), np.linspace(0.1, 0.5, 8)
    told = [contest.tied({name: hard + 0.01 * rng.normal(size=8) for name in "ab"}) for _ in range(400)]
    assert 0.55 < np.mean([len(equal) == 2 for equal in told]) < 0.75


@pytest.fixture
def two_methods(monkeypatch):
    """What auto tries, in seconds."""
    monkeypatch.setattr(methods, "QUICK", ("wbp", "tv"))
    monkeypatch.setitem(methods.WEIGHTS, "tv", (0.03, 0.3))


def test_auto_goes_on_with_the_method_that_predicts_best(document, command, simulated, two_methods, monkeypatch):
    argv = ("reconstruct", simulated, "--method", "auto", "--no-assess", "--out", "run")
    code, planned = document(*argv, "--dry-run")
    assert code == 0 and planned["one_of"] == ["wbp", "tv"] and planned["method"] == "auto"
    assert "auto, at most tv" in command(*argv, "--dry-run")[1]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert document(*argv, loud=True)[0] == 130
    tried = json.loads(Path("run/run.json").read_text())["chosen"]["tried"]
    best = min(tried, key=lambda name: tried[name]["held_out_error"])
    assert set(tried) == {"wbp", "tv"} and best == "tv" and tried["tv"]["held_out_error"] < 0.5
    assert (
        'method = "tv"' in Path("run/config.toml").read_text() and "minutes" not in Path("run/config.toml").read_text()
    )
    monkeypatch.setattr(running, "choose_method", None)
    monkeypatch.setattr(running, "choose_weight", None)
    code, facts = document(*argv, "--resume", "--minutes", "3")
    assert code == 0 and facts["method"] == "tv" and facts["weight"] == tried["tv"]["weight"]
    assert facts["chosen"]["tried"] == tried and len(facts["chosen"]["held_out_tilts_deg"]) == 1
    assert (
        read_reconstruction(Path("run/reconstruction.h5")).settings["chosen"]["because"] == facts["chosen"]["because"]
    )


def test_auto_takes_the_usual_method_where_it_cannot_choose(document, command, simulated, two_methods):
    skipped = ",".join(map(str, range(3, 17)))
    argv = ("reconstruct", simulated, "--method", "auto", "--no-assess", "--no-align", "--skip", skipped)
    code, out, err = command(*argv, "--out", "few")
    assert code == 0 and "3 tilts are too few" in err and "3 tilts are too few" in out
    facts = json.loads(Path("few/run.json").read_text())
    assert facts["method"] == "tv" and "too few" in facts["chosen"]["because"]
    code, facts = document("reconstruct", simulated, "--method", "auto", "--likelihood", "poisson", "--dry-run")
    assert code == 0 and facts["method"] == "root-tv" and "one_of" not in facts  # neither of the two can


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        (["--weight", "0.1"], 3, "name a method"),
        (["--steps", "9"], 3, "name a method"),
        (["--slabs", "2"], 3, "name a method"),
        (["--weights", "nano"], 3, "has learned"),
        (["--minutes", "0"], 2, "above 0"),
    ],
)
def test_what_auto_cannot_do_is_said(command, simulated, wrong, code, words):
    got, _, said = command("reconstruct", simulated, "--method", "auto", *wrong)
    assert got == code and words in said


@pytest.mark.parametrize(
    "wrong", [["--methods", "sirt"], ["--methods", "sirt,nonsense"], ["--minutes", "0"], ["--hold-out", "0"]]
)
def test_what_cannot_be_compared_is_said(document, simulated, wrong):
    assert document("compare", "methods", simulated, *wrong)[0] == 2
    assert document("compare", "methods", "nothing.mrc")[0] == 3
    code, said = document("compare", "methods", simulated, "--hold-out", "16")
    assert code == 3 and "17 tilts" in said["error"]


def test_saturation_is_taken_out_and_recorded(command, document, simulated, monkeypatch):
    run = ("reconstruct", simulated, "--method", "sirt", "--steps", "3", "--no-assess", "--no-align")
    code, facts = document(*run, "--out", "as_it_is")
    code, said = document(*run, "--out", "absurd", "--saturation", "1e-6")
    assert code == 3 and "higher level" in said["error"]
    code, bent = document(*run, "--out", "bent", "--saturation", "40")
    assert code == 0 and bent["saturation"] == {"kappa": 1 / 40, "level": 40.0, "chosen": False, "above": 0}
    raw, straight = (read_reconstruction(Path(name) / "reconstruction.h5").series for name in ("as_it_is", "bent"))
    np.testing.assert_allclose(straight.images, -40 * np.log1p(-raw.images / 40), rtol=1e-4, atol=1e-4)
    assert "saturation" in straight.provenance and "saturation" not in facts

    found = jt.saturation.Saturation(0.02, 0.5, 0.1, 0.2)
    trusted, true_trust = [], jt.saturation.trusted
    monkeypatch.setattr(jt.saturation, "find", lambda problem, key: found)
    monkeypatch.setattr(
        "jaxtomo.commands.solving.trusted", lambda problem, kappa: trusted.append(kappa) or true_trust(problem, kappa)
    )
    code, bent = document(*run, "--out", "found", "--saturation", "auto")
    assert code == 0 and bent["saturation"]["chosen"] and bent["saturation"]["level"] == pytest.approx(50)
    assert trusted and set(trusted) == {0.02}

    monkeypatch.delattr(jt.saturation, "find")  # a run that goes on has found it
    more = [*run[:5], "5", *run[6:], "--out", "found", "--saturation", "auto", "--resume"]
    code, again = document(*more)
    assert code == 0 and again["saturation"] == bent["saturation"] and set(trusted) == {0.02}
    monkeypatch.setattr(jt.saturation, "find", lambda problem, key: found._replace(kappa=0.0), raising=False)
    code, bent = document(*run, "--out", "none", "--saturation", "auto")
    assert code == 0 and bent["saturation"]["level"] is None

    for wrong, hint in (
        (["--saturation", "0"], "above 0"),
        (["--saturation", "9", "--likelihood", "poisson"], "--likelihood poisson"),
        (["--saturation", "9", "--fit-intensity"], "--fit-intensity"),
    ):
        code, _, err = command(*run, *wrong, "--out", "wrong")
        assert code == 3 and hint in err


def test_the_volume_of_a_run_is_no_tilt_series(document, simulated):
    run = (
        "reconstruct",
        simulated,
        "--method",
        "wbp",
        "--no-assess",
        "--no-align",
        "--thickness",
        "17",
        "--out",
        "thin",
    )
    assert document(*run)[0] == 0  # as many slices as tilts, whose angles lie beside
    assert document("quantify", "thin/volume.mrc")[0] == 0
