package spawn

import (
	"errors"
	"maps"
	"testing"

	"machined/internal/gpt"
	"machined/internal/imagepolicy"
)

func TestChooseVerity(t *testing.T) {
	hash := make([]byte, 32)
	protected := map[string]gpt.Partition{"root": {FSType: "ext4"}, "root-verity": {Number: 2}, "root-verity-sig": {Number: 3}}
	for _, c := range []struct {
		name, policy string
		found        map[string]gpt.Partition
		verity       verity
		use          string // how the root is read, "": refused
	}{
		{"plain", "*", map[string]gpt.Partition{"root": {FSType: "ext4"}}, verity{}, "plain"},
		{"no hash is known", "*", protected, verity{}, "plain"},
		{"hash", "*", protected, verity{hash: hash}, "verity"},
		{"hash and signature", "*", protected, verity{hash: hash, embedded: []byte{1}}, "verity"},
		{"only signed", "root=signed", protected, verity{hash: hash}, "signed"},
		{"signed, of another file", "root=signed", map[string]gpt.Partition{"root": {FSType: "ext4"}}, verity{hash: hash, data: "/d", sig: "/s"}, "signed"},
		{"signed, without", "root=signed", map[string]gpt.Partition{"root": {FSType: "ext4"}}, verity{hash: hash, data: "/d"}, ""},
		{"hashes in a file", "root=verity", map[string]gpt.Partition{"root": {FSType: "ext4"}}, verity{hash: hash, data: "/d"}, "verity"},
		{"wanted, no hash is known", "root=verity", protected, verity{}, ""},
		{"not wanted, found", "root=unprotected", protected, verity{hash: hash}, "plain"},
		{"not wanted, asked for", "root=unprotected", protected, verity{hash: hash, explicit: true}, ""},
		{"hashes not to be used", "root=verity:root-verity=ignore", protected, verity{hash: hash}, ""},
		{"encrypted", "*", map[string]gpt.Partition{"root": {FSType: luksFS}}, verity{}, "plain"},
		{"encrypted, not allowed", "root=unprotected", map[string]gpt.Partition{"root": {FSType: luksFS}}, verity{}, ""},
		{"encrypted, with a hash", "*", map[string]gpt.Partition{"root": {FSType: luksFS}}, verity{hash: hash, data: "/d"}, ""},
	} {
		policy, err := imagepolicy.Parse(c.policy)
		if err != nil {
			t.Fatal(err)
		}
		c.verity.designator = "root"
		got := &contents{found: maps.Clone(c.found)}
		got.ways, err = allowed(&policy, got.found, &c.verity)
		if err == nil {
			err = got.choose(&c.verity)
		}
		use := "plain"
		switch {
		case err != nil:
			use = ""
			if !errors.Is(err, imagepolicy.ErrMismatch) && !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s: %v", c.name, err)
			}
		case got.guards("root") && !got.verity.plain:
			use = "signed"
		case got.guards("root"):
			use = "verity"
		}
		if use != c.use {
			t.Errorf("%s: %q, want %q (%v)", c.name, use, c.use, err)
		}
	}
}
