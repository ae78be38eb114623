package gpt

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
)

// Mount says where one partition goes.
type Mount struct {
	Partition
	Designator string // root, usr, home, srv, var, tmp, esp, xbootldr
	// Where is the mount point: "/" and below. The ESP's is /efi; a tree without
	// that directory takes it at /boot.
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

// native are the types of root and /usr of one architecture, by Go's name.
var native = map[string]struct{ root, usr string }{
	"386":      {"44479540-f297-41b2-9af7-d131d5f0458a", "75250d76-8cc6-458e-bd66-bd47cc81a812"},
	"amd64":    {"4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "8484680c-9521-48c6-9c11-b0720656f69e"},
	"arm":      {"69dad710-2ce4-4e3c-b16c-21a1d49abed3", "7d0359a3-02b3-4f0a-865c-654403e70625"},
	"arm64":    {"b921b045-1df0-41c3-af44-4c6f280d3fae", "b0e01050-ee5f-4390-949a-9101b17104e9"},
	"loong64":  {"77055800-792c-4f94-b39a-98c91b762bb6", "e611c702-575c-4cbe-9a46-434fa0bf7e3f"},
	"mipsle":   {"37c58c8a-d913-4156-a25f-48b1b64e07f0", "0f4868e9-9952-4706-979f-3ed3a473e947"},
	"mips64le": {"700bda43-7a34-4507-b179-eeb93d7a7ca3", "c97c1f32-ba06-40b4-9f22-236061b08aa8"},
	"ppc64":    {"912ade1d-a839-4913-8964-a10eee08fbd2", "2c9739e2-f068-46b3-9fd0-01c5a9afbcca"},
	"ppc64le":  {"c31c45e6-3f39-412e-80fb-4809c4980599", "15bb03af-77e7-4d4a-b12b-c0d084f7491c"},
	"riscv64":  {"72ec70a6-cf74-40e6-bd49-4bda08e8f224", "beaec34b-8442-439b-a40b-984381ed097d"},
	"s390x":    {"5eead9a9-fe09-4a1e-a1d7-520d00531306", "8a4f5770-50aa-4ed3-874a-99b710db6fea"},
}

// secondary are the architectures that a host runs besides its own.
var secondary = map[string]string{"amd64": "386", "arm64": "arm"}

var places = map[string]string{
	"root": "/", "usr": "/usr", "home": "/home", "srv": "/srv", "var": "/var", "tmp": "/var/tmp", "esp": "/efi", "xbootldr": "/boot",
}

// Plan returns what to mount for this host's architecture, parents before
// children: the discoverable partitions, or the one that can only be the root. It
// never returns two for one place: the first counts.
func (d *Disk) Plan() ([]Mount, error) { return d.planFor(runtime.GOARCH) }

func (d *Disk) planFor(arch string) ([]Mount, error) {
	found := map[string]Mount{}
	add := func(designator string, p Partition) {
		if _, dup := found[designator]; !dup {
			found[designator] = Mount{p, designator, places[designator]}
		}
	}
	switch d.Table {
	case TableNone:
		add("root", d.Partitions[0])
	case TableMBR:
		var linux []Partition
		for _, p := range d.Partitions {
			if p.MBRType == 0x83 && p.Bootable {
				linux = append(linux, p)
			}
		}
		if len(linux) > 1 {
			return nil, ErrAmbiguous
		}
		if len(linux) == 1 {
			add("root", linux[0])
		}
	case TableGPT:
		d.discover(arch, add)
		if _, ok := found["root"]; !ok {
			if other, ok := secondary[arch]; ok {
				d.discover(other, add)
			}
		}
		_, root := found["root"]
		_, usr := found["usr"]
		if !root && !usr {
			var generic []Partition
			for _, p := range d.Partitions {
				if p.Type.String() == genericLinux && !p.NoAuto() {
					generic = append(generic, p)
				}
			}
			if len(generic) > 1 {
				return nil, ErrAmbiguous
			}
			if len(generic) == 1 {
				add("root", generic[0])
			}
		}
	}
	delete(found, "swap")
	out := make([]Mount, 0, len(found))
	for _, m := range found {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Mount) int {
		if len(a.Where) != len(b.Where) {
			return len(a.Where) - len(b.Where)
		}
		return a.Number - b.Number
	})
	if len(out) == 0 || out[0].Designator != "root" && found["usr"].Designator == "" {
		return nil, ErrNoRoot
	}
	for _, m := range out {
		if m.FSType == "" && (m.Designator == "root" || m.Designator == "usr") {
			return nil, fmt.Errorf("partition %d (%s): unknown file system", m.Number, m.Designator)
		}
	}
	return out, nil
}

func (d *Disk) discover(arch string, add func(string, Partition)) {
	for _, p := range d.Partitions {
		if p.NoAuto() {
			continue
		}
		switch t := p.Type.String(); t {
		case native[arch].root:
			add("root", p)
		case native[arch].usr:
			add("usr", p)
		default:
			if name, ok := shared[t]; ok {
				add(name, p)
			}
		}
	}
}
