package cli

import (
	"fmt"
	"strings"
)

// ArgKind says whether an option takes an argument.
type ArgKind int

// The kinds of options. An optional argument has to follow in the same word.
const (
	NoArg ArgKind = iota
	RequiredArg
	OptionalArg
)

// Option is one row of a program's option table.
type Option struct {
	Short  byte // 0: none
	Long   string
	Arg    ArgKind
	Hidden bool // works, but is left out of help and manual
	// Set acts on the option; arg is empty when there is none.
	Set func(arg string) error
}

// Options parses a command line as getopt_long(3) does in stock's tools:
// options may stand anywhere, also after the words, and unique prefixes of long
// options count. stop, if not nil, is asked after each word whether the rest is
// to be taken literally.
type Options struct {
	Program string
	Table   []Option
	Stop    func(words []string) bool
}

// UsageError is a mistake in the command line itself.
type UsageError struct{ Text string }

func (e *UsageError) Error() string { return e.Text }

func (o *Options) usage(format string, args ...any) error {
	return &UsageError{o.Program + ": " + fmt.Sprintf(format, args...)}
}

// Parse runs the options found in args and returns the other words in order.
func (o *Options) Parse(args []string) ([]string, error) {
	var words []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			return append(words, args...), nil
		case strings.HasPrefix(arg, "--"):
			used, err := o.long(arg[2:], args)
			if err != nil {
				return nil, err
			}
			args = args[used:]
		case len(arg) > 1 && arg[0] == '-':
			used, err := o.short(arg[1:], args)
			if err != nil {
				return nil, err
			}
			args = args[used:]
		default:
			words = append(words, arg)
			if o.Stop != nil && o.Stop(words) {
				return append(words, args...), nil
			}
		}
	}
	return words, nil
}

func (o *Options) long(word string, rest []string) (int, error) {
	name, value, hasValue := strings.Cut(word, "=")
	var match *Option
	var candidates []string
	for i := range o.Table {
		option := &o.Table[i]
		if option.Long == "" {
			continue
		}
		if option.Long == name {
			match, candidates = option, nil
			break
		}
		if strings.HasPrefix(option.Long, name) {
			match = option
			candidates = append(candidates, option.Long)
		}
	}
	switch {
	case match == nil:
		return 0, o.usage("unrecognized option '--%s'", word)
	case len(candidates) > 1:
		return 0, o.usage("option '--%s' is ambiguous; possibilities: '--%s'", word, strings.Join(candidates, "' '--"))
	case hasValue && match.Arg == NoArg:
		return 0, o.usage("option '--%s' doesn't allow an argument", match.Long)
	case hasValue || match.Arg != RequiredArg:
		return 0, match.Set(value)
	case len(rest) == 0:
		return 0, o.usage("option '--%s' requires an argument", match.Long)
	}
	return 1, match.Set(rest[0])
}

func (o *Options) short(letters string, rest []string) (int, error) {
	for i := range len(letters) {
		var match *Option
		for j := range o.Table {
			if o.Table[j].Short == letters[i] {
				match = &o.Table[j]
			}
		}
		switch {
		case match == nil:
			return 0, o.usage("invalid option -- '%c'", letters[i])
		case match.Arg == NoArg:
			if err := match.Set(""); err != nil {
				return 0, err
			}
			continue
		case i+1 < len(letters) || match.Arg == OptionalArg:
			return 0, match.Set(letters[i+1:])
		case len(rest) == 0:
			return 0, o.usage("option requires an argument -- '%c'", letters[i])
		}
		return 1, match.Set(rest[0])
	}
	return 0, nil
}
