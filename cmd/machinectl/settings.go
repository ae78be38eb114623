package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"machined/internal/cli"
)

// settingsDirs hold the settings of machines, the first found counts
// (systemd.nspawn(5)). The last is not trusted: editing copies it to the first.
var settingsDirs = []string{"/etc/systemd/nspawn", "/run/systemd/nspawn", "/var/lib/machines"}

// settingsOnly refuses verbs where there are no settings files to be had.
func (a *app) settingsOnly(what string) error {
	switch {
	case !a.opts.target.Local():
		return cli.Failf("%s is only supported on the host machine.", what)
	case a.opts.runner != "nspawn":
		return cli.Failf("%s is only supported for --runner=nspawn", what)
	}
	return nil
}

// findSettings is the settings file of a machine name or of a path to one;
// fresh is where a new one belongs.
func findSettings(name string) (path, fresh string, err error) {
	if filepath.IsAbs(name) {
		if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
			return "", name, nil
		}
		return name, name, nil
	}
	base := strings.TrimSuffix(name, ".nspawn")
	if strings.Contains(base, "/") || base == "." || base == ".." {
		return "", "", cli.Failf("Invalid settings file name '%s.nspawn'.", base)
	}
	fresh = filepath.Join(settingsDirs[0], base+".nspawn")
	for _, dir := range settingsDirs {
		path := filepath.Join(dir, base+".nspawn")
		if _, err := os.Stat(path); err == nil {
			if dir == settingsDirs[len(settingsDirs)-1] {
				return path, fresh, nil
			}
			return path, path, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", "", cli.Failf("Failed to look for settings of machine '%s': %s", base, cli.Reason(err))
		}
	}
	return "", fresh, nil
}

func runCat(a *app, _ context.Context, names []string) error {
	if err := a.settingsOnly("Cat"); err != nil {
		return err
	}
	var failed error
	for _, name := range names {
		path, _, err := findSettings(name)
		if err != nil {
			return err
		}
		if path == "" {
			a.term.Error("No settings file found for machine '%s'.", name)
			failed = cli.ErrReported
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return cli.Failf("Failed to read %s: %s", path, cli.Reason(err))
		}
		fmt.Fprintf(a.page(), "%s\n%s", a.term.Paint(cli.StyleNumber, "# "+path), text)
	}
	return failed
}

func runEdit(a *app, _ context.Context, names []string) error {
	if !term.IsTerminal(0) || !term.IsTerminal(1) {
		return cli.Failf("Cannot edit machine settings if not on a tty.")
	}
	if err := a.settingsOnly("Edit"); err != nil {
		return err
	}
	editor := lookEditor()
	if editor == nil {
		return cli.Failf("Cannot edit files, no editor available. Please set either $SYSTEMD_EDITOR, $EDITOR or $VISUAL.")
	}
	for _, name := range names {
		path, target, err := findSettings(name)
		if err != nil {
			return err
		}
		if err := editFile(editor, path, target); err != nil {
			return err
		}
	}
	return nil
}

// editFile lets the person change a copy of from, and puts it in the place of
// target if there is something in it and it was changed.
func editFile(editor []string, from, target string) error {
	var before []byte
	if from != "" {
		var err error
		if before, err = os.ReadFile(from); err != nil {
			return cli.Failf("Failed to read %s: %s", from, cli.Reason(err))
		}
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return cli.Failf("Failed to create %s: %s", filepath.Dir(target), cli.Reason(err))
	}
	// The editor chooses its highlighting by the ending.
	draft, err := os.CreateTemp(filepath.Dir(target), ".#*.nspawn")
	if err != nil {
		return cli.Failf("Failed to create temporary file beside %s: %s", target, cli.Reason(err))
	}
	defer os.Remove(draft.Name())
	_, err = draft.Write(before)
	if closeErr := draft.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return cli.Failf("Failed to write %s: %s", draft.Name(), cli.Reason(err))
	}
	cmd := exec.Command(editor[0], append(editor[1:], draft.Name())...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return cli.Failf("Editor %s failed: %s", editor[0], err)
	}
	after, err := os.ReadFile(draft.Name())
	if err != nil {
		return cli.Failf("Failed to read %s: %s", draft.Name(), cli.Reason(err))
	}
	if len(bytes.TrimSpace(after)) == 0 {
		return cli.Failf("Editing \"%s\" canceled: temporary file is empty.", target)
	}
	if bytes.Equal(before, after) && from == target {
		return nil
	}
	if err := os.Chmod(draft.Name(), 0o644); err != nil {
		return cli.Failf("Failed to set mode of %s: %s", target, cli.Reason(err))
	}
	if err := os.Rename(draft.Name(), target); err != nil {
		return cli.Failf("Failed to replace %s: %s", target, cli.Reason(err))
	}
	return nil
}
