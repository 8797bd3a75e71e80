// Package callertest issues tokens as a cluster does, for tests.
package callertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Issuer is whose tokens they are.
const Issuer = "https://kubernetes.default.svc"

// Key is a key of the issuer's. Its ID is its name.
type Key struct {
	crypto.Signer

	ID        string
	Algorithm jose.SignatureAlgorithm
}

// The keys are made once in a process: an RSA key takes a while.
var keys = sync.OnceValues(func() (map[string]*Key, error) {
	all := map[string]*Key{}
	for _, id := range []string{"rsa", "another"} {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, fmt.Errorf("making key %s: %w", id, err)
		}
		all[id] = &Key{key, id, jose.RS256}
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making key ec: %w", err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making key ed: %w", err)
	}
	all["ec"], all["ed"] = &Key{ec, "ec", jose.ES256}, &Key{ed, "ed", jose.EdDSA}
	return all, nil
})

// KeyOf returns the key of that name: rsa, another (which is of RSA, too), ec or ed.
func KeyOf(tb testing.TB, name string) *Key {
	tb.Helper()
	all, err := keys()
	if err != nil {
		tb.Fatal(err)
	}
	if all[name] == nil {
		tb.Fatalf("there is no key %q", name)
	}
	return all[name]
}

// Set is the JWK Set of some keys, as an API server publishes it.
func Set(tb testing.TB, names ...string) []byte {
	tb.Helper()
	var s jose.JSONWebKeySet
	for _, name := range names {
		k := KeyOf(tb, name)
		s.Keys = append(s.Keys, jose.JSONWebKey{Key: k.Public(), KeyID: k.ID, Algorithm: string(k.Algorithm), Use: "sig"})
	}
	return marshal(tb, s)
}

// Discovery is what an API server says of the issuer.
func Discovery() []byte {
	return fmt.Appendf(nil, `{"issuer": %q, "response_types_supported": ["id_token"]}`, Issuer)
}

// Claims are those of a token for dedupd that is good for an hour, of ServiceAccount checkout of
// namespace shop, with changes; nil: without.
func Claims(now time.Time, changes map[string]any) map[string]any {
	all := map[string]any{
		"iss": Issuer, "aud": []string{"dedupd"}, "sub": "system:serviceaccount:shop:checkout",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	maps.Copy(all, changes)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	return all
}

// Token is a token with claims, signed by the key of that name.
func Token(tb testing.TB, key string, claims map[string]any) string {
	tb.Helper()
	k := KeyOf(tb, key)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: k.Algorithm, Key: jose.JSONWebKey{Key: k.Signer, KeyID: k.ID}}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	signed, err := signer.Sign(marshal(tb, claims))
	if err != nil {
		tb.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}
