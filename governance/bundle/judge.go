package bundle

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Judge returns the engine's Judge for the bus of this process. Processes swap
// within milliseconds of one another, but not at one moment: an event may come
// here with a stamp of a set that this process has not read yet, and the engine
// would quarantine it as stale. So before that the store is read once; then the
// engine decides, as ever.
//
// If the engine is an events.Releaser, what is returned is one, too.
func (m *Manager) Judge(engine Engine) events.Judge {
	j := &judge{m: m, engine: engine}
	if r, ok := engine.(events.Releaser); ok {
		return &releaser{j, r}
	}
	return j
}

type judge struct {
	m      *Manager
	engine Engine
}

var (
	_ events.Judge    = (*judge)(nil)
	_ events.Releaser = (*releaser)(nil)
)

// releaser is a judge whose engine lets held events go.
type releaser struct {
	*judge
	engine events.Releaser
}

// JudgeRelease implements events.Releaser.
func (r *releaser) JudgeRelease(ctx context.Context, ev *events.Event, rel events.Release) (events.Verdict, error) {
	return r.engine.JudgeRelease(ctx, ev, rel)
}

// Judge implements events.Judge.
func (j *judge) Judge(ctx context.Context, at events.Point, evs []*events.Event) ([]events.Verdict, error) {
	if at == events.OnReceive {
		current := ""
		if set := j.engine.Policies(); set != nil {
			current = set.ShortDigest()
		}
		for _, ev := range evs {
			if policy := stampedBy(ev); policy != "" && policy != current {
				j.m.meet(ctx, j.engine, policy)
				if set := j.engine.Policies(); set != nil {
					current = set.ShortDigest()
				}
			}
		}
	}
	return j.engine.Judge(ctx, at, evs)
}

// stampedBy returns the short digest that an event's stamp names; "": none. Of
// what is no stamp it may return anything, for the engine to refuse.
func stampedBy(ev *events.Event) string {
	if ev == nil {
		return ""
	}
	c, ok := ev.Context.(*event.EventContextV1)
	if !ok {
		return ""
	}
	stamp, _ := c.Extensions[governance.ExtStamp].(string) // GetExtensions would copy the map
	policy, _, _ := strings.Cut(stamp, ".")
	return policy
}

// meet reads the store if the engine does not know a set. A digest that the store
// does not have either is not asked for again for a second, and no two reads are
// less than 50 ms apart: who sends made-up digests slows the reader, and no more.
func (m *Manager) meet(ctx context.Context, engine Engine, policy string) {
	if slices.Contains(engine.Accepted(), policy) || m.unknown.recent(policy) {
		return
	}
	m.unknown.reading.Lock()
	defer m.unknown.reading.Unlock()
	if set := engine.Policies(); set != nil && set.ShortDigest() == policy || slices.Contains(engine.Accepted(), policy) {
		return // another call has read it
	}
	if wait := time.Until(m.unknown.last.Add(minRead)); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
	m.unknown.last = time.Now()
	if m.Refresh(ctx) != nil {
		return // the store does not answer: the engine decides by what it has
	}
	if set := engine.Policies(); set == nil || set.ShortDigest() != policy {
		m.unknown.add(policy)
	}
}

const (
	minRead    = 50 * time.Millisecond
	missedFor  = time.Second
	maxMissing = 256
)

// misses are the digests that the store did not have a moment ago.
type misses struct {
	reading sync.Mutex // held while the store is read
	last    time.Time  // of the last read; guarded by reading

	mu  sync.Mutex
	set map[string]time.Time
}

func (u *misses) recent(policy string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	at, ok := u.set[policy]
	return ok && time.Since(at) < missedFor
}

func (u *misses) add(policy string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.set == nil || len(u.set) >= maxMissing {
		u.set = make(map[string]time.Time)
	}
	u.set[strings.Clone(policy)] = time.Now()
}
