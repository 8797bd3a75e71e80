package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/caller"
	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/policy"
)

// Codes of who may not ask.
const (
	CodeUnauthenticated  engine.Code = "UNAUTHENTICATED"   // no token, or one that is not accepted
	CodePermissionDenied engine.Code = "PERMISSION_DENIED" // the token is another's than the policy's callers
)

// authorization is the header, and the metadata of a call, that says who asks.
const authorization = "authorization"

// callers is what tokens are verified by.
type callers struct {
	*caller.Verifier

	missing error // why there is no Verifier
}

// acquire returns the policy of that name at work, if who asks may. The caller releases its
// store when it is done.
func (s *Service) acquire(ctx context.Context, name string) (*running, error) {
	run, err := s.Registry.acquire(name)
	if err != nil {
		return nil, err
	}
	if p := run.engine.Policy(); len(p.Callers) > 0 {
		if err := s.admit(ctx, p); err != nil {
			run.store.release()
			s.Metrics.refusals.WithLabelValues(name, string(asError(err).Code)).Inc()
			return nil, err
		}
	}
	return run, nil
}

// admit says why the policy's callers do not include who asks.
func (s *Service) admit(ctx context.Context, p *policy.Policy) error {
	who, err := s.whoAsks(ctx)
	if err != nil {
		return err
	}
	if who.Namespace == p.Namespace && slices.Contains(p.Callers, who.Name) {
		return nil
	}
	return &engine.Error{Code: CodePermissionDenied, Field: authorization, Message: fmt.Sprintf(
		"authorization: ServiceAccount %s of namespace %s may not ask policy %s of namespace %s; spec.callers.serviceAccounts there names those that may",
		who.Name, who.Namespace, p.Name, p.Namespace)}
}

// whoAsks reads the token that a request, or a stream, came with.
func (s *Service) whoAsks(ctx context.Context) (caller.Identity, error) {
	by := s.callers.Load()
	if by.Verifier == nil {
		return caller.Identity{}, &engine.Error{Code: engine.Unavailable, RetryAfter: engine.RetryAfter, Message: fmt.Sprintf(
			"the policy has callers, and dedupd nothing to check their tokens by: %s", by.missing)}
	}
	token, err := bearer(metadata.ValueFromIncomingContext(ctx, authorization))
	if err != nil {
		return caller.Identity{}, unauthenticated(err)
	}
	who, err := by.Verify(token)
	if err != nil {
		return caller.Identity{}, unauthenticated(fmt.Errorf("the token is not accepted: %w", err))
	}
	return who, nil
}

func unauthenticated(err error) error {
	return &engine.Error{Code: CodeUnauthenticated, Field: authorization, Message: fmt.Sprintf(
		"authorization: %s; want Bearer and the token in the file that $%s names in a connected pod, read anew from time to time (by hand: kubectl create token NAME --audience %s)",
		err, v1alpha1.EnvTokenFile, v1alpha1.TokenAudience)}
}

// bearer reads the token of an Authorization header (RFC 6750, section 2.1).
func bearer(values []string) (string, error) {
	switch len(values) {
	case 0:
		return "", errors.New("missing, and the policy has callers")
	case 1:
	default:
		return "", fmt.Errorf("there %d times", len(values))
	}
	scheme, token, _ := strings.Cut(strings.TrimSpace(values[0]), " ")
	token = strings.TrimLeft(token, " ")
	switch {
	case !strings.EqualFold(scheme, "Bearer"):
		return "", errors.New("another scheme than Bearer")
	case token == "" || strings.ContainsAny(token, " \t"):
		return "", errors.New("the scheme Bearer with no token, or with more than one")
	}
	return token, nil
}

// asking is the context of a request over HTTP. What says who asks is put where a call over gRPC
// has it.
func asking(ctx context.Context, h http.Header) context.Context {
	values := h.Values(authorization)
	if len(values) == 0 {
		return ctx
	}
	return metadata.NewIncomingContext(ctx, metadata.MD{authorization: values})
}

// tokenEnds calls end when the token that a stream was opened with is no longer accepted. Who
// opens another shows another: the kubelet has renewed it by then.
func (s *Service) tokenEnds(ctx context.Context, end func()) (stop func()) {
	if len(metadata.ValueFromIncomingContext(ctx, authorization)) == 0 {
		return func() {}
	}
	who, err := s.whoAsks(ctx)
	if err != nil {
		return func() {} // told to whoever asks of a policy with callers
	}
	timer := time.AfterFunc(who.Until.Sub(s.Now()), end)
	return func() { timer.Stop() }
}

var errTokenEnded = &engine.Error{Code: CodeUnauthenticated, Field: authorization, Message: "authorization: the token that the stream was opened with has expired: " +
	"open another with the token of now, and send what got no answer again with the same attempt"}

// keysFile is where the keys of the callers' issuer are: the file that was named, or that of the
// policies' folder.
func (c Config) keysFile() string {
	if c.CallerKeys != "" {
		return c.CallerKeys
	}
	folder := c.Path
	if info, err := os.Stat(folder); err == nil && !info.IsDir() {
		folder = filepath.Dir(folder)
	}
	return filepath.Join(folder, v1alpha1.IssuerFile)
}

// loadCallers reads what the tokens of the policies' callers are verified by, where there are any, also of
// those that run on. With a mounted configuration what is wrong concerns them alone, and the other policies run.
func (s *Service) loadCallers(policies, standing []*policy.Policy) (*callers, error) {
	all := slices.Concat(policies, standing)
	i := slices.IndexFunc(all, func(p *policy.Policy) bool { return p != nil && len(p.Callers) > 0 })
	if i < 0 {
		return &callers{missing: errors.New("no policy had callers when the configuration was read")}, nil
	}
	keys, err := os.ReadFile(s.config.keysFile())
	var v *caller.Verifier
	if err == nil {
		v, err = caller.NewVerifier(caller.Options{Document: keys, Audience: v1alpha1.TokenAudience, Now: s.Now})
	}
	if err != nil {
		err = fmt.Errorf("the keys of the cluster's issuer: %s: %w", s.config.keysFile(), err)
		if s.config.Strict {
			return nil, fmt.Errorf("policy %s: spec.callers: %w; save there what docs/operating.md says, name another file with --caller-keys, or remove spec.callers to let everybody ask", all[i].Name, err)
		}
		s.Log.Error("policies with callers answer nobody", "policy", all[i].Name, "error", err)
	}
	for _, p := range policies {
		if len(p.Callers) > 0 {
			p.ConfigHash = policy.HashWithKeys(p.ConfigHash, keys)
		}
	}
	return &callers{v, err}, nil
}
