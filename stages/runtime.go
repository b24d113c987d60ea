package stages

import (
	"context"
	"encoding/json"
	"log/slog"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/tiers"
)

// Assignment is one attempt at one stage of a run. Serialisable and small: it
// travels through workflow histories.
type Assignment struct {
	Pipeline     string          `json:"pipeline"`
	Run          string          `json:"run"`
	Stage        string          `json:"stage"`
	Kind         string          `json:"kind"` // ingest, preprocess, train, finetune, evaluate, deploy, monitor
	Attempt      int             `json:"attempt"`
	Cause        string          `json:"cause,omitempty"`
	Seed         uint64          `json:"seed"`
	Params       json.RawMessage `json:"params,omitempty"`
	RunParams    json.RawMessage `json:"run_params,omitempty"`
	Inputs       []Binding       `json:"inputs,omitempty"`
	Output       string          `json:"output,omitempty"` // dataset the stage writes
	Seal         bool            `json:"seal,omitempty"`   // seal Output when the stage completes
	Model        string          `json:"model,omitempty"`  // model the stage makes versions of
	ChildProcess bool            `json:"child_process,omitempty"`
}

// Progress is what a stage last reported. It is the heartbeat's detail, so it
// also carries the checkpoint from which a retry continues.
type Progress struct {
	Done       int64           `json:"done"`
	Total      int64           `json:"total,omitempty"` // 0: unknown
	Note       string          `json:"note,omitempty"`
	Data       DataStats       `json:"data"`
	Checkpoint json.RawMessage `json:"checkpoint,omitempty"`
}

// Hooks connect an attempt to whatever runs it.
type Hooks struct {
	Report   func(Progress) // called on every change, from any goroutine; must be cheap
	Previous Progress       // what the attempt before this one last reported
}

// Runtime feeds stages: it opens inputs, fences outputs, counts, and publishes
// stage.started and stage.completed. Safe for concurrent use.
type Runtime struct {
	Store    *tiers.Store
	Registry *models.Registry
	Bus      *events.Bus
	Log      *slog.Logger
}

// Execute runs one attempt of s to its end and returns what it left behind.
func (r *Runtime) Execute(ctx context.Context, s Stage, a Assignment, h Hooks) (Result, error) {
	panic("contract")
}
