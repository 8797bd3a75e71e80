package caller

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/dedupd/dedup-operator/dedupd/caller/callertest"
)

func TestADocumentIsTheSameForTheSameKeys(t *testing.T) {
	discovery := callertest.Discovery()
	one, err := NewDocument(discovery, callertest.Set(t, "rsa", "ec"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := NewDocument(discovery, callertest.Set(t, "ec", "rsa"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Errorf("in another order\n%s\nand\n%s", one, two)
	}
}

func TestADocumentIsRefused(t *testing.T) {
	private, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: callertest.KeyOf(t, "rsa").Signer, KeyID: "rsa"}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ discovery, keys, says string }{
		"no discovery":           {"<html>", string(callertest.Set(t, "rsa")), DiscoveryPath},
		"no keys":                {`{"issuer": "x"}`, "<html>", KeysPath},
		"no issuer":              {`{}`, string(callertest.Set(t, "rsa")), "issuer: missing"},
		"a set without keys":     {`{"issuer": "x"}`, `{"keys": []}`, "keys: none of them"},
		"a status and not a set": {`{"issuer": "x"}`, `{"kind": "Status"}`, "keys: none of them"},
		"a key that is broken":   {`{"issuer": "x"}`, `{"keys": [{"kty": "RSA", "n": "AA"}]}`, "keys[0]"},
		"a secret":               {`{"issuer": "x"}`, `{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}`, "keys: none of them"},
		"a private key":          {`{"issuer": "x"}`, string(private), "keys: none of them"},
		"a key for encryption":   {`{"issuer": "x"}`, strings.Replace(string(callertest.Set(t, "rsa")), `"sig"`, `"enc"`, 1), "keys: none of them"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewDocument([]byte(test.discovery), []byte(test.keys)); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v does not say %q", err, test.says)
			}
		})
	}
}

func TestAKeyOfAKindUnknownIsLeftOut(t *testing.T) {
	known := strings.TrimPrefix(string(callertest.Set(t, "rsa")), `{"keys":[`)
	document, err := NewDocument([]byte(`{"issuer": "`+issuer+`"}`), []byte(`{"keys":[{"kty":"LATTICE","kid":"x"},`+known))
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(Options{Document: document, Audience: "dedupd", Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(callertest.Token(t, "rsa", claims(nil))); err != nil {
		t.Error(err)
	}
}
