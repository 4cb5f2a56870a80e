"""A Mininet host that makes its network namespace, as always, or joins one that a container engine holds."""

from __future__ import annotations

import subprocess
from typing import Any

from mininet.node import Host

from testbed.emulation.container import NodeNamespace


class NodeHost(Host):  # type: ignore[misc]  # Mininet has no types
    """``net.addHost(name, cls=NodeHost, netns=engine.create_netns(name))``."""

    def __init__(self, name: str, netns: NodeNamespace | None = None, **params: Any) -> None:
        self._given = netns
        super().__init__(name, **params)

    @property
    def netns(self) -> NodeNamespace:
        """The namespace that this node's containers join."""
        return self._given or NodeNamespace(self.name, f"/proc/{self.pid}/ns/net")

    def _popen(self, cmd: list[str], **params: Any) -> subprocess.Popen[bytes]:
        if self._given is not None and self.shell is None:
            # the host's shell: enter the given namespace in place of `mnexec -n`, which would make a new one
            options = cmd[1].replace("n", "")
            inner = ["sh", "-c", 'mount -t sysfs sysfs /sys && exec "$@"', "sh", cmd[0], options, *cmd[2:]]
            cmd = ["nsenter", f"--net={self._given.path}", "--", "unshare", "--mount", "--", *inner]
        return super()._popen(cmd, **params)  # type: ignore[no-any-return]
