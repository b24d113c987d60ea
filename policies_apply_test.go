package stokehold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/bundle"
	"github.com/stokehold/stokehold/internal/natstest"
)

// permitted runs a server whose users are roles with the permissions that
// events.Permissions gives them, and returns how each connects.
func permitted(t *testing.T, roles ...events.Role) map[events.Role]NATS {
	t.Helper()
	out := map[events.Role]NATS{}
	var users strings.Builder
	for _, role := range roles {
		g, err := events.Permissions(events.Access{Role: role})
		if err != nil {
			t.Fatal(err)
		}
		out[role] = NATS{User: string(role), Password: Secret(role), Inbox: g.Inbox}
		fmt.Fprintf(&users, "{user: %q, password: %q, %s}\n", role, role, g.Config())
	}
	srv := natstest.Start(t, natstest.Users(t, users.String()))
	for role, n := range out {
		n.URL = srv.URL()
		out[role] = n
	}
	return out
}

// hosting is an App with all but Temporal.
func hosting(t *testing.T, cfg Config, opts ...Option) *App {
	t.Helper()
	a := &App{cfg: cfg.withDefaults()}
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
		defer cancel()
		if err := a.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := a.connectNATS(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	a.nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("as %s: %v", cfg.NATS.User, err)
		}
	})
	for _, open := range []func(context.Context, options) error{a.openBus, a.openData} {
		if err := open(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func subjectPolicy(subject string) governance.Source {
	return governance.Source{Name: "runs.yaml", Data: fmt.Appendf(nil, `apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: runs}
spec:
  match: {types: [run.started], points: [publish]}
  rules:
    - {name: subject, expression: "event.subject == '%s'", message: another run}
`, subject)}
}

func (a *App) start(t *testing.T, run string) error {
	t.Helper()
	ev, err := events.New(events.TypeRunStarted, "stokehold/test", run, "start-"+run+time.Now().String(), time.Now(), events.RunStarted{Pipeline: "p", Run: run})
	if err != nil {
		t.Fatal(err)
	}
	return a.Bus.Publish(t.Context(), ev)
}

// A gate may do all that a process does, and follows the bundles that an author
// applies; each has the permissions of its role alone.
func TestAGateFollowsWhatAnAuthorApplies(t *testing.T) {
	as := permitted(t, events.RoleGate, events.RolePolicyAuthor)
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "runs.yaml"), subjectPolicy("first").Data, 0o600); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	cfg := Config{NATS: as[events.RoleGate], StateDir: state, Policies: []string{files}, HotBytes: 1 << 20, NoPeers: true, Log: slog.New(slog.DiscardHandler)}
	gate := hosting(t, cfg)
	if err := gate.start(t, "first"); err != nil {
		t.Fatalf("by the files: %v", err)
	}
	if err := gate.start(t, "second"); !errors.Is(err, events.ErrDenied) {
		t.Fatalf("by the files: %v", err)
	}

	key, err := bundle.ReadSigningKey(filepath.Join(state, PolicyKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	desk, err := ConnectPolicies(t.Context(), Config{NATS: as[events.RolePolicyAuthor], StateDir: state, Policies: []string{files}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := desk.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	before, err := desk.InForce(t.Context())
	if err != nil || before.Bundle != nil || len(before.Sources) != 1 {
		t.Fatalf("%+v, %v", before, err)
	}
	apply := func(version uint64, run string) {
		t.Helper()
		f, err := desk.InForce(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b, err := bundle.Create(bundle.Draft{Position: bundle.Next(f.Bundle, version), Created: time.Now(), Author: "a test", Types: desk.Types, Sources: []governance.Source{subjectPolicy(run)}}, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := desk.Apply(t.Context(), b, f.Revision, false); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for gate.Policies.Status().Position != b.Position {
			if time.Since(began) > 20*time.Second {
				t.Fatalf("version %d is not in force: %+v", version, gate.Policies.Status())
			}
			<-time.After(time.Millisecond)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("version %d was in force after %s", version, took)
		}
	}
	apply(1, "second")
	if err := gate.start(t, "second"); err != nil {
		t.Errorf("by the bundle: %v", err)
	}
	if err := gate.start(t, "first"); !errors.Is(err, events.ErrDenied) {
		t.Errorf("by the bundle: %v", err)
	}
	apply(2, "third")
	recorded := 0
	for d, err := range gate.Decisions.Read(t.Context(), time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if d.Code == bundle.CodeApplied {
			recorded++
		}
	}
	if recorded != 2 {
		t.Errorf("%d of 2 bundles on record", recorded)
	}

	// Another process begins with the bundle, not with its files, and honours what was
	// stamped before it was there.
	cfg.StateDir, cfg.PolicyKeys, cfg.Key = t.TempDir(), filepath.Join(state, PolicyTrustFile), Secret(readFile(t, filepath.Join(state, keyFile)))
	other := hosting(t, cfg)
	if err := other.start(t, "third"); err != nil {
		t.Error(err)
	}
	seen := map[string]bool{}
	for d, err := range other.Bus.Replay(t.Context(), events.Subscription{Types: []string{events.TypeRunStarted}}) {
		if err == nil {
			seen[d.Subject()] = true
		}
	}
	// The first was stamped by the files of another process: nobody tells this one of
	// them. The second by a bundle, which is in the store's history.
	if !seen["second"] || !seen["third"] || len(seen) != 2 {
		t.Errorf("honoured %v", seen)
	}
	// What an observer sees, it judges by the bundle, too.
	observer := hosting(t, Config{NATS: as[events.RoleGate], StateDir: state, NoPeers: true}, Observing())
	if s := observer.Policies.Status(); s.Position.Version != 2 {
		t.Errorf("%+v", s)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
