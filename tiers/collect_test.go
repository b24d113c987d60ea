package tiers_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
)

// age makes everything under dir look as if written so long ago.
func age(t *testing.T, dir string, by time.Duration) {
	t.Helper()
	at := time.Now().Add(-by)
	for _, f := range files(t, dir) {
		if err := os.Chtimes(filepath.Join(dir, f), at, at); err != nil {
			t.Fatal(err)
		}
	}
}

func collect(t *testing.T, w *world, s *tiers.Store, grace time.Duration, remove bool) (names []string) {
	t.Helper()
	err := s.Collect(w.ctx, grace, remove, func(o tiers.Orphan) error {
		if o.Removed != remove {
			t.Errorf("%+v", o)
		}
		names = append(names, string(o.Tier)+" "+o.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestCollectRemovesWhatNothingNames(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1)
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil {
		t.Fatal(err)
	}
	digest := strings.Repeat("ab", 32)
	name, err := tiers.Token("dataset", dataset)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		filepath.Join(w.warm, name, "00000000000000000000-"+digest+".arrow"), // a fenced attempt's
		filepath.Join(w.warm, name, "00000000000000000002-"+digest+".arrow"), // a writer's at work
		filepath.Join(w.cold, "batches", "sha256", "ab", digest+".parquet"),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const grace = time.Hour
	if got := collect(t, w, s, grace, true); len(got) != 0 {
		t.Errorf("removed within the grace: %q", got)
	}
	// A clock that is moved on by an hour makes everything look older by that.
	for _, dir := range []string{w.warm, w.cold} {
		age(t, dir, grace+time.Hour)
	}
	if got := collect(t, w, s, grace, true); len(got) != 0 {
		t.Errorf("removed early: %q", got)
	}
	for _, dir := range []string{w.warm, w.cold} {
		age(t, dir, grace+3*time.Hour)
	}
	warm, cold := len(files(t, w.warm)), len(files(t, w.cold))
	if got := collect(t, w, s, grace, false); len(got) != 2 {
		t.Errorf("found %q", got)
	}
	if len(files(t, w.warm)) != warm || len(files(t, w.cold)) != cold {
		t.Error("looking removed something")
	}
	if got := collect(t, w, s, grace, true); len(got) != 2 || len(files(t, w.warm)) != warm-1 || len(files(t, w.cold)) != cold-1 {
		t.Errorf("removed %q", got)
	}
	if got := collect(t, w, s, grace, true); len(got) != 0 {
		t.Errorf("again: %q", got)
	}
	if v, err := s.Verify(w.ctx, dataset, 0, tiers.End, false, nil); err != nil || len(v.Faults) != 0 || v.Copies != 3 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestCollectorAndMigrationExcludeEachOther(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	other, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	if _, err := s.MoveStep(w.ctx, tiers.Migration{Dataset: dataset}, tiers.StepIntent); err != nil {
		t.Fatal(err)
	}
	if err := other.Collect(w.ctx, 0, true, nil); !errors.Is(err, tiers.ErrBusy) {
		t.Errorf("while a batch moves: %v", err)
	}
	if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil {
		t.Errorf("the collector that gave way left something behind: %v", err)
	}
}

const (
	collectorEnv = "STOKEHOLD_TEST_COLLECTOR"
	collectorTTL = time.Second
)

// collectorChild is the process that TestStoppedCollector stops: it stops itself once it
// has removed one file.
func collectorChild(ctx context.Context, s *tiers.Store, _ []string) error {
	tiers.SetLeaseTTL(s, collectorTTL)
	removed := 0
	err := s.Collect(ctx, 0, true, func(o tiers.Orphan) error {
		fmt.Println("removed", o.Name)
		if removed++; removed > 1 {
			return nil
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
			return err
		}
		_, err := os.Stdin.Read(make([]byte, 1)) // this thread may come so far before it stops
		return err
	})
	if !errors.Is(err, tiers.ErrBusy) || removed != 1 {
		return errors.Join(fmt.Errorf("went on: %d removed", removed), err)
	}
	return nil
}

// A collector that stands still while its lease ends, and goes on after a migration has
// named an object that it had found to be nobody's, leaves it.
func TestStoppedCollector(t *testing.T) {
	t.Parallel()
	before := newWorld(t)
	s, _ := before.store(0)
	before.write(before.writer(s, dataset, fence("run-1", 1)), 0)
	if _, err := s.Move(before.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil {
		t.Fatal(err)
	}

	// Another deployment with the same batch, the object of which lies there already.
	w := newWorld(t)
	s, _ = w.store(0)
	tiers.SetLeaseTTL(s, collectorTTL)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0)
	const objects = "batches"
	if err := os.CopyFS(filepath.Join(w.cold, objects), os.DirFS(filepath.Join(before.cold, objects))); err != nil {
		t.Fatal(err)
	}
	name, err := tiers.Token("dataset", dataset)
	must(t, err)
	orphan := filepath.Join(w.warm, name, "00000000000000000000-"+strings.Repeat("ab", 32)+".arrow")
	must(t, os.WriteFile(orphan, []byte("x"), 0o600))
	for _, dir := range []string{w.warm, w.cold} {
		age(t, dir, 3*time.Hour)
	}

	child := w.child(collectorEnv)
	var out bytes.Buffer
	child.Stdout, child.Stderr = &out, &out
	input, err := child.StdinPipe()
	must(t, err)
	must(t, child.Start())
	stat := filepath.Join("/proc", strconv.Itoa(child.Process.Pid), "stat")
	eventually(t, "the collector stops", func() bool {
		line, err := os.ReadFile(stat)
		return err != nil || strings.Contains(string(line), ") T ")
	})
	m := tiers.Migration{Dataset: dataset, Evict: true}
	if _, err := s.Move(w.ctx, m, nil); !errors.Is(err, tiers.ErrBusy) {
		t.Errorf("while its lease lives: %v", err)
	}
	eventually(t, "its lease ends", func() bool {
		_, err := s.Move(w.ctx, m, nil)
		if err != nil && !errors.Is(err, tiers.ErrBusy) {
			t.Fatal(err)
		}
		return err == nil
	})
	must(t, child.Process.Signal(syscall.SIGCONT))
	_, err = input.Write([]byte{'\n'})
	must(t, err)
	if err := child.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	if _, err := os.Stat(orphan); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what it removed before: %v", err)
	}
	far, _ := w.store(0)
	readable(t, w, far, arrowio.Cold)
}

func TestExpire(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(0)
	w.write(w.writer(s, dataset, fence("run-1", 1)), 0, 1, 2)
	if err := s.Pin(w.ctx, dataset, tiers.Pin{From: 1, To: tiers.End, Hold: true, Reason: "case 7"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Expire(w.ctx, dataset, 0, 2, "ttl"); !errors.Is(err, tiers.ErrPinned) {
		t.Errorf("against a legal hold: %v", err)
	}
	for i, want := range []int{1, 0} {
		if n, err := s.Expire(w.ctx, dataset, 0, 1, "ttl"); err != nil || n != want {
			t.Errorf("call %d: %d, %v", i, n, err)
		}
	}
	if _, err := s.Ref(w.ctx, dataset, 0); !errors.Is(err, tiers.ErrExpired) {
		t.Errorf("got %v", err)
	}
	for _, err := range s.Batches(w.ctx, dataset, 0, 3, false) {
		if !errors.Is(err, tiers.ErrExpired) {
			t.Errorf("read: %v", err)
		}
	}
	if at := tiersOf(mustRef(t, w, s, 1)); at != string(arrowio.Warm) {
		t.Errorf("batch 1 is in %s", at)
	}
	age(t, w.warm, 100*time.Hour)
	if got := collect(t, w, s, time.Hour, true); len(got) != 1 {
		t.Errorf("collected %q", got)
	}
	if got := w.published(events.TypeBatchExpired); len(got) != 1 {
		t.Errorf("announced %v", got)
	}
}
