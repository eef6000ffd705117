"""`hivewire send`, `queues`, `tail` and `dead`, each as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hivewire as hw
from tests.system.commands import Hive


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    return Hive(tmp_path)


async def _take(hive: Hive, agent: str) -> hw.Message:
    async with hw.connect(hive.protocol) as protocol:
        (delivery,) = await protocol.receive(agent, limit=1, wait_s=10)
        await delivery.ack()
        return delivery.message


async def _bury(hive: Hive, agent: str, *reasons: str) -> list[str]:
    async with hw.connect(hive.protocol) as protocol:
        for reason in reasons:
            message = hw.Message(type="task", sender="test", to=agent, content={"why": reason})
            await protocol.send(message)
            (delivery,) = await protocol.receive(agent, limit=1, wait_s=10)
            await delivery.reject(reason)
        return [letter.id for letter in await protocol.dead_letters(agent)][-len(reasons) :]


async def test_every_field_arrives(hive: Hive) -> None:
    sent = hive(
        *("send", "coder/42", "--content", '{"n": [1, null, "ä"]}', "--type", "query", "--from", "me"),
        *("--key", "k", "--ttl", "1h", "--priority", "high", "--metadata", "a=b=c", "--metadata", "d="),
    )
    assert (sent.code, sent.err) == (0, "")
    message = await _take(hive, "coder")
    assert message.id == sent.out.strip()
    assert (message.type, message.sender, message.to, message.key) == ("query", "me", "coder/42", "k")
    assert message.content == {"n": [1, None, "ä"]}
    assert (message.ttl_s, message.priority) == (3600, 8)
    assert (message.metadata["a"], message.metadata["d"]) == ("b=c", "")


async def test_content_from_a_file_from_standard_input_as_text_as_bytes_and_none(hive: Hive) -> None:
    (hive.folder / "in.json").write_text('{"from": "file"}')
    (hive.folder / "in.bin").write_bytes(b"\xff\x00raw")
    sends: list[tuple[list[str], str, object]] = [
        (["--content", "@in.json"], "", {"from": "file"}),
        (["--content", "-"], "[1, 2]", [1, 2]),
        (["--text", '{"not": "json"'], "", '{"not": "json"'),
        (["--bytes", "in.bin"], "", b"\xff\x00raw"),
        ([], "", None),
    ]
    for options, stdin, content in sends:
        sent = hive("send", "coder", *options, stdin=stdin)
        assert sent.code == 0, sent.err
        assert (await _take(hive, "coder")).content == content


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["send", "coder", "--content", "{oops"], "not JSON"),
        (["send", "coder", "--content", "hello"], "--text"),
        (["send", "coder", "--content", "@missing.json"], "cannot read missing.json"),
        (["send", "coder", "--content", "1", "--text", "2"], "not allowed with"),
        (["send", "no such agent!"], "no such agent!"),
        (["send", "coder", "--priority", "11"], "1 to 10"),
        (["send", "coder", "--delay", "soon"], "duration"),
        (["send", "coder", "--metadata", "x"], "NAME=VALUE"),
        (["send", "team", "--group", "--delay", "1s"], "--group"),
        (["send"], "TO"),
        (["send", "coder", "--wait", "100ms"], "reply"),
        (["queues", "--watch", "often"], "duration"),
        (["dead"], "list|show|replay|purge"),
        (["dead", "bury"], "invalid choice"),
        (["dead", "purge"], "--all"),
        (["dead", "replay", "some-id", "--all"], "not both"),
        (["tail"], "AGENT"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_2(hive: Hive, args: list[str], says: str) -> None:
    ran = hive(*args)
    assert (ran.code, ran.is_one_sentence) == (2, True), ran.err
    assert says in ran.err


@pytest.mark.parametrize("protocol", ["pigeon", "pigeon://x", "redis://localhost:1/0", "kafka://localhost:1"])
def test_a_protocol_that_is_not_there_is_one_sentence(hive: Hive, protocol: str) -> None:
    ran = hive("queues", protocol=protocol)
    assert (ran.code, ran.is_one_sentence) == (2, True), ran.err


def test_a_file_that_cannot_be_opened_is_one_sentence(hive: Hive) -> None:
    (hive.folder / "poem.db").write_text("not a database, but long enough to look like a file of some kind" * 100)
    for target in ("sqlite:////no/such/folder/x.db", f"sqlite:///{hive.folder}/poem.db", f"sqlite:///{hive.folder}"):
        ran = hive("send", "coder", protocol=target)
        assert (ran.code, ran.is_one_sentence) == (2, True), ran.err


def test_an_idempotency_key_sends_once(hive: Hive) -> None:
    first = hive("send", "coder", "--idempotency-key", "order-7", "--json").json
    second = hive("send", "coder", "--idempotency-key", "order-7", "--json").json
    assert (first["duplicate"], second["duplicate"], second["id"]) == (False, True, first["id"])
    assert "sent before" in hive("send", "coder", "--idempotency-key", "order-7").out
    assert hive("queues", "--json").json[0]["ready"] == 1


def test_the_queues_of_a_hive(hive: Hive) -> None:
    assert hive("queues").out == "no agent has a queue here yet\n"
    assert hive("queues", "--json").json == []
    for agent in ("coder", "coder", "writer"):
        hive("send", agent)
    hive("send", "coder", "--delay", "1h")
    rows = {row["agent"]: row for row in hive("queues", "--json").json}
    assert set(rows) == {"coder", "writer"}
    counts = {name: rows["coder"][name] for name in ("ready", "in_flight", "scheduled", "dead")}
    assert counts == {"ready": 2, "in_flight": 0, "scheduled": 1, "dead": 0}
    assert [row["agent"] for row in hive("queues", "writer", "--json").json] == ["writer"]
    assert "bad name!" in hive("queues", "bad name!").err
    table = hive("queues").out.splitlines()
    assert table[0].split()[:5] == ["agent", "ready", "in", "flight", "scheduled"]
    assert [line.split()[0] for line in table[1:]] == ["coder", "writer"]


def test_looking_does_not_make_a_file(hive: Hive) -> None:
    looks = [["queues"], ["dead", "list"], ["dead", "show", "x"], ["dead", "purge", "--all"], ["doctor"]]
    codes = {" ".join(look): hive(*look).code for look in looks}
    assert codes == {"queues": 0, "dead list": 0, "dead show x": 2, "dead purge --all": 0, "doctor": 0}
    assert "does not exist yet" in hive("queues").err
    assert list(hive.folder.iterdir()) == []


def test_queues_again_and_again_into_a_pipe(hive: Hive) -> None:
    hive("send", "coder")
    with hive.running("queues", "--watch", "100ms") as watching:
        watching.until("^coder", times=3)


async def test_dead_letters_are_listed_shown_replayed_and_purged(hive: Hive) -> None:
    assert hive("dead", "list").out == "no dead letters\n"
    assert hive("dead", "list", "--json").json == []
    first, second, third = await _bury(hive, "coder", "bad input", "too strange", "bad taste")
    listed = hive("dead", "list", "--json").json
    assert [row["id"] for row in listed] == [first, second, third]
    assert [row["id"] for row in hive("dead", "list", "--reason", "BAD", "--json").json] == [first, third]
    assert hive("dead", "list", "--older-than", "1h", "--json").json == []
    limited = hive("dead", "list", "--limit", "2")
    assert len(limited.out.splitlines()) == 3
    assert "more than 2" in limited.err

    shown = hive("dead", "show", second, "--json").json
    assert shown["message"]["content"] == {"why": "too strange"}
    assert json.loads(shown["raw"])["id"] == second
    assert "too strange" in hive("dead", "show", second).out

    assert hive("dead", "replay", second).out == "replayed 1\n"
    row = hive("queues", "coder", "--json").json[0]
    assert (row["ready"], row["dead"]) == (1, 2)
    assert (await _take(hive, "coder")).id == second

    assert "say --yes" in hive("dead", "purge", first).err
    assert hive("dead", "purge", first, "--yes").out == "purged 1\n"
    unknown = hive("dead", "show", first)
    assert (unknown.code, unknown.is_one_sentence) == (2, True)
    gone = hive("dead", "purge", first, "--yes")
    assert (gone.code, gone.out) == (1, "purged 0\n")
    assert hive("dead", "replay", "--agent", "coder", "--reason", "taste", "--yes", "--json").json == {"replayed": 1}
    assert hive("dead", "list", "--json").json == []


async def test_replay_and_purge_of_all_agents(hive: Hive) -> None:
    await _bury(hive, "coder", "a", "b")
    await _bury(hive, "writer", "c")
    assert hive("dead", "replay", "--all").code == 2
    assert hive("dead", "replay", "--all", "--yes").out == "replayed 3\n"
    await _bury(hive, "critic", "d")
    assert hive("dead", "purge", "--all", "--type", "event", "--yes").out == "purged 0\n"
    assert hive("dead", "purge", "--all", "--yes").out == "purged 1\n"


def test_tail_watches_without_taking(hive: Hive) -> None:
    hive("send", "coder")
    with hive.running("tail", "coder", "--every", "100ms") as tail:
        tail.until("ready 1")
        hive("send", "coder")
        tail.until("ready 2")
    assert hive("tail", "coder", "--for", "200ms", "--json").json["ready"] == 2


async def test_tail_shows_new_dead_letters_only(hive: Hive) -> None:
    await _bury(hive, "coder", "old news")
    with hive.running("tail", "coder", "--every", "100ms") as tail:
        tail.until("dead 1")
        (id_,) = await _bury(hive, "coder", "fresh")
        tail.until(f"dead letter {id_}: ")
        assert "old news" not in tail.seen


def test_tail_takes_when_asked(hive: Hive) -> None:
    for number in range(3):
        hive("send", "coder", "--content", str(number))
    taken = hive("tail", "coder", "--ack", "--limit", "2", "--json")
    assert [json.loads(line)["content"] for line in taken.out.splitlines()] == [0, 1]
    assert hive("queues", "--json").json[0]["ready"] == 1
    rest = hive("tail", "coder", "--ack", "--for", "500ms")
    assert rest.out.rstrip().endswith("2")


def test_commands_work_on_memory_too(hive: Hive) -> None:
    assert hive("send", "coder", protocol="memory://").code == 0
    assert hive("queues", protocol="memory").out == "no agent has a queue here yet\n"


def test_the_environment_names_the_protocol(hive: Hive) -> None:
    assert hive("send", "coder", protocol="", HIVEWIRE_URL=hive.protocol).code == 0
    assert hive("queues", "--json").json[0]["agent"] == "coder"


def test_a_terminal_that_does_not_know_a_letter_gets_an_escape(hive: Hive) -> None:
    plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    assert hive("send", "coder", "--text", "grüße", **plain).code == 0
    assert hive("send", "coder", "--text", "grüße").code == 0
    for options, said in ((["--json"], "gr\\u00fc\\u00dfe"), ([], "gr\\xfc\\xdfe")):
        ran = hive("tail", "coder", "--ack", "--limit", "1", *options, **plain)
        assert (ran.code, ran.err) == (0, "")
        assert said in ran.out


@pytest.mark.parametrize("command", [["queues", "--watch", "0"], ["tail", "coder", "--every", "0s"]])
def test_a_look_without_a_pause_is_refused(hive: Hive, command: list[str]) -> None:
    ran = hive(*command)
    assert (ran.code, ran.is_one_sentence) == (2, True), ran.err
    assert "is no time between two looks" in ran.err
