"""Codecs for tensors that cross a cut, by name: float32, half, 8 bits, lossless on top, images, learned bottlenecks.

    encoded = codec("int8+zstd").encode(x)
    back = codec("int8+zstd").decode(encoded.arrays, encoded.params)

`CODECS` knows all that needs no catalogue; `Registry(catalogue)` knows the catalogue's learned bottlenecks too.
"""

from __future__ import annotations

from testbed.inference.codecs.base import Codec, Encoded
from testbed.inference.codecs.registry import Registry, is_codec_name, standard_names

CODECS = Registry()


def codec(name: str) -> Codec:
    """The codec of this name. Raises InputError naming those that exist."""
    return CODECS.named(name)


__all__ = ["CODECS", "Codec", "Encoded", "Registry", "codec", "is_codec_name", "standard_names"]
