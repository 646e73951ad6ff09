"""How far off may poses be for joint refinement to find them? Sweeps the size of the misalignment, one kind after the
other and all together, and plots what is left against what was there.

Run it with `python examples/alignment_study.py`: a quarter of an hour on two cores; it writes alignment_study.png.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

import jaxtomo as jt
from jaxtomo.poses import movement
from jaxtomo.simulate import Microscope

FREE = {
    "shift": {"shift_px": np.inf},
    "tilt": {"shift_px": 0.0, "tilt_deg": 1.0},
    "rotation": {"shift_px": 0.0, "rotation_deg": 1.0},
    "all": {"shift_px": np.inf, "tilt_deg": 1.0, "rotation_deg": 1.0},
}
UNITS = {"shift": "px", "tilt": "°", "rotation": "°"}


def wrong(problem, pose, true, name):
    """RMS of what is wrong with a pose, in pixels or degrees, beyond what the specimen can do itself."""
    found, wanted = (getattr(p, name) for p in (pose, true))
    found = jnp.zeros_like(wanted) if found is None else found
    apart = movement(problem, {name: found - wanted})[name]
    return float(jnp.sqrt(jnp.mean(apart**2))) * (1.0 if name == "shift" else 180 / np.pi)


def study(size: int, tilt_deg, kind: str, amount: float, steps: int) -> dict[str, tuple[float, float]]:
    """(before, after) of every parameter that was misaligned, by `amount` in pixels and degrees."""
    names = [*UNITS] if kind == "all" else [kind]
    jitter = {"shift": "shift_jitter_px", "tilt": "tilt_jitter_deg", "rotation": "rotation_jitter_deg"}
    microscope = Microscope(dose=60, **{jitter[name]: amount for name in names})
    fine = jt.phantoms.supported_particles((2 * size,) * 3, seed=1)
    series, _, true = jt.simulate.simulate(fine, tilt_deg, microscope, seed=1)
    start = jt.Pose.nominal(tilt_deg)
    if true.shift is not None:
        start = start.replace(shift=jnp.zeros_like(true.shift))
    problem = jt.Problem(series, start)
    refined = jt.refine(problem, jt.Freedom(**FREE[kind]), steps=steps)
    return {name: tuple(wrong(problem, pose, true, name) for pose in (start, refined.pose)) for name in names}


def main(
    size: int = 48,
    steps: int = 300,
    amounts: Sequence[float] = (0.25, 0.5, 1.0, 2.0),
    kinds: Sequence[str] = tuple(FREE),
    out: str = "alignment_study.png",
):
    import matplotlib.pyplot as plt

    tilt_deg = np.arange(-60, 61, 5)
    width = 3.4 * len(kinds)
    figure, axes = plt.subplots(1, len(kinds), figsize=(width, 3.2), sharey=True, squeeze=False, layout="constrained")
    panels = axes[0]
    for panel, kind in zip(panels, kinds, strict=True):
        found = [study(size, tilt_deg, kind, amount, steps) for amount in amounts]
        for name in found[0]:
            before, after = np.transpose([one[name] for one in found])
            panel.loglog(before, after, "o-", label=f"{name}, {UNITS[name]}")
            print(kind, name, *(f"{b:.3f} -> {a:.3f}" for b, a in zip(before, after, strict=True)), UNITS[name])
        panel.plot([0.1, 3], [0.1, 3], ":", color="grey")
        panel.set(title=f"learned: {kind}", xlabel="RMS error before")
        panel.legend()
    panels[0].set_ylabel("and after refinement")
    figure.savefig(out, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
