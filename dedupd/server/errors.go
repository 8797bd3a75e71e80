package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dedupd/dedup-operator/dedupd/engine"
)

// Codes of what goes wrong before a request reaches the engine.
const (
	CodeMethodNotAllowed engine.Code = "METHOD_NOT_ALLOWED" // the path exists, with other methods
	CodeTimeout          engine.Code = "TIMEOUT"            // the request did not arrive in time
	CodeInternal         engine.Code = "INTERNAL"           // a bug of ours
)

// answerOf is how a code travels.
type answerOf struct {
	http int
	grpc codes.Code
}

// answers is the one table from code to status. A test holds it complete.
var answers = map[engine.Code]answerOf{
	engine.InvalidMessage:  {http.StatusBadRequest, codes.InvalidArgument},
	engine.KeyMissing:      {http.StatusBadRequest, codes.InvalidArgument},
	engine.InvalidArgument: {http.StatusBadRequest, codes.InvalidArgument},
	engine.NotFound:        {http.StatusNotFound, codes.NotFound},
	engine.StaleToken:      {http.StatusConflict, codes.FailedPrecondition},
	engine.TooLarge:        {http.StatusRequestEntityTooLarge, codes.ResourceExhausted},
	engine.Unavailable:     {http.StatusServiceUnavailable, codes.Unavailable},
	engine.Overloaded:      {http.StatusServiceUnavailable, codes.Unavailable}, // not ResourceExhausted: that is TooLarge, which no retry helps
	engine.Indeterminate:   {http.StatusServiceUnavailable, codes.Unavailable},
	CodeUnauthenticated:    {http.StatusUnauthorized, codes.Unauthenticated},
	CodePermissionDenied:   {http.StatusForbidden, codes.PermissionDenied},
	CodeMethodNotAllowed:   {http.StatusMethodNotAllowed, codes.Unimplemented},
	CodeTimeout:            {http.StatusRequestTimeout, codes.DeadlineExceeded},
	CodeInternal:           {http.StatusInternalServerError, codes.Internal},
}

// asError finds the engine's error in err, which is not nil. Anything else is a bug of ours, whose text is not
// the caller's business.
func asError(err error) *engine.Error {
	var e *engine.Error
	if errors.As(err, &e) {
		if _, known := answers[e.Code]; known {
			return e
		}
	}
	return errInternal
}

// errInternal is what a caller is told of a bug.
var errInternal = &engine.Error{Code: CodeInternal, Message: "an internal error; the log of dedupd has more"}

// problem is an RFC 9457 problem. Its type is about:blank, so its title is the status' own;
// code is what programs tell problems apart by.
type problem struct {
	Type   string      `json:"type"`
	Title  string      `json:"title"`
	Status int         `json:"status"`
	Detail string      `json:"detail"`
	Code   engine.Code `json:"code"`
	Field  string      `json:"field,omitempty"`
}

// writeProblem answers err over HTTP.
func writeProblem(w http.ResponseWriter, err error) {
	e := asError(err)
	code := answers[e.Code].http
	body, _ := json.Marshal(problem{ // strings and a number: cannot go wrong
		Type:   "about:blank",
		Title:  http.StatusText(code),
		Status: code,
		Detail: e.Message,
		Code:   e.Code,
		Field:  e.Field,
	})
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	if e.Code == CodeUnauthenticated {
		h.Set("WWW-Authenticate", "Bearer") // which RFC 9110 wants with a 401
	}
	setRetryAfter(h, e.RetryAfter)
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the caller has left if this fails
}

// setRetryAfter sets the header Retry-After, in whole seconds, rounded up so that a retry is
// never too early.
func setRetryAfter(h http.Header, d time.Duration) {
	if d > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10))
	}
}

// errorDomain is the domain of every ErrorInfo.
const errorDomain = "dedupd.io"

// grpcError answers err over gRPC.
func grpcError(err error) error {
	e := asError(err)
	info := &errdetails.ErrorInfo{Reason: string(e.Code), Domain: errorDomain}
	if e.Field != "" {
		info.Metadata = map[string]string{"field": e.Field}
	}
	st, detailErr := status.New(answers[e.Code].grpc, e.Message).WithDetails(info)
	if detailErr == nil && e.RetryAfter > 0 {
		st, detailErr = st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	if detailErr != nil {
		return status.Error(answers[e.Code].grpc, e.Message)
	}
	return st.Err()
}
