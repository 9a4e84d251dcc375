#!/usr/bin/env bash
# Builds the image of the proxy without pulling anything: from bases of Debian's packages, which stand in for the public ones.
#
#   image.sh            what is in the Containerfile from beginning to end, with the toolchain, the crates and the build
#                       directory of this machine
#   image.sh BINARY     the same, but for the compiler: with a binary that was built on this machine
#   image.sh samba      the image of a Samba node, helm/examples/samba
#
# The images are localhost/understudy:dev and localhost/understudy-samba:dev, in a storage of their own (target/containers).
# Needs root, buildah and mmdebstrap.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target="${CARGO_TARGET_DIR:-$root/target}"
containers="$target/containers"
suite=bookworm
mkdir -p "$containers"

buildah() {
    command buildah --root "$containers/storage" --runroot "$containers/run" --storage-driver overlay "$@" \
        2> >(grep -v 'CNI config' >&2)
}

# base NAME PACKAGES: an image of these packages and what they need, made once.
base() {
    local name="localhost/$1" into
    buildah inspect --type image "$name" >/dev/null 2>&1 && return
    mmdebstrap --quiet --variant="$3" --include="$2" "$suite" "$containers/$1.tar"
    into=$(buildah from scratch)
    buildah add --quiet "$into" "$containers/$1.tar" / >/dev/null
    buildah commit --quiet "$into" "$name" >/dev/null
    buildah rm "$into" >/dev/null
    rm "$containers/$1.tar"
}

# finish NAME CONTEXT: builds it, and says how large it is.
finish() {
    buildah build --quiet --layers --isolation chroot --timestamp 0 "${arguments[@]}" --tag "localhost/$1:dev" "$2" >/dev/null
    buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}' "localhost/$1:dev"
}

if [ "${1:-}" = samba ]; then
    base understudy-debian apt minbase
    # Packages come from where this machine has them from.
    arguments=(--build-arg BASE=localhost/understudy-debian --volume /etc/apt:/etc/apt:ro --volume /usr/share/keyrings:/usr/share/keyrings:ro)
    finish understudy-samba "$root/helm/examples/samba"
    exit
fi

base understudy-run-base libc6,libgcc-s1,ca-certificates,base-files extract
arguments=(--build-arg RUN_BASE=localhost/understudy-run-base)
if [ $# -gt 0 ]; then
    into=$(buildah from scratch)
    cp "$1" "$containers/understudy"
    strip --strip-debug "$containers/understudy"
    buildah copy --quiet "$into" "$containers/understudy" /out/understudy >/dev/null
    buildah commit --quiet "$into" localhost/understudy-binary >/dev/null
    buildah rm "$into" >/dev/null
    arguments+=(--build-arg BUILD_BASE=localhost/understudy-run-base
        --build-context build=container-image://localhost/understudy-binary)
else
    base understudy-build-base gcc,libc6-dev,make,ca-certificates,protobuf-compiler,libprotobuf-dev apt
    sysroot=$(rustc --print sysroot)
    cargo_home="${CARGO_HOME:-$HOME/.cargo}"
    mkdir -p "$containers/build"
    into=$(buildah from localhost/understudy-build-base)
    buildah config --env "PATH=$sysroot/bin:/usr/bin:/bin" --env "CARGO_HOME=$cargo_home" \
        --env "CARGO_BUILD_JOBS=${CARGO_BUILD_JOBS:-$(nproc)}" "$into"
    buildah commit --quiet "$into" localhost/understudy-build >/dev/null
    buildah rm "$into" >/dev/null
    # In the places where they are on this machine, so that paths in the configuration of cargo hold.
    arguments+=(
        --build-arg BUILD_BASE=localhost/understudy-build
        --volume "$sysroot:$sysroot:ro" --volume "$cargo_home:$cargo_home" --volume "$containers/build:/src/target"
    )
fi
finish understudy "$root"
