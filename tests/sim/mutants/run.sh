#!/usr/bin/env bash
# Builds the simulator with each fault of this directory in turn, and demands that a run breaks the very invariant that the
# fault is against: the number in its name. Arguments: parts of the names of those that are wanted.
set -euo pipefail
cd "$(dirname "$0")/../../.."
runs=${RUNS:-50000}
tree=$PWD/target/mutants/tree
export CARGO_TARGET_DIR=$PWD/target/mutants
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_INCREMENTAL=1
mkdir -p "$tree"
find "$tree" -mindepth 1 -maxdepth 1 -exec rm -r {} +
git ls-files -z --cached | tar --create --null --files-from=- | tar --extract --touch --directory "$tree"

wanted() {
    [ $# -eq 1 ] && return 0
    local part
    for part in "${@:2}"; do [[ $1 == *"$part"* ]] && return 0; done
    return 1
}

failed=0
printf '%-40s %-9s %s\n' mutant invariant caught
for patch in tests/sim/mutants/*.patch; do
    name=$(basename "$patch" .patch)
    wanted "$name" "$@" || continue
    number=$((10#${name%%-*}))
    if ! patch --strip=1 --force --quiet --directory "$tree" <"$patch" >/dev/null; then
        printf '%-40s %-9s %s\n' "$name" "$number" "NO: the patch does not apply"
        exit 1
    fi
    cargo build --release --locked --quiet --manifest-path "$tree/Cargo.toml" -p understudy-sim
    if said=$("$CARGO_TARGET_DIR/release/understudy-sim" run --runs "$runs" --invariant "$number"); then
        printf '%-40s %-9s %s\n' "$name" "$number" "at $said"
    else
        printf '%-40s %-9s %s\n' "$name" "$number" "NO: $said"
        failed=1
    fi
    patch --strip=1 --force --quiet --reverse --directory "$tree" <"$patch" >/dev/null
done
exit $failed
