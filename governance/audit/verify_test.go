package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/governance/audit/proof"
	"github.com/stokehold/stokehold/internal/natstest"
)

const stream = "STOKEHOLD_DECISIONS"

// scene is a log with checkpoints that a test tampers with.
type scene struct {
	t     *testing.T
	nc    *nats.Conn
	js    jetstream.JetStream
	log   *audit.JetStreamLog
	store *audit.DirStore
	dir   string
	keys  *proof.Keys
	seq   *audit.Sequencer
	n     int
}

func newScene(t *testing.T) *scene {
	t.Helper()
	srv := natstest.Start(t)
	s := &scene{t: t, nc: srv.Connect(), dir: t.TempDir()}
	var err error
	if s.js, err = jetstream.New(s.nc); err != nil {
		t.Fatal(err)
	}
	s.store = audit.NewDirStore(s.dir)
	if s.keys, err = proof.NewKeys("test/decisions"); err != nil {
		t.Fatal(err)
	}
	s.log = open(t, audit.Config{Conn: s.nc})
	s.seq = s.sequencer(s.store)
	return s
}

func (s *scene) sequencer(store audit.CheckpointStore) *audit.Sequencer {
	s.t.Helper()
	seq, err := audit.NewSequencer(audit.SequencerConfig{Reader: s.log.Reader, Store: store, Keys: s.keys})
	if err != nil {
		s.t.Fatal(err)
	}
	return seq
}

// append writes n messages of so many decisions each.
func (s *scene) append(messages, each int) {
	s.t.Helper()
	for range messages {
		ds := make([]governance.Decision, each)
		for i := range ds {
			s.n++
			ds[i] = decision(s.n, events.OnPublish, events.Allow)
		}
		if err := s.log.Append(context.Background(), ds); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *scene) sign() *proof.Record {
	s.t.Helper()
	rec, err := s.seq.Advance(context.Background(), true)
	if err != nil {
		s.t.Fatal(err)
	}
	return rec
}

// three checkpoints over 4 messages of 3 decisions each.
func (s *scene) fill() []*proof.Record {
	var recs []*proof.Record
	for range 3 {
		s.append(4, 3)
		recs = append(recs, s.sign())
	}
	return recs
}

func (s *scene) verify(cfg audit.VerifyConfig) *audit.Result {
	s.t.Helper()
	if cfg.Store == nil {
		cfg.Store = s.store
	}
	cfg.Keys = s.keys
	res, err := s.log.Verify(context.Background(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range res.Findings {
		s.t.Logf("%s: %s", f.Kind, f.Text)
	}
	return res
}

// expect verifies and wants findings of these kinds, in this order.
func (s *scene) expect(cfg audit.VerifyConfig, kinds ...audit.Kind) *audit.Result {
	s.t.Helper()
	res := s.verify(cfg)
	var got []audit.Kind
	for _, f := range res.Findings {
		got = append(got, f.Kind)
	}
	if !slices.Equal(got, kinds) {
		s.t.Fatalf("findings %v, want %v", got, kinds)
	}
	if errors.Is(res.Err(), audit.ErrTampered) != (len(kinds) > 0) {
		s.t.Fatalf("Err() = %v", res.Err())
	}
	return res
}

// raw is a message as an administrator sees it.
type raw struct {
	subject string
	header  nats.Header
	data    []byte
}

// rebuild does what an administrator of the server can: it replaces the stream by
// one with other content, which lets messages be deleted.
func (s *scene) rebuild(change func([]raw) []raw) {
	s.t.Helper()
	ctx := context.Background()
	old, err := s.js.Stream(ctx, stream)
	if err != nil {
		s.t.Fatal(err)
	}
	var all []raw
	for i := uint64(1); i <= old.CachedInfo().State.LastSeq; i++ {
		m, err := old.GetMsg(ctx, i)
		if err != nil {
			s.t.Fatal(err)
		}
		m.Header.Del("Nats-Msg-Id") // or else the server takes it for a duplicate
		all = append(all, raw{m.Subject, m.Header, m.Data})
	}
	cfg := old.CachedInfo().Config
	cfg.DenyDelete, cfg.DenyPurge = false, false
	if err := s.js.DeleteStream(ctx, stream); err != nil {
		s.t.Fatal(err)
	}
	// The server may still be removing the old one's files.
	_, err = s.js.CreateStream(ctx, cfg)
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		_, err = s.js.CreateStream(ctx, cfg)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	for _, m := range change(all) {
		if _, err := s.js.PublishMsg(ctx, &nats.Msg{Subject: m.subject, Header: m.header, Data: m.data}); err != nil {
			s.t.Fatal(err)
		}
	}
}

func same(ms []raw) []raw { return ms }

func (s *scene) stream() jetstream.Stream {
	s.t.Helper()
	st, err := s.js.Stream(context.Background(), stream)
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

func (s *scene) delete(sequences ...uint64) {
	s.t.Helper()
	for _, q := range sequences {
		if err := s.stream().DeleteMsg(context.Background(), q); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *scene) purge(opts ...jetstream.StreamPurgeOpt) {
	s.t.Helper()
	if err := s.stream().Purge(context.Background(), opts...); err != nil {
		s.t.Fatal(err)
	}
}

func where(t *testing.T, f audit.Finding, from, to int64, first, last uint64) {
	t.Helper()
	if f.From != from || f.To != to || f.FirstMessage != first || f.LastMessage != last {
		t.Errorf("found at entries [%d, %d), messages %d to %d; want [%d, %d), %d to %d", f.From, f.To, f.FirstMessage, f.LastMessage, from, to, first, last)
	}
}

func TestAnUntouchedLogVerifies(t *testing.T) {
	s := newScene(t)
	recs := s.fill()
	s.append(1, 5)
	res := s.expect(audit.VerifyConfig{})
	if res.Checkpoints != 3 || res.Entries != 36 || res.Messages != 13 || res.Pending != 5 || res.Expired != 0 || len(res.Weaknesses) != 0 {
		t.Errorf("result %+v", res)
	}
	if res.Last.Size != 36 || res.Last.Root != recs[2].Root {
		t.Errorf("last verified is of %d entries", res.Last.Size)
	}
	// Resumed, it reads what is new alone.
	s.append(2, 1)
	s.sign()
	res = s.expect(audit.VerifyConfig{Resume: res.Last.Signed, Witnessed: [][]byte{recs[0].Signed, recs[1].Signed}})
	if res.Messages != 3 || res.Entries != 7 || res.Last.Size != 43 {
		t.Errorf("resumed: %+v", res)
	}
}

func TestTheSameContentInAnotherStreamVerifies(t *testing.T) {
	s := newScene(t)
	s.fill()
	s.rebuild(same)
	res := s.expect(audit.VerifyConfig{})
	if len(res.Weaknesses) == 0 || !strings.Contains(res.Weaknesses[0], "deleted or purged") {
		t.Errorf("weaknesses %v", res.Weaknesses)
	}
}

func TestDeletionIsFound(t *testing.T) {
	t.Run("messages between", func(t *testing.T) {
		s := newScene(t)
		s.fill()
		s.rebuild(same)
		s.delete(6, 7)
		where(t, s.expect(audit.VerifyConfig{}, audit.Deleted).Findings[0], 15, 21, 6, 7)
	})
	t.Run("messages of two checkpoints", func(t *testing.T) {
		s := newScene(t)
		s.fill()
		s.rebuild(same)
		s.delete(4, 5)
		res := s.expect(audit.VerifyConfig{}, audit.Deleted, audit.Deleted)
		where(t, res.Findings[0], 9, 12, 4, 4)
		where(t, res.Findings[1], 12, 15, 5, 5)
	})
	t.Run("the oldest", func(t *testing.T) {
		s := newScene(t)
		s.fill()
		s.rebuild(same)
		s.purge(jetstream.WithPurgeSequence(6))
		res := s.expect(audit.VerifyConfig{}, audit.Deleted, audit.Deleted)
		where(t, res.Findings[0], 0, 12, 1, 4)
		where(t, res.Findings[1], 12, 15, 5, 5)
		if res.Expired != 0 {
			t.Errorf("%d are said to have expired", res.Expired)
		}
	})
	t.Run("and the stream rebuilt without a gap", func(t *testing.T) {
		s := newScene(t)
		s.fill()
		s.rebuild(func(ms []raw) []raw { return slices.Delete(ms, 5, 6) })
		f := s.verify(audit.VerifyConfig{}).Findings[0]
		if f.Kind != audit.Deleted || f.From != 15 || f.To != 18 {
			t.Errorf("found %+v", f)
		}
	})
	t.Run("not under a checkpoint yet", func(t *testing.T) {
		s := newScene(t)
		s.fill()
		s.append(3, 2)
		s.rebuild(same)
		s.delete(14)
		f := s.expect(audit.VerifyConfig{}, audit.Deleted).Findings[0]
		if f.FirstMessage != 14 || f.LastMessage != 14 {
			t.Errorf("found %+v", f)
		}
	})
	t.Run("all", func(t *testing.T) {
		s := newScene(t)
		s.fill()
		s.rebuild(same)
		s.purge()
		where(t, s.expect(audit.VerifyConfig{}, audit.TailCut).Findings[0], 0, 36, 1, 12)
	})
}

func TestATailCutIsFound(t *testing.T) {
	t.Run("by deletion", func(t *testing.T) {
		s := newScene(t)
		s.fill()
		s.rebuild(same)
		s.delete(11, 12)
		where(t, s.expect(audit.VerifyConfig{}, audit.TailCut).Findings[0], 30, 36, 11, 12)
	})
	t.Run("by another stream", func(t *testing.T) {
		s := newScene(t)
		s.fill()
		s.rebuild(func(ms []raw) []raw { return ms[:6] })
		where(t, s.expect(audit.VerifyConfig{}, audit.TailCut).Findings[0], 18, 36, 7, 12)
		if _, err := s.seq.Advance(context.Background(), true); !errors.Is(err, audit.ErrTampered) {
			t.Errorf("the sequencer says %v", err)
		}
	})
	t.Run("with its checkpoints", func(t *testing.T) {
		s := newScene(t)
		recs := s.fill()
		s.rebuild(func(ms []raw) []raw { return ms[:8] })
		emptied := audit.NewDirStore(t.TempDir())
		for _, r := range recs[:2] {
			put(t, emptied, r)
		}
		// Only who kept the newest can tell.
		s.expect(audit.VerifyConfig{Store: emptied})
		s.expect(audit.VerifyConfig{Store: emptied, Witnessed: [][]byte{recs[2].Signed}}, audit.TailCut)
		s.expect(audit.VerifyConfig{Store: emptied, Resume: recs[2].Signed}, audit.Checkpoint, audit.TailCut)
	})
	t.Run("not under a checkpoint yet", func(t *testing.T) {
		s := newScene(t)
		s.fill()
		s.append(2, 2)
		s.rebuild(same)
		s.delete(14)
		f := s.expect(audit.VerifyConfig{}, audit.TailCut).Findings[0]
		if f.FirstMessage != 14 {
			t.Errorf("found %+v", f)
		}
	})
}

func TestAnEditIsFound(t *testing.T) {
	s := newScene(t)
	s.fill()
	s.rebuild(func(ms []raw) []raw {
		// The subject of entry 16, the second of message 6. Its length stays.
		edited := strings.Replace(string(ms[5].data), "ev-17", "ev-71", 1)
		if edited == string(ms[5].data) {
			t.Fatal("nothing was edited")
		}
		ms[5].data = []byte(edited)
		return ms
	})
	where(t, s.expect(audit.VerifyConfig{}, audit.Edited).Findings[0], 16, 17, 6, 6)
	t.Run("beyond reading", func(t *testing.T) {
		s.rebuild(func(ms []raw) []raw { ms[5].data = []byte("?"); return ms })
		f := s.verify(audit.VerifyConfig{}).Findings[0]
		if f.Kind != audit.Edited || f.FirstMessage != 6 || f.LastMessage != 6 {
			t.Errorf("found %+v", f)
		}
	})
}

func TestAReorderIsFound(t *testing.T) {
	s := newScene(t)
	s.fill()
	s.rebuild(func(ms []raw) []raw { ms[5], ms[6] = ms[6], ms[5]; return ms })
	where(t, s.expect(audit.VerifyConfig{}, audit.Reordered).Findings[0], 15, 21, 6, 7)
}

func TestAnInsertionIsFound(t *testing.T) {
	s := newScene(t)
	s.fill()
	s.rebuild(func(ms []raw) []raw { return slices.Insert(ms, 6, ms[0]) })
	f := s.verify(audit.VerifyConfig{}).Findings[0]
	if f.Kind != audit.Inserted || f.From != 18 || f.FirstMessage != 7 {
		t.Errorf("found %+v", f)
	}
}

func TestAForkIsFound(t *testing.T) {
	s := newScene(t)
	recs := s.fill()
	// A second history that parts from the first after its first checkpoint.
	s.rebuild(func(ms []raw) []raw { return ms[:4] })
	s.n = 100
	s.append(8, 3)

	// The sequencer refuses to sign it beside the first, also a new one.
	if _, err := s.seq.Advance(context.Background(), true); err != nil && !errors.Is(err, audit.ErrTampered) {
		t.Fatal(err)
	}
	_, err := s.sequencer(s.store).Advance(context.Background(), true)
	if !errors.Is(err, proof.ErrFork) || !errors.Is(err, audit.ErrTampered) {
		t.Errorf("a new sequencer says %v", err)
	}
	names, err := s.store.Names(context.Background())
	if err != nil || len(names) != 3 {
		t.Fatalf("records %v, %v: something was signed", names, err)
	}
	first := s.verify(audit.VerifyConfig{}).Findings
	if len(first) != 2 || first[0].Kind != audit.Edited || first[0].From != 12 {
		t.Errorf("against the first history: %+v", first)
	}

	// With another store it is signed, and both histories cannot be had.
	other := audit.NewDirStore(t.TempDir())
	put(t, other, recs[0])
	forked, err := s.sequencer(other).Advance(context.Background(), true)
	if err != nil {
		t.Fatal(err)
	}
	s.expect(audit.VerifyConfig{Store: other})
	s.expect(audit.VerifyConfig{Store: other, Witnessed: [][]byte{recs[0].Signed}})
	f := s.expect(audit.VerifyConfig{Store: other, Witnessed: [][]byte{recs[1].Signed}}, audit.Forked).Findings[0]
	if f.To != 24 {
		t.Errorf("found %+v", f)
	}
	// Put together, the two disagree whatever the stream says.
	put(t, s.store, forked)
	kinds := s.verify(audit.VerifyConfig{}).Findings
	if !slices.ContainsFunc(kinds, func(f audit.Finding) bool { return f.Kind == audit.Forked }) {
		t.Errorf("found %+v", kinds)
	}
}

func put(t *testing.T, store audit.CheckpointStore, rec *proof.Record) {
	t.Helper()
	b, err := rec.Marshal()
	if err == nil {
		err = store.Put(context.Background(), rec.Name(), b)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestCheckpointsThatAreGoneOrForgedAreFound(t *testing.T) {
	s := newScene(t)
	recs := s.fill()
	without := audit.NewDirStore(t.TempDir())
	put(t, without, recs[0])
	put(t, without, recs[2])
	s.expect(audit.VerifyConfig{Store: without}, audit.Checkpoint)

	// A thief of the log's credential has no key.
	thief := newScene(t)
	thief.fill()
	stranger := *s
	stranger.keys = thief.keys
	found := stranger.verify(audit.VerifyConfig{}).Findings
	if len(found) != 3 || found[0].Kind != audit.Checkpoint || !strings.Contains(found[0].Text, "trusted") {
		t.Errorf("found %+v", found)
	}
	empty := audit.NewDirStore(t.TempDir())
	s.expect(audit.VerifyConfig{Store: empty}, audit.Checkpoint)
}

func TestWhatRetentionDroppedIsToldFromDeletion(t *testing.T) {
	s := newScene(t)
	recs := s.fill()
	s.rebuild(same)
	s.purge(jetstream.WithPurgeSequence(6)) // as the server does once they are old enough
	later := func(since time.Time) func() time.Time {
		return func() time.Time { return since.Add(audit.RetentionFloor) }
	}
	// All of it was stored before the cut-off.
	res := s.expect(audit.VerifyConfig{Now: later(time.Now())})
	if res.Expired != 15 || res.Uncertain != 9 || res.Entries != 12 || res.Last.Size != 36 {
		t.Errorf("result %+v", res)
	}
	// The first checkpoint's entries were, and those of the second were not.
	res = s.expect(audit.VerifyConfig{Now: later(recs[0].Stored)}, audit.Deleted)
	if res.Expired != 12 {
		t.Errorf("result %+v", res)
	}
	where(t, res.Findings[0], 12, 15, 5, 5)
	// What is newer can't have expired with it.
	s.delete(8)
	s.expect(audit.VerifyConfig{Now: later(time.Now())})
	s.delete(11)
	where(t, s.expect(audit.VerifyConfig{Now: later(time.Now())}, audit.Deleted).Findings[0], 30, 33, 11, 11)
}

func TestVerificationSaysWhatItNeeds(t *testing.T) {
	s := newScene(t)
	_, err := s.log.Verify(context.Background(), audit.VerifyConfig{Keys: s.keys})
	if !errors.Is(err, audit.ErrConfig) {
		t.Error(err)
	}
	r, err := audit.NewReader(s.nc, "elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = r.Verify(context.Background(), audit.VerifyConfig{Keys: s.keys, Store: s.store}); !errors.Is(err, audit.ErrNoLog) {
		t.Error(err)
	}
}

func ExampleReader_Verify() {
	err := natstest.Scratch(func(ctx context.Context, conn *nats.Conn, dir string) error {
		log, err := audit.Open(ctx, audit.Config{Conn: conn})
		if err != nil {
			return err
		}
		defer func() { _ = log.Close(ctx) }()
		d := governance.Decision{ID: "4bf92f3577b34da6a3ce929d0e0e4736", Time: time.Now(), Point: events.OnPublish, Action: events.Allow}
		if err := log.Append(ctx, []governance.Decision{d}); err != nil {
			return err
		}

		keys, err := proof.NewKeys("example.org/decisions")
		if err != nil {
			return err
		}
		store := audit.NewDirStore(dir + "/checkpoints")
		seq, err := audit.NewSequencer(audit.SequencerConfig{Reader: log.Reader, Store: store, Keys: keys})
		if err != nil {
			return err
		}
		if _, err := seq.Advance(ctx, true); err != nil {
			return err
		}

		result, err := log.Verify(ctx, audit.VerifyConfig{Store: store, Keys: keys})
		if err != nil {
			return err
		}
		fmt.Println(result.Entries, "entries,", result.Checkpoints, "checkpoints,", len(result.Findings), "findings")
		inclusion, err := log.Prove(ctx, d.ID, store, keys)
		if err != nil {
			return err
		}
		checkpoint, err := inclusion.Check(keys)
		fmt.Println("entry", inclusion.Index, "of", checkpoint.Size, err)
		return err
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// 1 entries, 1 checkpoints, 0 findings
	// entry 0 of 1 <nil>
}
