package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Sentinel errors of this package. What wraps them names the image, once.
var (
	ErrNoSuchImage  = errors.New("no such image")
	ErrInvalidName  = errors.New("invalid image name")
	ErrBusy         = errors.New("image is currently busy")
	ErrExists       = errors.New("image exists already")
	ErrReadOnly     = errors.New("image is part of the host or read-only")
	ErrNotSupported = errors.New("operation not supported on this kind of image")
	ErrInvalid      = errors.New("invalid argument")
	ErrHostTree     = errors.New("the host's own tree is no image to copy")
	ErrNoSystem     = errors.New("no system is in the image")
	ErrNoMetadata   = errors.New("image has no such information")
)

// told is a whole sentence about an image, which it names. Nothing is put before it
// on its way up, so that a reader meets the name once.
type told struct {
	text string
	is   error // sentinel
}

func (t *told) Error() string { return t.text }
func (t *told) Unwrap() error { return t.is }

// tell makes a told error of a sentinel.
func tell(is error, format string, args ...any) error {
	return &told{fmt.Sprintf(format, args...), is}
}

// busy is the sentence about an image that somebody uses.
func busy(name string) error { return tell(ErrBusy, "image %q is currently busy", name) }

// on says that an error is about an image, unless it does so itself. What was to be
// done the caller knows, who asked for it.
func on(name string, err error) error { return about("image", name, err) }

// copying is on for a new image or snapshot that is being made of another.
func copying(name string, err error) error { return about("copy of image", name, err) }

func about(what, name string, err error) error {
	var whole *told
	switch {
	case err == nil:
		return nil
	case errors.As(err, &whole):
		return whole
	case errors.Is(err, ErrBusy):
		return busy(name)
	}
	return fmt.Errorf("%s %q: %w", what, name, unnamed(err))
}

// unnamed takes the path of what is temporary out of an error: it says nothing to
// anybody, and is gone when it is read.
func unnamed(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) && strings.Contains(path.Path, tempPrefix) {
		return path.Err
	}
	var link *os.LinkError
	if errors.As(err, &link) && (strings.Contains(link.Old, tempPrefix) || strings.Contains(link.New, tempPrefix)) {
		return link.Err
	}
	return err
}

// cannot says that something cannot be done with an image because of its type.
func cannot(img Image, what string) error {
	kind := map[Type]string{
		TypeDirectory: "a directory", TypeSubvolume: "a subvolume", TypeRaw: "a disk image",
		TypeBlock: "a block device", TypeMStack: "a mount stack",
	}[img.Type]
	return tell(ErrNotSupported, "image %q is %s, which %s", img.Name, kind, what)
}
