package main

import (
	"encoding/json"
	"maps"
	"slices"
	"sync"

	"github.com/stokehold/stokehold/events"
)

// activeRuns are the runs that have started and not ended. Safe for concurrent use.
type activeRuns struct {
	mu  sync.Mutex
	ids map[string]bool
}

func newActiveRuns() *activeRuns { return &activeRuns{ids: map[string]bool{}} }

func (r *activeRuns) see(d events.Delivery) {
	var e struct {
		Run string `json:"run"`
	}
	typ := d.Type()
	if typ != events.TypeRunStarted && typ != events.TypeRunCompleted && typ != events.TypeRunFailed ||
		json.Unmarshal(d.Data(), &e) != nil || e.Run == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if typ == events.TypeRunStarted {
		r.ids[e.Run] = true
	} else {
		delete(r.ids, e.Run)
	}
}

// maxActive bounds how many runs are asked about at once.
const maxActive = 8

func (r *activeRuns) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := slices.Sorted(maps.Keys(r.ids))
	return ids[:min(len(ids), maxActive)]
}
