// Package view shows a run while it happens: frames for a terminal, lines for
// anything else. What is shown is a pure function of the messages received.
package view

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/events"
)

const (
	maxRates   = 240 // samples of the sparkline
	maxDenials = 8
	maxRuns    = 16 // runs remembered at once; the oldest ended one goes first
	maxStages  = 32 // of one run
	sampleTime = 500 * time.Millisecond
)

// State is everything that a frame shows. A value: Update leaves the one it is
// given as it was.
type State struct {
	Width, Height int // of the terminal, in cells
	Title         string
	UI            string // URL of the Temporal UI
	Began, Now    time.Time
	Pipelines     map[string][]string // stage names by pipeline, in order; read only
	Expected      int                 // weeks that will arrive; 0: unknown

	Fold     report.Fold
	Counters Counters
	Denials  []report.Denial // newest last
	Runs     []Run           // by start
	Rates    []float64       // events per second, newest last
	Note     string          // what is going on outside any run
	Stopping bool
	Done     bool

	sampled      time.Time
	sampledCount int64
}

// Run is one run of a pipeline.
type Run struct {
	ID, Pipeline, Trigger string
	Began, Ended          time.Time // Ended is zero while it runs
	Failed                string    // why it failed
	Stages                []Stage
}

// Stage is one stage of a run.
type Stage struct {
	Name        string
	Status      Status
	Attempt     int
	Done, Total int64 // units of the stage's own; Total 0: unknown
	Note        string
	Seconds     float64 // it took, once complete
}

// Status of a stage.
type Status int

// The states a stage goes through.
const (
	Waiting Status = iota
	Running
	Complete
	Failed
)

// Msg is something that happened.
type Msg interface{ message() }

type (
	// Event is an event from the bus.
	Event struct{ events.Delivery }
	// Tick says what time it is.
	Tick struct{ At time.Time }
	// Resize says how large the terminal is.
	Resize struct{ Width, Height int }
	// Started says that the stack runs.
	Started struct {
		UI        string
		Pipelines map[string][]string // stage names, in order
		Weeks     int                 // that will arrive; 0: unknown
	}
	// Note says in a few words what is being done outside any run.
	Note struct{ Text string }
	// Progress is what a stage last reported.
	Progress struct {
		Run, Stage  string
		Done, Total int64
		Note        string
	}
	// Counters are this process's counters so far.
	Counters struct {
		Judged, Denied int64
		report.Batches
		report.Tiers
		Set bool // false: nothing counted, the history's own sums are shown
	}
	// Denied is one refused event.
	Denied struct{ report.Denial }
	// Stopping says that a shutdown was asked for.
	Stopping struct{}
	// Done says that the run is over: the frame shrinks to its header.
	Done struct{}
)

func (Event) message()    {}
func (Tick) message()     {}
func (Resize) message()   {}
func (Started) message()  {}
func (Note) message()     {}
func (Progress) message() {}
func (Counters) message() {}
func (Denied) message()   {}
func (Stopping) message() {}
func (Done) message()     {}

// Update returns s after m.
func Update(s State, m Msg) State {
	switch m := m.(type) {
	case Event:
		return s.event(m.Delivery)
	case Tick:
		return s.tick(m.At)
	case Resize:
		s.Width, s.Height = m.Width, m.Height
	case Started:
		s.UI, s.Pipelines, s.Expected, s.Note = m.UI, m.Pipelines, m.Weeks, ""
	case Note:
		s.Note = m.Text
	case Progress:
		s = s.onRun(m.Run, "", func(r *Run) {
			if st := r.stage(m.Stage); st != nil && st.Status != Complete {
				st.Status, st.Done, st.Total, st.Note = Running, m.Done, m.Total, m.Note
			}
		})
	case Counters:
		s.Counters = m
		s.Counters.Set = true
	case Denied:
		s.Denials = append(slices.Clone(s.Denials), m.Denial)
		s.Denials = s.Denials[max(0, len(s.Denials)-maxDenials):]
	case Stopping:
		s.Stopping = true
	case Done:
		s.Done = true
	}
	return s
}

func (s State) tick(at time.Time) State {
	s.Now = at
	if s.Began.IsZero() {
		s.Began = at
	}
	if s.sampled.IsZero() {
		s.sampled, s.sampledCount = at, s.Fold.Events
	}
	if d := at.Sub(s.sampled); d >= sampleTime {
		rate := float64(s.Fold.Events-s.sampledCount) / d.Seconds()
		s.Rates = append(slices.Clone(s.Rates), rate)
		s.Rates = s.Rates[max(0, len(s.Rates)-maxRates):]
		s.sampled, s.sampledCount = at, s.Fold.Events
	}
	return s
}

func (s State) event(d events.Delivery) State {
	s.Fold = s.Fold.Add(d)
	switch d.Type() {
	case events.TypeRunStarted:
		if e, ok := decode[events.RunStarted](d); ok {
			s = s.onRun(e.Run, e.Pipeline, func(r *Run) { r.Trigger = e.Trigger })
		}
	case events.TypeRunCompleted:
		if e, ok := decode[events.RunCompleted](d); ok {
			s = s.onRun(e.Run, e.Pipeline, func(r *Run) { r.Ended = s.at(d) })
		}
	case events.TypeRunFailed:
		if e, ok := decode[events.RunFailed](d); ok {
			s = s.onRun(e.Run, e.Pipeline, func(r *Run) {
				r.Ended, r.Failed = s.at(d), e.Reason
				if st := r.stage(e.Stage); st != nil {
					st.Status = Failed
				}
			})
		}
	case events.TypeStageStarted:
		if e, ok := decode[events.StageStarted](d); ok {
			s = s.onRun(e.Run, e.Pipeline, func(r *Run) {
				if st := r.stage(e.Stage); st != nil && e.Attempt >= st.Attempt {
					st.Status, st.Attempt = Running, e.Attempt
				}
			})
		}
	case events.TypeStageCompleted:
		if e, ok := decode[events.StageCompleted](d); ok {
			s = s.onRun(e.Run, e.Pipeline, func(r *Run) {
				if st := r.stage(e.Stage); st != nil {
					st.Status, st.Attempt, st.Seconds = Complete, e.Attempt, e.Seconds
					st.Done = max(st.Done, e.Batches)
				}
			})
		}
	case events.TypeBatchPublished:
		run, _ := d.Extensions()[events.ExtRun].(string)
		stage, _ := d.Extensions()[events.ExtStage].(string)
		if run == "" || stage == "" {
			break
		}
		s = s.onRun(run, "", func(r *Run) {
			// Where the stage reports progress of its own, that is better.
			if st := r.stage(stage); st != nil && st.Total == 0 && st.Status != Complete {
				st.Done++
			}
		})
	}
	return s
}

// at is when d happened for this display: events of the past may carry the
// data's own time.
func (s State) at(d events.Delivery) time.Time {
	if s.Now.IsZero() {
		return d.Time()
	}
	return s.Now
}

// onRun changes a copy of the run with that id. One that is new is added, unless
// pipeline is unknown too.
func (s State) onRun(id, pipeline string, change func(*Run)) State {
	s.Runs = slices.Clone(s.Runs)
	i := slices.IndexFunc(s.Runs, func(r Run) bool { return r.ID == id })
	if i < 0 {
		if pipeline == "" {
			return s
		}
		if len(s.Runs) >= maxRuns {
			full, _ := s.shown()
			i := 0
			for i < len(s.Runs)-1 && (i == full || s.Runs[i].Ended.IsZero()) {
				i++
			}
			s.Runs = slices.Delete(s.Runs, i, i+1)
		}
		r := Run{ID: id, Pipeline: pipeline, Began: s.Now}
		for _, name := range s.Pipelines[pipeline] {
			r.Stages = append(r.Stages, Stage{Name: name})
		}
		s.Runs = append(s.Runs, r)
		i = len(s.Runs) - 1
	}
	r := s.Runs[i]
	r.Stages = slices.Clone(r.Stages)
	change(&r)
	s.Runs[i] = r
	return s
}

// stage finds or adds a stage; nil when there are too many or it has no name.
func (r *Run) stage(name string) *Stage {
	for i := range r.Stages {
		if r.Stages[i].Name == name {
			return &r.Stages[i]
		}
	}
	if name == "" || len(r.Stages) >= maxStages {
		return nil
	}
	r.Stages = append(r.Stages, Stage{Name: name})
	return &r.Stages[len(r.Stages)-1]
}

// shown picks the run to show in full, the newest of the largest pipeline, so
// that the short runs of every week do not make the frame jump; and the newest of
// the others, for one line. -1: none.
func (s State) shown() (full, brief int) {
	full, brief = -1, -1
	for i, r := range s.Runs {
		if full < 0 || len(r.Stages) >= len(s.Runs[full].Stages) {
			full = i
		}
	}
	for i := range s.Runs {
		if i != full && (full < 0 || len(s.Runs[i].Stages) < len(s.Runs[full].Stages)) {
			brief = i
		}
	}
	return full, brief
}

func (s State) elapsed() time.Duration {
	if s.Began.IsZero() {
		return 0
	}
	return s.Now.Sub(s.Began)
}

// batches and tiers prefer the live counters to what the history adds up to.
func (s State) batches() report.Batches {
	b := s.Fold.Batches
	if s.Counters.Set {
		c := s.Counters.Batches
		b = report.Batches{Published: max(b.Published, c.Published), Leased: max(b.Leased, c.Leased),
			BodyBytes: max(b.BodyBytes, c.BodyBytes), CopiedBytes: max(b.CopiedBytes, c.CopiedBytes)}
	}
	return b
}

func decode[T any](d events.Delivery) (T, bool) {
	var v T
	return v, json.Unmarshal(d.Data(), &v) == nil
}

func clock(d time.Duration) string {
	d = max(0, d)
	return fmt.Sprintf("%d:%04.1f", int(d.Minutes()), (d % time.Minute).Seconds())
}
