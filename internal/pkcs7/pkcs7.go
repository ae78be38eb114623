// Package pkcs7 checks detached signatures (PKCS #7, RFC 5652) against certificates
// that are trusted as they are: no chain is built, no name, purpose or date looked at.
// That is what signatures of Verity root hashes are for (systemd-nspawn(1)).
//
// It is small on purpose: what links it starts many times a second, and crypto/x509
// would cost each of those starts.
package pkcs7

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // hashes of signatures
	_ "crypto/sha512"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
)

// Errors that are wrapped.
var (
	ErrFormat    = errors.New("not a PKCS #7 signature")
	ErrUntrusted = errors.New("no trusted certificate made this signature")
	ErrInvalid   = errors.New("the signature is not of this content")
)

type algorithm struct {
	OID    asn1.ObjectIdentifier
	Params asn1.RawValue `asn1:"optional"`
}

// Certificate is what of an X.509 certificate signatures are checked with.
type Certificate struct {
	issuer, serial []byte // DER
	key            crypto.PublicKey
}

// ParseCertificate reads a certificate, PEM or DER.
func ParseCertificate(data []byte) (*Certificate, error) {
	if block, _ := pem.Decode(data); block != nil {
		data = block.Bytes
	}
	var outer struct {
		TBS struct {
			Version   int `asn1:"optional,explicit,default:0,tag:0"`
			Serial    asn1.RawValue
			Algorithm algorithm
			Issuer    asn1.RawValue
			Validity  asn1.RawValue
			Subject   asn1.RawValue
			Key       struct {
				Algorithm algorithm
				Bits      asn1.BitString
			}
		}
		Algorithm algorithm
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(data, &outer); err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	tbs := &outer.TBS
	c := &Certificate{issuer: tbs.Issuer.FullBytes, serial: tbs.Serial.FullBytes}
	var err error
	c.key, err = publicKey(tbs.Key.Algorithm, tbs.Key.Bits.RightAlign())
	return c, err
}

// curve is an elliptic curve by its identifier, nil for an unknown one.
func curve(oid string) elliptic.Curve {
	switch oid {
	case "1.2.840.10045.3.1.7":
		return elliptic.P256()
	case "1.3.132.0.34":
		return elliptic.P384()
	case "1.3.132.0.35":
		return elliptic.P521()
	}
	return nil
}

const maxRSABits = 16384

func publicKey(alg algorithm, bits []byte) (crypto.PublicKey, error) {
	switch alg.OID.String() {
	case "1.2.840.113549.1.1.1":
		var k struct {
			N *big.Int
			E int
		}
		if _, err := asn1.Unmarshal(bits, &k); err != nil {
			return nil, fmt.Errorf("parse RSA key: %w", err)
		}
		if k.N.Sign() <= 0 || k.N.BitLen() > maxRSABits || k.E < 3 {
			return nil, errors.New("parse RSA key: out of range")
		}
		return &rsa.PublicKey{N: k.N, E: k.E}, nil
	case "1.2.840.10045.2.1":
		var oid asn1.ObjectIdentifier
		if _, err := asn1.Unmarshal(alg.Params.FullBytes, &oid); err != nil {
			return nil, fmt.Errorf("parse key's curve: %w", err)
		}
		c := curve(oid.String())
		if c == nil {
			return nil, fmt.Errorf("elliptic curve %s is unknown", oid)
		}
		return ecdsa.ParseUncompressedPublicKey(c, bits)
	}
	return nil, fmt.Errorf("keys of kind %s are unknown", alg.OID)
}

// signer is SignerInfo of RFC 5652, by issuer and serial number.
type signer struct {
	Version int
	ID      struct{ Issuer, Serial asn1.RawValue }
	Digest  algorithm
	Attrs   asn1.RawValue `asn1:"optional,tag:0"`
	Key     algorithm
	Value   []byte
	Rest    asn1.RawValue `asn1:"optional,tag:1"`
}

const (
	oidData       = "1.2.840.113549.1.7.1"
	oidSignedData = "1.2.840.113549.1.7.2"
	oidContent    = "1.2.840.113549.1.9.3"
	oidDigest     = "1.2.840.113549.1.9.4"
)

// hashOf is a hash by its identifier, 0 for an unknown one.
func hashOf(oid string) crypto.Hash {
	switch oid {
	case "2.16.840.1.101.3.4.2.1":
		return crypto.SHA256
	case "2.16.840.1.101.3.4.2.2":
		return crypto.SHA384
	case "2.16.840.1.101.3.4.2.3":
		return crypto.SHA512
	}
	return 0
}

// Verify checks that every signature in der is of the content, and made with the key
// of one of the certificates.
func Verify(der, content []byte, trusted []*Certificate) error {
	var outer struct {
		Type asn1.ObjectIdentifier
		Data struct {
			Version int
			Digests asn1.RawValue
			Content struct {
				Type asn1.ObjectIdentifier
				Data []byte `asn1:"optional,explicit,tag:0"`
			}
			Certificates asn1.RawValue `asn1:"optional,tag:0"`
			CRLs         asn1.RawValue `asn1:"optional,tag:1"`
			Signers      []signer      `asn1:"set"`
		} `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	data := &outer.Data
	if outer.Type.String() != oidSignedData || data.Content.Type.String() != oidData || len(data.Signers) == 0 {
		return ErrFormat
	}
	if data.Content.Data != nil && !bytes.Equal(data.Content.Data, content) {
		return ErrInvalid
	}
	for _, s := range data.Signers {
		if err := s.verify(content, trusted); err != nil {
			return err
		}
	}
	return nil
}

func (s *signer) verify(content []byte, trusted []*Certificate) error {
	hash := hashOf(s.Digest.OID.String())
	if hash == 0 {
		return fmt.Errorf("%w: hash %s is unknown", ErrFormat, s.Digest.OID)
	}
	sum := digest(hash, content)
	if len(s.Attrs.FullBytes) > 0 {
		if err := s.checkAttributes(sum); err != nil {
			return err
		}
		// What is signed is the set itself, not its place here (RFC 5652, 5.4).
		signed := append([]byte{asn1.TagSet | 0x20}, s.Attrs.FullBytes[1:]...)
		sum = digest(hash, signed)
	}
	found := false
	for _, c := range trusted {
		if !bytes.Equal(c.issuer, s.ID.Issuer.FullBytes) || !bytes.Equal(c.serial, s.ID.Serial.FullBytes) {
			continue
		}
		found = true
		switch key := c.key.(type) {
		case *rsa.PublicKey:
			if rsa.VerifyPKCS1v15(key, hash, sum, s.Value) == nil {
				return nil
			}
		case *ecdsa.PublicKey:
			if ecdsa.VerifyASN1(key, sum, s.Value) {
				return nil
			}
		}
	}
	if found {
		return ErrInvalid
	}
	return ErrUntrusted
}

// checkAttributes checks that the signed attributes are those of the content.
func (s *signer) checkAttributes(sum []byte) error {
	rest := s.Attrs.Bytes
	var content, digest bool
	for len(rest) > 0 {
		var attr struct {
			Type   asn1.ObjectIdentifier
			Values asn1.RawValue `asn1:"set"`
		}
		var err error
		if rest, err = asn1.Unmarshal(rest, &attr); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		switch attr.Type.String() {
		case oidContent:
			var oid asn1.ObjectIdentifier
			if _, err := asn1.Unmarshal(attr.Values.Bytes, &oid); err != nil || oid.String() != oidData || content {
				return ErrFormat
			}
			content = true
		case oidDigest:
			var value []byte
			if _, err := asn1.Unmarshal(attr.Values.Bytes, &value); err != nil || digest {
				return ErrFormat
			}
			if !bytes.Equal(value, sum) {
				return ErrInvalid
			}
			digest = true
		}
	}
	if !content || !digest {
		return ErrFormat
	}
	return nil
}

func digest(hash crypto.Hash, data []byte) []byte {
	h := hash.New()
	h.Write(data)
	return h.Sum(nil)
}
