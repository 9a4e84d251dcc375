#!/usr/bin/env bash
# Installs the Python clients of tests/python/requirements.txt into target/python-clients, and nothing into the system. What
# is there in these versions is not fetched again.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
wanted="$here/python/requirements.txt"
venv="${CARGO_TARGET_DIR:-$here/../target}/python-clients"
cmp -s "$wanted" "$venv/complete" && exit 0

rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$wanted"
cp "$wanted" "$venv/complete"
