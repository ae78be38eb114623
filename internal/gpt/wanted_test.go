package gpt

import (
	"encoding/hex"
	"errors"
	"runtime"
	"strings"
	"testing"
)

func TestDiscoverWanted(t *testing.T) {
	t.Parallel()
	typ := func(s string) (g GUID) {
		b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
		if err != nil {
			t.Fatal(err)
		}
		return GUID(b)
	}
	types, ok := native[runtime.GOARCH]
	if !ok {
		t.Skip("no partition types of this architecture")
	}
	hash := []byte(strings.Repeat("A", 16) + strings.Repeat("B", 16))
	disk := &Disk{Table: TableGPT, Partitions: []Partition{
		{Number: 1, Type: typ(types.root[0]), ID: GUID(hash[:16]), Label: "1"},
		{Number: 2, Type: typ(types.root[1]), ID: GUID(hash[16:]), Label: "1"},
		{Number: 3, Type: typ(types.root[0]), Label: "2"},
		{Number: 4, Type: typ(types.root[1]), Label: "2"},
		{Number: 5, Type: typ(types.usr[0])},
	}}
	for _, c := range []struct {
		name         string
		wanted       Wanted
		root, hashes int // 0: refused
	}{
		{"nothing", Wanted{}, 3, 4},
		{"root", MakeWanted("root", hash, false), 1, 2},
		{"root, hashes elsewhere", MakeWanted("root", hash, true), 1, 2},
		{"other hash", MakeWanted("root", append([]byte("x"), hash[1:]...), false), 0, 0},
		{"other second half", MakeWanted("root", append(hash[:31:31], 'x'), false), 0, 0},
		{"other second half, hashes elsewhere", MakeWanted("root", append(hash[:31:31], 'x'), true), 1, 0},
		{"hash of /usr", MakeWanted("usr", hash, false), 0, 0},
	} {
		found, err := disk.DiscoverWanted(c.wanted)
		if (err == nil) != (c.root != 0) || err != nil && !errors.Is(err, ErrNoRoot) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err == nil && (found["root"].Number != c.root || found["root-verity"].Number != c.hashes) {
			t.Errorf("%s: got %+v", c.name, found)
		}
	}
	bare := &Disk{Table: TableNone, Partitions: []Partition{{FSType: "ext4"}}}
	if _, err := bare.DiscoverWanted(MakeWanted("root", hash, false)); !errors.Is(err, ErrNoRoot) {
		t.Errorf("bare file system without hashes: %v", err)
	}
	if found, err := bare.DiscoverWanted(MakeWanted("root", hash, true)); err != nil || len(found) != 1 {
		t.Errorf("bare file system: %v, %v", found, err)
	}
}
