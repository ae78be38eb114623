package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"machined/spawn/settings"
)

// sentences say which option's value was not taken, as stock does; the rule that it
// breaks comes behind. An option that is not here has words of its own.
var sentences = map[string]string{
	"volatile":                "Failed to parse --volatile= argument: %s",
	"pivot-root":              "Failed to parse --pivot-root= argument %s: Invalid argument",
	"setenv":                  "Cannot assign environment variable %s: Invalid argument",
	"user":                    "Failed to resolve user %s.",
	"uid":                     "Failed to resolve user %s.",
	"kill-signal":             "Cannot parse signal: %s",
	"uuid":                    "Invalid UUID: %s",
	"slice":                   "Failed to parse --slice= argument: %s",
	"private-users":           "Failed to parse UID \"%s\": Invalid argument",
	"private-users-ownership": "Cannot parse --private-users-ownership= value: %s",
	"network-interface":       "Network interface, interface name not valid: %s",
	"network-macvlan":         "MACVLAN network interface, interface name not valid: %s",
	"network-ipvlan":          "IPVLAN network interface, interface name not valid: %s",
	"network-veth-extra":      "Failed to parse --network-veth-extra= parameter: %s",
	"network-namespace-path":  "Failed to parse --network-namespace-path= argument: %s",
	"port":                    "Failed to parse host port %s: Invalid argument",
	"capability":              "Failed to parse capability %s.",
	"drop-capability":         "Failed to parse capability %s.",
	"ambient-capability":      "Failed to parse capability %s.",
	"system-call-filter":      "Failed to parse --system-call-filter= argument: %s",
	"rlimit":                  "Failed to parse resource limit: %s",
	"oom-score-adjust":        "Failed to parse --oom-score-adjust= parameter: %s",
	"cpu-affinity":            "Failed to parse CPU affinity mask %s: Invalid argument",
	"personality":             "Unknown or unsupported personality '%s'.",
	"resolv-conf":             "Failed to parse /etc/resolv.conf mode: %s",
	"timezone":                "Failed to parse /etc/localtime mode: %s",
	"link-journal":            "Failed to parse link journal mode %s",
	"bind":                    "Failed to parse --bind(-ro)= argument %s: Invalid argument",
	"bind-ro":                 "Failed to parse --bind(-ro)= argument %s: Invalid argument",
	"inaccessible":            "Failed to parse --inaccessible= argument %s: Invalid argument",
	"tmpfs":                   "Failed to parse --tmpfs= argument %s: Invalid argument",
	"overlay":                 "Failed to parse --overlay(-ro)= argument %s: Invalid argument",
	"overlay-ro":              "Failed to parse --overlay(-ro)= argument %s: Invalid argument",
	"bind-user-shell":         "Failed to parse --bind-user-shell= argument: %s",
	"settings":                "Failed to parse --settings= argument: %s",
	"image-policy":            "Failed to parse image policy: %s",
	"read-only":               "Failed to parse boolean argument to --read-only=: %s.",
	"notify-ready":            "%s is not a valid notify mode. Valid modes are: yes, no, and ready.",
	"suppress-sync":           "Failed to parse boolean argument to --suppress-sync=: %s.",
	"no-new-privileges":       "Failed to parse boolean argument to --no-new-privileges=: %s.",
	"register":                "Failed to parse boolean argument to --register=: %s.",
}

// refusal puts an error of the option parser into stock's words.
func refusal(err error) error {
	program := filepath.Base(os.Args[0])
	var bad *pflag.InvalidValueError
	var missing *pflag.ValueRequiredError
	var unknown *pflag.NotExistError
	var syntax *pflag.InvalidSyntaxError
	switch {
	case errors.As(err, &bad):
		return badValue(bad.GetFlag(), bad.GetValue(), errors.Unwrap(bad))
	case errors.As(err, &missing):
		if missing.GetSpecifiedShortnames() != "" {
			return fmt.Errorf("%s: option requires an argument -- '%s'", program, missing.GetSpecifiedName())
		}
		return fmt.Errorf("%s: option '--%s' requires an argument", program, missing.GetSpecifiedName())
	case errors.As(err, &unknown):
		if unknown.GetSpecifiedShortnames() != "" {
			return fmt.Errorf("%s: invalid option -- '%s'", program, unknown.GetSpecifiedName())
		}
		return fmt.Errorf("%s: unrecognized option '--%s'", program, unknown.GetSpecifiedName())
	case errors.As(err, &syntax):
		return fmt.Errorf("%s: unrecognized option '%s'", program, syntax.GetSpecifiedFlag())
	}
	return err
}

// badValue says what is wrong with a value: a sentence of stock's, and the rule in
// brackets. A cause that is a sentence already (it begins with a capital letter or
// an option) stays as it is. The option is always named.
func badValue(f *pflag.Flag, value string, cause error) error {
	if o, ok := f.Value.(*option); ok && o.flag {
		return fmt.Errorf("%s: option '--%s' doesn't allow an argument", filepath.Base(os.Args[0]), f.Name)
	}
	text := cause.Error()
	first, _ := utf8.DecodeRuneInString(text)
	sentence, known := sentences[f.Name]
	name := "--" + f.Name + "="
	if unicode.IsUpper(first) || strings.HasPrefix(text, "--") || !known {
		if strings.Contains(text, "--"+f.Name) {
			return cause
		}
		return fmt.Errorf("%w (%s)", cause, name)
	}
	if f.Name == "rlimit" {
		_, value, _ = strings.Cut(value, "=")
	}
	said := fmt.Sprintf(sentence, value)
	if errors.Is(cause, unix.ERANGE) {
		said = strings.Replace(said, "Invalid argument", "Numerical result out of range", 1)
	}
	if errors.Is(cause, settings.ErrOneDirectory) {
		said = "--overlay(-ro)= needs at least two colon-separated directories specified."
	}
	if strings.Contains(said, "--"+f.Name) {
		return fmt.Errorf("%s (%w)", said, cause)
	}
	return fmt.Errorf("%s (%s: %w)", said, name, cause)
}

// lettersOnly are options that exist as a letter, and have a name for the parser
// only.
var lettersOnly = []string{"private-users-pick", "link-journal-try-guest"}

// unabbreviate completes the names of options, as getopt_long(3) does: as much as
// tells it from all others is enough. Nothing behind the first argument that is no
// option is looked at.
func (c *commandLine) unabbreviate(args []string) ([]string, error) {
	var names []string
	c.fs.VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(lettersOnly, f.Name) {
			names = append(names, f.Name)
		}
	})
	out := slices.Clone(args)
	for i := 0; i < len(out); i++ {
		arg := out[i]
		if arg == "--" || len(arg) < 2 || arg[0] != '-' {
			break
		}
		if !strings.HasPrefix(arg, "--") {
			if c.lastTakesNext(arg[1:]) {
				i++
			}
			continue
		}
		name, value, has := strings.Cut(arg[2:], "=")
		f := c.fs.Lookup(name)
		if f == nil {
			var match []string
			for _, n := range names {
				if strings.HasPrefix(n, name) {
					match = append(match, n)
				}
			}
			switch {
			case name == "" || len(match) == 0:
				continue // the parser refuses it
			case len(match) > 1:
				return nil, fmt.Errorf("%s: option '--%s' is ambiguous; possibilities: '--%s'",
					filepath.Base(os.Args[0]), name, strings.Join(match, "' '--"))
			}
			f = c.fs.Lookup(match[0])
			out[i] = "--" + match[0]
			if has {
				out[i] += "=" + value
			}
		}
		if !has && f.Name == "user" && (i+1 == len(out) || strings.HasPrefix(out[i+1], "-")) {
			// The scope of the user's service manager, since 261; with a word it is a user.
			return nil, errors.New("User-scoped operation requires managed user namespaces, which are not supported by this program. (--user=NAME or --uid=NAME run the command as a user)")
		}
		if !has && f.NoOptDefVal == "" {
			i++
		}
	}
	return out, nil
}

// lastTakesNext tells whether a group of one-letter options ends in one whose
// argument is the next word.
func (c *commandLine) lastTakesNext(letters string) bool {
	for i := range len(letters) {
		f := c.fs.ShorthandLookup(letters[i : i+1])
		if f == nil {
			return false
		}
		if f.NoOptDefVal == "" {
			return i == len(letters)-1
		}
	}
	return false
}

// inWords is the text of an error, with the name of an errno at its end as
// strerror(3) has it: "No such file or directory", where Go begins with a small
// letter. Errors of the set-up stage come as text, so the text is what counts.
func inWords(err error) string {
	text := err.Error()
	for n := range 134 {
		small := syscall.Errno(n).Error()
		if rest, ok := strings.CutSuffix(text, ": "+small); ok && !strings.HasPrefix(small, "errno ") {
			return rest + ": " + strings.ToUpper(small[:1]) + small[1:]
		}
	}
	return text
}
