package server

import (
	"context"
	"regexp"
	"strings"
	"unicode"

	"machined/dbus"
	"machined/registry"
)

const (
	// maxLogLines and maxLogBytes bound one GetLog: what a status shows.
	maxLogLines = 10000
	maxLogBytes = 1 << 20
)

// getLog returns the end of what the machine's spawner and console wrote, where
// the daemon keeps that itself. Nobody is asked to authenticate for it: it is
// the last part of a status, which a caller without the right sees without.
func (s *Server) getLog(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	d := details{"machine", m.Name, "verb", "get_log"}
	if err := s.authorizeAs(ctx, c, actionManage, d, false, nil); err != nil {
		return nil, err
	}
	data, err := s.reg.Console(m.Name, maxLogBytes)
	if err != nil {
		return nil, err
	}
	return []any{lastLines(string(data), int(min(c.Uint32(0), maxLogLines)))}, nil
}

// sequence is what a program on a terminal sends beside text (console_codes(4)):
// control sequences, titles, and single escapes.
var sequence = regexp.MustCompile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b\n]*(?:\x07|\x1b\\\\)?|[ -/]*[0-~])")

// lastLines returns the last n lines of text as a journal would show them: UTF-8
// without terminal sequences and control characters.
func lastLines(text string, n int) []string {
	text = strings.TrimSuffix(strings.ToValidUTF8(text, "\uFFFD"), "\n")
	if text == "" || n <= 0 {
		return []string{}
	}
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, line := range lines {
		lines[i] = strings.Map(func(c rune) rune {
			if c != '\t' && unicode.IsControl(c) {
				return -1
			}
			return c
		}, sequence.ReplaceAllString(line, ""))
	}
	return lines
}
