package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Errors of the log. All that Append returns wrap governance.ErrLog.
var (
	// ErrClosed: the log is closed.
	ErrClosed = fmt.Errorf("%w: closed", governance.ErrLog)
	// ErrConfig: the configuration is not usable.
	ErrConfig = errors.New("invalid decision log configuration")
)

// Config configures a JetStreamLog. Zero values take the documented defaults.
type Config struct {
	Conn     *nats.Conn // required; the log does not close it
	Prefix   string     // first subject token and, in upper case, stream-name prefix; default "stokehold"
	Replicas int        // default 1
	// MaxAge is how long decisions are kept: at least RetentionFloor, and at least what
	// the stream has now. Default: the longer of the two.
	MaxAge time.Duration
	// MaxBytes bounds the stream. A full one takes no more decisions, so that nothing
	// passes: retention is never cut short to make room. Default: no bound but the
	// server's own.
	MaxBytes int64
	// MaxQueued bounds the decisions that wait to be written; Append waits for
	// room. Default 65,536.
	MaxQueued int
	// InFlight is how many messages wait for their acknowledgement at once;
	// default 2: one is written while the next is made.
	InFlight int
	// Timeout is how long a message is retried before its Append calls fail;
	// default 10 seconds.
	Timeout time.Duration
}

// Limits of one message.
const (
	maxMessageBytes     = 256 << 10
	maxMessageDecisions = 4096
	blockRoom           = 3 // bytes of a block's count: it is below 1<<21
)

// Headers of a message: how many of its decisions were made at each point. The
// action is the subject's last token.
const (
	headerPublish = "Stk-Publish"
	headerReceive = "Stk-Receive"
)

// JetStreamLog is a governance.DecisionLog in the stream PREFIX_DECISIONS, with
// subjects PREFIX.decision.ACTION. Safe for concurrent use.
type JetStreamLog struct {
	*Reader
	cfg Config

	mu      sync.Mutex
	wake    *sync.Cond // a block was queued, or the log closes
	queues  [len(actions)][]*block
	queued  int           // decisions
	room    chan struct{} // closed and replaced whenever queued shrinks
	next    uint64
	closing bool

	stop    context.CancelFunc // ends publishing, after a Close that ran out of time
	workers sync.WaitGroup
}

// actions are the subjects' last tokens, by queue.
var actions = [...]events.Action{events.Allow, events.Warn, events.Deny, events.Quarantine, events.Redact, events.Route, events.RequireApproval} //nolint:gochecknoglobals // a constant table

func queueOf(a events.Action) (int, bool) {
	for i, b := range actions {
		if a == b {
			return i, true
		}
	}
	return 0, false
}

// block is the encoded decisions of one Append call for one action.
type block struct {
	queue int
	seq   uint64
	n     int
	at    [2]int // by point: publish, receive
	body  []byte
	owner *pending
}

// pending is one waiting Append call.
type pending struct {
	mu   sync.Mutex
	left int
	err  error
	done chan struct{}
}

func (p *pending) finish(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && p.err == nil {
		p.err = err
	}
	if p.left--; p.left == 0 {
		close(p.done)
	}
}

var prefixRule = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,30}$`)

var _ governance.DecisionLog = (*JetStreamLog)(nil)

// Open creates or updates the stream and returns the log. Close it.
func Open(ctx context.Context, cfg Config) (*JetStreamLog, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = defaultPrefix
	}
	var faults []error
	bad := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...))
	}
	if cfg.Conn == nil {
		bad("Conn is nil")
	}
	if !prefixRule.MatchString(cfg.Prefix) {
		bad("Prefix %q is not a lower-case word", cfg.Prefix)
	}
	for _, f := range []struct {
		name     string
		value    *int
		def, max int
	}{{"Replicas", &cfg.Replicas, 1, 5}, {"MaxQueued", &cfg.MaxQueued, 1 << 16, 1 << 24}, {"InFlight", &cfg.InFlight, 2, 64}} {
		if *f.value == 0 {
			*f.value = f.def
		}
		if *f.value < 1 || *f.value > f.max {
			bad("%s is %d; it must be 1 to %d", f.name, *f.value, f.max)
		}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.MaxAge != 0 && cfg.MaxAge < RetentionFloor {
		faults = append(faults, fmt.Errorf("%w: MaxAge is %s; decisions are kept for at least %s", ErrRetention, cfg.MaxAge, RetentionFloor))
	}
	if cfg.MaxBytes != 0 && cfg.MaxBytes < 2*maxMessageBytes || cfg.Timeout < 0 {
		bad("Timeout must be positive and MaxBytes at least %d", 2*maxMessageBytes)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	r, err := NewReader(cfg.Conn, cfg.Prefix)
	if err != nil {
		return nil, err
	}
	l := &JetStreamLog{cfg: cfg, Reader: r, room: make(chan struct{})}
	l.wake = sync.NewCond(&l.mu)
	if err := l.ensureStream(ctx); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	l.stop = stop
	for range cfg.InFlight {
		l.workers.Go(func() { l.write(run) })
	}
	return l, nil
}

// Append implements governance.DecisionLog. Secrets that are recognised in reasons
// and attributes are replaced (see scrub). If ctx ends while the decisions wait
// for their acknowledgement, they may be in the log all the same.
func (l *JetStreamLog) Append(ctx context.Context, ds []governance.Decision) error {
	if len(ds) == 0 {
		return nil
	}
	p := &pending{done: make(chan struct{})}
	blocks, err := encode(ds, p)
	if err != nil {
		return err
	}
	p.left = len(blocks)
	if err := l.enqueue(ctx, len(ds), blocks); err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", governance.ErrLog, ctx.Err())
	}
}

// encode makes blocks small enough for a message. Encoding happens on the
// caller's goroutine: it is done in parallel, and nothing of ds is kept.
func encode(ds []governance.Decision, p *pending) ([]*block, error) {
	type open struct {
		*block
		enc encoder
	}
	var cur [len(actions)]*open
	var out []*block
	flush := func(q int) {
		if o := cur[q]; o != nil {
			// The count, of up to three bytes, goes where room was left for it.
			var count [binary.MaxVarintLen32]byte
			n := binary.PutUvarint(count[:], uint64(o.n))
			o.body = o.body[blockRoom-n:]
			copy(o.body, count[:n])
			cur[q] = nil
		}
	}
	for i := range ds {
		d := &ds[i]
		q, ok := queueOf(d.Action)
		if !ok {
			return nil, fmt.Errorf("%w: unknown action %q of decision %s", governance.ErrLog, d.Action, d.ID)
		}
		o := cur[q]
		if o == nil {
			o = &open{block: &block{owner: p, queue: q}}
			cur[q] = o
			out = append(out, o.block)
		}
		if o.body == nil {
			// Most decisions of a call differ in little but their ids.
			o.body = make([]byte, blockRoom, 512+min(len(ds)-i, maxMessageDecisions/2)*72)
		}
		before := len(o.body)
		o.body = o.enc.append(o.body, d)
		if size := len(o.body) - before; size > maxMessageBytes/2 {
			return nil, fmt.Errorf("%w: decision %s has %d bytes; the limit is %d", governance.ErrLog, d.ID, size, maxMessageBytes/2)
		}
		o.n++
		if d.Point == events.OnReceive {
			o.at[1]++
		} else {
			o.at[0]++
		}
		if len(o.body) > maxMessageBytes/4 || o.n >= maxMessageDecisions/2 {
			flush(q)
		}
	}
	for q := range cur {
		flush(q)
	}
	return out, nil
}

// enqueue waits for room and queues the blocks. A call larger than the queue is
// let in alone.
func (l *JetStreamLog) enqueue(ctx context.Context, n int, blocks []*block) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closing && l.queued > 0 && l.queued+n > l.cfg.MaxQueued {
		room := l.room
		l.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			l.mu.Lock()
			return fmt.Errorf("%w: the queue is full (%d decisions): %w", governance.ErrLog, l.cfg.MaxQueued, ctx.Err())
		}
		l.mu.Lock()
	}
	if l.closing {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", governance.ErrLog, err)
	}
	l.queued += n
	for _, b := range blocks {
		b.seq = l.next
		l.next++
		l.queues[b.queue] = append(l.queues[b.queue], b)
	}
	l.wake.Broadcast()
	return nil
}

// take waits for blocks and returns those of the next message: of one action,
// the one that has waited longest, as many as fit. ok is false when the log has
// closed and the queues are empty.
func (l *JetStreamLog) take() (action events.Action, blocks []*block, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		q := -1
		for i := range l.queues {
			if len(l.queues[i]) > 0 && (q < 0 || l.queues[i][0].seq < l.queues[q][0].seq) {
				q = i
			}
		}
		if q < 0 {
			if l.closing {
				return "", nil, false
			}
			l.wake.Wait()
			continue
		}
		queue := l.queues[q]
		k, bytes, n := 0, len(magic), 0
		for k < len(queue) && (k == 0 || bytes+len(queue[k].body) <= maxMessageBytes && n+queue[k].n <= maxMessageDecisions) {
			bytes += len(queue[k].body)
			n += queue[k].n
			k++
		}
		blocks = append(blocks, queue[:k]...)
		clear(queue[:k])
		if l.queues[q] = queue[k:]; len(l.queues[q]) == 0 {
			l.queues[q] = queue[:0]
		}
		return actions[q], blocks, true
	}
}

// write is a worker: it publishes message after message.
func (l *JetStreamLog) write(ctx context.Context) {
	var buf []byte
	for {
		action, blocks, ok := l.take()
		if !ok {
			return
		}
		buf = append(buf[:0], magic...)
		n := 0
		var at [2]int
		for _, b := range blocks {
			buf = append(buf, b.body...)
			n += b.n
			at[0] += b.at[0]
			at[1] += b.at[1]
		}
		err := l.publish(ctx, action, buf, at)
		l.mu.Lock()
		l.queued -= n
		close(l.room)
		l.room = make(chan struct{})
		l.mu.Unlock()
		for _, b := range blocks {
			b.owner.finish(err)
		}
	}
}

// probeAction is the last token of the subject of messages without decisions.
const probeAction = "probe"

// Probe checks that the log takes decisions: it appends a message without any,
// which stays like all others, and waits for its acknowledgement. The error wraps
// governance.ErrLog. A server whose disk was full may go on refusing after there
// is room again, until it is restarted: that is what to do when Probe fails and
// the disk has room.
func (l *JetStreamLog) Probe(ctx context.Context) error {
	l.mu.Lock()
	closing := l.closing
	l.mu.Unlock()
	if closing {
		return ErrClosed
	}
	return l.publish(ctx, probeAction, []byte(magic), [2]int{})
}

// publish sends a message until it is acknowledged, under one message id so that
// an attempt whose acknowledgement was lost is not stored twice.
func (l *JetStreamLog) publish(ctx context.Context, action events.Action, body []byte, at [2]int) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	msg := nats.NewMsg(l.cfg.Prefix + ".decision." + string(action))
	msg.Data = body
	msg.Header.Set(headerPublish, strconv.Itoa(at[0]))
	msg.Header.Set(headerReceive, strconv.Itoa(at[1]))
	id := nuid.Next()
	var last error
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		attempt, done := context.WithTimeout(ctx, max(l.cfg.Timeout/3, time.Millisecond))
		_, err := l.js.PublishMsg(attempt, msg, jetstream.WithMsgID(id), jetstream.WithExpectStream(l.stream))
		done()
		if err == nil {
			return nil
		}
		last = err
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: stream %s did not acknowledge within %s: %w", governance.ErrLog, l.stream, l.cfg.Timeout, last)
		case <-time.After(wait):
		}
	}
}

// Close refuses further Append calls, writes what is queued and waits until ctx
// ends; what is then unwritten fails. Repeatable.
func (l *JetStreamLog) Close(ctx context.Context) error {
	l.mu.Lock()
	if !l.closing {
		l.closing = true
		close(l.room)
		l.room = make(chan struct{})
	}
	l.wake.Broadcast()
	l.mu.Unlock()
	done := make(chan struct{})
	go func() {
		l.workers.Wait()
		close(done)
	}()
	select {
	case <-done:
		l.stop()
		return nil
	case <-ctx.Done():
		l.stop() // ends the running publish; the queue then fails at once
		<-done
		return fmt.Errorf("audit: close: %w", ctx.Err())
	}
}
