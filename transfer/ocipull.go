package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"machined/image"
	"machined/transfer/oci"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// maxLayerFetches is how many layers are fetched and unpacked at once.
const maxLayerFetches = 4

// OCITarget is what a pull-oci is about once the files of this host that speak of it
// have been read: those about registries and those with logins.
type OCITarget struct {
	Reference oci.Reference
	Login     authn.AuthConfig
}

// CheckReference says whether s names an OCI image: a reference to a registry, or
// one of the local forms with an absolute path.
func CheckReference(s string) error {
	if _, err := oci.Parse(s); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// Prepare does what a transfer needs before its process gives up its rights: for a
// pull-oci it finds the registry and the login, which may run a credential helper.
func Prepare(req *Request) error {
	if req.Kind != PullOCI || req.OCI != nil {
		return nil
	}
	ref, err := oci.Parse(req.Remote)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	dirs := req.RegistryDirs
	if dirs == nil {
		dirs = oci.RegistryDirs
	}
	target := &OCITarget{}
	if target.Reference, err = ref.Resolve(dirs); err != nil {
		return fmt.Errorf("pull %s: %w", req.Remote, err)
	}
	if !ref.Local() && target.Reference.Protocol != "file" {
		if target.Login, err = oci.Login(oci.LoginFiles(os.Getenv), oci.LoginNames(target.Reference)...); err != nil {
			return fmt.Errorf("pull %s: %w", req.Remote, err)
		}
	}
	req.OCI = target
	return nil
}

// Path is the file or directory on this host that the image is in, "" for none.
func (t *OCITarget) Path() string {
	switch {
	case t.Reference.Local():
		return t.Reference.Path
	case t.Reference.Protocol == "file":
		return directoryOf(t.Reference)
	}
	return ""
}

// ociPull is a pull of one image.
type ociPull struct {
	*engine
	held  map[string]*os.File // layers in the pool by name, which nobody removes
	fresh []string            // those that this transfer has made
}

// pullOCI fetches the layers of an OCI image that the pool has not, each into a
// directory of its own, and makes a mount stack of them with settings that run it.
func (e *engine) pullOCI(ctx context.Context) error {
	if err := Prepare(&e.Request); err != nil {
		return err
	}
	if e.Local == "" {
		e.logf(Info, "Pulling '%s'.", e.Remote)
	} else {
		if err := e.checkFree(ctx); err != nil {
			return err
		}
		e.logf(Info, "Pulling '%s', saving as '%s'.", e.Remote, e.Local)
	}
	e.tellRoot()
	p := &ociPull{engine: e, held: map[string]*os.File{}}
	err := p.run(ctx)
	for _, f := range p.held {
		_ = f.Close()
	}
	if err == nil {
		e.succeed()
		return nil
	}
	var source *sourceError
	if errors.As(err, &source) && ctx.Err() == nil {
		e.logf(Info, "Layers that have come whole are kept for another try: %d.", len(p.fresh))
	} else {
		e.store.DropLayers(p.fresh)
	}
	return fmt.Errorf("pull %s: %w", e.Remote, err)
}

func (p *ociPull) run(ctx context.Context) error {
	if err := os.MkdirAll(p.ImageRoot, 0o700); err != nil {
		return err
	}
	if err := image.CleanTemporary(p.ImageRoot); err != nil {
		p.logf(Warning, "Failed to remove what an earlier transfer left: %v", err)
	}
	src, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	img, err := oci.Find(ctx, src, p.OCI.Reference, oci.Platform{OS: "linux", Architecture: runtime.GOARCH})
	if err != nil {
		return err
	}
	layers := distinct(img.Layers)
	if len(layers) > oci.MaxLayers {
		return fmt.Errorf("%w: it has %d layers; overlayfs stacks %d", ErrArchive, len(layers), oci.MaxLayers)
	}
	names, err := p.fetchLayers(ctx, layers)
	if err != nil {
		return err
	}
	if p.Local == "" {
		return nil
	}
	return p.makeStack(ctx, img, names)
}

// open opens the place that the image comes from.
func (p *ociPull) open(ctx context.Context) (oci.Source, error) {
	ref := p.OCI.Reference
	switch {
	case ref.Form == oci.LayoutPrefix:
		return oci.Open(ref, nil)
	case ref.Local():
		f, err := p.openArchive(ctx, ref.Path)
		if err != nil {
			return nil, err
		}
		return oci.Open(ref, f)
	case ref.Protocol == "file":
		return openDirectory(ref)
	}
	return p.openRegistry(ctx, ref, p.OCI.Login)
}

// openArchive opens an archive that can be read anywhere: a compressed one is
// unpacked to a file that has no name any more.
func (p *ociPull) openArchive(ctx context.Context, path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %q is not a regular file", ErrInvalid, path)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	head := make([]byte, 6)
	if n, err := f.ReadAt(head, 0); detect(head[:n]) == Uncompressed {
		if err != nil && !errors.Is(err, io.EOF) {
			_ = f.Close()
			return nil, err
		}
		return f, nil
	}
	defer func() { _ = f.Close() }()
	in, _, err := NewReader(f)
	if err != nil {
		return nil, streamError(err)
	}
	defer func() { _ = in.Close() }()
	temp := filepath.Join(p.ImageRoot, image.TempName("archive"))
	plain, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err = os.Remove(temp); err == nil || errors.Is(err, fs.ErrNotExist) {
		out := &sparseWriter{f: plain}
		buf := make([]byte, 1<<20)
		if _, err = io.CopyBuffer(struct{ io.Writer }{out}, bound(contextReader{ctx, in}, func() int64 { return st.Size() }), buf); err == nil {
			err = out.finish()
		}
	}
	if err == nil {
		_, err = plain.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = plain.Close()
		return nil, archiveError("unpack %q", path, err)
	}
	return plain, nil
}

// distinct leaves out layers that come again higher up: what they have is there, and
// what they take away is not, whatever lies below.
func distinct(layers []oci.Layer) []oci.Layer {
	last := map[string]int{}
	for i, l := range layers {
		last[l.Digest] = i
	}
	var out []oci.Layer
	for i, l := range layers {
		if last[l.Digest] == i {
			out = append(out, l)
		}
	}
	return out
}

// fetchLayers gets all layers into the pool and returns their names in it.
func (p *ociPull) fetchLayers(ctx context.Context, layers []oci.Layer) ([]string, error) {
	names := make([]string, len(layers))
	known := p.knownLayers()
	total, missing := int64(0), []int{}
	for i, l := range layers {
		names[i] = image.LayerName(l.Digest)
		if p.hold(names[i]) {
			continue
		}
		if other := known[l.DiffID]; other != "" && p.hold(other) {
			names[i] = other // the same, packed otherwise
			continue
		}
		missing = append(missing, i)
		total += max(l.Size, 0)
	}
	p.logf(Info, "Image has %d layers, %d already present.", len(layers), len(layers)-len(missing))
	for _, f := range p.held {
		if p.KeepDownload || p.Local == "" {
			if err := image.KeepLayer(f); err != nil {
				return nil, err
			}
		}
	}
	var mu sync.Mutex // guards progress, held and fresh
	done := int64(0)
	tell := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		done += n
		if percent, fresh := p.progress(done, total); fresh && percent%10 == 0 {
			p.logf(Info, "Got %d%% of %s.", percent, p.Remote)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLayerFetches)
	for _, i := range missing {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			f, made, err := p.fetchLayer(ctx, layers[i], names[i], tell)
			if err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
			}
			mu.Lock()
			defer mu.Unlock()
			if made {
				p.fresh = append(p.fresh, names[i])
			}
			if p.held[names[i]] == nil {
				p.held[names[i]] = f
			}
			return nil
		})
	}
	return names, group.Wait()
}

// hold holds a layer that is in the pool; false says that it is not.
func (p *ociPull) hold(name string) bool {
	if p.held[name] != nil {
		return true
	}
	f, err := image.HoldLayer(p.ImageRoot, name)
	if err != nil {
		return false
	}
	p.held[name] = f
	return true
}

// diffIDAttribute notes on a layer in the pool the digest of the archive that it was
// unpacked from.
const diffIDAttribute = "trusted.machined.diffid"

// knownLayers are the names of layers in the pool by the digest of their archive.
func (p *ociPull) knownLayers() map[string]string {
	known := map[string]string{}
	paths, _ := filepath.Glob(filepath.Join(p.ImageRoot, image.LayerPrefix+"sha256:*"))
	for _, path := range paths {
		value := make([]byte, 128)
		if n, err := unix.Lgetxattr(path, diffIDAttribute, value); err == nil {
			known[string(value[:n])] = filepath.Base(path)
		}
	}
	return known
}

// fetchLayer gets one layer into the pool, where it is seen once it is whole and
// what its digests say. made is false when somebody else was faster.
func (p *ociPull) fetchLayer(ctx context.Context, l oci.Layer, name string, tell func(int64)) (f *os.File, made bool, err error) {
	b, err := p.begin(true)
	if err != nil {
		return nil, false, err
	}
	defer b.drop()
	if err := p.receiveLayer(ctx, l, b, tell); err != nil {
		return nil, false, err
	}
	if err := unix.Fsetxattr(int(b.f.Fd()), diffIDAttribute, []byte(l.DiffID), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return nil, false, os.NewSyscallError("setxattr", err)
	}
	if p.KeepDownload || p.Local == "" {
		if err := image.KeepLayer(b.f); err != nil {
			return nil, false, err
		}
	}
	if err := p.flush(b); err != nil {
		return nil, false, err
	}
	err = p.finish(b, filepath.Join(p.ImageRoot, name), true)
	if err != nil && !errors.Is(err, image.ErrExists) {
		return nil, false, err
	}
	made = err == nil
	if made {
		// From now on it is shared, and held as such.
		if err := unix.Flock(int(b.f.Fd()), unix.LOCK_UN); err != nil {
			return nil, made, os.NewSyscallError("flock", err)
		}
	}
	f, err = image.HoldLayer(p.ImageRoot, name)
	return f, made, err
}

// receiveLayer unpacks a layer into a tree being built, and checks all that is known
// of its bytes.
func (p *ociPull) receiveLayer(ctx context.Context, l oci.Layer, b *building, tell func(int64)) error {
	body, err := l.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	packed := newDigester(contextReader{ctx, body})
	last := int64(0)
	var source io.Reader = packed
	if l.Size >= 0 {
		source = io.LimitReader(packed, l.Size+1)
	}
	var come atomic.Int64
	in := &counter{r: source, tell: func(n int64) { tell(n - last); come.Store(n); last = n }}
	stream, format, err := NewReader(in)
	if err != nil {
		return streamError(err)
	}
	defer func() { _ = stream.Close() }()
	if format != Uncompressed && format != Gzip && format != Zstd {
		return fmt.Errorf("%w: it is compressed by %s, as no layer is", ErrArchive, format)
	}
	plain := newDigester(bound(stream, come.Load))
	err = unpackLayer(ctx, plain, b.f, p.writer(b))
	if err == nil {
		_, err = io.Copy(io.Discard, plain)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, in) // what follows the compressed stream counts too
	}
	if l.Size >= 0 && come.Load() > l.Size {
		return fmt.Errorf("%w: it has more than the %d bytes that its manifest says", ErrVerification, l.Size)
	}
	if err != nil {
		return err
	}
	switch {
	case l.Size >= 0 && packed.n != l.Size:
		return fmt.Errorf("%w: it has %d bytes, its manifest says %d", ErrVerification, packed.n, l.Size)
	case l.Packed && packed.digest() != l.Digest:
		return fmt.Errorf("%w: its digest is %s, not %s", ErrVerification, packed.digest(), l.Digest)
	case plain.digest() != l.DiffID:
		return fmt.Errorf("%w: the digest of its archive is %s, its configuration says %s", ErrVerification, plain.digest(), l.DiffID)
	}
	return nil
}

// makeStack makes the image: links to its layers, room for changes, and settings.
func (p *ociPull) makeStack(ctx context.Context, img *oci.Image, names []string) error {
	b, err := p.begin(true)
	if err != nil {
		return err
	}
	defer b.drop()
	names, err = p.visible(names)
	if err != nil {
		return err
	}
	for i, name := range names {
		if err := os.Symlink(filepath.Join("..", name), filepath.Join(b.path, fmt.Sprintf("layer@%d", i))); err != nil {
			return err
		}
	}
	if err := p.makeRoom(b, names, oci.Volumes(img.Config.Config)); err != nil {
		return err
	}
	settings, lost := oci.Settings(img.Config.Config)
	for _, what := range lost {
		p.logf(Warning, "The image's %s cannot be written into a settings file: left out.", what)
	}
	if ports := oci.Ports(img.Config.Config); len(ports) > 0 {
		p.logf(Notice, "The image listens on %v. To reach that from outside, copy %s.nspawn to /etc/systemd/nspawn.", ports, p.Local)
	}
	sides := sideFiles{{suffix: settingsSuffix, data: settings}, {suffix: ".oci-config", data: img.Raw}}
	defer sides.drop()
	return p.publish(ctx, b, filepath.Join(p.ImageRoot, p.Local+image.StackSuffix), sides)
}

// visible leaves out the layers below one that hides all of them.
func (p *ociPull) visible(names []string) ([]string, error) {
	for i := len(names) - 1; i > 0; i-- {
		var value [1]byte
		n, err := unix.Fgetxattr(int(p.held[names[i]].Fd()), overlayOpaque, value[:])
		if err == nil && n == 1 && value[0] == 'y' {
			return names[i:], nil
		}
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return nil, os.NewSyscallError("getxattr", err)
		}
	}
	return names, nil
}
