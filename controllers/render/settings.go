package render

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Shaper is the policy by whose spec.deployment a pool runs: the oldest of those that say more there
// than the pool's name. Nil if none does, and the pool has the defaults.
func Shaper(policies []*v1alpha1.DedupPolicy) *v1alpha1.DedupPolicy {
	var shaper *v1alpha1.DedupPolicy
	for _, p := range policies {
		if len(said(p)) > 0 && (shaper == nil || Older(p, shaper) < 0) {
			shaper = p
		}
	}
	return shaper
}

// Older orders policies by age. It is negative if a was made before b.
func Older(a, b *v1alpha1.DedupPolicy) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// Settings are how a pool runs, with every default filled in.
func Settings(shaper *v1alpha1.DedupPolicy) v1alpha1.DeploymentSpec {
	if shaper == nil {
		return v1alpha1.DeploymentSpec{}
	}
	p := shaper.DeepCopy()
	v1alpha1.SetDefaults(p)
	return *p.Spec.Deployment
}

// Difference says what a policy asks for that its pool, as its shaper says, does not run with. Empty
// if there is nothing: what a policy leaves out, it leaves to the shaper.
func Difference(p, shaper *v1alpha1.DedupPolicy) string {
	if shaper == nil || p.Name == shaper.Name {
		return ""
	}
	mine, theirs := said(p), said(shaper)
	for _, name := range slices.Sorted(maps.Keys(mine)) {
		if reflect.DeepEqual(mine[name], theirs[name]) {
			continue
		}
		says := "says nothing of it"
		if theirs[name] != nil {
			says = "says " + text(theirs[name])
		}
		return fmt.Sprintf("spec.deployment.%s: %s, but pool %s runs as its oldest member with settings says, and policy %s %s: say the same there, or leave it out here",
			name, text(mine[name]), p.Pool(), shaper.Name, says)
	}
	return ""
}

// said is what stands in a policy's spec.deployment beside the pool, in the form of its manifest, in which
// equal quantities are equal.
func said(p *v1alpha1.DedupPolicy) map[string]any {
	p = p.DeepCopy()
	v1alpha1.SetDefaults(p)
	members := map[string]any{}
	data, err := json.Marshal(p.Spec.Deployment)
	if err == nil {
		err = json.Unmarshal(data, &members)
	}
	if err != nil {
		panic("render: a deployment's settings did not marshal: " + err.Error())
	}
	delete(members, "pool")
	return members
}

// text is a setting in words, of which a condition's message has room for some.
func text(value any) string {
	const most = 100
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	if len(data) > most {
		return strings.ToValidUTF8(string(data[:most]), "") + "…"
	}
	return string(data)
}
