package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/term"
)

// ociForms start references to images on this host.
var ociForms = []string{"oci:", "oci-archive:", "docker-archive:"}

// ociReference completes a reference to an image on this host: the service knows
// absolute paths only. A path by itself is a layout when it is a directory, else an
// archive. name is what such an image is called when nobody says.
func ociReference(reference string) (full, name string, err error) {
	form, rest := "", reference
	for _, prefix := range ociForms {
		if after, ok := strings.CutPrefix(reference, prefix); ok {
			form, rest = prefix, after
		}
	}
	if form == "" && (strings.HasPrefix(rest, "/") || strings.HasPrefix(rest, "./") || strings.HasPrefix(rest, "../")) {
		form = "docker-archive:"
		if st, err := os.Stat(rest); err == nil && st.IsDir() {
			form = "oci:"
		}
	}
	if form != "" {
		absolute, err := filepath.Abs(rest)
		if err != nil {
			return "", "", Because("Failed to make path absolute", err)
		}
		name, _, _ = strings.Cut(filepath.Base(absolute), "@")
		name, _, _ = strings.Cut(name, ":")
		return form + absolute, imageName("tar", name), nil
	}
	name, _, _ = strings.Cut(path.Base(strings.TrimPrefix(rest, "docker://")), "@")
	name, _, _ = strings.Cut(name, ":")
	return rest, name, nil
}

func (t *Transfers) pullOCI(ctx context.Context, reference, local string) error {
	reference, name, err := ociReference(reference)
	if err != nil {
		return err
	}
	if local == "" {
		local = name
	}
	if local == "-" {
		local = ""
	} else if err := checkImageName(local); err != nil {
		return err
	}
	// Layers are there for all images; to keep them longer has to be asked for.
	flags := t.flags(t.KeepDownload != nil)
	return t.follow(ctx, func(bus *Bus, id *uint32, object *godbus.ObjectPath) error {
		return bus.Call(ctx, Importd, "PullOci", []any{reference, local, t.Class, flags}, id, object)
	})
}

func (t *Transfers) exportOCI(ctx context.Context, local, file string) (failed error) {
	if !validImage(local) {
		return Failf("Image name %s is not valid.", Printable(local, false))
	}
	file = strings.TrimPrefix(file, "oci-archive:")
	directory, asked := strings.CutPrefix(file, "oci:")
	if st, err := os.Stat(directory); asked || strings.HasSuffix(directory, "/") || err == nil && st.IsDir() {
		return t.exportLayout(ctx, local, directory)
	}
	target := os.Stdout
	if file == "" || file == "-" {
		if term.IsTerminal(1) {
			return Failf("Refusing to write archive to TTY. Name a file, or redirect the output.")
		}
	} else {
		opened, drop, err := createFile(file)
		if err != nil {
			return Failf("Failed to open %s: %s", file, Reason(err))
		}
		defer opened.Close()
		defer func() { drop(ctx, failed) }()
		target = opened
	}
	return t.exportTo(ctx, local, target)
}

func (t *Transfers) exportTo(ctx context.Context, local string, target *os.File) error {
	return t.follow(ctx, func(bus *Bus, id *uint32, object *godbus.ObjectPath) error {
		return bus.Call(ctx, ImportdOwn, "ExportOCI", []any{local, t.Class, godbus.UnixFD(target.Fd()), t.Format, uint64(0)}, id, object)
	})
}

// exportLayout unpacks what the service writes into a directory, with the caller's
// own rights. When it fails nothing is left.
func (t *Transfers) exportLayout(ctx context.Context, local, directory string) error {
	made := os.Mkdir(directory, 0o777)
	if made != nil && !errors.Is(made, os.ErrExist) {
		return Because("Failed to make directory "+directory, made)
	}
	if left, err := os.ReadDir(directory); err != nil || len(left) > 0 {
		if err == nil {
			return Failf("Directory %s is not empty.", directory)
		}
		return Because("Failed to read directory "+directory, err)
	}
	from, to, err := os.Pipe()
	if err != nil {
		return err
	}
	unpacked := make(chan error, 1)
	go func() { unpacked <- unpackLayout(from, directory) }()
	err = t.exportTo(ctx, local, to)
	_ = to.Close()
	if err != nil {
		_ = from.Close() // a transfer that goes on has no reader any more
	}
	unpackErr := <-unpacked
	_ = from.Close()
	if err == nil && unpackErr != nil {
		err = Because("Failed to write "+directory, unpackErr)
	}
	if err != nil {
		for _, name := range []string{"blobs", "index.json", "oci-layout", "manifest.json"} {
			_ = os.RemoveAll(filepath.Join(directory, name))
		}
		if made == nil {
			_ = os.Remove(directory)
		}
	}
	return err
}

// unpackLayout unpacks an archive of an image layout, which has files only.
func unpackLayout(from io.Reader, directory string) error {
	root, err := os.OpenRoot(directory)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for in := tar.NewReader(from); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, from)
			return err
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || !slices.Contains([]string{".", "blobs/sha256"}, path.Dir(h.Name)) {
			return fmt.Errorf("unexpected entry %q", h.Name)
		}
		if err := root.MkdirAll(path.Dir(h.Name), 0o777); err != nil {
			return err
		}
		out, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
}
