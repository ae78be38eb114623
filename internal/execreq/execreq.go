// Package execreq is what machined and the supervisor of a machine say to each
// other about a program that is to run in it, and what the caller is told about
// that program afterwards. Both ends are of one build; nothing here is meant for
// other programs, but the control lines, which org.machined(5) documents.
package execreq

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir has a socket per machine, named like it, on which its supervisor takes
// requests. Only root may connect.
const Dir = "/run/systemd/nspawn/exec"

// Socket is where a machine's supervisor listens.
func Socket(machine string) string { return filepath.Join(Dir, machine) }

// Request says what is to run. Descriptors go beside it: see Files.
type Request struct {
	Args     []string // the program first: a path inside, or a name that $PATH has
	Env      []string // NAME=VALUE, over what the machine's payload has
	Dir      string   // absolute, inside; "": the user's home, or / without one
	User     string   // name or number, looked up inside; "": root
	Terminal bool     // standard input is one, to be the program's
}

// Taken is the answer to a request that is carried out; any other is the reason why
// it is not.
const Taken = "taken"

// Files is the number of descriptors that a message carries: the request, then
// standard input, output and error, then the control socket.
const Files = 5

// maxRequest bounds a request, in bytes: twice what the kernel lets a program
// have of arguments and environment.
const maxRequest = 12 << 20

// Memfd puts v into a sealed file in memory.
func Memfd(v any) (*os.File, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("exec", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "exec")
	_, err = f.Write(data)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write exec request: %w", err), f.Close())
	}
	return f, nil
}

// Read reads v from the start of a file that Memfd made.
func Read(f *os.File, v any) error {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, maxRequest+1))
	if err != nil {
		return err
	}
	if len(data) > maxRequest {
		return fmt.Errorf("exec request: %w", unix.E2BIG)
	}
	return json.Unmarshal(data, v)
}
