"""The program of a worker that is a process of its own, so that it can be killed, frozen and stopped.

`python -m hivewire.testing.conformance.child SPEC`, where SPEC is the JSON of a `Spec`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec

from hivewire.factory import connect
from hivewire.testing.conformance.journal import Journal
from hivewire.testing.conformance.obey import Obedient
from hivewire.testing.conformance.programs import Spec, run_program


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(spec: Spec) -> None:
    journal = Journal(Path(spec.journal))
    obedient = Obedient(spec.name, spec.agent, journal, kill_this_process)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with connect(spec.url, **spec.settings) as protocol:
        await run_program(spec, protocol, obedient, stop)
    obedient.say("bye")
    journal.close()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Spec)))
