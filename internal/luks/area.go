package luks

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/xts"
)

// decryptArea decrypts the key material of a slot in place, in sectors that count
// from 0. The data itself is decrypted by the kernel, which knows more ciphers.
func decryptArea(b []byte, spec string, key []byte) error {
	switch spec {
	case "aes-xts-plain64", "aes-xts-plain":
		c, err := xts.NewCipher(aes.NewCipher, key)
		if err != nil {
			return fmt.Errorf("%s: %w: %w", spec, ErrCorrupt, err)
		}
		for n := 0; n*sector < len(b); n++ {
			s := b[n*sector:][:sector]
			c.Decrypt(s, s, uint64(n))
		}
		return nil
	case "aes-cbc-plain64", "aes-cbc-plain", "aes-cbc-essiv:sha256":
		c, err := aes.NewCipher(key)
		if err != nil {
			return fmt.Errorf("%s: %w: %w", spec, ErrCorrupt, err)
		}
		var essiv cipher.Block
		if spec == "aes-cbc-essiv:sha256" {
			sum := sha256.Sum256(key)
			if essiv, err = aes.NewCipher(sum[:]); err != nil {
				return err
			}
		}
		for n := 0; n*sector < len(b); n++ {
			var iv [aes.BlockSize]byte
			binary.LittleEndian.PutUint64(iv[:], uint64(n))
			if essiv != nil {
				essiv.Encrypt(iv[:], iv[:])
			}
			s := b[n*sector:][:sector]
			cipher.NewCBCDecrypter(c, iv[:]).CryptBlocks(s, s)
		}
		return nil
	}
	return fmt.Errorf("cipher %.100q of a key slot: %w", spec, ErrUnsupported)
}

// merge puts a key together that was split into stripes, all of which are needed
// (the anti-forensic splitter of LUKS1).
func merge(split []byte, size, stripes int, hashName string) ([]byte, error) {
	newHash, err := newHash(hashName)
	if err != nil {
		return nil, err
	}
	h := newHash()
	key := make([]byte, size)
	for n := range stripes {
		for i, c := range split[n*size:][:size] {
			key[i] ^= c
		}
		if n == stripes-1 {
			break
		}
		var sum []byte
		for i := 0; i*h.Size() < size; i++ {
			piece := key[i*h.Size() : min((i+1)*h.Size(), size)]
			h.Reset()
			var number [4]byte
			binary.BigEndian.PutUint32(number[:], uint32(i))
			h.Write(number[:])
			h.Write(piece)
			sum = h.Sum(sum[:0])
			copy(piece, sum)
		}
	}
	return key, nil
}
