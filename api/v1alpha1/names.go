package v1alpha1

import (
	"fmt"
	"strings"
)

// Labels and annotations. A consumer's pod carries LabelPolicy to be injected.
const (
	// LabelPolicy on a pod names the policy of its namespace that deduplicates for it. On
	// the objects that belong to a policy it is LabelOwner instead, so that the webhook's
	// objectSelector never matches dedupd's own pods.
	LabelPolicy = "dedupd.io/policy"

	// LabelOwner on a child object, and on dedupd's pods, names the policy it belongs to.
	LabelOwner = "dedupd.io/owned-by"

	// LabelPool on an object that the members of a pool share, and on its dedupd's pods, names the
	// pool. On a policy's Service it names the pool whose pods the Service leads to.
	LabelPool = "dedupd.io/pool"

	// LabelConsumer on a pod names the consumer, where the workload's name is not wanted.
	LabelConsumer = "dedupd.io/consumer"

	// AnnotationInject on a pod says how it connects: InjectEndpoint or InjectSidecar.
	AnnotationInject = "dedupd.io/inject"

	// AnnotationInjected on a pod is the webhook's mark: how the pod was connected.
	AnnotationInjected = "dedupd.io/injected"

	// AnnotationStoreHash on a pod template changes, and so rolls the pods, when the store does.
	AnnotationStoreHash = "dedupd.io/store-hash"

	// AnnotationDepartures on a pool's Deployment and its pods changes, and so rolls the pods, when a
	// policy has moved elsewhere: the connections of its consumers end, and begin anew where it is now.
	AnnotationDepartures = "dedupd.io/departures"

	// AnnotationConfigHash on the ConfigMap is the hash that dedupd reports once it runs it.
	AnnotationConfigHash = "dedupd.io/config-hash"

	// AnnotationApplied on a child object is the hash of what the operator has applied to it.
	AnnotationApplied = "dedupd.io/applied-hash"

	// AnnotationNudged on a pod of dedupd is when the operator last asked the kubelet to look at it.
	AnnotationNudged = "dedupd.io/nudged-at"

	// LabelManagedBy and ManagedBy select the operator's objects in its caches.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	ManagedBy      = "dedup-operator"

	// LabelName and LabelInstance are the recommended Kubernetes labels, as dedupd's pods carry them.
	LabelName     = "app.kubernetes.io/name"
	LabelInstance = "app.kubernetes.io/instance"
	AppName       = "dedupd"

	// FieldOwner is the one field manager of everything the operator applies.
	FieldOwner = "dedup-operator"
)

// Values of AnnotationInject.
const (
	InjectEndpoint = "endpoint"
	InjectSidecar  = "sidecar"
)

// Environment variables of a connected container.
const (
	EnvURL      = "DEDUPD_URL"      // http://host:port
	EnvGRPC     = "DEDUPD_GRPC"     // host:port
	EnvPolicy   = "DEDUPD_POLICY"   // the policy's name
	EnvConsumer = "DEDUPD_CONSUMER" // the consumer's name, to be sent as Dedup-Consumer

	// EnvTokenFile names the file with the token that shows who asks, to be sent as
	// "Authorization: Bearer".
	EnvTokenFile = "DEDUPD_TOKEN_FILE" //nolint:gosec // a variable's name, not a secret
)

// The token of a connected container's ServiceAccount. It is good for asking dedupd and nothing
// else, and the kubelet renews it in time.
const (
	TokenAudience       = "dedupd"
	TokenSeconds  int64 = 3600
	TokenVolume         = "dedupd-token"
	TokenDir            = "/var/run/secrets/dedupd.io" //nolint:gosec // a folder, not a secret
	TokenFileName       = "token"
)

// Ports of dedupd, and their names in Service and container.
const (
	PortHTTP     = 8080
	PortGRPC     = 9090
	PortNameHTTP = "http"
	PortNameGRPC = "grpc"
)

// PolicyFile is the key of the ConfigMap, and the file, that holds a policy's manifest.
const PolicyFile = "policy.yaml"

// PoolFile is the key of a pool's ConfigMap, and the file, that holds the manifest of a member.
func PoolFile(policy string) string { return policy + "." + PolicyFile }

// IsPolicyFile reports whether a mounted file is a policy's. What others add to a ConfigMap is not.
func IsPolicyFile(name string) bool {
	return name == PolicyFile || strings.HasSuffix(name, "."+PolicyFile)
}

// IssuerFile is the key of the ConfigMap, and the file, that holds the public keys by which the
// tokens of callers are checked. It is there for policies with callers.
const IssuerFile = "issuer.jwks"

// SidecarName is the name of the injected container and of its volumes' common prefix.
const SidecarName = "dedupd"

// ChildName is the name of every object that belongs to the policy of that name.
func ChildName(policy string) string { return policy + "-dedupd" }

// PoolChildName is the name of every object that belongs to the pool of that name. No policy's
// objects can have it: their names end in -dedupd.
func PoolChildName(pool string) string { return pool + "-dedupd-pool" }

// EndpointHost is the DNS name of a policy's Service.
func EndpointHost(namespace, policy string) string {
	return fmt.Sprintf("%s.%s.svc", ChildName(policy), namespace)
}

// SelectorLabels select the dedupd pods of a policy. They never change for a Deployment.
func SelectorLabels(policy string) map[string]string {
	return map[string]string{LabelName: AppName, LabelOwner: policy}
}

// ChildLabels are the labels of every object that belongs to a policy.
func ChildLabels(policy string) map[string]string { return labels(LabelOwner, policy) }

// PoolSelectorLabels select the dedupd pods of a pool. They never change for a Deployment.
func PoolSelectorLabels(pool string) map[string]string {
	return map[string]string{LabelName: AppName, LabelPool: pool}
}

// PoolLabels are the labels of every object that belongs to a pool.
func PoolLabels(pool string) map[string]string { return labels(LabelPool, pool) }

// labels are those of what belongs to an owner, which a label of its kind names.
func labels(kind, owner string) map[string]string {
	return map[string]string{
		LabelName:      AppName,
		LabelInstance:  owner,
		LabelManagedBy: ManagedBy,
		kind:           owner,
	}
}
