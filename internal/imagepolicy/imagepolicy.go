// Package imagepolicy says which partitions of a disk image may be there, which
// may be used, and how well they have to be protected (systemd.image-policy(7)).
//
// It reads no image: whoever does asks it about each partition.
package imagepolicy

import (
	"errors"
	"fmt"
	"strings"
)

// Flags is a set of what is allowed for one partition.
type Flags uint16

// How a partition may be used, that it may be left alone or missing, and what its
// GPT attributes may be.
const (
	Verity Flags = 1 << iota
	Signed
	Encrypted
	// EncryptedWithIntegrity wants authenticated encryption.
	EncryptedWithIntegrity
	Unprotected
	Unused
	Absent
	ReadOnlyOff
	ReadOnlyOn
	GrowFSOff
	GrowFSOn
)

// Combinations. Open is what a rule without any of these flags means.
const (
	Use      = Verity | Signed | Encrypted | EncryptedWithIntegrity | Unprotected
	Open     = Verity | Signed | Encrypted | EncryptedWithIntegrity | Unprotected | Unused | Absent
	Ignore   = Unused | Absent
	readOnly = ReadOnlyOff | ReadOnlyOn
	growFS   = GrowFSOff | GrowFSOn
)

var names = []struct {
	name string
	flag Flags
}{
	{"verity", Verity},
	{"signed", Signed},
	{"encrypted", Encrypted | EncryptedWithIntegrity},
	{"encryptedwithintegrity", EncryptedWithIntegrity},
	{"unprotected", Unprotected},
	{"unused", Unused},
	{"absent", Absent},
	{"open", Open},
	{"ignore", Ignore},
	{"read-only-off", ReadOnlyOff},
	{"read-only-on", ReadOnlyOn},
	{"growfs-off", GrowFSOff},
	{"growfs-on", GrowFSOn},
}

// Designators are the kinds of partitions, in the order of the manual.
var Designators = []string{
	"root", "usr", "home", "srv", "esp", "xbootldr", "swap",
	"root-verity", "root-verity-sig", "usr-verity", "usr-verity-sig", "tmp", "var",
}

// possible are the flags that mean something for a kind of partition.
func possible(designator string) Flags {
	switch designator {
	case "root", "usr", "":
		return Open
	case "root-verity", "usr-verity", "root-verity-sig", "usr-verity-sig":
		return Unprotected | Unused | Absent
	}
	return Open &^ (Verity | Signed)
}

// Errors that Parse wraps.
var (
	ErrSyntax    = errors.New("not an image policy")
	ErrPartition = errors.New("unknown partition type in image policy")
	ErrFlag      = errors.New("unknown flag in image policy")
	ErrTwice     = errors.New("partition type is twice in image policy")
)

// ErrMismatch says that an image is not what the policy wants.
var ErrMismatch = errors.New("image does not match image policy")

// Policy is an image policy. The zero value ignores everything, as "-".
type Policy struct {
	fallback    Flags
	hasFallback bool
	rules       map[string]Flags
}

// Container is the policy of systemd-nspawn when none is given: use all but swap.
var Container = must("root=verity+signed+encrypted+unprotected+absent:usr=verity+signed+encrypted+unprotected+absent:" +
	"home=encrypted+unprotected+absent:srv=encrypted+unprotected+absent:esp=unprotected+absent:" +
	"xbootldr=unprotected+absent:tmp=encrypted+unprotected+absent:var=encrypted+unprotected+absent")

func must(s string) Policy {
	p, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return p
}

// Parse reads "root=verity+signed:home=encrypted:=ignore", or one of the special
// policies "*", "-" and "~".
func Parse(s string) (Policy, error) {
	switch strings.TrimSpace(s) {
	case "", "-":
		return Policy{}, nil
	case "*":
		return Policy{fallback: Open, hasFallback: true}, nil
	case "~":
		return Policy{fallback: Absent, hasFallback: true}, nil
	}
	p := Policy{rules: map[string]Flags{}}
	for rule := range strings.SplitSeq(s, ":") {
		name, list, ok := strings.Cut(rule, "=")
		if !ok {
			return Policy{}, fmt.Errorf("%q: %w", rule, ErrSyntax)
		}
		name = strings.TrimSpace(name)
		flags, err := parseFlags(list)
		if err != nil {
			return Policy{}, err
		}
		if name == "" {
			if p.hasFallback {
				return Policy{}, fmt.Errorf("the default: %w", ErrTwice)
			}
			p.fallback, p.hasFallback = flags, true
			continue
		}
		if !known(name) {
			return Policy{}, fmt.Errorf("%q: %w", name, ErrPartition)
		}
		if _, dup := p.rules[name]; dup {
			return Policy{}, fmt.Errorf("%q: %w", name, ErrTwice)
		}
		p.rules[name] = flags
	}
	return p, nil
}

func known(designator string) bool {
	for _, d := range Designators {
		if d == designator {
			return true
		}
	}
	return false
}

func parseFlags(list string) (Flags, error) {
	list = strings.TrimSpace(list)
	if list == "" || list == "-" {
		return 0, nil
	}
	var flags Flags
next:
	for word := range strings.SplitSeq(list, "+") {
		word = strings.TrimSpace(word)
		for _, n := range names {
			if n.name == word {
				flags |= n.flag
				continue next
			}
		}
		return 0, fmt.Errorf("%q: %w", word, ErrFlag)
	}
	return flags, nil
}

// extended sets all flags of a kind of which none is set.
func extended(f Flags) Flags {
	for _, group := range []Flags{Open, readOnly, growFS} {
		if f&group == 0 {
			f |= group
		}
	}
	return f
}

// For returns the rule of a kind of partition, complete: what is listed, what
// follows from the partition that a Verity partition protects, or the default.
func (p Policy) For(designator string) Flags {
	mask := possible(designator) | readOnly | growFS
	if f, ok := p.rules[designator]; ok {
		return extended(f) & mask
	}
	if data, need, ok := protects(designator); ok {
		if f, ok := p.rules[data]; ok {
			f = extended(f)
			if f&need != 0 {
				return Unprotected | f&(Unused|Absent|readOnly|growFS)
			}
		}
	}
	if !p.hasFallback {
		return extended(Ignore) & mask
	}
	return extended(p.fallback) & mask
}

// protects names the partition that a Verity or signature partition belongs to,
// and the protection that wants it.
func protects(designator string) (data string, need Flags, ok bool) {
	if data, ok = strings.CutSuffix(designator, "-verity-sig"); ok {
		return data, Signed, true
	}
	if data, ok = strings.CutSuffix(designator, "-verity"); ok {
		return data, Verity | Signed, true
	}
	return "", 0, false
}

// Partition is what an image has of one kind.
type Partition struct {
	// Ways are the protections that it can be used with: of Use.
	Ways             Flags
	ReadOnly, GrowFS bool // GPT attributes; false where there are none
}

// Check tells with which protections a partition may be used, none of them when
// it is to be left alone; part is nil where the image has none of its kind. The
// error wraps ErrMismatch.
func (p Policy) Check(designator string, part *Partition) (Flags, error) {
	f := p.For(designator)
	if part == nil {
		if f&Absent == 0 {
			return 0, fmt.Errorf("%w: no %s partition", ErrMismatch, designator)
		}
		return 0, nil
	}
	if ways := f & part.Ways & Use; ways != 0 {
		for _, attr := range []struct {
			name    string
			state   bool
			off, on Flags
		}{
			{"read-only", part.ReadOnly, ReadOnlyOff, ReadOnlyOn},
			{"growfs", part.GrowFS, GrowFSOff, GrowFSOn},
		} {
			if attr.state && f&attr.on == 0 || !attr.state && f&attr.off == 0 {
				return 0, fmt.Errorf("%w: %s flag of the %s partition is %s", ErrMismatch, attr.name, designator, onOff(attr.state))
			}
		}
		return ways, nil
	}
	switch {
	case f&Unused != 0:
		return 0, nil
	case f&Use == 0:
		return 0, fmt.Errorf("%w: it has a %s partition", ErrMismatch, designator)
	}
	return 0, fmt.Errorf("%w: the %s partition is %s, not %s", ErrMismatch, designator, (part.Ways & Use).String(), (f & Use).String())
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// String lists flags in the manual's order, "-" for none.
func (f Flags) String() string {
	var words []string
	for _, n := range names {
		switch n.flag {
		case Open, Ignore:
		case EncryptedWithIntegrity:
			if f&Encrypted == 0 && f&n.flag != 0 {
				words = append(words, n.name)
			}
		case Encrypted | EncryptedWithIntegrity:
			if f&Encrypted != 0 {
				words = append(words, n.name)
			}
		default:
			if f&n.flag == n.flag {
				words = append(words, n.name)
			}
		}
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, "+")
}

// String is the policy in full: a rule for each kind that has one, and the default.
func (p Policy) String() string {
	var rules []string
	for _, d := range Designators {
		if f, ok := p.rules[d]; ok {
			rules = append(rules, d+"="+f.String())
		}
	}
	f := Ignore
	if p.hasFallback {
		f = p.fallback
	}
	return strings.Join(append(rules, "="+f.String()), ":")
}
