package spawn

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"machined/internal/gpt"
	"machined/internal/imagepolicy"
	veritydata "machined/internal/verity"
)

const luksFS = "crypto_LUKS"

// contents is what of an image is to be used, and how.
type contents struct {
	found  map[string]gpt.Partition
	ways   map[string]imagepolicy.Flags // protections that the policy allows, by designator
	verity *guard                       // nil: none is used
}

// guard is a root hash that a partition is to be read by.
type guard struct {
	verity
	hashes gpt.Partition // in the image, where data is ""
	signed bool          // the policy wants, or allows, its signature to count
	plain  bool          // and it allows Verity without a valid one
}

// guards tells whether a partition is read through Verity.
func (c *contents) guards(designator string) bool {
	return c.verity != nil && c.verity.designator == designator
}

// contents looks at an image, for the partitions that the policy lets be used.
func (m *machine) contents(f *os.File, image string) (*contents, error) {
	size, err := f.Seek(0, 2)
	if err != nil {
		return nil, err
	}
	disk, err := gpt.Read(f, size)
	if err != nil {
		return nil, err
	}
	v, err := m.veritySettings(image)
	if err != nil {
		return nil, err
	}
	if err := embeddedSignature(f, disk, &v); err != nil {
		return nil, err
	}
	var wanted gpt.Wanted
	if v.hash != nil {
		wanted = gpt.MakeWanted(v.designator, v.hash, v.data != "")
	}
	c := &contents{}
	if c.found, err = disk.DiscoverWanted(wanted); err != nil {
		if v.hash != nil {
			err = fmt.Errorf("root hash of %s: %w", v.from, err)
		}
		return nil, err
	}
	if c.ways, err = allowed(m.opts.ImagePolicy, c.found, &v); err != nil {
		return nil, err
	}
	return c, c.choose(&v)
}

// embeddedSignature takes root hash and signature of the partition that is for them,
// unless another hash is known already.
func embeddedSignature(f *os.File, disk *gpt.Disk, v *verity) error {
	if off("SYSTEMD_DISSECT_VERITY_EMBEDDED") {
		return nil
	}
	found, err := disk.Discover()
	if err != nil {
		return nil // it is looked at again
	}
	for _, designator := range []string{"root", "usr"} {
		p, ok := found[designator+"-verity-sig"]
		if !ok || v.hash != nil && v.designator != designator {
			continue
		}
		hash, sig, err := readSignature(f, p)
		if err != nil {
			return err
		}
		switch {
		case v.hash == nil:
			v.designator, v.hash, v.embedded = designator, hash, sig
			v.from = fmt.Sprintf("partition %d", p.Number)
		case bytes.Equal(v.hash, hash):
			v.embedded = sig
		}
		return nil
	}
	return nil
}

func readSignature(f *os.File, p gpt.Partition) (hash, sig []byte, err error) {
	hash, sig, err = veritydata.ReadSignaturePartition(f, p.Offset, p.Size)
	if err != nil {
		err = fmt.Errorf("partition %d: %w", p.Number, err)
	}
	return hash, sig, err
}

// allowed asks the policy about each kind of partition: the protections that each
// may be used with, none for those to be left alone.
func allowed(policy *imagepolicy.Policy, found map[string]gpt.Partition, v *verity) (map[string]imagepolicy.Flags, error) {
	if policy == nil {
		policy = &imagepolicy.Container
	}
	ways := map[string]imagepolicy.Flags{}
	for _, designator := range imagepolicy.Designators {
		p, ok := found[designator]
		if !ok && v != nil && v.elsewhere(designator) {
			continue
		}
		if !ok {
			if _, err := policy.Check(designator, nil); err != nil {
				return nil, err
			}
			continue
		}
		part := imagepolicy.Partition{Ways: imagepolicy.Unprotected, ReadOnly: p.ReadOnly(), GrowFS: p.GrowFS()}
		if p.FSType == luksFS {
			part.Ways = imagepolicy.Encrypted
		}
		hashed := v != nil && v.hash != nil && v.designator == designator
		if _, ok := found[designator+"-verity"]; ok || hashed && v.data != "" {
			part.Ways |= imagepolicy.Verity
			if _, ok := found[designator+"-verity-sig"]; ok || hashed && v.sig != "" {
				part.Ways |= imagepolicy.Signed
			}
		}
		use, err := policy.Check(designator, &part)
		if err != nil {
			return nil, err
		}
		ways[designator] = use
	}
	return ways, nil
}

// elsewhere tells whether what a partition would hold is in a file of its own.
func (v *verity) elsewhere(designator string) bool {
	return designator == v.designator+"-verity" && v.data != "" || designator == v.designator+"-verity-sig" && v.sig != ""
}

// choose drops what the policy wants left alone, and decides about Verity.
func (c *contents) choose(v *verity) error {
	const protected = imagepolicy.Verity | imagepolicy.Signed
	for designator, p := range c.found {
		way := c.ways[designator]
		switch {
		case way == 0 && designator == v.designator+"-verity" && v.hash != nil && v.data == "" && c.ways[v.designator]&protected != 0:
			return fmt.Errorf("%w: the %s partition is not to be used", imagepolicy.ErrMismatch, designator)
		case way == 0:
			delete(c.found, designator)
		case p.FSType == luksFS && way&imagepolicy.Encrypted == 0, way&(imagepolicy.Unprotected|imagepolicy.Encrypted) == 0:
			if v.hash == nil || v.designator != designator {
				return fmt.Errorf("%w: the %s partition has to be protected by Verity, and no root hash of it is known", imagepolicy.ErrMismatch, designator)
			}
		}
	}
	if v.hash == nil {
		return nil
	}
	way := c.ways[v.designator]
	if way&protected == 0 {
		if v.explicit {
			return fmt.Errorf("%w: a root hash is given, and it allows no Verity for %s", imagepolicy.ErrMismatch, v.designator)
		}
		return nil
	}
	c.verity = &guard{
		verity: *v, hashes: c.found[v.designator+"-verity"],
		signed: way&imagepolicy.Signed != 0, plain: way&imagepolicy.Verity != 0,
	}
	if p := c.found[v.designator]; p.FSType == luksFS {
		return fmt.Errorf("the %s partition is encrypted, and has a root hash: %w", v.designator, errors.ErrUnsupported)
	}
	return nil
}
