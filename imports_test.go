package stokehold_test

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/stokehold/stokehold"

// layers lists our packages from the bottom up. A package may import those
// before it, its own children and nothing else of ours.
var layers = []string{"python", "events", "arrowio", "governance", "tiers", "models", "stages", "workflows", "", "examples", "bench"}

// owners names the only package tree that may import a third-party library.
var owners = map[string]string{
	"go.temporal.io/sdk":                 "workflows",
	"cel.dev/cel-go":                     "governance",
	"github.com/minio/minio-go":          "tiers",
	"github.com/parquet-go/parquet-go":   "arrowio/parquet",
	"github.com/ThreeDotsLabs/watermill": "events",
	"google.golang.org/grpc":             "arrowio/flight",
	"golang.org/x/mod":                   "governance",
}

// bottom packages import nothing of ours but their own children.
var bottom = []string{"events", "arrowio"}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func TestImportsPointDownward(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for {
		var p goPackage
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		from := relative(p.ImportPath)
		for _, imp := range p.Imports {
			if imp == module || strings.HasPrefix(imp, module+"/") {
				checkLayer(t, from, relative(imp))
			}
			for lib, owner := range owners {
				if within(imp, lib) && !within(from, owner) && !strings.HasPrefix(from, "examples/ownworkflow") {
					t.Errorf("%s imports %s, which belongs to %s alone", from, imp, owner)
				}
			}
		}
	}
	if seen < 10 {
		t.Fatalf("saw only %d packages: the check looks at the wrong place", seen)
	}
}

func relative(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
}

func within(path, tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") }

func layer(path string) int {
	top, _, _ := strings.Cut(path, "/")
	return slices.Index(layers, top)
}

func checkLayer(t *testing.T, from, to string) {
	t.Helper()
	if strings.HasPrefix(from, "internal") || strings.HasPrefix(to, "internal") {
		return // test harnesses
	}
	f, o := layer(from), layer(to)
	if f < 0 || o < 0 {
		t.Errorf("%q imports %q: a package of no known layer; name it in this test", from, to)
		return
	}
	if f < o {
		t.Errorf("%q imports %q, which is above it", from, to)
	}
	if top, _, _ := strings.Cut(from, "/"); slices.Contains(bottom, top) && f != o {
		t.Errorf("%q imports %q, but %s imports nothing of ours", from, to, top)
	}
}
