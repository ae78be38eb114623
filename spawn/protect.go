package spawn

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"machined/internal/dm"
	"machined/internal/gpt"
	"machined/internal/keyring"
	"machined/internal/loopdev"
	"machined/internal/luks"
	veritydata "machined/internal/verity"
)

// verified makes a device of a partition that the kernel reads only as far as its
// blocks are those of the root hash.
func (m *machine) verified(f *os.File, g *guard, data *loopdev.Device, p gpt.Mount) (*dm.Device, error) {
	if err := dm.Available(); err != nil {
		return nil, fmt.Errorf("the %s partition is protected by Verity: %w", p.Designator, err)
	}
	hashes, err := attachHashes(f, g)
	if err != nil {
		return nil, err
	}
	defer hashes.Close()
	sb, err := veritydata.Read(hashes.File, p.Size)
	if err != nil {
		return nil, fmt.Errorf("hashes of the %s partition: %w", p.Designator, err)
	}
	name := filepath.Base(data.Path) + "-verity"
	spec := dm.Spec{
		Name: name, UUID: fmt.Sprintf("CRYPT-VERITY-%x-%s", sb.UUID, name),
		Target: "verity", Sectors: sb.Sectors(), ReadOnly: true,
	}
	dev, unsigned, err := m.signedDevice(g, spec, func(key string) string { return sb.Table(data.Path, hashes.Path, g.hash, key) })
	if err == nil && dev == nil {
		if !g.plain {
			return nil, fmt.Errorf("the image policy wants the root hash of the %s partition to be signed: %w", p.Designator, unsigned)
		}
		spec.Params = sb.Table(data.Path, hashes.Path, g.hash, "")
		dev, err = dm.Create(spec)
	}
	if err != nil {
		return nil, err
	}
	// The kernel looks at the hashes when something is read: see that the root hash is theirs.
	if _, err := dev.File.ReadAt(make([]byte, 512), 0); err != nil {
		_ = dev.Close()
		return nil, fmt.Errorf("the %s partition is not what the root hash (%s) is of: %w", p.Designator, g.from, err)
	}
	return dev, nil
}

// attachHashes makes the hashes of a partition a device.
func attachHashes(f *os.File, g *guard) (*loopdev.Device, error) {
	if g.data == "" {
		dev, err := loopdev.Attach(f, g.hashes.Offset, g.hashes.Size, true)
		if err != nil {
			return nil, fmt.Errorf("attach partition %d: %w", g.hashes.Number, err)
		}
		return dev, nil
	}
	file, _, err := openDisk(g.data, true)
	if err != nil {
		return nil, fmt.Errorf("open Verity data: %w", err)
	}
	defer file.Close()
	return loopdev.Attach(file, 0, 0, true)
}

// errNoSignature says why a policy that wants one is not met.
var errNoSignature = errors.New("it has no signature")

// signedDevice makes the device when the root hash's signature is a good one: for the
// kernel, or else by the certificates of this host. Without a device, and without an
// error that ends it all, it returns why there is none.
func (m *machine) signedDevice(g *guard, spec dm.Spec, table func(key string) string) (dev *dm.Device, unsigned, err error) {
	sig, err := g.signature()
	switch {
	case err != nil:
		return nil, nil, err
	case sig == nil:
		return nil, errNoSignature, nil
	case !g.signed || off("SYSTEMD_DISSECT_VERITY_SIGNATURE"):
		return nil, errors.New("its signature is not looked at"), nil
	}
	const label = "machined:verity-signature"
	kernelErr := keyring.With("user", label, sig, func() (err error) {
		spec := spec
		spec.Params = table(label)
		dev, err = dm.Create(spec)
		return err
	})
	if kernelErr == nil {
		return dev, nil, nil
	}
	if errors.Is(kernelErr, dm.ErrMissing) {
		return nil, nil, kernelErr
	}
	if unsigned = m.trusted(g.hash, sig); unsigned == nil {
		spec.Params = table("")
		dev, err = dm.Create(spec)
		return dev, nil, err
	}
	if g.sigAsked {
		return nil, nil, fmt.Errorf("check signature of root hash: %w", unsigned)
	}
	if g.plain {
		m.say("Signature of the root hash is not used: %v", unsigned)
	}
	return nil, unsigned, nil
}

// trusted checks a signature against the certificates of this host, which the host's
// administrator can forbid on the kernel's command line.
func (m *machine) trusted(hash, sig []byte) error {
	line, _ := os.ReadFile("/proc/cmdline")
	for word := range strings.FieldsSeq(string(line)) {
		switch word {
		case "systemd.allow_userspace_verity=0", "systemd.allow_userspace_verity=no", "systemd.allow_userspace_verity=false", "systemd.allow_userspace_verity=off":
			return errors.New("the kernel does not accept it, and its command line allows nobody else to")
		}
	}
	return veritydata.CheckSignature(hash, sig, veritydata.CertificateDirs)
}

// decrypted makes a device of what is encrypted in a partition, and tells its file system.
func (m *machine) decrypted(ctx context.Context, data *loopdev.Device, p gpt.Mount, readOnly bool) (*dm.Device, string, error) {
	fail := func(err error) (*dm.Device, string, error) {
		return nil, "", fmt.Errorf("the %s partition is encrypted: %w", p.Designator, err)
	}
	if err := dm.Available(); err != nil {
		return fail(err)
	}
	header, err := luks.Read(data.File, p.Size)
	if err != nil {
		return fail(err)
	}
	volume, err := m.unlock(ctx, header, data.File)
	if err != nil {
		return fail(err)
	}
	defer clear(volume.Key)
	name := filepath.Base(data.Path) + "-decrypted"
	spec := dm.Spec{
		Name: name, UUID: fmt.Sprintf("CRYPT-LUKS%d-%s-%s", volume.Version, strings.ReplaceAll(volume.UUID, "-", ""), name),
		Target: "crypt", Sectors: volume.Sectors(), ReadOnly: readOnly, Secret: true,
	}
	// A key of this kind can't be read from outside of the kernel.
	label := "machined:" + name
	var dev *dm.Device
	err = keyring.With("logon", label, volume.Key, func() (err error) {
		spec := spec
		spec.Params = volume.Table(data.Path, fmt.Sprintf(":%d:logon:%s", len(volume.Key), label))
		dev, err = dm.Create(spec)
		return err
	})
	if err != nil { // a kernel without such keys, or a seccomp filter
		spec.Params = volume.Table(data.Path, hex.EncodeToString(volume.Key))
		dev, err = dm.Create(spec)
	}
	if err != nil {
		return fail(err)
	}
	fstype := gpt.ProbeFS(dev.File, 0, volume.Size)
	if fstype == "" {
		_ = dev.Close()
		return fail(errors.New("what is in it is no known file system"))
	}
	return dev, fstype, nil
}
