"""Every test runs on eight CPU devices, with rank promotion and every warning an error."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import jax
import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Compiled programs are forgotten after each file: some thousand in one process exhaust its memory maps, and XLA
    crashes."""
    yield
    jax.clear_caches()


@pytest.fixture
def shared():
    """The folder of real data beside the repository; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the real data is not beside the repository")
    return SHARED


@pytest.fixture
def float64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """By method, a folder with the weights of tiny networks."""
    from untrained import pair, weights

    from jaxtomo.priors import gan, score

    folder = tmp_path_factory.mktemp("trained")
    score.save(folder / "diffusion", weights())
    gan.save(folder / "gan", pair())
    return {name: str(folder / name) for name in ("diffusion", "gan")}
