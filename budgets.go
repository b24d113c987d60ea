package stokehold

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/governance/budget"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/workflows"
)

// Worker is what this process is, for policies (the variable worker) and for the
// books.
type Worker struct {
	Name   string
	Class  string
	Region string
	// Accelerator is what stages of this process itself hold, e.g. nvidia-h100, and
	// Accelerators how many (0 is 1). Empty: none, they count as budget.CPU. For
	// stages in children worker.Config says it.
	Accelerator  string
	Accelerators int
	Precisions   []string // that it computes in, e.g. fp8
	Address      string   // IP
}

func (w Worker) validate() []error {
	if w.Accelerators < 0 || w.Accelerators > 0 && w.Accelerator == "" {
		return []error{fmt.Errorf("%d accelerators %q of the worker: want a kind, and a number that is not negative", w.Accelerators, w.Accelerator)}
	}
	return nil
}

// noAccelerator is what policies see of a worker without one.
const noAccelerator = "none"

// openBudgets follows the limits and the ledger. A process that only observes does
// when a policy first asks: it would read all of the ledger for nothing.
func (a *App) openBudgets(ctx context.Context, o options) error {
	open := func(ctx context.Context) (*budget.Ledger, error) {
		return budget.Open(ctx, budget.Config{Conn: a.nc, ReadOnly: o.observing, Logger: a.cfg.Log})
	}
	if !o.observing {
		l, err := open(ctx)
		if err != nil {
			return err
		}
		a.Budgets = l
		a.onClose(l.Close)
		return nil
	}
	a.asked.open = open
	a.onClose(a.asked.close)
	return nil
}

// askedLedger is a ledger that is opened when it is first asked.
type askedLedger struct {
	open func(context.Context) (*budget.Ledger, error) // nil: there is none

	mu     sync.Mutex
	ledger *budget.Ledger
}

func (a *askedLedger) get(ctx context.Context) (*budget.Ledger, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ledger != nil || a.open == nil {
		return a.ledger, nil
	}
	var err error
	a.ledger, err = a.open(ctx)
	return a.ledger, err
}

func (a *askedLedger) close(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open = nil
	if a.ledger == nil {
		return nil
	}
	return a.ledger.Close(ctx)
}

func (a *App) budgetFacts(ctx context.Context, ev *events.Event, known *governance.Budget) error {
	l := a.Budgets
	if l == nil {
		var err error
		if l, err = a.asked.get(ctx); l == nil {
			return err
		}
	}
	return l.Facts(ctx, ev, known)
}

// workerFacts says where an event was published or is to be handled: by this
// process, or by the child that runs the stage which the event names.
func (a *App) workerFacts(_ context.Context, ev *events.Event, known *governance.Worker) error {
	w := a.cfg.Worker
	known.Name, known.Class, known.Region, known.Address, known.Precisions = w.Name, w.Class, w.Region, w.Address, w.Precisions
	known.Accelerator = w.Accelerator
	text := func(name string) string {
		s, _ := ev.Extensions()[name].(string)
		return s
	}
	if kind, ok := a.childOf(text(events.ExtPipeline), text(events.ExtStage)); ok {
		known.Accelerator = kind
	}
	if known.Accelerator == "" {
		known.Accelerator = noAccelerator
	}
	return nil
}

// childOf is the accelerator of the child that a stage of this process's pipelines
// runs in; false for stages that run in none.
func (a *App) childOf(pipeline, stage string) (string, bool) {
	at := a.hosting.Load()
	if at == nil {
		return "", false
	}
	for _, d := range at.pipelines {
		if d.Name != pipeline {
			continue
		}
		for _, s := range d.Graph {
			if s.Name == stage && (s.ChildProcess || s.Worker != "") {
				return at.runtime.Device(stages.Assignment{ChildProcess: true, Worker: s.Worker}).Accelerator, true
			}
		}
	}
	return "", false
}

// hosted is what Work hosts.
type hosted struct {
	pipelines []*workflows.Definition
	runtime   *stages.Runtime
}

// BudgetDesk is a connection for those who look at budgets and propose others: to NATS
// and Temporal, without a judge. NATS credentials of the role budget-author
// suffice. Close it.
type BudgetDesk struct {
	Store  *budget.Store
	Ledger *budget.Ledger

	app *App
}

// ConnectBudgets connects a BudgetDesk.
func ConnectBudgets(ctx context.Context, cfg Config) (_ *BudgetDesk, err error) {
	d := &BudgetDesk{app: &App{cfg: cfg.withDefaults()}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err = d.app.connectNATS(ctx, options{}); err != nil {
		return nil, err
	}
	if err = d.app.openBudgets(ctx, options{observing: true}); err != nil {
		return nil, err
	}
	if d.Ledger, err = d.app.asked.get(ctx); err != nil {
		return nil, err
	}
	d.Store, err = budget.NewStore(d.app.nc, "")
	return d, err
}

// Whoami is the actor that the NATS credentials stand for; claimed is the name that
// the person gives, see approval.Whoami.
func (d *BudgetDesk) Whoami(ctx context.Context, claimed string) (string, error) {
	actors, err := d.app.cfg.directory()
	if err != nil {
		return "", err
	}
	return approval.Whoami(ctx, d.app.nc, actors, claimed)
}

// Close disconnects. Repeatable.
func (d *BudgetDesk) Close(ctx context.Context) error { return d.app.Close(ctx) }

// budgetGate reaches Temporal once there is a change to make, and notes how many runs
// were told.
type budgetGate struct {
	desk *BudgetDesk
	told int
}

func (g *budgetGate) Make(ctx context.Context, p budget.Proposal) (budget.Entry, error) {
	app := g.desk.app
	if app.Temporal == nil {
		if err := app.dialTemporal(ctx, options{}); err != nil {
			return budget.Entry{}, err
		}
	}
	made, err := workflows.BudgetGate{Client: app.Temporal, Store: g.desk.Store, TaskQueue: app.cfg.Temporal.TaskQueue}.Change(ctx, p)
	g.told = made.Told
	return made.Entry, err
}

// Change runs one of budget.Apply, Set and Raise. What comes of that is proposed, and a
// worker of the deployment works out what it changes, has that judged as the event
// budget.changed, makes the change, with the actor and the reason on record, and tells the
// runs that wait (workflows.BudgetGate, whose errors say what came of it).
func (d *BudgetDesk) Change(ctx context.Context, actor, reason string, change func(context.Context, budget.Changing) (budget.Entry, error)) (_ budget.Entry, told int, err error) {
	gate := &budgetGate{desk: d}
	e, err := change(ctx, budget.Changing{Store: d.Store, Gate: gate, Actor: strings.TrimSpace(actor), Reason: reason})
	return e, gate.told, err
}
