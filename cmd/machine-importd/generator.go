package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unicode/utf16"

	"machined/transfer/bootpull"
)

// Names and paths of systemd-import-generator(8).
const (
	generatorName  = "systemd-import-generator"
	pullProgram    = "/usr/lib/systemd/systemd-pull"
	loopUnit       = "/usr/lib/systemd/system/systemd-loop@.service"
	credentialName = "import.pull"
	// stubURL is the EFI variable of systemd-stub(7) with the URL that it was loaded from.
	stubURL = "/sys/firmware/efi/efivars/StubDeviceURL-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
)

// generate writes units for what is to be pulled at boot into the first directory
// of args (systemd.generator(7)). It returns the exit status.
func generate(args []string) int {
	if len(args) != 1 && len(args) != 3 {
		fmt.Fprintln(os.Stderr, generatorName+": this program takes one or three directories")
		return 1
	}
	warn := func(err error) { fmt.Fprintln(os.Stderr, generatorName+": "+err.Error()) }
	cfg := bootpull.Config{Initrd: inInitrd(), Origin: bootOrigin, Warn: warn}
	_, err := os.Stat(loopUnit)
	cfg.LoopUnit = err == nil
	var pulls []bootpull.Pull
	if line, err := kernelCommandLine(); err != nil {
		warn(err)
	} else {
		pulls = cfg.Parse(line)
	}
	if text, err := credential(); err != nil {
		warn(fmt.Errorf("credential %s: %w", credentialName, err))
	} else {
		pulls = append(pulls, cfg.ParseCredential(text)...)
	}
	for _, file := range cfg.Units(pulls, pullProgram) {
		if err := writeUnit(args[0], file); err != nil {
			warn(err)
			return 1
		}
	}
	return 0
}

func writeUnit(dir string, file bootpull.File) error {
	path := filepath.Join(dir, file.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if file.Target != "" {
		return os.Symlink(file.Target, path)
	}
	return os.WriteFile(path, []byte(file.Text), 0o644)
}

func inInitrd() bool {
	switch os.Getenv("SYSTEMD_IN_INITRD") {
	case "1", "yes", "true":
		return true
	case "0", "no", "false":
		return false
	}
	_, err := os.Stat("/etc/initrd-release")
	return err == nil
}

// kernelCommandLine is what the system was started with; a container has the
// arguments of its PID 1 in its place.
func kernelCommandLine() (string, error) {
	if line, ok := os.LookupEnv("SYSTEMD_PROC_CMDLINE"); ok {
		return line, nil
	}
	_, err := os.Stat("/run/systemd/container")
	if strings.HasPrefix(os.Getenv("SYSTEMD_VIRTUALIZATION"), "container:") || err == nil {
		data, err := os.ReadFile("/proc/1/cmdline")
		return string(bytes.ReplaceAll(bytes.TrimRight(data, "\x00"), []byte{0}, []byte{' '})), err
	}
	data, err := os.ReadFile("/proc/cmdline")
	return string(data), err
}

// credential reads the system credential (systemd.system-credentials(7)), empty
// when there is none.
func credential() (string, error) {
	for _, row := range []struct{ variable, fallback string }{
		{"CREDENTIALS_DIRECTORY", "/run/credentials/@system"},
		{"ENCRYPTED_CREDENTIALS_DIRECTORY", "/run/credentials/@encrypted"},
	} {
		dir := os.Getenv(row.variable)
		if dir == "" {
			dir = row.fallback
		}
		path := filepath.Join(dir, credentialName)
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil && row.variable == "ENCRYPTED_CREDENTIALS_DIRECTORY" {
			data, err = exec.CommandContext(context.Background(), "systemd-creds", "decrypt", "--name="+credentialName, path, "-").Output()
		}
		return string(data), err
	}
	return "", nil
}

// bootOrigin reads the URL that systemd-stub(7) was loaded from.
func bootOrigin() (string, error) {
	data, err := os.ReadFile(stubURL)
	if err != nil {
		return "", err
	}
	if len(data) < 4 {
		return "", errors.New("the EFI variable StubDeviceURL is empty")
	}
	data = data[4:] // attributes
	units := make([]uint16, 0, len(data)/2)
	for ; len(data) >= 2; data = data[2:] {
		if c := binary.LittleEndian.Uint16(data); c != 0 {
			units = append(units, c)
		}
	}
	return string(utf16.Decode(units)), nil
}
