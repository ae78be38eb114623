package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"
)

// varlinkReplyLimit bounds a reply, which comes from a program we don't know.
const varlinkReplyLimit = 1 << 20

// VarlinkError is an error that a varlink service answered with.
type VarlinkError struct{ Name string }

func (e *VarlinkError) Error() string {
	return e.Name[strings.LastIndexByte(e.Name, '.')+1:]
}

// CallVarlink makes one call of a varlink method at a socket of this host and
// stores the reply's parameters in reply, if it is not nil
// (https://varlink.org/Method-Call). An error reply is a *VarlinkError.
func CallVarlink(ctx context.Context, address, method string, parameters, reply any) error {
	path := strings.TrimPrefix(address, "unix:")
	if path == "" || path[0] != '/' {
		return fmt.Errorf("call %s at %q: want the absolute path of a socket", method, address)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var dialer net.Dialer
	sock, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer sock.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := sock.SetDeadline(deadline); err != nil {
			return err
		}
	}
	defer context.AfterFunc(ctx, func() { _ = sock.Close() })()
	if parameters == nil {
		parameters = struct{}{}
	}
	call, err := json.Marshal(map[string]any{"method": method, "parameters": parameters})
	if err != nil {
		return err
	}
	if _, err := sock.Write(append(call, 0)); err != nil {
		return err
	}
	scanner := bufio.NewScanner(sock)
	scanner.Buffer(nil, varlinkReplyLimit)
	scanner.Split(func(data []byte, _ bool) (int, []byte, error) {
		if end := bytes.IndexByte(data, 0); end >= 0 {
			return end + 1, data[:end], nil
		}
		return 0, nil, nil
	})
	if !scanner.Scan() {
		if err := scanner.Err(); err != nil {
			return err
		}
		return unix.ECONNRESET
	}
	var answer struct {
		Error      string          `json:"error"`
		Parameters json.RawMessage `json:"parameters"`
	}
	if err := json.Unmarshal(scanner.Bytes(), &answer); err != nil {
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
