package governance

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func paths(t testing.TB, mask bool, texts ...string) []dataPath {
	t.Helper()
	var out []dataPath
	for _, text := range texts {
		p, fault := parsePath(text, untypedData)
		if fault != nil {
			t.Fatal(fault)
		}
		p.mask = mask
		out = append(out, p)
	}
	return out
}

func TestRedactJSON(t *testing.T) {
	for _, c := range []struct {
		path, in, dropped, masked string
	}{
		{"data.a", `{"a":1}`, `{}`, `{"a":null}`},
		{"data.a", `{"a":1,"b":2}`, `{"b":2}`, `{"a":null,"b":2}`},
		{"data.b", `{"a":1,"b":2}`, `{"a":1}`, `{"a":1,"b":null}`},
		{"data.b", ` { "a" : 1 , "b" : "x" , "c" : 3 } `, ` { "a" : 1  , "c" : 3 } `, ` { "a" : 1 , "b" : "[redacted]" , "c" : 3 } `},
		{"data.*", `{"a":1,"b":{"c":2}}`, `{}`, `{"a":null,"b":null}`},
		{"data.a.*", `{"a":[1,"x",{"y":1}],"b":[1]}`, `{"a":[],"b":[1]}`, `{"a":[null,"[redacted]",null],"b":[1]}`},
		{"data.*.x", `{"a":{"x":1,"y":2},"b":[{"x":1},3],"x":4}`, `{"a":{"y":2},"b":[{},3],"x":4}`, `{"a":{"x":null,"y":2},"b":[{"x":null},3],"x":4}`},
		{"data.a.b", `{"a":[[{"b":1}],{"b":"t"}]}`, `{"a":[[{}],{}]}`, `{"a":[[{"b":null}],{"b":"[redacted]"}]}`},
		{"data.email", `{"\u0065mail":"x"}`, `{}`, `{"\u0065mail":"[redacted]"}`},
		{"data.none", `{"a":1}`, `{"a":1}`, `{"a":1}`},
		{"data.a.b", `{"a":7}`, `{"a":7}`, `{"a":7}`},
	} {
		for _, mask := range []bool{false, true} {
			want := c.dropped
			if mask {
				want = c.masked
			}
			in := []byte(c.in)
			got, changed, err := redactJSON(in, paths(t, mask, c.path))
			if err != nil || string(got) != want || changed != (want != c.in) {
				t.Errorf("%s of %s: %s %v %v, want %s", c.path, c.in, got, changed, err, want)
			}
			if string(in) != c.in {
				t.Errorf("%s: the input was written to: %s", c.path, in)
			}
		}
	}
	for _, bad := range []string{``, `{`, `{"a":1,"a":2}`, `{"a":1}x`, `{"a":[1,]}`, `{"a" 1}`, `{"a":"\x"}`, "{\"a\":\"\xff\"}", `{"b":` + strings.Repeat("[", 100) + `}`, `{"a":{"b":{"b":1,"b":2}}}`} {
		if got, _, err := redactJSON([]byte(bad), paths(t, false, "data.a.b")); err == nil {
			t.Errorf("%q gives %s", bad, got)
		}
	}
}

// What is left after a redaction is JSON, has nothing left to take out, and says
// the rest as before.
func FuzzRedact(f *testing.F) {
	f.Add([]byte(`{"a":{"b":1,"c":[{"b":2}]},"d":"x"}`), "data.a.b", "data.*.c.*", true)
	f.Add([]byte(` { "a" : [ 1 , 2 ] , "b" : { } } `), "data.a.*", "data.b", false)
	f.Add([]byte(`{"\u0061":"\ud83d\ude00","b":null}`), "data.a", "data.b.c", true)
	f.Fuzz(func(t *testing.T, in []byte, first, second string, mask bool) {
		p, fault := parsePath(first, untypedData)
		if fault != nil {
			return
		}
		q, fault := parsePath(second, untypedData)
		if fault != nil {
			return
		}
		p.mask = mask
		ps := []dataPath{p, q}
		before := bytes.Clone(in)
		out, changed, err := redactJSON(in, ps)
		if !bytes.Equal(before, in) {
			t.Fatal("the input was written to")
		}
		_, strict := decodeData(in, dynType)
		if err != nil {
			if strict == nil {
				t.Fatalf("%q can be read and not redacted: %v", in, err)
			}
			return
		}
		if string(bytes.TrimSpace(in)) != "null" && strict != nil {
			t.Fatalf("%q is redacted to %q, and cannot be read: %v", in, out, strict)
		}
		if !json.Valid(out) {
			t.Fatalf("%q by %q and %q gives %q", in, first, second, out)
		}
		if again, more, err := redactJSON(out, ps); err != nil || more || !bytes.Equal(again, out) {
			t.Fatalf("%q by %q and %q gives %q, then %q (%v)", in, first, second, out, again, err)
		}
		if !changed && !bytes.Equal(in, out) {
			t.Fatalf("%q becomes %q without a change", in, out)
		}
	})
}
