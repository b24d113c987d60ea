package audit

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/stokehold/stokehold/governance/audit/proof"
)

// Format is a form in which decisions leave the log.
type Format string

// The formats of Export.
const (
	JSONL       Format = "jsonl"       // one object for each decision: its entry, and where it is in the stream
	CSV         Format = "csv"         // RFC 4180 with a header line
	OpenLineage Format = "openlineage" // one OpenLineage RunEvent for each decision, in a line
)

// Formats lists them.
func Formats() []Format { return []Format{OpenLineage, JSONL, CSV} }

// ExportConfig says what to export.
type ExportConfig struct {
	Format       Format
	Since, Until time.Time // decisions made at or after Since and before Until; zero: no bound
}

// Export writes decisions in the stream's order, one by one as they are read, and
// returns how many.
func (r *Reader) Export(ctx context.Context, w io.Writer, cfg ExportConfig) (n int64, err error) {
	out := bufio.NewWriterSize(w, 64<<10)
	write, flush, err := exporter(cfg.Format, out, r.stream)
	if err != nil {
		return 0, err
	}
	for rec, err := range r.Records(ctx, cfg.Since) {
		if err != nil {
			return n, errors.Join(err, flush(), out.Flush())
		}
		if !cfg.Until.IsZero() && !rec.Time.Before(cfg.Until) {
			continue // others of that time may follow: appends are concurrent
		}
		if err := write(&rec); err != nil {
			return n, fmt.Errorf("export: %w", err)
		}
		n++
	}
	if err := errors.Join(flush(), out.Flush()); err != nil {
		return n, fmt.Errorf("export: %w", err)
	}
	return n, nil
}

func exporter(f Format, out io.Writer, stream string) (write func(*Record) error, flush func() error, err error) {
	nothing := func() error { return nil }
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	switch f {
	case JSONL:
		return func(r *Record) error {
			return enc.Encode(struct {
				proof.Entry
				Message uint64    `json:"message"`
				Index   int       `json:"index"`
				Stored  time.Time `json:"stored"`
			}{entryOf(&r.Decision), r.Sequence, r.Index, r.Stored})
		}, nothing, nil
	case OpenLineage:
		return func(r *Record) error { return enc.Encode(runEvent(r, stream)) }, nothing, nil
	case CSV:
		c := csv.NewWriter(out)
		c.UseCRLF = true
		if err := c.Write(columns()); err != nil {
			return nil, nil, fmt.Errorf("export: %w", err)
		}
		return func(r *Record) error { return c.Write(row(r)) },
			func() error { c.Flush(); return c.Error() }, nil
	}
	return nil, nil, fmt.Errorf("%w: format %q; there are openlineage, jsonl and csv", ErrConfig, f)
}

func columns() []string {
	return []string{"id", "time", "point", "action", "event_id", "type", "source", "subject", "pipeline", "run",
		"policy", "rule", "code", "reason", "digest", "notes", "message", "index", "stored"}
}

func row(r *Record) []string {
	e := entryOf(&r.Decision)
	var notes []string
	for _, n := range e.Notes {
		notes = append(notes, fmt.Sprintf("%s/%s (%s): %s", n.Policy, n.Rule, n.Mode, n.Reason))
	}
	cells := []string{e.ID, e.Time.UTC().Format(time.RFC3339Nano), e.Point, e.Action, e.EventID, e.Type, e.Source, e.Subject, e.Pipeline, e.Run,
		e.Policy, e.Rule, e.Code, e.Reason, e.Digest, strings.Join(notes, "; "), strconv.FormatUint(r.Sequence, 10), strconv.Itoa(r.Index), r.Stored.Format(time.RFC3339Nano)}
	for i := range cells {
		cells[i] = harmless(cells[i])
	}
	return cells
}

// harmless keeps a spreadsheet from taking a cell for a formula: an apostrophe goes
// before what begins one, also behind blanks and quotes, which some strip first.
func harmless(s string) string {
	t := strings.TrimLeft(s, " \t\r\n\"'\u00a0\ufeff")
	if t != "" && strings.ContainsRune("=+-@\uff1d\uff0b\uff0d\uff20|%", []rune(t)[0]) || s != "" && strings.ContainsRune("\t\r\n", rune(s[0])) {
		return "'" + s
	}
	return s
}
