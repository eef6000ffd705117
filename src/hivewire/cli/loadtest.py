"""`hivewire loadtest`: sends by a timetable and accounts for every message."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivewire.cli.options import (
    UsageError,
    add_json_option,
    add_protocol_option,
    count,
    duration_s,
    run_async,
    settings_from,
    to_json,
)

if TYPE_CHECKING:
    from hivewire.cli.loadtest_run import LoadTest, Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=count, default=1000, metavar="N", help="messages a second (1000)")
    parser.add_argument("--duration", type=duration_s, default=60.0, metavar="TIME", help="how long to send (60s)")
    parser.add_argument("--workers", type=count, default=10, metavar="N", help="handlers at a time, in all (10)")
    parser.add_argument(
        "--processes", type=count, metavar="N", help="spread the handlers over N processes of their own (not on memory)"
    )
    parser.add_argument("--kill", action="store_true", help="halfway, kill one worker process with SIGKILL")
    parser.add_argument("--keys", type=count, default=100, metavar="N", help="keys, each handled in order (100)")
    parser.add_argument("--size", type=int, default=256, metavar="BYTES", help="padding of each message (256)")
    parser.add_argument("--work", type=duration_s, default=0.0, metavar="TIME", help="how long a handler takes (0)")
    parser.add_argument(
        "--drain", type=duration_s, default=30.0, metavar="TIME", help="give up when the queue stands still (30s)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a report with charts")
    add_protocol_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    return run_async(_run(args, _plan(args)))


def _plan(args: argparse.Namespace) -> Plan:
    from hivewire.cli.loadtest_run import Plan

    is_memory = settings_from(args).protocol == "inmemory"
    processes = args.processes or 0
    if processes and is_memory:
        raise UsageError("memory:// lives in one process; leave --processes away, or use sqlite:///FILE or a server")
    if args.kill and processes < 2:
        raise UsageError("--kill needs --processes 2 or more: one to kill, one to take over")
    if args.report is not None and not args.report.parent.is_dir():
        raise UsageError(f"there is no folder {str(args.report.parent)!r} for the report")
    if args.report is not None and args.report.is_dir():
        raise UsageError(f"--report {str(args.report)!r} is a folder; name a file in it")
    if args.duration <= 0 or args.size < 0:
        raise UsageError("--duration must be above 0 and --size not below it")
    return Plan(
        rate=args.rate,
        duration_s=args.duration,
        workers=args.workers,
        processes=processes,
        keys=args.keys,
        size_bytes=args.size,
        work_s=args.work,
        kill=args.kill,
        drain_s=args.drain,
    )


async def _run(args: argparse.Namespace, plan: Plan) -> int:
    from hivewire.cli.loadtest_run import LoadTest

    test = LoadTest(args, plan)
    await test.run()
    result = result_of(test, plan)
    if args.json:
        print(to_json(result))
    else:
        print(in_words(result, plan))
    if args.report is not None:
        from hivewire.cli.loadtest_report import html

        args.report.write_text(html(result, test.tally, plan), encoding="utf-8")
        sys.stderr.write(f"report: {args.report}\n")
    return 0 if result["ok"] else 1


def result_of(test: LoadTest, plan: Plan) -> dict[str, Any]:
    """All figures of a run, under the names that `--json` prints."""
    from hivewire.rules.histogram import summary_ms

    tally, counts = test.tally, test.counts
    took_s = (tally.last_ns - test.start_ns) / 1e9
    return {
        "sent": counts.sent,
        "confirmed": tally.confirmed,
        "handled": tally.handled,
        "lost": counts.lost,
        "duplicates": tally.duplicates,
        "out_of_order": tally.out_of_order,
        "dead": counts.dead,
        "throughput": round(tally.handled / took_s, 1) if took_s > 0 else 0.0,
        "latency_ms": dict(summary_ms(tally.latency_us)),
        "cpu_s": counts.cpu_s,
        "rss_mb": counts.rss_mb,
        "ok": tally.confirmed > 0 and counts.lost == 0 and tally.out_of_order == 0 and counts.unfinished == 0,
        "planned": plan.total,
        "failed": counts.failed,
        "first_error": counts.first_error or None,
        "unfinished": counts.unfinished,
        "killed": counts.killed,
        "backend": counts.backend,
        "durability": counts.durability,
        "rate": plan.rate,
        "duration_s": plan.duration_s,
        "workers": plan.workers,
        "processes": plan.processes or 1,
        "keys": plan.keys,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def in_words(result: dict[str, Any], plan: Plan) -> str:
    """The result for people; the last line is the verdict."""
    latency = result["latency_ms"]
    where = f"{plan.processes} processes" if plan.processes > 1 else "one process"
    load = f"{plan.rate:g}/s for {plan.duration_s:g} s, {plan.keys} keys, {plan.workers} handlers in {where}"
    lines = [
        f"{result['backend']} ({result['durability']}): {load}",
        f"sent {result['sent']}, confirmed {result['confirmed']}, handled {result['handled']}, dead {result['dead']}",
        f"lost {result['lost']}, duplicates {result['duplicates']}, out of order {result['out_of_order']}",
        f"throughput {result['throughput']:.0f}/s",
        "latency ms: "
        + ", ".join(f"{name} {value:.1f}" for name, value in latency.items())
        + " (due to handler start)",
        f"cpu {result['cpu_s']:.1f} s, memory {result['rss_mb']:.0f} MB",
    ]
    if result["sent"] < result["planned"]:
        lines.append(f"the rate was not reached: {result['planned'] - result['sent']} messages were never sent")
    if result["failed"]:
        lines.append(f"{result['failed']} sends failed; the first: {result['first_error']}")
    if result["unfinished"]:
        lines.append(f"{result['unfinished']} were still in the queue after {plan.drain_s:g} s without progress")
    held, about = verdict(result)
    lines.append(f"{held if result['ok'] else held.upper()}{about}")
    return "\n".join(lines)


def verdict(result: dict[str, Any]) -> tuple[str, str]:
    """What can be said of the promise, and of how many messages where that is not all of them."""
    if not result["confirmed"]:
        return "nothing was tested", ": no message was confirmed"
    held = "the promise held" if result["ok"] else "the promise broke"
    if result["confirmed"] == result["planned"]:
        return held, ""
    return held, f" for the {result['confirmed']:,} messages that were confirmed, of {result['planned']:,}"
