package netname

import (
	"encoding/hex"
	"testing"
)

// Captured from systemd-nspawn 257.
func TestAgainstStock(t *testing.T) {
	t.Parallel()
	var host [16]byte
	if _, err := hex.Decode(host[:], []byte("56d1671c866245b1a6f9683e83546eb6")); err != nil {
		t.Fatal(err)
	}
	for _, m := range []struct {
		machine, name, alt string
		macs               map[*Key][]string
	}{
		{"abc", "ve-abc", "", map[*Key][]string{
			&KeyHost:           {"ea:b7:3b:6a:68:bc"},
			&KeyContainer:      {"9e:b4:85:60:ed:de"},
			&KeyExtraHost:      {"f2:e5:2b:5c:d0:f9", "8a:80:62:ec:22:68"},
			&KeyExtraContainer: {"6a:db:05:58:26:0e", "72:62:7e:14:a2:f2"},
		}},
		{"a-really-long-machine-name-here", "ve-a-really7BtO", "ve-a-really-long-machine-name-here", map[*Key][]string{
			&KeyHost:           {"8a:dc:e3:19:a2:85"},
			&KeyContainer:      {"46:52:b9:49:57:64"},
			&KeyExtraHost:      {"be:99:75:6f:b2:80", "16:01:c2:b6:eb:0f"},
			&KeyExtraContainer: {"a2:19:84:65:16:70", "6a:8c:df:af:5e:89"},
		}},
	} {
		name, alt := HostVeth(m.machine, false)
		if name != m.name || alt != m.alt {
			t.Errorf("%s: got %q, %q; want %q, %q", m.machine, name, alt, m.name, m.alt)
		}
		for key, want := range m.macs {
			for i, mac := range want {
				if got := MAC(host, m.machine, *key, uint64(i)).String(); got != mac {
					t.Errorf("%s: address %d of key %x: got %s, want %s", m.machine, i, key[:2], got, mac)
				}
			}
		}
	}
	if host[0] != 0x56 {
		t.Error("host id was changed")
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	if n, alt := HostVeth("abc", true); n != "vb-abc" || alt != "" {
		t.Errorf("got %q, %q", n, alt)
	}
	if n, _ := MACVLAN("eth0"); n != "mv-eth0" {
		t.Errorf("got %q", n)
	}
	if n, alt := IPVLAN("a-long-parent0"); len(n) != 15 || alt != "iv-a-long-parent0" || n[:11] != "iv-a-long-p" {
		t.Errorf("got %q, %q", n, alt)
	}
	for name, want := range map[string]bool{"": false, "eth0": true, "a b": false, "12": false, "..": false, "a:1": false, "all": false, "abcdefghijklmno": true, "abcdefghijklmnop": false, "a%d": false} {
		if got := ValidIfname(name); got != want {
			t.Errorf("ValidIfname(%q) = %v", name, got)
		}
	}
	if ValidZone("") || ValidZone("abcdefghijklm") || !ValidZone("abcdefghijkl") {
		t.Error("zone names are not checked against the length of a link's name")
	}
}
