#!/usr/bin/env bash
# Installs the Debian packages that the tests and the demo use, if they are missing. Nothing is configured or started:
# the tests bring their own configurations, directories and network namespaces.
set -euo pipefail

"$(dirname "$0")/kernel-client.sh"

declare -A provider=(
    [smbd]=samba [pdbedit]=samba-common-bin [smbclient]=smbclient [ip]=iproute2 [unshare]=util-linux
    [haproxy]=haproxy [tshark]=tshark [cc]=gcc [make]=make
    [krb5kdc]=krb5-kdc [kadmin.local]=krb5-admin-server [kinit]=krb5-user [faketime]=faketime
    [winbindd]=winbind [request-key]=keyutils
)
missing=()
for program in "${!provider[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing+=("${provider[$program]}")
done
# What a domain controller needs beside its program.
for package in samba-ad-dc samba-ad-provision; do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "setup: these Debian packages are missing, and are installed now: ${missing[*]}"
    command -v sudo >/dev/null && exec sudo "$0"
    echo "setup: there is no sudo. As root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi
# Installing a server must not start it: the system's own Samba and HAProxy stay as they are.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
