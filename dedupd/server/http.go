package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// The headers that say who asks, and the one that repeats the decision.
const (
	HeaderConsumer = "Dedup-Consumer"
	HeaderAttempt  = "Dedup-Attempt"
	HeaderDecision = "Dedup-Decision"
)

// maxSettleBytes bounds the body of complete, release and renew: a key and a token.
const maxSettleBytes = 64 << 10

// Handler returns the HTTP interface.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/policies/{policy}/check", s.admitted(s.Limits.MaxBody, s.httpCheck))
	mux.HandleFunc("POST /v1/policies/{policy}/check:batch", s.admitted(s.Limits.MaxBatchBytes, s.httpCheckBatch))
	mux.HandleFunc("POST /v1/policies/{policy}/complete", s.admitted(maxSettleBytes, s.httpSettle(store.Complete)))
	mux.HandleFunc("POST /v1/policies/{policy}/release", s.admitted(maxSettleBytes, s.httpSettle(store.Release)))
	mux.HandleFunc("POST /v1/policies/{policy}/renew", s.admitted(maxSettleBytes, s.httpSettle(store.Renew)))
	mux.HandleFunc("GET /v1/policies/{policy}/keys/{key...}", s.httpLookup)
	mux.HandleFunc("DELETE /v1/policies/{policy}/keys/{key...}", s.httpForget)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, s.Status())
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		ok, why := s.ready()
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = io.WriteString(w, why+"\n")
	})
	mux.Handle("GET /metrics", s.Metrics.Handler())
	return s.guard(mux)
}

func (s *Service) httpCheck(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(w, r, s.Limits.MaxBody, "--max-body")
	if err != nil {
		writeProblem(w, err)
		return
	}
	answers, err := s.check(asking(r.Context(), r.Header), r.PathValue("policy"), []engine.Request{{
		Consumer: r.Header.Get(HeaderConsumer),
		Attempt:  r.Header.Get(HeaderAttempt),
		Message:  key.Message{Headers: httpHeaders(r.Header), Body: body},
	}})
	if err != nil {
		writeProblem(w, err)
		return
	}
	a := answers[0]
	if a.Err != nil {
		writeProblem(w, a.Err)
		return
	}
	w.Header().Set(HeaderDecision, string(a.Decision))
	setRetryAfter(w.Header(), a.RetryAfter)
	writeJSON(w, answerJSON(a))
}

func (s *Service) httpCheckBatch(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(w, r, s.Limits.MaxBatchBytes, "--max-batch-bytes")
	if err != nil {
		writeProblem(w, err)
		return
	}
	b, err := decodeBatch(body, s.Limits)
	if err != nil {
		writeProblem(w, err)
		return
	}
	answers, err := s.checkBatch(asking(r.Context(), r.Header), r.PathValue("policy"), b.messages)
	if err != nil {
		writeProblem(w, err)
		return
	}
	items := make([]batchAnswer, len(answers))
	for i, a := range answers {
		items[i] = answerJSON(a)
	}
	writeJSON(w, struct {
		Answers []batchAnswer `json:"answers"`
	}{items})
}

func (s *Service) httpSettle(verb store.Verb) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := readBody(w, r, maxSettleBytes, "a key and a token")
		if err != nil {
			writeProblem(w, err)
			return
		}
		in, err := decodeSettle(body)
		if err != nil {
			writeProblem(w, err)
			return
		}
		settled, err := s.settle(asking(r.Context(), r.Header), r.PathValue("policy"), []engine.Settle{{Verb: verb, Key: in.key, Token: in.token}})
		if err != nil {
			writeProblem(w, err)
			return
		}
		if settled[0].Err != nil {
			writeProblem(w, settled[0].Err)
			return
		}
		writeJSON(w, struct {
			State        string  `json:"state"`
			LeaseSeconds float64 `json:"leaseSeconds,omitempty"`
		}{settled[0].State, seconds(settled[0].Lease)})
	}
}

func (s *Service) httpLookup(w http.ResponseWriter, r *http.Request) {
	found, err := s.lookup(asking(r.Context(), r.Header), r.PathValue("policy"), r.PathValue("key"))
	if err != nil {
		writeProblem(w, err)
		return
	}
	out := foundJSON{
		Key:              found.Key,
		State:            found.State,
		FirstSeen:        found.FirstSeen,
		Fence:            found.Fence,
		RemainingSeconds: seconds(found.Remaining),
	}
	if found.State == record.Claimed.String() {
		left := seconds(found.LeaseLeft)
		out.LeaseRemainingSeconds = &left
	}
	writeJSON(w, out)
}

func (s *Service) httpForget(w http.ResponseWriter, r *http.Request) {
	existed, err := s.forget(asking(r.Context(), r.Header), r.PathValue("policy"), r.PathValue("key"))
	if err != nil {
		writeProblem(w, err)
		return
	}
	writeJSON(w, struct {
		Existed bool `json:"existed"`
	}{existed})
}

// foundJSON is the answer of a lookup.
type foundJSON struct {
	Key              string    `json:"key"`
	State            string    `json:"state"`
	FirstSeen        time.Time `json:"firstSeen"`
	Fence            uint64    `json:"fence,omitempty"`
	RemainingSeconds float64   `json:"remainingSeconds"`

	// LeaseRemainingSeconds is there in state CLAIMED; zero: the lease has run out.
	LeaseRemainingSeconds *float64 `json:"leaseRemainingSeconds,omitempty"`
}

// batchAnswer is an answer, alone or in a batch; Error only in a batch.
type batchAnswer struct {
	Decision          engine.Decision `json:"decision,omitempty"`
	Key               string          `json:"key,omitempty"`
	Token             string          `json:"token,omitempty"`
	Fence             uint64          `json:"fence,omitempty"`
	LeaseSeconds      float64         `json:"leaseSeconds,omitempty"`
	RetryAfterSeconds float64         `json:"retryAfterSeconds,omitempty"`
	FirstSeen         *time.Time      `json:"firstSeen,omitempty"`
	Shadow            string          `json:"shadow,omitempty"`
	Reason            string          `json:"reason,omitempty"`
	Error             *itemError      `json:"error,omitempty"`
}

// itemError is why one message of a batch has no answer.
type itemError struct {
	Code              engine.Code `json:"code"`
	Message           string      `json:"message"`
	Field             string      `json:"field,omitempty"`
	RetryAfterSeconds float64     `json:"retryAfterSeconds,omitempty"`
}

func answerJSON(a engine.Answer) batchAnswer {
	if a.Err != nil {
		e := asError(a.Err)
		return batchAnswer{Error: &itemError{e.Code, e.Message, e.Field, seconds(e.RetryAfter)}}
	}
	out := batchAnswer{
		Decision: a.Decision, Key: a.Key, Token: a.Token, Fence: a.Fence,
		LeaseSeconds: seconds(a.Lease), RetryAfterSeconds: seconds(a.RetryAfter),
		Shadow: a.Shadow, Reason: a.Reason,
	}
	if seenBefore(&a) {
		out.FirstSeen = &a.FirstSeen
	}
	return out
}

// seenBefore says whether the time at which the message was first seen is one of the past.
func seenBefore(a *engine.Answer) bool {
	fresh := a.Decision == engine.Fresh && (a.Shadow == "" || a.Shadow == string(engine.Fresh))
	return !fresh && !a.FirstSeen.IsZero()
}

// seconds is d in seconds, to the millisecond and rounded up: what is left is never said to
// be nothing.
func seconds(d time.Duration) float64 {
	return float64((d+time.Millisecond-1)/time.Millisecond) / 1000
}

func writeJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		writeProblem(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // the caller has left if this fails
}

// readBody reads a body of at most limit bytes. A longer one is refused before it is read
// where the request says its length, and after limit+1 bytes where not.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, what string) ([]byte, error) {
	tooLarge := &engine.Error{
		Code: engine.TooLarge, Field: "body",
		Message: "body: more than " + bytesText(limit) + " (" + what + ")",
	}
	if r.ContentLength > limit {
		// Without this the server would go on to read some of the body, for the connection's next request.
		w.Header().Set("Connection", "close")
		return nil, tooLarge
	}
	body := http.MaxBytesReader(w, r.Body, limit)
	// The length is a promise of the caller's: only a little memory is given on it in advance.
	data := bytes.NewBuffer(make([]byte, 0, min(max(r.ContentLength, 0)+bytes.MinRead, 64<<10)))
	_, err := data.ReadFrom(body)
	var over *http.MaxBytesError
	switch {
	case err == nil:
		return data.Bytes(), nil
	case errors.As(err, &over):
		return nil, tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &engine.Error{Code: CodeTimeout, Field: "body", Message: "body: did not arrive in time (--read-timeout)"}
	default:
		return nil, &engine.Error{Code: engine.InvalidMessage, Field: "body", Message: "body: " + err.Error()}
	}
}

// httpHeaders are a request's headers as those of the message.
type httpHeaders http.Header

// Get returns the header of that name. Several of one name are one list (RFC 9110, section 5.3).
func (h httpHeaders) Get(lowerName string) (string, bool) {
	values := http.Header(h).Values(lowerName)
	if len(values) == 1 {
		return values[0], true
	}
	return strings.Join(values, ", "), len(values) > 0
}
