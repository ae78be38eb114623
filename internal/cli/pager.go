package cli

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

// Output is standard output, possibly through a pager.
type Output struct {
	io.Writer
	Paged bool
	pipe  io.WriteCloser
	pager *exec.Cmd
}

// OpenOutput starts the pager if standard output is a terminal and the
// environment (SYSTEMD_PAGER, PAGER) doesn't turn it off; otherwise it writes to
// standard output itself.
func OpenOutput(t *Terminal, noPager bool) *Output {
	plain := &Output{Writer: os.Stdout}
	if noPager || !t.OutTTY || os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "" {
		return plain
	}
	secure, forced := secureMode()
	candidates := [][]string{{"pager"}, {"less"}, {"more"}}
	wish, set := os.LookupEnv("SYSTEMD_PAGER")
	if !set {
		wish, set = os.LookupEnv("PAGER")
	}
	if set && (forced || !secure) {
		words := strings.Fields(wish)
		if len(words) == 0 || words[0] == "cat" {
			return plain
		}
		candidates = append([][]string{words}, candidates...)
	} else if set && (wish == "" || wish == "cat") {
		return plain
	}
	if secure {
		candidates = [][]string{{"less"}}
	}
	for _, command := range candidates {
		path, err := exec.LookPath(command[0])
		if err != nil {
			continue
		}
		pager := exec.Command(path, command[1:]...)
		pager.Env = pagerEnvironment(secure)
		pager.Stdout, pager.Stderr = os.Stdout, os.Stderr
		pipe, err := pager.StdinPipe()
		if err != nil {
			return plain
		}
		if err := pager.Start(); err != nil {
			_ = pipe.Close()
			continue
		}
		// Ctrl-C is for the pager; a pager that was left early is no error.
		signal.Ignore(syscall.SIGINT, syscall.SIGPIPE)
		return &Output{Writer: pipe, Paged: true, pipe: pipe, pager: pager}
	}
	return plain
}

// secureMode says whether the pager must not be able to start other programs,
// as when a command runs under sudo; forced if the environment says so.
func secureMode() (secure, forced bool) {
	if value, ok := os.LookupEnv("SYSTEMD_PAGERSECURE"); ok {
		on, err := ParseBool(value)
		return err != nil || on, true
	}
	return os.Getenv("SUDO_UID") != "" || os.Getuid() != os.Geteuid(), false
}

func pagerEnvironment(secure bool) []string {
	env := os.Environ()
	less, set := os.LookupEnv("SYSTEMD_LESS")
	if !set {
		less = "FRSXMK"
	}
	env = append(env, "LESS="+less)
	charset, set := os.LookupEnv("SYSTEMD_LESSCHARSET")
	if !set {
		charset = "utf-8"
	}
	env = append(env, "LESSCHARSET="+charset)
	if secure {
		env = append(env, "LESSSECURE=1")
	}
	return env
}

// Close ends the output and waits until the person has left the pager.
func (o *Output) Close() error {
	if o.pager == nil {
		return nil
	}
	_ = o.pipe.Close()
	if err := o.pager.Wait(); err != nil {
		return fmt.Errorf("run pager: %w", err)
	}
	return nil
}
