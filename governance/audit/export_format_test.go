package audit_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit"
	"github.com/stokehold/stokehold/internal/natstest"
)

func exported(t *testing.T, f audit.Format, ds []governance.Decision, since, until time.Time) (string, int64) {
	t.Helper()
	l := open(t, audit.Config{Conn: natstest.Start(t).Connect()})
	if err := l.Append(context.Background(), ds); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	n, err := l.Export(context.Background(), &b, audit.ExportConfig{Format: f, Since: since, Until: until})
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), n
}

func TestExportOfATime(t *testing.T) {
	ds := []governance.Decision{decision(0, events.OnPublish, events.Allow), decision(1000, events.OnPublish, events.Allow), decision(2000, events.OnReceive, events.Allow)}
	out, n := exported(t, audit.JSONL, ds, testTime.Add(time.Second), testTime.Add(2*time.Second))
	var got struct {
		EventID string `json:"event_id"`
		Message uint64 `json:"message"`
		Index   int    `json:"index"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || n != 1 || got.EventID != "ev-1000" || got.Message != 1 || got.Index != 1 {
		t.Errorf("%d lines: %s (%v)", n, out, err)
	}
}

func TestNoCellIsAFormula(t *testing.T) {
	var ds []governance.Decision
	evil := []string{"=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =cmd|' /C calc'!A0", "\"=1", "＝1", "a\n=1"}
	for i, s := range evil {
		d := decision(i, events.OnPublish, events.Deny)
		d.Reason, d.Subject, d.Source = s, s, s
		ds = append(ds, d)
	}
	out, _ := exported(t, audit.CSV, ds, time.Time{}, time.Time{})
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil || len(rows) != len(evil)+1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	formula := regexp.MustCompile(`^[\s"]*[=+\-@＝]`)
	for _, row := range rows[1:] {
		for i, cell := range row {
			if formula.MatchString(cell) {
				t.Errorf("column %s: %q", rows[0][i], cell)
			}
		}
	}
}

// The fields are those that the schema at schemaURL requires.
func TestOpenLineageEventsHaveWhatTheSchemaRequires(t *testing.T) {
	ds := []governance.Decision{decision(1, events.OnPublish, events.Allow), decision(2, events.OnReceive, events.Allow), decision(3, events.OnPublish, events.Allow)}
	ds[2].Pipeline, ds[2].Run = "", ""
	out, n := exported(t, audit.OpenLineage, ds, time.Time{}, time.Time{})
	if n != 3 {
		t.Fatalf("%d events", n)
	}
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	var ids []string
	for line := range strings.Lines(out) {
		var ev struct {
			EventType *string    `json:"eventType"`
			EventTime *time.Time `json:"eventTime"`
			Producer  *string    `json:"producer"`
			SchemaURL *string    `json:"schemaURL"`
			Job       *struct {
				Namespace *string `json:"namespace"`
				Name      *string `json:"name"`
			} `json:"job"`
			Run *struct {
				RunID  *string                   `json:"runId"`
				Facets map[string]map[string]any `json:"facets"`
			} `json:"run"`
			Inputs  []any `json:"inputs"`
			Outputs []any `json:"outputs"`
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatal(err)
		}
		if ev.EventTime == nil || ev.Producer == nil || ev.SchemaURL == nil || ev.Job == nil || ev.Run == nil || ev.Job.Name == nil || *ev.Job.Name == "" ||
			ev.Job.Namespace == nil || ev.Run.RunID == nil || !uuid.MatchString(*ev.Run.RunID) || ev.EventType == nil || *ev.EventType != "OTHER" || ev.Inputs == nil || ev.Outputs == nil {
			t.Errorf("not a RunEvent: %s", line)
			continue
		}
		for name, facet := range ev.Run.Facets {
			for _, key := range []string{"_producer", "_schemaURL", "id", "action"} {
				if s, ok := facet[key].(string); !ok || s == "" {
					t.Errorf("facet %s lacks %s", name, key)
				}
			}
		}
		ids = append(ids, *ev.Run.RunID)
	}
	if ids[0] != ids[1] || ids[0] == ids[2] {
		t.Errorf("run ids %v: decisions of one run share theirs", ids)
	}
}

func TestExportRefusesUnknownFormats(t *testing.T) {
	l := open(t, audit.Config{Conn: natstest.Start(t).Connect()})
	if _, err := l.Export(context.Background(), &bytes.Buffer{}, audit.ExportConfig{Format: "xml"}); !errors.Is(err, audit.ErrConfig) {
		t.Error(err)
	}
}
