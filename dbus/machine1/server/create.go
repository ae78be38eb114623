package server

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/image"
)

// Tools runs a program of the host in a unit of its own, with dir as its standard
// input, next to which it may write, and returns when it has ended; when ctx ends before, it is
// stopped. What it prints goes to output.
type Tools interface {
	RunTool(ctx context.Context, unit, description string, argv []string, dir, output *os.File) error
}

func (s *Server) createImage(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	name, from := c.String(0), c.String(1)
	if !image.ValidName(name) || strings.HasPrefix(name, ".") {
		return nil, invalid("Image name '%.255s' is invalid.", name)
	}
	options, _ := c.Args[2].(map[string]godbus.Variant)
	mirror := ""
	for key, value := range options {
		text, ok := value.Value().(string)
		if !ok || key != "Mirror" {
			return nil, invalid("Unknown option '%.64s' of type '%s'", key, value.Signature())
		}
		mirror = text
	}
	source, err := image.ParseSource(from, mirror)
	if err != nil {
		return nil, err
	}
	if err := s.authorize(ctx, c, actionManageImages, details{"image", name, "verb", "create", "source", from}); err != nil {
		return nil, err
	}
	if s.tools == nil {
		return nil, notSupported("There is no service manager that could run what makes images.")
	}
	return nil, s.images.Create(ctx, name, source, func(ctx context.Context, argv []string, dir *os.File) error {
		return s.runTool(ctx, c.Sender, name, argv, dir)
	})
}

// runTool runs a program and tells the caller what it prints. Its last line is in
// the error.
func (s *Server) runTool(ctx context.Context, caller, name string, argv []string, dir *os.File) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	last := make(chan string, 1)
	go func() {
		last <- s.tellLines(r, caller, name)
		_ = r.Close()
	}()
	unit := "machined-create-" + machine1.EscapeLabel(name) + ".service"
	err = s.tools.RunTool(ctx, unit, "Making of Image "+name, argv, dir, w)
	_ = w.Close()
	line := <-last
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && line != "" {
		return fmt.Errorf("%s failed: %s", argv[0], line)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", argv[0], err)
	}
	return nil
}

// maxLine bounds a line that is passed on, in bytes.
const maxLine = 500

// tellLines sends the lines of r to the caller, and returns the last.
func (s *Server) tellLines(r *os.File, caller, name string) string {
	last := ""
	in := bufio.NewReaderSize(r, 4096)
	for {
		raw, more, err := in.ReadLine()
		if err != nil {
			return last
		}
		for rest := more; rest && err == nil; {
			_, rest, err = in.ReadLine() // of a line that is longer than any should be
		}
		line := strings.TrimSpace(string(raw[:min(len(raw), maxLine)]))
		if line == "" || !utf8.ValidString(line) {
			continue
		}
		last = line
		if err := s.tree.EmitTo(caller, machine1.ManagerPath, machine1.OwnManagerInterface, "CreateProgress", name, line); err != nil {
			s.log.WithField("image", name).WithField("sender", caller).WithError(err).Debug("cannot send CreateProgress")
		}
	}
}
