package audit_test

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/stokehold/stokehold/internal/smalldisk"
)

// bulky are decisions that fill a disk soon.
func bulky(from, n int) []governance.Decision {
	ds := make([]governance.Decision, n)
	for i := range ds {
		ds[i] = decision(from+i, events.OnPublish, events.Deny)
		ds[i].Reason = strings.Repeat(ds[i].ID+" ", 15)
	}
	return ds
}

// fill appends until the log refuses, and returns how many decisions it took.
func fill(t *testing.T, l *audit.JetStreamLog) int {
	t.Helper()
	for n := 0; n < 400_000; n += 200 {
		if err := l.Append(context.Background(), bulky(n, 200)); err != nil {
			if !errors.Is(err, governance.ErrLog) {
				t.Fatalf("got %v, want ErrLog", err)
			}
			t.Logf("full after %d decisions: %v", n, err)
			return n
		}
	}
	t.Fatal("the log took everything")
	return 0
}

// nothingPasses judges events that all policies allow. The first few decisions may
// be small enough to fit yet.
func nothingPasses(t *testing.T, l *audit.JetStreamLog) {
	t.Helper()
	e := engine(t, l, "")
	for i := range 5000 {
		ev, err := events.New("batch.published", "stokehold/flights", "features", fmt.Sprintf("b#%d", i), time.Now(), map[string]int{"rows": 1})
		if err != nil {
			t.Fatal(err)
		}
		vs, err := e.Judge(context.Background(), events.OnPublish, []*events.Event{&ev})
		if err == nil {
			continue
		}
		if !errors.Is(err, governance.ErrLog) || vs != nil {
			t.Errorf("judged with a full log: %v, %v", vs, err)
		}
		if _, ok := ev.Extensions()[governance.ExtStamp]; ok {
			t.Error("an event was stamped whose decision is not in the log")
		}
		return
	}
	t.Error("a full log took 5,000 more decisions")
}

// engine is one over the log, with a policy or, without, none.
func engine(t *testing.T, l *audit.JetStreamLog, policy string) *governance.Engine {
	t.Helper()
	var sources []governance.Source
	if policy != "" {
		sources = append(sources, governance.Source{Name: "p.yaml", Data: []byte(policy)})
	}
	set, err := governance.Load(governance.Options{}, sources...)
	if err != nil {
		t.Fatal(err)
	}
	key, err := governance.NewKey("k1")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := governance.NewKeyRing(key)
	if err != nil {
		t.Fatal(err)
	}
	e, err := governance.NewEngine(governance.Config{Policies: set, Log: l, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// intact checks that the log holds all that it acknowledged, and verifies.
func intact(t *testing.T, l *audit.JetStreamLog, acknowledged int) {
	t.Helper()
	seen := map[string]bool{}
	for _, d := range readAll(t, l, time.Time{}) {
		seen[d.ID] = true
	}
	for _, d := range bulky(0, acknowledged) {
		if !seen[d.ID] {
			t.Fatalf("decision %s was acknowledged and is gone", d.ID)
		}
	}
	keys, err := proof.NewKeys("test/decisions")
	if err != nil {
		t.Fatal(err)
	}
	store := audit.NewDirStore(t.TempDir())
	seq, err := audit.NewSequencer(audit.SequencerConfig{Reader: l.Reader, Store: store, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seq.Advance(context.Background(), true); err != nil {
		t.Fatal(err)
	}
	res, err := l.Verify(context.Background(), audit.VerifyConfig{Store: store, Keys: keys})
	if err != nil || res.Err() != nil {
		t.Errorf("%v, %v", err, res.Err())
	}
}

// A stream at its limit refuses; it does not drop what is old to make room. Raising
// the limit mends it.
func TestAFullStreamLetsNothingPass(t *testing.T) {
	nc := natstest.Start(t).Connect()
	l := open(t, audit.Config{Conn: nc, MaxBytes: 2 << 20, Timeout: time.Second})
	n := fill(t, l)
	nothingPasses(t, l)
	open(t, audit.Config{Conn: nc, MaxBytes: 64 << 20})
	if err := l.Append(context.Background(), bulky(n, 200)); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	if err := l.Probe(context.Background()); err != nil {
		t.Error(err)
	}
	intact(t, l, n+200)
}

// A disk that is full under the server: nothing passes, nothing acknowledged is
// lost, Probe tells, and what mends it is room and, if Probe says so, a restart.
func TestAFullDiskLetsNothingPass(t *testing.T) {
	disk := t.TempDir()
	smalldisk.Mount(t, disk, 32<<20)
	// The server is told of more room than there is, as after something else took it.
	srv := natstest.Start(t, natstest.StoreDir(filepath.Join(disk, "js")), natstest.MaxStore(1<<30), natstest.SyncAlways())
	l := open(t, audit.Config{Conn: srv.Connect(), Timeout: 2 * time.Second})
	if err := l.Append(context.Background(), bulky(0, 200)); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(disk, "ballast")
	occupy(t, ballast)
	n := fill(t, l)
	nothingPasses(t, l)
	if err := l.Probe(context.Background()); !errors.Is(err, governance.ErrLog) {
		t.Errorf("a probe of a full disk: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := l.Probe(context.Background()); err != nil {
		t.Logf("room alone does not mend it: %v", err)
		srv.Restart()
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := l.Probe(context.Background())
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not mended by room and a restart: %v", err)
		}
	}
	if err := l.Append(context.Background(), bulky(n, 200)); err != nil {
		t.Fatal(err)
	}
	intact(t, l, n+200)
}
