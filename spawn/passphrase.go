package spawn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/term"

	"machined/internal/luks"
	"machined/spawn/stage"
)

// passphraseCredential is the credential of ours that opens encrypted images, by
// stock's name. Given with --set-credential= it is ours and not the machine's.
const passphraseCredential = "dissect.passphrase"

// maxPassphrase bounds a passphrase, in bytes.
const maxPassphrase = 1 << 20

// passphraseTries is how often a person is asked.
const passphraseTries = 5

var errNoPassphrase = errors.New("no passphrase: give it as the credential " + passphraseCredential + ", or start at a terminal to be asked")

// unlock opens a volume with the credential, or with what a person says.
func (m *machine) unlock(ctx context.Context, h *luks.Header, r io.ReaderAt) (*luks.Volume, error) {
	limits := luks.Limits{MemoryKiB: availableMemory()}
	m.plan.Credentials = slices.DeleteFunc(m.plan.Credentials, func(c stage.Credential) bool { return c.ID == passphraseCredential })
	if m.passphrase != nil { // the image's other partitions are tried with it first
		if v, err := h.Unlock(ctx, r, m.passphrase, limits); err == nil || !errors.Is(err, luks.ErrPassphrase) {
			return v, err
		}
	}
	given, ok, err := m.givenPassphrase()
	if err != nil {
		return nil, err
	}
	if ok {
		v, err := h.Unlock(ctx, r, given, limits)
		// A file that was written with an editor or echo ends with a newline.
		if shorter, cut := bytes.CutSuffix(given, []byte("\n")); cut && errors.Is(err, luks.ErrPassphrase) {
			given = shorter
			v, err = h.Unlock(ctx, r, given, limits)
		}
		if err != nil {
			return nil, fmt.Errorf("open it with the credential %s: %w", passphraseCredential, err)
		}
		m.passphrase = given
		return v, nil
	}
	if m.opts.NoAskPassword || !term.IsTerminal(int(m.io.Stdin.Fd())) {
		return nil, errNoPassphrase
	}
	for range passphraseTries {
		text, err := m.askPassphrase(ctx)
		if err != nil {
			return nil, err
		}
		v, err := h.Unlock(ctx, r, text, limits)
		if err == nil {
			m.passphrase = text
			return v, nil
		}
		if !errors.Is(err, luks.ErrPassphrase) {
			return nil, err
		}
		m.warn("Incorrect passphrase, try again!")
	}
	return nil, fmt.Errorf("too many attempts: %w", luks.ErrPassphrase)
}

// givenPassphrase is that of the options, or of the unit that this program runs in.
func (m *machine) givenPassphrase() ([]byte, bool, error) {
	if data, ok := m.opts.Credentials[passphraseCredential]; ok {
		return data, true, nil
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, false, nil
	}
	f, err := os.Open(filepath.Join(dir, passphraseCredential))
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPassphrase))
	return data, err == nil, err
}

// askPassphrase asks at the terminal.
func (m *machine) askPassphrase(ctx context.Context) ([]byte, error) {
	fd := int(m.io.Stdin.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	_, _ = fmt.Fprint(m.io.Log, "Please enter image passphrase: ")
	type answer struct {
		text []byte
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		done <- answer{text, err}
	}()
	select {
	case a := <-done:
		_, _ = fmt.Fprintln(m.io.Log)
		if a.err != nil {
			return nil, fmt.Errorf("ask for the passphrase: %w", a.err)
		}
		return a.text, nil
	case <-ctx.Done():
		_ = term.Restore(fd, before)
		_, _ = fmt.Fprintln(m.io.Log)
		return nil, context.Cause(ctx)
	}
}

// availableMemory is how much memory a key derivation may fill, in KiB: what the
// host can give without swapping (proc_meminfo(5)).
func availableMemory() uint64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			n, _ := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}
