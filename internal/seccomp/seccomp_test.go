package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"machined/internal/caps"
)

// machine interprets a filter.
type machine struct {
	t  testing.TB
	vm *bpf.VM
}

func compile(t testing.TB, p Profile) machine {
	t.Helper()
	prog, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return interpret(t, prog)
}

func interpret(t testing.TB, prog []unix.SockFilter) machine {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(prog))
	for i, f := range prog {
		raw[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	ins, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("filter has instructions that the interpreter does not know")
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	return machine{t, vm}
}

// run returns "allow" or the name of an errno.
func (m machine) run(audit, nr uint32, args ...uint32) string {
	m.t.Helper()
	// The interpreter reads network byte order; the kernel reads its own.
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNr:], nr)
	binary.BigEndian.PutUint32(data[offArch:], audit)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[argument(i):], a)
	}
	v, err := m.vm.Run(data)
	if err != nil {
		m.t.Fatal(err)
	}
	switch r := uint32(v); {
	case r == unix.SECCOMP_RET_ALLOW:
		return "allow"
	case r == unix.SECCOMP_RET_ERRNO:
		return "nothing"
	case r&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO:
		return unix.ErrnoName(unix.Errno(r & unix.SECCOMP_RET_DATA))
	default:
		return fmt.Sprintf("%#x", r)
	}
}

func (m machine) call(name string, args ...uint32) string {
	m.t.Helper()
	for _, c := range abis[0].calls {
		if c.name == name {
			return m.run(abis[0].audit, c.nr, args...)
		}
	}
	m.t.Fatalf("no call %q here", name)
	return ""
}

// TestEveryNumber runs the filter for all numbers of all ABIs and compares with
// the decision that was compiled into it.
func TestEveryNumber(t *testing.T) {
	t.Parallel()
	for _, p := range []Profile{{}, {Caps: caps.Default(true)}, {Caps: ^uint64(0), SuppressSync: true}, {Allow: []string{"@known"}}, {Deny: []string{"@known"}}} {
		m := compile(t, p)
		allowed := map[string]bool{}
		for name := range strings.FieldsSeq(defaultAllow) {
			expand(allowed, name, true)
		}
		for _, a := range abis {
			names := map[uint32][]string{}
			top := uint32(0)
			for _, c := range a.calls {
				names[c.nr] = append(names[c.nr], c.name)
				top = max(top, c.nr)
			}
			for nr := range top + 100 {
				got := m.run(a.audit, nr)
				switch {
				case names[nr] == nil && got != "ENOSYS":
					t.Fatalf("%+v: unknown number %d: %s", p, nr, got)
				case names[nr] == nil:
				case p.Deny != nil && got != "EPERM" && got != "ENOSYS":
					t.Fatalf("%v is denied, got %s", names[nr], got)
				case p.Allow != nil && got != "allow":
					t.Fatalf("%v is allowed, got %s", names[nr], got)
				case p.Deny == nil && !p.SuppressSync && len(names[nr]) == 1 && allowed[names[nr][0]] && got != "allow":
					t.Fatalf("%v should be allowed, got %s", names[nr], got)
				case got != "allow" && got != "EPERM" && got != "ENOSYS" && got != "nothing":
					t.Fatalf("%v: got %s", names[nr], got)
				}
			}
			for _, nr := range []uint32{0xffffffff, 0x7fffffff} {
				if got := m.run(a.audit, nr); got != "ENOSYS" {
					t.Errorf("number %#x: %s", nr, got)
				}
			}
		}
		if got := m.run(0xdead, 1); got != "ENOSYS" {
			t.Errorf("foreign ABI: %s", got)
		}
	}
}

func TestDecisions(t *testing.T) {
	t.Parallel()
	standard := Profile{Caps: caps.Default(false)}
	for _, tt := range []struct {
		p    Profile
		call string
		args []uint32
		want string
	}{
		{standard, "read", nil, "allow"},
		{standard, "mount", nil, "allow"},
		{standard, "reboot", nil, "allow"},
		{Profile{}, "reboot", nil, "EPERM"},
		{standard, "ptrace", nil, "allow"},
		{Profile{}, "ptrace", nil, "EPERM"},
		{standard, "process_vm_readv", nil, "allow"},
		{standard, "keyctl", nil, "EPERM"},
		{standard, "swapon", nil, "EPERM"},
		{standard, "kexec_load", nil, "EPERM"},
		{standard, "init_module", nil, "EPERM"},
		{standard, "perf_event_open", nil, "EPERM"},
		{standard, "open_by_handle_at", nil, "EPERM"},
		{standard, "bpf", nil, "EPERM"},
		{standard, "syslog", nil, "EPERM"},
		{standard, "mlock", nil, "EPERM"},
		{standard, "settimeofday", nil, "EPERM"},
		{Profile{Caps: caps.Bit(unix.CAP_SYS_TIME)}, "settimeofday", nil, "allow"},
		{standard, "vhangup", nil, "allow"},
		{standard, "cachestat", nil, "allow"},
		{standard, "futex_wait", nil, "allow"},
		{Profile{Allow: []string{"keyctl", "no_such_call"}}, "keyctl", nil, "allow"},
		{Profile{Allow: []string{"@keyring"}}, "add_key", nil, "allow"},
		{Profile{Allow: []string{"@keyring"}, Deny: []string{"add_key"}}, "add_key", nil, "EPERM"},
		{Profile{Deny: []string{"@mount"}}, "mount", nil, "EPERM"},
		{Profile{Absent: []string{"@keyring"}}, "keyctl", nil, "ENOSYS"},
		{Profile{Absent: []string{"@keyring"}}, "bpf", nil, "EPERM"},
		{Profile{Absent: []string{"@keyring"}, Allow: []string{"keyctl"}}, "keyctl", nil, "allow"},
		{standard, "socket", []uint32{unix.AF_INET, 1, 0}, "allow"},
		{standard, "socket", []uint32{unix.AF_NETLINK, 3, unix.NETLINK_AUDIT}, "EAFNOSUPPORT"},
		{standard, "socket", []uint32{unix.AF_NETLINK, 3, unix.NETLINK_ROUTE}, "allow"},
		{standard, "socket", []uint32{unix.AF_INET, 3, unix.NETLINK_AUDIT}, "allow"},
		{standard, "ioctl", []uint32{0, unix.TIOCSTI}, "allow"},
		{Profile{ForeignTerminal: true}, "ioctl", []uint32{0, unix.TIOCSTI}, "EPERM"},
		{Profile{ForeignTerminal: true}, "ioctl", []uint32{0, unix.TIOCLINUX}, "EPERM"},
		{Profile{ForeignTerminal: true}, "ioctl", []uint32{0, unix.TCGETS}, "allow"},
		{standard, "fsync", nil, "allow"},
		{Profile{SuppressSync: true}, "fsync", nil, "nothing"},
		{Profile{SuppressSync: true}, "openat", []uint32{0, 0, unix.O_RDWR}, "allow"},
		{Profile{SuppressSync: true}, "openat", []uint32{0, 0, unix.O_RDWR | unix.O_SYNC}, "EINVAL"},
		{Profile{SuppressSync: true}, "openat", []uint32{0, 0, unix.O_RDWR | unix.O_DSYNC}, "EINVAL"},
		{Profile{SuppressSync: true}, "openat2", nil, "ENOSYS"},
	} {
		if got := compile(t, tt.p).call(tt.call, tt.args...); got != tt.want {
			t.Errorf("%+v: %s%v: got %s, want %s", tt.p, tt.call, tt.args, got, tt.want)
		}
	}
}

func TestX32(t *testing.T) {
	t.Parallel()
	if abis[0].audit != unix.AUDIT_ARCH_X86_64 {
		t.Skip("x32 is an ABI of x86-64")
	}
	if got := compile(t, Profile{Allow: []string{"@known"}}).run(unix.AUDIT_ARCH_X86_64, 0x40000000); got != "ENOSYS" {
		t.Errorf("got %s", got)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"read": true, "@mount": true, "@known": true, "@none": false, "": false, "@": false, "nonsense": false,
		"riscv_flush_icache": true, "socketcall": true,
	} {
		if got := ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v", name, got)
		}
	}
	for _, g := range Groups() {
		if !ValidName(g) {
			t.Errorf("group %s is not valid", g)
		}
	}
	// members of groups and of the default list mean something
	for _, list := range append(slices.Collect(mapValues(groups)), defaultAllow) {
		for name := range strings.FieldsSeq(list) {
			if strings.HasPrefix(name, "@") && groups[name] == "" {
				t.Errorf("no group %s", name)
			}
		}
	}
}

func mapValues(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// TestLoaded asks the kernel.
func TestLoaded(t *testing.T) {
	t.Parallel()
	const env = "SECCOMP_PROBE_CAPS=0"
	nr := func(name string) uint32 {
		for _, c := range abis[0].calls {
			if c.name == name {
				return c.nr
			}
		}
		t.Fatalf("no call %q", name)
		return 0
	}
	netlink := fmt.Sprintf("SECCOMP_PROBE_ARGS=%d %d %d", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT)
	for _, tt := range []struct {
		call uint32
		env  []string
		want string
	}{
		{nr("getpid"), nil, "0"},
		{nr("swapon"), nil, "EPERM"},
		{nr("keyctl"), nil, "EPERM"},
		{nr("fsync"), nil, "EBADF"},
		{nr("fsync"), []string{"SECCOMP_PROBE_SYNC=1"}, "0"},
		{nr("fchdir"), []string{"SECCOMP_PROBE_DENY=@file-system"}, "EPERM"},
		{nr("socket"), []string{netlink}, "EAFNOSUPPORT"},
		{1 << 20, nil, "ENOSYS"},
	} {
		if got := probe(t.Context(), tt.call, append(tt.env, env)...); got != tt.want {
			t.Errorf("call %d with %v: got %s, want %s", tt.call, tt.env, got, tt.want)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	p := Profile{Caps: caps.Default(true)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
