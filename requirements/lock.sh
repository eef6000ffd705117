#!/bin/sh
# Resolves pyproject.toml into requirements/*.txt. The files name packages, versions and hashes, and no address.
set -eu
cd "$(dirname "$0")/.."
if ! command -v uv >/dev/null 2>&1; then
    "$PY" -m pip install -q uv
    PATH="$(pwd)/.venv/bin:$PATH"
fi
export UV_CUSTOM_COMPILE_COMMAND="make lock"
compile() {
    name=$1; shift
    echo "==> requirements/$name.txt"
    uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
        --no-emit-index-url --no-emit-find-links pyproject.toml -o "requirements/$name.txt" "$@" >/dev/null
}
compile dev --group dev
compile run --group build -c requirements/dev.txt
compile bench --group bench -c requirements/dev.txt
if grep -nE '://' requirements/*.txt; then
    echo "lock: an address got into the files above" >&2
    exit 1
fi
