package governance

import (
	"bytes"
	"cmp"
	"slices"
)

// masked replaces a text that is masked; any other value becomes null.
const masked = `"[redacted]"`

// redactJSON returns the data without the values that the paths name, the other
// bytes as they were, and whether anything was there to take out. It reads as
// strictly as decodeData does. The input is not written to.
func redactJSON(b []byte, paths []dataPath) (out []byte, changed bool, err error) {
	r := redactor{d: jsonDecoder{b: string(b)}}
	r.d.space()
	all := make([]match, len(paths))
	for i := range paths {
		all[i] = match{steps: paths[i].steps, mask: paths[i].mask}
	}
	if err := r.value(all, 0); err != nil {
		return nil, false, err
	}
	r.d.space()
	if r.d.i != len(b) {
		return nil, false, r.d.errorf("unexpected bytes after the value")
	}
	if len(r.edits) == 0 {
		return b, false, nil
	}
	return r.apply(), true, nil
}

// match is a path as far as it is not yet walked.
type match struct {
	steps []string
	mask  bool
}

// edit replaces a stretch of the input.
type edit struct {
	from, to int
	with     string
}

type redactor struct {
	d     jsonDecoder
	edits []edit
}

// value walks one value, for which the matches ask.
func (r *redactor) value(ms []match, depth int) error {
	if len(ms) == 0 {
		return r.d.skip(depth)
	}
	switch r.d.peek() {
	case '{':
		return r.object(ms, depth)
	case '[':
		return r.list(ms, depth)
	default:
		return r.d.skip(depth)
	}
}

// step returns what of the matches goes on below a key; whole says that one ends
// there, and drop that it takes the value out.
func step(ms []match, key []byte) (below []match, whole, drop bool) {
	for _, m := range ms {
		if m.steps[0] != "*" && m.steps[0] != string(key) {
			continue
		}
		if len(m.steps) == 1 {
			whole = true
			drop = drop || !m.mask
			continue
		}
		below = append(below, match{m.steps[1:], m.mask})
	}
	return below, whole, drop
}

// object walks an object. A dropped member takes the comma before it, or with
// the first members those after them, along.
func (r *redactor) object(ms []match, depth int) error {
	if depth >= maxDataDepth {
		return r.d.errorf("nested deeper than %d", maxDataDepth)
	}
	seen := map[string]bool{}
	var members []span
	start := r.d.i + 1
	for more, err := r.d.open('}'); ; more, err = r.d.more('}') {
		if err != nil {
			return err
		}
		if !more {
			r.cut(members)
			return nil
		}
		key, err := r.d.key()
		if err != nil {
			return err
		}
		if seen[key] {
			return r.d.errorf("duplicate key %q", key)
		}
		seen[key] = true
		below, whole, drop := step(ms, []byte(key))
		at := r.d.i
		if whole {
			err = r.d.skip(depth + 1)
		} else {
			err = r.value(below, depth+1)
		}
		if err != nil {
			return err
		}
		if whole && !drop {
			r.mask(at, r.d.i)
		}
		members = append(members, span{at: start, end: r.d.i, drop: drop})
		r.d.space()
		start = r.d.i + 1 // behind the comma
	}
}

func (r *redactor) list(ms []match, depth int) error {
	if depth >= maxDataDepth {
		return r.d.errorf("nested deeper than %d", maxDataDepth)
	}
	below, whole, drop := step(ms, []byte("*"))
	for _, m := range ms {
		if m.steps[0] != "*" {
			// A name reaches into the elements: what a publisher wraps in a list must not
			// escape.
			below = append(below, m)
		}
	}
	var elements []span
	start := r.d.i + 1
	for more, err := r.d.open(']'); ; more, err = r.d.more(']') {
		if err != nil {
			return err
		}
		if !more {
			r.cut(elements)
			return nil
		}
		at := r.d.i
		if whole {
			err = r.d.skip(depth + 1)
		} else {
			err = r.value(below, depth+1)
		}
		if err != nil {
			return err
		}
		if whole && !drop {
			r.mask(at, r.d.i)
		}
		elements = append(elements, span{at: start, end: r.d.i, drop: drop})
		r.d.space()
		start = r.d.i + 1 // behind the comma
	}
}

// span is one member or element, from behind the comma before it to its end.
type span struct {
	at, end int
	drop    bool
}

func (r *redactor) cut(spans []span) {
	kept := false
	for i, s := range spans {
		switch {
		case !s.drop:
			kept = true
		case kept:
			r.edits = append(r.edits, edit{from: s.at - 1, to: s.end})
		case i+1 < len(spans):
			r.edits = append(r.edits, edit{from: s.at, to: spans[i+1].at})
		default:
			r.edits = append(r.edits, edit{from: s.at, to: s.end})
		}
	}
}

func (r *redactor) mask(from, to int) {
	with := "null"
	if r.d.b[from] == '"' {
		with = masked
	}
	if r.d.b[from:to] != with {
		r.edits = append(r.edits, edit{from, to, with})
	}
}

func (r *redactor) apply() []byte {
	slices.SortFunc(r.edits, func(a, b edit) int { return cmp.Compare(a.from, b.from) })
	var out bytes.Buffer
	at := 0
	for _, e := range r.edits {
		if e.from < at { // within a member that is gone
			continue
		}
		out.WriteString(r.d.b[at:e.from])
		out.WriteString(e.with)
		at = e.to
	}
	out.WriteString(r.d.b[at:])
	return out.Bytes()
}
