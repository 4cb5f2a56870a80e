"""`get`: pinned, checked, atomic; against a server on 127.0.0.1 that stands for the internet."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.errors import InputError, MissingToolError
from testbed.traces import catalogue
from testbed.traces.catalogue import SETS, PublicFile, PublicSet
from testbed.traces.download import fetch_set

CONTENT = b"1\n2\n3\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with two files of one 'repository' at one commit."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = tmp_path / "served/some one/commit/traces"
    served.mkdir(parents=True)
    (served / "good=name+1").write_bytes(CONTENT)
    (served / "changed").write_bytes(CONTENT + b"4\n")
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(tmp_path / "served"))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def public(*names: str) -> PublicSet:
    digest = hashlib.sha256(CONTENT).hexdigest()
    files = tuple(PublicFile(name, "some%20one", "commit", f"traces/{name}", digest) for name in names)
    return PublicSet("test", "for tests", "none", "nobody", files)


def test_a_file_is_fetched_once(host: str, tmp_path: Path):
    said: list[str] = []
    for _ in range(2):
        paths = fetch_set(public("good=name+1"), tmp_path / "into", host=host, say=said.append)
        assert [path.read_bytes() for path in paths] == [CONTENT]
    assert "SHA-256 agrees" in said[0] and "already there" in said[1]


def test_a_damaged_file_is_fetched_again(host: str, tmp_path: Path):
    path = tmp_path / "test/good=name+1"
    path.parent.mkdir()
    path.write_bytes(b"1\n")
    fetch_set(public("good=name+1"), tmp_path, host=host)
    assert path.read_bytes() == CONTENT


def test_a_changed_file_is_not_kept(host: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"SHA-256 differs.*nothing was kept"):
        fetch_set(public("changed"), tmp_path, host=host)
    assert not list(tmp_path.glob("test/*"))


def test_a_missing_file_names_its_address(host: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"http://127.*gone.*404"):
        fetch_set(public("gone"), tmp_path, host=host)


def test_only_some_files(host: str, tmp_path: Path):
    assert len(fetch_set(public("good=name+1", "gone"), tmp_path, only="good*", host=host)) == 1
    with pytest.raises(InputError, match="no file of test matches"):
        fetch_set(public("gone"), tmp_path, only="x*", host=host)


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(MissingToolError, match=r"cannot reach http://127.0.0.1:1/.*internet.*--mirror"):
        fetch_set(public("good=name+1"), tmp_path, host="http://127.0.0.1:1")


def test_the_command_shows_licence_and_citation(host: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(catalogue.SETS, "test", public("good=name+1"))
    assert main(["traces", "get", "test", "--into", str(tmp_path), "--mirror", host]) == 0
    printed = capsys.readouterr().out
    assert "licence: none" in printed and "cite: nobody" in printed and "SHA-256 agrees" in printed


def test_the_catalogue_is_well_formed():
    for name, item in SETS.items():
        assert item.name == name and item.licence and item.citation and item.files
        assert len({file.name for file in item.files}) == len(item.files)
        for file in item.files:
            assert len(file.sha256) == 64 and len(file.commit) == 40
            assert ".." not in file.name and not file.name.startswith("/")


def test_digests_are_those_of_the_stored_files(testbed_data: Path):
    """Every catalogued file that is also in TESTBED_DATA (plain or gzip) has the catalogued bytes."""
    import gzip

    checked = 0
    for item in SETS.values():
        for file in item.files:
            plain = testbed_data / "traces" / item.name / file.name
            packed = plain.with_name(plain.name + ".gz")
            raw = (
                plain.read_bytes()
                if plain.is_file()
                else gzip.decompress(packed.read_bytes())
                if packed.is_file()
                else None
            )
            if raw is not None:
                assert hashlib.sha256(raw).hexdigest() == file.sha256, file.name
                checked += 1
    assert checked > 100
