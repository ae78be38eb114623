package spawn

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/caps"
	"machined/spawn/settings"
)

// Validate refuses options that contradict each other. Implied has been called.
func (o *Options) Validate() error {
	switch {
	case o.Directory != "" && o.Image != "":
		return errors.New("--directory= and --image= may not be combined.")
	case o.MStack != "" && (o.Directory != "" || o.Image != "" || o.OCIBundle != "" || o.Template != ""):
		return errors.New("--mstack= may not be combined with --directory=, --image=, --template= or --oci-bundle=")
	case o.MStack != "" && o.Ephemeral:
		return errors.New("--mstack= and --ephemeral may not be combined")
	case o.MStack != "" && o.Userns() && o.Ownership == "chown":
		return errors.New("--mstack= may not be combined with --private-users-ownership=chown: its layers are not the machine's alone")
	case o.Template != "" && o.Image != "":
		return errors.New("--template= and --image= may not be combined.")
	case o.Ephemeral && o.Template != "" && o.Directory != "":
		return errors.New("--ephemeral and --template= may not be combined.")
	case o.Template != "" && o.Directory == "" && o.Machine == "":
		return errors.New("--template= requires --directory= or --machine=.")
	case o.Ephemeral && !(o.JournalTry || o.LinkJournal == "no" || o.LinkJournal == "auto"):
		return errors.New("--ephemeral and --link-journal={host,guest} may not be combined.")
	case o.KeepUnit && o.Slice != "":
		return errors.New("--keep-unit and --slice= may not be combined.")
	case o.KeepUnit && len(o.Properties) > 0:
		return errors.New("--keep-unit and --property= may not be combined.")
	case o.Bridge != "" && o.Zone != "":
		return errors.New("--network-bridge= and --network-zone= may not be combined.")
	case o.NetnsPath != "" && (o.Veth || len(o.VethExtra)+len(o.Interfaces)+len(o.MACVLANs)+len(o.IPVLANs)+len(o.Ports) > 0):
		return errors.New("--network-namespace-path= cannot be combined with other network options")
	case len(o.Ports) > 0 && !o.PrivateNet:
		return errors.New("Cannot use --port= without private networking.")
	case o.Userns() && o.Knobs.APIVFS == "yes":
		return errors.New("Cannot combine --private-users with read-write mounts (SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes).")
	case o.Userns() && o.Knobs.APIVFS == "network" && !o.PrivateNet:
		return errors.New("Invalid namespacing settings. Mounting sysfs with --private-users requires --private-network.")
	case o.Users.Mode == settings.UserManaged:
		return errors.New("--private-users=managed needs systemd-nsresourced, which this program does not speak to")
	case o.Ownership == "chown" && (o.ReadOnly || o.Volatile != "no"):
		return errors.New("--read-only and --private-users-ownership=chown may not be combined.")
	case o.Users.Mode == settings.UserFixed && o.Ownership == "chown" && (o.Users.Base%0x10000 != 0 || o.Users.Count != 0x10000):
		return fmt.Errorf("Automatic UID/GID adjusting is only supported for UID/GID ranges starting at multiples of 2^16 with a range of 2^16. (%d:%d)", o.Users.Base, o.Users.Count)
	case o.Ownership == "foreign" && !o.Userns():
		return errors.New("--private-users-ownership=foreign needs --private-users=")
	case o.Boot() && o.CapAmbient != 0:
		return errors.New("AmbientCapability= setting is not useful for boot mode.")
	case o.PID2() && (o.Knobs.SharePID):
		return errors.New("--as-pid2 cannot be used without namespacing.")
	case o.Boot() && o.Knobs.SharePID:
		return errors.New("--boot cannot be used without namespacing.")
	case o.Image == "" && (len(o.RootHash) > 0 || o.RootHashSig != "" || o.VerityData != ""):
		return errors.New("--root-hash=, --root-hash-sig= and --verity-data= need --image=")
	case len(o.BindUserGroups) > 0 && len(o.BindUsers) == 0:
		return errors.New("Cannot use --bind-user-group= without --bind-user=")
	case len(o.JournalSink.Limits) > 0 && !o.forwards():
		return errors.New("--forward-journal-max-use=/--forward-journal-keep-free=/--forward-journal-max-file-size=/--forward-journal-max-files= require --forward-journal=.")
	case o.forwards() && o.Credentials[sinkCredential] != nil:
		return errors.New("Credential 'journal.forward_to_socket' already set via --set-credential=, refusing --forward-journal=.")
	case o.Cleanup && o.Ephemeral:
		return errors.New("--cleanup and --ephemeral may not be combined.")
	}
	if o.NetnsPath != "" && !path.IsAbs(o.NetnsPath) {
		return fmt.Errorf("network namespace path %q is not absolute", o.NetnsPath)
	}
	if o.User != "" && !settings.ValidUser(o.User) {
		return fmt.Errorf("Failed to resolve user %s.", o.User)
	}
	bounding := o.Bounding()
	if o.CapAmbient&^bounding != 0 {
		return fmt.Errorf("AmbientCapability= setting is not fully covered by Capability= setting. (%s)", caps.Format(o.CapAmbient&^bounding))
	}
	for _, m := range o.Mounts {
		if m.Bind.Bad != "" {
			return fmt.Errorf("Invalid bind mount option: %s", m.Bind.Bad)
		}
		if p := path.Clean(m.Destination); strings.HasPrefix(p, "/proc/") && m.Kind == settings.MountOverlay {
			return fmt.Errorf("Cannot mount an overlay on %s: /proc is mounted when the machine no longer sees the host's directories.", m.Destination)
		}
		if path.Clean(m.Destination) == "/" && (o.Userns() && o.Users.Mode == settings.UserPick || o.Ownership != "off") {
			return fmt.Errorf("--private-users-ownership=%s may not be combined with custom root mounts.", o.Ownership)
		}
	}
	seen := map[string]bool{}
	for _, l := range o.Interfaces {
		if seen[l.Host] {
			return fmt.Errorf("network interface %q is given twice", l.Host)
		}
		seen[l.Host] = true
	}
	if o.Userns() {
		if _, err := os.Stat("/proc/self/uid_map"); err != nil {
			return errors.New("--private-users= is not supported, kernel compiled without user namespace support.")
		}
	}
	return nil
}

// Bounding is the set of capabilities that the machine keeps.
func (o *Options) Bounding() uint64 {
	mask := caps.Default(o.PrivateNet)
	if o.Userns() && !o.PrivateNet {
		// In the host's network it would allow nothing; services rather see that.
		mask &^= caps.Bit(unix.CAP_NET_BIND_SERVICE)
	}
	if o.Nesting && o.Userns() {
		mask |= nestingCaps
	}
	mask |= o.CapAdd
	return mask &^ o.CapDrop
}

// ValidMachineName tells whether s can name a machine: a host name of at most 64
// characters (machinectl(1)).
func ValidMachineName(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '.' || s[0] == '-' || s[len(s)-1] == '.' || s[len(s)-1] == '-' || strings.Contains(s, "..") {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '.' || c == '-':
			if c == '-' && i > 0 && s[i-1] == '.' || c == '.' && s[i-1] == '-' {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// CleanName turns a file name into a machine name as far as it can: what can't be
// in a host name is left out.
func CleanName(s string) string {
	var b strings.Builder
	dot, hyphen := true, true
	for _, c := range []byte(s) {
		switch {
		case b.Len() >= 64:
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
			b.WriteByte(c)
			dot, hyphen = false, false
		case c == '.' && !dot && !hyphen:
			b.WriteByte(c)
			dot = true
		case c == '-' && !dot:
			b.WriteByte(c)
			hyphen = true
		}
	}
	return strings.TrimRight(b.String(), ".-")
}
