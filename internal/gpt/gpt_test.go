package gpt

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// image makes a file of 24 MiB and lets a tool loose on it.
func image(t testing.TB, tool string, args ...string) (*os.File, int64) {
	t.Helper()
	const size = 24 << 20
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	if tool != "" {
		bin, err := exec.LookPath(tool)
		if err != nil {
			if os.Getenv("REQUIRE_ALL") == "1" {
				t.Fatal(err)
			}
			t.Skipf("needs %s", tool)
		}
		var stdin []byte
		if tool == "sfdisk" {
			stdin, args = []byte(args[0]), args[1:]
		}
		c := exec.Command(bin, append(args, path)...)
		c.Stdin = bytes.NewReader(stdin)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", tool, err, out)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, size
}

const table = "label: gpt\nsize=1MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp\nsize=4MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=r\u00f6\u00f6t, attrs=\"GUID:60\"\n" +
	"size=2MiB, type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915\nsize=1MiB, type=3B8F8425-20E0-4F3B-907F-1A25A76F98E8, attrs=\"GUID:63\"\n"

func TestGPT(t *testing.T) {
	t.Parallel()
	f, size := image(t, "sfdisk", table, "-q")
	check := func() {
		t.Helper()
		d, err := Read(f, size)
		if err != nil {
			t.Fatal(err)
		}
		if d.Table != TableGPT || len(d.Partitions) != 4 || d.Partitions[1].Label != "r\u00f6\u00f6t" || d.Partitions[1].Size != 4<<20 || d.Partitions[1].Offset != 2<<20 {
			t.Fatalf("got %+v", d)
		}
		plan, err := d.planFor("amd64")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range plan {
			got = append(got, m.Where)
		}
		if s := strings.Join(got, " "); s != "/ /efi /home" || !plan[0].ReadOnly() || plan[0].FSType != "squashfs" {
			t.Errorf("plan is %q, %+v", s, plan[0])
		}
		if _, err := d.planFor("s390x"); !errors.Is(err, ErrNoRoot) {
			t.Errorf("other architecture: %v", err)
		}
	}
	f.WriteAt([]byte("hsqs"), 2<<20)
	check()
	f.WriteAt(make([]byte, 512), 512) // the first header is gone: the backup serves
	check()
	f.WriteAt(make([]byte, 512), size-512)
	if _, err := Read(f, size); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no header at all: %v", err)
	}
}

func TestMBR(t *testing.T) {
	t.Parallel()
	f, size := image(t, "sfdisk", "label: dos\nsize=1MiB, type=c\nsize=4MiB, type=83, bootable\n", "-q")
	f.WriteAt([]byte("XFSB"), 2<<20)
	d, err := Read(f, size)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := d.Plan()
	if err != nil || len(plan) != 1 || plan[0].Number != 2 || plan[0].FSType != "xfs" {
		t.Errorf("got %+v, %v", plan, err)
	}
}

func TestBare(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		tool string
		args []string
		want string
	}{
		{"mkfs.ext4", []string{"-q", "-F"}, "ext4"}, {"mkfs.ext2", []string{"-q", "-F"}, "ext2"}, {"mkfs.vfat", nil, "vfat"}, {"mkswap", []string{"-q"}, "swap"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			t.Parallel()
			f, size := image(t, tt.tool, tt.args...)
			d, err := Read(f, size)
			if err != nil || d.Table != TableNone || d.Partitions[0].FSType != tt.want {
				t.Errorf("got %+v, %v", d, err)
			}
		})
	}
	f, size := image(t, "")
	if _, err := Read(f, size); !errors.Is(err, ErrNotImage) {
		t.Errorf("zeros: %v", err)
	}
	if _, err := Read(bytes.NewReader(nil), 0); !errors.Is(err, ErrNotImage) {
		t.Errorf("nothing: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	img, _ := image(f, "sfdisk", table, "-q")
	head := make([]byte, 40<<10)
	img.ReadAt(head, 0)
	f.Add(head)
	f.Add([]byte("hsqs"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, p := range d.Partitions {
			if p.Offset < 0 || p.Size <= 0 || p.Offset+p.Size > int64(len(b)) {
				t.Fatalf("partition outside of the image: %+v", p)
			}
		}
		_, _ = d.Plan()
	})
}
