// Package caller tells who asks, by the token of a Kubernetes ServiceAccount. It needs the public
// keys of the cluster's issuer: no network, and no rights in the cluster.
package caller

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Identity is the ServiceAccount that a token was issued to.
type Identity struct {
	Namespace, Name string

	// Until is when the token is no longer accepted.
	Until time.Time
}

// Leeway is how far the clocks of the issuer and of this process may be apart.
const Leeway = 30 * time.Second

// maxRemembered is how many tokens are remembered: some two megabytes, for more pods than ask one dedupd.
const maxRemembered = 16384

// Verifier verifies the tokens of one issuer for one audience. It is safe for concurrent use.
type Verifier struct {
	issuer, audience string
	keys             []jose.JSONWebKey
	now              func() time.Time

	mu    sync.RWMutex
	known map[[sha256.Size]byte]Identity // guarded by mu: the tokens that were verified, by their hash
}

// Options say what tokens a Verifier accepts. All are required.
type Options struct {
	// Document holds the issuer and its keys, see NewDocument.
	Document []byte

	// Audience is whom a token must be for.
	Audience string

	Now func() time.Time
}

// NewVerifier returns a verifier, or says what is wrong with the document.
func NewVerifier(o Options) (*Verifier, error) {
	issuer, keys, err := readDocument(o.Document)
	if err != nil {
		return nil, err
	}
	return &Verifier{
		issuer: issuer, audience: o.Audience, keys: keys, now: o.Now,
		known: map[[sha256.Size]byte]Identity{},
	}, nil
}

// Verify returns whose the token is. An error says what is wrong with the token, never what it is.
func (v *Verifier) Verify(token string) (Identity, error) {
	var room [2048]byte // for the tokens of a cluster, so that looking one up allocates nothing
	hash := sha256.Sum256(append(room[:0], token...))
	v.mu.RLock()
	who, ok := v.known[hash]
	v.mu.RUnlock()
	if ok && v.now().Before(who.Until) {
		return who, nil
	}
	who, err := v.verify(token)
	if err != nil {
		return Identity{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.known) >= maxRemembered {
		clear(v.known) // most have expired; the others are verified once more
	}
	v.known[hash] = who
	return who, nil
}

// algorithms are those of public keys: a secret could not be published, and "none" signs nothing.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

func (v *Verifier) verify(token string) (Identity, error) {
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		return Identity{}, errors.New("it is no JWT that is signed with a public key's algorithm, such as RS256 or ES256")
	}
	header := parsed.Headers[0]
	i := slices.IndexFunc(v.keys, func(k jose.JSONWebKey) bool { return k.KeyID == header.KeyID })
	if i < 0 {
		return Identity{}, fmt.Errorf("it is signed by the key %q, which is none of the issuer's, %s", abridged(header.KeyID), v.issuer)
	}
	key := v.keys[i]
	if key.Algorithm != "" && key.Algorithm != header.Algorithm {
		return Identity{}, fmt.Errorf("it is signed by %s, and the issuer's key is for %s", header.Algorithm, key.Algorithm)
	}
	var claims jwt.Claims
	if err := parsed.Claims(key.Key, &claims); err != nil {
		return Identity{}, errors.New("its signature is wrong, or what was signed are no claims")
	}
	return v.accept(&claims)
}

// accept judges claims whose signature is right.
func (v *Verifier) accept(c *jwt.Claims) (Identity, error) {
	now := v.now()
	who := Identity{}
	switch {
	case c.Issuer != v.issuer:
		return who, fmt.Errorf("it is of the issuer %q; want %q", abridged(c.Issuer), v.issuer)
	case !c.Audience.Contains(v.audience):
		return who, fmt.Errorf("it is for the audience %q; want %q", abridged(strings.Join(c.Audience, " ")), v.audience)
	case c.Expiry == nil:
		return who, errors.New("it never expires; want one that does")
	case c.NotBefore != nil && now.Add(Leeway).Before(c.NotBefore.Time()):
		return who, fmt.Errorf("it is valid from %s on, and it is %s", text(c.NotBefore.Time()), text(now))
	}
	who.Until = c.Expiry.Time().Add(Leeway)
	if !now.Before(who.Until) {
		return Identity{}, fmt.Errorf("it expired at %s, and it is %s", text(c.Expiry.Time()), text(now))
	}
	account, ok := strings.CutPrefix(c.Subject, "system:serviceaccount:")
	if ok {
		who.Namespace, who.Name, ok = strings.Cut(account, ":")
	}
	if !ok || who.Namespace == "" || who.Name == "" || strings.Contains(who.Name, ":") {
		return Identity{}, fmt.Errorf("it is of %q; want a ServiceAccount, system:serviceaccount:<namespace>:<name>", abridged(c.Subject))
	}
	return who, nil
}

func text(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// abridged keeps what a stranger wrote from flooding a message.
func abridged(value string) string {
	const most = 100
	if len(value) <= most {
		return value
	}
	return strings.ToValidUTF8(value[:most], "") + "…"
}
