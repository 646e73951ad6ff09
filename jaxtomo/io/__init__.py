"""Files in and out: `read` and `inspect` a tilt series, `read_volume`, `write`. NumPy only: JAX never starts here."""

from __future__ import annotations

from .reading import inspect, read, read_volume
from .sniff import sha256
from .write import write

__all__ = ["inspect", "read", "read_volume", "sha256", "write"]
