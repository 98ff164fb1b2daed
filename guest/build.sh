#!/bin/bash
# Builds what a test guest boots from, into build/guest: vmlinuz, initramfs, root.squashfs.
#
# The kernel is Debian's cloud kernel, fetched as a package and unpacked here; nothing of it is
# installed into the host. The root is one read-only image for all guests; each guest writes to a
# tmpfs above it. Both are fetched once and kept.
#
#   KERNEL=PATH    a kernel of your own; needs MODULES=DIR (the folder that holds lib/modules)
#   MIRROR=URL     where the root's packages come from, if not from Debian's default
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
out=$PWD/build/guest
mkdir -p "$out"

# Tests in parallel ask for the same guest: the first builds, the others wait.
exec 9>"$out/lock"
flock 9

packages=kmod,util-linux,mount,e2fsprogs,xfsprogs,btrfs-progs,sqlite3,postgresql,procps
modules="virtio_pci virtio_blk virtio_console squashfs overlay ext4 xfs btrfs"

say() { echo "guest: $*" >&2; }

# Fetches a package into the folder named after it, newest version, if it is not there.
fetch() {
    local package=$1
    [ ! -e "$out/$package/.whole" ] || return 0
    say "fetching $package"
    rm -rf "${out:?}/$package"
    mkdir -p "$out/$package/deb"
    # The archive's lists must be there; refreshing them is for root.
    (cd "$out/$package/deb" && apt-get download -q "$package" 2>"$out/fetch.log") || {
        if [ "$(id -u)" = 0 ]; then apt-get update -q >&2; fi
        (cd "$out/$package/deb" && apt-get download -q "$package" 2>"$out/fetch.log") || {
            cat "$out/fetch.log" >&2
            exit 1
        }
    }
    dpkg-deb -x "$out/$package/deb/"*.deb "$out/$package"
    rm -r "$out/$package/deb"
    touch "$out/$package/.whole"
}

kernel() {
    local package
    if [ -n "${KERNEL:-}" ]; then
        cp "$KERNEL" "$out/vmlinuz"
        module_tree=${MODULES:?KERNEL needs MODULES=DIR beside it}
        return
    fi
    package=$(cat "$out/kernel-package" 2>/dev/null || true)
    if [ -z "$package" ]; then
        package=$(apt-cache depends linux-image-cloud-amd64 |
            sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
        [ -n "$package" ] || {
            say "the archive names no cloud kernel"
            exit 1
        }
    fi
    fetch "$package"
    echo "$package" >"$out/kernel-package"
    cp "$out/$package"/boot/vmlinuz-* "$out/vmlinuz"
    module_tree=$out/$package
}

root_image() {
    local key
    key=$(echo "$packages" | sha256sum | cut -c1-12)
    [ ! -e "$out/root-$key.squashfs" ] || {
        ln -sf "root-$key.squashfs" "$out/root.squashfs"
        return
    }
    say "building the root image (about two minutes, once)"
    mmdebstrap --quiet --variant=essential --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        bookworm "$out/new.squashfs" ${MIRROR:+"$MIRROR"} </dev/null 2>"$out/root.log" || {
        cat "$out/root.log" >&2
        exit 1
    }
    mv "$out/new.squashfs" "$out/root-$key.squashfs"
    ln -sf "root-$key.squashfs" "$out/root.squashfs"
}

# The program that works inside the guest: static, as the guest's libraries are its own.
worker() {
    RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --release \
        -p bowline-guest --target x86_64-unknown-linux-gnu --target-dir "$PWD/build/guest-target"
    cp build/guest-target/x86_64-unknown-linux-gnu/release/bowline-guest "$out/worker"
}

initramfs() {
    local tree=$out/tree version module file
    version=$(basename "$(echo "$module_tree"/lib/modules/*)")
    rm -rf "$tree"
    mkdir -p "$tree/bin" "$tree/lib/modules/$version"
    cp "$out/busybox-static/bin/busybox" "$tree/bin/busybox"
    cp guest/init.sh "$tree/init"
    cp "$out/worker" "$tree/bin/bowline-guest"
    chmod 755 "$tree/init"
    [ -e "$module_tree/lib/modules/$version/modules.dep" ] || depmod -b "$module_tree" "$version"
    for module in $modules; do
        modprobe -d "$module_tree" -S "$version" --show-depends "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r file; do
        file=${file#"$module_tree"}
        install -D -m 644 "$module_tree$file" "$tree$file"
        case $file in *.xz) xz -d "$tree$file" ;; *.zst) zstd -q -d --rm "$tree$file" ;; esac
    done
    cp "$module_tree/lib/modules/$version/"modules.{builtin,order} "$tree/lib/modules/$version/"
    depmod -b "$tree" "$version" 2>/dev/null
    (cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) |
        zstd -q -3 >"$out/initramfs.new"
    mv "$out/initramfs.new" "$out/initramfs"
    rm -r "$tree"
}

kernel
fetch busybox-static
root_image
worker
if [ ! -e "$out/initramfs" ] || [ "$out/worker" -nt "$out/initramfs" ] ||
    [ guest/init.sh -nt "$out/initramfs" ] || [ guest/build.sh -nt "$out/initramfs" ] ||
    [ -n "${KERNEL:-}" ]; then
    initramfs
fi
say "ready in build/guest"
