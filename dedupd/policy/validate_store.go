package policy

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

var (
	addressPattern  = regexp.MustCompile(`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$`)
	prefixPattern   = regexp.MustCompile(`^[!-~]*$`)
	databasePattern = regexp.MustCompile(`^[!-~]+$`)
	schemaPattern   = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)
	objectPattern   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)
)

func (c *checker) store(at *field.Path, s *v1alpha1.StoreSpec) {
	n := 0
	for _, present := range []bool{s.Redis != nil, s.Postgres != nil, s.Memory != nil} {
		if present {
			n++
		}
	}
	if n != 1 {
		c.invalid(at, n, "the number of stores: exactly one of redis, postgres or memory")
	}
	if s.Redis != nil {
		c.redis(at.Child("redis"), s.Redis)
	}
	if s.Postgres != nil {
		c.postgres(at.Child("postgres"), s.Postgres)
	}
	if s.Memory != nil {
		c.upTo(at.Child("memory", "maxEntries"), s.Memory.MaxEntries, 100_000_000)
	}
}

func (c *checker) redis(at *field.Path, r *v1alpha1.RedisStore) {
	oneOf(c, at.Child("mode"), r.Mode, v1alpha1.RedisStandalone, v1alpha1.RedisSentinel, v1alpha1.RedisCluster)
	oneOf(c, at.Child("keyFormat"), r.KeyFormat, v1alpha1.KeyReadable, v1alpha1.KeyCompact, v1alpha1.KeyDense)
	addresses := at.Child("addresses")
	c.addresses(addresses, r.Addresses, 32, "redis.shop.svc:6379")
	if r.Mode == v1alpha1.RedisStandalone && len(r.Addresses) > 1 {
		c.invalid(addresses, len(r.Addresses), "the number of addresses: exactly one with mode: Standalone; several name the nodes of mode: Cluster or the sentinels of mode: Sentinel")
	}
	switch masterName := at.Child("masterName"); {
	case r.Mode == v1alpha1.RedisSentinel && r.MasterName == "":
		c.required(masterName, "with mode: Sentinel, the name under which the sentinels know the master")
	case r.Mode != v1alpha1.RedisSentinel && r.MasterName != "":
		c.forbidden(masterName, "only with mode: Sentinel")
	}
	c.length(at.Child("masterName"), r.MasterName, 0, 256)
	if c.length(at.Child("keyPrefix"), r.KeyPrefix, 0, 128) && !prefixPattern.MatchString(r.KeyPrefix) {
		c.invalid(at.Child("keyPrefix"), r.KeyPrefix, "printable ASCII without spaces, such as dedup:orders:")
	}
	c.secret(at.Child("credentialsSecretRef"), r.CredentialsSecretRef)
	c.tls(at.Child("tls"), r.TLS)
	if d := r.Durability; d != nil {
		c.upTo(at.Child("durability", "replicas"), int64(d.Replicas), 5)
		c.duration(at.Child("durability", "timeout"), d.Timeout, time.Millisecond, 500*time.Millisecond)
	}
	switch dense := at.Child("dense"); {
	case r.Dense == nil:
	case r.KeyFormat != v1alpha1.KeyDense:
		c.forbidden(dense, fmt.Sprintf("only with keyFormat: Dense; it is %q", r.KeyFormat))
	case r.Dense.ExpectedMessages < 1000 || r.Dense.ExpectedMessages > 10_000_000_000:
		c.invalid(dense.Child("expectedMessages"), r.Dense.ExpectedMessages, "between 1000 and 10000000000")
	}
}

// dense refuses what the records of keyFormat Dense have no room for.
func (c *checker) dense(at *field.Path, s *v1alpha1.DedupPolicySpec) {
	if s.Store.Redis == nil || s.Store.Redis.KeyFormat != v1alpha1.KeyDense {
		return
	}
	if s.Mode == v1alpha1.ModeClaim {
		c.invalid(at.Child("mode"), s.Mode, "Mark with store.redis.keyFormat: Dense, whose records hold no claims; use Readable or Compact for mode: Claim")
	}
	if s.Key.MessageID != nil && s.Key.MessageID.VerifyContent {
		c.forbidden(at.Child("key", "messageID", "verifyContent"),
			"not with store.redis.keyFormat: Dense, whose records hold no digest of the content; use Readable or Compact")
	}
}

func (c *checker) postgres(at *field.Path, p *v1alpha1.PostgresStore) {
	c.addresses(at.Child("addresses"), p.Addresses, 8, "postgres.shop.svc:5432")
	if p.Database == "" {
		c.required(at.Child("database"), "the name of a database that exists")
	} else if c.length(at.Child("database"), p.Database, 1, 63) && !databasePattern.MatchString(p.Database) {
		c.invalid(at.Child("database"), p.Database, "printable ASCII without spaces, such as dedup")
	}
	if c.length(at.Child("schema"), p.Schema, 1, 63) && !schemaPattern.MatchString(p.Schema) {
		c.invalid(at.Child("schema"), p.Schema, "lower-case letters, digits and '_', not starting with a digit, such as dedupd")
	}
	c.secret(at.Child("credentialsSecretRef"), &p.CredentialsSecretRef)
	c.tls(at.Child("tls"), p.TLS)
}

func (c *checker) addresses(at *field.Path, list []string, most int, example string) {
	c.count(at, len(list), 1, most)
	for i, a := range list {
		if c.length(at.Index(i), a, 3, 260) && !validAddress(a) {
			c.invalid(at.Index(i), a, "host:port with a port from 1 to 65535, such as %s; no scheme", example)
		}
	}
}

func (c *checker) tls(at *field.Path, t *v1alpha1.StoreTLS) {
	if t == nil {
		return
	}
	c.secret(at.Child("caSecretRef"), t.CASecretRef)
	c.secret(at.Child("clientSecretRef"), t.ClientSecretRef)
	c.length(at.Child("serverName"), t.ServerName, 0, 253)
}

func validAddress(a string) bool {
	if !addressPattern.MatchString(a) {
		return false
	}
	port, err := strconv.Atoi(a[strings.LastIndexByte(a, ':')+1:])
	return err == nil && port >= 1 && port <= 65535
}

func (c *checker) secret(at *field.Path, ref *v1alpha1.SecretRef) {
	switch at := at.Child("name"); {
	case ref == nil:
	case ref.Name == "":
		c.required(at, "the name of a Secret in the policy's namespace")
	case c.length(at, ref.Name, 1, 253) && !objectPattern.MatchString(ref.Name):
		c.invalid(at, ref.Name, "the name of a Secret: lower-case letters, digits, '-' and '.'")
	}
}
