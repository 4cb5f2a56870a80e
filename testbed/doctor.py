"""What this machine can do for an emulation, found by trying it in scratch namespaces that vanish again."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed.emulation.container_docker import DockerEngine
from testbed.emulation.container_podman import PodmanEngine
from testbed.errors import MissingToolError

QDISCS = ("tbf", "htb", "netem")
NAMESPACES = {"net": "--net", "mount": "--mount", "pid": "--pid", "user": "--user"}
TOOLS = {
    "mnexec": "mininet",
    "iperf3": "iperf3",
    "ping": "iputils-ping",
    "ethtool": "ethtool",
    "tc": "iproute2",
}
# Sources that are read without a system call, or nearly so
FAST_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen")


@dataclass(frozen=True)
class Check:
    """One finding. ``good`` is False for what is missing; ``needed`` says whether the quickstart stands on it."""

    group: str
    name: str
    value: str
    good: bool
    remedy: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and what a run on this machine will use."""

    checks: tuple[Check, ...]
    will_use: Mapping[str, str]

    @property
    def quickstart_runs(self) -> bool:
        return all(check.good for check in self.checks if check.needed)


def diagnose() -> Diagnosis:
    """Try everything; takes a second or two and leaves nothing."""
    kernel, engines, machine = kernel_checks(), engine_checks(), machine_checks()
    checks = (*kernel, *tool_checks(), *engines, *machine)
    return Diagnosis(checks, decide({check.name: check for check in checks}))


def decide(found: Mapping[str, Check]) -> dict[str, str]:
    """What a run will use, from what was found."""
    engines = [f"{name} {found[name].value}" for name in ("podman", "docker") if found[name].good]
    engine = engines[0] if engines else "none: plain processes only"
    if found["netem"].good:
        delay = "netem, in the kernel"
    elif found["tap"].good:
        delay = "our delay line between TAP devices (the kernel has no netem)"
    else:
        delay = "none: links with a delay cannot be built"
    sandbox = "root" if os.geteuid() == 0 else "a user namespace (not root)" if found["user"].good else "none"
    switch = "Linux bridge" if found["bridge"].good else "none"
    if found["ovs-vswitchd"].good:
        switch += (
            "; with `switch: ovs`, the kernel's datapath"
            if found["ovs kernel"].good
            else "; with `switch: ovs`, "
        )
        switch += "" if found["ovs kernel"].good else "the user-space datapath"
    rate = (
        "token bucket (tbf), in the kernel"
        if found["tbf"].good
        else "none: links with a rate cannot be built"
    )
    return {
        "sandbox": sandbox,
        "rate": rate,
        "delay, jitter, loss": delay,
        "switch": switch,
        "containers": engine,
    }


def kernel_checks() -> list[Check]:
    """Namespaces, queueing disciplines, devices."""
    root = os.geteuid() == 0
    checks = []
    for name, option in NAMESPACES.items():
        extra = ["--fork"] if name == "pid" else []
        given = [option] if root or name == "user" else ["--user", "--map-root-user", option]
        refusal = _refusal(["unshare", *given, *extra, "true"])
        checks.append(
            Check(
                "kernel", name, refusal or "yes", not refusal,
                "run as root (sudo), or allow them: sysctl kernel.unprivileged_userns_clone=1 "
                "kernel.apparmor_restrict_unprivileged_userns=0",
                needed=name != "user" or not root,
            )
        )  # fmt: skip
    scratch = ["unshare", "--net"] if root else ["unshare", "--user", "--map-root-user", "--net"]
    veth = "ip link add p0 type veth peer name p1 && "
    for name in QDISCS:
        kind = {
            "tbf": "tbf rate 1mbit burst 3000 latency 50ms",
            "htb": "htb default 1",
            "netem": "netem delay 1ms",
        }
        refusal = _refusal([*scratch, "sh", "-c", f"{veth}tc qdisc add dev p0 root {kind[name]}"])
        remedy = {
            "tbf": "use a kernel with CONFIG_NET_SCH_TBF (every distribution's has it)",
            "htb": "not used by default",
            "netem": "not needed: our delay line takes its place",
        }[name]
        checks.append(
            Check("kernel", name, "yes" if not refusal else "no", not refusal, remedy, needed=name == "tbf")
        )
    for name, command in (("bridge", "ip link add b0 type bridge"), ("ifb", "ip link add i0 type ifb")):
        refusal = _refusal([*scratch, "sh", "-c", command])
        remedy = (
            "use a kernel with CONFIG_BRIDGE"
            if name == "bridge"
            else "not needed: links are shaped where they send"
        )
        checks.append(
            Check("kernel", name, "yes" if not refusal else "no", not refusal, remedy, name == "bridge")
        )
    refusal = _refusal([*scratch, "sh", "-c", "ip tuntap add dev t0 mode tap"])
    netem = next(check for check in checks if check.name == "netem").good
    checks.append(
        Check("kernel", "tap", "yes" if not refusal else "no", not refusal,
              "modprobe tun; in a container, give it /dev/net/tun", needed=not netem)
    )  # fmt: skip
    # a datapath in a scratch namespace: the kernel removes it with the namespace
    refusal = _refusal([*scratch, "ovs-dpctl", "add-dp", "probe"])
    checks.append(
        Check("kernel", "ovs kernel", "yes" if not refusal else "no", not refusal,
              "not needed: the slower user-space datapath takes its place")
    )  # fmt: skip
    return checks


def tool_checks() -> list[Check]:
    checks = []
    for tool, package in TOOLS.items():
        path = shutil.which(tool)
        checks.append(
            Check("tools", tool, path or "missing", path is not None, f"apt-get install {package}", True)
        )
    path = shutil.which("ovs-vswitchd")
    checks.append(
        Check("tools", "ovs-vswitchd", path or "missing", path is not None,
              "apt-get install openvswitch-switch (only for `switch: ovs`)")
    )  # fmt: skip
    return checks


def engine_checks() -> list[Check]:
    """Each engine's version, or why it does not answer. One of them is enough."""
    results: dict[str, tuple[str, bool, str]] = {}
    probes: dict[str, Callable[[], str]] = {"podman": PodmanEngine.probe, "docker": DockerEngine.probe}
    for name, probe in probes.items():
        try:
            results[name] = (probe(), True, "")
        except MissingToolError as error:
            results[name] = (error.problem, False, error.remedy)
    nobody = not any(good for _, good, _ in results.values())
    # the first is the one that set-up installs: it alone is needed when nobody answers
    return [
        Check("containers", name, value, good, remedy, needed=nobody and name == "podman")
        for name, (value, good, remedy) in results.items()
    ]


def machine_checks() -> list[Check]:
    """Processor, memory, clock: what decides whether times can be believed."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    steal = steal_share(0.3)
    available = next(line for line in _read("/proc/meminfo").splitlines() if "MemAvailable" in line)
    free_gib = int(available.split()[1]) / 2**20
    clock = _read("/sys/devices/system/clocksource/clocksource0/current_clocksource") or "unknown"
    fifo = _refusal(["chrt", "--fifo", "1", "true"])
    return [
        Check("machine", "system", system_name(), True),
        Check("machine", "kernel", platform.release(), True),
        Check("machine", "cores", str(cores), cores >= 2, "the quickstart wants two"),
        Check("machine", "load", f"{load:.2f}", load < 0.5 * cores, "end other programs before a run"),
        Check(
            "machine",
            "governor",
            governor or "not shown (virtual machine?)",
            governor in ("", "performance"),
            "cpupower frequency-set -g performance",
        ),
        Check(
            "machine", "steal", f"{100 * steal:.1f}%", steal < 0.02, "repeat runs and look at their spread"
        ),
        Check("machine", "memory", f"{free_gib:.1f} GiB free", free_gib >= 2.0, "the quickstart takes 2 GiB"),
        Check("machine", "clock", clock, clock in FAST_CLOCKS, "readings of the time are slow"),
        Check(
            "machine",
            "real-time",
            "permitted" if not fifo else "refused",
            not fifo,
            "run as root, or raise the rtprio limit: the shaper then wakes on time",
        ),
    ]


def steal_share(window_s: float) -> float:
    """The share of processor time that the hypervisor gave to others, over a window."""

    def sample() -> tuple[int, int]:
        ticks = [int(word) for word in _read("/proc/stat").splitlines()[0].split()[1:9]]
        return ticks[7], sum(ticks)

    steal_before, total_before = sample()
    time.sleep(window_s)
    steal_after, total_after = sample()
    return (steal_after - steal_before) / max(1, total_after - total_before)


def system_name() -> str:
    for line in _read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _refusal(argv: list[str]) -> str:
    """Why a command fails ("" when it works)."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=15)
    except FileNotFoundError:
        return f"{argv[0]} is not installed"
    except subprocess.TimeoutExpired:
        return "no answer within 15 s"
    return (
        ""
        if done.returncode == 0
        else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
