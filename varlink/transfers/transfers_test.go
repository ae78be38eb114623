package transfers

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"machined/varlink"
)

// fakeTransfers runs two transfers, and pulls what it is asked for with the events that it has.
type fakeTransfers struct {
	rows   []Transfer
	pulled []Pull
	events []Event
}

func (f *fakeTransfers) Transfers() []Transfer { return f.rows }

func (f *fakeTransfers) Check(p Pull) error {
	if strings.HasPrefix(p.Remote, "gopher:") {
		return &ParameterError{Parameter: "remote"}
	}
	return nil
}

func (f *fakeTransfers) Pull(p Pull) (uint32, <-chan Event, error) {
	if p.Remote == "http://x/busy" {
		return 0, nil, fmt.Errorf("pull: %w", ErrInProgress)
	}
	f.pulled = append(f.pulled, p)
	events := make(chan Event, len(f.events))
	for _, ev := range f.events {
		events <- ev
	}
	close(events)
	return 7, events, nil
}

// ask sends one call and returns all replies to it, as text.
func ask(t *testing.T, transfers Transfers, method, params string, more bool) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := varlink.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	log, _ := logtest.NewNullLogger()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	server := (&Service{Transfers: transfers, Log: logrus.NewEntry(log)}).Server("test")
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintf(conn, `{"method":"%s","parameters":%s,"more":%v}`+"\x00", method, params, more); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	var replies []string
	for {
		text, err := in.ReadString(0)
		if err != nil {
			t.Fatalf("after %q: %v", replies, err)
		}
		text = strings.TrimSuffix(text, "\x00")
		var reply struct {
			Continues  bool            `json:"continues"`
			Error      string          `json:"error"`
			Parameters json.RawMessage `json:"parameters"`
		}
		if err := json.Unmarshal([]byte(text), &reply); err != nil {
			t.Fatal(err)
		}
		replies = append(replies, strings.TrimSpace(reply.Error+" "+string(reply.Parameters)))
		if !reply.Continues {
			return replies
		}
	}
}

func TestMethods(t *testing.T) {
	t.Parallel()
	half := 0.5
	rows := []Transfer{
		{ID: 1, Type: "pull-tar", Remote: "http://x/a", Local: "a", Class: "machine", Progress: 0.25},
		{ID: 2, Type: "pull-raw", Remote: "http://x/b", Class: "sysext", Progress: -1},
	}
	const pull = prefix + "Pull"
	good := `{"remote":"http://x/a","type":"tar","class":"machine"}`
	for _, test := range []struct {
		name, method, params string
		more                 bool
		rows                 []Transfer
		events               []Event
		want                 []string
		pulled               *Pull
	}{
		{name: "list", method: prefix + "ListTransfers", params: "{}", more: true, rows: rows, want: []string{
			`{"id":1,"type":"pull_tar","remote":"http://x/a","local":"a","class":"machine","percent":0.25}`,
			`{"id":2,"type":"pull_raw","remote":"http://x/b","class":"sysext"}`,
		}},
		{name: "list of a class", method: prefix + "ListTransfers", params: `{"class":"sysext"}`, more: true, rows: rows, want: []string{
			`{"id":2,"type":"pull_raw","remote":"http://x/b","class":"sysext"}`,
		}},
		{name: "list of none", method: prefix + "ListTransfers", params: "{}", more: true, want: []string{errNoTransfers}},
		{name: "list without more", method: prefix + "ListTransfers", params: "{}", want: []string{"org.varlink.service.ExpectedMore"}},
		{name: "list of no class", method: prefix + "ListTransfers", params: `{"class":"x"}`, more: true, want: []string{`org.varlink.service.InvalidParameter {"parameter":"class"}`}},
		{name: "pull and leave", method: pull, params: good, want: []string{`{"id":7}`},
			pulled: &Pull{Remote: "http://x/a", Type: "tar", Class: "machine", Verify: "signature"}},
		{name: "pull with all there is", method: pull, want: []string{`{"id":7}`},
			params: `{"remote":"http://x/a","local":"l","type":"raw","class":"confext","verify":"no","imageRoot":"/x","force":true,"readOnly":true,"keepDownload":true}`,
			pulled: &Pull{Remote: "http://x/a", Local: "l", Type: "raw", Class: "confext", Verify: "no", ImageRoot: "/x", Force: true, ReadOnly: true, KeepDownload: true}},
		{name: "pull and watch", method: pull, params: good, more: true,
			events: []Event{{Message: "hello", Priority: 6}, {Progress: &half}, {Result: "done"}},
			want:   []string{`{"id":7}`, `{"log":{"message":"hello","priority":6}}`, `{"progress":0.5}`, `{}`}},
		{name: "pull that fails", method: pull, params: good, more: true, events: []Event{{Result: "failed"}}, want: []string{`{"id":7}`, errFailed}},
		{name: "pull that is cancelled", method: pull, params: good, more: true, events: []Event{{Result: "canceled"}}, want: []string{`{"id":7}`, errCancelled}},
		{name: "worker lost", method: pull, params: good, more: true, want: []string{`{"id":7}`, errFailed}},
		{name: "pull that runs", method: pull, params: `{"remote":"http://x/busy","type":"tar","class":"machine"}`, want: []string{errAlreadyInProgress + ` {"remote":"http://x/busy"}`}},
		{name: "bad URL", method: pull, params: `{"remote":"gopher:x","type":"tar","class":"machine"}`, want: []string{`org.varlink.service.InvalidParameter {"parameter":"remote"}`}},
		{name: "bad type", method: pull, params: `{"remote":"http://x/a","type":"zip","class":"machine"}`, want: []string{`org.varlink.service.InvalidParameter {"parameter":"type"}`}},
		{name: "bad verification", method: pull, params: `{"remote":"http://x/a","type":"tar","class":"machine","verify":"maybe"}`, want: []string{`org.varlink.service.InvalidParameter {"parameter":"verify"}`}},
		{name: "nothing to pull", method: pull, params: `{"type":"tar","class":"machine"}`, want: []string{`org.varlink.service.InvalidParameter {"parameter":"remote"}`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fake := &fakeTransfers{rows: test.rows, events: test.events}
			got := ask(t, fake, test.method, test.params, test.more)
			for i := range got {
				got[i] = strings.TrimSuffix(got[i], " {}")
			}
			if strings.Join(got, "\n") != strings.Join(test.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
			if test.pulled == nil && len(fake.pulled) > 0 && !strings.Contains(test.name, "pull") && test.name != "worker lost" {
				t.Errorf("pulled %v", fake.pulled)
			}
			if test.pulled != nil && (len(fake.pulled) != 1 || fake.pulled[0] != *test.pulled) {
				t.Errorf("pulled %+v, want %+v", fake.pulled, *test.pulled)
			}
		})
	}
}
