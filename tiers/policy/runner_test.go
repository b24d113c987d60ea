package policy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/policy"
)

// room is a catalog with a directory, an arena and readers.
type room struct {
	catalog
	leases      map[string][]tiers.Leased
	warm        int64
	used, arena int64
	trimmed     int64
	expired     []policy.Task
}

func (r *room) Leases(_ context.Context, dataset string) ([]tiers.Leased, error) {
	return r.leases[dataset], nil
}
func (r *room) WarmBytes(context.Context) (int64, error)       { return r.warm, nil }
func (r *room) HasWarm(_ arrowio.Ref, l arrowio.Location) bool { return l.URI != "elsewhere" }
func (r *room) ArenaBytes() (used, size int64)                 { return r.used, r.arena }
func (r *room) TrimHot(most int64) int                         { r.trimmed, r.used = most, most; return 1 }
func (r *room) Expire(_ context.Context, dataset string, from, to uint64, _ string) (int, error) {
	r.expired = append(r.expired, policy.Task{Dataset: dataset, From: from, To: to})
	return int(to - from), nil
}

func parse(t *testing.T, spec string) func() *policy.Set {
	t.Helper()
	set, err := policy.Parse(governance.Source{Name: "p.yaml", Data: []byte("apiVersion: stokehold.dev/v1\nkind: TierPolicy\nmetadata: {name: p}\nspec: " + spec + "\n")})
	if err != nil {
		t.Fatal(err)
	}
	return func() *policy.Set { return set }
}

func sequences(tasks []policy.Task) []uint64 {
	var out []uint64
	for _, task := range tasks {
		for seq := task.From; seq < task.To; seq++ {
			out = append(out, seq)
		}
	}
	return out
}

// A clock that is set forward or back by an hour ends nothing before its time: batch
// 7 has a minute to go. Only one that is off by more than ClockStep would.
func TestClockMovedByAnHourExpiresNothingEarly(t *testing.T) {
	rules := parse(t, "{rules: [{name: ttl, when: age > 3 * day, action: expire}]}")
	for moved, want := range map[time.Duration][]uint64{
		0: {0, 1, 2, 3, 4, 5, 6}, time.Hour: {0, 1, 2, 3, 4, 5, 6}, -time.Hour: {0, 1, 2, 3, 4, 5, 6},
		policy.ClockStep + time.Hour: {0, 1, 2, 3, 4, 5, 6, 7},
	} {
		store := &room{catalog: warmDays("flights")}
		store.batches["flights"][7].Committed = now.Add(time.Minute - 3*day)
		r := policy.Runner{Store: store, Policies: rules, Clock: func() time.Time { return now.Add(moved) }}
		step, err := r.PlanTiers(t.Context(), policy.Cursor{})
		if got := sequences(step.Tasks); err != nil || !step.Done || !reflect.DeepEqual(got, want) {
			t.Errorf("clock moved by %v: %v expire, %v, want %v", moved, got, err, want)
		}
	}
}

// The clocks of a writer, a reader and of who plans may be off by an hour in any way:
// batch 7 has a minute to go, and so has 8 since it was read.
func TestClocksOfOthersExpireNothingEarly(t *testing.T) {
	rules := parse(t, "{rules: [{name: ttl, when: age > 3 * day || idle > day, action: expire}]}")
	off := []time.Duration{0, time.Hour, -time.Hour}
	for _, mine := range off {
		for _, theirs := range off {
			store := &room{catalog: warmDays("flights")}
			for i := range store.batches["flights"] {
				store.batches["flights"][i].Read = now.Add(theirs)
			}
			store.batches["flights"][7].Committed = now.Add(time.Minute - 3*day + theirs)
			store.batches["flights"][8].Read = now.Add(time.Minute - day + theirs)
			r := policy.Runner{Store: store, Policies: rules, Clock: func() time.Time { return now.Add(mine) }}
			step, err := r.PlanTiers(t.Context(), policy.Cursor{})
			if got, want := sequences(step.Tasks), []uint64{0, 1, 2, 3, 4, 5, 6}; err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("mine is off by %v, theirs by %v: %v expire, %v, want %v", mine, theirs, got, err, want)
			}
		}
	}
}

// Where readers are says when batches are needed: one reads in sequence from 2 on, a
// batch in a minute, one holds 9, and one will read 0 at some time.
func TestNextUse(t *testing.T) {
	store := &room{catalog: warmDays("flights"), leases: map[string][]tiers.Leased{"flights": {
		{From: 2, To: 4, Reads: &tiers.Reads{At: 2, To: 8, PerSecond: 1. / 60}},
		{From: 9, To: 10},
		{Reads: &tiers.Reads{At: 0, To: 1, Later: true}},
	}}}
	for _, c := range []struct {
		when string
		want []uint64
	}{
		{"next < 0", []uint64{1, 8}},
		{"next == 0", []uint64{0, 2, 9}},
		{"next > 0 && next <= 3 * minute", []uint64{3, 4, 5}},
		{"next > 3 * minute", []uint64{6, 7}},
	} {
		r := policy.Runner{Store: store, Clock: func() time.Time { return now }, Policies: parse(t, "{rules: [{name: r, when: '"+c.when+"', action: evict}]}")}
		step, err := r.PlanTiers(t.Context(), policy.Cursor{})
		if err != nil || !reflect.DeepEqual(sequences(step.Tasks), c.want) {
			t.Errorf("%s: %v, %v, want %v", c.when, sequences(step.Tasks), err, c.want)
		}
	}
	// A lease that nobody understands keeps all.
	store.leases["flights"] = append(store.leases["flights"], tiers.Leased{Reads: &tiers.Reads{To: 9, Order: json.RawMessage(`{"order":{"kind":"spiral"}}`)}})
	r := policy.Runner{Store: store, Clock: func() time.Time { return now }, Policies: parse(t, "{rules: [{name: r, when: next != 0, action: evict}]}")}
	if step, err := r.PlanTiers(t.Context(), policy.Cursor{}); err != nil || len(step.Tasks) != 0 {
		t.Errorf("%v leave, %v", sequences(step.Tasks), err)
	}
}

// What a reader holds is needed now; pressure is that of the directory.
func TestFactsOfAStep(t *testing.T) {
	store := &room{catalog: warmDays("flights"), warm: 80, leases: map[string][]tiers.Leased{"flights": {{From: 2, To: 4}}}}
	r := policy.Runner{
		Store: store, Quota: 100, Clock: func() time.Time { return now },
		Policies: parse(t, "{rules: [{name: read, when: next >= 0, action: pin}, {name: full, when: pressure >= 0.8 && pressure < 0.9, action: evict}]}"),
	}
	step, err := r.PlanTiers(t.Context(), policy.Cursor{})
	if want := []uint64{0, 1, 4, 5, 6, 7, 8, 9}; err != nil || !reflect.DeepEqual(sequences(step.Tasks), want) {
		t.Errorf("%v leave, %v, want %v", sequences(step.Tasks), err, want)
	}
	if step.Every != policy.DefaultEvery {
		t.Errorf("the next pass is after %v", step.Every)
	}
}

func TestKeeperComesDownToTheLowWatermarks(t *testing.T) {
	for name, c := range map[string]struct {
		spec string
		set  func(*room)
		want []uint64
	}{
		"oldest first":       {"{watermarks: {high: 0.9, low: 0.7}}", nil, []uint64{0, 1, 2}},
		"the longest unread": {"{watermarks: {high: 0.9, low: 0.7, order: idle}}", func(r *room) { r.batches["flights"][0].Read = now }, []uint64{1, 2, 3}},
		"the largest":        {"{watermarks: {high: 0.9, low: 0.7, order: largest}}", func(r *room) { r.batches["flights"][6].Ref.Locations[0].Bytes = 400 }, []uint64{0, 1, 6}},
		"pinned and read": {"{watermarks: {high: 0.9, low: 0.7}}", func(r *room) {
			r.pins["flights"] = []tiers.Pin{{From: 0, To: 2}}
			r.leases["flights"] = []tiers.Leased{{From: 3, To: 4}}
		}, []uint64{2, 4, 5}},
		"passed, then what is needed last": {"{watermarks: {high: 0.9, low: 0.3}}", func(r *room) {
			r.leases["flights"] = []tiers.Leased{{From: 3, To: 5, Reads: &tiers.Reads{At: 3, To: 9, PerSecond: 1}}}
		}, []uint64{0, 1, 2, 6, 7, 8, 9}},
		"all is needed, and what is held stays": {"{watermarks: {high: 0.9, low: 0.1}}", func(r *room) {
			r.leases["flights"] = []tiers.Leased{{From: 0, To: 4, Reads: &tiers.Reads{At: 0, To: 10, PerSecond: 1}}}
		}, []uint64{4, 5, 6, 7, 8, 9}},
		"in epochs": {"{watermarks: {high: 0.9, low: 0.7}}", func(r *room) {
			// The second half of an epoch: what it has passed comes again in the next.
			r.leases["flights"] = []tiers.Leased{{Reads: &tiers.Reads{At: 5, To: 10, PerSecond: 1, Order: json.RawMessage(`{"order":{"kind":"sequential"},"batches":10}`)}}}
		}, []uint64{2, 3, 4}},
		"pinned by a rule":    {"{rules: [{name: keep, when: age > 9 * day, action: pin}], watermarks: {high: 0.9, low: 0.7}}", nil, []uint64{2, 3, 4}},
		"on another host":     {"{watermarks: {high: 0.7, low: 0.5}}", func(r *room) { r.batches["flights"][0].Ref.Locations[0].URI = "elsewhere" }, []uint64{1, 2, 3, 4}},
		"below the high mark": {"{watermarks: {high: 1, low: 0.7}}", nil, nil},
	} {
		store := &room{catalog: warmDays("flights"), warm: 1000, used: 96, arena: 100, leases: map[string][]tiers.Leased{}}
		if c.set != nil {
			c.set(store)
		}
		var mu sync.Mutex
		var asked []policy.Task
		k := policy.Keeper{Store: store, Policies: parse(t, c.spec), Quota: 1000, Clock: func() time.Time { return now }, Evict: func(_ context.Context, task policy.Task) (func(context.Context, func()) error, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, task)
			return func(ctx context.Context, _ func()) error { <-ctx.Done(); return ctx.Err() }, nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		// The second look finds what is under way, and asks for no more.
		if err := errors.Join(k.Look(ctx), k.Look(ctx)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		if got := sequences(asked); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v leave, want %v", name, got, c.want)
		}
		for _, task := range asked {
			if task.Decision != (policy.Decision{Action: policy.Evict, Policy: "p", Rule: policy.WatermarkRule}) {
				t.Errorf("%s: %+v", name, task)
			}
		}
		if store.trimmed != 0 {
			t.Errorf("%s: the arena is trimmed without a watermark of its own", name)
		}
	}
}

func TestKeeperTrimsTheArena(t *testing.T) {
	store := &room{catalog: warmDays("flights"), used: 96, arena: 100}
	k := policy.Keeper{Store: store, Policies: parse(t, "{watermarks: {high: 0.9, low: 0.7, hot: {high: 0.95, low: 0.8}}}")}
	if err := k.Look(t.Context()); err != nil || store.trimmed != 80 {
		t.Errorf("trimmed to %d, %v", store.trimmed, err)
	}
}

// What is refused is left alone for a while, as is what waits for people until they
// have answered, and others leave instead.
func TestKeeperLeavesRefusedAlone(t *testing.T) {
	for name, answer := range map[string]func(context.Context, func()) error{
		"refused": func(context.Context, func()) error { return errRefused },
		"waits": func(ctx context.Context, parked func()) error {
			parked()
			<-ctx.Done()
			return ctx.Err()
		},
	} {
		store := &room{catalog: warmDays("flights"), warm: 1000}
		asked := make(chan policy.Task, 10)
		k := policy.Keeper{
			Store: store, Policies: parse(t, "{watermarks: {high: 0.9, low: 0.7}}"), Quota: 1000, Every: time.Millisecond,
			Evict: func(_ context.Context, task policy.Task) (func(context.Context, func()) error, error) {
				asked <- task
				return func(ctx context.Context, parked func()) error {
					if task.From < 3 {
						return answer(ctx, parked)
					}
					<-ctx.Done()
					return ctx.Err()
				}, nil
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); k.Run(ctx) }()
		first, second := <-asked, <-asked
		cancel()
		<-ended
		if first.From != 0 || first.To != 3 || second.From != 3 || second.To != 6 {
			t.Errorf("%s: asked for %d..%d, then %d..%d", name, first.From, first.To, second.From, second.To)
		}
	}
}

// What waits for people leaves room for others to be asked about, each once.
func TestKeeperAsksOnceForWhatWaits(t *testing.T) {
	store := &room{catalog: warmDays("flights"), warm: 1000}
	asked := make(chan policy.Task, 100)
	k := policy.Keeper{
		Store: store, Policies: parse(t, "{watermarks: {high: 0.9, low: 0.7}}"), Quota: 1000, Every: time.Millisecond,
		Evict: func(_ context.Context, task policy.Task) (func(context.Context, func()) error, error) {
			asked <- task
			return func(ctx context.Context, parked func()) error {
				parked()
				<-ctx.Done()
				return ctx.Err()
			}, nil
		},
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); k.Run(ctx) }()
	seen := map[uint64]int{}
	for len(seen) < len(store.batches["flights"]) {
		select {
		case task := <-asked:
			for seq := task.From; seq < task.To; seq++ {
				seen[seq]++
			}
		case <-ctx.Done():
			t.Fatalf("asked about %d batches only", len(seen))
		}
	}
	cancel()
	<-ended
	for seq, n := range seen {
		if n != 1 || len(asked) > 0 {
			t.Errorf("people were asked %d times about batch %d, and %d times more", n, seq, len(asked))
		}
	}
}

// Where parts are refused the others have left, and may be asked for again.
func TestKeeperLeavesRefusedPartsAlone(t *testing.T) {
	store := &room{catalog: warmDays("flights"), warm: 1000}
	asked := make(chan policy.Task, 10)
	k := policy.Keeper{
		Store: store, Policies: parse(t, "{watermarks: {high: 0.9, low: 0.7}}"), Quota: 1000, Every: time.Millisecond,
		Evict: func(_ context.Context, task policy.Task) (func(context.Context, func()) error, error) {
			asked <- task
			return func(ctx context.Context, _ func()) error {
				if task.From == 0 {
					part := task
					part.From, part.To = 1, 2
					return fmt.Errorf("move: %w", &policy.RefusedError{Parts: []policy.Task{part}, Err: errRefused})
				}
				<-ctx.Done()
				return ctx.Err()
			}, nil
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); k.Run(ctx) }()
	first, second, third := <-asked, <-asked, <-asked
	cancel()
	<-ended
	// The store of this test keeps what was moved: so 0 is asked for again, and 1 is not.
	got := [][2]uint64{{first.From, first.To}, {second.From, second.To}, {third.From, third.To}}
	if want := [][2]uint64{{0, 3}, {0, 1}, {2, 4}}; !reflect.DeepEqual(got, want) {
		t.Errorf("asked for %v, want %v", got, want)
	}
}

var errRefused = errors.New("a rule denies it")
