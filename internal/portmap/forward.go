package portmap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dialTimeout = 10 * time.Second
	udpIdle     = time.Minute // a client silent for so long is forgotten
	maxClients  = 1024        // per UDP port
	maxDatagram = 65535
)

// loopback are the host's addresses that translation cannot serve.
var loopback = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// Forwarder passes on what comes to the ports on 127.0.0.1 and ::1.
type Forwarder struct {
	target  func() netip.Addr
	tcp     []*net.TCPListener
	udp     []*net.UDPConn
	tcpPort []uint16
	udpPort []uint16
}

// Listen takes the ports on the host's loopback addresses, in the calling
// thread's network namespace. Target gives the machine's address at the time of
// each connection; an invalid one refuses it. An address family that the host
// does not have is left out; a port in use is an error, and then none is taken.
func Listen(ports []Port, target func() netip.Addr) (*Forwarder, error) {
	f := &Forwarder{target: target}
	for _, p := range ports {
		if _, err := p.number(); err != nil {
			f.Close()
			return nil, err
		}
		for _, a := range loopback {
			at := netip.AddrPortFrom(a, p.Host)
			var err error
			if p.Protocol == "tcp" {
				var l *net.TCPListener
				if l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err == nil {
					f.tcp, f.tcpPort = append(f.tcp, l), append(f.tcpPort, p.Container)
				}
			} else {
				var c *net.UDPConn
				if c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err == nil {
					f.udp, f.udpPort = append(f.udp, c), append(f.udpPort, p.Container)
				}
			}
			if err != nil && !(a.Is6() && noIPv6(err)) {
				f.Close()
				return nil, fmt.Errorf("forward %s port %d: %w", p.Protocol, p.Host, err)
			}
		}
	}
	return f, nil
}

// Close gives the ports back. Run does it by itself.
func (f *Forwarder) Close() {
	for _, l := range f.tcp {
		_ = l.Close()
	}
	for _, c := range f.udp {
		_ = c.Close()
	}
}

// Run serves until ctx is done, and cuts what is then still open.
func (f *Forwarder) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, f.Close)()
	var wg sync.WaitGroup
	for i, l := range f.tcp {
		wg.Go(func() { f.serveTCP(ctx, l, f.tcpPort[i]) })
	}
	for i, c := range f.udp {
		wg.Go(func() { f.serveUDP(ctx, c, f.udpPort[i]) })
	}
	wg.Wait()
	f.Close()
}

func (f *Forwarder) address(port uint16) (string, bool) {
	a := f.target()
	if !a.IsValid() {
		return "", false
	}
	return netip.AddrPortFrom(a, port).String(), true
}

func (f *Forwarder) serveTCP(ctx context.Context, l *net.TCPListener, port uint16) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		in, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // of the one connection, or out of files: wait for one of ours to end
			wg.Wait()
			if ctx.Err() != nil {
				return
			}
			continue
		}
		wg.Go(func() {
			defer in.Close()
			to, ok := f.address(port)
			if !ok {
				_ = in.SetLinger(0)
				return
			}
			d := net.Dialer{Timeout: dialTimeout}
			c, err := d.DialContext(ctx, "tcp", to)
			if err != nil {
				_ = in.SetLinger(0) // the client shall see a reset, not an empty answer
				return
			}
			join(ctx, in, c.(*net.TCPConn))
		})
	}
}

// join copies both ways (by splice(2)), each until its end, which it passes on.
func join(ctx context.Context, a, b *net.TCPConn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	defer b.Close()
	var wg sync.WaitGroup
	for _, p := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, err := io.Copy(p[0], p[1])
			if err != nil { // one side is broken: the other has nothing to wait for
				a.Close()
				b.Close()
				return
			}
			_ = p[0].CloseWrite()
		})
	}
	wg.Wait()
}

func (f *Forwarder) serveUDP(ctx context.Context, l *net.UDPConn, port uint16) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	clients := map[netip.AddrPort]*net.UDPConn{}
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := l.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		mu.Lock()
		out, full := clients[from], len(clients) >= maxClients
		mu.Unlock()
		if out == nil {
			to, ok := f.address(port)
			if !ok || full {
				continue
			}
			c, err := (&net.Dialer{}).DialContext(ctx, "udp", to)
			if err != nil {
				continue
			}
			out = c.(*net.UDPConn)
			mu.Lock()
			clients[from] = out
			mu.Unlock()
			wg.Go(func() {
				answers(ctx, out, l, from)
				mu.Lock()
				delete(clients, from)
				mu.Unlock()
			})
		}
		_ = out.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = out.Write(buf[:n])
	}
}

// answers passes on what the machine sends to one client, until both are silent.
func answers(ctx context.Context, out, l *net.UDPConn, client netip.AddrPort) {
	defer out.Close()
	defer context.AfterFunc(ctx, func() { out.Close() })()
	buf := make([]byte, maxDatagram)
	for {
		n, err := out.Read(buf)
		if err != nil {
			return // idle, closed, or nobody listens there
		}
		_ = out.SetReadDeadline(time.Now().Add(udpIdle))
		if _, err := l.WriteToUDPAddrPort(buf[:n], client); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}
