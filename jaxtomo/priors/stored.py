"""Trained networks in a folder: parameters by Orbax, in half precision, and a card that says where they come from."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..errors import InputError
from ..methods import weights_folder
from ..spectrum import Spectrum


def known_as(card: Mapping[str, Any]) -> str:
    """For the record: how long a network learned, and the checksum of what from."""
    return f"{card.get('steps', 0)} steps on data {str(card.get('sha256', 'unknown'))[:12]}"


def write(folder: str | Path, network: nnx.Module, spectrum: Spectrum, table, card: Mapping[str, Any]) -> None:
    """Write a network and its card to a new folder, beside and renamed. `spectrum` and `table` (of
    `density.learned`) are those of what it learned from; they become part of the card."""
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    if folder.exists():
        raise InputError(f"{folder} is there already. Give another folder.")
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    leaves = jax.tree.leaves(nnx.state(network, nnx.Param))
    with ocp.StandardCheckpointer() as writer:
        writer.save(beside / "weights", {f"{i:04d}": leaf.astype(jnp.float16) for i, leaf in enumerate(leaves)})
    known: dict[str, Any] = {name: getattr(spectrum, name) for name in ("mean", "std")}
    known |= {name: [round(float(v), 8) for v in getattr(spectrum, name)] for name in ("frequency", "power")}
    card = {**card, "spectrum": known, "density": np.round(np.asarray(table, float), 6).tolist()}
    (beside / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    beside.rename(folder)


@contextlib.contextmanager
def renewed(folder: Path) -> Iterator[Path]:
    """A new folder beside it to write to, that takes its place at the end of the block."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    yield new
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def read(
    name: str | Path, method: str, make: Callable[[Mapping[str, Any]], Any]
) -> tuple[Any, Spectrum, np.ndarray, dict[str, Any]]:
    """(network, spectrum, table, card) of a folder, or of a name that ships; `make(card)` is a network of that shape.

    Raises InputError where there are none for that `method`.
    """
    import orbax.checkpoint as ocp

    folder = weights_folder(name, method)
    card = json.loads((folder / "card.json").read_text())
    # Its shape only: to draw random weights first takes longer than all else.
    graph, parameters, rest = nnx.split(nnx.eval_shape(lambda: make(card)), nnx.Param, ...)
    leaves, structure = jax.tree.flatten(parameters)
    asked = {f"{i:04d}": jax.ShapeDtypeStruct(leaf.shape, jnp.float16) for i, leaf in enumerate(leaves)}
    with ocp.StandardCheckpointer() as reader:
        kept = reader.restore(folder / "weights", asked)
    found = jax.tree.unflatten(structure, [jnp.asarray(kept[key], jnp.float32) for key in sorted(kept)])
    known = card["spectrum"]
    spectrum = Spectrum(np.asarray(known["frequency"]), np.asarray(known["power"]), known["mean"], known["std"])
    return nnx.merge(graph, found, rest), spectrum, np.asarray(card["density"], np.float32), card
