// Package caps knows Linux capabilities (capabilities(7)) by name, which of them
// a machine gets by default, and how a thread gives its own up.
//
// It acts on the calling thread only, by raw system calls; who locks the thread
// and when is its caller's business.
package caps

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// names is indexed by capability number.
var names = [...]string{
	"cap_chown", "cap_dac_override", "cap_dac_read_search", "cap_fowner", "cap_fsetid", "cap_kill",
	"cap_setgid", "cap_setuid", "cap_setpcap", "cap_linux_immutable", "cap_net_bind_service",
	"cap_net_broadcast", "cap_net_admin", "cap_net_raw", "cap_ipc_lock", "cap_ipc_owner",
	"cap_sys_module", "cap_sys_rawio", "cap_sys_chroot", "cap_sys_ptrace", "cap_sys_pacct",
	"cap_sys_admin", "cap_sys_boot", "cap_sys_nice", "cap_sys_resource", "cap_sys_time",
	"cap_sys_tty_config", "cap_mknod", "cap_lease", "cap_audit_write", "cap_audit_control",
	"cap_setfcap", "cap_mac_override", "cap_mac_admin", "cap_syslog", "cap_wake_alarm",
	"cap_block_suspend", "cap_audit_read", "cap_perfmon", "cap_bpf", "cap_checkpoint_restore",
}

// limit is the highest number that a capability can ever have (two 32 bit words,
// less one bit, as in stock).
const limit = 62

// ErrUnknown is wrapped by Parse for a word that names no capability.
var ErrUnknown = errors.New("unknown capability")

// Bit returns the mask of one capability number.
func Bit(number int) uint64 { return 1 << uint(number) }

// Default returns what a machine may have unless told otherwise: nspawn's set,
// with CAP_NET_ADMIN where the network is its own.
func Default(privateNet bool) uint64 {
	mask := uint64(0)
	for _, n := range []int{
		unix.CAP_AUDIT_CONTROL, unix.CAP_AUDIT_WRITE, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE,
		unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_IPC_OWNER, unix.CAP_KILL,
		unix.CAP_LEASE, unix.CAP_LINUX_IMMUTABLE, unix.CAP_MKNOD, unix.CAP_NET_BIND_SERVICE,
		unix.CAP_NET_BROADCAST, unix.CAP_NET_RAW, unix.CAP_SETFCAP, unix.CAP_SETGID, unix.CAP_SETPCAP,
		unix.CAP_SETUID, unix.CAP_SYS_ADMIN, unix.CAP_SYS_BOOT, unix.CAP_SYS_CHROOT, unix.CAP_SYS_NICE,
		unix.CAP_SYS_PTRACE, unix.CAP_SYS_RESOURCE, unix.CAP_SYS_TTY_CONFIG,
	} {
		mask |= Bit(n)
	}
	if privateNet {
		mask |= Bit(unix.CAP_NET_ADMIN)
	}
	return mask
}

// Names returns the names of all capabilities that the running kernel has, in
// the order of their numbers.
func Names() []string {
	out := make([]string, 0, Last()+1)
	for n := range Last() + 1 {
		out = append(out, Name(n))
	}
	return out
}

// Name returns the lower case name of a capability, or its number in decimal
// when it is newer than this package.
func Name(number int) string {
	if number >= 0 && number < len(names) {
		return names[number]
	}
	return strconv.Itoa(number)
}

var last = sync.OnceValue(func() int {
	if b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n >= 0 && n <= limit {
			return n
		}
	}
	// No /proc: ask for each, from the highest we know up.
	n := len(names) - 1
	for n < limit {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n+1), 0, 0, 0); err != nil {
			break
		}
		n++
	}
	return n
})

// Last returns the highest capability number of the running kernel.
func Last() int { return last() }

// All returns the mask of every capability of the running kernel.
func All() uint64 { return 1<<(uint(Last())+1) - 1 }

// Parse reads a list of capabilities, separated by commas or blanks: names in any
// case, with their CAP_, decimal numbers, or "all". An empty list is no
// capability. Its error wraps ErrUnknown.
func Parse(list string) (uint64, error) {
	var mask uint64
	for _, word := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' || r == '\r' }) {
		if word == "all" {
			mask |= All()
			continue
		}
		n, ok := number(word)
		if !ok {
			return 0, fmt.Errorf("parse capability %q: %w", word, ErrUnknown)
		}
		mask |= Bit(n)
	}
	return mask, nil
}

func number(word string) (int, bool) {
	if word[0] >= '0' && word[0] <= '9' {
		n, err := strconv.ParseUint(word, 10, 8)
		return int(n), err == nil && n <= limit
	}
	for n, name := range names {
		if strings.EqualFold(name, word) {
			return n, true
		}
	}
	return 0, false
}

// Format returns the names in a mask, separated by blanks, lowest number first.
func Format(mask uint64) string {
	var b strings.Builder
	for ; mask != 0; mask &= mask - 1 {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(Name(bits.TrailingZeros64(mask)))
	}
	return b.String()
}
