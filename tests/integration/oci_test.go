//go:build integration

package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"machined/tests/host"
)

// ociCheck is what the bundle's process looks at; each line that is printed is a
// fault.
const ociCheck = `#!/bin/sh
is() { [ "$2" = "$3" ] || echo "$1: got '$2', want '$3'"; }
is directory "$PWD" /work
is variable "$FOO" bar
is ids "$(id -u) $(id -g) $(id -G)" "1 1 1 5 6" # of busybox: the group is among the groups
is "host name" "$(hostname)" hosty
is "open files" "$(ulimit -n) $(ulimit -Hn)" "1020 1024"
is "OOM score" "$(cat /proc/self/oom_score_adj)" 20
is capabilities "$(grep CapEff /proc/self/status | cut -f2)" 0000000020000420
is privileges "$(grep NoNewPrivs /proc/self/status | cut -f2)" 1
is device "$(stat -c '%F %t:%T %a %g' /dev/zz)" "character special file 4:2 620 5"
is tmpfs "$(stat -f -c %T /work; stat -c '%a %u' /work)" "tmpfs
700 1"
is "bound file" "$(cat /mnt/hello)" hello
is "masked file" "$(cat /etc/secret 2>/dev/null)" ""
touch /usr/x 2>/dev/null && echo "/usr is not read-only"
touch /proc/fs/x 2>/dev/null && echo "/proc/fs is not read-only"
is process "$$" 1
is network "$(ls /sys/class/net)" lo
is filters "$(grep '^Seccomp:' /proc/self/status | cut -f2)" 2
chmod 700 /work 2>/dev/null && echo "chmod is not filtered"
exit 7
`

// ociBundle is a bundle that asks for a bit of everything.
func ociBundle() map[string]any {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	type o = map[string]any
	type a = []any
	return o{
		"ociVersion": "1.0.0",
		"process": o{
			"terminal": false, "consoleSize": o{"height": 25, "width": 80}, "user": o{"uid": 1, "gid": 1, "additionalGids": a{5, 6}},
			"args": a{"sh", "/check"}, "env": a{"PATH=/usr/bin:/bin", "FOO=bar"}, "cwd": "/work",
			"capabilities": o{"bounding": caps, "effective": caps, "inheritable": caps, "permitted": caps, "ambient": caps},
			"rlimits":      a{o{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1020}}, "noNewPrivileges": true, "oomScoreAdj": 20,
		},
		"root": o{"path": "rootfs"}, "hostname": "hosty",
		"mounts": a{
			o{"destination": "/proc", "type": "proc", "source": "proc"},
			o{"destination": "/work", "type": "tmpfs", "source": "tmpfs", "options": a{"mode=700", "uid=1"}},
			o{"destination": "/mnt", "type": "bind", "source": "/var/tmp/bundle/src", "options": a{"rbind"}},
		},
		"linux": o{
			"namespaces": a{o{"type": "pid"}, o{"type": "network"}, o{"type": "ipc"}, o{"type": "uts"}, o{"type": "mount"}, o{"type": "cgroup"}},
			"devices":    a{o{"path": "/dev/zz", "type": "c", "major": 4, "minor": 2, "fileMode": 0o620, "uid": 0, "gid": 5}},
			"resources":  o{"pids": o{"limit": 50}, "memory": o{"limit": 100 << 20}},
			"seccomp": o{
				"defaultAction": "SCMP_ACT_ALLOW", "architectures": a{"SCMP_ARCH_X86_64"},
				"syscalls": a{o{"names": a{"chmod", "fchmodat"}, "action": "SCMP_ACT_ERRNO"}},
			},
			"maskedPaths": a{"/etc/secret", "/nope"}, "readonlyPaths": a{"/proc/fs", "/usr"},
		},
		"annotations": o{"a.b": "c"},
	}
}

// set changes one element, "" of it removed.
func set(t *testing.T, bundle map[string]any, at, value string) {
	t.Helper()
	keys := strings.Split(at, ".")
	for _, k := range keys[:len(keys)-1] {
		next, ok := bundle[k].(map[string]any)
		if !ok {
			next = map[string]any{}
			bundle[k] = next
		}
		bundle = next
	}
	delete(bundle, keys[len(keys)-1])
	if value != "" {
		bundle[keys[len(keys)-1]] = json.RawMessage(value)
	}
}

func TestOCIBundle(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "oci")
		h.Shell(t, `mkdir -p /var/tmp/bundle/src; mv /var/lib/machines/oci /var/tmp/bundle/rootfs; echo hello >/var/tmp/bundle/src/hello; echo x >/var/tmp/bundle/rootfs/etc/secret`)
		h.WriteFile(t, "/var/tmp/bundle/rootfs/check", ociCheck, 0o755)
		run := func(t *testing.T, bundle map[string]any) host.Result {
			t.Helper()
			text, err := json.Marshal(bundle)
			if err != nil {
				t.Fatal(err)
			}
			h.WriteFile(t, "/var/tmp/bundle/config.json", string(text), 0o644)
			return h.Try("systemd-nspawn", "--oci-bundle=/var/tmp/bundle")
		}
		t.Run("everything", func(t *testing.T) {
			if r := run(t, ociBundle()); r.Exit != 7 || r.Stdout != "" {
				t.Error(r)
			}
		})
		t.Run("refused", func(t *testing.T) {
			for _, c := range []struct{ at, value string }{
				{"ociVersion", ``}, {"ociVersion", `"6.6.6"`}, {"foo", `1`}, {"process", `"x"`}, {"process.args", `[]`}, {"process.cwd", `"work"`},
				{"process.env", `["FOO"]`}, {"process.user.uid", `-1`}, {"process.user.gid", ``}, {"process.capabilities.bounding", `["CAP_X"]`},
				{"process.rlimits", `[{"type":"RLIMIT_FOO","soft":1,"hard":1}]`}, {"process.oomScoreAdj", `2000`}, {"root.path", ``},
				{"root.path", `"nope"`}, {"hostname", `"a..b"`}, {"mounts", `[{"type":"tmpfs"}]`}, {"mounts", `[{"destination":"x","type":"tmpfs"}]`},
				{"mounts", `[{"destination":"/x","type":"bind","source":"/nope"}]`}, {"linux.namespaces", `[]`}, {"linux.namespaces", `[{"type":"mount"},{"type":"foo"}]`},
				{"linux.namespaces", `[{"type":"mount"},{"type":"pid","path":"/proc/1/ns/pid"}]`},
				{"linux.uidMappings", `[{"containerID":1,"hostID":1000000,"size":65536}]`}, {"linux.devices", `[{"path":"/dev/x","type":"z"}]`},
				{"linux.cgroupsPath", `"/foo/bar"`}, {"linux.resources.memory.limit", `"x"`}, {"linux.resources.cpu", `{"mems":"0"}`},
				{"linux.resources.hugepageLimits", `[]`}, {"linux.sysctl", `{"net/ipv4/ip_forward":"1"}`}, {"linux.seccomp.defaultAction", `"X"`},
				{"linux.seccomp.syscalls", `[{"names":[],"action":"SCMP_ACT_ERRNO"}]`}, {"linux.maskedPaths", `["x"]`}, {"hooks.foo", `[]`},
				{"annotations", `{"a":1}`},
			} {
				b := ociBundle()
				set(t, b, c.at, c.value)
				r := run(t, b)
				if r.Exit != 1 {
					t.Errorf("%s = %s: %v", c.at, c.value, r)
				}
				if lines := strings.Count(strings.TrimSpace(r.Stderr), "\n"); host.DefaultImpl() == host.Ours && (lines > 1 || r.Stderr == "") {
					t.Errorf("%s = %s: not a line or two that say why: %v", c.at, c.value, r)
				}
			}
		})
		t.Run("more than stock", func(t *testing.T) {
			ours(t)
			for _, c := range []struct{ at, value string }{
				{"ociVersion", `"1.2.1"`}, {"process.user.umask", `18`}, {"hooks.prestart", `[{"path":"/bin/false"}]`},
				{"mounts", `[{"destination":"/work","type":"tmpfs","options":["uid=1","mode=700"]},{"destination":"/mnt","source":"src","type":"bind","options":["bind","ro"]}]`},
				{"linux.sysctl", `{"net.ipv4.ip_unprivileged_port_start":"99"}`}, {"domainname", `"example"`},
			} {
				b := ociBundle()
				set(t, b, c.at, c.value)
				if r := run(t, b); r.Exit != 7 || r.Stdout != "" {
					t.Errorf("%s = %s: %v", c.at, c.value, r)
				}
			}
			b := ociBundle()
			set(t, b, "linux.namespaces", `[{"type":"mount"},{"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"network"},{"type":"user"}]`)
			set(t, b, "linux.uidMappings", `[{"containerID":0,"hostID":1000000,"size":65536}]`)
			set(t, b, "linux.gidMappings", `[{"containerID":0,"hostID":1000000,"size":65536}]`)
			set(t, b, "process.args", `["cat","/proc/self/uid_map"]`)
			if r := run(t, b); strings.Join(strings.Fields(r.Stdout), " ") != "0 1000000 65536" {
				t.Error(r)
			}
		})
	})
}
