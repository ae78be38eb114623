// Command machine-importd transfers machine images: it is org.freedesktop.import1
// on the system bus, and runs each transfer in a sandboxed process of its own.
// machine-importd(8).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/dbus/import1/server"
	"machined/image"
	"machined/polkit"
)

// version is stamped by the build.
var version = "unknown"

// idleExit is how long importd stays with nothing to do.
const idleExit = 30 * time.Second

func main() {
	if len(os.Args) == 2 && os.Args[1] == workerArg {
		os.Exit(worker())
	}
	name := filepath.Base(os.Args[0])
	if tools[name] != nil {
		os.Exit(runTool(name, os.Args[1:]))
	}
	if name == generatorName {
		os.Exit(generate(os.Args[1:]))
	}
	showVersion := flag.Bool("version", false, "show the version and exit")
	idle := flag.Duration("idle", idleExit, "exit after this long with nothing to do, 0 never")
	user := flag.Bool("user", false, "serve the calling user, on the session bus")
	system := flag.Bool("system", false, "serve all users, on the system bus (the default)")
	flag.Parse()
	if *showVersion {
		fmt.Println("machine-importd " + version)
		return
	}
	if *user && *system {
		fmt.Fprintln(os.Stderr, "machine-importd: --system and --user exclude each other")
		os.Exit(1)
	}
	if *user && !filepath.IsAbs(os.Getenv("XDG_RUNTIME_DIR")) {
		fmt.Fprintln(os.Stderr, "machine-importd: --user needs XDG_RUNTIME_DIR to be set")
		os.Exit(1)
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "machine-importd: this program takes no arguments, not %q\n", flag.Arg(0))
		os.Exit(1)
	}
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetFormatter(&lineFormatter{journal: os.Getenv("JOURNAL_STREAM") != ""})
	if err := serve(log, *idle, *user); err != nil {
		log.WithError(err).Fatal("machine-importd failed")
	}
}

func serve(log *logrus.Logger, idle time.Duration, user bool) error {
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer cancel()
	connect := dbus.ConnectSystem
	if user {
		connect = dbus.ConnectSession
	}
	conn, err := connect(ctx)
	if err != nil {
		return fmt.Errorf("connect to bus: %w", err)
	}
	defer func() { _ = conn.Close() }()
	stores := map[image.Class]*image.Store{}
	for _, class := range image.Classes {
		config := image.Config{Class: class, NoHost: class != image.ClassMachine}
		if user {
			if config, err = image.UserConfig(class); err != nil {
				return fmt.Errorf("find images of the user: %w", err)
			}
		}
		config.Log = log
		store := image.NewStore(config)
		if err := store.CleanTemporary(); err != nil {
			log.WithError(err).Warn("Leftovers not removed")
		}
		stores[class] = store
	}
	authority := polkit.New(conn)
	srv := server.New(server.Config{
		Conn: conn, Authority: authority, Launcher: launcher{}, Stores: stores, User: user,
		Log: log.WithField("component", "import1"),
	})
	if err := srv.Export(ctx); err != nil {
		return err
	}
	if err := srv.RequestName(ctx); err != nil {
		return err
	}
	endVarlink, err := serveVarlink(ctx, user, srv, authority, log.WithField("component", "varlink"))
	if err != nil {
		return err
	}
	endVarlink = sync.OnceFunc(endVarlink)
	defer endVarlink()
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	lost := conn.Context()
	var watchdog sync.WaitGroup
	defer watchdog.Wait()
	running, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(lost, stop)()
	watchdog.Go(func() { feedWatchdog(running) })
	defer stop()
	if idle <= 0 {
		idle = 1<<63 - 1
	}
	// Idle or asked to end: both are good ends.
	idled := srv.WaitIdle(running, idle) == nil
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	if !idled {
		srv.Close() // while clients still know by our name who tells them of the ends
	}
	if lost.Err() == nil {
		_ = srv.ReleaseName(context.WithoutCancel(ctx))
	}
	endVarlink()
	if idled {
		srv.Drain() // what came in just before the name was given back
	}
	srv.Close()
	if lost.Err() != nil {
		return errors.New("the bus has closed the connection")
	}
	return nil
}

// feedWatchdog tells the service manager that we are alive, as often as it wants
// (sd_watchdog_enabled(3)).
func feedWatchdog(ctx context.Context) {
	span, err := daemon.SdWatchdogEnabled(false)
	if err != nil || span <= 0 {
		return
	}
	tick := time.NewTicker(span / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}
}

// lineFormatter writes one line per entry, with a priority for the journal.
type lineFormatter struct{ journal bool }

func (f *lineFormatter) Format(e *logrus.Entry) ([]byte, error) {
	prefix := ""
	if f.journal {
		prefix = map[logrus.Level]string{logrus.FatalLevel: "<2>", logrus.ErrorLevel: "<3>", logrus.WarnLevel: "<4>", logrus.InfoLevel: "<6>"}[e.Level]
		if prefix == "" {
			prefix = "<7>"
		}
	}
	line := prefix + e.Message
	if id, ok := e.Data["transfer"]; ok {
		line = fmt.Sprintf("%s(transfer%v) %s", prefix, id, e.Message)
	}
	for _, key := range []string{"image", "result"} {
		if value, ok := e.Data[key]; ok {
			line += fmt.Sprintf(" %s=%v", key, value)
		}
	}
	if err, ok := e.Data[logrus.ErrorKey]; ok {
		line += fmt.Sprintf(": %v", err)
	}
	return []byte(line + "\n"), nil
}
