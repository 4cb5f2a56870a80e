"""The registry: codecs by name. Families are parsed from the name; learned bottlenecks come from a model catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from testbed.errors import InputError
from testbed.inference.codecs.base import Codec
from testbed.inference.codecs.image import LOSSLESS_IMAGES, QUALITIES, image_codec
from testbed.inference.codecs.learned import KEY, PREFIX, Bottleneck, BottleneckInfo, read_bottlenecks
from testbed.inference.codecs.lossless import METHODS, Lossless
from testbed.inference.codecs.tensor import Fp16, Int8, Int8Channel, Raw, Uint8

_FIXED: Mapping[str, Codec] = {c.name: c for c in (Raw(), Fp16(), Int8(), Int8Channel(), Uint8())}
_QUALITY = re.compile(r"^(.+)-([1-9]\d{0,2})$")
_WARM_SHAPE = (1, 1, 8, 8)


class Registry(Mapping[str, Codec]):
    """The codecs that exist, as a mapping from names. Never changes; reads its catalogue when it is first needed.

    Iterating gives each family once, at its default quality; the other qualities are found by name.

    Parameters
    ----------
    catalogue: a model catalogue whose `bottlenecks:` are codecs too, called ``bottleneck:<model>@<cut>``.
    """

    def __init__(self, catalogue: str | Path | None = None) -> None:
        self.catalogue = None if catalogue is None else Path(catalogue)

    @cached_property
    def bottlenecks(self) -> Mapping[str, Bottleneck]:
        """Learned codecs by name. Raises InputError for a broken catalogue."""
        if self.catalogue is None:
            return {}
        return {PREFIX + key: Bottleneck(info, self.catalogue) for key, info in read_bottlenecks(self.catalogue).items()}

    def __getitem__(self, name: str) -> Codec:
        found = self._find(name) if isinstance(name, str) else None
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        yield from standard_names()
        yield from self.bottlenecks

    def __len__(self) -> int:
        return len(standard_names()) + len(self.bottlenecks)

    def named(self, name: str) -> Codec:
        """The codec of this name. Raises InputError naming those that exist."""
        found = self._find(name)
        if found is None:
            raise InputError("there is no such codec", key="codec", value=name, remedy=f"use one of {self.choices}")
        return found

    @property
    def choices(self) -> str:
        """All names in one clause, for messages."""
        methods = ", ".join(f"+{m}" for m in METHODS)
        text = (f"{', '.join(_FIXED)} (each also with {methods}); {', '.join(QUALITIES)} (each also with a quality: jpeg-50); "
                f"{', '.join(LOSSLESS_IMAGES)}")
        return text + (f"; {', '.join(self.bottlenecks)}" if self.bottlenecks else "")

    def info(self, name: str) -> BottleneckInfo | None:
        """The catalogue's entry of a learned codec, or of the one below a lossless one; None for every other codec."""
        found = self.named(name)
        inner = found.inner if isinstance(found, Lossless) else found
        return inner.info if isinstance(inner, Bottleneck) else None

    def learned(self, name: str) -> Bottleneck:
        """The learned codec of this name. Raises InputError naming those that exist."""
        if name not in self.bottlenecks:
            raise InputError("there is no such learned codec", file=self.catalogue, key="codec", value=name,
                             remedy=f"the catalogue has {', '.join(self.bottlenecks) or 'none'}; "
                             "`testbed models train-bottleneck` makes one")
        return self.bottlenecks[name]

    def learned_for(self, models: Iterable[str]) -> list[str]:
        """Names of the learned codecs of these models."""
        wanted = set(models)
        return [name for name, found in self.bottlenecks.items() if found.info.model in wanted] if wanted else []

    def warm_up(self, names: Iterable[str], runs: int = 3) -> None:
        """Use these codecs a few times: the first call of a process imports libraries and loads weights.

        Raises InputError for unknown names and for weights that are not the catalogue's.
        """
        for name in names:
            codec, info = self.named(name), self.info(name)
            x = np.zeros((1, *info.shape) if info else _WARM_SHAPE, np.float32)
            for _ in range(runs):
                encoded = codec.encode(x)
                codec.decode(encoded.arrays, encoded.params)

    def _find(self, name: str) -> Codec | None:
        if not name.startswith(PREFIX):
            return _standard(name)
        base, plus, method = name.partition("+")
        found = self.bottlenecks.get(base)
        if found is None or not plus:
            return found
        return METHODS[method](found) if method in METHODS else None


@lru_cache(maxsize=1024)
def _standard(name: str) -> Codec | None:
    if name in _FIXED:
        return _FIXED[name]
    if name in QUALITIES or name in LOSSLESS_IMAGES:
        return image_codec(name)
    base, plus, method = name.partition("+")
    if plus:
        return METHODS[method](_FIXED[base]) if base in _FIXED and method in METHODS else None
    match = _QUALITY.match(name)
    if match is not None and int(match[2]) <= QUALITIES.get(match[1], 0):
        return image_codec(match[1], int(match[2]))
    return None


def is_codec_name(name: object) -> bool:
    """Whether a codec could be called this: a standard one, or a learned one of some catalogue."""
    if not isinstance(name, str) or not name.startswith(PREFIX):
        return isinstance(name, str) and _standard(name) is not None
    base, plus, method = name.removeprefix(PREFIX).partition("+")
    return KEY.match(base) is not None and (not plus or method in METHODS)


def standard_names() -> tuple[str, ...]:
    """Names of the codecs that need no catalogue, each family once."""
    return (*_FIXED, *(f"{name}+{method}" for name in _FIXED for method in METHODS), *QUALITIES, *LOSSLESS_IMAGES)
