"""Particles and pores of a volume: found by a threshold, bounded at half height, counted and measured, with intervals.

NumPy in, NumPy out. Lengths are in nm where a voxel size is given, else in voxels; z is the direction of the beam at
zero tilt, along which a missing wedge makes bodies longer.
"""

from .bodies import Bodies, Search, particles, pores, thresholds
from .edges import bounded, closed
from .intervals import USUAL, Interval, Measured, intervals, unsure, write_table
from .measures import measured

__all__ = [
    "USUAL",
    "Bodies",
    "Interval",
    "Measured",
    "Search",
    "bounded",
    "closed",
    "intervals",
    "measured",
    "particles",
    "pores",
    "thresholds",
    "unsure",
    "write_table",
]
