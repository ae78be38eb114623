//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// varlinkPaths are the daemon's sockets.
var varlinkPaths = []string{
	"/run/systemd/machine/io.systemd.Machine",
	"/run/systemd/userdb/io.systemd.Machine",
	"/run/systemd/resolve.hook/io.systemd.Machine",
}

// varlinkConn speaks the protocol by hand, so that it can be broken, too.
type varlinkConn struct {
	net.Conn
	r *bufio.Reader
}

// dialVarlink connects to a socket of the host as root, from outside of it.
func dialVarlink(h *host.Host, path string) (*varlinkConn, error) {
	conn, err := net.DialTimeout("unix", h.Path(path), 5*time.Second)
	if err != nil {
		return nil, err
	}
	return &varlinkConn{conn, bufio.NewReaderSize(conn, 1<<20)}, nil
}

type varlinkReply struct {
	Parameters json.RawMessage `json:"parameters"`
	Error      string          `json:"error"`
	Continues  bool            `json:"continues"`
}

// call returns the last reply, and how long it took.
func (c *varlinkConn) call(name string, parameters any, more bool) (varlinkReply, time.Duration, error) {
	start := time.Now()
	text, err := json.Marshal(map[string]any{"method": name, "parameters": parameters, "more": more})
	if err != nil {
		return varlinkReply{}, 0, err
	}
	_ = c.SetDeadline(start.Add(10 * time.Second))
	if _, err := c.Write(append(text, 0)); err != nil {
		return varlinkReply{}, time.Since(start), err
	}
	for {
		data, err := c.r.ReadBytes(0)
		if err != nil {
			return varlinkReply{}, time.Since(start), err
		}
		var reply varlinkReply
		if err := json.Unmarshal(data[:len(data)-1], &reply); err != nil {
			return reply, time.Since(start), fmt.Errorf("reply %.200q: %w", data, err)
		}
		if !reply.Continues {
			return reply, time.Since(start), nil
		}
	}
}

// varlinkMethod is a method as the interface's own description has it.
type varlinkMethod struct {
	path, name string
	fields     []struct{ name, typ string }
}

var (
	varlinkMethodText = regexp.MustCompile(`(?s)method (\w+)\s*\((.*?)\)\s*->`)
	varlinkFieldText  = regexp.MustCompile(`(\w+):\s*([?\[\]\w]+)`)
	varlinkComment    = regexp.MustCompile(`#[^\n]*`)
)

// varlinkMethods reads what the services at a socket say of themselves.
func varlinkMethods(t *testing.T, h *host.Host, path string) []varlinkMethod {
	t.Helper()
	c, err := dialVarlink(h, path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	reply, _, err := c.call("org.varlink.service.GetInfo", map[string]any{}, false)
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Interfaces []string }
	if err := json.Unmarshal(reply.Parameters, &info); err != nil {
		t.Fatal(err)
	}
	var out []varlinkMethod
	for _, iface := range info.Interfaces {
		reply, _, err := c.call("org.varlink.service.GetInterfaceDescription", map[string]any{"interface": iface}, false)
		if err != nil {
			t.Fatal(err)
		}
		var text struct{ Description string }
		if err := json.Unmarshal(reply.Parameters, &text); err != nil {
			t.Fatal(err)
		}
		for _, m := range varlinkMethodText.FindAllStringSubmatch(varlinkComment.ReplaceAllString(text.Description, ""), -1) {
			one := varlinkMethod{path: path, name: iface + "." + m[1]}
			for _, f := range varlinkFieldText.FindAllStringSubmatch(m[2], -1) {
				one.fields = append(one.fields, struct{ name, typ string }{f[1], f[2]})
			}
			out = append(out, one)
		}
	}
	return out
}

// value makes a value of a type of the interface language.
func (g generator) value(typ string) any {
	switch typ = strings.TrimPrefix(typ, "?"); {
	case strings.HasPrefix(typ, "[]"):
		out := []any{}
		for range g.IntN(4) {
			out = append(out, g.value(typ[2:]))
		}
		return out
	case typ == "int":
		return []any{int64(0), int64(-1), int64(2), int64(15), int64(65536), int64(1) << 31, int64(g.number() >> 1), int64(g.leader)}[g.IntN(8)]
	case typ == "bool":
		return g.IntN(2) == 0
	case typ == "float":
		return g.NormFloat64()
	case typ == "object":
		return map[string]any{g.text(): g.text()}
	case typ == "ProcessId":
		return map[string]any{"pid": g.value("int"), "pidfdId": g.value("int"), "bootId": g.text()}
	case typ == "string":
		return strings.ToValidUTF8(g.text(), "")
	}
	return []string{"no", "yes", "graceful", "tty", "shell", "login", "hidden", "all", "bogus"}[g.IntN(9)]
}

// parameters makes an object of the right fields, or of wrong ones.
func (g generator) parameters(m varlinkMethod, wrong bool) map[string]any {
	out := map[string]any{}
	for _, f := range m.fields {
		if f.name == "filterDomains" || strings.HasPrefix(f.typ, "?") && g.IntN(2) == 0 {
			continue
		}
		out[f.name] = g.value(f.typ)
		if f.name == "name" && g.IntN(2) == 0 {
			out[f.name] = "bb"
		}
	}
	if wrong {
		others := []any{nil, "x", -1, 1.5, true, []any{}, map[string]any{}, []any{[]any{1}}, strings.Repeat("long", 1<<16)}
		switch n := g.IntN(3); {
		case n == 0 || len(m.fields) == 0:
			out["noSuchField"] = others[g.IntN(len(others))]
		default:
			out[m.fields[g.IntN(len(m.fields))].name] = others[g.IntN(len(others))]
		}
	}
	return out
}

var knownVarlinkError = regexp.MustCompile(`^(io\.systemd\.(Machine|MachineImage|UserDatabase|Resolve\.Hook|service)\.\w+|io\.systemd\.System|io\.systemd\.InteractiveAuthenticationRequired|` +
	`org\.varlink\.service\.(MethodNotFound|InvalidParameter|InterfaceNotFound|PermissionDenied|ExpectedMore|MethodNotImplemented))$`)

// TestVarlinkFuzz calls every method that the sockets name, with parameters of
// the right types and of wrong ones, and then breaks the protocol.
func TestVarlinkFuzz(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		start := func() {
			h.Try("chattr", "-i", "/var/lib/machines/bb")
			if _, err := os.Stat(h.Path("/var/lib/machines/bb/bin/busybox")); err != nil {
				h.Try("sh", "-c", "machinectl terminate bb; rm -rf /var/lib/machines/bb")
				h.BusyboxTree(t, "bb")
			}
			if strings.Contains(" "+strings.Join(busMachines(t, h), " ")+" ", " bb ") {
				return
			}
			h.Try("systemctl", "stop", "machine-bb.scope")
			h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "-D", "/var/lib/machines/bb", "sleep", "1000000")
			waitMachine(t, h, "bb")
		}
		start()
		var methods []varlinkMethod
		for _, path := range varlinkPaths {
			methods = append(methods, varlinkMethods(t, h, path)...)
		}
		if len(methods) < 30 {
			t.Fatalf("the sockets name only %d methods", len(methods))
		}
		before := daemonState(t, h)
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d, %d methods", seed, len(methods))
		g := generator{Rand: rand.New(rand.NewPCG(seed, 2))}
		for _, m := range methods {
			fuzzVarlinkMethod(t, h, g, m)
			start()
			if pid := h.DaemonPID(t); pid != before.pid {
				t.Fatalf("%s: the daemon died", m.name)
			}
		}
		breakVarlink(t, h)
		if pid := h.DaemonPID(t); pid != before.pid {
			t.Fatal("broken messages: the daemon died")
		}
		host.Eventually(t, 15*time.Second, func() error {
			if after := daemonState(t, h); after.fds > before.fds+4 {
				return fmt.Errorf("%d descriptors open, %d before:\n%s", after.fds, before.fds, h.Shell(t, "ls -l /proc/"+after.pid+"/fd"))
			}
			return nil
		})
		after := daemonState(t, h)
		t.Logf("descriptors %d, before %d; RSS %d KiB, before %d", after.fds, before.fds, after.rss, before.rss)
		if after.rss > before.rss+32<<10 {
			t.Errorf("the daemon has grown from %d to %d KiB", before.rss, after.rss)
		}
	})
}

func fuzzVarlinkMethod(t *testing.T, h *host.Host, g generator, m varlinkMethod) {
	t.Helper()
	for n := range 2 * fuzzRounds(t) {
		c, err := dialVarlink(h, m.path)
		if err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
		wrong := n%2 == 1
		parameters := g.parameters(m, wrong)
		// A subscription of names never ends by itself.
		more := n%4 < 2 && !strings.HasSuffix(m.name, ".QueryFilter")
		reply, took, err := c.call(m.name, parameters, more)
		_ = c.Close()
		text, _ := json.Marshal(parameters)
		switch {
		case err != nil:
			t.Errorf("%s %.200s: %v", m.name, text, err)
		case took > slowCall:
			if c, err = dialVarlink(h, m.path); err != nil {
				t.Fatal(err)
			}
			if _, again, err := c.call(m.name, parameters, more); again > slowCall {
				t.Errorf("%s %.200s took %v and %v: %v", m.name, text, took, again, err)
			}
			_ = c.Close()
		case reply.Error != "" && !knownVarlinkError.MatchString(reply.Error):
			t.Errorf("%s %.200s: %s", m.name, text, reply.Error)
		}
		if _, odd := parameters["noSuchField"]; odd && reply.Error == "" && err == nil && !strings.HasPrefix(m.name, "io.systemd.Resolve.") {
			t.Errorf("%s takes %.200s", m.name, text)
		}
	}
}

// breakVarlink sends what is no call. The connection may end, and nothing else.
func breakVarlink(t *testing.T, h *host.Host) {
	t.Helper()
	const good = `{"method":"org.varlink.service.GetInfo","parameters":{}}`
	for name, text := range map[string]string{
		"nothing":       "",
		"only the end":  "\x00",
		"no JSON":       "hello\x00",
		"half a call":   good[:20],
		"an array":      "[]\x00",
		"a number":      "1\x00",
		"null":          "null\x00",
		"no method":     "{}\x00",
		"method null":   `{"method":null}` + "\x00",
		"no interface":  `{"method":"x"}` + "\x00",
		"deep":          `{"method":"org.varlink.service.GetInfo","parameters":` + strings.Repeat(`{"a":`, 100000) + "1" + strings.Repeat("}", 100000) + "}\x00",
		"10 MB string":  `{"method":"` + strings.Repeat("x", 10<<20) + `"}` + "\x00",
		"10 MB no end":  strings.Repeat("x", 10<<20),
		"upgrade":       `{"method":"org.varlink.service.GetInfo","upgrade":true}` + "\x00",
		"oneway, more":  `{"method":"org.varlink.service.GetInfo","oneway":true,"more":true}` + "\x00",
		"never read":    strings.Repeat(good+"\x00", 5000),
		"bad UTF-8":     "{\"method\":\"\xff\xfe\"}\x00",
		"NUL in string": `{"method":"io.systemd.Machine.List","parameters":{"name":"b\u0000b"}}` + "\x00",
	} {
		for _, path := range varlinkPaths {
			c, err := dialVarlink(h, path)
			if err != nil {
				continue
			}
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			_, _ = c.Write([]byte(text)) // refused at any point
			_ = c.Close()
			c, err = dialVarlink(h, path)
			if err != nil {
				t.Fatalf("after %s: %v", name, err)
			}
			if reply, _, err := c.call("org.varlink.service.GetInfo", map[string]any{}, false); err != nil || reply.Error != "" {
				t.Errorf("after %s: %s, %v", name, reply.Error, err)
			}
			_ = c.Close()
		}
	}
}
