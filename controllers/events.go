package controllers

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers/render"
)

// event is something that a policy's user should know. It is recorded once what it speaks of
// has been written.
type event struct {
	kind   string // corev1.EventTypeNormal or corev1.EventTypeWarning
	reason string
	action string // what the operator was doing
	note   string
}

// announcements are the conditions whose coming about is an event.
var announcements = []struct {
	condition string
	status    metav1.ConditionStatus
	reason    string
	event     event
}{
	{v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonInvalid, event{corev1.EventTypeWarning, v1alpha1.EventInvalid, "Compile", ""}},
	{v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonConflict, event{corev1.EventTypeWarning, v1alpha1.EventChildConflict, "Apply", ""}},
	{v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonNoIssuerKeys, event{corev1.EventTypeWarning, v1alpha1.EventNoIssuerKeys, "Observe", ""}},
	{v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonSettings, event{corev1.EventTypeWarning, v1alpha1.EventSettings, "Apply", ""}},
	{v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonPoolFull, event{corev1.EventTypeWarning, v1alpha1.EventPoolFull, "Apply", ""}},
	{v1alpha1.ConditionConfigLoaded, metav1.ConditionFalse, v1alpha1.ReasonRejected, event{corev1.EventTypeWarning, v1alpha1.EventConfigRejected, "Observe", ""}},
	{v1alpha1.ConditionConfigLoaded, metav1.ConditionTrue, v1alpha1.ReasonUnknownFields, event{corev1.EventTypeWarning, v1alpha1.EventUnknownInConfig, "Observe", ""}},
	{v1alpha1.ConditionStoreReachable, metav1.ConditionFalse, v1alpha1.ReasonUnreachable, event{corev1.EventTypeWarning, v1alpha1.EventStoreDown, "Observe", ""}},
	{v1alpha1.ConditionStoreSafe, metav1.ConditionFalse, v1alpha1.ReasonUnsafe, event{corev1.EventTypeWarning, v1alpha1.EventStoreUnsafe, "Observe", ""}},
	{v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, event{corev1.EventTypeNormal, v1alpha1.EventBecameReady, "Observe", ""}},
}

// statusNews are the events of the way from one status to the next.
func statusNews(before, after v1alpha1.DedupPolicyStatus) []event {
	news := historyLost(before, after)
	for _, a := range announcements {
		was, is := meta.FindStatusCondition(before.Conditions, a.condition), meta.FindStatusCondition(after.Conditions, a.condition)
		if is == nil || is.Status != a.status || is.Reason != a.reason {
			continue
		}
		if was != nil && was.Status == is.Status && was.Reason == is.Reason &&
			// A spec that was changed and is still wrong may be wrong in another way.
			(is.Type != v1alpha1.ConditionAccepted || was.Message == is.Message) {
			continue
		}
		e := a.event
		e.note = is.Message
		news = append(news, e)
	}
	return news
}

// historyLost tells that the store forgot what it had remembered. Another kind of store begins
// with an epoch, and has lost nothing.
func historyLost(before, after v1alpha1.DedupPolicyStatus) []event {
	was, is := before.HistorySince, after.HistorySince
	if was == nil || is == nil || !is.After(was.Time) || before.Store != after.Store {
		return nil
	}
	return []event{{corev1.EventTypeWarning, v1alpha1.EventHistoryLost, "Observe", fmt.Sprintf(
		"the store has lost what it remembered: its history is complete since %s only, and was since %s; messages from before may be processed twice",
		is.UTC().Format(time.RFC3339), was.UTC().Format(time.RFC3339))}}
}

// historyNews compares the configuration that is about to be replaced with the new one, as to
// whether what was remembered still counts. That the old one stands in the ConfigMap, and not in
// the memory of this process, is what makes a restart of the operator forget nothing.
func historyNews(live *corev1.ConfigMap, in render.Input) []event {
	data := live.Data[v1alpha1.PolicyFile]
	if live.Annotations[v1alpha1.AnnotationConfigHash] != render.ConfigHash([]byte(data), []byte(live.Data[v1alpha1.IssuerFile])) {
		return nil // Not what the operator wrote: someone edited it, and now it is mended.
	}
	var old v1alpha1.DedupPolicy
	if err := yaml.Unmarshal([]byte(data), &old); err != nil {
		return nil // Written by another version in a form that this one does not read.
	}
	was, is := old.Spec, in.Spec()
	switch {
	case is.Epoch > was.Epoch:
		return []event{{corev1.EventTypeNormal, v1alpha1.EventEpochRaised, "Apply", fmt.Sprintf(
			"epoch %d begins: what was remembered in epoch %d no longer counts", is.Epoch, was.Epoch)}}
	case server(was.Store) != server(is.Store):
		return []event{{corev1.EventTypeWarning, v1alpha1.EventStoreMoved, "Apply", fmt.Sprintf(
			"the store is now %s and was %s: unless these are the same server, history starts anew and messages of the last %s may be processed twice",
			server(is.Store), server(was.Store), is.TTL)}}
	}
	return nil
}

// server says which server a store is, and where on it the records are, in words that differ if
// these may. Another kind of store needs a higher epoch, and is no move.
func server(s v1alpha1.StoreSpec) string {
	switch {
	case s.Redis != nil:
		name := fmt.Sprintf("%s %v", s.Redis.Mode, slices.Sorted(slices.Values(s.Redis.Addresses)))
		if s.Redis.MasterName != "" {
			name += " " + s.Redis.MasterName
		}
		return name
	case s.Postgres != nil:
		return fmt.Sprintf("schema %s of database %s at %v", s.Postgres.Schema, s.Postgres.Database, slices.Sorted(slices.Values(s.Postgres.Addresses)))
	}
	return ""
}
