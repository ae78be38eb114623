package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
)

// LoginFiles are where logins are looked for, the first that knows the registry
// wins: podman's ($REGISTRY_AUTH_FILE, containers-auth.json(5)) and docker's.
func LoginFiles(getenv func(string) string) []string {
	var list []string
	if file := getenv("REGISTRY_AUTH_FILE"); file != "" {
		list = append(list, file)
	}
	if dir := getenv("DOCKER_CONFIG"); dir != "" {
		list = append(list, filepath.Join(dir, "config.json"))
	}
	if dir := getenv("XDG_RUNTIME_DIR"); dir != "" {
		list = append(list, filepath.Join(dir, "containers/auth.json"))
	} else {
		list = append(list, fmt.Sprintf("/run/containers/%d/auth.json", os.Geteuid()))
	}
	home := getenv("HOME")
	if home == "" || home == "/" {
		home = "/root" // of a service
	}
	return append(list, filepath.Join(home, ".docker/config.json"), filepath.Join(home, ".config/containers/auth.json"))
}

// loginFileMax bounds such a file, in bytes.
const loginFileMax = 1 << 20

// Login finds the login for a registry in files, by any of the names that it has.
// Without one it is anonymous. It may run a credential helper, so that it belongs to
// before a sandbox.
func Login(files []string, names ...string) (authn.AuthConfig, error) {
	for _, path := range files {
		file, err := loadLogins(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return authn.AuthConfig{}, err
		}
		for _, name := range names {
			got, err := file.get(name)
			if err != nil {
				return authn.AuthConfig{}, fmt.Errorf("login for %s from %s: %w", name, path, err)
			}
			if got != (types.AuthConfig{ServerAddress: got.ServerAddress}) {
				return authn.AuthConfig{
					Username: got.Username, Password: got.Password, Auth: got.Auth, IdentityToken: got.IdentityToken, RegistryToken: got.RegistryToken,
				}, nil
			}
		}
	}
	return authn.AuthConfig{}, nil
}

type logins struct {
	get func(name string) (types.AuthConfig, error)
}

func loadLogins(path string) (*logins, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > loginFileMax {
		return nil, fmt.Errorf("read %s: no regular file of at most %d bytes", path, loginFileMax)
	}
	file, err := config.LoadFromReader(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &logins{get: file.GetAuthConfig}, nil
}

// LoginNames are the names that the login of a resolved reference may be kept under,
// the most exact first.
func LoginNames(r Reference) []string {
	switch r.Registry {
	case dockerRegistry, dockerHost, "index.docker.io":
		return []string{"https://index.docker.io/v1/", dockerRegistry}
	}
	return []string{r.Registry + "/" + r.Repository, r.Registry}
}
