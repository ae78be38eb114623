package settings

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// maxLine and maxFile bound what is read, in bytes.
const (
	maxLine = 1 << 20
	maxFile = 16 << 20
)

// ErrSyntax is wrapped when a file is no settings file at all.
var ErrSyntax = errors.New("Failed to parse file: Bad message")

// Parse reads a file. The warnings are about lines that it passed over; the error
// is about the whole: it cannot be read, is too large, or has a broken section
// header.
func Parse(r io.Reader) (*File, []Warning, error) {
	p := &parser{file: &File{}}
	lr := &io.LimitedReader{R: r, N: maxFile + 1}
	s := bufio.NewScanner(lr)
	s.Buffer(make([]byte, 0, 4096), maxLine)
	s.Split(splitLines)
	var pending strings.Builder
	start, line := 0, 0
	for s.Scan() {
		line++
		text := s.Bytes()
		if line == 1 {
			text = bytes.TrimPrefix(text, []byte("\ufeff"))
		}
		if word := bytes.TrimLeft(text, " \t\r"); len(word) > 0 && (word[0] == '#' || word[0] == ';') {
			continue // also between the parts of a continued line
		}
		start = line // stock counts the last one of a continued line
		if n := len(text); n > 0 && text[n-1] == '\\' && !escaped(text[:n-1]) {
			pending.Write(text[:n-1])
			pending.WriteByte(' ')
			if pending.Len() > maxLine {
				return nil, p.warnings, fmt.Errorf("%d: Line is too long: %w", start, ErrSyntax)
			}
			continue
		}
		pending.Write(text)
		if err := p.line(start, pending.String()); err != nil {
			return nil, p.warnings, fmt.Errorf("%d: %w", start, err)
		}
		pending.Reset()
	}
	if err := s.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return nil, p.warnings, fmt.Errorf("%d: Line is too long: %w", line+1, ErrSyntax)
		}
		return nil, p.warnings, err
	}
	if lr.N <= 0 {
		return nil, p.warnings, fmt.Errorf("1: File is larger than %d bytes: %w", maxFile, ErrSyntax)
	}
	if pending.Len() > 0 {
		if err := p.line(start, pending.String()); err != nil {
			return nil, p.warnings, fmt.Errorf("%d: %w", start, err)
		}
	}
	p.complete()
	return p.file, p.warnings, nil
}

// escaped tells whether an odd number of backslashes ends b.
func escaped(b []byte) bool {
	n := 0
	for n < len(b) && b[len(b)-1-n] == '\\' {
		n++
	}
	return n%2 == 1
}

// splitLines is bufio.ScanLines that keeps carriage returns in values out.
func splitLines(data []byte, atEOF bool) (int, []byte, error) {
	n, tok, err := bufio.ScanLines(data, atEOF)
	if tok != nil {
		tok = bytes.TrimRight(tok, " \t\r")
	}
	return n, tok, err
}

type parser struct {
	file        *File
	warnings    []Warning
	section     string // "" before the first, "-" in one that is skipped
	boot, pid2  *bool
	startLine   int // the last one about what is started
	currentLine int
}

func (p *parser) warnf(format string, args ...any) {
	p.warnings = append(p.warnings, Warning{p.currentLine, fmt.Sprintf(format, args...)})
}

func (p *parser) line(number int, text string) error {
	p.currentLine = number
	text = strings.TrimSpace(text)
	if text == "" {
		return nil
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return fmt.Errorf("String is not UTF-8 clean, ignoring assignment: %q: %w", text, ErrSyntax)
	}
	if text[0] == '[' {
		if text[len(text)-1] != ']' {
			return fmt.Errorf("Invalid section header '%s': %w", text, ErrSyntax)
		}
		switch name := text[1 : len(text)-1]; name {
		case "Exec", "Files", "Network":
			p.section = name
		default:
			p.section = "-"
			if !strings.HasPrefix(name, "X-") {
				p.warnf("Unknown section '%s'. Ignoring.", name)
			}
		}
		return nil
	}
	if p.section == "-" {
		return nil
	}
	if p.section == "" {
		p.warnf("Assignment outside of section. Ignoring.")
		return nil
	}
	key, value, ok := strings.Cut(text, "=")
	if !ok {
		p.warnf("Missing '=', ignoring line.")
		return nil
	}
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	if key == "" {
		p.warnf("Missing key name before '=', ignoring line.")
		return nil
	}
	h, ok := keys[p.section+"."+key]
	if !ok && p.section == "Exec" && strings.HasPrefix(key, "Limit") {
		if name := key[len("Limit"):]; ValidLimit(name) {
			h, ok = func(p *parser, v string) error { return p.limit(name, v) }, true
		}
	}
	if !ok {
		if !strings.HasPrefix(key, "X-") {
			p.warnf("Unknown key '%s' in section [%s], ignoring.", key, p.section)
		}
		return nil
	}
	if err := h(p, value); err != nil {
		if errors.Is(err, errFatal) {
			return err
		}
		p.warnf("%s", complaint(key, value, err))
	}
	if key == "Boot" || key == "ProcessTwo" {
		p.startLine = number
	}
	return nil
}

// complete applies what follows from settings together.
func (p *parser) complete() {
	p.currentLine = 0
	f := p.file
	boot, pid2 := p.boot != nil && *p.boot, p.pid2 != nil && *p.pid2
	switch {
	case boot && pid2:
		p.currentLine = p.startLine
		p.warnf("Conflicting Boot= or ProcessTwo= setting found. Ignoring.")
	case boot:
		f.StartMode = StartBoot
	case pid2:
		f.StartMode = StartPID2
	case p.boot != nil || p.pid2 != nil:
		f.StartMode = StartCommand
	}
	if f.Ownership != "" && f.PrivateUsers == nil {
		f.PrivateUsers = &PrivateUsers{Mode: UserNone}
	}
	if f.PrivateUsers != nil && f.PrivateUsers.Mode == UserPick && f.Ownership == "" {
		f.Ownership = "auto"
	}
}
