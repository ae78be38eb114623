package transfer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"machined/image"
	"machined/internal/btrfs"
	"machined/internal/treecopy"

	"golang.org/x/sys/unix"
)

// verifiedXattr notes on a hidden download how it was verified, so that it is
// not taken for more than it is.
const verifiedXattr = "user.machined.verified"

var verifyRank = map[Verify]int{VerifyNo: 0, VerifyChecksum: 1, VerifySignature: 2}

// pull downloads an image, verifies it and gives it its name.
func (e *engine) pull(ctx context.Context) error {
	if err := CheckURL(e.Remote); err != nil {
		return err
	}
	if e.Verify == "" {
		e.Verify = VerifySignature
	}
	tree := e.Kind == PullTar
	prefix, suffix := ".raw-", ".raw"
	if tree {
		prefix, suffix = ".tar-", ""
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
	name, err := lastPart(e.Remote)
	if err != nil {
		return err
	}
	c := newClient(e.StallTimeout)
	sums, err := e.fetchChecksums(ctx, c, name)
	if err != nil {
		return err
	}
	sides, err := e.fetchSides(ctx, c, stem(name, tree), tree, sums)
	defer sides.drop()
	if err != nil {
		return err
	}
	var known []string
	for _, etag := range knownETags(e.ImageRoot, prefix, e.Remote, suffix) {
		path := filepath.Join(e.ImageRoot, downloadName(e.ImageRoot, prefix, e.Remote, etag, suffix)+suffix)
		if e.verifiedEnough(path) {
			known = append(known, etag)
		}
	}
	d, err := c.get(ctx, e.Remote, known)
	if errors.Is(err, errNotModified) {
		hidden := filepath.Join(e.ImageRoot, downloadName(e.ImageRoot, prefix, e.Remote, d.etag, suffix)+suffix)
		if _, statErr := os.Lstat(hidden); d.etag == "" && len(known) == 1 || statErr != nil {
			hidden = filepath.Join(e.ImageRoot, downloadName(e.ImageRoot, prefix, e.Remote, known[0], suffix)+suffix)
		}
		e.logf(Info, "Image already downloaded. Skipping download.")
		return e.fromDownload(ctx, hidden, tree, sides)
	}
	if err != nil {
		return err
	}
	defer d.closeBody()

	b, err := e.begin(tree)
	if err != nil {
		return err
	}
	defer b.drop()
	if err := e.receive(ctx, d, b, name, sums); err != nil {
		return err
	}
	hidden := filepath.Join(e.ImageRoot, downloadName(e.ImageRoot, prefix, e.Remote, d.etag, suffix)+suffix)
	if e.Local == "" || e.KeepDownload {
		if !d.mtime.IsZero() && !tree {
			_ = os.Chtimes(b.path, d.mtime, d.mtime)
		}
		_ = unix.Fsetxattr(int(b.f.Fd()), verifiedXattr, []byte(e.Verify), 0)
		if err := e.flush(b); err != nil {
			return err
		}
		if err := image.RemoveTree(hidden); err != nil {
			return err
		}
		if err := e.finish(b, hidden, true); err != nil {
			return err
		}
		if err := e.keepSides(ctx, sides, strings.TrimSuffix(hidden, suffix)); err != nil {
			return err
		}
		return e.fromDownload(ctx, hidden, tree, sides)
	}
	if err := e.publish(ctx, b, e.target(tree), sides); err != nil {
		return err
	}
	e.succeed()
	return nil
}

// receive downloads into a building, and verifies what came.
func (e *engine) receive(ctx context.Context, d *download, b *building, name string, sums checksums) error {
	if d.size >= 0 {
		e.logf(Info, "Downloading %s for %s.", bytesText(d.size), e.Remote)
	}
	hash := sha256.New()
	begun := time.Now()
	told := begun
	in := &counter{r: io.TeeReader(d, hash), tell: func(n int64) {
		percent, fresh := e.progress(n, d.size)
		now := time.Now()
		if !fresh || percent >= 100 || now.Sub(told) < time.Second {
			return
		}
		told = now
		rate := float64(n) / now.Sub(begun).Seconds()
		left := time.Duration(float64(d.size-n) / rate * float64(time.Second))
		e.logf(Info, "Got %d%% of %s. %s left at %s/s.", percent, d.url, spanText(left), bytesText(int64(rate)))
	}}
	err := e.fill(ctx, in, b)
	if err == nil {
		// What follows the compressed stream belongs to the checksum too.
		_, err = io.Copy(io.Discard, in)
	}
	var source *sourceError
	if errors.As(err, &source) {
		return source.err // which names the URL
	}
	if err != nil {
		return fmt.Errorf("pull %s: %w", e.Remote, err)
	}
	e.acquired(b.unpacked, e.Remote)
	if sums == nil {
		return nil
	}
	if err := sums.check(name, [sha256.Size]byte(hash.Sum(nil))); err != nil {
		return err
	}
	e.logf(Info, "SHA256 checksum of %s is valid.", e.Remote)
	return nil
}

// verifiedEnough says whether a hidden download was verified as is asked for now.
func (e *engine) verifiedEnough(path string) bool {
	value := make([]byte, 32)
	n, err := unix.Getxattr(path, verifiedXattr, value)
	got := VerifyNo
	if err == nil {
		got = Verify(value[:n])
	}
	return verifyRank[got] >= verifyRank[e.Verify]
}

// fromDownload makes the local image out of a hidden download.
func (e *engine) fromDownload(ctx context.Context, hidden string, tree bool, sides sideFiles) error {
	if e.Local == "" {
		e.succeed()
		return nil
	}
	src, err := os.Open(hidden)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	b, err := e.copyOf(ctx, src, tree)
	if err != nil {
		return err
	}
	defer b.drop()
	_ = unix.Fremovexattr(int(b.f.Fd()), verifiedXattr)
	if err := e.publish(ctx, b, e.target(tree), sides); err != nil {
		return err
	}
	e.succeed()
	return nil
}

// copyOf makes a copy of a download, by sharing what the file system can share.
func (e *engine) copyOf(ctx context.Context, src *os.File, tree bool) (*building, error) {
	if tree && btrfs.IsSubvolume(src) {
		root, err := os.Open(e.ImageRoot)
		if err != nil {
			return nil, err
		}
		defer func() { _ = root.Close() }()
		b := &building{name: image.TempName(e.Local), tree: true}
		b.path = filepath.Join(e.ImageRoot, b.name)
		release, err := image.GuardTemp(e.ImageRoot)
		if err != nil {
			return nil, err
		}
		if err = btrfs.SnapshotTree(src, root, b.name, false); err == nil {
			if b.f, err = os.Open(b.path); err == nil {
				_ = btrfs.Account(b.f, root) // without quota there is nothing to count
				err = image.HoldTemp(b.f)
			}
			release()
			if err != nil {
				b.drop()
				return nil, err
			}
			return b, nil
		}
		release()
	}
	b, err := e.begin(tree)
	if err != nil {
		return nil, err
	}
	if tree {
		err = treecopy.Copy(ctx, src, b.f, treecopy.Options{})
	} else {
		var st os.FileInfo
		if st, err = src.Stat(); err == nil && unix.IoctlFileClone(int(b.f.Fd()), int(src.Fd())) != nil {
			err = treecopy.Content(ctx, src, b.f, st.Size(), nil)
		}
	}
	if err != nil {
		b.drop()
		return nil, err
	}
	return b, nil
}

// publish gives what was pulled its local name, and writes the files beside it.
func (e *engine) publish(ctx context.Context, b *building, target string, sides sideFiles) error {
	if err := e.flush(b); err != nil {
		return err
	}
	if err := e.buildSides(ctx, sides); err != nil { // while an image that this one replaces is still there
		return err
	}
	if err := e.makeWay(ctx); err != nil {
		return err
	}
	undo, err := e.placeSides(sides)
	if err == nil {
		// A stack of layers is read-only by having no layer for changes.
		err = e.finish(b, target, e.ReadOnly && e.Kind != PullOCI)
	}
	if err != nil {
		undo()
		return err
	}
	e.logf(Info, "Created new local image '%s'.", e.Local)
	return nil
}

// succeed tells that a transfer is done.
func (e *engine) succeed() {
	e.Progress(1)
	e.logf(Info, "Operation completed successfully.")
}
