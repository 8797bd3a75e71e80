package controllers_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// deny has a policy of the cluster deny the namespace's new ConfigMaps for a reason, until allow is called.
func (w *world) deny(reason metav1.StatusReason) (allow func()) {
	w.Helper()
	policy := &admissionregistrationv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: w.namespace},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionregistrationv1.MatchResources{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: w.namespace}},
				ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: admissionregistrationv1.RuleWithOperations{
					Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
					Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"*"}, Resources: []string{"configmaps"}},
				}}},
			},
			Validations: []admissionregistrationv1.Validation{{Expression: "false", Message: "not on a Sunday", Reason: &reason}},
		},
	}
	must(w, k8s.Create(ctx, policy))
	binding := &admissionregistrationv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: w.namespace},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: policy.Name, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
		},
	}
	must(w, k8s.Create(ctx, binding))
	remove := func() {
		must(w, client.IgnoreNotFound(k8s.Delete(ctx, binding)))
		must(w, client.IgnoreNotFound(k8s.Delete(ctx, policy)))
	}
	w.Cleanup(remove)
	// The API server learns of it, and of its end, a little later.
	denied := func() bool {
		probe := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "probe"}}
		err := k8s.Create(ctx, probe, client.DryRunAll)
		if err != nil && apierrors.ReasonForError(err) != reason {
			w.Fatal(err)
		}
		return err != nil
	}
	w.eventually("ConfigMaps are denied", denied)
	return func() {
		remove()
		w.eventually("ConfigMaps are allowed", func() bool { return !denied() })
	}
}

// Its reason may be Invalid, as that of an object with a wrong field is.
func TestAnObjectThatAPolicyOfTheClusterDeniesIsToldAndTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.create()
	allow := w.deny(metav1.StatusReasonInvalid)
	if again := w.reconcile().RequeueAfter; again < 30*time.Second || again > time.Minute {
		t.Errorf("comes back in %s, want 30s to 60s: nobody tells when the policy of the cluster changes", again)
	}
	w.wantCondition(v1alpha1.ConditionAccepted, isFalse, v1alpha1.ReasonInvalid)
	if m := w.condition(v1alpha1.ConditionAccepted).Message; !strings.HasPrefix(m, "applying ConfigMap orders-dedupd: ") || !strings.Contains(m, "not on a Sunday") {
		t.Errorf("message %q", m)
	}
	w.written()
	w.events.take()
	w.reconcile()
	if e, written := w.events.take(), w.written(); e != nil || !cmp.Equal(written, []string{"apply *client.unstructuredApplyConfiguration"}) {
		t.Errorf("told again: %q, %q", e, written)
	}
	allow()
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionAccepted, isTrue, v1alpha1.ReasonValid)
}

func TestWhatIsForbiddenIsToldOfTheGenerationThatWantsIt(t *testing.T) {
	w := newWorld(t)
	w.create()
	allow := w.deny(metav1.StatusReasonForbidden)
	want := func(all map[string]string) {
		t.Helper()
		if _, err := w.r.Reconcile(ctx, w.policy()); !apierrors.IsForbidden(err) {
			t.Errorf("%v, want that it is forbidden, for another try", err)
		}
		p := w.policy()
		if p.Status.ObservedGeneration != p.Generation {
			t.Errorf("observed generation %d of %d", p.Status.ObservedGeneration, p.Generation)
		}
		got := map[string]string{}
		for _, c := range p.Status.Conditions {
			got[c.Type] = string(c.Status) + " " + c.Reason
		}
		if diff := cmp.Diff(all, got); diff != "" {
			t.Errorf("conditions (-want +got):\n%s", diff)
		}
		c := w.condition(v1alpha1.ConditionReady)
		if c.ObservedGeneration != p.Generation || !strings.Contains(c.Message, "not on a Sunday") {
			t.Errorf("generation %d is %+v", p.Generation, c)
		}
	}
	pending := map[string]string{
		"Accepted": "Unknown Pending", "ConfigLoaded": "Unknown Pending", "StoreReachable": "Unknown Pending", "StoreSafe": "Unknown Pending",
		"Ready": "False NotReady",
	}
	want(pending)
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" })
	want(pending)

	// What was last said of what runs is left.
	allow()
	w.ready()
	w.deny(metav1.StatusReasonForbidden)
	must(t, k8s.Delete(ctx, get(w, &corev1.ConfigMap{})))
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.TTL = "3h" })
	want(map[string]string{
		"Accepted": "True Valid", "ConfigLoaded": "True Loaded", "StoreReachable": "True Reachable", "StoreSafe": "True Safe",
		"Ready": "False NotReady",
	})
}
