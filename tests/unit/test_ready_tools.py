"""Tools of models: they read what the policy names, and nothing else."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import msgspec
import pytest

from hivewire.llm import ToolCall
from hivewire.teams.ready import Policy, Toolbox
from hivewire.teams.ready.tools import Denied


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("the canary sings")
    given = tmp_path / "given"
    given.mkdir()
    (given / "a.txt").write_text("one\ntwo Canary\nthree\n")
    (given / "b.bin").write_bytes(b"\x00canary")
    (given / "link").symlink_to(tmp_path / "secret.txt")
    with sqlite3.connect(given / "d.db") as connection:
        connection.execute("CREATE TABLE t (n INTEGER, name TEXT)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, f"n{n}") for n in range(300)])
    connection.close()
    return given


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(id="1", name=name, arguments=msgspec.json.encode(arguments).decode())


async def test_it_reads_searches_and_queries(files: Path) -> None:
    tools = Toolbox(Policy(roots=(str(files),)))
    assert await tools.use(call("read_file", path=f"{files}/a.txt", offset=4)) == "two Canary\nthree\n"
    assert "a.txt" in await tools.use(call("read_file", path=str(files)))
    assert (
        await tools.use(call("search_text", path=str(files), text="canary", ignore_case=True))
        == f"{files}/a.txt:2: two Canary"
    )
    assert await tools.use(call("search_text", path=str(files), text="canary")) == "no line has it"
    asked = call("query_sqlite", path=f"{files}/d.db", sql="SELECT count(*) AS n, max(name) FROM t WHERE n < 10")
    assert await tools.use(asked) == "n\tmax(name)\n10\tn9"
    many = await tools.use(call("query_sqlite", path=f"{files}/d.db", sql="SELECT * FROM t"))
    assert many.count("\n") == 201
    assert many.endswith("GROUP BY]")


@pytest.mark.parametrize(
    "path", ["{0}/../secret.txt", "{0}/link", "/etc/passwd", "{0}/nothing", "{0}-other", "", "{0}/a.txt\x00", "\ud800"],
)  # fmt: skip
async def test_it_reads_nothing_else(files: Path, path: str) -> None:
    tools = Toolbox(Policy(roots=(str(files),)))
    for name, more in (("read_file", {}), ("search_text", {"text": "a"}), ("query_sqlite", {"sql": "SELECT 1"})):
        arguments = '{"path": ' + msgspec.json.encode(path.format(files).replace("\ud800", "?")).decode() + "}"
        made = ToolCall(id="1", name=name, arguments=arguments if not more else msgspec.json.encode(
            {"path": path.format(files).replace("\ud800", "?"), **more}).decode())  # fmt: skip
        said = await tools.use(made)
        assert said.startswith("error: "), (name, said)
        assert "sings" not in said


async def test_a_search_does_not_follow_links_out(files: Path) -> None:
    assert (
        await Toolbox(Policy(roots=(str(files),))).use(call("search_text", path=str(files), text="sings"))
        == "no line has it"
    )


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM t", "DROP TABLE t", "INSERT INTO t VALUES (1, 'x')", "PRAGMA journal_mode=WAL",
        "CREATE TABLE x (a)",
        "ATTACH DATABASE '{0}/../other.db' AS other", "VACUUM INTO '{0}/../copy.db'", "SELECT load_extension('x')",
        "SELECT 1; SELECT 2", "not sql", "UPDATE t SET n = 1 RETURNING n",
    ],
)  # fmt: skip
async def test_a_query_changes_nothing(files: Path, sql: str) -> None:
    before = (files / "d.db").read_bytes(), sorted(files.parent.rglob("*"))
    said = await Toolbox(Policy(roots=(str(files),))).use(
        call("query_sqlite", path=f"{files}/d.db", sql=sql.format(files))
    )
    assert said.startswith("error: ")
    assert ((files / "d.db").read_bytes(), sorted(files.parent.rglob("*"))) == before


async def test_a_query_without_end_is_ended(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivewire.teams.ready.tools._QUERY_S", 0.05)
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c"
    said = await Toolbox(Policy(roots=(str(files),))).use(call("query_sqlite", path=f"{files}/d.db", sql=endless))
    assert said == "error: SQLite: interrupted"


@pytest.mark.parametrize("value", ["zeroblob(900000000)", "hex(zeroblob(450000000))"])
async def test_a_query_does_not_fill_the_memory(files: Path, value: str) -> None:
    asked = call("query_sqlite", path=f"{files}/d.db", sql=f"SELECT {value}")
    said = await Toolbox(Policy(roots=(str(files),))).use(asked)
    assert said == "error: SQLite: string or blob too big"


async def test_what_a_model_asks_for_wrongly_is_told_to_it(files: Path) -> None:
    tools = Toolbox(Policy(roots=(str(files),)))
    assert "there is no tool 'rm'" in await tools.use(call("rm", path="/"))
    assert "not a JSON object" in await tools.use(ToolCall(id="1", name="read_file", arguments="[]"))
    assert "path is a text" in await tools.use(call("read_file", path=3))
    assert "offset is a whole number" in await tools.use(call("read_file", path=f"{files}/a.txt", offset=-1))
    os.mkfifo(files / "pipe")
    assert "no regular file" in await tools.use(call("read_file", path=f"{files}/pipe"))


def test_without_roots_nothing_is_offered_or_allowed(files: Path) -> None:
    assert Toolbox(Policy()).offered == ()
    with pytest.raises(Denied):
        Policy().allowed(str(files / "a.txt"))


async def test_a_large_file_comes_in_parts(files: Path) -> None:
    (files / "large.txt").write_text("x" * 100_000)
    tools = Toolbox(Policy(roots=(str(files / "large.txt"),)))
    assert "cut off after" in await tools.use(call("read_file", path=str(files / "large.txt")))
