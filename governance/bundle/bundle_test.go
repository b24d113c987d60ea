package bundle_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/bundle"
)

var created = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// policy is a file of one policy that denies events of a type whose subject is not
// among those allowed.
func policy(name, typ string, subjects ...string) governance.Source {
	list := "'" + strings.Join(subjects, "', '") + "'"
	return governance.Source{Name: name + ".yaml", Data: fmt.Appendf(nil, `apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: %s}
spec:
  match: {types: [%s]}
  rules:
    - name: subject
      expression: "event.subject in [%s]"
      message: the subject is not allowed
`, name, typ, list)}
}

func key(t testing.TB, name string) *bundle.SigningKey {
	t.Helper()
	k, err := bundle.NewSigningKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func trust(t testing.TB, keys ...*bundle.SigningKey) *bundle.Trust {
	t.Helper()
	var lines []string
	for _, k := range keys {
		lines = append(lines, k.Public())
	}
	tr, err := bundle.NewTrust(0, lines...)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func draft(version uint64, sources ...governance.Source) bundle.Draft {
	if len(sources) == 0 {
		sources = []governance.Source{policy("subjects", "batch.published", "a")}
	}
	return bundle.Draft{Position: bundle.Position{Version: version}, Created: created, Author: "alice", Sources: sources}
}

func create(t testing.TB, d bundle.Draft, keys ...*bundle.SigningKey) *bundle.Bundle {
	t.Helper()
	b, err := bundle.Create(d, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestABundleReadsAsItWasMade(t *testing.T) {
	k := key(t, "alice")
	d := draft(7, policy("b", "batch.published", "x"), policy("a", "model.promoted", "y"))
	d.Reason, d.Default = "the first of the year", events.Deny
	made := create(t, d, k)
	b, err := bundle.Open(made.Bytes(), trust(t, k))
	if err != nil {
		t.Fatal(err)
	}
	if b.Name != bundle.DefaultName || b.Position != (bundle.Position{Version: 7}) || !b.Created.Equal(created) || b.Author != "alice" ||
		b.Reason != d.Reason || b.Default != events.Deny || len(b.Signers) != 1 || b.Signers[0] != k.ID() {
		t.Errorf("%+v", b.Manifest)
	}
	srcs := b.Sources()
	if len(srcs) != 2 || srcs[0].Name != "default@7:a.yaml" || !bytes.Equal(srcs[1].Data, d.Sources[0].Data) {
		t.Errorf("sources %v", srcs)
	}
	set, err := b.Load(t.Context(), nil)
	if err != nil || set.Digest() != b.Digest || set.Default() != events.Deny {
		t.Errorf("set %v, %v", set, err)
	}
	// What a person sees of it.
	head, _, _ := strings.Cut(string(b.Bytes()), "-- a.yaml --")
	for _, want := range []string{"stokehold.dev/bundle/v1\nname default\nepoch 0\nversion 7\ncreated 2026-03-01T12:00:00Z\nauthor alice\nreason the first of the year\ndefault deny\n", "\n— alice "} {
		if !strings.Contains(head, want) {
			t.Errorf("the head lacks %q:\n%s", want, head)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	k, other := key(t, "alice"), key(t, "mallory")
	good := string(create(t, draft(7), k).Bytes())
	replace := func(from, to string) string {
		t.Helper()
		if !strings.Contains(good, from) {
			t.Fatalf("no %q in %s", from, good)
		}
		return strings.Replace(good, from, to, 1)
	}
	resigned := func(from, to string) string { // by a trusted key, as a faulty tool would
		return string(bundle.Resign(t, k, replace(from, to)))
	}
	mine := trust(t, k)
	for name, c := range map[string]struct {
		data  string
		trust *bundle.Trust
		want  error
		text  string
	}{
		"a tampered version":         {replace("version 7", "version 8"), mine, bundle.ErrSignature, "altered after it was signed"},
		"a tampered author":          {replace("author alice", "author mallo"), mine, bundle.ErrSignature, k.ID()},
		"an unknown key":             {good, trust(t, other), bundle.ErrUntrusted, "signed by " + k.ID()},
		"a key of the same name":     {good, trust(t, key(t, "alice")), bundle.ErrUntrusted, "add the signer's to the list"},
		"no trusted keys":            {good, &bundle.Trust{}, bundle.ErrUntrusted, "the trusted keys are none"},
		"nil trust":                  {good, nil, bundle.ErrUntrusted, ""},
		"altered content":            {replace("in ['a']", "in ['b']"), mine, bundle.ErrContent, "subjects.yaml is not the one that was signed"},
		"cut content":                {good[:len(good)-9], mine, bundle.ErrContent, "cut short"},
		"more content":               {good + "x", mine, bundle.ErrContent, "1 bytes after the last file"},
		"a renamed file":             {replace("-- subjects.yaml --", "-- objects.yaml --"), mine, bundle.ErrContent, ""},
		"a broken signature":         {replace("— alice ", "— alice A"), mine, bundle.ErrFormat, ""},
		"nothing":                    {"", mine, bundle.ErrFormat, "is this a bundle?"},
		"a policy file":              {string(draft(1).Sources[0].Data), mine, bundle.ErrFormat, "is this a bundle?"},
		"too much":                   {strings.Repeat("x", bundle.MaxBytes+1), mine, bundle.ErrTooLarge, ""},
		"an endless manifest":        {strings.Repeat("x\n", 1<<19), mine, bundle.ErrTooLarge, ""},
		"many signatures":            {replace("\n— alice", strings.Repeat("\n— a b", 20)+"\n— alice"), mine, bundle.ErrTooLarge, "21 signatures"},
		"an unknown field":           {resigned("author alice", "author alice\nteam ops"), mine, bundle.ErrFormat, `line 7: unknown field "team"`},
		"another format":             {resigned("bundle/v1", "bundle/v2"), mine, bundle.ErrFormat, "line 1: want"},
		"a missing field":            {resigned("author alice\n", ""), mine, bundle.ErrFormat, `missing field "author"`},
		"a field twice":              {resigned("version 7", "version 7\nversion 7"), mine, bundle.ErrFormat, "version is there twice"},
		"another spelling":           {resigned("version 7", "version 07"), mine, bundle.ErrFormat, "one spelling"},
		"another order":              {resigned("epoch 0\nversion 7", "version 7\nepoch 0"), mine, bundle.ErrFormat, "one spelling"},
		"version 0":                  {resigned("version 7", "version 0"), mine, bundle.ErrFormat, "versions begin at 1"},
		"a huge version":             {resigned("version 7", "version 99999999999999999999"), mine, bundle.ErrFormat, "version:"},
		"an epoch without a reason":  {resigned("epoch 0", "epoch 1"), mine, bundle.ErrFormat, "why it was rolled back"},
		"a time of day elsewhere":    {resigned("T12:00:00Z", "T13:00:00+01:00"), mine, bundle.ErrFormat, "one spelling"},
		"an unknown default":         {resigned("default allow", "default maybe"), mine, bundle.ErrFormat, `default "maybe"`},
		"a path that leads out":      {resigned("subjects.yaml\n", "../etc/subjects.yaml\n"), mine, bundle.ErrFormat, "relative path"},
		"no files":                   {resigned("file ", "reason "), mine, bundle.ErrFormat, ""},
		"a control character inside": {resigned("author alice", "author al\u009bice"), mine, bundle.ErrFormat, "author: want one line"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bundle.Open([]byte(c.data), c.trust)
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("got %v\nwant %v with %q", err, c.want, c.text)
			}
		})
	}
}

func TestALoadedSetIsHeldToTheDigest(t *testing.T) {
	k := key(t, "alice")
	b := create(t, draft(1), k)
	lying := strings.Replace(string(b.Bytes()), b.Digest, "sha256:"+strings.Repeat("0", 64), 1)
	opened, err := bundle.Open(bundle.Resign(t, k, lying), trust(t, k))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opened.Load(t.Context(), nil); !errors.Is(err, bundle.ErrDigest) {
		t.Errorf("got %v", err)
	}
	// Of another version of the language, the digest is not ours to compute.
	later := strings.Replace(lying, fmt.Sprintf("language %d", governance.Language), fmt.Sprintf("language %d", governance.Language+1), 1)
	if opened, err = bundle.Open(bundle.Resign(t, k, later), trust(t, k)); err != nil {
		t.Fatal(err)
	}
	if _, err := opened.Load(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestCreateRefuses(t *testing.T) {
	k := key(t, "alice")
	broken := governance.Source{Name: "broken.yaml", Data: []byte("kind: Policy\n")}
	for name, c := range map[string]struct {
		change func(*bundle.Draft)
		want   error
	}{
		"policies that do not load": {func(d *bundle.Draft) { d.Sources = append(d.Sources, broken) }, governance.ErrPolicy},
		"no author":                 {func(d *bundle.Draft) { d.Author = "" }, bundle.ErrFormat},
		"an author of two lines":    {func(d *bundle.Draft) { d.Author = "a\nname b" }, bundle.ErrFormat},
		"no version":                {func(d *bundle.Draft) { d.Position = bundle.Position{} }, bundle.ErrFormat},
		"a name with a dot":         {func(d *bundle.Draft) { d.Name = "a.b" }, bundle.ErrFormat},
		"two files of a name":       {func(d *bundle.Draft) { d.Sources = append(d.Sources, governance.Source{Name: "./subjects.yaml"}) }, bundle.ErrFormat},
		"no files":                  {func(d *bundle.Draft) { d.Sources = nil }, bundle.ErrFormat},
		"a roll-back without why":   {func(d *bundle.Draft) { d.Position.Epoch = 1 }, bundle.ErrFormat},
		"no time":                   {func(d *bundle.Draft) { d.Created = time.Time{} }, bundle.ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			d := draft(1)
			c.change(&d)
			if _, err := bundle.Create(d, k); !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := bundle.Create(draft(1)); !errors.Is(err, bundle.ErrKey) {
		t.Errorf("without a key: %v", err)
	}
}

func TestQuorum(t *testing.T) {
	a, b, c := key(t, "alice"), key(t, "bob"), key(t, "carol")
	two, err := bundle.ParseTrust([]byte("# who decides\nquorum 2\n" + a.Public() + "\n\n" + b.Public() + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	one := create(t, draft(1), a)
	if _, err := bundle.Open(one.Bytes(), two); !errors.Is(err, bundle.ErrUntrusted) || !strings.Contains(err.Error(), "1 of 2 needed") {
		t.Errorf("one signature: %v", err)
	}
	stranger, err := one.CoSign(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Open(stranger.Bytes(), two); !errors.Is(err, bundle.ErrUntrusted) {
		t.Errorf("a stranger's signature: %v", err)
	}
	again, err := one.CoSign(a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Open(again.Bytes(), two); !errors.Is(err, bundle.ErrUntrusted) {
		t.Errorf("the same signature twice: %v", err)
	}
	both, err := stranger.CoSign(b)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := bundle.Open(both.Bytes(), two); err != nil || len(got.Signers) != 2 {
		t.Errorf("both: %v", err)
	}
}

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "policy.key")
	k, err := bundle.OpenSigningKey(path, "alice")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := bundle.OpenSigningKey(path, "bob"); err != nil || again.ID() != k.ID() {
		t.Errorf("%v, %v", again, err)
	}
	if err := k.Write(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("overwritten: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", k, k, k, k); strings.Contains(text, "PRIVATE") {
		t.Errorf("the secret shows: %s", text)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.ReadSigningKey(path); !errors.Is(err, bundle.ErrKey) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by others: %v", err)
	}
	list := filepath.Join(dir, "trusted")
	if err := bundle.WriteTrust(list, k.Public()); err != nil {
		t.Fatal(err)
	}
	if tr, err := bundle.TrustFile(list)(); err != nil || len(tr.Keys()) != 1 || tr.Keys()[0] != k.ID() {
		t.Errorf("%v, %v", tr, err)
	}
	if err := os.Chmod(list, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.TrustFile(list)(); !errors.Is(err, bundle.ErrKey) || !strings.Contains(err.Error(), "go-w") {
		t.Errorf("writable by others: %v", err)
	}
	for name, text := range map[string]string{
		"nonsense": "hello", "a secret key": "PRIVATE+KEY+a+00000000+AAAA", "twice": k.Public() + "\n" + k.Public(),
		"a quorum too large": "quorum 2\n" + k.Public(), "a quorum of none": "quorum 0\n" + k.Public(), "two quorums": "quorum 1\nquorum 1\n" + k.Public(),
	} {
		if _, err := bundle.ParseTrust([]byte(text)); !errors.Is(err, bundle.ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzOpen: whatever opens has one spelling, and its files are those that were
// signed; nothing panics.
func FuzzOpen(f *testing.F) {
	k, err := bundle.NewSigningKey("fuzz")
	if err != nil {
		f.Fatal(err)
	}
	tr := trust(f, k)
	for _, d := range []bundle.Draft{draft(1), draft(7, policy("a", "batch.published", "x"), policy("b", "model.promoted"))} {
		f.Add(create(f, d, k).Bytes())
	}
	f.Add([]byte("stokehold.dev/bundle/v1\n\n— a b\n\n-- x --\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, in := range [][]byte{data, bundle.TryResign(k, data)} {
			b, err := bundle.Open(in, tr)
			if err != nil {
				for _, want := range []error{bundle.ErrFormat, bundle.ErrTooLarge, bundle.ErrSignature, bundle.ErrUntrusted, bundle.ErrContent} {
					if errors.Is(err, want) {
						err = nil
						break
					}
				}
				if err != nil {
					t.Fatalf("an error of no kind: %v", err)
				}
				continue
			}
			if !bytes.Equal(b.Bytes(), in) {
				t.Fatal("opened as something else")
			}
			again, err := b.CoSign(k)
			if err != nil || again.Digest != b.Digest || len(again.Sources()) != len(b.Files) {
				t.Fatalf("cannot be signed again: %v", err)
			}
		}
	})
}
