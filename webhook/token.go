package webhook

import (
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// tokenFile is the file of the token in every container.
var tokenFile = path.Join(v1alpha1.TokenDir, v1alpha1.TokenFileName)

// addToken gives the containers a token of the pod's ServiceAccount, good for asking dedupd and nothing
// else. Every pod gets one, whether its policy has callers or not: whether it does may change
// while the pod runs, and cannot be known before the policy exists.
//
// But for one without a ServiceAccount, which the API server has set before it asks us. That is a
// static pod: the kubelet runs it from a file of its own, and one with a token would be denied.
func (a *additions) addToken(pod *corev1.Pod) {
	if pod.Spec.ServiceAccountName == "" {
		return
	}
	a.env = append(a.env, corev1.EnvVar{Name: v1alpha1.EnvTokenFile, Value: tokenFile})
	a.mount = &corev1.VolumeMount{Name: v1alpha1.TokenVolume, MountPath: v1alpha1.TokenDir, ReadOnly: true}
	if !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == v1alpha1.TokenVolume }) {
		a.volumes = append(a.volumes, tokenVolume())
	}
}

func tokenVolume() corev1.Volume {
	seconds := v1alpha1.TokenSeconds
	return corev1.Volume{Name: v1alpha1.TokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: v1alpha1.TokenAudience, ExpirationSeconds: &seconds, Path: v1alpha1.TokenFileName,
		}}},
	}}}
}

// missingMounts is the mount of the token, where a container has none there yet.
func (a *additions) missingMounts(c *corev1.Container) []corev1.VolumeMount {
	if a.mount == nil || slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == a.mount.MountPath }) {
		return nil
	}
	return []corev1.VolumeMount{*a.mount}
}
