#!/bin/sh
# The fast check: the type checker beside the tests, six of which run at a time, for many wait; properties get few examples.
set -u
cd "$(dirname "$0")/.."
status=0
part() { echo "==> $1"; shift; "$@" || { echo "FAILED: $*" >&2; status=1; }; }

part "format" "$PY" -m ruff format --check --quiet .
part "lint" "$PY" -m ruff check --quiet .
types=$(mktemp)
"$PY" -m mypy >"$types" 2>&1 &
checker=$!
part "unit tests, import contracts, conformance on memory, smoke on SQLite" \
    "$PY" -m pytest -q -n 6 --hypothesis-profile quick -m "not slow" -k "unit or ((memory or test_stored) and not (redis or valkey or kafka))" \
    tests/unit tests/conformance "$@"
echo "==> types"
wait "$checker" || { echo "FAILED: mypy" >&2; status=1; }
cat "$types"
rm -f "$types"
exit $status
