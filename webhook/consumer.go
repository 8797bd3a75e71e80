package webhook

import (
	"regexp"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// templateHashLabels hold, on a pod, the hash that ends its ReplicaSet's name: a Deployment's,
// and an Argo Rollout's.
var templateHashLabels = []string{"pod-template-hash", "rollouts-pod-template-hash"}

// consumerName is the name under which a pod's messages are remembered: its label
// v1alpha1.LabelConsumer, else the name of the workload that owns it, else the pod's own.
//
// All pods of a workload, over all its rollouts, must get one name, or a rollout would forget
// every message; and two workloads must not get the same, or they would hide each other's
// messages. That is why neither `app` labels nor ServiceAccounts are asked.
func consumerName(pod *corev1.Pod) (string, error) {
	if name, ok := pod.Labels[v1alpha1.LabelConsumer]; ok {
		if name == "" {
			return "", field.Invalid(labels.Key(v1alpha1.LabelConsumer), name,
				"names no consumer; give it a name, or remove the label to use the workload's")
		}
		return name, nil
	}
	if owner := metav1.GetControllerOf(pod); owner != nil {
		switch owner.Kind {
		case "ReplicaSet":
			return deploymentName(owner.Name, pod.Labels), nil
		case "Job":
			return cronJobName(owner.Name), nil
		case "Node": // a static pod: the node owns many of them
		default:
			return owner.Name, nil
		}
	}
	if pod.Name != "" {
		return pod.Name, nil
	}
	if name := strings.TrimRight(pod.GenerateName, "-."); name != "" {
		return name, nil
	}
	return "", field.Required(field.NewPath("metadata", "name"), "name or generateName is needed to name the consumer")
}

// deploymentName is the name of a ReplicaSet without its pod template's hash.
func deploymentName(replicaSet string, podLabels map[string]string) string {
	for _, label := range templateHashLabels {
		if hash := podLabels[label]; hash != "" {
			if name, ok := strings.CutSuffix(replicaSet, "-"+hash); ok && name != "" {
				return name
			}
		}
	}
	return replicaSet
}

// A CronJob ends the names of its Jobs with the scheduled time in minutes since 1970. A Job's pod
// does not say whether a CronJob owns the Job, so the number must tell: eight digits from 2020 on.
// A date such as 20260131 is below that, and stays part of the name.
var cronJobSuffix = regexp.MustCompile(`^(.+)-([0-9]{8})$`)

const minutesUntil2020 = 26_297_280

// cronJobName is the name of a Job without the time that a CronJob ended it with.
func cronJobName(job string) string {
	m := cronJobSuffix.FindStringSubmatch(job)
	if m == nil {
		return job
	}
	if minutes, err := strconv.Atoi(m[2]); err != nil || minutes < minutesUntil2020 {
		return job
	}
	return m[1]
}
