package transfer

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"machined/image"
)

// sideKind is a kind of file that lies beside an image on a server.
type sideKind struct {
	suffix, title string
	raw           bool // beside disk images only
	large         bool // too large to be kept in memory
}

var sideKinds = []sideKind{
	{suffix: settingsSuffix, title: "Settings file"},
	{suffix: ".roothash", title: "Root hash file", raw: true},
	{suffix: ".roothash.p7s", title: "Root hash signature file", raw: true},
	{suffix: ".verity", title: "Verity integrity file", raw: true, large: true},
}

// sideFile is such a file once it has been fetched and verified.
type sideFile struct {
	suffix string
	data   []byte
	b      *building // what holds it in the place of data
}

type sideFiles []sideFile

// settingsSuffix is that of the settings of systemd.nspawn(5).
const settingsSuffix = ".nspawn"

// drop removes what has not been given its name.
func (s sideFiles) drop() {
	for _, side := range s {
		if side.b != nil {
			side.b.drop()
		}
	}
}

// fetchSides fetches the files beside an image that are there. One that cannot
// be verified, when that is asked for, is left out. The caller drops what is
// returned, also with an error.
func (e *engine) fetchSides(ctx context.Context, c *client, base string, tree bool, sums checksums) (sideFiles, error) {
	var sides sideFiles
	if e.Checksum != nil {
		return nil, nil // it speaks of the image alone
	}
	for _, kind := range sideKinds {
		if kind.raw && tree || kind.suffix == settingsSuffix && e.Class != image.ClassMachine || slices.Contains(e.NoSide, kind.suffix) {
			continue
		}
		side, sum, err := e.fetchSide(ctx, c, kind, base)
		if e.dispensable(ctx, err, sums, base+kind.suffix) {
			e.logf(Notice, "%s", err.Error())
			e.logf(Info, "%s could not be retrieved, proceeding without.", kind.title)
			continue
		}
		if err != nil {
			return sides, err
		}
		use, err := e.checkSide(ctx, c, base+kind.suffix, sum, sums)
		if err == nil && !use {
			e.logf(Warning, "%s is not verified by a checksum, proceeding without.", kind.title)
		}
		if err == nil && use {
			sides = append(sides, side)
			continue
		}
		sideFiles{side}.drop()
		if err != nil {
			return sides, err
		}
	}
	return sides, nil
}

// dispensable says whether err means that a file beside the image cannot be had, and
// that the image can do without. A file that the checksums speak of is part of what
// was published: only the server's word that it has none counts there.
func (e *engine) dispensable(ctx context.Context, err error, sums checksums, file string) bool {
	if _, listed := sums[file]; listed {
		return notFound(err)
	}
	var fetch *fetchError
	return refused(err) || errors.As(err, &fetch) && ctx.Err() == nil
}

// fetchSide fetches one file and its checksum.
func (e *engine) fetchSide(ctx context.Context, c *client, kind sideKind, base string) (side sideFile, sum [sha256.Size]byte, err error) {
	u, err := beside(e.Remote, base+kind.suffix)
	if err != nil {
		return side, sum, err
	}
	side.suffix = kind.suffix
	if !kind.large {
		side.data, err = e.fetchSmall(ctx, c, u)
		return side, sha256.Sum256(side.data), err
	}
	d, err := c.get(ctx, u, nil)
	if err != nil {
		return side, sum, err
	}
	defer d.closeBody()
	if d.size >= 0 {
		e.logf(Info, "Downloading %s for %s.", bytesText(d.size), u)
	}
	if side.b, err = e.begin(false); err != nil {
		return side, sum, err
	}
	hash := sha256.New()
	n, err := io.Copy(side.b.f, io.TeeReader(d, hash))
	if err == nil {
		err = e.flush(side.b)
	}
	if err != nil {
		side.b.drop()
		return side, sum, err
	}
	e.acquired(n, u)
	return side, [sha256.Size]byte(hash.Sum(nil)), nil
}

// checkSide says whether a file may be used. One that the checksums speak of and
// do not match is an error; one that they are silent about may have its own.
func (e *engine) checkSide(ctx context.Context, c *client, file string, sum [sha256.Size]byte, sums checksums) (bool, error) {
	if sums == nil {
		return true, nil
	}
	err := sums.check(file, sum)
	if err == nil {
		return true, nil
	}
	if own, ownErr := e.ownChecksum(ctx, c, file); ownErr == nil && own.check(file, sum) == nil {
		return true, nil
	}
	if _, listed := sums[file]; listed {
		return false, err
	}
	return false, nil
}

// ownChecksum fetches FILE.sha256 of a side file, with its signature.
func (e *engine) ownChecksum(ctx context.Context, c *client, file string) (checksums, error) {
	u, err := beside(e.Remote, file+".sha256")
	if err != nil {
		return nil, err
	}
	data, err := e.fetchSmall(ctx, c, u)
	if err != nil {
		return nil, err
	}
	if e.Verify == VerifySignature {
		if err := e.fetchSignature(ctx, c, file+".sha256", data); err != nil {
			return nil, err
		}
	}
	return parseChecksums(data)
}

// keepSides copies the files beside a hidden download to where its other parts
// are: stem is its path without the suffix of its type.
func (e *engine) keepSides(ctx context.Context, sides sideFiles, stem string) error {
	for _, kind := range sideKinds { // of an earlier download
		if err := os.Remove(stem + kind.suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for _, side := range sides {
		copied, err := e.buildSide(ctx, side)
		if err == nil {
			err = e.finish(copied, stem+side.suffix, true)
			copied.drop()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// buildSide writes a file beside an image to the disk, without its name.
func (e *engine) buildSide(ctx context.Context, side sideFile) (*building, error) {
	var b *building
	var err error
	if side.b != nil {
		b, err = e.copyOf(ctx, side.b.f, false)
	} else {
		b, err = e.begin(false)
	}
	if err != nil {
		return nil, err
	}
	if side.b == nil {
		_, err = b.f.Write(side.data)
	}
	if err == nil {
		err = e.flush(b)
	}
	if err != nil {
		b.drop()
		return nil, err
	}
	return b, nil
}

// buildSides writes the files beside an image to the disk, without their names.
func (e *engine) buildSides(ctx context.Context, sides sideFiles) error {
	for i := range sides {
		if sides[i].b != nil {
			continue
		}
		b, err := e.buildSide(ctx, sides[i])
		if err != nil {
			return err
		}
		sides[i].b = b
	}
	return nil
}

// placeSides gives the files beside an image their names. One that is there
// already stays, unless the transfer is forced: it may be somebody's own settings.
// undo takes back what was placed.
func (e *engine) placeSides(sides sideFiles) (undo func(), err error) {
	var placed []string
	undo = func() {
		for _, path := range placed {
			_ = os.Remove(path)
		}
	}
	for i := range sides {
		side := &sides[i]
		path := filepath.Join(e.ImageRoot, e.Local+side.suffix)
		flags := uint(unix.RENAME_NOREPLACE)
		if e.Force {
			flags = 0
		}
		err := unix.Renameat2(unix.AT_FDCWD, side.b.path, unix.AT_FDCWD, path, flags)
		if errors.Is(err, unix.EEXIST) {
			e.logf(Warning, "%s %s already exists, not replacing.", calledOnDisk(side.suffix, true), path)
			continue
		}
		if err != nil {
			return undo, &os.LinkError{Op: "rename", Old: side.b.path, New: path, Err: err}
		}
		side.b.path = ""
		placed = append(placed, path)
		e.logf(Info, "Created new %s %s.", calledOnDisk(side.suffix, false), path)
	}
	return undo, nil
}

// calledOnDisk is what messages call a file beside an image that is made.
func calledOnDisk(suffix string, first bool) string {
	switch {
	case suffix == settingsSuffix && first:
		return "Settings file"
	case suffix == settingsSuffix:
		return "settings file"
	case first:
		return "File"
	}
	return "file"
}
