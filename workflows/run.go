package workflows

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"strings"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"github.com/stokehold/stokehold/stages"
)

// Names of what a Worker registers with Temporal.
const (
	PipelineWorkflow = "stokehold.pipeline"
	TriggerWorkflow  = "stokehold.trigger"
	MigrateWorkflow  = "stokehold.migrate"
)

// DefaultTaskQueue is where runs go unless told otherwise.
const DefaultTaskQueue = "stokehold"

// MaxPayloadBytes is the largest parameters of a run and the largest result of a
// stage, as JSON. Larger values belong into a dataset or the model registry.
const MaxPayloadBytes = 64 << 10

// Sentinels for the decisions a caller makes.
var (
	// ErrTooLarge: parameters or a result exceed MaxPayloadBytes.
	ErrTooLarge = errors.New("too large for a workflow history")
	// ErrRunExists: a run of that key was started before, and may be over.
	ErrRunExists = errors.New("run exists already")
	// ErrRunNotFound: Temporal knows no run of that id.
	ErrRunNotFound = errors.New("no such run")
	// ErrSearchAttributes: the server lacks the search attributes that Stokehold sets.
	ErrSearchAttributes = errors.New("search attributes are not registered")
	// ErrUnavailable: the Temporal server cannot be reached.
	ErrUnavailable = errors.New("temporal server is unreachable")
)

// RunInput says what one run is about.
type RunInput struct {
	// Run is the run's key, unique among the pipeline's runs for ever: lower-case
	// letters, digits, dots and dashes. Empty: made of the time and a random part.
	Run string `json:"run"`
	// Params is a JSON object laid over every stage's own parameters; at most
	// MaxPayloadBytes.
	Params json.RawMessage `json:"params,omitempty"`
	Cause  string          `json:"cause,omitempty"` // id of the event that led to it; empty: a person
	// Actor is on whose behalf the run works: it asks for approvals, and so must not
	// give them. Empty where nobody is, e.g. a trigger started the run.
	Actor string `json:"actor,omitempty"`
	Seed  uint64 `json:"seed,omitempty"` // the only source of randomness
	// Trigger is "PIPELINE/NAME" where a trigger started the run.
	Trigger string `json:"trigger,omitempty"`
	// Place says which workers do the run's stages; zero: any.
	Place Place `json:"place,omitzero"`
}

// runArgs is the interpreter's one argument.
type runArgs struct {
	Definition Definition `json:"definition"`
	Input      RunInput   `json:"input"`
	// Notify is the trigger workflow to tell when the run has ended.
	Notify     string `json:"notify,omitempty"`
	Attributes bool   `json:"attributes,omitempty"` // search attributes may be set
}

// RunResult is what a run leaves in its history.
type RunResult struct {
	Run     string        `json:"run"` // PIPELINE/RUNKEY
	Seconds float64       `json:"seconds"`
	Stages  []StageResult `json:"stages"` // in the definition's order
	// Trimmed: metrics and notes were left out to stay within MaxPayloadBytes; the
	// stages' own results in the history have them.
	Trimmed bool `json:"trimmed,omitempty"`
}

// StageResult is one stage's result with its name.
type StageResult struct {
	Stage  string        `json:"stage"`
	Result stages.Result `json:"result"`
}

// Stage returns the result of the stage of that name.
func (r RunResult) Stage(name string) (stages.Result, bool) {
	for _, s := range r.Stages {
		if s.Stage == name {
			return s.Result, true
		}
	}
	return stages.Result{}, false
}

// StartOptions are how a run is started.
type StartOptions struct {
	TaskQueue string // default DefaultTaskQueue
	// WithoutSearchAttributes starts runs on a server where the attributes that
	// [SearchAttributes] lists are not registered.
	WithoutSearchAttributes bool

	notify string
}

var runKeyForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)

// RunID is the id of a run: of its workflow, on events, in lineage.
func RunID(pipeline, key string) string { return pipeline + "/" + key }

// Start starts a run of d, eagerly where c is also a Worker's client. A key that
// was used before gives ErrRunExists together with a handle to that run.
func Start(ctx context.Context, c client.Client, d *Definition, in RunInput, o StartOptions) (*Run, error) {
	// Without its triggers, whose expressions take long to compile and do not
	// matter to a run.
	def := d.forRun()
	if err := def.Validate(); err != nil {
		return nil, err
	}
	if in.Run == "" {
		in.Run = newRunKey(time.Now())
	}
	if !runKeyForm.MatchString(in.Run) || len(in.Run) > maxRunKeyBytes {
		return nil, fmt.Errorf("workflows: run key %q is not usable: use lower-case letters, digits, dots and dashes, at most %d bytes", in.Run, maxRunKeyBytes)
	}
	if err := checkParams(in.Params); err != nil {
		return nil, fmt.Errorf("workflows: start %s: %w", RunID(d.Name, in.Run), err)
	}
	if err := in.Place.somebody(ctx, c, queueOr(o.TaskQueue)); err != nil {
		return nil, fmt.Errorf("workflows: start %s: %w", RunID(d.Name, in.Run), err)
	}
	args := runArgs{Definition: def, Input: in, Notify: o.notify, Attributes: !o.WithoutSearchAttributes}
	opts := client.StartWorkflowOptions{
		ID:                    RunID(d.Name, in.Run),
		TaskQueue:             queueOr(o.TaskQueue),
		WorkflowIDReusePolicy: enums.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		// An error rather than a handle to whatever runs under the id, so that a
		// caller can tell.
		WorkflowExecutionErrorWhenAlreadyStarted: true,
		EnableEagerStart:                         true,
		WorkflowTaskTimeout:                      workflowTaskTimeout,
		StaticSummary:                            summary(d, in),
		StaticDetails:                            details(d, in),
		Memo:                                     map[string]any{memoKey: runMemo{d.Name, in.Run, in.Trigger, in.Cause, d.Fingerprint()}},
	}
	if args.Attributes {
		opts.TypedSearchAttributes = startAttributes(d, in)
	}
	run, err := c.ExecuteWorkflow(ctx, opts, PipelineWorkflow, args)
	h := &Run{client: c, ID: opts.ID, Pipeline: d.Name, Key: in.Run}
	if err != nil {
		var exists *serviceerror.WorkflowExecutionAlreadyStarted
		if errors.As(err, &exists) {
			return h, fmt.Errorf("workflows: start %s: %w: choose another key, or look at that run", opts.ID, ErrRunExists)
		}
		return nil, fmt.Errorf("workflows: start %s: %w", opts.ID, explain(err))
	}
	h.temporalRun = run.GetRunID()
	return h, nil
}

const maxRunKeyBytes = 120

func newRunKey(now time.Time) string {
	var b [3]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return now.UTC().Format("20060102-150405") + "-" + hex.EncodeToString(b[:])
}

func checkParams(raw json.RawMessage) error {
	if len(raw) == 0 {
		return nil
	}
	if len(raw) > MaxPayloadBytes {
		return fmt.Errorf("run parameters are %d bytes, at most %d are allowed: %w: put them into a dataset", len(raw), MaxPayloadBytes, ErrTooLarge)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil {
		return fmt.Errorf("run parameters are not a JSON object: %w", err)
	}
	return nil
}

func queueOr(queue string) string {
	if queue == "" {
		return DefaultTaskQueue
	}
	return queue
}

// explain adds what to do to the errors of the Temporal client.
func explain(err error) error {
	var invalid *serviceerror.InvalidArgument
	var unavailable *serviceerror.Unavailable
	switch {
	case errors.As(err, &invalid) && strings.Contains(strings.ToLower(invalid.Message), "search attribute"):
		// The server has no error of its own for this; its text is the only sign.
		return fmt.Errorf("%w: %w: register those of workflows.SearchAttributes, or start without search attributes", ErrSearchAttributes, err)
	case errors.As(err, &unavailable):
		return fmt.Errorf("%w: %w: check its address and that it runs", ErrUnavailable, err)
	}
	return err
}

// Run is a handle to one run.
type Run struct {
	ID       string // PIPELINE/RUNKEY
	Pipeline string
	Key      string

	client      client.Client
	temporalRun string
}

// Handle returns the run of that id without asking whether it exists.
func Handle(c client.Client, id string) *Run {
	pipeline, key, _ := strings.Cut(id, "/")
	return &Run{client: c, ID: id, Pipeline: pipeline, Key: key}
}

// Result waits for the run to end. Its error is a *RunError where the run failed.
func (r *Run) Result(ctx context.Context) (RunResult, error) {
	var out RunResult
	err := r.client.GetWorkflow(ctx, r.ID, r.temporalRun).Get(ctx, &out)
	if err == nil {
		return out, nil
	}
	return RunResult{}, runError(r.ID, err)
}

// Cancel asks the run to stop: its stages' contexts end and the run fails.
func (r *Run) Cancel(ctx context.Context) error {
	if err := r.client.CancelWorkflow(ctx, r.ID, r.temporalRun); err != nil {
		return runError(r.ID, err)
	}
	return nil
}

// RunError is a run that failed.
type RunError struct {
	Run      string
	Stage    string // that failed first; empty: none did
	Attempts int    // of that stage
	Reason   string
	Err      error
}

func (e *RunError) Error() string {
	if e.Stage == "" {
		return fmt.Sprintf("run %s failed: %s", e.Run, e.Reason)
	}
	return fmt.Sprintf("run %s failed: stage %s, attempt %d: %s", e.Run, e.Stage, e.Attempts, e.Reason)
}

func (e *RunError) Unwrap() error { return e.Err }

func runError(id string, err error) error {
	var missing *serviceerror.NotFound
	var failed *temporal.WorkflowExecutionError
	switch {
	case errors.As(err, &missing):
		return fmt.Errorf("workflows: run %s: %w", id, ErrRunNotFound)
	case !errors.As(err, &failed):
		return fmt.Errorf("workflows: run %s: %w", id, explain(err))
	}
	e := &RunError{Run: id, Reason: failed.Unwrap().Error(), Err: err}
	var app *temporal.ApplicationError
	if errors.As(err, &app) && app.HasDetails() {
		var f stageFailure
		if app.Details(&f) == nil && f.Reason != "" {
			e.Stage, e.Attempts, e.Reason = f.Stage, f.Attempts, f.Reason
		}
	}
	return e
}

// RunInfo is what Temporal's visibility store knows of a run.
type RunInfo struct {
	ID, Pipeline, Key string
	TemporalRun       string // Temporal's own run id
	Status            string // running, completed, failed, canceled, terminated, timed-out
	Trigger, Cause    string
	Definition        string // fingerprint
	Started           time.Time
	Closed            time.Time // zero while it runs
	HistoryEvents     int64
	HistoryBytes      int64
}

// StageInfo is a stage that is at work now.
type StageInfo struct {
	Stage       string
	Attempt     int
	State       string // scheduled, started, canceling
	Progress    stages.Progress
	Heartbeat   time.Time
	LastFailure string // why the attempt before this one ended
}

// Description is a run with the stages that are at work.
type Description struct {
	RunInfo
	Active []StageInfo
}

// Describe asks Temporal about the run.
func (r *Run) Describe(ctx context.Context) (Description, error) {
	resp, err := r.client.DescribeWorkflowExecution(ctx, r.ID, r.temporalRun)
	if err != nil {
		return Description{}, runError(r.ID, err)
	}
	d := Description{RunInfo: runInfo(resp.GetWorkflowExecutionInfo())}
	for _, a := range resp.GetPendingActivities() {
		s := StageInfo{
			Stage: a.GetActivityId(), Attempt: int(a.GetAttempt()), State: enumText(a.GetState().String()),
			Heartbeat: a.GetLastHeartbeatTime().AsTime(), LastFailure: a.GetLastFailure().GetMessage(),
		}
		if p := a.GetHeartbeatDetails(); p != nil {
			// A heartbeat that does not decode is shown as no progress.
			_ = converter.GetDefaultDataConverter().FromPayloads(p, &s.Progress)
		}
		d.Active = append(d.Active, s)
	}
	return d, nil
}

// Runs lists runs, the newest first. query is empty or a condition in Temporal's
// list filter syntax, e.g. "StokeholdPipeline = 'flights-train' AND
// ExecutionStatus = 'Failed'".
func Runs(ctx context.Context, c client.Client, query string) iter.Seq2[RunInfo, error] {
	full := fmt.Sprintf("WorkflowType = '%s'", PipelineWorkflow)
	if query != "" {
		full += " AND (" + query + ")"
	}
	return func(yield func(RunInfo, error) bool) {
		var next []byte
		for {
			resp, err := c.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: full, PageSize: 100, NextPageToken: next})
			if err != nil {
				yield(RunInfo{}, fmt.Errorf("workflows: list runs: %w", explain(err)))
				return
			}
			for _, info := range resp.GetExecutions() {
				if !yield(runInfo(info), nil) {
					return
				}
			}
			if next = resp.GetNextPageToken(); len(next) == 0 {
				return
			}
		}
	}
}

const memoKey = "stokehold"

// runMemo makes runs listable on a server without search attributes.
type runMemo struct {
	Pipeline   string `json:"pipeline"`
	Run        string `json:"run"`
	Trigger    string `json:"trigger,omitempty"`
	Cause      string `json:"cause,omitempty"`
	Definition string `json:"definition"`
}

func runInfo(info *workflow.WorkflowExecutionInfo) RunInfo {
	id := info.GetExecution().GetWorkflowId()
	out := RunInfo{
		ID: id, TemporalRun: info.GetExecution().GetRunId(), Status: enumText(info.GetStatus().String()),
		Started: info.GetStartTime().AsTime(), HistoryEvents: info.GetHistoryLength(), HistoryBytes: info.GetHistorySizeBytes(),
	}
	out.Pipeline, out.Key, _ = strings.Cut(id, "/")
	if t := info.GetCloseTime(); t != nil {
		out.Closed = t.AsTime()
	}
	if p := info.GetMemo().GetFields()[memoKey]; p != nil {
		var m runMemo
		if converter.GetDefaultDataConverter().FromPayload(p, &m) == nil {
			out.Trigger, out.Cause, out.Definition = m.Trigger, m.Cause, m.Definition
		}
	}
	return out
}

// enumText writes TimedOut as timed-out.
func enumText(s string) string {
	var b strings.Builder
	for i, r := range s {
		if r >= 'A' && r <= 'Z' {
			if i > 0 {
				b.WriteByte('-')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}
