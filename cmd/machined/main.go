// Command machined is the daemon that keeps track of machines: it owns the bus
// name org.freedesktop.machine1. This package only wires the parts together;
// what they do is in theirs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	"github.com/sirupsen/logrus"

	"machined/internal/nsexec"
)

// version is stamped by the linker (-X main.version=...).
var version = "devel"

// config is what the command line decides.
type config struct {
	user       bool
	bus        string // auto, system, private
	units      string // auto, systemd, direct
	stateDir   string // state files of machines
	runDir     string // own run-time files: private bus, units of the direct backend
	unitDir    string
	poolDir    string
	spawner    string
	mountOnly  bool
	neighbours bool // varlink, user database, resolver, NSS
	logLevel   string
}

func main() {
	nsexec.Main() // a helper process of ours never comes back
	cfg, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "machined: %v\n", err)
		os.Exit(1)
	}
	log, err := newLog(cfg.logLevel)
	if err != nil {
		fmt.Fprintf(os.Stderr, "machined: %v\n", err)
		os.Exit(1)
	}
	// The daemon is idle nearly always; what it needs is little memory.
	debug.SetGCPercent(50)
	// More than two processors may have, so that the bus's reader need not wait
	// for the collector or a handler to give one up: the kernel wakes it at once.
	runtime.GOMAXPROCS(4)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	if err := run(ctx, cfg, log); err != nil {
		log.WithError(err).Fatal("machined ends.")
	}
}

func parseFlags(args []string) (config, error) {
	cfg := config{}
	fs := flag.NewFlagSet("machined", flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprintf(fs.Output(), "Usage: machined [OPTIONS...]\n\nKeeps track of virtual machines and containers (org.freedesktop.machine1).\n\n")
		fs.PrintDefaults()
		fmt.Fprintf(fs.Output(), "\nSee machined(8).\n")
	}
	var system, showVersion bool
	fs.BoolVar(&system, "system", false, "serve the system (default)")
	fs.BoolVar(&cfg.user, "user", false, "serve the calling user, on the session bus")
	fs.BoolVar(&showVersion, "version", false, "print the version and exit")
	fs.StringVar(&cfg.bus, "bus", "auto", "bus to be on: auto, system, or private (one of machined's own)")
	fs.StringVar(&cfg.units, "units", "auto", "who keeps units: auto, systemd (PID 1), or direct (the cgroup tree itself)")
	fs.StringVar(&cfg.stateDir, "state-dir", "", "directory of the machines' state files (default /run/systemd/machines)")
	fs.StringVar(&cfg.runDir, "run-dir", "/run/machined", "directory of the daemon's own run-time files")
	fs.StringVar(&cfg.unitDir, "unit-dir", "/etc/systemd/system", "directory of the links of enabled machines, without systemd")
	fs.StringVar(&cfg.poolDir, "pool-dir", "", "directory of the images (default /var/lib/machines)")
	fs.BoolVar(&cfg.mountOnly, "mount-images", false, "mount the images that share files by overlayfs, and exit")
	fs.StringVar(&cfg.spawner, "spawner", "", "spawner to start machines with, without systemd (default: beside this program)")
	fs.BoolVar(&cfg.neighbours, "sockets", true, "serve varlink and name look-ups, too")
	fs.StringVar(&cfg.logLevel, "log-level", os.Getenv("SYSTEMD_LOG_LEVEL"), "least important messages to log: error, warning, info, debug")
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	if showVersion {
		fmt.Println("machined " + version)
		os.Exit(0)
	}
	if fs.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if system && cfg.user {
		return cfg, errors.New("--system and --user exclude each other")
	}
	if cfg.bus != "auto" && cfg.bus != "system" && cfg.bus != "private" {
		return cfg, fmt.Errorf("--bus=%s: it is auto, system or private", cfg.bus)
	}
	if cfg.units != "auto" && cfg.units != "systemd" && cfg.units != "direct" {
		return cfg, fmt.Errorf("--units=%s: it is auto, systemd or direct", cfg.units)
	}
	if !cfg.user && os.Geteuid() != 0 {
		return cfg, fmt.Errorf("machined has to run as root, not as user %s; --user serves a single user", strconv.Itoa(os.Geteuid()))
	}
	if cfg.stateDir == "" {
		cfg.stateDir = "/run/systemd/machines"
		if cfg.user {
			dir := os.Getenv("XDG_RUNTIME_DIR")
			if dir == "" {
				return cfg, errors.New("--user needs XDG_RUNTIME_DIR to be set")
			}
			cfg.stateDir = dir + "/systemd/machines"
		}
	}
	return cfg, nil
}

func newLog(level string) (*logrus.Logger, error) {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetFormatter(logFormat())
	switch level {
	case "":
	case "notice":
		log.SetLevel(logrus.InfoLevel)
	default:
		// Names of syslog(3) beside those of logrus.
		if l, ok := map[string]string{"err": "error", "crit": "fatal", "alert": "fatal", "emerg": "panic"}[level]; ok {
			level = l
		}
		l, err := logrus.ParseLevel(level)
		if err != nil {
			return nil, fmt.Errorf("--log-level=%s: %w", level, err)
		}
		log.SetLevel(l)
	}
	return log, nil
}
