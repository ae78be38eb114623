#!/usr/bin/env bash
# scripts/packages.sh [PACKAGE...]: installs the Debian packages that this machine lacks, and says which.
# Without arguments it is about what tests and benchmarks need.
set -euo pipefail
need=("$@")
[ $# -gt 0 ] || need=(ca-certificates debootstrap dbus-daemon busybox-static gcc libc6-dev libsystemd-dev make iproute2 nftables
	util-linux gzip xz-utils bzip2 zstd btrfs-progs xfsprogs e2fsprogs dosfstools squashfs-tools musl-tools
	erofs-utils fdisk gpg cryptsetup-bin openssl libarchive-tools qemu-utils valgrind mandoc shellcheck)
if ! command -v dpkg-query >/dev/null; then
	echo "packages: not a Debian system; needed are what these packages have: ${need[*]}" >&2
	exit 0
fi
missing=()
for p in "${need[@]}"; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "packages: as root, please: apt-get install ${missing[*]}" >&2
	exit 1
fi
echo "packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update >/dev/null
apt-get -qqy --no-install-recommends install "${missing[@]}" >/dev/null
