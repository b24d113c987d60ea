package flight_test

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/flight"
	"github.com/stokehold/stokehold/internal/pythontest"
)

// reader is what a user of pyarrow would write.
const reader = `
import json, sys
import pyarrow as pa
import pyarrow.flight as fl

uri, token, roots, out = sys.argv[1:5]
kw = {"tls_root_certs": open(roots, "rb").read()} if roots else {}
client = fl.connect(uri, **kw)
opts = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer " + token.encode())])
try:
    client.get_flight_info(fl.FlightDescriptor.for_path("flights/schedule"), fl.FlightCallOptions(timeout=20))
    sys.exit("no token was needed")
except fl.FlightUnauthenticatedError:
    pass
info = client.get_flight_info(fl.FlightDescriptor.for_path("flights/schedule"), opts)
assert len(info.endpoints) == 1 and info.endpoints[0].locations == [fl.Location(uri)], info.endpoints
stream = client.do_get(info.endpoints[0].ticket, opts)
assert stream.schema == info.schema
metas = []
with pa.OSFile(out, "wb") as f, pa.ipc.new_stream(f, info.schema) as w:
    for chunk in stream:
        chunk.data.validate(full=True)
        metas.append(json.loads(chunk.app_metadata.to_pybytes()))
        w.write_batch(chunk.data)
table = client.do_get(info.endpoints[0].ticket, opts).read_all()
try:
    client.do_get(fl.Ticket(json.dumps({"dataset": "flights/schedule", "from": 99, "to": 100})), opts).read_all()
    sys.exit("there is a batch 99")
except KeyError as e: # how pyarrow names NOT_FOUND
    pass
print(json.dumps({"records": info.total_records, "rows": table.num_rows, "metas": metas}))
`

func TestPyarrowReadsADataset(t *testing.T) {
	python := pythontest.Interpreter(t)
	ca := newAuthority(t)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		tls   *tls.Config
		roots string
	}{{"plain", nil, ""}, {"TLS", &tls.Config{Certificates: []tls.Certificate{ca.issue()}}, roots}} {
		t.Run(c.name, func(t *testing.T) {
			s := newShelf(t, 5, 300)
			srv := serve(t, flight.ServerConfig{Source: s, TLS: c.tls})
			out := filepath.Join(t.TempDir(), "read.arrows")
			cmd := exec.CommandContext(t.Context(), python, "-c", reader, srv.URI().String(), string(secret), c.roots, out)
			raw, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, raw)
			}
			var said struct {
				Records, Rows int64
				Metas         []flight.Meta
			}
			if err := json.Unmarshal(raw, &said); err != nil {
				t.Fatalf("%v: %s", err, raw)
			}
			if said.Records != 1500 || said.Rows != 1500 || len(said.Metas) != 5 {
				t.Fatalf("%s", raw)
			}
			for seq, m := range said.Metas {
				if m.Sequence != uint64(seq) || m.SHA256 != digest(s.frames[seq]) || m.Rows != 300 {
					t.Errorf("batch %d: %+v", seq, m)
				}
			}
			f, err := os.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			r := ipcReader(t, f)
			defer r.Release()
			for seq := range s.frames {
				if !r.Next() {
					t.Fatalf("pyarrow read %d batches: %v", seq, r.Err())
				}
				want, err := arrowio.Decode(s.frames[seq], nil)
				if err != nil {
					t.Fatal(err)
				}
				if !array.RecordEqual(want, r.RecordBatch()) {
					t.Errorf("batch %d is not the same there", seq)
				}
				want.Release()
			}
		})
	}
}
