"""The promises, checked on what a run left behind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from hivewire.ids import derived_id
from hivewire.testing.profiles_driver import process_of
from hivewire.testing.profiles_world import Happening
from hivewire.testing.seeded_book import Effect, Outage, Sent, Started, Told
from hivewire.testing.seeded_program import LEASE_S, LISTENERS, MAX_ATTEMPTS
from hivewire.testing.seeded_run import Result

_TERMINAL = ("ok", "reject")
_FAILED = ("raise", "after")
_CLOCK_S = 0.001


def violations(result: Result) -> list[str]:
    """Every broken promise in one line each; empty when all hold."""
    checks = (
        _errors,
        _all_settled,
        _nothing_lost,
        _nothing_invented,
        _order_per_key,
        _not_too_early,
        _one_at_a_time,
        _only_owners_start,
        _handled_once,
        _idempotent_once,
        _dead_for_a_reason,
        _attempts,
        _broadcasts,
        _shouts,
        _answers,
        _only_owners_commit,
        _counters,
        _schedules,
        _effects,
    )
    return [f"{check.__name__.strip('_')}: {line}" for check in checks for line in check(result)]


def _errors(result: Result) -> Iterator[str]:
    yield from result.book.errors


def _all_settled(result: Result) -> Iterator[str]:
    for queue, count in sorted(result.left.items()):
        yield f"{count} messages of {queue} were never settled"


def _nothing_lost(result: Result) -> Iterator[str]:
    handled = {
        (one.agent, one.id) for one in result.book.started if one.outcome == "ok" and not _is_undone(result, one)
    }
    dead = _letters(result)
    if result.left:
        return
    twins: dict[str | None, set[str]] = defaultdict(set)
    for sent in result.book.sent.values():
        twins[sent.idempotency_key].add(sent.id)
    for sent in result.book.sent.values():
        # A store that cannot check the key gives each sender a receipt of its own; one of them is handled.
        ids = twins[sent.idempotency_key] if sent.idempotency_key else {sent.id}
        if sent.confirmed_at is not None and not any((sent.agent, id) in handled | dead for id in ids):
            yield f"{sent.id} to {sent.agent} was confirmed, and neither handled nor kept as a dead letter"


def _is_undone(result: Result, one: Started) -> bool:
    """Its acknowledgement was refused, so it had no effect, and the work counts for nothing. Of who was out meanwhile
    for longer than a lease nobody can say whether the answer that was lost was a yes."""
    return one.refused_at is not None and not _was_out(result, one.process, one.at, one.refused_at)


def _nothing_invented(result: Result) -> Iterator[str]:
    fired = {id: planned.agent for planned in result.book.planned.values() for id in planned.due_at}
    for one in result.book.started:
        id, _, member = one.id.partition("@")
        if member:
            if id not in result.book.told or member != one.agent:
                yield f"{one.agent} got {one.id}, which nobody told it"
        elif id in fired:
            if fired[id] != one.agent:
                yield f"{one.agent} got {one.id} of a schedule for {fired[id]}"
        elif id not in result.book.sent or result.book.sent[id].agent != one.agent:
            yield f"{one.agent} got {one.id}, which nobody sent to it"


def _letters(result: Result) -> set[tuple[str, str]]:
    """What is a dead letter, or was one until somebody threw it away."""
    world = result.world
    return {(letter.queue, letter.record.id) for letter in (*world.letters, *world.purged)}


def _starts_by_id(result: Result) -> dict[tuple[str, str, int], list[Started]]:
    starts: dict[tuple[str, str, int], list[Started]] = defaultdict(list)
    for one in result.book.started:
        starts[one.agent, one.id, one.replay].append(one)
    return starts


def _order_per_key(result: Result) -> Iterator[str]:
    """A message starts first when every earlier one of its key is finished, but for those whose first
    storing is uncertain, the delayed ones, and second lives."""
    lanes: dict[tuple[str, str], list[Sent]] = defaultdict(list)
    for sent in result.book.sent.values():
        if sent.is_in_order and not sent.delay_s:
            lanes[sent.agent, sent.key].append(sent)
    starts = _starts_by_id(result)
    gone: dict[tuple[str, str], float] = {}
    for happening in result.world.history:
        if happening.what == "dead":  # a resend may come to life after that
            gone.setdefault((happening.queue, happening.id), happening.at)
    for (agent, key), sends in lanes.items():
        for place, later in enumerate(sends):
            first = next(iter(starts.get((agent, later.id, 0), ())), None)
            if first is None:
                continue
            for earlier in sends[:place]:
                if gone.get((agent, earlier.id), first.at) < first.at:
                    continue
                for again in starts.get((agent, earlier.id, 0), ()):
                    if again.at > first.at and not _had_ended(starts[agent, earlier.id, 0], first.at):
                        yield f"{later.id} of {agent}/{key} started before {earlier.id}, at {first.at:.3f}"
                        break


def _had_ended(starts: list[Started], at: float) -> bool:
    """One of the starts had come to its end before."""
    failures = 0
    for one in starts:
        if one.ended_at is not None and one.ended_at <= at:
            failures += one.outcome not in _TERMINAL
            # Attempts that a crash cut off have left no start here, but are counted in the next one's number.
            if one.outcome in _TERMINAL or max(failures, one.attempt) >= MAX_ATTEMPTS:
                return True
    return False


def _not_too_early(result: Result) -> Iterator[str]:
    """A delayed message starts when it is due, not before; what was replayed has no delay any more."""
    for one in result.book.started:
        sent = result.book.sent.get(one.id)
        if sent is not None and sent.delay_s and not one.replay:
            early = sent.began_at + sent.delay_s - _CLOCK_S - one.at
            if early > 0:
                yield f"{one.id} of {one.agent} started {early:.3f} s before it was due"


def _one_at_a_time(result: Result) -> Iterator[str]:
    """No handler starts while another one of its key runs, unless that one's process was stopped, killed
    or cut off meanwhile."""
    running: dict[tuple[str, str], list[Started]] = defaultdict(list)
    for one in result.book.started:
        lane = running[one.agent, one.key]
        lane[:] = [other for other in lane if other.ended_at is None or other.ended_at > one.at]
        for other in lane:
            if not _was_out(result, other.process, other.at, one.at):
                yield f"{one.id} of {one.agent} began in {one.process}, {other.id} still ran in {other.process}"
        lane.append(one)


def _was_out(result: Result, process: str, since: float, until: float) -> bool:
    return any(_overlaps(outage, since, until) for outage in result.book.outages if outage.process in (process, "*"))


def _overlaps(outage: Outage, since: float, until: float) -> bool:
    """A lease that could not be renewed may still end within its length after the outage."""
    return outage.began_at <= until and (outage.ended_at is None or outage.ended_at + LEASE_S >= since)


def _only_owners_start(result: Result) -> Iterator[str]:
    for one in result.book.started:
        if not one.is_owner:
            yield f"{one.process} started {one.id} of {one.agent} at {one.at:.3f} without owning its key"


def _settled(result: Result) -> dict[tuple[str, str, int], Happening]:
    found: dict[tuple[str, str, int], Happening] = {}
    for happening in result.world.history:
        if happening.what == "settled":
            found.setdefault((happening.queue, happening.id, happening.replay), happening)
    return found


def _handled_once(result: Result) -> Iterator[str]:
    """What the store has settled is never started again, however often it was sent."""
    settled = _settled(result)
    for one in result.book.started:
        happening = settled.get((one.agent, one.id, one.replay))
        if happening is not None and one.at > happening.at:
            yield f"{one.id} of {one.agent} started again at {one.at:.3f}; it was settled at {happening.at:.3f}"


def _idempotent_once(result: Result) -> Iterator[str]:
    handled: dict[tuple[str, str], set[str]] = defaultdict(set)
    for one in result.book.started:
        sent = result.book.sent.get(one.id)
        if sent is not None and sent.idempotency_key is not None and one.outcome == "ok":
            handled[sent.agent, sent.idempotency_key].add(one.id)
    for (agent, key), ids in handled.items():
        if len(ids) > 1:
            yield f"{sorted(ids)} of {agent} have one idempotency key, {key}, and were all handled"


def _dead_for_a_reason(result: Result) -> Iterator[str]:
    starts = _starts_by_id(result)
    stored: dict[tuple[str, str], float] = {}
    for happening in result.world.history:
        if happening.what == "stored":
            stored.setdefault((happening.queue, happening.id), happening.at)
    for happening in result.world.history:
        if happening.what == "dead":
            mine = starts.get((happening.queue, happening.id, happening.replay), [])
            problem = _bad_reason(result, happening, mine, stored.get((happening.queue, happening.id), 0.0))
            if problem:
                yield f"{happening.id} of {happening.queue} is a dead letter as {happening.detail}, but {problem}"


def _bad_reason(result: Result, dead: Happening, starts: list[Started], stored_at: float) -> str:
    sent = result.book.sent.get(dead.id)
    if dead.detail == "expired":
        if sent is None or sent.ttl_s is None:
            return "it has no time to live"
        return "" if dead.at - stored_at >= sent.ttl_s else f"its {sent.ttl_s} s had not passed"
    if dead.detail == "rejected":
        return "" if any(one.outcome == "reject" for one in starts) else "no handler rejected it"
    if dead.detail in ("max_attempts", "crashed"):
        failed = sum(one.outcome in _FAILED for one in starts)
        out = max(
            sum(_was_out(result, one.process, one.at, dead.at) for one in starts),
            # A mark is stored before the start: who died in between has used up an attempt.
            sum(
                _was_out(result, process_of(happening.process), happening.at, dead.at)
                for happening in result.world.history
                if happening.what == "marked" and (happening.queue, happening.id) == (dead.queue, dead.id)
            ),
        )
        if not result.world.features.per_record_ack:
            out = len(result.book.outages)  # its marks are in the saved state, where nobody looks
        return "" if failed + out >= MAX_ATTEMPTS else f"only {failed} attempts failed and {out} were cut off"
    return "that is no reason"


def _sent_again(result: Result) -> Counter[tuple[str, str, int]]:
    """How often a message was stored once more after it had died: it begins anew, under the same id. So does one that
    was sent again before, if the first ran out of time, for that settles nothing; but after any other end of the first
    it is a duplicate."""
    again: Counter[tuple[str, str, int]] = Counter()
    copies: Counter[tuple[str, str, int]] = Counter()
    dead: set[tuple[str, str, int]] = set()
    for one in result.world.history:
        name = (one.queue, one.id, one.replay)
        if one.what == "dead":
            if one.detail == "expired" and copies[name] > 1:
                again[name] += 1
            copies[name] = max(0, copies[name] - 1)  # a dead letter may be written twice
            dead.add(name)
        elif one.what == "stored":
            if name in dead and not copies[name]:
                again[name] += 1
            dead.discard(name)
            copies[name] += 1
    return again


def _attempts(result: Result) -> Iterator[str]:
    outages = Counter(outage.process for outage in result.book.outages)
    refused = Counter((one.queue, one.id, one.replay) for one in result.world.history if one.what == "refused")
    again = _sent_again(result)
    for (agent, id, replay), starts in _starts_by_id(result).items():
        failures = sum(one.outcome in _FAILED for one in starts)
        excuses = sum(outages[process] for process in {one.process for one in starts}) + outages["*"]
        # What failed during an outage may not have been stored, and what failed as its shard was taken away was not.
        if failures > MAX_ATTEMPTS * (1 + excuses + again[agent, id, replay]) + refused[agent, id, replay]:
            yield f"{id} of {agent} (life {replay}) failed {failures} times; {MAX_ATTEMPTS} are allowed"
        if not outages and not any(fault.kind == "lose" and fault.place == "start" for fault in result.struck):
            for number, one in enumerate(starts, 1):
                if one.attempt != number:
                    yield f"start {number} of {id} of {agent} (life {replay}) was called attempt {one.attempt}"
                    break


def _broadcasts(result: Result) -> Iterator[str]:
    if result.left:
        return
    got = {(one.agent, one.id) for one in result.book.started}
    dead = _letters(result)
    for told in result.book.told.values():
        for listener in LISTENERS:
            is_in = _is_member(result, listener, told)
            copy = (listener, f"{told.id}@{listener}")
            if is_in and told.confirmed_at is not None and copy not in got | dead:
                yield f"{listener} was in the group and did not get {told.id}"
            if is_in is False and copy in got | dead:
                yield f"{listener} was not in the group and got {told.id}"


def _shouts(result: Result) -> Iterator[str]:
    """Volatile broadcasts reach members only, and each process once."""
    heard = Counter((one.process, one.agent, one.id) for one in result.book.heard)
    for (process, agent, copy), times in heard.items():
        id, _, member = copy.partition("@")
        told = result.book.shouted.get(id)
        if told is None or member != agent:
            yield f"{agent} got {copy}, which nobody told it"
        elif times > 1:
            yield f"{agent} got {copy} {times} times in {process}"


def _answers(result: Result) -> Iterator[str]:
    """A reply is that of a handler of the request."""
    handled = {one.id for one in result.book.started}
    for id, content in result.book.answers.items():
        if content != id or id not in handled:
            yield f"the answer to {id} was {content!r}"


def _only_owners_commit(result: Result) -> Iterator[str]:
    """The fence: what a member stores of a shard that is somebody else's by now is refused."""
    for happening in result.world.history:
        if happening.what == "usurped":
            yield f"{happening.process} stored the state of {happening.detail}, which was not its own"


def _is_member(result: Result, listener: str, told: Told) -> bool | None:
    """Whether the listener was in the group at the broadcast; None when that cannot be known."""
    mine = [one for one in result.book.memberships if one.listener == listener]
    before = [one for one in mine if one.done_at is not None and one.done_at <= told.began_at]
    if len(mine) != len(before) and any(
        one not in before and (told.confirmed_at is None or one.began_at <= told.confirmed_at) for one in mine
    ):
        return None  # one is under way, or nobody knows what became of it
    if not before:
        return False
    last = max(before, key=lambda one: one.began_at)
    if any(one.joins != last.joins and one.done_at is not None and one.done_at > last.began_at for one in before):
        return None  # two at a time
    return last.joins


def _counters(result: Result) -> Iterator[str]:
    """When no process died and no answer was lost, what the members counted is what the store did."""
    if result.left or any(fault.kind not in ("delay", "double") for fault in result.struck):
        return
    heard = sum(one.outcome == "ok" for one in result.book.heard)
    acked = sum(metrics.acked for metrics in result.metrics) - heard
    settled = sum(happening.what == "settled" for happening in result.world.history)
    if result.world.features.per_record_ack and acked != settled:
        yield f"the members counted {acked} acknowledged messages, the store {settled}"
    nacked = sum(metrics.nacked for metrics in result.metrics)
    failed = sum(one.outcome in (*_FAILED, "cancelled") for one in result.book.started)
    if nacked > failed:
        yield f"the members counted {nacked} failed attempts; {failed} handlers failed"


def _schedules(result: Result) -> Iterator[str]:
    """Each due time of a schedule comes in one message, and none between two of them is left out, but for those whose
    message is a dead letter."""
    dead = _letters(result)
    for planned in result.book.planned.values():
        due = sorted(planned.due_at.values())
        for earlier, later in pairwise(due):
            if later - earlier < planned.every_s - _CLOCK_S:
                yield f"{planned.name} came twice for one time, {later}"
            for nth in range(1, round((later - earlier) / planned.every_s)):
                missing = earlier + nth * planned.every_s
                if not result.left and not any((planned.agent, id) in dead for id in _ids_at(planned.name, missing)):
                    yield f"{planned.name} did not come at {missing}, between {earlier} and {later}"


def _ids_at(schedule: str, due_at: float) -> Iterator[str]:
    """Of a message for this time, which was told to a microsecond."""
    for off in (0, -1e-6, 1e-6):
        yield derived_id("schedule", schedule, f"{due_at + off:.6f}")


def _effects(result: Result) -> Iterator[str]:
    """What is done once happens once, unless who did it was silent for so long that it counted as dead."""
    first: dict[str, Effect] = {}
    for effect in result.book.effects:
        earlier = first.setdefault(effect.id, effect)
        if earlier is not effect and not any(
            _was_out(result, one.process, one.began_at, effect.at) for one in (earlier, effect)
        ):
            yield f"the effect of {effect.id} happened in {earlier.process} and again in {effect.process}"
