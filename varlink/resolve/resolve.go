// Package resolve serves io.systemd.Resolve.Hook, by which systemd-resolved
// asks for the addresses of machines. It answers for machines only, and sends
// no DNS of its own.
package resolve

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"strings"
	"sync"

	"machined/nss"
	"machined/registry"
	"machined/varlink"
)

// SocketPath is where systemd-resolved looks for hooks.
const SocketPath = "/run/systemd/resolve.hook/io.systemd.Machine"

// What RFC 1035 and RFC 3596 call these.
const (
	classIN  = 1
	classANY = 255
	typeA    = 1
	typeAAAA = 28
	typeANY  = 255

	rcodeSuccess  = 0
	rcodeNXDomain = 3
)

// Machines is the table of running machines.
type Machines interface {
	Get(name string) (registry.Machine, error)
	List() []registry.Machine
}

// Addresses tells the ranked addresses of a machine.
type Addresses interface {
	Of(m registry.Machine) ([]nss.Address, error)
}

// Hook is the service. It is a registry.Listener: its subscribers are told
// about each change.
type Hook struct {
	machines  Machines
	addresses Addresses

	mu          sync.Mutex
	subscribers map[chan struct{}]struct{}
}

// New returns the service over the table.
func New(machines Machines, addresses Addresses) *Hook {
	return &Hook{machines: machines, addresses: addresses, subscribers: map[chan struct{}]struct{}{}}
}

// MachineAdded implements registry.Listener.
func (h *Hook) MachineAdded(registry.Machine) { h.changed() }

// MachineRemoved implements registry.Listener.
func (h *Hook) MachineRemoved(registry.Machine) { h.changed() }

func (h *Hook) changed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.subscribers {
		select {
		case ch <- struct{}{}:
		default: // it has not looked at the last change yet
		}
	}
}

// Interface returns the varlink interface.
func (h *Hook) Interface() varlink.Interface {
	return varlink.Interface{
		Name:        "io.systemd.Resolve.Hook",
		Description: description,
		Methods: map[string]varlink.Method{
			"QueryFilter":   {Handler: h.queryFilter},
			"ResolveRecord": {Handler: h.resolveRecord},
		},
	}
}

type filter struct {
	FilterDomains []string `json:"filterDomains"`
}

// named reports whether a machine's name is one for the whole host. Users may
// register machines under the names of other hosts, and resolved does not tell
// who asks.
func named(m registry.Machine) bool { return m.Class != registry.ClassHost && m.UID == 0 }

func (h *Hook) domains() []string {
	out := []string{}
	for _, m := range h.machines.List() {
		if named(m) && m.State != registry.StateClosing {
			out = append(out, m.Name)
		}
	}
	slices.Sort(out)
	return out
}

func (h *Hook) queryFilter(ctx context.Context, call *varlink.Call) (any, error) {
	if err := call.Params.Done(); err != nil {
		return nil, err
	}
	if !call.More {
		return filter{h.domains()}, nil
	}
	changes := make(chan struct{}, 1)
	h.mu.Lock()
	h.subscribers[changes] = struct{}{}
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.subscribers, changes)
	}()
	for {
		if err := call.Continue(filter{h.domains()}); err != nil {
			return nil, err
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

type resourceKey struct {
	Class int    `json:"class"`
	Type  int    `json:"type"`
	Name  string `json:"name"`
}

type resourceRecord struct {
	Key     resourceKey `json:"key"`
	Address []int       `json:"address"`
}

type answer struct {
	RR      resourceRecord `json:"rr"`
	Raw     string         `json:"raw"`
	IfIndex int            `json:"ifindex,omitempty"`
}

type resolved struct {
	RCode  int      `json:"rcode"`
	Answer []answer `json:"answer,omitempty"`
}

// question reads the keys, plain or each within an object as "key".
func question(p *varlink.Params) []resourceKey {
	var keys []resourceKey
	for _, item := range p.Objects("question") {
		object := item
		if inner := item.Object("key"); inner != nil {
			object = inner
		}
		var key resourceKey
		class, kind := object.Int("class"), object.Int("type")
		name := object.RequiredString("name")
		if object.Done() != nil || item.Done() != nil || kind == nil {
			p.Invalid("question")
			return nil
		}
		key.Class = classIN
		if class != nil {
			key.Class = int(*class)
		}
		key.Type, key.Name = int(*kind), strings.TrimSuffix(name, ".")
		keys = append(keys, key)
	}
	if len(keys) == 0 || len(keys) > 64 {
		p.Invalid("question")
	}
	return keys
}

func (h *Hook) resolveRecord(_ context.Context, call *varlink.Call) (any, error) {
	keys := question(call.Params)
	if err := call.Params.Done(); err != nil {
		return nil, err
	}
	machines := h.machines.List()
	found, below := false, false
	answers := []answer{}
	for _, key := range keys {
		if key.Class != classIN && key.Class != classANY {
			continue
		}
		for _, m := range machines {
			if !named(m) {
				continue
			}
			if !strings.EqualFold(m.Name, key.Name) {
				suffix := len(key.Name) - len(m.Name) - 1
				below = below || suffix > 0 && key.Name[suffix] == '.' && strings.EqualFold(key.Name[suffix+1:], m.Name)
				continue
			}
			addrs, err := h.addresses.Of(m)
			if err != nil {
				continue // no network of its own: not for us to answer
			}
			found = true
			answers = append(answers, records(m, key, addrs)...)
		}
	}
	switch {
	case found:
		return resolved{RCode: rcodeSuccess, Answer: answers}, nil
	case below:
		return resolved{RCode: rcodeNXDomain}, nil
	}
	return nil, nil
}

func records(m registry.Machine, key resourceKey, addrs []nss.Address) []answer {
	ifindex := 0
	if len(m.NetIfs) == 1 {
		ifindex = m.NetIfs[0]
	}
	var out []answer
	for _, a := range addrs {
		kind := typeAAAA
		if a.IP.Is4() {
			kind = typeA
		}
		if key.Type != kind && key.Type != typeANY {
			continue
		}
		rr := resourceRecord{Key: resourceKey{classIN, kind, m.Name}}
		for _, b := range a.IP.AsSlice() {
			rr.Address = append(rr.Address, int(b))
		}
		out = append(out, answer{RR: rr, Raw: wire(m.Name, kind, a.IP.AsSlice()), IfIndex: ifindex})
	}
	return out
}

// wire is the record as RFC 1035, section 4.1.3, has it, in Base64.
func wire(name string, kind int, data []byte) string {
	var b []byte
	for label := range strings.SplitSeq(name, ".") {
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(kind))
	b = binary.BigEndian.AppendUint16(b, classIN)
	b = binary.BigEndian.AppendUint32(b, 0) // not to be cached
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return base64.StdEncoding.EncodeToString(append(b, data...))
}

const description = `# Answers lookups of host names before they go to the network.
interface io.systemd.Resolve.Hook

# The class, type and name of a DNS resource record.
type ResourceKey(
	class: int,
	type: int,
	name: string
)

# A DNS resource record with an address.
type ResourceRecord(
	key: ResourceKey,
	address: ?[]int
)

# A question.
type Question(
	key: ResourceKey
)

# An answer: the record, and the same in DNS wire format and Base64.
type Answer(
	rr: ?ResourceRecord,
	raw: string,
	ifindex: ?int
)

# The domains that are answered for. With 'more', sent again whenever they change.
method QueryFilter() -> (
	filterDomains: ?[]string,
	filterLabelsMin: ?int,
	filterLabelsMax: ?int
)

# Answers a question, all of whose keys are about one thing. No rcode: not ours.
method ResolveRecord(
	question: []Question
) -> (
	rcode: ?int,
	answer: ?[]Answer
)
`
