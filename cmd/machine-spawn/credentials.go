package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxCredential bounds one credential, as systemd does.
const maxCredential = 1 << 20

func (c *commandLine) setCredential(s string) error {
	id, value, ok := strings.Cut(s, ":")
	if !ok {
		return fmt.Errorf("Missing value for --set-credential=: %s", s)
	}
	data, err := unescapeC(value)
	if err != nil {
		return fmt.Errorf("credential %q: %w", id, err)
	}
	return c.addCredential(id, data)
}

func (c *commandLine) loadCredential(s string) error {
	id, source, ok := strings.Cut(s, ":")
	if !ok {
		return fmt.Errorf("Missing value for --load-credential=: %s", s)
	}
	if !validCredential(id) {
		return fmt.Errorf("Credential name is not valid: %s", id)
	}
	switch {
	case filepath.IsAbs(source):
	case !validCredential(source):
		return fmt.Errorf("Credential source appears to be neither a valid path nor a credential name: %s", source)
	default:
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return fmt.Errorf("Credential not available (no credentials passed at all): %s", id)
		}
		source = filepath.Join(dir, source)
	}
	data, err := readCredential(source)
	if err != nil {
		if p := (*os.PathError)(nil); errors.As(err, &p) {
			err = p.Err // the path is named
		}
		return errors.New(inWords(fmt.Errorf("Failed to read credential '%s': %w", source, err)))
	}
	return c.addCredential(id, data)
}

func (c *commandLine) addCredential(id string, data []byte) error {
	if !validCredential(id) {
		return fmt.Errorf("Credential name is not valid: %s", id)
	}
	if !c.opts.AddCredential(id, data) {
		return fmt.Errorf("Duplicate credential '%s', refusing.", id)
	}
	return nil
}

// readCredential reads a file, or what a server on a socket sends until it hangs up.
func readCredential(name string) ([]byte, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	var r io.ReadCloser
	if st.Mode()&os.ModeSocket != 0 {
		r, err = net.Dial("unix", name)
	} else {
		r, err = os.Open(name)
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxCredential+1))
	if err == nil && len(data) > maxCredential {
		err = fmt.Errorf("larger than %d bytes", maxCredential)
	}
	return data, err
}

// validCredential tells whether s can name a credential: a file name in ASCII
// without a colon (systemd.exec(5)).
func validCredential(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 255 {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == ':' {
			return false
		}
	}
	return true
}

// unescapeC reads backslash sequences as C has them.
func unescapeC(s string) ([]byte, error) {
	var out []byte
	simple := map[byte]byte{'a': 7, 'b': 8, 'f': 12, 'n': 10, 'r': 13, 't': 9, 'v': 11, 's': ' ', '\\': '\\', '"': '"', '\'': '\''}
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		i++
		if i >= len(s) {
			return nil, errors.New("backslash at the end")
		}
		if b, ok := simple[s[i]]; ok {
			out = append(out, b)
			continue
		}
		digits, base := 0, 16
		switch {
		case s[i] == 'x':
			digits = 2
		case s[i] == 'u':
			digits = 4
		case s[i] == 'U':
			digits = 8
		case s[i] >= '0' && s[i] <= '3':
			digits, base = 3, 8
			i--
		default:
			return nil, fmt.Errorf("unknown sequence \\%c", s[i])
		}
		if i+digits >= len(s) {
			return nil, errors.New("short sequence at the end")
		}
		n, err := strconv.ParseUint(s[i+1:i+1+digits], base, 32)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("sequence \\%s is no character", s[i:i+1+digits])
		}
		i += digits
		if digits > 3 {
			out = append(out, string(rune(n))...)
		} else {
			out = append(out, byte(n))
		}
	}
	return out, nil
}
