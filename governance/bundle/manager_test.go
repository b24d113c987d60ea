package bundle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/bundle"
	"github.com/stokehold/stokehold/internal/natstest"
)

// process is one process's engine and manager.
type process struct {
	m      *bundle.Manager
	engine *governance.Engine
	judge  events.Judge
	log    *decisions
	text   *syncBuffer
}

// syncBuffer is a log that the test reads while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.b.String(), s)
}

// decisions is a log that hands each decision to a test.
type decisions struct {
	mu  sync.Mutex
	all []governance.Decision
}

func (l *decisions) Append(_ context.Context, ds []governance.Decision) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, ds...)
	return nil
}

func (l *decisions) take() []governance.Decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.all
	l.all = nil
	return out
}

func ring(t testing.TB) *governance.KeyRing {
	t.Helper()
	r, err := governance.NewKeyRing(governance.Key{ID: "k1", Secret: bytes.Repeat([]byte("k"), 32)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

type setting func(*bundle.ManagerConfig)

func inDir(dir string) setting { return func(c *bundle.ManagerConfig) { c.Dir = dir } }

func trusting(src bundle.TrustSource) setting {
	return func(c *bundle.ManagerConfig) { c.Trust = src }
}

func polling(d time.Duration) setting { return func(c *bundle.ManagerConfig) { c.Poll = d } }

func (o *office) manager(t testing.TB, nc *nats.Conn, settings ...setting) (*bundle.Manager, *syncBuffer, error) {
	t.Helper()
	text := &syncBuffer{}
	cfg := bundle.ManagerConfig{Store: store(t, nc), Trust: bundle.Trusting(o.trust), Log: slog.New(slog.NewTextHandler(io.Writer(text), nil))}
	for _, s := range settings {
		s(&cfg)
	}
	m, err := bundle.NewManager(t.Context(), cfg)
	return m, text, err
}

func (o *office) start(t testing.TB, nc *nats.Conn, settings ...setting) *process {
	t.Helper()
	m, text, err := o.manager(t, nc, settings...)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{m: m, log: &decisions{}, text: text}
	p.engine, err = governance.NewEngine(governance.Config{Policies: m.Policies(), Log: p.log, Keys: ring(t)})
	if err != nil {
		t.Fatal(err)
	}
	p.judge = m.Judge(p.engine)
	if err := m.Start(t.Context(), p.engine); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.close(t) })
	return p
}

func (p *process) close(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.m.Close(ctx); err != nil {
		t.Error(err)
	}
}

// patience bounds what a loaded machine may take.
const patience = 20 * time.Second

// within polls until f holds and returns how long that took.
func within(t testing.TB, what string, f func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !f() {
		if time.Since(began) > patience {
			t.Fatalf("not within %s: %s", patience, what)
		}
		<-tick.C
	}
	return time.Since(began)
}

func (p *process) version(v uint64) func() bool {
	return func() bool { s := p.m.Status(); return s.Position.Version == v && s.Refused == nil }
}

func event(t testing.TB, id, subject string) *events.Event {
	t.Helper()
	ev, err := events.New("batch.published", "stokehold/test", subject, id, created, map[string]int{"rows": 1})
	if err != nil {
		t.Fatal(err)
	}
	return &ev
}

func (p *process) decide(t testing.TB, at events.Point, ev *events.Event) events.Verdict {
	t.Helper()
	vs, err := p.judge.Judge(t.Context(), at, []*events.Event{ev})
	if err != nil {
		t.Fatal(err)
	}
	return vs[0]
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryProcessTakesOverWhatIsApplied(t *testing.T) {
	srv := natstest.Start(t)
	o := newOffice(t, srv.Connect())
	if err := o.store.Create(t.Context()); err != nil { // as a hosting process does
		t.Fatal(err)
	}
	var ps []*process
	for range 4 {
		ps = append(ps, o.start(t, srv.Connect(), inDir(t.TempDir())))
	}
	if ps[0].m.Policies() != nil || ps[0].m.Status().Source != "" {
		t.Fatalf("policies from nowhere: %+v", ps[0].m.Status())
	}
	if v := ps[0].decide(t, events.OnPublish, event(t, "1", "a")); v.Action != events.Deny {
		t.Errorf("without policies: %+v", v)
	}
	for v := uint64(1); v <= 5; v++ {
		b := o.must(t, draft(v, policy("subjects", "batch.published", fmt.Sprintf("s%d", v))), false)
		took := time.Duration(0)
		for _, p := range ps {
			took += within(t, "the swap", p.version(v))
			s := p.m.Status()
			if s.Source != bundle.FromStore || s.Digest != p.engine.Policies().ShortDigest() || p.engine.Policies().Digest() != b.Digest || s.Revision != v {
				t.Errorf("%+v", s)
			}
			if got := p.decide(t, events.OnPublish, event(t, "1", fmt.Sprintf("s%d", v))); got.Action != events.Allow {
				t.Errorf("version %d: %+v", v, got)
			}
		}
		t.Logf("version %d in force in %d processes after %s", v, len(ps), took)
		if took > time.Second {
			t.Errorf("version %d took %s to be in force", v, took)
		}
	}
	if _, ok := ps[0].judge.(events.Releaser); !ok {
		t.Error("the judge does not let held events go, and the engine does")
	}
	// What an earlier set stamped is honoured, by a new process too.
	old := event(t, "2", "s5")
	if v := ps[0].decide(t, events.OnPublish, old); v.Action != events.Allow {
		t.Fatalf("%+v", v)
	}
	o.must(t, draft(6, policy("subjects", "batch.published", "s5", "s6")), false)
	within(t, "the swap", ps[1].version(6))
	if v := ps[1].decide(t, events.OnReceive, old); v.Action != events.Allow {
		t.Errorf("a stamp of the set before: %+v", v)
	}
	late, _, err := o.manager(t, srv.Connect())
	if err != nil {
		t.Fatal(err)
	}
	earlier, err := late.Earlier(t.Context())
	if err != nil || len(earlier) != 5 || earlier[4] == late.Policies().ShortDigest() {
		t.Errorf("earlier sets %v, %v", earlier, err)
	}
}

func TestABadBundleLeavesTheLastGoodOneInForce(t *testing.T) {
	srv := natstest.Start(t)
	nc := srv.Connect()
	o := newOffice(t, nc)
	good := o.must(t, draft(5), false)
	p := o.start(t, srv.Connect(), inDir(t.TempDir()), polling(50*time.Millisecond))
	within(t, "the first", p.version(5))
	stranger := key(t, "mallory")
	altered := bytes.Replace(create(t, draft(6), o.key).Bytes(), []byte("version 6"), []byte("version 9"), 1)
	// Signed by a faulty tool: it names the digest of what it does not have.
	broken := strings.Replace(string(create(t, draft(7), o.key).Bytes()), good.Digest, "sha256:"+strings.Repeat("0", 64), 1)
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"garbage", nil, bundle.ErrFormat},
		{"an altered bundle", altered, bundle.ErrSignature},
		{"a stranger's", create(t, draft(6), stranger).Bytes(), bundle.ErrUntrusted},
		{"an earlier version", create(t, draft(4), o.key).Bytes(), bundle.ErrRollback},
		{"another of the version", create(t, draft(5, policy("x", "batch.published")), o.key).Bytes(), bundle.ErrRollback},
		{"one of another name", create(t, bundle.Draft{Name: "other", Position: bundle.Position{Version: 9}, Created: created, Author: "a", Sources: draft(1).Sources}, o.key).Bytes(), bundle.ErrFormat},
		{"one that compiles to another set", bundle.Resign(t, o.key, broken), bundle.ErrDigest},
	} {
		value := []byte("garbage")
		if c.data != nil {
			value = bundle.Pack(t, c.data)
		}
		logged := p.text.count("is refused")
		o.raw(t, nc, value)
		within(t, c.name+" to be refused", func() bool { return errors.Is(p.m.Status().Refused, c.want) })
		if s := p.m.Status(); s.Position.Version != 5 || s.RefusedAt.IsZero() || p.engine.Policies().Digest() != good.Digest {
			t.Errorf("%s: %+v", c.name, s)
		}
		// Read again and again, it is logged once.
		for range 3 {
			if err := p.m.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if n := p.text.count("is refused") - logged; n != 1 {
			t.Errorf("%s: logged %d times", c.name, n)
		}
		if v := p.decide(t, events.OnPublish, event(t, "1", "a")); v.Action != events.Allow {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
	next := create(t, draft(8), o.key)
	o.raw(t, nc, bundle.Pack(t, next.Bytes()))
	within(t, "a good one again", p.version(8))
}

// A key that becomes trusted makes its bundle good, without a restart.
func TestTrustIsReadAnew(t *testing.T) {
	srv := natstest.Start(t)
	nc := srv.Connect()
	o := newOffice(t, nc)
	list := filepath.Join(t.TempDir(), "trusted")
	if err := bundle.WriteTrust(list, o.key.Public()); err != nil {
		t.Fatal(err)
	}
	o.must(t, draft(1), false)
	p := o.start(t, srv.Connect(), trusting(bundle.TrustFile(list)), polling(20*time.Millisecond))
	next := key(t, "bob")
	o.raw(t, nc, bundle.Pack(t, create(t, draft(2), next).Bytes()))
	within(t, "the new key to be unknown", func() bool { return errors.Is(p.m.Status().Refused, bundle.ErrUntrusted) })
	if err := os.WriteFile(list, []byte(o.key.Public()+"\n"+next.Public()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	within(t, "the new key to be trusted", p.version(2))
}

func TestStartWithoutTheStore(t *testing.T) {
	srv := natstest.Start(t)
	nc := srv.Connect()
	o := newOffice(t, nc)
	dir := t.TempDir()
	o.must(t, draft(3), false)
	p := o.start(t, nc, inDir(dir))
	within(t, "the first", p.version(3))
	p.close(t)
	srv.Stop()
	begin := func(wait time.Duration, dir string, tr *bundle.Trust) (*bundle.Manager, error) {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		return bundle.NewManager(ctx, bundle.ManagerConfig{Store: store(t, nc), Trust: bundle.Trusting(tr), Dir: dir, Log: slog.New(slog.DiscardHandler)})
	}
	if _, err := begin(200*time.Millisecond, t.TempDir(), o.trust); !errors.Is(err, bundle.ErrUnavailable) || !errors.Is(err, bundle.ErrNotFound) {
		t.Errorf("without a copy: %v", err)
	}
	m, err := begin(200*time.Millisecond, dir, o.trust)
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Status(); s.Source != bundle.FromDisk || s.Position.Version != 3 || !errors.Is(s.Reached, bundle.ErrUnavailable) || m.Policies() == nil {
		t.Errorf("%+v", s)
	}
	copyPath := filepath.Join(dir, "policies-default.bundle")
	raw, err := os.ReadFile(copyPath)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data  []byte
		trust *bundle.Trust
		want  error
	}{
		"an altered copy":            {bytes.Replace(raw, []byte("'a'"), []byte("'b'"), 1), o.trust, bundle.ErrContent},
		"a copy of no trusted key":   {raw, trust(t, key(t, "bob")), bundle.ErrUntrusted},
		"an earlier copy":            {create(t, draft(2), o.key).Bytes(), o.trust, bundle.ErrRollback},
		"another copy of that name":  {create(t, draft(3, policy("x", "batch.published")), o.key).Bytes(), o.trust, bundle.ErrRollback},
		"a copy that is no bundle":   {[]byte("x"), o.trust, bundle.ErrFormat},
		"a copy without end, nearly": {make([]byte, bundle.MaxBytes+1), o.trust, bundle.ErrTooLarge},
	} {
		if err := os.WriteFile(copyPath, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := begin(50*time.Millisecond, dir, c.trust); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whoever restores an old stream, or takes the bucket away, rolls nothing back.
func TestAStoreThatWasRolledBack(t *testing.T) {
	srv := natstest.Start(t)
	o := newOffice(t, srv.Connect())
	dir := t.TempDir()
	o.must(t, draft(1), false)
	o.must(t, draft(2, policy("subjects", "batch.published", "b")), false)
	p := o.start(t, srv.Connect(), inDir(dir))
	within(t, "the second", p.version(2))
	p.close(t)

	// Another server, whose stream ends with version 1.
	old := natstest.Start(t)
	before := &office{store: store(t, old.Connect()), key: o.key, trust: o.trust, log: &governance.MemoryLog{}}
	before.must(t, draft(1), false)
	q := before.start(t, old.Connect(), inDir(dir), polling(20*time.Millisecond))
	if s := q.m.Status(); s.Source != bundle.FromDisk || s.Position.Version != 2 || !errors.Is(s.Refused, bundle.ErrRollback) {
		t.Errorf("%+v", s)
	}
	if v := q.decide(t, events.OnPublish, event(t, "1", "b")); v.Action != events.Allow {
		t.Errorf("%+v", v)
	}
	// A third without any: the copy stays in force, and what follows is taken.
	empty := natstest.Start(t)
	after := &office{store: store(t, empty.Connect()), key: o.key, trust: o.trust, log: &governance.MemoryLog{}}
	r := after.start(t, empty.Connect(), inDir(dir), polling(20*time.Millisecond))
	if s := r.m.Status(); s.Position.Version != 2 || !errors.Is(s.Refused, bundle.ErrMissing) {
		t.Errorf("%+v", s)
	}
	after.must(t, draft(3), false)
	within(t, "the third", r.version(3))
	// Only a bundle of the next epoch goes back, and then the other way is closed.
	back := bundle.Draft{Position: bundle.Position{Epoch: 1, Version: 1}, Created: created, Author: "alice", Reason: "3 was wrong", Sources: draft(1).Sources}
	after.must(t, back, true)
	within(t, "the roll-back", func() bool { return r.m.Status().Position == back.Position })
	after.raw(t, empty.Connect(), bundle.Pack(t, create(t, draft(4), o.key).Bytes()))
	within(t, "the earlier epoch to be refused", func() bool { return errors.Is(r.m.Status().Refused, bundle.ErrRollback) })
	// Who only looks sees the same, and leaves the files alone.
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	looking, _, err := after.manager(t, empty.Connect(), inDir(dir), func(c *bundle.ManagerConfig) { c.ReadOnly = true })
	if err != nil || looking.Status().Position != back.Position || looking.Status().Source != bundle.FromDisk {
		t.Errorf("looking: %v", err)
	}
	if now, err := os.ReadDir(dir); err != nil || len(now) != len(files) {
		t.Errorf("files %v, %v", now, err)
	}
	// Without the copy and with the floor, a start fails closed.
	r.close(t)
	if err := os.Remove(filepath.Join(dir, "policies-default.bundle")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := after.manager(t, empty.Connect(), inDir(dir)); !errors.Is(err, bundle.ErrRollback) {
		t.Errorf("got %v", err)
	}
}

func TestTheWatchOutlivesTheServer(t *testing.T) {
	srv := natstest.Start(t, natstest.SyncAlways())
	o := newOffice(t, srv.Connect())
	o.must(t, draft(1), false)
	p := o.start(t, srv.Connect(), inDir(t.TempDir()))
	within(t, "the first", p.version(1))
	for v := uint64(2); v < 4; v++ {
		srv.Stop()
		if v := p.decide(t, events.OnPublish, event(t, "1", "a")); v.Action != events.Allow {
			t.Errorf("while the server is down: %+v", v)
		}
		srv.Restart()
		b := create(t, draft(v), o.key)
		within(t, "applying after the restart", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := o.apply(ctx, b, false)
			return err == nil
		})
		took := within(t, "the swap after the restart", p.version(v))
		t.Logf("taken over %s after it was applied", took)
	}
}

// A disk that refuses does not keep new policies from taking effect.
func TestACopyThatCannotBeKept(t *testing.T) {
	srv := natstest.Start(t)
	o := newOffice(t, srv.Connect())
	dir := filepath.Join(t.TempDir(), "gone")
	p := o.start(t, srv.Connect(), inDir(dir), polling(20*time.Millisecond))
	o.must(t, draft(1), false)
	within(t, "the first", p.version(1))
	if s := p.m.Status(); !errors.Is(s.Kept, os.ErrNotExist) {
		t.Errorf("%+v", s)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	within(t, "the copy to be kept", func() bool { return p.m.Status().Kept == nil })
	if _, err := os.Stat(filepath.Join(dir, "policies-default.bundle")); err != nil {
		t.Error(err)
	}
}

// While sets are swapped under load, each event is judged by exactly one: its
// decision names the set whose rule decided.
func TestSwapUnderLoad(t *testing.T) {
	srv := natstest.Start(t)
	o := newOffice(t, srv.Connect())
	o.must(t, draft(1, policy("subjects", "batch.published", "v1")), false)
	a, b := o.start(t, srv.Connect(), inDir(t.TempDir())), o.start(t, srv.Connect(), inDir(t.TempDir()))
	const versions = 12
	digests := map[string]string{a.m.Status().Digest: "v1"}
	var stop atomic.Bool
	var judged, crossed atomic.Int64
	var work sync.WaitGroup
	seen := make([][]governance.Decision, 2)
	for i, p := range []*process{a, b} {
		other := []*process{b, a}[i]
		work.Go(func() {
			for n := 0; !stop.Load(); n++ {
				var evs []*events.Event
				for v := 1; v <= versions; v++ {
					evs = append(evs, event(t, fmt.Sprintf("%d-%d-%d", i, n, v), fmt.Sprintf("v%d", v)))
				}
				vs, err := p.judge.Judge(context.Background(), events.OnPublish, evs)
				if err != nil {
					t.Error(err)
					return
				}
				allowed := 0
				for j, v := range vs {
					if !v.Action.Permits() {
						continue
					}
					allowed++
					// The other process has swapped a moment before or after this one: it
					// must take the stamp for what it is.
					r, err := other.judge.Judge(context.Background(), events.OnReceive, evs[j:j+1])
					if err != nil || r[0].Action == events.Quarantine {
						t.Errorf("at the other process: %+v, %v", r, err)
						return
					}
					crossed.Add(1)
				}
				if allowed != 1 {
					t.Errorf("one call was judged by several sets: %d of %d events allowed", allowed, versions)
					return
				}
				judged.Add(int64(len(vs)))
				if len(seen[i]) < 200_000 {
					seen[i] = append(seen[i], p.log.take()...)
				}
			}
		})
	}
	for v := uint64(2); v <= versions; v++ {
		at := judged.Load()
		bd := o.must(t, draft(v, policy("subjects", "batch.published", fmt.Sprintf("v%d", v))), false)
		set, err := bd.Load(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		digests[set.ShortDigest()] = fmt.Sprintf("v%d", v)
		within(t, "the swap", a.version(v))
		within(t, "the swap", b.version(v))
		within(t, "load under the new set", func() bool { return judged.Load() > at+10*versions || t.Failed() })
	}
	stop.Store(true)
	work.Wait()
	for _, ds := range seen {
		for _, d := range ds {
			subject, ok := digests[d.Digest]
			if !ok {
				t.Fatalf("a decision of no set: %+v", d)
			}
			if d.Point == events.OnPublish && d.Action.Permits() != (d.Subject == subject) {
				t.Fatalf("not what set %s decides: %+v", subject, d)
			}
		}
	}
	t.Logf("%d events judged, %d handed from one process to the other, over %d swaps", judged.Load(), crossed.Load(), 2*(versions-1))
}

// A made-up digest makes the store be read once, and then waits its turn.
func TestUnknownStampsReadTheStoreSeldom(t *testing.T) {
	srv := natstest.Start(t)
	nc := srv.Connect()
	o := newOffice(t, srv.Connect())
	o.must(t, draft(1), false)
	p := o.start(t, nc, inDir(t.TempDir()))
	ev := event(t, "1", "a")
	ev.SetExtension(governance.ExtStamp, strings.Repeat("0", 32)+"."+strings.Repeat("0", 32)+"."+strings.Repeat("A", 43)+".k1")
	before := nc.Stats().OutMsgs
	for range 1000 {
		if v := p.decide(t, events.OnReceive, ev); v.Action != events.Quarantine {
			t.Fatalf("%+v", v)
		}
	}
	if n := nc.Stats().OutMsgs - before; n > 30 {
		t.Errorf("%d messages for 1000 events of one made-up digest", n)
	}
}
