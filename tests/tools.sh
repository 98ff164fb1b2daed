#!/bin/bash
# What the tests, the demo and the benchmark need beside cargo.
#   tests/tools.sh check     says what is missing and fails
#   tests/tools.sh install   installs it: Debian packages, and rustfmt and clippy by rustup
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

# command, Debian package
NEEDED="
qemu-system-x86_64 qemu-system-x86
qemu-img qemu-utils
qemu-io qemu-utils
qemu-nbd qemu-utils
nbdinfo libnbd-bin
nbdcopy libnbd-bin
nbdsh python3-libnbd
nbdkit nbdkit
fio fio
mmdebstrap mmdebstrap
tar2sqfs squashfs-tools-ng
depmod kmod
mkfs.ext4 e2fsprogs
mkfs.xfs xfsprogs
mkfs.btrfs btrfs-progs
cpio cpio
zstd zstd
xz xz-utils
gcc gcc
python3 python3
shellcheck shellcheck
ldconfig libc-bin
setpriv util-linux
prlimit util-linux
losetup mount
"

missing_packages() {
    local command package
    while read -r command package; do
        [ -n "$command" ] || continue
        command -v "$command" >/dev/null || echo "$package"
    done <<<"$NEEDED" | sort -u
    # nbdsh starts without its module; the archive's keys are what mmdebstrap trusts.
    if command -v nbdsh >/dev/null && ! /usr/bin/python3 -c 'import nbd' 2>/dev/null; then
        echo python3-libnbd
    fi
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || echo debian-archive-keyring
}

missing_components() {
    cargo fmt --version >/dev/null 2>&1 || echo rustfmt
    cargo clippy --version >/dev/null 2>&1 || echo clippy
}

# Loop devices, for the tests of raw devices: a container may have the right and lack the nodes.
make_loop_nodes() {
    local number
    [ -e /dev/loop-control ] || as_root mknod /dev/loop-control c 10 237 || true
    for number in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
        [ -e "/dev/loop$number" ] || as_root mknod "/dev/loop$number" b 7 "$number" || true
    done
}

has_loop_device() {
    local file device status=1
    file=$(mktemp) && truncate -s 1M "$file"
    if device=$(losetup --find --show "$file" 2>/dev/null); then
        losetup --detach "$device" && status=0
    fi
    rm -f "$file"
    return "$status"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install() {
    local packages components
    make_loop_nodes
    components=$(missing_components)
    if [ -n "$components" ]; then
        # shellcheck disable=SC2086 # one argument each
        rustup component add $components
    fi
    packages=$(missing_packages | sort -u)
    [ -n "$packages" ] || return 0
    as_root apt-get update -q
    case " $(echo "$packages" | tr '\n' ' ') " in
    *" qemu-"*)
        # Some images carry a newer qemu-utils that the archive's QEMU does not go with.
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q \
            --no-install-recommends --allow-downgrades qemu-system-x86 'qemu-utils=1:7.2*'
        packages=$(missing_packages | sort -u)
        ;;
    esac
    if [ -n "$packages" ]; then
        # shellcheck disable=SC2086 # one argument each
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q \
            --no-install-recommends $packages
    fi
}

check() {
    local missing
    missing=$({ missing_components && missing_packages; } | sort -u | tr '\n' ' ')
    if [ -n "${missing// /}" ]; then
        echo "missing: $missing" >&2
        echo "Nothing is skipped. On Debian, 'make tools' installs them." >&2
        exit 1
    fi
    if ! has_loop_device; then
        echo "missing: a loop device" >&2
        echo "Nothing is skipped. The tests of raw devices need root, losetup and /dev/loop*." >&2
        exit 1
    fi
}

case "${1:-}" in
install) install && check ;;
check) check ;;
*)
    echo "usage: tests/tools.sh check|install" >&2
    exit 1
    ;;
esac
