package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Unknown is how the services write a size, limit or id that is not known.
const Unknown = math.MaxUint64

// ParseBool reads a boolean as in unit files (systemd.syntax(7)).
func ParseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, nil
	case "0", "no", "n", "false", "f", "off":
		return false, nil
	}
	return false, fmt.Errorf("parse boolean %q: want yes or no", s)
}

// FormatBool writes a boolean as properties show it.
func FormatBool(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

var sizeSuffixes = []struct {
	letter string
	factor uint64
}{{"E", 1 << 60}, {"P", 1 << 50}, {"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}}

// FormatBytes writes a size with a suffix to the base 1024 and at most one digit
// after the point.
func FormatBytes(n uint64) string {
	for i, suffix := range sizeSuffixes {
		if n < suffix.factor {
			continue
		}
		var tenth uint64
		if i < len(sizeSuffixes)-1 {
			tenth = (n / (suffix.factor / 1024) * 10 / 1024) % 10
		} else {
			tenth = n * 10 / suffix.factor % 10
		}
		if tenth > 0 {
			return fmt.Sprintf("%d.%d%s", n/suffix.factor, tenth, suffix.letter)
		}
		return fmt.Sprintf("%d%s", n/suffix.factor, suffix.letter)
	}
	return fmt.Sprintf("%dB", n)
}

// ParseSize reads a size in bytes with an optional suffix to the base 1024, as
// FormatBytes writes it; several may be added up ("1G 512M").
func ParseSize(s string) (uint64, error) {
	fail := fmt.Errorf("parse size %q: want a number with one of the suffixes B, K, M, G, T, P, E", s)
	rest := strings.TrimSpace(s)
	if rest == "" {
		return 0, fail
	}
	var total uint64
	for rest != "" {
		end := strings.IndexFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
		if end < 0 {
			end = len(rest)
		}
		number := rest[:end]
		rest = strings.TrimLeft(rest[end:], " \t")
		factor := uint64(1)
		if rest != "" {
			known := false
			for _, suffix := range sizeSuffixes {
				if rest[0] == suffix.letter[0] {
					factor, known = suffix.factor, true
				}
			}
			if rest[0] == 'B' {
				known = true
			}
			if !known {
				return 0, fail
			}
			rest = strings.TrimLeft(rest[1:], " \t")
		}
		whole, fraction, _ := strings.Cut(number, ".")
		n, err := strconv.ParseUint(whole, 10, 64)
		if err != nil || n > math.MaxUint64/factor {
			return 0, fail
		}
		n *= factor
		if fraction != "" {
			f, err := strconv.ParseFloat("0."+fraction, 64)
			if err != nil {
				return 0, fail
			}
			n += uint64(f * float64(factor))
		}
		if total > math.MaxUint64-n {
			return 0, fail
		}
		total += n
	}
	return total, nil
}

// FormatTime writes a moment, given in µs since 1970, as stock's tools do. It
// returns "" for 0 and for the value that means never.
func FormatTime(usec uint64) string {
	if usec == 0 || usec == Unknown {
		return ""
	}
	return time.UnixMicro(int64(usec)).Format("Mon 2006-01-02 15:04:05 MST")
}

const (
	usecMSec  uint64 = 1000
	usecSec          = 1000 * usecMSec
	usecMin          = 60 * usecSec
	usecHour         = 60 * usecMin
	usecDay          = 24 * usecHour
	usecWeek         = 7 * usecDay
	usecMonth        = 2629800 * usecSec
	usecYear         = 31557600 * usecSec
)

// FormatRelative writes how long ago usec was, seen from now.
func FormatRelative(usec uint64, now time.Time) string {
	if usec == 0 || usec == Unknown {
		return ""
	}
	current := uint64(now.UnixMicro())
	d, word := current-usec, "ago"
	if usec > current {
		d, word = usec-current, "left"
	}
	plural := func(n uint64, what string) string {
		if n == 1 {
			return "1 " + what
		}
		return fmt.Sprintf("%d %ss", n, what)
	}
	switch {
	case d >= usecYear:
		return plural(d/usecYear, "year") + " " + plural(d%usecYear/usecMonth, "month") + " " + word
	case d >= usecMonth:
		return plural(d/usecMonth, "month") + " " + plural(d%usecMonth/usecDay, "day") + " " + word
	case d >= usecWeek:
		return plural(d/usecWeek, "week") + " " + plural(d%usecWeek/usecDay, "day") + " " + word
	case d >= 2*usecDay:
		return fmt.Sprintf("%d days %s", d/usecDay, word)
	case d >= 25*usecHour:
		return fmt.Sprintf("1 day %dh %s", (d-usecDay)/usecHour, word)
	case d >= 6*usecHour:
		return fmt.Sprintf("%dh %s", d/usecHour, word)
	case d >= usecHour:
		return fmt.Sprintf("%dh %dmin %s", d/usecHour, d%usecHour/usecMin, word)
	case d >= 5*usecMin:
		return fmt.Sprintf("%dmin %s", d/usecMin, word)
	case d >= usecMin:
		return fmt.Sprintf("%dmin %ds %s", d/usecMin, d%usecMin/usecSec, word)
	case d >= usecSec:
		return fmt.Sprintf("%ds %s", d/usecSec, word)
	case d >= usecMSec:
		return fmt.Sprintf("%dms %s", d/usecMSec, word)
	case d > 0:
		return fmt.Sprintf("%dus %s", d, word)
	}
	return "now"
}
