"""What is printed of a run, before and after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..console import table
from ..plan import Memory, Plan, size


def dry_document(facts: dict, planned: Plan, why: str, free: Memory, folder: Path) -> dict[str, Any]:
    """What `--dry-run --json` prints; `why` says where the number of slabs is from."""
    return {
        "input": facts,
        "method": planned.method,
        "steps": planned.steps,
        "shape": [planned.thickness, planned.rows, planned.width],
        "tilts": planned.tilts,
        "slabs": planned.slabs,
        "slab_rows": planned.slab_rows,
        "slabs_because": why,
        "device": planned.device,
        "memory_bytes": {
            "host": planned.host_bytes,
            "device": None if planned.device == "cpu" else planned.solver_bytes,
        },
        "free_bytes": {"host": free.host, "device": free.device},
        "seconds": round(planned.seconds),
        "folder": str(folder),
    }


def dry_text(document: dict[str, Any]) -> str:
    needed, free = document["memory_bytes"], document["free_bytes"]
    memory = f"about {size(needed['host'])}" + ("" if free["host"] is None else f" of {size(free['host'])} free")
    if needed["device"] is not None:
        memory += f"; on the {document['device']} {size(needed['device'])}"
        memory += "" if free["device"] is None else f" of {size(free['device'])} free"
    angles = document["input"]["angles"]
    rows = [
        ("tilts", f"{document['tilts']}, {angles['min']:.4g}° to {angles['max']:.4g}°"),
        ("volume", f"{shape_text(document['shape'])} voxels [z, y, x]"),
        ("choosing", f"one of {', '.join(document['one_of'])}" if "one_of" in document else None),
        ("method", f"{_method(document)}, up to {document['steps']} steps, on {document['device']}"),
        ("slabs", _slabs(document)),
        ("memory", memory),
        ("time", f"about {duration(document['seconds'])}"),
        ("folder", document["folder"]),
    ]
    return f"{document['input']['file']}: nothing is done, because of --dry-run\n{table(rows)}"


def _method(document: dict[str, Any]) -> str:
    return document["method"] + (f", at most {document['at_most']}" if "at_most" in document else "")


def _slabs(document: dict[str, Any]) -> str | None:
    if document["slabs"] == 1:
        return None
    return f"{document['slabs']} of {document['slab_rows']} rows, margins included: {document['slabs_because']}"


def run_text(facts: dict[str, Any]) -> str:
    """The result of a run in a dozen lines."""
    metrics, folder = facts["metrics"], Path(facts["folder"])
    held = metrics.get("held_out_error")
    rows = [
        ("volume", f"{shape_text(facts['shape'])} voxels [z, y, x]" + _voxel(facts.get("voxel_nm"))),
        ("method", f"{facts['method']}, {facts['steps']} steps" + _weight(facts)),
        ("saturation", _saturation(facts.get("saturation"))),
        ("chosen", facts.get("chosen", {}).get("because")),
        ("stopped", facts["message"]),
        ("misfit", _percent(metrics.get("misfit"), "of the measured signal")),
        ("prediction", _percent(metrics.get("prediction_error"), "error, even tilts from odd and odd from even")),
        ("held out", None if held is None else _percent(held, f"error on {len(metrics['held_out_tilts_deg'])} tilts")),
        ("resolution", _resolution(metrics)),
        ("time", _time(facts["seconds"])),
        ("files", _files(folder, facts["files"])),
    ]
    return f"{folder}\n{table(rows)}"


def shape_text(shape) -> str:
    return " × ".join(map(str, shape))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _voxel(nm: float | None) -> str:
    return f" of {nm:.4g} nm" if nm else ""


def _weight(facts: dict[str, Any]) -> str:
    weight = facts.get("weight")
    if weight is None:
        return ""
    return f", weight {weight:g}" + (" (chosen by left-out tilts)" if facts.get("weight_chosen") else "")


def _saturation(found: dict[str, Any] | None) -> str | None:
    if found is None:
        return None
    if not found["level"]:
        return "none found, images are linear"
    return f"images level off at {found['level']:.4g}" + (", by left-out tilts" if found["chosen"] else ", as given")


def _percent(value: float | None, of: str) -> str | None:
    return None if value is None or value != value else f"{100 * value:.3g} % {of}"


def _resolution(metrics: dict[str, Any]) -> str | None:
    voxels, nm = metrics.get("resolution_voxels"), metrics.get("resolution_nm")
    if voxels is None:
        return None
    if voxels != voxels or voxels == float("inf"):
        return "even and odd tilts do not agree at any"
    text = f"{voxels:.3g} voxels" if nm is None or nm != nm else f"{nm:.3g} nm ({voxels:.2g} voxels)"
    finest = ", the finest these voxels can show" if voxels < 2.01 else ""
    return f"{text}{finest}; even/odd tilts at FSC 0.143"


def _time(seconds: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {duration(spent)}" for name, spent in seconds.items() if spent >= 0.05)
    return f"{duration(sum(seconds.values()))}: {parts}"


def _files(folder: Path, names: list[str]) -> str:
    shown = [name for name in ("report.html", "volume.mrc", "spread.mrc", "reconstruction.h5") if name in names]
    return "\n".join(str(folder / name) for name in shown)
