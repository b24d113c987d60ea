package budget

import (
	"fmt"
	"runtime"
	"testing"
)

// Sums stay those of the records, whatever is replaced and dropped, and take little
// memory.
func TestTotalsFollowTheRecords(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	tot := newTotals()
	const runs = 10_000
	for revision := range uint64(3) {
		for i := range runs {
			run := fmt.Sprintf("flights-train/2026-11-28-%06d", i)
			tot.set(keyOf(run, ""), known{revision: revision + 1, pipeline: "flights-train", run: run, used: []Use{
				{Day: "2026-11-28", Team: "late", Accelerator: "h100", Seconds: Micro(revision + 1), Money: 2}, {Day: "2026-11-29", Team: "late", Accelerator: CPU, Seconds: 5},
			}})
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (after.HeapAlloc - before.HeapAlloc) / runs; each > 2048 {
		t.Errorf("%d bytes a run", each)
	} else {
		t.Logf("%d bytes a run", each)
	}
	tot.set(keyOf("flights-train/2026-11-28-000000", ""), known{revision: 1, run: "late news"})
	if u := tot.in("team/late", Day, "2026-11-28")["h100"]; u.Seconds != 3*runs || u.Money != 2*runs {
		t.Errorf("the day has %+v", u)
	}
	if u := tot.in("pipeline/flights-train", Month, "2026-11-01")[CPU]; u.Seconds != 5*runs {
		t.Errorf("the month has %+v", u)
	}
	if len(tot.runs()) != runs {
		t.Errorf("%d runs", len(tot.runs()))
	}
	for key := range tot.records {
		tot.drop(key)
	}
	if len(tot.spent) != 0 {
		t.Errorf("left over: %v", tot.spent)
	}
}
