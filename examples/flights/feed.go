package flights

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages/drift"
)

// Bus is what the feeder needs of a bus; *events.Bus is one.
type Bus interface {
	Publish(ctx context.Context, evs ...events.Event) error
	Replay(ctx context.Context, s events.Subscription) iter.Seq2[events.Delivery, error]
	Subscribe(ctx context.Context, s events.Subscription, h events.Handler) (*events.Consumer, error)
}

// Outcome is what a week came to.
type Outcome struct {
	drift.Report
	Retrained  bool   `json:"retrained"`
	Run        string `json:"run,omitempty"`        // the retraining's
	Challenger string `json:"challenger,omitempty"` // version that it made
	Promoted   bool   `json:"promoted"`
	Reason     string `json:"reason,omitempty"` // why the challenger was promoted or refused, or why nothing was retrained
}

// Feeder is the outside world: week by week it says that flights have left, waits
// for their predictions, says that their delays are known, and waits until the
// loop has dealt with that. It keeps nothing: what happened is read from the
// event stream, and its events have the same ids whenever they are published
// again, so after a crash it goes on where the stream ends.
type Feeder struct {
	Bus  Bus
	Data *Data
	// From and To are the live weeks; default FirstLive to the end of the data.
	From, To uint64
	// OnWeek is called after each week, in order, also for those found in the
	// stream; nil: nothing is called.
	OnWeek func(Outcome)
	Log    *slog.Logger
}

// ErrFirstModel means: there is no model to go live with.
var ErrFirstModel = errors.New("flights: no first model")

// Run feeds all live weeks and returns their outcomes. It waits for the first
// champion before anything else: start flights-train with {"week": 6}.
func (f *Feeder) Run(ctx context.Context) ([]Outcome, error) {
	from, to := f.From, f.To
	if from == 0 {
		from = FirstLive
	}
	if to == 0 {
		to = f.Data.Weeks
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := newWorld(f.Log)
	stop, err := w.follow(ctx, f.Bus)
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := w.await(ctx, func() (bool, error) { return w.champion, w.firstFailed() }); err != nil {
		return nil, fmt.Errorf("wait for the first model: %w", err)
	}
	var out []Outcome
	for week := from; week < to; week++ {
		o, err := f.week(ctx, w, week)
		if err != nil {
			return out, fmt.Errorf("flights: week %d: %w", week, err)
		}
		out = append(out, o)
		if f.OnWeek != nil {
			f.OnWeek(o)
		}
	}
	return out, nil
}

func (f *Feeder) week(ctx context.Context, w *world, week uint64) (Outcome, error) {
	rows, err := f.Data.Rows(ctx, week)
	if err != nil {
		return Outcome{}, err
	}
	if err := f.say(ctx, w, TypeDataArrived, week, DataArrived{Week: week, Rows: rows}); err != nil {
		return Outcome{}, err
	}
	if err := w.await(ctx, func() (bool, error) {
		return w.scored[week], w.failed(id(TypeDataArrived, week))
	}); err != nil {
		return Outcome{}, fmt.Errorf("wait for predictions: %w", err)
	}
	if err := f.say(ctx, w, TypeLabelsArrived, week, LabelsArrived{Week: week, Rows: rows}); err != nil {
		return Outcome{}, err
	}
	if err := w.await(ctx, func() (bool, error) {
		_, ok := w.closed[week]
		return ok, w.failed(id(TypeLabelsArrived, week))
	}); err != nil {
		return Outcome{}, fmt.Errorf("wait for the monitor: %w", err)
	}
	o := Outcome{}
	err = w.await(ctx, func() (bool, error) {
		o = Outcome{Report: w.closed[week]}
		return w.settle(&o), nil
	})
	if err != nil {
		return o, fmt.Errorf("wait for the retraining: %w", err)
	}
	return o, nil
}

// id is that of the feeder's event of a week.
func id(typ string, week uint64) string { return fmt.Sprintf("flights/%s/%d", typ, week) }

// say publishes an event of the outside world once. The stream is asked first,
// because the server forgets ids after a while.
func (f *Feeder) say(ctx context.Context, w *world, typ string, week uint64, data any) error {
	if w.said(id(typ, week)) {
		return nil
	}
	e, err := events.New(typ, feederSource, subject, id(typ, week), f.Data.End(week), data)
	if err != nil {
		return err
	}
	return f.Bus.Publish(ctx, e)
}

// world is what the event stream has told so far.
type world struct {
	log *slog.Logger

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced on every event
	own        map[string]bool
	champion   bool
	scored     map[uint64]bool
	closed     map[uint64]drift.Report
	runOf      map[string]string // event id -> run that it led to
	suppressed map[string]string // event id -> reason
	ended      map[string]string // run -> "" or why it failed
	pipeline   map[string]string // run -> pipeline
	caused     map[string]string // run -> event id
	promoted   map[string]events.ModelPromoted
	refused    map[string]events.ModelRefused
}

func newWorld(log *slog.Logger) *world {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &world{
		log: log, changed: make(chan struct{}), own: map[string]bool{}, scored: map[uint64]bool{}, closed: map[uint64]drift.Report{},
		runOf: map[string]string{}, suppressed: map[string]string{}, ended: map[string]string{}, pipeline: map[string]string{}, caused: map[string]string{},
		promoted: map[string]events.ModelPromoted{}, refused: map[string]events.ModelRefused{},
	}
}

func worldTypes() []string {
	return []string{
		TypeDataArrived, TypeLabelsArrived, TypeScored, TypeWeekClosed,
		events.TypeTriggerFired, events.TypeTriggerSuppressed, events.TypeRunStarted, events.TypeRunCompleted, events.TypeRunFailed,
		events.TypeModelPromoted, events.TypeModelRefused,
	}
}

// follow reads the stream as it is, then what comes.
func (w *world) follow(ctx context.Context, bus Bus) (stop func(), err error) {
	next := uint64(1)
	for d, err := range bus.Replay(ctx, events.Subscription{Types: worldTypes()}) {
		if err != nil {
			var refused *events.DeniedError
			if errors.As(err, &refused) || errors.Is(err, events.ErrInvalid) {
				w.log.Warn("an event in the stream is not believed", "sequence", d.Sequence, "error", err)
				continue
			}
			return nil, fmt.Errorf("flights: read the event stream: %w", err)
		}
		w.learn(d.Event)
		next = d.Sequence + 1
	}
	c, err := bus.Subscribe(ctx, events.Subscription{Types: worldTypes(), Start: next}, func(_ context.Context, d events.Delivery) error {
		w.learn(d.Event)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("flights: follow the event stream: %w", err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			w.log.Warn("the feeder's subscription did not stop", "error", err)
		}
	}, nil
}

func (w *world) learn(e events.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var err error
	switch e.Type() {
	case TypeDataArrived, TypeLabelsArrived:
		w.own[e.ID()] = true
	case TypeScored:
		var d Scored
		err = json.Unmarshal(e.Data(), &d)
		w.scored[d.Week] = err == nil
	case TypeWeekClosed:
		var d drift.Report
		if err = json.Unmarshal(e.Data(), &d); err == nil {
			w.closed[d.Key] = d
		}
	case events.TypeTriggerFired:
		var d events.TriggerFired
		err = json.Unmarshal(e.Data(), &d)
		for _, id := range d.Events {
			w.runOf[id] = d.Run
		}
	case events.TypeTriggerSuppressed:
		var d events.TriggerSuppressed
		err = json.Unmarshal(e.Data(), &d)
		for _, id := range d.Events {
			w.suppressed[id] = d.Reason
		}
	case events.TypeRunStarted:
		var d events.RunStarted
		err = json.Unmarshal(e.Data(), &d)
		w.pipeline[d.Run], w.caused[d.Run] = d.Pipeline, d.Cause
		if d.Cause != "" {
			w.runOf[d.Cause] = d.Run
		}
	case events.TypeRunCompleted:
		var d events.RunCompleted
		err = json.Unmarshal(e.Data(), &d)
		w.ended[d.Run] = ""
	case events.TypeRunFailed:
		var d events.RunFailed
		err = json.Unmarshal(e.Data(), &d)
		w.ended[d.Run] = "failed: " + d.Reason
	case events.TypeModelPromoted:
		var d events.ModelPromoted
		if err = json.Unmarshal(e.Data(), &d); err == nil && d.Model == Model && d.Alias == models.Champion {
			w.champion = true
			w.promoted[d.Run] = d
		}
	case events.TypeModelRefused:
		var d events.ModelRefused
		if err = json.Unmarshal(e.Data(), &d); err == nil && d.Model == Model {
			w.refused[d.Run] = d
		}
	}
	if err != nil {
		w.log.Warn("an event's data cannot be read", "id", e.ID(), "type", e.Type(), "error", err)
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *world) said(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.own[id]
}

// await waits until done, which is called under the lock after each event.
func (w *world) await(ctx context.Context, done func() (bool, error)) error {
	for {
		w.mu.Lock()
		ok, err := done()
		changed := w.changed
		w.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// firstFailed says why there will be no first model, once that is known: a run
// that no event caused ended without a champion.
func (w *world) firstFailed() error {
	for run, why := range w.ended {
		if w.pipeline[run] != TrainPipeline || w.caused[run] != "" || w.champion {
			continue
		}
		if r, ok := w.refused[run]; ok {
			return fmt.Errorf("%w: run %s: refused: %s", ErrFirstModel, run, r.Reason)
		}
		if why != "" {
			return fmt.Errorf("%w: run %s %s", ErrFirstModel, run, why)
		}
	}
	return nil
}

// failed says that the run that an event led to has failed.
func (w *world) failed(event string) error {
	if run, ok := w.runOf[event]; ok {
		if why := w.ended[run]; why != "" {
			return fmt.Errorf("run %s %s", run, why)
		}
	}
	return nil
}

// settle completes a week's outcome and reports whether it is known.
func (w *world) settle(o *Outcome) bool {
	if !o.Drift {
		return true
	}
	if o.Denied != "" {
		o.Reason = "drift was not acted upon: " + o.Denied
		return true
	}
	if why, ok := w.suppressed[o.Event]; ok {
		o.Reason = "not retrained: " + why
		return true
	}
	run, ok := w.runOf[o.Event]
	if !ok {
		return false
	}
	why, ok := w.ended[run]
	if !ok {
		return false
	}
	o.Retrained, o.Run, o.Reason = true, run, why
	if p, ok := w.promoted[run]; ok {
		o.Promoted, o.Challenger, o.Reason = true, p.Version, ""
	} else if r, ok := w.refused[run]; ok {
		o.Challenger, o.Reason = r.Version, r.Reason
	} else if why == "" {
		o.Reason = "the retrained model is the champion"
	}
	return true
}
