package approval

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Limits of a directory.
const (
	MaxDirectoryBytes = 1 << 20
	MaxActors         = 10_000
	maxActorBytes     = 64
)

// Actor is a person or service that may be asked.
type Actor struct {
	Name  string   `yaml:"name" json:"name"` // letters, digits and . _ @ + -, at most 64 bytes
	Roles []string `yaml:"roles" json:"roles"`
	Team  string   `yaml:"team" json:"team,omitempty"`
	// NATS are the server's names for this actor's credentials (a user name, or the
	// public key of an nkey or JWT user), where they differ from Name.
	NATS []string `yaml:"nats" json:"nats,omitempty"`
}

// Directory maps actors to roles. It is configuration of each process that counts
// votes, not part of what voters can write. Read-only once made; the zero value
// and nil know nobody.
type Directory struct {
	byName map[string]Actor
	byNATS map[string]string
}

type directoryDocument struct {
	APIVersion string  `yaml:"apiVersion"`
	Kind       string  `yaml:"kind"`
	Actors     []Actor `yaml:"actors"`
}

// DirectoryVersion and DirectoryKind head a document of actors.
const (
	DirectoryVersion = "stokehold.dev/v1"
	DirectoryKind    = "Actors"
)

var (
	actorForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]*$`)
	roleForm  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
)

// ReadDirectory reads the document of actors in a file:
//
//	apiVersion: stokehold.dev/v1
//	kind: Actors
//	actors:
//	  - name: ann
//	    roles: [release-manager]
//	    team: late
//	    nats: [UCQ3...]
func ReadDirectory(path string) (*Directory, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: actors: %w", ErrConfig, err)
	}
	defer func() { _ = f.Close() }() // only read
	raw, err := io.ReadAll(io.LimitReader(f, MaxDirectoryBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%w: actors: %w", ErrConfig, err)
	}
	d, err := ParseDirectory(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// ParseDirectory reads a document of actors. Unknown fields, duplicate names and
// names that two actors claim are refused; all faults are in one error, which
// wraps ErrConfig.
func ParseDirectory(raw []byte) (*Directory, error) {
	if len(raw) > MaxDirectoryBytes {
		return nil, fmt.Errorf("%w: actors: more than %d bytes", ErrConfig, MaxDirectoryBytes)
	}
	var doc directoryDocument
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("%w: actors: %w", ErrConfig, err)
	}
	if err := dec.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: actors: more than one document", ErrConfig)
	}
	if doc.APIVersion != DirectoryVersion || doc.Kind != DirectoryKind {
		return nil, fmt.Errorf("%w: actors: apiVersion %q and kind %q: want %s and %s", ErrConfig, doc.APIVersion, doc.Kind, DirectoryVersion, DirectoryKind)
	}
	return NewDirectory(doc.Actors...)
}

// NewDirectory makes a directory of actors.
func NewDirectory(actors ...Actor) (*Directory, error) {
	d := &Directory{byName: map[string]Actor{}, byNATS: map[string]string{}}
	var faults []error
	bad := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: actors: "+format, append([]any{ErrConfig}, args...)...))
	}
	if len(actors) > MaxActors {
		bad("%d of them, at most %d", len(actors), MaxActors)
		actors = nil
	}
	for _, a := range actors {
		if err := checkActor(a.Name); err != nil {
			bad("%w", err)
			continue
		}
		if _, ok := d.byName[a.Name]; ok {
			bad("%s is there twice", a.Name)
		}
		for _, r := range a.Roles {
			if !roleForm.MatchString(r) {
				bad("%s: role %.80q: want lower-case letters, digits, . _ and -", a.Name, r)
			}
		}
		a.Roles, a.NATS = slices.Clone(a.Roles), slices.Clone(a.NATS)
		d.byName[a.Name] = a
	}
	// A name of the server's that leads to two people leads to nobody.
	for _, a := range actors {
		for _, user := range a.NATS {
			other, taken := d.byNATS[user]
			if _, named := d.byName[user]; user == "" || taken && other != a.Name || named && user != a.Name {
				bad("%s: nats %.80q is empty or another's", a.Name, user)
			}
			d.byNATS[user] = a.Name
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return d, nil
}

func checkActor(name string) error {
	if len(name) > maxActorBytes || !actorForm.MatchString(name) {
		return fmt.Errorf("name %.80q: want letters, digits and . _ @ + -, at most %d bytes", name, maxActorBytes)
	}
	return nil
}

// Lookup returns the actor of that name.
func (d *Directory) Lookup(name string) (Actor, bool) {
	if d == nil {
		return Actor{}, false
	}
	a, ok := d.byName[name]
	return a, ok
}

// OfNATS returns the actor whose credentials the NATS server calls user.
func (d *Directory) OfNATS(user string) (Actor, bool) {
	if d == nil {
		return Actor{}, false
	}
	if name, ok := d.byNATS[user]; ok {
		user = name
	}
	return d.Lookup(user)
}

// Len is the number of actors.
func (d *Directory) Len() int {
	if d == nil {
		return 0
	}
	return len(d.byName)
}

// may says why actor cannot decide about r; "" if they can.
func (d *Directory) may(actor string, r *Request) string {
	a, ok := d.Lookup(actor)
	switch {
	case !ok:
		return "nobody of that name is in the document of actors"
	case len(r.Roles) == 0:
		return ""
	case !slices.ContainsFunc(r.Roles, func(want string) bool { return slices.Contains(a.Roles, want) }):
		return fmt.Sprintf("needs one of the roles %s, has %s", strings.Join(r.Roles, ", "), orNone(a.Roles))
	}
	return ""
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// Facts is a source for governance.Facts.Actor: the roles and the team of the
// event's actor. Of an actor that is not in the directory nothing is known.
func (d *Directory) Facts(_ context.Context, _ *events.Event, known *governance.Actor) error {
	if a, ok := d.Lookup(known.Name); ok {
		known.Roles, known.Team = append([]string{}, a.Roles...), a.Team
	}
	return nil
}
