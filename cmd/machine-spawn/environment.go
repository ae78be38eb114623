package main

import (
	"fmt"
	"os"
	"strings"

	"machined/spawn/settings"
)

// environment reads the settings that come by the environment only.
func (c *commandLine) environment() error {
	k := &c.opts.Knobs
	flag := func(name string, def bool) (bool, error) {
		v, ok := os.LookupEnv(name)
		if !ok {
			return def, nil
		}
		b, err := settings.ParseBool(v)
		if err != nil {
			return def, fmt.Errorf("Failed to parse $%s: Invalid argument (%w)", name, err)
		}
		return b, nil
	}
	share, err := flag("SYSTEMD_NSPAWN_SHARE_SYSTEM", false)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		to   *bool
		def  bool
	}{
		{"SYSTEMD_NSPAWN_SHARE_NS_IPC", &k.ShareIPC, share},
		{"SYSTEMD_NSPAWN_SHARE_NS_PID", &k.SharePID, share},
		{"SYSTEMD_NSPAWN_SHARE_NS_UTS", &k.ShareUTS, share},
		{"SYSTEMD_NSPAWN_USE_CGNS", &k.CgroupNS, true},
		{"SYSTEMD_NSPAWN_TMPFS_TMP", &k.TmpfsTmp, true},
		{"SYSTEMD_SUPPRESS_SYNC", &c.opts.NoSync, c.opts.NoSync},
	} {
		if f.name == "SYSTEMD_SUPPRESS_SYNC" && c.mask["suppress-sync"] {
			continue
		}
		if *f.to, err = flag(f.name, f.def); err != nil {
			return err
		}
	}
	check, err := flag("SYSTEMD_NSPAWN_CHECK_OS_RELEASE", true)
	if err != nil {
		return err
	}
	filter, err := flag("SYSTEMD_SECCOMP", true)
	if err != nil {
		return err
	}
	k.SkipOSRelease, k.NoSeccomp = !check, !filter
	if v := os.Getenv("SYSTEMD_NSPAWN_CONTAINER_SERVICE"); v != "" {
		k.Manager = v
	}
	k.HostMAC = os.Getenv("SYSTEMD_NSPAWN_NETWORK_MAC")
	switch v := os.Getenv("SYSTEMD_NSPAWN_API_VFS_WRITABLE"); v {
	case "":
	case "network":
		k.APIVFS = v
	default:
		on, err := settings.ParseBool(v)
		if err != nil {
			return fmt.Errorf("Failed to parse $SYSTEMD_NSPAWN_API_VFS_WRITABLE: Invalid argument (%w)", err)
		}
		k.APIVFS = map[bool]string{true: "yes", false: "no"}[on]
	}
	return nil
}

// belowAPIVFS tells whether a path of the machine is in a file system of the
// kernel's, where a payload's working directory has no place.
func belowAPIVFS(p string) bool {
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if p == dir || strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return false
}
