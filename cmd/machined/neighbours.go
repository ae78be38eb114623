package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/sirupsen/logrus"

	"machined/dbus/machine1/server"
	"machined/image"
	"machined/registry"
	"machined/varlink/machine"
)

// serveNeighbours serves what lives beside the bus: varlink and name look-ups,
// on sockets of its own and those among files, which it takes over.
// The returned function ends it and waits for that.
func serveNeighbours(ctx context.Context, cfg config, files []*os.File, reg *registry.Registry, srv *server.Server, images *image.Store, authority machine.Authority, log logrus.FieldLogger) (func(), error) {
	var listeners []net.Listener
	for _, f := range files {
		l, err := net.FileListener(f)
		_ = f.Close()
		switch {
		case err != nil:
			log.WithError(err).WithField("name", f.Name()).Warn("closing what the service manager handed over and is no socket")
		case f.Name() == "varlink":
			listeners = append(listeners, l)
		default:
			log.WithField("name", f.Name()).Warn("closing a socket that nobody here serves")
			_ = l.Close()
		}
	}
	base := "/run"
	if cfg.user {
		base = os.Getenv("XDG_RUNTIME_DIR")
	}
	services := machine.New(machine.Config{
		Registry: reg, Images: images, Authority: authority, Terminals: srv, Binds: srv.Binds(), Net: srv.Net(), PTYs: srv.PTYs(),
		Log: log, Version: version, User: cfg.user, OwnUID: uint32(os.Geteuid()),
		RunDir: filepath.Clean(base), Listeners: listeners,
	})
	ctx, cancel := context.WithCancel(ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- services.Serve(ctx, func() { close(ready) }) }()
	var once sync.Once
	wait := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				log.WithError(err).Error("varlink and name look-ups have ended")
			}
		})
	}
	select {
	case <-ready:
		return wait, nil
	case err := <-done:
		cancel()
		return nil, fmt.Errorf("serve varlink and name look-ups: %w", err)
	}
}
