package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/governance/approval"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/drift"
	"github.com/stokehold/stokehold/workflows"
)

// TestMain makes the test binary double as the commands of the scripts:
// stokehold as it is, and played, whose deployment is made up but whose embedded
// stack, configuration, view and report are real.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"stokehold": main,
		"fill":      fill,
		"played": func() {
			env := process()
			if os.Getenv("PLAYED_NOW") != "" {
				env.Now = func() time.Time { return playedAt.Add(90 * time.Second) }
			}
			os.Exit(run(os.Args[1:], env, playedPlatform()))
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"wait-for": waitFor,
			"stop":     stopCommand,
			"listen":   listen,
			"decide":   decide,
			"undecide": undecide,
		},
	})
}

// playedPlatform has the real stack and made-up everything else.
func playedPlatform() platform {
	return embedded(platform{
		Pipelines: playedPipelines,
		Connect: func(_ context.Context, cfg config.Config) (system, error) {
			p := newPlayed()
			p.addHistory()
			p.secret = cfg.NATS.Password.Reveal()
			return p, nil
		},
		Approve: func(context.Context, config.Config) (approver, error) { return newPlayed(), nil },
		Host:    func(ctx context.Context, cfg config.Config, _ hosting) (system, error) { return playedHost(ctx, cfg) },
		Feed: func(ctx context.Context, s system, h hosting) (report.Data, error) {
			if os.Getenv("PLAYED_FEED") == "hang" {
				<-ctx.Done()
				return report.Data{}, ctx.Err()
			}
			p, ok := s.(*played)
			if !ok {
				return report.Data{}, errors.New("not the played system")
			}
			p.addHistory()
			return report.Data{Source: "made up", Rows: 23_124}, ctx.Err()
		},
		Survey: func(context.Context, string) (handoff.Survey, error) { return playedSurvey(), nil },
	})
}

// playedSurvey has one of everything that the shared memory of a host can show.
func playedSurvey() handoff.Survey {
	return handoff.Survey{
		Processes: []handoff.Status{{
			PID: 4242, Started: playedAt.Add(-2 * time.Hour), Socket: "/run/user/1/stokehold/4242-00.sock",
			Arenas: []handoff.ArenaStatus{
				{ID: strings.Repeat("ab", 16), Inode: 77, Size: 64 << 20, Used: 12 << 20, HighWater: 40 << 20, Slots: 7, Leases: 3, Waiting: 1,
					Free: 52 << 20, FreePieces: 2, LargestFree: 48 << 20, HugePages: "advised", Holders: []shm.Holder{{Owner: "store", Leases: 3, Bytes: 9 << 20}}},
				{ID: strings.Repeat("cd", 16), Inode: 78, Size: 4096, Used: 4096, HighWater: 4096, Slots: 1, Adopted: true},
			},
			Peers: []handoff.PeerStatus{
				{PID: 4300, State: handoff.Alive, Leases: 1, Bytes: 2 << 20, Arenas: 1, Connected: playedAt},
				{PID: 4301, State: handoff.Stalled, Reason: "silent for\x1b[31m 3s", Leases: 2, Bytes: 3 << 20, Arenas: 1, Connected: playedAt.Add(-time.Hour)},
			},
			Memory: shm.Stats{Arenas: 2, Capacity: 64<<20 + 4096, Used: 12<<20 + 4096, HighWater: 40<<20 + 4096, Slots: 8, Leases: 3, Waiting: 1},
		}},
		Silent:    []handoff.Silent{{PID: 4400, Socket: "/run/user/1/stokehold/4400-00.sock", Error: "no answer"}},
		Unclaimed: []handoff.Orphaned{{Name: "stokehold", Inode: 99, Bytes: 16 << 20, PIDs: []int{4300, 4400}}},
	}
}

func playedPipelines() ([]*workflows.Definition, error) {
	nothing := stages.Func(func(context.Context, *stages.Task) error { return nil })
	p := workflows.New("played-train", "Train on what was made up.")
	rows := p.Ingest("ingest", nothing)
	features := p.Preprocess("features", rows, nothing)
	m := p.Train("train", features, nothing, workflows.Named("played"))
	p.Deploy("deploy", m, p.Evaluate("evaluate", m, features, nothing), nothing)
	p.On(workflows.Trigger{Types: []string{events.TypeDriftDetected}})
	d, err := p.Build()
	if err != nil {
		return nil, err
	}
	return []*workflows.Definition{d}, nil
}

// played is a system in memory.
type played struct {
	mu     sync.Mutex
	all    []events.Delivery
	grown  chan struct{} // closed and replaced when all grows
	secret string
}

func newPlayed() *played { return &played{grown: make(chan struct{})} }

var playedAt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func (p *played) add(typ, id string, data any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, err := events.New(typ, "/stokehold/played", "played", id, playedAt, data)
	if err != nil {
		panic(err)
	}
	p.all = append(p.all, events.Delivery{Event: e, Sequence: uint64(len(p.all) + 1), Deliveries: 1})
	close(p.grown)
	p.grown = make(chan struct{})
}

func (p *played) addHistory() {
	p.add(events.TypeRunStarted, "r1", events.RunStarted{Pipeline: "played-train", Run: "played-train/1", Trigger: "drift.detected"})
	for i, st := range []string{"ingest", "features", "train", "evaluate", "deploy"} {
		p.add(events.TypeStageCompleted, "s"+st, events.StageCompleted{Pipeline: "played-train", Run: "played-train/1", Stage: st, Attempt: 1, Leased: int64(i), BodyBytes: 1 << 20})
	}
	p.add(events.TypeRunCompleted, "r1-done", events.RunCompleted{Pipeline: "played-train", Run: "played-train/1"})
	p.add(flights.TypeWeekClosed, "w7", drift.Report{Key: 7, Rows: 11234, LogLoss: 0.4213, AUC: 0.7012, FrozenLogLoss: 0.4213, FrozenAUC: 0.7012})
	p.add(events.TypeDriftDetected, "d8", events.DriftDetected{Model: "played", Detector: "page-hinkley", Statistic: 0.07, Threshold: 0.05, Window: "week 8"})
	p.add(flights.TypeWeekClosed, "w8", drift.Report{Key: 8, Rows: 11890, LogLoss: 0.4771, AUC: 0.6702, FrozenLogLoss: 0.4873, FrozenAUC: 0.6612, Drift: true, Event: "d8"})
	p.add(events.TypeTriggerFired, "t8", events.TriggerFired{Trigger: "played-train/drift", Run: "played-train/8", Events: []string{"d8"}})
	p.add(events.TypeModelRefused, "m8", events.ModelRefused{Model: "played", Version: strings.Repeat("cd", 32), Run: "played-train/8", Reason: "not better than the champion"})
}

func (p *played) Start(_ context.Context, pipeline string, in workflows.RunInput) (string, error) {
	defs, err := playedPipelines()
	if err != nil {
		return "", err
	}
	if _, err := find(defs, pipeline); err != nil {
		return "", err
	}
	return pipeline + "/" + string(in.Params), nil
}

func (p *played) Wait(_ context.Context, id string) (workflows.RunResult, error) {
	if strings.Contains(id, "fail") {
		return workflows.RunResult{}, &workflows.RunError{Run: id, Stage: "train", Attempts: 3, Reason: "loss is\nnot finite"}
	}
	return workflows.RunResult{Run: id, Stages: []workflows.StageResult{
		{Stage: "ingest", Result: stages.Result{Dataset: "played/rows", Rows: 12, Data: stages.DataStats{BatchesOut: 2}}},
		{Stage: "train", Result: stages.Result{Model: "played", Version: strings.Repeat("ab", 32), Metrics: map[string]float64{"logloss": 0.42}}},
	}}, nil
}

func (p *played) Describe(_ context.Context, id string) (workflows.Description, error) {
	if id != "played-train/1" {
		return workflows.Description{}, fmt.Errorf("run %s: %w", id, workflows.ErrRunNotFound)
	}
	return workflows.Description{RunInfo: playedRuns()[0], Active: []workflows.StageInfo{
		{Stage: "train", Attempt: 2, State: "started", Progress: stages.Progress{Done: 3, Total: 8, Note: "epoch 3"}, LastFailure: "worker\x1b[31m died"},
	}}, nil
}

func playedRuns() []workflows.RunInfo {
	return []workflows.RunInfo{
		{ID: "played-train/1", Pipeline: "played-train", Key: "1", Status: "running", Started: playedAt, Trigger: "played-train/drift"},
		{ID: "played-train/0", Pipeline: "played-train", Key: "0", Status: "completed", Started: playedAt.Add(-time.Hour), Closed: playedAt.Add(-time.Hour + 1500*time.Millisecond)},
	}
}

func (p *played) Runs(context.Context) iter.Seq2[workflows.RunInfo, error] {
	return yieldAll(playedRuns())
}

func (p *played) Models(context.Context) iter.Seq2[string, error] {
	return yieldAll([]string{"played"})
}

func (p *played) Versions(_ context.Context, model string) iter.Seq2[models.Version, error] {
	if model != "played" {
		return yieldAll[models.Version](nil)
	}
	return yieldAll([]models.Version{
		{Model: "played", ID: strings.Repeat("ab", 32), Format: "safetensors", Bytes: 2048, Status: models.Promoted, Created: playedAt, Metrics: map[string]float64{"logloss": 0.42, "auc": 0.7}},
		{Model: "played", ID: strings.Repeat("cd", 32), Format: "safetensors", Bytes: 2048, Status: models.Refused, Created: playedAt, Reason: "not better than the champion"},
	})
}

func (p *played) Alias(_ context.Context, model, _ string) (models.Version, error) {
	if model != "played" {
		return models.Version{}, models.ErrNotFound
	}
	return models.Version{Model: model, ID: strings.Repeat("ab", 32)}, nil
}

func (p *played) Decisions(context.Context) (report.Decisions, error) {
	return report.Decisions{Judged: 18, Denied: 1, Denials: []report.Denial{{Type: events.TypePromotionRequested, ID: "x", At: playedAt, Policy: "gate/better", Reason: "not better than the champion"}}}, nil
}

// Two requests: one waits for a second person, one is decided.
func playedApprovals() []approval.Status {
	ask := approval.Request{
		ID: strings.Repeat("ab", 20), Policy: "gate/four-eyes", Reason: "goes to\x1b[31m production", Roles: []string{"release"}, Quorum: 2,
		Expires: approval.Duration(24 * time.Hour), Requester: "ann", EventID: "e1", Type: events.TypePromotionRequested, Subject: "played", Created: playedAt,
	}
	decided := ask
	decided.ID, decided.Created = strings.Repeat("cd", 20), playedAt.Add(-time.Hour)
	return []approval.Status{
		{Request: ask, Outcome: approval.Outcome{State: approval.Pending, Votes: []approval.Vote{{Actor: "bob", Approve: true, Reason: "measured it", At: playedAt}}}},
		{Request: decided, Outcome: approval.Outcome{State: approval.Rejected, Sealed: true, Reason: "cem: not this week", At: playedAt}},
	}
}

func (p *played) Approvals(_ context.Context, all bool) ([]approval.Status, error) {
	list := playedApprovals()
	if !all {
		list = list[:1]
	}
	return list, nil
}

func (p *played) Vote(_ context.Context, id string, approve bool, reason string) (approval.Status, error) {
	for _, st := range playedApprovals() {
		if !strings.HasPrefix(st.ID, id) {
			continue
		}
		if st.Outcome.Sealed {
			return st, &approval.Error{Op: "vote on", ID: id, Actor: "dee", Hint: "rejected by " + st.Outcome.Reason, Err: approval.ErrDecided}
		}
		st.Outcome.Votes = append(st.Outcome.Votes, approval.Vote{Actor: "dee", Approve: approve, Reason: reason, At: playedAt})
		st.Outcome.State = approval.Rejected
		if approve {
			st.Outcome.State = approval.Approved
		}
		return st, nil
	}
	return approval.Status{}, &approval.Error{Op: "vote on", ID: id, Hint: "'stokehold approvals' lists what waits", Err: approval.ErrNotFound}
}

func (p *played) Counters() (judged, denied int64) { return 18, 1 }

func (p *played) Close(context.Context) error { return nil }

func (p *played) History(_ context.Context, s events.Subscription) iter.Seq2[events.Delivery, error] {
	return func(yield func(events.Delivery, error) bool) {
		p.mu.Lock()
		all := p.all
		p.mu.Unlock()
		for _, d := range all {
			if wanted(s, d) && !yield(d, nil) {
				return
			}
		}
	}
}

func wanted(s events.Subscription, d events.Delivery) bool {
	ok := len(s.Types) == 0
	for _, t := range s.Types {
		ok = ok || t == d.Type()
	}
	return ok && d.Sequence >= s.Start
}

func (p *played) Follow(ctx context.Context, s events.Subscription, h events.Handler) error {
	for at := 0; ; {
		p.mu.Lock()
		fresh, grown := p.all[at:], p.grown
		p.mu.Unlock()
		at += len(fresh)
		for _, d := range fresh {
			if wanted(s, d) {
				if err := h(ctx, d); err != nil {
					return err
				}
			}
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil
		}
	}
}

func yieldAll[T any](xs []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, x := range xs {
			if !yield(x, nil) {
				return
			}
		}
	}
}
