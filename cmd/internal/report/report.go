// Package report folds the history of a run into what the demo shows at its end:
// a table for people and a JSON document (docs/REPORT.md) for programs. It reads
// the event stream, the decision log and the model registry alone, so a run that
// was killed and resumed reports what an undisturbed one does.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"math"
	"strconv"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
)

// SchemaVersion grows when a key changes its meaning or goes away.
const SchemaVersion = 1

// maxDenials bounds the denials listed one by one; Events.Denied counts all.
const maxDenials = 50

// Report is the JSON document. Its schema is docs/report.schema.json.
type Report struct {
	Schema    int      `json:"schema"`
	Stokehold string   `json:"stokehold"` // version of the binary
	Seed      uint64   `json:"seed"`
	Data      Data     `json:"data"`
	Weeks     []Week   `json:"weeks"`
	Events    Events   `json:"events"`
	Batches   Batches  `json:"batches"`
	Tiers     Tiers    `json:"tiers"`
	Models    []Model  `json:"models"`
	Rules     []Rule   `json:"rules"`
	Denials   []Denial `json:"denials"`
	// Seconds is the wall time of this process's part of the run; a resumed run
	// counts from its resumption. PeakMemoryBytes likewise.
	Seconds         float64 `json:"seconds"`
	PeakMemoryBytes int64   `json:"peak_memory_bytes"`
}

// Data says what the run learnt from.
type Data struct {
	Source string `json:"source"`
	SHA256 string `json:"sha256"`
	Rows   int64  `json:"rows"`
}

// Week is one week that arrived as live events.
type Week struct {
	Week   int    `json:"week"`           // index, the data's first week is 0
	From   string `json:"from,omitempty"` // first day, YYYY-MM-DD
	Rows   int64  `json:"rows"`           // labelled rows scored
	Frozen Score  `json:"frozen"`         // the first model, never retrained
	Loop   Score  `json:"loop"`           // whichever model was champion then
	// Drift: the monitor emitted drift.detected for this week. Retrained: that led
	// to a challenger. Promoted: the gate let it take over. Reason: in words, why
	// it was promoted or refused, or why nothing was retrained.
	Drift     bool   `json:"drift"`
	Retrained bool   `json:"retrained"`
	Promoted  bool   `json:"promoted"`
	Reason    string `json:"reason"`
	Model     string `json:"model,omitempty"`      // version that scored the week
	NextModel string `json:"challenger,omitempty"` // version that the retraining made
}

// Score is a model's quality on one week.
type Score struct {
	LogLoss Float `json:"logloss"` // mean negative log likelihood, nats; lower is better
	AUC     Float `json:"auc"`     // area under the ROC curve; higher is better
}

// Float is a float64 that JSON shows as null when it is not a finite number (an
// AUC of a week with one class).
type Float float64

// MarshalJSON implements json.Marshaler.
func (f Float) MarshalJSON() ([]byte, error) {
	if !f.Finite() {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, float64(f), 'g', -1, 64), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (f *Float) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" {
		*f = Float(math.NaN())
		return nil
	}
	return json.Unmarshal(raw, (*float64)(f))
}

// String shows four decimals, or a dash.
func (f Float) String() string {
	if !f.Finite() {
		return "–"
	}
	return strconv.FormatFloat(float64(f), 'f', 4, 64)
}

// Finite reports whether f is a number.
func (f Float) Finite() bool { return !math.IsNaN(float64(f)) && !math.IsInf(float64(f), 0) }

// Events counts what governance saw.
type Events struct {
	Published int64 `json:"published"` // distinct events in the stream
	Judged    int64 `json:"judged"`    // decisions in the log, on publish and on receive
	Denied    int64 `json:"denied"`    // decisions that let nothing pass
}

// Batches counts what passed by reference.
type Batches struct {
	Published   int64 `json:"published"`
	Leased      int64 `json:"leased"`       // handed to another process by reference
	BodyBytes   int64 `json:"body_bytes"`   // Arrow bodies so handed
	CopiedBytes int64 `json:"copied_bytes"` // body bytes copied between processes
}

// Tiers counts the batches that got a copy in each tier, and verified moves.
type Tiers struct {
	Hot   int64 `json:"hot"`
	Warm  int64 `json:"warm"`
	Cold  int64 `json:"cold"`
	Moved int64 `json:"moved"`
	// Moves are those, and expiries, by why; by tier and reason.
	Moves []Move `json:"moves"`
	// Reads are those of this process's part of the run: where batches were when they
	// were opened.
	Reads Reads `json:"reads"`
	// Ahead is what reading ahead of the stages achieved, all of them together.
	Ahead events.ReadAhead `json:"ahead"`
}

// Move counts the moves to one tier for one reason.
type Move struct {
	To     string `json:"to"`     // tier; "expired": their time was over
	Reason string `json:"reason"` // TIERPOLICY/RULE, or a person's; "": none was given
	Count  int64  `json:"count"`
	Bytes  int64  `json:"bytes"` // of the copies; 0 of expiries
}

// Reads counts batches as they were opened.
type Reads struct {
	Hot     int64 `json:"hot"`
	Warm    int64 `json:"warm"`
	Cold    int64 `json:"cold"`
	Peer    int64 `json:"peer"`    // from another process
	Spilled int64 `json:"spilled"` // batches written to the disk alone, for want of room in shared memory
}

// All is how many there were.
func (r Reads) All() int64 { return r.Hot + r.Warm + r.Cold + r.Peer }

// Model is one version in the registry.
type Model struct {
	Model    string           `json:"model"`
	ID       string           `json:"id"` // SHA-256 of the artifact
	Status   string           `json:"status"`
	Champion bool             `json:"champion"`
	Reason   string           `json:"reason,omitempty"`
	Parent   string           `json:"parent,omitempty"`
	Run      string           `json:"run"`
	Bytes    int64            `json:"bytes"`
	Metrics  map[string]Float `json:"metrics"`
}

// Denial is one refused event.
type Denial struct {
	Type    string    `json:"type"`
	Subject string    `json:"subject,omitempty"`
	ID      string    `json:"id"`
	At      time.Time `json:"at"`
	Policy  string    `json:"policy"`
	Reason  string    `json:"reason"`
}

// Rule counts the decisions that one rule made, and those that no rule made.
type Rule struct {
	Policy  string           `json:"policy"`         // "": no rule decided
	Rule    string           `json:"rule"`           // likewise
	Code    string           `json:"code,omitempty"` // why, of decisions that no rule made
	Actions map[string]int64 `json:"actions"`        // decisions by action
	Noted   int64            `json:"noted"`          // did not hold but did not decide either
}

// Decisions is what the decision log adds up to.
type Decisions struct {
	Judged, Denied int64
	Rules          []Rule   // by policy, rule and code
	Denials        []Denial // oldest first
}

// Info is what no history knows.
type Info struct {
	Stokehold       string
	Seed            uint64
	Data            Data
	Took            time.Duration
	PeakMemoryBytes int64
	Reads           Reads
}

// Source is where a report is read from.
type Source struct {
	History   iter.Seq2[events.Delivery, error]
	Decisions Decisions
	Models    iter.Seq2[models.Version, error]
	Champions map[string]string // model name to the version id its champion alias points to
	Info      Info
}

// Build reads src to its end. An event that is in the stream twice (published
// again after the deduplication window) counts once.
func Build(src Source) (Report, error) {
	var f Fold
	seen := map[string]bool{}
	for d, err := range src.History {
		if err != nil {
			return Report{}, fmt.Errorf("report: read the event history: %w", err)
		}
		if key := d.Source() + "\x00" + d.ID(); !seen[key] {
			seen[key] = true
			f = f.Add(d)
		}
	}
	r := Report{
		Schema: SchemaVersion, Stokehold: src.Info.Stokehold, Seed: src.Info.Seed, Data: src.Info.Data,
		Weeks: f.Weeks, Batches: f.Batches, Tiers: f.Tiers, Models: []Model{},
		Events:  Events{Published: f.Events, Judged: src.Decisions.Judged, Denied: src.Decisions.Denied},
		Denials: src.Decisions.Denials, Rules: src.Decisions.Rules,
		// Milliseconds are plenty, and keep the document readable.
		Seconds:         math.Round(src.Info.Took.Seconds()*1000) / 1000,
		PeakMemoryBytes: src.Info.PeakMemoryBytes,
	}
	r.Tiers.Reads, r.Tiers.Moves = src.Info.Reads, f.moves()
	if n := len(r.Denials); n > maxDenials {
		r.Denials = r.Denials[n-maxDenials:]
	}
	if r.Denials == nil {
		r.Denials = []Denial{}
	}
	if r.Rules == nil {
		r.Rules = []Rule{}
	}
	if r.Weeks == nil {
		r.Weeks = []Week{}
	}
	if src.Models == nil {
		return r, nil
	}
	for v, err := range src.Models {
		if err != nil {
			return Report{}, fmt.Errorf("report: list the models: %w", err)
		}
		m := Model{Model: v.Model, ID: v.ID, Status: string(v.Status), Reason: v.Reason, Parent: v.Lineage.Parent,
			Run: v.Lineage.Run, Bytes: v.Bytes, Champion: v.ID != "" && src.Champions[v.Model] == v.ID, Metrics: map[string]Float{}}
		for name, x := range v.Metrics {
			m.Metrics[name] = Float(x)
		}
		r.Models = append(r.Models, m)
	}
	return r, nil
}

// WriteJSON writes the document, indented.
func (r Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("report: write: %w", err)
	}
	return nil
}

// Means are the row-weighted means over all weeks with finite scores.
func (r Report) Means() (frozen, loop Score, rows int64) { return means(r.Weeks) }

func means(weeks []Week) (frozen, loop Score, rows int64) {
	mean := func(pick func(Week) Float) Float {
		var sum, n float64
		for _, w := range weeks {
			if x := pick(w); x.Finite() {
				sum += float64(x) * float64(w.Rows)
				n += float64(w.Rows)
			}
		}
		return Float(sum / n) // no rows: NaN, shown as a dash
	}
	for _, w := range weeks {
		rows += w.Rows
	}
	frozen = Score{mean(func(w Week) Float { return w.Frozen.LogLoss }), mean(func(w Week) Float { return w.Frozen.AUC })}
	loop = Score{mean(func(w Week) Float { return w.Loop.LogLoss }), mean(func(w Week) Float { return w.Loop.AUC })}
	return frozen, loop, rows
}
