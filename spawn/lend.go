package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"machined/internal/unit"
	"machined/spawn/stage"
)

// GiveBackName is how this program is called to give back the interfaces of a
// machine (its only argument) whose supervisor is gone.
const GiveBackName = "(sd-giveback)"

// LentDir has a directory for each run of a machine that has interfaces of the
// host. The kernel destroys what is not a physical interface together with the
// machine's network namespace, which the directory therefore holds, so that it
// outlives a supervisor that is killed, until somebody has given back what was
// lent: the service manager, the next machine that wants an interface, or --cleanup.
const LentDir = "/run/systemd/nspawn/interfaces"

// Files of such a directory. It is locked as long as its supervisor lives.
const (
	lentLinks = "links"
	lentThere = "machine" // the machine's network namespace
	lentHome  = "home"    // the one that the interfaces come from
)

// lentLink is an interface of the host in a machine.
type lentLink struct {
	index     int
	name      string // on the host
	container string
}

func (l lentLink) String() string { return strconv.Itoa(l.index) + " " + l.name + " " + l.container }

func parseLent(line string) (lentLink, error) {
	f := strings.Fields(line)
	if len(f) != 3 {
		return lentLink{}, fmt.Errorf("lent interface %q: want index and two names", line)
	}
	index, err := strconv.Atoi(f[0])
	return lentLink{index, f[1], f[2]}, err
}

// interfaces moves links of the host into the machine, and back at the end.
func (m *machine) interfaces(host *netlink.Handle) error {
	if len(m.opts.Interfaces) == 0 {
		return nil
	}
	_ = giveBackAll(LentDir, "") // perhaps one that we want
	var links []lentLink
	var found []netlink.Link
	for _, l := range m.opts.Interfaces {
		link, err := wanted(host, l.Host)
		if err != nil {
			return fmt.Errorf("Failed to get device %s: %w", l.Host, linkError(err))
		}
		own := link.Attrs().Name // l.Host may be one of its alternative names
		inside := l.Container
		if inside == l.Host {
			inside = own
		}
		found = append(found, link)
		links = append(links, lentLink{link.Attrs().Index, own, inside})
	}
	dir, err := m.noteLent(links)
	if err != nil {
		return fmt.Errorf("lend network interfaces: %w", err)
	}
	m.lent = dir
	guest, inside, err := handleAt(filepath.Join(dir, lentThere))
	if err != nil {
		return err
	}
	defer inside.Close()
	defer guest.Close()
	for i, link := range found {
		l := links[i]
		if err := host.LinkSetNsPid(link, m.c.PID); err != nil {
			return fmt.Errorf("move network interface %q into the machine: %w", l.name, err)
		}
		moved, err := l.find(guest)
		if err != nil {
			return fmt.Errorf("find network interface %q in the machine: %w", l.name, err)
		}
		if err := rename(guest, moved, l.container); err != nil {
			return fmt.Errorf("rename network interface %q to %q: %w", l.name, l.container, err)
		}
	}
	return nil
}

// wanted finds a link of the host. One that is lent is waited for: it may be on its way
// home from a machine that has just ended, and nothing tells when it is there.
func wanted(host *netlink.Handle, name string) (netlink.Link, error) {
	deadline := time.Now().Add(linkPatience)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		away := isLent(LentDir, name) // asked first, since it may come in between
		link, err := host.LinkByName(name)
		if err == nil || !away || time.Now().After(deadline) {
			return link, err
		}
		time.Sleep(pause)
		_ = giveBackAll(LentDir, "") // its supervisor may have been killed
	}
}

// isLent tells whether a machine has the interface of this name, or had it and it is
// still to be given back.
func isLent(parent, name string) bool {
	lists, _ := filepath.Glob(filepath.Join(parent, "*", lentLinks))
	for _, list := range lists {
		text, _ := os.ReadFile(list) // may be gone by now
		for line := range strings.Lines(string(text)) {
			if l, err := parseLent(line); err == nil && l.name == name {
				return true
			}
		}
	}
	return false
}

// noteLent writes down what is about to be lent, and has it given back at the end.
func (m *machine) noteLent(links []lentLink) (string, error) {
	if err := os.MkdirAll(LentDir, 0o700); err != nil {
		return "", err
	}
	dir := filepath.Join(LentDir, m.opts.Machine+"+"+randomHex(8))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	lock, err := lockDir(dir)
	if err != nil {
		_ = os.Remove(dir)
		return "", err
	}
	m.owe(chore{Kind: choreLent, Path: dir}, lock)
	var text strings.Builder
	for _, l := range links {
		fmt.Fprintln(&text, l)
	}
	if err := os.WriteFile(filepath.Join(dir, lentLinks), []byte(text.String()), 0o600); err != nil {
		return "", err
	}
	for name, ns := range map[string]string{lentHome: "/proc/thread-self/ns/net", lentThere: "/proc/" + strconv.Itoa(m.c.PID) + "/ns/net"} {
		if err := stage.HoldNamespace(ns, filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// watchLent has the service manager give back what is lent when the machine's unit
// ends without us.
func (m *machine) watchLent(ctx context.Context) {
	if m.lent == "" {
		return
	}
	cgroup, err := cgroupOf(m.c.PID)
	var ends string
	if err == nil {
		ends, _, err = unit.OfCgroup(cgroup, "")
	}
	var program string
	if err == nil {
		program, err = os.Executable()
	}
	if err == nil {
		name := "machined-interfaces-" + unit.Escape(filepath.Base(m.lent)) + ".service"
		err = m.bus.AfterEnd(ctx, AfterEnd{
			Unit: name, Of: ends,
			Description: "Network interfaces of the host in machine " + m.opts.Machine,
			Program:     program, Args: []string{GiveBackName, m.opts.Machine},
		})
		if err == nil {
			m.oweLast(chore{Kind: choreForget, Path: name})
			return
		}
	}
	m.say("Nobody will give the network interfaces back should this program be killed, ignoring: %v", err)
}

// GiveBack gives back the interfaces that runs of a machine have been lent whose
// supervisors are gone.
func GiveBack(machine string) error { return giveBackAll(LentDir, machine) }

// giveBackAll is GiveBack, for all machines when machine is empty.
func giveBackAll(parent, machine string) error {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var failed error
	for _, e := range entries {
		dir := filepath.Join(parent, e.Name())
		name, _, ok := strings.Cut(e.Name(), "+")
		if !ok || !e.IsDir() || machine != "" && name != machine {
			continue
		}
		lock, err := lockDir(dir)
		if err != nil {
			continue // its supervisor lives
		}
		failed = errors.Join(failed, giveBackFrom(dir))
		_ = lock.Close()
	}
	return failed
}

// giveBackFrom gives back what one run was lent, and lets the namespaces go. What
// fails is left for the next who tries.
func giveBackFrom(dir string) error {
	there, home := filepath.Join(dir, lentThere), filepath.Join(dir, lentHome)
	if isNamespace(there) && isNamespace(home) { // else nothing was moved yet
		if err := giveBackLinks(there, home, filepath.Join(dir, lentLinks)); err != nil {
			return err
		}
	}
	for _, p := range []string{there, home} {
		if err := stage.Unmount(p); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

func giveBackLinks(there, home, list string) error {
	guest, inside, err := handleAt(there)
	if err != nil {
		return err
	}
	defer inside.Close()
	defer guest.Close()
	to, err := netns.GetFromPath(home)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", home, err)
	}
	defer to.Close()
	text, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	var failed error
	for line := range strings.Lines(string(text)) {
		l, err := parseLent(line)
		if err == nil {
			err = l.giveBack(guest, to)
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// isNamespace tells a namespace's file from the empty one that it is mounted on.
func isNamespace(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && int64(fs.Type) == unix.NSFS_MAGIC
}

// handleAt talks to the kernel about the links of a network namespace.
func handleAt(path string) (*netlink.Handle, netns.NsHandle, error) {
	inside, err := netns.GetFromPath(path)
	if err != nil {
		return nil, -1, fmt.Errorf("open network namespace of the machine: %w", err)
	}
	guest, err := netlink.NewHandleAt(inside, unix.NETLINK_ROUTE)
	if err != nil {
		_ = inside.Close()
		return nil, -1, fmt.Errorf("open netlink of the machine: %w", err)
	}
	return guest, inside, nil
}

// find finds the interface in the machine. Its index is new there if it was taken.
func (l lentLink) find(guest *netlink.Handle) (netlink.Link, error) {
	link, err := guest.LinkByIndex(l.index)
	for _, name := range []string{l.container, l.name} {
		if err != nil {
			link, err = guest.LinkByName(name)
		}
	}
	return link, err
}

// giveBack moves a link to where it came from, under its old name, or another where
// that is taken now: under a name that nobody knows it is still worth more than not at all.
func (l lentLink) giveBack(guest *netlink.Handle, home netns.NsHandle) error {
	link, err := l.find(guest)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil // was not moved yet, or the machine has removed it
	}
	name := l.name // it has when it comes home
	if err == nil {
		_ = guest.LinkSetDown(link)
		if rename(guest, link, l.name) != nil { // the machine may have another one of this name
			name = link.Attrs().Name
		}
		err = guest.LinkSetNsFd(link, int(home))
	}
	if errors.Is(err, unix.EEXIST) {
		name = "dev" + strconv.Itoa(l.index)
		if err = guest.LinkSetName(link, name); err == nil {
			err = guest.LinkSetNsFd(link, int(home))
		}
	}
	if err == nil && name != l.name {
		l.renameAt(home, name)
	}
	if err != nil {
		return fmt.Errorf("Failed to give back network interface %s: %w", l.name, err)
	}
	return nil
}

// renameAt gives a link that is home again its old name, if that is free.
func (l lentLink) renameAt(home netns.NsHandle, name string) {
	host, err := netlink.NewHandleAt(home, unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	defer host.Close()
	if link, err := host.LinkByName(name); err == nil {
		_ = rename(host, link, l.name)
	}
}

// rename gives a link another name. Where that is one of its alternative names the
// two change places: a link's names must differ.
func rename(at *netlink.Handle, link netlink.Link, name string) error {
	old := link.Attrs().Name
	if name == old {
		return nil
	}
	if !slices.Contains(link.Attrs().AltNames, name) {
		return at.LinkSetName(link, name)
	}
	if err := at.LinkDelAltName(link, name); err != nil {
		return err
	}
	if err := at.LinkSetName(link, name); err != nil {
		return err
	}
	return at.LinkAddAltName(link, old)
}
