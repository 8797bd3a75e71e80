package controllers

import (
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

// verdict is a condition without its type.
type verdict struct {
	status  metav1.ConditionStatus
	reason  string
	message string
}

func yes(reason, message string) verdict { return verdict{metav1.ConditionTrue, reason, message} }
func no(reason, message string) verdict  { return verdict{metav1.ConditionFalse, reason, message} }
func unknown(reason, message string) verdict {
	return verdict{metav1.ConditionUnknown, reason, message}
}

// set puts a condition into a policy's status; its transition time changes only if its status does.
func set(p *v1alpha1.DedupPolicy, condition string, v verdict, now time.Time) {
	meta.SetStatusCondition(&p.Status.Conditions, metav1.Condition{
		Type: condition, Status: v.status, Reason: v.reason, Message: v.message,
		ObservedGeneration: p.Generation, LastTransitionTime: metav1.NewTime(now),
	})
}

// judge sets the status of a policy that is served by what was seen.
func judge(p *v1alpha1.DedupPolicy, seen observation, now time.Time) {
	s := &p.Status
	s.ObservedGeneration = p.Generation
	s.Endpoint = fmt.Sprintf("%s:%d", v1alpha1.EndpointHost(p.Namespace, p.Name), v1alpha1.PortHTTP)
	s.ConfigHash = seen.configHash
	if kind := p.Spec.Store.Kind(); s.Store != kind {
		s.Store, s.HistorySince = kind, nil
	}
	if since := historySince(seen, s.Store); since != nil {
		s.HistorySince = since
	}
	s.Replicas, s.ReadyReplicas = 0, 0
	if seen.deployment != nil {
		s.Replicas, s.ReadyReplicas = seen.deployment.Status.Replicas, seen.deployment.Status.ReadyReplicas
	}
	accepted := yes(v1alpha1.ReasonValid, "the policy is valid and its objects are applied")
	if seen.difference != "" {
		accepted = no(v1alpha1.ReasonSettings, seen.difference)
	}
	set(p, v1alpha1.ConditionAccepted, accepted, now)
	set(p, v1alpha1.ConditionConfigLoaded, configLoaded(seen), now)
	set(p, v1alpha1.ConditionStoreReachable, storeReachable(seen), now)
	set(p, v1alpha1.ConditionStoreSafe, since(s.HistorySince, storeSafe(seen)), now)
	set(p, v1alpha1.ConditionReady, ready(p, seen), now)
}

// refuse sets the status of a policy that is not accepted.
func refuse(p *v1alpha1.DedupPolicy, reason, message string, now time.Time) {
	set(p, v1alpha1.ConditionAccepted, no(reason, message), now)
	stop(p, v1alpha1.ConditionAccepted+": "+message, "the policy is not accepted", now)
}

// stop sets the status of a policy that is not ready, for a reason that was met before anything was looked at.
// What runs is left as it is, and so is what was last said of it; where nothing was said yet, the reason is
// given in short.
func stop(p *v1alpha1.DedupPolicy, reason, short string, now time.Time) {
	p.Status.ObservedGeneration = p.Generation
	for _, c := range []string{
		v1alpha1.ConditionAccepted, v1alpha1.ConditionConfigLoaded, v1alpha1.ConditionStoreReachable, v1alpha1.ConditionStoreSafe,
	} {
		if meta.FindStatusCondition(p.Status.Conditions, c) == nil {
			set(p, c, unknown(v1alpha1.ReasonPending, short), now)
		}
	}
	set(p, v1alpha1.ConditionReady, no(v1alpha1.ReasonNotReady, reason), now)
}

const noPods = "no dedupd pod runs yet"

func configLoaded(seen observation) verdict {
	if len(seen.pods) == 0 {
		return unknown(v1alpha1.ReasonPending, noPods)
	}
	// What a pod refuses may be another policy of its pool, and this one runs as it should.
	if n := slices.IndexFunc(seen.pods, func(p pod) bool {
		return p.configError != "" && (p.policy == nil || p.policy.ConfigHash != seen.configHash)
	}); n >= 0 {
		return no(v1alpha1.ReasonRejected, fmt.Sprintf("pod %s: %s", seen.pods[n].name, tidy(seen.pods[n].configError)))
	}
	outdated := 0
	for _, p := range seen.pods {
		if p.err == nil && (p.policy == nil || p.policy.ConfigHash != seen.configHash) {
			outdated++
		}
	}
	if outdated > 0 {
		return no(v1alpha1.ReasonOutdated, fmt.Sprintf("%d of %d pods do not run configuration %s yet", outdated, len(seen.pods), seen.configHash))
	}
	if v, bad := silent(seen.pods); bad {
		return v
	}
	for _, p := range seen.pods {
		if len(p.policy.UnknownFields) > 0 {
			return yes(v1alpha1.ReasonUnknownFields, fmt.Sprintf("every pod runs configuration %s, but pod %s does not know %s: update dedupd's image",
				seen.configHash, p.name, tidy(strings.Join(p.policy.UnknownFields, ", "))))
		}
	}
	return yes(v1alpha1.ReasonLoaded, fmt.Sprintf("every pod runs configuration %s", seen.configHash))
}

// silent is the verdict on pods of which one says nothing of the policy.
func silent(pods []pod) (verdict, bool) {
	for _, p := range pods {
		if p.err != nil {
			return unknown(v1alpha1.ReasonStatusUnknown, fmt.Sprintf("pod %s: %s", p.name, tidy(p.err.Error()))), true
		}
	}
	for _, p := range pods {
		if p.policy == nil {
			return unknown(v1alpha1.ReasonStatusUnknown, fmt.Sprintf("pod %s does not run the policy yet", p.name)), true
		}
	}
	return verdict{}, false
}

// stores are what the pods that run the policy say of its store.
func stores(pods []pod) []namedStore {
	var all []namedStore
	for _, p := range pods {
		if p.policy != nil {
			all = append(all, namedStore{p.name, p.policy.Store})
		}
	}
	return all
}

type namedStore struct {
	pod string
	status.Store
}

func storeReachable(seen observation) verdict {
	if len(seen.pods) == 0 {
		return unknown(v1alpha1.ReasonPending, noPods)
	}
	for _, s := range stores(seen.pods) {
		if !s.Reachable && s.Error != status.NotAsked {
			return no(v1alpha1.ReasonUnreachable, fmt.Sprintf("pod %s: %s", s.pod, tidy(s.Error)))
		}
	}
	if v, bad := silent(seen.pods); bad {
		return v
	}
	for _, s := range stores(seen.pods) {
		if !s.Reachable {
			return unknown(v1alpha1.ReasonStatusUnknown, fmt.Sprintf("pod %s: the store was %s", s.pod, status.NotAsked))
		}
	}
	return yes(v1alpha1.ReasonReachable, "every pod reaches the store")
}

func storeSafe(seen observation) verdict {
	if len(seen.pods) == 0 {
		return unknown(v1alpha1.ReasonPending, noPods)
	}
	for _, s := range stores(seen.pods) {
		if s.Safety == string(v1alpha1.ReasonUnsafe) {
			return no(v1alpha1.ReasonUnsafe, tidy(s.Reason))
		}
	}
	if v, bad := silent(seen.pods); bad {
		return v
	}
	for _, s := range stores(seen.pods) {
		if s.Safety != string(v1alpha1.ReasonSafe) {
			return unknown(v1alpha1.ReasonStatusUnknown, tidy(s.Reason))
		}
	}
	return yes(v1alpha1.ReasonSafe, "the store neither evicts marks nor forgets them at a restart")
}

// since says in a verdict since when the store's history is complete.
func since(history *metav1.Time, v verdict) verdict {
	if history != nil {
		v.message += "; history is complete since " + history.UTC().Format(time.RFC3339)
	}
	return v
}

// historySince is the latest of what the pods with that kind of store say; nil if none knows. One that has
// not asked since the store lost its history still says the time of before.
func historySince(seen observation, kind string) *metav1.Time {
	var latest time.Time
	for _, s := range stores(seen.pods) {
		if s.Kind == kind && s.HistorySince.After(latest) {
			latest = s.HistorySince
		}
	}
	if latest.IsZero() {
		return nil
	}
	since := metav1.NewTime(latest).Rfc3339Copy() // as the API server keeps it
	return &since
}

// ready is the sum of the other conditions, but for StoreSafe, and of the rollout.
func ready(p *v1alpha1.DedupPolicy, seen observation) verdict {
	for _, c := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionConfigLoaded, v1alpha1.ConditionStoreReachable} {
		if is := meta.FindStatusCondition(p.Status.Conditions, c); is.Status != metav1.ConditionTrue {
			// The reason a pod could not be made is better than that there is none.
			if failure := replicaFailure(seen.deployment); failure != "" && is.Reason == v1alpha1.ReasonPending {
				return no(v1alpha1.ReasonNotReady, "Deployment: "+tidy(failure))
			}
			return no(v1alpha1.ReasonNotReady, c+": "+is.Message)
		}
	}
	if missing := rollout(seen); missing != "" {
		return no(v1alpha1.ReasonNotReady, "Deployment: "+missing)
	}
	return yes(v1alpha1.ReasonReady, "dedupd answers at "+p.Status.Endpoint)
}

// rollout says what the Deployment lacks, nothing if it has its replicas.
func rollout(seen observation) string {
	d := seen.deployment
	if d == nil || seen.rolling || d.Status.ObservedGeneration < d.Generation {
		return "it was changed, and its pods follow"
	}
	wanted := seen.replicas
	if d.Spec.Replicas != nil {
		wanted = *d.Spec.Replicas // the autoscaler's, where there is one
	}
	switch s := d.Status; {
	case s.UpdatedReplicas < wanted:
		return fmt.Sprintf("%d of %d pods are up to date", s.UpdatedReplicas, wanted)
	case s.Replicas > s.UpdatedReplicas:
		return fmt.Sprintf("%d of the pods of before are still to end", s.Replicas-s.UpdatedReplicas)
	case s.AvailableReplicas < wanted:
		return fmt.Sprintf("%d of %d pods are available", s.AvailableReplicas, wanted)
	}
	return ""
}

// replicaFailure is why the Deployment cannot make its pods, such as a quota.
func replicaFailure(d *appsv1.Deployment) string {
	if d == nil {
		return ""
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			return c.Message
		}
	}
	return ""
}
