package cli

import (
	"strings"
	"testing"
	"time"
)

func TestGetopt(t *testing.T) {
	var seen []string
	note := func(name string) func(string) error {
		return func(arg string) error { seen = append(seen, name+"="+arg); return nil }
	}
	options := Options{Program: "p", Stop: func(w []string) bool { return w[0] == "shell" && len(w) == 2 }, Table: []Option{
		{Short: 'a', Long: "all", Set: note("a")}, {Short: 'n', Long: "lines", Arg: RequiredArg, Set: note("n")},
		{Long: "machine", Arg: RequiredArg, Set: note("machine")}, {Long: "max", Arg: RequiredArg, Set: note("max")}}}
	for _, test := range []struct{ args, words, seen, err string }{
		{"list -a", "list", "a=", ""},
		{"-an3 status x --li=4 y", "status x y", "a= n=3 n=4", ""},
		{"shell -a deb ls -a --all", "shell deb ls -a --all", "a=", ""},
		{"kill -- -a", "kill -a", "", ""},
		{"--ma=1", "", "", "p: option '--ma=1' is ambiguous; possibilities: '--machine' '--max'"},
		{"--foo=1", "", "", "p: unrecognized option '--foo=1'"},
		{"-z", "", "", "p: invalid option -- 'z'"},
		{"-n", "", "", "p: option requires an argument -- 'n'"},
		{"--lines", "", "", "p: option '--lines' requires an argument"},
		{"--all=1", "", "", "p: option '--all' doesn't allow an argument"},
	} {
		seen = nil
		words, err := options.Parse(strings.Fields(test.args))
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got := strings.Join(words, " "); err == nil && got != test.words || text != test.err || strings.Join(seen, " ") != test.seen {
			t.Errorf("Parse(%s) = %q, %q, %q; want %q, %q, %q", test.args, got, seen, text, test.words, test.seen, test.err)
		}
	}
}

func TestRelative(t *testing.T) {
	now := time.UnixMicro(1 << 50)
	for ago, want := range map[time.Duration]string{0: "now", 344 * time.Millisecond: "344ms ago", 62 * time.Second: "1min 2s ago",
		58 * time.Minute: "58min ago", 90 * time.Minute: "1h 30min ago", 26 * time.Hour: "1 day 2h ago", 50 * time.Hour: "2 days ago"} {
		if got := FormatRelative(uint64(now.Add(-ago).UnixMicro()), now); got != want {
			t.Errorf("FormatRelative(%v) = %q, want %q", ago, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]uint64{"1G": 1 << 30, "1.5K": 1536, "5": 5, "1G 512M": 1<<30 + 512<<20, "7B": 7} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "abc", "-1", "1X", "99999999999999999999", "16E1E"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1536: "1.5K", 5 << 20: "5M"} {
		if got := FormatBytes(n); got != want {
			t.Errorf("FormatBytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	f.Add("1.5G")
	f.Fuzz(func(t *testing.T, s string) { _, _ = ParseSize(s) })
}

func TestSignals(t *testing.T) {
	for n := 1; n <= 64; n++ {
		if got, err := ParseSignal(SignalName(n)); err != nil || int(got) != n {
			t.Errorf("ParseSignal(SignalName(%d)) = %d, %v", n, got, err)
		}
	}
}

func TestImageName(t *testing.T) {
	for _, test := range []struct{ kind, file, want string }{
		{"tar", "focal.tar.gz", "focal"}, {"tar", "a.tgz", "a"}, {"raw", "x.raw.xz", "x"}, {"raw", "y.sysext.raw", "y"}, {"fs", "d.tar", "d.tar"},
	} {
		if got := imageName(test.kind, test.file); got != test.want {
			t.Errorf("imageName(%s, %s) = %q, want %q", test.kind, test.file, got, test.want)
		}
	}
}

func TestCgroupFind(t *testing.T) {
	root := &CgroupNode{}
	root.Add("/app.slice/web.service", ProcessLine{1, "web"})
	root.Add("/app.slice/db.service", ProcessLine{2, "db"})
	root.Add("", ProcessLine{3, "top"})
	for path, want := range map[string]string{"": "top", "/": "top", "app.slice/web.service": "web", "/app.slice/db.service/": "db", "app.slice/x": "", "nope": ""} {
		got := ""
		if n := root.Find(path); n != nil && len(n.Processes) > 0 {
			got = n.Processes[0].Command
		}
		if got != want {
			t.Errorf("Find(%q): got %q, want %q", path, got, want)
		}
	}
	if n := (*CgroupNode)(nil).Find("x"); n != nil {
		t.Errorf("in no tree: %v", n)
	}
}
