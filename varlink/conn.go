package varlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// maxFiles is how many descriptors one message can carry (unix(7), SCM_MAX_FD).
const maxFiles = 253

// Call is one call to a method. Its methods are for the handler's goroutine.
type Call struct {
	Method string // qualified
	Params *Params
	More   bool // the caller takes more than one reply
	Oneway bool // the caller takes no reply at all
	Peer   *Peer

	conn  *conn
	files []*os.File
}

// PassFile adds a file to the next reply and returns its index there, which
// the reply's parameters then name. The call owns file from here on.
func (c *Call) PassFile(file *os.File) int {
	c.files = append(c.files, file)
	return len(c.files) - 1
}

// Continue sends a reply that another one follows. It fails when the caller
// has not asked for more, or has left.
func (c *Call) Continue(parameters any) error {
	if !c.More {
		return NewError(ErrorExpectedMore)
	}
	return c.send(reply{Parameters: parameters, Continues: true})
}

func (c *Call) send(r reply) error {
	files := c.files
	c.files = nil
	defer func() {
		for _, file := range files {
			_ = file.Close()
		}
	}()
	if c.Oneway {
		return nil
	}
	data, err := r.encode()
	if err != nil {
		return err
	}
	return c.conn.write(data, files)
}

// Stream sends a list: every entry but the last one as a reply that another
// one follows, the last one as the final reply.
type Stream struct {
	call *Call
	last any
	any  bool
}

// Stream starts a list of replies.
func (c *Call) Stream() *Stream { return &Stream{call: c} }

// Add appends one entry.
func (s *Stream) Add(entry any) error {
	if s.any {
		if err := s.call.Continue(s.last); err != nil {
			return err
		}
	}
	s.last, s.any = entry, true
	return nil
}

// End returns what the handler has to return: the last entry, or empty if
// there is none.
func (s *Stream) End(empty error) (any, error) {
	if !s.any {
		return nil, empty
	}
	return s.last, nil
}

type conn struct {
	server *Server
	conn   *net.UnixConn
	wmu    sync.Mutex
}

// write sends one message in one go, so that the descriptors belong to it.
func (c *conn) write(data []byte, files []*os.File) error {
	if len(files) > maxFiles {
		return fmt.Errorf("send varlink reply: %d descriptors, at most %d fit: %w", len(files), maxFiles, unix.ETOOMANYREFS)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.server.cfg.Limits.WriteTimeout)); err != nil {
		return err
	}
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, file := range files {
			fds[i] = int(file.Fd())
		}
		n, _, err := c.conn.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
		if err != nil {
			return err
		}
		data = data[n:]
	}
	if len(data) == 0 {
		return nil
	}
	_, err := c.conn.Write(data)
	return err
}

// serveConn reads calls ahead of the one that runs, so that it notices when
// the caller leaves, and runs them one after the other.
func (s *Server) serveConn(ctx context.Context, uc *net.UnixConn, peer *Peer) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = uc.Close() })
	defer stop()
	defer uc.Close()
	defer peer.close()
	c := &conn{server: s, conn: uc}

	type waiting struct {
		request
		bytes int64
	}
	calls := make(chan waiting, s.cfg.Limits.PipelinedCalls)
	// All calls that are read and not yet answered, the one that runs included,
	// are no longer than the longest may be.
	limit := int64(s.cfg.Limits.MessageBytes)
	budget := semaphore.NewWeighted(limit)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer cancel()
		err := readMessages(uc, s.cfg.Limits.MessageBytes, func(message []byte) error {
			size := min(int64(len(message)), limit)
			if err := budget.Acquire(ctx, size); err != nil {
				return err
			}
			req, err := parseRequest(message)
			if err != nil {
				return err
			}
			select {
			case calls <- waiting{req, size}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		close(calls)
		if errors.Is(err, io.EOF) {
			// Maybe only its sending side is shut: what it has asked for is
			// still done, unless it closes the socket meanwhile.
			waitHangUp(uc)
		}
	})
	for req := range calls {
		if !s.dispatch(ctx, c, peer, req.request) || ctx.Err() != nil {
			break
		}
		budget.Release(req.bytes)
	}
	cancel()
	_ = uc.Close()
	reader.Wait()
}

// readMessages calls f with each message of the stream, without its NUL. It
// returns the error of f, what is wrong with the stream, or io.EOF at its end.
func readMessages(uc *net.UnixConn, limit int, f func([]byte) error) error {
	buf := make([]byte, 0, 2048)
	for {
		if len(buf) == cap(buf) {
			if len(buf) > limit {
				return fmt.Errorf("read varlink call: longer than %d bytes", limit)
			}
			grown := make([]byte, len(buf), 2*cap(buf))
			copy(grown, buf)
			buf = grown
		}
		n, err := uc.Read(buf[len(buf):cap(buf)])
		scanned := len(buf)
		buf = buf[:len(buf)+n]
		start := 0
		for {
			i := bytes.IndexByte(buf[scanned:], 0)
			if i < 0 {
				break
			}
			if scanned+i-start > limit {
				return fmt.Errorf("read varlink call: longer than %d bytes", limit)
			}
			if err := f(buf[start : scanned+i]); err != nil {
				return err
			}
			scanned += i + 1
			start = scanned
		}
		if start > 0 {
			rest := copy(buf, buf[start:])
			buf = buf[:rest]
			if cap(buf) > 64<<10 && rest < 2048 {
				buf = append(make([]byte, 0, 2048), buf...)
			}
		}
		if len(buf) > limit {
			return fmt.Errorf("read varlink call: longer than %d bytes", limit)
		}
		if err != nil {
			return err
		}
	}
}

// waitHangUp waits until the peer has closed its socket, or we ours.
func waitHangUp(uc *net.UnixConn) {
	raw, err := uc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		return err != nil && !errors.Is(err, unix.EINTR) || n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
}

// dispatch runs one call; it reports whether the connection can go on.
func (s *Server) dispatch(ctx context.Context, c *conn, peer *Peer, req request) bool {
	call := &Call{
		Method: req.method, Params: newParams(req.parameters),
		More: req.more, Oneway: req.oneway, Peer: peer, conn: c,
	}
	result, err := s.run(ctx, call, req)
	r := reply{Parameters: result}
	if err != nil {
		for _, file := range call.files {
			_ = file.Close()
		}
		call.files = nil
		e := replyFor(err)
		r = reply{Error: e.Name}
		if e.Parameters != nil {
			r.Parameters = e.Parameters
		}
		if e.Name == ErrorSystem && s.cfg.Log != nil {
			s.cfg.Log.WithError(err).WithField("method", call.Method).Debug("varlink call failed")
		}
	}
	return call.send(r) == nil
}

func (s *Server) run(ctx context.Context, call *Call, req request) (any, error) {
	if req.upgrade {
		return nil, InvalidParameter("upgrade")
	}
	name, short := splitMethod(req.method)
	method, ok := s.interfaces[name].Methods[short]
	if !ok {
		return nil, &Error{ErrorMethodNotFound, map[string]any{"method": req.method}}
	}
	if method.NeedsMore && !call.More {
		return nil, NewError(ErrorExpectedMore)
	}
	return method.Handler(ctx, call)
}
