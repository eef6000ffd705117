#!/bin/sh
# Makes ready what the tests start: servers and the programs that fetch them. As root on a machine with apt, what is missing
# is installed; elsewhere the wheels of requirements/dev.txt stand in, and what they cannot is said. Never starts anything.
set -u

say() { printf '==> %s\n' "$*"; }
has() { command -v "$1" >/dev/null 2>&1; }

wanted=""
has redis-server || has valkey-server || wanted="$wanted redis-server"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || has initdb || wanted="$wanted postgresql"
has java || wanted="$wanted default-jre-headless"
has mvn || wanted="$wanted maven"

if [ -n "$wanted" ] && [ "$(id -u)" = 0 ] && has apt-get; then
    say "installing$wanted (for the tests that need a real server)"
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1  # nothing is started as a service
    # shellcheck disable=SC2086  # a list of names
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $wanted; } >/dev/null 2>&1 ||
        say "apt could not install$wanted; the wheels stand in where they can"
elif [ -n "$wanted" ]; then
    say "not installed:$wanted; the wheels stand in where they can"
fi
if ! has npm; then
    say "not installed: npm (Node.js 20.15 or newer); tests/wire needs it"
fi
exit 0
