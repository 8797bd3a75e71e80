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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

	// difference is what the policy asks for and does not get from its pool, if anything.
	difference string

	// pods are the running ones, by name.
	pods []pod
}

// serves says that what was looked at can take over the policy: it has its replicas, and each of
// them runs the policy and reaches its store.
func (o observation) serves() bool {
	return rollout(o) == "" && configLoaded(o).status == metav1.ConditionTrue && storeReachable(o).status == metav1.ConditionTrue
}

// behind are the pods that have not read the configuration yet.
func (o observation) behind() []string {
	var names []string
	for _, p := range o.pods {
		if p.behind(o.configHash) {
			names = append(names, p.name)
		}
	}
	return names
}

// home is where policies run.
type home struct {
	deployment client.ObjectKey
	pods       map[string]string // their labels
}

// sight is what was seen of a home, whatever the policy.
type sight struct {
	deployment *appsv1.Deployment
	answers    []answer
}

// answer is what a running pod said.
type answer struct {
	pod  string
	said status.Status
	err  error
}

// pod is what a running dedupd pod said of the policy.
type pod struct {
	name string

	// err is why it could not be asked.
	err error

	configError string
	policy      *status.Policy // nil if it does not run the policy
}

// observe looks at a Deployment and asks its running pods.
func (r *Reconciler) observe(ctx context.Context, at home) (sight, error) {
	var seen sight
	deployment := &appsv1.Deployment{}
	switch err := r.Client.Get(ctx, at.deployment, deployment); {
	case err == nil:
		seen.deployment = deployment
	case client.IgnoreNotFound(err) != nil:
		return seen, fmt.Errorf("reading Deployment %s: %w", at.deployment.Name, err)
	}
	// Pods are listed from the API server each time: an informer would hold every pod of dedupd
	// in memory and wake us at each of their heartbeats.
	var list corev1.PodList
	if err := r.Live.List(ctx, &list, client.InNamespace(at.deployment.Namespace), client.MatchingLabels(at.pods)); err != nil {
		return seen, fmt.Errorf("listing the pods of Deployment %s: %w", at.deployment.Name, err)
	}
	seen.answers = r.ask(ctx, slices.DeleteFunc(list.Items, func(pod corev1.Pod) bool {
		return pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP == "" || pod.DeletionTimestamp != nil
	}))
	return seen, nil
}

// ask asks all pods at once.
func (r *Reconciler) ask(ctx context.Context, running []corev1.Pod) []answer {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answers := make([]answer, len(running))
	var wg sync.WaitGroup
	for i := range running {
		wg.Go(func() {
			a := &answers[i]
			a.pod = running[i].Name
			a.said, a.err = r.Status.Status(ctx, net.JoinHostPort(running[i].Status.PodIP, strconv.Itoa(v1alpha1.PortHTTP)))
		})
	}
	wg.Wait()
	slices.SortFunc(answers, func(a, b answer) int { return strings.Compare(a.pod, b.pod) })
	return answers
}

// of is what was seen as to one policy.
func (s sight) of(p *v1alpha1.DedupPolicy) observation {
	seen := observation{deployment: s.deployment, pods: make([]pod, len(s.answers))}
	for i, a := range s.answers {
		seen.pods[i] = pod{name: a.pod, err: a.err, configError: a.said.ConfigError}
		if n := slices.IndexFunc(a.said.Policies, func(s status.Policy) bool {
			return s.Namespace == p.Namespace && s.Name == p.Name
		}); n >= 0 && a.err == nil {
			seen.pods[i].policy = &a.said.Policies[n]
		}
	}
	return seen
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
