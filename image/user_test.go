package image

import (
	"slices"
	"testing"
)

func TestUserConfig(t *testing.T) {
	t.Setenv("HOME", "/home/alice")
	for _, tc := range []struct {
		name, run, state, config string
		search, nspawn           []string
		pool                     string
	}{
		{
			"plain", "/run/user/7", "", "",
			[]string{"/run/user/7/machines", "/home/alice/.local/state/machines", "/home/alice/.local/lib/machines"},
			[]string{"/home/alice/.config/systemd/nspawn", "/run/user/7/systemd/nspawn"}, "/home/alice/.local/state/machines",
		},
		{
			"elsewhere", "", "/state", "/config",
			[]string{"/state/machines", "/home/alice/.local/lib/machines"}, []string{"/config/systemd/nspawn"}, "/state/machines",
		},
		{
			"relative ones do not count", "run", "state", "config",
			[]string{"/home/alice/.local/state/machines", "/home/alice/.local/lib/machines"},
			[]string{"/home/alice/.config/systemd/nspawn"}, "/home/alice/.local/state/machines",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("XDG_RUNTIME_DIR", tc.run)
			t.Setenv("XDG_STATE_HOME", tc.state)
			t.Setenv("XDG_CONFIG_HOME", tc.config)
			got, err := UserConfig(ClassMachine)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got.SearchPath, tc.search) || !slices.Equal(got.NspawnDirs, tc.nspawn) || got.PoolDir != tc.pool || !got.NoHost {
				t.Errorf("got %+v, want %v, %v, %s", got, tc.search, tc.nspawn, tc.pool)
			}
		})
	}
	t.Setenv("HOME", "")
	if c, err := UserConfig(ClassMachine); err == nil {
		t.Errorf("without a home: got %+v", c)
	}
}
