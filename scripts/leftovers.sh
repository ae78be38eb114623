#!/bin/sh
# scripts/leftovers.sh: prints what tests could leave behind on this machine, a line each: mounts,
# loop devices, network interfaces and namespaces, cgroups, and processes of ours or of a test host.
# Two outputs that are equal mean that nothing was left between them.
set -eu
awk '{print "mount", $5}' /proc/self/mountinfo
for loop in /sys/block/loop*/loop/backing_file; do
	[ ! -e "$loop" ] || echo "loop $loop $(cat "$loop" 2>/dev/null)"
done
for link in /sys/class/net/*; do echo "link ${link##*/}"; done
[ ! -d /run/netns ] || for ns in /run/netns/*; do [ ! -e "$ns" ] || echo "netns ${ns##*/}"; done
cg=$(awk '$0 ~ / - cgroup2 / {print $5; exit}' /proc/self/mountinfo)
[ -z "$cg" ] || find "$cg" -mindepth 1 -type d -printf 'cgroup %p\n'
for comm in /proc/[0-9]*/comm; do
	name=$(cat "$comm" 2>/dev/null) || continue
	case $name in
	machined | machine-* | systemd* | "(sd-"* | sd-* | dbus-daemon | polkitd | *.test) echo "process $name" ;;
	esac
done
