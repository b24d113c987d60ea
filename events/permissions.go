package events

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Role is a kind of user of the NATS server that carries a bus.
type Role string

// The roles. None may use $JS.> or make streams or consumers of any name.
const (
	// RoleGate is a process that judges: it holds the stamp key and runs a Bus. It
	// alone may write the subjects of events, and cannot write policies.
	RoleGate Role = "gate"
	// RoleComponent reads events through the durable consumers that a gate made for
	// it, and writes nothing but acknowledgements. It cannot make consumers: one with
	// a delivery subject would have the server write where its user may not.
	RoleComponent Role = "component"
	// RoleAuditor reads the decision log.
	RoleAuditor Role = "auditor"
	// RolePolicyAuthor applies policy bundles, and puts that on record. It reads events,
	// the catalog, the registry, approvals and budgets, to try policies on.
	RolePolicyAuthor Role = "policy-author"
	// RoleBudgetAuthor proposes what runs may spend: a gate has it judged, and sets it.
	RoleBudgetAuthor Role = "budget-author"
	// RoleApprover is a person who answers requests for approval: it reads them, and
	// writes its own votes. It cannot make consumers either.
	RoleApprover Role = "approver"
)

// Access is a user of a bus, for Permissions.
type Access struct {
	Prefix string // Config.Prefix of the bus; default DefaultPrefix
	Role   Role
	// Durables are the consumers of a RoleComponent, at least one.
	Durables []string
	// Actor is who a RoleApprover votes as.
	Actor string
	// Inbox is the prefix of the user's inboxes, which its connections must use too
	// (nats.CustomInboxPrefix): whoever may read another's inboxes reads what that
	// one reads. Default _INBOX_ROLE, of an approver _INBOX_ROLE_ACTOR.
	Inbox string
}

// Grants are the subjects that a user may publish to and subscribe to; all
// others are refused.
type Grants struct {
	Publish, Subscribe []string
	Inbox              string // prefix for nats.CustomInboxPrefix
}

// Permissions returns the least subjects that a user needs. The error tells all
// faults at once.
func Permissions(a Access) (Grants, error) {
	inbox := "_INBOX_" + string(a.Role)
	if a.Role == RoleApprover {
		inbox += "_" + ActorToken(a.Actor)
	}
	a.Prefix, a.Inbox = cmp.Or(a.Prefix, DefaultPrefix), cmp.Or(a.Inbox, inbox)
	var faults []error
	faults = append(faults, checkPrefix(a.Prefix))
	if strings.ContainsAny(a.Inbox, " \t\r\n*>") || strings.HasSuffix(a.Inbox, ".") || strings.HasPrefix(a.Inbox, "$") {
		faults = append(faults, fmt.Errorf("inbox %q: want a subject without wildcards", a.Inbox))
	}
	if (len(a.Durables) > 0) != (a.Role == RoleComponent) {
		faults = append(faults, fmt.Errorf("role %q with %d durable consumers: a component names those it reads by, others none", a.Role, len(a.Durables)))
	}
	if (a.Actor != "") != (a.Role == RoleApprover) || len(a.Actor) > maxNameBytes {
		faults = append(faults, fmt.Errorf("role %q with the actor %.80q: an approver is one, of at most %d bytes, others none", a.Role, a.Actor, maxNameBytes))
	}
	for _, d := range a.Durables {
		faults = append(faults, checkDurable(d))
	}
	g := granting{n: names{a.Prefix}}
	switch a.Role {
	case RoleGate:
		g.gate()
	case RoleComponent:
		g.component(a.Durables)
	case RoleAuditor:
		g.reads(g.n.decisions())
	case RolePolicyAuthor:
		g.author(g.n.policies())
		// What was judged, and by which facts, to say what other policies would.
		g.reads(g.n.events())
		for _, b := range g.n.buckets() {
			g.readsBucket(b)
		}
	case RoleBudgetAuthor:
		g.allow("$SYS.REQ.USER.INFO") // who it is, where a document of actors says who people are
		g.writesBucket(g.n.proposals())
		g.readsBucket(g.n.budgets())
		g.readsBucket(g.n.usage())
	case RoleApprover:
		g.approver(a.Actor)
	default:
		faults = append(faults, fmt.Errorf("role %q: want one of %s, %s, %s, %s, %s, %s", a.Role, RoleGate, RoleComponent, RoleAuditor, RolePolicyAuthor, RoleBudgetAuthor, RoleApprover))
	}
	if err := errors.Join(faults...); err != nil {
		return Grants{}, &Error{Op: "permissions", Err: fmt.Errorf("%w: %w", ErrConfig, err)}
	}
	slices.Sort(g.publish)
	return Grants{Publish: slices.Compact(g.publish), Subscribe: []string{a.Inbox + ".>"}, Inbox: a.Inbox}, nil
}

// Names of what other packages keep on the same server. This package knows of
// them only here, so that a user's permissions are in one place.
func (n names) decisions() string { return n.stream("DECISIONS") }
func (n names) policies() string  { return n.prefix + "_policies" }
func (n names) budgets() string   { return n.prefix + "_budgets" }
func (n names) proposals() string { return n.prefix + "_budget_proposals" }
func (n names) usage() string     { return n.prefix + "_usage" }
func (n names) catalog() string   { return n.prefix + "_catalog" }
func (n names) approvals() string { return n.prefix + "_approvals" }
func (n names) buckets() []string {
	return []string{n.catalog(), n.prefix + "_models", n.approvals(), n.usage(), n.budgets()}
}

// granting collects subjects to publish to.
type granting struct {
	n       names
	publish []string
}

func (g *granting) allow(subjects ...string) { g.publish = append(g.publish, subjects...) }

// gate is what a Bus, the decision log, the catalog and the registry do.
func (g *granting) gate() {
	for _, word := range []string{eventSubject, topicSubject, deadLetterWord, heldWord} {
		g.allow(g.n.prefix + "." + word + ".>")
	}
	g.allow(g.n.probe(), g.n.prefix+".decision.*")
	c := Config{Prefix: g.n.prefix}
	streams := []string{g.n.topics(), g.n.decisions()}
	for _, s := range c.streams() {
		streams = append(streams, s.Name)
	}
	for _, s := range streams {
		g.keeps(s)
		g.reads(s)
		g.allow("$JS.ACK." + s + ".>")
	}
	for _, b := range g.n.buckets() {
		g.writesBucket(b)
	}
	// Entries that went into a block of the catalog leave nothing behind: no marks of
	// removal. Whoever may write the bucket could remove what is in it in any case.
	g.allow("$JS.API.STREAM.PURGE.KV_" + g.n.catalog())
	// Whoever is first makes the bucket of policies; what is in it is another's, and so is
	// what is in that of limits that are asked for.
	g.allow("$JS.API.STREAM.CREATE.KV_" + g.n.policies())
	g.readsBucket(g.n.policies())
	g.readsBucket(g.n.proposals())
}

func (g *granting) component(durables []string) {
	s := g.n.events()
	for _, d := range durables {
		g.allow("$JS.API.CONSUMER.INFO."+s+"."+d, "$JS.API.CONSUMER.MSG.NEXT."+s+"."+d, "$JS.ACK."+s+"."+d+".>")
	}
}

// author is who writes a bucket that the gate only reads, and puts on record what
// is written.
func (g *granting) author(b string) {
	g.writesBucket(b)
	// Opening the decision log makes sure that its stream is there and kept as long as
	// it must be.
	g.keeps(g.n.decisions())
	g.allow(g.n.prefix+".decision.allow", "$JS.API.STREAM.INFO."+g.n.decisions())
}

// approver is what one person's votes take: the keys of all requests are read as the
// subjects of the stream, since a consumer of it could deliver to any subject.
func (g *granting) approver(actor string) {
	s := "KV_" + g.n.approvals()
	g.allow("$KV."+g.n.approvals()+".vote.*."+ActorToken(actor), "$JS.API.STREAM.INFO."+s, "$JS.API.DIRECT.GET."+s+".>", "$SYS.REQ.USER.INFO")
}

// ActorToken writes an actor's name as one token of a subject or a key: letters,
// digits and - as they are, and any other byte as = and two hexadecimal digits.
func ActorToken(actor string) string {
	var b strings.Builder
	for i := range len(actor) {
		c := actor[i]
		if c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}

// keeps lets a user create a stream and change how it is kept; not delete or
// purge it, which would take what was judged and recorded away.
func (g *granting) keeps(stream string) {
	// The client asks for the limits of the account before it makes a bucket.
	g.allow("$JS.API.INFO", "$JS.API.STREAM.CREATE."+stream, "$JS.API.STREAM.UPDATE."+stream)
}

// reads lets a user read a stream by consumers.
func (g *granting) reads(stream string) {
	g.allow("$JS.API.STREAM.INFO."+stream, "$JS.API.CONSUMER.CREATE."+stream+".>", "$JS.API.CONSUMER.INFO."+stream+".*",
		"$JS.API.CONSUMER.MSG.NEXT."+stream+".*", "$JS.API.CONSUMER.DELETE."+stream+".*", "$JS.API.STREAM.MSG.GET."+stream)
}

func (g *granting) writesBucket(bucket string) {
	g.keeps("KV_" + bucket)
	g.readsBucket(bucket)
	g.allow("$KV." + bucket + ".>")
}

func (g *granting) readsBucket(bucket string) {
	s := "KV_" + bucket
	g.reads(s)
	g.allow("$JS.API.DIRECT.GET."+s, "$JS.API.DIRECT.GET."+s+".>", "$JS.FC."+s+".>")
}

// Config returns the permissions as a block of a nats-server configuration file,
// to go into the entry of a user.
func (g Grants) Config() string {
	list := func(subjects []string) string {
		var b strings.Builder
		for _, s := range subjects {
			fmt.Fprintf(&b, "    %q\n", s)
		}
		return b.String()
	}
	return "permissions {\n  publish { allow: [\n" + list(g.Publish) + "  ] }\n  subscribe { allow: [\n" + list(g.Subscribe) + "  ] }\n}\n"
}
