// Package transfer owns the engines that bring images in and out: import, export
// and pull of trees and disks, with compression, verification and progress. One
// call of Run does one transfer, in the process of its caller, which sandboxes
// it. It never talks to a bus and takes no authorisation decision; locking and
// naming of finished images are image's.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"machined/image"
)

// Kind says what a transfer does.
type Kind string

// The kinds of org.freedesktop.import1(5).
const (
	ImportTar Kind = "import-tar"
	ImportRaw Kind = "import-raw"
	ImportFS  Kind = "import-fs"
	ExportTar Kind = "export-tar"
	ExportRaw Kind = "export-raw"
	ExportOCI Kind = "export-oci"
	PullTar   Kind = "pull-tar"
	PullRaw   Kind = "pull-raw"
	PullOCI   Kind = "pull-oci"
)

// Pulls says whether a transfer of this kind fetches from elsewhere.
func (k Kind) Pulls() bool { return k == PullTar || k == PullRaw || k == PullOCI }

// Exports says whether a transfer of this kind takes an image away.
func (k Kind) Exports() bool { return k == ExportTar || k == ExportRaw || k == ExportOCI }

// Verify says what a pulled file is checked against.
type Verify string

// The verification modes of org.freedesktop.import1(5).
const (
	VerifyNo        Verify = "no"
	VerifyChecksum  Verify = "checksum"
	VerifySignature Verify = "signature"
)

// ParseVerify reads a verification mode; an empty one means signature.
func ParseVerify(s string) (Verify, error) {
	switch v := Verify(s); v {
	case "":
		return VerifySignature, nil
	case VerifyNo, VerifyChecksum, VerifySignature:
		return v, nil
	}
	return "", fmt.Errorf("%w: unknown verification mode %q", ErrInvalid, s)
}

// Sentinel errors of this package.
var (
	ErrInvalid      = errors.New("invalid argument")
	ErrArchive      = errors.New("bad archive")
	ErrVerification = errors.New("verification failed")
	ErrNotSupported = errors.New("not supported")
)

// Priorities of log lines (syslog(3)).
const (
	Err     = 3
	Warning = 4
	Notice  = 5
	Info    = 6
	Debug   = 7
)

// Request describes a transfer.
type Request struct {
	Kind   Kind
	Class  image.Class
	Local  string // name of the image; empty on pull: only the hidden downloads
	Remote string // URL of a pull, else how the file is called in messages
	Verify Verify
	Format Format // of an export
	Force  bool
	// ReadOnly marks the image that is made.
	ReadOnly bool
	// KeepDownload keeps a pristine hidden copy of what is pulled.
	KeepDownload bool
	// ImageRoot is where the image is made; empty means the pool of the class.
	ImageRoot string
	// SearchPath is where names are looked up; empty means that of the class.
	SearchPath []string
	// LockDir holds the image locks, NspawnDirs settings of images; empty means the host's.
	LockDir    string
	NspawnDirs []string
	// Keyrings are tried in order; nil means the host's.
	Keyrings []string
	// NoSync leaves writing to the disk to the kernel ($SYSTEMD_IMPORT_SYNC=0).
	NoSync bool
	// StallTimeout is how long a server may send next to nothing; 0 means a minute.
	StallTimeout time.Duration

	// OCI is what Prepare finds out for a pull-oci; RegistryDirs are where files about
	// registries lie, nil means the host's.
	OCI          *OCITarget `json:"-"`
	RegistryDirs []string

	// Direct makes no image of what comes.
	Direct *Direct
	// Checksum is the SHA256 of what is pulled, which then needs no checksum file
	// and has no files beside it. It goes before Verify.
	Checksum []byte
	// NoSide lists the suffixes of files beside a pulled image that are not wanted.
	NoSide []string
	// PlainDirectory makes no subvolume of a tree.
	PlainDirectory bool
	// KeepQcow2 leaves a qcow2 file as it is.
	KeepQcow2 bool
	// Source is what is exported, a path, in the place of the image Local.
	Source string

	// File is what is read or written; the directory for import-fs. It stays the caller's.
	File *os.File `json:"-"`
	// Progress is told how much is done, 0.0 to 1.0. Log gets lines for people.
	Progress func(fraction float64)          `json:"-"`
	Log      func(priority int, line string) `json:"-"`
}

// CheckURL says whether s can be pulled from: http, https or file, with a path.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "file") {
		return fmt.Errorf("%w: URL %q is not one of http, https or file", ErrInvalid, s)
	}
	if u.Scheme == "file" {
		if u.Path == "" || u.Path[0] != '/' {
			return fmt.Errorf("%w: URL %q has no absolute path", ErrInvalid, s)
		}
	} else if u.Host == "" {
		return fmt.Errorf("%w: URL %q has no host", ErrInvalid, s)
	}
	for i := range len(s) {
		if s[i] <= 0x20 || s[i] >= 0x7f {
			return fmt.Errorf("%w: URL %q has a character that must be escaped", ErrInvalid, s)
		}
	}
	return nil
}

type engine struct {
	Request
	store *image.Store
	last  int // percent told last
}

// Run does the transfer. When it returns an error nothing has become visible
// under the image's name.
func Run(ctx context.Context, req Request) error {
	if req.Class == "" {
		req.Class = image.ClassMachine
	}
	if req.ImageRoot == "" {
		req.ImageRoot = image.PoolDir(req.Class)
	}
	if req.Log == nil {
		req.Log = func(int, string) {}
	}
	if req.Progress == nil {
		req.Progress = func(float64) {}
	}
	path := req.SearchPath
	if path == nil {
		path = image.SearchPath(req.Class)
	}
	e := &engine{Request: req, last: -1, store: image.NewStore(image.Config{
		Class: req.Class, PoolDir: req.ImageRoot, SearchPath: path, LockDir: req.LockDir, NspawnDirs: req.NspawnDirs, NoHost: true,
	})}
	if req.Local != "" {
		if err := image.CheckName(req.Local); err != nil {
			return err
		}
	}
	if req.Direct != nil {
		return e.direct(ctx)
	}
	switch req.Kind {
	case ImportTar, ImportRaw, ImportFS:
		return e.importFile(ctx)
	case ExportTar, ExportRaw, ExportOCI:
		return e.export(ctx)
	case PullTar, PullRaw:
		return e.pull(ctx)
	case PullOCI:
		return e.pullOCI(ctx)
	}
	return fmt.Errorf("%w: unknown kind of transfer %q", ErrInvalid, req.Kind)
}

func (e *engine) logf(priority int, format string, args ...any) {
	e.Log(priority, fmt.Sprintf(format, args...))
}

// progress passes a fraction on; it returns the whole percentage when that is new.
func (e *engine) progress(done, total int64) (percent int, fresh bool) {
	if total <= 0 {
		return 0, false
	}
	fraction := min(float64(done)/float64(total), 1)
	percent = int(fraction * 100)
	if percent == e.last {
		return percent, false
	}
	e.last = percent
	e.Progress(fraction)
	return percent, true
}
