package caller

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// Where an API server publishes what NewDocument reads.
const (
	DiscoveryPath = "/.well-known/openid-configuration"
	KeysPath      = "/openid/v1/jwks"
)

// document is a JWK Set (RFC 7517) that says whose keys it holds.
type document struct {
	Issuer string            `json:"issuer"`
	Keys   []json.RawMessage `json:"keys"`
}

// NewDocument makes what a Verifier reads of what an API server publishes at DiscoveryPath and
// KeysPath: the JWK Set with the member issuer. The same issuer and keys give the same bytes.
func NewDocument(discovery, keys []byte) ([]byte, error) {
	var d document
	if err := json.Unmarshal(discovery, &d); err != nil {
		return nil, fmt.Errorf("%s: %w", DiscoveryPath, err)
	}
	d.Keys = nil
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(keys, &set); err != nil {
		return nil, fmt.Errorf("%s: %w", KeysPath, err)
	}
	d.Keys = set.Keys
	slices.SortFunc(d.Keys, func(a, b json.RawMessage) int { return bytes.Compare(a, b) })
	out, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing the issuer's keys: %w", err)
	}
	if _, _, err := readDocument(out); err != nil {
		return nil, err
	}
	return append(out, '\n'), nil
}

// readDocument reads an issuer and the keys that may sign its tokens.
func readDocument(data []byte) (string, []jose.JSONWebKey, error) {
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return "", nil, fmt.Errorf("want a JWK Set with the member issuer: %w", err)
	}
	if d.Issuer == "" {
		return "", nil, errors.New("issuer: missing; want whose keys these are, as in the claim iss of its tokens")
	}
	var keys []jose.JSONWebKey
	for i, raw := range d.Keys {
		var key jose.JSONWebKey
		err := key.UnmarshalJSON(raw)
		if errors.Is(err, jose.ErrUnsupportedKeyType) {
			continue // of a kind of tomorrow, beside those of today
		}
		if err != nil {
			return "", nil, fmt.Errorf("keys[%d]: %w", i, err)
		}
		if key.IsPublic() && (key.Use == "" || key.Use == "sig") {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return "", nil, errors.New("keys: none of them is a public key for signatures")
	}
	return d.Issuer, keys, nil
}
