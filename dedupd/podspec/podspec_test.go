package podspec_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/podspec"
)

func policy(changes ...func(*v1alpha1.DedupPolicy)) *v1alpha1.DedupPolicy {
	p := &v1alpha1.DedupPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders"},
		Spec: v1alpha1.DedupPolicySpec{
			Key:   v1alpha1.KeySpec{Strategy: v1alpha1.StrategyMessageID, MessageID: &v1alpha1.MessageIDKey{Header: "message-id"}},
			TTL:   "1h",
			Store: v1alpha1.StoreSpec{Redis: &v1alpha1.RedisStore{Addresses: []string{"redis:6379"}}},
		},
	}
	for _, change := range changes {
		change(p)
	}
	return p
}

func withSecrets(credentials, ca, client string) func(*v1alpha1.DedupPolicy) {
	return func(p *v1alpha1.DedupPolicy) {
		p.Spec.Store.Redis.CredentialsSecretRef = &v1alpha1.SecretRef{Name: credentials}
		p.Spec.Store.Redis.TLS = &v1alpha1.StoreTLS{
			CASecretRef: &v1alpha1.SecretRef{Name: ca}, ClientSecretRef: &v1alpha1.SecretRef{Name: client},
		}
	}
}

func TestEachSecretIsMountedOnceUnderItsName(t *testing.T) {
	long := strings.Repeat("s", 253)
	cases := map[string]struct {
		policy *v1alpha1.DedupPolicy
		want   []string
	}{
		"no secret":                          {policy(), nil},
		"three secrets":                      {policy(withSecrets("auth", "ca", "client")), []string{"auth", "ca", "client"}},
		"the authority and the client share": {policy(withSecrets("auth", "tls", "tls")), []string{"auth", "tls"}},
		"the longest name a secret can have": {policy(withSecrets(long, "ca", "ca")), []string{long, "ca"}},
		"TLS with the system's authorities": {policy(func(p *v1alpha1.DedupPolicy) {
			p.Spec.Store.Redis.TLS = &v1alpha1.StoreTLS{}
		}), nil},
		"a PostgreSQL's": {policy(func(p *v1alpha1.DedupPolicy) {
			p.Spec.Store = v1alpha1.StoreSpec{Postgres: &v1alpha1.PostgresStore{
				CredentialsSecretRef: v1alpha1.SecretRef{Name: "auth"},
				TLS:                  &v1alpha1.StoreTLS{CASecretRef: &v1alpha1.SecretRef{Name: "ca"}, ClientSecretRef: &v1alpha1.SecretRef{Name: "client"}},
			}}
		}), []string{"auth", "ca", "client"}},
		"a PostgreSQL without TLS": {policy(func(p *v1alpha1.DedupPolicy) {
			p.Spec.Store = v1alpha1.StoreSpec{Postgres: &v1alpha1.PostgresStore{CredentialsSecretRef: v1alpha1.SecretRef{Name: "auth"}}}
		}), []string{"auth"}},
		"a memory store": {policy(func(p *v1alpha1.DedupPolicy) {
			p.Spec.Store = v1alpha1.StoreSpec{Memory: &v1alpha1.MemoryStore{}}
		}), nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			container, volumes, err := podspec.Sidecar(c.policy, podspec.Options{Image: "dedupd"})
			if err != nil {
				t.Fatal(err)
			}
			bySecret := map[string]string{} // the volume of each Secret
			for _, v := range volumes {
				if problems := validation.IsDNS1123Label(v.Name); problems != nil {
					t.Errorf("volume %q: %v", v.Name, problems)
				}
				if v.Secret != nil {
					bySecret[v.Secret.SecretName] = v.Name
				}
			}
			if len(bySecret) != len(c.want) {
				t.Errorf("volumes of the secrets %v, want %v", bySecret, c.want)
			}
			for _, secret := range c.want {
				want := corev1.VolumeMount{Name: bySecret[secret], MountPath: "/etc/dedupd/secrets/" + secret, ReadOnly: true}
				if !contains(container.VolumeMounts, want) {
					t.Errorf("no mount %+v in %+v", want, container.VolumeMounts)
				}
			}
			if len(container.VolumeMounts) != len(volumes) {
				t.Errorf("%d mounts of %d volumes", len(container.VolumeMounts), len(volumes))
			}
		})
	}
}

func contains(mounts []corev1.VolumeMount, want corev1.VolumeMount) bool {
	for _, m := range mounts {
		if cmp.Equal(m, want) {
			return true
		}
	}
	return false
}

// dedupd reads every file of a folder: what someone else adds to the ConfigMap must not become a policy.
func TestOnlyThePolicyOfTheConfigMapIsRead(t *testing.T) {
	c, volumes, err := podspec.Sidecar(policy(), podspec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []corev1.Volume{{Name: "dedupd-config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "orders-dedupd"},
	}}}}
	if diff := cmp.Diff(want, volumes); diff != "" {
		t.Errorf("volumes (-want +got):\n%s", diff)
	}
	if i := slices.Index(c.Command, "-f"); i < 0 || c.Command[i+1] != "/etc/dedupd/config/policy.yaml" {
		t.Errorf("command %q, want -f with the policy's file", c.Command)
	}
}

func TestSidecarIsNativeAndStartsTheApplicationWhenReady(t *testing.T) {
	c, _, err := podspec.Sidecar(policy(), podspec.Options{Image: "dedupd:1", PortHTTP: 18080, PortGRPC: 19090})
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != v1alpha1.SidecarName || c.Image != "dedupd:1" {
		t.Errorf("name %q, image %q", c.Name, c.Image)
	}
	if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Errorf("restartPolicy %v: a Job would never end", c.RestartPolicy)
	}
	want := []string{"/dedupd", "serve", "-f", "/etc/dedupd/config/policy.yaml", "--mounted", "--http-addr", ":18080", "--grpc-addr", ":19090"}
	if diff := cmp.Diff(want, c.Command); diff != "" {
		t.Errorf("command (-want +got):\n%s", diff)
	}
	wantPorts := []corev1.ContainerPort{
		{Name: "dedupd-http", ContainerPort: 18080, Protocol: corev1.ProtocolTCP},
		{Name: "dedupd-grpc", ContainerPort: 19090, Protocol: corev1.ProtocolTCP},
	}
	if diff := cmp.Diff(wantPorts, c.Ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	for name, probe := range map[string]struct {
		probe *corev1.Probe
		path  string
	}{"startup": {c.StartupProbe, "/readyz"}, "readiness": {c.ReadinessProbe, "/readyz"}, "liveness": {c.LivenessProbe, "/healthz"}} {
		if probe.probe == nil || probe.probe.HTTPGet.Path != probe.path || probe.probe.HTTPGet.Port.IntValue() != 18080 {
			t.Errorf("%s probe is %v, want GET %s at 18080", name, probe.probe, probe.path)
		}
	}
}

// The fields that the Pod Security Standard "restricted" looks at in a container.
func TestContainerIsRestricted(t *testing.T) {
	c, _, err := podspec.Sidecar(policy(), podspec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sc := c.SecurityContext
	if sc == nil {
		t.Fatal("no security context")
	}
	if sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot || sc.RunAsUser == nil || *sc.RunAsUser == 0 {
		t.Error("may run as root")
	}
	if sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation {
		t.Error("may escalate privileges")
	}
	if sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem {
		t.Error("may write to its root filesystem")
	}
	if diff := cmp.Diff(&corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, sc.Capabilities); diff != "" {
		t.Errorf("capabilities (-want +got):\n%s", diff)
	}
	if sc.SeccompProfile == nil || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("no seccomp profile")
	}
	if sc.Privileged != nil || sc.ProcMount != nil || sc.SELinuxOptions != nil {
		t.Errorf("asks for more than it needs: %+v", sc)
	}
	for _, p := range c.Ports {
		if p.HostPort != 0 {
			t.Errorf("host port %d", p.HostPort)
		}
	}
}

func TestResourcesAreThePolicysOrTheDocumentedDefault(t *testing.T) {
	asked := corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}}
	cases := map[string]struct {
		deployment *v1alpha1.DeploymentSpec
		want       corev1.ResourceRequirements
	}{
		"no deployment": {nil, corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
		}},
		"a limit alone":  {&v1alpha1.DeploymentSpec{Resources: &asked}, asked},
		"none, asked so": {&v1alpha1.DeploymentSpec{Resources: &corev1.ResourceRequirements{}}, corev1.ResourceRequirements{}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, _, err := podspec.Sidecar(policy(func(p *v1alpha1.DedupPolicy) { p.Spec.Deployment = c.deployment }), podspec.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got.Resources); diff != "" {
				t.Errorf("resources (-want +got):\n%s", diff)
			}
		})
	}
}
