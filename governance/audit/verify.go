package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/stokehold/stokehold/governance/audit/proof"
)

// Kind is what was done to a log.
type Kind string

// The kinds of findings.
const (
	Deleted    Kind = "deleted"    // entries are gone that retention keeps
	TailCut    Kind = "tail-cut"   // the newest entries are gone
	Edited     Kind = "edited"     // entries are not those that were signed
	Reordered  Kind = "reordered"  // the same entries in another order
	Inserted   Kind = "inserted"   // entries were put between
	Forked     Kind = "forked"     // two signed histories, or one signed beside the log
	Checkpoint Kind = "checkpoint" // a checkpoint is missing, unreadable, or not signed by a trusted key
)

// Finding is one way in which a log is not what was signed.
type Finding struct {
	Kind Kind `json:"kind"`
	// Entries [From, To) and messages [FirstMessage, LastMessage] are those concerned,
	// as far as can be told; where Messages is false, the sequences are those between
	// two checkpoints. Both are zero for findings about checkpoints.
	From         int64  `json:"from_entry"`
	To           int64  `json:"to_entry"`
	FirstMessage uint64 `json:"first_message,omitempty"`
	LastMessage  uint64 `json:"last_message,omitempty"`
	// Begun and Ended bound when the messages were stored, where that is known.
	Begun time.Time `json:"begun,omitzero"`
	Ended time.Time `json:"ended,omitzero"`
	Text  string    `json:"text"` // one line for a person
}

// Result is what verification came to.
type Result struct {
	Stream string `json:"stream"`
	// Findings are empty if the log is what was signed. At most MaxFindings; More
	// counts the others.
	Findings []Finding `json:"findings"`
	More     int       `json:"more,omitempty"`
	// Checkpoints were checked; Entries in Messages were compared with them.
	Checkpoints int    `json:"checkpoints"`
	Entries     int64  `json:"entries"`
	Messages    uint64 `json:"messages"`
	// Expired entries are older than the retention floor and gone. Uncertain ones are
	// still there, but of a time whose first entries are gone, so that no root can be
	// computed for them. Pending ones are not under a checkpoint yet.
	Expired   int64 `json:"expired"`
	Uncertain int64 `json:"uncertain"`
	Pending   int64 `json:"pending"`
	// Weaknesses are what the stream's configuration would let happen.
	Weaknesses []string `json:"weaknesses"`
	// Last is the newest checkpoint that holds with all before it: what a later
	// verification resumes from. nil if there is none.
	Last *proof.Record `json:"-"`
}

// Err is nil if the log is what was signed, or else wraps ErrTampered and says the
// first finding.
func (r *Result) Err() error {
	if len(r.Findings) == 0 {
		return nil
	}
	more := ""
	if n := len(r.Findings) + r.More - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	return fmt.Errorf("%w: %s: %s%s", ErrTampered, r.Findings[0].Kind, r.Findings[0].Text, more)
}

// VerifyConfig says what to verify a log against.
type VerifyConfig struct {
	Store CheckpointStore // required
	Keys  *proof.Keys     // required; those trusted
	// Retention is how long decisions have to be there; default RetentionFloor. Entries
	// older than that may be gone.
	Retention time.Duration
	// Resume is the signed checkpoint that an earlier verification came to: entries
	// before it are not read again. It must be in the store still.
	Resume []byte
	// Witnessed are signed checkpoints that someone else kept, such as printed ones. The
	// log must extend each.
	Witnessed [][]byte
	// MaxFindings bounds the findings listed; default 100.
	MaxFindings int
	Now         func() time.Time // default time.Now
}

// Verify recomputes the log from the stream and holds it to the checkpoints of the
// store and to those witnessed. It reads each message once, in memory that does not
// grow with the log. An error means that it could not be completed; what was found
// is in the result, whose Err tells.
func (r *Reader) Verify(ctx context.Context, cfg VerifyConfig) (*Result, error) {
	if cfg.Store == nil || cfg.Keys == nil {
		return nil, fmt.Errorf("%w: verification needs the checkpoint store and the keys to trust", ErrConfig)
	}
	if cfg.Retention == 0 {
		cfg.Retention = RetentionFloor
	}
	if cfg.MaxFindings == 0 {
		cfg.MaxFindings = 100
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Retention < 0 || cfg.MaxFindings < 1 {
		return nil, fmt.Errorf("%w: Retention and MaxFindings must be positive", ErrConfig)
	}
	v := &verification{cfg: cfg, reader: r, result: &Result{Stream: r.stream, Findings: []Finding{}}, roots: map[int64][]tlog.Hash{}, cutoff: cfg.Now().Add(-cfg.Retention)}
	return v.result, v.run(ctx)
}

// verification is one run of Verify: messages and records walk side by side.
type verification struct {
	cfg    VerifyConfig
	reader *Reader
	result *Result
	cutoff time.Time // what was stored before may be gone

	all       []string // names of the records
	names     []string // of those not opened yet
	roots     map[int64][]tlog.Hash
	sizes     []int64       // of roots, as they came, to bound them
	before    *proof.Record // the last checkpoint passed
	record    *proof.Record // the one that the messages now lead to; nil: all are passed
	witnesses []proof.Checkpoint
	broken    bool // something was found: Last moves no more

	replay *proof.Replay // since before
	marks  []mark        // of the messages since before
	gaps   []gap         // likewise
	next   uint64        // sequence expected
	hash   hasher
}

type mark struct {
	sequence uint64
	entry    int64 // first of the message
	stored   time.Time
}

type gap struct{ from, to uint64 }

// maxRoots bounds the sizes whose roots are remembered for Since of later records.
const maxRoots = 4096

func (v *verification) run(ctx context.Context) error {
	info, err := v.reader.info(ctx)
	if err != nil {
		return err
	}
	v.result.Weaknesses = weaknesses(&info.Config, v.cfg.Retention)
	if v.all, err = sortedNames(ctx, v.cfg.Store); err != nil {
		return err
	}
	v.names = v.all
	if err := v.witness(ctx); err != nil {
		return err
	}
	if len(v.names) == 0 && v.before == nil {
		v.find(Finding{Kind: Checkpoint, Text: "the store has no checkpoint of this log: nothing can be verified"})
	}
	v.replay, v.next = proof.NewReplay(v.before), 1
	if v.before != nil {
		v.next = v.before.Sequence + 1
	}
	if err := v.advance(ctx); err != nil {
		return err
	}
	first := true
	err = v.reader.scan(ctx, start{sequence: v.next}, func(m message) error {
		if first {
			first = false
			if err := v.front(ctx, m.sequence, false); err != nil {
				return err
			}
		}
		return v.message(ctx, m)
	})
	if err != nil {
		return err
	}
	if first { // nothing is there from where it should go on
		if err := v.front(ctx, info.State.LastSeq+1, true); err != nil {
			return err
		}
	}
	return v.end(ctx, info.State.LastSeq)
}

// witness reads the checkpoints that come from elsewhere, and finds the one to
// resume from.
func (v *verification) witness(ctx context.Context) error {
	for _, signed := range v.cfg.Witnessed {
		c, err := proof.OpenCheckpoint(signed, v.cfg.Keys)
		if err != nil {
			return fmt.Errorf("a checkpoint given: %w", err)
		}
		v.witnesses = append(v.witnesses, c)
	}
	slices.SortFunc(v.witnesses, func(a, b proof.Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	if len(v.cfg.Resume) == 0 {
		return nil
	}
	c, err := proof.OpenCheckpoint(v.cfg.Resume, v.cfg.Keys)
	if err != nil {
		return fmt.Errorf("the checkpoint to resume from: %w", err)
	}
	name := (&proof.Record{Checkpoint: c, Signed: v.cfg.Resume}).Name()
	at, found := slices.BinarySearch(v.names, name)
	if !found {
		v.find(Finding{Kind: Checkpoint, To: c.Size, Text: fmt.Sprintf("the checkpoint of %d entries that an earlier verification ended at is gone from the store; everything is read again", c.Size)})
		v.witnesses = append(v.witnesses, c)
		slices.SortFunc(v.witnesses, func(a, b proof.Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
		return nil
	}
	rec, err := openRecord(ctx, v.cfg.Store, name, v.cfg.Keys)
	if err != nil {
		return err
	}
	v.names = v.names[at+1:]
	v.before, v.result.Last = rec, rec
	v.remember(rec)
	return nil
}

func (v *verification) remember(rec *proof.Record) {
	if len(v.sizes) == maxRoots {
		delete(v.roots, v.sizes[0])
		v.sizes = v.sizes[1:]
	}
	v.roots[rec.Size], v.sizes = append(v.roots[rec.Size], rec.Root), append(v.sizes, rec.Size)
}

// advance opens the next record and holds it to those before.
func (v *verification) advance(ctx context.Context) error {
	for v.record = nil; len(v.names) > 0; {
		name := v.names[0]
		v.names = v.names[1:]
		rec, err := openRecord(ctx, v.cfg.Store, name, v.cfg.Keys)
		switch {
		case errors.Is(err, proof.ErrMalformed), errors.Is(err, proof.ErrSignature), errors.Is(err, proof.ErrProof), errors.Is(err, ErrNoRecord):
			v.find(Finding{Kind: Checkpoint, Text: oneLine(err)})
			continue
		case err != nil:
			return err
		}
		v.result.Checkpoints++
		if known := v.roots[rec.Size]; len(known) > 0 {
			if slices.Contains(known, rec.Root) {
				continue // another sequencer signed the same
			}
			v.find(Finding{Kind: Forked, From: rec.Since, To: rec.Size, FirstMessage: v.firstAfter(), LastMessage: rec.Sequence,
				Text: fmt.Sprintf("two checkpoints of %d entries were signed with different roots, the second at %s", rec.Size, when(rec.Time))})
			v.remember(rec)
			continue
		}
		v.chain(ctx, rec)
		v.remember(rec)
		v.record = rec
		return nil
	}
	return nil
}

// chain checks that a record extends the one that it says it does.
func (v *verification) chain(ctx context.Context, rec *proof.Record) {
	if rec.Since == 0 {
		return
	}
	known := v.roots[rec.Since]
	if len(known) == 0 { // before the one that this began with
		for _, name := range ofSize(v.all, rec.Since) {
			if b, err := openRecord(ctx, v.cfg.Store, name, v.cfg.Keys); err == nil {
				known = append(known, b.Root)
			}
		}
	}
	switch {
	case len(known) == 0 && v.before == nil && v.result.Checkpoints == 1 && !rec.Begun.After(v.cutoff):
		// The store's first: those before were dropped with the entries under them.
	case len(known) == 0:
		v.find(Finding{Kind: Checkpoint, To: rec.Since, Text: fmt.Sprintf("the checkpoint of %d entries, which that of %d extends, is gone from the store", rec.Since, rec.Size)})
	case !slices.ContainsFunc(known, func(root tlog.Hash) bool { return rec.Extends(root) == nil }):
		v.find(Finding{Kind: Forked, From: rec.Since, To: rec.Size, LastMessage: rec.Sequence,
			Text: fmt.Sprintf("the checkpoint of %d entries, signed at %s, does not extend the one of %d: two histories were signed", rec.Size, when(rec.Time), rec.Since)})
	}
}

func (v *verification) firstAfter() uint64 {
	if v.before == nil {
		return 1
	}
	return v.before.Sequence + 1
}

// front meets the first message that is there: those before it have expired, or
// were deleted. empty means that there is none, and first the one that would come.
func (v *verification) front(ctx context.Context, first uint64, empty bool) error {
	var lost *Finding
	for v.next < first && v.record != nil {
		rec := v.record
		from, to := v.next, min(first-1, rec.Sequence)
		whole := to == rec.Sequence
		gone := rec.Begun // the whole of the messages is at least as old as
		if whole {
			gone = rec.Stored
		}
		switch {
		case !gone.After(v.cutoff):
			v.result.Expired += rec.Size - v.size()
			if !whole {
				v.result.Uncertain = -1 // the rest is there: counted as it comes
				return nil
			}
		case empty:
			return v.lose(lost) // the tail as well
		case !whole:
			return v.lose(lost) // the checkpoint will say what is missing here
		case lost == nil:
			lost = &Finding{Kind: Deleted, From: v.size(), To: rec.Size, FirstMessage: from, LastMessage: to, Begun: rec.Begun, Ended: rec.Stored}
		default:
			lost.To, lost.LastMessage, lost.Ended = rec.Size, to, rec.Stored
		}
		if err := v.pass(ctx); err != nil {
			return err
		}
	}
	return v.lose(lost)
}

// lose reports what is gone from the front, if anything is.
func (v *verification) lose(f *Finding) error {
	if f != nil {
		f.Text = fmt.Sprintf("%s gone (messages %d to %d, stored from %s to %s); decisions are kept for %s",
			entries(f.From, f.To, "is", "are"), f.FirstMessage, f.LastMessage, when(f.Begun), when(f.Ended), v.cfg.Retention)
		v.find(*f)
	}
	return nil
}

// size is that of the last checkpoint passed.
func (v *verification) size() int64 {
	if v.before == nil {
		return 0
	}
	return v.before.Size
}

// pass makes the record that was led to the one that is gone on from.
func (v *verification) pass(ctx context.Context) error {
	v.before = v.record
	if !v.broken {
		v.result.Last = v.before
	}
	v.replay = proof.NewReplay(v.before)
	v.marks, v.gaps, v.next = v.marks[:0], v.gaps[:0], v.before.Sequence+1
	for len(v.witnesses) > 0 && v.witnesses[0].Size <= v.before.Size {
		v.meetWitness(v.before.Size, v.before.Root)
	}
	return v.advance(ctx)
}

// message takes in a message.
func (v *verification) message(ctx context.Context, m message) error {
	for v.record != nil && m.sequence > v.record.Sequence {
		if v.next <= v.record.Sequence {
			v.gaps = append(v.gaps, gap{v.next, v.record.Sequence})
			v.next = v.record.Sequence + 1
		}
		if err := v.settle(ctx); err != nil {
			return err
		}
	}
	if m.sequence > v.next {
		v.gaps = append(v.gaps, gap{v.next, m.sequence - 1})
		if v.record == nil {
			v.find(Finding{Kind: Deleted, FirstMessage: v.next, LastMessage: m.sequence - 1, Ended: m.stored,
				Text: fmt.Sprintf("messages %d to %d are gone; no checkpoint says what they held", v.next, m.sequence-1)})
		}
	}
	v.next = m.sequence + 1
	v.result.Messages++
	entry := v.replay.Size()
	if v.record != nil {
		v.marks = append(v.marks, mark{m.sequence, entry, m.stored})
	}
	if err := v.hash.hashes(m.data, v.replay.Add); err != nil {
		v.find(Finding{Kind: Edited, From: entry, To: entry, FirstMessage: m.sequence, LastMessage: m.sequence, Begun: m.stored, Ended: m.stored,
			Text: fmt.Sprintf("message %d cannot be read: %s", m.sequence, oneLine(err))})
	}
	if v.record == nil {
		v.result.Pending += v.replay.Size() - entry
	}
	for len(v.witnesses) > 0 && v.witnesses[0].Size <= v.replay.Size() && !v.partial() {
		v.meetWitness(v.replay.Size(), v.replay.Root())
	}
	return nil
}

// partial reports whether the front of the entries that lead to the record has
// expired, so that no root can be computed for them.
func (v *verification) partial() bool { return v.result.Uncertain < 0 }

// meetWitness holds the log to the first of the checkpoints given.
func (v *verification) meetWitness(size int64, root tlog.Hash) {
	w := v.witnesses[0]
	v.witnesses = v.witnesses[1:]
	switch known := v.roots[w.Size]; {
	case w.Size == size && w.Root == root, slices.Contains(known, w.Root):
	case w.Size < size && len(known) == 0 && v.before != nil && w.Size < v.before.Size:
		v.result.Weaknesses = append(v.result.Weaknesses, fmt.Sprintf("the checkpoint of %d entries that was given is of a place that cannot be recomputed any more", w.Size))
	default:
		v.find(Finding{Kind: Forked, To: w.Size, LastMessage: w.Sequence, Ended: w.Stored,
			Text: fmt.Sprintf("a checkpoint of %d entries, signed at %s, was given that this log does not extend: two histories were signed", w.Size, when(w.Time))})
	}
}

// settle compares what was read with the record that it leads to, all of whose
// messages are passed.
func (v *verification) settle(ctx context.Context) error {
	rec := v.record
	if v.partial() {
		v.result.Uncertain = v.replay.Size() - v.size()
		v.result.Expired -= v.result.Uncertain
		return v.pass(ctx)
	}
	got := v.replay.Size() - v.size()
	v.result.Entries += got
	if v.replay.Size() == rec.Size && v.replay.Root() == rec.Root && len(v.gaps) == 0 {
		return v.pass(ctx)
	}
	v.differ(rec)
	return v.pass(ctx)
}

// differ tells how what was read differs from what was signed.
func (v *verification) differ(rec *proof.Record) {
	trace := v.replay.Trace()
	var d proof.Difference
	ok := rec.Since == v.size() // or else another sequencer's, whose trace begins elsewhere
	if ok {
		d, ok = rec.Trace.Compare(&trace)
	}
	f := Finding{From: d.From, To: d.To, FirstMessage: v.firstAfter(), LastMessage: rec.Sequence, Begun: rec.Begun, Ended: rec.Stored}
	if len(v.gaps) > 0 {
		f.Kind, f.FirstMessage, f.LastMessage = Deleted, v.gaps[0].from, v.gaps[len(v.gaps)-1].to
		n := uint64(0)
		for _, g := range v.gaps {
			n += g.to - g.from + 1
		}
		f.Text = fmt.Sprintf("%d message(s) from %d to %d with %d of the entries from %d on are gone", n, f.FirstMessage, f.LastMessage, rec.Size-v.replay.Size(), d.From)
		if v.replay.Size() == rec.Size {
			f.From, f.To = v.replay.Size(), v.replay.Size()
			f.Text = fmt.Sprintf("%d message(s) from %d to %d, which held no decisions, are gone", n, f.FirstMessage, f.LastMessage)
		}
		v.locate(&f, false)
		v.find(f)
		return
	}
	switch {
	case !ok:
		f.Kind, f.From, f.To = Edited, v.size(), rec.Size
		f.Text = entries(f.From, f.To, "does", "do") + " not have the root that was signed"
	case d.Change == proof.Missing:
		f.Kind, f.Text = Deleted, entries(d.From, d.To, "is", "are")+" gone from between those that were signed"
	case d.Change == proof.Added:
		f.Kind, f.Text = Inserted, fmt.Sprintf("entries that were never signed are there before entry %d", d.From)
	case d.Change == proof.Reordered:
		f.Kind, f.Text = Reordered, entries(d.From, d.To, "is", "are")+" in another order than was signed"
	default:
		f.Kind, f.Text = Edited, entries(d.From, d.To, "is", "are")+" not what was signed"
	}
	v.locate(&f, true)
	v.find(f)
}

// entries names them, with a verb in the number that fits.
func entries(from, to int64, one, many string) string {
	if to == from+1 {
		return fmt.Sprintf("entry %d %s", from, one)
	}
	return fmt.Sprintf("entries %d to %d %s", from, to-1, many)
}

// locate narrows a finding to the messages that now hold the entries' places, and
// adds where that is to its text.
func (v *verification) locate(f *Finding, messages bool) {
	at := func(entry int64) (mark, bool) {
		i, found := slices.BinarySearchFunc(v.marks, entry, func(m mark, e int64) int { return cmp.Compare(m.entry, e) })
		// Messages without entries share the place of the next: the last is the one.
		for found && i+1 < len(v.marks) && v.marks[i+1].entry == entry {
			i++
		}
		if !found {
			i--
		}
		if i < 0 || i >= len(v.marks) {
			return mark{}, false
		}
		return v.marks[i], true
	}
	if messages {
		if m, ok := at(f.From); ok {
			f.FirstMessage, f.Begun = m.sequence, m.stored
		}
		if m, ok := at(max(f.From, f.To-1)); ok {
			f.LastMessage, f.Ended = m.sequence, m.stored
		}
		f.Text += fmt.Sprintf(" (messages %d to %d, as they are now)", f.FirstMessage, f.LastMessage)
	}
	f.Text += fmt.Sprintf("; signed at %s for what was stored from %s to %s", when(v.record.Time), when(v.record.Begun), when(v.record.Stored))
}

// end settles what is left once all messages are read.
func (v *verification) end(ctx context.Context, last uint64) error {
	for v.record != nil && v.record.Sequence < v.next {
		if err := v.settle(ctx); err != nil {
			return err
		}
	}
	if v.record != nil {
		if err := v.cutTail(ctx); err != nil {
			return err
		}
	} else if v.next <= last {
		v.find(Finding{Kind: TailCut, FirstMessage: v.next, LastMessage: last,
			Text: fmt.Sprintf("messages %d to %d at the end of the stream are gone; no checkpoint says what they held", v.next, last)})
	}
	for _, w := range v.witnesses {
		v.find(Finding{Kind: TailCut, From: v.replay.Size(), To: w.Size, LastMessage: w.Sequence, Ended: w.Stored,
			Text: fmt.Sprintf("a checkpoint of %d entries, signed at %s, was given, and the log has %d", w.Size, when(w.Time), v.replay.Size())})
	}
	return nil
}

// cutTail finds that the stream ends before its checkpoints do.
func (v *verification) cutTail(ctx context.Context) error {
	rec, had := v.record, v.replay.Size()
	v.result.Entries += had - v.size()
	trace := v.replay.Trace()
	if d, ok := rec.Trace.Compare(&trace); len(v.gaps) > 0 || ok && (d.Change != proof.Missing || d.To != rec.Size) {
		v.differ(rec) // more than its tail is missing
	}
	f := Finding{Kind: TailCut, From: had, FirstMessage: v.next, Begun: rec.Begun}
	for newest := rec; newest != nil; newest = v.record {
		f.To, f.LastMessage, f.Ended = newest.Size, newest.Sequence, newest.Stored
		v.before = v.record
		if err := v.advance(ctx); err != nil {
			return err
		}
	}
	f.Text = fmt.Sprintf("%s gone from the end of the log (messages %d to %d, the last stored at %s)", entries(f.From, f.To, "is", "are"), f.FirstMessage, f.LastMessage, when(f.Ended))
	v.find(f)
	return nil
}

func (v *verification) find(f Finding) {
	v.broken = true
	if len(v.result.Findings) == v.cfg.MaxFindings {
		v.result.More++
		return
	}
	v.result.Findings = append(v.result.Findings, f)
}

func when(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
