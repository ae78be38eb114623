package settings

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// SplitWords splits at blanks; words can be quoted with " or ', and backslash
// sequences of C count, but between single and double quotes alike, as in unit
// files (systemd.syntax(7)).
func SplitWords(s string) ([]string, error) {
	var out []string
	var b strings.Builder
	in, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\':
			text, n, err := unescape(s[i+1:])
			if err != nil {
				return nil, err
			}
			b.WriteString(text)
			i += n
			in = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			b.WriteByte(c)
		case c == '"' || c == '\'':
			quote, in = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if in {
				out = append(out, b.String())
				b.Reset()
				in = false
			}
		default:
			b.WriteByte(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, errors.New("quote is not closed")
	}
	if in {
		out = append(out, b.String())
	}
	return out, nil
}

// unescape reads what follows a backslash: the text it stands for and how many
// bytes it took.
func unescape(s string) (string, int, error) {
	if s == "" {
		return "", 0, errors.New("backslash at the end")
	}
	if i := strings.IndexByte("abfnrtvs\\\"'", s[0]); i >= 0 {
		return "\a\b\f\n\r\t\v \\\"'"[i : i+1], 1, nil
	}
	number := func(digits, base, skip int, asRune bool) (string, int, error) {
		if len(s) < skip+digits {
			return "", 0, fmt.Errorf("\\%s is cut short", s)
		}
		n, err := strconv.ParseUint(s[skip:skip+digits], base, 32)
		if err != nil || n == 0 || !asRune && n > 255 || asRune && !utf8.ValidRune(rune(n)) {
			return "", 0, fmt.Errorf("\\%s is not a character", s[:skip+digits])
		}
		if asRune {
			return string(rune(n)), skip + digits, nil
		}
		return string([]byte{byte(n)}), skip + digits, nil
	}
	switch c := s[0]; {
	case c == 'x':
		return number(2, 16, 1, false)
	case c == 'u':
		return number(4, 16, 1, true)
	case c == 'U':
		return number(8, 16, 1, true)
	case c >= '0' && c <= '7':
		return number(3, 8, 0, false)
	}
	return "", 0, fmt.Errorf("\\%c is no sequence", s[0])
}
