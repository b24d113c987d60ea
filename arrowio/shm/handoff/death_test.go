package handoff_test

import (
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

var deaths = map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGSTOP}

// stallMS is long enough for a busy machine's bystanders and short enough for the
// five seconds.
const stallMS = 1500

func startOwner(t *testing.T, cfg childConfig) (*child, ownerReport) {
	t.Helper()
	cfg.Dir = filepath.Join(t.TempDir(), "run")
	if cfg.ArenaBytes == 0 {
		cfg.ArenaBytes = 1 << 20
	}
	if cfg.BatchRows == 0 {
		cfg.BatchRows = rows
	}
	if cfg.StallMS == 0 {
		cfg.StallMS = stallMS
	}
	c := start(t, "owner", cfg)
	var r ownerReport
	c.read(&r)
	return c, r
}

// startBystander starts a process that leases and checks batches all the time.
// unaffected waits until it has gone on.
func startBystander(t *testing.T, o ownerReport) (c *child, unaffected func(*testing.T)) {
	t.Helper()
	c = start(t, "consumer", childConfig{})
	c.ask(nil, "dial", o.Path)
	c.ask(nil, "loop", o.Handles[len(o.Handles)-1])
	report := func(t *testing.T) (r consumerReport) {
		t.Helper()
		c.ask(&r, "report")
		if r.Err != "" || r.Lost != "" {
			t.Fatalf("the bystander: %s %s", r.Err, r.Lost)
		}
		return r
	}
	eventually(t, "the bystander leases", func() bool { return report(t).N > 0 })
	return c, func(t *testing.T) {
		t.Helper()
		c.t = t
		n := report(t).N
		eventually(t, "the bystander goes on", func() bool { return report(t).N > n+10 })
	}
}

// TestConsumerDies kills and stops a consumer at every step. The owner is back to
// where it was before the consumer came within five seconds, what the consumer
// leased can be written over, and a bystander goes on throughout.
//
// All consumers of an owner die together, so that their timeouts pass together.
func TestConsumerDies(t *testing.T) {
	for how, sig := range deaths {
		t.Run(how, func(t *testing.T) {
			o, at := startOwner(t, childConfig{Slots: len(rawStepNames) + 1})
			_, unaffected := startBystander(t, at)
			var before, now ownerReport
			o.ask(&before, "report")
			slot := before.Used / int64(len(at.Handles))
			pids := make([]int, len(rawStepNames))
			for i, step := range rawStepNames {
				victim := start(t, "raw", childConfig{Path: at.Path, Handle: at.Handles[i], Step: step})
				victim.read(nil)
				victim.tell("go")
				victim.read(nil)
				victim.signal(sig)
				pids[i] = victim.cmd.Process.Pid
			}
			for i, step := range rawStepNames {
				t.Run(step, func(t *testing.T) {
					o.t = t
					unaffected(t)
					eventually(t, "forgotten", func() bool {
						o.ask(&now, "report")
						return !slices.Contains(now.PIDs, pids[i])
					})
					used := now.Used
					o.ask(nil, "drop", at.Handles[i])
					if o.ask(&now, "report"); now.Used != used-slot {
						t.Errorf("the slot is still held: %d bytes are in use, %d were", now.Used, used)
					}
				})
			}
			o.t = t
			eventually(t, "back to baseline", func() bool {
				o.ask(&now, "report")
				// The bystander may hold one lease at the moment.
				return now.Leases <= 1 && now.Used == slot && now.Peers == 1 && now.footprint == before.footprint
			})
			var filled int
			o.ask(&filled, "fill")
			if filled < int(1<<20-2*slot)/4096 {
				t.Errorf("only %d pages could be written", filled)
			}
			unaffected(t)
		})
	}
}

// ownerSteps are the points of an owner's life at which it dies, and what brings a
// consumer there.
var ownerSteps = []struct {
	name, park string
	to         func(c *child, at ownerReport)
	connected  bool // the consumer is, at this step
}{
	{"a connection accepted", "accepted", func(c *child, at ownerReport) { c.tell("dial", at.Path) }, false},
	{"hello received", "hello", func(c *child, at ownerReport) { c.tell("dial", at.Path) }, false},
	{"a slot leased, arena not granted", "taken", func(c *child, at ownerReport) {
		c.ask(nil, "dial", at.Path)
		c.ask(nil, "asklease", at.Handles[0])
	}, true},
	{"arena granted, lease unanswered", "granted", func(c *child, at ownerReport) {
		c.ask(nil, "dial", at.Path)
		c.ask(nil, "asklease", at.Handles[0])
	}, true},
	{"lease answered", "leased", func(c *child, at ownerReport) {
		c.ask(nil, "dial", at.Path)
		c.ask(nil, "lease", at.Handles[0])
	}, true},
	{"a release half handled", "release", func(c *child, at ownerReport) {
		c.ask(nil, "dial", at.Path)
		c.ask(nil, "lease", at.Handles[0])
		c.ask(nil, "lease", at.Handles[1])
		c.ask(nil, "release")
	}, true},
	{"an inspection unanswered", "inspect", func(c *child, at ownerReport) {
		c.ask(nil, "dial", at.Path)
		c.ask(nil, "lease", at.Handles[0])
		c.ask(nil, "status")
	}, true},
	{"goodbye received", "goodbye", func(c *child, at ownerReport) {
		c.ask(nil, "dial", at.Path)
		c.ask(nil, "close")
	}, true},
	{"a batch half written", "", func(c *child, at ownerReport) {
		c.ask(nil, "dial", at.Path)
		c.ask(nil, "lease", at.Handles[0])
	}, true},
}

// TestOwnerDies kills and stops an owner at every step. What its consumer holds
// stays whole; everything else fails, and once the consumer has released, nothing
// of the owner is left with it. A bystander with another owner goes on.
func TestOwnerDies(t *testing.T) {
	for how, sig := range deaths {
		t.Run(how, func(t *testing.T) {
			_, otherAt := startOwner(t, childConfig{})
			_, unaffected := startBystander(t, otherAt)
			consumers := make([]*child, len(ownerSteps))
			before := make([]consumerReport, len(ownerSteps))
			for i, step := range ownerSteps {
				o, at := startOwner(t, childConfig{Park: step.park})
				c := start(t, "consumer", childConfig{})
				c.ask(&before[i], "report")
				step.to(c, at)
				if step.park != "" {
					o.read(nil)
				} else {
					o.ask(nil, "loan")
				}
				o.signal(sig)
				consumers[i] = c
			}
			for i, step := range ownerSteps {
				t.Run(step.name, func(t *testing.T) {
					c := consumers[i]
					c.t = t
					unaffected(t)
					if !step.connected { // Dial fails
						if line, ok := <-c.out; ok && !strings.HasPrefix(line, "FAIL ") {
							t.Errorf("dial: %s", line)
						}
						return
					}
					var now consumerReport
					eventually(t, "the loss noticed", func() bool {
						c.ask(&now, "report")
						return now.Lost != ""
					})
					if now.Torn != "" {
						t.Error(now.Torn)
					}
					c.ask(nil, "release")
					eventually(t, "back to baseline", func() bool {
						c.ask(&now, "report")
						return now.Held == 0 && now.footprint == before[i].footprint
					})
				})
			}
			unaffected(t)
		})
	}
}

// TestBystanderDies kills and stops a consumer in the middle of whatever it does.
func TestBystanderDies(t *testing.T) {
	t.Parallel()
	for how, sig := range deaths {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			o, at := startOwner(t, childConfig{})
			c := start(t, "consumer", childConfig{})
			c.ask(nil, "dial", at.Path)
			c.ask(nil, "lease", at.Handles[0])
			var before, now ownerReport
			o.ask(&before, "report")
			victim, _ := startBystander(t, at)
			victim.signal(sig)
			eventually(t, "back to baseline", func() bool {
				o.ask(&now, "report")
				return now.Leases == before.Leases && now.Used == before.Used && now.Peers == 1 && now.footprint == before.footprint
			})
			var r consumerReport
			if c.ask(&r, "report"); r.Torn != "" || r.Lost != "" || r.Held != 1 {
				t.Errorf("the consumer: %+v", r)
			}
		})
	}
}

// TestStoppedConsumerKeeps: a consumer that may not be killed keeps what it
// leased while it is stopped, and finds it whole when it goes on.
func TestStoppedConsumerKeeps(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"the owner spares it", "it asked to be spared"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			o, at := startOwner(t, childConfig{KeepStopped: who == "the owner spares it"})
			c := start(t, "consumer", childConfig{})
			dial := []string{"dial", at.Path}
			if who != "the owner spares it" {
				dial = append(dial, "spare")
			}
			c.ask(nil, dial...)
			c.ask(nil, "lease", at.Handles[0])
			c.signal(syscall.SIGSTOP)
			o.ask(nil, "drop", at.Handles[0])
			_, unaffected := startBystander(t, at)
			var now ownerReport
			for range 3 { // while it is given up for stalled
				o.ask(nil, "fill")
				unaffected(t)
			}
			within(t, 2*patience, "found stalled", func() bool {
				p := at.Path
				st := statusOf(t, p)
				for _, peer := range st.Peers {
					if peer.State == "stalled" && peer.Leases == 1 {
						return true
					}
				}
				return false
			})
			o.ask(nil, "fill")
			c.signal(syscall.SIGCONT)
			var r consumerReport
			eventually(t, "the loss noticed", func() bool { c.ask(&r, "report"); return r.Lost != "" })
			if r.Torn != "" || r.Held != 1 {
				t.Errorf("after going on: %+v", r)
			}
			c.ask(nil, "release")
			eventually(t, "the lease given back", func() bool {
				o.ask(&now, "report")
				return now.Leases <= 1 && now.Peers == 1 && now.Killed == 0
			})
		})
	}
}
