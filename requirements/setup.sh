#!/bin/sh
# Makes ready what a target needs, and nothing twice: a virtual environment in .venv with the locked requirements and this
# package, editable. The first run needs the network; a later one does not touch it.
#
#     requirements/setup.sh run|dev|bench
set -eu
cd "$(dirname "$0")/.."
lock="requirements/$1.txt"
venv=.venv
here=$(pwd)

say() { printf '==> %s\n' "$*"; }
fail() { printf 'set-up: %s\n' "$*" >&2; exit 2; }

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if is_recent "$candidate"; then command -v "$candidate"; return; fi
    done
    fail "no Python 3.11 or newer was found (tried ${PYTHON:-python3, python3.11 to python3.14}); name one with PYTHON=/path/to/python3"
}

# The environment holds absolute paths, so one that was made elsewhere (a copied checkout) is made anew.
usable_venv() { [ -f "$venv/.made-for" ] && [ "$(cat "$venv/.made-for")" = "$here" ] && is_recent "$venv/bin/python"; }

wanted() { cat "$lock" pyproject.toml src/hivewire/version.py | cksum; }

is_done() { usable_venv && [ -f "$venv/.has-$1" ] && [ "$(cat "$venv/.has-$1")" = "$(wanted)" ]; }

make_venv() {
    python=$(find_python)
    say "making $venv with $("$python" --version 2>&1) ($python)"
    rm -rf "$venv"
    if "$python" -c 'import ensurepip' >/dev/null 2>&1; then
        "$python" -m venv "$venv"
    elif command -v uv >/dev/null 2>&1; then
        uv venv -q --seed --python "$python" "$venv"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install -q pip
    else
        fail "$python has neither the venv module's ensurepip nor pip: install your system's python3-venv package"
    fi
    printf '%s' "$here" >"$venv/.made-for"
}

install() {
    if command -v uv >/dev/null 2>&1; then
        if uv pip install -q --python "$venv/bin/python" "$@"; then return; fi
        say "uv did not manage it; trying pip"
    fi
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@"
}

if is_done "$1"; then exit 0; fi
if [ ! -w "${HOME:-/nonexistent}" ]; then  # no home to keep downloads in: keep them in the checkout
    export UV_CACHE_DIR="$here/.cache/uv" PIP_CACHE_DIR="$here/.cache/pip"
fi
umask 022
usable_venv || make_venv
say "installing $lock (pinned and hashed)"
install --require-hashes -r "$lock" || fail "could not install $lock; the first run needs the network, later ones do not"
if [ "$1" != bench ]; then
    say "installing hivewire from this checkout"
    install --no-deps --no-build-isolation -e . || fail "could not install the package itself"
fi
wanted >"$venv/.has-$1"
