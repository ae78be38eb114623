package spawn

import (
	"strings"
	"testing"

	"machined/spawn/settings"
)

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(*Options)
		ok   bool
	}{
		{"default", func(*Options) {}, true},
		{"directory and image", func(o *Options) { o.Directory, o.Image = "/a", "/b" }, false},
		{"template and image", func(o *Options) { o.Template, o.Image = "/a", "/b" }, false},
		{"template alone", func(o *Options) { o.Template = "/a" }, false},
		{"bridge and zone", func(o *Options) { o.Bridge, o.Zone = "br0", "x" }, false},
		{"port without network", func(o *Options) { o.Ports = []settings.Port{{Protocol: "tcp", Host: 1, Container: 1}} }, false},
		{"port with veth", func(o *Options) {
			o.Veth = true
			o.Ports = []settings.Port{{Protocol: "tcp", Host: 1, Container: 1}}
		}, true},
		{"namespace path and veth", func(o *Options) { o.NetnsPath, o.Veth = "/run/netns/a", true }, false},
		{"keep unit and slice", func(o *Options) { o.KeepUnit, o.Slice = true, "a.slice" }, false},
		{"keep unit and property", func(o *Options) { o.KeepUnit, o.Properties = true, []string{"A=b"} }, false},
		{"ambient and boot", func(o *Options) { o.StartMode, o.CapAmbient = settings.StartBoot, 1 }, false},
		{"managed", func(o *Options) { o.Users.Mode = settings.UserManaged }, false},
		{"chown of a read-only tree", func(o *Options) { o.Ownership, o.ReadOnly = "chown", true }, false},
		{"private users and writable API", func(o *Options) {
			o.Users.Mode = settings.UserPick
			o.Knobs.APIVFS = "yes"
		}, false},
		{"bind user without private users", func(o *Options) { o.BindUsers = []string{"a"} }, true},
		{"group of no bound user", func(o *Options) { o.BindUserGroups = []string{"a"} }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Default()
			tt.set(&o)
			o.Implied()
			if err := o.Validate(); (err == nil) != tt.ok {
				t.Errorf("Validate() = %v, want ok %v", err, tt.ok)
			}
		})
	}
}

func TestValidMachineName(t *testing.T) {
	for name, want := range map[string]bool{
		"deb": true, "a.b": true, "a-b": true, "a_b": false, "": false, ".x": false, "x.": false, "../x": false,
		"a/b": false, "a b": false, "a\n": false, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false,
	} {
		if got := ValidMachineName(name); got != want {
			t.Errorf("ValidMachineName(%q) = %v, want %v", name, got, want)
		}
	}
}

func TestCleanName(t *testing.T) {
	for name, want := range map[string]string{
		"a_b--c..d+e f": "ab--c.def", "vv_2+3-1": "vv23-1", "TEST-13-NSPAWN.bind-user.x_Y": "TEST-13-NSPAWN.bind-user.xY",
		".#x": "x", "-a-.-b.": "a--b", "a-.b": "a-b", "...": "", "": "",
	} {
		if got := CleanName(name); got != want {
			t.Errorf("CleanName(%q) = %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"my image", "a--b", ".#x", strings.Repeat("ab.", 40), "a-.b", "x.-y"} {
		if got := CleanName(name); got != "" && !ValidMachineName(got) {
			t.Errorf("CleanName(%q) = %q, which is no machine name", name, got)
		}
	}
}
