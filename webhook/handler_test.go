package webhook

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/hack/apiservertest"
)

func TestHandle(t *testing.T) {
	empty := fake.NewClientBuilder().WithScheme(apiservertest.Scheme()).Build()
	full := fake.NewClientBuilder().WithScheme(apiservertest.Scheme()).WithObjects(newPolicy()).Build()
	broken := interceptor.NewClient(full, interceptor.Funcs{
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return errors.New("connection refused")
		},
	})
	// What the API server sends of a pod that a ReplicaSet creates: without its namespace.
	raw := func(modify ...func(*corev1.Pod)) []byte {
		return marshal(t, newPod(append(modify, func(p *corev1.Pod) { p.Namespace = "" })...))
	}
	for name, test := range map[string]struct {
		object     []byte
		cache, api client.Reader
		allowed    bool
		code       int32
		want       string // in the answer
	}{
		"the namespace is the request's":                       {raw(), broken, broken, true, http.StatusOK, "orders-dedupd.shop.svc"},
		"the endpoint needs no policy":                         {raw(), empty, empty, true, http.StatusOK, "DEDUPD_URL"},
		"a sidecar's policy comes from the cache":              {raw(sidecar), full, broken, true, http.StatusOK, "dedupd-config"},
		"a policy that the cache lacks comes from the API":     {raw(sidecar), empty, full, true, http.StatusOK, "dedupd-config"},
		"a policy that nobody has is a denial":                 {raw(sidecar), empty, empty, false, http.StatusForbidden, "DedupPolicy does not exist in namespace shop"},
		"a policy that cannot be read is an error":             {raw(sidecar), empty, broken, false, http.StatusInternalServerError, "reading DedupPolicy shop/orders: connection refused"},
		"an unknown way of connecting is a denial":             {raw(annotated(v1alpha1.AnnotationInject, "no")), empty, empty, false, http.StatusForbidden, `"endpoint", "sidecar"`},
		"a policy name that is none is a denial":               {raw(labelled(v1alpha1.LabelPolicy, "No")), empty, empty, false, http.StatusForbidden, "no DedupPolicy can have this name"},
		"a consumer name that is none is a denial":             {raw(labelled(v1alpha1.LabelConsumer, "")), empty, empty, false, http.StatusForbidden, "names no consumer"},
		"what is no pod is an error that says so":              {[]byte(`{"spec":7}`), empty, empty, false, http.StatusBadRequest, "decoding the pod"},
		"a pod that is connected already is let through as is": {raw(injectedAlready(t)), empty, empty, true, http.StatusOK, "null"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &Handler{Options: options, Decoder: admission.NewDecoder(apiservertest.Scheme()), Cache: test.cache, API: test.api}
			got := h.Handle(context.Background(), admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
				Namespace: "shop", Object: runtime.RawExtension{Raw: test.object},
			}})
			said := got.Result.Message + string(marshal(t, got.Patches))
			if got.Allowed != test.allowed || got.Result.Code != test.code || !strings.Contains(said, test.want) {
				t.Errorf("allowed %v with code %d: %s\nwant %v with code %d: %s", got.Allowed, got.Result.Code, said, test.allowed, test.code, test.want)
			}
		})
	}
}

func injectedAlready(t *testing.T) func(*corev1.Pod) {
	t.Helper()
	return func(p *corev1.Pod) {
		done, err := Inject(p, options, nil)
		if err != nil {
			t.Fatal(err)
		}
		*p = *done
	}
}
