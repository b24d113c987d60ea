package parquet

import (
	"fmt"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
)

// project returns the tree of the fields that paths name, all if paths is nil.
func (t *tree) project(paths []string) (*tree, error) {
	if paths == nil {
		return t, nil
	}
	wanted := make(map[string]bool, len(paths))
	for _, p := range paths {
		wanted[p] = false
	}
	out := &tree{}
	var fields []arrow.Field
	for _, root := range t.roots {
		n := root.project(root.field.Name, wanted)
		if n == nil {
			continue
		}
		out.roots, fields = append(out.roots, n), append(fields, n.field)
		out.leaves = n.appendLeaves(out.leaves)
	}
	for _, p := range paths {
		if !wanted[p] {
			return nil, fmt.Errorf("parquet: scan: %w %.80q: name top-level fields, or fields of structs as in \"a.b\"", ErrColumn, p)
		}
	}
	md := t.schema.Metadata()
	out.schema = arrow.NewSchema(fields, &md)
	return out, nil
}

// project returns the node with those fields below it that are wanted, or nil. It
// marks the paths that it finds.
func (n *node) project(path string, wanted map[string]bool) *node {
	if _, ok := wanted[path]; ok {
		wanted[path] = true
		return n
	}
	if n.kind != structKind {
		return nil
	}
	var kept []*node
	for _, c := range n.children {
		if k := c.project(path+"."+c.field.Name, wanted); k != nil {
			kept = append(kept, k)
		}
	}
	if kept == nil {
		return nil
	}
	part := *n
	part.children = kept
	part.retype(nil)
	return &part
}

func (n *node) appendLeaves(leaves []*node) []*node {
	if n.kind == leafKind {
		return append(leaves, n)
	}
	for _, c := range n.children {
		leaves = c.appendLeaves(leaves)
	}
	return leaves
}

// find returns the leaf that a path of names leads to through structs alone.
func (t *tree) find(path string) (*node, error) {
	var look func(nodes []*node, rest string) *node
	look = func(nodes []*node, rest string) *node {
		for _, n := range nodes {
			switch name := n.field.Name; {
			case name == rest && n.kind == leafKind:
				return n
			case n.kind == structKind && strings.HasPrefix(rest, name+"."):
				if found := look(n.children, rest[len(name)+1:]); found != nil {
					return found
				}
			}
		}
		return nil
	}
	if n := look(t.roots, path); n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("parquet: predicate: %w %.80q: name a field that is not nested, or a field of a struct as in \"a.b\"", ErrColumn, path)
}
