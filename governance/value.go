package governance

import (
	"errors"
	"fmt"
	"reflect"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/celgo"
)

// object is decoded data of a known type. An absent value means that the field was
// absent or null. Immutable once decoded, and valid for one event.
type object struct {
	typ  *dataType
	vals []celgo.Value // by field
}

var (
	_ ref.Val            = (*object)(nil)
	_ traits.Indexer     = (*object)(nil)
	_ traits.FieldTester = (*object)(nil)

	errNoNative = errors.New("event data do not convert to a Go value")
)

// ConvertToNative implements ref.Val.
func (o *object) ConvertToNative(reflect.Type) (any, error) { return nil, errNoNative }

// ConvertToType implements ref.Val.
func (o *object) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return o.typ.cel
	}
	return types.NewErr("cannot convert %s to %s", o.typ.name, t.TypeName())
}

// Equal implements ref.Val.
func (o *object) Equal(other ref.Val) ref.Val {
	p, ok := other.(*object)
	if !ok || p.typ != o.typ {
		return types.False
	}
	for i, v := range o.vals {
		w := p.vals[i]
		if v.Kind() == celgo.Absent || w.Kind() == celgo.Absent {
			if v.Kind() != w.Kind() {
				return types.False
			}
			continue
		}
		a := types.DefaultTypeAdapter.NativeToValue(v.Boxed())
		if eq := a.Equal(types.DefaultTypeAdapter.NativeToValue(w.Boxed())); eq != types.True {
			return eq
		}
	}
	return types.True
}

// Type implements ref.Val.
func (o *object) Type() ref.Type { return o.typ.cel }

// Value implements ref.Val. It returns the object itself, which the field
// getters take.
func (o *object) Value() any { return o }

// Get implements traits.Indexer.
func (o *object) Get(index ref.Val) ref.Val {
	name, ok := index.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(index)
	}
	i := o.typ.find(string(name))
	if i < 0 {
		return types.NewErr("%s has no field %q", o.typ.name, string(name))
	}
	v, err := getField(o, i)
	if err != nil {
		return types.WrapErr(err)
	}
	return types.DefaultTypeAdapter.NativeToValue(v)
}

// IsSet implements traits.FieldTester.
func (o *object) IsSet(index ref.Val) ref.Val {
	name, ok := index.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(index)
	}
	i := o.typ.find(string(name))
	if i < 0 {
		return types.NewErr("%s has no field %q", o.typ.name, string(name))
	}
	return types.Bool(o.vals[i].Kind() != celgo.Absent)
}

// eventVal is the CEL value of an event's attributes. It lives in a pooled
// evaluation state and is valid for one event.
type eventVal struct {
	ctx    *event.EventContextV1
	source string
	ext    attributes
}

// attributes are the extension attributes that expressions see; the stamp's MAC
// covers all of them.
type attributes struct {
	pipeline, run, stage, cause, dataref, actor, labels string
	reservedAttributes
}

// reservedAttributes are those that the Judge alone sets.
type reservedAttributes struct{ route, columns, approval, released string }

// reserved names the attributes that the Judge alone sets.
var reserved = [...]string{ExtStamp, events.ExtRoute, events.ExtColumns, events.ExtApproval, events.ExtReleased} //nolint:gochecknoglobals // a constant table

// isReserved reports whether one of them, the stamp apart, is set.
func (a *attributes) isReserved() bool {
	return a.route != "" || a.columns != "" || a.approval != "" || a.released != ""
}

var _ ref.Val = (*eventVal)(nil)

// ConvertToNative implements ref.Val.
func (e *eventVal) ConvertToNative(reflect.Type) (any, error) { return nil, errNoNative }

// ConvertToType implements ref.Val.
func (e *eventVal) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return eventType.cel
	}
	return types.NewErr("cannot convert an event to %s", t.TypeName())
}

// Equal implements ref.Val: an event equals only itself.
func (e *eventVal) Equal(other ref.Val) ref.Val {
	o, ok := other.(*eventVal)
	return types.Bool(ok && o == e)
}

// Type implements ref.Val.
func (e *eventVal) Type() ref.Type { return eventType.cel }

// Value implements ref.Val.
func (e *eventVal) Value() any { return e }

// eventType describes the variable event. Attributes that an event does not
// have read as "", because "is from pipeline X" is false of an event from none;
// has() tells the difference. A missing time is an error.
var eventType = newEventType() //nolint:gochecknoglobals // never changed once made

func newEventType() *dataType {
	t := &dataType{kind: kindObject, cel: types.NewObjectType("stokehold.Event"), name: "stokehold.Event"}
	str := func(name string, get func(e *eventVal) string) {
		t.fields = append(t.fields, field{name: name, typ: &dataType{kind: kindString, cel: types.StringType}, cel: &types.FieldType{
			Type:  types.StringType,
			IsSet: func(target any) bool { e, ok := target.(*eventVal); return ok && get(e) != "" },
			GetFrom: func(target any) (any, error) {
				e, ok := target.(*eventVal)
				if !ok {
					return nil, fmt.Errorf("%T is not an event", target)
				}
				return types.String(get(e)), nil
			},
		}, get: func(x any) (v celgo.Value, set, ok bool) {
			e, ok := x.(*eventVal)
			if !ok {
				return v, false, false
			}
			text := get(e)
			return celgo.OfString(text), text != "", true
		}})
	}
	str("id", func(e *eventVal) string { return e.ctx.ID })
	str("type", func(e *eventVal) string { return e.ctx.Type })
	str("source", func(e *eventVal) string { return e.source })
	str("subject", func(e *eventVal) string { return e.ctx.GetSubject() })
	str("pipeline", func(e *eventVal) string { return e.ext.pipeline })
	str("run", func(e *eventVal) string { return e.ext.run })
	str("stage", func(e *eventVal) string { return e.ext.stage })
	str("cause", func(e *eventVal) string { return e.ext.cause })
	str("actor", func(e *eventVal) string { return e.ext.actor })
	t.fields = append(t.fields, field{name: "time", typ: &dataType{kind: kindTimestamp, cel: types.TimestampType}, cel: &types.FieldType{
		Type:  types.TimestampType,
		IsSet: func(target any) bool { e, ok := target.(*eventVal); return ok && e.ctx.Time != nil },
		GetFrom: func(target any) (any, error) {
			e, ok := target.(*eventVal)
			if !ok {
				return nil, fmt.Errorf("%T is not an event", target)
			}
			if e.ctx.Time == nil {
				return nil, &missingFieldError{name: "time"}
			}
			return types.Timestamp{Time: e.ctx.Time.Time}, nil
		},
	}, get: func(x any) (v celgo.Value, set, ok bool) {
		e, ok := x.(*eventVal)
		if !ok || e.ctx.Time == nil {
			return v, false, ok
		}
		return celgo.OfTimestamp(e.ctx.Time.Time), true, true
	}})
	return t
}

// readAttributes reads the extension attributes by their canonical strings, as
// they travel in headers.
func readAttributes(c *event.EventContextV1) (a attributes) {
	left := len(c.Extensions)
	if left == 0 {
		return a
	}
	if _, stamped := c.Extensions[ExtStamp]; stamped {
		left--
	}
	for _, x := range [...]struct {
		name string
		to   *string
	}{
		{events.ExtPipeline, &a.pipeline}, {events.ExtRun, &a.run}, {events.ExtStage, &a.stage}, {events.ExtCause, &a.cause},
		{events.ExtDataRef, &a.dataref}, {events.ExtActor, &a.actor}, {events.ExtLabels, &a.labels},
		{events.ExtRoute, &a.route}, {events.ExtColumns, &a.columns}, {events.ExtApproval, &a.approval}, {events.ExtReleased, &a.released},
	} {
		if left == 0 {
			break
		}
		if v, ok := c.Extensions[x.name]; ok {
			*x.to = extensionText(v)
			left--
		}
	}
	return a
}
