package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// varlinkReplyLimit bounds a reply, which comes from a program we don't know.
const varlinkReplyLimit = 1 << 20

// maxVarlinkFiles is how many files one read takes; the kernel closes more.
const maxVarlinkFiles = 16

// VarlinkError is an error that a varlink service answered with.
type VarlinkError struct{ Name string }

func (e *VarlinkError) Error() string {
	return e.Name[strings.LastIndexByte(e.Name, '.')+1:]
}

// CallVarlink makes one call of a varlink method at a socket of this host and
// stores the reply's parameters in reply, if it is not nil
// (https://varlink.org/Method-Call). An error reply is a *VarlinkError.
func CallVarlink(ctx context.Context, address, method string, parameters, reply any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := DialVarlink(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	files, err := conn.Call(ctx, method, parameters, reply)
	closeAll(files)
	return err
}

// VarlinkConn is a connection to a varlink service of this host. It is for one
// call after another, by one goroutine.
type VarlinkConn struct{ sock *net.UnixConn }

// DialVarlink connects to a service's socket: an absolute path, with "unix:"
// before it or not.
func DialVarlink(ctx context.Context, address string) (*VarlinkConn, error) {
	path := strings.TrimPrefix(address, "unix:")
	if path == "" || path[0] != '/' {
		return nil, fmt.Errorf("connect to %q: want the absolute path of a socket", address)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var dialer net.Dialer
	sock, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return &VarlinkConn{sock.(*net.UnixConn)}, nil
}

// Close hangs up.
func (c *VarlinkConn) Close() { _ = c.sock.Close() }

// Call calls a method, as CallVarlink, and passes the files that are to be sent
// with it; parameters name them by their index, as systemd does it
// (sd_varlink_push_fd(3)). What the service has passed with its reply is returned
// without an error only, and is the caller's to close. It waits as long as a person
// may need to answer polkit.
func (c *VarlinkConn) Call(ctx context.Context, method string, parameters, reply any, send ...*os.File) ([]*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := c.sock.SetDeadline(deadline); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.sock.Close() })()
	if parameters == nil {
		parameters = struct{}{}
	}
	call, err := json.Marshal(map[string]any{"method": method, "parameters": parameters})
	if err != nil {
		return nil, err
	}
	var oob []byte
	if len(send) > 0 {
		fds := make([]int, len(send))
		for i, f := range send {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.sock.WriteMsgUnix(append(call, 0), oob, nil)
	if err == nil && n <= len(call) {
		_, err = c.sock.Write(append(call, 0)[n:])
	}
	if err != nil {
		return nil, err
	}
	data, files, err := c.receive()
	if err == nil {
		err = decodeReply(method, data, reply)
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

// receive reads one message and the files that come with it.
func (c *VarlinkConn) receive() (message []byte, files []*os.File, err error) {
	buf := make([]byte, 64<<10)
	oob := make([]byte, unix.CmsgSpace(4*maxVarlinkFiles))
	for {
		n, oobn, _, _, err := c.sock.ReadMsgUnix(buf, oob)
		files = append(files, sys.ControlFiles(oob[:oobn], "varlink")...)
		if n == 0 && (err == nil || errors.Is(err, io.EOF)) {
			return nil, files, unix.ECONNRESET
		}
		if err != nil {
			return nil, files, err
		}
		if end := bytes.IndexByte(buf[:n], 0); end >= 0 {
			return append(message, buf[:end]...), files, nil
		}
		if message = append(message, buf[:n]...); len(message) > varlinkReplyLimit {
			return nil, files, fmt.Errorf("read reply: too long: more than %d bytes", varlinkReplyLimit)
		}
	}
}

// decodeReply stores what a reply has, or returns the error that it is.
func decodeReply(method string, data []byte, reply any) error {
	var answer struct {
		Error      string          `json:"error"`
		Parameters json.RawMessage `json:"parameters"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return fmt.Errorf("read reply of %s: %w", method, err)
	}
	if answer.Error != "" {
		return &VarlinkError{answer.Error}
	}
	if reply == nil || len(answer.Parameters) == 0 {
		return nil
	}
	return json.Unmarshal(answer.Parameters, reply)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
