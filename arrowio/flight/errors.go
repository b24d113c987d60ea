package flight

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stokehold/stokehold/arrowio"
)

// Sentinels for the decisions a caller makes. arrowio.ErrGone (the host does not
// have the batch) and arrowio.ErrCorrupt are wrapped too.
var (
	// ErrDown means: the host cannot be reached, does not answer in time, or is
	// busy. Later it may.
	ErrDown = errors.New("flight host is down")
	// ErrRefused means: the host did not accept the token or certificate, or is no
	// server of this kind, or this process refuses to talk to it in the clear.
	ErrRefused = errors.New("refused")
	// ErrTooLarge means: the batch is over a limit of the client or the server.
	ErrTooLarge = errors.New("batch is too large for a message")
	// ErrSchema means: the host's dataset of that name has another schema.
	ErrSchema = errors.New("dataset has another schema")
	// ErrTicket means: the ticket is malformed.
	ErrTicket = errors.New("malformed ticket")
	// ErrMeta means: the metadata that came with a batch is malformed.
	ErrMeta = errors.New("malformed batch metadata")
	// ErrClosed means: the client or server is closed.
	ErrClosed = errors.New("closed")
	// ErrConfig means: the configuration cannot be used.
	ErrConfig = errors.New("bad flight configuration")
)

// Error says which host failed at what. Err wraps a sentinel.
type Error struct {
	Op    string // "resolve", "read", "describe"
	Host  string // the flight URI
	Batch string // DATASET#SEQUENCE, or DATASET
	Err   error
}

func (e *Error) Error() string {
	return fmt.Sprintf("flight: %s %s from %s: %v", e.Op, e.Batch, e.Host, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// fromStatus turns what gRPC gives into an error that wraps a sentinel. ctx is
// the caller's: its end is reported as such.
func fromStatus(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	var is error
	switch st.Code() {
	case codes.NotFound:
		is = arrowio.ErrGone
	case codes.DataLoss:
		is = arrowio.ErrCorrupt
	case codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented:
		is = ErrRefused
	case codes.ResourceExhausted:
		is = ErrTooLarge
	case codes.FailedPrecondition:
		is = ErrSchema
	case codes.InvalidArgument:
		is = ErrTicket
	default:
		is = ErrDown
	}
	return fmt.Errorf("%w: %s: %.500s", is, st.Code(), st.Message())
}
