package flight

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	maxTicketBytes  = 4 << 10
	maxDatasetBytes = 1 << 10
)

// Ticket says which batches of a dataset a DoGet wants: From to To-1, in order.
type Ticket struct {
	Dataset string `json:"dataset"`
	From    uint64 `json:"from"`
	To      uint64 `json:"to"`
	// Fingerprint is the schema that the client counts on, see arrowio.Fingerprint;
	// "", or absent: any.
	Fingerprint string `json:"fingerprint,omitempty"`
}

// Encode returns the ticket's bytes.
func (t Ticket) Encode() []byte {
	return encode(t)
}

// DecodeTicket reads a ticket of at most 4,096 bytes: one JSON object with no
// other, and no repeated, member. dataset, from and to are required. The error
// wraps ErrTicket.
func DecodeTicket(b []byte) (Ticket, error) {
	var t Ticket
	need := 3
	err := object(b, maxTicketBytes, func(key string, dec *json.Decoder) error {
		switch key {
		case "dataset":
			need--
			return dec.Decode(&t.Dataset)
		case "from":
			need--
			return dec.Decode(&t.From)
		case "to":
			need--
			return dec.Decode(&t.To)
		case "fingerprint":
			return dec.Decode(&t.Fingerprint)
		}
		return errUnknownMember
	})
	if err == nil && need > 0 {
		err = errors.New("dataset, from or to is missing")
	}
	if err == nil {
		err = t.check()
	}
	if err != nil {
		return Ticket{}, fmt.Errorf("%w: %w", ErrTicket, err)
	}
	return t, nil
}

func (t Ticket) check() error {
	switch {
	case t.Dataset == "" || len(t.Dataset) > maxDatasetBytes:
		return fmt.Errorf("dataset name of %d bytes: want 1 to %d", len(t.Dataset), maxDatasetBytes)
	case t.From >= t.To:
		return fmt.Errorf("batches from %d to %d: the range is empty", t.From, t.To)
	case t.Fingerprint != "" && !lowerHex(t.Fingerprint, 32):
		return errors.New("fingerprint is not 32 hexadecimal digits")
	}
	return nil
}

// Meta is the application metadata of each message of a batch.
type Meta struct {
	Sequence   uint64 `json:"sequence"`
	SHA256     string `json:"sha256"` // of the frame, lower-case hexadecimal
	Rows       int64  `json:"rows"`
	BodyBytes  int64  `json:"body_bytes"` // of all its messages
	FrameBytes int64  `json:"frame_bytes"`
	// Schema is the batch's own schema message where its bytes are not those of the
	// stream's; base64 in JSON.
	Schema []byte `json:"schema,omitempty"`
}

// maxSchemaBytes bounds Meta.Schema: metadata travels in front of the data and
// is held beside it.
const maxSchemaBytes = 1 << 20

// maxMetaBytes bounds an encoded Meta; its schema is in base64.
const maxMetaBytes = 4<<10 + maxSchemaBytes/3*4

// Encode returns the metadata's bytes.
func (m Meta) Encode() []byte {
	return encode(m)
}

// DecodeMeta reads the metadata of one message: one JSON object with no other,
// and no repeated, member. The error wraps ErrMeta.
func DecodeMeta(b []byte) (Meta, error) {
	var m Meta
	need := 5
	err := object(b, maxMetaBytes, func(key string, dec *json.Decoder) error {
		need--
		switch key {
		case "sequence":
			return dec.Decode(&m.Sequence)
		case "sha256":
			return dec.Decode(&m.SHA256)
		case "rows":
			return dec.Decode(&m.Rows)
		case "body_bytes":
			return dec.Decode(&m.BodyBytes)
		case "frame_bytes":
			return dec.Decode(&m.FrameBytes)
		case "schema":
			need++
			return dec.Decode(&m.Schema)
		}
		return errUnknownMember
	})
	switch {
	case err != nil:
	case need > 0:
		err = errors.New("a member is missing")
	case !lowerHex(m.SHA256, 64):
		err = errors.New("sha256 is not 64 hexadecimal digits")
	case m.Rows < 0 || m.BodyBytes < 0 || m.FrameBytes <= 0 || m.BodyBytes > m.FrameBytes:
		err = fmt.Errorf("%d rows, %d body bytes in %d", m.Rows, m.BodyBytes, m.FrameBytes)
	case len(m.Schema) > maxSchemaBytes:
		err = fmt.Errorf("schema of %d bytes: at most %d", len(m.Schema), maxSchemaBytes)
	}
	if err != nil {
		return Meta{}, fmt.Errorf("%w: %w", ErrMeta, err)
	}
	return m, nil
}

// encode returns v, of strings, numbers and bytes, as JSON.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return nil // cannot be; the other side refuses it
	}
	return b
}

var errUnknownMember = errors.New("unknown member")

// object reads one JSON object. field decodes the value of each member. The
// library's Unmarshal was rejected: it takes the last of repeated members, and
// members whose case differs.
func object(b []byte, most int, field func(key string, dec *json.Decoder) error) error {
	if len(b) > most {
		return fmt.Errorf("%d bytes: at most %d", len(b), most)
	}
	if !utf8.Valid(b) {
		return errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		key, _ := tok.(string) // the decoder allows nothing else here
		if seen[key] {
			return fmt.Errorf("member %.40q is repeated", key)
		}
		seen[key] = true
		if err := field(key, dec); err != nil {
			return fmt.Errorf("member %.40q: %w", key, err)
		}
	}
	if _, err := dec.Token(); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more after the object")
	}
	return nil
}

func lowerHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}
