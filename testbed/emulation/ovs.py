"""A private Open vSwitch for one trial: its own database and daemons, never the system's; and Mininet's switch on it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from mininet.node import Switch

from testbed.emulation import linux
from testbed.emulation.netns import NetNamespace
from testbed.errors import EmulationError, MissingToolError

OPENFLOW = "OpenFlow13"
SEND_BUFFER_BYTES, RECEIVE_BUFFER_BYTES = 64 << 20, 8 << 20
_REMEDY = "apt-get install openvswitch-switch, or write switch: bridge in the topology"
_START_TIMEOUT_S = 15.0
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_NICE = "-15"  # it carries the packets of programs that keep all cores busy
_SYS_PIDFD_GETFD = 438  # the same on every architecture
# to an address that bridges keep to themselves, of the type for local experiments; 60 bytes
_IGNORED_FRAME = "0180c200000e" + "020000000000" + "88b5" + "00" * 46
_SOCKET = re.compile(r"^socket:\[(\d+)\]$")


class OpenVSwitch:
    """Database server and switch daemon of one trial, with all their files in one folder.

    Start it where the switches' interfaces are: the daemons join the caller's network namespace. They die with the
    process (the thread) that started them.

    Parameters
    ----------
    folder: for database and sockets; made when missing. Inside a sandbox it becomes a tmpfs, which vanishes with it.
    logs: folder of ``ovsdb-server.log`` and ``ovs-vswitchd.log``.
    datapath: "auto" takes the kernel's (``system``) where it can be made, else the one in user space (``netdev``).
    """

    def __init__(self, folder: str | os.PathLike[str], logs: str | os.PathLike[str],
                 datapath: Literal["auto", "system", "netdev"] = "auto") -> None:
        self.folder, self.logs = Path(folder).resolve(), Path(logs).resolve()
        self.datapath: str = datapath
        self.version = ""
        self.send_buffer_bytes: int | None = None
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._mounted = False

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make every Open vSwitch tool (also Mininet's own switch classes) talk to this instance."""
        folder = str(self.folder)
        return {**os.environ, "OVS_RUNDIR": folder, "OVS_LOGDIR": str(self.logs), "OVS_DBDIR": folder,
                "OVS_SYSCONFDIR": folder}

    @property
    def database(self) -> str:
        """For ``ovs-vsctl --db=``."""
        return f"unix:{self.folder}/db.sock"

    def start(self) -> Self:
        """Make the database, start both daemons, choose the datapath. Raises MissingToolError, EmulationError."""
        for tool in ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-dpctl", "ovs-appctl"):
            if shutil.which(tool) is None:
                raise MissingToolError(f"Open vSwitch is not installed (no {tool})", remedy=_REMEDY)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        if in_sandbox() and not self._mounted:  # sockets need no support of the folder's file system, and nothing stays
            linux.mount("tmpfs", str(self.folder), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0700")
            self._mounted = True
        try:
            self._tool("ovsdb-tool", "create", str(self.folder / "conf.db"))
            self._daemon("ovsdb-server", str(self.folder / "conf.db"), f"--remote=punix:{self.folder}/db.sock")
            self._await("db.sock")
            self.vsctl("--no-wait", "init")
            self.version = self._tool("ovs-vswitchd", "--version").split("\n")[0].rpartition(" ")[2]
            if self.datapath == "auto":
                self.datapath = "system" if self._kernel_datapath() else "netdev"
            self._daemon("ovs-vswitchd", self.database)
            self._await("vswitchd.ctl")
        except BaseException:
            self.stop()
            raise
        return self

    def vsctl(self, *words: str) -> str:
        """Run ovs-vsctl on this instance's database; returns once the switch daemon has done what was asked."""
        return self._tool("ovs-vsctl", f"--db={self.database}", "--timeout=15", *words)

    def appctl(self, *words: str) -> str:
        """Ask the switch daemon something (``fdb/show``, ``dpif/show``, ...)."""
        return self._tool("ovs-appctl", f"--target={self.folder}/vswitchd.ctl", *words)

    def ofctl(self, command: str, switch: str, *words: str) -> str:
        """Run ovs-ofctl on one switch (``dump-flows``, ``dump-ports``, ...)."""
        return self._tool("ovs-ofctl", "-O", OPENFLOW, command, f"unix:{self.folder}/{switch}.mgmt", *words)

    def manifest(self) -> dict[str, Any]:
        """What a run must record about its switches."""
        return {"openvswitch": self.version, "datapath": self.datapath, "openflow": OPENFLOW,
                "send_buffer_bytes": self.send_buffer_bytes}

    def widen_buffers(self, switch: str, port: int) -> None:
        """Give the user-space datapath's packet sockets room; call when all switches exist. ``port`` is any of ``switch``.

        That datapath sends to all ports of all switches through one socket, and a packet waiting in a link's queue
        counts against it: with the usual buffer, 94 full packets waiting on one slow link made the switches drop
        nearly every packet to *every* port. The socket is made at the first packet, so one that all hosts ignore is
        sent. What it receives comes through one socket per port, which must hold what arrives while all cores are busy.
        """
        if self.datapath != "netdev":
            return
        self.ofctl("packet-out", switch, f"in_port=controller packet={_IGNORED_FRAME} actions=output:{port}")
        self.send_buffer_bytes = _widen(self._daemons[-1].pid)

    def running(self) -> bool:
        """Whether both daemons live."""
        return len(self._daemons) == 2 and all(d.poll() is None for d in self._daemons)

    def stop(self) -> None:
        """End both daemons; bridges of the kernel datapath go with the network namespace."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(3)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, timeout=10, check=False)
            self._mounted = False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # ---- inside ----------------------------------------------------------------------------------------------

    def _tool(self, *argv: str) -> str:
        try:
            done = subprocess.run(list(argv), env=self.environment, capture_output=True, text=True, timeout=20, check=False,
                                  stdin=subprocess.DEVNULL)
        except FileNotFoundError:
            raise MissingToolError(f"Open vSwitch is not installed (no {argv[0]})", remedy=_REMEDY) from None
        except subprocess.TimeoutExpired:
            raise EmulationError(f"{' '.join(argv)}: no answer within 20 s; see {self.logs}") from None
        if done.returncode:
            raise EmulationError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def _daemon(self, program: str, *arguments: str) -> None:
        control = self.folder / f"{program.rpartition('-')[2]}.ctl"
        argv = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", _NICE, program, *arguments, f"--unixctl={control}",
                "-vconsole:off", "-vsyslog:off", "-vfile:info", f"--log-file={self.logs / program}.log"]
        with (self.logs / f"{program}.out").open("ab") as out:
            self._daemons.append(subprocess.Popen(argv, env=self.environment, stdin=subprocess.DEVNULL, stdout=out,
                                                  stderr=out, start_new_session=True))

    def _await(self, name: str) -> None:
        """Until a daemon's socket answers."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            daemon = self._daemons[-1]
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                folder = os.open(self.folder, os.O_PATH)  # the path may be longer than a socket's name may be
                try:
                    probe.connect(f"/proc/self/fd/{folder}/{name}")
                    return
                except OSError:
                    pass
                finally:
                    os.close(folder)
            if daemon.poll() is not None or time.monotonic() > deadline:
                program = str(daemon.args[6])  # type: ignore[index]  # setpriv --pdeathsig KILL nice -n N program
                tail = [line for kind in ("out", "log") for line in _tail(self.logs / f"{program}.{kind}", 2)]
                raise EmulationError(f"{program} does not answer (exit code {daemon.poll()}): {' / '.join(tail)}")
            time.sleep(0.005)

    def _kernel_datapath(self) -> bool:
        """Whether this kernel lets us make a datapath, found by making one."""
        try:
            self._tool("ovs-dpctl", "add-dp", "system@testbed-try")
        except EmulationError:
            return False
        self._tool("ovs-dpctl", "del-dp", "system@testbed-try")
        return True


class OvsSwitch(Switch):  # type: ignore[misc]  # Mininet has no types
    """A Mininet switch that is a bridge of the given `OpenVSwitch`.

    ``net.addSwitch("s1", cls=OvsSwitch, ovs=instance, dpid="1")``. The OpenFlow number of a port is Mininet's number
    of it (``switch.ports[intf]``), so that a controller can be told the ports before the switch exists. Forwards
    nothing by itself: without a controller every packet is dropped, so a loop cannot storm.
    """

    def __init__(self, name: str, *, ovs: OpenVSwitch, **params: Any) -> None:
        self.ovs = ovs
        super().__init__(name, **params)

    def start(self, controllers: Sequence[Any]) -> None:
        """Make the bridge with all interfaces. ``controllers``: Mininet's, or OpenFlow addresses (``tcp:IP:PORT``)."""
        targets = [c if isinstance(c, str) else f"tcp:{c.IP()}:{c.port}" for c in controllers]
        words = ["add-br", self.name, "--", "set", "bridge", self.name, f"datapath_type={self.ovs.datapath}",
                 "fail_mode=secure", f"protocols={OPENFLOW}", f"other_config:datapath-id={int(self.dpid, 16):016x}",
                 "other_config:disable-in-band=true"]
        for intf, number in self.ports.items():
            if intf.name != "lo":
                words += ["--", "add-port", self.name, intf.name, "--", "set", "interface", intf.name,
                          f"ofport_request={number}"]
        if targets:
            words += ["--", "set-controller", self.name, *targets]
        self.ovs.vsctl(*words)
        if targets:  # reconnect fast, and never take a silent controller for a dead one
            for uuid in self.ovs.vsctl("get", "bridge", self.name, "controller").strip(" []\n").split(", "):
                self.ovs.vsctl("set", "controller", uuid, "max_backoff=1000", "inactivity_probe=0")
        quiet = ["addrgenmode", "none"] if Path("/proc/sys/net/ipv6").exists() else []  # no IPv6 of the ports' own
        here = NetNamespace.current()
        for intf in self.ports:
            if intf.name != "lo":
                here.run(["ip", "link", "set", "dev", intf.name, *quiet, "up"])
        here.close()

    def stop(self, deleteIntfs: bool = True) -> None:  # Mininet's name
        """Remove the bridge (ending the instance does, too)."""
        if self.ovs.running():
            self.ovs.vsctl("--if-exists", "del-br", self.name)
        super().stop(deleteIntfs)

    def connected(self) -> bool:
        """Whether a controller is connected."""
        return "true" in self.ovs.vsctl("--columns=is_connected", "list", "controller")


def whole_packets_only(namespace: NetNamespace, interface: str) -> None:
    """Let a host's interface send finished packets: checksums filled in, nothing longer than the MTU.

    The user-space datapath passes on what it reads from an interface as it is. With checksum offload on, TCP and UDP
    leave a host without a checksum and are dropped at the other end, while ping works.
    """
    namespace.run(["ethtool", "-K", interface, "tx", "off"])


def in_sandbox() -> bool:
    """Whether our mounts are private: the process that started everything here is a `Sandbox`'s."""
    try:
        return b"testbed.emulation.sandbox" in Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return False


def _tail(path: Path, count: int) -> list[str]:
    return path.read_text(errors="replace").strip().splitlines()[-count:] if path.exists() else []


def _widen(pid: int) -> int:
    """Enlarge the buffers of a process's packet sockets; returns the size that the kernel names for the sending one."""
    # sk RefCnt Type Proto Iface R Rmem User Inode: the socket that only sends has no protocol
    lines = [line.split() for line in Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]]
    sends = {line[8]: line[3] == "0000" for line in lines}
    sizes = []
    pidfd = os.pidfd_open(pid)
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                found = _SOCKET.match(os.readlink(entry.path))
            except FileNotFoundError:  # closed meanwhile
                continue
            if found is None or found[1] not in sends:
                continue
            with socket.socket(fileno=_pidfd_getfd(pidfd, int(entry.name))) as theirs:
                if sends[found[1]]:
                    _set_buffer(theirs, _SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
                    sizes.append(theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
                else:
                    _set_buffer(theirs, _SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    finally:
        os.close(pidfd)
    if not sizes:
        raise EmulationError("the user-space switch has no packet socket to give a larger buffer")
    return min(sizes)


def _set_buffer(opened: socket.socket, forced: int, plain: int, size_bytes: int) -> None:
    try:
        opened.setsockopt(socket.SOL_SOCKET, forced, size_bytes)
    except PermissionError:  # as a plain user: as far as the machine's limit allows
        opened.setsockopt(socket.SOL_SOCKET, plain, size_bytes)


def _pidfd_getfd(pidfd: int, fd: int) -> int:
    """A descriptor of ours for another process's open file."""
    libc = ctypes.CDLL(None, use_errno=True)
    copy = libc.syscall(ctypes.c_long(_SYS_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(fd), ctypes.c_uint(0))
    if copy < 0:
        raise EmulationError(f"the kernel refuses a look at the switch's sockets: {os.strerror(ctypes.get_errno())}")
    return int(copy)
