package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"machined/internal/cli"
)

// storageDir is where storage providers have their sockets, below the runtime
// directory of the system or of a user (io.systemd.StorageProvider, systemd 261).
const (
	storageDir    = "systemd/io.systemd.StorageProvider"
	acquireMethod = "io.systemd.StorageProvider.Acquire"
	systemRuntime = "/run"
)

// volume is what is asked of a storage provider, and what the runner of a
// machine is told of it.
type volume struct {
	provider, name string
	config         string // of the runner's: how the machine sees it
	acquire        acquireRequest
}

// acquireRequest has the parameters of Acquire; what is nil or "" is left to
// the provider.
type acquireRequest struct {
	Name       string  `json:"name"`
	CreateMode string  `json:"createMode,omitempty"`
	Template   string  `json:"template,omitempty"`
	ReadOnly   *bool   `json:"readOnly,omitempty"`
	RequestAs  string  `json:"requestAs,omitempty"`
	CreateSize *uint64 `json:"createSizeBytes,omitempty"`
	Ask        bool    `json:"allowInteractiveAuthentication"`
}

// String is the name by which the machine knows the volume.
func (v *volume) String() string { return v.provider + ":" + v.name }

// parseVolume reads PROVIDER:VOLUME[:CONFIG[:KEY=VALUE,...]]. A backslash takes
// the character after it as it is. Its error is unix.EINVAL.
func parseVolume(arg string) (*volume, error) {
	provider, rest, _, err := cutWord(arg, ':')
	if err != nil {
		return nil, err
	}
	name, rest, _, err := cutWord(rest, ':')
	if err != nil {
		return nil, err
	}
	config, rest, more, err := cutWord(rest, ':')
	if err != nil {
		return nil, err
	}
	if !validProvider(provider) || !safe(name) || config != "" && !safe(config) {
		return nil, unix.EINVAL
	}
	v := &volume{provider: provider, name: name, config: config, acquire: acquireRequest{Name: name}}
	seen := map[string]bool{}
	for more {
		var word string
		if word, rest, more, err = cutWord(rest, ','); err != nil {
			return nil, err
		}
		if word == "" {
			continue
		}
		if err := v.set(word, seen); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// cutWord returns what is before the first separator that no backslash precedes,
// without backslashes, and what comes after it.
func cutWord(s string, separator byte) (word, rest string, found bool, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == separator:
			return b.String(), s[i+1:], true, nil
		case s[i] == '\\' && i+1 == len(s):
			return "", "", false, unix.EINVAL
		case s[i] == '\\':
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), "", false, nil
}

// volumeKeys are the keys of the last part, with the name that each is known by.
var volumeKeys = map[string]string{
	"create": "create", "template": "template", "request-as": "request-as",
	"read-only": "read-only", "ro": "read-only", "size": "size", "create-size": "size",
}

// set takes one KEY=VALUE; each key may be given once.
func (v *volume) set(word string, seen map[string]bool) error {
	key, value, ok := strings.Cut(word, "=")
	key = volumeKeys[key]
	if !ok || key == "" || seen[key] {
		return unix.EINVAL
	}
	seen[key] = true
	switch key {
	case "create":
		if value != "any" && value != "new" && value != "open" {
			return unix.EINVAL
		}
		v.acquire.CreateMode = value
	case "template":
		if !safe(value) {
			return unix.EINVAL
		}
		v.acquire.Template = value
	case "request-as":
		if value != "blk" && value != "reg" && value != "dir" {
			return unix.EINVAL
		}
		v.acquire.RequestAs = value
	case "read-only":
		if value == "auto" {
			return nil
		}
		on, err := cli.ParseBool(value)
		if err != nil {
			return unix.EINVAL
		}
		v.acquire.ReadOnly = &on
	case "size":
		n, err := cli.ParseSize(value)
		if err != nil || n == 0 {
			return unix.EINVAL
		}
		v.acquire.CreateSize = &n
	}
	return nil
}

// validProvider says whether a provider's name is a file name, as that of its
// socket is, and nothing that leads elsewhere.
func validProvider(s string) bool {
	return safe(s) && s != "." && s != ".." && !strings.Contains(s, "/") && len(s) <= unix.NAME_MAX
}

// safe says whether a word has neither quotes, backslashes nor control
// characters: runners make names of devices of it.
func safe(s string) bool {
	return s != "" && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f || c == '"' || c == '\'' || c == '\\' })
}

// runtimeDir is where the services of the scope that was asked for have their sockets.
func (a *app) runtimeDir() string {
	if !a.opts.target.User {
		return systemRuntime
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(systemRuntime, "user", strconv.Itoa(os.Geteuid()))
}

// runner connects to the control socket of a machine.
func (a *app) runner(ctx context.Context, verb, name string) (*cli.VarlinkConn, error) {
	if !a.opts.target.Local() {
		return nil, cli.Failf("%s is only supported on the local transport.", verb)
	}
	if _, err := a.machineObject(ctx, name); err != nil {
		return nil, err
	}
	address := a.controlAddress(ctx, name)
	if address == "" {
		return nil, cli.Failf("Machine '%s' does not expose a varlink control socket.", name)
	}
	conn, err := cli.DialVarlink(ctx, address)
	if err != nil {
		return nil, cli.Because("Failed to connect to machine control socket "+address, err)
	}
	return conn, nil
}

// runBindVolume has a storage provider open a volume and hands it to the runner
// of a machine. The runner is connected to first: a provider may have to make
// the volume, which nobody would want then.
func runBindVolume(a *app, ctx context.Context, args []string) error {
	v, err := parseVolume(args[1])
	if err != nil {
		return cli.Because(fmt.Sprintf("Failed to parse bind-volume argument '%s'", args[1]), err)
	}
	machine, err := a.runner(ctx, "bind-volume", args[0])
	if err != nil {
		return err
	}
	defer machine.Close()
	failed := fmt.Sprintf("Failed to acquire storage volume '%s' from provider", v)
	provider, err := cli.DialVarlink(ctx, filepath.Join(a.runtimeDir(), storageDir, v.provider))
	if err != nil {
		return cli.Because(failed, err)
	}
	defer provider.Close()
	v.acquire.Ask = a.opts.ask
	var reply struct {
		Index *int `json:"fileDescriptorIndex"`
	}
	files, err := provider.Call(ctx, acquireMethod, &v.acquire, &reply)
	if err != nil {
		return volumeError(failed, err)
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if reply.Index == nil || *reply.Index < 0 || *reply.Index >= len(files) {
		return cli.Because(failed, unix.EBADMSG)
	}
	parameters := map[string]any{"fileDescriptorIndex": 0, "name": v.String()}
	if v.config != "" {
		parameters["config"] = v.config
	}
	if _, err := machine.Call(ctx, instanceInterface+"AddStorage", parameters, nil, files[*reply.Index]); err != nil {
		return volumeError(fmt.Sprintf("AddStorage failed for '%s'", v), err)
	}
	return nil
}

// runUnbindVolume takes a volume from a machine again.
func runUnbindVolume(a *app, ctx context.Context, args []string) error {
	provider, name, _ := strings.Cut(args[1], ":")
	if !validProvider(provider) || !safe(name) {
		return cli.Failf("Invalid unbind-volume name '%s', expected '<provider>:<volume>'.", args[1])
	}
	machine, err := a.runner(ctx, "unbind-volume", args[0])
	if err != nil {
		return err
	}
	defer machine.Close()
	if _, err := machine.Call(ctx, instanceInterface+"RemoveStorage", map[string]any{"name": args[1]}, nil); err != nil {
		return volumeError(fmt.Sprintf("RemoveStorage failed for '%s'", args[1]), err)
	}
	return nil
}

// volumeError names the error of a service in full, as stock does.
func volumeError(failed string, err error) error {
	var answer *cli.VarlinkError
	if errors.As(err, &answer) {
		return cli.Failf("%s: %s", failed, answer.Name)
	}
	return cli.Because(failed, err)
}
