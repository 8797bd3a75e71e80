package policy

import (
	"fmt"
	"regexp"
	"slices"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// The patterns are those of the CRD, character by character; a test compares them.
var (
	namePattern     = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)
	durationPattern = regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`)
	headerPattern   = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z:-]+$")
	pathPattern     = regexp.MustCompile(`^\$([ \t\n\r]*(\.[A-Za-z_\x{80}-\x{10FFFF}][A-Za-z0-9_\x{80}-\x{10FFFF}]*|\[[ \t\n\r]*(0|-?[1-9][0-9]*|\x27([^\x27\\\x{0}-\x{1F}]|\\([bfnrt/\\\x27]|u[0-9A-Fa-f]{4}))*\x27|\x22([^\x22\\\x{0}-\x{1F}]|\\([bfnrt/\\\x22]|u[0-9A-Fa-f]{4}))*\x22)[ \t\n\r]*\]))+$`)
)

const maxName = 52

// checker collects what is wrong with a policy.
type checker struct {
	errs field.ErrorList
}

func (c *checker) invalid(at *field.Path, value any, right string, args ...any) {
	c.errs = append(c.errs, field.Invalid(at, value, fmt.Sprintf(right, args...)))
}

func (c *checker) required(at *field.Path, right string) {
	c.errs = append(c.errs, field.Required(at, right))
}

func (c *checker) forbidden(at *field.Path, right string) {
	c.errs = append(c.errs, field.Forbidden(at, right))
}

// oneOf refuses a value that is not among the wanted ones.
func oneOf[T ~string](c *checker, at *field.Path, value T, want ...T) {
	if !slices.Contains(want, value) {
		c.errs = append(c.errs, field.NotSupported(at, value, want))
	}
}

// upTo refuses a number that is below 1 or above most.
func (c *checker) upTo(at *field.Path, value, most int64) {
	if value < 1 || value > most {
		c.invalid(at, value, "between 1 and %d", most)
	}
}

// count refuses a list of fewer or more items than the field takes.
func (c *checker) count(at *field.Path, items, least, most int) {
	if items < least || items > most {
		c.invalid(at, items, "the number of items: between %d and %d", least, most)
	}
}

// length refuses a string of fewer or more characters than the field takes. It reports whether
// the string fits.
func (c *checker) length(at *field.Path, value string, least, most int) bool {
	n := utf8.RuneCountInString(value)
	switch {
	case n < least:
		c.invalid(at, value, "at least %d characters", least)
	case n > most:
		c.invalid(at, abridged(value), "%d characters; at most %d", n, most)
	}
	return n >= least && n <= most
}

// abridged keeps an overlong value from flooding a message.
func abridged(value string) string {
	for i := range value {
		if i > 60 {
			return value[:i] + "…"
		}
	}
	return value
}

func validate(p *v1alpha1.DedupPolicy) field.ErrorList {
	c := &checker{}
	c.metadata(p)
	c.spec(&p.Spec)
	return c.errs
}

func (c *checker) metadata(p *v1alpha1.DedupPolicy) {
	at := field.NewPath("metadata")
	switch name := p.Name; {
	case name == "":
		c.required(at.Child("name"), "the policy's name, such as orders")
	case len(name) > maxName:
		c.invalid(at.Child("name"), abridged(name), "%d characters; at most %d, so that %s is a valid name for every child object",
			len(name), maxName, v1alpha1.ChildName("<name>"))
	case !namePattern.MatchString(name):
		c.invalid(at.Child("name"), name, "lower-case letters, digits and '-', starting with a letter and without dots, because a Service is named after it")
	}
	if p.Namespace != "" {
		for _, msg := range validation.IsDNS1123Label(p.Namespace) {
			c.invalid(at.Child("namespace"), abridged(p.Namespace), "%s", msg)
		}
	}
}

func (c *checker) spec(s *v1alpha1.DedupPolicySpec) {
	at := field.NewPath("spec")
	c.key(at.Child("key"), &s.Key)
	oneOf(c, at.Child("mode"), s.Mode, v1alpha1.ModeMark, v1alpha1.ModeClaim)
	oneOf(c, at.Child("scope"), s.Scope, v1alpha1.ScopeConsumer, v1alpha1.ScopePolicy)
	oneOf(c, at.Child("enforcement"), s.Enforcement, v1alpha1.EnforcementEnforce, v1alpha1.EnforcementShadow)
	oneOf(c, at.Child("onStoreFailure"), s.OnStoreFailure, v1alpha1.FailClosed, v1alpha1.FailOpen)
	c.upTo(at.Child("epoch"), s.Epoch, 1_000_000)
	c.times(at, s)
	c.store(at.Child("store"), &s.Store)
	c.dense(at, s)
	if n := s.NearCache; n != nil {
		at := at.Child("nearCache")
		c.upTo(at.Child("maxEntries"), n.MaxEntries, 10_000_000)
		c.duration(at.Child("maxAge"), n.MaxAge, 100*time.Millisecond, 10*time.Minute)
	}
	if s.Callers != nil {
		c.callers(at.Child("callers", "serviceAccounts"), s.Callers.ServiceAccounts)
	}
	if s.Deployment != nil {
		c.deployment(at.Child("deployment"), s.Deployment, s.Store.Memory != nil)
	}
}

func (c *checker) callers(at *field.Path, names []v1alpha1.ServiceAccountName) {
	c.count(at, len(names), 1, 64)
	for i, name := range names {
		switch at := at.Index(i); {
		case !c.length(at, string(name), 1, 253):
		case !objectPattern.MatchString(string(name)):
			c.invalid(at, name, "the name of a ServiceAccount: lower-case letters, digits, '-' and '.'")
		case slices.Contains(names[:i], name):
			c.errs = append(c.errs, field.Duplicate(at, name))
		}
	}
}

func (c *checker) times(at *field.Path, s *v1alpha1.DedupPolicySpec) {
	ttl, ttlOK := time.Duration(0), false
	if s.TTL == "" {
		c.required(at.Child("ttl"), "how long a message is remembered, such as 1h")
	} else {
		ttl, ttlOK = c.duration(at.Child("ttl"), s.TTL, time.Second, 87600*time.Hour)
	}
	leaseAt := at.Child("claim", "lease")
	if s.Mode != v1alpha1.ModeClaim && s.Claim != nil {
		c.forbidden(at.Child("claim"), "only with mode: Claim; with mode: Mark remove it")
	}
	lease, leaseOK := c.duration(leaseAt, leaseOf(s), 100*time.Millisecond, 24*time.Hour)
	if s.Mode == v1alpha1.ModeClaim && ttlOK && leaseOK && lease >= ttl {
		c.invalid(leaseAt, leaseOf(s), "must be shorter than ttl (%s), so that a claim's record outlives its lease; the default lease is %s", s.TTL, v1alpha1.DefaultLease)
	}
}

// duration refuses what the CRD's pattern and bounds refuse, and else returns the duration.
func (c *checker) duration(at *field.Path, d v1alpha1.Duration, least, most time.Duration) (time.Duration, bool) {
	if !c.length(at, string(d), 0, 32) {
		return 0, false
	}
	if !durationPattern.MatchString(string(d)) {
		c.invalid(at, d, "a duration in ms, s, m and h, such as 90s or 1h30m; no sign, no spaces")
		return 0, false
	}
	v, err := time.ParseDuration(string(d))
	if err != nil || v < least || v > most {
		c.invalid(at, d, "between %s and %s", short(least), short(most))
		return 0, false
	}
	return v, true
}

// short writes whole hours without their zero minutes and seconds.
func short(d time.Duration) string {
	if d >= time.Hour && d%time.Hour == 0 {
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return d.String()
}

func (c *checker) key(at *field.Path, k *v1alpha1.KeySpec) {
	oneOf(c, at.Child("onMissing"), k.OnMissing, v1alpha1.MissingReject, v1alpha1.MissingProcess)
	if k.Strategy == "" {
		c.required(at.Child("strategy"), "MessageID, ContentHash or Composite")
	} else {
		oneOf(c, at.Child("strategy"), k.Strategy, strategies...)
	}
	c.members(at, k)
	if m := k.MessageID; m != nil {
		c.messageID(at.Child("messageID"), m)
	}
	if h := k.ContentHash; h != nil {
		c.contentHash(at.Child("contentHash"), h)
	}
	if m := k.Composite; m != nil {
		parts := at.Child("composite", "parts")
		c.count(parts, len(m.Parts), 1, 16)
		for i, p := range m.Parts {
			c.part(parts.Index(i), p)
		}
	}
}

var strategies = []v1alpha1.KeyStrategy{v1alpha1.StrategyMessageID, v1alpha1.StrategyContentHash, v1alpha1.StrategyComposite}

// members holds the strategy and the members of key to each other.
func (c *checker) members(at *field.Path, k *v1alpha1.KeySpec) {
	for _, m := range []struct {
		name     string
		present  bool
		strategy v1alpha1.KeyStrategy
		optional bool
	}{
		{"messageID", k.MessageID != nil, v1alpha1.StrategyMessageID, false},
		{"contentHash", k.ContentHash != nil, v1alpha1.StrategyContentHash, true},
		{"composite", k.Composite != nil, v1alpha1.StrategyComposite, false},
	} {
		switch {
		case k.Strategy == m.strategy && !m.present && !m.optional:
			c.required(at.Child(m.name), fmt.Sprintf("strategy %s takes the member %s and no other", m.strategy, m.name))
		case k.Strategy != m.strategy && m.present && slices.Contains(strategies, k.Strategy):
			c.forbidden(at.Child(m.name), fmt.Sprintf("goes with strategy: %s only; the strategy is %q", m.strategy, k.Strategy))
		}
	}
}

func (c *checker) messageID(at *field.Path, m *v1alpha1.MessageIDKey) {
	n := 0
	for _, present := range []bool{m.Header != "", m.JSONPath != "", m.CloudEvent} {
		if present {
			n++
		}
	}
	if n != 1 {
		c.invalid(at, n, "the number of sources: exactly one of header, jsonPath or cloudEvent: true")
	}
	if m.Header != "" {
		c.header(at.Child("header"), m.Header)
	}
	if m.JSONPath != "" {
		c.path(at.Child("jsonPath"), m.JSONPath)
	}
}

func (c *checker) contentHash(at *field.Path, h *v1alpha1.ContentHashKey) {
	oneOf(c, at.Child("canonical"), h.Canonical, v1alpha1.CanonicalNone, v1alpha1.CanonicalJSON)
	for _, list := range []struct {
		name  string
		paths []v1alpha1.JSONPath
	}{{"include", h.Include}, {"exclude", h.Exclude}} {
		at := at.Child(list.name)
		if len(list.paths) > 0 && h.Canonical != v1alpha1.CanonicalJSON {
			c.forbidden(at, fmt.Sprintf("paths into JSON need canonical: JSON; it is %q", h.Canonical))
		}
		c.count(at, len(list.paths), 0, 32)
		for i, p := range list.paths {
			c.path(at.Index(i), p)
		}
	}
	if len(h.Include) > 0 && len(h.Exclude) > 0 {
		c.forbidden(at.Child("exclude"), "include or exclude, not both")
	}
	c.count(at.Child("headers"), len(h.Headers), 0, 16)
	for i, name := range h.Headers {
		c.header(at.Child("headers").Index(i), name)
	}
}

func (c *checker) part(at *field.Path, p v1alpha1.KeyPart) {
	if (p.Header != "") == (p.JSONPath != "") {
		c.invalid(at, fmt.Sprintf("header: %q, jsonPath: %q", p.Header, p.JSONPath), "exactly one of header or jsonPath in each part")
	}
	if p.Header != "" {
		c.header(at.Child("header"), p.Header)
	}
	if p.JSONPath != "" {
		c.path(at.Child("jsonPath"), p.JSONPath)
	}
}

func (c *checker) header(at *field.Path, h v1alpha1.HeaderName) {
	if c.length(at, string(h), 1, 128) && !headerPattern.MatchString(string(h)) {
		c.invalid(at, h, "letters, digits and any of ! # $ %% & ' * + - . ^ _ ` | ~ : (no space)")
	}
}

func (c *checker) path(at *field.Path, p v1alpha1.JSONPath) {
	if c.length(at, string(p), 2, 256) && !pathPattern.MatchString(string(p)) {
		c.invalid(at, p, "a singular query of RFC 9535, such as $.order.id, $['user id'] or $.items[0]; wildcards, filters, slices and '..' select more than one value")
	}
}
