package policy

import (
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/key"
)

// strategy builds the key strategy of a validated spec. What it still refuses are paths that
// match the CRD's pattern and are no RFC 9535 query all the same, such as one with a lone
// surrogate or an index beyond 2^53-1.
func strategy(s v1alpha1.KeySpec) (key.Strategy, field.ErrorList) {
	b := &strategyBuilder{}
	at := field.NewPath("spec", "key")
	var built key.Strategy
	switch s.Strategy {
	case v1alpha1.StrategyMessageID:
		at, m := at.Child("messageID"), s.MessageID
		if m.CloudEvent {
			built = key.CloudEvent()
		} else {
			built = key.MessageID(b.source(at, m.Header, m.JSONPath))
		}
	case v1alpha1.StrategyComposite:
		parts := make([]key.Source, 0, len(s.Composite.Parts))
		for i, p := range s.Composite.Parts {
			parts = append(parts, b.source(at.Child("composite", "parts").Index(i), p.Header, p.JSONPath))
		}
		built = key.Composite(parts)
	default: // ContentHash
		at, c := at.Child("contentHash"), s.ContentHash
		if c == nil {
			c = &v1alpha1.ContentHashKey{}
		}
		o := key.ContentOptions{
			Canonical: c.Canonical == v1alpha1.CanonicalJSON,
			Include:   b.paths(at.Child("include"), c.Include),
			Exclude:   b.paths(at.Child("exclude"), c.Exclude),
		}
		for _, h := range c.Headers {
			o.Headers = append(o.Headers, strings.ToLower(string(h)))
		}
		built = key.ContentHash(o)
	}
	return built, b.errs
}

type strategyBuilder struct {
	errs field.ErrorList
}

func (b *strategyBuilder) source(at *field.Path, header v1alpha1.HeaderName, path v1alpha1.JSONPath) key.Source {
	if header != "" {
		return key.Source{Header: strings.ToLower(string(header))}
	}
	p := b.path(at.Child("jsonPath"), path)
	return key.Source{Path: &p}
}

func (b *strategyBuilder) paths(at *field.Path, list []v1alpha1.JSONPath) []key.Path {
	var out []key.Path
	for i, p := range list {
		out = append(out, b.path(at.Index(i), p))
	}
	return out
}

func (b *strategyBuilder) path(at *field.Path, p v1alpha1.JSONPath) key.Path {
	parsed, err := key.ParsePath(string(p))
	if err != nil {
		b.errs = append(b.errs, field.Invalid(at, p, err.Error()))
	}
	return parsed
}
