package webhook

import (
	"fmt"
	"strconv"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// patch is what apply does, as JSON Patch. It is written out and not the difference of two
// serialised pods: those lack the fields of a pod that this program is too old to know, and a
// difference would remove them.
func (a *additions) patch(pod *corev1.Pod) []jsonpatch.JsonPatchOperation {
	ops := a.markPatch(pod)
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Name != a.skip {
			ops = append(ops, a.connectPatch(fmt.Sprintf("/spec/initContainers/%d", i), c)...)
		}
	}
	for i := range pod.Spec.Containers {
		ops = append(ops, a.connectPatch(fmt.Sprintf("/spec/containers/%d", i), &pod.Spec.Containers[i])...)
	}
	if a.sidecar != nil {
		ops = append(ops, appendLast("/spec/initContainers", pod.Spec.InitContainers, []corev1.Container{*a.sidecar})...)
	}
	return append(ops, appendLast("/spec/volumes", pod.Spec.Volumes, a.volumes)...)
}

func (a *additions) connectPatch(path string, c *corev1.Container) []jsonpatch.JsonPatchOperation {
	return append(insertFirst(path+"/env", c.Env, a.missingEnv(c)),
		appendLast(path+"/volumeMounts", c.VolumeMounts, a.missingMounts(c))...)
}

func (a *additions) markPatch(pod *corev1.Pod) []jsonpatch.JsonPatchOperation {
	if pod.Annotations[v1alpha1.AnnotationInjected] == a.mark {
		return nil
	}
	if len(pod.Annotations) == 0 {
		return []jsonpatch.JsonPatchOperation{add("/metadata/annotations", map[string]string{v1alpha1.AnnotationInjected: a.mark})}
	}
	key := strings.ReplaceAll(v1alpha1.AnnotationInjected, "/", "~1")
	return []jsonpatch.JsonPatchOperation{add("/metadata/annotations/"+key, a.mark)}
}

// insertFirst puts items before those that a list has.
func insertFirst[T any](path string, has, items []T) []jsonpatch.JsonPatchOperation {
	return extend(path, has, items, strconv.Itoa)
}

// appendLast puts items after those that a list has.
func appendLast[T any](path string, has, items []T) []jsonpatch.JsonPatchOperation {
	return extend(path, has, items, func(int) string { return "-" })
}

func extend[T any](path string, has, items []T, place func(i int) string) []jsonpatch.JsonPatchOperation {
	if len(items) == 0 {
		return nil
	}
	if len(has) == 0 { // the list may be absent, which only adding it whole can mend
		return []jsonpatch.JsonPatchOperation{add(path, items)}
	}
	var ops []jsonpatch.JsonPatchOperation
	for i, item := range items {
		ops = append(ops, add(path+"/"+place(i), item))
	}
	return ops
}

func add(path string, value any) jsonpatch.JsonPatchOperation {
	return jsonpatch.NewOperation("add", path, value)
}
