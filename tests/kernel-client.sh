#!/usr/bin/env bash
# Fetches a Linux kernel that runs as a process (User Mode Linux) with its SMB client, and the two programs that it needs,
# into target/kernel-client. Nothing is installed: the packages are only unpacked, and what is there is not fetched again.
set -euo pipefail

packages=(user-mode-linux busybox-static cifs-utils libcap-ng0)
cache="${CARGO_TARGET_DIR:-$(cd "$(dirname "$0")/.." && pwd)/target}/kernel-client"
[ -e "$cache/complete" ] && exit 0

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
# The download needs no sandbox of its own: apt's user could not write here.
fetch() { apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}"; }
fetch 2>/dev/null || { apt-get update -qq && fetch; }
for package in *.deb; do
    dpkg-deb --extract "$package" root
done
# The modules of the SMB client and of its cryptography, each after those that it depends on.
wanted=(hmac cmac ctr ccm ghash-generic gcm sha512_generic seqiv ecb nls_utf8 cifs)
modules=$(echo root/usr/lib/uml/modules/*)
for module in "${wanted[@]}"; do
    awk -F': *' -v name="/$module.ko" -v dir="${modules#root/}" '
        substr($1, length($1) - length(name) + 1) == name {
            for (i = split($2, needed, " "); i > 0; i--) print dir "/" needed[i]
            print dir "/" $1
        }' "$modules/modules.dep"
done | awk '!seen[$0]++' >root/modules

rm -rf "$cache/root"
mv root "$cache/root"
touch "$cache/complete"
