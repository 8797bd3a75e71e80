package controllers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/caller"
)

// Issuer knows the keys by which the cluster's ServiceAccount tokens are checked.
type Issuer interface {
	// Keys returns them in the form of caller.NewDocument.
	Keys(ctx context.Context) ([]byte, error)
}

// Between two looks at the issuer's keys, of all policies together, and how long one may take.
const (
	issuerAge     = 30 * time.Second
	issuerTimeout = 5 * time.Second
)

// clusterIssuer reads the keys that the API server publishes.
type clusterIssuer struct {
	api   rest.Interface
	clock clock.PassiveClock

	mu     sync.Mutex // held during a look: whoever comes meanwhile wants the same
	looked time.Time  // guarded by mu: when the last look was; zero: never
	keys   []byte     // guarded by mu: of the last look that found some
	err    error      // guarded by mu: of the last look
}

// NewIssuer returns the issuer of an API server's cluster.
func NewIssuer(config *rest.Config, c clock.PassiveClock) (Issuer, error) {
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("building a client for the issuer's keys: %w", err)
	}
	return &clusterIssuer{api: d.RESTClient(), clock: c}, nil
}

// Keys implements Issuer. A look that fails leaves the keys of before.
func (i *clusterIssuer) Keys(ctx context.Context) ([]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if now := i.clock.Now(); i.looked.IsZero() || now.Sub(i.looked) >= issuerAge {
		i.looked = now
		keys, err := i.look(ctx)
		if i.err = err; err == nil {
			i.keys = keys
		}
	}
	if i.keys == nil {
		return nil, i.err
	}
	return i.keys, nil
}

func (i *clusterIssuer) look(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, issuerTimeout)
	defer cancel()
	var read [2][]byte
	for n, path := range []string{caller.DiscoveryPath, caller.KeysPath} {
		data, err := i.api.Get().AbsPath(path).Do(ctx).Raw()
		if err != nil {
			return nil, fmt.Errorf("GET %s: %w", path, err)
		}
		read[n] = data
	}
	return caller.NewDocument(read[0], read[1])
}

// noKeysError says that a policy has callers and there is nothing to check their tokens by.
type noKeysError struct{ cause error }

func (e *noKeysError) Error() string {
	return fmt.Sprintf("spec.callers: the public keys of the cluster's issuer of ServiceAccount tokens cannot be read: %s; "+
		"bind ClusterRole system:service-account-issuer-discovery to the operator's ServiceAccount, or remove spec.callers to let everybody ask", e.cause)
}

func (e *noKeysError) Unwrap() error { return e.cause }

// issuerKeys are what the tokens of the policy's callers are checked by, nil where it has none. Where
// they cannot be read, those that the policy's ConfigMap has stay.
func (r *Reconciler) issuerKeys(ctx context.Context, p *v1alpha1.DedupPolicy) ([]byte, error) {
	if p.Spec.Callers == nil {
		return nil, nil
	}
	keys, err := r.Issuer.Keys(ctx)
	if err == nil {
		return keys, nil
	}
	var written corev1.ConfigMap
	readErr := r.Client.Get(ctx, policyParent(p).childName, &written)
	if client.IgnoreNotFound(readErr) != nil {
		return nil, errors.Join(err, readErr)
	}
	if kept := written.Data[v1alpha1.IssuerFile]; kept != "" {
		return []byte(kept), nil
	}
	return nil, &noKeysError{err}
}
