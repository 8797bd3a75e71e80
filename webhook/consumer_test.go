package webhook

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// consumers are pods, and the names of the consumers that they are.
var consumers = map[string]struct {
	pod  *corev1.Pod
	want string
}{
	"a Deployment's name, from its ReplicaSet's":         {newPod(), "checkout"},
	"the label, before everything else":                  {newPod(labelled(v1alpha1.LabelConsumer, "billing")), "billing"},
	"a ReplicaSet of nobody keeps its name":              {newPod(labelled("pod-template-hash", "")), "checkout-6d4cf56db6"},
	"a hash that is not the ReplicaSet's ending stays":   {newPod(labelled("pod-template-hash", "abc")), "checkout-6d4cf56db6"},
	"an Argo Rollout's name":                             {newPod(labelled("pod-template-hash", ""), labelled("rollouts-pod-template-hash", "6d4cf56db6")), "checkout"},
	"a StatefulSet's name":                               {newPod(owned("StatefulSet", "orders-db")), "orders-db"},
	"a DaemonSet's name":                                 {newPod(owned("DaemonSet", "agent")), "agent"},
	"a Job's name":                                       {newPod(owned("Job", "import")), "import"},
	"a CronJob's name, without the time of its Job":      {newPod(owned("Job", "nightly-29459520")), "nightly"},
	"a Job's name with a date in it, whole":              {newPod(owned("Job", "import-20260131")), "import-20260131"},
	"a Job's name with another number in it, whole":      {newPod(owned("Job", "import-7")), "import-7"},
	"a static pod's own name, not its node's":            {newPod(owned("Node", "worker-1"), func(p *corev1.Pod) { p.Name = "edge-worker-1" }), "edge-worker-1"},
	"a bare pod's name":                                  {newPod(unowned, func(p *corev1.Pod) { p.Name = "adhoc" }), "adhoc"},
	"a bare pod's generateName, without its dash":        {newPod(unowned, func(p *corev1.Pod) { p.GenerateName = "adhoc-" }), "adhoc"},
	"an owner that does not control the pod is no owner": {newPod(func(p *corev1.Pod) { p.OwnerReferences[0].Controller = nil; p.Name = "adopted" }), "adopted"},
}

func TestConsumer(t *testing.T) {
	for name, test := range consumers {
		t.Run(name, func(t *testing.T) {
			got, err := Inject(test.pod, options, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := corev1.EnvVar{Name: v1alpha1.EnvConsumer, Value: test.want}
			if vars := got.Spec.Containers[0].Env; !slices.Contains(vars, want) {
				t.Errorf("%v has no %v", vars, want)
			}
		})
	}
}
