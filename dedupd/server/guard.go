package server

import (
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"

	"github.com/dedupd/dedup-operator/dedupd/engine"
)

// guard stands around every HTTP request: it counts, it answers 500 to a panic, and it gives
// the router's own refusals the form of every other error.
func (s *Service) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := s.Now()
		rec := &recorder{ResponseWriter: w, request: r}
		if s.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		defer func() {
			cause := recover()
			if cause != nil {
				s.panicked(cause)
			}
			if cause != nil && rec.status == 0 {
				writeProblem(rec, errInternal)
				cause = nil
			}
			s.Metrics.request("http", route(r), strconv.Itoa(rec.code()), s.Now().Sub(start))
			if cause != nil {
				// Half an answer is out. Only a broken connection tells the caller.
				panic(http.ErrAbortHandler)
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

func (s *Service) panicked(cause any) {
	s.Metrics.panics.Inc()
	s.Log.Error("a request panicked", "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
}

// route is the pattern that a request matched: a label with few values.
func route(r *http.Request) string {
	if r.Pattern == "" {
		return "none"
	}
	return r.Pattern
}

// recorder remembers the status of an answer, and replaces the text of the router's 404 and
// 405, which no pattern has matched, with a problem.
type recorder struct {
	http.ResponseWriter
	request  *http.Request
	status   int
	replaced bool
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(code int) {
	if w.status == 0 && w.request.Pattern == "" {
		switch code {
		case http.StatusNotFound:
			w.refuse(&engine.Error{Code: engine.NotFound, Message: fmt.Sprintf("no such path: %s", w.request.URL.Path)})
			return
		case http.StatusMethodNotAllowed:
			w.refuse(&engine.Error{Code: CodeMethodNotAllowed, Message: fmt.Sprintf(
				"%s is not for this path; %s is", w.request.Method, w.Header().Get("Allow"))})
			return
		}
	}
	if w.status == 0 {
		w.status = code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *recorder) refuse(err *engine.Error) {
	w.status, w.replaced = answers[err.Code].http, true
	writeProblem(w.ResponseWriter, err)
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(b []byte) (int, error) {
	if w.replaced {
		return len(b), nil
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

func (w *recorder) code() int {
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}
