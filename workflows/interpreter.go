package workflows

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/stages"
)

// Types of the application errors that runs fail with.
const (
	errTypeStage     = "stokehold.StageFailed"
	errTypePermanent = "stokehold.Permanent"
	errTypeRun       = "stokehold.RunFailed"
	errTypeStopping  = "stokehold.WorkerStopping"
)

// stageFailure is the detail of a failed run's error.
type stageFailure struct {
	Stage     string `json:"stage"`
	Attempts  int    `json:"attempts"`
	Reason    string `json:"reason"`
	Permanent bool   `json:"permanent,omitempty"`
}

type stageState int

const (
	waiting stageState = iota
	running
	done
	failed
	stopped
	parking // its attempt ended because people must approve, or for want of a budget; nobody has been asked yet
	parked  // waits for that, in no activity
)

func (s stageState) String() string {
	return [...]string{"waiting", "running", "done", "failed", "stopped", "parking", "waits for approval"}[s]
}

// interpreter runs one definition. Its state is rebuilt by replay, so nothing
// here may depend on anything but the arguments, the history and the order of
// the definition's lists.
type interpreter struct {
	args   runArgs
	run    string
	queue  string
	stages []*stageRun
	byName map[string]*stageRun // for lookups only: never ranged over
	failed *stageRun            // that failed first
	told   votes                // nil: nothing waited for one yet
	raises *int                 // signals of raised budgets; likewise
	start  *stageRun            // the run's start, where people must approve that; otherwise nil
}

type stageRun struct {
	def      StageDef
	state    stageState
	started  time.Time
	ended    time.Time
	future   StageFuture
	result   stages.Result
	err      error
	failure  stageFailure
	assigned stages.Assignment
	wait     approvalWait // of one that is or was parked
	budget   budgetWait   // likewise
	pausing  bool         // it is parked for want of a budget
	place    Place        // where governance sent it, beside what holds for the run
	moves    int          // how often it did
}

// runPipeline is the workflow stokehold.pipeline.
func runPipeline(ctx workflow.Context, args runArgs) (RunResult, error) {
	in := &interpreter{args: args, run: RunID(args.Definition.Name, args.Input.Run), byName: make(map[string]*stageRun)}
	if err := args.Definition.Validate(); err != nil {
		return RunResult{}, temporal.NewNonRetryableApplicationError(err.Error(), errTypeRun, nil)
	}
	for _, s := range args.Definition.Graph {
		r := &stageRun{def: s}
		in.stages = append(in.stages, r)
		in.byName[s.Name] = r
	}
	start := workflow.Now(ctx)
	in.show(ctx)
	err := in.begin(ctx)
	if err == nil {
		err = in.loop(ctx)
	}
	seconds := workflow.Now(ctx).Sub(start).Seconds()
	in.attributes(ctx)
	in.show(ctx)
	// The end is told even to a run that was cancelled.
	ending, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	if end := in.publishEnded(ending, seconds, err); end != nil && err == nil {
		err = temporal.NewNonRetryableApplicationError("the run's end could not be published: "+reason(end), errTypeRun, end)
	}
	in.notify(ending)
	if err != nil {
		return RunResult{}, err
	}
	return in.result(seconds), nil
}

// loop schedules each stage as soon as it may start and waits for all.
func (in *interpreter) loop(ctx workflow.Context) error {
	stagesCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	for {
		if in.failed == nil && ctx.Err() == nil {
			if err := in.schedule(stagesCtx); err != nil {
				cancel()
				in.drain(stagesCtx)
				return err
			}
		}
		if !in.wait(ctx) {
			break
		}
		if in.failed != nil {
			cancel()
		}
		in.attributes(ctx)
		in.show(ctx)
	}
	switch {
	case in.failed != nil:
		f := in.failed.failure
		return temporal.NewApplicationErrorWithOptions(
			fmt.Sprintf("stage %s failed on attempt %d: %s", f.Stage, f.Attempts, f.Reason), errTypeStage,
			temporal.ApplicationErrorOptions{NonRetryable: true, Cause: in.failed.err, Details: []any{f}})
	case ctx.Err() != nil:
		return temporal.NewCanceledError("the run was cancelled")
	}
	return nil
}

// schedule starts every stage that may start now.
func (in *interpreter) schedule(ctx workflow.Context) error {
	for again := true; again; {
		again = false
		for _, s := range in.stages {
			if s.state == parking {
				in.hold(ctx, s)
			}
			if s.state != waiting || !in.ready(s) {
				continue
			}
			// As it was, if it waited for people or a budget meanwhile, or was sent elsewhere.
			a := s.assigned
			if s.wait.parks == 0 && s.budget.pauses == 0 && s.moves == 0 {
				var err error
				if a, err = in.assign(ctx, s); err != nil {
					return err
				}
			}
			s.assigned, s.state, s.started, again = a, running, workflow.Now(ctx), true
			s.future = executeAssignment(ctx, a, s.def.Name, s.def.timeout(), s.def.attempts(), in.queueOf(ctx, s))
		}
	}
	in.show(ctx)
	return nil
}

// ready reports whether a stage may start: a consumer of batches starts with its
// producer, since it reads them as they come; models, evaluations and stages
// named in After must be complete.
func (in *interpreter) ready(s *stageRun) bool {
	for _, name := range s.def.Inputs {
		p, ok := in.byName[name]
		if !ok {
			continue // a source: there already
		}
		sig, _ := signatureOf(p.def.Kind)
		if p.state != done && (sig.makes != aDataset || p.state != running) {
			return false
		}
	}
	for _, name := range s.def.After {
		if in.byName[name].state != done {
			return false
		}
	}
	return true
}

func (in *interpreter) assign(ctx workflow.Context, s *stageRun) (stages.Assignment, error) {
	d := &in.args.Definition
	a := stages.Assignment{
		Pipeline: d.Name, Run: in.run, Stage: s.def.Name, Kind: s.def.Kind,
		Cause: in.args.Input.Cause, Actor: in.args.Input.Actor, Seed: in.args.Input.Seed,
		Params: s.def.Params, RunParams: in.args.Input.Params,
		Model: d.modelOf(s.def), ChildProcess: s.def.inChild(), Worker: s.def.Worker,
		Labels: s.def.Labels, Declassify: s.def.Declassify,
	}
	a.Output, a.Seal = in.output(s.def)
	for _, name := range s.def.Inputs {
		b, err := in.bind(ctx, name)
		if err != nil {
			return a, err
		}
		a.Inputs = append(a.Inputs, b)
	}
	a.Upcoming = in.upcoming(s)
	return a, nil
}

// maxUpcoming bounds what an assignment says of later stages.
const maxUpcoming = 16

// upcoming lists the datasets that are there and that stages will read which cannot
// start yet even though s does.
func (in *interpreter) upcoming(s *stageRun) []stages.Upcoming {
	was := s.state
	s.state = running
	defer func() { s.state = was }()
	var out []stages.Upcoming
	for _, later := range in.stages {
		if later.state != waiting || in.ready(later) {
			continue
		}
		for _, name := range later.def.Inputs {
			if b, ok := in.there(name); ok && len(out) < maxUpcoming {
				out = append(out, stages.Upcoming{Stage: later.def.Name, Input: b})
			}
		}
	}
	return out
}

// there is the binding of a dataset that is complete as far as this run is concerned.
func (in *interpreter) there(name string) (stages.Binding, bool) {
	if p, ok := in.byName[name]; ok {
		sig, _ := signatureOf(p.def.Kind)
		if sig.makes != aDataset || p.state != done {
			return stages.Binding{}, false
		}
		dataset, _ := in.output(p.def)
		return stages.Binding{Name: name, Dataset: dataset, Bounded: p.def.Into != ""}, true
	}
	for _, s := range in.args.Definition.Sources {
		if s.Name == name && s.Dataset != "" {
			return stages.Binding{Name: name, Dataset: s.Dataset}, true
		}
	}
	return stages.Binding{}, false
}

// output is the dataset that a stage writes, and whether it is the run's own.
func (in *interpreter) output(s StageDef) (dataset string, seal bool) {
	sig, _ := signatureOf(s.Kind)
	switch {
	case s.Into != "":
		return s.Into, false
	case sig.makes == aDataset:
		return in.run + "/" + s.Name, true
	}
	return "", false
}

func (in *interpreter) bind(ctx workflow.Context, name string) (stages.Binding, error) {
	if p, ok := in.byName[name]; ok {
		b := stages.Binding{Name: name}
		if sig, _ := signatureOf(p.def.Kind); sig.makes == aDataset {
			b.Dataset, _ = in.output(p.def)
			b.Bounded = p.def.Into != ""
			return b, nil
		}
		b.Model, b.Version = p.result.Model, p.result.Version
		if b.Model == "" {
			b.Model = p.assigned.Model
		}
		return b, nil
	}
	for _, s := range in.args.Definition.Sources {
		if s.Name != name {
			continue
		}
		if s.Dataset != "" {
			return stages.Binding{Name: name, Dataset: s.Dataset}, nil
		}
		version, err := resolveAlias(ctx, s.Model, s.Alias)
		if err != nil {
			return stages.Binding{}, temporal.NewNonRetryableApplicationError(
				fmt.Sprintf("alias %s of model %s: %s", s.Alias, s.Model, reason(err)), errTypeRun, err)
		}
		return stages.Binding{Name: name, Model: s.Model, Version: version}, nil
	}
	return stages.Binding{}, fmt.Errorf("no input %q", name) // Validate has refused it
}

// wait blocks until a running stage ends, and reports false when none runs.
func (in *interpreter) wait(ctx workflow.Context) bool {
	sel := workflow.NewSelector(ctx)
	some := false
	for _, s := range in.stages {
		if s.state == parked {
			some = true
			sel.AddFuture(s.wait.over, func(workflow.Future) { in.release(ctx, s) })
		}
		if s.state != running {
			continue
		}
		some = true
		sel.AddFuture(s.future.Future, func(workflow.Future) { in.finish(ctx, s) })
	}
	if !some {
		return false
	}
	sel.Select(ctx)
	// Others may have ended in the same task: take them too, and show them at once.
	for sel.HasPending() {
		sel.Select(ctx)
	}
	return true
}

func (in *interpreter) finish(ctx workflow.Context, s *stageRun) {
	s.result, s.err = s.future.Get(ctx)
	s.ended = workflow.Now(ctx)
	switch {
	case s.err == nil:
		s.state = done
	case temporal.IsCanceledError(s.err):
		s.state = stopped
	case in.mayPark(s), in.mayPause(s):
		s.state = parking
	case in.mayMove(ctx, s):
		s.state, s.ended = waiting, time.Time{}
	default:
		s.state = failed
		s.failure = failureOf(s.def.Name, s.err)
		// A stage that fails because another did, e.g. its producer, is not the cause.
		if in.failed == nil {
			in.failed = s
		}
	}
}

// hold parks a stage, for whatever it is that it waits for.
func (in *interpreter) hold(ctx workflow.Context, s *stageRun) {
	if s.pausing {
		in.pause(ctx, s)
		return
	}
	in.park(ctx, s)
}

// release ends that.
func (in *interpreter) release(ctx workflow.Context, s *stageRun) {
	if s.pausing {
		in.unpause(ctx, s)
		return
	}
	in.unpark(ctx, s)
}

func (in *interpreter) drain(ctx workflow.Context) {
	for in.wait(ctx) {
	}
}

func failureOf(stage string, err error) stageFailure {
	f := stageFailure{Stage: stage, Reason: reason(err)}
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		f.Permanent = app.NonRetryable()
		var detail stageFailure
		if app.HasDetails() && app.Details(&detail) == nil {
			f.Attempts = detail.Attempts
		}
	}
	var timeout *temporal.TimeoutError
	if errors.As(err, &timeout) {
		f.Reason = fmt.Sprintf("no attempt ended in time (%s)", timeout.TimeoutType())
	}
	return f
}

// reason is the innermost message of an error from an activity, without the
// wrapping that names ids which mean nothing to a person.
func reason(err error) string {
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		return clip(app.Message(), maxReasonBytes)
	}
	return clip(err.Error(), maxReasonBytes)
}

const maxReasonBytes = 2 << 10

func (in *interpreter) result(seconds float64) RunResult {
	out := RunResult{Run: in.run, Seconds: seconds}
	for _, s := range in.stages {
		out.Stages = append(out.Stages, StageResult{s.def.Name, s.result})
	}
	if raw, err := json.Marshal(out); err == nil && len(raw) <= MaxPayloadBytes {
		return out
	}
	out.Trimmed = true
	for i := range out.Stages {
		out.Stages[i].Result.Metrics, out.Stages[i].Result.Notes = nil, nil
	}
	return out
}

// attributes shows in the list of runs which stage is furthest and how many
// batches were written. One event in the history each time a stage ends.
func (in *interpreter) attributes(ctx workflow.Context) {
	if !in.args.Attributes {
		return
	}
	var batches int64
	furthest := ""
	for _, s := range in.stages {
		batches += s.result.Data.BatchesOut
		if s.state == running || s.state == parked || (furthest == "" && s.state == failed) {
			furthest = s.def.Name
		}
	}
	set := []temporal.SearchAttributeUpdate{attrBatches.ValueSet(batches)}
	if in.everParked() {
		set = append(set, in.waitingAttribute())
	}
	if furthest != "" {
		set = append(set, attrStage.ValueSet(furthest))
	}
	if err := workflow.UpsertTypedSearchAttributes(ctx, set...); err != nil {
		workflow.GetLogger(ctx).Warn("search attributes were not set", "error", err)
	}
}

// show writes what the Temporal UI shows as the run's current details. It adds
// nothing to the history: details are computed when somebody looks.
func (in *interpreter) show(ctx workflow.Context) {
	var b strings.Builder
	now := workflow.Now(ctx)
	b.WriteString("| stage | kind | state | time | rows | batches |\n|---|---|---|---|---|---|\n")
	for _, s := range in.stages {
		took := ""
		switch {
		case !s.ended.IsZero():
			took = s.ended.Sub(s.started).Round(time.Millisecond).String()
		case !s.started.IsZero():
			took = "since " + s.started.UTC().Format(time.TimeOnly)
		}
		fmt.Fprintf(&b, "| **%s** | %s | %s %s | %s | %d | %d |\n", s.def.Name, s.def.Kind,
			[...]string{"·", "▶", "✔", "✘", "■", "⏸", "⏸"}[s.state], s.label(), took, s.result.Rows, s.result.Data.BatchesOut)
	}
	if in.failed != nil {
		fmt.Fprintf(&b, "\n**%s failed** on attempt %d: %s\n", in.failed.failure.Stage, in.failed.failure.Attempts, in.failed.failure.Reason)
	}
	in.approvals(&b)
	in.budgets(&b)
	in.metrics(&b)
	fmt.Fprintf(&b, "\n```\n%s```\n", in.args.Definition.text(func(d StageDef) string {
		return "(" + in.byName[d.Name].label() + ")"
	}))
	fmt.Fprintf(&b, "\nAs of %s. What a stage that runs is doing now is in its pending activity's heartbeat.\n", now.UTC().Format(time.RFC3339))
	workflow.SetCurrentDetails(ctx, clip(b.String(), 16<<10))
}

// number shows whole numbers in full, others with four digits.
func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e15 {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

func (in *interpreter) metrics(b *strings.Builder) {
	for _, s := range in.stages {
		if len(s.result.Metrics) == 0 {
			continue
		}
		keys := workflow.DeterministicKeysFunc(s.result.Metrics, cmp.Compare[string])
		var parts []string
		for _, k := range keys[:min(len(keys), 12)] {
			parts = append(parts, k+" "+number(s.result.Metrics[k]))
		}
		fmt.Fprintf(b, "\n- %s: %s", s.def.Name, strings.Join(parts, ", "))
	}
	if slices.ContainsFunc(in.stages, func(s *stageRun) bool { return len(s.result.Metrics) > 0 }) {
		b.WriteByte('\n')
	}
}
