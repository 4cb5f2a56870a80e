"""Buckets counted in bytes: what one offload puts on a link."""

from __future__ import annotations

from testbed.measurement.wire import wire_bytes
from testbed.policies.bandwidth import MESSAGE_BYTES
from testbed.policies.token_bucket.bucket import Bucket
from testbed.schema.units import parse_rate_bps, parse_size_bytes


def offload_bytes(payload_bytes: int) -> int:
    """IP bytes that one offload with this payload takes on the link: HTTP head, tensor header and TCP segments included."""
    return round(wire_bytes(float(payload_bytes + MESSAGE_BYTES)))


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
