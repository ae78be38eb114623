package imagepolicy

import (
	"bufio"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text, want string
		err        error
	}{
		{"", "=unused+absent", nil},
		{"-", "=unused+absent", nil},
		{"~", "=absent", nil},
		{"*", "=verity+signed+encrypted+unprotected+unused+absent", nil},
		{"root = open", "root=verity+signed+encrypted+unprotected+unused+absent:=unused+absent", nil},
		{"root=", "root=-:=unused+absent", nil},
		{"root=-", "root=-:=unused+absent", nil},
		{"=", "=-", nil},
		{"=absent:root=unprotected", "root=unprotected:=absent", nil},
		{"root=verity+verity", "root=verity:=unused+absent", nil},
		{"root=ignore", "root=unused+absent:=unused+absent", nil},
		{"root=encryptedwithintegrity", "root=encryptedwithintegrity:=unused+absent", nil},
		{"root=unprotected+read-only-on:usr=growfs-off", "root=unprotected+read-only-on:usr=growfs-off:=unused+absent", nil},
		{"root", "", ErrSyntax},
		{":", "", ErrSyntax},
		{"root=open:", "", ErrSyntax},
		{"root=foo", "", ErrFlag},
		{"root=+", "", ErrFlag},
		{"root=unprotected+", "", ErrFlag},
		{"ROOT=open", "", ErrPartition},
		{"foo=open", "", ErrPartition},
		{"root=open:root=absent", "", ErrTwice},
		{"=open:=absent", "", ErrTwice},
	} {
		p, err := Parse(c.text)
		if !errors.Is(err, c.err) || err == nil && p.String() != c.want {
			t.Errorf("Parse(%q): got %v, %v; want %v, %v", c.text, p, err, c.want, c.err)
		}
	}
}

// TestFor compares with what systemd-analyze(1) image-policy of 257 said.
func TestFor(t *testing.T) {
	f, err := os.Open("testdata/systemd-257.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var p Policy
	rows, policy := 0, ""
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "### "); ok {
			policy = text
			if p, err = Parse(text); err != nil {
				t.Fatal(err)
			}
			continue
		}
		w := strings.Fields(lines.Text())
		if len(w) != 4 || w[0] == "default" || w[0] == "PARTITION" {
			continue
		}
		rows++
		got := p.For(w[0])
		mode := (got & Open).String()
		switch got & Open {
		case Open:
			mode = "open"
		case Ignore:
			mode = "ignore"
		}
		attr := func(off, on Flags) string {
			switch got & (off | on) {
			case on:
				return "yes"
			case off:
				return "no"
			}
			return "-"
		}
		if mode != w[1] || attr(ReadOnlyOff, ReadOnlyOn) != w[2] || attr(GrowFSOff, GrowFSOn) != w[3] {
			t.Errorf("policy %q: got %s %v, want %v", policy, w[0], mode, w)
		}
	}
	if rows < 100 {
		t.Errorf("only %d rows", rows)
	}
}

func TestCheck(t *testing.T) {
	plain := &Partition{Ways: Unprotected}
	for _, c := range []struct {
		policy, designator string
		part               *Partition
		want               Flags
		ok                 bool
	}{
		{"*", "root", plain, Unprotected, true},
		{"*", "root", nil, 0, true},
		{"-", "root", plain, 0, true},
		{"~", "root", plain, 0, false},
		{"root=absent", "root", plain, 0, false},
		{"root=unused", "root", plain, 0, true},
		{"root=unused", "root", nil, 0, false},
		{"root=unprotected", "root", nil, 0, false},
		{"root=encrypted", "root", plain, 0, false},
		{"root=encrypted+unused", "root", plain, 0, true},
		{"root=verity", "root", plain, 0, false},
		{"root=verity", "root", &Partition{Ways: Unprotected | Verity}, Verity, true},
		{"root=open", "root", &Partition{Ways: Unprotected | Verity | Signed}, Unprotected | Verity | Signed, true},
		{"root=encrypted", "root", &Partition{Ways: Encrypted}, Encrypted, true},
		{"root=unprotected", "root", &Partition{Ways: Encrypted}, 0, false},
		{"root=read-only-on", "root", plain, 0, false},
		{"root=read-only-on", "root", &Partition{Ways: Unprotected, ReadOnly: true}, Unprotected, true},
		{"root=read-only-off+growfs-on", "root", &Partition{Ways: Unprotected, GrowFS: true}, Unprotected, true},
		{"root=growfs-off", "root", &Partition{Ways: Unprotected, GrowFS: true}, 0, false},
		{"root=growfs-off+growfs-on", "root", &Partition{Ways: Unprotected, GrowFS: true}, Unprotected, true},
		{"home=verity", "home", plain, 0, false},
		{"swap=absent", "swap", plain, 0, false},
		{"root=verity:root-verity=absent", "root-verity", plain, 0, false},
	} {
		p, err := Parse(c.policy)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Check(c.designator, c.part)
		if got != c.want || (err == nil) != c.ok || err != nil && !errors.Is(err, ErrMismatch) {
			t.Errorf("policy %q, %s %+v: got %v, %v; want %v, ok %v", c.policy, c.designator, c.part, got, err, c.want, c.ok)
		}
	}
	for _, d := range []string{"root", "usr", "home", "srv", "esp", "xbootldr", "tmp", "var"} {
		if got, err := Container.Check(d, plain); got != Unprotected || err != nil {
			t.Errorf("default policy: %s: got %v, %v", d, got, err)
		}
	}
	if got, err := Container.Check("swap", plain); got != 0 || err != nil {
		t.Errorf("default policy: swap: got %v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"*", "-", "~", "root=verity+signed:home=encrypted:=ignore", "root=-:=", "usr=read-only-on+growfs-off"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(p.String())
		if err != nil {
			t.Fatalf("%q printed as %q: %v", s, p, err)
		}
		for _, d := range Designators {
			if p.For(d) != again.For(d) {
				t.Errorf("%q printed as %q: %s is %v and %v", s, p, d, p.For(d), again.For(d))
			}
		}
	})
}
