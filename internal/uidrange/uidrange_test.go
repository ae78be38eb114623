package uidrange

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

func testPicker(t *testing.T) Picker {
	t.Helper()
	etc := t.TempDir()
	for name, text := range map[string]string{
		"passwd":        "root:x:0:0:root:/root:/bin/sh\nbroken\n",
		"group":         "root:x:0:\n",
		"nsswitch.conf": "passwd: files mymachines # ldap\ngroup: files [SUCCESS=merge] mymachines\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Picker{
		Dir: filepath.Join(t.TempDir(), "uid"), Etc: etc,
		Random:        func() uint32 { return 0x12345678 },
		LookupForeign: func(string, []uint32) bool { t.Error("foreign lookup without a foreign source"); return false },
	}
}

func TestPick(t *testing.T) {
	t.Parallel()
	p := testPicker(t)
	// Captured from systemd-nspawn 257.
	for machine, want := range map[string]uint32{"abc": 667811840, "a-really-long-machine-name-here": 215678976} {
		r, err := p.Pick(0, machine, 1)
		if err != nil || r.Base != want {
			t.Fatalf("%s: got %+v, %v; want %d", machine, r, err, want)
		}
		defer r.Close()
	}
	again, err := p.Pick(0, "abc", 1)
	if err != nil || again.Base == 667811840 || again.Base&0xFFFF != 0 || again.Base < Min || again.Base > Max {
		t.Fatalf("range in use: got %+v, %v", again, err)
	}
	again.Close()
	owner, err := p.Pick(0x00A00000, "abc", 1)
	if err != nil || owner.Base != 0x00A00000 {
		t.Fatalf("owner's range: got %+v, %v", owner, err)
	}
	owner.Close()
	if left, _ := os.ReadDir(p.Dir); len(left) != 2 {
		t.Errorf("%d lock files, want 2", len(left))
	}
}

func TestPickAvoidsUsers(t *testing.T) {
	t.Parallel()
	p := testPicker(t)
	if err := os.WriteFile(filepath.Join(p.Etc, "group"), fmt.Appendf(nil, "g:x:%d:\n", 0x00A00000+0xFFFE), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := p.Pick(0x00A00000, "abc", 1)
	if err != nil || r.Base != 667811840 {
		t.Fatalf("got %+v, %v", r, err)
	}
	r.Close()
	if err := os.WriteFile(filepath.Join(p.Etc, "nsswitch.conf"), []byte("passwd: files sss\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.LookupForeign = func(db string, ids []uint32) bool { return db == "passwd" && ids[0] == 667811840 }
	if r, err = p.Pick(0, "abc", 1); err != nil || r.Base == 667811840 {
		t.Fatalf("got %+v, %v", r, err)
	}
	r.Close()
	p.LookupForeign = func(string, []uint32) bool { return true }
	if _, err = p.Pick(0, "abc", 1); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v, want exhausted", err)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestShiftCaps(t *testing.T) {
	t.Parallel()
	v2 := unhex(t, "0100000200200000000000000000000000000000")
	got := shiftCaps(v2, 0x10000)
	if want := "010000030020000000000000000000000000000000000100"; hex.EncodeToString(got) != want {
		t.Errorf("got %x, want %s", got, want)
	}
	if back := shiftCaps(got, 0); hex.EncodeToString(back) != hex.EncodeToString(v2) {
		t.Errorf("back: got %x", back)
	}
	if shiftCaps([]byte("x"), 1) != nil {
		t.Error("garbage accepted")
	}
}

// aclFor returns rw for the named user uid.
func aclFor(t *testing.T, uid uint32) []byte {
	return unhex(t, "02000000"+"01000600ffffffff"+fmt.Sprintf("02000600%02x%02x%02x%02x", byte(uid), byte(uid>>8), byte(uid>>16), byte(uid>>24))+
		"04000400ffffffff"+"10000600ffffffff"+"20000400ffffffff")
}

func TestShift(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const base = 0x00990000
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 40 {
		for j := range 5 {
			d := filepath.Join(root, fmt.Sprint(i), fmt.Sprint(j))
			must(os.MkdirAll(d, 0o755))
			must(os.WriteFile(filepath.Join(d, "f"), nil, 0o644))
		}
	}
	suid := filepath.Join(root, "0", "suid")
	must(os.WriteFile(suid, nil, 0o755))
	must(os.Chown(suid, 1000, 1001))
	must(os.Chmod(suid, 0o755|os.ModeSetuid|os.ModeSetgid))
	must(os.Symlink("/etc/passwd", filepath.Join(root, "link")))
	capable := filepath.Join(root, "ping")
	must(os.WriteFile(capable, nil, 0o755))
	must(os.Link(capable, filepath.Join(root, "1", "ping2")))
	must(unix.Setxattr(capable, fileCaps, unhex(t, "0100000200200000000000000000000000000000"), 0))
	acl := filepath.Join(root, "acl")
	must(os.Mkdir(acl, 0o755))
	must(unix.Setxattr(acl, aclAccess, aclFor(t, 1234), 0))
	must(unix.Setxattr(acl, aclDefault, aclFor(t, 1234), 0))
	must(unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))

	dir, err := os.Open(root)
	must(err)
	defer dir.Close()
	check := func(base uint32) {
		t.Helper()
		n := 0
		must(filepath.Walk(root, func(path string, _ os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			n++
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			if st.Uid&0xFFFF0000 != base || st.Gid&0xFFFF0000 != base {
				t.Errorf("%s is owned by %d:%d", path, st.Uid, st.Gid)
			}
			return nil
		}))
		if n < 400 {
			t.Errorf("%d files", n)
		}
		var st unix.Stat_t
		must(unix.Stat(suid, &st))
		if st.Uid != base|1000 || st.Gid != base|1001 || st.Mode&0o7777 != 0o6755 {
			t.Errorf("suid: %d:%d %o", st.Uid, st.Gid, st.Mode)
		}
		for _, a := range []string{aclAccess, aclDefault} {
			got, err := getxattr(acl, a)
			must(err)
			if want := aclFor(t, base|1234); hex.EncodeToString(got) != hex.EncodeToString(want) {
				t.Errorf("%s: got %x, want %x", a, got, want)
			}
		}
		if got, err := getxattr(capable, fileCaps); err != nil || base != 0 && hex.EncodeToString(got[20:]) != "00009900" {
			t.Errorf("capabilities: %x, %v", got, err)
		}
	}
	must(Shift(t.Context(), int(dir.Fd()), base))
	check(base)
	must(Shift(t.Context(), int(dir.Fd()), base))

	// Cancelled at once: marked, and finished by the next one.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Shift(ctx, int(dir.Fd()), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	var st unix.Stat_t
	must(unix.Fstat(int(dir.Fd()), &st))
	if st.Uid>>16 != busyBase>>16 {
		t.Errorf("root is owned by %#x, want the busy mark", st.Uid)
	}
	must(Shift(t.Context(), int(dir.Fd()), 0))
	check(0)

	if err := Shift(t.Context(), int(dir.Fd()), 5); err == nil {
		t.Error("unaligned base accepted")
	}
}

func TestShiftRefusesMixedOwner(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root := t.TempDir()
	if err := os.Chown(root, 0x20000, 0x30000); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := Shift(t.Context(), int(dir.Fd()), 0x40000); err == nil {
		t.Error("accepted")
	}
}

func TestPickSeveral(t *testing.T) {
	t.Parallel()
	p := testPicker(t)
	r, err := p.Pick(0, "abc", Nested)
	if err != nil || r.Base != 667811840 || r.Count != Nested*Size {
		t.Fatalf("got %+v, %v", r, err)
	}
	inside, err := p.Pick(r.Base+5*Size, "def", 1)
	if err != nil || inside.Base >= r.Base && inside.Base < r.Base+r.Count {
		t.Fatalf("range in use: got %+v, %v", inside, err)
	}
	inside.Close()
	// One that is taken is too many.
	before, err := p.Pick(0x00A00000, "abc", 1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := p.Pick(0x00A00000-3*Size, "ghi", Nested)
	if err != nil || other.Base == 0x00A00000-3*Size {
		t.Fatalf("got %+v, %v", other, err)
	}
	other.Close()
	before.Close()
	r.Close()
	if left, _ := os.ReadDir(p.Dir); len(left) != 0 {
		t.Errorf("%d lock files left", len(left))
	}
}

// In user namespaces there are few ranges, and fewer the deeper.
func TestPickNested(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		ids             uint64
		wanted          uint32
		base, end, want uint32 // bounds of the base; ranges
		machines        int    // that find room
	}{
		{Nested * Size, 1, Min, Nested * Size, 1, 24},
		{Nested * Size, Nested, Min, Nested * Size, 12, 2},
		{12 * Size, Nested, Min, 12 * Size, 2, 3}, // not all divisions fit
		{2 * Size, 1, Size, 2 * Size, 1, 1},
		{2 * Size, Nested, Size, 2 * Size, 1, 1},
	} {
		p := testPicker(t)
		p.Mapped = func() Extent { return Extent{tt.ids} }
		found := 0
		for n := range 64 {
			r, err := p.Pick(0, fmt.Sprintf("m%d", n), tt.wanted)
			if errors.Is(err, ErrExhausted) {
				break
			}
			if err != nil || r.Base < tt.base || r.Base+r.Count > tt.end || r.Count != tt.want*Size {
				t.Fatalf("%+v: got %+v, %v", tt, r, err)
			}
			defer r.Close()
			found++
		}
		if found == 0 || found > tt.machines || tt.wanted == 1 && found != tt.machines {
			t.Errorf("%+v: room for %d machines", tt, found)
		}
	}
	p := testPicker(t)
	p.Mapped = func() Extent { return Extent{Size} }
	if r, err := p.Pick(0, "abc", 1); !errors.Is(err, ErrExhausted) {
		t.Errorf("no range to spare: got %+v, %v", r, err)
	}
}
