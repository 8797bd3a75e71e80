package controllers_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"sync/atomic"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// addingWebhook adds to every child what service meshes and agents add.
func addingWebhook(w *world) {
	w.webhook(func(object client.Object) {
		object.SetAnnotations(merge(object.GetAnnotations(), "mesh.example.com/injected", "yes"))
		object.SetLabels(merge(object.GetLabels(), "mesh.example.com/revision", "1"))
		switch o := object.(type) {
		case *corev1.ConfigMap:
			o.Data["mesh.yaml"] = "mode: strict"
		case *corev1.ServiceAccount:
			o.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "registry"}}
		case *corev1.Service:
			o.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		case *appsv1.Deployment:
			pod := &o.Spec.Template
			pod.Annotations = merge(pod.Annotations, "mesh.example.com/injected", "yes")
			if len(pod.Spec.Containers) == 1 {
				pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: "AGENT", Value: "on"})
				pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "proxy", Image: "proxy"})
				pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "proxy", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
			}
		case *autoscalingv2.HorizontalPodAutoscaler:
			seconds := int32(60)
			o.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{
				ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &seconds},
			}
		}
	})
}

// rewritingWebhook changes what the operator itself has set, as one does that leads images to a
// mirror, or adds to a list that can only be written whole.
func rewritingWebhook(w *world) {
	w.webhook(func(object client.Object) {
		switch o := object.(type) {
		case *networkingv1.NetworkPolicy:
			if len(o.Spec.Ingress) == 2 {
				o.Spec.Ingress = append(o.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
					From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "mesh"}}}},
				})
			}
		case *appsv1.Deployment:
			o.Spec.Template.Spec.Containers[0].Image = "mirror.example.com/dedup-operator:test"
		}
	})
}

// webhook has the API server let mutate change every object that is written in the namespace.
func (w *world) webhook(mutate func(client.Object)) {
	w.Helper()
	var asked atomic.Bool
	server := httptest.NewTLSServer(&admission.Webhook{Handler: admission.HandlerFunc(
		func(_ context.Context, request admission.Request) admission.Response {
			asked.Store(true)
			return mutated(request, mutate)
		})})
	w.Cleanup(server.Close)
	url, none, fail := server.URL, admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.Fail
	configuration := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: w.namespace},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "other.example.com", AdmissionReviewVersions: []string{"v1"}, SideEffects: &none, FailurePolicy: &fail,
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				URL: &url, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
			},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: w.namespace}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update},
				Rule: admissionregistrationv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{
					"configmaps", "serviceaccounts", "services", "networkpolicies", "deployments", "poddisruptionbudgets", "horizontalpodautoscalers",
				}},
			}},
		}},
	}
	must(w, k8s.Create(ctx, configuration))
	w.Cleanup(func() { must(w, k8s.Delete(ctx, configuration)) })
	// The API server learns of it a little later.
	w.eventually("the webhook is asked", func() bool {
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "probe"}}
		service.Spec.Ports = []corev1.ServicePort{{Port: 1}}
		must(w, k8s.Create(ctx, service, client.DryRunAll))
		return asked.Load()
	})
}

// mutated answers a request with the difference that mutate makes.
func mutated(request admission.Request, mutate func(client.Object)) admission.Response {
	object, err := scheme.New(schema.GroupVersionKind(request.Kind))
	if err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if err := json.Unmarshal(request.Object.Raw, object); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	mutate(object.(client.Object))
	changed, err := json.Marshal(object)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(request.Object.Raw, changed)
}
