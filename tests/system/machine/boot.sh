#!/bin/bash
# Becomes the systemd of a machine for tests. Runs as process 1 of new PID, mount, UTS, IPC and cgroup namespaces.
#
# Usage: boot.sh FOLDER [SOURCE:TARGET]…     FOLDER: where the machine's root is put together
#                                            SOURCE:TARGET: what is to be seen in it, read-only, and where
set -euo pipefail
folder=$1
shift

# Nothing that is mounted from here on is seen outside.
mount --make-rprivate /

# The root: the real one below, read only; all that is changed goes to memory.
mount -t tmpfs -o size=2g,mode=0755 tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
root=$folder/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"

# A second wall: no rule of a tmpfiles.d may find the files of others, not even their copies.
for place in /tmp /run /var/tmp /var/log/journal /var/lib/systemd; do
    mkdir -p "$root$place"
    mount -t tmpfs -o mode=0755 tmpfs "$root$place"
done
chmod 1777 "$root/tmp" "$root/var/tmp"
mount --bind /bin/true "$root/usr/bin/systemd-tmpfiles"

# Of the real machine's services none is to be started here, only the journal.
for place in /etc/systemd/system /usr/lib/systemd/system-generators "$root"/usr/lib/systemd/system/*.target.wants; do
    place=$root${place#"$root"}
    [ -d "$place" ] && mount -t tmpfs -o mode=0755 tmpfs "$place"
done
mkdir "$root/etc/systemd/system/sysinit.target.wants"
ln -s /usr/lib/systemd/system/systemd-journald.service "$root/etc/systemd/system/sysinit.target.wants/"
ln -s /usr/lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"

# Devices of its own.
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
# As systemd has it where it is not in a container: credentials reach their services by propagation.
mount --make-rshared /
# container= keeps systemd's hands off what namespaces do not divide: the kernel's settings, the clock.
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --log-target=journal --show-status=no
