package arrowio_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
)

func TestFingerprintGolden(t *testing.T) {
	const want = "71395282adfb3ff27f0861908248e04e"
	if got := arrowio.Fingerprint(wide(t, 0).Schema()); got != want {
		t.Errorf("fingerprint %s, was %s: refs stored by earlier versions would not match", got, want)
	}
}

func TestFingerprintTellsSchemasApart(t *testing.T) {
	md := func(kv ...string) arrow.Metadata {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return arrow.MetadataFrom(m)
	}
	a := arrow.Field{Name: "a", Type: arrow.PrimitiveTypes.Int64}
	list := func(f arrow.Field) arrow.Field { return arrow.Field{Name: "l", Type: arrow.ListOfField(f)} }
	root := md("k", "v")
	schemas := map[string]*arrow.Schema{
		"plain":           arrow.NewSchema([]arrow.Field{a}, nil),
		"nullable":        arrow.NewSchema([]arrow.Field{{Name: "a", Type: a.Type, Nullable: true}}, nil),
		"type":            arrow.NewSchema([]arrow.Field{{Name: "a", Type: arrow.PrimitiveTypes.Uint64}}, nil),
		"field metadata":  arrow.NewSchema([]arrow.Field{{Name: "a", Type: a.Type, Metadata: md("k", "v")}}, nil),
		"schema metadata": arrow.NewSchema([]arrow.Field{a}, &root),
		"list":            arrow.NewSchema([]arrow.Field{list(a)}, nil),
		"list element":    arrow.NewSchema([]arrow.Field{list(arrow.Field{Name: "a", Type: a.Type, Metadata: md("k", "v")})}, nil),
		"unit":            arrow.NewSchema([]arrow.Field{{Name: "a", Type: arrow.FixedWidthTypes.Timestamp_us}}, nil),
		"other unit":      arrow.NewSchema([]arrow.Field{{Name: "a", Type: arrow.FixedWidthTypes.Timestamp_ns}}, nil),
		"no zone":         arrow.NewSchema([]arrow.Field{{Name: "a", Type: &arrow.TimestampType{Unit: arrow.Nanosecond}}}, nil),
		"two":             arrow.NewSchema([]arrow.Field{a, a}, nil),
		"none":            arrow.NewSchema(nil, nil),
	}
	seen := map[string]string{}
	for name, s := range schemas {
		fp := arrowio.Fingerprint(s)
		if len(fp) != 32 {
			t.Errorf("%s: %q", name, fp)
		}
		if other, ok := seen[fp]; ok {
			t.Errorf("%s and %s have the same fingerprint", name, other)
		}
		seen[fp] = name
	}
	one := arrow.NewMetadata([]string{"x", "y"}, []string{"1", "2"})
	two := arrow.NewMetadata([]string{"y", "x"}, []string{"2", "1"})
	if arrowio.Fingerprint(arrow.NewSchema([]arrow.Field{a}, &one)) != arrowio.Fingerprint(arrow.NewSchema([]arrow.Field{a}, &two)) {
		t.Error("the order of metadata keys matters")
	}
}

func TestURIs(t *testing.T) {
	u := arrowio.SharedURI{Arena: "00ff", Offset: 128, Length: 4096, Generation: 7}
	if got, err := arrowio.ParseSharedURI(u.String()); err != nil || got != u {
		t.Error(got, err)
	}
	for _, bad := range []string{
		"", "shm://", "shm://ab", "shm://ab/", "shm://ab/1", "shm://ab/1+2", "shm://ab/1+2.", "shm:///1+2.3", "file:///x",
		"shm://AB/1+2.3", "shm://ab/-1+2.3", "shm://ab/1+-2.3", "shm://ab/1+0.3", "shm://ab/01+2.3", "shm://ab/1+2.3 ",
		"shm://ab/9223372036854775807+1.3", "shm://ab/1+2.99999999999999999999", "shm://" + strings.Repeat("a", 65) + "/1+2.3",
	} {
		if got, err := arrowio.ParseSharedURI(bad); !errors.Is(err, arrowio.ErrURI) {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
	file, err := arrowio.FileURI("/var/lib/a b#%/x")
	if err != nil {
		t.Fatal(err)
	}
	if path, err := arrowio.ParseFileURI(file); err != nil || path != "/var/lib/a b#%/x" {
		t.Error(file, path, err)
	}
	if _, err := arrowio.FileURI("x"); !errors.Is(err, arrowio.ErrURI) {
		t.Error(err)
	}
	for _, bad := range []string{"", "/x", "file://host/x", "file:x", "file:///a/../b", "file:///a?b", "s3://b/k", "file:///%00"} {
		if got, err := arrowio.ParseFileURI(bad); !errors.Is(err, arrowio.ErrURI) {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
	bucket, key, err := arrowio.ParseS3URI(arrowio.S3URI("cold", "a/b c#.parquet"))
	if err != nil || bucket != "cold" || key != "a/b c#.parquet" {
		t.Error(bucket, key, err)
	}
	for _, bad := range []string{"", "s3://", "s3://b", "s3://b/", "s3:///k", "s3://u@b/k", "file:///b/k"} {
		if _, _, err := arrowio.ParseS3URI(bad); !errors.Is(err, arrowio.ErrURI) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestFlightURIs(t *testing.T) {
	for _, good := range []struct {
		s string
		u arrowio.FlightURI
	}{
		{"grpc+tcp://127.0.0.1:8815", arrowio.FlightURI{Addr: "127.0.0.1:8815"}},
		{"grpc+tls://gpu-7.example.org:443", arrowio.FlightURI{Addr: "gpu-7.example.org:443", TLS: true}},
		{"grpc+tcp://[::1]:1", arrowio.FlightURI{Addr: "[::1]:1"}},
		{"grpc+tls://host_1:65535", arrowio.FlightURI{Addr: "host_1:65535", TLS: true}},
	} {
		if got, err := arrowio.ParseFlightURI(good.s); err != nil || got != good.u || got.String() != good.s || !arrowio.IsFlightURI(good.s) {
			t.Error(good.s, got, err)
		}
	}
	for _, bad := range []string{
		"", "grpc://h:1", "grpc+unix:///x", "GRPC+TCP://h:1", "grpc+tcp://", "grpc+tcp://h", "grpc+tcp://h:", "grpc+tcp://:1",
		"grpc+tcp://h:0", "grpc+tcp://h:01", "grpc+tcp://h:65536", "grpc+tcp://h:http", "grpc+tcp://H:1", "grpc+tcp://h:1/",
		"grpc+tcp://h:1/x", "grpc+tcp://u@h:1", "grpc+tcp://u:p@h:1", "grpc+tcp://h:1?x", "grpc+tcp://h:1#x", "grpc+tcp://h h:1",
		"grpc+tcp://::1:1", "grpc+tcp://[h]:1", "grpc+tcp://[0:0::1]:1", "grpc+tcp://[fe80::1%eth0]:1", "grpc+tcp://127.1:1",
		"grpc+tcp://0127.0.0.1:1", "grpc+tcp://-h:1", "grpc+tcp://a..b:1", "grpc+tcp://a.:1", "grpc+tcp://[127.0.0.1]:1",
		"grpc+tcp://" + strings.Repeat("a", 64) + ":1", "shm://ab/1+2.3", "grpc+tcp://h\x00:1",
	} {
		if got, err := arrowio.ParseFlightURI(bad); !errors.Is(err, arrowio.ErrURI) {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
}

func FuzzParseFlightURI(f *testing.F) {
	f.Add("grpc+tcp://127.0.0.1:8815")
	f.Add("grpc+tls://[2001:db8::1]:443")
	f.Add("grpc+tls://a.example:1")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := arrowio.ParseFlightURI(s)
		if err == nil && u.String() != s {
			t.Fatalf("%q parsed as %v", s, u)
		}
		if err != nil && !errors.Is(err, arrowio.ErrURI) {
			t.Fatal(err)
		}
	})
}

func FuzzParseSharedURI(f *testing.F) {
	f.Add("shm://00ff/128+4096.7")
	f.Fuzz(func(t *testing.T, s string) {
		if u, err := arrowio.ParseSharedURI(s); err == nil && u.String() != s {
			t.Fatalf("%q parsed as %v", s, u)
		}
	})
}

func ExampleSharedURI() {
	u := arrowio.SharedURI{Arena: "8f3a", Offset: 64, Length: 1024, Generation: 3}
	fmt.Println(u)
	_, err := arrowio.ParseSharedURI("shm://8f3a/64")
	fmt.Println(errors.Is(err, arrowio.ErrURI))
	// Output:
	// shm://8f3a/64+1024.3
	// true
}
