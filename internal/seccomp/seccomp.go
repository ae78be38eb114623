// Package seccomp writes the system call filter of a machine, in classic BPF as
// seccomp(2) takes it, for every ABI that the host's kernel offers.
//
// A call on the list goes through; one that is known and not on the list fails
// with EPERM; one that nobody has heard of fails with ENOSYS, so that programs
// fall back to older ones. The package decides nothing about capabilities: it
// only lets in the calls that come with them.
package seccomp

import (
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:generate go run gen.go

// Profile says what a machine may call.
type Profile struct {
	// Allow and Deny are names of calls or @groups; what is denied is denied
	// though it be allowed. Unknown names are passed over: see ValidName.
	Allow, Deny []string
	// Absent are names of calls or @groups that fail with ENOSYS instead of EPERM
	// where they are not allowed, for programs that can do without them.
	Absent []string
	// Caps are the capabilities that the machine keeps; some calls come with one.
	Caps uint64
	// SuppressSync makes fsync(2) and its like succeed without doing anything,
	// and opening files for synchronous writing fail with EINVAL.
	SuppressSync bool
	// ForeignTerminal keeps input from being put into terminals (TIOCSTI, TIOCLINUX):
	// the machine has one of the host's, whose shell would execute it later.
	ForeignTerminal bool
}

type call struct {
	nr   uint32
	name string
}

// abi is one set of system call numbers that programs may use on this host.
type abi struct {
	audit uint32 // AUDIT_ARCH_*
	// Numbers from limit on (x32 under x86-64) do not exist; 0 is no limit.
	limit uint32
	calls []call
}

// Compile returns the filter.
func Compile(p Profile) ([]unix.SockFilter, error) {
	allowed := make(map[string]bool, 512)
	for name := range strings.FieldsSeq(defaultAllow) {
		expand(allowed, name, true)
	}
	for _, c := range byCapability {
		if p.Caps&(1<<uint(c.capability)) != 0 {
			for name := range strings.FieldsSeq(c.calls) {
				expand(allowed, name, true)
			}
		}
	}
	for _, name := range p.Allow {
		expand(allowed, name, true)
	}
	for _, name := range p.Deny {
		expand(allowed, name, false)
	}
	var silent map[string]bool
	if p.SuppressSync {
		silent = map[string]bool{}
		for name := range strings.FieldsSeq(syncCalls) {
			expand(silent, name, true)
		}
	}
	absent := map[string]bool{}
	for _, name := range p.Absent {
		expand(absent, name, true)
	}
	return assemble(abis, func(name string) action {
		if absent[name] && !allowed[name] {
			return actErrno(unix.ENOSYS)
		}
		return judge(name, p.ForeignTerminal, allowed, silent)
	})
}

// judge decides about one known call.
func judge(name string, foreignTerminal bool, allowed, silent map[string]bool) action {
	if !allowed[name] {
		if recent[name] {
			return actErrno(unix.ENOSYS)
		}
		return actErrno(unix.EPERM)
	}
	if silent != nil {
		switch {
		case silent[name]:
			return actErrno(0)
		case name == "open":
			return actOpen
		case name == "openat":
			return actOpenat
		case name == "openat2": // its flags are out of a filter's sight
			return actErrno(unix.ENOSYS)
		}
	}
	switch {
	case name == "socket":
		return actSocket
	case name == "ioctl" && foreignTerminal:
		return actIoctl
	}
	return actAllow
}

// recent are calls so new that programs expect ENOSYS where they don't get them.
var recent = map[string]bool{
	"uprobe": true, "lsm_set_self_attr": true, "listns": true, "rseq_slice_yield": true, "open_tree_attr": true,
}

// Load puts the filter on the calling thread, for good; threads and processes
// that it starts inherit it. The caller has locked the thread, and it has
// CAP_SYS_ADMIN or no_new_privs.
func Load(filters []unix.SockFilter) error { return install(filters, 0) }

// LoadAll is Load for all threads of this process, at once.
func LoadAll(filters []unix.SockFilter) error {
	return install(filters, unix.SECCOMP_FILTER_FLAG_TSYNC)
}

func install(filters []unix.SockFilter, flags uintptr) error {
	if len(filters) == 0 || len(filters) > unix.BPF_MAXINSNS {
		return fmt.Errorf("load system call filter: %d instructions, want 1 to %d", len(filters), unix.BPF_MAXINSNS)
	}
	prog := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if flags == 0 && (errno == unix.ENOSYS || errno == unix.EINVAL) {
		_, _, errno = unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0, 0)
	}
	if errno != 0 {
		return fmt.Errorf("load system call filter: %w", os.NewSyscallError("seccomp", errno))
	}
	return nil
}

// ValidName tells whether s is the name of a call on some ABI of this host, or of
// a group, with its @.
func ValidName(s string) bool {
	if strings.HasPrefix(s, "@") {
		return s == "@known" || groups[s] != ""
	}
	return known(s)
}

// Groups returns the names of all groups, sorted.
func Groups() []string {
	out := []string{"@known"}
	for g := range groups {
		out = append(out, g)
	}
	slices.Sort(out)
	return out
}

var allNames = sync.OnceValue(func() map[string]bool {
	set := make(map[string]bool, 512)
	for _, a := range abis {
		for _, c := range a.calls {
			set[c.name] = true
		}
	}
	return set
})

var groupNames = sync.OnceValue(func() map[string]bool {
	set := make(map[string]bool, 512)
	for _, members := range groups {
		for m := range strings.FieldsSeq(members) {
			set[m] = true
		}
	}
	return set
})

func known(name string) bool {
	return name != "" && name[0] != '@' && (allNames()[name] || groupNames()[name])
}

// spans turns an ABI's calls into intervals of one action each.
func (a abi) spans(judge func(string) action) []span {
	byNumber := make(map[uint32]action, len(a.calls))
	for _, c := range a.calls {
		act := judge(c.name)
		// Two names of one number: the stricter one counts, unless only one is
		// known to the lists.
		if old, dup := byNumber[c.nr]; dup && old.kind == kindAllow {
			continue
		}
		byNumber[c.nr] = act
	}
	numbers := make([]uint32, 0, len(byNumber))
	for nr := range byNumber {
		numbers = append(numbers, nr)
	}
	sort.Slice(numbers, func(i, j int) bool { return numbers[i] < numbers[j] })
	unknown := actErrno(unix.ENOSYS)
	out := []span{{0, unknown}}
	next := uint32(0)
	add := func(from uint32, act action) {
		last := &out[len(out)-1]
		switch {
		case last.act == act:
		case last.from == from:
			last.act = act
			if n := len(out); n > 1 && out[n-2].act == act {
				out = out[:n-1]
			}
		default:
			out = append(out, span{from, act})
		}
	}
	for _, nr := range numbers {
		if nr != next {
			add(next, unknown)
		}
		add(nr, byNumber[nr])
		next = nr + 1
	}
	add(next, unknown)
	return out
}
