package flights

import (
	"context"
	"fmt"
	"iter"
	"math"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers"
)

// FeatureNames are the columns of the features dataset, all float32, in order.
//
// A lift is the share of late flights among those like this one, as log odds less
// the overall log odds, shrunk towards none. All are of earlier weeks, each
// counting memoryPerWeek times as much as the one after it. The overall share
// itself is no feature: it is one number a week, so six weeks are only six
// examples of what it means, and a model that learns from so few extrapolates
// wildly.
func FeatureNames() []string {
	return []string{
		"hour_sin", "hour_cos", "night", // night: 0 to 5 o'clock, when few flights are scheduled
		"thursday", "friday", "saturday", "sunday",
		"log_distance", "distance", // of miles; thousands of miles
		"lift_hour", "lift_weekday",
		"lift_origin", "lift_destination", "lift_route",
		"lift_origin_last", "lift_destination_last", // last week alone
		"lift_origin_hour", "lift_destination_hour",
		"traffic_origin", // log of flights this week from the origin
	}
}

const featureCount = 19

const (
	memoryPerWeek = 0.8
	priorRate     = 0.2  // before anything is known
	shrinkRows    = 30.0 // rows at which an own rate and the overall rate weigh the same
	shrinkCell    = 60.0 // for an airport at an hour, towards the airport
)

// FeatureParams says which weeks a run makes features of.
type FeatureParams struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"` // exclusive
}

// MakeFeatures makes the features of weeks from..to-1. Those of week w depend on
// the schedule of week w and on schedules and delays of weeks before w alone: it
// never even opens the delays of w. It needs nothing but Arrow batches, so it
// runs as well in a child process.
type MakeFeatures struct {
	// Window says which weeks this run makes; nil: the parameters FeatureParams.
	Window func(*stages.Task) (from, to uint64, err error)
}

// Schema implements stages.Schemer.
func (MakeFeatures) Schema() *arrow.Schema { return featureSchema() }

func featureSchema() *arrow.Schema {
	names := FeatureNames()
	fields := make([]arrow.Field, len(names))
	for i, n := range names {
		fields[i] = arrow.Field{Name: n, Type: arrow.PrimitiveTypes.Float32}
	}
	md := arrow.MetadataFrom(map[string]string{"features": strings.Join(names, ",")})
	return arrow.NewSchema(fields, &md)
}

// Run implements stages.Stage.
func (s MakeFeatures) Run(ctx context.Context, task *stages.Task) error {
	window := s.Window
	if window == nil {
		window = func(task *stages.Task) (uint64, uint64, error) {
			var p FeatureParams
			err := task.Decode(&p)
			return p.From, p.To, err
		}
	}
	from, to, err := window(task)
	if err != nil {
		return err
	}
	if from >= to {
		return stages.Permanent(fmt.Errorf("features of weeks %d to %d: nothing to make", from, to))
	}
	history := newHistory()
	schedule, stopSchedule := iter.Pull2(task.Range(ctx, Schedule, 0, to))
	defer stopSchedule()
	labels, stopLabels := iter.Pull2(task.Range(ctx, Labels, 0, to-1))
	defer stopLabels()
	for week := range to {
		batch, err := pull(schedule, Schedule, week)
		if err != nil {
			return err
		}
		flights, err := history.read(batch.Record)
		if err != nil {
			return stages.Permanent(fmt.Errorf("%s#%d: %w", Schedule, week, err))
		}
		if week >= from {
			rec := history.features(flights)
			_, err := task.WriteAt(ctx, week, rec)
			rec.Release()
			if err != nil {
				return err
			}
			task.Progress(int64(week-from)+1, int64(to-from), fmt.Sprintf("week %d", week))
		}
		if week+1 == to {
			return nil
		}
		late, err := pull(labels, Labels, week)
		if err != nil {
			return err
		}
		if err := history.learn(flights, late.Record); err != nil {
			return stages.Permanent(fmt.Errorf("%s#%d: %w", Labels, week, err))
		}
	}
	return nil
}

func pull(next func() (*tiers.Batch, error, bool), dataset string, week uint64) (*tiers.Batch, error) {
	b, err, ok := next()
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%s ends before week %d", dataset, week)
	}
	return b, nil
}

// flight is one row of the schedule in the form the statistics need.
type flight struct {
	origin, destination int32 // place in history.airports
	route               int32 // place in history.routes
	hour, weekday       int32
	miles               float32
}

// tally counts flights and late ones, both decayed by week.
type tally struct{ rows, late float64 }

// share is the late share, shrunk towards prior as if strength flights of that
// share had been seen too.
func (t *tally) share(prior, strength float64) float64 {
	return (t.late + prior*strength) / (t.rows + strength)
}

func logit(p float64) float64 {
	const least = 1e-3
	p = min(max(p, least), 1-least)
	return math.Log(p / (1 - p))
}

const hours = 24

// history is what is known of the weeks so far. Airports and routes are numbered
// in the order in which they appear, so that sums are always added in the same
// order.
type history struct {
	airports map[string]int32
	routes   map[[2]int32]int32

	all, allLast                 tally
	hour                         [hours]tally
	weekday                      [7]tally
	origin, originLast           []tally // by airport
	destination, destinationLast []tally
	originHour, destinationHour  []tally // by airport*hours + hour
	byRoute                      []tally
}

func newHistory() *history {
	return &history{airports: map[string]int32{}, routes: map[[2]int32]int32{}}
}

// airport numbers a code; the string may lie in a batch's memory, so it is cloned
// when kept.
func (h *history) airport(code string) int32 {
	if i, ok := h.airports[code]; ok {
		return i
	}
	i := int32(len(h.airports))
	h.airports[strings.Clone(code)] = i
	h.origin, h.originLast = append(h.origin, tally{}), append(h.originLast, tally{})
	h.destination, h.destinationLast = append(h.destination, tally{}), append(h.destinationLast, tally{})
	h.originHour = append(h.originHour, make([]tally, hours)...)
	h.destinationHour = append(h.destinationHour, make([]tally, hours)...)
	return i
}

func (h *history) read(rec arrow.RecordBatch) ([]flight, error) {
	date, ok1 := column[*array.Timestamp](rec, "date")
	distance, ok2 := column[*array.Int64](rec, "distance")
	origin, ok3 := column[*array.String](rec, "origin")
	destination, ok4 := column[*array.String](rec, "destination")
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return nil, fmt.Errorf("schema is %s, want date, distance, origin, destination", rec.Schema())
	}
	const hourMicros, dayMicros = int64(time.Hour / time.Microsecond), int64(24 * time.Hour / time.Microsecond)
	out := make([]flight, rec.NumRows())
	for i := range out {
		us := int64(date.Value(i))
		day := us / dayMicros
		if us < day*dayMicros {
			day--
		}
		o, d := h.airport(origin.Value(i)), h.airport(destination.Value(i))
		route, ok := h.routes[[2]int32{o, d}]
		if !ok {
			route = int32(len(h.routes))
			h.routes[[2]int32{o, d}] = route
			h.byRoute = append(h.byRoute, tally{})
		}
		out[i] = flight{
			origin: o, destination: d, route: route, miles: float32(distance.Value(i)),
			hour:    int32((us - day*dayMicros) / hourMicros),
			weekday: int32(((day+4)%7 + 7) % 7), // 1970-01-01 was a Thursday; 0 is Sunday
		}
	}
	return out, nil
}

// learn adds a week whose delays are known.
func (h *history) learn(flights []flight, rec arrow.RecordBatch) error {
	delay, ok := column[*array.Int64](rec, "delay")
	if !ok {
		return fmt.Errorf("schema is %s, want delay", rec.Schema())
	}
	if delay.Len() != len(flights) {
		return fmt.Errorf("%d delays for %d flights", delay.Len(), len(flights))
	}
	for _, group := range [][]tally{h.hour[:], h.weekday[:], h.origin, h.destination, h.originHour, h.destinationHour, h.byRoute} {
		for i := range group {
			group[i].rows *= memoryPerWeek
			group[i].late *= memoryPerWeek
		}
	}
	h.all.rows *= memoryPerWeek
	h.all.late *= memoryPerWeek
	h.allLast = tally{}
	clear(h.originLast)
	clear(h.destinationLast)
	for i, f := range flights {
		late := 0.0
		if delay.Value(i) > LateMinutes {
			late = 1
		}
		for _, t := range [...]*tally{
			&h.all, &h.allLast, &h.hour[f.hour], &h.weekday[f.weekday],
			&h.origin[f.origin], &h.originLast[f.origin], &h.destination[f.destination], &h.destinationLast[f.destination],
			&h.originHour[f.origin*hours+f.hour], &h.destinationHour[f.destination*hours+f.hour], &h.byRoute[f.route],
		} {
			t.rows++
			t.late += late
		}
	}
	return nil
}

// features makes one batch: row i describes flights[i].
func (h *history) features(flights []flight) arrow.RecordBatch {
	rate := h.all.share(priorRate, 1)
	rateLast := h.allLast.share(rate, 1)
	overall, overallLast := logit(rate), logit(rateLast)
	lift := func(t *tally, prior, strength float64) float32 {
		return float32(logit(t.share(prior, strength)) - overall)
	}
	liftLast := func(t *tally) float32 {
		return float32(logit(t.share(rateLast, shrinkRows)) - overallLast)
	}
	traffic := make([]int, len(h.airports))
	for _, f := range flights {
		traffic[f.origin]++
	}
	columns := make([][]float32, featureCount)
	for c := range columns {
		columns[c] = make([]float32, len(flights))
	}
	for i, f := range flights {
		angle := 2 * math.Pi * float64(f.hour) / hours
		origin := h.origin[f.origin].share(rate, shrinkRows)
		destination := h.destination[f.destination].share(rate, shrinkRows)
		row := [featureCount]float32{
			float32(math.Sin(angle)), float32(math.Cos(angle)), flag(f.hour < 5),
			flag(f.weekday == 4), flag(f.weekday == 5), flag(f.weekday == 6), flag(f.weekday == 0),
			float32(math.Log1p(float64(f.miles))), f.miles / 1000,
			lift(&h.hour[f.hour], rate, shrinkRows), lift(&h.weekday[f.weekday], rate, shrinkRows),
			float32(logit(origin) - overall), float32(logit(destination) - overall),
			lift(&h.byRoute[f.route], (origin+destination)/2, shrinkRows),
			liftLast(&h.originLast[f.origin]), liftLast(&h.destinationLast[f.destination]),
			lift(&h.originHour[f.origin*hours+f.hour], origin, shrinkCell),
			lift(&h.destinationHour[f.destination*hours+f.hour], destination, shrinkCell),
			float32(math.Log1p(float64(traffic[f.origin]))),
		}
		for c, v := range row {
			columns[c][i] = v
		}
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, featureSchema())
	defer b.Release()
	for c, values := range columns {
		b.Field(c).(*array.Float32Builder).AppendValues(values, nil)
	}
	return b.NewRecordBatch()
}

func flag(b bool) float32 {
	if b {
		return 1
	}
	return 0
}

// column finds a column of the wanted Go type.
func column[T arrow.Array](rec arrow.RecordBatch, name string) (T, bool) {
	var none T
	at := rec.Schema().FieldIndices(name)
	if len(at) != 1 {
		return none, false
	}
	c, ok := rec.Column(at[0]).(T)
	return c, ok && c.NullN() == 0
}
