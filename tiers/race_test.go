package tiers_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

// actor is one attempt at writing the dataset. It stops at every step of the
// protocol until the schedule lets it go on, or kills it.
type actor struct {
	n      int
	store  *tiers.Store
	at     chan string // where it stopped; closed when it has ended
	resume chan error
	wrote  map[uint64]string // what WriteAt reported as stored, by sequence
}

var errKilled = errors.New("killed")

func (a *actor) pause(point string) error {
	a.at <- point
	return <-a.resume
}

// run writes until the dataset has goal batches, each marked with the attempt's
// number by its rows.
func (a *actor) run(w *world, name string, goal uint64) error {
	defer close(a.at)
	if err := a.pause("start"); err != nil {
		return nil
	}
	wr, err := a.store.Writer(w.ctx, name, schema, fence("run", a.n))
	if err != nil {
		return ending(err)
	}
	for wr.Next() < goal {
		seq := wr.Next()
		rec := batch(seq, 1+a.n)
		ref, err := wr.WriteAt(w.ctx, seq, rec)
		rec.Release()
		if err != nil {
			return ending(err)
		}
		a.wrote[seq] = st(ref, arrowio.Warm).SHA256
	}
	return nil
}

func ending(err error) error {
	if errors.Is(err, tiers.ErrFenced) || errors.Is(err, errKilled) {
		return nil
	}
	return err
}

// Three attempts interleaved in every way that the steps of the protocol allow,
// some killed on the way: the committed sequence has no gap, every batch is one
// attempt's, whoever was told that its batch is stored has it stored, and each is
// announced once.
func TestWritersInterleaved(t *testing.T) {
	w := newWorld(t)
	const attempts, goal = 3, 3
	stores := make([]*tiers.Store, attempts)
	for i := range stores {
		stores[i], _ = w.store(0)
	}
	final, _ := w.store(0)
	var names []string
	rapid.Check(t, func(t *rapid.T) {
		name := fmt.Sprintf("race/%d", len(names))
		names = append(names, name)
		actors := map[int]*actor{}
		var wg sync.WaitGroup
		for i := range attempts {
			a := &actor{n: i + 1, store: stores[i], at: make(chan string), resume: make(chan error), wrote: map[uint64]string{}}
			tiers.SetFault(a.store, a.pause)
			actors[i] = a
			wg.Go(func() {
				if err := a.run(w, name, goal); err != nil {
					w.tb.Errorf("attempt %d: %v", a.n, err)
				}
			})
			<-a.at // "start"
		}
		all := []*actor{actors[0], actors[1], actors[2]}
		for len(actors) > 0 {
			i := rapid.SampledFrom(slices.Sorted(maps.Keys(actors))).Draw(t, "next")
			var verdict error
			if rapid.IntRange(0, 19).Draw(t, "fate") == 0 {
				verdict = errKilled
			}
			actors[i].resume <- verdict
			if _, alive := <-actors[i].at; !alive {
				delete(actors, i)
			}
		}
		wg.Wait()
		// Whoever comes last completes the dataset.
		last := &actor{n: attempts + 1, store: final, wrote: map[uint64]string{}}
		wr, err := final.Writer(w.ctx, name, schema, fence("run", last.n))
		if err != nil {
			t.Fatal(err)
		}
		if wr.Base() != 0 {
			t.Fatalf("base %d", wr.Base())
		}
		for wr.Next() < goal {
			rec := batch(wr.Next(), 1+last.n)
			if _, err := wr.WriteAt(w.ctx, wr.Next(), rec); err != nil {
				t.Fatal(err)
			}
			rec.Release()
		}
		head, err := final.Head(w.ctx, name)
		if err != nil || head.Next != goal {
			t.Fatalf("head %+v, %v", head, err)
		}
		rows := int64(0)
		owner := int64(0)
		for seq := range uint64(goal) {
			ref, err := final.Ref(w.ctx, name, seq)
			if err != nil {
				t.Fatal(err)
			}
			rows += ref.Rows
			// Rows say whose batch it is: attempts follow one another, so owners never
			// go back.
			if ref.Rows < owner {
				t.Fatalf("batch %d is attempt %d's, after attempt %d's", seq, ref.Rows-1, owner-1)
			}
			owner = ref.Rows
			b, err := final.OpenBatch(w.ctx, ref, false)
			if err != nil {
				t.Fatal(err)
			}
			want := batch(seq, int(ref.Rows))
			if err := tiers.SameRecord(want, b.Record); err != nil {
				t.Fatalf("batch %d: %v", seq, err)
			}
			want.Release()
			b.Release()
			for _, a := range all {
				if sum, ok := a.wrote[seq]; ok && sum != st(ref, arrowio.Warm).SHA256 {
					t.Fatalf("attempt %d was told that batch %d is stored, and it is another's", a.n, seq)
				}
			}
		}
		if rows != head.Rows {
			t.Fatalf("batches have %d rows, the head says %d", rows, head.Rows)
		}
	})
	got := w.published(events.TypeBatchPublished)
	for _, name := range names {
		for seq := range goal {
			if id := fmt.Sprintf("%s#%d", name, seq); got[id] != 1 {
				t.Errorf("%s announced %d times", id, got[id])
			}
		}
	}
}

// The same without a schedule, for the race detector.
func TestWritersAtOnce(t *testing.T) {
	w := newWorld(t)
	const goal = 12
	var wg sync.WaitGroup
	for i := range 4 {
		s, _ := w.store(64 << 10)
		wg.Go(func() {
			for attempt := 1; attempt < 200; attempt++ { // fenced: try again, as a workflow would
				wr, err := s.Writer(w.ctx, dataset, schema, fence(fmt.Sprint("run-", i), attempt))
				for err == nil && wr.Next() < goal {
					rec := batch(wr.Next(), 100)
					_, err = wr.WriteAt(w.ctx, wr.Next(), rec)
					rec.Release()
				}
				if err == nil {
					return
				}
				if !errors.Is(err, tiers.ErrFenced) {
					t.Error(err)
					return
				}
			}
			t.Error("never got through")
		})
	}
	wg.Wait()
	s, _ := w.store(0)
	seq := uint64(0)
	for b, err := range s.Batches(w.ctx, dataset, 0, goal, false) {
		if err != nil {
			t.Fatal(err)
		}
		same(t, b.Record, seq, 100)
		seq++
	}
	got := w.published(events.TypeBatchPublished)
	if len(got) != goal {
		t.Errorf("announced %v", got)
	}
	for id, n := range got {
		if n != 1 {
			t.Errorf("%s announced %d times", id, n)
		}
	}
}
