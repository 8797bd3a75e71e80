package client

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"time"
)

// tokenAge is how long a token is shown without another look at its file, which the kubelet
// renews minutes before the token expires.
const tokenAge = 10 * time.Second

// tokenFile shows the token of a file with every call, and with a stream when it is opened.
type tokenFile struct {
	path string
	now  func() time.Time

	mu    sync.Mutex
	read  time.Time // guarded by mu: when the file was last looked at; zero: never
	token string    // guarded by mu: the last one that was there
	err   error     // guarded by mu: why the last look found none
}

// GetRequestMetadata implements credentials.PerRPCCredentials. Where there is no token the call is
// sent without one: it is for the server to say whether the policy wants one.
func (t *tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.now(); t.read.IsZero() || now.Sub(t.read) >= tokenAge || now.Before(t.read) {
		t.read = now
		t.look()
	}
	if t.token == "" {
		return nil, nil
	}
	return map[string]string{"authorization": "Bearer " + t.token}, nil
}

// look reads the file. It requires mu. A look that fails leaves the token of before, which may
// be good for minutes yet.
func (t *tokenFile) look() {
	content, err := os.ReadFile(t.path)
	switch token := bytes.TrimSpace(content); {
	case err != nil:
		t.err = fmt.Errorf("%s: %w", envTokenFile, err)
	case len(token) == 0:
		t.err = fmt.Errorf("%s: %s is empty", envTokenFile, t.path)
	default:
		t.token, t.err = string(token), nil
	}
}

// unread is why the last look at the file found no token.
func (t *tokenFile) unread() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. dedupd speaks plain text, in
// the cluster's network; the token is good for nobody but dedupd.
func (t *tokenFile) RequireTransportSecurity() bool { return false }
