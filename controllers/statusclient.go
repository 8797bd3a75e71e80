package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/dedupd/dedup-operator/dedupd/status"
)

// StatusClient asks a dedupd process how it is.
type StatusClient interface {
	// Status asks the dedupd that serves HTTP at addr, a host:port, by the deadline of ctx.
	Status(ctx context.Context, addr string) (status.Status, error)
}

// maxStatus bounds what is read of an answer. A policy takes 350 bytes, and a pool has many.
const maxStatus = 4 << 20

// httpStatus asks over HTTP.
type httpStatus struct{ client *http.Client }

// NewStatusClient asks pods at their own addresses: by no proxy, and without keeping
// connections, since the next question to a pod is half a minute away.
func NewStatusClient() StatusClient {
	return httpStatus{&http.Client{
		Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Status implements StatusClient.
func (h httpStatus) Status(ctx context.Context, addr string) (status.Status, error) {
	var s status.Status
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/v1/status", nil)
	if err != nil {
		return s, fmt.Errorf("asking %s: %w", addr, err)
	}
	response, err := h.client.Do(request)
	if err != nil {
		return s, err // names the URL already
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return s, fmt.Errorf("GET %s: %s", request.URL, response.Status)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxStatus)).Decode(&s); err != nil {
		return s, fmt.Errorf("GET %s: the answer is no status: %w", request.URL, err)
	}
	return s, nil
}
