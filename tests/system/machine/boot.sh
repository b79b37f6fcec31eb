#!/bin/bash
# Set up a test machine and exec its systemd. Runs as process 1 of new PID, mount, UTS, IPC and cgroup namespaces.
#
# Usage: boot.sh FOLDER [SOURCE:TARGET]…     FOLDER: where the machine's root is built
#                                            SOURCE:TARGET: host path and its read-only mount point inside
set -euo pipefail
folder=$1
shift

# The host does not see the following mounts.
mount --make-rprivate /

# The root is an overlay: the host's root read-only below, all changes in memory.
mount -t tmpfs -o size=2g,mode=0755 tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
root=$folder/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"

# Second safeguard: rules of tmpfiles.d must not find the host's files, not even through the overlay.
for path in /tmp /run /var/tmp /var/log/journal /var/lib/systemd; do
    mkdir -p "$root$path"
    mount -t tmpfs -o mode=0755 tmpfs "$root$path"
done
chmod 1777 "$root/tmp" "$root/var/tmp"
mount --bind /bin/true "$root/usr/bin/systemd-tmpfiles"

# Start none of the host's services, only the journal.
for path in /etc/systemd/system /usr/lib/systemd/system-generators "$root"/usr/lib/systemd/system/*.target.wants; do
    path=$root${path#"$root"}
    [ -d "$path" ] && mount -t tmpfs -o mode=0755 tmpfs "$path"
done
mkdir "$root/etc/systemd/system/sysinit.target.wants"
ln -s /usr/lib/systemd/system/systemd-journald.service "$root/etc/systemd/system/sysinit.target.wants/"
ln -s /usr/lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"

# Private devices.
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for number in 0:stdin 1:stdout 2:stderr; do
    ln -s "fd/${number%:*}" "$root/dev/${number#*:}"
done

for pair in "$@"; do
    mkdir -p "$root${pair#*:}"
    mount --bind -o ro "${pair%%:*}" "$root${pair#*:}"
done

mount -t proc proc "$root/proc"
mount --bind -o ro /sys "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"

cd "$root"
mkdir run/outside
pivot_root . run/outside
umount -l /run/outside
# Outside of a container, systemd mounts the root shared: credentials reach their services by mount propagation.
mount --make-rshared /
# With container=, systemd does not change what namespaces do not isolate: kernel settings and the clock.
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --log-target=journal --show-status=no
