package spawn

import (
	"context"
	"fmt"
	"os"
	"time"
)

// registerPatience bounds registering, which no signal interrupts.
const registerPatience = 90 * time.Second

// register tells machined and the service manager, and enters the cgroup that
// comes of it.
func (m *machine) register(ctx context.Context) error {
	o := m.opts
	r := Registration{
		Name: o.Machine, ID: m.id, Leader: m.c.PID, Root: m.root, NetIf: m.netif, Slice: o.Slice,
		Boot: o.Boot(), KillSignal: int(o.KillSignal), Properties: o.Properties, Devices: m.boundDevices(),
	}
	// A process that shares these namespaces with the host is no machine.
	register := o.Register && !o.Knobs.SharePID && !o.Knobs.ShareUTS
	if o.KeepUnit {
		// machined looks at where the leader is, which is right from its birth.
		if register {
			if err := m.registered(m.bus.Register(ctx, r)); err != nil {
				return err
			}
		}
		return m.enterUnit()
	}
	if register {
		err := m.bus.Create(ctx, r)
		if err == nil || !o.RegisterAuto {
			if err := m.registered(err); err != nil {
				return err
			}
			return m.enterCgroup(false)
		}
		_ = m.registered(err)
	}
	made, err := m.bus.Scope(ctx, r)
	if err != nil && !o.RegisterAuto {
		return fmt.Errorf("Failed to allocate scope: %w", err)
	}
	if err != nil {
		m.say("Failed to allocate scope, ignoring: %v", err)
	}
	return m.enterCgroup(!made)
}

// registered notes how registering ended: without it a machine may go on only
// with --register=auto.
func (m *machine) registered(err error) error {
	switch {
	case err == nil:
		m.owe(chore{Kind: choreUnregister})
	case !m.opts.RegisterAuto:
		return fmt.Errorf("Failed to register machine: %w", err)
	default:
		m.say("Failed to register machine, ignoring: %v", err)
	}
	return nil
}

func (m *machine) unregister() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := m.bus.Unregister(ctx, m.opts.Machine); err != nil {
		m.warn("Failed to unregister machine, ignoring: %v", err)
	}
}

func (m *machine) boundDevices() []string {
	var out []string
	for _, mount := range m.plan.Mounts {
		if mount.Kind != "bind" || mount.Sources[0].Inside {
			continue
		}
		if st, err := os.Stat(mount.Sources[0].Path); err == nil && st.Mode()&os.ModeDevice != 0 {
			out = append(out, mount.Sources[0].Path)
		}
	}
	return out
}
