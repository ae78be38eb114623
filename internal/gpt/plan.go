package gpt

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"machined/internal/vpick"
)

// Mount says where one partition goes.
type Mount struct {
	Partition
	Designator string // root, usr, home, srv, var, tmp, esp, xbootldr
	// Where is the mount point: "/" and below. The ESP's is /efi; a tree without
	// that directory takes it at /boot, if that is there, empty, and nobody else's.
	Where string
}

// ErrNoRoot says that an image has nothing to start from; ErrAmbiguous that it
// has more than one of it.
var (
	ErrNoRoot    = errors.New("no root file system")
	ErrAmbiguous = errors.New("more than one partition could be the root file system")
)

const genericLinux = "0fc63daf-8483-4772-8e79-3d69d8477de4"

// shared are the types that are the same on all architectures.
var shared = map[string]string{
	"933ac7e1-2eb4-4f13-b844-0e14e2aef915": "home",
	"3b8f8425-20e0-4f3b-907f-1a25a76f98e8": "srv",
	"4d21b016-b534-45c2-a9fb-5c16e091fd2d": "var",
	"7ec6f557-3bc5-4aca-b293-16ef5df639d1": "tmp",
	"c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "esp",
	"bc13c2ff-59e6-4262-a352-b275fd6f7172": "xbootldr",
	"0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "swap",
}

// native are the types of root, /usr and what protects them on one architecture, by
// Go's name of it. Order: data, Verity hashes, signature of those.
var native = map[string]struct{ root, usr [3]string }{
	"386": {
		[3]string{"44479540-f297-41b2-9af7-d131d5f0458a", "d13c5d3b-b5d1-422a-b29f-9454fdc89d76", "5996fc05-109c-48de-808b-23fa0830b676"},
		[3]string{"75250d76-8cc6-458e-bd66-bd47cc81a812", "8f461b0d-14ee-4e81-9aa9-049b6fb97abd", "974a71c0-de41-43c3-be5d-5c5ccd1ad2c0"},
	},
	"amd64": {
		[3]string{"4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5", "41092b05-9fc8-4523-994f-2def0408b176"},
		[3]string{"8484680c-9521-48c6-9c11-b0720656f69e", "77ff5f63-e7b6-4633-acf4-1565b864c0e6", "e7bb33fb-06cf-4e81-8273-e543b413e2e2"},
	},
	"arm": {
		[3]string{"69dad710-2ce4-4e3c-b16c-21a1d49abed3", "7386cdf2-203c-47a9-a498-f2ecce45a2d6", "42b0455f-eb11-491d-98d3-56145ba9d037"},
		[3]string{"7d0359a3-02b3-4f0a-865c-654403e70625", "c215d751-7bcd-4649-be90-6627490a4c05", "d7ff812f-37d1-4902-a810-d76ba57b975a"},
	},
	"arm64": {
		[3]string{"b921b045-1df0-41c3-af44-4c6f280d3fae", "df3300ce-d69f-4c92-978c-9bfb0f38d820", "6db69de6-29f4-4758-a7a5-962190f00ce3"},
		[3]string{"b0e01050-ee5f-4390-949a-9101b17104e9", "6e11a4e7-fbca-4ded-b9e9-e1a512bb664e", "c23ce4ff-44bd-4b00-b2d4-b41b3419e02a"},
	},
	"loong64": {
		[3]string{"77055800-792c-4f94-b39a-98c91b762bb6", "f3393b22-e9af-4613-a948-9d3bfbd0c535", "5afb67eb-ecc8-4f85-ae8e-ac1e7c50e7d0"},
		[3]string{"e611c702-575c-4cbe-9a46-434fa0bf7e3f", "f46b2c26-59ae-48f0-9106-c50ed47f673d", "b024f315-d330-444c-8461-44bbde524e99"},
	},
	"mips": {
		[3]string{"e9434544-6e2c-47cc-bae2-12d6deafb44c", "7a430799-f711-4c7e-8e5b-1d685bd48607", "bba210a2-9c5d-45ee-9e87-ff2ccbd002d0"},
		[3]string{"773b2abc-2a99-4398-8bf5-03baac40d02b", "6e5a1bc8-d223-49b7-bca8-37a5fcceb996", "97ae158d-f216-497b-8057-f7f905770f54"},
	},
	"mipsle": {
		[3]string{"37c58c8a-d913-4156-a25f-48b1b64e07f0", "d7d150d2-2a04-4a33-8f12-16651205ff7b", "c919cc1f-4456-4eff-918c-f75e94525ca5"},
		[3]string{"0f4868e9-9952-4706-979f-3ed3a473e947", "46b98d8d-b55c-4e8f-aab3-37fca7f80752", "3e23ca0b-a4bc-4b4e-8087-5ab6a26aa8a9"},
	},
	"mips64le": {
		[3]string{"700bda43-7a34-4507-b179-eeb93d7a7ca3", "16b417f8-3e06-4f57-8dd2-9b5232f41aa6", "904e58ef-5c65-4a31-9c57-6af5fc7c5de7"},
		[3]string{"c97c1f32-ba06-40b4-9f22-236061b08aa8", "3c3d61fe-b5f3-414d-bb71-8739a694a4ef", "f2c2c7ee-adcc-4351-b5c6-ee9816b66e16"},
	},
	"ppc64": {
		[3]string{"912ade1d-a839-4913-8964-a10eee08fbd2", "9225a9a3-3c19-4d89-b4f6-eeff88f17631", "f5e2c20c-45b2-4ffa-bce9-2a60737e1aaf"},
		[3]string{"2c9739e2-f068-46b3-9fd0-01c5a9afbcca", "bdb528a5-a259-475f-a87d-da53fa736a07", "0b888863-d7f8-4d9e-9766-239fce4d58af"},
	},
	"ppc64le": {
		[3]string{"c31c45e6-3f39-412e-80fb-4809c4980599", "906bd944-4589-4aae-a4e4-dd983917446a", "d4a236e7-e873-4c07-bf1d-bf6cf7f1c3c6"},
		[3]string{"15bb03af-77e7-4d4a-b12b-c0d084f7491c", "ee2b9983-21e8-4153-86d9-b6901a54d1ce", "c8bfbd1e-268e-4521-8bba-bf314c399557"},
	},
	"riscv64": {
		[3]string{"72ec70a6-cf74-40e6-bd49-4bda08e8f224", "b6ed5582-440b-4209-b8da-5ff7c419ea3d", "efe0f087-ea8d-4469-821a-4c2a96a8386a"},
		[3]string{"beaec34b-8442-439b-a40b-984381ed097d", "8f1056be-9b05-47c4-81d6-be53128e5b54", "d2f9000a-7a18-453f-b5cd-4d32f77a7b32"},
	},
	"s390x": {
		[3]string{"5eead9a9-fe09-4a1e-a1d7-520d00531306", "b325bfbe-c7be-4ab8-8357-139e652d2f6b", "c80187a5-73a3-491a-901a-017c3fa953e9"},
		[3]string{"8a4f5770-50aa-4ed3-874a-99b710db6fea", "31741cc4-1a2a-4111-a581-e00b447d2d06", "3f324816-667b-46ae-86ee-9b0c0c6c11b4"},
	},
}

// roles are what the types of a row of native stand for.
var roles = [3]string{"", "-verity", "-verity-sig"}

// secondary are the architectures that a host runs besides its own.
var secondary = map[string]string{"amd64": "386", "arm64": "arm"}

var places = map[string]string{
	"root": "/", "usr": "/usr", "home": "/home", "srv": "/srv", "var": "/var", "tmp": "/var/tmp", "esp": "/efi", "xbootldr": "/boot",
}

// Discover returns the partitions that are of use to this host's architecture, by
// designator: the discoverable ones, or the one that can only be the root. Those
// that ask to be left alone are not among them. Of more than one of a kind the
// first counts, but for root and /usr, where the newest does by its label.
func (d *Disk) Discover() (map[string]Partition, error) {
	return d.discoverFor(runtime.GOARCH, Wanted{})
}

// Wanted picks partitions by their ids, which the Discoverable Partitions
// Specification makes of the halves of a Verity root hash.
type Wanted struct {
	Designator      string // root or usr, "" for no preference
	Data, Verity    GUID
	VerityElsewhere bool // the hashes are not in the image
}

// MakeWanted is what a root hash wants of an image.
func MakeWanted(designator string, hash []byte, verityElsewhere bool) Wanted {
	return Wanted{designator, GUID(hash[:16]), GUID(hash[len(hash)-16:]), verityElsewhere}
}

// passes tells whether a partition may be what it is by its type.
func (w Wanted) passes(designator string, p Partition) bool {
	switch {
	case w.Designator == "":
		return true
	case designator == w.Designator:
		return p.ID == w.Data
	case designator == w.Designator+"-verity":
		return p.ID == w.Verity
	}
	return true
}

// DiscoverWanted is Discover of an image that a root hash is known of. It is ErrNoRoot
// when the hash is of another image.
func (d *Disk) DiscoverWanted(w Wanted) (map[string]Partition, error) {
	found, err := d.discoverFor(runtime.GOARCH, w)
	if err != nil || w.Designator == "" {
		return found, err
	}
	if _, ok := found[w.Designator]; !ok {
		return nil, fmt.Errorf("no partition has the id that the root hash stands for: %w", ErrNoRoot)
	}
	if _, ok := found[w.Designator+"-verity"]; !ok && !w.VerityElsewhere {
		return nil, fmt.Errorf("no Verity partition has the id that the root hash stands for: %w", ErrNoRoot)
	}
	return found, nil
}

func (d *Disk) discoverFor(arch string, w Wanted) (map[string]Partition, error) {
	found := map[string]Partition{}
	switch d.Table {
	case TableNone:
		found["root"] = d.Partitions[0]
	case TableMBR:
		for _, p := range d.Partitions {
			if p.MBRType != 0x83 || !p.Bootable {
				continue
			}
			if _, twice := found["root"]; twice {
				return nil, ErrAmbiguous
			}
			found["root"] = p
		}
	case TableGPT:
		d.discover(arch, w, found)
		_, root := found["root"]
		_, usr := found["usr"]
		if other, ok := secondary[arch]; ok && !root && !usr {
			d.discover(other, w, found)
			_, root = found["root"]
			_, usr = found["usr"]
		}
		if root || usr || w.Designator != "" && !w.VerityElsewhere {
			break
		}
		for _, p := range d.Partitions {
			if p.Type.String() != genericLinux || p.NoAuto() {
				continue
			}
			if _, twice := found["root"]; twice {
				return nil, ErrAmbiguous
			}
			found["root"] = p
		}
	}
	return found, nil
}

func (d *Disk) discover(arch string, w Wanted, found map[string]Partition) {
	for _, p := range d.Partitions {
		typ := p.Type.String()
		designator := shared[typ]
		versioned := false
		for n, role := range roles {
			switch typ {
			case native[arch].root[n]:
				designator, versioned = "root"+role, true
			case native[arch].usr[n]:
				designator, versioned = "usr"+role, true
			}
		}
		switch {
		case designator == "", designator == "esp" && p.Flags&flagNoBlockIO != 0, designator != "esp" && p.NoAuto(), !w.passes(designator, p):
			continue
		}
		old, dup := found[designator]
		if dup && !(versioned && vpick.Compare(p.Label, old.Label) > 0) {
			continue
		}
		found[designator] = p
	}
}

// Mounts returns what to mount of partitions that were found, parents before
// children. What is no file system to mount is left out. An image may have only
// /usr; one without even that is ErrNoRoot.
func Mounts(found map[string]Partition) ([]Mount, error) {
	out := make([]Mount, 0, len(found))
	for designator, p := range found {
		if where, ok := places[designator]; ok {
			out = append(out, Mount{p, designator, where})
		}
	}
	slices.SortFunc(out, func(a, b Mount) int {
		if len(a.Where) != len(b.Where) {
			return len(a.Where) - len(b.Where)
		}
		return strings.Compare(a.Where, b.Where)
	})
	_, root := found["root"]
	_, usr := found["usr"]
	if !root && !usr {
		return nil, ErrNoRoot
	}
	return out, nil
}

// Plan is Discover and Mounts. It refuses an image whose root or /usr has no known
// file system.
func (d *Disk) Plan() ([]Mount, error) { return d.planFor(runtime.GOARCH) }

func (d *Disk) planFor(arch string) ([]Mount, error) {
	found, err := d.discoverFor(arch, Wanted{})
	if err != nil {
		return nil, err
	}
	out, err := Mounts(found)
	if err != nil {
		return nil, err
	}
	for _, m := range out {
		if m.FSType == "" && (m.Designator == "root" || m.Designator == "usr") {
			return nil, fmt.Errorf("partition %d (%s): unknown file system", m.Number, m.Designator)
		}
	}
	return out, nil
}
