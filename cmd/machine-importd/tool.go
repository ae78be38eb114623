package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"machined/image"
	"machined/internal/cli"
	"machined/transfer"
)

// tool is one of the programs that do a single transfer in their own process:
// systemd-pull, systemd-import, systemd-import-fs and systemd-export. They are not
// for people; systemd-sysupdate(8), stock's importd and units call them.
type tool struct {
	name string
	req  transfer.Request
	// How the request is finished when all options are known.
	class, root, format     string
	direct, user            bool
	offset, sizeMax         int64
	quota                   bool
	keepDownload, settings  *bool
	roothash, rootsig, veri bool
}

// errToolDone is returned by options that are all that was wanted.
var errToolDone = errors.New("done")

// tools are the names that such a program may be called by, with their verbs.
var tools = map[string]map[string]transfer.Kind{
	"systemd-pull":      {"tar": transfer.PullTar, "raw": transfer.PullRaw},
	"systemd-import":    {"tar": transfer.ImportTar, "raw": transfer.ImportRaw},
	"systemd-import-fs": {"run": transfer.ImportFS},
	"systemd-export":    {"tar": transfer.ExportTar, "raw": transfer.ExportRaw},
}

// runTool does what the arguments of one of the tools say. It returns the exit status.
func runTool(name string, args []string) int {
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer cancel()
	signal.Ignore(unix.SIGPIPE)
	say := printer()
	err := (&tool{name: name, class: string(image.ClassMachine), offset: -1, sizeMax: -1, quota: true, roothash: true, rootsig: true, veri: true}).run(ctx, args, say)
	var usage *cli.UsageError
	switch {
	case err == nil, errors.Is(err, errToolDone):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, usage.Text)
	case ctx.Err() != nil:
		say(transfer.Notice, "Transfer aborted.")
	default:
		say(transfer.Err, err.Error())
	}
	return 1
}

// printer writes lines on standard error, with their priority where it is the journal.
func printer() func(priority int, line string) {
	journal := os.Getenv("JOURNAL_STREAM") != ""
	return func(priority int, line string) {
		switch {
		case priority >= transfer.Debug && os.Getenv("SYSTEMD_LOG_LEVEL") != "debug":
		case journal:
			fmt.Fprintf(os.Stderr, "<%d>%s\n", priority, line)
		default:
			fmt.Fprintln(os.Stderr, line)
		}
	}
}

func (t *tool) run(ctx context.Context, args []string, say func(int, string)) error {
	t.environment(say)
	words, err := (&cli.Options{Program: t.name, Table: t.options()}).Parse(args)
	if err != nil {
		return err
	}
	if len(words) == 0 || words[0] == "help" {
		t.help()
		return nil
	}
	kind, ok := tools[t.name][words[0]]
	if !ok {
		return cli.Failf("Unknown command verb '%s'.", words[0])
	}
	if len(words) < 2 {
		return cli.Failf("Too few arguments.")
	}
	if len(words) > 3 {
		return cli.Failf("Too many arguments.")
	}
	t.req.Kind = kind
	local := ""
	named := len(words) == 3
	if named && words[2] != "-" {
		local = words[2]
	}
	file, err := t.finish(words[1], local, named)
	if err != nil {
		return err
	}
	if file != nil {
		defer func() { _ = file.Close() }()
	}
	t.req.Log = say
	told := -1
	t.req.Progress = func(fraction float64) {
		if percent := int(fraction * 100); percent != told {
			told = percent
			_, _ = daemon.SdNotify(false, "X_IMPORT_PROGRESS="+strconv.Itoa(percent)+"%")
		}
	}
	if err := t.setupPool(); err != nil {
		say(transfer.Warning, fmt.Sprintf("Failed to set up quota, ignoring: %v", err))
	}
	if err := sandbox(t.req); err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	if err := transfer.Run(ctx, t.req); err != nil {
		return err
	}
	say(transfer.Info, "Exiting.")
	return nil
}

// finish makes the request of options and words. It returns a file to close.
func (t *tool) finish(source, local string, named bool) (*os.File, error) {
	req := &t.req
	req.Class = image.Class(t.class)
	if (t.offset >= 0) && !t.direct {
		return nil, cli.Failf("File offset only supported in --direct mode.")
	}
	req.ImageRoot = t.root
	if t.user && t.root == "" {
		return nil, cli.Failf("Per-user mode needs --image-root=.")
	}
	if t.root != "" {
		if !filepath.IsAbs(t.root) {
			return nil, cli.Failf("Image root '%s' is not absolute.", t.root)
		}
		if t.root != image.PoolDir(req.Class) {
			req.SearchPath = []string{t.root}
		}
	} else {
		req.ImageRoot = image.PoolDir(req.Class)
	}
	switch req.Kind {
	case transfer.PullTar, transfer.PullRaw:
		return nil, t.finishPull(source, local, named)
	case transfer.ExportTar, transfer.ExportRaw:
		return t.finishExport(source, local)
	}
	return t.finishImport(source, local, named)
}

func (t *tool) finishPull(source, local string, named bool) error {
	req := &t.req
	if err := transfer.CheckURL(source); err != nil {
		return cli.Failf("URL '%s' is not valid.", source)
	}
	req.Remote = source
	if !named {
		name, err := transfer.NameOf(source, req.Kind)
		if err != nil {
			return err
		}
		local = name
	}
	req.KeepDownload = req.Class == image.ClassMachine
	if t.keepDownload != nil {
		req.KeepDownload = *t.keepDownload
	}
	if t.settings != nil && !*t.settings {
		req.NoSide = append(req.NoSide, ".nspawn")
	}
	for suffix, wanted := range map[string]bool{".roothash": t.roothash, ".roothash.p7s": t.roothash && t.rootsig, ".verity": t.veri} {
		if !wanted {
			req.NoSide = append(req.NoSide, suffix)
		}
	}
	if !t.direct {
		return t.nameImage(local)
	}
	if local == "" && req.Kind == transfer.PullTar {
		return cli.Failf("Pulling tar images to STDOUT is not supported.")
	}
	return t.writeTo(local)
}

// writeTo makes the transfer a direct one, to a path or to standard output.
func (t *tool) writeTo(local string) error {
	d := &transfer.Direct{Offset: t.offset, SizeMax: t.sizeMax}
	if local == "" {
		d.Out = os.Stdout
	} else {
		if !filepath.IsAbs(local) {
			local = filepath.Join(t.req.ImageRoot, local)
		}
		d.Path = filepath.Clean(local)
	}
	t.req.Direct, t.req.Local = d, ""
	return nil
}

func (t *tool) nameImage(local string) error {
	if local != "" && !image.ValidName(local) {
		return cli.Failf("Local image name '%s' is not valid.", local)
	}
	t.req.Local = local
	return nil
}

func (t *tool) finishImport(source, local string, named bool) (*os.File, error) {
	req := &t.req
	if !named && source != "-" {
		local = transfer.NameOfFile(filepath.Base(source), req.Kind)
	}
	if t.direct {
		if local == "" {
			return nil, cli.Failf("No local path specified.")
		}
		_ = t.writeTo(local)
	} else {
		if local == "" {
			local = "imported"
		}
		if err := t.nameImage(local); err != nil {
			return nil, err
		}
	}
	if source == "" || source == "-" {
		req.File, req.Remote = os.Stdin, streamName(os.Stdin)
		return nil, nil
	}
	flags := unix.O_RDONLY | unix.O_NOCTTY
	if req.Kind == transfer.ImportFS {
		flags |= unix.O_DIRECTORY
	}
	f, err := os.OpenFile(source, flags, 0)
	if err != nil {
		return nil, cli.Failf("Failed to open source file '%s': %s", source, cli.Strerror(errnoOf(err)))
	}
	req.File, req.Remote = f, source
	return f, nil
}

func (t *tool) finishExport(source, file string) (*os.File, error) {
	req := &t.req
	if image.ValidName(source) && !strings.Contains(source, "/") {
		req.Local = source
	} else {
		path, err := filepath.Abs(source)
		if err != nil {
			return nil, err
		}
		req.Source = path
	}
	format := t.format
	if format == "" {
		format = transfer.FormatOfName(file)
	}
	var err error
	if req.Format, err = transfer.ParseFormat(format); err != nil {
		return nil, cli.Failf("Unknown format: %s", t.format)
	}
	if file == "" {
		req.File, req.Remote = os.Stdout, streamName(os.Stdout)
		return nil, nil
	}
	f, err := os.OpenFile(file, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOCTTY, 0o666)
	if err != nil {
		return nil, cli.Failf("Failed to open '%s' for export: %s", file, cli.Strerror(errnoOf(err)))
	}
	req.File, req.Remote = f, file
	return f, nil
}

// streamName is how a standard stream is called in messages.
func streamName(f *os.File) string {
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return f.Name()
	}
	return name
}

func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return unix.EIO
}

// setupPool is what importd does before it makes a machine's image.
func (t *tool) setupPool() error {
	if !t.quota || t.req.Direct != nil || t.req.Class != image.ClassMachine || t.req.ImageRoot != image.PoolDir(t.req.Class) ||
		t.req.Kind == transfer.ExportTar || t.req.Kind == transfer.ExportRaw {
		return nil
	}
	return image.NewStore(image.Config{Class: t.req.Class, Log: logrus.StandardLogger()}).SetupPool()
}

// environment takes the defaults that the unit of importd may set.
func (t *tool) environment(say func(int, string)) {
	for _, row := range []struct {
		name string
		set  func(on bool)
	}{
		{"SYSTEMD_IMPORT_BTRFS_SUBVOL", func(on bool) { t.req.PlainDirectory = !on }},
		{"SYSTEMD_IMPORT_BTRFS_QUOTA", func(on bool) { t.quota = on }},
		{"SYSTEMD_IMPORT_SYNC", func(on bool) { t.req.NoSync = !on }},
	} {
		value, ok := os.LookupEnv(row.name)
		if !ok {
			continue
		}
		on, err := cli.ParseBool(value)
		if err != nil {
			say(transfer.Warning, fmt.Sprintf("Failed to parse $%s: %s", row.name, value))
			continue
		}
		row.set(on)
	}
}

// checksumOf reads a checksum that is given in the place of a verification mode.
func checksumOf(arg string) ([]byte, error) {
	sum, err := hex.DecodeString(arg)
	if err != nil || len(sum) == 0 {
		return nil, cli.Failf("Invalid verification setting: %s", arg)
	}
	if len(sum) != 32 {
		return nil, cli.Failf("64 hex character SHA256 hash required when specifying explicit checksum, %d specified", len(sum)*2)
	}
	return sum, nil
}
