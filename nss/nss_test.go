package nss

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sirupsen/logrus"
)

func TestRank(t *testing.T) {
	addr := netip.MustParseAddr
	tests := []struct {
		name string
		in   []Address
		want []Address
	}{
		{"empty", nil, []Address{}},
		{
			"routable before link-local, IPv4 before IPv6",
			[]Address{
				{addr("169.254.3.4"), 7}, {addr("fe80::1"), 7}, {addr("fd00::2"), 7}, {addr("10.0.0.2"), 7},
			},
			[]Address{
				{addr("10.0.0.2"), 0}, {addr("fd00::2"), 0}, {addr("169.254.3.4"), 0}, {addr("fe80::1"), 7},
			},
		},
		{
			"useless ones dropped, duplicates too",
			[]Address{
				{addr("127.0.0.1"), 0}, {addr("::1"), 0}, {addr("::"), 0}, {addr("ff02::1"), 0},
				{addr("10.0.0.2"), 1}, {addr("10.0.0.2"), 2}, {addr("::ffff:10.0.0.2"), 2},
			},
			[]Address{{addr("10.0.0.2"), 0}},
		},
		{
			"link-local without an interface last",
			[]Address{{addr("fe80::1"), 0}, {addr("fe80::2"), 3}, {addr("169.254.1.1"), 0}},
			[]Address{{addr("169.254.1.1"), 0}, {addr("fe80::2"), 3}, {addr("fe80::1"), 0}},
		},
	}
	for _, tt := range tests {
		if got := Rank(tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestCut(t *testing.T) {
	list := func(n4, n6 int) (out []Address) {
		for i := range n4 {
			out = append(out, Address{IP: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
		}
		for i := range n6 {
			out = append(out, Address{IP: netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)})})
		}
		return out
	}
	for _, tt := range []struct{ n4, n6, want4, want6 int }{
		{0, 0, 0, 0},
		{3, 2, 3, 2},
		{maxAddresses, 0, maxAddresses, 0},
		{maxAddresses, 1, maxAddresses - 1, 1},
		{1000, 1000, maxAddresses * 3 / 4, maxAddresses / 4},
		{1, 1000, 1, maxAddresses - 1},
		{1000, 5, maxAddresses - 5, 5},
		{0, 1000, 0, maxAddresses},
	} {
		got := cut(Rank(list(tt.n4, tt.n6)), maxAddresses)
		n4 := 0
		for _, a := range got {
			if a.IP.Is4() {
				n4++
			}
		}
		if n4 != tt.want4 || len(got)-n4 != tt.want6 {
			t.Errorf("%d and %d addresses: got %d and %d, want %d and %d", tt.n4, tt.n6, n4, len(got)-n4, tt.want4, tt.want6)
		}
	}
}

// question builds a request as the module does.
func question(op operation, family byte, id uint32, payload []byte) []byte {
	out := []byte{version, byte(op), family, byte(len(payload))}
	out = binary.LittleEndian.AppendUint32(out, id)
	return append(out, payload...)
}

func TestParseRequestRefuses(t *testing.T) {
	tests := map[string][]byte{
		"empty":             {},
		"short":             {1, 1, 0, 0},
		"version":           append([]byte{2}, question(hostByName, 4, 0, []byte("a"))[1:]...),
		"operation":         question(99, 4, 0, nil),
		"family":            question(hostByName, 5, 0, []byte("a")),
		"no name":           question(hostByName, 4, 0, nil),
		"name with slash":   question(hostByName, 4, 0, []byte("a/b")),
		"name with NUL":     question(hostByName, 4, 0, []byte("a\x00")),
		"name with newline": question(userByName, 0, 0, []byte("a\n")),
		"wrong length":      append(question(hostByName, 4, 0, []byte("a")), 'b'),
		"too long":          question(hostByName, 4, 0, bytes.Repeat([]byte("a"), 97)),
		"address size":      question(hostByAddress, 4, 0, make([]byte, 16)),
		"address family":    question(hostByAddress, 6, 0, make([]byte, 4)),
		"id with payload":   question(userByID, 0, 70000, []byte("x")),
	}
	for name, data := range tests {
		if req, err := parseRequest(data); err == nil {
			t.Errorf("%s: got %+v, want an error", name, req)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add(question(hostByName, 4, 0, []byte("deb")))
	f.Add(question(hostByAddress, 6, 0, make([]byte, 16)))
	f.Add(question(userByID, 0, 524288, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := parseRequest(data)
		if err != nil {
			return
		}
		if len(req.name) > maxName || req.op == hostByAddress && !req.addr.IsValid() {
			t.Errorf("accepted %+v", req)
		}
	})
}

type fake struct{}

func (fake) Addresses(_ context.Context, _ uint32, name string) (string, []Address, error) {
	switch name {
	case "deb":
		return "deb", Rank([]Address{
			{netip.MustParseAddr("fe80::1"), 3},
			{netip.MustParseAddr("10.0.0.2"), 3},
			{netip.MustParseAddr("fd00::2"), 3},
		}), nil
	case "broken":
		return "", nil, errors.New("broken")
	case "slow":
		return "", nil, context.DeadlineExceeded
	}
	return "", nil, ErrNotFound
}

func (fake) ReverseLookup(_ context.Context, _ uint32, ip netip.Addr) (string, error) {
	if ip == netip.MustParseAddr("10.0.0.2") {
		return "deb", nil
	}
	return "", ErrNotFound
}

func (fake) UserByName(_ context.Context, name string) (Entry, error) {
	if name == "vu-deb-0" {
		return Entry{name, "UID 0 of Container deb", 524288, 65534}, nil
	}
	return Entry{}, ErrNotFound
}
func (fake) UserByID(context.Context, uint32) (Entry, error)    { return Entry{}, ErrNotFound }
func (fake) GroupByName(context.Context, string) (Entry, error) { return Entry{}, ErrNotFound }
func (fake) GroupByID(context.Context, uint32) (Entry, error)   { return Entry{}, ErrNotFound }

func serve(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nss")
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	log := logrus.New()
	go func() { done <- Serve(ctx, listener, fake{}, log) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

func ask(t testing.TB, path string, data []byte) []byte {
	t.Helper()
	conn, err := net.Dial("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 8192)
	n, _ := conn.Read(buf)
	return buf[:n]
}

func TestServe(t *testing.T) {
	path := serve(t)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != SocketMode {
		t.Errorf("socket mode: got %v, %v; want %o", info.Mode(), err, SocketMode)
	}
	tests := []struct {
		name   string
		in     []byte
		status status
		size   int
	}{
		{"all families", question(hostByName, 0, 0, []byte("deb")), found, 8 + 3 + 3*24},
		{"IPv4", question(hostByName, 4, 0, []byte("deb")), found, 8 + 3 + 24},
		{"IPv6 without the link-local one", question(hostByName, 6, 0, []byte("deb")), found, 8 + 3 + 24},
		{"unknown", question(hostByName, 0, 0, []byte("nope")), notFound, 8},
		{"broken", question(hostByName, 0, 0, []byte("broken")), unavailable, 8},
		{"slow", question(hostByName, 0, 0, []byte("slow")), tryAgain, 8},
		{"reverse", question(hostByAddress, 4, 0, []byte{10, 0, 0, 2}), found, 8 + 3 + 24},
		{"reverse unknown", question(hostByAddress, 4, 0, []byte{10, 0, 0, 3}), notFound, 8},
		{"user", question(userByName, 0, 0, []byte("vu-deb-0")), found, 8 + 8 + 22 + 8},
		{"user unknown", question(userByID, 0, 70000, nil), notFound, 8},
		{"group unknown", question(groupByID, 0, 70000, nil), notFound, 8},
	}
	for _, tt := range tests {
		out := ask(t, path, tt.in)
		if len(out) != tt.size || out[0] != version || status(out[1]) != tt.status {
			t.Errorf("%s: got % x, want %d bytes with status %d", tt.name, out, tt.size, tt.status)
		}
	}
	if out := ask(t, path, []byte("nonsense")); len(out) != 0 {
		t.Errorf("nonsense: got % x, want no answer", out)
	}
}

func BenchmarkLookup(b *testing.B) {
	path := serve(b)
	q := question(hostByName, 0, 0, []byte("deb"))
	b.ReportAllocs()
	for b.Loop() {
		ask(b, path, q)
	}
}
