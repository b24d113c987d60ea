package budget

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Attempt is one attempt at a stage that is to be metered.
type Attempt struct {
	Pipeline, Run, Stage string
	Call                 string // see Report
	Attempt              int
	Accelerator          string // CPU if empty
	Count                int    // of them that it holds; default 1
}

// Recorder is where a Meter reports. *Ledger is the one outside tests.
type Recorder interface {
	Document() (*Document, error)
	Record(ctx context.Context, r Report) (Standing, error)
}

// Meter measures how long an attempt holds its accelerators, by the monotonic
// clock. It runs from the start; time that the attempt waits for a worker is taken
// out by Idle. Safe for concurrent use.
type Meter struct {
	to      Recorder
	attempt Attempt
	clock   func() time.Time

	mu     sync.Mutex
	idle   int
	since  time.Time // counted up to here
	rest   time.Duration
	report Report
	price  Price
	team   string
	known  bool  // team and price are: they are those of the first report
	early  Micro // used before there was a document
}

// NewMeter starts a meter. clock is the time to measure by; nil: time.Now.
func NewMeter(to Recorder, a Attempt, clock func() time.Time) *Meter {
	if clock == nil {
		clock = time.Now
	}
	if a.Accelerator == "" {
		a.Accelerator = CPU
	}
	a.Count = max(a.Count, 1)
	return &Meter{to: to, attempt: a, clock: clock, since: clock(), report: Report{
		Pipeline: a.Pipeline, Run: a.Run, Stage: a.Stage, Call: a.Call, Attempt: a.Attempt,
	}}
}

// Idle stops the meter until the function is called that it returns; more calls
// of that do nothing.
func (m *Meter) Idle() (resume func()) {
	m.mu.Lock()
	m.count()
	m.idle++
	m.mu.Unlock()
	return sync.OnceFunc(func() {
		m.mu.Lock()
		m.count()
		m.idle--
		m.mu.Unlock()
	})
}

// count takes the time that has passed; the caller holds the lock.
func (m *Meter) count() {
	now := m.clock()
	passed := now.Sub(m.since)
	m.since = now
	if m.idle > 0 || passed <= 0 {
		return
	}
	// A Micro is a microsecond; what is less than one is kept for the next time.
	passed = passed*time.Duration(m.attempt.Count) + m.rest
	whole := passed.Truncate(time.Microsecond)
	m.rest = passed - whole
	m.early += Micro(whole / time.Microsecond)
}

// Snapshot is a new report of what was used so far. Nil without a document, which
// is when nothing is recorded; what was used until there is one counts then.
func (m *Meter) Snapshot() *Report {
	d, err := m.to.Document()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count()
	if err == nil && d == nil && !m.known {
		return nil
	}
	if err == nil && d != nil {
		if !m.known {
			m.price, _ = d.price(m.attempt.Accelerator)
			m.team, m.known = d.Team(m.attempt.Pipeline), true
		}
		m.book(d.day(m.clock()))
	}
	// What cannot be put on a day now, because the limits cannot be read, is put on
	// the next one that can.
	m.report.Number++
	r := m.report
	r.Used = slices.Clone(r.Used)
	return &r
}

// book puts what was used since the last time on a day.
func (m *Meter) book(day string) {
	if m.early == 0 {
		return
	}
	u := Use{Day: day, Team: m.team, Accelerator: m.attempt.Accelerator, Seconds: m.early}
	m.report.Used = add(m.report.Used, []Use{u})
	i := slices.IndexFunc(m.report.Used, u.same)
	// From the sum, and not added up from parts that were rounded.
	m.report.Used[i].Money = m.price.cost(m.report.Used[i].Seconds)
	m.early = 0
}

// Report records what was used so far and returns what may still be spent. Without
// a document it does nothing. final: the attempt uses no more.
func (m *Meter) Report(ctx context.Context, final bool) (Standing, error) {
	if _, err := m.to.Document(); err != nil {
		return Standing{}, err
	}
	r := m.Snapshot()
	if r == nil {
		return Standing{}, nil
	}
	r.Final = final
	return m.to.Record(ctx, *r)
}

// Accelerator is what the attempt holds, and how many.
func (m *Meter) Accelerator() (kind string, count int) { return m.attempt.Accelerator, m.attempt.Count }
