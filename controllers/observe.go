package controllers

import (
	"context"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

// askTimeout is how long a replica may take to say how it is.
const askTimeout = 2 * time.Second

// observation is what a policy's conditions are judged by.
type observation struct {
	// configHash and replicas are what should run.
	configHash string
	replicas   int32

	// deployment is nil if it is not to be seen yet; rolling that it was changed just now, so
	// that what is seen of it is of the past.
	deployment *appsv1.Deployment
	rolling    bool

	// pods are the running ones, by name.
	pods []pod
}

// pod is what a running dedupd pod said of the policy.
type pod struct {
	name string

	// err is why it could not be asked.
	err error

	configError string
	policy      *status.Policy // nil if it does not run the policy
}

// observe looks at the Deployment and asks the running pods.
func (r *Reconciler) observe(ctx context.Context, p *v1alpha1.DedupPolicy) (observation, error) {
	var seen observation
	deployment := &appsv1.Deployment{}
	switch err := r.Client.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: v1alpha1.ChildName(p.Name)}, deployment); {
	case err == nil:
		seen.deployment = deployment
	case client.IgnoreNotFound(err) != nil:
		return seen, fmt.Errorf("reading Deployment %s: %w", v1alpha1.ChildName(p.Name), err)
	}
	// Pods are listed from the API server each time: an informer would hold every pod of dedupd
	// in memory and wake us at each of their heartbeats.
	var list corev1.PodList
	if err := r.Live.List(ctx, &list, client.InNamespace(p.Namespace), client.MatchingLabels(v1alpha1.SelectorLabels(p.Name))); err != nil {
		return seen, fmt.Errorf("listing the pods of policy %s: %w", p.Name, err)
	}
	seen.pods = r.ask(ctx, p, slices.DeleteFunc(list.Items, func(pod corev1.Pod) bool {
		return pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP == "" || pod.DeletionTimestamp != nil
	}))
	return seen, nil
}

// ask asks all pods at once.
func (r *Reconciler) ask(ctx context.Context, p *v1alpha1.DedupPolicy, running []corev1.Pod) []pod {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answers := make([]pod, len(running))
	var wg sync.WaitGroup
	for i := range running {
		wg.Go(func() {
			a := &answers[i]
			a.name = running[i].Name
			said, err := r.Status.Status(ctx, net.JoinHostPort(running[i].Status.PodIP, strconv.Itoa(v1alpha1.PortHTTP)))
			if err != nil {
				a.err = err
				return
			}
			a.configError = said.ConfigError
			if n := slices.IndexFunc(said.Policies, func(s status.Policy) bool {
				return s.Namespace == p.Namespace && s.Name == p.Name
			}); n >= 0 {
				a.policy = &said.Policies[n]
			}
		})
	}
	wg.Wait()
	slices.SortFunc(answers, func(a, b pod) int { return strings.Compare(a.name, b.name) })
	return answers
}

// maxMessage is the length of what of a pod's words is put into a condition.
const maxMessage = 512

// localAddress is the near end of a connection in Go's network errors. Its port is another each
// time, and a condition whose message changes is a write.
var localAddress = regexp.MustCompile(`((read|write|dial) (tcp|udp) )\S+->`)

// tidy makes a pod's words fit for a condition's message.
func tidy(words string) string {
	words = strings.ToValidUTF8(localAddress.ReplaceAllString(words, "$1"), "?")
	if len(words) > maxMessage {
		words = strings.ToValidUTF8(words[:maxMessage], "") + "…"
	}
	return words
}
