package webhook

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/webhook"
)

// linger is for how long a server that is to stop goes on. The API server sends to a webhook that it
// asks often several requests in that time.
const linger = 3 * time.Second

// Server is controller-runtime's webhook server, with an end that no request notices.
//
// The API server keeps connections to webhooks open, and does not send a request again: it is HTTP/1.1
// and a POST. One that goes out on a connection just as the server closes it would be lost, and
// the pod with it refused. So a server that is to stop first has each connection closed by its next
// answer, which the API server knows then, and stops when those that are in use are gone.
type Server struct {
	webhook.Server
	stopping atomic.Bool
	after    func(time.Duration) <-chan time.Time
}

var _ webhook.Server = (*Server)(nil)

// NewServer makes a server.
func NewServer(o webhook.Options) *Server {
	return &Server{Server: webhook.NewServer(o), after: time.After}
}

// Register implements webhook.Server.
func (s *Server) Register(path string, hook http.Handler) {
	s.Server.Register(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.stopping.Load() {
			w.Header().Set("Connection", "close")
		}
		hook.ServeHTTP(w, r)
	}))
}

// Start serves until ctx is done, and a little longer.
func (s *Server) Start(ctx context.Context) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		s.stopping.Store(true)
		<-s.after(linger)
		stop()
	})()
	return s.Server.Start(serving)
}
