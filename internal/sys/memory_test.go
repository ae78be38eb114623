package sys

import (
	"bufio"
	"os"
	"strings"
	"testing"
)

func TestCodeMappings(t *testing.T) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	block := func(head, anonymous string) string {
		return head + "\nSize: 4 kB\nRss: 4 kB\nAnonymous:          " + anonymous + " kB\nVmFlags: rd mr\n"
	}
	smaps := block("00400000-00500000 r-xp 00000000 08:01 123    "+exe, "0") +
		block("00500000-00600000 r--p 00100000 08:01 123    "+exe, "8") + // relocated: not as in the file
		block("00600000-00700000 r--p 00200000 08:01 123    "+exe, "0") +
		block("00700000-00800000 rw-p 00300000 08:01 123    "+exe, "0") +
		block("00800000-00900000 r--s 00300000 08:01 123    "+exe, "0") +
		block("7f0000000000-7f0000001000 r-xp 00000000 08:01 9 /usr/lib/other", "0") +
		block("c000000000-c000400000 rw-p 00000000 00:00 0", "0")
	got := codeMappings(bufio.NewScanner(strings.NewReader(smaps)), "/proc/self/exe")
	want := []mapping{{0x400000, 0x500000}, {0x600000, 0x700000}}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestDropCode(t *testing.T) {
	DropCode()
	// The code that is left has to be readable again.
	if got := strings.Repeat("ab", 2); got != "abab" {
		t.Errorf("after dropping the code: got %q", got)
	}
}
