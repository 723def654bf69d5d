#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Make a small Debian on a disk, to be booted by `kvmsr run`: FOLDER/debian.img, with its kernel and initial RAM disk
# beside it. Root logs in without a password. Takes a few minutes, 1 GB, root's rights, debootstrap and e2fsprogs.
#
#     tools/make_debian.sh FOLDER [SUITE [MIRROR]]
set -eu
folder=${1:?"usage: tools/make_debian.sh FOLDER [SUITE [MIRROR]]"}
suite=${2:-bookworm}
for program in debootstrap mke2fs; do
    command -v "$program" >/dev/null || { echo "make_debian.sh needs $program" >&2; exit 1; }
done
mkdir -p "$folder"
root=$(mktemp -d "$folder/root.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
debootstrap --variant=minbase --include=systemd-sysv,udev,linux-image-cloud-amd64,initramfs-tools,zstd \
    "$suite" "$root" ${3:+"$3"}
sed -i 's/^root:[^:]*:/root::/' "$root/etc/shadow"
echo kvmsr >"$root/etc/hostname"
# Early enough for console=hvc0 to have a login.
echo virtio_console >>"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u
rm -f "$root"/var/cache/apt/archives/*.deb
cp "$root"/boot/vmlinuz-* "$folder/vmlinuz"
cp "$root"/boot/initrd.img-* "$folder/initrd.img"
rm -f "$folder/debian.img"
mke2fs -q -t ext4 -L debian -d "$root" "$folder/debian.img" 1G
echo "kvmsr run $folder/vmlinuz --initrd $folder/initrd.img --memory 512M --disk $folder/debian.img,write" \
    '--append "root=/dev/vda rw console=ttyS0"'
