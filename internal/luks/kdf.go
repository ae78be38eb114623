package luks

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"runtime/debug"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/ripemd160" //nolint:staticcheck,gosec // what old volumes have been made with
)

// kdf makes a key of a passphrase.
type kdf struct {
	name       string // pbkdf2, argon2i, argon2id
	hash       string
	salt       []byte
	iterations uint64
	time       uint64
	memoryKiB  uint64
	threads    uint64
}

// What opening a key slot may cost at most, whatever the header says: about a minute
// of one processor. cryptsetup makes slots that take two seconds, and never asks for
// more than 4 GiB.
const (
	maxIterations = 200_000_000
	maxMemoryKiB  = 4 << 20
	maxWork       = 64 << 20 // KiB filled, in all passes
	maxThreads    = 64
)

func (k *kdf) check() error {
	if len(k.salt) < 8 || len(k.salt) > 64 {
		return fmt.Errorf("salt of %d bytes: %w", len(k.salt), ErrCorrupt)
	}
	switch k.name {
	case "pbkdf2":
		if k.iterations < 1 {
			return fmt.Errorf("no iterations: %w", ErrCorrupt)
		}
		if k.iterations > maxIterations {
			return fmt.Errorf("%d iterations: %w", k.iterations, ErrCost)
		}
		_, err := newHash(k.hash)
		return err
	case "argon2i", "argon2id":
		switch {
		case k.time < 1 || k.threads < 1 || k.memoryKiB < 8*k.threads:
			return fmt.Errorf("%s with time %d, memory %d and %d threads: %w", k.name, k.time, k.memoryKiB, k.threads, ErrCorrupt)
		case k.threads > maxThreads || k.memoryKiB > maxMemoryKiB || k.time > maxWork/k.memoryKiB:
			return fmt.Errorf("%s with time %d, memory %d KiB and %d threads: %w", k.name, k.time, k.memoryKiB, k.threads, ErrCost)
		}
		return nil
	}
	return fmt.Errorf("key derivation %.40q: %w", k.name, ErrUnsupported)
}

// derive makes a key of size bytes; check has passed.
func (k *kdf) derive(passphrase []byte, size int, l Limits) ([]byte, error) {
	switch k.name {
	case "argon2i", "argon2id":
		if k.memoryKiB > l.MemoryKiB {
			return nil, fmt.Errorf("%s needs %d MiB of memory, and %d are available: %w", k.name, k.memoryKiB>>10, l.MemoryKiB>>10, ErrCost)
		}
		f := argon2.Key
		if k.name == "argon2id" {
			f = argon2.IDKey
		}
		defer debug.FreeOSMemory()
		return f(passphrase, k.salt, uint32(k.time), uint32(k.memoryKiB), uint8(k.threads), uint32(size)), nil
	}
	h, err := newHash(k.hash)
	if err != nil {
		return nil, err
	}
	return pbkdf2.Key(h, string(passphrase), k.salt, int(k.iterations), size)
}

// newHash returns a hash by the kernel's name of it.
func newHash(name string) (func() hash.Hash, error) {
	switch name {
	case "sha1":
		return sha1.New, nil
	case "sha224":
		return sha256.New224, nil
	case "sha256":
		return sha256.New, nil
	case "sha384":
		return sha512.New384, nil
	case "sha512":
		return sha512.New, nil
	case "ripemd160":
		return ripemd160.New, nil
	}
	return nil, fmt.Errorf("hash %.40q: %w", name, ErrUnsupported)
}
