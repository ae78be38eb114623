#!/bin/sh
# scripts/vm-packages.sh: installs what `make test-vm` needs on a Debian machine: QEMU, and what makes
# its trees and disks. The kernel is a package of the virtual machine's own tree.
set -eu
missing=
for p in debootstrap e2fsprogs qemu-system-x86 util-linux; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update >/dev/null
# shellcheck disable=SC2086 # a list
apt-get -qqy --no-install-recommends install $missing >/dev/null
