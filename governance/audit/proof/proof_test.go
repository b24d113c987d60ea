package proof_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/stokehold/stokehold/governance/audit/proof"
)

var at = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

func entry(i int) proof.Entry {
	return proof.Entry{
		ID: fmt.Sprintf("%032x", i), Time: at.Add(time.Duration(i) * time.Millisecond), Point: "publish", Action: "deny", EventID: fmt.Sprintf("ev-%d", i),
		Type: "batch.published", Source: "stokehold/flights", Subject: "später", Policy: "gate", Rule: "better", Code: "NotBetter", Reason: "lost",
		Digest: "0123456789abcdef0123456789abcdef",
		Notes:  []proof.Note{{Policy: "p", Rule: "r", Reason: "shadow", Mode: "audit"}, {Policy: "q", Mode: "warn"}},
	}
}

func leaf(i int) []byte {
	e := entry(i)
	return proof.AppendLeaf(nil, &e)
}

// The bytes of a leaf are part of the format: what was signed once must hash to the
// same for ever.
func TestTheBytesOfALeafStay(t *testing.T) {
	e := proof.Entry{ID: "a", Time: time.Unix(1, 2).UTC(), Point: "publish", Action: "allow", EventID: "e", Type: "t", Source: "s", Digest: "d", Notes: []proof.Note{{Policy: "p", Mode: "audit"}}}
	got := proof.AppendLeaf(nil, &e)
	const want = "53544b4c01" + "010161" + "02077075626c697368" + "0305616c6c6f77" + "040165" + "050174" + "060173" + "0e0164" +
		"0f0c000000000000000100000002" + "100a" + "0170" + "00" + "00" + "056175646974"
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
	back, err := proof.DecodeLeaf(got)
	if err != nil || !reflect.DeepEqual(back, e) {
		t.Errorf("back %+v, %v", back, err)
	}
	// A later version's field is passed over.
	if back, err = proof.DecodeLeaf(append(got, 0x20, 1, 'x')); err != nil || back.ID != "a" {
		t.Error(back, err)
	}
	for name, bad := range map[string][]byte{
		"no magic": []byte("STKL\x02"), "cut off": got[:len(got)-1], "empty field": []byte("STKL\x01\x01\x00"), "tag 0": []byte("STKL\x01\x00\x01a"),
		"out of order": []byte("STKL\x01\x02\x01a\x01\x01a"), "twice": []byte("STKL\x01\x01\x01a\x01\x01a"), "short time": []byte("STKL\x01\x0f\x01a"),
		"huge length": []byte("STKL\x01\x01\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
	} {
		if _, err := proof.DecodeLeaf(bad); !errors.Is(err, proof.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The vectors are those of Certificate Transparency's reference implementation.
func TestTheTreeIsThatOfRFC6962(t *testing.T) {
	leaves := []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}
	roots := map[int]string{
		0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	var tree proof.Tree
	for i := 0; ; i++ {
		if want, ok := roots[i]; ok {
			if got := tree.Root(); hex.EncodeToString(got[:]) != want {
				t.Errorf("root of %d is %x", i, got)
			}
		}
		if i == len(leaves) {
			break
		}
		raw, err := hex.DecodeString(leaves[i])
		if err != nil {
			t.Fatal(err)
		}
		tree.Append(proof.LeafHash(raw), nil)
	}
}

// Every pair of sizes and every entry, with the library's own tree as the judge.
func TestProofsFromASpanHold(t *testing.T) {
	const most = 70
	var stored []tlog.Hash
	all := tlog.HashReaderFunc(func(ix []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(ix))
		for i, x := range ix {
			out[i] = stored[x]
		}
		return out, nil
	})
	var roots []tlog.Hash
	for n := range int64(most) {
		root, err := tlog.TreeHash(n, all)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
		hs, err := tlog.StoredHashes(n, leaf(int(n)), all)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hs...)
	}
	for from := range int64(most) {
		var tree proof.Tree
		for i := range from {
			tree.Append(proof.LeafHash(leaf(int(i))), nil)
		}
		if tree.Root() != roots[from] {
			t.Fatalf("root of %d differs from tlog's", from)
		}
		again, err := proof.NewTree(from, tree.Edge())
		if err != nil || again.Root() != roots[from] {
			t.Fatalf("the edge of %d does not make its root: %v", from, err)
		}
		span := proof.NewSpan(again)
		for size := from + 1; size < most; size++ {
			again.Append(proof.LeafHash(leaf(int(size-1))), span.Add)
			if from > 0 {
				p, err := tlog.ProveTree(size, from, span)
				if err == nil {
					err = tlog.CheckTree(p, size, roots[size], from, roots[from])
				}
				if err != nil {
					t.Fatalf("from %d to %d: %v", from, size, err)
				}
			}
			for i := from; i < size; i++ {
				p, err := tlog.ProveRecord(size, i, span)
				if err == nil {
					err = tlog.CheckRecord(p, size, roots[size], i, proof.LeafHash(leaf(int(i))))
				}
				if err != nil {
					t.Fatalf("entry %d of %d from %d: %v", i, size, from, err)
				}
			}
		}
	}
	if _, err := proof.NewTree(3, nil); !errors.Is(err, proof.ErrMalformed) {
		t.Error(err)
	}
}

func newKeys(t testing.TB) *proof.Keys {
	t.Helper()
	k, err := proof.NewKeys("test/log")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sign makes records of a log at these sizes.
func sign(t testing.TB, keys *proof.Keys, sizes ...int) []*proof.Record {
	t.Helper()
	g := proof.NewGrowth(nil)
	var recs []*proof.Record
	for _, n := range sizes {
		for i := int(g.Size()); i < n; i++ {
			g.Add(proof.LeafHash(leaf(i)))
		}
		r, err := g.Sign(keys, proof.Checkpoint{Time: at, Sequence: uint64(n), Begun: at, Stored: at})
		if err != nil {
			t.Fatal(err)
		}
		recs = append(recs, r)
	}
	return recs
}

func TestRecordsSayWhatWasSigned(t *testing.T) {
	keys := newKeys(t)
	recs := sign(t, keys, 3, 11, 9000)
	for i, r := range recs {
		b, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		back, err := proof.OpenRecord(b, keys)
		if err != nil || back.Checkpoint != r.Checkpoint || back.Name() != r.Name() {
			t.Fatalf("%+v, %v", back, err)
		}
		if i > 0 {
			if err := back.Extends(recs[i-1].Root); err != nil {
				t.Error(err)
			}
			if err := back.Extends(tlog.Hash{}); !errors.Is(err, proof.ErrFork) {
				t.Errorf("extends another root: %v", err)
			}
		}
		if _, err := proof.OpenRecord(b, newKeys(t)); !errors.Is(err, proof.ErrSignature) {
			t.Errorf("a stranger's key: %v", err)
		}
		text := string(b)
		for name, forged := range map[string]string{
			"size":  strings.Replace(text, fmt.Sprintf(`test/log\n%d\n`, r.Size), fmt.Sprintf(`test/log\n%d\n`, r.Size+1), 1),
			"edge":  strings.Replace(text, `"edge":["`, `"edge":["A`, 1),
			"trace": strings.Replace(text, `"span":`, `"span":1`, 1),
			"more":  text + "{}",
			"key":   strings.Replace(text, `"format"`, `"fromat"`, 1),
			"edges": strings.Replace(text, r.Edge[0].String(), tlog.Hash{1}.String(), 1),
			"hash":  strings.Replace(text, r.Trace.Hashes[0].String(), tlog.Hash{1}.String(), 2),
		} {
			if forged == text {
				t.Fatalf("%s: nothing was forged", name)
			}
			if _, err := proof.OpenRecord([]byte(forged), keys); err == nil {
				t.Errorf("%s: a forged record was accepted", name)
			}
		}
	}
	if n := len(recs[2].Trace.Hashes); n > 4096 || n < 2048 {
		t.Errorf("a trace of %d hashes", n)
	}
}

func TestATraceTellsWhatChanged(t *testing.T) {
	trace := func(entries ...int) proof.Trace {
		r := proof.NewReplay(nil)
		for _, i := range entries {
			r.Add(proof.LeafHash(leaf(i)))
		}
		return r.Trace()
	}
	many := func(n int, change func([]int) []int) []int {
		var out []int
		for i := range n {
			out = append(out, i)
		}
		return change(out)
	}
	same := func(x []int) []int { return x }
	small := trace(0, 1, 2, 3, 4)
	large := trace(many(10_000, same)...)
	for _, tc := range []struct {
		name string
		want proof.Trace
		got  proof.Trace
		d    proof.Difference
	}{
		{"edited", small, trace(0, 1, 9, 3, 4), proof.Difference{Change: proof.Edited, From: 2, To: 3}},
		{"swapped", small, trace(0, 2, 1, 3, 4), proof.Difference{Change: proof.Reordered, From: 1, To: 3}},
		{"turned round", small, trace(1, 2, 3, 4, 0), proof.Difference{Change: proof.Reordered, From: 0, To: 5}},
		{"one gone", small, trace(0, 1, 3, 4), proof.Difference{Change: proof.Missing, From: 2, To: 3}},
		{"one gone and others after", small, trace(0, 1, 3, 4, 7), proof.Difference{Change: proof.Missing, From: 2, To: 3}},
		{"the first gone", small, trace(2, 3, 4), proof.Difference{Change: proof.Missing, From: 0, To: 2}},
		{"the last gone", small, trace(0, 1, 2), proof.Difference{Change: proof.Missing, From: 3, To: 5}},
		{"all gone", small, trace(), proof.Difference{Change: proof.Missing, From: 0, To: 5}},
		{"one more between", small, trace(0, 1, 9, 2, 3, 4), proof.Difference{Change: proof.Added, From: 2, To: 2}},
		{"one more at the end", small, trace(0, 1, 2, 3, 4, 5), proof.Difference{Change: proof.Added, From: 5, To: 5}},
		{"others altogether", small, trace(5, 6, 7, 8, 9), proof.Difference{Change: proof.Edited, From: 0, To: 5}},
		{"a group of many", large, trace(many(10_000, func(x []int) []int { x[5001] = 0; return x })...), proof.Difference{Change: proof.Edited, From: 5000, To: 5004}},
		{"groups of another size", large, trace(many(3000, same)...), proof.Difference{Change: proof.Missing, From: 3000, To: 10_000}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, ok := tc.want.Compare(&tc.got)
			if !ok || d != tc.d {
				t.Errorf("got %+v %v, want %+v", d, ok, tc.d)
			}
		})
	}
	if d, ok := large.Compare(&large); ok {
		t.Errorf("differs from itself: %+v", d)
	}
}

func TestCheckpointsHaveOneText(t *testing.T) {
	keys := newKeys(t)
	c := sign(t, keys, 5)[0].Checkpoint
	open := func(text string) error {
		signed, err := proof.SignText(text, keys)
		if err != nil {
			t.Fatal(err)
		}
		_, err = proof.OpenCheckpoint(signed, keys)
		return err
	}
	if err := open(c.Text()); err != nil {
		t.Fatal(err)
	}
	if err := open(c.Text() + "later version\n"); err != nil {
		t.Errorf("an extension line: %v", err)
	}
	for _, change := range [][2]string{{"\n5\n", "\n05\n"}, {"\n5\n", "\n-5\n"}, {"since 0", "since 6"}, {"message ", "messag "}, {"Z\n", "+00:00\n"}, {"test/log\n", "a b\n"}} {
		text := strings.Replace(c.Text(), change[0], change[1], 1)
		if text == c.Text() {
			t.Fatalf("%q changes nothing", change)
		}
		if err := open(text); !errors.Is(err, proof.ErrMalformed) {
			t.Errorf("%q for %q: %v", change[1], change[0], err)
		}
	}
	if err := open(strings.Replace(c.Text(), "test/log", "other", 1)); !errors.Is(err, proof.ErrSignature) {
		t.Errorf("another log's: %v", err)
	}
}

func TestKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	keys, err := proof.OpenKeyFile(path, "test/log")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	private := strings.Fields(string(raw[strings.Index(string(raw), "PRIVATE+KEY+test"):]))[0]
	for _, shown := range []string{fmt.Sprint(keys), fmt.Sprintf("%v %+v %#v", keys, keys, keys), strings.Join(keys.Public(), " ")} {
		if strings.Contains(shown, private) || strings.Contains(shown, "PRIVATE") {
			t.Errorf("shows the private key: %s", shown)
		}
	}
	old := sign(t, keys, 2)[0]
	rotated, err := keys.Rotate()
	if err != nil {
		t.Fatal(err)
	}
	both := sign(t, rotated, 4)[0]
	retired, err := rotated.Retire()
	if err != nil {
		t.Fatal(err)
	}
	if err := retired.WriteKeyFile(path); err != nil {
		t.Fatal(err)
	}
	if retired, err = proof.ReadKeyFile(path); err != nil {
		t.Fatal(err)
	}
	newest := sign(t, retired, 6)[0]
	for _, tc := range []struct {
		name string
		rec  *proof.Record
		keys *proof.Keys
		ok   bool
	}{
		{"old by old", old, keys, true}, {"both by old", both, keys, true}, {"new by old", newest, keys, false},
		{"old by rotated", old, rotated, true}, {"new by rotated", newest, rotated, true},
		{"old by retired", old, retired, true}, {"both by retired", both, retired, true}, {"new by retired", newest, retired, true},
	} {
		if _, err := proof.OpenCheckpoint(tc.rec.Signed, tc.keys); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := proof.ReadKeyFile(path); !errors.Is(err, proof.ErrKey) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key file that others may read: %v", err)
	}
	public := filepath.Join(t.TempDir(), "pub")
	if err := os.WriteFile(public, []byte(strings.Join(keys.Public(), "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	trusted, err := proof.ReadKeyFile(public)
	if err != nil || trusted.CanSign() {
		t.Errorf("public keys: %v", err)
	}
	if _, err := (&proof.Checkpoint{Origin: "test/log"}).Sign(trusted); !errors.Is(err, proof.ErrKey) {
		t.Errorf("signed without a private key: %v", err)
	}
	for _, bad := range []string{"", "# nothing", "x", private + "\n" + strings.Replace(private, "test/log", "other", 1), "PRIVATE+KEY+a+b+c"} {
		if _, err := proof.ParseKeys([]byte(bad)); !errors.Is(err, proof.ErrKey) || strings.Contains(err.Error(), private) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := proof.NewKeys("a+b"); !errors.Is(err, proof.ErrKey) {
		t.Error(err)
	}
}

func inclusion(t testing.TB, keys *proof.Keys, index, size int) *proof.Inclusion {
	t.Helper()
	g := proof.NewGrowth(nil)
	for i := range size {
		g.Add(proof.LeafHash(leaf(i)))
	}
	hashes, err := g.Prove(int64(index), int64(size))
	if err != nil {
		t.Fatal(err)
	}
	rec, err := g.Sign(keys, proof.Checkpoint{Time: at, Sequence: 1, Begun: at, Stored: at})
	if err != nil {
		t.Fatal(err)
	}
	p, err := proof.NewInclusion(leaf(index), int64(index), hashes, rec.Signed, keys)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAnInclusionProofStandsAlone(t *testing.T) {
	keys := newKeys(t)
	for _, size := range []int{1, 2, 7, 64, 65} {
		doc, err := inclusion(t, keys, size-1, size).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		p, c, err := proof.CheckInclusion(doc, keys)
		if err != nil || c.Size != int64(size) || !reflect.DeepEqual(p.Entry, entry(size-1)) {
			t.Errorf("%+v, %v", p, err)
		}
	}
	for name, forge := range map[string]func(*proof.Inclusion){
		"entry":      func(p *proof.Inclusion) { p.Entry.Reason = "won" },
		"time":       func(p *proof.Inclusion) { p.Entry.Time = p.Entry.Time.Add(time.Second) },
		"note":       func(p *proof.Inclusion) { p.Entry.Notes = p.Entry.Notes[:1] },
		"leaf":       func(p *proof.Inclusion) { p.Leaf[len(p.Leaf)-1]++ },
		"both":       func(p *proof.Inclusion) { p.Entry = entry(4); p.Leaf = leaf(4) },
		"index":      func(p *proof.Inclusion) { p.Index++ },
		"below zero": func(p *proof.Inclusion) { p.Index = -1 },
		"hash":       func(p *proof.Inclusion) { p.Hashes[0][0]++ },
		"no hash":    func(p *proof.Inclusion) { p.Hashes = nil },
		"more":       func(p *proof.Inclusion) { p.Hashes = append(p.Hashes, tlog.Hash{}) },
		"checkpoint": func(p *proof.Inclusion) { p.Checkpoint = strings.Replace(p.Checkpoint, "\n7\n", "\n8\n", 1) },
		"format":     func(p *proof.Inclusion) { p.Format = "x" },
	} {
		p := inclusion(t, keys, 3, 7)
		forge(p)
		doc, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := proof.CheckInclusion(doc, keys); err == nil {
			t.Errorf("%s: a forged proof was accepted", name)
		}
	}
	// The keys in the document are no reason to trust it.
	stranger := inclusion(t, newKeys(t), 3, 7)
	if _, err := stranger.Check(keys); !errors.Is(err, proof.ErrSignature) {
		t.Error(err)
	}
}

// The verifier of docs/examples knows nothing of this package: it must agree.
func TestPythonAgrees(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("STOKEHOLD_REQUIRE_PYTHON") != "" {
			t.Fatal(err)
		}
		t.Skip("no python3 on this machine")
	}
	keys := newKeys(t)
	check := func(p *proof.Inclusion, key string) (string, error) {
		doc, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "proof.json")
		if err := os.WriteFile(path, doc, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), python, "../../../docs/examples/check_proof.py", path, key).CombinedOutput()
		return string(out), err
	}
	for _, tc := range [][2]int{{0, 1}, {0, 2}, {3, 7}, {6, 7}, {64, 65}, {37, 100}} {
		if out, err := check(inclusion(t, keys, tc[0], tc[1]), keys.Public()[0]); err != nil || !strings.Contains(out, fmt.Sprintf("entry %d of %d", tc[0], tc[1])) {
			t.Errorf("entry %d of %d: %v: %s", tc[0], tc[1], err, out)
		}
	}
	for name, forge := range map[string]func(*proof.Inclusion){
		"entry": func(p *proof.Inclusion) { p.Entry.Reason = "won" },
		"leaf":  func(p *proof.Inclusion) { p.Leaf[8]++ },
		"index": func(p *proof.Inclusion) { p.Index++ },
		"hash":  func(p *proof.Inclusion) { p.Hashes[0][0]++ },
		"size":  func(p *proof.Inclusion) { p.Checkpoint = strings.Replace(p.Checkpoint, "\n7\n", "\n8\n", 1) },
		"signature": func(p *proof.Inclusion) {
			p.Checkpoint = p.Checkpoint[:len(p.Checkpoint)-9] + "AAAA" + p.Checkpoint[len(p.Checkpoint)-5:]
		},
	} {
		p := inclusion(t, keys, 3, 7)
		forge(p)
		if out, err := check(p, keys.Public()[0]); err == nil || !strings.Contains(out, "NOT PROVEN") {
			t.Errorf("%s: Python accepts a forged proof: %v %s", name, err, out)
		}
	}
	if out, err := check(inclusion(t, keys, 3, 7), newKeys(t).Public()[0]); err == nil {
		t.Errorf("Python trusts a stranger: %s", out)
	}
}
