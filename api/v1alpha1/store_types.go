package v1alpha1

import "slices"

// StoreSpec says where messages are remembered. Exactly one member.
//
// +kubebuilder:validation:XValidation:rule="(has(self.redis) ? 1 : 0) + (has(self.postgres) ? 1 : 0) + (has(self.memory) ? 1 : 0) == 1",message="store: exactly one of redis, postgres or memory"
type StoreSpec struct {
	// A Redis (7.0 or newer) or Valkey (7.2 or newer) server.
	// +optional
	Redis *RedisStore `json:"redis,omitempty"`

	// A PostgreSQL server (14 or newer): nothing that it acknowledged is lost at a restart.
	// +optional
	Postgres *PostgresStore `json:"postgres,omitempty"`

	// The memory of the single dedupd process: for trying out. A restart forgets everything.
	// +optional
	Memory *MemoryStore `json:"memory,omitempty"`
}

// Secrets are the names of the Secrets that the store refers to, each once.
func (s *StoreSpec) Secrets() []string {
	var refs []*SecretRef
	var tls *StoreTLS
	switch {
	case s.Redis != nil:
		refs, tls = append(refs, s.Redis.CredentialsSecretRef), s.Redis.TLS
	case s.Postgres != nil:
		refs, tls = append(refs, &s.Postgres.CredentialsSecretRef), s.Postgres.TLS
	}
	if tls != nil {
		refs = append(refs, tls.CASecretRef, tls.ClientSecretRef)
	}
	var names []string
	for _, ref := range refs {
		if ref != nil && !slices.Contains(names, ref.Name) {
			names = append(names, ref.Name)
		}
	}
	return names
}

// Kind is the store's: Redis, Postgres or Memory.
func (s *StoreSpec) Kind() string {
	switch {
	case s.Redis != nil:
		return "Redis"
	case s.Postgres != nil:
		return "Postgres"
	}
	return "Memory"
}

// RedisMode is a Redis topology.
//
// +kubebuilder:validation:Enum=Standalone;Sentinel;Cluster
type RedisMode string

// The Redis topologies.
const (
	RedisStandalone RedisMode = "Standalone"
	RedisSentinel   RedisMode = "Sentinel"
	RedisCluster    RedisMode = "Cluster"
)

// KeyFormat is the form of the keys in the store.
//
// +kubebuilder:validation:Enum=Readable;Compact;Dense
type KeyFormat string

// The key formats.
const (
	KeyReadable KeyFormat = "Readable"
	KeyCompact  KeyFormat = "Compact"
	KeyDense    KeyFormat = "Dense"
)

// RedisStore is a Redis or Valkey server.
//
// +kubebuilder:validation:XValidation:rule="!has(self.dense) || self.keyFormat == 'Dense'",message="redis.dense: only with keyFormat: Dense"
// +kubebuilder:validation:XValidation:rule="(self.mode == 'Sentinel') == has(self.masterName)",message="redis.masterName: with mode: Sentinel, and only then, the name under which the sentinels know the master"
// +kubebuilder:validation:XValidation:rule="self.mode != 'Standalone' || size(self.addresses) == 1",message="redis.addresses: exactly one with mode: Standalone; several name the nodes of mode: Cluster or the sentinels of mode: Sentinel"
type RedisStore struct {
	// Standalone, Sentinel or Cluster.
	// +optional
	// +kubebuilder:default=Standalone
	Mode RedisMode `json:"mode,omitempty"`

	// host:port of the server; in mode Sentinel of the sentinels; in mode Cluster of some nodes.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=3
	// +kubebuilder:validation:items:MaxLength=260
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^([A-Za-z0-9._-]+|\\\\[[0-9A-Fa-f:.]+\\\\]):[0-9]{1,5}$') && int(self.substring(self.lastIndexOf(':') + 1)) >= 1 && int(self.substring(self.lastIndexOf(':') + 1)) <= 65535",message="redis.addresses: host:port with a port from 1 to 65535, such as redis.shop.svc:6379; no scheme"
	Addresses []string `json:"addresses"`

	// The name under which the sentinels know the master. Mode Sentinel only.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	MasterName string `json:"masterName,omitempty"`

	// A Secret of this namespace with the keys username (optional) and password.
	// +optional
	CredentialsSecretRef *SecretRef `json:"credentialsSecretRef,omitempty"`

	// Speaks TLS to the server. An empty object uses the system's certificate authorities.
	// +optional
	TLS *StoreTLS `json:"tls,omitempty"`

	// Waits for replicas before a message is FRESH. Without it a failover may lose the latest
	// marks, whose messages then pass once more.
	// +optional
	Durability *RedisDurability `json:"durability,omitempty"`

	// What every stored key starts with. Default dedup:<namespace>:<policy>:
	// +optional
	// +kubebuilder:default=""
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[!-~]*$`
	KeyPrefix string `json:"keyPrefix"`

	// Readable: a key for each message, which redis-cli can find. Compact: messages share Redis
	// hashes, for less than half of the memory and twice the time of the server. Dense: as Compact,
	// for many millions of messages in mode Mark, in a fifth of the memory; ttl is then kept to a
	// quarter of a second, and never cut short.
	// +optional
	// +kubebuilder:default=Readable
	KeyFormat KeyFormat `json:"keyFormat,omitempty"`

	// Settings of keyFormat Dense.
	// +optional
	Dense *RedisDense `json:"dense,omitempty"`
}

// RedisDurability says how many replicas have to have a mark before its message is FRESH.
type RedisDurability struct {
	// How many replicas, beside the primary, acknowledge each mark, claim and completion. Fewer
	// than the server has.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=5
	Replicas int32 `json:"replicas"`

	// How long to wait for them. What then lacks acknowledgements is as if the store had not
	// answered, see onStoreFailure. At least 1ms, at most 500ms.
	// +optional
	// +kubebuilder:default="50ms"
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1ms') && duration(self) <= duration('500ms')",message="durability.timeout: between 1ms and 500ms"
	Timeout Duration `json:"timeout,omitempty"`
}

// RedisDense are the settings of keyFormat Dense.
type RedisDense struct {
	// How many messages are expected within one ttl. It decides how many hashes share them:
	// with more messages than that the hashes need more memory, and stay exact.
	// +optional
	// +kubebuilder:default=1000000
	// +kubebuilder:validation:Minimum=1000
	// +kubebuilder:validation:Maximum=10000000000
	ExpectedMessages int64 `json:"expectedMessages,omitempty"`
}

// SecretRef names a Secret of the policy's namespace.
type SecretRef struct {
	// The name of the Secret.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Name string `json:"name"`
}

// StoreTLS says how the server is verified and how dedupd identifies itself.
type StoreTLS struct {
	// A Secret with the key ca.crt: the authorities that may sign the server's certificate.
	// +optional
	CASecretRef *SecretRef `json:"caSecretRef,omitempty"`

	// A Secret with the keys tls.crt and tls.key: dedupd's client certificate.
	// +optional
	ClientSecretRef *SecretRef `json:"clientSecretRef,omitempty"`

	// The name that the server's certificate must bear, if not the host of the address.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	ServerName string `json:"serverName,omitempty"`
}

// PostgresStore is a PostgreSQL server.
type PostgresStore struct {
	// host:port of the server. Of several, which are tried in order, the one that takes writes
	// is used.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MinLength=3
	// +kubebuilder:validation:items:MaxLength=260
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^([A-Za-z0-9._-]+|\\\\[[0-9A-Fa-f:.]+\\\\]):[0-9]{1,5}$') && int(self.substring(self.lastIndexOf(':') + 1)) >= 1 && int(self.substring(self.lastIndexOf(':') + 1)) <= 65535",message="postgres.addresses: host:port with a port from 1 to 65535, such as postgres.shop.svc:5432; no scheme"
	Addresses []string `json:"addresses"`

	// The name of the database, which has to exist.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[!-~]+$`
	Database string `json:"database"`

	// The schema of dedupd's tables. dedupd makes and migrates both; policies may share them.
	// +optional
	// +kubebuilder:default=dedupd
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z_][a-z0-9_]*$`
	Schema string `json:"schema,omitempty"`

	// A Secret of this namespace with the keys username and password.
	// +required
	CredentialsSecretRef SecretRef `json:"credentialsSecretRef"`

	// Speaks TLS to the server. An empty object uses the system's certificate authorities.
	// +optional
	TLS *StoreTLS `json:"tls,omitempty"`
}

// MemoryStore keeps everything in the one dedupd process.
type MemoryStore struct {
	// How many messages are remembered at most. When full, new messages are refused with
	// UNAVAILABLE (or pass as UNCHECKED under FailOpen); nothing is evicted early.
	// +optional
	// +kubebuilder:default=1000000
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000000
	MaxEntries int64 `json:"maxEntries,omitempty"`
}
