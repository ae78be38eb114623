package oci

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"machined/internal/seccomp"
	"machined/spawn/settings"
)

func full(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/full.json")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestFull(t *testing.T) {
	c, err := Parse(strings.NewReader(string(full(t))))
	if err != nil {
		t.Fatal(err)
	}
	yes, no, oom := true, false, 20
	const caps = 1<<unix.CAP_AUDIT_WRITE | 1<<unix.CAP_KILL | 1<<unix.CAP_NET_BIND_SERVICE
	want := &Config{
		Root: "rootfs", ReadOnly: &no, Hostname: "hosty",
		Mounts: []Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/home", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=700", "uid=1"}},
			{Destination: "/mnt", Type: "bind", Source: "src", Options: []string{"rbind", "ro"}},
		},
		Args: []string{"sh", "-c", "env"}, Env: []string{"PATH=/usr/sbin:/usr/bin:/bin", "FOO=bar"}, Cwd: "/home",
		User: &User{UID: 1, GID: 1, Groups: []uint32{5, 6}}, Terminal: &no, Rows: 25, Cols: 80,
		NoNewPrivs: &yes, OOMScore: &oom, Limits: map[string]settings.Limit{"NOFILE": {Soft: 1020, Hard: 1024}},
		Caps:       &Capabilities{caps, caps, caps, caps, caps},
		Namespaces: &Namespaces{PID: true, Network: true, IPC: true, UTS: true, Cgroup: true},
		Devices: []Device{
			{Path: "/dev/zz", Type: 'c', Major: 4, Minor: 2, Mode: 0o620, GID: 5}, {Path: "/dev/fifo", Type: 'p', Mode: 0o600},
		},
		Slice: "foo.slice",
		Properties: []string{
			"IOReadBandwidthMax=/dev/block/7:0 100000", "IOWeight=910", "AllowedCPUs=0-1", "CPUQuota=50%", "CPUWeight=39",
			"MemoryMax=104857600", "MemoryLow=50000000", "MemorySwapMax=0", "TasksMax=50",
		},
		DeviceRules: []DeviceRule{{Type: "a", Major: -1, Minor: -1, Access: "rwm"}, {Allow: true, Type: "c", Major: 4, Minor: 2, Access: "rw"}},
		Unified:     []KeyValue{{"memory.high", "90000000"}},
		Sysctls:     []KeyValue{{"net.ipv4.ip_unprivileged_port_start", "99"}},
		Seccomp: &seccomp.Rules{
			Default: seccomp.Action{Verdict: seccomp.Allow, Data: 1}, Architectures: []string{"X86", "X86_64"},
			Rules: []seccomp.Rule{
				{Names: []string{"nosuchcall", "chmod"}, Action: seccomp.Action{Verdict: seccomp.Errno, Data: 38}},
				{
					Names: []string{"personality"}, Action: seccomp.Action{Verdict: seccomp.Errno, Data: 1},
					Arguments: []seccomp.Argument{{Index: 0, Operator: seccomp.MaskedEqual, Mask: 8, Value: 8}},
				},
			},
		},
		Propagation: "private", MaskedPaths: []string{"/proc/kcore", "/nope"}, ReadOnlyPaths: []string{"/proc/fs"},
		Warnings: []string{"hooks.prestart[0]: hooks are not run, ignoring /bin/false"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got\n%+v\nwant\n%+v", c, want)
	}
}

// edit is a file with one element set, or removed by null.
func edit(t testing.TB, text []byte, at, value string) string {
	t.Helper()
	var top map[string]any
	if err := json.Unmarshal(text, &top); err != nil {
		t.Fatal(err)
	}
	object := top
	keys := strings.Split(at, ".")
	for _, k := range keys[:len(keys)-1] {
		next, ok := object[k].(map[string]any)
		if !ok {
			next = map[string]any{}
			object[k] = next
		}
		object = next
	}
	last := keys[len(keys)-1]
	if value == "" {
		delete(object, last)
	} else {
		object[last] = json.RawMessage(value)
	}
	out, err := json.Marshal(top)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestRefused(t *testing.T) {
	const mountNS = `{"type":"mount"}`
	for _, c := range []struct{ at, value, want string }{
		{"ociVersion", ``, `"ociVersion" is missing`},
		{"ociVersion", `1`, "ociVersion: is a number"},
		{"ociVersion", `"6.6.6"`, "not supported: 6.6.6"},
		{"foo", `1`, "foo: no such element"},
		{"windows", `{}`, "windows: no such element"},
		{"process", `"x"`, "process: is a string"},
		{"process.args", `[]`, "process.args: has no program"},
		{"process.args", `"sh"`, "process.args: is a string"},
		{"process.args", `[1]`, "process.args[0]: is a number"},
		{"process.cwd", `"home"`, `"home" is not an absolute path`},
		{"process.env", `["FOO"]`, "process.env[0]"},
		{"process.env", `["a\u0000=b"]`, "NUL"},
		{"process.user.uid", `-1`, "process.user.uid: -1"},
		{"process.user.uid", `4294967295`, "process.user.uid: 4294967295"},
		{"process.user.uid", `1.5`, "process.user.uid: 1.5"},
		{"process.user.uid", ``, `process.user: "uid" is missing`},
		{"process.user.gid", ``, `process.user: "gid" is missing`},
		{"process.capabilities.bounding", `["CAP_X"]`, `"CAP_X" is no capability`},
		{"process.capabilities.bounding", `["kill"]`, `"kill" is no capability`},
		{"process.capabilities.foo", `[]`, "process.capabilities.foo"},
		{"process.rlimits", `[{"type":"RLIMIT_FOO","soft":1,"hard":1}]`, "RLIMIT_FOO"},
		{"process.rlimits", `[{"type":"NOFILE","soft":1,"hard":1}]`, "does not begin with RLIMIT_"},
		{"process.rlimits", `[{"type":"RLIMIT_NOFILE","hard":1}]`, `"soft" is missing`},
		{"process.rlimits", `[{"type":"RLIMIT_CPU","soft":2,"hard":1}]`, "above the hard limit"},
		{"process.rlimits", `[{"type":"RLIMIT_CPU","soft":1,"hard":1},{"type":"RLIMIT_CPU","soft":1,"hard":1}]`, "limited twice"},
		{"process.oomScoreAdj", `2000`, "2000"},
		{"process.noNewPrivileges", `"x"`, "is a string, must be a boolean"},
		{"process.consoleSize.width", ``, `"width" is missing`},
		{"process.consoleSize.width", `70000`, "70000"},
		{"process.scheduler", `{}`, "is not supported"},
		{"root", ``, `"root" is missing`},
		{"root.path", ``, `"path" is missing`},
		{"root.path", `""`, "root.path: is empty"},
		{"root.readonly", `1`, "root.readonly"},
		{"hostname", `"a..b"`, "not a valid host name"},
		{"mounts", `[{"type":"tmpfs"}]`, `"destination" is missing`},
		{"mounts", `[{"destination":"x"}]`, "not an absolute path"},
		{"mounts", `[{"destination":"/x","options":"ro"}]`, "mounts[0].options"},
		{"mounts", `[{"destination":"/","type":"tmpfs"}]`, "is the root"},
		{"linux.namespaces", `[]`, "without a mount namespace"},
		{"linux.namespaces", `[` + mountNS + `,` + mountNS + `]`, "two namespaces"},
		{"linux.namespaces", `[` + mountNS + `,{"type":"foo"}]`, `"foo"`},
		{"linux.namespaces", `[` + mountNS + `,{"type":"pid","path":"/x"}]`, "only a network namespace"},
		{"linux.namespaces", `[` + mountNS + `,{"type":"network","path":"x"}]`, "not an absolute path"},
		{"linux.uidMappings", `[{"containerID":1,"hostID":1,"size":1}]`, "do not begin with 0"},
		{"linux.uidMappings", `[{"containerID":0,"hostID":1,"size":0}]`, "more than 0"},
		{"linux.uidMappings", `[{"containerID":0,"hostID":4294967290,"size":100}]`, "beyond"},
		{"linux.uidMappings", `[{"containerID":0,"hostID":1,"size":1},{"containerID":1,"hostID":2,"size":1}]`, "more than one"},
		{"linux.devices", `[{"type":"c","major":1,"minor":3}]`, `"path" is missing`},
		{"linux.devices", `[{"path":"/dev/x","type":"z"}]`, "kind of device"},
		{"linux.devices", `[{"path":"/dev/x","type":"c","minor":3}]`, "major and minor"},
		{"linux.devices", `[{"path":"dev/x","type":"p"}]`, "not an absolute path"},
		{"linux.devices", `[{"path":"/dev/x","type":"p","fileMode":70000}]`, "70000"},
		{"linux.devices", `[{"path":"/dev/x","type":"p","fileMode":8630}]`, "not of a device of type"},
		{"linux.cgroupsPath", `"/foo/bar"`, "slice unit"},
		{"linux.cgroupsPath", `"a/b.slice"`, "slice unit"},
		{"linux.resources.memory.limit", `"x"`, "is a string"},
		{"linux.resources.memory.foo", `1`, "no such element"},
		{"linux.resources.cpu", `{"quota":5}`, "together"},
		{"linux.resources.cpu", `{"mems":"0"}`, "is not supported"},
		{"linux.resources.cpu", `{"cpus":"x"}`, "no list of CPUs"},
		{"linux.resources.cpu", `{"shares":0}`, "out of the range"},
		{"linux.resources.blockIO", `{"weight":2}`, "out of the range"},
		{"linux.resources.hugepageLimits", `[]`, "is not supported"},
		{"linux.resources.network", `{}`, "is not supported"},
		{"linux.resources.rdma", `{}`, "is not supported"},
		{"linux.resources.pids", `{}`, `"limit" is missing`},
		{"linux.resources.unified", `{"../x":"1"}`, "no file of a controller"},
		{"linux.resources.devices", `[{"type":"c"}]`, `"allow" is missing`},
		{"linux.resources.devices", `[{"allow":true,"access":"x"}]`, "no access"},
		{"linux.sysctl", `{"net.ipv4.ip_forward":1}`, "is a number"},
		{"linux.sysctl", `{"net..x":"1"}`, "no name of a sysctl"},
		{"linux.sysctl", `{"net/../../kernel/panic":"1"}`, "no name of a sysctl"},
		{"linux.seccomp.defaultAction", ``, `"defaultAction" is missing`},
		{"linux.seccomp.defaultAction", `"X"`, "no supported action"},
		{"linux.seccomp.architectures", `["SCMP_ARCH_FOO"]`, "no architecture"},
		{"linux.seccomp.syscalls", `[{"action":"SCMP_ACT_ERRNO"}]`, `"names" is missing`},
		{"linux.seccomp.syscalls", `[{"names":[],"action":"SCMP_ACT_ERRNO"}]`, "names no system call"},
		{"linux.seccomp.syscalls", `[{"names":["chmod"],"action":"SCMP_ACT_ERRNO","args":[{"index":7,"value":1,"op":"SCMP_CMP_EQ"}]}]`, "7"},
		{"linux.seccomp.syscalls", `[{"names":["chmod"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"X"}]}]`, "no operator"},
		{"linux.rootfsPropagation", `"foo"`, "no mount propagation"},
		{"linux.maskedPaths", `["x"]`, "not an absolute path"},
		{"linux.readonlyPaths", `[1]`, "is a number"},
		{"hooks.foo", `[]`, "hooks.foo"},
		{"hooks.prestart", `[{"path":"x"}]`, "not an absolute path"},
		{"annotations", `{"a":1}`, "is a number"},
	} {
		_, err := Parse(strings.NewReader(edit(t, full(t), c.at, c.value)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s = %s: got %v, want %q", c.at, c.value, err, c.want)
		}
	}
	for text, want := range map[string]string{
		"": "is empty", "{": "is no JSON", "[]": "must be an object", "{} {}": "more than one", strings.Repeat(" ", maxSize+1): "larger than",
	} {
		if _, err := Parse(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.10q: got %v, want %q", text, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir); !os.IsNotExist(err) {
		t.Errorf("no file: got %v", err)
	}
	name := filepath.Join(dir, "config.json")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a pipe: got %v", err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, full(t), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "rootfs"); c.Root != want {
		t.Errorf("root: got %s, want %s", c.Root, want)
	}
	if want := filepath.Join(dir, "src"); c.Mounts[2].Source != want {
		t.Errorf("source of a bind mount: got %s, want %s", c.Mounts[2].Source, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(full(f))
	f.Add([]byte(`{"ociVersion":"1.0.0","process":{"args":["x"]},"root":{"path":"r"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(strings.NewReader(string(data)))
		if err != nil {
			return
		}
		if c.Root == "" || c.Seccomp == nil {
			return
		}
		_, _ = seccomp.CompileRules(*c.Seccomp) // may be too long, may not panic
	})
}

// A bundle need not say what runs in it, and what it wants of the host's kernel
// is passed over.
func TestPassedOver(t *testing.T) {
	t.Parallel()
	c, err := Parse(strings.NewReader(`{"ociVersion":"1.0.0","root":{"path":"r"},
		"linux":{"namespaces":[{"type":"mount"},{"type":"network","path":"/x"},{"type":"uts"}],
		"sysctl":{"vm.swappiness":"60","kernel.panic":"1","net.ipv4.ip_forward":"1","kernel.msgmax":"1","kernel.domainname":"d"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Args) != 0 || len(c.Sysctls) != 1 || c.Sysctls[0].Key != "kernel.domainname" || len(c.Warnings) != 4 {
		t.Errorf("got args %q, sysctls %v, warnings %q", c.Args, c.Sysctls, c.Warnings)
	}
}
