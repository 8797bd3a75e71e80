package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Code is the kind of an error, as the interfaces name it.
type Code string

// The codes.
const (
	InvalidMessage  Code = "INVALID_MESSAGE"  // the message is not of the form that its key needs
	KeyMissing      Code = "KEY_MISSING"      // the message lacks what its key is formed of
	InvalidArgument Code = "INVALID_ARGUMENT" // something else in the request is wrong; Field names it
	NotFound        Code = "NOT_FOUND"        // there is no such key
	StaleToken      Code = "STALE_TOKEN"      // the claim is not the caller's any more
	TooLarge        Code = "TOO_LARGE"        // the request exceeds a limit
	Unavailable     Code = "UNAVAILABLE"      // the store did not answer; the same attempt may ask again
	Overloaded      Code = "OVERLOADED"       // more waits than may; nothing was done: ask again later
	Indeterminate   Code = "INDETERMINATE"    // the caller left before the answer; the same attempt may ask again
)

// Codes are all codes, for tables that must cover them.
func Codes() []Code {
	return []Code{InvalidMessage, KeyMissing, InvalidArgument, NotFound, StaleToken, TooLarge, Unavailable, Overloaded, Indeterminate}
}

// Error says why a call was not answered. It is never a decision.
type Error struct {
	Code    Code
	Message string

	// Field is the part of the request that is wrong, such as consumer or token; empty where
	// it is none.
	Field string

	// RetryAfter is when trying again is worth it; zero where it is not.
	RetryAfter time.Duration

	// ofMessage: the error is about the message's content, which onMissing speaks of.
	ofMessage bool
	cause     error
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Unwrap returns what lies beneath: an error of the store or of the key.
func (e *Error) Unwrap() error { return e.cause }

// RetryAfter is what a caller is told to wait while the store is down or busy: long enough for a
// failover to make progress, short against any lease or ttl.
const RetryAfter = time.Second

func keyError(err error) error {
	e := &Error{Message: err.Error(), cause: err}
	var consumer *policy.ConsumerError
	var missing *key.MissingError
	switch {
	case errors.As(err, &consumer):
		e.Code, e.Field = InvalidArgument, "consumer"
	case errors.As(err, &missing):
		e.Code, e.Field, e.ofMessage = KeyMissing, missing.What, true
		e.Message += "; the policy forms the message's key of it"
	default:
		e.Code, e.ofMessage = InvalidMessage, true
		var malformed *key.MalformedError
		if errors.As(err, &malformed) {
			e.Field = malformed.What
		}
	}
	return e
}

// storeError is for operations whose outcome is not known, and for those that were not accepted.
func storeError(err error) error {
	code := Unavailable
	if errors.Is(err, store.ErrOverloaded) {
		// Its own code, which FailOpen does not speak of: whoever is refused for the load comes
		// again, and is not let through unchecked.
		code = Overloaded
	}
	return &Error{Code: code, Message: err.Error(), RetryAfter: RetryAfter, cause: err}
}

// outcomeError is for an outcome that the operation cannot have: a defect of a driver, which
// must not decide anything.
func outcomeError(o store.Outcome) error {
	return storeError(fmt.Errorf("%w: the driver answered outcome %d, which the operation cannot have", store.ErrUnavailable, o))
}

func indeterminate(ctx context.Context) error {
	return &Error{
		Code:       Indeterminate,
		Message:    "the caller left before the answer, which may or may not have taken effect; ask again with the same attempt",
		RetryAfter: RetryAfter,
		cause:      context.Cause(ctx),
	}
}

// invalidArgument takes the verbs of fmt.Errorf.
func invalidArgument(fieldName, format string, args ...any) error {
	err := fmt.Errorf(fieldName+": "+format, args...)
	return &Error{Code: InvalidArgument, Field: fieldName, Message: err.Error(), cause: errors.Unwrap(err)}
}
