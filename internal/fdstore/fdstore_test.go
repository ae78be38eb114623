package fdstore

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// manager listens as a service manager does.
func manager(t *testing.T) (string, func() (state string, fds []int)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return path, func() (string, []int) {
		t.Helper()
		data, oob := make([]byte, 4096), make([]byte, 4096)
		n, m, _, _, err := conn.ReadMsgUnix(data, oob)
		if err != nil {
			t.Fatal(err)
		}
		var fds []int
		messages, err := unix.ParseSocketControlMessage(oob[:m])
		if err != nil {
			t.Fatal(err)
		}
		for i := range messages {
			got, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				t.Fatal(err)
			}
			fds = append(fds, got...)
		}
		return string(data[:n]), fds
	}
}

func TestKeepAndDrop(t *testing.T) {
	address, read := manager(t)
	s, others := New(address, nil)
	if len(others) != 0 {
		t.Errorf("files out of nothing: %v", others)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Keep("web", int(f.Fd()), int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	state, fds := read()
	if want := "FDSTORE=1\nFDNAME=keep-web"; state != want || len(fds) != 2 {
		t.Errorf("got %q with %d descriptors, want %q with 2", state, len(fds), want)
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	if err := s.Keep("nothing"); err != nil {
		t.Fatal(err)
	}
	if err := s.Drop("web"); err != nil {
		t.Fatal(err)
	}
	if state, fds := read(); state != "FDSTOREREMOVE=1\nFDNAME=keep-web" || len(fds) != 0 {
		t.Errorf("drop: got %q with %d descriptors", state, len(fds))
	}
}

func TestTake(t *testing.T) {
	address, read := manager(t)
	open := func(name string) *os.File {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), name)
	}
	socket := open("varlink")
	defer socket.Close()
	s, others := New(address, []*os.File{open("keep-a"), socket, open("keep-a"), open("keep-gone")})
	if len(others) != 1 || others[0] != socket {
		t.Errorf("others: got %v, want the socket", others)
	}
	got := s.Take("a")
	if len(got) != 2 {
		t.Errorf("got %d files of a, want 2", len(got))
	}
	for _, f := range got {
		_ = f.Close()
	}
	if again := s.Take("a"); again != nil {
		t.Errorf("taken twice: %v", again)
	}
	if err := s.DropRest(); err != nil {
		t.Fatal(err)
	}
	if state, _ := read(); state != "FDSTOREREMOVE=1\nFDNAME=keep-gone" {
		t.Errorf("the rest: got %q", state)
	}
}

func TestNobodyKeeps(t *testing.T) {
	s, _ := New("", nil)
	if err := s.Keep("x", 0); err != nil {
		t.Error(err)
	}
	if err := s.Drop("x"); err != nil {
		t.Error(err)
	}
	if s, _ = New("/nonexistent/notify", nil); s.Drop("x") == nil {
		t.Error("a service manager that is not there was told")
	}
}
