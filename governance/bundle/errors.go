package bundle

import (
	"errors"
	"fmt"
)

// Sentinels for the decisions a caller makes.
var (
	// ErrFormat: the bytes are no bundle. Wrapped by *FormatError.
	ErrFormat = errors.New("malformed policy bundle")
	// ErrTooLarge: a limit of this package is exceeded.
	ErrTooLarge = errors.New("policy bundle too large")
	// ErrSignature: a trusted key's signature does not fit the manifest, which was
	// altered after it was signed.
	ErrSignature = errors.New("bad signature on policy bundle")
	// ErrUntrusted: too few of the signatures are by trusted keys.
	ErrUntrusted = errors.New("policy bundle not signed by trusted keys")
	// ErrContent: a file is not the one whose digest was signed.
	ErrContent = errors.New("content of policy bundle was altered")
	// ErrDigest: the files compile to another set than the manifest names.
	ErrDigest = errors.New("policy bundle compiles to another set")
	// ErrRollback: the bundle is not later than the one it would replace. Wrapped by
	// *RollbackError.
	ErrRollback = errors.New("roll-back of policies refused")
	// ErrConflict: another bundle was applied meanwhile.
	ErrConflict = errors.New("policies were replaced meanwhile")
	// ErrNotFound: no bundle of that name, or version, is in the store.
	ErrNotFound = errors.New("no policy bundle")
	// ErrMissing: the store lost a bundle that this process has seen.
	ErrMissing = errors.New("policy bundle vanished from the store")
	// ErrUnavailable: the store does not answer.
	ErrUnavailable = errors.New("policy store unavailable")
	// ErrKey: a signing key or a list of trusted keys is malformed or unsafe.
	ErrKey = errors.New("invalid policy signing key")
	// ErrConfig: something required is missing in a configuration.
	ErrConfig = errors.New("invalid policy bundle configuration")
)

// FormatError is a fault in the text of a bundle. It wraps ErrFormat.
type FormatError struct {
	Line int    // 1-based, of the whole bundle; 0: of no one line
	Msg  string // what is wrong
}

func (e *FormatError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%v: %s", ErrFormat, e.Msg)
	}
	return fmt.Sprintf("%v: line %d: %s", ErrFormat, e.Line, e.Msg)
}

func (e *FormatError) Unwrap() error { return ErrFormat }

// RollbackError says which bundle would have been replaced by an earlier or
// another one of the same version. It wraps ErrRollback.
type RollbackError struct {
	Name      string
	Have, Got Position
}

func (e *RollbackError) Error() string {
	what := "is earlier than"
	switch e.Got.Compare(e.Have) {
	case 0:
		what = "has another content than the one of that version in force,"
	case 1:
		what = "begins another epoch than the one after"
	}
	return fmt.Sprintf("%v: version %s of bundle %s %s %s: apply a later version, or force it and give the reason", ErrRollback, e.Got, e.Name, what, e.Have)
}

func (e *RollbackError) Unwrap() error { return ErrRollback }
