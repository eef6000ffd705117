"""One process of a team, as `hivewire run` starts it: serves all workers, says when a subtask starts."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from hivewire.errors import BackendError, HivewireError
from hivewire.message import UNORDERED, Message, MessageType

if TYPE_CHECKING:
    from hivewire.engine.middleware import Next
    from hivewire.protocol import Protocol

log = logging.getLogger(__name__)

STARTED: Final = "started"
EXIT_USAGE: Final = 2
EXIT_RETRY: Final = 75


class StartNotice:
    """Incoming middleware: tells the coordinator, before the handler starts, who took which subtask."""

    def __init__(self, member: str) -> None:
        self._member = member
        self.protocol: Protocol | None = None

    async def __call__(self, message: Message, next: Next) -> Any:
        to = message.metadata.get("progress_to")
        if message.type == MessageType.TASK and isinstance(to, str) and self.protocol is not None:
            content = {"state": STARTED, "message": message.id, "member": self._member, "at": time.time()}
            notice = Message(type=MessageType.EVENT, sender=self._member, to=to, content=content, key=UNORDERED)
            try:
                await self.protocol.send(notice)
            except BackendError as error:  # the work matters more than the news of it
                log.warning("a start was not told", extra={"message_id": message.id, "error": str(error)})
        return await next(message)


def command_line(team: str, protocol: str | None, settings: dict[str, Any], grace_s: float, link: int) -> list[str]:
    """How a process of the team is started."""
    options = {"team": team, "protocol": protocol, "settings": settings, "grace_s": grace_s, "link": link}
    return [sys.executable, "-m", "hivewire.cli.team_process", json.dumps(options)]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, or until the coordinator is gone."""
    from hivewire.cli.logs import configure
    from hivewire.coordination.serving import stop_with_parent

    configure(default="warning")
    options = json.loads((sys.argv[1:] if argv is None else argv)[0])
    link = socket.socket(fileno=options["link"])
    stop_with_parent(link)
    try:
        _serve(options, link)
    except BackendError as error:
        log.error("%s", error)
        return EXIT_RETRY if error.retryable else EXIT_USAGE
    except HivewireError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return EXIT_USAGE
    return 0


def _serve(options: dict[str, Any], link: socket.socket) -> None:
    from hivewire.cli.options import target_of
    from hivewire.cli.supervisor import READY
    from hivewire.cli.worker import load_workers
    from hivewire.coordination.serving import run_until_signal
    from hivewire.factory import connect

    workers = load_workers([options["team"]])
    target, chosen = target_of(options["protocol"])

    def open_protocol() -> Protocol:
        notice = StartNotice(str(os.getpid()))
        notice.protocol = connect(target, incoming=[notice], **chosen, **options["settings"])
        return notice.protocol

    run_until_signal(
        workers,
        open_protocol,
        options["grace_s"],
        on_ready=lambda: link.sendall(READY),
        second_ends=False,  # the coordinator kills when it is asked twice
    )


if __name__ == "__main__":
    sys.exit(main())
