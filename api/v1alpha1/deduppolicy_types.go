package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DedupPolicy says how to recognise a message that was seen before, how long to remember
// it, and where. The operator runs one dedupd deployment for it, which answers Check for
// each message of the consumers that name this policy.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=ddp,categories=dedup
// +kubebuilder:printcolumn:name="Strategy",type=string,JSONPath=`.spec.key.strategy`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="TTL",type=string,JSONPath=`.spec.ttl`
// +kubebuilder:printcolumn:name="Store",type=string,JSONPath=`.status.store`
// +kubebuilder:printcolumn:name="Endpoint",type=string,JSONPath=`.status.endpoint`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 52",message="metadata.name: at most 52 characters, so that <name>-dedupd is a valid name for every child object"
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",message="metadata.name: lower-case letters, digits and '-', starting with a letter and without dots, because a Service is named after it"
type DedupPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What to recognise, for how long, and where it is remembered.
	// +required
	Spec DedupPolicySpec `json:"spec"`

	// What the operator has observed. Written by the operator only.
	// +optional
	Status DedupPolicyStatus `json:"status,omitempty"`
}

// DedupPolicyList is a list of policies.
//
// +kubebuilder:object:root=true
type DedupPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DedupPolicy `json:"items"`
}

// DedupPolicySpec is the desired behaviour of a policy.
//
// +kubebuilder:validation:XValidation:rule="self.mode == 'Claim' || !has(self.claim)",message="claim: only with mode: Claim; with mode: Mark remove it"
// +kubebuilder:validation:XValidation:rule="self.mode != 'Claim' || duration(has(self.claim) && has(self.claim.lease) ? self.claim.lease : '30s') < duration(self.ttl)",message="claim.lease: must be shorter than ttl, so that a claim's record outlives its lease (the default lease is 30s)"
// +kubebuilder:validation:XValidation:rule="!has(self.store.memory) || !has(self.deployment) || !has(self.deployment.replicas) || self.deployment.replicas == 1",message="deployment.replicas: must be 1 with store.memory, whose marks live in a single process; use store.redis for more replicas"
// +kubebuilder:validation:XValidation:rule="!has(self.store.memory) || !has(self.deployment) || !has(self.deployment.autoscaling)",message="deployment.autoscaling: not with store.memory, whose marks live in a single process; use store.redis"
// +kubebuilder:validation:XValidation:rule="!has(self.store.memory) || !has(self.deployment) || !has(self.deployment.pool)",message="deployment.pool: not with store.memory, whose marks live in a single process; use store.redis or store.postgres, or remove pool"
// +kubebuilder:validation:XValidation:rule="!has(self.store.redis) || self.store.redis.keyFormat != 'Dense' || self.mode == 'Mark'",message="mode: must be Mark with store.redis.keyFormat: Dense, whose records hold no claims; use Readable or Compact for mode: Claim"
// +kubebuilder:validation:XValidation:rule="!has(self.store.redis) || self.store.redis.keyFormat != 'Dense' || !has(self.key.messageID) || !has(self.key.messageID.verifyContent) || !self.key.messageID.verifyContent",message="key.messageID.verifyContent: not with store.redis.keyFormat: Dense, whose records hold no digest of the content; use Readable or Compact"
// +kubebuilder:validation:XValidation:rule="self.epoch >= oldSelf.epoch",message="epoch: never goes down, or marks of an earlier key space would be taken for marks of this one"
// +kubebuilder:validation:XValidation:rule="(self.key.strategy == oldSelf.key.strategy && (!has(self.key.messageID) || (has(self.key.messageID.header) == has(oldSelf.key.messageID.header) && (!has(self.key.messageID.header) || self.key.messageID.header == oldSelf.key.messageID.header) && has(self.key.messageID.jsonPath) == has(oldSelf.key.messageID.jsonPath) && (!has(self.key.messageID.jsonPath) || self.key.messageID.jsonPath == oldSelf.key.messageID.jsonPath))) && has(self.key.contentHash) == has(oldSelf.key.contentHash) && (!has(self.key.contentHash) || self.key.contentHash == oldSelf.key.contentHash) && (!has(self.key.composite) || self.key.composite == oldSelf.key.composite)) || self.epoch > oldSelf.epoch",message="key: this change makes every remembered message unrecognisable; to accept that, raise epoch in the same change"
// +kubebuilder:validation:XValidation:rule="self.scope == oldSelf.scope || self.epoch > oldSelf.epoch",message="scope: this change makes every remembered message unrecognisable; to accept that, raise epoch in the same change"
// +kubebuilder:validation:XValidation:rule="(has(self.store.redis) == has(oldSelf.store.redis) && has(self.store.postgres) == has(oldSelf.store.postgres) && has(self.store.memory) == has(oldSelf.store.memory)) || self.epoch > oldSelf.epoch",message="store: another kind of store starts with an empty history; to accept that, raise epoch in the same change"
// +kubebuilder:validation:XValidation:rule="!has(self.store.redis) || !has(oldSelf.store.redis) || (self.store.redis.keyPrefix == oldSelf.store.redis.keyPrefix && self.store.redis.keyFormat == oldSelf.store.redis.keyFormat) || self.epoch > oldSelf.epoch",message="store.redis.keyPrefix, store.redis.keyFormat: this change makes every remembered message unrecognisable; to accept that, raise epoch in the same change"
// +kubebuilder:validation:XValidation:rule="!has(self.store.redis) || !has(oldSelf.store.redis) || (has(self.store.redis.dense) == has(oldSelf.store.redis.dense) && (!has(self.store.redis.dense) || self.store.redis.dense == oldSelf.store.redis.dense)) || self.epoch > oldSelf.epoch",message="store.redis.dense: another number of expected messages lays the keys out anew, which makes every remembered message unrecognisable; to accept that, raise epoch in the same change"
type DedupPolicySpec struct {
	// How a message becomes the key by which it is recognised.
	// +required
	Key KeySpec `json:"key"`

	// How long a message is remembered, on the store's clock, counted from its mark or its
	// completion. Longer than any repeat may be delayed. A duration such as 90s, 1h or 168h;
	// at least 1s, at most 87600h.
	// +required
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('87600h')",message="ttl: between 1s and 87600h"
	TTL Duration `json:"ttl"`

	// Mark checks and marks in one step: for consumers that acknowledge before they process,
	// or whose loss of a message on a crash is acceptable. Claim grants a lease first and
	// remembers the message only once the consumer completes it: nothing is lost when a
	// consumer crashes in between.
	// +optional
	// +kubebuilder:default=Mark
	Mode Mode `json:"mode,omitempty"`

	// Settings of mode Claim.
	// +optional
	Claim *ClaimSpec `json:"claim,omitempty"`

	// The generation of the key space. A change that makes remembered messages unrecognisable
	// (key, scope, the store's kind, keyPrefix, keyFormat) needs a higher epoch; from 2 on the
	// epoch is part of every stored key, so that old and new marks never mix.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	Epoch int64 `json:"epoch,omitempty"`

	// Who shares what is remembered. Consumer: each consumer (workload) sees each message once,
	// and two consumers never hide each other's messages. Policy: all consumers share.
	// +optional
	// +kubebuilder:default=Consumer
	Scope Scope `json:"scope,omitempty"`

	// Enforce answers what was decided. Shadow decides and counts, but lets every message
	// through: for watching a policy on live traffic before it drops anything.
	// +optional
	// +kubebuilder:default=Enforce
	Enforcement Enforcement `json:"enforcement,omitempty"`

	// What happens while the store cannot answer. FailClosed: checks fail with UNAVAILABLE and
	// consumers retry. FailOpen: messages are let through as UNCHECKED, possibly twice.
	// +optional
	// +kubebuilder:default=FailClosed
	OnStoreFailure FailurePolicy `json:"onStoreFailure,omitempty"`

	// Where messages are remembered. Exactly one member.
	// +required
	Store StoreSpec `json:"store"`

	// Has each replica answer repeats from its own memory, without asking the store. Without
	// it, every message is asked for.
	// +optional
	NearCache *NearCacheSpec `json:"nearCache,omitempty"`

	// Who may ask dedupd about this policy's messages: check, settle, look up and forget them.
	// Without it, whoever reaches dedupd may.
	// +optional
	Callers *CallersSpec `json:"callers,omitempty"`

	// How dedupd runs for this policy.
	// +optional
	Deployment *DeploymentSpec `json:"deployment,omitempty"`
}

// Duration is a duration in Go's notation, such as 90s or 1h30m, kept as it was written.
//
// +kubebuilder:validation:Type=string
type Duration string

// Mode says in how many steps a message is remembered.
//
// +kubebuilder:validation:Enum=Mark;Claim
type Mode string

// The modes.
const (
	ModeMark  Mode = "Mark"
	ModeClaim Mode = "Claim"
)

// Scope says who shares what is remembered.
//
// +kubebuilder:validation:Enum=Consumer;Policy
type Scope string

// The scopes.
const (
	ScopeConsumer Scope = "Consumer"
	ScopePolicy   Scope = "Policy"
)

// Enforcement says whether decisions bind.
//
// +kubebuilder:validation:Enum=Enforce;Shadow
type Enforcement string

// The enforcements.
const (
	EnforcementEnforce Enforcement = "Enforce"
	EnforcementShadow  Enforcement = "Shadow"
)

// FailurePolicy says what happens while the store cannot answer.
//
// +kubebuilder:validation:Enum=FailClosed;FailOpen
type FailurePolicy string

// The failure policies.
const (
	FailClosed FailurePolicy = "FailClosed"
	FailOpen   FailurePolicy = "FailOpen"
)

// ClaimSpec are the settings of mode Claim.
type ClaimSpec struct {
	// How long a consumer may work before another may take its message over, on the store's
	// clock. Renew extends it. At least 100ms, shorter than ttl, at most 24h. Default 30s.
	// +optional
	// +kubebuilder:default="30s"
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('100ms') && duration(self) <= duration('24h')",message="lease: between 100ms and 24h"
	Lease Duration `json:"lease,omitempty"`
}

// NearCacheSpec are the settings of the memory in each replica. It holds what is final: marks and
// completions. What happens elsewhere is noticed late, by maxAge at most: that another replica
// was asked to forget a message, that the store has lost it, or, where clocks differ, that a
// ttl which another replica began has ended.
type NearCacheSpec struct {
	// How many messages each replica remembers, about 300 bytes each.
	// +optional
	// +kubebuilder:default=100000
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000000
	MaxEntries int64 `json:"maxEntries,omitempty"`

	// How long an answer of the store is relied on. At least 100ms, at most 10m.
	// +optional
	// +kubebuilder:default="10s"
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('100ms') && duration(self) <= duration('10m')",message="nearCache.maxAge: between 100ms and 10m"
	MaxAge Duration `json:"maxAge,omitempty"`
}

// CallersSpec says who may ask. A caller shows a token of its ServiceAccount with the audience
// dedupd; a pod that names the policy by its label gets one, in the file that DEDUPD_TOKEN_FILE
// names.
type CallersSpec struct {
	// The names of the ServiceAccounts of the policy's namespace that may ask. A pod that says
	// nothing else runs as the ServiceAccount default.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	ServiceAccounts []ServiceAccountName `json:"serviceAccounts"`
}

// ServiceAccountName is the name of a ServiceAccount.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=253
// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
type ServiceAccountName string

// DeploymentSpec says how dedupd runs for a policy.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.replicas) && has(self.autoscaling))",message="deployment: replicas or autoscaling, not both; with autoscaling the HorizontalPodAutoscaler sets the replicas"
type DeploymentSpec struct {
	// The name of a pool: the policies of the namespace that name the same one share one dedupd,
	// Deployment <pool>-dedupd-pool, so that many small policies don't cost many pods. Each keeps
	// its own Service. The pool runs as its oldest member says that says more than pool; the others
	// leave the rest of deployment out, or say the same.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=51
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="deployment.pool: lower-case letters, digits and '-', neither first nor last a '-', at most 51 characters, so that <pool>-dedupd-pool is a valid name for every object of the pool"
	Pool string `json:"pool,omitempty"`

	// How many dedupd pods. Default 2, or 1 with store.memory.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Replicas *int32 `json:"replicas,omitempty"`

	// Lets a HorizontalPodAutoscaler set the number of pods.
	// +optional
	Autoscaling *AutoscalingSpec `json:"autoscaling,omitempty"`

	// Compute resources of the dedupd container, of the Deployment and of the sidecar.
	// Default: requests of 50m CPU and 64Mi memory, a limit of 256Mi memory.
	// +optional
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`

	// Labels that a node must have.
	// +optional
	// +mapType=atomic
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// Taints that the pods tolerate.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`

	// The pods' priority class.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	PriorityClassName string `json:"priorityClassName,omitempty"`

	// Labels that the pods get in addition to the operator's own, which win.
	// +optional
	// +mapType=atomic
	PodLabels map[string]string `json:"podLabels,omitempty"`

	// Annotations that the pods get in addition to the operator's own, which win.
	// +optional
	// +mapType=atomic
	PodAnnotations map[string]string `json:"podAnnotations,omitempty"`
}

// Pool is the name of the pool that the policy is to be a member of, empty for none.
func (p *DedupPolicy) Pool() string {
	if p.Spec.Deployment == nil {
		return ""
	}
	return p.Spec.Deployment.Pool
}

// AutoscalingSpec are the bounds of a HorizontalPodAutoscaler.
//
// +kubebuilder:validation:XValidation:rule="self.minReplicas <= self.maxReplicas",message="autoscaling: minReplicas must not exceed maxReplicas"
type AutoscalingSpec struct {
	// The least number of pods.
	// +optional
	// +kubebuilder:default=2
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MinReplicas int32 `json:"minReplicas,omitempty"`

	// The greatest number of pods.
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxReplicas int32 `json:"maxReplicas"`

	// The mean CPU use, in percent of the request, that the autoscaler aims at.
	// +optional
	// +kubebuilder:default=70
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	TargetCPUUtilization int32 `json:"targetCPUUtilization,omitempty"`
}

// DedupPolicyStatus is what the operator has observed.
type DedupPolicyStatus struct {
	// The generation of the spec that this status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// host:port at which dedupd answers HTTP for this policy.
	// +optional
	Endpoint string `json:"endpoint,omitempty"`

	// The kind of the store, for the printer column: Redis, Postgres or Memory.
	// +optional
	Store string `json:"store,omitempty"`

	// How many dedupd pods exist.
	// +optional
	Replicas int32 `json:"replicas,omitempty"`

	// How many dedupd pods are ready.
	// +optional
	ReadyReplicas int32 `json:"readyReplicas,omitempty"`

	// The hash of the configuration that dedupd should run.
	// +optional
	ConfigHash string `json:"configHash,omitempty"`

	// When the store's history begins: what was marked since then, and has not expired, is
	// remembered. It moves when the store has lost what it remembered.
	// +optional
	HistorySince *metav1.Time `json:"historySince,omitempty"`

	// The state of the policy in parts; Ready is their sum.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
