package workflows

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stokehold/stokehold/events"
)

const (
	// maxSeen is how many of a key's newest events a trigger remembers for
	// deduplication: 8 bytes each, so that its memory stays below MaxPayloadBytes.
	maxSeen = 8000
	// maxNewest bounds the events whose payload a trigger keeps for the next run,
	// maxNewestBytes their data.
	maxNewest      = 100
	maxNewestBytes = 24 << 10
	// A delivery of many events carries the payload of few: the others are on the
	// bus, and the trigger needs only to know that it has not seen them before.
	maxDeliveryBytes  = 4 << 10
	manyEvents        = 32
	maxNewestOfMany   = 2
	maxEventDataBytes = 32 << 10
)

// EventParam is one event as a run sees it.
type EventParam struct {
	ID      string          `json:"id"`
	Type    string          `json:"type"`
	Subject string          `json:"subject,omitempty"`
	Time    time.Time       `json:"time"`
	Data    json.RawMessage `json:"data,omitempty"` // absent above 32 KiB, or if not JSON
}

// RunParams are the parameters of a run that a trigger started, beside the
// fields of the newest event's data, which are at the top level: a stage that
// decodes {"week": 7} from the event's data works the same for a run started by
// hand with those parameters.
type RunParams struct {
	EventIDs   []string `json:"event_ids"`   // the newest, oldest first, at most 100
	EventCount int      `json:"event_count"` // of all events that led to the run
	// Events are the newest ones with their data, oldest first, as far as they fit.
	Events []EventParam `json:"events"`
}

// delivery is a group of events of one key, in stream order. Compact, since all
// of it stays in the trigger's history.
type delivery struct {
	Settings settings     `json:"settings"`
	Hashes   []byte       `json:"hashes"`          // 8 bytes for each event
	Times    []byte       `json:"times,omitempty"` // 8 bytes for each event, Unix nanoseconds; only where they count
	Newest   []EventParam `json:"newest"`          // the last ones, with their payload
}

// incoming is one event of a delivery.
type incoming struct {
	hash  uint64
	time  time.Time
	event *EventParam // nil: its payload stayed on the bus
}

func newDelivery(s settings, evs []*events.Event) delivery {
	d := delivery{Settings: s}
	for _, e := range evs {
		d.Hashes = binary.BigEndian.AppendUint64(d.Hashes, eventHash(e.ID()))
		if s.EventTime {
			d.Times = binary.BigEndian.AppendUint64(d.Times, uint64(e.Time().UnixNano()))
		}
	}
	most := len(evs)
	if most > manyEvents {
		most = maxNewestOfMany
	}
	size := 0
	for _, e := range slices.Backward(evs) {
		p := paramOf(e)
		size += len(p.Data) + len(p.ID)
		if len(d.Newest) == most || (len(d.Newest) > 0 && size > maxDeliveryBytes) {
			break
		}
		d.Newest = append(d.Newest, p)
	}
	slices.Reverse(d.Newest)
	return d
}

func paramOf(e *events.Event) EventParam {
	p := EventParam{ID: e.ID(), Type: e.Type(), Subject: e.Subject(), Time: e.Time().UTC()}
	if data := e.Data(); len(data) <= maxEventDataBytes && json.Valid(data) {
		p.Data = data
	}
	return p
}

// eventHash is how an event is remembered: 64 bits of its id's SHA-256. With
// 8,000 remembered the chance of taking a new event for an old one is 4e-16.
func eventHash(id string) uint64 {
	sum := sha256.Sum256([]byte(id))
	return binary.BigEndian.Uint64(sum[:])
}

func (d delivery) len() int { return len(d.Hashes) / 8 }

func (d delivery) at(i int) incoming {
	in := incoming{hash: binary.BigEndian.Uint64(d.Hashes[8*i:])}
	if len(d.Times) >= 8*(i+1) {
		in.time = time.Unix(0, int64(binary.BigEndian.Uint64(d.Times[8*i:]))).UTC()
	}
	if j := i - (d.len() - len(d.Newest)); j >= 0 && j < len(d.Newest) {
		in.event = &d.Newest[j]
		in.time = in.event.Time
	}
	return in
}

// backlog is the events that wait for the next run: all are counted, the newest
// are kept.
type backlog struct {
	Count     int          `json:"count"`
	First     string       `json:"first,omitempty"`      // id of the first, if known
	FirstHash uint64       `json:"first_hash,omitempty"` // of the first
	Latest    time.Time    `json:"latest,omitzero"`      // newest event time
	Newest    []EventParam `json:"newest,omitempty"`     // oldest first
}

func (b *backlog) add(ev incoming) {
	if b.Count == 0 {
		b.FirstHash = ev.hash
		if ev.event != nil {
			b.First = ev.event.ID
		}
	}
	b.Count++
	b.Latest = later(b.Latest, ev.time)
	if ev.event == nil {
		// What is kept must be the newest without a gap, and this one is not there.
		b.Newest = nil
		return
	}
	b.Newest = append(b.Newest, *ev.event)
	size := 0
	for i, e := range slices.Backward(b.Newest) {
		size += len(e.Data)
		if len(b.Newest)-i > maxNewest || (size > maxNewestBytes && i < len(b.Newest)-1) {
			b.Newest = slices.Clone(b.Newest[i+1:])
			break
		}
	}
}

// cause is the event that the run is said to be caused by: the newest.
func (b backlog) cause() string {
	if n := len(b.Newest); n > 0 {
		return b.Newest[n-1].ID
	}
	return b.First
}

func (b backlog) ids() []string {
	ids := make([]string, 0, len(b.Newest)+1)
	if more := b.Count - len(b.Newest); more > 0 {
		ids = append(ids, fmt.Sprintf("%d earlier", more))
	}
	for _, e := range b.Newest {
		ids = append(ids, e.ID)
	}
	return ids
}

// params are the parameters of the run that b starts.
func (b backlog) params() (json.RawMessage, error) {
	top := make(map[string]json.RawMessage)
	p := RunParams{EventCount: b.Count}
	for _, e := range b.Newest {
		p.EventIDs = append(p.EventIDs, e.ID)
	}
	if n := len(b.Newest); n > 0 && len(b.Newest[n-1].Data) > 0 {
		// Data that is no object has no fields to lay over a stage's parameters; it
		// is still among the events.
		_ = json.Unmarshal(b.Newest[n-1].Data, &top)
	}
	if top == nil { // data were null
		top = make(map[string]json.RawMessage)
	}
	p.Events = b.Newest
	for {
		raw, err := json.Marshal(p)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(raw, &top); err != nil {
			return nil, err
		}
		out, err := json.Marshal(top)
		if err != nil || len(out) <= MaxPayloadBytes-1024 || len(p.Events) == 0 {
			return out, err
		}
		p.Events = p.Events[1:]
	}
}

// runKey names the run that b starts: starting it twice is starting it once.
func (b backlog) runKey(trigger, key string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%016x", trigger, key, b.FirstHash))
	name := slug(trigger, 32)
	if b.First != "" {
		name += "-" + slug(b.First, 48)
	}
	return fmt.Sprintf("%s-%08x", name, binary.BigEndian.Uint32(sum[:]))
}

// slug keeps lower-case letters, digits and dots, and joins the rest by dashes.
func slug(s string, n int) string {
	var b strings.Builder
	dash := false
	for _, r := range strings.ToLower(s) {
		if (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9') || r == '.' {
			if dash && b.Len() > 0 {
				b.WriteByte('-')
			}
			b.WriteRune(r)
			dash = false
		} else {
			dash = true
		}
		if b.Len() >= n {
			break
		}
	}
	if b.Len() == 0 {
		return "x"
	}
	return strings.Trim(b.String(), ".")
}

// suppressed collects events that start nothing, by reason.
type suppressed struct{ groups []*suppressedGroup }

type suppressedGroup struct {
	reason string
	first  uint64
	count  int
	known  []string
}

func (s *suppressed) group(reason string, first uint64) *suppressedGroup {
	for _, g := range s.groups {
		if g.reason == reason {
			return g
		}
	}
	g := &suppressedGroup{reason: reason, first: first}
	s.groups = append(s.groups, g)
	return g
}

func (s *suppressed) add(reason string, ev incoming) {
	g := s.group(reason, ev.hash)
	g.count++
	if ev.event != nil && len(g.known) < maxNewest {
		g.known = append(g.known, ev.event.ID)
	}
}

func (s *suppressed) all(reason string, b backlog) {
	g := s.group(reason, b.FirstHash)
	g.count += b.Count
	for _, e := range b.Newest {
		g.known = append(g.known, e.ID)
	}
}

func (g *suppressedGroup) ids() []string {
	if more := g.count - len(g.known); more > 0 {
		return append([]string{fmt.Sprintf("%d more", more)}, g.known...)
	}
	return g.known
}

func (g *suppressedGroup) cause() string {
	if len(g.known) == 0 {
		return ""
	}
	return g.known[len(g.known)-1]
}

func (g *suppressedGroup) text(s settings) string {
	switch g.reason {
	case "cooldown":
		if s.EventTime {
			return fmt.Sprintf("cooldown: less than %v of event time since the event that started the last run", s.Cooldown)
		}
		return fmt.Sprintf("cooldown: less than %v since the last run was started", s.Cooldown)
	case "pending":
		return fmt.Sprintf("a run is active and %d events wait for the next one already", s.MaxPending)
	}
	return g.reason
}

// seenSet remembers the newest maxSeen events.
type seenSet struct {
	order []uint64 // a ring once it is full
	next  int
	set   map[uint64]struct{} // for lookups only: never ranged over
}

func newSeenSet(memory []byte) *seenSet {
	s := &seenSet{set: make(map[uint64]struct{})}
	for len(memory) >= 8 {
		s.add(binary.BigEndian.Uint64(memory))
		memory = memory[8:]
	}
	return s
}

// add reports whether h is new.
func (s *seenSet) add(h uint64) bool {
	if _, ok := s.set[h]; ok {
		return false
	}
	s.set[h] = struct{}{}
	if len(s.order) < maxSeen {
		s.order = append(s.order, h)
		return true
	}
	delete(s.set, s.order[s.next])
	s.order[s.next] = h
	s.next = (s.next + 1) % maxSeen
	return true
}

// bytes is the memory, oldest first.
func (s *seenSet) bytes() []byte {
	out := make([]byte, 0, 8*len(s.order))
	for i := range s.order {
		out = binary.BigEndian.AppendUint64(out, s.order[(s.next+i)%len(s.order)])
	}
	return out
}
