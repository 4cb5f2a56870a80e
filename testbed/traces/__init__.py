"""Bandwidth traces: the `Trace` type, one reader per format, a seeded LTE generator."""

from __future__ import annotations

from testbed.traces.registry import FORMATS, Format, detect, file_sha256, load_trace, save_trace
from testbed.traces.rtt import load_rtt_log
from testbed.traces.trace import Trace, concatenate, constant, device_offset_ns

__all__ = [
    "FORMATS",
    "Format",
    "Trace",
    "concatenate",
    "constant",
    "detect",
    "device_offset_ns",
    "file_sha256",
    "load_rtt_log",
    "load_trace",
    "save_trace",
]
