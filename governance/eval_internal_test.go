package governance

import (
	"context"
	"reflect"
	"testing"
	"time"

	"cel.dev/cel-go/common/types"

	"github.com/stokehold/stokehold/events"
)

// TestEvalStateLetsGo: a state that is back in its pool refers to nothing of the event
// that it was used for, or a pool would keep events alive; and nothing of one event is
// there for the next.
func TestEvalStateLetsGo(t *testing.T) {
	ev, err := events.New("t", "s", "subject", "id", time.Unix(1, 0), map[string]any{"a": "b"})
	if err != nil {
		t.Fatal(err)
	}
	c, _ := contextOf(&ev)
	ext := attributes{pipeline: "p", labels: "pii"}
	s := &evalState{}
	s.engine, s.ev, s.letGo = &Engine{}, &ev, &events.Release{}
	s.reset(context.Background(), c, "s", &ext, ev.DataEncoded, Limits{EventCost: 1})
	fill(reflect.ValueOf(s).Elem())
	s.cancel, s.stopAsking = func() {}, func() {}
	s.values = make([]variableValue, 3, 5)
	s.values[2].boxed = "x"
	o := s.slab.object(&dataType{fields: make([]field, 2)})
	o.vals[1].SetString("secret")
	s.now = types.Timestamp{Time: time.Unix(2, 0)}
	s.release()
	for i := range reflect.TypeFor[evalState]().NumField() {
		f := reflect.TypeFor[evalState]().Field(i)
		switch f.Name {
		case "json", "point", "now", "pure", "deadline", "limits": // values that refer to nothing, set for each event
			continue
		case "values":
			for _, v := range s.values[:cap(s.values)] {
				if v != (variableValue{}) {
					t.Errorf("a variable's value is left: %+v", v)
				}
			}
			if len(s.values) != 0 {
				t.Error("values are left")
			}
			continue
		case "slab":
			for _, v := range s.slab.values[:cap(s.slab.values)] {
				if v.Text() != "" {
					t.Error("a string is left in the slab")
				}
			}
			if len(s.slab.objects) != 0 || len(s.slab.values) != 0 {
				t.Error("the slab is not empty")
			}
			continue
		}
		if v := reflect.ValueOf(s).Elem().Field(i); !v.IsZero() {
			t.Errorf("%s is left as %v", f.Name, v)
		}
	}
}

// fill gives each field of a struct that reflection may not set a value that is not
// zero, by way of those it may: a new field that release forgets then shows.
func fill(v reflect.Value) {
	for i := range v.NumField() {
		f := reflect.NewAt(v.Field(i).Type(), v.Field(i).Addr().UnsafePointer()).Elem()
		if !f.IsZero() {
			continue
		}
		switch f.Kind() {
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Uint64, reflect.Uint8:
			f.SetUint(1)
		case reflect.Int64, reflect.Int:
			f.SetInt(1)
		case reflect.String:
			f.SetString("x")
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		case reflect.Map:
			f.Set(reflect.MakeMap(f.Type()))
		case reflect.Array:
			for k := range f.Len() {
				if f.Index(k).Kind() == reflect.Struct {
					fill(f.Index(k))
				} else if f.Index(k).Kind() == reflect.Interface {
					f.Index(k).Set(reflect.ValueOf("x"))
				}
			}
		case reflect.Struct:
			if f.Type() != reflect.TypeFor[time.Time]() {
				fill(f)
			}
		default: // interfaces and functions: the test sets those that there are
		}
	}
}
