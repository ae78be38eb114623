package host

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// Suite is the Debian release of a host.
type Suite string

// The releases that the product has to work on, and their systemd versions.
const (
	Bookworm Suite = "bookworm" // systemd 252
	Trixie   Suite = "trixie"   // systemd 257
)

// Suites lists every release, oldest first.
var Suites = []Suite{Bookworm, Trixie}

// recipe says how to make a tree. Its text is the key of the tree in the cache:
// a change of it makes a new tree.
type recipe struct {
	kind     string
	suite    Suite
	packages []string
	script   string  // run with chroot in the finished tree
	base     *recipe // tree that it starts from; nil: an empty one
}

// hostPackages are what a host has installed; the programs of the suites too.
var hostPackages = []string{
	"systemd", "systemd-sysv", "systemd-container", "dbus", "polkitd", "libnss-mymachines",
	"libnss-systemd", "libpam-systemd", "iproute2", "iputils-ping", "nftables", "procps", "psmisc",
	"util-linux", "less", "sudo", "btrfs-progs", "squashfs-tools", "strace", "curl", "jq", "expect",
	"python3", "python3-dbus", "xz-utils", "zstd", "bzip2", "busybox-static", "ca-certificates",
	"socat", "udev", "gpg", "gdisk", "dosfstools", "rsync", "openssh-client",
	"bubblewrap", "crun", "runc", // to compare with
}

// osPackages are what a container tree has installed.
var osPackages = []string{
	"systemd", "systemd-sysv", "dbus", "iproute2", "libpam-systemd", "procps", "passwd",
}

// clientPackages make a host one that has more of those that ask machined:
// libvirt, with a driver that needs no controllers and works without KVM, and
// the tools of the user database, and ssh to be reached by.
var clientPackages = []string{"systemd-userdbd", "libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients", "qemu-system-x86", "openssh-server"}

// enginePackages make an OS tree one that runs containers itself.
var enginePackages = []string{"podman", "crun", "netavark", "nftables", "busybox-static", "docker.io", "docker-cli", "iptables"}

// trim drops what no test reads, so that copies of a tree are cheap.
const trim = `
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /usr/share/locale/* /usr/share/doc/* /usr/share/man/* \
	/usr/share/info/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/*
mkdir -p /var/log/journal
`

// hostScript makes a minbase tree a host: networkd so that machines get
// addresses (it waits for udev to announce a link), users without rights, and
// no unit that cannot work in namespaces.
const hostScript = trim + `
useradd -m -s /bin/bash alice
useradd -m -s /bin/bash bob
usermod -aG users alice
systemctl enable systemd-networkd.service
systemctl mask systemd-networkd-wait-online.service systemd-firstboot.service \
	systemd-udev-trigger.service systemd-modules-load.service systemd-tmpfiles-setup-dev.service \
	systemd-tmpfiles-setup-dev-early.service kmod-static-nodes.service \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
	console-getty.service getty.target modprobe@.service systemd-sysctl.service
sed -i 's/^hosts:.*/hosts: files mymachines dns myhostname/' /etc/nsswitch.conf
rm -f /etc/machine-id /var/lib/dbus/machine-id
touch -r /usr /etc/.updated /var/.updated
`

// osScript makes a minbase tree a machine that boots fast and gets an address.
// An empty machine-id is no first boot: systemd takes the spawner's id as it is.
const osScript = trim + `
systemctl enable systemd-networkd.service
systemctl mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
	dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
rm -f /var/lib/dbus/machine-id /etc/hostname
: >/etc/machine-id
touch -r /usr /etc/.updated /var/.updated
passwd -d root
`

func hostRecipe(s Suite) recipe {
	p := hostPackages
	if s != Bookworm {
		p = append(append([]string(nil), p...), "systemd-resolved", "systemd-journal-remote")
	}
	return recipe{kind: "host", suite: s, packages: p, script: hostScript}
}

func osRecipe(s Suite) recipe {
	return recipe{kind: "os", suite: s, packages: osPackages, script: osScript}
}

// engineScript leaves a container's tree as /root/busybox.tar, so that no test needs
// a registry.
const engineScript = trim + `
mkdir -p /tmp/bb/bin
cp /bin/busybox /tmp/bb/bin/
for a in sh id cat echo mount ip wget; do ln -s busybox "/tmp/bb/bin/$a"; done
tar -C /tmp/bb -cf /root/busybox.tar .
rm -rf /tmp/bb
`

func engineRecipe(s Suite) recipe {
	base := osRecipe(s)
	return recipe{kind: "engine", suite: s, packages: enginePackages, script: engineScript, base: &base}
}

// clientScript leaves it to the test to start libvirt and sshd.
const clientScript = trim + `
systemctl disable libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirt-guests.service \
	virtlogd.service virtlogd.socket virtlogd-admin.socket virtlockd.socket virtlockd-admin.socket ssh.service ssh.socket
cat >>/etc/libvirt/qemu.conf <<'EOF'
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = [ ]
namespaces = [ ]
EOF
rm -f /etc/machine-id /var/lib/dbus/machine-id
touch -r /usr /etc/.updated /var/.updated
`

func clientRecipe(s Suite) recipe {
	base := hostRecipe(s)
	return recipe{kind: "clients", suite: s, packages: clientPackages, script: clientScript, base: &base}
}

// name is the recipe's folder in the cache.
func (r recipe) name() string {
	base := ""
	if r.base != nil {
		base = r.base.name() + "\n"
	}
	sum := sha256.Sum256([]byte(base + r.kind + "\n" + string(r.suite) + "\n" + strings.Join(r.packages, ",") + "\n" + r.script))
	return fmt.Sprintf("%s-%s-%s", r.kind, r.suite, hex.EncodeToString(sum[:6]))
}

// mirror is the Debian mirror of this machine, so that tests use what apt uses.
func mirror() string {
	if m := os.Getenv("MACHINED_TEST_MIRROR"); m != "" {
		return m
	}
	for _, f := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"} {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			if len(fields) >= 2 && (fields[0] == "URIs:" || fields[0] == "deb") && strings.HasPrefix(fields[1], "http") {
				return fields[1]
			}
		}
	}
	return "http://deb.debian.org/debian"
}
