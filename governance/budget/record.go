package budget

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
	"unicode/utf8"
)

// Report says what one attempt at a stage has used since it began. A later report
// of the attempt holds at least as much of everything and has a higher Number.
type Report struct {
	Pipeline string `json:"pipeline,omitempty"`
	Run      string `json:"run"`
	Stage    string `json:"stage"`
	// Call tells the calls of one stage apart where a workflow of the user's own calls
	// it more than once.
	Call    string `json:"call,omitempty"`
	Attempt int    `json:"attempt"`         // from 1
	Number  int64  `json:"number"`          // from 1
	Final   bool   `json:"final,omitempty"` // the attempt uses no more
	Used    []Use  `json:"used,omitempty"`
}

// Use is an amount used on one day, of one accelerator, for one team.
type Use struct {
	Day         string `json:"day,omitempty"`  // 2026-11-28; "": long ago
	Team        string `json:"team,omitempty"` // that the pipeline was of then
	Accelerator string `json:"accelerator"`
	Seconds     Micro  `json:"seconds"`
	Money       Micro  `json:"money,omitempty"`
}

func (u Use) same(v Use) bool {
	return u.Day == v.Day && u.Team == v.Team && u.Accelerator == v.Accelerator
}

const (
	maxUses     = 512 // of a report: days, teams, accelerators
	maxStages   = 4096
	maxOpen     = 256 // attempts of one stage that did not say that they ended
	maxIDBytes  = 512
	rememberFor = 100 * 24 * time.Hour // how long days are told apart
)

func (r *Report) check() error {
	for name, s := range map[string]string{"run": r.Run, "stage": r.Stage, "pipeline": r.Pipeline, "call": r.Call} {
		if len(s) > maxIDBytes || !utf8.ValidString(s) || s == "" && (name == "run" || name == "stage") {
			return fmt.Errorf("%w: report: %s %.80q: want 1 to %d bytes", ErrInvalid, name, s, maxIDBytes)
		}
	}
	if r.Attempt < 1 || r.Attempt > math.MaxInt32 || r.Number < 1 || len(r.Used) > maxUses {
		return fmt.Errorf("%w: report %d of attempt %d with %d amounts: want numbers from 1, and at most %d amounts", ErrInvalid, r.Number, r.Attempt, len(r.Used), maxUses)
	}
	for i, u := range r.Used {
		_, err := time.Parse(time.DateOnly, u.Day)
		if err != nil || u.Seconds < 0 || u.Seconds > maxAmount || u.Money < 0 || u.Money > maxAmount || !acceleratorForm.MatchString(u.Accelerator) || len(u.Team) > maxNameBytes {
			return fmt.Errorf("%w: report: amount of accelerator %.80q on day %.40q", ErrInvalid, u.Accelerator, u.Day)
		}
		if slices.ContainsFunc(r.Used[:i], u.same) {
			return fmt.Errorf("%w: report: %s on %s is there twice", ErrInvalid, u.Accelerator, u.Day)
		}
	}
	return nil
}

// record is what the bucket holds of one run, or of one call of a stage by a
// workflow of the user's own.
type record struct {
	Pipeline string                  `json:"pipeline,omitempty"`
	Run      string                  `json:"run"`
	Call     string                  `json:"call,omitempty"`
	Used     []Use                   `json:"used,omitempty"` // by attempts that are over
	Stages   map[string]*stageRecord `json:"stages"`
}

type stageRecord struct {
	Over []span                 `json:"over,omitempty"` // attempts counted in Used: sorted, apart
	Open map[int]*attemptRecord `json:"open,omitempty"` // the others, by attempt
}

// span is the attempts from its first to its second number.
type span [2]int

type attemptRecord struct {
	Number int64 `json:"number"` // of the newest report
	Used   []Use `json:"used,omitempty"`
}

// take puts a report into the record and says whether that changed it. What was
// counted is not counted again; what contradicts it is ErrConflict.
func (rec *record) take(r *Report) (changed bool, err error) {
	s := rec.Stages[r.Stage]
	if s == nil {
		if len(rec.Stages) >= maxStages {
			return false, fmt.Errorf("%w: run %s has %d stages already", ErrInvalid, r.Run, maxStages)
		}
		if rec.Stages == nil {
			rec.Stages = map[string]*stageRecord{}
		}
		s = &stageRecord{}
		rec.Stages[r.Stage] = s
	}
	if slices.ContainsFunc(s.Over, func(o span) bool { return o[0] <= r.Attempt && r.Attempt <= o[1] }) {
		return false, nil
	}
	have := s.Open[r.Attempt]
	switch {
	case have == nil:
		have = &attemptRecord{}
	case r.Number < have.Number || r.Number == have.Number && !r.Final:
		if !covers(have.Used, r.Used) || r.Number == have.Number && !covers(r.Used, have.Used) {
			return false, conflict(r, have)
		}
		return false, nil
	case !covers(r.Used, have.Used):
		return false, conflict(r, have)
	}
	have.Number, have.Used = r.Number, r.Used
	if s.Open == nil {
		s.Open = map[int]*attemptRecord{}
	}
	s.Open[r.Attempt] = have
	if r.Final {
		rec.close(s, r.Attempt)
	}
	// One that was killed never says that it ended. What is this far behind does not
	// run any more.
	for len(s.Open) > maxOpen {
		rec.close(s, slices.Min(slices.Collect(maps.Keys(s.Open))))
	}
	return true, nil
}

func conflict(r *Report, have *attemptRecord) error {
	return fmt.Errorf("%w: report %d of attempt %d at stage %s of run %s does not agree with report %d: an attempt's number was used twice",
		ErrConflict, r.Number, r.Attempt, r.Stage, r.Run, have.Number)
}

// covers reports whether a has at least what b has.
func covers(a, b []Use) bool {
	for _, u := range b {
		i := slices.IndexFunc(a, u.same)
		if (u.Seconds != 0 || u.Money != 0) && (i < 0 || a[i].Seconds < u.Seconds || a[i].Money < u.Money) {
			return false
		}
	}
	return true
}

// close counts an attempt as over.
func (rec *record) close(s *stageRecord, attempt int) {
	rec.Used = add(rec.Used, s.Open[attempt].Used)
	delete(s.Open, attempt)
	s.Over = append(s.Over, span{attempt, attempt})
	slices.SortFunc(s.Over, func(a, b span) int { return cmp.Compare(a[0], b[0]) })
	joined := s.Over[:1]
	for _, o := range s.Over[1:] {
		if last := &joined[len(joined)-1]; o[0] == last[1]+1 {
			last[1] = o[1]
		} else {
			joined = append(joined, o)
		}
	}
	s.Over = joined
}

// forget adds up the days that no window reaches any more.
func (rec *record) forget(now time.Time) {
	oldest := now.Add(-rememberFor).UTC().Format(time.DateOnly)
	var kept []Use
	for _, u := range rec.Used {
		if u.Day < oldest {
			u.Day, u.Team = "", ""
		}
		kept = add(kept, []Use{u})
	}
	rec.Used = kept
}

// total is what all attempts used.
func (rec *record) total() []Use {
	sum := slices.Clone(rec.Used)
	for _, s := range rec.Stages {
		for _, a := range s.Open {
			sum = add(sum, a.Used)
		}
	}
	return sum
}

// add returns the sum of two lists of amounts, in the first one's memory.
func add(sum, more []Use) []Use {
	for _, u := range more {
		if i := slices.IndexFunc(sum, u.same); i >= 0 {
			sum[i].Seconds = plus(sum[i].Seconds, u.Seconds)
			sum[i].Money = plus(sum[i].Money, u.Money)
		} else {
			sum = append(sum, u)
		}
	}
	return sum
}

// plus adds without overflow: what does not fit is more than anybody may spend.
func plus(a, b Micro) Micro {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
