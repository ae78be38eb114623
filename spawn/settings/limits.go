package settings

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

type unit int

const (
	plain unit = iota
	size
	seconds
	microseconds
	nice
)

// limits are the resource limits by name, with what they count.
var limits = map[string]struct {
	resource int
	unit     unit
}{
	"CPU": {unix.RLIMIT_CPU, seconds}, "FSIZE": {unix.RLIMIT_FSIZE, size}, "DATA": {unix.RLIMIT_DATA, size},
	"STACK": {unix.RLIMIT_STACK, size}, "CORE": {unix.RLIMIT_CORE, size}, "RSS": {unix.RLIMIT_RSS, size},
	"NOFILE": {unix.RLIMIT_NOFILE, plain}, "AS": {unix.RLIMIT_AS, size}, "NPROC": {unix.RLIMIT_NPROC, plain},
	"MEMLOCK": {unix.RLIMIT_MEMLOCK, size}, "LOCKS": {unix.RLIMIT_LOCKS, plain},
	"SIGPENDING": {unix.RLIMIT_SIGPENDING, plain}, "MSGQUEUE": {unix.RLIMIT_MSGQUEUE, size},
	"NICE": {unix.RLIMIT_NICE, nice}, "RTPRIO": {unix.RLIMIT_RTPRIO, plain}, "RTTIME": {unix.RLIMIT_RTTIME, microseconds},
}

// ErrSoftAboveHard is wrapped when a limit's first number is above its second.
var ErrSoftAboveHard = errors.New("soft limit is above the hard one")

// Limits returns the names of all limits, in the kernel's order.
func Limits() []string {
	return slices.SortedFunc(maps.Keys(limits), func(a, b string) int { return limits[a].resource - limits[b].resource })
}

// ValidLimit tells whether name (upper case, no RLIMIT_) is a resource limit.
func ValidLimit(name string) bool { _, ok := limits[name]; return ok }

// LimitResource returns the number that setrlimit(2) knows a limit by.
func LimitResource(name string) (int, bool) { l, ok := limits[name]; return l.resource, ok }

// ParseLimit reads SOFT[:HARD] for a limit; "infinity" is none.
func ParseLimit(name, s string) (Limit, error) {
	l, ok := limits[name]
	if !ok {
		return Limit{}, fmt.Errorf("%q is not a resource limit", name)
	}
	softText, hardText, two := strings.Cut(s, ":")
	soft, err := limitValue(softText, l.unit)
	if err != nil {
		return Limit{}, err
	}
	hard := soft
	if two {
		if hard, err = limitValue(hardText, l.unit); err != nil {
			return Limit{}, err
		}
	}
	if soft > hard {
		return Limit{}, fmt.Errorf("%q: %w", s, ErrSoftAboveHard)
	}
	return Limit{soft, hard}, nil
}

func limitValue(s string, u unit) (uint64, error) {
	bad := fmt.Errorf("%q is not a value of this limit", s)
	if s == "infinity" {
		return math.MaxUint64, nil
	}
	if s == "" {
		return 0, bad
	}
	switch u {
	case size:
		return ParseSize(s)
	case seconds:
		t, err := timespan(s, 1e6)
		return (t + 999999) / 1000000, err
	case microseconds:
		return timespan(s, 1)
	case nice:
		n, err := strconv.Atoi(s)
		if err != nil {
			return 0, bad
		}
		if s[0] == '+' || s[0] == '-' { // a nice level
			n = 20 - n
			if n < 1 || n > 40 {
				return 0, bad
			}
		}
		if n < 0 || n > 40 {
			return 0, bad
		}
		return uint64(n), nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, bad
	}
	return n, nil
}

// ParseSize reads bytes, with a suffix to the base of 1024: K, M, G, T, P, E, or B.
func ParseSize(s string) (uint64, error) {
	bad := fmt.Errorf("%q is not a size", s)
	digits := strings.TrimRight(s, "BKMGTPEiI ")
	shift := 0
	switch strings.TrimSpace(s[len(digits):]) {
	case "", "B":
	case "K":
		shift = 10
	case "M":
		shift = 20
	case "G":
		shift = 30
	case "T":
		shift = 40
	case "P":
		shift = 50
	case "E":
		shift = 60
	default:
		return 0, bad
	}
	if whole, frac, ok := strings.Cut(digits, "."); ok {
		w, err := strconv.ParseUint(whole, 10, 64)
		f, err2 := strconv.ParseFloat("0."+frac, 64)
		if err != nil || err2 != nil || shift == 0 || w > math.MaxUint64>>shift {
			return 0, bad
		}
		return w<<shift + uint64(f*float64(uint64(1)<<shift)), nil
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > math.MaxUint64>>shift {
		return 0, bad
	}
	return n << shift, nil
}

var timeUnits = map[string]float64{
	"us": 1, "usec": 1, "ms": 1e3, "msec": 1e3, "s": 1e6, "sec": 1e6, "second": 1e6, "seconds": 1e6,
	"m": 60e6, "min": 60e6, "minute": 60e6, "minutes": 60e6, "h": 3600e6, "hr": 3600e6, "hour": 3600e6, "hours": 3600e6,
	"d": 86400e6, "day": 86400e6, "days": 86400e6, "w": 7 * 86400e6, "week": 7 * 86400e6, "weeks": 7 * 86400e6,
}

// timespan reads a time such as "1min 30s" in microseconds; a number without a
// unit counts in def.
func timespan(s string, def float64) (uint64, error) {
	bad := fmt.Errorf("%q is not a time span", s)
	total := 0.0
	rest := strings.TrimSpace(s)
	for rest != "" {
		n := strings.IndexFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
		if n < 0 {
			n = len(rest)
		}
		v, err := strconv.ParseFloat(rest[:n], 64)
		if err != nil {
			return 0, bad
		}
		rest = strings.TrimLeft(rest[n:], " \t")
		n = strings.IndexFunc(rest, func(r rune) bool { return r < 'a' || r > 'z' })
		if n < 0 {
			n = len(rest)
		}
		mul := def
		if n > 0 {
			var ok bool
			if mul, ok = timeUnits[rest[:n]]; !ok {
				return 0, bad
			}
		}
		rest = strings.TrimLeft(rest[n:], " \t")
		total += v * mul
	}
	if total >= math.MaxUint64 || strings.TrimSpace(s) == "" {
		return 0, bad
	}
	return uint64(total), nil
}

// ParseSpan reads a time such as "1min 30s", or a number of seconds, or "infinity",
// in microseconds.
func ParseSpan(s string) (uint64, error) {
	if s == "infinity" {
		return math.MaxUint64, nil
	}
	return timespan(s, 1e6)
}
