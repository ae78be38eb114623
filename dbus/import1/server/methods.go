package server

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/dbus/import1"
	"machined/image"
	"machined/internal/cli"
	"machined/transfer"
)

// Actions of the polkit policy, without their prefix.
const (
	actionImport = "import"
	actionExport = "export"
	actionPull   = "pull"
	actionCancel = "cancel"
)

func (s *Server) managerInterface() *dbus.Interface {
	started := dbus.Args("u transfer_id", "o transfer_path")
	method := func(name string, in []dbus.Arg, out []dbus.Arg, handler dbus.Handler) dbus.Method {
		return dbus.Method{Name: name, In: in, Out: out, Handler: func(ctx context.Context, c *dbus.Call, object any) ([]any, error) {
			s.touch()
			values, err := handler(ctx, c, object)
			if err != nil {
				return nil, named(err)
			}
			return values, nil
		}}
	}
	imports := func(name string, kind transfer.Kind) []dbus.Method {
		return []dbus.Method{
			method(name, dbus.Args("h fd", "s local_name", "b force", "b read_only"), started, func(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
				return s.importFile(ctx, c, kind, string(image.ClassMachine), boolFlags(c.Bool(2), c.Bool(3)))
			}),
			method(name+"Ex", dbus.Args("h fd", "s local_name", "s class", "t flags"), started, func(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
				return s.importFile(ctx, c, kind, c.String(2), c.Uint64(3))
			}),
		}
	}
	exports := func(name string, kind transfer.Kind) []dbus.Method {
		return []dbus.Method{
			method(name, dbus.Args("s local_name", "h fd", "s format"), started, func(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
				return s.export(ctx, c, kind, string(image.ClassMachine), 1, c.String(2), 0)
			}),
			method(name+"Ex", dbus.Args("s local_name", "s class", "h fd", "s format", "t flags"), started, func(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
				return s.export(ctx, c, kind, c.String(1), 2, c.String(3), c.Uint64(4))
			}),
		}
	}
	pulls := func(name string, kind transfer.Kind) []dbus.Method {
		return []dbus.Method{
			method(name, dbus.Args("s url", "s local_name", "s verify_mode", "b force"), started, func(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
				return s.pull(ctx, c, kind, string(image.ClassMachine), c.String(2), boolFlags(c.Bool(3), false))
			}),
			method(name+"Ex", dbus.Args("s url", "s local_name", "s class", "s verify_mode", "t flags"), started, func(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
				return s.pull(ctx, c, kind, c.String(2), c.String(3), c.Uint64(4))
			}),
		}
	}
	i := &dbus.Interface{Name: import1.ManagerInterface}
	i.Methods = append(i.Methods, imports("ImportTar", transfer.ImportTar)...)
	i.Methods = append(i.Methods, imports("ImportRaw", transfer.ImportRaw)...)
	i.Methods = append(i.Methods, imports("ImportFileSystem", transfer.ImportFS)...)
	i.Methods = append(i.Methods, exports("ExportTar", transfer.ExportTar)...)
	i.Methods = append(i.Methods, exports("ExportRaw", transfer.ExportRaw)...)
	i.Methods = append(i.Methods, pulls("PullTar", transfer.PullTar)...)
	i.Methods = append(i.Methods, pulls("PullRaw", transfer.PullRaw)...)
	i.Methods = append(i.Methods,
		method("PullOci", dbus.Args("s reference", "s local_name", "s class", "t flags"), started, s.pullOCI),
		method("ListTransfers", nil, dbus.Args("a(usssdo) transfers"), s.listTransfers),
		method("ListTransfersEx", dbus.Args("s class", "t flags"), dbus.Args("a(ussssdo) transfers"), s.listTransfersEx),
		method("CancelTransfer", dbus.Args("u transfer_id"), nil, s.cancelTransfer),
		method("ListImages", dbus.Args("s class", "t flags"), dbus.Args("a(ssssbtttttt) images"), s.listImages),
	)
	i.Signals = []dbus.Signal{
		{Name: "TransferNew", Args: dbus.Args("u transfer_id", "o transfer_path")},
		{Name: "TransferRemoved", Args: dbus.Args("u transfer_id", "o transfer_path", "s result")},
	}
	return i
}

// ownInterface is what stock has not.
func (s *Server) ownInterface() *dbus.Interface {
	return &dbus.Interface{Name: import1.OwnInterface, Methods: []dbus.Method{{
		Name: "ExportOCI", In: dbus.Args("s local_name", "s class", "h fd", "s format", "t flags"), Out: dbus.Args("u transfer_id", "o transfer_path"),
		Handler: func(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
			s.touch()
			values, err := s.export(ctx, c, transfer.ExportOCI, c.String(1), 2, c.String(3), c.Uint64(4))
			if err != nil {
				return nil, named(err)
			}
			return values, nil
		},
	}}}
}

func boolFlags(force, readOnly bool) uint64 {
	flags := uint64(0)
	if force {
		flags |= import1.FlagForce
	}
	if readOnly {
		flags |= import1.FlagReadOnly
	}
	return flags
}

func invalid(format string, args ...any) error {
	return dbus.Errorf(dbus.ErrorInvalidArgs, format, args...)
}

// prepare checks what all transfers have in common.
func (s *Server) prepare(kind transfer.Kind, class, local string, flags, allowed uint64) (transfer.Request, error) {
	req := transfer.Request{
		Kind: kind, Class: image.Class(class), Local: local, Verify: transfer.VerifyNo,
		Force: flags&import1.FlagForce != 0, ReadOnly: flags&import1.FlagReadOnly != 0, KeepDownload: flags&import1.FlagKeepDownload != 0,
		NoSync: switchedOff("SYSTEMD_IMPORT_SYNC"), PlainDirectory: switchedOff("SYSTEMD_IMPORT_BTRFS_SUBVOL"),
	}
	store := s.cfg.Stores[req.Class]
	if store == nil {
		return req, invalid("Image class '%s' not known", class)
	}
	if flags&^allowed != 0 {
		return req, invalid("Flags 0x%x invalid", flags)
	}
	if local != "" || !kind.Pulls() {
		if !image.ValidName(local) {
			return req, invalid("Local image name %s is invalid", cli.Printable(local, false))
		}
	}
	req.ImageRoot = store.PoolPath()
	if s.cfg.User {
		req.SearchPath, req.NspawnDirs, req.LockDir = store.Places()
	}
	return req, nil
}

// switchedOff says whether a variable of the unit's environment is a false boolean.
func switchedOff(name string) bool {
	on, err := cli.ParseBool(os.Getenv(name))
	return err == nil && !on
}

// run starts a transfer and tells its id.
func (s *Server) run(req transfer.Request) ([]any, error) {
	t, err := s.launch(req, Watch{})
	if err != nil {
		return nil, err
	}
	return []any{t.id, import1.TransferPath(t.id)}, nil
}

func (s *Server) launch(req transfer.Request, watch Watch) (*running, error) {
	if req.Class == image.ClassMachine && !s.cfg.User && !switchedOff("SYSTEMD_IMPORT_BTRFS_QUOTA") && !req.Kind.Exports() {
		// Off btrfs there is nothing to set up, and without quota images work as well.
		if err := s.cfg.Stores[req.Class].SetupPool(); err != nil {
			s.log.WithError(err).Warn("Pool not set up")
		}
	}
	return s.start(req, watch)
}

func (s *Server) importFile(ctx context.Context, c *dbus.Call, kind transfer.Kind, class string, flags uint64) ([]any, error) {
	req, err := s.prepare(kind, class, c.String(1), flags, import1.FlagForce|import1.FlagReadOnly)
	if err != nil {
		return nil, err
	}
	file, err := c.File(0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if err := checkFile(file, kind == transfer.ImportFS, unix.O_RDONLY); err != nil {
		return nil, err
	}
	if err := s.authorize(ctx, c, actionImport); err != nil {
		return nil, err
	}
	req.File, req.Remote = file, nameOf(file)
	return s.run(req)
}

func (s *Server) export(ctx context.Context, c *dbus.Call, kind transfer.Kind, class string, fd int, format string, flags uint64) ([]any, error) {
	req, err := s.prepare(kind, class, c.String(0), flags, 0)
	if err != nil {
		return nil, err
	}
	if kind == transfer.ExportOCI && format == "" {
		format = string(transfer.Gzip)
	}
	if req.Format, err = transfer.ParseFormat(format); err != nil {
		return nil, invalid("Unknown compression format %s", cli.Printable(format, false))
	}
	file, err := c.File(fd)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if err := checkFile(file, false, unix.O_WRONLY); err != nil {
		return nil, err
	}
	if err := s.authorize(ctx, c, actionExport); err != nil {
		return nil, err
	}
	req.File, req.Remote = file, nameOf(file)
	return s.run(req)
}

func (s *Server) pull(ctx context.Context, c *dbus.Call, kind transfer.Kind, class, verify string, flags uint64) ([]any, error) {
	req, err := s.preparePull(kind, class, c.String(0), c.String(1), verify, flags)
	if err != nil {
		return nil, err
	}
	if err := s.authorize(ctx, c, actionPull); err != nil {
		return nil, err
	}
	return s.run(req)
}

func (s *Server) pullOCI(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	req, err := s.preparePull(transfer.PullOCI, c.String(2), c.String(0), c.String(1), string(transfer.VerifyNo), c.Uint64(3))
	if err != nil {
		return nil, err
	}
	if err := s.authorize(ctx, c, actionPull); err != nil {
		return nil, err
	}
	return s.run(req)
}

// preparePull checks what a pull is given.
func (s *Server) preparePull(kind transfer.Kind, class, remote, local, verify string, flags uint64) (transfer.Request, error) {
	req, err := s.prepare(kind, class, local, flags, import1.FlagForce|import1.FlagReadOnly|import1.FlagKeepDownload)
	if err != nil {
		return req, err
	}
	req.Remote = remote
	if kind == transfer.PullOCI {
		if err := transfer.CheckReference(remote); err != nil {
			return req, invalid("OCI reference %s is invalid", cli.Printable(remote, false))
		}
	} else if err := transfer.CheckURL(remote); err != nil {
		return req, invalid("URL %s is invalid", cli.Printable(remote, false))
	}
	if req.Verify, err = transfer.ParseVerify(verify); err != nil {
		return req, invalid("Unknown verification mode %s", cli.Printable(verify, false))
	}
	return req, nil
}

// checkFile lets through what a transfer can read or write: a directory for
// dir, else a regular file or a FIFO.
func checkFile(f *os.File, dir bool, access int) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	bad := func(rule string) error {
		return fmt.Errorf("file descriptor of %q is %s: %w", nameOf(f), rule, unix.EINVAL)
	}
	if dir {
		if !st.IsDir() {
			return fmt.Errorf("open %q: %w", nameOf(f), unix.ENOTDIR)
		}
		if flags&unix.O_PATH != 0 {
			return bad("not open for reading")
		}
		return nil
	}
	if !st.Mode().IsRegular() && st.Mode().Type() != fs.ModeNamedPipe {
		return bad("that of neither a regular file nor a FIFO")
	}
	if mode := flags & unix.O_ACCMODE; flags&unix.O_PATH != 0 || (mode != unix.O_RDWR && mode != access) {
		return bad("open for the wrong direction")
	}
	return nil
}

// nameOf is how a descriptor that was handed over is called in messages.
func nameOf(f *os.File) string {
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return "file descriptor"
	}
	return name
}

func (s *Server) listTransfers(context.Context, *dbus.Call, any) ([]any, error) {
	rows := []import1.Transfer{}
	for _, t := range s.list() {
		rows = append(rows, import1.Transfer{
			ID: t.id, Type: string(t.req.Kind), Remote: t.req.Remote, Local: t.req.Local,
			Progress: s.progressOf(t), Path: import1.TransferPath(t.id),
		})
	}
	return []any{rows}, nil
}

func (s *Server) listTransfersEx(_ context.Context, c *dbus.Call, _ any) ([]any, error) {
	class := image.Class(c.String(0))
	if class != "" && s.cfg.Stores[class] == nil {
		return nil, invalid("Image class '%s' not known", class)
	}
	if flags := c.Uint64(1); flags != 0 {
		return nil, invalid("Flags 0x%x invalid", flags)
	}
	rows := []import1.TransferEx{}
	for _, t := range s.list() {
		if class != "" && t.req.Class != class {
			continue
		}
		rows = append(rows, import1.TransferEx{
			ID: t.id, Type: string(t.req.Kind), Remote: t.req.Remote, Local: t.req.Local, Class: string(t.req.Class),
			Progress: s.progressOf(t), Path: import1.TransferPath(t.id),
		})
	}
	return []any{rows}, nil
}

func (s *Server) cancelTransfer(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	id := c.Uint32(0)
	if id == 0 {
		return nil, invalid("Invalid transfer id")
	}
	if err := s.authorize(ctx, c, actionCancel); err != nil {
		return nil, err
	}
	s.mu.Lock()
	t := s.transfers[id]
	s.mu.Unlock()
	if t == nil {
		return nil, dbus.Errorf(import1.ErrorNoSuchTransfer, "No transfer by id %d", id)
	}
	s.stop(t)
	return nil, nil
}

func (s *Server) listImages(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	class := image.Class(c.String(0))
	if class != "" && s.cfg.Stores[class] == nil {
		return nil, invalid("Image class '%s' not known", class)
	}
	if flags := c.Uint64(1); flags != 0 {
		return nil, invalid("Flags 0x%x invalid", flags)
	}
	rows := []import1.Image{}
	for _, one := range image.Classes {
		store := s.cfg.Stores[one]
		if store == nil || (class != "" && class != one) {
			continue
		}
		list, err := store.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, img := range list {
			rows = append(rows, import1.Image{
				Class: string(one), Name: img.Name, Type: string(img.Type), Path: img.Path, ReadOnly: img.ReadOnly,
				Created: usec(img.Created), Modified: usec(img.Modified),
				Usage: img.Usage, UsageExclusive: img.UsageExclusive, Limit: img.Limit, LimitExclusive: img.LimitExclusive,
			})
		}
	}
	return []any{rows}, nil
}

func usec(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixMicro())
}

func (s *Server) transferInterface() *dbus.Interface {
	property := func(name, typ string, emits dbus.Emits, get func(t *running) any) dbus.Property {
		return dbus.Property{Name: name, Type: typ, Emits: emits, Get: func(_ context.Context, object any) (any, error) {
			s.touch()
			return get(object.(*running)), nil
		}}
	}
	return &dbus.Interface{
		Name: import1.TransferInterface,
		Methods: []dbus.Method{{Name: "Cancel", Handler: func(ctx context.Context, c *dbus.Call, object any) ([]any, error) {
			s.touch()
			if err := s.authorize(ctx, c, actionPull); err != nil {
				return nil, err
			}
			s.stop(object.(*running))
			return nil, nil
		}}},
		Properties: []dbus.Property{
			property("Id", "u", dbus.EmitsConst, func(t *running) any { return t.id }),
			property("Local", "s", dbus.EmitsConst, func(t *running) any { return t.req.Local }),
			property("Remote", "s", dbus.EmitsConst, func(t *running) any { return t.req.Remote }),
			property("Type", "s", dbus.EmitsConst, func(t *running) any { return string(t.req.Kind) }),
			property("Verify", "s", dbus.EmitsConst, func(t *running) any { return string(t.req.Verify) }),
			property("Progress", "d", dbus.EmitsFalse, func(t *running) any { return s.progressOf(t) }),
		},
		Signals: []dbus.Signal{
			{Name: "LogMessage", Args: dbus.Args("u priority", "s line")},
			{Name: "ProgressUpdate", Args: dbus.Args("d progress")},
		},
	}
}
