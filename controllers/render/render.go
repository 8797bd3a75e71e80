// Package render builds the objects that a policy or a pool wants, as apply configurations: one
// pure function per kind, where nil means that none is wanted.
//
// Only what the operator has an opinion on is set. What is left out is the API server's to
// default, or another's to set.
package render

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/policy"
)

// Options are the operator's settings that its objects depend on.
type Options struct {
	// Image of dedupd, see podspec.Options.
	Image string

	// OperatorNamespace is where the operator runs: it asks dedupd's pods for their status.
	OperatorNamespace string
}

// Input is what the objects of one policy are built from. Make it with NewInput.
type Input struct {
	// ConfigHash identifies the configuration that the ConfigMap holds.
	ConfigHash string

	policy   *v1alpha1.DedupPolicy
	compiled *policy.Policy
	manifest []byte
	keys     []byte // of the issuer of the callers' tokens; nil without callers
	options  Options
}

// NewInput gathers what the objects of p are built from; compiled is p, compiled, and keys are
// those of the issuer of its callers' tokens, nil without callers. The policy must have its UID,
// or nothing would be deleted along with it.
func NewInput(p *v1alpha1.DedupPolicy, compiled *policy.Policy, keys []byte, o Options) (Input, error) {
	p = p.DeepCopy()
	v1alpha1.SetDefaults(p)
	manifest, err := policy.Manifest(p)
	if err != nil {
		return Input{}, err
	}
	return Input{ConfigHash: ConfigHash(manifest, keys), policy: p, compiled: compiled, manifest: manifest, keys: keys, options: o}, nil
}

// ConfigHash is the hash that dedupd reports of a policy's manifest, with the keys by which its
// callers are known where it has callers.
func ConfigHash(manifest, keys []byte) string {
	hash := policy.HashConfig(manifest)
	if len(keys) > 0 {
		hash = policy.HashWithKeys(hash, keys)
	}
	return hash
}

// InputOf is the input of a policy as a pool runs it on: p says who it is, and the manifest and the keys, which
// the operator wrote once, what it said then. Nothing but a pool's objects is built from it.
func InputOf(p *v1alpha1.DedupPolicy, manifest, keys []byte) (Input, error) {
	was := &v1alpha1.DedupPolicy{}
	if err := yaml.Unmarshal(manifest, was); err != nil {
		return Input{}, fmt.Errorf("reading the manifest of policy %s: %w", p.Name, err)
	}
	was.ObjectMeta = *p.ObjectMeta.DeepCopy()
	return Input{ConfigHash: ConfigHash(manifest, keys), policy: was, manifest: manifest, keys: keys}, nil
}

// Spec is the policy's, with every default filled in. It must not be changed.
func (in Input) Spec() v1alpha1.DedupPolicySpec { return in.policy.Spec }

// ConfigMap holds dedupd's configuration file and, where the policy has callers, their issuer's keys.
func ConfigMap(in Input) *corev1ac.ConfigMapApplyConfiguration {
	files := map[string]string{v1alpha1.PolicyFile: string(in.manifest)}
	if in.keys != nil {
		files[v1alpha1.IssuerFile] = string(in.keys)
	}
	return corev1ac.ConfigMap(in.name(), in.policy.Namespace).
		WithLabels(in.labels()).
		WithOwnerReferences(in.owner()).
		WithAnnotations(map[string]string{v1alpha1.AnnotationConfigHash: in.ConfigHash}).
		WithData(files)
}

// Service is the endpoint of the policy's consumers. It leads to the pods of the policy's own, or
// to those of its pool.
func Service(in Input) *corev1ac.ServiceApplyConfiguration {
	labels, selector := in.labels(), in.selector()
	if pool := in.policy.Pool(); pool != "" {
		labels[v1alpha1.LabelPool], selector = pool, v1alpha1.PoolSelectorLabels(pool)
	}
	return corev1ac.Service(in.name(), in.policy.Namespace).
		WithLabels(labels).
		WithOwnerReferences(in.owner()).
		WithSpec(corev1ac.ServiceSpec().
			WithType(corev1.ServiceTypeClusterIP).
			WithSelector(selector).
			WithPorts(
				servicePort(v1alpha1.PortNameHTTP, v1alpha1.PortHTTP, "http"),
				servicePort(v1alpha1.PortNameGRPC, v1alpha1.PortGRPC, "kubernetes.io/h2c")))
}

func servicePort(name string, number int32, protocol string) *corev1ac.ServicePortApplyConfiguration {
	return corev1ac.ServicePort().
		WithName(name).
		WithPort(number).
		WithTargetPort(intstr.FromInt32(number)).
		WithProtocol(corev1.ProtocolTCP).
		WithAppProtocol(protocol)
}

func (in Input) name() string                { return v1alpha1.ChildName(in.policy.Name) }
func (in Input) labels() map[string]string   { return v1alpha1.ChildLabels(in.policy.Name) }
func (in Input) selector() map[string]string { return v1alpha1.SelectorLabels(in.policy.Name) }

// owner makes a policy's objects go when it does.
func (in Input) owner() *metav1ac.OwnerReferenceApplyConfiguration {
	return in.reference().WithController(true).WithBlockOwnerDeletion(true)
}

func (in Input) reference() *metav1ac.OwnerReferenceApplyConfiguration {
	return metav1ac.OwnerReference().
		WithAPIVersion(v1alpha1.GroupVersion.String()).
		WithKind(policy.Kind).
		WithName(in.policy.Name).
		WithUID(in.policy.UID)
}
