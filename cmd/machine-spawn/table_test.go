package main

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"machined/spawn/settings"
)

// tableRow is a row of docs/compatibility.md, "systemd-nspawn: options and keys".
type tableRow struct {
	options       []string // long names, without --
	keys          []string // SECTION.NAME
	verdict, text string
}

func compatibilityTable(t *testing.T) (rows []tableRow) {
	t.Helper()
	data, err := os.ReadFile("../../docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(data), "\n## systemd-nspawn: options and keys\n")
	if !ok {
		t.Fatal("docs/compatibility.md has no section about the options and keys")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	_, section, _ = strings.Cut(section, "| Option |")
	lines := strings.Split(section, "\n")
	long := regexp.MustCompile(`--([a-z0-9-]+)`)
	key := regexp.MustCompile(`([A-Za-z0-9]+)=`)
	for _, line := range lines[2:] {
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 5 {
			t.Fatalf("row has %d cells, want 5: %s", len(cells), line)
		}
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		r := tableRow{verdict: cells[3], text: cells[4]}
		for _, m := range long.FindAllStringSubmatch(cells[0], -1) {
			r.options = append(r.options, m[1])
		}
		section := strings.Trim(strings.SplitN(cells[1], " ", 2)[0], "[]`")
		for _, m := range key.FindAllStringSubmatch(cells[1], -1) {
			r.keys = append(r.keys, section+"."+m[1])
		}
		if len(r.options)+len(r.keys) == 0 {
			t.Errorf("row names neither option nor key: %s", line)
		}
		rows = append(rows, r)
	}
	return rows
}

// The table, the parser, --help, and the manual pages have the same options and
// keys, and the table tells apart what is refused.
func TestTableAgrees(t *testing.T) {
	c, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	var parsed, shown, keys []string
	c.fs.VisitAll(func(f *pflag.Flag) {
		parsed = append(parsed, f.Name)
		if !f.Hidden {
			shown = append(shown, f.Name)
		}
	})
	for _, k := range settings.Keys() {
		keys = append(keys, k)
	}
	for _, l := range settings.Limits() {
		keys = append(keys, "Exec.Limit"+l)
	}
	var inTable, keysInTable, refused []string
	for _, r := range compatibilityTable(t) {
		if !slices.Contains([]string{"same", "more", "less", "differs", "ours", "refused"}, r.verdict) {
			t.Errorf("%v %v: verdict %q", r.options, r.keys, r.verdict)
		}
		if r.verdict != "same" && r.text == "" {
			t.Errorf("%v %v: %q without a reason", r.options, r.keys, r.verdict)
		}
		inTable = append(inTable, r.options...)
		keysInTable = append(keysInTable, r.keys...)
		if r.verdict == "refused" {
			refused = append(refused, r.options...)
		}
	}
	same(t, "options of the parser", parsed, "of the table", inTable)
	same(t, "keys of the parser", keys, "of the table", keysInTable)

	// The hidden ones are those that are refused, and two that have a letter only.
	lettersOnly := []string{"private-users-pick", "link-journal-try-guest"}
	var printed []string
	for _, m := range regexp.MustCompile(`(?m)^  (?:-\w  |    )--([a-z0-9-]+)`).FindAllStringSubmatch(help(t), -1) {
		if strings.HasPrefix(m[0], "  -U  ") { // a letter for a value of another one
			continue
		}
		printed = append(printed, m[1])
	}
	same(t, "options of --help", printed, "of the parser that are not hidden", shown)
	same(t, "options of --help and refused ones", slices.Concat(printed, refused, lettersOnly), "of the parser", parsed)

	// And what the table calls refused is so, without a look at the value.
	for _, name := range refused {
		_, err := parse([]string{"--" + name + "=x"})
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "not supported") {
			t.Errorf("--%s=x: got %v, want that it is not supported", name, err)
		}
	}

	options := pageHeads(t, "systemd-nspawn.1", `--([a-z0-9-]+)`)
	same(t, "options of systemd-nspawn(1)", options, "of --help", printed)
	var plain []string
	for _, k := range keys {
		_, name, _ := strings.Cut(k, ".")
		plain = append(plain, name)
	}
	same(t, "keys of systemd.nspawn(5)", pageHeads(t, "systemd.nspawn.5", `([A-Za-z0-9]+)=`), "of the parser", plain)
}

// Completion asks the program for options and values: each value that it asks
// for by "help" must answer, and each option that it names must exist.
func TestCompletions(t *testing.T) {
	c, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"bash/systemd-nspawn", "zsh/_systemd-nspawn"} {
		data, err := os.ReadFile("../../completions/" + file)
		if err != nil {
			t.Fatal(err)
		}
		script := string(data)
		for _, m := range regexp.MustCompile(`--([a-z][a-z0-9-]+)[|)]`).FindAllStringSubmatch(script, -1) {
			if c.fs.Lookup(m[1]) == nil {
				t.Errorf("%s: --%s is no option", file, m[1])
			}
		}
	}
	if bash, err := exec.LookPath("bash"); err == nil {
		if out, err := exec.Command(bash, "-n", "../../completions/bash/systemd-nspawn").CombinedOutput(); err != nil {
			t.Errorf("bash: %v: %s", err, out)
		}
	}
	for _, name := range []string{
		"volatile", "kill-signal", "private-users-ownership", "capability", "drop-capability", "ambient-capability",
		"resolv-conf", "timezone", "link-journal", "console",
	} {
		out := stdout(t, func() {
			if _, err := parse([]string{"--" + name + "=help"}); err != errDone {
				t.Errorf("--%s=help: %v", name, err)
			}
		})
		for _, word := range strings.Fields(out) {
			if _, err := parse([]string{"--" + name + "=" + word}); err != nil {
				t.Errorf("--%s=%s, which help lists: %v", name, word, err)
			}
		}
	}
}

func same(t *testing.T, what string, got []string, than string, want []string) {
	t.Helper()
	for _, s := range got {
		if !slices.Contains(want, s) {
			t.Errorf("%s: %q is not one %s", what, s, than)
		}
	}
	for _, s := range want {
		if !slices.Contains(got, s) {
			t.Errorf("%s lack %q %s", what, s, than)
		}
	}
	seen := map[string]bool{}
	for _, s := range got {
		if seen[s] {
			t.Errorf("%s: %q twice", what, s)
		}
		seen[s] = true
	}
}

// help is the output of --help.
func help(t *testing.T) string {
	t.Helper()
	return stdout(t, func() {
		if _, err := parse([]string{"--help"}); err != errDone {
			t.Errorf("--help: %v", err)
		}
	})
}

// pageHeads finds what the headings of a manual page's items name.
func pageHeads(t *testing.T, page, pattern string) (names []string) {
	t.Helper()
	word := regexp.MustCompile(pattern)
	for _, head := range regexp.MustCompile(`(?m)^\.IP "\\fB(.*)\\fR"`).FindAllStringSubmatch(manual(t, page), -1) {
		for _, m := range word.FindAllStringSubmatch(head[1], -1) {
			names = append(names, m[1])
		}
	}
	return names
}

// stdout is what f prints.
func stdout(t *testing.T, f func()) string {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	saved := os.Stdout
	os.Stdout = file
	f()
	os.Stdout = saved
	data, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
