package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"github.com/sirupsen/logrus"

	"machined/dbus"
	"machined/dbus/import1"
	"machined/image"
	"machined/internal/testbus"
	"machined/transfer"
)

// fakeWorker ends when it is told to.
type fakeWorker struct{ end chan error }

func (w *fakeWorker) Wait() error { return <-w.end }
func (w *fakeWorker) Stop(bool)   { w.end <- errors.New("stopped") }

// fakeLauncher starts workers that do nothing.
type fakeLauncher struct{ started chan transfer.Request }

func (l *fakeLauncher) Start(req transfer.Request) (Worker, error) {
	l.started <- req
	return &fakeWorker{end: make(chan error, 8)}, nil
}

func serve(t *testing.T) (godbus.BusObject, *godbus.Conn, *fakeLauncher) {
	t.Helper()
	bus := testbus.Start(t)
	conn := bus.Connect()
	log := logrus.New()
	log.SetOutput(t.Output())
	launcher := &fakeLauncher{started: make(chan transfer.Request, 2*maxTransfers)}
	base := t.TempDir()
	stores := map[image.Class]*image.Store{}
	for _, class := range image.Classes {
		pool := filepath.Join(base, string(class))
		if err := os.Mkdir(pool, 0o755); err != nil {
			t.Fatal(err)
		}
		stores[class] = image.NewStore(image.Config{Class: class, SearchPath: []string{pool}, PoolDir: pool, LockDir: base, NoHost: true})
	}
	s := New(Config{Conn: conn, Launcher: launcher, Log: log, Stores: stores})
	if err := s.Export(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	client := bus.Connect()
	return client.Object(conn.Names()[0], import1.ManagerPath), client, launcher
}

func call(obj godbus.BusObject, method string, args ...any) (uint32, error) {
	var id uint32
	var path godbus.ObjectPath
	err := obj.CallWithContext(context.Background(), import1.ManagerInterface+"."+method, 0, args...).Store(&id, &path)
	if err == nil && path != import1.TransferPath(id) {
		err = fmt.Errorf("path %q of transfer %d", path, id)
	}
	return id, err
}

func TestRefusals(t *testing.T) {
	obj, _, _ := serve(t)
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	const url = "http://127.0.0.1:1/x.tar"
	for _, test := range []struct {
		method string
		args   []any
		want   string
	}{
		{"PullTar", []any{"ftp://x/y", "a", "no", false}, dbus.ErrorInvalidArgs},
		{"PullTar", []any{url, "../a", "no", false}, dbus.ErrorInvalidArgs},
		{"PullTar", []any{url, "a", "maybe", false}, dbus.ErrorInvalidArgs},
		{"PullTarEx", []any{url, "a", "nothing", "no", uint64(0)}, dbus.ErrorInvalidArgs},
		{"PullTarEx", []any{url, "a", "machine", "no", uint64(8)}, dbus.ErrorInvalidArgs},
		{"ImportTar", []any{godbus.UnixFD(dir.Fd()), "a", false, false}, dbus.ErrorInvalidArgs},
		{"ImportTarEx", []any{godbus.UnixFD(dir.Fd()), "a", "machine", uint64(4)}, dbus.ErrorInvalidArgs},
		{"ExportTar", []any{"a", godbus.UnixFD(dir.Fd()), "rar"}, dbus.ErrorInvalidArgs},
		{"CancelTransfer", []any{uint32(0)}, dbus.ErrorInvalidArgs},
		{"CancelTransfer", []any{uint32(7)}, import1.ErrorNoSuchTransfer},
		{"ListTransfersEx", []any{"nothing", uint64(0)}, dbus.ErrorInvalidArgs},
		{"ListImages", []any{"", uint64(1)}, dbus.ErrorInvalidArgs},
	} {
		err := obj.Call(import1.ManagerInterface+"."+test.method, 0, test.args...).Err
		if got := dbus.NameOf(err); err == nil || got != test.want {
			t.Errorf("%s(%v) = %v (%s), want %s", test.method, test.args, err, got, test.want)
		}
	}
}

func TestTransfers(t *testing.T) {
	obj, client, launcher := serve(t)
	signals := make(chan *godbus.Signal, 16)
	client.Signal(signals)
	if err := client.AddMatchSignal(godbus.WithMatchInterface(import1.ManagerInterface)); err != nil {
		t.Fatal(err)
	}
	id, err := call(obj, "PullTar", "http://127.0.0.1:1/x.tar", "a", "", true)
	if err != nil || id != 1 {
		t.Fatalf("PullTar = %d, %v, want 1", id, err)
	}
	req := <-launcher.started
	if !req.Force || req.Verify != transfer.VerifySignature || req.KeepDownload {
		t.Errorf("request = %+v", req)
	}
	if _, err := call(obj, "PullTar", "http://127.0.0.1:1/x.tar", "b", "", true); dbus.NameOf(err) != import1.ErrorTransferInProgress {
		t.Errorf("same URL again = %v, want TransferInProgress", err)
	}
	var rows []import1.TransferEx
	if err := obj.Call(import1.ManagerInterface+".ListTransfersEx", 0, "machine", uint64(0)).Store(&rows); err != nil {
		t.Fatal(err)
	}
	want := import1.TransferEx{ID: 1, Type: "pull-tar", Remote: "http://127.0.0.1:1/x.tar", Local: "a", Class: "machine", Progress: import1.UnknownProgress, Path: import1.TransferPath(1)}
	if len(rows) != 1 || rows[0] != want {
		t.Errorf("transfers = %+v, want %+v", rows, want)
	}
	if err := obj.Call(import1.ManagerInterface+".CancelTransfer", 0, uint32(1)).Err; err != nil {
		t.Fatal(err)
	}
	for _, member := range []string{"TransferNew", "TransferRemoved"} {
		sig := <-signals
		for sig.Name == "org.freedesktop.DBus.NameAcquired" { // of the client itself, which may still be on its way
			sig = <-signals
		}
		if sig.Name != import1.ManagerInterface+"."+member {
			t.Errorf("signal = %s, want %s", sig.Name, member)
		}
		if member == "TransferRemoved" && sig.Body[2] != import1.ResultCanceled {
			t.Errorf("result = %v, want canceled", sig.Body[2])
		}
	}
	if id, err = call(obj, "PullTar", "http://127.0.0.1:1/x.tar", "", "no", false); err != nil || id != 2 {
		t.Errorf("next PullTar = %d, %v, want 2", id, err)
	}
	for i := 1; i < maxTransfers; i++ {
		if _, err := call(obj, "PullTar", fmt.Sprintf("http://127.0.0.1:1/%d.tar", i), "", "no", false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := call(obj, "PullRaw", "http://127.0.0.1:1/y", "", "no", false); dbus.NameOf(err) != "System.Error.E2BIG" {
		t.Errorf("one more than the limit = %v, want E2BIG", err)
	}
}
