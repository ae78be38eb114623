package ptyfwd

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

func TestScan(t *testing.T) {
	t.Parallel()
	start := time.Unix(1000, 0)
	type typed struct {
		text string
		at   time.Duration
	}
	for _, tt := range []struct {
		name  string
		typed []typed
		verbs bool
		want  Hotkey
		used  int // of the last chunk
	}{
		{"nothing", []typed{{"abc", 0}}, true, HotkeyNone, 3},
		{"at once", []typed{{"\x1d\x1d\x1d", 0}}, true, HotkeyDisconnect, 3},
		{"key by key", []typed{{"\x1d", 0}, {"\x1d", 300 * time.Millisecond}, {"\x1dxx", 900 * time.Millisecond}}, false, HotkeyDisconnect, 1},
		{"too slow", []typed{{"\x1d", 0}, {"\x1d", 300 * time.Millisecond}, {"\x1d", 1100 * time.Millisecond}}, true, HotkeyNone, 1},
		{"interrupted", []typed{{"\x1d\x1da\x1d", 0}}, true, HotkeyNone, 4},
		{"reboot", []typed{{"\x1d\x1dr", 0}}, true, HotkeyReboot, 3},
		{"poweroff", []typed{{"a\x1d\x1d", 0}, {"pq", time.Second}}, true, HotkeyPoweroff, 1},
		{"verbs off", []typed{{"\x1d\x1dr", 0}}, false, HotkeyNone, 3},
		{"one is not enough", []typed{{"\x1dr", 0}}, true, HotkeyNone, 2},
		{"verb too late", []typed{{"\x1d\x1d", 0}, {"r", 2 * time.Second}}, true, HotkeyNone, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := scanner{verbs: tt.verbs}
			var got Hotkey
			var used int
			for _, c := range tt.typed {
				got, used = s.scan([]byte(c.text), start.Add(c.at))
			}
			if got != tt.want || used != tt.used {
				t.Errorf("got %v after %d bytes, want %v after %d", got, used, tt.want, tt.used)
			}
		})
	}
}

func FuzzScan(f *testing.F) {
	f.Add([]byte("\x1d\x1d\x1d"), uint(1))
	f.Add([]byte("a\x1d\x1dr\x1d\x1dp"), uint(2))
	f.Fuzz(func(t *testing.T, b []byte, split uint) {
		if len(b) == 0 {
			return
		}
		now := time.Unix(0, 0)
		find := func(parts ...[]byte) (Hotkey, int) {
			s := scanner{verbs: true}
			off := 0
			for _, p := range parts {
				k, n := s.scan(p, now)
				if n < 0 || n > len(p) {
					t.Fatalf("used %d of %d bytes", n, len(p))
				}
				off += n
				if k != HotkeyNone {
					return k, off
				}
			}
			return HotkeyNone, off
		}
		k1, n1 := find(b)
		i := int(split % uint(len(b)))
		k2, n2 := find(b[:i], b[i:])
		if k1 != k2 || n1 != n2 {
			t.Fatalf("split at %d: got %v/%d, want %v/%d", i, k2, n2, k1, n1)
		}
	})
}

// rig is a forwarder between two pipes and a PTY.
type rig struct {
	slave   *os.File
	typing  *os.File
	screen  *os.File
	fwd     *Forwarder
	results chan Result
	cancel  context.CancelFunc
}

func newRig(t *testing.T, opts Options) *rig {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatalf("open pty: %v", err)
	}
	tio, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	tio.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	tio.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, tio); err != nil {
		t.Fatal(err)
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	opts.Stdin, opts.Stdout = inR, outW
	f, err := New(master, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	r := &rig{slave: slave, typing: inW, screen: outR, fwd: f, results: make(chan Result, 1), cancel: cancel}
	go func() {
		res, err := f.Run(ctx)
		if err != nil {
			t.Errorf("run: %v", err)
		}
		r.results <- res
		outW.Close()
	}()
	t.Cleanup(func() {
		cancel()
		for _, c := range []io.Closer{master, slave, inR, inW, outR} {
			c.Close()
		}
	})
	return r
}

func (r *rig) result(t *testing.T) Result {
	t.Helper()
	select {
	case res := <-r.results:
		return res
	case <-time.After(10 * time.Second):
		t.Fatal("forwarding did not end")
		return Result{}
	}
}

func readN(t *testing.T, f *os.File, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(f, b); err != nil {
		t.Fatalf("read: %v", err)
	}
	return string(b)
}

func TestForwardBothWays(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	io.WriteString(r.typing, "hello")
	if got := readN(t, r.slave, 5); got != "hello" {
		t.Errorf("machine got %q", got)
	}
	io.WriteString(r.slave, "world")
	if got := readN(t, r.screen, 5); got != "world" {
		t.Errorf("person got %q", got)
	}
	r.slave.Close()
	res := r.result(t)
	if !res.Hangup || res.Disconnected || res.LastByte != 'd' {
		t.Errorf("got %+v", res)
	}
	if rest, _ := io.ReadAll(r.screen); string(rest) != "\n" {
		t.Errorf("last line was finished with %q", rest)
	}
}

func TestHotkeys(t *testing.T) {
	t.Parallel()
	keys := make(chan Hotkey, 4)
	r := newRig(t, Options{IgnoreVHangup: true, OnHotkey: func(k Hotkey) { keys <- k }})
	io.WriteString(r.typing, "a\x1d\x1dpb")
	if k := <-keys; k != HotkeyPoweroff {
		t.Errorf("got %v, want poweroff", k)
	}
	if got := readN(t, r.slave, 4); got != "a\x1d\x1db" {
		t.Errorf("machine got %q", got)
	}
	io.WriteString(r.typing, "\x1d\x1dr")
	if k := <-keys; k != HotkeyReboot {
		t.Errorf("got %v, want reboot", k)
	}
	io.WriteString(r.typing, "\x1d\x1d\x1d")
	if res := r.result(t); !res.Disconnected {
		t.Errorf("got %+v", res)
	}
}

func TestIgnoreVHangup(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{IgnoreVHangup: true})
	name := r.slave.Name()
	for _, word := range []string{"first", "secon", "third"} {
		io.WriteString(r.slave, word)
		if got := readN(t, r.screen, 5); got != word {
			t.Errorf("got %q, want %q", got, word)
		}
		r.slave.Close()
		s, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		r.slave = s
	}
	r.slave.Close()
	select {
	case res := <-r.results:
		t.Fatalf("ended at a hangup it should ignore: %+v", res)
	case <-time.After(50 * time.Millisecond):
	}
	r.fwd.SetIgnoreVHangup(false)
	if res := r.result(t); !res.Hangup {
		t.Errorf("got %+v", res)
	}
}

func TestInitialVHangup(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{IgnoreInitialVHangup: true})
	name := r.slave.Name()
	r.slave.Close()
	s, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(s, "x\n")
	if got := readN(t, r.screen, 2); got != "x\n" {
		t.Errorf("got %q", got)
	}
	s.Close()
	if res := r.result(t); !res.Hangup {
		t.Errorf("got %+v", res)
	}
}

func TestBlockedScreen(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	go io.Copy(r.slave, strings.NewReader(strings.Repeat("x", 1<<20)))
	buf := make([]byte, 1)
	if _, err := r.screen.Read(buf); err != nil { // something has come; now nobody reads
		t.Fatal(err)
	}
	io.WriteString(r.typing, "\x1d\x1d\x1d")
	if res := r.result(t); !res.Disconnected {
		t.Errorf("got %+v", res)
	}
}

func TestDrainAtEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{IgnoreVHangup: true, KeepLastLine: true})
	want := strings.Repeat("0123456789", 300)
	io.WriteString(r.slave, want)
	r.cancel()
	got, err := io.ReadAll(r.screen)
	if err != nil || string(got) != want {
		t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
	}
}

func TestStdinEOF(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	io.WriteString(r.typing, "bye")
	r.typing.Close()
	if res := r.result(t); !res.StdinEOF {
		t.Errorf("got %+v", res)
	}
	if got := readN(t, r.slave, 3); got != "bye" {
		t.Errorf("got %q", got)
	}
	on := newRig(t, Options{IgnoreStdinEOF: true})
	on.typing.Close()
	io.WriteString(on.slave, "out\n")
	if got := readN(t, on.screen, 4); got != "out\n" {
		t.Errorf("got %q", got)
	}
	on.slave.Close()
	if res := on.result(t); !res.Hangup {
		t.Errorf("got %+v", res)
	}
}

func TestReaderGone(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	r.screen.Close()
	if res := r.result(t); !res.StdoutClosed {
		t.Errorf("got %+v", res)
	}
}

// TestSizeWithoutTerminal: programs find a terminal of an ordinary size where
// nobody's terminal has one, or of that which the environment names.
func TestSizeWithoutTerminal(t *testing.T) {
	for _, test := range []struct {
		lines, columns string
		want           pty.Winsize
	}{
		{"", "", pty.Winsize{Rows: 24, Cols: 80}},
		{"50", "132", pty.Winsize{Rows: 50, Cols: 132}},
		{"-1", "99999999", pty.Winsize{Rows: 24, Cols: 80}},
	} {
		t.Setenv("LINES", test.lines)
		t.Setenv("COLUMNS", test.columns)
		r := newRig(t, Options{})
		io.WriteString(r.slave, "x")
		_ = readN(t, r.screen, 1) // it forwards, so the size is set
		if got, err := pty.GetsizeFull(r.slave); err != nil || *got != test.want {
			t.Errorf("LINES=%q COLUMNS=%q: got %+v, error %v; want %+v", test.lines, test.columns, got, err, test.want)
		}
		r.slave.Close()
		_ = r.result(t)
	}
}

// TestTerminal uses a real terminal as the person's side: raw while it runs, as
// before afterwards, window size passed on.
func TestTerminal(t *testing.T) {
	t.Parallel()
	person, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer person.Close()
	defer tty.Close()
	if err := pty.Setsize(person, &pty.Winsize{Rows: 33, Cols: 77}); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	done := make(chan Result, 1)
	go func() {
		res, err := Forward(t.Context(), master, Options{Stdin: tty, Stdout: tty})
		if err != nil {
			t.Errorf("forward: %v", err)
		}
		done <- res
	}()
	io.WriteString(slave, "hi")
	if got := readN(t, person, 2); got != "hi" {
		t.Errorf("got %q", got)
	}
	now, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if now.Lflag&unix.ICANON != 0 || now.Oflag&unix.OPOST != 0 {
		t.Error("terminal is not raw")
	}
	if ws, err := pty.GetsizeFull(slave); err != nil || ws.Rows != 33 || ws.Cols != 77 {
		t.Errorf("size is %+v, %v; want 33 rows of 77", ws, err)
	}
	slave.Close()
	<-done
	if got := readN(t, person, 2); got != "\r\n" {
		t.Errorf("line ended with %q", got)
	}
	after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("terminal was not restored: %+v, want %+v (%v)", after, before, err)
	}
}

func TestPollable(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if !Pollable(r) {
		t.Error("a pipe is not")
	}
	for _, name := range []string{os.DevNull, "/etc/passwd"} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if Pollable(f) {
			t.Errorf("%s is", name)
		}
	}
}
