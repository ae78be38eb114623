package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/sirupsen/logrus"

	"machined/dbus/import1"
	"machined/dbus/import1/server"
	"machined/polkit"
	"machined/transfer"
	"machined/varlink"
	"machined/varlink/transfers"
)

// serveVarlink serves io.systemd.Import on the socket of the service manager, or
// on one of our own where there is none. The returned function ends it.
func serveVarlink(ctx context.Context, user bool, srv *server.Server, authority *polkit.Authority, log logrus.FieldLogger) (func(), error) {
	named, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("take sockets of the service manager: %w", err)
	}
	var listeners []*net.UnixListener
	for name, list := range named {
		for _, l := range list {
			if unixListener, ok := l.(*net.UnixListener); ok && name == "varlink" {
				unixListener.SetUnlinkOnClose(false)
				listeners = append(listeners, unixListener)
			} else if l != nil {
				log.WithField("name", name).Warn("Closing a socket that nobody here serves")
				_ = l.Close()
			}
		}
	}
	own := ""
	if len(listeners) == 0 {
		dir, mode := "/run", os.FileMode(0o666)
		if user {
			dir, mode = os.Getenv("XDG_RUNTIME_DIR"), 0o600
		}
		own = filepath.Join(dir, transfers.Socket)
		l, err := varlink.Listen(own, mode)
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
		if user {
			// There is no registry of a user's sockets.
		} else if err := varlink.Link(own, filepath.Join("/run", transfers.RegistryLink)); err != nil {
			log.WithError(err).Warn("Varlink socket not linked") // only discovery suffers
		}
	}
	service := &transfers.Service{Transfers: pulls{srv}, Authority: authority, OwnUID: uint32(os.Geteuid()), Log: log}
	vl := service.Server(version)
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	for _, l := range listeners {
		group.Go(func() {
			if err := vl.Serve(ctx, l); err != nil {
				log.WithError(err).Error("Varlink has ended")
			}
		})
	}
	return func() {
		if own != "" {
			_ = os.Remove(own)
		}
		cancel()
		group.Wait()
	}, nil
}

// pulls is the transfer service as io.systemd.Import sees it.
type pulls struct{ srv *server.Server }

// Transfers is for transfers.Transfers.
func (p pulls) Transfers() []transfers.Transfer {
	var list []transfers.Transfer
	for _, t := range p.srv.Running() {
		list = append(list, transfers.Transfer{ID: t.ID, Type: t.Type, Remote: t.Remote, Local: t.Local, Class: t.Class, Progress: t.Progress})
	}
	return list
}

func (p pulls) request(pull transfers.Pull) (transfer.Request, error) {
	flags := uint64(0)
	for bit, on := range map[uint64]bool{
		import1.FlagForce: pull.Force, import1.FlagReadOnly: pull.ReadOnly, import1.FlagKeepDownload: pull.KeepDownload,
	} {
		if on {
			flags |= bit
		}
	}
	kind := transfer.Kind("pull-" + pull.Type)
	return p.srv.PreparePull(kind, pull.Class, pull.Remote, pull.Local, pull.Verify, pull.ImageRoot, flags)
}

// Check is for transfers.Transfers.
func (p pulls) Check(pull transfers.Pull) error {
	if _, err := p.request(pull); err == nil {
		return nil
	}
	// Which of them is wrong shows when the others are surely right.
	name := "local"
	without := pull
	without.Local = "image"
	if _, err := p.request(without); err != nil {
		name = "remote"
		without.ImageRoot = ""
		if _, err := p.request(without); err == nil {
			name = "imageRoot"
		}
	}
	return &transfers.ParameterError{Parameter: name}
}

// maxEvents is how many events may wait for a caller who reads slowly; the rest
// of the progress and the lines is lost to it.
const maxEvents = 256

// Pull is for transfers.Transfers.
func (p pulls) Pull(pull transfers.Pull) (uint32, <-chan transfers.Event, error) {
	req, err := p.request(pull)
	if err != nil {
		return 0, nil, err
	}
	events := make(chan transfers.Event, maxEvents+1)
	offer := func(ev transfers.Event) {
		if len(events) < maxEvents { // one place is kept for the result
			events <- ev
		}
	}
	var mu sync.Mutex // lines and the end come from different goroutines
	id, err := p.srv.StartPull(req, server.Watch{
		Progress: func(fraction float64) {
			mu.Lock()
			defer mu.Unlock()
			offer(transfers.Event{Progress: &fraction})
		},
		Log: func(priority int, line string) {
			mu.Lock()
			defer mu.Unlock()
			offer(transfers.Event{Message: line, Priority: priority})
		},
		Ended: func(result string) {
			mu.Lock()
			defer mu.Unlock()
			events <- transfers.Event{Result: result}
			close(events)
		},
	})
	if server.InProgress(err) {
		err = fmt.Errorf("%w: %w", transfers.ErrInProgress, err)
	}
	return id, events, err
}
