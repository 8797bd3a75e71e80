// Package podspec says how dedupd runs in a pod. It is the one source for the Deployment of a
// policy or of a pool, and for the sidecar that the webhook injects.
package podspec

import (
	"fmt"
	"path"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Where dedupd finds its files, and as whom it runs. The user is that of the image.
const (
	ConfigDir  = "/etc/dedupd/config"
	SecretsDir = "/etc/dedupd/secrets" //nolint:gosec // a folder, not a secret

	UserID int64 = 65532
)

// Options are the operator's part of the pod.
type Options struct {
	// Image is the image that holds /dedupd.
	Image string

	// PortHTTP and PortGRPC are the ports that dedupd listens on; 0 for those of dedupd's own pods.
	PortHTTP, PortGRPC int32
}

func (o Options) ports() (http, grpc int32) {
	http, grpc = o.PortHTTP, o.PortGRPC
	if http == 0 {
		http = v1alpha1.PortHTTP
	}
	if grpc == 0 {
		grpc = v1alpha1.PortGRPC
	}
	return http, grpc
}

// Content is what of its policies a pod of dedupd depends on. Of makes it for a single one.
type Content struct {
	// ConfigMap is the name of that which holds the configuration, all of which is mounted. File is
	// the key of the one policy; none: dedupd takes those that are policies' files, see
	// v1alpha1.PoolFile. The keys of the callers' issuer, v1alpha1.IssuerFile, come and go beside it
	// without another pod.
	ConfigMap string
	File      string

	// Secrets are mounted, each under its own name.
	Secrets []string

	// Patient: the pod starts without the Secrets that do not exist yet, and they arrive in it once
	// they do. Otherwise it waits for them.
	Patient bool

	// Resources of the container, nil for the default.
	Resources *corev1.ResourceRequirements
}

// Of is the content of a pod that runs one policy.
func Of(p *v1alpha1.DedupPolicy) Content {
	c := Content{
		ConfigMap: v1alpha1.ChildName(p.Name),
		// By name, since dedupd reads every file of a folder: no key that someone else adds to
		// the ConfigMap becomes a policy.
		File:    v1alpha1.PolicyFile,
		Secrets: p.Spec.Store.Secrets(),
	}
	if d := p.Spec.Deployment; d != nil {
		c.Resources = d.Resources
	}
	return c
}

// Container is dedupd as the container of a pod that has the Volumes of the same content.
func Container(content Content, o Options) *corev1ac.ContainerApplyConfiguration {
	http, grpc := o.ports()
	c := corev1ac.Container().
		WithName(v1alpha1.AppName).
		WithImage(o.Image).
		WithCommand("/dedupd", "serve", "-f", path.Join(ConfigDir, content.File), "--mounted").
		WithPorts(port(v1alpha1.PortNameHTTP, http), port(v1alpha1.PortNameGRPC, grpc)).
		WithResources(resources(content.Resources)).
		// Ready is who has a configuration, whether the store answers or not: what to do without
		// the store is the policy's to say.
		WithStartupProbe(probe("/readyz", http).WithPeriodSeconds(1).WithFailureThreshold(120)).
		WithReadinessProbe(probe("/readyz", http).WithPeriodSeconds(5).WithFailureThreshold(2)).
		WithLivenessProbe(probe("/healthz", http).WithPeriodSeconds(10).WithFailureThreshold(3)).
		WithSecurityContext(securityContext()).
		WithVolumeMounts(mounts(content)...)
	if http != v1alpha1.PortHTTP {
		c.WithCommand("--http-addr", ":"+strconv.Itoa(int(http)))
	}
	if grpc != v1alpha1.PortGRPC {
		c.WithCommand("--grpc-addr", ":"+strconv.Itoa(int(grpc)))
	}
	return c
}

// Volumes are what a pod with the Container of the same content needs: its configuration and
// every Secret that a store names.
func Volumes(content Content) []*corev1ac.VolumeApplyConfiguration {
	volumes := []*corev1ac.VolumeApplyConfiguration{
		corev1ac.Volume().WithName(configVolume).WithConfigMap(corev1ac.ConfigMapVolumeSource().WithName(content.ConfigMap)),
	}
	for i, name := range content.Secrets {
		secret := corev1ac.SecretVolumeSource().WithSecretName(name)
		if content.Patient {
			secret.WithOptional(true)
		}
		volumes = append(volumes, corev1ac.Volume().WithName(secretVolume(i)).WithSecret(secret))
	}
	return volumes
}

const configVolume = v1alpha1.SidecarName + "-config"

// secretVolume names a volume by its number: a Secret's own name may be longer than a volume's.
func secretVolume(i int) string { return fmt.Sprintf("%s-secret-%d", v1alpha1.SidecarName, i) }

func mounts(content Content) []*corev1ac.VolumeMountApplyConfiguration {
	// Whole folders, never subPath: only they follow a change of the ConfigMap or Secret.
	all := []*corev1ac.VolumeMountApplyConfiguration{
		corev1ac.VolumeMount().WithName(configVolume).WithMountPath(ConfigDir).WithReadOnly(true),
	}
	for i, name := range content.Secrets {
		all = append(all, corev1ac.VolumeMount().WithName(secretVolume(i)).
			WithMountPath(path.Join(SecretsDir, name)).WithReadOnly(true))
	}
	return all
}

func port(name string, number int32) *corev1ac.ContainerPortApplyConfiguration {
	return corev1ac.ContainerPort().WithName(name).WithContainerPort(number).WithProtocol(corev1.ProtocolTCP)
}

func probe(path string, port int32) *corev1ac.ProbeApplyConfiguration {
	return corev1ac.Probe().
		WithHTTPGet(corev1ac.HTTPGetAction().WithPath(path).WithPort(intstr.FromInt32(port))).
		WithTimeoutSeconds(2)
}

func resources(asked *corev1.ResourceRequirements) *corev1ac.ResourceRequirementsApplyConfiguration {
	r := defaultResources
	if asked != nil {
		r = *asked
	}
	ac := corev1ac.ResourceRequirements()
	if len(r.Requests) > 0 {
		ac.WithRequests(r.Requests)
	}
	if len(r.Limits) > 0 {
		ac.WithLimits(r.Limits)
	}
	for _, claim := range r.Claims {
		c := corev1ac.ResourceClaim().WithName(claim.Name)
		if claim.Request != "" {
			c.WithRequest(claim.Request)
		}
		ac.WithClaims(c)
	}
	return ac
}

// defaultResources are the ones that the API reference promises.
var defaultResources = corev1.ResourceRequirements{
	Requests: corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("50m"),
		corev1.ResourceMemory: resource.MustParse("64Mi"),
	},
	Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
}

// securityContext is all that Pod Security "restricted" asks of a container, so that the
// sidecar meets it whatever the pod it is injected into says.
func securityContext() *corev1ac.SecurityContextApplyConfiguration {
	return corev1ac.SecurityContext().
		WithRunAsNonRoot(true).
		WithRunAsUser(UserID).
		WithRunAsGroup(UserID).
		WithAllowPrivilegeEscalation(false).
		WithReadOnlyRootFilesystem(true).
		WithCapabilities(corev1ac.Capabilities().WithDrop("ALL")).
		WithSeccompProfile(corev1ac.SeccompProfile().WithType(corev1.SeccompProfileTypeRuntimeDefault))
}
