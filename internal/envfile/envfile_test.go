package envfile

import (
	"slices"
	"testing"
)

// TestParse has what systemd makes of such lines (parse_env_file() of systemd 257,
// seen by GetMachineOSRelease).
func TestParse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		want []string
	}{
		{"", []string{}},
		{"B=1\nA=2\n", []string{"B=1", "A=2"}},
		{"A=1\nB=2\nA=3", []string{"A=3", "B=2"}},
		{"# c\n; c\n\n  C=x\nno assignment\n1X=y\nA-B=z\n=v\n", []string{"C=x"}},
		{"N=two words  \nQ=\"a\\\"b\\$c\\n\"\nS='a\\b'\nE=\n", []string{"N=two words", `Q=a"b$c\n`, `S=a\b`, "E="}},
		{"L=\"one\ntwo\"\nM=x\\\ny\n", []string{"L=one\ntwo", "M=xy"}},
		{"S='si\\ngle' tail\nT=\"mid\"dle\nD=\"x\"y\"z\"\nW='a' 'b'\n", []string{`S=si\ngletail`, "T=middle", `D=xy"z"`, "W=ab"}},
		{"A=1\nU=\"open\nB=2\n", []string{"A=1"}},
		{"Z=a\x00b\nY=1", []string{"Y=1"}},
	} {
		if got := Parse(test.text).Lines(); !slices.Equal(got, test.want) {
			t.Errorf("%q: got %q, want %q", test.text, got, test.want)
		}
	}
	pairs := Parse("A=1\nB=2")
	if pairs.Get("B") != "2" || pairs.Get("C") != "" {
		t.Errorf("got %q and %q", pairs.Get("B"), pairs.Get("C"))
	}
}

// FuzzParse: keys are unique and valid, whatever comes.
func FuzzParse(f *testing.F) {
	f.Add("A=1\nB='x'\n# c\nC=\"a\\\n")
	f.Fuzz(func(t *testing.T, text string) {
		seen := map[string]bool{}
		for _, p := range Parse(text) {
			if seen[p.Key] || !ValidKey(p.Key) {
				t.Errorf("key %q", p.Key)
			}
			seen[p.Key] = true
		}
	})
}
