package governance

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/stokehold/stokehold/events"
)

// Options configures Load. The zero value is usable.
type Options struct {
	// Types gives the Go types of event data, which make field names and types
	// checkable, and the event types that policies may name. nil: data are
	// untyped and any type may be named.
	Types TypeSource
	// Default is the action for events that no policy matches on publish:
	// events.Allow (also for "") or events.Deny. Either way the decision is
	// logged.
	Default events.Action
	Limits  Limits
}

// Source is one policy file: any number of YAML documents.
type Source struct {
	Name string // for messages
	Data []byte
}

// Limits of policy files.
const (
	MaxFileBytes = 1 << 20
	MaxPolicies  = 10_000
	MaxRules     = 256 // of one policy
)

// LoadPaths loads policy files and the .yaml and .yml files of directories (not
// of their subdirectories), in lexical order.
func LoadPaths(opts Options, paths ...string) (*PolicySet, error) {
	srcs, err := ReadPaths(paths...)
	if err != nil {
		return nil, err
	}
	return Load(opts, srcs...)
}

// ReadPaths reads what LoadPaths loads, for a Load that takes policies from
// several places.
func ReadPaths(paths ...string) ([]Source, error) {
	var srcs []Source
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("governance: policies: %w", err)
		}
		files := []string{p}
		if info.IsDir() {
			entries, err := os.ReadDir(p)
			if err != nil {
				return nil, fmt.Errorf("governance: policies: %w", err)
			}
			files = files[:0]
			for _, e := range entries {
				if isPolicyFile(e.Name()) && !e.IsDir() {
					files = append(files, filepath.Join(p, e.Name()))
				}
			}
		}
		for _, f := range files {
			src, err := readSource(os.DirFS(filepath.Dir(f)), filepath.Base(f), f)
			if err != nil {
				return nil, err
			}
			srcs = append(srcs, src)
		}
	}
	return srcs, nil
}

// LoadFS loads the files of fsys that match the patterns (see fs.Glob), each
// once, in lexical order. No match is an error.
func LoadFS(opts Options, fsys fs.FS, patterns ...string) (*PolicySet, error) {
	srcs, err := ReadFS(fsys, patterns...)
	if err != nil {
		return nil, err
	}
	return Load(opts, srcs...)
}

// ReadFS reads the files of fsys that match the patterns, for a Load that takes
// policies from several places.
func ReadFS(fsys fs.FS, patterns ...string) ([]Source, error) {
	var names []string
	for _, p := range patterns {
		found, err := fs.Glob(fsys, p)
		if err != nil {
			return nil, fmt.Errorf("governance: pattern %q: %w", p, err)
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("governance: no policy file matches %q: %w", p, fs.ErrNotExist)
		}
		names = append(names, found...)
	}
	slices.Sort(names)
	var srcs []Source
	for _, n := range slices.Compact(names) {
		src, err := readSource(fsys, n, n)
		if err != nil {
			return nil, err
		}
		srcs = append(srcs, src)
	}
	return srcs, nil
}

func isPolicyFile(name string) bool {
	ext := path.Ext(name)
	return (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(name, ".")
}

func readSource(fsys fs.FS, name, shown string) (Source, error) {
	info, err := fs.Stat(fsys, name)
	if err != nil {
		return Source{}, fmt.Errorf("governance: policies: %w", err)
	}
	if info.Size() > MaxFileBytes {
		return Source{}, fmt.Errorf("governance: policy file %s has %d bytes; the limit is %d", shown, info.Size(), MaxFileBytes)
	}
	data, err := fs.ReadFile(fsys, name)
	if err != nil {
		return Source{}, fmt.Errorf("governance: policies: %w", err)
	}
	return Source{Name: shown, Data: data}, nil
}

// Load parses, checks and compiles policies. All faults are in the one
// *LoadError; no partial set is returned. No sources give an empty set, under
// which Options.Default decides on every event.
func Load(opts Options, srcs ...Source) (*PolicySet, error) {
	switch opts.Default {
	case "":
		opts.Default = events.Allow
	case events.Allow, events.Deny:
	default:
		return nil, fmt.Errorf("%w: Options.Default is %q; it must be allow or deny", ErrConfig, opts.Default)
	}
	l := &loader{opts: opts, table: newTypeTable(), seen: map[string]*policySpec{}, bindings: map[string]*bindingSpec{}, compilers: map[*dataType]*compiler{}}
	l.opts.Limits = opts.Limits.withDefaults()
	env, err := newEnv(l.table)
	if err != nil {
		return nil, err
	}
	l.env = env
	set := &PolicySet{def: opts.Default, limits: l.opts.Limits, types: opts.Types}
	var specs []policySpec
	for _, src := range srcs {
		specs = append(specs, l.parse(src)...)
	}
	l.applyBindings(specs)
	for _, spec := range specs {
		if p := l.compile(spec); p != nil {
			set.policies = append(set.policies, p)
		}
	}
	if len(set.policies) > MaxPolicies {
		l.fault(&PolicyError{Msg: fmt.Sprintf("%d policies; the limit is %d", len(set.policies), MaxPolicies)})
	}
	if l.faults != nil {
		return nil, l.faults
	}
	if err := set.seal(); err != nil {
		return nil, err
	}
	return set, nil
}

type loader struct {
	opts      Options
	table     *typeTable
	env       *cel.Env
	compilers map[*dataType]*compiler
	seen      map[string]*policySpec
	bindings  map[string]*bindingSpec // by policy
	faults    *LoadError
	// watch hears of the fields and words that are known at each place read; nil but
	// in the test that holds the published schema to the parser.
	watch func(path string, known []string)
}

func (l *loader) fault(e *PolicyError) {
	if l.faults == nil {
		l.faults = &LoadError{}
	}
	if len(l.faults.Faults) >= maxFaults {
		l.faults.More++
		return
	}
	l.faults.Faults = append(l.faults.Faults, e)
}

// compilerFor returns the compiler whose variable data has the given type.
func (l *loader) compilerFor(data *dataType) (*compiler, error) {
	if c, ok := l.compilers[data]; ok {
		return c, nil
	}
	opts := []cel.EnvOption{
		cel.Variable(declData, data.cel),
		cel.Variable(declPoint, cel.StringType),
		cel.Variable(declNow, cel.TimestampType),
	}
	for i := range factTypes {
		opts = append(opts, cel.Variable(factNames[i], factTypes[i].cel))
	}
	env, err := l.env.Extend(opts...)
	if err != nil {
		return nil, fmt.Errorf("governance: extend the expression environment: %w", err)
	}
	c := &compiler{env: env, data: data, limits: l.opts.Limits}
	l.compilers[data] = c
	return c, nil
}

// dataOf returns the data type that a policy's expressions are checked against:
// the Go type when all the event types it names have the same one.
func (l *loader) dataOf(spec *policySpec) *dataType {
	if l.opts.Types == nil || len(spec.Match.Types) == 0 {
		return untypedData
	}
	var common reflect.Type
	for _, name := range spec.Match.Types {
		if isGlob(name) {
			return untypedData
		}
		t, ok := l.opts.Types.Lookup(name)
		if !ok || t.Data == nil {
			return untypedData
		}
		rt := reflect.TypeOf(t.Data)
		for rt.Kind() == reflect.Pointer {
			rt = rt.Elem()
		}
		if common != nil && common != rt {
			return untypedData
		}
		common = rt
	}
	d := l.table.of(common)
	if d.kind != kindObject && d.kind != kindMap {
		return untypedData
	}
	return d
}

// compile compiles one policy; nil after faults.
func (l *loader) compile(spec policySpec) *policy {
	base, err := l.compilerFor(l.dataOf(&spec))
	if err != nil {
		l.fault(&PolicyError{File: spec.file, Line: spec.line, Policy: spec.Name, Msg: err.Error()})
		return nil
	}
	c := *base
	p := &policy{name: spec.Name, data: c.data, failure: spec.Failure, mode: spec.Mode}
	c.tainted = map[string]bool{}
	for _, pt := range spec.Match.Points {
		p.publish = p.publish || pt == string(events.OnPublish)
		p.receive = p.receive || pt == string(events.OnReceive)
	}
	ok := true
	build := func(name string, src *source, want *types.Type) *program {
		prg, faults := c.compile(src.text, want)
		for _, f := range faults {
			l.expressionFault(&spec, name, src, f)
			ok = false
		}
		if prg != nil {
			p.impure = p.impure || prg.impure
		}
		return prg
	}
	if p.params = l.params(&spec); p.params != nil {
		c.params = p.params.typ
		if err := c.extend(declParams, p.params.typ.cel); err != nil {
			l.fault(&PolicyError{File: spec.file, Line: spec.line, Policy: spec.Name, Field: "spec.params", Msg: err.Error()})
			return nil
		}
	}
	for _, v := range spec.Variables {
		prg := build(v.Name, v.at, nil)
		name := variablePrefix + v.Name
		t := types.DynType // after a fault, so that its readers are still checked
		if prg != nil {
			t = prg.out
			p.vars = append(p.vars, variable{name: name, prg: prg})
			c.tainted[name] = prg.tainted
		}
		if err := c.extend(name, t); err != nil {
			l.expressionFault(&spec, v.Name, v.at, compileFault{msg: err.Error()})
			ok = false
		}
	}
	for i := range spec.Rules {
		r := &spec.Rules[i]
		out := rule{id: spec.Name + "/" + r.Name, name: r.Name, message: r.Message, reason: r.Reason, action: r.Action, spec: r}
		if out.check = build(r.Name, r.at, types.BoolType); out.check != nil {
			out.tainted = out.check.tainted
		}
		if r.messageAt != nil {
			if out.dynamic = build(r.Name, r.messageAt, types.StringType); out.dynamic != nil {
				out.taintedMessage = out.dynamic.tainted
			}
		}
		if r.Redact != nil {
			var faults []*PolicyError
			out.paths, faults = r.Redact.compile(c.data)
			for _, f := range faults {
				f.File, f.Line, f.Policy, f.Rule = spec.file, r.line, spec.Name, r.Name
				l.fault(f)
				ok = false
			}
			p.redacts = p.redacts || len(out.paths) > 0
		}
		p.rules = append(p.rules, out)
	}
	if !ok {
		return nil
	}
	p.spec = spec
	raw, err := json.Marshal(&p.spec)
	if err != nil {
		l.fault(&PolicyError{File: spec.file, Line: spec.line, Policy: spec.Name, Msg: err.Error()})
		return nil
	}
	p.digest = sha256.Sum256(raw)
	return p
}

func (l *loader) expressionFault(spec *policySpec, name string, src *source, f compileFault) {
	line, column := src.position(f.line, f.column)
	msg := f.msg
	if f.line > 0 {
		msg = fmt.Sprintf("%s [expression %d:%d]", msg, f.line, f.column)
	}
	l.fault(&PolicyError{File: spec.file, Line: line, Column: column, Policy: spec.Name, Rule: name, Field: src.field, Msg: msg, Suggestion: f.suggestion})
}

var (
	nameRule   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)
	identRule  = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]{0,62}$`)
	reasonRule = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]{0,62}$`)
)

// validate fills in defaults and checks what the shape alone cannot.
func (l *loader) validate(d *document, spec *policySpec) {
	if spec.Name != "" && !nameRule.MatchString(spec.Name) {
		d.faultAt(d.nameLine, "metadata.name", "%q is not a name: lower-case letters, digits, - and . only, at most 63", spec.Name)
	}
	if prev := l.seen[spec.Name]; prev != nil && spec.Name != "" {
		d.faultAt(d.nameLine, "metadata.name", "policy %q is already defined at %s:%d", spec.Name, prev.file, prev.line)
	} else {
		l.seen[spec.Name] = spec
	}
	spec.Failure = cmp.Or(spec.Failure, failDeny)
	spec.Mode = cmp.Or(spec.Mode, Enforce)
	if len(spec.Match.Points) == 0 {
		spec.Match.Points = []string{string(events.OnPublish), string(events.OnReceive)}
	}
	for i, t := range spec.Match.Types {
		if l.opts.Types == nil || isGlob(t) {
			continue
		}
		if _, ok := l.opts.Types.Lookup(t); !ok {
			f := d.faultAt(d.lineOf("spec.match.types"), fmt.Sprintf("spec.match.types[%d]", i), "no event type %q is registered, so that the policy could never match it", t)
			if all, ok := l.opts.Types.(interface{ All() []events.Type }); ok {
				var names []string
				for _, et := range all.All() {
					names = append(names, et.Name)
				}
				f.Suggestion = closest(t, names)
			}
		}
	}
	if len(spec.Rules) == 0 {
		d.faultAt(d.lineOf("spec"), "spec.rules", "a policy needs at least one rule")
	}
	if len(spec.Rules) > MaxRules {
		d.faultAt(d.lineOf("spec.rules"), "spec.rules", "%d rules; the limit is %d", len(spec.Rules), MaxRules)
	}
}
