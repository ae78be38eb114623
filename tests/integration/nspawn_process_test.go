//go:build integration

package integration

import (
	"testing"

	"machined/tests/host"
)

// TestNspawnIdentity has what a machine and its first processes are called, and
// whom they run as.
func TestNspawnIdentity(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		nspawnRows(t, h, []nspawnRow{
			{name: "machine name", script: `$S --pipe -M other hostname`, out: []string{`^other$`}},
			{name: "hostname", script: `$S --pipe -M other --hostname=host.name sh -c 'hostname; cat /proc/sys/kernel/hostname'`, out: []string{`^host.name\nhost.name$`}},
			{name: "uuid", script: `$S --pipe --uuid=cd3abd3b-1a6a-4dbe-8ac8-9bdd3c8ab1e6 sh -c 'echo $container_uuid; cat /run/host/container-uuid'`,
				out: []string{`^cd3abd3b-1a6a-4dbe-8ac8-9bdd3c8ab1e6\ncd3abd3b-1a6a-4dbe-8ac8-9bdd3c8ab1e6$`}},
			{name: "uuid of the image", script: `echo 11111111111141118111111111111111 >$T/etc/machine-id; $S --pipe --uuid=cd3abd3b1a6a4dbe8ac89bdd3c8ab1e6 sh -c 'echo $container_uuid'; rm $T/etc/machine-id`,
				out: []string{`^11111111-1111-4111-8111-111111111111$`}},
			{name: "a random uuid", script: `$S --pipe sh -c 'echo $container_uuid'; $S --pipe sh -c 'echo $container_uuid'`, out: []string{`^([0-9a-f]{8})(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`}},
			{name: "process 1", script: `$S --pipe sh -c 'echo $$; cat /proc/1/comm; true'`, out: []string{`^1\nsh$`}},
			{name: "process 2", script: `$S --pipe -a sh -c 'echo $$; cat /proc/1/comm'`, out: []string{`^2\n\(sd-stubinit\)$`}},
			{name: "environment of the stub", script: `SECRET=x $S --pipe -a sh -c 'tr "\0" "\n" </proc/1/environ; tr "\0" " " </proc/1/cmdline'`, // stock needs CAP_SYS_RESOURCE for it
				out: []string{`^container=systemd-nspawn$`, `^container_uuid=`, `^\(sd-stubinit\) $`}, not: []string{`SECRET`}, stock: never},
			{name: "the stub reaps", script: `$S --pipe -a sh -c '(sleep 0.1 & exec true); sleep 0.3; ps | grep -c "[Z]  "'`, exit: 1, out: []string{`^0$`}},
			{name: "init", script: `printf '#!/bin/sh\necho init is $$ "$@"\n' >$T/sbin/init2; chmod 755 $T/sbin/init2; cp $T/sbin/init keep; cp $T/sbin/init2 $T/sbin/init; $S --pipe -b one --two; cp keep $T/sbin/init`, out: []string{`^init is 1 one --two$`}},
			{name: "user by name", script: `$S --pipe --user=user sh -c 'id; pwd; echo $HOME $USER $LOGNAME'`, out: []string{`uid=1000.* gid=1000`, `groups=.*100.*101`, `^/home/user user user$`}},
			{name: "user that is not there", script: `$S --pipe --user=nobodyhere true`, exit: 1, out: []string{`nobodyhere`}},
			{name: "user in a user namespace", script: `$S --pipe -U --user=user sh -c 'id -u; touch /home/user/x; stat -c %u /home/user/x'; stat -c 'host %u' $T/home/user/x; rm $T/home/user/x`, out: []string{`^1000\n1000\nhost 1000$`}},
			{name: "chdir", script: `$S --pipe --chdir=/usr pwd; $S --pipe --chdir=/no/where pwd`, exit: 1, out: []string{`^/usr$`, `/no/where`}},
			{name: "environment", script: `OUT=side $S --pipe -E A=b -E OUT -E PATH=/bin:/x sh -c 'echo $A $OUT $PATH; echo $container $NOTIFY_SOCKET $LANG'`,
				out: []string{`^b side /bin:/x$`, `^systemd-nspawn /run/host/notify C.UTF-8$`}},
			{name: "what container= says", script: `SYSTEMD_NSPAWN_CONTAINER_SERVICE=mine $S --pipe sh -c 'echo $container; cat /run/host/container-manager'`, out: []string{`^mine\nmine$`}},
			{name: "what the host is", script: `. /etc/os-release; $S --pipe sh -c 'echo got $container_host_id $container_host_version_id; cat /run/host/os-release' >out; grep -q "^got $ID $VERSION_ID\$" out && sed 1d out | cmp - /usr/lib/os-release && echo same`, out: []string{`^same$`}},
			{name: "what the host is cannot be changed", script: `$S --pipe -U sh -c 'echo x >/run/host/os-release'`, exit: 1, out: []string{`Read-only`}},
			{name: "limits", script: `$S --pipe --rlimit=NOFILE=123:456 --rlimit=RLIMIT_CORE=1M --rlimit=NPROC=100:200 sh -c 'ulimit -Sn; ulimit -Hn; grep "Max core" /proc/self/limits; grep "Max proc" /proc/self/limits'`,
				out: []string{`^123\n456$`, `core file size\s+1048576\s+1048576`, `processes\s+100\s+200`}},
			{name: "tiny limits", script: `$S --pipe -a --rlimit=NOFILE=4:4 --rlimit=AS=50M sh -c 'ulimit -n'; $S --pipe --rlimit=NOFILE=4:4 sh -c 'ulimit -n'`, out: []string{`^4\n4$`}, stock: never},
			{name: "limits under a filter that denies setting them", script: `$S --pipe --system-call-filter='~prlimit64 setrlimit' --rlimit=NOFILE=123:456 sh -c 'grep "open files" /proc/self/limits'`, out: []string{`123\s+456`}},
			{name: "limit without value", script: `$S --rlimit== true`, exit: 1},
			{name: "oom score, affinity, umask", script: `$S --pipe --oom-score-adjust=321 --cpu-affinity=0 sh -c 'cat /proc/self/oom_score_adj; grep Cpus_allowed_list /proc/self/status; umask'`, out: []string{`^321$`, `list:\s0$`, `^0022$`}},
			{name: "personality", script: `$S --pipe --personality=x86 uname -m`, out: []string{`^i[3-6]86$`}},
			{name: "session", script: `$S --pipe sh -c 'cut -d" " -f6 /proc/1/stat; cat /proc/self/loginuid; ls /proc/self/fd | wc -l'`, out: []string{`^1$`, `^4294967295`}},
			{name: "no stray descriptors", script: `exec 7</etc/passwd 9</etc/group; $S --pipe sh -c 'ls -l /proc/$$/fd' | grep -c -e passwd -e group`, exit: 1, out: []string{`^0$`}},
			{name: "signals are as usual", script: `trap '' HUP; $S --pipe grep -e SigBlk -e SigIgn /proc/self/status`, out: []string{`SigBlk:\s0+$`}},
		})
	})
}

// TestNspawnRights has what the payload may do, and what it is given in secret.
func TestNspawnRights(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		const netBind, all = `0x400`, `CapBnd:\s000001fff[ef]ffffff`
		nspawnRows(t, h, []nspawnRow{
			{name: "default capabilities", script: `$S --pipe grep Cap /proc/self/status`, out: []string{`CapPrm:\s00000000f[cd]ecafff`, `CapBnd:\s00000000f[cd]ecafff`, `CapAmb:\s0+$`}},
			{name: "private network", script: `$S --pipe --private-network grep CapBnd /proc/self/status`, out: []string{`CapBnd:\s00000000f[cd]ecbfff`}},
			{name: "all capabilities", script: `$S --pipe --capability=all grep CapBnd /proc/self/status`, out: []string{all}},
			{name: "all but one", script: `$S --pipe --capability=all --drop-capability=CAP_KILL grep CapBnd /proc/self/status`, out: []string{`CapBnd:\s000001fff[ef]ffffdf`}},
			{name: "capabilities by name", script: `$S --pipe --capability=CAP_NET_ADMIN,cap_sys_time grep CapBnd /proc/self/status`, out: []string{`CapBnd:\s00000000f[ef]ecbfff`}},
			{name: "capability that is none", script: `$S --capability=CAP_NONSENSE true`, exit: 1, out: []string{`CAP_NONSENSE`}},
			{name: "capability help", script: `systemd-nspawn --capability=help`, out: []string{`^cap_chown$`, `^cap_bpf$`}},
			{name: "ambient capabilities", script: `$S --pipe --user=user --ambient-capability=CAP_KILL grep -e CapEff -e CapAmb /proc/self/status`, out: []string{`CapEff:\s0000000000000020`, `CapAmb:\s0000000000000020`}},
			{name: "ambient capabilities for an init", script: `$S -b --ambient-capability=CAP_KILL`, exit: 1},
			{name: "cap_net_bind_service", script: `has() { $S --pipe "$@" grep CapBnd /proc/self/status | sed 's/.*\s/0x/' | while read c; do [ $((c & ` + netBind + `)) != 0 ] && echo "$@: yes" || echo "$@: no"; done; }
				has --private-users=no; has --private-users=identity; has -U; has -U --private-network`,
				out: []string{`^--private-users=no: yes$`, `^--private-users=identity: no$`, `^-U: no$`, `^-U --private-network: yes$`}, stock: never},
			{name: "no new privileges", script: `$S --pipe --no-new-privileges=yes grep NoNewPrivs /proc/self/status; $S --pipe grep NoNewPrivs /proc/self/status`, out: []string{`NoNewPrivs:\s1\nNoNewPrivs:\s0`}},
			{name: "system calls", script: `$S --pipe unshare --user true; echo unshare $?; $S --pipe --system-call-filter='~mkdir mkdirat' mkdir /tmp/x; echo mkdir $?`, out: []string{`^mkdir 1$`, `not permitted`}},
			{name: "system calls that are added", script: `cat >p.py <<'P'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(320, -1, 0, 0, 0, 0); print("kexec", os.strerror(ctypes.get_errno()))
P
				systemd-nspawn -q --register=no --pipe -D / --volatile=yes --bind=$W python3 $W/p.py; true`, out: []string{`kexec Operation not permitted`}},
			{name: "credentials", script: `echo from file >c; $S --pipe --set-credential=a:hello --set-credential='b:x\ty\n' --load-credential=f:$W/c sh -c 'cd $CREDENTIALS_DIRECTORY; pwd; cat a; echo; cat b f; ls -la .'`,
				out: []string{`^/run/host/credentials$`, `^hello$`, "^x\ty$", `^from file$`, `-r--------.* a$`, `dr-x------.* \.$`}},
			{name: "credentials of a user", script: `$S --pipe --user=user --no-new-privileges=yes --set-credential=a:hello sh -c 'cat $CREDENTIALS_DIRECTORY/a; ls -la $CREDENTIALS_DIRECTORY'`, out: []string{`^hello`}, stock: 257},
			{name: "credentials in a user namespace", script: `$S --pipe -U --set-credential=a:hello sh -c 'cat $CREDENTIALS_DIRECTORY/a; echo; touch $CREDENTIALS_DIRECTORY/b; stat -c %u $CREDENTIALS_DIRECTORY'`, out: []string{`^hello`, `Read-only`, `^0$`}},
			{name: "credentials from a socket", script: `socat -u SYSTEM:'echo via socket' UNIX-LISTEN:$W/s & until grep -q " 00010000 .* $W/s$" /proc/net/unix; do sleep 0.01; done; $S --pipe --load-credential=s:$W/s sh -c 'cat $CREDENTIALS_DIRECTORY/s'`, out: []string{`^via socket$`}},
			{name: "credentials of the service", script: `mkdir creds; echo inherited >creds/mine; CREDENTIALS_DIRECTORY=$W/creds $S --pipe --load-credential=got:mine sh -c 'cat $CREDENTIALS_DIRECTORY/got'`, out: []string{`^inherited$`}},
			{name: "credential given twice", script: `$S --set-credential=a:1 --set-credential=a:2 true`, exit: 1, out: []string{`a`}},
			{name: "credential that is not there", script: `$S --load-credential=a:$W/none true`, exit: 1},
			{name: "sync is suppressed", script: `$S --pipe --suppress-sync=yes sh -c 'sync && echo synced; dd if=/dev/zero of=/tmp/x bs=1 count=1 oflag=sync 2>/dev/null; echo dd $?'`, out: []string{`^synced$`}},
			{name: "no way to audit", script: `cat >p.py <<'P'
import socket
try:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9); print("audit open")
except OSError as e:
    print("audit", e.strerror)
P
				systemd-nspawn -q --register=no --pipe -D / --volatile=yes --bind=$W python3 $W/p.py`, out: []string{`^audit Address family not supported`}},
			{name: "a user namespace", script: `$S --pipe -U sh -c 'cat /proc/self/uid_map; stat -c %u /etc/passwd'`, out: []string{`^\s+0\s+\d{6,}\s+65536$`, `^0$`}},
			{name: "range and size", script: `$S --pipe --private-users=131072:4096 --private-users-ownership=map cat /proc/self/uid_map`, out: []string{`^\s+0\s+131072\s+4096$`}, stock: never},
			{name: "identity", script: `$S --pipe --private-users=identity cat /proc/self/uid_map`, out: []string{`^\s+0\s+0\s+65536$`}},
		})
	})
}
