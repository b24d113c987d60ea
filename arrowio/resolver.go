package arrowio

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
)

// Resolver finds the bytes that a ref names in one kind of place: another
// process's shared memory, another host, a store. Safe for concurrent use.
type Resolver interface {
	// Resolve returns the batch, checked as far as its place is not trusted; the
	// caller releases it. The error wraps ErrGone if the batch is not to be had here
	// (any more), ErrCorrupt if what is here is not the batch: in both cases another
	// resolver may serve.
	Resolve(ctx context.Context, ref Ref) (arrow.RecordBatch, error)
}

// ResolverFunc makes a Resolver of a function.
type ResolverFunc func(ctx context.Context, ref Ref) (arrow.RecordBatch, error)

// Resolve calls f.
func (f ResolverFunc) Resolve(ctx context.Context, ref Ref) (arrow.RecordBatch, error) {
	return f(ctx, ref)
}

// Resolvers tries its members in order, nearest first, and goes on to the next
// on any error but the context's. The error joins those of all members; of an
// empty list it is ErrGone.
type Resolvers []Resolver

// Resolve implements Resolver.
func (rs Resolvers) Resolve(ctx context.Context, ref Ref) (arrow.RecordBatch, error) {
	var errs []error
	for _, r := range rs {
		batch, err := r.Resolve(ctx, ref)
		if err == nil {
			return batch, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		errs = []error{ErrGone}
	}
	return nil, fmt.Errorf("arrowio: resolve %s: %w", ref.ID(), errors.Join(errs...))
}
