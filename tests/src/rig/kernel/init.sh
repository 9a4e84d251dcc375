# The first process of the guest. Its root is the host's, read-only; /mnt is the one directory of the host that it may
# write, /srv holds the unpacked packages. CASE_SHARE, CASE_OPTIONS and CASE_MOUNTS come with the kernel's command line.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C
share=/tmp/share
results=/mnt

# Tells the host, at once.
say() { echo "@ $*" >/dev/tty1; }

# What the kernel knows of its connections.
record() {
    cat /proc/fs/cifs/DebugData >"$results/DebugData"
    cat /proc/fs/cifs/Stats >"$results/Stats"
    dmesg >"$results/dmesg"
}

# Runs a command whose status counts. Its output is kept.
try() {
    local name=$1 status
    shift
    "$@" >>"$results/output" 2>>"$results/errors"
    status=$?
    if [ "$status" -eq 0 ]; then
        say "done $name"
    else
        echo "$name ended with status $status: $*" >>"$results/failures"
        record
        say "failed $name"
    fi
}

# Waits until the host has made a file of that name.
await() { until [ -e "$results/$1" ]; do sleep 0.02; done; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
# Its network card needs memory at once for what arrives, and stands still for ever when there is none.
echo 65536 >/proc/sys/vm/min_free_kbytes
mount -t tmpfs tmpfs /tmp
mkdir "$share"
while read -r module; do /srv/bin/busybox insmod "/srv/$module"; done </srv/modules

for file in "$results"/etc/*; do
    if [ -e "$file" ]; then mount --bind "$file" "/etc/${file##*/}"; fi
done

ip link set lo up
ip addr add "$CASE_ADDRESS/24" dev vec0
ip link set vec0 up

export LD_LIBRARY_PATH=/srv/lib/x86_64-linux-gnu
try mount /srv/sbin/mount.cifs "//$CASE_SHARE" "$share" -o "$CASE_OPTIONS"
for ((further = 2; further <= CASE_MOUNTS; further++)); do
    mkdir "$share$further"
    declare "share$further=$share$further"
    try mount /srv/sbin/mount.cifs "//$CASE_SHARE" "$share$further" -o "$CASE_OPTIONS,nosharesock"
done
unset LD_LIBRARY_PATH
if mountpoint -q "$share"; then
    source /mnt/workload.sh
    record
    for mounted in "$share"*; do try umount umount "$mounted"; done
fi
say end
echo o >/proc/sysrq-trigger
sleep 60
