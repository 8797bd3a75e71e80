package v1alpha1

// SetDefaults fills in what the schema of the CRD would, for a policy that was read from a
// file and not from the API server. A test holds the two to each other.
func SetDefaults(p *DedupPolicy) {
	s := &p.Spec
	setDefault(&s.Mode, ModeMark)
	setDefault(&s.Epoch, 1)
	setDefault(&s.Scope, ScopeConsumer)
	setDefault(&s.Enforcement, EnforcementEnforce)
	setDefault(&s.OnStoreFailure, FailClosed)
	setDefault(&s.Key.OnMissing, MissingReject)
	if s.Claim != nil {
		setDefault(&s.Claim.Lease, DefaultLease)
	}
	if c := s.Key.ContentHash; c != nil {
		setDefault(&c.Canonical, CanonicalNone)
	}
	if r := s.Store.Redis; r != nil {
		setDefault(&r.Mode, RedisStandalone)
		setDefault(&r.KeyFormat, KeyReadable)
		if d := r.Durability; d != nil {
			setDefault(&d.Timeout, DefaultDurabilityTimeout)
		}
		if d := r.Dense; d != nil {
			setDefault(&d.ExpectedMessages, DefaultExpectedMessages)
		}
	}
	if pg := s.Store.Postgres; pg != nil {
		setDefault(&pg.Schema, "dedupd")
	}
	if m := s.Store.Memory; m != nil {
		setDefault(&m.MaxEntries, 1_000_000)
	}
	if n := s.NearCache; n != nil {
		setDefault(&n.MaxEntries, 100_000)
		setDefault(&n.MaxAge, "10s")
	}
	if d := s.Deployment; d != nil && d.Autoscaling != nil {
		setDefault(&d.Autoscaling.MinReplicas, 2)
		setDefault(&d.Autoscaling.TargetCPUUtilization, 70)
	}
}

// DefaultLease is the lease of mode Claim where spec.claim is absent.
const DefaultLease Duration = "30s"

// DefaultDurabilityTimeout is how long replicas have where store.redis.durability does not say.
const DefaultDurabilityTimeout Duration = "50ms"

// DefaultExpectedMessages is how many messages keyFormat Dense is laid out for where
// store.redis.dense does not say.
const DefaultExpectedMessages int64 = 1_000_000

func setDefault[T comparable](field *T, value T) {
	var unset T
	if *field == unset {
		*field = value
	}
}
