package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"machined/internal/netname"
	"machined/internal/pathlock"
	"machined/internal/portmap"
	"machined/spawn/settings"
)

// zoneLock is held while zones are made and removed; stock takes the same.
const zoneLock = "/run/systemd/nspawn-network-zone"

// plugNetwork makes the machine's links. The kernel removes what we made with the
// machine's network namespace; what was the host's is given back by m.undo.
func (m *machine) plugNetwork() error {
	o := m.opts
	if !m.plan.NewNet {
		return nil
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	for _, step := range []func(*netlink.Handle) error{m.interfaces, m.mainLink, m.extraLinks, m.stackedLinks} {
		if err := step(host); err != nil {
			return err
		}
	}
	if len(o.Ports) > 0 {
		return m.exposePorts()
	}
	return nil
}

func (m *machine) mainLink(host *netlink.Handle) error {
	o := m.opts
	if !o.Veth {
		return nil
	}
	bridged := o.Bridge != "" || o.Zone != ""
	name, alt := netname.HostVeth(o.Machine, bridged)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, netname.MAC(hostID(), o.Machine, netname.KeyHost, 0)
	inside := netname.MAC(hostID(), o.Machine, netname.KeyContainer, 0)
	if o.Knobs.HostMAC != "" {
		mac, err := parseMAC(o.Knobs.HostMAC)
		if err != nil {
			return err
		}
		inside = mac
	}
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: netname.ContainerVeth, PeerTxQLen: -1, PeerHardwareAddr: inside, PeerNamespace: netlink.NsPid(m.c.PID)}
	index, err := m.addVeth(host, link, alt)
	if err != nil {
		return err
	}
	m.netif = index
	switch {
	case o.Bridge != "":
		bridge, err := host.LinkByName(o.Bridge)
		if err != nil {
			return fmt.Errorf("Failed to add interface %s to bridge %s: %w", name, o.Bridge, linkError(err))
		}
		return m.joinBridge(host, index, bridge)
	case o.Zone != "":
		return m.joinZone(host, index)
	}
	return nil
}

// linkPatience is how long the link of a machine that has died may take to go
// away: the kernel takes network namespaces apart behind everybody's back.
const linkPatience = 2 * time.Second

// addLink adds a link; one of that name that is about to go away is waited for.
func addLink(host *netlink.Handle, link netlink.Link) error {
	deadline := time.Now().Add(linkPatience)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := host.LinkAdd(link)
		if !errors.Is(err, unix.EEXIST) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}

// linkError is an error of a search for a link in the kernel's words.
func linkError(err error) error {
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return unix.ENODEV
	}
	return err
}

// addVeth makes a pair of links and returns the index of the host's end.
func (m *machine) addVeth(host *netlink.Handle, link *netlink.Veth, alt string) (int, error) {
	if err := addLink(host, link); err != nil {
		return 0, fmt.Errorf("add virtual Ethernet link %s:%s: %w", link.Name, link.PeerName, err)
	}
	made, err := host.LinkByName(link.Name)
	if err != nil {
		return 0, fmt.Errorf("find link %q: %w", link.Name, err)
	}
	index := made.Attrs().Index
	m.owe(chore{Kind: choreLink, Index: index, Path: link.Name})
	if alt != "" {
		if err := host.LinkAddAltName(made, alt); err != nil {
			m.warn("Failed to set alternative name %s of link %s, ignoring: %v", alt, link.Name, err)
		}
	}
	return index, nil
}

func (m *machine) joinBridge(host *netlink.Handle, index int, bridge netlink.Link) error {
	port, err := host.LinkByIndex(index)
	if err != nil {
		return err
	}
	name := bridge.Attrs().Name
	if err := host.LinkSetMasterByIndex(port, bridge.Attrs().Index); err != nil {
		return fmt.Errorf("Failed to add interface %s to bridge %s: %w", port.Attrs().Name, name, err)
	}
	if err := host.LinkSetUp(port); err != nil {
		return fmt.Errorf("bring up link to bridge %q: %w", name, err)
	}
	m.netif = bridge.Attrs().Index
	return nil
}

// joinZone puts the link into the zone's bridge, which comes with its first
// machine and goes with its last.
func (m *machine) joinZone(host *netlink.Handle, index int) error {
	name := netname.Zone(m.opts.Zone)
	lock, err := pathlock.File(zoneLock, true)
	if err != nil {
		return fmt.Errorf("lock network zones: %w", err)
	}
	defer lock.Close()
	m.oweLast(chore{Kind: choreZone, Path: name}) // also when it is only half made
	bridge, err := host.LinkByName(name)
	if err != nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add bridge %q: %w", name, err)
		}
		if bridge, err = host.LinkByName(name); err != nil {
			return fmt.Errorf("find bridge %q: %w", name, err)
		}
		if err := host.LinkSetUp(bridge); err != nil {
			return fmt.Errorf("bring up bridge %q: %w", name, err)
		}
	}
	return m.joinBridge(host, index, bridge)
}

// removeZone removes a bridge without ports.
func removeZone(name string) {
	lock, err := pathlock.File(zoneLock, true)
	if err != nil {
		return
	}
	defer lock.Close()
	entries, err := os.ReadDir("/sys/class/net/" + name + "/brif")
	if err != nil || len(entries) > 0 {
		return
	}
	if bridge, err := netlink.LinkByName(name); err == nil {
		_ = netlink.LinkDel(bridge)
	}
}

func (m *machine) extraLinks(host *netlink.Handle) error {
	for i, l := range m.opts.VethExtra {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = l.Host
		idx := uint64(i)
		attrs.HardwareAddr = netname.MAC(hostID(), m.opts.Machine, netname.KeyExtraHost, idx)
		link := &netlink.Veth{
			LinkAttrs: attrs, PeerName: l.Container, PeerTxQLen: -1, PeerNamespace: netlink.NsPid(m.c.PID),
			PeerHardwareAddr: netname.MAC(hostID(), m.opts.Machine, netname.KeyExtraContainer, idx),
		}
		if _, err := m.addVeth(host, link, ""); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) stackedLinks(host *netlink.Handle) error {
	for i, l := range m.opts.MACVLANs {
		parent, err := host.LinkByName(l.Host)
		if err != nil {
			return fmt.Errorf("Failed to get device %s: %w", l.Host, linkError(err))
		}
		attrs := stacked(l, parent, m.c.PID)
		attrs.HardwareAddr = netname.MAC(hostID(), m.opts.Machine, netname.KeyMACVLAN, uint64(i))
		if err := host.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
			return fmt.Errorf("add macvlan link on %q: %w", l.Host, err)
		}
	}
	for _, l := range m.opts.IPVLANs {
		parent, err := host.LinkByName(l.Host)
		if err != nil {
			return fmt.Errorf("Failed to get device %s: %w", l.Host, linkError(err))
		}
		if err := host.LinkAdd(&netlink.IPVlan{LinkAttrs: stacked(l, parent, m.c.PID), Mode: netlink.IPVLAN_MODE_L2}); err != nil {
			return fmt.Errorf("add ipvlan link on %q: %w", l.Host, err)
		}
	}
	return nil
}

func stacked(l settings.Link, parent netlink.Link, pid int) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.Namespace = l.Container, parent.Attrs().Index, netlink.NsPid(pid)
	return attrs
}

// exposePorts leads ports of the host to whatever address the machine has.
func (m *machine) exposePorts() error {
	ports := make([]portmap.Port, len(m.opts.Ports))
	for i, p := range m.opts.Ports {
		ports[i] = portmap.Port{Protocol: p.Protocol, Host: p.Host, Container: p.Container}
	}
	inside, err := netns.GetFromPid(m.c.PID)
	if err != nil {
		return fmt.Errorf("open network namespace of the machine: %w", err)
	}
	updates, done := make(chan netlink.AddrUpdate, 16), make(chan struct{})
	err = netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{Namespace: &inside, ListExisting: true})
	if err != nil {
		_ = inside.Close()
		return fmt.Errorf("watch addresses of the machine: %w", err)
	}
	e := &exposure{m: m, ports: ports}
	forwarder, err := portmap.Listen(ports, e.target)
	if err != nil {
		close(done)
		_ = inside.Close()
		return fmt.Errorf("forward ports of the loopback addresses: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	finished := make(chan struct{})
	go func() { defer close(finished); forwarder.Run(ctx) }()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case u, ok := <-updates:
				if !ok {
					return
				}
				e.update(u)
			case <-ctx.Done():
				return
			}
		}
	}()
	m.undo(func() {
		cancel()
		close(done)
		<-watched
		<-finished
		e.clear()
		_ = inside.Close()
	})
	return nil
}

func parseMAC(s string) ([]byte, error) {
	var mac []byte
	for i := 0; i+1 < len(s); i += 3 {
		b, err := strconv.ParseUint(s[i:i+2], 16, 8)
		if err != nil {
			return nil, fmt.Errorf("SYSTEMD_NSPAWN_NETWORK_MAC %q is no hardware address", s)
		}
		mac = append(mac, byte(b))
	}
	if len(mac) != 6 {
		return nil, fmt.Errorf("SYSTEMD_NSPAWN_NETWORK_MAC %q is no hardware address", s)
	}
	return mac, nil
}

// netnsFile opens the namespace of --network-namespace-path=.
func netnsFile(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("Cannot open file %s: %w", path, errors.Unwrap(err))
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	runtime.KeepAlive(f)
	if err != nil || kind != unix.CLONE_NEWNET {
		_ = f.Close()
		return nil, fmt.Errorf("Path %s doesn't refer to a network namespace, refusing.", path)
	}
	return f, nil
}
