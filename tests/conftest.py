"""Every test runs on eight CPU devices, with rank promotion and every warning an error.

Most of the time would go into compiling small programs that run once or twice. So XLA optimises less than it does for
users, and in files and tests marked `optimised(False)` hardly at all: the suite takes less than half the time.
JAXTOMO_TEST_OPTIMISED=1 has everything compiled as users have it, as `.ci/run` has the demo.
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if not os.environ.get("JAXTOMO_TEST_OPTIMISED"):
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import jax
import pytest

AS_USERS = bool(os.environ.get("JAXTOMO_TEST_OPTIMISED"))
SHARED = Path(__file__).parents[2] / "shared" / "data"


def _optimise(node) -> None:
    mark = node.get_closest_marker("optimised")
    jax.config.update("jax_disable_most_optimizations", not AS_USERS and mark is not None and not mark.args[0])


@pytest.fixture(scope="module", autouse=True)
def programs(request):
    """Fixtures of a file are compiled as its mark says. Compiled programs are forgotten after each file: some thousand
    in one process exhaust its memory maps, and XLA crashes."""
    _optimise(request.node)
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def optimised(request):
    """As the nearest mark `optimised` says; without one, programs are."""
    _optimise(request.node)
    yield
    _optimise(request.node.parent)


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
