"""IP bytes that a message takes on a link: payload, and the headers of the TCP segments that carry it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

SEGMENT_BYTES = 1448  # TCP payload of a full segment: 1500 less 20 of IP, 20 of TCP and 12 of TCP's time stamps
HEADER_BYTES = 52  # IP and TCP headers of each segment; links are shaped at the IP layer, so Ethernet's do not count

Sizes = TypeVar("Sizes", float, NDArray[np.float64])


def wire_bytes(message_bytes: Sizes) -> Sizes:
    """IP bytes of a message over TCP with full segments: the message and 52 bytes for each 1448 begun."""
    return message_bytes + HEADER_BYTES * -(-message_bytes // SEGMENT_BYTES)
