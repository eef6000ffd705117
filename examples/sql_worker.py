"""A worker of your own kind: it answers questions about a SQLite file, and only reads. No model, no server:

python examples/sql_worker.py
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import hivewire as hw

reader = hw.Worker("reader", capabilities=["sql"], concurrency=4)


@reader.on("query", retry=hw.Retry(max_attempts=3, first_s=0.1, most_s=1))
def answer(task: hw.Message, ctx: hw.Context) -> dict[str, list[list[object]]]:  # a plain function runs in a thread
    path, sql = Path(task.content["path"]), task.content["sql"]
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return {"rows": [list(row) for row in connection.execute(sql)]}
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise  # tried again
        raise hw.Reject(f"SQLite: {error}") from error  # trying again would not help


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sales.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE sales (region TEXT, amount INTEGER)")
            connection.executemany("INSERT INTO sales VALUES (?, ?)", [("north", 30), ("south", 12), ("north", 8)])
        async with hw.connect("memory://") as protocol, asyncio.TaskGroup() as group:
            serving = group.create_task(reader.serve(protocol))
            sql = "SELECT region, sum(amount) FROM sales GROUP BY region ORDER BY 2 DESC"
            question = hw.Message(type="query", sender="me", to="reader", content={"path": str(path), "sql": sql})
            for region, amount in (await protocol.request(question, timeout_s=10)).content["rows"]:
                print(f"{region}: {amount}")
            wrong = question.replace(id="wrong", content={"path": str(path), "sql": "DELETE FROM sales"})
            try:
                await protocol.request(wrong, timeout_s=2)
            except hw.TimedOut:
                (dead,) = await protocol.dead_letters("reader")
                print(f"refused: {dead.error}")
            serving.cancel()


asyncio.run(main())
