package stage

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

func TestSealedSelfIsTheProgram(t *testing.T) {
	needRoot(t)
	want, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for name, seal := range map[string]func() (*os.File, error){"overlay": overlaidSelf, "memory": copiedSelf, "either": SealedSelf()} {
		t.Run(name, func(t *testing.T) {
			f, err := seal()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			// As a machine's root does by /proc/1/exe.
			reopened := procFD(int(f.Fd()))
			for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC} {
				fd, err := unix.Open(reopened, flags|unix.O_CLOEXEC, 0)
				if err == nil {
					_, err = unix.Write(fd, []byte("x"))
					_ = unix.Close(fd)
				}
				if err == nil {
					t.Errorf("opened with %#x and written to", flags)
				}
			}
			if err := os.Truncate(reopened, 0); err == nil {
				t.Error("truncated")
			}
			got, err := os.ReadFile(reopened)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes (%v), want the program's %d", len(got), err, len(want))
			}
		})
	}
}

func TestOverlaidSelfIsNotWhatTookItsPlace(t *testing.T) {
	needRoot(t)
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	// As an upgrade does. The old file goes on under another name, whose name
	// /proc/self/exe does not follow: it is that of a link that was removed.
	aside := filepath.Join(filepath.Dir(exe), "aside")
	if err := os.Link(exe, aside); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Rename(aside, exe); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(exe+".new", program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(exe+".new", exe); err != nil {
		t.Fatal(err)
	}
	if f, err := overlaidSelf(); err == nil {
		_ = f.Close()
		t.Error("another file was taken for the program")
	}
}

func TestSelfSeenOnlyByItself(t *testing.T) {
	var self unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &self); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*unix.Stat_t){
		"another file":             func(st *unix.Stat_t) { st.Ino++ },
		"another size":             func(st *unix.Stat_t) { st.Size++ },
		"changed meanwhile":        func(st *unix.Stat_t) { st.Ctim.Nsec++ },
		"written meanwhile":        func(st *unix.Stat_t) { st.Mtim.Sec++ },
		"not for a machine's root": func(st *unix.Stat_t) { st.Mode &^= 0o005 },
	} {
		seen := self
		if !sameProgram(&self, &seen) {
			t.Fatal("the program is not itself")
		}
		if change(&seen); sameProgram(&self, &seen) {
			t.Errorf("%s: taken for the program", name)
		}
	}
}
