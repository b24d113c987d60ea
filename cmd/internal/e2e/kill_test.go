package e2e_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// moment is a point of a demo that its output, its files or its processes show.
type moment struct {
	name  string
	holds func(p *process, state string) bool
}

// said holds once the output has n lines with text.
func said(n int, text string) func(*process, string) bool {
	return func(p *process, _ string) bool { return strings.Count(p.output(), text) >= n }
}

// stored holds once n files of the state directory match the pattern.
func stored(n int, pattern string) func(*process, string) bool {
	return func(_ *process, state string) bool {
		found, err := filepath.Glob(filepath.Join(state, pattern))
		return err == nil && len(found) >= n
	}
}

// moments are in the order in which a demo comes to them.
var moments = []moment{
	{"the servers start", said(1, "starting NATS")},
	{"the stack is up", said(1, "stack is up")},
	{"ingest has begun", stored(2, "warm/flights_schedule/*.arrow")},
	{"the worker process is there", func(p *process, _ string) bool { return p.worker() != 0 }},
	{"half the features are made", stored(4, "warm/flights_features/*.arrow")},
	{"the first training", stored(7, "warm/flights_features/*.arrow")},
	{"the first promotion", said(1, "promoted flights")},
	{"the first week arrives", said(1, "of flights-score started")},
	{"the first week is scored", stored(1, "warm/flights_predictions/*.arrow")},
	{"the monitor has its say", stored(1, "warm/flights_monitor/*.arrow")},
	{"drift", said(1, "drift of flights")},
	{"a retraining", said(1, "by flights-train/drift")},
	{"a migration", stored(1, "s3/stokehold/batches/sha256/*/*.parquet")},
	{"the second promotion", said(2, "promoted flights")},
	{"the end", said(1, "week 10:")},
}

func named(t testing.TB, name string) moment {
	t.Helper()
	i := slices.IndexFunc(moments, func(m moment) bool { return m.name == name })
	if i < 0 {
		t.Fatalf("no moment %q", name)
	}
	return moments[i]
}

// advance starts a demo on state, waits for the moment and kills everything at
// once. It returns how long the moment took to come, and false where the demo
// ended before.
func advance(t *testing.T, state, report string, m moment) (time.Duration, bool) {
	t.Helper()
	p := spawn(t, demo(state, report)...)
	came := p.waitUntil(m.name, func() bool { return m.holds(p, state) })
	took := time.Since(p.began)
	workers := children(p.pid())
	p.kill()
	gone(t, workers...)
	if p.cmd.ProcessState.Exited() && p.cmd.ProcessState.ExitCode() != 0 {
		t.Fatalf("before %s: exit code %d", m.name, p.cmd.ProcessState.ExitCode())
	}
	return took, came
}

// finish runs the demo on state to its end and compares it with the undisturbed.
func finish(t *testing.T, state string) time.Duration {
	t.Helper()
	report := filepath.Join(t.TempDir(), "report.json")
	p := spawn(t, demo(state, report)...)
	if code := p.wait(patience); code != 0 || p.errors() != "" {
		t.Fatalf("exit code %d, standard error %q", code, p.errors())
	}
	sameOutcome(t, readReport(t, report), reference(t).result)
	return time.Since(p.began)
}

// A demo that is killed again and again, at every moment once, is the same demo.
func TestKillAgainAndAgain(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	began := time.Now()
	var log []string
	for _, m := range moments {
		took, came := advance(t, state, "", m)
		log = append(log, fmt.Sprintf("%6.2fs  %s", took.Seconds(), m.name))
		if !came {
			t.Errorf("ended before %s", m.name)
		}
	}
	log = append(log, fmt.Sprintf("%6.2fs  until it is finished", finish(t, state).Seconds()))
	t.Logf("killed %d times, %v in all; from start to kill:\n%s", len(moments), time.Since(began).Round(time.Millisecond), strings.Join(log, "\n"))
}

// One kill at one moment, and the time that it costs.
func TestKillOnce(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"the first training", "the first week is scored", "a retraining"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			state := filepath.Join(t.TempDir(), "state")
			before, came := advance(t, state, "", named(t, name))
			if !came {
				t.Fatal("ended before")
			}
			after := finish(t, state)
			t.Logf("killed after %v, then finished in %v; undisturbed it takes %v", before, after, reference(t).took)
		})
	}
}

// The process alone is killed, its workers are not: they must go by themselves.
func TestKillOfTheProcessAloneLeavesNoWorker(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	p := spawn(t, demo(state, "")...)
	var worker int
	if !p.waitUntil("a worker process", func() bool { worker = p.worker(); return worker != 0 }) {
		t.Fatal("there was none")
	}
	p.signal(syscall.SIGKILL)
	<-p.exited
	gone(t, worker)
}

// The worker process is killed again and again while it works: the run is only
// delayed, and every batch is stored once.
func TestKillOfTheWorkerProcess(t *testing.T) {
	t.Parallel()
	state, report := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "report.json")
	p := spawn(t, demo(state, report)...)
	// While it makes features for the first training, and of the first live week.
	for _, n := range []int{1, 3, 5, 8} {
		worker := 0
		if !p.waitUntil("a worker process at work", func() bool {
			worker = p.worker()
			return worker != 0 && stored(n, "warm/flights_features/*.arrow")(p, state)
		}) {
			t.Fatal("ended before there was one")
		}
		_ = syscall.Kill(worker, syscall.SIGKILL) // ESRCH: it ended by itself
		gone(t, worker)
	}
	if code := p.wait(patience); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.errors())
	}
	sameOutcome(t, readReport(t, report), reference(t).result)
	t.Logf("took %v; undisturbed it takes %v", time.Since(p.began), reference(t).took)
}
