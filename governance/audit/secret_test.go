package audit_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/audit/proof"
	"github.com/stokehold/stokehold/internal/natstest"
)

// What an event's data hold does not come to any byte that is stored: rules that
// deny for it, that fail on it, and that were careless to print it.
func TestSecretsOfEventDataAreStoredNowhere(t *testing.T) {
	const (
		plain  = "correct-horse-battery-staple"
		token  = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJib2IifQ.c2lnbmF0dXJlLW9mLWJvYg"
		url    = "hunter2hunter2"
		number = "4111111111111111"
	)
	state, checkpoints := t.TempDir(), t.TempDir()
	srv := natstest.Start(t, natstest.StoreDir(state), natstest.SyncAlways())
	l := open(t, audit.Config{Conn: srv.Connect()})
	e := engine(t, l, `
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: careless}
spec:
  match: {types: ["*"]}
  rules:
    - {name: denies, expression: "data.password == 'x'", message: the password is wrong}
    - {name: fails, expression: "int(data.password) > 0"}
    - {name: looks-up, expression: "data.limits[data.password] > 0.0"}
    - {name: counts, expression: "'x'.substring(int(data.card)) == ''"}
    - {name: prints, expression: "false", messageExpression: "'refused: password=' + data.password"}
    - {name: prints-token, expression: "false", messageExpression: "'sent with ' + data.token"}
`)
	ev, err := events.New("batch.published", "https://bob:"+url+"@host/flights", "features", "b#1", time.Now(), map[string]any{
		"password": plain, "token": token, "card": 4111111111111111, "limits": map[string]int{"a": 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := e.Judge(context.Background(), events.OnPublish, []*events.Event{&ev}); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := proof.NewKeys("test/decisions")
	if err != nil {
		t.Fatal(err)
	}
	seq, err := audit.NewSequencer(audit.SequencerConfig{Reader: l.Reader, Store: audit.NewDirStore(checkpoints), Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seq.Advance(context.Background(), true); err != nil {
		t.Fatal(err)
	}
	d := readAll(t, l, time.Time{})[0]
	if d.Reason == "" || len(d.Notes) != 5 || !strings.Contains(d.Source, "host/flights") {
		t.Fatalf("the rules were meant to fail all: %+v", d)
	}
	var exported bytes.Buffer
	for _, f := range audit.Formats() {
		if _, err := l.Export(context.Background(), &exported, audit.ExportConfig{Format: f}); err != nil {
			t.Fatal(err)
		}
	}
	srv.Stop() // all is on disk
	stored := map[string][]byte{"the exports": exported.Bytes()}
	for _, root := range []string{state, checkpoints} {
		err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			stored[path], err = os.ReadFile(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	held := false
	for path, b := range stored {
		held = held || bytes.Contains(b, []byte("the password is wrong"))
		for _, secret := range []string{plain, token, url, number} {
			for _, form := range []string{secret, hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret))} {
				if bytes.Contains(b, []byte(form)) {
					t.Errorf("%s holds %s", path, secret)
				}
			}
		}
	}
	if !held {
		t.Error("no file holds the reason: the test looks at the wrong place")
	}
}

func TestReasonsAreScrubbed(t *testing.T) {
	l := open(t, audit.Config{Conn: natstest.Start(t).Connect()})
	keep := []string{
		"the password is wrong", "log loss improves by 0.0014; 0.0030 is needed", "secret sauce and tokens are fine", "labels: pii, residency=eu",
		"mail bob@example.org", "see https://example.org/a@b", "the basic rule", "key 7 of 9", "risk-adjusted return",
	}
	hide := map[string]string{
		"password=hunter2 given":                       "hunter2",
		`{"api_key": "abc123def"}`:                     "abc123def",
		"Authorization: Bearer abcdef0123456789":       "abcdef0123456789",
		"used AKIAIOSFODNN7EXAMPLE today":              "AKIAIOSFODNN7EXAMPLE",
		"clone https://x:ghp_secretsecret@github.com/": "ghp_secretsecret",
		"token ghp_0123456789abcdef":                   "ghp_0123456789abcdef",
		"-----BEGIN RSA PRIVATE KEY----- MIIE":         "MIIE",
		"jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJi.c2ln":   "eyJzdWIiOiJi",
		"client_secret => 's3cr3t'":                    "s3cr3t",
	}
	var ds []governance.Decision
	add := func(reason string) {
		d := decision(len(ds), events.OnPublish, events.Deny)
		d.Reason = reason
		d.Notes = []governance.Note{{Policy: "p", Reason: reason}}
		ds = append(ds, d)
	}
	for _, r := range keep {
		add(r)
	}
	var secrets []string
	for r, s := range hide {
		add(r)
		secrets = append(secrets, s)
	}
	if err := l.Append(context.Background(), ds); err != nil {
		t.Fatal(err)
	}
	for i, d := range readAll(t, l, time.Time{}) {
		if i < len(keep) {
			if d.Reason != keep[i] || d.Notes[0].Reason != keep[i] {
				t.Errorf("%q became %q", keep[i], d.Reason)
			}
			continue
		}
		if s := secrets[i-len(keep)]; strings.Contains(d.Reason+d.Notes[0].Reason, s) || !strings.Contains(d.Reason, "[secret removed]") {
			t.Errorf("kept %q: %q", s, d.Reason)
		}
	}
}
