package manifests_test

import (
	"encoding/json"
	"testing"

	lua "github.com/yuin/gopher-lua"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

func TestArgoCDsHealthFollowsTheConditions(t *testing.T) {
	condition := func(kind string, status metav1.ConditionStatus, reason string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: "the message"}
	}
	accepted := condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonValid)
	notReady := condition(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNotReady)
	for name, test := range map[string]struct {
		observed      int64
		conditions    []metav1.Condition
		health, words string
	}{
		"nobody has seen it":       {0, nil, "Progressing", "the operator has not seen this policy yet"},
		"a change is not seen yet": {1, []metav1.Condition{condition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)}, "Progressing", "the operator has not seen this change yet"},
		"all is well": {2, []metav1.Condition{accepted, condition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)},
			"Healthy", "the message"},
		"the spec is wrong": {2, []metav1.Condition{condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonInvalid), notReady},
			"Degraded", "Accepted: the message"},
		"its pods start": {2, []metav1.Condition{accepted, condition(v1alpha1.ConditionConfigLoaded, metav1.ConditionUnknown, v1alpha1.ReasonPending), notReady},
			"Progressing", "the message"},
		"a change is on its way to the pods": {2, []metav1.Condition{accepted, condition(v1alpha1.ConditionConfigLoaded, metav1.ConditionFalse, v1alpha1.ReasonOutdated), notReady},
			"Progressing", "the message"},
		"a pod rejects the configuration": {2, []metav1.Condition{accepted, condition(v1alpha1.ConditionConfigLoaded, metav1.ConditionFalse, v1alpha1.ReasonRejected), notReady},
			"Degraded", "ConfigLoaded: the message"},
		"the store is down": {2, []metav1.Condition{accepted, condition(v1alpha1.ConditionStoreReachable, metav1.ConditionFalse, v1alpha1.ReasonUnreachable), notReady},
			"Degraded", "StoreReachable: the message"},
		"an unsafe store is no outage": {2, []metav1.Condition{accepted, condition(v1alpha1.ConditionStoreSafe, metav1.ConditionFalse, v1alpha1.ReasonUnsafe), condition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)},
			"Healthy", "the message"},
	} {
		t.Run(name, func(t *testing.T) {
			policy := &v1alpha1.DedupPolicy{ObjectMeta: metav1.ObjectMeta{Name: "orders", Generation: 2}}
			policy.Status.ObservedGeneration, policy.Status.Conditions = test.observed, test.conditions
			health, words := argoHealth(t, policy)
			if health != test.health || words != test.words {
				t.Errorf("%s, %q; want %s, %q", health, words, test.health, test.words)
			}
		})
	}
}

// argoHealth runs the script as Argo CD does: the object is the global obj, as JSON has it.
func argoHealth(t *testing.T, policy *v1alpha1.DedupPolicy) (status, message string) {
	t.Helper()
	data, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	var object any
	if err := json.Unmarshal(data, &object); err != nil {
		t.Fatal(err)
	}
	l := lua.NewState()
	defer l.Close()
	l.SetGlobal("obj", toLua(l, object))
	if err := l.DoString(string(read(t, "config", "argocd", "health.lua"))); err != nil {
		t.Fatal(err)
	}
	answer := l.CheckTable(-1)
	return answer.RawGetString("status").String(), answer.RawGetString("message").String()
}

func toLua(l *lua.LState, value any) lua.LValue {
	switch v := value.(type) {
	case map[string]any:
		table := l.NewTable()
		for key, member := range v {
			table.RawSetString(key, toLua(l, member))
		}
		return table
	case []any:
		table := l.NewTable()
		for _, item := range v {
			table.Append(toLua(l, item))
		}
		return table
	case string:
		return lua.LString(v)
	case float64:
		return lua.LNumber(v)
	case bool:
		return lua.LBool(v)
	}
	return lua.LNil
}
