#!/usr/bin/env bash
# Unpacks another version of Debian's Samba, with all it depends on, into a directory of its own:
#
#     tests/samba-root.sh 4.22 DIR     from bookworm-backports
#     tests/samba-root.sh sid DIR      whatever Debian unstable has (4.25 or later)
#
# Nothing is installed, and the system's package lists and caches stay as they are. Then: SAMBA_ROOT=DIR understudy-e2e run
# MIRROR= names another mirror than Debian's.
set -euo pipefail

if [ $# -ne 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
case "$1" in
    4.22) suite=bookworm-backports; suites=(bookworm bookworm-backports) ;;
    4.25 | sid) suite=sid; suites=(sid) ;;
    *) echo "samba-root: no version $1: write 4.22 or sid" >&2; exit 2 ;;
esac
mkdir -p "$2"
root=$(realpath "$2")
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,etc}

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
for each in "${suites[@]}"; do
    echo "deb [signed-by=$keyring] ${MIRROR:-http://deb.debian.org/debian} $each main"
done >"$apt/etc/sources.list"
# No package counts as installed, so that all of them come, libc too.
: >"$apt/status"
private=(
    -o Dir::Etc::SourceList="$apt/etc/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
    -o Dir::State="$apt/state" -o Dir::State::Status="$apt/status" -o Dir::Cache="$apt/cache"
    -o APT::Sandbox::User=root -o Debug::NoLocking=true -o APT::Architecture=amd64 -o APT::Architectures=amd64
)
export DEBIAN_FRONTEND=noninteractive
apt-get "${private[@]}" -qq update
apt-get "${private[@]}" -qq -y --no-install-recommends --download-only -t "$suite" install samba winbind samba-testsuite >/dev/null

# The directories that packages expect to be links, and those that are mounted over.
mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{dev,proc,tmp,etc}
for each in bin sbin lib lib64; do
    [ -e "$root/$each" ] || ln -s "usr/$each" "$root/$each"
done
for package in "$apt"/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
done
touch "$root"/etc/{passwd,group,nsswitch.conf}
chroot "$root" /usr/sbin/smbd --version
