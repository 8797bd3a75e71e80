package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// injections asks the webhook as the API server does, one pod after the other.
func injections(ctx context.Context, c *cluster, p plan, r *report) error {
	configuration := &admissionregistrationv1.MutatingWebhookConfiguration{}
	if err := c.api.Get(ctx, client.ObjectKey{Name: "dedup-operator-webhook"}, configuration); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(configuration.Webhooks[0].ClientConfig.CABundle)
	caller := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}, Timeout: 10 * time.Second}
	for _, mode := range []string{v1alpha1.InjectEndpoint, v1alpha1.InjectSidecar} {
		body, err := review(mode)
		if err != nil {
			return err
		}
		latencies := make([]time.Duration, p.pods)
		for i := range latencies {
			start := time.Now()
			if err := inject(ctx, caller, c.webhook, body); err != nil {
				return err
			}
			latencies[i] = time.Since(start)
		}
		r.percentiles("webhook: "+mode, latencies, 0.005)
	}
	return nil
}

func review(mode string) ([]byte, error) {
	pod, err := json.Marshal(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace(0), Name: "consumer",
			Labels:      map[string]string{v1alpha1.LabelPolicy: "policy-0"},
			Annotations: map[string]string{v1alpha1.AnnotationInject: mode},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(&admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request:  &admissionv1.AdmissionRequest{UID: "1", Namespace: namespace(0), Object: runtime.RawExtension{Raw: pod}},
	})
}

func inject(ctx context.Context, caller *http.Client, url string, body []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := caller.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var answer admissionv1.AdmissionReview
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %w", response.Status, err)
	}
	if !answer.Response.Allowed || len(answer.Response.Patch) == 0 {
		return fmt.Errorf("the pod is not injected: %v", answer.Response.Result)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err
}
