package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// RunTool runs a program that installs a system into the open directory dir, on a
// host whose other files it has no business with, and returns when all of it has
// ended. The program has the descriptor: as long as it runs the directory is held,
// whatever becomes of us.
type RunTool func(ctx context.Context, argv []string, dir *os.File) error

// Create makes an image of a distribution by the program that the host has for it.
// When that fails, or ctx ends, nothing is left.
func (s *Store) Create(ctx context.Context, name string, source Source, run RunTool) error {
	fail := func(err error) error {
		return on(name, err)
	}
	lock, err := s.reserve(ctx, name)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	if err := os.MkdirAll(s.cfg.PoolDir, 0o700); err != nil {
		return fail(err)
	}
	c := &copied{path: filepath.Join(s.cfg.PoolDir, TempName(name)), tree: true, limit: Unknown}
	argv, err := source.command(c.path)
	if err != nil {
		return fail(err)
	}
	defer c.drop()
	if err := c.makeTree(s.cfg.PoolDir); err != nil {
		return fail(err)
	}
	if err := run(ctx, argv, c.f); err != nil {
		return fail(err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if !looksInstalled(c.path) {
		return fail(fmt.Errorf("%w: %s ended well and left none", ErrNoSystem, filepath.Base(argv[0])))
	}
	if err := freshSystem(int(c.f.Fd()), name); err != nil {
		return fail(err)
	}
	if err := c.finish(); err != nil {
		return fail(err)
	}
	if err := c.place(filepath.Join(s.cfg.PoolDir, name), false); err != nil {
		return fail(err)
	}
	if err := syncDir(s.cfg.PoolDir); err != nil {
		return fail(err)
	}
	return nil
}
