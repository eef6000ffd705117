"""`hivewire send`: sends one message and prints the receipt."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivewire.cli.options import (
    UsageError,
    add_json_option,
    add_protocol_option,
    connect_from,
    duration_s,
    note_if_memory,
    printable,
    run_async,
    to_json,
)

if TYPE_CHECKING:
    from hivewire.message import Message

PRIORITIES = {"low": 1, "normal": 5, "high": 8, "critical": 10}


def _priority(text: str) -> int:
    found = PRIORITIES.get(text.lower(), int(text) if text.isascii() and text.isdigit() else 0)
    if not 1 <= found <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 1 to 10 nor one of {', '.join(PRIORITIES)}")
    return found


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def add_message_options(parser: argparse.ArgumentParser) -> None:
    """All of a message but whom it is for."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--content", metavar="JSON|@FILE|-", help="JSON, a file that holds it, or - for standard input")
    what.add_argument("--text", metavar="TEXT", help="a string, as it is")
    what.add_argument("--bytes", metavar="FILE", help="the bytes of a file, or of standard input (-)")
    parser.add_argument("--type", default="task", help="the message's type (task)")
    parser.add_argument("--from", dest="sender", default="cli", metavar="NAME", help="the sender (cli)")
    parser.add_argument("--key", help="messages of one key are handled in order (without it: the sender's)")
    parser.add_argument("--metadata", type=_pair, action="append", default=[], metavar="NAME=VALUE", help="repeatable")
    parser.add_argument("--ttl", type=duration_s, metavar="TIME", help="unhandled for so long: to the dead letters")
    parser.add_argument("--priority", type=_priority, default=5, metavar="1-10", help="or low, normal, high, critical")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("to", metavar="TO", help="an agent, or agent/instance; with --group: the name of a group")
    add_message_options(parser)
    parser.add_argument("--delay", type=duration_s, default=0.0, metavar="TIME", help="deliver no sooner than this")
    parser.add_argument("--idempotency-key", metavar="KEY", help="a second send with this key stores nothing")
    parser.add_argument("--group", action="store_true", help="broadcast: TO is a group")
    parser.add_argument("--wait", type=duration_s, metavar="TIME", help="ask for a reply, wait for it, print it")
    add_protocol_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    if args.group and (args.delay or args.idempotency_key or args.wait is not None):
        raise UsageError("--group goes together with neither --delay, --idempotency-key nor --wait")
    if args.wait is not None and (args.delay or args.idempotency_key):
        raise UsageError("--wait goes together with neither --delay nor --idempotency-key")
    return run_async(_send(args))


def _read(source: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error


def _from_shell(text: str) -> str:
    """Where the locale knows no UTF-8, letters arrive as halves of bytes."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        raise UsageError(f"--text is not UTF-8 ({error}); for other bytes use --bytes FILE") from error


def _content(args: argparse.Namespace) -> Any:
    if args.text is not None:
        return _from_shell(args.text)
    if args.bytes is not None:
        return _read(args.bytes)
    if args.content is None:
        return None
    import msgspec

    from_file = args.content.startswith("@")
    is_source = from_file or args.content == "-"
    # A command line that is not UTF-8 arrives with surrogates, which JSON refuses with a clear error.
    raw = _read(args.content.removeprefix("@")) if is_source else args.content.encode("utf-8", "surrogateescape")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = "" if is_source else "; for a plain string use --text"
        raise UsageError(f"--content is not JSON: {error}{hint}") from error


def message_from(args: argparse.Namespace, to: str) -> Message:
    """The message that the options of `add_message_options` describe."""
    from hivewire.message import Message

    return Message(
        type=args.type,
        sender=args.sender,
        to=to,
        content=_content(args),
        key=args.key,
        metadata=dict(args.metadata),
        ttl_s=args.ttl,
        priority=args.priority,
    )


async def _send(args: argparse.Namespace) -> int:
    message = message_from(args, "" if args.group else args.to)
    note_if_memory(args)
    async with connect_from(args) as protocol:
        if args.wait is not None:
            _print_reply(await protocol.request(message, timeout_s=args.wait), args.json)
            return 0
        if args.group:
            receipt = await protocol.broadcast(message, args.to)
        else:
            receipt = await protocol.send(message, delay_s=args.delay, idempotency_key=args.idempotency_key)
    if args.json:
        print(to_json({"id": receipt.id, "duplicate": receipt.duplicate}))
    elif receipt.duplicate:
        print(f"{receipt.id} (sent before with this idempotency key; nothing was stored)")
    else:
        print(receipt.id)
    return 0


def _print_reply(reply: Message, as_json: bool) -> None:
    import json

    shown = shown_message(reply)
    content = shown["content"]
    if as_json:
        print(to_json(shown))
    else:
        print(printable(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)))


def shown_message(message: Message) -> dict[str, Any]:
    """A message as commands show it: the field names of the wire, bytes as base64."""
    import base64

    content, encoding = message.content, {}
    if isinstance(content, bytes):
        content, encoding = base64.b64encode(content).decode(), {"content_encoding": "base64"}
    return {
        "id": message.id,
        "type": message.type,
        "from": message.sender,
        "to": message.to,
        "content": content,
        **encoding,
        "key": message.key,
        "in_reply_to": message.in_reply_to,
        "metadata": message.metadata,
        "created_at": message.created_at.isoformat(),
        "ttl_s": message.ttl_s,
        "priority": message.priority,
        **message.extra,
    }
