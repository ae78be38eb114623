//go:build vm

package vm

import (
	"fmt"
	"testing"

	"machined/tests/host"
)

// veritySetup makes images that are protected by Verity, with veritysetup(8): beside
// the image, in partitions, signed; and some of them damaged.
const veritySetup = `mkdir -p /var/tmp/v; cd /var/tmp/v
` + tree + `
mkfs.ext4 -q -b 4096 -d $T root.img 12M
mkdir $T/u; cp -a $T/usr/. $T/u/; mkdir -p $T/u/bin; cp /bin/busybox $T/u/bin; for a in sh cat ls touch md5sum grep; do ln -s busybox $T/u/bin/$a; done; cp $T/etc/os-release $T/u/lib/; cp $T/root/data $T/u/data
mkfs.ext4 -q -b 4096 -d $T/u usr.img 12M; rm -r $T
veritysetup format root.img hash.img --salt=00112233 --root-hash-file=hash >/dev/null
veritysetup format usr.img usrhash.img --root-hash-file=usrhash >/dev/null
openssl req -batch -new -x509 -nodes -newkey rsa:2048 -days 9 -subj /CN=test -keyout key.pem -out cert.pem 2>/dev/null
openssl smime -sign -nocerts -noattr -binary -in hash -inkey key.pem -signer cert.pem -outform der -out sig
h=$(cat hash); u=$(cat usrhash); other=$(tr 0-9 1-90 <hash)
echo $other >other
id() { echo ${1:0:8}-${1:8:4}-${1:12:4}-${1:16:4}-${1:20:12}; }
printf '{"rootHash":"%s","signature":"%s"}' $h "$(base64 -w0 sig)" >sig.json; truncate -s 16K sig.json
damage() { cp $1 $2; at=$(grep -abo '^100000$' $2 | head -n1 | cut -d: -f1); printf X | dd of=$2 bs=1 seek=$at conv=notrunc status=none; }
cp root.img side.raw; cp hash.img side.verity; cp hash side.roothash
damage root.img bad.raw; cp hash.img bad.verity; cp hash bad.roothash
cp root.img attr.raw; cp hash.img attr.verity; python3 -c "import os, sys; os.setxattr('attr.raw', 'user.verity.roothash', sys.argv[1].encode())" $h
cp root.img plain.raw
gpt() { truncate -s 28M $1; sfdisk -q $1 <<TABLE
label: gpt
start=1MiB, size=12MiB, type=$2, uuid=$(id ${4:0:32})
start=13MiB, size=1MiB, type=$3, uuid=$(id ${4:32:32})
start=14MiB, size=16KiB, type=41092B05-9FC8-4523-994F-2DEF0408B176, name=signature
start=15MiB, size=12MiB, type=$2, name=zz-newer
TABLE
}
put() { dd if=$1 of=$2 bs=1M seek=$3 conv=notrunc status=none; }
gpt dps.raw 4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709 2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5 $h
put root.img dps.raw 1; put hash.img dps.raw 13; put sig.json dps.raw 14; put usr.img dps.raw 15
damage dps.raw baddps.raw
gpt usr.raw 8484680C-9521-48C6-9C11-B0720656F69E 77FF5F63-E7B6-4633-ACF4-1565B864C0E6 $u
put usr.img usr.raw 1; put usrhash.img usr.raw 13; cp usrhash usr.usrhash; sfdisk -q --delete usr.raw 3
`

// payload says what the root is on, and reads what may be damaged.
const payload = `sh -c 'grep " / / " /proc/self/mountinfo; md5sum /root/data; touch /written' </dev/null`

type protectedCase struct {
	name, args string
	exit       int
	out        []string
	stock      bool // it is the same with stock
}

func (c protectedCase) run(t *testing.T, dir, payload string) {
	t.Run(c.name, func(t *testing.T) {
		if machine.Impl == host.Stock && !c.stock {
			t.Skip("not with stock, or not with this version of it")
		}
		expect(t, fmt.Sprintf("cd %s; timeout 100 systemd-nspawn -q --console=pipe -M v %s %s", dir, c.args, payload), c.exit, c.out...)
	})
}

// none waits until the kernel has no mapped device left.
const none = `for i in $(seq 150); do dmsetup ls | grep -q 'No devices' && exit 0; sleep 0.2; done; exit 1`

// TestVerity has the kernel refuse changed blocks, and us what has another root hash.
func TestVerity(t *testing.T) {
	machine.Shell(t, veritySetup)
	mapped := []string{`^\S+ \S+ 25[0-9]:[0-9]+ / / ro,.* ext4 `, `^[0-9a-f]{32}  /root/data$`, `touch: /written: Read-only file system`}
	damaged := []string{`md5sum: .*Input/output error`}
	newer := machine.Suite != host.Bookworm
	for _, c := range []protectedCase{
		{"beside it", "-i side.raw", 1, mapped, true},
		{"mapped users", "-i side.raw -U", 1, mapped, true},
		{"in an attribute", "-i attr.raw", 1, mapped, true},
		{"options", "-i plain.raw --root-hash=$(cat hash) --verity-data=$PWD/hash.img", 1, mapped, true},
		{"changed block", "-i bad.raw", 1, damaged, true},
		{"changed block, ephemeral", "-i bad.raw -x", 0, damaged, false},
		{"changed block without Verity", "-i bad.raw --image-policy=root=unprotected", 0, mapped[1:2], false},
		{"other hash", "-i side.raw --root-hash=$(cat other)", 1, []string{`(?i)input/output error`}, true},
		{"no hashes", "-i plain.raw --root-hash=$(cat hash)", 1, []string{`(?i)verity|image`}, true},
		{"garbage for hashes", "-i plain.raw --root-hash=$(cat hash) --verity-data=$PWD/root.img", 1, []string{`Verity superblock`}, false},
		{"partitions", "-i dps.raw --root-hash=$(cat hash)", 1, mapped, false},
		{"partitions, by their signature", "-i dps.raw", 1, mapped, false},
		{"partitions, changed block", "-i baddps.raw", 1, damaged, false},
		{"partitions, other hash", "-i dps.raw --root-hash=$(cat other)", 1, []string{`root hash`}, false},
		{"policy of Verity", "-i dps.raw --image-policy=root=verity", 1, mapped, false},
		{"policy of signatures, no certificate", "-i dps.raw --image-policy=root=signed", 1, []string{`verity\.d`}, false},
		{"policy without Verity", "-i dps.raw --image-policy=root=unprotected:=ignore --root-hash=$(cat hash)", 1, []string{`image policy`}, false},
		{"policy of Verity, no hash", "-i plain.raw --image-policy=root=verity", 1, []string{`(?i)policy`}, newer},
		{"signature that was asked for, no certificate", "-i side.raw --root-hash-sig=$PWD/sig", 1, []string{`signature`}, false},
	} {
		c.run(t, "/var/tmp/v", payload)
	}
	machine.Shell(t, `mkdir -p /run/verity.d; cp /var/tmp/v/cert.pem /run/verity.d/test.crt`)
	for _, c := range []protectedCase{
		{"policy of signatures", "-i dps.raw --image-policy=root=signed", 1, mapped, newer},
		{"signature of an option", "-i side.raw --root-hash-sig=$PWD/sig --image-policy=root=signed", 1, mapped, newer},
		{"signature in base64", "-i side.raw --root-hash-sig=base64:$(base64 -w0 sig)", 1, mapped, true},
		{"broken signature", "-i side.raw --root-hash-sig=$PWD/cert.pem", 1, []string{`signature`}, false},
	} {
		c.run(t, "/var/tmp/v", payload)
	}
	machine.Shell(t, `rm -r /run/verity.d`)
	protectedCase{"/usr", "-i usr.raw", 0, []string{`^\S+ \S+ 25[0-9]:[0-9]+ / /usr ro,.* ext4 `, `^[0-9a-f]{32}  /usr/data$`, `touch: .*Read-only`}, true}.run(t, "/var/tmp/v",
		`/usr/bin/sh -c '/usr/bin/grep " / /usr " /proc/self/mountinfo; /usr/bin/md5sum /usr/data; /usr/bin/touch /usr/written; true' </dev/null`)
	t.Run("killed", func(t *testing.T) {
		expect(t, `cd /var/tmp/v; systemd-nspawn -q --console=pipe -M v -i side.raw sleep 1000 </dev/null & pid=$!
for i in $(seq 300); do machinectl show v -p State 2>/dev/null | grep -q running && break; sleep 0.2; done; dmsetup ls; kill -9 $pid; wait $pid
`+none, 0, `-verity`)
	})
	t.Run("metadata", func(t *testing.T) {
		ours(t)
		expect(t, `cp /var/tmp/v/side.* /var/lib/machines/; busctl call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager GetImageOSRelease s side; machinectl remove side; ls /var/lib/machines | grep side; true`, 0, `"ID" "busybox"`)
	})
}

// luksSetup makes encrypted images with cryptsetup(8).
const luksSetup = `mkdir -p /var/tmp/l; cd /var/tmp/l
` + tree + `mkfs.ext4 -q -b 4096 -d $T root.img 12M; mkdir $T/h; echo home >$T/h/which; mkfs.ext4 -q -b 4096 -d $T/h home.img 4M; rm -r $T
luks() { n=$1 f=$2 s=$3; shift 3
	truncate -s $s $n; printf secret | cryptsetup luksFormat -q --key-file=- "$@" $n
	printf secret | cryptsetup open --key-file=- $n making; dd if=$f of=/dev/mapper/making bs=1M status=none; cryptsetup close making; }
luks luks1.raw root.img 15M --type luks1 --pbkdf-force-iterations 1000
luks cbc.raw root.img 15M --type luks1 --pbkdf-force-iterations 1000 --cipher aes-cbc-essiv:sha256 --key-size 256
luks luks2.raw root.img 29M --type luks2 --pbkdf argon2id --pbkdf-memory 1024 --pbkdf-force-iterations 4 --sector-size 4096
luks argon2i.raw root.img 29M --type luks2 --pbkdf argon2i --pbkdf-memory 1024 --pbkdf-force-iterations 4 --sector-size 512
luks home.luks home.img 21M --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000
truncate -s 52M gpt.raw; sfdisk -q gpt.raw <<TABLE
label: gpt
start=1MiB, size=29MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
start=30MiB, size=21MiB, type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915
TABLE
dd if=luks2.raw of=gpt.raw bs=1M seek=1 conv=notrunc status=none; dd if=home.luks of=gpt.raw bs=1M seek=30 conv=notrunc status=none
mkdir -p creds; printf secret >creds/dissect.passphrase; echo secret >line
cp luks2.raw damaged.raw; dd if=/dev/zero of=damaged.raw bs=1K seek=4 count=1 conv=notrunc status=none
cp damaged.raw broken.raw; dd if=/dev/zero of=broken.raw bs=1K seek=20 count=1 conv=notrunc status=none
`

// TestLUKS opens encrypted images with a credential, and refuses without.
func TestLUKS(t *testing.T) {
	machine.Shell(t, luksSetup)
	const set = ` --set-credential=dissect.passphrase:secret`
	opened := []string{`^\S+ \S+ 25[0-9]:[0-9]+ / / rw,.* ext4 `, `^[0-9a-f]{32}  /root/data$`}
	for _, c := range []protectedCase{
		{"no credential", "-i luks2.raw", 1, []string{`no passphrase: give it as the credential dissect\.passphrase`}, false},
		{"wrong one", "-i luks2.raw --set-credential=dissect.passphrase:wrong", 1, []string{`dissect\.passphrase: no key slot opens`}, false},
		{"LUKS2", "-i luks2.raw" + set, 0, opened, false},
		{"LUKS2, argon2i", "-i argon2i.raw -U" + set, 0, opened, false},
		{"LUKS1", "-i luks1.raw" + set, 0, opened, false},
		{"LUKS1, CBC", "-i cbc.raw" + set, 0, opened, false},
		{"from a file with a newline", "-i luks2.raw --load-credential=dissect.passphrase:$PWD/line", 0, opened, false},
		{"read-only", "-i luks2.raw --read-only" + set, 1, []string{`25[0-9]:[0-9]+ / / ro,`}, false},
		{"ephemeral", "-i luks2.raw -x" + set, 0, []string{`/ / rw,.* overlay `}, false},
		{"policy", "-i luks2.raw --image-policy=root=encrypted" + set, 0, opened, false},
		{"policy against it", "-i luks2.raw --image-policy=root=unprotected" + set, 1, []string{`is encrypted, not unprotected`}, false},
		{"policy of integrity", "-i luks2.raw --image-policy=root=encryptedwithintegrity" + set, 1, []string{`policy`}, false},
		{"second copy of the header", "-i damaged.raw" + set, 0, opened, false},
		{"broken header", "-i broken.raw" + set, 1, []string{`broken LUKS header`}, false},
	} {
		c.run(t, "/var/tmp/l", payload)
	}
	t.Run("partitions", func(t *testing.T) {
		ours(t)
		expect(t, `cd /var/tmp/l; systemd-nspawn -q --console=pipe -M v -i gpt.raw`+set+` --set-credential=other:x sh -c 'cat /home/which; ls $CREDENTIALS_DIRECTORY' </dev/null`, 0, `home\nother\n$`)
	})
	t.Run("credential of the unit", func(t *testing.T) {
		if machine.Impl == host.Stock && machine.Suite == host.Bookworm {
			t.Skip("not in 252")
		}
		expect(t, `systemd-run -q --wait -P -p LoadCredential=dissect.passphrase:/var/tmp/l/creds/dissect.passphrase -- systemd-nspawn -q --console=pipe --keep-unit --register=no -M v -i /var/tmp/l/luks2.raw sh -c 'md5sum /root/data'`,
			0, `^[0-9a-f]{32}  /root/data`)
	})
	t.Run("started by machined", func(t *testing.T) {
		ours(t)
		expect(t, `set -e; cp /var/tmp/l/luks2.raw /var/lib/machines/enc.raw; mkdir -p /run/systemd/system/systemd-nspawn@enc.service.d
printf '[Service]\nLoadCredential=dissect.passphrase:/var/tmp/l/creds/dissect.passphrase\n' >/run/systemd/system/systemd-nspawn@enc.service.d/key.conf; systemctl daemon-reload
machinectl start enc; grep ' / / ' /proc/$(machinectl show enc -p Leader --value)/mountinfo; machinectl terminate enc
for i in $(seq 100); do machinectl show enc >/dev/null 2>&1 || break; sleep 0.2; done
rm -r /run/systemd/system/systemd-nspawn@enc.service.d; systemctl daemon-reload; machinectl start enc && exit 1
journalctl -u systemd-nspawn@enc --no-pager -o cat | tail -n 5; systemctl reset-failed systemd-nspawn@enc; machinectl remove enc`, 0, `25[0-9]:[0-9]+ / / rw,.* ext4 `, `no passphrase`)
	})
	t.Run("terminal", func(t *testing.T) {
		expect(t, `cd /var/tmp/l; expect -c 'set timeout 100; spawn systemd-nspawn -q -M v -i luks2.raw md5sum /root/data; expect -re "(?i)passphrase:"; send "secret\r"; expect "/root/data"; expect eof; exit [lindex [wait] 3]'`,
			0, `^[0-9a-f]{32}  /root/data`)
	})
	t.Run("terminal, interrupted", func(t *testing.T) {
		ours(t)
		expect(t, `cd /var/tmp/l; expect -c 'set timeout 100; spawn systemd-nspawn -q -M v -i luks2.raw true; expect -re "(?i)passphrase:"; send "\003"; expect eof; exit [expr {[llength [wait]] > 4 ? 0 : 3}]'`, 0)
	})
	t.Run("changes are kept, and encrypted", func(t *testing.T) {
		ours(t)
		expect(t, `cd /var/tmp/l; systemd-nspawn -q --console=pipe -M v -i luks2.raw`+set+` sh -c 'ls /written; echo needle-in-hay >/written' </dev/null
systemd-nspawn -q --console=pipe -M v -i luks2.raw`+set+` cat /written </dev/null; grep -c needle-in-hay luks2.raw; cryptsetup luksDump luks2.raw >/dev/null && echo sound`,
			0, `^/written$`, `^needle-in-hay$`, `^0$`, `^sound$`)
	})
	t.Run("killed", func(t *testing.T) {
		ours(t)
		expect(t, `cd /var/tmp/l; systemd-nspawn -q --console=pipe -M v -i luks2.raw`+set+` sleep 1000 </dev/null & pid=$!
for i in $(seq 300); do machinectl show v -p State 2>/dev/null | grep -q running && break; sleep 0.2; done
dmsetup ls; dmsetup table --showkeys; kill -9 $pid; wait $pid
`+none, 0, `-decrypted`, `crypt aes-xts-plain64 :64:logon:`)
	})
}
