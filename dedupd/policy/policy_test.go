package policy

import (
	"crypto/sha256"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/record"
)

// manifestOf returns a policy by the header id with a Redis store, as changed by mods.
func manifestOf(mods ...func(*v1alpha1.DedupPolicy)) *v1alpha1.DedupPolicy {
	p := &v1alpha1.DedupPolicy{}
	p.Name, p.Namespace = "orders", "shop"
	p.Spec = v1alpha1.DedupPolicySpec{
		Key:   v1alpha1.KeySpec{Strategy: v1alpha1.StrategyMessageID, MessageID: &v1alpha1.MessageIDKey{Header: "Message-Id"}},
		TTL:   "1h",
		Store: v1alpha1.StoreSpec{Redis: &v1alpha1.RedisStore{Addresses: []string{"redis.shop.svc:6379"}}},
	}
	for _, mod := range mods {
		mod(p)
	}
	return p
}

func compiled(t *testing.T, mods ...func(*v1alpha1.DedupPolicy)) *Policy {
	t.Helper()
	p, errs := Compile(manifestOf(mods...))
	if len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	return p
}

func withID(id string) key.Message {
	return key.Message{Headers: key.MapHeaders{"message-id": id}}
}

func TestCompileFillsInDefaultsAndLeavesItsArgumentAlone(t *testing.T) {
	in := manifestOf()
	before := in.DeepCopy()
	p, errs := Compile(in)
	if len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	if diff := cmp.Diff(before, in); diff != "" {
		t.Errorf("the argument changed:\n%s", diff)
	}
	if p.Mode != v1alpha1.ModeMark || p.Scope != v1alpha1.ScopeConsumer || p.Shadow || p.FailOpen || p.ProcessMissing || p.VerifyContent {
		t.Errorf("%+v, want the defaults", p)
	}
	if p.StoreSpec.Redis.KeyFormat != v1alpha1.KeyReadable || p.StoreSpec.Redis.Mode != v1alpha1.RedisStandalone {
		t.Errorf("store %+v, want the defaults filled in", p.StoreSpec.Redis)
	}
	in.Spec.Store.Redis.Addresses[0] = "changed:1"
	if p.StoreSpec.Redis.Addresses[0] != "redis.shop.svc:6379" {
		t.Error("the policy shares memory with its manifest")
	}
}

func TestDurationsAreWholeMillisecondsAndTheLeaseTheShorter(t *testing.T) {
	tests := map[string]struct {
		ttl, lease v1alpha1.Duration
		mode       v1alpha1.Mode
		wantTTL    time.Duration
		wantLease  time.Duration
	}{
		"as written":                     {"1h", "45s", v1alpha1.ModeClaim, time.Hour, 45 * time.Second},
		"ttl goes up, lease goes down":   {"1.0004s", "1.0003s", v1alpha1.ModeClaim, 1001 * time.Millisecond, time.Second},
		"the default lease":              {"1h", "", v1alpha1.ModeClaim, time.Hour, 30 * time.Second},
		"Mark, for claims from before":   {"1h", "", v1alpha1.ModeMark, time.Hour, 30 * time.Second},
		"Mark, with a ttl that is short": {"10s", "", v1alpha1.ModeMark, 10 * time.Second, 5 * time.Second},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := compiled(t, func(p *v1alpha1.DedupPolicy) {
				p.Spec.TTL, p.Spec.Mode = test.ttl, test.mode
				if test.lease != "" {
					p.Spec.Claim = &v1alpha1.ClaimSpec{Lease: test.lease}
				}
			})
			if p.TTL != test.wantTTL || p.Lease != test.wantLease {
				t.Errorf("ttl %s, lease %s, want %s, %s", p.TTL, p.Lease, test.wantTTL, test.wantLease)
			}
		})
	}
}

func TestAKeyBeginsWithItsConsumerUnlessAllShare(t *testing.T) {
	long := strings.Repeat("ä", 126) // 252 bytes, three times that when escaped
	tests := map[string]struct {
		scope    v1alpha1.Scope
		consumer string
		id       string
		want     string // a regular expression
	}{
		"scope Consumer":                  {v1alpha1.ScopeConsumer, "billing", "7", `billing:7`},
		"a consumer's name is escaped":    {v1alpha1.ScopeConsumer, "a:b", "7", `a=3Ab:7`},
		"scope Policy":                    {v1alpha1.ScopePolicy, "billing", "7", `7`},
		"scope Policy, no consumer":       {v1alpha1.ScopePolicy, "", "7", `7`},
		"a long key keeps its consumer":   {v1alpha1.ScopeConsumer, "billing", strings.Repeat("7", 300), `billing:~sha256:[0-9a-f]{64}`},
		"a long consumer is hashed along": {v1alpha1.ScopeConsumer, long, "7", `~sha256:[0-9a-f]{64}`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := compiled(t, func(p *v1alpha1.DedupPolicy) { p.Spec.Scope = test.scope })
			got, err := p.Key(test.consumer, withID(test.id))
			if err != nil {
				t.Fatal(err)
			}
			if !regexp.MustCompile("^"+test.want+"$").MatchString(got) || len(got) > key.MaxReadable {
				t.Errorf("%q, want %s and at most %d bytes", got, test.want, key.MaxReadable)
			}
		})
	}
}

func TestAKeyThatCannotBeFormedSaysWhy(t *testing.T) {
	p := compiled(t)
	var consumer *ConsumerError
	if _, err := p.Key("", withID("7")); !errors.As(err, &consumer) {
		t.Errorf("%v, want a ConsumerError", err)
	}
	if _, err := p.Key(strings.Repeat("c", MaxConsumer+1), withID("7")); !errors.As(err, &consumer) {
		t.Errorf("%v, want a ConsumerError", err)
	}
	if _, err := p.Key(strings.Repeat("c", MaxConsumer), withID("7")); err != nil {
		t.Errorf("%v for the longest name", err)
	}
	var missing *key.MissingError
	if _, err := p.Key("billing", key.Message{}); !errors.As(err, &missing) {
		t.Errorf("%v, want a MissingError", err)
	}
}

// FuzzKey: different pairs of consumer and identifier never share a key, and a key is short,
// printable, and the same each time.
func FuzzKey(f *testing.F) {
	f.Add("a", "b:c", "a:b", "c")
	f.Add("a", "b", "a", "b")
	f.Add(strings.Repeat("x", 253), "1", strings.Repeat("x", 252), "x1")
	f.Add("~sha256", "0", "~", "sha256")
	f.Add("\xff", "\x00", "=FF", "=00")
	p, errs := Compile(manifestOf())
	if len(errs) > 0 {
		f.Fatal(errs)
	}
	printable := regexp.MustCompile(`^[!-z~]+$`)
	f.Fuzz(func(t *testing.T, c1, id1, c2, id2 string) {
		k1, err1 := p.Key(c1, withID(id1))
		k2, err2 := p.Key(c2, withID(id2))
		if err1 != nil || err2 != nil {
			return
		}
		if (k1 == k2) != (c1 == c2 && id1 == id2) {
			t.Errorf("(%q, %q) and (%q, %q): %q and %q", c1, id1, c2, id2, k1, k2)
		}
		if len(k1) > key.MaxReadable || !printable.MatchString(k1) {
			t.Errorf("key %q of %d bytes", k1, len(k1))
		}
	})
}

func TestAStoredKeyHasItsPrefixAndEpoch(t *testing.T) {
	sum := sha256.Sum256([]byte("billing:7"))
	tests := map[string]struct {
		mod  func(*v1alpha1.DedupPolicy)
		want string
	}{
		"the default":         {func(*v1alpha1.DedupPolicy) {}, "dedup:shop:orders:billing:7"},
		"without a namespace": {func(p *v1alpha1.DedupPolicy) { p.Namespace = "" }, "dedup:default:orders:billing:7"},
		"an own prefix":       {func(p *v1alpha1.DedupPolicy) { p.Spec.Store.Redis.KeyPrefix = "x/" }, "x/billing:7"},
		"the first epoch":     {func(p *v1alpha1.DedupPolicy) { p.Spec.Epoch = 1 }, "dedup:shop:orders:billing:7"},
		"the second":          {func(p *v1alpha1.DedupPolicy) { p.Spec.Epoch = 2 }, "dedup:shop:orders:~e2:billing:7"},
		"compact":             {func(p *v1alpha1.DedupPolicy) { p.Spec.Store.Redis.KeyFormat = v1alpha1.KeyCompact }, "dedup:shop:orders:" + string(sum[:16])},
		"dense":               {func(p *v1alpha1.DedupPolicy) { p.Spec.Store.Redis.KeyFormat = v1alpha1.KeyDense }, "dedup:shop:orders:" + string(sum[:16])},
		"own, second, compact": {func(p *v1alpha1.DedupPolicy) {
			p.Spec.Epoch = 2
			p.Spec.Store.Redis.KeyPrefix, p.Spec.Store.Redis.KeyFormat = "x/", v1alpha1.KeyCompact
		}, "x/~e2:" + string(sum[:16])},
		"memory": {func(p *v1alpha1.DedupPolicy) { p.Spec.Store = v1alpha1.StoreSpec{Memory: &v1alpha1.MemoryStore{}} }, "dedup:shop:orders:billing:7"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := compiled(t, test.mod).StoreKey("billing:7"); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func TestADigestIsOfTheContentAndNotOfItsSpelling(t *testing.T) {
	p := compiled(t, func(p *v1alpha1.DedupPolicy) { p.Spec.Key.MessageID.VerifyContent = true })
	a, b := p.Digest([]byte(`{"a":1,"b":[2]}`)), p.Digest([]byte("{ \"b\": [2.0],\n\"a\": 1 }"))
	if a != b || a == (record.Digest{}) {
		t.Errorf("%x and %x, want one digest that is not zero", a, b)
	}
	for _, other := range []string{`{"a":1,"b":[3]}`, `{"a":1`, "", "\xff"} {
		if p.Digest([]byte(other)) == a {
			t.Errorf("%q has the digest of another content", other)
		}
	}
	if got := compiled(t).Digest([]byte("x")); got != (record.Digest{}) {
		t.Errorf("%x without verifyContent, want zero", got)
	}
}

func TestHashStoreSeesSettingsAndNotDefaults(t *testing.T) {
	bare := v1alpha1.StoreSpec{Redis: &v1alpha1.RedisStore{Addresses: []string{"a:1"}}}
	written := v1alpha1.StoreSpec{Redis: &v1alpha1.RedisStore{
		Addresses: []string{"a:1"}, Mode: v1alpha1.RedisStandalone, KeyFormat: v1alpha1.KeyReadable,
	}}
	if HashStore(bare) != HashStore(written) || len(HashStore(bare)) != 16 {
		t.Errorf("%q and %q, want one hash of 16 digits", HashStore(bare), HashStore(written))
	}
	seen := map[string]string{HashStore(bare): "bare"}
	for name, mod := range map[string]func(*v1alpha1.RedisStore){
		"address":     func(r *v1alpha1.RedisStore) { r.Addresses = []string{"b:1"} },
		"credentials": func(r *v1alpha1.RedisStore) { r.CredentialsSecretRef = &v1alpha1.SecretRef{Name: "s"} },
		"tls":         func(r *v1alpha1.RedisStore) { r.TLS = &v1alpha1.StoreTLS{} },
		"keyFormat":   func(r *v1alpha1.RedisStore) { r.KeyFormat = v1alpha1.KeyCompact },
		"durability":  func(r *v1alpha1.RedisStore) { r.Durability = &v1alpha1.RedisDurability{Replicas: 1} },
	} {
		s := *bare.DeepCopy()
		mod(s.Redis)
		if other, ok := seen[HashStore(s)]; ok {
			t.Errorf("%s and %s have one hash", name, other)
		}
		seen[HashStore(s)] = name
	}
	if bare.Redis.Mode != "" {
		t.Error("the argument changed")
	}
}

func TestThePatternsAreThoseOfTheCRD(t *testing.T) {
	data, err := os.ReadFile("../../config/crd/bases/dedupd.io_deduppolicies.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var crd any
	if err := yaml.Unmarshal(data, &crd); err != nil {
		t.Fatal(err)
	}
	texts := validations(crd)
	celString := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	for _, p := range []*regexp.Regexp{namePattern, durationPattern, headerPattern, pathPattern, addressPattern, prefixPattern, databasePattern, schemaPattern, objectPattern, poolPattern} {
		// As it is in `pattern` and in a raw string of CEL, or as a plain string of CEL has it.
		if !slices.ContainsFunc(texts, func(text string) bool {
			return strings.Contains(text, p.String()) || strings.Contains(text, celString.Replace(p.String()))
		}) {
			t.Errorf("%s is not in the CRD", p)
		}
	}
}

// validations are all texts of members pattern and rule.
func validations(v any) []string {
	var out []string
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if text, ok := member.(string); ok && (name == "pattern" || name == "rule") {
				out = append(out, text)
			}
			out = append(out, validations(member)...)
		}
	case []any:
		for _, item := range v {
			out = append(out, validations(item)...)
		}
	}
	return out
}
