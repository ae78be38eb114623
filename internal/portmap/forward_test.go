package portmap

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// server echoes TCP (until half-closed) and UDP on one port of 127.0.0.2, which
// stands for the machine.
func server(t *testing.T) (netip.Addr, uint16) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c) // only the half-close ends it
				c.Write(b)
			}()
		}
	}()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			u.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return at.Addr(), at.Port()
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestForward(t *testing.T) {
	t.Parallel()
	addr, port := server(t)
	host := freePort(t)
	f, err := Listen([]Port{{"tcp", host, port}, {"udp", host, port}}, func() netip.Addr { return addr })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen([]Port{{"tcp", host, port}}, f.target); err == nil {
		t.Error("port in use was taken again")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { f.Run(ctx); close(ended) }()

	at := netip.AddrPortFrom(loopback[0], host).String()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() { c.Write(want); c.(*net.TCPConn).CloseWrite() }()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
	}

	u, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	buf := make([]byte, 16)
	u.SetDeadline(time.Now().Add(5 * time.Second))
	u.Write([]byte("ping"))
	if n, err := u.Read(buf); err != nil || string(buf[:n]) != "ping" {
		t.Errorf("got %q, %v", buf[:n], err)
	}

	open, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	cancel()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("did not end")
	}
	if _, err := net.Dial("tcp", at); err == nil {
		t.Error("port is still open")
	}
}

func TestForwardNowhere(t *testing.T) {
	t.Parallel()
	host := freePort(t)
	f, err := Listen([]Port{{"tcp", host, 1}}, func() netip.Addr { return netip.Addr{} })
	if err != nil {
		t.Fatal(err)
	}
	go f.Run(t.Context())
	c, err := net.Dial("tcp", netip.AddrPortFrom(loopback[0], host).String())
	if errors.Is(err, unix.ECONNRESET) {
		return // so soon
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("got %v, want a reset", err)
	}
	if _, err := Listen([]Port{{"icmp", 1, 1}}, nil); err == nil {
		t.Error("icmp accepted")
	}
}
