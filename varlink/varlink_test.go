package varlink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

func testServer(t testing.TB, limits Limits) (*Server, string) {
	t.Helper()
	left := make(chan struct{}, 16)
	s := NewServer(Config{
		Vendor: "v", Product: "p", Version: "1", URL: "u", Limits: limits, Log: logrus.New(),
		Interfaces: []Interface{{Name: "test.x", Description: "interface test.x\n", Methods: map[string]Method{
			"Echo": {Handler: func(_ context.Context, c *Call) (any, error) {
				text := c.Params.RequiredString("text")
				if err := c.Params.Done(); err != nil {
					return nil, err
				}
				return map[string]string{"text": text}, nil
			}},
			"Count": {NeedsMore: true, Handler: func(_ context.Context, c *Call) (any, error) {
				stream := c.Stream()
				for i := range 3 {
					if err := stream.Add(map[string]int{"n": i}); err != nil {
						return nil, err
					}
				}
				return stream.End(NewError("test.x.None"))
			}},
			"File": {Handler: func(_ context.Context, c *Call) (any, error) {
				f, err := os.Open("/dev/null")
				if err != nil {
					return nil, err
				}
				return map[string]int{"fd": c.PassFile(f)}, nil
			}},
			"Fail": {Handler: func(context.Context, *Call) (any, error) { return nil, fmt.Errorf("x: %w", unix.EBUSY) }},
			"Wait": {Handler: func(ctx context.Context, _ *Call) (any, error) {
				left <- struct{}{}
				<-ctx.Done()
				left <- struct{}{}
				return nil, ctx.Err()
			}},
			"Who": {Handler: func(_ context.Context, c *Call) (any, error) {
				p, err := c.Peer.Process()
				if err != nil {
					return nil, err
				}
				return map[string]int{"pid": p.PID(), "uid": int(c.Peer.UID)}, nil
			}},
		}}},
	})
	path := filepath.Join(t.TempDir(), "sub/socket")
	l, err := Listen(path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := s.Connections(); n != 0 {
			t.Errorf("%d connections are counted after the end", n)
		}
	})
	t.Cleanup(func() { close(left) })
	waiters = left
	return s, path
}

var waiters chan struct{}

type client struct {
	*net.UnixConn
	r *bufio.Reader
}

func dial(t testing.TB, path string) *client {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	uc := c.(*net.UnixConn)
	return &client{uc, bufio.NewReader(uc)}
}

func (c *client) send(t testing.TB, text string) {
	t.Helper()
	if _, err := c.Write(append([]byte(text), 0)); err != nil {
		t.Fatal(err)
	}
}

func (c *client) receive(t testing.TB) string {
	t.Helper()
	text, err := c.r.ReadString(0)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(text, "\x00")
}

func TestCalls(t *testing.T) {
	_, path := testServer(t, Limits{})
	tests := []struct {
		name, in string
		want     []string
	}{
		{"echo", `{"method":"test.x.Echo","parameters":{"text":"a<b"}}`, []string{`{"parameters":{"text":"a<b"}}`}},
		{"missing parameter", `{"method":"test.x.Echo"}`, []string{`{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"text"}}`}},
		{"null parameter", `{"method":"test.x.Echo","parameters":{"text":null}}`, []string{`{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"text"}}`}},
		{"wrong type", `{"method":"test.x.Echo","parameters":{"text":5}}`, []string{`{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"text"}}`}},
		{"wrong case", `{"method":"test.x.Echo","parameters":{"text":"a","Text":"b"}}`, []string{`{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"Text"}}`}},
		{"NUL in string", `{"method":"test.x.Echo","parameters":{"text":"a\u0000b"}}`, []string{`{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"text"}}`}},
		{"unknown method", `{"method":"test.x.Nope"}`, []string{`{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"test.x.Nope"}}`}},
		{"unknown interface", `{"method":"nope"}`, []string{`{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"nope"}}`}},
		{"needs more", `{"method":"test.x.Count"}`, []string{`{"error":"org.varlink.service.ExpectedMore","parameters":{}}`}},
		{"more", `{"method":"test.x.Count","more":true}`, []string{
			`{"parameters":{"n":0},"continues":true}`, `{"parameters":{"n":1},"continues":true}`, `{"parameters":{"n":2}}`,
		}},
		{"upgrade", `{"method":"test.x.Echo","parameters":{"text":"a"},"upgrade":true}`, []string{`{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"upgrade"}}`}},
		{"errno", `{"method":"test.x.Fail"}`, []string{`{"error":"io.systemd.System","parameters":{"errno":16,"errnoName":"EBUSY","origin":"linux"}}`}},
		{"info", `{"method":"org.varlink.service.GetInfo"}`, []string{`{"parameters":{"vendor":"v","product":"p","version":"1","url":"u","interfaces":["org.varlink.service","test.x"]}}`}},
		{"description", `{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"test.x"}}`, []string{`{"parameters":{"description":"interface test.x\n"}}`}},
		{"no description", `{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"a.b"}}`, []string{`{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"a.b"}}`}},
		{"who", `{"method":"test.x.Who"}`, []string{fmt.Sprintf(`{"parameters":{"pid":%d,"uid":%d}}`, os.Getpid(), os.Getuid())}},
	}
	c := dial(t, path)
	for _, tt := range tests {
		c.send(t, tt.in)
		for _, want := range tt.want {
			if got := c.receive(t); got != want {
				t.Errorf("%s:\n got %s\nwant %s", tt.name, got, want)
			}
		}
	}
}

func TestOnewayAndPipelining(t *testing.T) {
	_, path := testServer(t, Limits{})
	c := dial(t, path)
	var b strings.Builder
	for i := range 100 {
		fmt.Fprintf(&b, `{"method":"test.x.Echo","parameters":{"text":"silent"},"oneway":true}`+"\x00"+`{"method":"test.x.Echo","parameters":{"text":"%d"}}`+"\x00", i)
	}
	go func() { _, _ = c.Write([]byte(b.String())) }()
	for i := range 100 {
		if got, want := c.receive(t), fmt.Sprintf(`{"parameters":{"text":"%d"}}`, i); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
}

func TestPassFile(t *testing.T) {
	_, path := testServer(t, Limits{})
	c := dial(t, path)
	c.send(t, `{"method":"test.x.File"}`)
	data, oob := make([]byte, 4096), make([]byte, 1024)
	n, oobn, _, _, err := c.ReadMsgUnix(data, oob)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"parameters":{"fd":0}}` + "\x00"; string(data[:n]) != want {
		t.Errorf("got %q, want %q", data[:n], want)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("got %d control messages, %v; want 1", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("got descriptors %v, %v; want 1", fds, err)
	}
	_ = unix.Close(fds[0])
}

func TestProtocolErrorsHangUp(t *testing.T) {
	_, path := testServer(t, Limits{MessageBytes: 4096})
	for _, in := range []string{
		"", "{", "[]", "null", `"x"`, "{}", `{"method":5}`, `{"method":"a.B","x":1}`, `{"method":"a.B","parameters":[]}`,
		`{"method":"a.B","more":"yes"}`, `{"method":"a.B","more":true,"oneway":true}`, "{\"method\":\"\xff\"}",
		`{"method":"test.x.Echo","parameters":{"text":"` + strings.Repeat("x", 5000) + `"}}`,
	} {
		c := dial(t, path)
		_, _ = c.Write(append([]byte(in), 0))
		if got, err := c.r.ReadString(0); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%.40q: got %q, %v; want the end", in, got, err)
		}
	}
}

func TestHalfCloseStillAnswers(t *testing.T) {
	_, path := testServer(t, Limits{})
	c := dial(t, path)
	c.send(t, `{"method":"test.x.Echo","parameters":{"text":"last"}}`)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, want := c.receive(t), `{"parameters":{"text":"last"}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end", err)
	}
}

func TestLeavingCancels(t *testing.T) {
	_, path := testServer(t, Limits{})
	for _, half := range []bool{false, true} {
		c := dial(t, path)
		c.send(t, `{"method":"test.x.Wait"}`)
		<-waiters
		if half {
			_ = c.CloseWrite()
		}
		_ = c.Close()
		select {
		case <-waiters:
		case <-time.After(10 * time.Second):
			t.Fatalf("the handler goes on after its caller has left (half-closed before: %v)", half)
		}
	}
}

func TestPerUIDLimit(t *testing.T) {
	s := NewServer(Config{Limits: Limits{Connections: 8, PerUID: 3}, Log: logrus.New()})
	admitted := func(uid uint32, n int) (ok int) {
		for range n {
			if s.admit(uid) {
				ok++
			}
		}
		return ok
	}
	if got := admitted(1000, 5); got != 3 {
		t.Errorf("one user: got %d connections, want 3", got)
	}
	if got := admitted(1001, 5); got != 3 {
		t.Errorf("second user: got %d connections, want 3", got)
	}
	if got := admitted(1002, 5); got != 0 {
		t.Errorf("third user: got %d connections, want 0: a quarter is root's", got)
	}
	if got := admitted(0, 5); got != 2 {
		t.Errorf("root: got %d connections, want 2", got)
	}
	s.leave(1000)
	if got := admitted(1002, 1); got != 1 {
		t.Errorf("after one has left: got %d, want 1", got)
	}
}

func TestListenReplacesSocketsOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	for range 2 {
		l, err := Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := Link("s", filepath.Join(dir, "l")); err != nil {
		t.Error(err)
	}
	if err := Link("s", filepath.Join(dir, "l")); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, 0o600); err == nil {
		t.Error("a regular file was replaced")
	}
	if err := Link("s", file); err == nil {
		t.Error("a regular file was replaced by a link")
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"method":"a.B","parameters":{"x":[1,"2",null,{"y":true}]},"more":true}`))
	f.Add([]byte(`{"method":"a.B","oneway":true,"upgrade":true}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := parseRequest(data)
		if err != nil {
			return
		}
		if req.method == "" || !json.Valid(data) {
			t.Errorf("accepted %q", data)
		}
		p := newParams(req.parameters)
		for name := range req.parameters {
			_, _, _, _, _ = p.String(name), p.Int(name), p.Bool(name), p.Strings(name), p.Uint32(name)
			_, _, _ = p.Object(name), p.Objects(name), p.Ints(name)
		}
		_ = p.Done()
	})
}

func BenchmarkEcho(b *testing.B) {
	_, path := testServer(b, Limits{})
	c := dial(b, path)
	_ = c.SetDeadline(time.Time{})
	b.ReportAllocs()
	for b.Loop() {
		c.send(b, `{"method":"test.x.Echo","parameters":{"text":"a"}}`)
		c.receive(b)
	}
}
