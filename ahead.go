package stokehold

import (
	"sync"

	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

// runtimes are those that Work has made. Safe for concurrent use.
type runtimes struct {
	mu  sync.Mutex
	all []*stages.Runtime
}

func (r *runtimes) add(rt *stages.Runtime) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, rt)
}

// ReadAhead counts what reading ahead has achieved for the stages of this process:
// hits, stalls, bytes early and late. What late reads cost and which were given a
// second source is in Store.Stats.
func (a *App) ReadAhead() prefetch.Counts {
	a.working.mu.Lock()
	defer a.working.mu.Unlock()
	var sum prefetch.Counts
	for _, rt := range a.working.all {
		sum.Add(rt.ReadAhead())
	}
	return sum
}
