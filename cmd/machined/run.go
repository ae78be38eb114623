package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	godbus "github.com/godbus/dbus/v5"
	"github.com/sirupsen/logrus"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/dbus/machine1/server"
	"machined/dbus/systemd1"
	"machined/image"
	"machined/internal/cgroup"
	"machined/internal/fdstore"
	"machined/polkit"
	"machined/registry"
)

// errBusLost says that the connection to the bus has ended under us.
var errBusLost = errors.New("connection to the bus lost")

// run builds everything, serves until ctx ends, and takes it down again.
//
// The order of start is a contract: load state, drop the dead, export objects,
// take the name, READY=1.
func run(ctx context.Context, cfg config, log *logrus.Logger) error {
	if cfg.mountOnly {
		return image.NewStore(image.Config{PoolDir: cfg.poolDir, Log: log.WithField("component", "image")}).CleanTemporary()
	}
	booted := isBooted()
	direct := cfg.units == "direct" || cfg.units == "auto" && !booted && !cfg.user
	if err := os.MkdirAll(cfg.runDir, 0o755); err != nil && !cfg.user {
		return fmt.Errorf("make run directory: %w", err)
	}

	address := dbus.SystemAddress()
	var bus *privateBus
	switch {
	case cfg.user:
		var err error
		if address, err = dbus.SessionAddress(); err != nil {
			return err
		}
	case cfg.bus == "private",
		cfg.bus == "auto" && !booted && os.Getenv("DBUS_SYSTEM_BUS_ADDRESS") == "" && !haveSystemBus():
		bus = &privateBus{dir: cfg.runDir}
		address = bus.address()
		if err := bus.ensure(ctx); err != nil {
			return err
		}
	case os.Getenv("DBUS_SYSTEM_BUS_ADDRESS") == "":
		address = "unix:path=/run/dbus/system_bus_socket"
	}

	var backend registry.Backend
	var own *cgroup.Backend
	var tools server.Tools
	if direct {
		tools = hostTools{}
		tree, err := cgroup.FindOwnTree()
		if err != nil {
			return err
		}
		own, err = cgroup.New(cgroup.Config{
			Tree:     tree,
			StateDir: cfg.runDir,
			UnitDir:  cfg.unitDir,
			Spawner:  []string{spawnerPath(cfg.spawner)},
			Env:      spawnerEnv(address),
			Log:      log.WithField("component", "units"),
		})
		if err != nil {
			return err
		}
		defer own.Close()
		backend = own
	} else {
		pid1, err := systemd1.New(ctx, systemd1.Config{
			Dial: func(ctx context.Context) (*godbus.Conn, error) { return dbus.Connect(ctx, address) },
			Log:  log.WithField("component", "units"),
		})
		switch {
		case err == nil:
			defer pid1.Close()
			backend, tools = pid1, pid1
		case cfg.user:
			log.WithError(err).Warn("No service manager answers: machines can be registered only.")
			backend = registry.NoUnits{}
		default:
			return err
		}
	}

	store, files := fdstore.New(os.Getenv("NOTIFY_SOCKET"), activation.Files(true))
	reg := registry.New(registry.Config{
		StateDir: cfg.stateDir,
		Backend:  backend,
		Store:    store,
		Log:      log.WithField("component", "registry"),
		Journal:  journalEntry(log),
		User:     cfg.user,
		UID:      uint32(os.Geteuid()),
	})
	defer reg.Close()
	if err := reg.Load(ctx); err != nil {
		return err
	}

	conn, err := dbus.Connect(ctx, address)
	if err != nil {
		return fmt.Errorf("connect to bus: %w", err)
	}
	defer conn.Close()
	imageConfig := image.Config{}
	if cfg.user {
		if imageConfig, err = image.UserConfig(image.ClassMachine); err != nil {
			return fmt.Errorf("find images of the user: %w", err)
		}
	}
	if cfg.poolDir != "" {
		imageConfig.PoolDir = cfg.poolDir
	}
	imageConfig.Log = log.WithField("component", "image")
	images := image.NewStore(imageConfig)
	if !cfg.user {
		if err := images.CleanTemporary(); err != nil {
			log.WithError(err).Warn("Leftovers of operations that were killed are not removed.")
		}
	}
	authority := polkit.New(conn)
	srv := server.New(server.Config{
		Conn:      conn,
		Registry:  reg,
		Images:    images,
		Authority: authority,
		Tools:     tools,
		Log:       log,
		BindsDir:  bindsDir(cfg),
		OwnUID:    uint32(os.Geteuid()),
	})
	if err := srv.Export(ctx); err != nil {
		return err
	}
	reg.Notify(srv)
	if err := srv.RequestName(ctx); err != nil {
		return err
	}
	reg.Announce()

	if cfg.neighbours {
		done, err := serveNeighbours(ctx, cfg, files, reg, srv, images, authority, log)
		if err != nil {
			return err
		}
		defer done()
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS=Keeping track of machines.")
	log.WithField("machines", reg.Len()).Debug("machined is ready.")

	if own != nil {
		startEnabled(ctx, own, reg, log)
	}
	err = watch(ctx, conn, reg)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	if n := reg.Len(); n > 0 && own != nil && err == nil {
		log.WithField("machines", n).Info("machined ends; its machines go on, and the next machined takes them up.")
	}
	if errors.Is(err, errBusLost) && bus != nil {
		// Our own bus is gone, and with it every connection. Machines go on;
		// executing ourselves anew keeps the spawners our children.
		log.WithError(err).Warn("Starting over.")
		if exe, xerr := os.Executable(); xerr == nil {
			return syscall.Exec(exe, os.Args, os.Environ())
		}
	}
	if err == nil && bus != nil && reg.Len() == 0 {
		_ = conn.Close()
		bus.stop()
	}
	return err
}

// watch keeps the service manager's watchdog fed until ctx or the bus ends. It
// is fed when the table can be read and a call of our own has come back to us
// by the bus, as anybody's would.
func watch(ctx context.Context, conn *godbus.Conn, reg *registry.Registry) error {
	var tick <-chan time.Time
	interval, err := daemon.SdWatchdogEnabled(false)
	if err == nil && interval > 0 {
		ticker := time.NewTicker(interval / 3)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-conn.Context().Done():
			if ctx.Err() != nil {
				return nil
			}
			return errBusLost
		case <-tick:
			_ = reg.Len() // a registry that hangs stops the feeding
			if answers(ctx, conn, interval) {
				_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			}
		}
	}
}

// answers reports whether we answer a call on the bus within limit.
func answers(ctx context.Context, conn *godbus.Conn, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	names := conn.Names()
	return len(names) > 0 && conn.Object(names[0], machine1.ManagerPath).CallWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0).Err == nil
}

// startEnabled starts the machines that are enabled, as machines.target would.
func startEnabled(ctx context.Context, own *cgroup.Backend, reg *registry.Registry, log logrus.FieldLogger) {
	names, err := own.Enabled()
	if err != nil {
		log.WithError(err).Warn("Enabled machines are not known.")
	}
	for _, name := range names {
		go func() {
			if err := reg.Start(ctx, registry.StartRequest{Image: name}); err != nil && ctx.Err() == nil {
				log.WithError(err).WithField("machine", name).Error("Enabled machine does not start.")
			}
		}()
	}
}

// isBooted reports whether systemd is PID 1 (sd_booted(3)).
func isBooted() bool {
	st, err := os.Lstat("/run/systemd/system")
	return err == nil && st.IsDir()
}

// bindsDir is where binds into machines are remembered.
func bindsDir(cfg config) string {
	if cfg.user {
		return filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "machined/binds")
	}
	return filepath.Join(cfg.runDir, "binds")
}

func spawnerPath(flag string) string {
	if flag != "" {
		return flag
	}
	if exe, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(exe), "machine-spawn")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return "/usr/bin/systemd-nspawn"
}

func spawnerEnv(address string) []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"DBUS_SYSTEM_BUS_ADDRESS=" + address,
	}
	for _, key := range []string{"LANG", "LC_ALL", "TZ"} {
		if value := os.Getenv(key); value != "" {
			env = append(env, key+"="+value)
		}
	}
	return env
}
