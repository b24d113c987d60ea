package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/audit/proof"
	"github.com/stokehold/stokehold/internal/natstest"
)

// Several processes append to one log at once, two sequencers sign it meanwhile,
// and all of it is one tree that a verifier comes to as well.
func TestConcurrentProcessesMakeOneTree(t *testing.T) {
	const processes, calls, each = 4, 40, 25
	srv := natstest.Start(t)
	keys, err := proof.NewKeys("test/decisions")
	if err != nil {
		t.Fatal(err)
	}
	store := audit.NewDirStore(t.TempDir())
	var seqs []*audit.Sequencer
	for range 2 {
		r, err := audit.NewReader(srv.Connect(), "")
		if err != nil {
			t.Fatal(err)
		}
		s, err := audit.NewSequencer(audit.SequencerConfig{Reader: r, Store: store, Keys: keys, MaxEntries: 300, MaxDelay: 20 * time.Millisecond, Poll: 2 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, s)
	}
	var logs []*audit.JetStreamLog
	for range processes { // each with a connection, queue and workers of its own, as a process has
		logs = append(logs, open(t, audit.Config{Conn: srv.Connect(), InFlight: 4}))
	}
	for _, s := range seqs {
		s.Start()
	}
	var work sync.WaitGroup
	var failed atomic.Int64
	for p, l := range logs {
		for c := range calls {
			work.Go(func() {
				ds := make([]governance.Decision, each)
				for i := range ds {
					ds[i] = decision((p*calls+c)*each+i, events.OnPublish, []events.Action{events.Allow, events.Deny, events.Warn}[i%3])
				}
				if err := l.Append(context.Background(), ds); err != nil {
					failed.Add(1)
				}
			})
		}
	}
	work.Wait()
	if failed.Load() > 0 {
		t.Fatalf("%d calls failed", failed.Load())
	}
	for _, s := range seqs {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if err := s.Err(); err != nil {
			t.Errorf("a sequencer gave up: %v", err)
		}
	}
	res, err := logs[0].Verify(context.Background(), audit.VerifyConfig{Store: store, Keys: keys})
	if err != nil || res.Err() != nil {
		t.Fatalf("%v, %v", err, res.Err())
	}
	if res.Entries != processes*calls*each || res.Pending != 0 || res.Checkpoints < 3 {
		t.Errorf("result %+v", res)
	}
	// Any decision of any process can be proven.
	for _, i := range []int{0, 1234, processes*calls*each - 1} {
		p, err := logs[1].Prove(context.Background(), fmt.Sprintf("%032x", i), store, keys)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Check(keys); err != nil || p.Entry.EventID != fmt.Sprintf("ev-%d", i) {
			t.Errorf("%+v, %v", p.Entry, err)
		}
	}
}

// brokenStore loses its connection.
type brokenStore struct {
	audit.CheckpointStore
	broken atomic.Bool
}

var errBroken = errors.New("the store is away")

func (s *brokenStore) Put(ctx context.Context, name string, record []byte) error {
	if s.broken.Load() {
		return errBroken
	}
	return s.CheckpointStore.Put(ctx, name, record)
}

func TestACheckpointThatIsNotStoredIsSignedAgain(t *testing.T) {
	s := newScene(t)
	store := &brokenStore{CheckpointStore: s.store}
	seq := s.sequencer(store)
	s.append(2, 3)
	if _, err := seq.Advance(context.Background(), true); err != nil {
		t.Fatal(err)
	}
	s.append(2, 3)
	store.broken.Store(true)
	if _, err := seq.Advance(context.Background(), true); !errors.Is(err, errBroken) {
		t.Fatalf("got %v", err)
	}
	store.broken.Store(false)
	rec, err := seq.Advance(context.Background(), true)
	if err != nil || rec.Size != 12 || rec.Since != 6 {
		t.Fatalf("%+v, %v", rec, err)
	}
	s.expect(audit.VerifyConfig{})
}

func TestCheckpointsAreDueByEntriesAndByTime(t *testing.T) {
	s := newScene(t)
	var signed []int64
	seq, err := audit.NewSequencer(audit.SequencerConfig{
		Reader: s.log.Reader, Store: s.store, Keys: s.keys, MaxEntries: 10, MaxDelay: time.Hour,
		OnCheckpoint: func(r *proof.Record) { signed = append(signed, r.Size) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.append(7, 4)
	if _, err := seq.Advance(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(signed) != "[12 24]" { // at the ends of messages
		t.Errorf("signed at %v", signed)
	}
	hurried, err := audit.NewSequencer(audit.SequencerConfig{Reader: s.log.Reader, Store: s.store, Keys: s.keys, MaxDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		rec, err := hurried.Advance(context.Background(), false)
		if err != nil {
			t.Fatal(err)
		}
		if rec != nil && rec.Size == 28 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no checkpoint for what is old enough")
		}
	}
	s.expect(audit.VerifyConfig{})
}

func TestASequencerFindsAnEmptiedStore(t *testing.T) {
	s := newScene(t)
	s.fill()
	names, err := s.store.Names(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := os.Remove(filepath.Join(s.dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	s.append(1, 1)
	if _, err := s.seq.Advance(context.Background(), true); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("got %v", err)
	}
}

func TestNewSequencerNamesEveryFault(t *testing.T) {
	_, err := audit.NewSequencer(audit.SequencerConfig{MaxEntries: -1, MaxDelay: -1})
	if !errors.Is(err, audit.ErrConfig) {
		t.Fatal(err)
	}
	for _, want := range []string{"Reader", "Store", "Keys", "MaxEntries", "MaxDelay"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
}
