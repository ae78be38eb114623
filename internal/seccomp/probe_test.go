package seccomp

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary doubles as a probe, to be run in machines of any spawner:
// SECCOMP_PROBE=all prints what each call number answers to senseless arguments,
// one child each; with SECCOMP_PROBE_CAPS (a number) each child loads our filter
// for these capabilities first.
func TestMain(m *testing.M) {
	switch what := os.Getenv("SECCOMP_PROBE"); what {
	case "":
		os.Exit(m.Run())
	case "all":
		probeAll()
	default:
		nr, err := strconv.ParseUint(what, 0, 32)
		if err != nil {
			panic(err)
		}
		probeOne(uintptr(nr))
	}
}

func probeProfile() (Profile, bool) {
	mask, err := strconv.ParseUint(os.Getenv("SECCOMP_PROBE_CAPS"), 0, 64)
	return Profile{
		Caps: mask, SuppressSync: os.Getenv("SECCOMP_PROBE_SYNC") != "",
		Allow: strings.Fields(os.Getenv("SECCOMP_PROBE_ALLOW")), Deny: strings.Fields(os.Getenv("SECCOMP_PROBE_DENY")),
	}, err == nil
}

func probeOne(nr uintptr) {
	runtime.LockOSThread()
	if p, ok := probeProfile(); ok {
		filter, err := Compile(p)
		if err == nil {
			err = Load(filter)
		}
		if err != nil {
			panic(err)
		}
	}
	bad := ^uintptr(0)
	args := [6]uintptr{bad, bad, bad, bad, bad, bad}
	for i, s := range strings.Fields(os.Getenv("SECCOMP_PROBE_ARGS")) {
		n, err := strconv.ParseInt(s, 0, 64)
		if err != nil {
			panic(err)
		}
		args[i] = uintptr(n)
	}
	_, _, errno := unix.RawSyscall6(nr, args[0], args[1], args[2], args[3], args[4], args[5])
	fmt.Println(int(errno))
	os.Exit(0)
}

func probe(ctx context.Context, nr uint32, env ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, "/proc/self/exe")
	c.Env = append(os.Environ(), append(env, fmt.Sprint("SECCOMP_PROBE=", nr))...)
	out, err := c.Output()
	if err != nil {
		return "died"
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return "died"
	}
	if n == 0 {
		return "0"
	}
	return unix.ErrnoName(unix.Errno(n))
}

func probeAll() {
	names := map[uint32]string{}
	for _, c := range abis[0].calls {
		names[c.nr] = c.name
	}
	for nr := range uint32(520) {
		switch names[nr] {
		case "fork", "vfork", "exit", "exit_group", "pause", "rt_sigsuspend", "rt_sigreturn":
			continue
		}
		fmt.Println(nr, names[nr], probe(context.Background(), nr))
	}
}
