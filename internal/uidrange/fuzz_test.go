package uidrange

import (
	"bytes"
	"testing"
)

// FuzzAttributes: ACLs and file capabilities of an image's files.
func FuzzAttributes(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 2, 0, 7, 0, 0xe8, 3, 0, 0}, uint32(1<<19))
	f.Add(append([]byte{1, 0, 0, 2}, make([]byte, 16)...), uint32(0))
	f.Add(append([]byte{1, 0, 0, 3}, make([]byte, 20)...), uint32(1<<31))
	f.Fuzz(func(t *testing.T, value []byte, base uint32) {
		base &^= 0xffff
		acl := bytes.Clone(value)
		shiftACL(acl, base)
		if again := bytes.Clone(acl); shiftACL(again, base) {
			t.Errorf("ACL % x is shifted twice", value)
		}
		if out := shiftCaps(value, base); out != nil {
			if len(out) != 20 && len(out) != 24 || !bytes.Equal(out[4:20], value[4:20]) {
				t.Errorf("capabilities % x became % x", value, out)
			}
		}
	})
}
