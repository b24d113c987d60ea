package ingest

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// timeLayouts are the forms of a timestamp that a CSV file may use.
func timeLayouts() []string {
	return []string{
		"2006-01-02 15:04:05.999999", "2006-01-02T15:04:05.999999", time.RFC3339Nano,
		"2006-01-02 15:04", "2006-01-02T15:04", "2006/01/02 15:04:05", "2006/01/02 15:04", "2006-01-02",
	}
}

// readCSV reads a file whose first line names the columns.
func readCSV(ctx context.Context, r io.Reader, t *Columns) error {
	in := csv.NewReader(r)
	in.ReuseRecord = true
	header, err := in.Read()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return &Error{File: t.file, Err: ErrFormat, Detail: "empty"}
		}
		return &Error{File: t.file, Err: fmt.Errorf("%w: %w", ErrFormat, err)}
	}
	names := make([]string, len(header))
	for i, h := range header {
		if !utf8.ValidString(h) || strings.ContainsRune(h, 0) {
			return &Error{File: t.file, Err: ErrFormat, Detail: "the first line is not text"}
		}
		names[i] = strings.TrimSpace(strings.Clone(strings.TrimPrefix(h, "\ufeff")))
	}
	if err := t.checkNames(names); err != nil {
		return err
	}
	at := make([]int, len(t.cols))
	for i := range t.cols {
		for j, n := range names {
			if n == t.cols[i].name {
				at[i] = j
				break
			}
		}
	}
	layouts, layout := timeLayouts(), 0
	for {
		if t.rows%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		rec, err := in.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &Error{File: t.file, Row: t.rows + 1, Err: fmt.Errorf("%w: %w", ErrFormat, err), Detail: "the file may be cut off"}
		}
		if err := t.room(1); err != nil {
			return err
		}
		for i := range t.cols {
			c := &t.cols[i]
			if err := t.parse(c, rec[at[i]], layouts, &layout); err != nil {
				return &Error{File: t.file, Column: c.name, Row: t.rows + 1, Err: ErrValue,
					Detail: fmt.Sprintf("%.40q is not of type %s", rec[at[i]], t.schema.Field(i).Type)}
			}
		}
		t.rows++
	}
}

var errParse = errors.New("unreadable")

// parse appends one value; layout remembers which timestamp form fitted last.
func (t *Columns) parse(c *column, text string, layouts []string, layout *int) error {
	switch c.kind {
	case kindTime:
		for i := range layouts {
			k := (*layout + i) % len(layouts)
			if v, err := time.Parse(layouts[k], text); err == nil {
				*layout = k
				c.ints = append(c.ints, v.UnixMicro())
				return nil
			}
		}
		return errParse
	case kindInt:
		v, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return err
		}
		c.ints = append(c.ints, v)
	case kindFloat:
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return errParse
		}
		c.floats = append(c.floats, v)
	case kindNone: // NewSource has refused it
	case kindString:
		if text == "" || !utf8.ValidString(text) {
			return errParse
		}
		c.strings = append(c.strings, t.text(text))
	}
	return nil
}
