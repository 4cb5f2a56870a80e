"""Where a node's topic is, and the client library for it, asked for only when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from testbed.errors import InputError, MissingToolError

Version = tuple[int, ...]
HEADERS_SINCE: Version = (0, 11)


@dataclass(frozen=True)
class Cluster:
    """Brokers that belong together.

    brokers: "address:port" of one or more of them.
    version: of the brokers, as (0, 9); None asks them, which only brokers from 0.10 on can answer.
    """

    brokers: tuple[str, ...]
    version: Version | None = None
    max_message_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        if not self.brokers or not all(_is_address(at) for at in self.brokers):
            raise InputError("a broker is written address:port", key="brokers", value=list(self.brokers),
                             remedy="give one or more, such as 10.0.0.5:9092")

    def options(self) -> dict[str, Any]:
        """What producers and consumers of the library are given."""
        return {"bootstrap_servers": list(self.brokers), "api_version": self.version, "metadata_max_age_ms": 5_000,
                "reconnect_backoff_max_ms": 1_000}


@dataclass(frozen=True)
class Route:
    """How to reach a node: the topic that its sub-model's consumer group reads, and the cluster that holds it."""

    cluster: Cluster
    topic: str

    def reply_topic(self, asker: str) -> str:
        """The topic on which an asker gets its replies."""
        return f"{self.topic}.reply.{asker}"


def clusters_of(routes: Mapping[str, Route]) -> list[Cluster]:
    """The clusters of some routes, each once."""
    return list(dict.fromkeys(route.cluster for route in routes.values()))


def library() -> ModuleType:
    """The client library. Raises MissingToolError without it."""
    try:
        import kafka
    except ImportError:
        raise MissingToolError("the kafka transport needs the Python package kafka-python",
                               remedy="install it with: pip install 'testbed[kafka]'") from None
    module: ModuleType = kafka
    return module


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
