package webhook

import (
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Path is where the webhook server serves pod injection.
const Path = "/mutate-pods"

// Handler answers admission reviews of pods with what Inject adds.
type Handler struct {
	Options Options
	Decoder admission.Decoder
	// Cache knows most policies; API is asked for one that it does not know (yet).
	Cache, API client.Reader
}

// SetupWithManager serves pod injection on the manager's webhook server.
func SetupWithManager(mgr manager.Manager, o Options) {
	mgr.GetWebhookServer().Register(Path, &webhook.Admission{Handler: &Handler{
		Options: o,
		Decoder: admission.NewDecoder(mgr.GetScheme()),
		Cache:   mgr.GetClient(),
		API:     mgr.GetAPIReader(),
	}})
}

// Handle answers one admission review. Whatever goes wrong, the answer is not "allowed": a
// labelled pod never starts without deduplication silently.
func (h *Handler) Handle(ctx context.Context, req admission.Request) admission.Response {
	pod := &corev1.Pod{}
	if err := h.Decoder.Decode(req, pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("decoding the pod: %w", err))
	}
	// The pod of a template, or of a client that relies on the URL, does not say its namespace.
	pod.Namespace = req.Namespace
	name, err := PolicyName(pod)
	if err != nil {
		return admission.Denied(err.Error())
	}
	mode, err := Mode(pod)
	if err != nil {
		return admission.Denied(err.Error())
	}
	var policy *v1alpha1.DedupPolicy
	if mode == v1alpha1.InjectSidecar {
		if policy, err = h.policy(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: name}); err != nil {
			return admission.Errored(http.StatusInternalServerError, err)
		}
	}
	a, err := plan(pod, h.Options, policy)
	if err != nil {
		return admission.Denied(err.Error())
	}
	return admission.Patched("", a.patch(pod)...)
}

// policy is the policy of that name, nil if there is none.
func (h *Handler) policy(ctx context.Context, name types.NamespacedName) (*v1alpha1.DedupPolicy, error) {
	for _, reader := range []client.Reader{h.Cache, h.API} {
		policy := &v1alpha1.DedupPolicy{}
		err := reader.Get(ctx, name, policy)
		if err == nil {
			return policy, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("reading DedupPolicy %s: %w", name, err)
		}
	}
	return nil, nil
}
