"""Buckets counted in bytes: what one offload puts on a link."""

from __future__ import annotations

import math

from testbed.policies.bandwidth import MESSAGE_BYTES
from testbed.policies.token_bucket.bucket import Bucket
from testbed.schema.units import parse_rate_bps, parse_size_bytes

SEGMENT_BYTES = 1448  # of TCP payload in a 1500-byte packet with time stamps
SEGMENT_HEADER_BYTES = 52  # IPv4 and TCP with time stamps


def wire_bytes(payload_bytes: int) -> int:
    """IP bytes of a message with this payload: HTTP head and tensor header, and the headers of every segment."""
    message_bytes = payload_bytes + MESSAGE_BYTES
    return message_bytes + SEGMENT_HEADER_BYTES * math.ceil(message_bytes / SEGMENT_BYTES)


def bucket_of(rate: float | str, depth: float | str, unit_s: float, image_bytes: int) -> Bucket:
    """From images per unit of time and images, or from texts such as `12kbit` and `16KB`. Raises ValueError, InputError."""
    if isinstance(rate, str) != isinstance(depth, str):
        raise ValueError("rate and depth: both count images, or one is a rate such as 12kbit and the other a size such as 16KB")
    if isinstance(rate, str) and isinstance(depth, str):
        try:
            rate_bps, depth_bytes = parse_rate_bps(rate), parse_size_bytes(depth)
        except ValueError as error:
            raise ValueError(f"rate, depth: {rate!r}, {depth!r}: {str(error).replace('|', '; ')}") from None
        return Bucket.of(rate_bps / 8 * unit_s / image_bytes, depth_bytes / image_bytes)
    return Bucket.of(float(rate), float(depth))
