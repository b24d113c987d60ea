package governance

import (
	"errors"
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"

	"github.com/stokehold/stokehold/events"
)

// Limits bound what one evaluation may take. Zero fields take the defaults.
// Cost is in cel-go's units: roughly one for each step of an expression and a
// tenth for each byte or element that a step walks over; tens of nanoseconds
// each.
type Limits struct {
	ExpressionCost uint64 // of one expression; default 500,000
	EventCost      uint64 // of all expressions evaluated for one event; default 2,000,000
	// FreeCost is the static bound up to which an expression without loops is
	// evaluated without run-time accounting, which costs more than such an
	// expression itself; default 100,000.
	FreeCost uint64
}

func (l Limits) withDefaults() Limits {
	if l.ExpressionCost == 0 {
		l.ExpressionCost = 500_000
	}
	if l.EventCost == 0 {
		l.EventCost = 2_000_000
	}
	if l.FreeCost == 0 {
		l.FreeCost = 100_000
	}
	return l
}

// Fixed limits of the expression language.
const (
	maxExpressionChars   = 4096    // code points of one expression
	maxExpressionNodes   = 5000    // after macro expansion
	maxExpressionDepth   = 64      // of nesting
	maxLoopNesting       = 3       // comprehensions inside comprehensions
	maxRegexChars        = 1024    // of a pattern, which must be a literal
	maxRegexProgram      = 2000    // instructions of a compiled pattern
	maxLiteralArg        = 256     // bytes of a literal replacement or separator
	maxFormatClauses     = 16      // of a format string
	maxSetLiteral        = 64      // elements of the literal list in sets.*
	maxFloatPrecision    = 64      // digits of a formatted floating-point number
	maxFreeJoins         = 8       // concatenations without run-time accounting
	maxVariableSize      = 1 << 20 // bytes or elements of a variable's value
	interruptEvery       = 16      // loop steps between deadline checks
	maxDataElements      = 32768   // of a list in 64 KiB of JSON
	maxAttributeBytes    = 8 << 10
	maxReasonBytes       = 512
	environmentVersion   = 2 // of the language below; part of every digest
	variablePrefix       = "variables."
	declEvent, declData  = "event", "data"
	declPoint, declNow   = "point", "now"
	declParams           = "params"
	maxCompileSuggestion = 2 // edit distance of a suggestion
)

// newEnv returns the environment that all expressions share.
func newEnv(table *typeTable) (*cel.Env, error) {
	env, err := cel.NewEnv(
		cel.OptionalTypes(),
		ext.Strings(ext.StringsMaxPrecision(maxFloatPrecision)),
		ext.Math(),
		ext.Sets(),
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(maxExpressionChars),
		cel.ParserRecursionLimit(maxExpressionDepth),
		cel.ExpressionNodeLimit(maxExpressionNodes),
		cel.RegexProgramSizeLimit(maxRegexProgram),
		cel.ASTValidators(
			cel.ValidateComprehensionNestingLimit(maxLoopNesting),
			cel.ValidateDurationLiterals(),
			cel.ValidateTimestampLiterals(),
			cel.ValidateRegexLiterals(),
		),
		func(e *cel.Env) (*cel.Env, error) {
			return cel.CustomTypeProvider(&provider{Provider: e.CELTypeProvider(), table: table})(e)
		},
		cel.Variable(declEvent, eventType.cel),
		functions(),
	)
	if err != nil {
		return nil, fmt.Errorf("governance: build the expression environment: %w", err)
	}
	return env, nil
}

// compiler compiles the expressions of one environment.
type compiler struct {
	env    *cel.Env
	data   *dataType
	params *dataType // nil: none
	limits Limits
	// tainted are the variables whose values come from event data or facts.
	tainted map[string]bool
}

// extend declares one more variable for the expressions compiled later.
func (c *compiler) extend(name string, t *types.Type) error {
	env, err := c.env.Extend(cel.Variable(name, t))
	if err != nil {
		return err
	}
	c.env = env
	return nil
}

// program is a compiled expression. Safe for concurrent use.
type program struct {
	src     string
	prg     cel.Program
	tracked bool // evaluated with a run-time cost limit and deadline
	impure  bool // reads more than the event: now, point or a fact
	tainted bool // reads event data or facts, itself or through a variable
	out     *types.Type
	reads   map[string]bool // variables that it names; of params "params.NAME"
}

// compileFault is a compile error at a place of the expression.
type compileFault struct {
	line, column int // 1-based, within the expression; 0 when unknown
	msg          string
	suggestion   string
}

// compile checks and plans an expression whose result must be of type want
// (nil: any).
func (c *compiler) compile(src string, want *types.Type) (*program, []compileFault) {
	if strings.TrimSpace(src) == "" {
		return nil, []compileFault{{msg: "the expression is empty"}}
	}
	parsed, iss := c.env.Parse(src)
	if iss.Err() != nil {
		return nil, c.issueFaults(iss, nil)
	}
	checked, iss := c.env.Check(parsed)
	if iss.Err() != nil {
		return nil, c.issueFaults(iss, parsed)
	}
	if want != nil && !checked.OutputType().IsExactType(want) {
		msg := fmt.Sprintf("the expression gives %s, not %s", cel.FormatCELType(checked.OutputType()), cel.FormatCELType(want))
		if checked.OutputType().IsExactType(types.DynType) {
			msg = fmt.Sprintf("the type of the expression is not known; make it %s, e.g. by a comparison or %s(...)", want, want)
		}
		return nil, []compileFault{{line: 1, column: 1, msg: msg}}
	}
	shape := inspect(checked)
	if len(shape.faults) > 0 {
		return nil, shape.faults
	}
	estimate, err := c.env.EstimateCost(checked, sizes{})
	if err != nil {
		return nil, []compileFault{{msg: fmt.Sprintf("cannot estimate its cost: %v", err)}}
	}
	p := &program{
		src:     src,
		tracked: shape.loops || shape.joins > maxFreeJoins || estimate.Max > c.limits.FreeCost,
		impure:  shape.idents[declNow] || shape.idents[declPoint],
		out:     checked.OutputType(),
		reads:   shape.idents,
	}
	for name := range shape.idents {
		fact := factIndex(name) >= 0
		p.impure = p.impure || fact
		p.tainted = p.tainted || fact || name == declData || c.tainted[name]
	}
	// OptTrackState and OptExhaustiveEval must never be set: cel-go then
	// ignores the cost limit.
	opts := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if p.tracked {
		opts = append(opts, cel.CostTracking(actualCost{}), cel.CostLimit(c.limits.ExpressionCost), cel.InterruptCheckFrequency(interruptEvery))
	}
	if p.prg, err = c.env.Program(checked, opts...); err != nil {
		return nil, []compileFault{{msg: err.Error()}}
	}
	return p, nil
}

func (c *compiler) issueFaults(iss *cel.Issues, parsed *cel.Ast) []compileFault {
	var out []compileFault
	for _, e := range iss.Errors() {
		f := compileFault{line: e.Location.Line(), column: e.Location.Column() + 1, msg: e.Message}
		// cel-go suggests for undeclared names itself, for fields it does not.
		if name, ok := strings.CutPrefix(e.Message, "undefined field '"); ok && parsed != nil {
			f.suggestion = c.suggestField(parsed, e.ExprID, strings.TrimSuffix(name, "'"))
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		out = append(out, compileFault{msg: iss.Err().Error()})
	}
	return out
}

// suggestField returns the field that was probably meant by the misspelt one at
// the given node: among the fields of the operand's type where the operand is a
// path from a variable, otherwise among all fields of event and data.
func (c *compiler) suggestField(parsed *cel.Ast, id int64, name string) string {
	var candidates []string
	ast.PostOrderVisit(parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.ID() != id {
			return
		}
		var operand ast.Expr
		switch {
		case e.Kind() == ast.SelectKind:
			operand = e.AsSelect().Operand()
		case e.Kind() == ast.CallKind && len(e.AsCall().Args()) > 0:
			operand = e.AsCall().Args()[0]
		default:
			return
		}
		if t := c.pathType(operand); t != nil {
			candidates = t.fieldNames()
		}
	}))
	if candidates == nil {
		candidates = eventType.fieldNames()
		seen := map[*dataType]bool{}
		var walk func(t *dataType)
		walk = func(t *dataType) {
			if t == nil || seen[t] {
				return
			}
			seen[t] = true
			candidates = append(candidates, t.fieldNames()...)
			walk(t.elem)
			for i := range t.fields {
				walk(t.fields[i].typ)
			}
		}
		walk(c.data)
	}
	return closest(name, candidates)
}

// pathType follows event.x.y, data.x.y and the like to the object type it names.
func (c *compiler) pathType(e ast.Expr) *dataType {
	switch e.Kind() {
	case ast.IdentKind:
		switch name := e.AsIdent(); name {
		case declEvent:
			return eventType
		case declData:
			return c.data
		case declParams:
			return c.params
		default:
			if i := factIndex(name); i >= 0 {
				return factTypes[i]
			}
		}
	case ast.SelectKind:
		return c.pathType(e.AsSelect().Operand()).member(e.AsSelect().FieldName())
	case ast.CallKind:
		call := e.AsCall()
		args := call.Args()
		switch {
		case call.FunctionName() == operators.Index && len(args) == 2:
			if t := c.pathType(args[0]); t != nil {
				return t.elem
			}
		case call.FunctionName() == operators.OptSelect && len(args) == 2:
			if name, ok := literalString(args[1]); ok {
				return c.pathType(args[0]).member(name)
			}
		}
	default: // nothing else is a path
	}
	return nil
}

// shape is what a walk over a checked expression finds.
type shape struct {
	loops  bool
	joins  int // + of strings, bytes, lists or operands of unknown type
	idents map[string]bool
	faults []compileFault
}

// inspect walks an expression and refuses calls whose work could not be bounded
// by accounting after the fact: cel-go charges a native function only when it
// has returned, so one such call on hostile data could hold a whole core.
func inspect(checked *cel.Ast) shape {
	s := shape{idents: map[string]bool{}}
	native := checked.NativeRep()
	fault := func(e ast.Expr, format string, args ...any) {
		f := compileFault{msg: fmt.Sprintf(format, args...)}
		if loc := native.SourceInfo().GetStartLocation(e.ID()); loc.Line() > 0 {
			f.line, f.column = loc.Line(), loc.Column()+1
		}
		s.faults = append(s.faults, f)
	}
	ast.PostOrderVisit(native.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.IdentKind:
			s.idents[e.AsIdent()] = true
		case ast.SelectKind:
			if sel := e.AsSelect(); sel.Operand().Kind() == ast.IdentKind && sel.Operand().AsIdent() == declParams {
				s.idents[declParams+"."+sel.FieldName()] = true
			}
		case ast.ComprehensionKind:
			s.loops = true
		case ast.StructKind:
			if name := e.AsStruct().TypeName(); strings.HasPrefix(name, "data.") || strings.HasPrefix(name, "stokehold.") {
				fault(e, "values of type %s cannot be made in an expression", name)
			}
		case ast.CallKind:
			call := e.AsCall()
			args := call.Args()
			if call.IsMemberFunction() {
				args = append([]ast.Expr{call.Target()}, args...)
			}
			checkCall(call.FunctionName(), e, args, fault)
			if call.FunctionName() == operators.OptSelect && len(args) == 2 && args[0].Kind() == ast.IdentKind && args[0].AsIdent() == declParams {
				if name, ok := literalString(args[1]); ok {
					s.idents[declParams+"."+name] = true
				}
			}
			if call.FunctionName() == operators.Add {
				switch native.GetType(e.ID()).Kind() {
				case types.IntKind, types.UintKind, types.DoubleKind, types.DurationKind, types.TimestampKind:
				default:
					s.joins++
				}
			}
		default: // constants, fields, lists and maps need no check of their own
		}
	}))
	return s
}

func checkCall(name string, e ast.Expr, args []ast.Expr, fault func(ast.Expr, string, ...any)) {
	literal := func(i, limit int, what string) string {
		if i >= len(args) {
			return ""
		}
		str, ok := literalString(args[i])
		switch {
		case !ok:
			fault(e, "the %s of %s() must be a literal string, so that its work is bounded", what, name)
		case len(str) > limit:
			fault(e, "the %s of %s() has %d bytes; the limit is %d", what, name, len(str), limit)
		}
		return str
	}
	switch name {
	case "matches":
		literal(1, maxRegexChars, "pattern")
	case "replace":
		literal(2, maxLiteralArg, "replacement")
	case "join":
		literal(1, maxLiteralArg, "separator")
	case "format":
		if s := literal(0, maxExpressionChars, "format"); strings.Count(s, "%")-2*strings.Count(s, "%%") > maxFormatClauses {
			fault(e, "a format string may have at most %d clauses", maxFormatClauses)
		}
	case "sets.contains", "sets.intersects", "sets.equivalent":
		for _, a := range args {
			if a.Kind() == ast.ListKind && a.AsList().Size() <= maxSetLiteral {
				return
			}
		}
		fault(e, "one argument of %s() must be a literal list of at most %d elements, so that its work is bounded", name, maxSetLiteral)
	case "within":
		literal(3, maxLiteralArg, "time zone")
	case "getFullYear", "getMonth", "getDayOfMonth", "getDate", "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes", "getSeconds", "getMilliseconds":
		literal(1, maxLiteralArg, "time zone")
	}
}

func literalString(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	s, ok := e.AsLiteral().(types.String)
	return string(s), ok
}

// sizes tells cel-go's cost estimator how large the inputs can be.
type sizes struct{}

var _ cost.Estimator = sizes{}

// EstimateCallCost implements cost.Estimator: but for functions of ours cel-go's
// own costs apply.
func (sizes) EstimateCallCost(function, _ string, target *cost.AstNode, args []cost.AstNode) *cost.CallEstimate {
	return estimateFunction(function, target, args)
}

// EstimateSize implements cost.Estimator. Variables have no estimate: their
// values can be larger than the event.
func (sizes) EstimateSize(n cost.AstNode) *cost.SizeEstimate {
	path := n.Path()
	if len(path) == 0 {
		return nil
	}
	var limit uint64
	switch path[0] {
	case declEvent:
		limit = maxAttributeBytes
	case declPoint:
		limit = 16
	case declData, declParams, "batch", "dataset", "model", "champion", "run", "actor", "worker", "budget":
		limit = events.MaxDataBytes
		if k := n.Type().Kind(); k == types.ListKind || k == types.MapKind {
			limit = maxDataElements
		}
	default:
		return nil
	}
	return &cost.SizeEstimate{Max: limit}
}

// actualCost charges calls by the size of what they were given and made. cel-go's
// own model does so only where the overload was known at compile time: to join
// two strings of untyped data costs it 1, whatever their length.
type actualCost struct{}

var _ cost.ActualCostEstimator = actualCost{}

// CallCost implements cost.ActualCostEstimator; nil leaves a call to cel-go.
func (actualCost) CallCost(function, _ string, args []ref.Val, result ref.Val) *uint64 {
	var total uint64
	switch function {
	case "matches":
		// An automaton steps through the text with as many states as the pattern
		// has; cel-go's own charge is a tenth of what that takes.
		total = valueSize(args[0]) * (1 + valueSize(args[len(args)-1])/4)
	case operators.Equals, operators.NotEquals:
		// cel-go charges the smaller size, and takes [data.list] for one element.
		if total = min(deepSize(args[0]), deepSize(args[1])); total == 0 {
			return nil
		}
	case "sets.contains", "sets.equivalent", "sets.intersects":
		return nil // charged by the product of sizes
	case operators.In, operators.OldIn:
		total = valueSize(args[len(args)-1])
	default:
		own, ok := functionCost(function, func(i int) uint64 {
			if i < len(args) {
				return valueSize(args[i])
			}
			return 0
		})
		if ok {
			return &own
		}
		for _, a := range args {
			total += valueSize(a)
		}
		total = (total + valueSize(result)) / 10
	}
	total++
	return &total
}

// deepSize is the number of elements of a list, map or object and of those within
// it, as far as a comparison may walk; 0 for anything else.
func deepSize(v ref.Val) (n uint64) {
	var walk func(v ref.Val)
	walk = func(v ref.Val) {
		switch v := v.(type) {
		case *object:
			n += uint64(len(v.vals))
			for _, field := range v.vals {
				switch field.(type) {
				case map[string]any, []any, *object:
					walk(types.DefaultTypeAdapter.NativeToValue(field))
				}
			}
		case traits.Mapper:
			for it := v.Iterator(); n < maxVariableSize && it.HasNext() == types.True; {
				n++
				walk(v.Get(it.Next()))
			}
		case traits.Lister:
			for it := v.Iterator(); n < maxVariableSize && it.HasNext() == types.True; {
				n++
				walk(it.Next())
			}
		case types.String:
			n += uint64(len(v)) / 10
		}
	}
	switch v.(type) {
	case *object, traits.Mapper, traits.Lister:
		walk(v)
	}
	return n
}

// valueSize is a value's length in bytes or elements; 0 for scalars.
func valueSize(v ref.Val) uint64 {
	switch v := v.(type) {
	case types.String:
		return uint64(len(v))
	case types.Bytes:
		return uint64(len(v))
	case traits.Sizer:
		if n, ok := v.Size().(types.Int); ok && n > 0 {
			return uint64(n)
		}
	}
	return 0
}

// closest returns the candidate nearest to name by edit distance, if it is near
// enough to be what was meant.
func closest(name string, candidates []string) string {
	best, bestDistance := "", maxCompileSuggestion+1
	for _, c := range candidates {
		if d := editDistance(strings.ToLower(name), strings.ToLower(c)); d < bestDistance && d < max(len(name), 2) {
			best, bestDistance = c, d
		}
	}
	return best
}

// editDistance is the Levenshtein distance with adjacent transpositions as one
// edit (optimal string alignment); inputs longer than 64 bytes count as far.
func editDistance(a, b string) int {
	const far = 1 << 10
	if len(a) > 64 || len(b) > 64 {
		return far
	}
	var prev2, prev, cur [65]int
	for j := range len(b) + 1 {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			c := 1
			if a[i-1] == b[j-1] {
				c = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+c)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev = prev, cur
	}
	return prev[len(b)]
}

// evalKind sorts an evaluation error. cel-go's own missing-key error has no
// exported type, so that its text is all there is.
func evalKind(err error) (msg string, kind error) {
	msg = err.Error()
	var missing *missingFieldError
	switch {
	case errors.As(err, &missing):
		return missing.Error(), ErrMissingField
	case strings.HasPrefix(msg, "no such key: "):
		return (&missingFieldError{name: strings.TrimPrefix(msg, "no such key: ")}).Error(), ErrMissingField
	case errors.Is(err, ErrFact):
		kind = ErrFact
	case errors.Is(err, ErrData):
		kind = ErrData
	case errors.Is(err, ErrLimit), strings.Contains(msg, "cost limit exceeded"), strings.Contains(msg, "operation interrupted"):
		kind = ErrLimit
	default:
		kind = ErrEval
	}
	return strings.TrimPrefix(msg, kind.Error()+": "), kind
}
