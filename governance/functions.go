package governance

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"golang.org/x/mod/semver"
)

// Limits of what the functions below take. They are checked before any work,
// since cel-go charges a call only when it has returned.
const (
	maxGlobBytes   = 256     // of a pattern
	maxGlobSubject = 8 << 10 // of the text
	maxSemverBytes = 256
	maxStatistics  = 16 << 10 // elements of a list
	maxLabels      = 128
	maxLabelBytes  = 64 // also of a pattern
	maxPatterns    = 32
)

// functions declares the functions beyond CEL's own:
//
//	semver.compare(a, b)        int: -1, 0 or 1; versions with or without v
//	cidr.contains(net, ip)      bool
//	s.glob(pattern)             bool: * any characters, ? one
//	days(n), hours(n)           duration
//	t.within(from, to[, zone])  bool: time of day in [from, to), "22:00"; may pass midnight
//	stats.mean(list), stats.stddev(list), stats.quantile(list, q), stats.psi(expected, actual)
//	labels.any(pattern | list)  bool: a label matches; pii, residency:*
//	labels.values(name)         list(string): of the labels name:value
//	ref.tier(uri)               string: hot, warm or cold
func functions() cel.EnvOption {
	str, list, strs, double := cel.StringType, cel.ListType(cel.DynType), cel.ListType(cel.StringType), cel.DoubleType
	opts := []cel.EnvOption{
		cel.Function("semver.compare", cel.Overload("semver_compare", []*cel.Type{str, str}, cel.IntType, cel.BinaryBinding(semverCompare))),
		cel.Function("cidr.contains", cel.Overload("cidr_contains", []*cel.Type{str, str}, cel.BoolType, cel.BinaryBinding(cidrContains))),
		cel.Function("glob", cel.MemberOverload("string_glob", []*cel.Type{str, str}, cel.BoolType, cel.BinaryBinding(globs))),
		cel.Function("days", cel.Overload("days_int", []*cel.Type{cel.IntType}, cel.DurationType, cel.UnaryBinding(manyOf(24*time.Hour)))),
		cel.Function("hours", cel.Overload("hours_int", []*cel.Type{cel.IntType}, cel.DurationType, cel.UnaryBinding(manyOf(time.Hour)))),
		cel.Function("within",
			cel.MemberOverload("timestamp_within", []*cel.Type{cel.TimestampType, str, str}, cel.BoolType, cel.FunctionBinding(within)),
			cel.MemberOverload("timestamp_within_zone", []*cel.Type{cel.TimestampType, str, str, str}, cel.BoolType, cel.FunctionBinding(within))),
		cel.Function("stats.mean", cel.Overload("stats_mean", []*cel.Type{list}, double, cel.UnaryBinding(ofNumbers(mean)))),
		cel.Function("stats.stddev", cel.Overload("stats_stddev", []*cel.Type{list}, double, cel.UnaryBinding(ofNumbers(stddev)))),
		cel.Function("stats.quantile", cel.Overload("stats_quantile", []*cel.Type{list, double}, double, cel.BinaryBinding(quantile))),
		cel.Function("stats.psi", cel.Overload("stats_psi", []*cel.Type{list, list}, double, cel.BinaryBinding(psi))),
		cel.Function("any",
			cel.MemberOverload("labels_any_string", []*cel.Type{strs, str}, cel.BoolType, cel.BinaryBinding(anyLabel)),
			cel.MemberOverload("labels_any_list", []*cel.Type{strs, strs}, cel.BoolType, cel.BinaryBinding(anyLabel))),
		cel.Function("values", cel.MemberOverload("labels_values", []*cel.Type{strs, str}, strs, cel.BinaryBinding(labelValues))),
		cel.Function("ref.tier", cel.Overload("ref_tier", []*cel.Type{str}, str, cel.UnaryBinding(refTier))),
	}
	return func(e *cel.Env) (*cel.Env, error) {
		var err error
		for _, opt := range opts {
			if e, err = opt(e); err != nil {
				return nil, err
			}
		}
		return e, nil
	}
}

// functionCost is what a call of one of our functions costs, by the sizes of its
// arguments; ok is false for any other function.
func functionCost(name string, size func(i int) uint64) (total uint64, ok bool) {
	mul := func(a, b uint64) uint64 {
		if a != 0 && b > math.MaxUint64/a {
			return math.MaxUint64
		}
		return a * b
	}
	switch name {
	case "glob":
		// At worst each byte of the text is compared with each of the pattern.
		return 1 + mul(min(size(0), maxGlobSubject), min(size(1), maxGlobBytes))/10, true
	case "any":
		// size(1) is the number of patterns, or the length of the one.
		return 1 + mul(min(size(0), maxLabels), min(size(1), maxLabelBytes))*100, true
	case "values":
		return 1 + min(size(0), maxLabels)*4, true
	case "stats.mean", "stats.stddev":
		return 1 + min(size(0), maxStatistics), true
	case "stats.psi":
		return 1 + 4*min(size(0), maxStatistics), true
	case "stats.quantile":
		return 1 + 8*min(size(0), maxStatistics), true // it sorts
	case "semver.compare", "cidr.contains":
		return 10, true
	case "within":
		return 20, true
	case "days", "hours", "ref.tier":
		return 2, true
	default:
		return 0, false
	}
}

// estimateFunction is the static bound of functionCost.
func estimateFunction(name string, target *cost.AstNode, args []cost.AstNode) *cost.CallEstimate {
	nodes := args
	if target != nil {
		nodes = append([]cost.AstNode{*target}, args...)
	}
	total, ok := functionCost(name, func(i int) uint64 {
		if i < len(nodes) {
			if est := nodes[i].ComputedSize(); est != nil {
				return est.Max
			}
			if est := (sizes{}).EstimateSize(nodes[i]); est != nil {
				return est.Max
			}
		}
		return math.MaxUint64
	})
	if !ok {
		return nil
	}
	est := &cost.CallEstimate{CostEstimate: cost.Estimate{Min: 1, Max: total}}
	switch name {
	case "values":
		est.ResultSize = &cost.SizeEstimate{Max: maxLabels}
	case "ref.tier":
		est.ResultSize = &cost.SizeEstimate{Max: 4}
	}
	return est
}

func tooLong(what string, n, limit int) ref.Val {
	return types.WrapErr(fmt.Errorf("%w: %s of %d; the limit is %d", ErrLimit, what, n, limit))
}

// texts returns the arguments as strings.
func texts(vals ...ref.Val) ([]string, ref.Val) {
	out := make([]string, len(vals))
	for i, v := range vals {
		s, ok := v.(types.String)
		if !ok {
			return nil, types.MaybeNoSuchOverloadErr(v)
		}
		out[i] = string(s)
	}
	return out, nil
}

func semverCompare(a, b ref.Val) ref.Val {
	vs, bad := texts(a, b)
	if bad != nil {
		return bad
	}
	for i, v := range vs {
		if len(v) > maxSemverBytes {
			return tooLong("a version", len(v), maxSemverBytes)
		}
		if !strings.HasPrefix(v, "v") {
			vs[i] = "v" + v
		}
		if !semver.IsValid(vs[i]) {
			return types.NewErr("%q is not a semantic version", v)
		}
	}
	return types.Int(semver.Compare(vs[0], vs[1]))
}

func cidrContains(network, ip ref.Val) ref.Val {
	vs, bad := texts(network, ip)
	if bad != nil {
		return bad
	}
	p, err := netip.ParsePrefix(vs[0])
	if err != nil {
		return types.NewErr("%.64q is not a network such as 10.0.0.0/8", vs[0])
	}
	a, err := netip.ParseAddr(vs[1])
	if err != nil {
		return types.NewErr("%.64q is not an IP address", vs[1])
	}
	return types.Bool(p.Contains(a.Unmap().WithZone("")))
}

func globs(text, pattern ref.Val) ref.Val {
	vs, bad := texts(text, pattern)
	switch {
	case bad != nil:
		return bad
	case len(vs[0]) > maxGlobSubject:
		return tooLong("a text for glob()", len(vs[0]), maxGlobSubject)
	case len(vs[1]) > maxGlobBytes:
		return tooLong("a pattern of glob()", len(vs[1]), maxGlobBytes)
	}
	return types.Bool(glob(vs[1], vs[0]))
}

func manyOf(unit time.Duration) func(ref.Val) ref.Val {
	return func(v ref.Val) ref.Val {
		n, ok := v.(types.Int)
		if !ok {
			return types.MaybeNoSuchOverloadErr(v)
		}
		if limit := types.Int(math.MaxInt64 / int64(unit)); n > limit || n < -limit {
			return types.NewErr("duration out of range")
		}
		return types.Duration{Duration: time.Duration(n) * unit}
	}
}

// within tells whether a time of day is in [from, to), or with from after to
// outside of [to, from).
func within(args ...ref.Val) ref.Val {
	at, ok := args[0].(types.Timestamp)
	if !ok {
		return types.MaybeNoSuchOverloadErr(args[0])
	}
	vs, bad := texts(args[1:]...)
	if bad != nil {
		return bad
	}
	zone := time.UTC
	if len(vs) == 3 {
		var err error
		if zone, err = time.LoadLocation(vs[2]); err != nil {
			return types.NewErr("%.64q is not a time zone", vs[2])
		}
	}
	var bounds [2]int
	for i := range bounds {
		t, err := time.Parse("15:04", vs[i])
		if err != nil {
			return types.NewErr("%.64q is not a time of day such as 22:00", vs[i])
		}
		bounds[i] = t.Hour()*60 + t.Minute()
	}
	local := at.In(zone)
	minute := local.Hour()*60 + local.Minute()
	if bounds[0] <= bounds[1] {
		return types.Bool(minute >= bounds[0] && minute < bounds[1])
	}
	return types.Bool(minute >= bounds[0] || minute < bounds[1])
}

// numbers reads a list of finite numbers, which must not be empty.
func numbers(v ref.Val) ([]float64, ref.Val) {
	l, ok := v.(traits.Lister)
	if !ok {
		return nil, types.MaybeNoSuchOverloadErr(v)
	}
	n, ok := l.Size().(types.Int)
	switch {
	case !ok || n == 0:
		return nil, types.NewErr("statistics of an empty list")
	case n > maxStatistics:
		return nil, tooLong("a list for statistics", int(n), maxStatistics)
	}
	out := make([]float64, n)
	for i := range out {
		switch x := l.Get(types.Int(i)).(type) {
		case types.Double:
			out[i] = float64(x)
		case types.Int:
			out[i] = float64(x)
		case types.Uint:
			out[i] = float64(x)
		case *types.Err:
			return nil, x
		default:
			return nil, types.NewErr("statistics of a list with a %s in it", x.Type().TypeName())
		}
		if math.IsNaN(out[i]) || math.IsInf(out[i], 0) {
			return nil, types.NewErr("statistics of a list with %v in it", out[i])
		}
	}
	return out, nil
}

func ofNumbers(f func([]float64) float64) func(ref.Val) ref.Val {
	return func(v ref.Val) ref.Val {
		xs, bad := numbers(v)
		if bad != nil {
			return bad
		}
		return finite(f(xs))
	}
}

func finite(x float64) ref.Val {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return types.NewErr("a statistic out of range")
	}
	return types.Double(x)
}

func mean(xs []float64) float64 {
	m := 0.0
	for i, x := range xs {
		m += (x - m) / float64(i+1)
	}
	return m
}

// stddev is that of the sample, by Welford's method (Technometrics 4, 1962); 0 of
// one number.
func stddev(xs []float64) float64 {
	m, sum := 0.0, 0.0
	for i, x := range xs {
		d := x - m
		m += d / float64(i+1)
		sum += d * (x - m)
	}
	if len(xs) < 2 {
		return 0
	}
	return math.Sqrt(sum / float64(len(xs)-1))
}

// quantile interpolates linearly between order statistics (Hyndman and Fan's
// type 7, The American Statistician 50, 1996).
func quantile(list, at ref.Val) ref.Val {
	xs, bad := numbers(list)
	if bad != nil {
		return bad
	}
	q, ok := at.(types.Double)
	if !ok || !(q >= 0 && q <= 1) {
		return types.NewErr("a quantile is from 0.0 to 1.0")
	}
	slices.Sort(xs)
	h := float64(q) * float64(len(xs)-1)
	i := int(h)
	if i+1 >= len(xs) {
		return types.Double(xs[len(xs)-1])
	}
	return finite(xs[i] + (h-float64(i))*(xs[i+1]-xs[i]))
}

// psiFloor stands for a bin without anything in it, which would make the index
// infinite.
const psiFloor = 1e-4

// psi is the population stability index of two histograms over the same bins,
// counts or shares: the sum over bins of (a-e) ln(a/e), where a and e are shares.
func psi(expected, actual ref.Val) ref.Val {
	es, bad := shares(expected)
	if bad != nil {
		return bad
	}
	as, bad := shares(actual)
	if bad != nil {
		return bad
	}
	if len(es) != len(as) {
		return types.NewErr("histograms of %d and %d bins", len(es), len(as))
	}
	sum := 0.0
	for i := range es {
		e, a := max(es[i], psiFloor), max(as[i], psiFloor)
		sum += (a - e) * math.Log(a/e)
	}
	return finite(sum)
}

func shares(v ref.Val) ([]float64, ref.Val) {
	xs, bad := numbers(v)
	if bad != nil {
		return nil, bad
	}
	total := 0.0
	for _, x := range xs {
		if x < 0 {
			return nil, types.NewErr("a histogram with a negative bin")
		}
		total += x
	}
	if total == 0 || math.IsInf(total, 0) {
		return nil, types.NewErr("a histogram of nothing")
	}
	for i := range xs {
		xs[i] /= total
	}
	return xs, nil
}

// labelList reads a list of labels.
func labelList(v ref.Val, what string, limit int) ([]string, ref.Val) {
	l, ok := v.(traits.Lister)
	if !ok {
		return nil, types.MaybeNoSuchOverloadErr(v)
	}
	n, ok := l.Size().(types.Int)
	if !ok || int(n) > limit {
		return nil, tooLong("a list of "+what+"s", int(n), limit)
	}
	vals := make([]ref.Val, n)
	for i := range vals {
		vals[i] = l.Get(types.Int(i))
	}
	out, bad := texts(vals...)
	for _, s := range out {
		if len(s) > maxLabelBytes {
			return nil, tooLong("a "+what, len(s), maxLabelBytes)
		}
	}
	return out, bad
}

func anyLabel(labels, patterns ref.Val) ref.Val {
	ls, bad := labelList(labels, "label", maxLabels)
	if bad != nil {
		return bad
	}
	var ps []string
	if s, ok := patterns.(types.String); !ok {
		if ps, bad = labelList(patterns, "pattern", maxPatterns); bad != nil {
			return bad
		}
	} else if ps = []string{string(s)}; len(s) > maxLabelBytes {
		return tooLong("a pattern", len(s), maxLabelBytes)
	}
	if len(ps) == 0 {
		return types.False
	}
	return types.Bool(slices.ContainsFunc(ls, func(l string) bool { return matchAny(ps, l) }))
}

func labelValues(labels, name ref.Val) ref.Val {
	ls, bad := labelList(labels, "label", maxLabels)
	if bad != nil {
		return bad
	}
	n, ok := name.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(name)
	}
	out := []string{}
	for _, l := range ls {
		if v, ok := strings.CutPrefix(l, string(n)+":"); ok {
			out = append(out, v)
		}
	}
	return types.DefaultTypeAdapter.NativeToValue(out)
}

// tiersOfRefs are the names of the tiers.
func tiersOfRefs() []string { return []string{"hot", "warm", "cold"} }

// refTier tells a ref's tier by its scheme.
func refTier(v ref.Val) ref.Val {
	uri, ok := v.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(v)
	}
	scheme, _, _ := strings.Cut(string(uri), "://")
	switch scheme {
	case "shm":
		return types.String("hot")
	case "file":
		return types.String("warm")
	case "s3":
		return types.String("cold")
	default:
		return types.NewErr("a ref of the scheme %.32q is of no tier", scheme)
	}
}
