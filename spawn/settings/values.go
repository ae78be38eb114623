package settings

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/netname"
)

// ParseBool reads a boolean as systemd writes it.
func ParseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, nil
	case "0", "no", "n", "false", "f", "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is not a boolean", s)
}

func oneOf(s string, words []string) (string, error) {
	if slices.Contains(words, s) {
		return s, nil
	}
	return "", fmt.Errorf("%q is not one of %s", s, strings.Join(words, ", "))
}

// ParseResolvConf reads a way to give the machine its resolv.conf; booleans are
// auto and off.
func ParseResolvConf(s string) (string, error) { return autoOr(s, ResolvConfModes) }

// ParseTimezone reads a way to give the machine its time zone; booleans are auto
// and off.
func ParseTimezone(s string) (string, error) { return autoOr(s, TimezoneModes) }

func autoOr(s string, words []string) (string, error) {
	if on, err := ParseBool(s); err == nil {
		if on {
			return "auto", nil
		}
		return "off", nil
	}
	return oneOf(s, words)
}

// ParseOwnership reads a way to reconcile a tree's owners with the UID range.
func ParseOwnership(s string) (string, error) { return oneOf(s, OwnershipModes) }

// ParseVolatile reads a volatile mode; booleans are yes and no.
func ParseVolatile(s string) (string, error) {
	if on, err := ParseBool(s); err == nil {
		if on {
			return "yes", nil
		}
		return "no", nil
	}
	return oneOf(s, VolatileModes)
}

// ParseLinkJournal reads how the machine's journal appears on the host, and
// whether failure is harmless. True is auto, false is no.
func ParseLinkJournal(s string) (mode string, try bool, err error) {
	switch s {
	case "no", "host", "guest", "auto":
		return s, false, nil
	case "try-host", "try-guest":
		return s[len("try-"):], true, nil
	}
	on, err := ParseBool(s)
	if err != nil {
		return "", false, fmt.Errorf("%q is not one of no, host, try-host, guest, try-guest, auto", s)
	}
	if on {
		return "auto", false, nil
	}
	return "no", false, nil
}

// ParsePrivateUsers reads a user namespace mode: a boolean, pick, identity,
// managed, or BASE[:COUNT].
func ParsePrivateUsers(s string) (PrivateUsers, error) {
	switch s {
	case "pick":
		return PrivateUsers{Mode: UserPick}, nil
	case "identity":
		return PrivateUsers{Mode: UserIdentity}, nil
	case "managed":
		return PrivateUsers{Mode: UserManaged}, nil
	}
	if on, err := ParseBool(s); err == nil {
		if on {
			return PrivateUsers{Mode: UserRoot}, nil
		}
		return PrivateUsers{Mode: UserNone}, nil
	}
	baseText, countText, hasCount := strings.Cut(s, ":")
	base, err := strconv.ParseUint(baseText, 10, 32)
	if err != nil {
		return PrivateUsers{}, fmt.Errorf("%q is neither a mode nor a UID", s)
	}
	if base == math.MaxUint32 {
		return PrivateUsers{}, fmt.Errorf("Failed to parse UID \"%s\": No such device or address", baseText) // no UID
	}
	count := uint64(0x10000)
	if hasCount {
		if count, err = strconv.ParseUint(countText, 10, 32); err != nil {
			return PrivateUsers{}, fmt.Errorf("Failed to parse UID range \"%s\": Invalid argument", countText)
		}
	}
	if count == 0 || base+count > math.MaxUint32 {
		return PrivateUsers{}, errors.New("UID range cannot be empty or go beyond 4294967295.")
	}
	return PrivateUsers{UserFixed, uint32(base), uint32(count)}, nil
}

// ParseBindUserShell reads a boolean or the path of a shell.
func ParseBindUserShell(s string) (BindUserShell, error) {
	if strings.HasPrefix(s, "/") {
		if err := validPath(s); err != nil || strings.HasSuffix(s, "/") {
			return BindUserShell{}, fmt.Errorf("%q is not a valid shell", s)
		}
		return BindUserShell{Path: s}, nil
	}
	on, err := ParseBool(s)
	if err != nil {
		return BindUserShell{}, fmt.Errorf("%q is neither a boolean nor an absolute path", s)
	}
	return BindUserShell{Copy: on}, nil
}

// ErrZeroID is wrapped where an id is all zero.
var ErrZeroID = errors.New("id is zero")

// ParseID reads a 128 bit id, as 32 hexadecimal digits or with the dashes of a
// UUID. All zero is none.
func ParseID(s string) ([16]byte, error) {
	var id [16]byte
	plain := s
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		plain = s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	}
	b, err := hex.DecodeString(plain)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%q is not a 128 bit id", s)
	}
	copy(id[:], b)
	if id == [16]byte{} {
		return id, ErrZeroID
	}
	return id, nil
}

// ParseOOMScoreAdjust reads a number from -1000 to 1000.
func ParseOOMScoreAdjust(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < -1000 || n > 1000 {
		return 0, fmt.Errorf("%q is not a number from -1000 to 1000", s)
	}
	return n, nil
}

// maxCPU bounds CPU numbers, as the kernel's largest configuration does.
const maxCPU = 8192

// ParseCPUs reads CPU numbers and ranges, separated by commas or blanks, and
// returns them sorted.
func ParseCPUs(s string) ([]int, error) {
	var out []int
	for _, w := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' }) {
		from, to, isRange := strings.Cut(w, "-")
		a, err := strconv.ParseUint(from, 10, 16)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || a >= maxCPU || b >= maxCPU || b < a {
			err := fmt.Errorf("%q is not a CPU number or range", w)
			return nil, inRange(err, maxCPU-1, from)
		}
		for n := a; n <= b; n++ {
			out = append(out, int(n))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%q names no CPU", s)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// RTMin and RTMax bound the real-time signals that programs may use: the C
// library keeps the kernel's first two.
const (
	RTMin = 34
	RTMax = 64
)

// ParseSignal reads a signal: a number, or a name with or without SIG, including
// RTMIN+N and RTMAX-N.
func ParseSignal(s string) (unix.Signal, error) {
	bad := fmt.Errorf("%q is not a signal", s)
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > RTMax {
			return 0, bad
		}
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(s, "SIG")
	for prefix, base := range map[string]int{"RTMIN": RTMin, "RTMAX": RTMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		n := 0
		if rest != "" {
			var err error
			if n, err = strconv.Atoi(rest); err != nil || rest[0] != '+' && rest[0] != '-' {
				return 0, bad
			}
		}
		if n += base; n < RTMin || n > RTMax {
			return 0, bad
		}
		return unix.Signal(n), nil
	}
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	return 0, bad
}

// rangeError is the error about a number that is one, but too high or too low.
type rangeError struct{ error }

func (rangeError) Unwrap() error { return unix.ERANGE }

// inRange makes err one about a range where all texts are integers, and one of
// them is below 0 or above most.
func inRange(err error, most int, texts ...string) error {
	out := false
	for _, t := range texts {
		n, bad := strconv.Atoi(t)
		if bad != nil && !errors.Is(bad, strconv.ErrRange) {
			return err
		}
		out = out || bad != nil || n < 0 || n > most
	}
	if !out {
		return err
	}
	return rangeError{err}
}

// ParsePort reads [tcp:|udp:]HOST[:CONTAINER].
func ParsePort(s string) (Port, error) {
	p := Port{Protocol: "tcp"}
	rest := s
	if r, ok := strings.CutPrefix(rest, "tcp:"); ok {
		rest = r
	} else if r, ok := strings.CutPrefix(rest, "udp:"); ok {
		p.Protocol, rest = "udp", r
	}
	host, container, two := strings.Cut(rest, ":")
	if !two {
		container = host
	}
	h, err1 := strconv.ParseUint(host, 10, 16)
	c, err2 := strconv.ParseUint(container, 10, 16)
	if err1 != nil || err2 != nil || h == 0 || c == 0 {
		err := fmt.Errorf("%q is not a port, want [tcp:|udp:]HOST[:CONTAINER] with numbers from 1 to 65535", s)
		return Port{}, inRange(err, math.MaxUint16, host, container)
	}
	p.Host, p.Container = uint16(h), uint16(c)
	return p, nil
}

// ParseLink reads HOST[:CONTAINER], two names of network links. Without the
// second it is prefix and the first, shortened to fit.
func ParseLink(s, prefix string) (Link, error) {
	host, container, two := strings.Cut(s, ":")
	if !netname.ValidIfname(host) {
		return Link{}, fmt.Errorf("%q is not the name of a network interface", host)
	}
	if !two {
		switch prefix {
		case "mv-":
			container, _ = netname.MACVLAN(host)
		case "iv-":
			container, _ = netname.IPVLAN(host)
		default:
			container = host
		}
	}
	if !netname.ValidIfname(container) {
		return Link{}, fmt.Errorf("%q is not the name of a network interface", container)
	}
	return Link{host, container}, nil
}

// ParsePivotRoot reads NEW[:OLD], two directories of the machine's tree.
func ParsePivotRoot(s string) (newRoot, oldRoot string, err error) {
	newRoot, oldRoot, two := strings.Cut(s, ":")
	if newRoot, err = cleanPath(newRoot); err != nil {
		return "", "", err
	}
	if two {
		if oldRoot, err = cleanPath(oldRoot); err != nil {
			return "", "", err
		}
		if oldRoot == newRoot {
			return "", "", fmt.Errorf("%q: new and old root are the same", s)
		}
	}
	return newRoot, oldRoot, nil
}

func validIfname(s string) error {
	if !netname.ValidIfname(s) {
		return fmt.Errorf("%q is not the name of a network interface", s)
	}
	return nil
}

func validZone(s string) error {
	if !netname.ValidZone(s) {
		return fmt.Errorf("%q is not a zone name: vz-%s would not be the name of a network interface", s, s)
	}
	return nil
}

// personalities are the architectures of systemd that personality(2) can pose as
// on some host.
var personalities = []string{"x86", "x86-64", "ppc", "ppc-le", "ppc64", "ppc64-le", "s390", "s390x", "arm", "arm-be", "arm64", "arm64-be", "mips", "mips-le", "mips64", "mips64-le", "sparc", "sparc64", "riscv32", "riscv64", "loongarch64"}

func validPersonality(s string) error {
	_, err := oneOf(s, personalities)
	return err
}

// ParsePersonality reads the name of an architecture.
func ParsePersonality(s string) (string, error) { return oneOf(s, personalities) }
