"""Slots whose keys go to another node one by one: what the old node has no more is asked of the new one.

Of a key that is neither here nor there the old node says `ASK`, too, as it makes none any more. So whatever names one
key goes where the server says; what reads several is asked key by key. A script that works on a whole queue must not
find a part of its keys: it goes to the new node when the old one has none of the slot, and is refused until then.

What is asked of the old node first is sent on in the order of its answers, over the connection that the new node keeps
for this slot: so one key's messages keep their order. When one of them fails, the slot takes no more messages until all
that is under way has its outcome: none may pass where an earlier one could not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import hiredis
import msgspec

from hivewire.backends.redis import slots
from hivewire.backends.redis.address import Command, Reply
from hivewire.backends.redis.line import Line
from hivewire.backends.redis.slots import Place

Answers = asyncio.Future[list[Reply]]


class Ways(Protocol):
    """To the nodes of a cluster."""

    def open_line(self, slot: int, *, firm: bool) -> Line | None:
        """To the node that has it; None: it is shut, for messages at least, or nobody has it."""

    def visit(self, place: Place, slot: int) -> tuple[Line, Callable[[], None]]:
        """The connection for this slot to another node, and what is to be called when it is not needed any more."""

    def hold(self, slot: int, lines: Sequence[Line]) -> None:
        """It takes no messages until all that is under way on these has its outcome."""


class _Sent(msgspec.Struct):
    """A command on its way to another node, and who waits for its answer."""

    command: Command
    firm: bool
    """It sends messages."""
    to: Place
    refusal: Reply
    answer: asyncio.Future[Reply]


class Crossing:
    """Of one cluster. The futures that it gives have a result, which may be an error."""

    def __init__(self, ways: Ways) -> None:
        self._ways = ways
        self._counted: dict[int, list[_Sent]] = {}
        """Scripts that wait to hear whether the old node has anything left of their slot."""

    def redirect(
        self, line: Line, asked: Place, text: str, command: Command, firm: bool
    ) -> asyncio.Future[Reply] | None:
        """See `awaited.Redirect`; `line` leads to `asked`, where it was said."""
        if not text.startswith(("ASK ", "TRYAGAIN")):
            return None
        loop = asyncio.get_running_loop()
        parts = slots.parts_of(command)
        if parts:
            answer: asyncio.Future[Reply] = loop.create_future()
            line.post(parts).add_done_callback(partial(_merge, command, answer))
            return answer
        found = slots.redirected("ASK", text, asked)
        if found is None or self._ways.open_line(found[0], firm=firm) is not line:
            return None
        slot, to = found
        sent = _Sent(command, firm, to, hiredis.ReplyError(text), loop.create_future())
        if not slots.is_of_whole_queue(command):
            self._send_on(slot, line, sent)
        elif slot in self._counted:
            self._counted[slot].append(sent)
        else:
            self._counted[slot] = [sent]
            counted = line.post((("CLUSTER", "COUNTKEYSINSLOT", slot),))
            counted.add_done_callback(partial(self._told_how_many, slot, line))
        return sent.answer

    def _told_how_many(self, slot: int, line: Line, counted: Answers) -> None:
        """Once it is none it stays none: whatever is made in this slot is made on the new node."""
        waiting = self._counted.pop(slot)
        is_empty = counted.exception() is None and counted.result()[0] == 0
        refused = []
        for sent in waiting:
            if is_empty and self._ways.open_line(slot, firm=sent.firm) is line:
                self._send_on(slot, line, sent)
            else:
                refused.append(sent)
        if any(sent.firm for sent in refused):
            self._ways.hold(slot, (line,))
        for sent in refused:
            sent.answer.set_result(sent.refusal)

    def _send_on(self, slot: int, line: Line, sent: _Sent) -> None:
        there, leave = self._ways.visit(sent.to, slot)

        def told(posted: Answers) -> None:
            leave()
            error = posted.exception()
            said = error if error is not None else posted.result()[-1]
            if sent.firm and isinstance(said, Exception):
                self._ways.hold(slot, (line, there))
            sent.answer.set_result(said)

        there.post((("ASKING",), sent.command), firm=sent.firm).add_done_callback(told)


def _merge(command: Command, answer: asyncio.Future[Reply], posted: Answers) -> None:
    error = posted.exception()
    answer.set_result(slots.merged(command, posted.result()) if error is None else error)
