#!/usr/bin/env bash
# The chart's checks; `readme` and `golden` write what is made of it anew: the table of values in helm/README.md, and the
# renders in tests/chart/golden.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
"$here/chart-tools.sh"
exec "${CARGO_TARGET_DIR:-$here/../target}/chart-tools/venv/bin/python" "$here/chart/check.py" "$@"
