"""quantEM (`pip install quantem==0.1.10`) on one tilt series for a fixed wall time, in an environment of its own.

python quantem_worker.py INPUT.npz OUTPUT.npz --minutes 30 [--poses | --sirt]

INPUT holds `images` [tilt, y, x] (ray sums in voxel lengths, tilt axis along y), `tilt_deg` [tilt] and `truth`
[z, y, x], only to print scores by. OUTPUT holds `volumes` [snapshot, z, y, x] in the axes and units of the truth,
`seconds` and `epochs` [snapshot], with `--poses` the poses as quantEM has them, and `facts`, a JSON string.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from quantem.core.ml.inr import HSiren
from quantem.core.ml.optimizer_mixin import OptimizerParams
from quantem.tomography.dataset_models import TomographyINRDataset, TomographyPixDataset
from quantem.tomography.object_models import ObjectINR, ObjectPixelated
from quantem.tomography.tomography import Tomography
from quantem.tomography.tomography_lite import TomographyLiteConv
from scipy.ndimage import shift as spline_shift

SNAPSHOTS = 12
SLICES = 100  # calls of reconstruct that a budget is cut into: the learning rate changes from one to the next
SIRT_STEPS = (30, 100)


class Batches:
    """Stands in for quantEM's DataLoader, which takes the pixels one by one: the same shuffled batches, without end.

    Iterating gives `count` of them, and the next iteration goes on from there.
    """

    def __init__(self, dataset: TomographyINRDataset, size: int):
        stack = dataset.tilt_stack
        self.target, self.phi = stack.reshape(-1), dataset.tilt_angles
        self.pixels, self.columns = stack[0].numel(), stack.shape[2]
        self.size, self.count, self.served = min(size, len(self.target)), 1, 0
        self.order = torch.empty(0, dtype=torch.long)

    def __len__(self):
        return self.count

    def __iter__(self):
        for _ in range(self.count):
            if len(self.order) < self.size:
                self.order = torch.randperm(len(self.target))
            index, self.order = self.order[: self.size], self.order[self.size :]
            self.served += 1
            tilt, pixel = index // self.pixels, index % self.pixels
            yield {
                "projection_idx": tilt,
                "pixel_i": pixel // self.columns,
                "pixel_j": pixel % self.columns,
                "phi": self.phi[tilt],
                "target_value": self.target[index],
            }

    @property
    def epochs(self) -> float:
        return self.served * self.size / len(self.target)


def build(stack: torch.Tensor, angles: torch.Tensor, args: argparse.Namespace, seed: int) -> tuple[Tomography, Batches]:
    """What `TomographyLiteINR.from_dataset` builds, of another width and with or without poses."""
    torch.manual_seed(seed)
    side = stack.shape[1]
    # Not learning a pose is said twice, here and by no optimizer for it, which spares the gradient as well.
    dataset = TomographyINRDataset.from_data(stack, angles, learn_shift=args.poses, learn_tilt_axis=args.poses)
    network = HSiren(hidden_features=args.width, hidden_layers=args.layers, alpha=1, winner_initialization=72)
    with contextlib.redirect_stdout(None):
        model = ObjectINR.from_model(network, shape=(side,) * 3, device="cpu", rng=seed)
        work = Tomography.from_models(dataset, model, device="cpu", rng=seed, verbose=False)
    # With T > N tilts quantEM's own loader runs past the stack: it counts T max(T, N)^2 pixels.
    work.dataloader, work.sampler, work.val_dataloader, work.val_sampler = (
        Batches(dataset, args.batch),
        None,
        None,
        None,
    )
    return work, work.dataloader


def density(work: Tomography, scale: float) -> np.ndarray:
    """The volume [z, y, x]; quantEM's is [channel, axis, depth, across]."""
    with contextlib.redirect_stdout(None):
        view = work.obj_model.obj_view[0]
    return np.ascontiguousarray(view.transpose(1, 0, 2) * np.float32(scale))


def learn(stack: torch.Tensor, angles: torch.Tensor, args: argparse.Namespace, truth: np.ndarray) -> tuple[dict, dict]:
    """Train the network for the wall time, its learning rates falling along a cosine of the time spent."""
    budget, quantile = 60 * args.minutes, float(torch.quantile(stack, 0.95))
    scale = 2 * quantile / (stack.shape[1] - 1)
    start, aside, restarts = time.perf_counter(), 0.0, 0

    def spent() -> float:
        return time.perf_counter() - start - aside

    rates = {"object": args.rate} | ({"pose": args.pose_rate} if args.poses else {})
    fresh = {name: OptimizerParams.Adam(lr=rate) for name, rate in rates.items()}
    work, batches = build(stack, angles, args, args.seed)
    optimizers, calls, per_batch, seconds, volumes, epochs = fresh, 0, math.inf, [], [], []
    while True:
        before = spent()
        left = budget - before
        if calls:
            batches.count = max(1, round(min(left, budget / SLICES) / per_batch))
            for name, optimizer in work.optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = rates[name] * (0.01 + 0.99 * (1 + math.cos(math.pi * before / budget)) / 2)
        with contextlib.redirect_stdout(None):
            work.reconstruct(
                num_iter=1,
                batch_size=batches.size,
                num_workers=0,
                optimizer_params=optimizers,
                num_samples_per_ray=stack.shape[1],
                loss_type="l2",
                use_bfloat16=False,
            )
        optimizers, calls = None, calls + 1
        per_batch = (spent() - before) / batches.count
        done = spent() > budget - per_batch
        if (
            calls in (3, 10, 30) and not density(work, scale).any()
        ):  # Clamped to zero everywhere, it has no gradient left.
            restarts += 1
            work, batches = build(stack, angles, args, args.seed + 1000 * restarts)
            optimizers, calls = fresh, 0
            continue
        if done or spent() >= budget * (len(volumes) + 1) / SNAPSHOTS:
            pause = time.perf_counter()
            seconds.append(pause - start - aside)
            volumes.append(density(work, scale))
            epochs.append(batches.epochs)
            say(seconds[-1], epochs[-1], volumes[-1], truth)
            aside += time.perf_counter() - pause
        if done:
            break
    arrays = {"seconds": np.array(seconds), "volumes": np.stack(volumes), "epochs": np.array(epochs)}
    if args.poses:  # in the frame of the transposed images: [along the axis, across it] in pixels, angles in degrees
        with torch.no_grad():
            shifts, z1, z3 = (value.numpy().copy() for value in work.dset.forward())
        arrays |= {"shifts": shifts, "z1": z1, "z3": z3}
    facts = {
        "dead_restarts": restarts,
        "seconds_per_epoch": seconds[-1] / epochs[-1] if not restarts else None,
        "batch": batches.size,
        "samples_per_ray": stack.shape[1],
        "schedule": "cosine of the time spent, to 1 %",
        "loss": work.epoch_losses[-1],
        "aside_seconds": aside,
        "quantile": quantile,
    }
    return arrays, facts


def sirt(stack: torch.Tensor, angles: torch.Tensor, args: argparse.Namespace, truth: np.ndarray) -> tuple[dict, dict]:
    """quantEM's own SIRT; it turns about N // 2, so images of even size go in half a pixel over and come back."""
    side = stack.shape[1]
    over = side // 2 - (side - 1) / 2
    start, aside = time.perf_counter(), 0.0
    moved = torch.from_numpy(spline_shift(stack.numpy(), (0, over, 0), order=3, mode="nearest"))
    dataset = TomographyPixDataset.from_data(moved, angles)
    quantile = float(torch.quantile(moved, 0.95))
    model = ObjectPixelated.from_uniform(shape=(side,) * 3, device="cpu")  # from_dataset makes it max(T, N) wide
    work = TomographyLiteConv.from_models(dataset, model, device="cpu", rng=args.seed, verbose=False)
    seconds, volumes, done = [], [], 0
    for steps in SIRT_STEPS:
        with contextlib.redirect_stdout(None):
            work.reconstruct(num_iter=steps - done, mode="sirt")
        done = steps
        pause = time.perf_counter()
        seconds.append(pause - start - aside)
        back = spline_shift(work.obj_model.obj_view[0], (0, -over, -over), order=3, mode="nearest")
        volumes.append(np.ascontiguousarray(back.transpose(1, 0, 2) * np.float32(quantile)))
        say(seconds[-1], done, volumes[-1], truth)
        aside += time.perf_counter() - pause
    arrays = {"seconds": np.array(seconds), "volumes": np.stack(volumes), "epochs": np.array(SIRT_STEPS)}
    return arrays, {"quantile": quantile, "relaxation": 0.25, "shifted_pixels": over}


def say(seconds: float, epochs: float, volume: np.ndarray, truth: np.ndarray) -> None:
    """Print how near the truth a volume is, and the slope of their least-squares line through zero."""
    spread = float(truth.max() - truth.min())
    noise = float(np.sqrt(np.mean((volume.astype(np.float64) - truth) ** 2)))
    slope = float(np.vdot(truth, volume) / np.vdot(truth, truth))
    print(
        f"{seconds:8.1f} s {epochs:8.2f} epochs {20 * math.log10(spread / noise):6.2f} dB slope {slope:.3f}", flush=True
    )


def main() -> None:
    """Read, reconstruct, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=128, help="rays; fewer cost no more per ray and learn faster")
    parser.add_argument("--poses", action="store_true", help="learn shifts and the tilt axis as well")
    parser.add_argument("--pose-rate", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sirt", action="store_true", help="SIRT of 30 and 100 steps instead of the network")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    with np.load(args.input) as held:
        images, tilt, truth = (held[name] for name in ("images", "tilt_deg", "truth"))
    if images.shape[1] != images.shape[2]:
        sys.exit("quantEM needs square images")
    # Its tilt axis lies along the columns: images [tilt, across, along].
    stack = torch.from_numpy(np.ascontiguousarray(images.astype(np.float32).transpose(0, 2, 1)))
    if not torch.quantile(stack, 0.95) > 0:
        sys.exit("quantEM divides by the 95 % quantile of the images, which is not positive")
    arrays, facts = (sirt if args.sirt else learn)(stack, torch.from_numpy(tilt.astype(np.float32)), args, truth)
    versions = {name: version(name) for name in ("quantem", "torch", "numpy")}
    settings = {name: value for name, value in vars(args).items() if name not in ("input", "output")}
    facts = versions | {"threads": threads} | settings | facts
    np.savez(args.output, **arrays, facts=json.dumps(facts))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
