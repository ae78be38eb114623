//go:build integration

package integration

import (
	"strings"
	"testing"

	"machined/tests/host"
)

// TestNspawnEngine runs Podman and Docker in machines: its containers, their networks and
// user namespaces work as root of a user namespace with --nesting, and nothing of
// it without.
func TestNspawnEngine(t *testing.T) {
	ours(t)
	t.Parallel()
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	h.EngineTree(t, "engine")
	before := snapshot(t, h)
	spawn := func(options, script string) host.Result {
		return h.Try("systemd-run", "-q", "--pipe", "--wait", "sh", "-c",
			`exec systemd-nspawn -P --register=no --private-network -M engine `+options+` sh -c "$1"`, "sh", script)
	}
	if r := spawn("-U --nesting", "podman import /root/busybox.tar bb"); r.Exit != 0 {
		t.Fatal(r)
	}
	for _, tt := range []struct{ name, options, script, want string }{
		{"container", "-U --nesting", "podman run --rm --network=none bb id; cat /proc/1/cgroup",
			`(?s)uid=0 gid=0.*0::/init$`},
		{"network", "-U --nesting", "podman run --rm bb ip addr", `inet 10\.88\.`},
		{"user namespace", "-U --nesting", "podman run --rm --network=none --uidmap=0:100000:65536 --gidmap=0:100000:65536 bb cat /proc/self/uid_map", `^\s+0\s+100000\s+65536`},
		{"privileged", "-U --nesting", "podman run --rm --network=none --privileged bb sh -c 'mkdir /m; mount -t proc proc /m && echo mounted'", `mounted`},
		{"as the host's root", "--nesting --private-users=no --system-call-filter=bpf", "podman run --rm --network=none --cgroups=disabled bb id", `uid=0 gid=0`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := spawn(tt.options, tt.script)
			if r.Exit != 0 {
				t.Fatal(r)
			}
			match(t, r.Stdout, tt.want)
		})
	}
	// Docker has a daemon, which a machine with systemd starts.
	h.WriteFile(t, "/etc/systemd/nspawn/engine.nspawn", "[Exec]\nNesting=yes\n", 0o644)
	h.MustRun(t, "machinectl", "start", "engine")
	waitRunning(t, h, "engine")
	r := h.Try("systemd-run", "-q", "-M", "engine", "--pipe", "--wait", "sh", "-c",
		"docker info -f '{{.Driver}} {{.CgroupVersion}}'; docker import /root/busybox.tar bb >/dev/null; docker run --rm bb ip addr; systemctl is-system-running")
	if r.Exit != 0 {
		t.Fatal(r)
	}
	match(t, r.Stdout, `^overlay2 2$`, `inet 172\.17\.`, `^running$`)
	h.MustRun(t, "machinectl", "poweroff", "engine")
	waitGone(t, h)
	h.Shell(t, "rm /etc/systemd/nspawn/engine.nspawn; systemctl reset-failed")
	for _, options := range []string{"-U", "-U --nesting=no"} {
		if r := spawn(options, "podman run --rm --network=none --cgroups=disabled bb id"); r.Exit == 0 || strings.Contains(r.Stdout, "uid=0") {
			t.Errorf("%s: %v", options, r)
		}
	}
	unchanged(t, h, before)
}
