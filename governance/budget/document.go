package budget

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Window is the time after which a budget begins anew.
type Window string

// The windows. Days and months are of the calendar, in the document's time zone.
const (
	PerRun Window = "run" // of scopes of runs: all of the run, however long
	Day    Window = "day"
	Month  Window = "month"
)

// DocumentVersion and DocumentKind head a document of budgets.
const (
	DocumentVersion = "stokehold.dev/v1"
	DocumentKind    = "Budgets"
)

// CPU is the accelerator of a stage that has none. It costs nothing unless the
// prices say otherwise, and does not count as accelerator-seconds.
const CPU = "cpu"

// Limits of a document.
const (
	MaxDocumentBytes = 256 << 10
	MaxBudgets       = 4096
	maxTeams         = 1024
	maxPrices        = 256
	maxNameBytes     = 256
)

// Document says what may be spent, and what it costs. Read-only once made.
type Document struct {
	APIVersion string `yaml:"apiVersion" json:"apiVersion"`
	Kind       string `yaml:"kind" json:"kind"`
	// Currency is what money is in, e.g. EUR; shown, never converted.
	Currency string `yaml:"currency" json:"currency,omitempty"`
	// TimeZone is where days and months begin, e.g. Europe/Berlin; empty: UTC.
	TimeZone string `yaml:"timeZone" json:"timeZone,omitempty"`
	// Prices are money per accelerator-second, by accelerator.
	Prices map[string]Price `yaml:"prices" json:"prices,omitempty"`
	// Teams are the pipelines of each team; a pipeline is of one team at most.
	Teams   map[string][]string `yaml:"teams" json:"teams,omitempty"`
	Budgets []Budget            `yaml:"budgets" json:"budgets"`

	zone *time.Location
	team map[string]string // by pipeline
}

// Budget is what one scope may spend in each window.
type Budget struct {
	// Scope is team/NAME, pipeline/NAME, run/PIPELINE/KEY, run/PIPELINE/* (each run of
	// the pipeline) or run/* (each run). Of the last three the most particular counts.
	Scope  string `yaml:"scope" json:"scope"`
	Window Window `yaml:"window" json:"window,omitempty"` // day or month; runs have none
	Limits `yaml:",inline"`
}

// Limits are the most of each resource; nil: no limit.
type Limits struct {
	Money *Micro `yaml:"money" json:"money,omitempty"`
	// AcceleratorSeconds is time on all accelerators but CPU, each counted.
	AcceleratorSeconds *Micro `yaml:"acceleratorSeconds" json:"acceleratorSeconds,omitempty"`
	// Seconds is time on accelerators of one kind, also CPU.
	Seconds map[string]Micro `yaml:"seconds" json:"seconds,omitempty"`
}

var (
	nameForm        = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	acceleratorForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._:+-]{0,62}$`)
	currencyForm    = regexp.MustCompile(`^[A-Za-z][A-Za-z .-]{0,15}$`)
)

// ParseDocument reads a document in YAML or JSON. All faults are in one error,
// which wraps ErrInvalid.
func ParseDocument(raw []byte) (*Document, error) {
	if len(raw) > MaxDocumentBytes {
		return nil, fmt.Errorf("%w: the document has %d bytes, at most %d are allowed", ErrInvalid, len(raw), MaxDocumentBytes)
	}
	var d Document
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := dec.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: more than one document", ErrInvalid)
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	return &d, nil
}

func (d *Document) check() error {
	var faults []error
	bad := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...))
	}
	if d.APIVersion != DocumentVersion || d.Kind != DocumentKind {
		bad("apiVersion %.40q and kind %.40q: want %s and %s", d.APIVersion, d.Kind, DocumentVersion, DocumentKind)
	}
	if d.Currency != "" && !currencyForm.MatchString(d.Currency) {
		bad("currency %.40q: want letters, e.g. EUR", d.Currency)
	}
	d.zone = time.UTC
	if d.TimeZone != "" {
		zone, err := time.LoadLocation(d.TimeZone)
		if err != nil || d.TimeZone == "Local" {
			bad("timeZone %.80q is unknown: want a name such as Europe/Berlin", d.TimeZone)
		} else {
			d.zone = zone
		}
	}
	if len(d.Budgets) > MaxBudgets || len(d.Teams) > maxTeams || len(d.Prices) > maxPrices {
		bad("%d budgets, %d teams, %d prices: at most %d, %d and %d", len(d.Budgets), len(d.Teams), len(d.Prices), MaxBudgets, maxTeams, maxPrices)
		return errors.Join(faults...)
	}
	for _, kind := range slices.Sorted(maps.Keys(d.Prices)) {
		if !acceleratorForm.MatchString(kind) {
			bad("price of %.80q: want the name of an accelerator, e.g. nvidia-h100", kind)
		}
	}
	d.team = map[string]string{}
	for _, team := range slices.Sorted(maps.Keys(d.Teams)) {
		if !nameForm.MatchString(team) {
			bad("team %.80q: want lower-case letters, digits, . _ and -", team)
		}
		for _, p := range d.Teams[team] {
			if other, taken := d.team[p]; taken {
				bad("pipeline %.80q is of team %s and of team %s", p, other, team)
			}
			d.team[p] = team
		}
	}
	seen := map[string]bool{}
	for i, b := range d.Budgets {
		if err := d.checkBudget(&d.Budgets[i]); err != nil {
			bad("budget %d, %.80q: %w", i+1, b.Scope, err)
			continue
		}
		key := b.Scope + " " + string(d.Budgets[i].Window)
		if seen[key] {
			bad("budget %d: %s is there twice", i+1, strings.TrimSpace(key))
		}
		seen[key] = true
	}
	return errors.Join(faults...)
}

func (d *Document) checkBudget(b *Budget) error {
	kind, err := checkScope(b.Scope)
	if err != nil {
		return err
	}
	switch {
	case kind == "run" && b.Window == "":
		b.Window = PerRun
	case kind == "run" && b.Window != PerRun:
		return fmt.Errorf("window %q: a run's budget is for all of it: leave the window out", b.Window)
	case kind != "run" && b.Window != Day && b.Window != Month:
		return fmt.Errorf("window %.40q: want day or month", b.Window)
	}
	if kind == "team" {
		if name := strings.TrimPrefix(b.Scope, "team/"); d.Teams[name] == nil {
			return fmt.Errorf("no team %q: say in teams which pipelines it has", name)
		}
	}
	if b.Money == nil && b.AcceleratorSeconds == nil && len(b.Seconds) == 0 {
		return errors.New("no limit: give money, acceleratorSeconds or seconds")
	}
	if len(b.Seconds) > maxPrices {
		return fmt.Errorf("seconds of %d accelerators: at most %d", len(b.Seconds), maxPrices)
	}
	for name := range b.Seconds {
		if !acceleratorForm.MatchString(name) {
			return fmt.Errorf("seconds of %.80q: want the name of an accelerator", name)
		}
	}
	return nil
}

func checkScope(scope string) (kind string, err error) {
	kind, name, _ := strings.Cut(scope, "/")
	printable := name != "" && len(scope) <= maxNameBytes && !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7F })
	switch {
	case (kind == "team" || kind == "pipeline") && printable && !strings.ContainsAny(name, "*/"):
		return kind, nil
	case kind == "run" && printable && (name == "*" || strings.Contains(name, "/")) && !strings.Contains(strings.TrimSuffix(name, "*"), "*") &&
		(name == "*" || !strings.HasSuffix(name, "*") || strings.HasSuffix(name, "/*")):
		return kind, nil
	}
	return "", errors.New("want team/NAME, pipeline/NAME, run/PIPELINE/KEY, run/PIPELINE/* or run/*")
}

// Team is the team that a pipeline is of; "" if none.
func (d *Document) Team(pipeline string) string { return d.team[pipeline] }

// day names the day of a time, as budgets count days.
func (d *Document) day(t time.Time) string { return t.In(d.zone).Format(time.DateOnly) }

// price is what an accelerator costs; false if nothing says so.
func (d *Document) price(accelerator string) (Price, bool) {
	p, ok := d.Prices[accelerator]
	return p, ok || accelerator == CPU
}

// renews is when the window that t is in ends; zero for runs.
func (d *Document) renews(w Window, t time.Time) time.Time {
	t = t.In(d.zone)
	switch w {
	case Day:
		return time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, d.zone)
	case Month:
		return time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, d.zone)
	default:
		return time.Time{}
	}
}

// concern are the budgets that a run spends from. Those of patterns have the run's
// own scope.
func (d *Document) concern(pipeline, run string) []Budget {
	team := d.Team(pipeline)
	var out []Budget
	var forRun *Budget
	rank := 0
	for i := range d.Budgets {
		b := &d.Budgets[i]
		switch {
		case b.Scope == "pipeline/"+pipeline, team != "" && b.Scope == "team/"+team:
			out = append(out, *b)
		case b.Scope == "run/"+run && rank < 3:
			forRun, rank = b, 3
		case b.Scope == "run/"+pipeline+"/*" && rank < 2:
			forRun, rank = b, 2
		case b.Scope == "run/*" && rank < 1:
			forRun, rank = b, 1
		}
	}
	if forRun != nil && run != "" {
		own := *forRun
		own.Scope = "run/" + run
		out = append(out, own)
	}
	return out
}
