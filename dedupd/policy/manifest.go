package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Kind is the kind of the one object that a configuration file holds.
const Kind = "DedupPolicy"

// manifest is a policy as dedupd's configuration file: what it needs and no more, so that the
// file changes only when dedupd must act on the change.
type manifest struct {
	APIVersion string                   `json:"apiVersion"`
	Kind       string                   `json:"kind"`
	Metadata   manifestMetadata         `json:"metadata"`
	Spec       v1alpha1.DedupPolicySpec `json:"spec"`
}

type manifestMetadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
}

// Manifest returns a policy as dedupd's configuration file, in YAML: its name, its namespace
// and its spec without deployment. Equal policies give equal bytes.
func Manifest(p *v1alpha1.DedupPolicy) ([]byte, error) {
	m := manifest{
		APIVersion: v1alpha1.GroupVersion.String(),
		Kind:       Kind,
		Metadata:   manifestMetadata{Name: p.Name, Namespace: p.Namespace},
		Spec:       *p.Spec.DeepCopy(),
	}
	m.Spec.Deployment = nil
	b, err := yaml.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("writing policy %s as YAML: %w", p.Name, err)
	}
	return b, nil
}

// HashStore identifies a store's settings: 16 hex digits, equal for settings that differ only
// in whether a default is written out.
func HashStore(s v1alpha1.StoreSpec) string {
	p := v1alpha1.DedupPolicy{Spec: v1alpha1.DedupPolicySpec{Store: *s.DeepCopy()}}
	v1alpha1.SetDefaults(&p)
	b, err := json.Marshal(p.Spec.Store)
	if err != nil {
		panic("policy: strings and numbers did not marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
