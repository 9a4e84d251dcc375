#!/usr/bin/env bash
# The crates that decide do nothing: no runtime, no sockets, no store among their dependencies.
set -euo pipefail
for package in smb-parse understudy-core; do
    if cargo tree --locked -p "$package" -e normal --prefix none | grep -E '^(tokio|redb|socket2|etcd-client|mio) '; then
        echo "purity: $package must not depend on the crates above; I/O belongs to the package understudy" >&2
        exit 1
    fi
done
