package server

import (
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/dedupd/dedup-operator/dedupd/engine"
)

// What a request, or a stream, is taken to hold in memory beside its body: buffers of its
// connection, headers, the stack of its goroutine. Counting it bounds how many there are too.
const (
	requestCost = 8 << 10
	streamCost  = 64 << 10

	messageCost = 256 // each on a stream, beside its text
)

// Largest is what the largest request that the limits allow is taken to hold in memory: a batch on a stream.
func (l Limits) Largest() int64 {
	return streamCost + 2*l.largestText() + int64(l.MaxBatch)*messageCost
}

// largestText is how long a request over gRPC may be.
func (l Limits) largestText() int64 { return max(l.MaxBatchBytes, l.MaxBody) + messageOverhead }

// messageOverhead is what a request needs beside its bodies: names, headers, lengths.
const messageOverhead = 64 << 10

// inFlight is the memory that the requests being answered hold. What would exceed the bound
// is refused before its body is read over HTTP, and as soon as it is over gRPC, which reads
// first: while the store is slow, callers come faster than they go.
type inFlight struct {
	limit int64
	held  atomic.Int64
	shown prometheus.Gauge
}

// take says whether there is room for a request. If so, it is to be given back.
func (f *inFlight) take(size int64) bool {
	if f.held.Add(size) > f.limit {
		f.held.Add(-size)
		return false
	}
	f.shown.Add(float64(size))
	return true
}

func (f *inFlight) give(size int64) {
	f.held.Add(-size)
	f.shown.Sub(float64(size))
}

var errInFlight = &engine.Error{
	Code:       engine.Overloaded,
	Message:    "as many requests are being answered as memory is granted for (--max-in-flight); nothing was done: ask again later",
	RetryAfter: engine.RetryAfter,
}

// admitted answers requests with bodies of at most limit bytes as long as there is memory for
// them. A longer one costs nothing: its body is not read.
func (s *Service) admitted(limit int64, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		size := r.ContentLength
		switch {
		case size < 0: // it does not say how long it is
			size = limit
		case size > limit:
			size = 0
		}
		size += requestCost
		if !s.inFlight.take(size) {
			s.Metrics.refused.WithLabelValues("http").Inc()
			writeProblem(w, errInFlight)
			return
		}
		defer s.inFlight.give(size)
		next(w, r)
	}
}

// sizeOf is what a call over gRPC holds: nothing, where it is about no policy.
func sizeOf(req any) int64 {
	if w, ok := req.(interface{ held() int64 }); ok {
		return w.held()
	}
	_, ofPolicy := req.(interface{ GetPolicy() string })
	m, ok := req.(proto.Message)
	if !ofPolicy || !ok {
		return 0
	}
	return requestCost + int64(proto.Size(m))
}
