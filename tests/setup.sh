#!/usr/bin/env bash
# Installs the Debian packages that the tests and the demo use, if they are missing, and fetches what they use besides into
# the target directory. Nothing is configured or started: the tests bring their own configurations, directories and network
# namespaces. `packages` as an argument: the packages only.
set -euo pipefail

declare -A provider=(
    [smbd]=samba [smbstatus]=samba [pdbedit]=samba-common-bin [smbclient]=smbclient [smbtorture]=samba-testsuite [ip]=iproute2
    [unshare]=util-linux [nsenter]=util-linux [haproxy]=haproxy [tshark]=tshark [cc]=gcc [make]=make
    [krb5kdc]=krb5-kdc [kadmin.local]=krb5-admin-server [kinit]=krb5-user [faketime]=faketime
    [winbindd]=winbind [request-key]=keyutils [git]=git [sqlite3]=sqlite3 [etcdctl]=etcd-client [tar]=tar [flock]=util-linux
    [etcd]=etcd-server [openssl]=openssl [protoc]=protobuf-compiler
    [podman]=podman [buildah]=buildah [runc]=runc [mmdebstrap]=mmdebstrap [strip]=binutils
    [nft]=nftables
)
missing=()
for program in "${!provider[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing+=("${provider[$program]}")
done
# What a domain controller and protoc need beside their programs.
for package in samba-ad-dc samba-ad-provision libprotobuf-dev; do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)

# Installing a server must not start it: the system's own Samba and HAProxy stay as they are.
install() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # What podman only recommends, and does not run without, where there is such a package.
    if [[ " ${missing[*]} " == *" podman "* ]]; then
        for package in netavark aardvark-dns crun uidmap fuse-overlayfs golang-github-containers-common; do
            if apt-cache show "$package" >/dev/null 2>&1; then missing+=("$package"); fi
        done
    fi
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" -eq 0 ]; then
        install
    elif command -v sudo >/dev/null; then
        echo "setup: these Debian packages are missing, and are installed now: ${missing[*]}"
        sudo "$0" packages
    else
        echo "setup: there is no sudo. As root: apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
fi
[ "${1:-}" = packages ] && exit 0

"$(dirname "$0")/kernel-client.sh"
"$(dirname "$0")/python-clients.sh"
