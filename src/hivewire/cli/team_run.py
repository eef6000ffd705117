"""Carries out a plan with a team, from the coordinator's side: `hivewire run` and `hivewire demo`."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hivewire.cli.chaos import Chaos
from hivewire.cli.live import Live, logs_above
from hivewire.cli.options import UsageError, target_of, to_json
from hivewire.cli.tally import Tally
from hivewire.cli.team_job import Job, checks_of, choose_run, is_memory, ledger_of, locked, reports_of
from hivewire.cli.team_members import Members, ProcessMembers, TaskMembers
from hivewire.cli.team_process import StartNotice, command_line
from hivewire.errors import HivewireError
from hivewire.rules.plan_state import RunState

if TYPE_CHECKING:
    from hivewire.coordination.coordinator import Coordinator
    from hivewire.coordination.ledger import Ledger
    from hivewire.coordination.worker import Worker
    from hivewire.protocol import Protocol

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
_TICK_S: Final = 0.2
_DRAIN_S: Final = 3.0


def carry_out(job: Job) -> int:
    """Do the job and return the exit code. Raises `HivewireError` for what cannot be begun."""
    from hivewire.cli.worker import load_workers

    workers = load_workers([job.team])
    _check_names(job, workers)
    with locked(job.out):
        return asyncio.run(_carry_out(job, workers))


async def _carry_out(job: Job, workers: list[Worker]) -> int:
    from hivewire.coordination.roster import Roster

    roster = Roster((worker.name, worker.capabilities) for worker in workers)
    async with ledger_of(job) as ledger:
        state, is_resumed = await choose_run(job, ledger, roster)
        errand = _Errand(job, ledger, workers, state)
        errand.announce(is_resumed)
        with logs_above(errand.live):
            return await errand.run()


def _check_names(job: Job, workers: list[Worker]) -> None:
    names = [worker.name for worker in workers]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UsageError(f"{job.team} has two workers with the name {', '.join(doubled)}")


class _Errand:
    """One run, from the first line on the screen to the last."""

    def __init__(self, job: Job, ledger: Ledger, workers: list[Worker], state: RunState) -> None:
        self._job = job
        self._ledger = ledger
        self._workers = workers
        self._state = state
        self._run = state.header.run
        self._in_memory = is_memory(job.protocol)
        self.live = Live(sys.stderr if job.as_json else sys.stdout)
        self._tally = Tally(state, self._changed)
        self._chaos: Chaos | None = None
        self._members: Members | None = None
        self._interrupted = asyncio.Event()

    def announce(self, is_resumed: bool) -> None:
        job = self._job
        rows = self._tally.state.rows.values()
        if is_resumed:
            done = sum(row.status == "done" for row in rows)
            self.live.tell(
                f"going on with run {self._run}: {done} of {len(rows)} subtasks are done (--new starts anew)"
            )
        else:
            self.live.tell(f"run {self._run}: {len(rows)} subtasks, {job.processes} worker {self._kinds()}")
        self.live.tell(f"messages: {job.messages}")
        self.live.tell(f"results and state: {job.out}")

    def _kinds(self) -> str:
        return "members in this process" if self._in_memory else "processes"

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        members = self._members = self._team()
        self._chaos = Chaos(members, self.live.tell) if self._job.has_chaos else None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        try:
            async with self._connect(None) as protocol, self._coordinator(protocol) as coordinator:
                await self._with_members(coordinator, members)
                await self._leave(coordinator)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            self.live.clear()
        return self._summary()

    def _coordinator(self, protocol: Protocol) -> Coordinator:
        """One for this run alone: others may be at work on the same protocol."""
        from hivewire.coordination.coordinator import Coordinator

        return Coordinator(
            None,
            protocol,
            ledger=self._ledger,
            team=self._workers,
            name=f"run-{self._run}",
            discover=False,
            watcher=self._tally,
        )

    async def _with_members(self, coordinator: Coordinator, members: Members) -> None:
        """Until the run has ended, or somebody wants to stop, and the members have stopped."""
        await coordinator.begin(self._state)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(members.run())
            working = group.create_task(coordinator.result(self._run))
            ticking = group.create_task(self._tick(coordinator))
            asked = group.create_task(self._interrupted.wait())
            await asyncio.wait([working, asked], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.live.tell(f"stopping: what runs has {self._job.grace_s:g} s to finish (Ctrl-C again: at once)")
            members.stop()
            await asyncio.wait([serving])
            for task in (working, ticking, asked):
                task.cancel()

    async def _leave(self, coordinator: Coordinator) -> None:
        """What lies in the mailbox is taken; when the run has ended, nothing comes any more, and it is removed."""
        protocol, mailbox = coordinator.protocol, coordinator.name
        deadline = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline:
            depth = await protocol.depth(mailbox)
            if not depth.ready + depth.in_flight + depth.scheduled:
                break
            await asyncio.sleep(_TICK_S / 4)
        await coordinator.close()
        if self._tally.state.is_finished:
            await protocol.forget(mailbox)

    def _interrupt(self) -> None:
        if self._interrupted.is_set() and self._members is not None:
            self._members.stop()  # the second time: at once
        self._interrupted.set()

    async def _tick(self, coordinator: Coordinator) -> None:
        while True:
            trouble = coordinator.trouble
            if isinstance(trouble, HivewireError) and not trouble.retryable:
                raise trouble
            self.live.show(self._tally)
            await asyncio.sleep(_TICK_S)

    def _changed(self, tally: Tally) -> None:
        if self._chaos is not None and not self._interrupted.is_set():
            self._chaos.look(tally)
        self.live.show(tally)

    def _team(self) -> Members:
        job = self._job
        if self._in_memory:
            return TaskMembers(
                job.processes, self.live.tell, workers=self._workers, connect=self._connect, grace_s=job.grace_s
            )
        return ProcessMembers(
            job.processes,
            self.live.tell,
            command=lambda link: command_line(job.team, job.protocol, job.settings, job.grace_s, link),
            output=job.state_folder / "workers.log",
            grace_s=job.grace_s,
        )

    def _connect(self, member: str | None) -> Protocol:
        from hivewire.factory import connect

        target, chosen = target_of(self._job.protocol)
        if member is None:
            return connect(target, **chosen, **self._job.settings)
        notice = StartNotice(member)
        engine = connect(target, incoming=[notice], **chosen, **self._job.settings)
        notice.protocol = engine
        return engine

    def _summary(self) -> int:
        tally, state = self._tally, self._tally.state
        rows = state.rows.values()
        done = sum(row.status == "done" for row in rows)
        figures: dict[str, Any] = {
            "run": self._run,
            "status": state.header.status if state.is_finished else "unfinished",
            "reason": state.header.reason,
            "subtasks": len(rows),
            "done": done,
            "elapsed_s": round(time.time() - tally.began_at, 3),
            "messages_sent": tally.messages_sent,
            "redelivered": tally.redelivered,
            "lost": tally.lost if state.is_finished else None,
            "duplicates": tally.duplicates,
            "kills": len(tally.kills),
            "takeover_s": None if tally.takeover_s is None else round(tally.takeover_s, 3),
            "checks": list(checks_of(state)),
            "reports": dict(reports_of(state)),
            "failed": {row.spec.name: row.error for row in rows if row.status == "failed"},
            "skipped": [row.spec.name for row in rows if row.status == "skipped"],
            "out": str(self._job.out),
        }
        if self._job.as_json:
            sys.stdout.write(to_json(figures) + "\n")
        else:
            self._print(figures)
        if not state.is_finished:
            return EXIT_INTERRUPTED
        return 0 if state.header.status == "done" and not figures["lost"] else EXIT_FAILED

    def _print(self, figures: dict[str, Any]) -> None:
        tell: Callable[[str], None] = self.live.tell
        if figures["status"] == "unfinished":
            again = "start it again to go on" if not self._in_memory else "memory:// keeps nothing, so it starts anew"
            tell(f"stopped: {figures['done']} of {figures['subtasks']} subtasks are done; {again}")
            return
        for name, error in figures["failed"].items():
            tell(f"failed: {name}: {error}")
        if figures["skipped"]:
            shown = ", ".join(figures["skipped"][:5]) + (" …" if len(figures["skipped"]) > 5 else "")
            tell(f"skipped, because of what they depend on: {shown}")
        if figures["status"] == "failed" and not figures["failed"]:
            tell(f"failed: {figures['reason']}")
        for line in figures["checks"]:
            tell(f"checked: {line}")
        tell(
            f"run {self._run} {figures['status']}: {figures['done']} of {figures['subtasks']} subtasks "
            f"in {figures['elapsed_s']:.1f} s"
        )
        takeover = "no takeover" if figures["kills"] else "no kill"
        if figures["takeover_s"] is not None:
            takeover = f"time to takeover {figures['takeover_s']:.2f} s"
        tell(
            f"messages sent {figures['messages_sent']}, redelivered {figures['redelivered']}, lost {figures['lost']}, "
            f"duplicates {figures['duplicates']}, {takeover}"
        )
        for name, path in figures["reports"].items():
            tell(f"{name}: {path}")
