package flight

import (
	gen "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Wire encodes a FlightData.
func Wire(header, meta, body []byte) []byte {
	m := newOutgoing(header, meta, len(body))
	m.body = mem.SliceBuffer(body)
	slices, _ := newCodec().Marshal(m)
	return slices.Materialize()
}

// ParseWire decodes a FlightData that lies in pieces of the given size.
func ParseWire(b []byte, piece int) (header, meta, body []byte, err error) {
	var slices mem.BufferSlice
	for rest := b; len(rest) > 0; {
		n := len(rest)
		if piece > 0 {
			n = min(n, piece)
		}
		slices = append(slices, mem.SliceBuffer(rest[:n]), mem.SliceBuffer(nil))
		rest = rest[n:]
	}
	in := incoming{limit: 1 << 20, place: func(_, _ []byte, n int) ([]byte, error) {
		body = make([]byte, n)
		return body, nil
	}}
	if err := newCodec().Unmarshal(slices, &in); err != nil {
		panic("gRPC would make a status of it")
	}
	return in.header, in.meta, body, in.err
}

// ProtoWire and ProtoParse do the same as the generated code does.
func ProtoWire(header, meta, body []byte) []byte {
	b, _ := proto.Marshal(&gen.FlightData{DataHeader: header, AppMetadata: meta, DataBody: body})
	return b
}

func ProtoParse(b []byte) (header, meta, body []byte, err error) {
	var d gen.FlightData
	err = proto.Unmarshal(b, &d)
	return d.DataHeader, d.AppMetadata, d.DataBody, err
}
