// Package policy compiles a DedupPolicy into what dedupd runs. It is the only place where a
// spec gets its meaning: the operator compiles a policy before it applies anything, the daemon
// when it loads one, so what the operator accepts is what the daemon loads.
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/record"
)

// Policy is a compiled DedupPolicy. It does not change and is safe for concurrent use.
type Policy struct {
	// Namespace is "default" where the manifest names none.
	Namespace, Name string

	Mode  v1alpha1.Mode
	Scope v1alpha1.Scope

	// TTL is how long a message is remembered, Lease how long a claim is held: whole
	// milliseconds, Lease shorter than TTL. In mode Mark, Lease is what a claim from before a
	// change of the mode is renewed by.
	TTL, Lease time.Duration

	// Shadow: decisions are counted and do not bind. FailOpen: messages pass while the store is
	// down. ProcessMissing: messages without a key pass. VerifyContent: see Digest.
	Shadow, FailOpen, ProcessMissing, VerifyContent bool

	Strategy key.Strategy

	// StoreSpec is the store with every default filled in, StoreHash its HashStore.
	StoreSpec v1alpha1.StoreSpec
	StoreHash string

	// NearCache says what a replica remembers of the store's answers; no entries: nothing.
	NearCache NearCache

	// Callers are the ServiceAccounts of the namespace that may ask; none: everybody may.
	Callers []string

	// BirthKey is the key of the store's birth marker. It is the same in every epoch: it tells of
	// the server, and not of what is remembered.
	BirthKey string

	// ConfigHash is the HashConfig of the file that the policy was read from, and with callers
	// the HashWithKeys; empty for one that was compiled from an object.
	ConfigHash string

	// UnknownFields are the paths of members that this version does not know, from a file
	// that was not read strictly.
	UnknownFields []string

	prefix string
	hashed bool // the store holds a key's ID, not its text
}

// NearCache says how many records are remembered near, and for how long they are relied on.
type NearCache struct {
	MaxEntries int
	MaxAge     time.Duration
}

// Compile validates a policy in full and returns what it means. It fills in the defaults
// itself and leaves p as it is. Every error names the field's path, its value and what would
// be right. It refuses whatever the CRD refuses in an object of this type, and the few things
// that the CRD's rules cannot express.
func Compile(p *v1alpha1.DedupPolicy) (*Policy, field.ErrorList) {
	p = p.DeepCopy()
	v1alpha1.SetDefaults(p)
	if errs := validate(p); len(errs) > 0 {
		return nil, errs
	}
	s := &p.Spec
	ttl, lease := durations(s)
	c := &Policy{
		Namespace:      p.Namespace,
		Name:           p.Name,
		Mode:           s.Mode,
		Scope:          s.Scope,
		TTL:            ttl,
		Lease:          lease,
		Shadow:         s.Enforcement == v1alpha1.EnforcementShadow,
		FailOpen:       s.OnStoreFailure == v1alpha1.FailOpen,
		ProcessMissing: s.Key.OnMissing == v1alpha1.MissingProcess,
		VerifyContent:  s.Key.MessageID != nil && s.Key.MessageID.VerifyContent,
		StoreSpec:      s.Store,
		StoreHash:      HashStore(s.Store),
	}
	if n := s.NearCache; n != nil {
		c.NearCache = NearCache{MaxEntries: int(n.MaxEntries), MaxAge: parseDuration(n.MaxAge)}
	}
	if s.Callers != nil {
		for _, name := range s.Callers.ServiceAccounts {
			c.Callers = append(c.Callers, string(name))
		}
	}
	if c.Namespace == "" {
		c.Namespace = "default"
	}
	c.prefix = "dedup:" + c.Namespace + ":" + c.Name + ":"
	if r := s.Store.Redis; r != nil {
		c.hashed = r.KeyFormat != v1alpha1.KeyReadable
		if r.KeyPrefix != "" {
			c.prefix = r.KeyPrefix
		}
	}
	// No key begins with it: after a '~' comes JSON, "sha256:" or an epoch.
	c.BirthKey = c.prefix + "~birth"
	if s.Epoch > 1 {
		c.prefix += "~e" + strconv.FormatInt(s.Epoch, 10) + ":"
	}
	var errs field.ErrorList
	c.Strategy, errs = strategy(s.Key)
	if len(errs) > 0 {
		return nil, errs
	}
	return c, nil
}

// durations returns ttl and lease of a validated spec in whole milliseconds. Rounding ttl up
// and lease down keeps lease < ttl true.
func durations(s *v1alpha1.DedupPolicySpec) (ttl, lease time.Duration) {
	ttl = parseDuration(s.TTL)
	lease = parseDuration(leaseOf(s))
	if s.Mode != v1alpha1.ModeClaim {
		lease = min(lease, ttl/2)
	}
	ttl = (ttl + time.Millisecond - 1).Truncate(time.Millisecond)
	return ttl, lease.Truncate(time.Millisecond)
}

func leaseOf(s *v1alpha1.DedupPolicySpec) v1alpha1.Duration {
	if s.Claim == nil {
		return v1alpha1.DefaultLease
	}
	return s.Claim.Lease
}

// parseDuration reads a validated duration.
func parseDuration(d v1alpha1.Duration) time.Duration {
	v, err := time.ParseDuration(string(d))
	if err != nil {
		panic("policy: a duration was not validated: " + err.Error())
	}
	return v
}

// MaxConsumer is the length in bytes of the longest consumer name.
const MaxConsumer = 253

// ConsumerError says that a consumer's name cannot be used.
type ConsumerError struct {
	Consumer string
	Reason   string
}

// Error says what is wrong with the name.
func (e *ConsumerError) Error() string {
	return "consumer: " + e.Reason
}

// hashedLen is what key.Shorten puts in the place of a key's rest: "~sha256:" and 64 digits.
const hashedLen = len("~sha256:") + 2*sha256.Size

// Key returns the key of a consumer's message: under scope Consumer the consumer's name comes
// first. A *ConsumerError, *key.MissingError or *key.MalformedError says why there is none.
func (p *Policy) Key(consumer string, m key.Message) (string, error) {
	k, _, err := p.Keys(consumer, m)
	return k, err
}

// Keys is Key and the StoreKey of it.
func (p *Policy) Keys(consumer string, m key.Message) (k, stored string, err error) {
	scratch := buffers.Get().(*[]byte)
	defer buffers.Put(scratch)
	b, err := p.appendKey((*scratch)[:0], consumer, m)
	if cap(b) <= maxBuffer {
		*scratch = b
	}
	switch {
	case err != nil:
		return "", "", err
	case p.hashed:
		k = string(b)
		return k, p.StoreKey(k), nil
	default:
		stored = p.prefix + string(b)
		return stored[len(p.prefix):], stored, nil
	}
}

// buffers are for keys in the making. One that a message made large is not kept.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 256); return &b }}

const maxBuffer = 4 << 10

func (p *Policy) appendKey(b []byte, consumer string, m key.Message) ([]byte, error) {
	if len(consumer) > MaxConsumer {
		return b, &ConsumerError{Consumer: consumer, Reason: fmt.Sprintf("%d bytes, at most %d", len(consumer), MaxConsumer)}
	}
	if p.Scope == v1alpha1.ScopeConsumer {
		if consumer == "" {
			return b, &ConsumerError{Reason: "missing; under scope: Consumer each check names the consumer it is for"}
		}
		b = append(key.AppendConsumer(b, consumer), ':')
	}
	prefixLen := len(b)
	b, err := p.Strategy.AppendKey(b, m)
	if err != nil {
		return b, err
	}
	if prefixLen > key.MaxReadable-hashedLen {
		// A long consumer name is hashed along, so that a key's length stays bounded. It cannot
		// meet a key that begins with a name: no escaped name begins with '~'.
		prefixLen = 0
	}
	return key.Shorten(b, prefixLen), nil
}

// Digest is the digest by which CONFLICT is told from DUPLICATE: of a JSON body's canonical
// form, since a producer that repeats a message may write it differently, else of its bytes.
// It is zero where the policy does not verify content.
func (p *Policy) Digest(body []byte) record.Digest {
	if !p.VerifyContent {
		return record.Digest{}
	}
	hash, err := canonicalHash.AppendKey(nil, key.Message{Body: body})
	if err != nil {
		return record.DigestOf(body)
	}
	return record.DigestOf(hash)
}

var canonicalHash = key.ContentHash(key.ContentOptions{Canonical: true})

// StoreKey is the name under which the store keeps a key: the policy's prefix, its epoch, and
// the key itself or, in the formats Compact and Dense, its ID. This is the only place where a
// stored key is hashed.
func (p *Policy) StoreKey(k string) string {
	if !p.hashed {
		return p.prefix + k
	}
	id := key.IDOf(k)
	return p.prefix + string(id[:])
}

// HashConfig identifies a configuration file: the first 16 hex digits of its SHA-256. The
// operator computes it over what it writes, the daemon over what it reads.
func HashConfig(file []byte) string {
	sum := sha256.Sum256(file)
	return hex.EncodeToString(sum[:8])
}

// HashWithKeys is the HashConfig of a policy with callers: it tells of the keys by which they
// are known, too.
func HashWithKeys(configHash string, keys []byte) string {
	return HashConfig(append([]byte(configHash+"\n"), keys...))
}
