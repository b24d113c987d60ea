package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/client"

	"github.com/stokehold/stokehold"
	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
	"github.com/stokehold/stokehold/cmd/devstack"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/cmd/internal/view"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/workflows"
)

// platform is what the commands drive.
type platform struct {
	// Pipelines are those that this binary brings.
	Pipelines func() ([]*workflows.Definition, error)
	// Discover finds a running dev by its state directory.
	Discover config.Discover
	// Connect connects to a deployment and starts no worker.
	Connect func(context.Context, config.Config) (system, error)
	// Audit connects to the decision log and its checkpoints alone.
	Audit func(context.Context, config.Config) (*stokehold.Auditor, error)
	// Data connects to a deployment's data plane, without shared memory.
	Data func(context.Context, config.Config) (dataSystem, error)
	// Stack starts the embedded servers.
	Stack func(context.Context, devstack.Options) (*devstack.Stack, error)
	// Approve connects with no more than what answering requests for approval needs.
	Approve func(context.Context, config.Config) (approver, error)
	// Host connects and also hosts the binary's pipelines.
	Host func(context.Context, config.Config, hosting) (system, error)
	// Feed plays the demo's outside world until its last week is closed. It reads
	// from the history where it is, so that it goes on where a killed one ended.
	Feed func(context.Context, system, hosting) (report.Data, error)
	// Survey looks at the shared memory of this host; dir is the runtime directory,
	// empty for the user's.
	Survey func(ctx context.Context, dir string) (handoff.Survey, error)
	// Types are the event types that policies may name.
	Types func() (*events.Registry, error)
	// Policies connects to what those need who make policies.
	Policies func(context.Context, config.Config) (*stokehold.PolicyDesk, error)
	// Budgets connects to what those need who look at budgets and set them.
	Budgets func(context.Context, config.Config) (*stokehold.BudgetDesk, error)
}

// hosting is what a person chooses about the hosted pipelines.
type hosting struct {
	Seed   uint64
	Data   *flights.Data  // the user's own; nil: what the example brings
	Weeks  int            // live weeks; 0: all
	Python string         // interpreter that runs the features stage; "": this program does
	Tell   func(view.Msg) // progress, for the live view; nil: nobody looks
}

// system is a connection to a deployment.
type system interface {
	Start(ctx context.Context, pipeline string, in workflows.RunInput) (id string, err error)
	Wait(ctx context.Context, id string) (workflows.RunResult, error)
	Describe(ctx context.Context, id string) (workflows.Description, error)
	Runs(ctx context.Context) iter.Seq2[workflows.RunInfo, error]
	History(ctx context.Context, s events.Subscription) iter.Seq2[events.Delivery, error]
	// Follow hands every matching event to h until ctx ends.
	Follow(ctx context.Context, s events.Subscription, h events.Handler) error
	Models(ctx context.Context) iter.Seq2[string, error]
	Versions(ctx context.Context, model string) iter.Seq2[models.Version, error]
	Alias(ctx context.Context, model, alias string) (models.Version, error)
	Decisions(ctx context.Context) (report.Decisions, error)
	// Counters are what this process's bus judged since it was opened.
	Counters() (judged, denied int64)
	Close(ctx context.Context) error
}

// approver is a connection for answering requests for approval.
type approver interface {
	// Approvals lists requests, the newest first; the decided ones too if all.
	Approvals(ctx context.Context, all bool) ([]approval.Status, error)
	// Vote answers a request, and tells the run that waits for it.
	Vote(ctx context.Context, id string, approve bool, reason string) (approval.Status, error)
	Close(ctx context.Context) error
}

// dataSystem is what the data commands need: a *tiers.Store, and migrations.
type dataSystem interface {
	Head(ctx context.Context, dataset string) (tiers.Head, error)
	Datasets(ctx context.Context) iter.Seq2[tiers.Head, error]
	Entries(ctx context.Context, dataset string, from, to uint64) iter.Seq2[tiers.BatchInfo, error]
	Verify(ctx context.Context, dataset string, from, to uint64, repair bool, each func(tiers.CopyFault)) (tiers.Verification, error)
	Collect(ctx context.Context, grace time.Duration, remove bool, each func(tiers.Orphan) error) error
	Pins(ctx context.Context, dataset string) ([]tiers.Pin, error)
	Pin(ctx context.Context, dataset string, p tiers.Pin) error
	Unpin(ctx context.Context, dataset string, from, to uint64, hold bool) (int, error)
	AddLabels(ctx context.Context, dataset string, labels label.Set) error
	Declassify(ctx context.Context, dataset string, d label.Declassification, actor string) (label.Set, error)
	EffectiveLabels(ctx context.Context, dataset string) (label.Set, error)
	// DeclassifyModel takes labels off a version, by an id, a prefix of one or an alias, and
	// says which version that is.
	DeclassifyModel(ctx context.Context, model, version string, d label.Declassification, actor string) (id string, removed, left label.Set, err error)
	Whoami(ctx context.Context) (string, error) // "": nobody known
	TakeOverCold(ctx context.Context) error
	OpenBatch(ctx context.Context, ref arrowio.Ref, toArena bool) (*tiers.Batch, error)
	Migrate(ctx context.Context, m workflows.Migration) (id string, err error)
	Migrated(ctx context.Context, id string, parked func(approval string)) (workflows.MigrationResult, error)
	Close(ctx context.Context) error
}

// stored is the dataSystem that there is outside tests.
type stored struct {
	*tiers.Store
	app   *stokehold.App
	actor string // as the user says
}

func (s stored) Whoami(ctx context.Context) (string, error) { return s.app.Whoami(ctx, s.actor) }

func (s stored) DeclassifyModel(ctx context.Context, model, version string, d label.Declassification, actor string) (id string, removed, left label.Set, err error) {
	return declassifyModel(ctx, s.app.Models, model, version, d, actor)
}

func (s stored) Migrate(ctx context.Context, m workflows.Migration) (string, error) {
	return s.app.Migrate(ctx, m)
}

func (s stored) Migrated(ctx context.Context, id string, parked func(approval string)) (workflows.MigrationResult, error) {
	return workflows.AwaitMigration(ctx, s.app.Temporal, id, parked)
}

func (s stored) Close(ctx context.Context) error { return s.app.Close(ctx) }

// deployment is the system that there is outside tests.
type deployment struct {
	Bus         *events.Bus
	Registry    *models.Registry
	Log         decisionReader
	Temporal    client.Client
	TaskQueue   string
	Definitions []*workflows.Definition
	Closer      func(context.Context) error
	Whoami      func(context.Context) (string, error) // "": nobody known
}

// decisionReader is the part of the decision log that a report reads.
type decisionReader interface {
	Read(ctx context.Context, from time.Time) iter.Seq2[governance.Decision, error]
}

var errNoPipeline = errors.New("no such pipeline")

func (d *deployment) Start(ctx context.Context, pipeline string, in workflows.RunInput) (string, error) {
	def, err := find(d.Definitions, pipeline)
	if err != nil {
		return "", err
	}
	if in.Actor, err = d.Whoami(ctx); err != nil {
		return "", err
	}
	run, err := workflows.Start(ctx, d.Temporal, def, in, workflows.StartOptions{TaskQueue: d.TaskQueue})
	if err != nil {
		return "", err
	}
	return run.ID, nil
}

func find(defs []*workflows.Definition, name string) (*workflows.Definition, error) {
	var names []string
	for _, d := range defs {
		if d.Name == name {
			return d, nil
		}
		names = append(names, d.Name)
	}
	slices.Sort(names)
	return nil, fmt.Errorf("%w %q: there are %s", errNoPipeline, name, strings.Join(names, ", "))
}

func (d *deployment) Wait(ctx context.Context, id string) (workflows.RunResult, error) {
	return workflows.Handle(d.Temporal, id).Result(ctx)
}

func (d *deployment) Describe(ctx context.Context, id string) (workflows.Description, error) {
	return workflows.Handle(d.Temporal, id).Describe(ctx)
}

func (d *deployment) Runs(ctx context.Context) iter.Seq2[workflows.RunInfo, error] {
	return workflows.Runs(ctx, d.Temporal, "")
}

func (d *deployment) History(ctx context.Context, s events.Subscription) iter.Seq2[events.Delivery, error] {
	return d.Bus.Replay(ctx, s)
}

func (d *deployment) Follow(ctx context.Context, s events.Subscription, h events.Handler) error {
	c, err := d.Bus.Subscribe(ctx, s, h)
	if err != nil {
		return err
	}
	<-ctx.Done()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return c.Stop(stop)
}

func (d *deployment) Models(ctx context.Context) iter.Seq2[string, error] {
	return d.Registry.Models(ctx)
}

func (d *deployment) Versions(ctx context.Context, model string) iter.Seq2[models.Version, error] {
	return d.Registry.Versions(ctx, model)
}

func (d *deployment) Alias(ctx context.Context, model, alias string) (models.Version, error) {
	return d.Registry.Alias(ctx, model, alias)
}

// Decisions adds up the log. A decision that was made again after a crash has
// the same id and counts once.
func (d *deployment) Decisions(ctx context.Context) (report.Decisions, error) {
	var out report.Decisions
	seen, rules := map[string]bool{}, map[[3]string]*report.Rule{}
	of := func(policy, rule, code string) *report.Rule {
		if policy != "" {
			code = ""
		}
		key := [3]string{policy, rule, code}
		if rules[key] == nil {
			rules[key] = &report.Rule{Policy: policy, Rule: rule, Code: code, Actions: map[string]int64{}}
		}
		return rules[key]
	}
	for dec, err := range d.Log.Read(ctx, time.Time{}) {
		if err != nil {
			return report.Decisions{}, fmt.Errorf("read the decision log: %w", err)
		}
		if seen[dec.ID] {
			continue
		}
		seen[dec.ID] = true
		out.Judged++
		of(dec.Policy, dec.Rule, dec.Code).Actions[string(dec.Action)]++
		for _, n := range dec.Notes {
			of(n.Policy, n.Rule, "").Noted++
		}
		if !dec.Action.Permits() {
			out.Denied++
			out.Denials = append(out.Denials, denial(dec))
		}
	}
	for _, r := range rules {
		out.Rules = append(out.Rules, *r)
	}
	slices.SortFunc(out.Rules, func(x, y report.Rule) int {
		return cmp.Or(cmp.Compare(x.Policy, y.Policy), cmp.Compare(x.Rule, y.Rule), cmp.Compare(x.Code, y.Code))
	})
	return out, nil
}

func denial(d governance.Decision) report.Denial {
	policy := d.Policy
	if d.Rule != "" {
		policy += "/" + d.Rule
	}
	reason := d.Reason
	if reason == "" {
		reason = d.Code
	}
	return report.Denial{Type: d.Type, Subject: d.Subject, ID: d.EventID, At: d.Time.UTC(), Policy: policy, Reason: reason}
}

func (d *deployment) Counters() (judged, denied int64) {
	s := d.Bus.Stats()
	return int64(s.Judged), int64(s.Denied)
}

func (d *deployment) Close(ctx context.Context) error { return d.Closer(ctx) }
