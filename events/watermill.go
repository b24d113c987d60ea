package events

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go/jetstream"
)

// A Watermill message travels as a CloudEvent, so that it is judged, stamped,
// deduplicated and dead-lettered like any other, and read by anything that knows
// CloudEvents:
//
//	UUID      id
//	topic     subject; source is "/topics/" and the topic as a URI path segment
//	metadata  attribute wmmetadata, as a query string sorted by key
//	payload   data
//
// Metadata is one attribute, not a header for each key: keys are of any case and
// characters, which attribute names are not, and what is no attribute the Judge
// would neither see nor stamp.
const (
	// TypeWatermill is the type of events that carry Watermill messages. It is in
	// no Registry: the payload is the application's own.
	TypeWatermill = "watermill.message"
	// ExtMetadata carries the metadata of a Watermill message.
	ExtMetadata = "wmmetadata"

	topicSource        = "/topics/"
	payloadContentType = "application/octet-stream"
	// DefaultGroup is the consumer group of a Subscriber that names none.
	DefaultGroup = "watermill"
)

var (
	_ message.Publisher            = (*Publisher)(nil)
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
)

// Publisher is a Watermill publisher on a bus. Safe for concurrent use.
type Publisher struct {
	b *Bus

	mu     sync.Mutex
	closed bool
	active sync.WaitGroup

	topics sync.Map // topic -> topicNames
}

// topicNames is what a topic is called on the bus; kept, since escaping it for
// each message costs more than the rest.
type topicNames struct {
	subject string // NATS
	source  event.EventContextV1
	text    string // of the source attribute
}

// NewPublisher returns a publisher on the bus, which must outlive it.
func NewPublisher(ctx context.Context, b *Bus) (*Publisher, error) {
	if err := b.openTopics(ctx); err != nil {
		return nil, err
	}
	return &Publisher{b: b}, nil
}

// openTopics creates the stream of Watermill topics when it is first needed.
func (b *Bus) openTopics(ctx context.Context) error {
	b.mu.Lock()
	open := b.topics
	b.mu.Unlock()
	if open {
		return nil
	}
	if err := ensureStream(ctx, b.js, b.cfg.topicStream()); err != nil {
		return err
	}
	b.mu.Lock()
	b.topics = true
	b.mu.Unlock()
	return nil
}

// Publish judges the messages and publishes them in order, all in flight at
// once, and returns when those that were permitted are persisted. A UUID
// published to a topic again is a success and stores nothing; a message without
// UUID gets one. The error joins one *Error per message that is not stored. The
// wait ends with the context of the first message, or after 30 s.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return &Error{Op: "publish", Err: ErrClosed}
	}
	p.active.Add(1)
	p.mu.Unlock()
	defer p.active.Done()
	if len(messages) == 0 {
		return nil
	}
	if err := p.b.enter("publish"); err != nil {
		return err
	}
	defer p.b.leave()
	names, err := p.topic(topic)
	if err != nil {
		return err
	}
	out := make([]outgoing, len(messages))
	wire := make([]wireContext, len(messages))
	for i, m := range messages {
		o := &out[i]
		o.subject = names.subject
		w := &wire[i]
		w.ec = names.source
		w.ec.DataContentType = &w.contentType
		w.contentType = payloadContentType
		w.ec.ID = m.UUID
		if m.UUID == "" {
			w.ec.ID = watermill.NewUUID()
		}
		if len(m.Metadata) > 0 {
			w.ec.Extensions = map[string]any{ExtMetadata: packMetadata(m.Metadata)}
		}
		o.ev.Context = &w.ec
		o.ev.DataEncoded = m.Payload
		o.source = names.text
		o.err = checkEnvelope(&o.ev, &w.ec, names.text)
	}
	return p.b.publish(messages[0].Context(), out)
}

// wireContext holds what the event of one message points to.
type wireContext struct {
	ec          event.EventContextV1
	contentType string
}

func (p *Publisher) topic(topic string) (*topicNames, error) {
	if n, ok := p.topics.Load(topic); ok {
		return n.(*topicNames), nil
	}
	if err := checkTopic(topic); err != nil {
		return nil, &Error{Op: "publish", Err: err}
	}
	n := &topicNames{subject: p.b.names.topic(topic)}
	n.source.Type = TypeWatermill
	n.source.Subject = &topic
	u, err := url.Parse(topicSource + url.PathEscape(topic))
	if err != nil {
		return nil, &Error{Op: "publish", Err: fmt.Errorf("%w: topic %q: %w", ErrInvalid, topic, err)}
	}
	n.source.Source.URL = *u
	n.text = n.source.Source.String()
	p.topics.Store(topic, n)
	return n, nil
}

func checkTopic(topic string) error {
	if topic == "" {
		return fmt.Errorf("%w: topic: empty", ErrInvalid)
	}
	if err := checkText(topic); err != nil {
		return fmt.Errorf("%w: topic: %w", ErrInvalid, err)
	}
	if len(EncodeToken(topic)) > maxTokenBytes {
		return fmt.Errorf("%w: topic: longer than %d bytes as a NATS token", ErrInvalid, maxTokenBytes)
	}
	return nil
}

// Close waits for messages that are being published. The bus stays open.
// Repeatable.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.active.Wait()
	return nil
}

func packMetadata(m message.Metadata) string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(url.QueryEscape(k))
		b.WriteByte('=')
		b.WriteString(url.QueryEscape(m[k]))
	}
	return b.String()
}

func unpackMetadata(m message.Metadata, s string) error {
	for pair := range strings.SplitSeq(s, "&") {
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			return errors.New(ExtMetadata + ": malformed")
		}
		k, err1 := url.QueryUnescape(k)
		v, err2 := url.QueryUnescape(v)
		if err1 != nil || err2 != nil {
			return fmt.Errorf(ExtMetadata+": %w", errors.Join(err1, err2))
		}
		if _, twice := m[k]; twice {
			return fmt.Errorf(ExtMetadata+": key %.80q twice", k)
		}
		m[k] = v
	}
	return nil
}

// SubscriberConfig configures a Subscriber. Zero values take the documented
// defaults.
type SubscriberConfig struct {
	// Group names the consumer group: each message of a topic goes to one
	// subscriber of each group, and a group's position survives restarts. A new
	// group begins with the oldest message. Default DefaultGroup.
	Group string
	// Ordered hands out one message of a topic at a time in the whole group, so
	// that order holds also when a message is refused. It costs a round trip for
	// each message.
	Ordered    bool
	MaxDeliver int           // then dead-lettered; 0: delivered until acknowledged
	AckWait    time.Duration // default 30 s, extended until the message is acknowledged or refused
	NackDelay  time.Duration // base of the backoff after a Nack; default 100 ms
	MaxPending int           // unacknowledged messages at once; default 4,096
	// CloseWait bounds how long Close waits for messages that were handed out;
	// their contexts are cancelled at its beginning. Default 5 s.
	CloseWait time.Duration
}

func (c SubscriberConfig) withDefaults() (SubscriberConfig, error) {
	if c.Group == "" {
		c.Group = DefaultGroup
	}
	if c.AckWait == 0 {
		c.AckWait = 30 * time.Second
	}
	if c.NackDelay == 0 {
		c.NackDelay = 100 * time.Millisecond
	}
	if c.MaxPending == 0 {
		c.MaxPending = defaultMaxPending
	}
	if c.Ordered {
		c.MaxPending = 1
	}
	if c.CloseWait == 0 {
		c.CloseWait = 5 * time.Second
	}
	var faults []error
	if err := checkDurable(c.Group); err != nil {
		faults = append(faults, err)
	}
	if c.MaxDeliver < 0 || c.AckWait < minAckWait || c.NackDelay < 0 || c.MaxPending < 1 || c.CloseWait < 0 {
		faults = append(faults, fmt.Errorf("AckWait must be at least %s, MaxPending at least 1, nothing negative", minAckWait))
	}
	if len(faults) > 0 {
		return c, &Error{Op: "subscribe", Err: fmt.Errorf("%w: %w", ErrConfig, errors.Join(faults...))}
	}
	return c, nil
}

// Subscriber is a Watermill subscriber on a bus. Safe for concurrent use.
type Subscriber struct {
	b   *Bus
	cfg SubscriberConfig

	mu        sync.Mutex
	closed    bool
	consumers map[*Consumer]struct{}
}

// NewSubscriber returns a subscriber on the bus, which must outlive it.
func NewSubscriber(ctx context.Context, b *Bus, cfg SubscriberConfig) (*Subscriber, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := b.openTopics(ctx); err != nil {
		return nil, err
	}
	return &Subscriber{b: b, cfg: cfg, consumers: make(map[*Consumer]struct{})}, nil
}

// SubscribeInitialize creates the group's consumer of a topic, so that what is
// published before anyone subscribes is kept for it in any case.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	c, err := s.consume(context.Background(), topic, func(c *Consumer) { <-c.stopping })
	if err != nil {
		return err
	}
	return c.Stop(context.Background())
}

// Subscribe hands out the messages of a topic until ctx ends or the subscriber
// or its bus is closed; the channel is then closed. Unless the subscriber is
// ordered, further messages come before earlier ones are acknowledged, up to
// MaxPending.
//
// A message's context is a child of ctx and ends when the message is
// acknowledged or refused, or the subscription ends.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	out := make(chan *message.Message, handoutRoom)
	_, err := s.consume(ctx, topic, func(c *Consumer) {
		newHandout(c, out, s.cfg.CloseWait).run()
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (s *Subscriber) consume(ctx context.Context, topic string, handle func(*Consumer)) (*Consumer, error) {
	if err := checkTopic(topic); err != nil {
		return nil, &Error{Op: "subscribe", Err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, &Error{Op: "subscribe", Err: ErrClosed}
	}
	subject := s.b.names.topic(topic)
	c, err := s.b.consume(ctx, intake{
		stream:     s.b.names.topics(),
		durable:    groupDurable(s.cfg.Group, topic),
		filters:    []string{subject},
		maxDeliver: s.cfg.MaxDeliver,
		ackWait:    s.cfg.AckWait,
		retryDelay: s.cfg.NackDelay,
		maxPending: s.cfg.MaxPending,
		decode:     s.b.topicDecoder(),
		handle:     handle,
	})
	if err != nil {
		return nil, err
	}
	s.consumers[c] = struct{}{}
	go func() {
		<-c.Done()
		s.mu.Lock()
		delete(s.consumers, c)
		s.mu.Unlock()
	}()
	return c, nil
}

// groupDurable names the consumer of a group on a topic. Names are bounded, so a
// long one is cut and told apart by its hash.
func groupDurable(group, topic string) string {
	name := group + ":" + strings.ReplaceAll(EncodeToken(topic), ":", "=3A")
	if len(name) <= 128 {
		return name
	}
	return name[:80] + ":" + shortHash(name)
}

// Close ends all subscriptions, waits for messages that were handed out and
// flushes their acknowledgements. The bus stays open. Repeatable.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	running := slices.Collect(maps.Keys(s.consumers))
	s.mu.Unlock()
	errs := make([]error, len(running))
	var stops sync.WaitGroup
	for i, c := range running {
		stops.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), s.cfg.CloseWait+stopWait)
			defer cancel()
			errs[i] = c.Stop(ctx)
		})
	}
	stops.Wait()
	return errors.Join(errs...)
}

// topicDecoder returns what reads messages off the topic stream, for one
// goroutine.
func (b *Bus) topicDecoder() func(jetstream.Msg, *decoded) (Event, error) {
	var d decoder
	return func(m jetstream.Msg, into *decoded) (Event, error) {
		if len(m.Data()) > MaxDataBytes {
			return Event{}, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(m.Data()), MaxDataBytes)
		}
		ev, err := d.decode(m.Headers(), m.Data(), into)
		if err != nil {
			return ev, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return ev, nil
	}
}
