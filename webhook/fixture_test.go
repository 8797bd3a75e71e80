package webhook

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

var options = Options{Image: "dedup-operator:test"}

// newPod is a pod of the Deployment `checkout` that names the policy `orders`, changed by the modifiers.
func newPod(modify ...func(*corev1.Pod)) *corev1.Pod {
	controller := true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "checkout-6d4cf56db6-",
			Namespace:    "shop",
			Labels:       map[string]string{v1alpha1.LabelPolicy: "orders", "pod-template-hash": "6d4cf56db6"},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "checkout-6d4cf56db6", UID: "1", Controller: &controller,
			}},
		},
		// As the API server sends it, whose own plugin for ServiceAccounts comes first.
		Spec: corev1.PodSpec{ServiceAccountName: "default", Containers: []corev1.Container{{Name: "app", Image: "checkout:1"}}},
	}
	for _, m := range modify {
		m(pod)
	}
	return pod
}

func annotated(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { metav1.SetMetaDataAnnotation(&p.ObjectMeta, key, value) }
}

func labelled(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { metav1.SetMetaDataLabel(&p.ObjectMeta, key, value) }
}

func owned(kind, name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.OwnerReferences[0].Kind, p.OwnerReferences[0].Name = kind, name }
}

func noAccount(p *corev1.Pod) { p.Spec.ServiceAccountName = "" }

func unowned(p *corev1.Pod) { p.OwnerReferences = nil }

func sidecar(p *corev1.Pod) { annotated(v1alpha1.AnnotationInject, v1alpha1.InjectSidecar)(p) }

// newPolicy is the policy `orders`, changed by the modifiers.
func newPolicy(modify ...func(*v1alpha1.DedupPolicy)) *v1alpha1.DedupPolicy {
	p := &v1alpha1.DedupPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders"}}
	p.Spec = v1alpha1.DedupPolicySpec{
		Key: v1alpha1.KeySpec{Strategy: v1alpha1.StrategyMessageID, MessageID: &v1alpha1.MessageIDKey{Header: "message-id"}},
		TTL: "1h",
		Store: v1alpha1.StoreSpec{Redis: &v1alpha1.RedisStore{
			Addresses:            []string{"redis.shop.svc:6379"},
			CredentialsSecretRef: &v1alpha1.SecretRef{Name: "orders-redis"},
		}},
	}
	for _, m := range modify {
		m(p)
	}
	v1alpha1.SetDefaults(p)
	return p
}

func inMemory(p *v1alpha1.DedupPolicy) {
	p.Spec.Store = v1alpha1.StoreSpec{Memory: &v1alpha1.MemoryStore{}}
}

// changed is a copy of a pod, changed by the modifiers.
func changed(pod *corev1.Pod, modify ...func(*corev1.Pod)) *corev1.Pod {
	pod = pod.DeepCopy()
	for _, m := range modify {
		m(pod)
	}
	return pod
}

func env(pairs ...string) []corev1.EnvVar {
	var list []corev1.EnvVar
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, corev1.EnvVar{Name: pairs[i], Value: pairs[i+1]})
	}
	return list
}

var endpointEnv = env(
	"DEDUPD_URL", "http://orders-dedupd.shop.svc:8080",
	"DEDUPD_GRPC", "orders-dedupd.shop.svc:9090",
	"DEDUPD_POLICY", "orders",
	"DEDUPD_CONSUMER", "checkout",
	"DEDUPD_TOKEN_FILE", "/var/run/secrets/dedupd.io/token",
)

// token is the volume of the token, and tokenMount its mount.
var (
	tokenSeconds int64 = 3600
	token              = corev1.Volume{Name: "dedupd-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: "dedupd", ExpirationSeconds: &tokenSeconds, Path: "token",
		}}},
	}}}
	tokenMount = []corev1.VolumeMount{{Name: "dedupd-token", MountPath: "/var/run/secrets/dedupd.io", ReadOnly: true}}
)

// withToken has the first container mount the token, and the pod its volume.
func withToken(p *corev1.Pod) {
	p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, tokenMount...)
	p.Spec.Volumes = append(p.Spec.Volumes, token)
}
