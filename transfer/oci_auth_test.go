package transfer

import "github.com/google/go-containerregistry/pkg/authn"

// basic is the login that the test registry wants.
type basic struct{}

// Authorization is for authn.Authenticator.
func (basic) Authorization() (*authn.AuthConfig, error) {
	return &authn.AuthConfig{Username: "me", Password: "secret"}, nil
}
