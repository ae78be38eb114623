package nsexec

import (
	"fmt"
	"strings"
	"testing"
)

// FuzzBinds: the file of a machine's binds, and mountinfo, in which a machine
// chooses names.
func FuzzBinds(f *testing.F) {
	f.Add([]byte(`{"Source":"/a","Destination":"/b","ReadOnly":true,"MountID":7,"Leader":9}`+"\n{\n"), "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n")
	f.Add([]byte("null\n[]\n"), "x\n-1 2\n18446744073709551616 1\n")
	f.Fuzz(func(t *testing.T, data []byte, mountinfo string) {
		_ = parseBinds(data)
		for id := range mountIDs(mountinfo) {
			if fmt.Sprint(id) == "" {
				t.Error("an ID without digits")
			}
		}
	})
}

// FuzzCopyEvents: what the helper of a copy writes, line by line.
func FuzzCopyEvents(f *testing.F) {
	f.Add(`{"Bytes":5,"Total":9}` + "\n" + `{"Done":true,"Bytes":9}` + "\n")
	f.Add(`{"Error":"open x","Errno":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		calls := 0
		c := Copy{Progress: func(uint64, uint64) { calls++ }}
		last := c.events(strings.NewReader(text))
		if calls > len(text) || last.Done && text == "" {
			t.Errorf("%d reports, done %v, of %q", calls, last.Done, text)
		}
	})
}
