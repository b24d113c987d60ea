package events_test

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/events"
)

const eventsPage = "../docs/EVENTS.md"

// The table in docs/EVENTS.md is what the code says, line by line. When this
// fails, put the printed table into the page.
func TestDocumentedEventTypes(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(eventsPage)
	if err != nil {
		t.Fatal(err)
	}
	r, err := events.NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	table.WriteString("| type | meaning | subject names | published by | data |\n|---|---|---|---|---|\n")
	for _, typ := range r.All() {
		if typ.Description == "" || typ.Subject == "" || typ.Publisher == "" || typ.Data == nil {
			t.Errorf("%s is not described", typ.Name)
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | `%s` | %s |\n", typ.Name, typ.Description, typ.Subject, typ.Publisher, fields(reflect.TypeOf(typ.Data)))
	}
	if !strings.Contains(string(page), table.String()) {
		t.Errorf("%s does not hold this table:\n\n%s", eventsPage, table.String())
	}
}

func fields(t reflect.Type) string {
	var fs []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if opts == "omitempty" {
			name += "?"
		}
		if f.Type.Kind() == reflect.Struct {
			name += " {" + fields(f.Type) + "}"
		}
		fs = append(fs, name)
	}
	return strings.Join(fs, ", ")
}

// Every exported name of a stream, header or extension that the page promises.
func TestDocumentedNames(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(eventsPage)
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	for _, want := range []string{
		"STOKEHOLD_EVENTS", "STOKEHOLD_DLQ", "STOKEHOLD_ADVISORIES", "STOKEHOLD_TOPICS", "STOKEHOLD_PROBE",
		events.ExtRun, events.ExtPipeline, events.ExtStage, events.ExtCause, events.ExtDataRef, events.ExtMetadata, events.TypeWatermill,
		events.DeadMalformed, events.DeadDenied, events.DeadTerminated, events.DeadFailed, events.DeadExhausted,
	} {
		if !strings.Contains(page, "`"+want+"`") {
			t.Errorf("%s does not mention `%s`", eventsPage, want)
		}
	}
	for _, text := range []string{"flights/schedule", "a.b", "a_b", "*.>", "", "run 7"} {
		row := fmt.Sprintf("| `%s` | `%s` |", text, events.EncodeToken(text))
		if text == "" {
			row = fmt.Sprintf("| (none) | `%s` |", events.EncodeToken(text))
		}
		if !strings.Contains(page, row) {
			t.Errorf("%s does not hold %s", eventsPage, row)
		}
	}
}
