package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// nudge touches pods that do not run the configuration yet. The kubelet brings a ConfigMap's
// change into a pod when it next looks at the pod: up to a minute and a half later, or at once if
// the pod changes. So an annotation of the pod changes.
//
// The kubelet may not have seen the ConfigMap change by then. A pod that is still behind when it
// is asked again is touched again: each time with a later time, less and less often.
func (r *Reconciler) nudge(ctx context.Context, namespace string, pods []string) error {
	var errs []error
	for _, name := range pods {
		object := &corev1.Pod{}
		object.Namespace, object.Name = namespace, name
		patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil,
			`{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.AnnotationNudged, r.Clock.Now().UTC().Format(time.RFC3339)))
		err := r.Client.Patch(ctx, object, patch)
		switch {
		case err == nil, apierrors.IsNotFound(err):
		case apierrors.IsForbidden(err):
			// Some clusters may not want it. The kubelet comes by in its own time.
		default:
			errs = append(errs, fmt.Errorf("touching pod %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// behind says that the pod has not read the configuration yet. One that has refused it has.
func (p pod) behind(configHash string) bool {
	return p.err == nil && p.configError == "" && (p.policy == nil || p.policy.ConfigHash != configHash)
}
