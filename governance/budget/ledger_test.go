package budget_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/internal/natstest"
)

const limits = `
apiVersion: stokehold.dev/v1
kind: Budgets
currency: EUR
timeZone: Europe/Berlin
prices: {nvidia-h100: 0.5, nvidia-l4: 0.1}
teams: {late: [train, score]}
budgets:
  - {scope: team/late, window: month, money: 100, acceleratorSeconds: 1000}
  - {scope: pipeline/train, window: day, seconds: {nvidia-h100: 60, cpu: 3600}}
  - {scope: run/*, money: 20}
  - {scope: run/train/*, money: 30}
`

func open(t *testing.T, s *natstest.Server, clock func() time.Time) *budget.Ledger {
	t.Helper()
	l, err := budget.Open(t.Context(), budget.Config{Conn: s.Connect(), Clock: clock, Wait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// told is a bus that notes what it is told, or refuses it.
type told struct {
	events []events.Event
	err    error
}

func (b *told) Publish(_ context.Context, evs ...events.Event) error {
	if b.err == nil {
		b.events = append(b.events, evs...)
	}
	return b.err
}

// changing is who changes limits in tests; what is on record is in the log.
func changing(t *testing.T, s *natstest.Server) (budget.Changing, *governance.MemoryLog) {
	t.Helper()
	store, err := budget.NewStore(s.Connect(), "")
	if err != nil {
		t.Fatal(err)
	}
	log := &governance.MemoryLog{}
	return budget.Changing{Store: store, Gate: budget.Gate{Store: store, Log: log, Bus: &told{}}, Actor: "ann", Reason: "a test"}, log
}

func apply(t *testing.T, s *natstest.Server, doc string) {
	t.Helper()
	c, _ := changing(t, s)
	e, err := c.Store.Get(t.Context())
	if err != nil && !errors.Is(err, budget.ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := budget.Apply(t.Context(), c, []byte(doc), e.Revision); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// knows waits until the ledger has a document.
func knows(t *testing.T, l *budget.Ledger) {
	t.Helper()
	eventually(t, "the document", func() bool { d, err := l.Document(); return err == nil && d != nil })
}

func use(day, team, kind string, seconds, money int64) []budget.Use {
	return []budget.Use{{Day: day, Team: team, Accelerator: kind, Seconds: budget.Micro(seconds * 1e6), Money: budget.Micro(money * 1e6)}}
}

func balance(t *testing.T, s budget.Standing, scope, resource string) budget.Balance {
	t.Helper()
	for _, b := range s.Balances {
		if b.Scope == scope && b.Resource == resource {
			return b
		}
	}
	t.Fatalf("no balance of %s for %s in %+v", resource, scope, s.Balances)
	return budget.Balance{}
}

// Many ledgers take shuffled, repeated reports of many attempts at once, while the
// server goes away and comes back and ledgers die; the sum is that of the attempts.
func TestConcurrentReportsCountOnce(t *testing.T) {
	s := natstest.Start(t)
	apply(t, s, limits)
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	const runs, attempts, reports, writers = 3, 4, 6, 4
	var all []budget.Report
	for run := range runs {
		for a := range attempts {
			for n := range reports {
				all = append(all, budget.Report{
					Pipeline: "train", Run: fmt.Sprintf("train/r%d", run), Stage: fmt.Sprint("s", a%2), Attempt: 1 + a, Number: int64(n + 1),
					Final: n == reports-1 && a%2 == 0, Used: use("2026-11-28", "late", "nvidia-h100", int64(n), int64(2*n)),
				})
			}
		}
	}
	var wait sync.WaitGroup
	var ledgers [writers]*budget.Ledger
	var conns [writers]*nats.Conn
	for w := range writers {
		ledgers[w], conns[w] = open(t, s, clock), s.Connect()
	}
	for w := range writers {
		order := rand.New(rand.NewPCG(7, uint64(w))) //nolint:gosec // an order, not a secret
		l, conn := ledgers[w], conns[w]
		wait.Go(func() {
			defer func() { _ = l.Close(context.Background()) }()
			for i, at := range order.Perm(len(all)) {
				if w == 0 && i == len(all)/2 {
					s.Restart()
				}
				if i == len(all)/3 { // dies, and another goes on
					_ = l.Close(context.Background())
					l = nil
				}
				for l == nil {
					var err error
					if l, err = budget.Open(t.Context(), budget.Config{Conn: conn, Clock: clock, Wait: 300 * time.Millisecond}); err != nil && !errors.Is(err, budget.ErrUnavailable) {
						t.Error(err)
						return
					}
				}
				for {
					_, err := l.Record(t.Context(), all[at])
					if err == nil {
						break
					}
					if !errors.Is(err, budget.ErrUnavailable) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wait.Wait()
	const want = runs * attempts * (reports - 1)
	for range 2 { // by one that saw it grow or starts now
		l := open(t, s, clock)
		st, err := l.Standing(t.Context(), "train", "train/r1")
		if err != nil {
			t.Fatal(err)
		}
		if b := balance(t, st, "team/late", budget.Money); b.Spent != 2*want*1e6 {
			t.Errorf("the team spent %s, want %d", b.Spent, 2*want)
		}
		if b := balance(t, st, "pipeline/train", "seconds:nvidia-h100"); b.Spent != want*1e6 {
			t.Errorf("the pipeline used %s, want %d", b.Spent, want)
		}
		if b := balance(t, st, "run/train/r1", budget.Money); b.Spent != 2*want/runs*1e6 || b.Limit != 30e6 {
			t.Errorf("the run: %+v", b)
		}
	}
}

func TestWindows(t *testing.T) {
	s := natstest.Start(t)
	apply(t, s, limits)
	var mu sync.Mutex
	now := time.Date(2026, 11, 30, 22, 59, 0, 0, time.UTC) // 23:59 in Berlin
	l := open(t, s, func() time.Time { mu.Lock(); defer mu.Unlock(); return now })
	record := func(day string, number, seconds, money int64) budget.Standing {
		t.Helper()
		used := use("2026-11-30", "late", "nvidia-h100", 60, 10)
		if day != "2026-11-30" {
			used = append(used, use(day, "late", "nvidia-h100", seconds, money)...)
		}
		st, err := l.Record(t.Context(), budget.Report{Pipeline: "train", Run: "train/long", Stage: "fit", Attempt: 1, Number: number, Used: used})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	st := record("2026-11-30", 1, 0, 0)
	var out *budget.ExhaustedError
	if err := st.Exhausted("nvidia-h100"); !errors.As(err, &out) || out.Balance.Scope != "pipeline/train" || !out.Balance.Renews.Equal(time.Date(2026, 11, 30, 23, 0, 0, 0, time.UTC)) {
		t.Errorf("exhausted: %v", err)
	} else if !strings.Contains(err.Error(), "pipeline/train has spent 60 of 60 seconds of nvidia-h100 this day, until 2026-12-01 00:00 CET") {
		t.Errorf("it says %q", err)
	}
	if err := st.Exhausted("nvidia-l4"); err != nil {
		t.Errorf("another accelerator: %v", err)
	}
	if err := st.Exhausted("tpu"); err == nil || !strings.Contains(err.Error(), `accelerator "tpu" has no price`) {
		t.Errorf("without a price: %v", err)
	}
	if d := st.Lasts("nvidia-l4", 2, time.Hour); d != 100*time.Second { // 20 left of the run's 30, at 0.2 a second
		t.Errorf("lasts %v", d)
	}
	mu.Lock()
	now = now.Add(2 * time.Minute)
	mu.Unlock()
	st = record("2026-12-01", 2, 5, 3)
	if err := st.Exhausted("nvidia-h100"); err != nil {
		t.Errorf("the next day: %v", err)
	}
	if b := balance(t, st, "team/late", budget.Money); b.Spent != 3e6 {
		t.Errorf("the next month began with %s", b.Spent)
	}
	if b := balance(t, st, "run/train/long", budget.Money); b.Spent != 13e6 || !b.Renews.IsZero() {
		t.Errorf("the run: %+v", b)
	}
	all, err := l.Balances(t.Context())
	if err != nil || len(all) != 5 {
		t.Errorf("%d balances, %v: %+v", len(all), err, all)
	}
}

// Where nothing is known, nothing may be spent.
func TestFailsClosed(t *testing.T) {
	s := natstest.Start(t)
	apply(t, s, limits)
	l, err := budget.Open(t.Context(), budget.Config{Conn: s.Connect(), Wait: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close(context.Background()) }()
	r := budget.Report{Pipeline: "train", Run: "train/r", Stage: "fit", Attempt: 1, Number: 1}
	if _, err := l.Record(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	r.Number = 2
	if _, err := l.Record(t.Context(), r); !errors.Is(err, budget.ErrUnavailable) {
		t.Errorf("without a server: %v", err)
	}
	if _, err := l.Standing(t.Context(), "train", ""); !errors.Is(err, budget.ErrUnavailable) {
		t.Errorf("without a server: %v", err)
	}
	s.Restart()
	eventually(t, "the ledger", func() bool { _, err := l.Record(t.Context(), r); return err == nil })

	js, err := jetstream.New(s.Connect())
	if err != nil {
		t.Fatal(err)
	}
	usage, err := js.KeyValue(t.Context(), "stokehold_usage")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := usage.Put(t.Context(), "use.feed", []byte("{")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the damage", func() bool { _, err := l.Standing(t.Context(), "train", ""); return errors.Is(err, budget.ErrCorrupt) })
	if err := usage.Delete(t.Context(), "use.feed"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the repair", func() bool { _, err := l.Standing(t.Context(), "train", ""); return err == nil })

	docs, err := js.KeyValue(t.Context(), "stokehold_budgets")
	if err != nil {
		t.Fatal(err)
	}
	if err := docs.Delete(t.Context(), "document"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "deleted limits to be noticed", func() bool {
		_, err := l.Standing(t.Context(), "train", "")
		return errors.Is(err, budget.ErrUnavailable)
	})
	if _, err := open(t, s, nil).Standing(t.Context(), "train", ""); !errors.Is(err, budget.ErrUnavailable) {
		t.Errorf("deleted limits, to one that opens now: %v", err)
	}
	apply(t, s, limits)
	eventually(t, "the limits to be back", func() bool { _, err := l.Standing(t.Context(), "train", ""); return err == nil })
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := l.Record(t.Context(), r); !errors.Is(err, budget.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// A bucket that is full refuses, and says so.
func TestFullLedgerRefuses(t *testing.T) {
	s := natstest.Start(t)
	apply(t, s, limits)
	l, err := budget.Open(t.Context(), budget.Config{Conn: s.Connect(), MaxBytes: 512 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close(context.Background()) }()
	for i := range 1 << 14 {
		if _, err = l.Record(t.Context(), budget.Report{Run: fmt.Sprint(strings.Repeat("r", 400), i), Stage: "s", Attempt: 1, Number: 1}); err != nil {
			break
		}
	}
	if !errors.Is(err, budget.ErrUnavailable) || !strings.Contains(err.Error(), "maximum bytes exceeded") {
		t.Errorf("%v", err)
	}
}

func TestDocumentFaults(t *testing.T) {
	_, err := budget.ParseDocument([]byte(`
apiVersion: v0
kind: Budgets
currency: "€"
timeZone: Mars/Olympus
prices: {"H 100": 1}
teams: {a: [p], b: [p]}
budgets:
  - {scope: everything, money: 1}
  - {scope: pipeline/p, money: 1}
  - {scope: run/*, window: day, money: 1}
  - {scope: team/c, window: day, money: 1}
  - {scope: pipeline/p, window: day}
  - {scope: pipeline/q, window: day, money: 1}
  - {scope: pipeline/q, window: day, money: 2}
`))
	for _, want := range []string{"want stokehold.dev/v1", "currency", "timeZone", "H 100", "is of team a and of team b", "run/PIPELINE/*", "want day or month",
		"leave the window out", "no team \"c\"", "no limit", "pipeline/q day is there twice"} {
		if !errors.Is(err, budget.ErrInvalid) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	for _, doc := range []string{"", "x: 1", "{}\n---\n{}", "apiVersion: stokehold.dev/v1\nkind: Budgets\nbudgets: [{scope: run/*, money: -1}]", strings.Repeat("a", budget.MaxDocumentBytes+1)} {
		if _, err := budget.ParseDocument([]byte(doc)); !errors.Is(err, budget.ErrInvalid) {
			t.Errorf("%.40q: %v", doc, err)
		}
	}
}

// A meter counts what is held, to the microsecond, on the day when it was used.
func TestMeter(t *testing.T) {
	s := natstest.Start(t)
	l := open(t, s, nil)
	now := time.Date(2026, 11, 28, 22, 0, 0, 0, time.UTC)
	pass := func(d time.Duration) { now = now.Add(d) }
	m := budget.NewMeter(l, budget.Attempt{Pipeline: "train", Run: "train/r", Stage: "fit", Attempt: 1, Accelerator: "nvidia-h100", Count: 2}, func() time.Time { return now })
	pass(time.Second)
	if r := m.Snapshot(); r != nil {
		t.Errorf("without a document: %+v", r)
	}
	apply(t, s, limits)
	knows(t, l)
	pass(time.Second + 700*time.Nanosecond)
	resume := m.Idle()
	pass(time.Hour)
	resume()
	resume()
	pass(300 * time.Nanosecond)
	if r := m.Snapshot(); r.Number != 1 || fmt.Sprint(r.Used) != "[{2026-11-29 late nvidia-h100 4.000002 2.000001}]" {
		t.Errorf("%+v", r)
	}
	pass(24 * time.Hour)
	st, err := m.Report(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if b := balance(t, st, "run/train/r", budget.Money); b.Spent != 2*86400e6/2+2_000_001 {
		t.Errorf("%+v", b)
	}
}

// The ledger works with no more rights than a gate has, and limits are set with
// those of a budget author alone.
func TestRoles(t *testing.T) {
	var users []*server.User
	inbox := map[events.Role]string{}
	for _, role := range []events.Role{events.RoleGate, events.RoleBudgetAuthor} {
		g, err := events.Permissions(events.Access{Role: role})
		if err != nil {
			t.Fatal(err)
		}
		inbox[role] = g.Inbox
		users = append(users, &server.User{Username: string(role), Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: g.Publish}, Subscribe: &server.SubjectPermission{Allow: g.Subscribe},
		}})
	}
	s := natstest.Start(t, func(o *server.Options) { o.Users = users })
	as := func(role events.Role) *nats.Conn {
		return s.Connect(nats.UserInfo(string(role), "p"), nats.CustomInboxPrefix(inbox[role]))
	}
	gate, author := as(events.RoleGate), as(events.RoleBudgetAuthor)
	l, err := budget.Open(t.Context(), budget.Config{Conn: gate})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close(context.Background()) }()
	store, err := budget.NewStore(author, "")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := budget.NewStore(gate, "")
	if err != nil {
		t.Fatal(err)
	}
	bus, log := &told{}, &governance.MemoryLog{}
	judging := budget.Gate{Store: theirs, Log: log, Bus: bus}
	first := budget.Proposal{Actor: "ann", Reason: "a test", How: "applied", Document: documentJSON(t, limits)}
	id, err := store.Propose(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := judging.Draft(t.Context(), id)
	if err != nil || ev.Type() != events.TypeBudgetChanged || ev.Extensions()[events.ExtActor] != "ann" {
		t.Fatalf("%v, %v", ev, err)
	}
	for range 2 { // the second time finds that it is done
		if e, err := judging.Enact(t.Context(), id); err != nil || e.Actor != "ann" || e.Change != "4 budgets applied" {
			t.Errorf("%+v, %v", e, err)
		}
	}
	if _, err := judging.Draft(t.Context(), id); !errors.Is(err, budget.ErrConflict) {
		t.Errorf("proposed again: %v", err)
	}
	knows(t, l)
	day := time.Now().UTC().Format(time.DateOnly)
	if _, err := l.Record(t.Context(), budget.Report{Pipeline: "train", Run: "train/r", Stage: "fit", Attempt: 1, Number: 1, Used: use(day, "late", "nvidia-l4", 1, 1)}); err != nil {
		t.Error(err)
	}
	looking, err := budget.Open(t.Context(), budget.Config{Conn: author, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = looking.Close(context.Background()) }()
	if all, err := looking.Balances(t.Context()); err != nil || len(all) != 5 {
		t.Errorf("%+v, %v", all, err)
	}
	// Each can do its part alone.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := theirs.Propose(ctx, first); !errors.Is(err, budget.ErrUnavailable) {
		t.Errorf("a gate proposed: %v", err)
	}
	own, err := store.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	self := budget.Changing{Store: store, Gate: budget.Gate{Store: store, Log: &governance.MemoryLog{}, Bus: &told{}}, Actor: "ann", Reason: "a test"}
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := budget.Raise(ctx, self, "run/*", "", budget.Limits{Money: new(budget.Micro(1))}); !errors.Is(err, budget.ErrUnavailable) {
		t.Errorf("who may propose raised: %v", err)
	}
	if after, err := theirs.Get(t.Context()); err != nil || after.Revision != own.Revision {
		t.Errorf("revision %d, was %d, %v", after.Revision, own.Revision, err)
	}
}

// documentJSON is a document as proposals hold it.
func documentJSON(t *testing.T, doc string) json.RawMessage {
	t.Helper()
	d, err := budget.ParseDocument([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
