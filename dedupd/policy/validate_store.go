package policy

import (
	"regexp"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

var (
	addressPattern = regexp.MustCompile(`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$`)
	prefixPattern  = regexp.MustCompile(`^[!-~]*$`)
	secretPattern  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)
)

func (c *checker) store(at *field.Path, s *v1alpha1.StoreSpec) {
	n := 0
	for _, present := range []bool{s.Redis != nil, s.Postgres != nil, s.Memory != nil} {
		if present {
			n++
		}
	}
	if n != 1 {
		c.invalid(at, n, "the number of stores: exactly one of redis or memory")
	}
	if s.Postgres != nil {
		c.forbidden(at.Child("postgres"), "reserved, not available yet; use store.redis")
	}
	if s.Redis != nil {
		c.redis(at.Child("redis"), s.Redis)
	}
	if s.Memory != nil {
		c.upTo(at.Child("memory", "maxEntries"), s.Memory.MaxEntries, 100_000_000)
	}
}

func (c *checker) redis(at *field.Path, r *v1alpha1.RedisStore) {
	oneOf(c, at.Child("mode"), r.Mode, v1alpha1.RedisStandalone, v1alpha1.RedisSentinel, v1alpha1.RedisCluster)
	oneOf(c, at.Child("keyFormat"), r.KeyFormat, v1alpha1.KeyReadable, v1alpha1.KeyCompact)
	addresses := at.Child("addresses")
	c.count(addresses, len(r.Addresses), 1, 32)
	if r.Mode == v1alpha1.RedisStandalone && len(r.Addresses) > 1 {
		c.invalid(addresses, len(r.Addresses), "the number of addresses: exactly one with mode: Standalone; several name the nodes of mode: Cluster or the sentinels of mode: Sentinel")
	}
	for i, a := range r.Addresses {
		if c.length(addresses.Index(i), a, 3, 260) && !validAddress(a) {
			c.invalid(addresses.Index(i), a, "host:port with a port from 1 to 65535, such as redis.shop.svc:6379; no scheme")
		}
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
	if t := r.TLS; t != nil {
		at := at.Child("tls")
		c.secret(at.Child("caSecretRef"), t.CASecretRef)
		c.secret(at.Child("clientSecretRef"), t.ClientSecretRef)
		c.length(at.Child("serverName"), t.ServerName, 0, 253)
	}
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
	case c.length(at, ref.Name, 1, 253) && !secretPattern.MatchString(ref.Name):
		c.invalid(at, ref.Name, "the name of a Secret: lower-case letters, digits, '-' and '.'")
	}
}
