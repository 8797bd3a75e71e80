package caller

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/dedupd/dedup-operator/dedupd/caller/callertest"
)

const issuer = callertest.Issuer

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// verifier accepts tokens of some of the keys, at the time now.
func verifier(tb testing.TB, names ...string) *Verifier {
	tb.Helper()
	document, err := NewDocument(callertest.Discovery(), callertest.Set(tb, names...))
	if err != nil {
		tb.Fatal(err)
	}
	v, err := NewVerifier(Options{Document: document, Audience: "dedupd", Now: func() time.Time { return now }})
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// claims are those of a token that is good at the time now, with changes.
func claims(changes map[string]any) map[string]any {
	return callertest.Claims(now.Add(-time.Minute), changes)
}

// forged is a token of any header, with the signature of sign.
func forged(tb testing.TB, header, claims map[string]any, sign func(input string) []byte) string {
	tb.Helper()
	var parts []string
	for _, part := range []map[string]any{header, claims} {
		data, err := json.Marshal(part)
		if err != nil {
			tb.Fatal(err)
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(data))
	}
	input := strings.Join(parts, ".")
	return input + "." + base64.RawURLEncoding.EncodeToString(sign(input))
}

func unsigned(string) []byte { return nil }

func TestATokenSaysWhoAsks(t *testing.T) {
	v := verifier(t, "rsa", "ec", "ed")
	for name, token := range map[string]string{
		"RS256": callertest.Token(t, "rsa", claims(nil)),
		"ES256": callertest.Token(t, "ec", claims(nil)),
		"EdDSA": callertest.Token(t, "ed", claims(nil)),
		"an audience that is a string, and claims of no concern": callertest.Token(t, "rsa", claims(map[string]any{"aud": "dedupd", "kubernetes.io": map[string]any{"namespace": "other"}})),
		"several audiences": callertest.Token(t, "rsa", claims(map[string]any{"aud": []string{"vault", "dedupd"}})),
		"no nbf":            callertest.Token(t, "rsa", claims(map[string]any{"nbf": nil})),
		"an issuer's clock that is ahead a little":  callertest.Token(t, "rsa", claims(map[string]any{"nbf": now.Add(Leeway).Unix(), "iat": now.Add(Leeway).Unix()})),
		"an issuer's clock that is behind a little": callertest.Token(t, "rsa", claims(map[string]any{"exp": now.Add(time.Second - Leeway).Unix()})),
	} {
		t.Run(name, func(t *testing.T) {
			who, err := v.Verify(token)
			if err != nil || who.Namespace != "shop" || who.Name != "checkout" {
				t.Errorf("%+v, %v", who, err)
			}
		})
	}
}

func TestATokenIsRefused(t *testing.T) {
	v := verifier(t, "rsa", "ec")
	// As "HS256 with the public key": what a verifier that trusts the header would take for a secret.
	public, err := x509.MarshalPKIXPublicKey(callertest.KeyOf(t, "rsa").Public())
	if err != nil {
		t.Fatal(err)
	}
	withPublicKey := func(input string) []byte {
		mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
		_, _ = mac.Write([]byte(input))
		return mac.Sum(nil)
	}
	good := callertest.Token(t, "rsa", claims(nil))
	parts := strings.Split(good, ".")
	other := strings.Split(callertest.Token(t, "rsa", claims(map[string]any{"sub": "system:serviceaccount:shop:admin"})), ".")
	for name, test := range map[string]struct{ token, says string }{
		"nothing":                        {"", "no JWT"},
		"no token":                       {"hello", "no JWT"},
		"alg none":                       {forged(t, map[string]any{"alg": "none", "kid": "rsa"}, claims(nil), unsigned), "signed with a public key's algorithm"},
		"alg none in capitals":           {forged(t, map[string]any{"alg": "NONE", "kid": "rsa"}, claims(nil), unsigned), "signed with a public key's algorithm"},
		"HS256 with the public key":      {forged(t, map[string]any{"alg": "HS256", "kid": "rsa"}, claims(nil), withPublicKey), "signed with a public key's algorithm"},
		"no signature":                   {parts[0] + "." + parts[1] + ".", "signature"},
		"another's claims":               {parts[0] + "." + other[1] + "." + parts[2], "signature is wrong"},
		"a key that is none of them":     {callertest.Token(t, "another", claims(nil)), `the key "another", which is none of the issuer's, ` + issuer},
		"another key under its ID":       {forged(t, map[string]any{"alg": "RS256", "kid": "rsa"}, claims(nil), signedBy(t, "another")), "signature is wrong"},
		"no key ID":                      {forged(t, map[string]any{"alg": "RS256"}, claims(nil), signedBy(t, "rsa")), `the key ""`},
		"the key brought along":          {forged(t, map[string]any{"alg": "RS256", "kid": "x", "jwk": jose.JSONWebKey{Key: callertest.KeyOf(t, "another").Public()}}, claims(nil), signedBy(t, "another")), "none of the issuer's"},
		"another algorithm of the key":   {forged(t, map[string]any{"alg": "RS512", "kid": "rsa"}, claims(nil), unsigned), "signed by RS512, and the issuer's key is for RS256"},
		"another issuer":                 {callertest.Token(t, "rsa", claims(map[string]any{"iss": "https://evil"})), `of the issuer "https://evil"; want "` + issuer + `"`},
		"no issuer":                      {callertest.Token(t, "rsa", claims(map[string]any{"iss": nil})), `of the issuer ""`},
		"another audience":               {callertest.Token(t, "rsa", claims(map[string]any{"aud": []string{issuer}})), `the audience "` + issuer + `"; want "dedupd"`},
		"no audience":                    {callertest.Token(t, "rsa", claims(map[string]any{"aud": nil})), `the audience ""`},
		"expired":                        {callertest.Token(t, "rsa", claims(map[string]any{"exp": now.Add(-Leeway).Unix()})), "expired at 2026-03-01T11:59:30Z, and it is 2026-03-01T12:00:00Z"},
		"no expiry":                      {callertest.Token(t, "rsa", claims(map[string]any{"exp": nil})), "never expires"},
		"not yet valid":                  {callertest.Token(t, "rsa", claims(map[string]any{"nbf": now.Add(Leeway + time.Second).Unix()})), "valid from 2026-03-01T12:00:31Z on"},
		"a user":                         {callertest.Token(t, "rsa", claims(map[string]any{"sub": "admin"})), `of "admin"; want a ServiceAccount`},
		"no subject":                     {callertest.Token(t, "rsa", claims(map[string]any{"sub": nil})), `of ""`},
		"a subject without a name":       {callertest.Token(t, "rsa", claims(map[string]any{"sub": "system:serviceaccount:shop:"})), "want a ServiceAccount"},
		"a subject without a namespace":  {callertest.Token(t, "rsa", claims(map[string]any{"sub": "system:serviceaccount::checkout"})), "want a ServiceAccount"},
		"a subject of too many parts":    {callertest.Token(t, "rsa", claims(map[string]any{"sub": "system:serviceaccount:shop:a:checkout"})), "want a ServiceAccount"},
		"claims that are none":           {forged(t, map[string]any{"alg": "RS256", "kid": "rsa"}, map[string]any{"exp": "soon"}, signedBy(t, "rsa")), "no claims"},
		"an expiry far beyond all years": {callertest.Token(t, "rsa", claims(map[string]any{"exp": 1e300})), ""},
	} {
		t.Run(name, func(t *testing.T) {
			who, err := v.Verify(test.token)
			if err == nil {
				t.Fatalf("accepted as %+v", who)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v does not say %q", err, test.says)
			}
			for _, part := range strings.Split(test.token, ".") {
				if len(part) > 20 && strings.Contains(err.Error(), part) {
					t.Errorf("the token is in the message: %v", err)
				}
			}
		})
	}
	if _, err := v.Verify(good); err != nil {
		t.Errorf("and the good one is refused: %v", err)
	}
}

// signedBy signs as RS256 does.
func signedBy(tb testing.TB, key string) func(string) []byte {
	tb.Helper()
	return func(input string) []byte {
		sum := sha256.Sum256([]byte(input))
		signature, err := callertest.KeyOf(tb, key).Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			tb.Fatal(err)
		}
		return signature
	}
}

func TestATokenThatIsRememberedExpiresAllTheSame(t *testing.T) {
	v := verifier(t, "rsa")
	at := now
	v.now = func() time.Time { return at }
	token := callertest.Token(t, "rsa", claims(nil))
	for _, at = range []time.Time{now, now.Add(time.Hour - time.Minute + Leeway - time.Nanosecond)} {
		if _, err := v.Verify(token); err != nil {
			t.Errorf("at %s: %v", at, err)
		}
	}
	for _, at = range []time.Time{now.Add(time.Hour - time.Minute + Leeway), now.Add(48 * time.Hour)} {
		if _, err := v.Verify(token); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("at %s: %v", at, err)
		}
	}
}

// What is remembered is not verified again: that is what makes the hot path cheap.
func TestARememberedTokenCostsALookup(t *testing.T) {
	v := verifier(t, "rsa")
	token := callertest.Token(t, "rsa", claims(nil))
	if _, err := v.Verify(token); err != nil {
		t.Fatal(err)
	}
	v.keys = nil // with which nothing could be verified
	if _, err := v.Verify(token); err != nil {
		t.Error(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = v.Verify(token) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	v := verifier(t, "ed")
	for i := range maxRemembered {
		v.known[sha256.Sum256(fmt.Append(nil, i))] = Identity{}
	}
	for i := range 3 {
		if _, err := v.Verify(callertest.Token(t, "ed", claims(map[string]any{"jti": fmt.Sprint(i)}))); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(v.known); n != 3 {
		t.Errorf("%d tokens are remembered, want the last 3", n)
	}
}

// An issuer that rotates its keys publishes both for a while: tokens of either are good. Then
// those of the old one are not.
func TestKeysAreRotated(t *testing.T) {
	old, fresh := callertest.Token(t, "rsa", claims(nil)), callertest.Token(t, "another", claims(nil))
	for name, test := range map[string]struct {
		keys       []string
		old, fresh bool
	}{
		"before": {[]string{"rsa"}, true, false},
		"both":   {[]string{"rsa", "another"}, true, true},
		"after":  {[]string{"another"}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, test.keys...)
			if _, err := v.Verify(old); (err == nil) != test.old {
				t.Errorf("the old key's token: %v", err)
			}
			if _, err := v.Verify(fresh); (err == nil) != test.fresh {
				t.Errorf("the new key's token: %v", err)
			}
		})
	}
}

// Whatever a caller sends: only what the issuer signed is accepted, and it is whose the issuer said.
func FuzzVerify(f *testing.F) {
	v := verifier(f, "rsa", "ec")
	f.Add(callertest.Token(f, "rsa", claims(nil)))
	f.Add(callertest.Token(f, "ec", claims(nil)))
	f.Add(forged(f, map[string]any{"alg": "none"}, claims(nil), unsigned))
	f.Add("a.b.c")
	f.Add("{}")
	f.Fuzz(func(t *testing.T, token string) {
		if who, err := v.Verify(token); err == nil && (who.Namespace != "shop" || who.Name != "checkout" || who.Until.IsZero()) {
			t.Errorf("accepted as %+v", who)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	token := callertest.Token(b, "rsa", claims(nil))
	b.Run("a token for the first time", func(b *testing.B) {
		v := verifier(b, "rsa")
		for b.Loop() {
			clear(v.known)
			if _, err := v.Verify(token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("and then", func(b *testing.B) {
		v := verifier(b, "rsa")
		for b.Loop() {
			if _, err := v.Verify(token); err != nil {
				b.Fatal(err)
			}
		}
	})
}
