package events

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/nats-io/nats.go"
)

// The binary mode of the CloudEvents NATS binding: each attribute is a header
// of its name with the prefix "ce-", percent-encoded as section 3.1.3.2 of the
// HTTP binding says; datacontenttype is the header "content-type"; the data is
// the message body. NATS keeps the case of header names, so they are written
// and read in lower case only.
const (
	attrPrefix     = "ce-"
	hdrSpecVersion = "ce-specversion"
	hdrID          = "ce-id"
	hdrSource      = "ce-source"
	hdrType        = "ce-type"
	hdrSubject     = "ce-subject"
	hdrTime        = "ce-time"
	hdrDataSchema  = "ce-dataschema"
	hdrContentType = "content-type"
	hdrMsgID       = "Nats-Msg-Id"
)

// Limits of an envelope. JetStream takes 64 KiB of headers for one message.
const (
	maxAttributeBytes = 8 << 10
	maxHeaderBytes    = 48 << 10 // attributes as they are
	maxEncodedBytes   = 60 << 10 // attributes percent-encoded
	maxExtensions     = 64
	maxNameBytes      = 64
	// maxKeyBytes is what a header takes beside its value and an extension's name.
	maxKeyBytes = len(hdrSpecVersion + ": \r\n")
)

// contextOf returns the CloudEvents 1.0 context of ev.
func contextOf(ev *Event) (*event.EventContextV1, error) {
	ec, ok := ev.Context.(*event.EventContextV1)
	if !ok || ec == nil {
		return nil, errors.New("specversion must be 1.0")
	}
	return ec, nil
}

// detach gives ev attributes of its own, so that stamping it does not write to
// what the caller may share. What the attributes point to is never written.
func detach(ev *Event) {
	if ec, ok := ev.Context.(*event.EventContextV1); ok && ec != nil {
		own := *ec
		own.Extensions = maps.Clone(ec.Extensions)
		ev.Context = &own
	}
}

// normalize checks the envelope of ev and brings it into the form in which it
// also arrives: extension attributes as strings, time in UTC. All faults are in
// one error.
func normalize(ev *Event) error {
	ec, err := contextOf(ev)
	if err != nil {
		return err
	}
	return normalizeContext(ev, ec, ec.Source.String())
}

func normalizeContext(ev *Event, ec *event.EventContextV1, source string) error {
	var faults []error
	for name, err := range ev.FieldErrors {
		faults = append(faults, fmt.Errorf("%s: %w", name, err))
	}
	size := 0
	text := func(name, v string) {
		size += len(name) + len(v)
		if err := checkText(v); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", name, err))
		}
	}
	if ec.ID == "" {
		faults = append(faults, errors.New("id: missing"))
	}
	text("id", ec.ID)
	if source == "" {
		faults = append(faults, errors.New("source: missing"))
	}
	text("source", source)
	if err := checkTypeName(ec.Type); err != nil {
		faults = append(faults, fmt.Errorf("type: %w", err))
	}
	if ec.Subject != nil {
		if *ec.Subject == "" {
			faults = append(faults, errors.New("subject: empty"))
		}
		text("subject", *ec.Subject)
		// A byte takes at most three.
		if 3*len(*ec.Subject) > maxTokenBytes && len(EncodeToken(*ec.Subject)) > maxTokenBytes {
			faults = append(faults, fmt.Errorf("subject: longer than %d bytes as a NATS token", maxTokenBytes))
		}
	}
	if ec.Time != nil {
		if y := ec.Time.UTC().Year(); y < 1 || y > 9999 {
			faults = append(faults, fmt.Errorf("time: year %d is outside 1 to 9999", y))
		} else if ec.Time.Location() != time.UTC {
			ec.Time = &types.Timestamp{Time: ec.Time.UTC()}
		}
	}
	if ec.DataContentType != nil {
		if *ec.DataContentType == "" {
			faults = append(faults, errors.New("datacontenttype: empty"))
		}
		text("datacontenttype", *ec.DataContentType)
	}
	if ec.DataSchema != nil {
		text("dataschema", ec.DataSchema.String())
	}
	if len(ec.Extensions) > maxExtensions {
		faults = append(faults, fmt.Errorf("%d extension attributes, the limit is %d", len(ec.Extensions), maxExtensions))
	}
	for name, v := range ec.Extensions {
		if err := checkExtensionName(name); err != nil {
			faults = append(faults, err)
			continue
		}
		s, ok := v.(string)
		if !ok {
			var err error
			if s, err = types.Format(v); err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", name, err))
				continue
			}
			ec.Extensions[name] = s
		}
		text(name, s)
	}
	if size > maxHeaderBytes {
		faults = append(faults, fmt.Errorf("attributes of %d bytes, the limit is %d", size, maxHeaderBytes))
	}
	if len(faults) == 0 {
		return nil
	}
	return errors.Join(faults...)
}

// checkText accepts what CloudEvents allows in a string attribute.
func checkText(s string) error {
	if len(s) > maxAttributeBytes {
		return fmt.Errorf("%d bytes, the limit is %d", len(s), maxAttributeBytes)
	}
	if printable(s) {
		return nil
	}
	ascii := true
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == 0x7F {
			return fmt.Errorf("control character %U", c)
		} else if c >= utf8.RuneSelf {
			ascii = false
		}
	}
	if ascii {
		return nil
	}
	if !utf8.ValidString(s) {
		return errors.New("not valid UTF-8")
	}
	for _, r := range s {
		switch {
		case r >= 0x80 && r <= 0x9F:
			return fmt.Errorf("control character %U", r)
		case r >= 0xFDD0 && r <= 0xFDEF, r&0xFFFE == 0xFFFE:
			return fmt.Errorf("%U is not a character", r)
		}
	}
	return nil
}

// printable reports whether s holds nothing but ASCII from space to tilde, eight
// bytes at a time: nearly every attribute does.
func printable(s string) bool {
	const each, high = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		// The high bit of a byte is set where it was, where adding one carries into
		// it (0x7F), and where taking 0x20 away borrows; a borrow that a lower byte
		// caused only sends a good text to the slower check.
		if (w|(w+each)|(w-0x20*each))&high != 0 {
			return false
		}
	}
	for ; i < len(s); i++ {
		if s[i] < 0x20 || s[i] >= 0x7F {
			return false
		}
	}
	return true
}

func checkExtensionName(name string) error {
	if name == "" || len(name) > maxNameBytes {
		return fmt.Errorf("attribute name %.80q: must have 1 to %d characters", name, maxNameBytes)
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Errorf("attribute name %q: only a to z and 0 to 9 are allowed", name)
		}
	}
	switch name {
	case "id", "source", "type", "subject", "time", "specversion", "datacontenttype", "dataschema", "data":
		return fmt.Errorf("attribute name %q: taken by CloudEvents", name)
	}
	return nil
}

// messageID identifies the event to JetStream's duplicate detection: CloudEvents
// says that source and id together do. Both are percent-encoded, so neither
// holds the space between them and no two events share an id.
func messageID(source, id string) string { return source + " " + id }

// envelope is a message and what backs its headers, used again and again: maps
// and slices anew for each event would be most of what publishing allocates.
// Its header map stays filled with the keys of the event before, since the next
// most likely has the same; then only the values are set.
type envelope struct {
	msg   nats.Msg
	vals  []string // each the one value of a header
	given optional // of the event that the keys are for
	names []string // of its extensions
}

// optional says which of the optional attributes an event has.
type optional struct {
	subject, time, schema, content, valid bool
}

// clear drops what the envelope holds of an event.
func (e *envelope) clear() {
	clear(e.vals)
	e.msg = nats.Msg{Header: e.msg.Header}
}

// encodeEvent writes a normalized event into a message. The message shares the
// event's data.
func encodeEvent(ev *Event, subject string) (*nats.Msg, error) {
	var e envelope
	ec, err := contextOf(ev)
	if err != nil {
		return nil, err
	}
	if err := e.encode(ec, ec.Source.String(), ev.DataEncoded, subject); err != nil {
		return nil, err
	}
	return &e.msg, nil
}

// fits reports whether the keys are those of the event.
func (e *envelope) fits(given optional, extensions map[string]any) bool {
	if e.given != given || len(e.names) != len(extensions) {
		return false
	}
	for _, name := range e.names {
		if _, ok := extensions[name]; !ok {
			return false
		}
	}
	return true
}

// fit makes the keys those of the event, in the order in which encode writes the
// values.
func (e *envelope) fit(given optional, extensions map[string]any) {
	keys := make([]string, 0, 9+len(extensions))
	keys = append(keys, hdrMsgID, hdrSpecVersion, hdrID, hdrSource, hdrType)
	if given.subject {
		keys = append(keys, hdrSubject)
	}
	if given.time {
		keys = append(keys, hdrTime)
	}
	if given.schema {
		keys = append(keys, hdrDataSchema)
	}
	if given.content {
		keys = append(keys, hdrContentType)
	}
	e.names = slices.Sorted(maps.Keys(extensions))
	for _, name := range e.names {
		keys = append(keys, attrPrefix+name)
	}
	e.vals = make([]string, len(keys))
	e.msg.Header = make(nats.Header, len(keys))
	for i, key := range keys {
		e.msg.Header[key] = e.vals[i : i+1 : i+1]
	}
	e.given = given
}

// encode writes a normalized event into an empty envelope.
func (e *envelope) encode(ec *event.EventContextV1, source string, data []byte, subject string) error {
	given := optional{ec.Subject != nil, ec.Time != nil, ec.DataSchema != nil, ec.DataContentType != nil, true}
	if !e.fits(given, ec.Extensions) {
		e.fit(given, ec.Extensions)
	}
	source, id := escapeAttr(source), escapeAttr(ec.ID)
	vals := append(e.vals[:0], messageID(source, id), event.CloudEventsVersionV1, id, source, ec.Type)
	if given.subject {
		vals = append(vals, escapeAttr(*ec.Subject))
	}
	if given.time {
		vals = append(vals, ec.Time.UTC().Format(time.RFC3339Nano))
	}
	if given.schema {
		vals = append(vals, escapeAttr(ec.DataSchema.String()))
	}
	if given.content {
		vals = append(vals, escapeAttr(*ec.DataContentType))
	}
	size := 0
	for _, name := range e.names {
		// A Judge may have stamped any CloudEvents type.
		v := ec.Extensions[name]
		text, ok := v.(string)
		if !ok {
			var err error
			if text, err = types.Format(v); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		vals = append(vals, escapeAttr(text))
		size += len(name)
	}
	for _, v := range vals {
		size += len(v) + maxKeyBytes
	}
	if size > maxEncodedBytes {
		return fmt.Errorf("headers of %d bytes, the limit is %d", size, maxEncodedBytes)
	}
	e.msg.Subject, e.msg.Data = subject, data
	return nil
}

// decoded holds everything that an event without extensions points to, so that
// receiving one costs one allocation.
type decoded struct {
	ec          event.EventContextV1
	subject     string
	contentType string
	time        types.Timestamp
}

// decodeEvent reads a message in binary mode. The event shares data.
func decodeEvent(h nats.Header, data []byte) (Event, error) {
	var d decoder
	return d.decode(h, data, &decoded{})
}

// decoder reads messages of which many in a row have the same source, and
// parses that once. Not safe for concurrent use.
type decoder struct {
	source string
	parsed url.URL
}

// decode fills d, which is empty and to which the event points.
func (dec *decoder) decode(h nats.Header, data []byte, d *decoded) (Event, error) {
	ec := &d.ec
	size := 0
	version, source := "", ""
	for key, vals := range h {
		if key == hdrContentType {
			v, err := single(key, vals)
			if err != nil {
				return Event{}, err
			}
			d.contentType = v
			ec.DataContentType = &d.contentType
			size += len(key) + len(v)
			continue
		}
		name, ok := strings.CutPrefix(key, attrPrefix)
		if !ok {
			if len(key) >= len(attrPrefix) && strings.EqualFold(key[:len(attrPrefix)], attrPrefix) || strings.EqualFold(key, hdrContentType) {
				return Event{}, fmt.Errorf("header %q: must be in lower case", key)
			}
			continue
		}
		v, err := single(key, vals)
		if err != nil {
			return Event{}, err
		}
		size += len(name) + len(v)
		switch name {
		case "specversion":
			version = v
		case "id":
			ec.ID = v
		case "source":
			if v != dec.source || v == "" {
				u, err := url.Parse(v)
				if err != nil {
					return Event{}, fmt.Errorf("source: %w", err)
				}
				dec.source, dec.parsed = v, *u
			}
			source = v
			ec.Source.URL = dec.parsed
		case "type":
			ec.Type = v
		case "subject":
			d.subject = v
			ec.Subject = &d.subject
		case "time":
			if err := d.time.UnmarshalText([]byte(v)); err != nil {
				return Event{}, fmt.Errorf("time: %q is not RFC 3339", v)
			}
			d.time.Time = d.time.UTC()
			ec.Time = &d.time
		case "dataschema":
			u, err := url.Parse(v)
			if err != nil {
				return Event{}, fmt.Errorf("dataschema: %w", err)
			}
			ec.DataSchema = &types.URI{URL: *u}
		default:
			if len(ec.Extensions) >= maxExtensions {
				return Event{}, fmt.Errorf("more than %d extension attributes", maxExtensions)
			}
			if ec.Extensions == nil {
				ec.Extensions = make(map[string]any)
			}
			ec.Extensions[name] = v
		}
	}
	if version != event.CloudEventsVersionV1 {
		return Event{}, fmt.Errorf("specversion is %.20q, must be 1.0", version)
	}
	if size > maxHeaderBytes {
		return Event{}, fmt.Errorf("attributes of %d bytes, the limit is %d", size, maxHeaderBytes)
	}
	ev := Event{Context: ec, DataEncoded: data}
	if len(data) == 0 {
		ev.DataEncoded = nil
	}
	return ev, normalizeContext(&ev, ec, source)
}

func single(key string, vals []string) (string, error) {
	if len(vals) != 1 {
		return "", fmt.Errorf("header %q: given %d times", key, len(vals))
	}
	// Three bytes of header stand for at most one byte of attribute.
	if len(vals[0]) > 3*maxAttributeBytes {
		return "", fmt.Errorf("header %q: longer than any attribute may be", key)
	}
	v, err := unescapeAttr(vals[0])
	if err != nil {
		return "", fmt.Errorf("header %q: %w", key, err)
	}
	return v, nil
}

// plainAttr reports whether c stands for itself in a header value.
func plainAttr(c byte) bool { return plainAttrs[c>>6]>>(c&63)&1 != 0 }

// plainAttrs has the bits of 0x21 to 0x7E without the quotation mark and the
// percent sign.
//
//nolint:gochecknoglobals // a constant table
var plainAttrs = [4]uint64{^uint64(1<<33-1) &^ (1<<'"' | 1<<'%'), ^uint64(1 << 63), 0, 0}

func escapeAttr(s string) string {
	n := 0
	for i := range len(s) {
		if !plainAttr(s[i]) {
			n++
		}
	}
	if n == 0 {
		return s
	}
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, len(s)+2*n)
	for i := range len(s) {
		if c := s[i]; plainAttr(c) {
			out = append(out, c)
		} else {
			out = append(out, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(out)
}

// unescapeAttr takes a value as any conforming sender writes it: quoted or not,
// with hexadecimal digits of either case.
func unescapeAttr(s string) (string, error) {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
		if strings.IndexByte(s, '\\') >= 0 {
			out := make([]byte, 0, len(s))
			for i := 0; i < len(s); i++ {
				if s[i] == '\\' {
					if i++; i == len(s) {
						return "", errors.New("unterminated quoted value")
					}
				}
				out = append(out, s[i])
			}
			s = string(out)
		}
	}
	if strings.IndexByte(s, '%') < 0 {
		return s, nil
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if i+2 >= len(s) {
				return "", errors.New("malformed percent-encoding")
			}
			hi, ok1 := unhex(s[i+1])
			lo, ok2 := unhex(s[i+2])
			if !ok1 || !ok2 {
				return "", errors.New("malformed percent-encoding")
			}
			c = hi<<4 | lo
			i += 2
		}
		out = append(out, c)
	}
	return string(out), nil
}
