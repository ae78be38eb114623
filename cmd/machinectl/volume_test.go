package main

import (
	"encoding/json"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestParseVolume: what a provider and a runner are told of an argument.
func TestParseVolume(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ arg, name, config, acquire string }{
		{"block:/dev/sda", "block:/dev/sda", "", `{"name":"/dev/sda","allowInteractiveAuthentication":false}`},
		{"block:/dev/sda:virtio-scsi", "block:/dev/sda", "virtio-scsi", `{"name":"/dev/sda","allowInteractiveAuthentication":false}`},
		{"fs:v::create=new,size=64M,template=sparse-file", "fs:v", "", `{"name":"v","createMode":"new","template":"sparse-file","createSizeBytes":67108864,"allowInteractiveAuthentication":false}`},
		{"fs:v:nvme:create=any,,request-as=blk,ro=auto,create-size=1G", "fs:v", "nvme", `{"name":"v","createMode":"any","requestAs":"blk","createSizeBytes":1073741824,"allowInteractiveAuthentication":false}`},
		{"fs:v::read-only=yes", "fs:v", "", `{"name":"v","readOnly":true,"allowInteractiveAuthentication":false}`},
		{"fs:v::ro=no,", "fs:v", "", `{"name":"v","readOnly":false,"allowInteractiveAuthentication":false}`},
		{`fs:a\:b:`, "fs:a:b", "", `{"name":"a:b","allowInteractiveAuthentication":false}`},
	} {
		v, err := parseVolume(test.arg)
		if err != nil {
			t.Errorf("%q: %v", test.arg, err)
			continue
		}
		got, err := json.Marshal(v.acquire)
		if err != nil {
			t.Fatal(err)
		}
		if v.String() != test.name || v.config != test.config || string(got) != test.acquire {
			t.Errorf("%q: got %q, config %q, %s", test.arg, v, v.config, got)
		}
	}
	for _, arg := range []string{
		"", ":vol", "block:", "block", "../x:vol", ".:vol", "a/b:vol", "bl\x01ock:vol", "block:vol:nv\x01me", "block:v\xff", `block:"v"`, `block:v\`,
		"block:vol::bogus=foo", "block:vol::create=bogus", "block:vol::request-as=bogus", "block:vol::nokey", "block:vol::=value", "block:vol::size=0",
		"block:vol::size=x", "block:vol::create=new,create=any", "block:vol::size=64M,create-size=128M", "block:vol::read-only=auto,ro=yes", "block:vol::ro=maybe", "block:vol::template=",
	} {
		if v, err := parseVolume(arg); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%q: got %v, error %v", arg, v, err)
		}
	}
}
