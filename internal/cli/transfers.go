package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Flags of org.freedesktop.import1(5).
const (
	flagForce        uint64 = 1
	flagReadOnly     uint64 = 2
	flagKeepDownload uint64 = 4
)

// Classes are the kinds of images that can be transferred, with their folders.
var Classes = []struct{ Name, Folder string }{
	{"machine", "/var/lib/machines"}, {"portable", "/var/lib/portables"},
	{"sysext", "/var/lib/extensions"}, {"confext", "/var/lib/confexts"},
}

// Transfers runs the transfer verbs that machinectl and importctl share.
type Transfers struct {
	Terminal      *Terminal
	Target        Target
	Ask           bool
	Program       string // named in hints
	Class         string // "" where none was given
	Verify        string // "" means signature
	Format        string // "" follows the file's name
	Force         bool
	ReadOnly      bool
	KeepDownload  *bool // nil: for machine images only
	Quiet, Legend bool
	Full, NoPager bool
	JSON          JSONMode

	bus  *Bus
	size uint64 // of what is imported, in bytes; 0: not known
}

// TransferVerbs are the verbs that Run knows, in the order of the help.
var TransferVerbs = []string{"pull-tar", "pull-raw", "pull-oci", "import-tar", "import-raw", "import-fs", "export-tar",
	"export-raw", "export-oci", "list-transfers", "cancel-transfer", "list-images"}

// CheckVerify reads an argument of --verify=.
func CheckVerify(arg string, into *string) error {
	switch arg {
	case "no", "checksum", "signature":
		*into = arg
		return nil
	}
	return Failf("Failed to parse --verify= setting: %s", arg)
}

// CheckFormat reads an argument of --format=.
func CheckFormat(arg string, into *string) error {
	switch arg {
	case "uncompressed", "xz", "gzip", "bzip2", "zstd":
		*into = arg
		return nil
	}
	return Failf("Unknown format: %s", arg)
}

// Run does one verb.
func (t *Transfers) Run(ctx context.Context, verb string, args []string) error {
	least, most := 1, 2
	switch verb {
	case "list-transfers", "list-images":
		least, most = 0, 0
	case "cancel-transfer":
		most = -1
	}
	if len(args) < least {
		return Failf("Too few arguments.")
	}
	if most >= 0 && len(args) > most {
		return Failf("Too many arguments.")
	}
	second := ""
	if len(args) > 1 {
		second = args[1]
	}
	if t.Class == "" && least > 0 && verb != "cancel-transfer" {
		var all []string
		for _, class := range Classes {
			all = append(all, fmt.Sprintf("%s (downloads to %s/)", class.Name, class.Folder))
		}
		return Failf("No image class specified, retry with --class= set to one of: %s.", strings.Join(all, ", "))
	}
	kind, what, _ := strings.Cut(verb, "-")
	switch {
	case verb == "list-transfers":
		return t.list(ctx)
	case verb == "list-images":
		return t.listImages(ctx)
	case verb == "cancel-transfer":
		return t.cancel(ctx, args)
	case kind == "pull":
		return t.pull(ctx, what, args[0], second)
	case kind == "import":
		return t.importFile(ctx, what, args[0], second)
	}
	if what == "oci" {
		return t.exportOCI(ctx, args[0], second)
	}
	return t.export(ctx, what, args[0], second)
}

func (t *Transfers) connect(ctx context.Context) (func(), error) {
	conn, err := t.Target.Connect(ctx)
	if err != nil {
		return nil, err
	}
	t.bus = &Bus{Conn: conn, Ask: t.Ask}
	return func() { _ = conn.Close() }, nil
}

func (t *Transfers) flags(keepable bool) uint64 {
	var flags uint64
	if t.Force {
		flags |= flagForce
	}
	if t.ReadOnly {
		flags |= flagReadOnly
	}
	keep := t.Class == "machine"
	if t.KeepDownload != nil {
		keep = *t.KeepDownload
	}
	if keepable && keep {
		flags |= flagKeepDownload
	}
	return flags
}

var archiveSuffixes = map[string][]string{
	"tar": {".tar.xz", ".tar.gz", ".tar.bz2", ".tar.zst", ".tgz", ".tar"},
	"raw": {".xz", ".gz", ".bz2", ".zst", ".sysext.raw", ".confext.raw", ".raw", ".qcow2", ".img", ".bin"},
}

// imageName makes a name for an image of a file's name, without the endings
// that say what it is.
func imageName(kind, file string) string {
	switch kind {
	case "tar":
		for _, suffix := range archiveSuffixes["tar"] {
			if rest, ok := strings.CutSuffix(file, suffix); ok && rest != "" {
				return rest
			}
		}
	case "raw":
		for again := true; again; {
			again = false
			for _, suffix := range archiveSuffixes["raw"] {
				if rest, ok := strings.CutSuffix(file, suffix); ok && rest != "" {
					file, again = rest, true
					break
				}
			}
		}
	}
	return file
}

// validImage says whether name can be an image's name.
func validImage(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.HasPrefix(name, ".#") || !utf8.ValidString(name) {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r < ' ' || r == 0x7f })
}

func checkImageName(name string) error {
	if !validImage(name) {
		return Failf("Local name %s is not a suitable image name.", Printable(name, false))
	}
	return nil
}

func (t *Transfers) pull(ctx context.Context, what, url, local string) error {
	if what == "oci" {
		return t.pullOCI(ctx, url, local)
	}
	rest, ok := afterScheme(url)
	if !ok {
		return Failf("URL '%s' is not valid.", Printable(url, false))
	}
	given := local != ""
	if !given {
		last := lastPart(rest)
		if last == "" {
			return Because("Failed to get final component of URL", unix.EADDRNOTAVAIL)
		}
		local = imageName(what, last)
	}
	if local == "-" {
		local = ""
	} else if err := checkImageName(local); err != nil {
		return err
	}
	verify := t.Verify
	if verify == "" {
		verify = "signature"
	}
	method := "Pull" + title(what)
	flags := t.flags(true)
	return t.follow(ctx, func(bus *Bus, id *uint32, object *godbus.ObjectPath) error {
		if t.Class != "machine" || flags&^flagForce != 0 {
			err := bus.Call(ctx, Importd, method+"Ex", []any{url, local, t.Class, verify, flags}, id, object)
			// An older service knows machine images only, and always keeps downloads.
			if !IsUnsupported(err) || t.Class != "machine" || flags&flagReadOnly != 0 {
				return err
			}
		}
		return bus.Call(ctx, Importd, method, []any{url, local, verify, t.Force}, id, object)
	})
}

// afterScheme is what follows the scheme of a URL that can be pulled: host and path.
func afterScheme(url string) (rest string, ok bool) {
	scheme, rest, _ := strings.Cut(url, ":")
	switch strings.ToLower(scheme) {
	case "http", "https":
		rest, ok = strings.CutPrefix(rest, "//")
		return rest, ok && rest != ""
	case "file":
		if path, slashes := strings.CutPrefix(rest, "//"); slashes {
			return path, strings.Contains(path, "/")
		}
		return rest, strings.HasPrefix(rest, "/")
	}
	return "", false
}

// lastPart is the file name in what follows the scheme of a URL; "" where it has none.
func lastPart(rest string) string {
	rest, _, _ = strings.Cut(rest, "?")
	rest, _, _ = strings.Cut(rest, "#")
	_, inside, _ := strings.Cut(rest, "/") // after the host
	if inside = strings.TrimRight(inside, "/"); inside == "" {
		return ""
	}
	return path.Base(inside)
}

func title(what string) string {
	if what == "fs" {
		return "FileSystem"
	}
	return strings.ToUpper(what[:1]) + what[1:]
}

func (t *Transfers) importFile(ctx context.Context, what, file, local string) error {
	stdin := file == "" || file == "-"
	if local == "-" {
		local = ""
	}
	if local == "" {
		if stdin {
			return Failf("Need either path or local name.")
		}
		absolute, err := filepath.Abs(file)
		if err != nil {
			return Because("Failed to make path absolute", err)
		}
		local = imageName(what, filepath.Base(absolute))
	}
	if err := checkImageName(local); err != nil {
		return err
	}
	source := os.Stdin
	if !stdin {
		flags, failed := os.O_RDONLY, "Failed to open "+file
		if what == "fs" {
			flags, failed = unix.O_RDONLY|unix.O_DIRECTORY, "Failed to open directory '"+file+"'"
		}
		opened, err := os.OpenFile(file, flags, 0)
		if err != nil {
			return Because(failed, err)
		}
		defer opened.Close()
		source = opened
		if st, err := opened.Stat(); err == nil && st.Mode().IsRegular() {
			t.size = uint64(st.Size())
		}
	}
	method := "Import" + title(what)
	flags := t.flags(false)
	return t.follow(ctx, func(bus *Bus, id *uint32, object *godbus.ObjectPath) error {
		fd := godbus.UnixFD(source.Fd())
		if t.Class != "machine" {
			return bus.Call(ctx, Importd, method+"Ex", []any{fd, local, t.Class, flags}, id, object)
		}
		return bus.Call(ctx, Importd, method, []any{fd, local, t.Force, t.ReadOnly}, id, object)
	})
}

func (t *Transfers) export(ctx context.Context, what, local, file string) (failed error) {
	if !validImage(local) {
		return Failf("Image name %s is not valid.", Printable(local, false))
	}
	format := t.Format
	target := os.Stdout
	if file == "" || file == "-" {
		if term.IsTerminal(1) {
			return Failf("Refusing to write archive to TTY. Name a file, or redirect the output.")
		}
	} else {
		if format == "" {
			format = formatOf(file)
		}
		opened, drop, err := createFile(file)
		if err != nil {
			return Failf("Failed to open %s: %s", file, Reason(err))
		}
		defer opened.Close()
		defer func() { drop(ctx, failed) }()
		target = opened
	}
	method := "Export" + title(what)
	return t.follow(ctx, func(bus *Bus, id *uint32, object *godbus.ObjectPath) error {
		fd := godbus.UnixFD(target.Fd())
		if t.Class != "machine" {
			return bus.Call(ctx, Importd, method+"Ex", []any{local, t.Class, fd, format, uint64(0)}, id, object)
		}
		return bus.Call(ctx, Importd, method, []any{local, fd, format}, id, object)
	})
}

// createFile opens a file to be written anew by a transfer. drop is called with how that
// ended, and removes what has failed when it was not there before: half an archive is of
// use to nobody. What goes on in the background stays.
func createFile(path string) (file *os.File, drop func(ctx context.Context, failed error), err error) {
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOCTTY
	file, err = os.OpenFile(path, flags|os.O_EXCL, 0o666)
	if err == nil {
		return file, func(ctx context.Context, failed error) {
			if failed == nil || ctx.Err() != nil || errors.Is(failed, errBusLost) {
				return
			}
			mine, err := file.Stat()
			there, statErr := os.Lstat(path)
			if err == nil && statErr == nil && os.SameFile(mine, there) {
				_ = os.Remove(path)
			}
		}, nil
	}
	file, err = os.OpenFile(path, flags|os.O_TRUNC, 0o666)
	return file, func(context.Context, error) {}, err
}

func formatOf(file string) string {
	for suffix, format := range map[string]string{".xz": "xz", ".gz": "gzip", ".tgz": "gzip", ".bz2": "bzip2", ".zst": "zstd"} {
		if strings.HasSuffix(file, suffix) {
			return format
		}
	}
	return ""
}

func (t *Transfers) cancel(ctx context.Context, args []string) error {
	stop, err := t.connect(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if t.Ask && t.Target.Local() {
		defer StartAgent(ctx)()
	}
	for _, arg := range args {
		id, err := strconv.ParseUint(arg, 10, 32)
		if err != nil {
			return Failf("Failed to parse transfer id: %s", arg)
		}
		if err := t.bus.Call(ctx, Importd, "CancelTransfer", []any{uint32(id)}); err != nil {
			return Because("Could not cancel transfer", err)
		}
	}
	return nil
}
