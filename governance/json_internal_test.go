package governance

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"cel.dev/cel-go/common/types"

	"github.com/stokehold/stokehold/governance/celgo"
)

// FuzzDecodeData compares the decoder with encoding/json: what it accepts,
// encoding/json reads as the same value; what encoding/json refuses, it refuses.
func FuzzDecodeData(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1}`, `{"a":[1,2.5,-3e2,null,true,"x\u00e9\n"],"b":{"c":{}}}`, `{"a":1,"a":2}`, `{"a":01}`, `{"a":"\ud800"}`,
		"{\"a\":\"\xff\"}", `{"a":1e999}`, `[1]`, ` {"a" : 0.1 } `, `{"a":123456789012345678901}`, `{"a":-0}`, `{"a":1.7976931348623157e308}`, `{"a":"`, `{"a":1}x`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := decodeData(raw, untypedData)
		var want map[string]any
		werr := json.Unmarshal(raw, &want)
		if err != nil {
			return // stricter on purpose
		}
		if werr != nil {
			t.Fatalf("accepted %q, which encoding/json refuses: %v", raw, werr)
		}
		if native := toNative(got); !reflect.DeepEqual(native, want) {
			t.Fatalf("%q\n got %#v\nwant %#v", raw, native, want)
		}
	})
}

func toNative(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			out[k] = toNative(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = toNative(e)
		}
		return out
	case types.Double:
		return float64(v)
	case types.String:
		return string(v)
	case types.Bool:
		return bool(v)
	case types.Null:
		return nil
	default:
		return v
	}
}

// Numbers are those of encoding/json and strconv, to the bit.
func FuzzNumber(f *testing.F) {
	for _, s := range []string{
		"0", "-0", "0.1", "123456789012345", "1234567890123456", "0.000000000000000000001", "-1.005", "9007199254740993", "-", "", "1.", "01", "-01", "00",
		"1e5", "1E-7", "1.5e+3", "1e", "0.", ".5", "999999999999999", "-999999999999999.9", "123456789.123456", "1e400", "1.0", "-0.0", "18446744073709551616",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		number := func(k kind) (celgo.Value, bool) {
			d := jsonDecoder{b: s}
			var v celgo.Value
			err := d.number(&dataType{kind: k, cel: types.DynType}, &v)
			return v, err == nil && d.i == len(s)
		}
		valid := json.Valid([]byte(s)) && strings.Trim(s, "-0123456789.eE+") == ""
		want, err := strconv.ParseFloat(s, 64)
		for _, k := range []kind{kindDouble, kindDyn} {
			got, ok := number(k)
			if ok != (valid && err == nil) {
				t.Fatalf("%q is accepted: %t; valid %t, %v", s, ok, valid, err)
			}
			if ok && math.Float64bits(float64(got.Boxed().(types.Double))) != math.Float64bits(want) {
				t.Fatalf("%q = %v, want %v", s, got.Boxed(), want)
			}
		}
		whole, err := strconv.ParseInt(s, 10, 64)
		got, ok := number(kindInt)
		if ok != (valid && err == nil) {
			t.Fatalf("%q is accepted as an integer: %t; valid %t, %v", s, ok, valid, err)
		}
		if ok && int64(got.Boxed().(types.Int)) != whole {
			t.Fatalf("%q = %v, want %d", s, got.Boxed(), whole)
		}
	})
}

// Keys in the order of the fields are read at once, and mean what they mean in any other.
func TestKeysHoweverTheyAreWritten(t *testing.T) {
	type row struct {
		A      int            `json:"a"`
		B      string         `json:"b"`
		Odd    int            `json:"o<d"`
		Prefix int            `json:"ab"`
		C      map[string]int `json:"c"`
	}
	d := newTypeTable().of(reflect.TypeFor[row]())
	want, err := decodeData([]byte(`{"a":1,"b":"x","o<d":2,"ab":3,"c":{"k":4}}`), d)
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range []string{
		`{"a" : 1 , "b": "x", "o<d" :2,"ab":  3, "c" :{"k":4}}`,
		"\n{\t\"a\"\r:1,\"b\":\n\"x\",\"o<d\":2,\"ab\":3,\"c\":{\"k\":4}}",
		`{"c":{"k":4},"ab":3,"o<d":2,"b":"x","a":1}`,
		`{"\u0061":1,"b":"\u0078","o\u003cd":2,"ab":3,"c":{"k":4}}`,
		`{"x":0,"a":1,"y":[1,{"a":2}],"b":"x","o<d":2,"ab":3,"c":{"k":4}}`,
	} {
		got, err := decodeData([]byte(raw), d)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if got.(*object).Equal(want.(*object)) != types.True {
			t.Errorf("%s gives %v", raw, got)
		}
	}
	for _, raw := range []string{
		`{"a":1,"a":1}`, `{"a":1,"\u0061":1}`, `{"b":"x","a":1,"b":"x"}`, `{"a"1}`, `{"a":}`, `{"a":1,}`, `{"a":1 "b":"x"}`, `{"A":1}`, `{"a":1`, `{"a`, `{"a"`, `{"a":`,
	} {
		if _, err := decodeData([]byte(raw), d); !errors.Is(err, ErrData) {
			t.Errorf("%s: %v, want ErrData", raw, err)
		}
	}
}

func FuzzSourceString(f *testing.F) {
	for _, s := range []string{"a/b", "/a", "//a", "urn:x", "http://h/p?q#f", "a:b", "a%2Fb", "..", "?", "#"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		if got, want := sourceString(u), u.String(); got != want {
			t.Fatalf("%q: %q, want %q", s, got, want)
		}
	})
}

// What the fields of a type are called and which win is encoding/json's to say.
func TestDataTypeFollowsEncodingJSON(t *testing.T) {
	type Inner struct {
		A int `json:"a"`
		B int
		C int `json:"c"`
	}
	type Other struct {
		C int `json:"c"`
	}
	type outer struct {
		*Inner
		Other
		B      string `json:"B"`
		Hidden int    `json:"-"`
		Dash   int    `json:"-,"` //nolint:staticcheck // a field named - is what is tested
		Quoted int    `json:"quoted,string"`
		Raw    json.RawMessage
		Bytes  []byte
		Next   *outer `json:"next"`
		lower  int
	}
	v := outer{Inner: &Inner{A: 1, B: 2, C: 3}, Other: Other{C: 4}, B: "x", lower: 1, Raw: json.RawMessage(`{"z":1}`), Bytes: []byte("hi"), Next: &outer{Inner: &Inner{}, Raw: json.RawMessage(`1`)}}
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		t.Fatal(err)
	}
	d := newTypeTable().of(reflect.TypeOf(v))
	for k := range keys {
		if d.find(k) < 0 {
			t.Errorf("no field %q", k)
		}
	}
	if len(d.fields) != len(keys) {
		t.Errorf("fields %q, JSON has %d: %s", d.fieldNames(), len(keys), raw)
	}
	got, err := decodeData(raw, d)
	if err != nil {
		t.Fatal(err)
	}
	if eq := got.(*object).Equal(got.(*object)); eq != types.True {
		t.Errorf("not equal to itself: %v", eq)
	}
	deep := bytes.Repeat([]byte(`{"next":`), 100)
	deep = append(append(deep, "null"...), bytes.Repeat([]byte("}"), 100)...)
	if _, err := decodeData(deep, d); err == nil {
		t.Error("100 levels are accepted")
	}
}

func FuzzGlob(f *testing.F) {
	f.Add("a*b?c", "axxbyc")
	f.Add("*", "")
	f.Add("**a", "bba")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 20 || len(s) > 40 {
			return
		}
		if got, want := glob(pattern, s), slowGlob(pattern, s); got != want {
			t.Fatalf("glob(%q, %q) = %v", pattern, s, got)
		}
	})
}

func slowGlob(p, s string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		return slowGlob(p[1:], s) || s != "" && slowGlob(p, s[1:])
	default:
		return s != "" && (p[0] == '?' || p[0] == s[0]) && slowGlob(p[1:], s[1:])
	}
}
