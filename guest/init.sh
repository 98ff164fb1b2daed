#!/bin/busybox sh
# shellcheck shell=dash
#
# First process of a test guest: modules, the shared root under a tmpfs, then the agent.
export PATH=/bin
busybox mkdir -p /proc /sys /dev /lower /upper /system
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox ln -s /bin/busybox /bin/modprobe

for module in virtio_pci virtio_blk virtio_console squashfs overlay ext4; do
    busybox modprobe "$module" || echo "init: no module $module"
done

# The root is the disk with the serial number "root".
for disk in /sys/block/vd*; do
    if [ "$(busybox cat "$disk/serial" 2>/dev/null)" = root ]; then
        root=/dev/${disk##*/}
    fi
done
busybox mount -t squashfs -o ro "$root" /lower
busybox mount -t tmpfs tmpfs /upper
busybox mkdir /upper/data /upper/scratch
busybox mount -t overlay overlay \
    -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/scratch /system

busybox mkdir -p /system/lib/modules /system/disk /system/run
busybox cp -a /lib/modules/. /system/lib/modules/
busybox cp /bin/bowline-guest /system/bin/bowline-guest
busybox mount --move /proc /system/proc
busybox mount --move /sys /system/sys
busybox mount --move /dev /system/dev
busybox mount -t tmpfs tmpfs /system/run
busybox mkdir -p /system/dev/shm && busybox mount -t tmpfs tmpfs /system/dev/shm

# Stable names for the data disks, by their serial numbers.
busybox mkdir -p /system/dev/disk/by-serial
for disk in /system/sys/block/vd*; do
    serial=$(busybox cat "$disk/serial" 2>/dev/null)
    [ -z "$serial" ] || busybox ln -sf "/dev/${disk##*/}" "/system/dev/disk/by-serial/$serial"
done
exec busybox switch_root /system /bin/bowline-guest agent /dev/hvc0
