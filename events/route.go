package events

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Routing is where governance sends an event. Empty fields leave things as they
// are.
type Routing struct {
	Pipeline string // that handles the event, in place of any other
	Tier     string // hot, warm or cold: where the event's batch belongs
	Workers  string // class of workers that may handle it
	Region   string // where they must be
}

// IsZero reports whether the routing changes nothing.
func (r Routing) IsZero() bool { return r == Routing{} }

// String is the value of ExtRoute: the set fields as a URL query, sorted by name.
func (r Routing) String() string {
	q := url.Values{}
	for k, v := range map[string]string{"pipeline": r.Pipeline, "tier": r.Tier, "workers": r.Workers, "region": r.Region} {
		if v != "" {
			q.Set(k, v)
		}
	}
	return q.Encode()
}

// RouteOf reads an event's ExtRoute attribute; the zero Routing if it has none.
// An error means that the event must not be handled: where it belongs is not
// known.
func RouteOf(ev *Event) (Routing, error) {
	var r Routing
	q, err := queryExtension(ev, ExtRoute)
	if err != nil {
		return r, err
	}
	for k, vs := range q {
		if len(vs) != 1 || vs[0] == "" {
			return Routing{}, fmt.Errorf("%w: %s: %q must have one value", ErrInvalid, ExtRoute, k)
		}
		switch k {
		case "pipeline":
			r.Pipeline = vs[0]
		case "tier":
			r.Tier = vs[0]
		case "workers":
			r.Workers = vs[0]
		case "region":
			r.Region = vs[0]
		default:
			return Routing{}, fmt.Errorf("%w: %s: unknown field %q", ErrInvalid, ExtRoute, k)
		}
	}
	return r, nil
}

// Columns are the columns that governance takes out of the batch that an event
// tells of. Whoever opens the batch because of the event must honour it before
// anything else sees a row: a column of Drop is not there, one of Mask is all
// null.
type Columns struct {
	Drop []string
	Mask []string
}

// IsZero reports whether nothing is taken out.
func (c Columns) IsZero() bool { return len(c.Drop) == 0 && len(c.Mask) == 0 }

// String is the value of ExtColumns: a URL query with a drop or mask for each
// column, sorted.
func (c Columns) String() string {
	q := url.Values{}
	for _, name := range slices.Sorted(slices.Values(c.Drop)) {
		q.Add("drop", name)
	}
	for _, name := range slices.Sorted(slices.Values(c.Mask)) {
		q.Add("mask", name)
	}
	return q.Encode()
}

// ColumnsOf reads an event's ExtColumns attribute; the zero Columns if it has
// none. An error means that the batch must not be opened.
func ColumnsOf(ev *Event) (Columns, error) {
	q, err := queryExtension(ev, ExtColumns)
	if err != nil {
		return Columns{}, err
	}
	for k, names := range q {
		if k != "drop" && k != "mask" {
			return Columns{}, fmt.Errorf("%w: %s: unknown field %q", ErrInvalid, ExtColumns, k)
		}
		if slices.Contains(names, "") {
			return Columns{}, fmt.Errorf("%w: %s: a column without a name", ErrInvalid, ExtColumns)
		}
	}
	return Columns{Drop: q["drop"], Mask: q["mask"]}, nil
}

func queryExtension(ev *Event, name string) (url.Values, error) {
	v, ok := ev.Extensions()[name]
	if !ok {
		return nil, nil
	}
	text, ok := v.(string)
	if !ok || text == "" {
		return nil, fmt.Errorf("%w: %s: must be text", ErrInvalid, name)
	}
	q, err := url.ParseQuery(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	return q, nil
}

// LabelsOf reads an event's ExtLabels attribute.
func LabelsOf(ev *Event) ([]string, error) {
	v, ok := ev.Extensions()[ExtLabels]
	if !ok {
		return nil, nil
	}
	text, ok := v.(string)
	if !ok {
		return nil, fmt.Errorf("%w: %s: must be text", ErrInvalid, ExtLabels)
	}
	labels := strings.Split(text, ",")
	for _, l := range labels {
		if err := CheckLabel(l); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, ExtLabels, err)
		}
	}
	return labels, nil
}

// CheckLabel accepts a label: a name, or name:value, of lower-case letters,
// digits, hyphens, underscores and dots, such as pii, residency:eu and
// licence:cc-by-4.0.
func CheckLabel(label string) error {
	name, value, valued := strings.Cut(label, ":")
	if name == "" || valued && value == "" || len(label) > maxNameBytes {
		return fmt.Errorf("label %.80q: must be name or name:value, at most %d characters", label, maxNameBytes)
	}
	for i := range len(label) {
		c := label[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' && i != len(name) {
			return fmt.Errorf("label %q: only a to z, 0 to 9, hyphen, underscore, dot and one colon are allowed", label)
		}
	}
	return nil
}
