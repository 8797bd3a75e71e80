package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// kubelet plays, for dedupd's Deployments only, the deployment controller, the kubelet and the
// garbage collector: it creates the pods of a Deployment, runs the container's command as a
// local process with the ConfigMap as its file, and reports them ready once they say so. Each
// pod gets a loopback address of its own, and so its own ports 8080 and 9090.
type kubelet struct {
	stage *stage
	pods  map[types.NamespacedName]*runningPod
}

type runningPod struct {
	process  *process
	template string // the pod template it was made from
	ip       string
	config   string // folder that stands for the ConfigMap volume
}

// run goes on until the context ends. Errors are transient here (an object changed, a process
// is starting) and show, if they last, as a policy that never gets ready.
func (k *kubelet) run(ctx context.Context) {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		if err := k.sync(ctx); err != nil && ctx.Err() == nil {
			k.stage.say("kubelet: %v", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (k *kubelet) sync(ctx context.Context) error {
	var deployments appsv1.DeploymentList
	if err := k.stage.api.List(ctx, &deployments, client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}); err != nil {
		return err
	}
	wanted := map[types.NamespacedName]bool{}
	for i := range deployments.Items {
		d := &deployments.Items[i]
		orphan, err := k.orphaned(ctx, d)
		if err != nil {
			return err
		}
		if orphan {
			if err := k.collect(ctx, d); err != nil {
				return err
			}
			continue
		}
		replicas := int32(1)
		if d.Spec.Replicas != nil {
			replicas = *d.Spec.Replicas
		}
		ready := int32(0)
		for n := range replicas {
			key := types.NamespacedName{Namespace: d.Namespace, Name: fmt.Sprintf("%s-%d", d.Name, n)}
			wanted[key] = true
			ok, err := k.syncPod(ctx, key, d)
			if err != nil {
				return fmt.Errorf("pod %s: %w", key, err)
			}
			if ok {
				ready++
			}
		}
		if err := k.reportDeployment(ctx, d, replicas, ready); err != nil {
			return err
		}
	}
	for key, pod := range maps.Clone(k.pods) {
		if !wanted[key] {
			if err := k.remove(ctx, key, pod); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncPod brings one pod up to its template and its configuration, and says whether it is ready.
func (k *kubelet) syncPod(ctx context.Context, key types.NamespacedName, d *appsv1.Deployment) (bool, error) {
	template := d.Spec.Template.String()
	pod := k.pods[key]
	if pod != nil && pod.template != template {
		if err := k.remove(ctx, key, pod); err != nil {
			return false, err
		}
		pod = nil
	}
	if pod == nil {
		var err error
		if pod, err = k.create(ctx, key, d); err != nil {
			return false, err
		}
		pod.template = template
		k.pods[key] = pod
	}
	if err := k.writeConfig(ctx, d, pod.config); err != nil {
		return false, err
	}
	if pod.process == nil {
		var err error
		if pod.process, err = k.exec(key, d, pod); err != nil {
			return false, err
		}
	}
	ready := get(ctx, "http://"+pod.ip+":8080/readyz") == nil
	return ready, k.reportPod(ctx, key, pod.ip, ready)
}

func (k *kubelet) create(ctx context.Context, key types.NamespacedName, d *appsv1.Deployment) (*runningPod, error) {
	object := &corev1.Pod{ObjectMeta: *d.Spec.Template.ObjectMeta.DeepCopy(), Spec: *d.Spec.Template.Spec.DeepCopy()}
	object.Name, object.Namespace = key.Name, key.Namespace
	object.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))}
	if err := k.stage.api.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	ip, err := k.freeIP()
	if err != nil {
		return nil, err
	}
	pod := &runningPod{ip: ip, config: filepath.Join(k.stage.dir, key.Namespace+"-"+key.Name)}
	return pod, os.MkdirAll(pod.config, 0o700)
}

// freeIP is a loopback address that no pod has. Each demo has its own 254, by its process ID, so that one does
// not meet another that runs beside it, or what is left of one that was killed.
func (k *kubelet) freeIP() (string, error) {
	taken := map[string]bool{}
	for _, pod := range k.pods {
		taken[pod.ip] = true
	}
	for n := 1; n < 255; n++ {
		if ip := podIP(os.Getpid(), n); !taken[ip] {
			return ip, nil
		}
	}
	return "", fmt.Errorf("%d pods run, and have all the addresses that there are", len(taken))
}

// podIP keeps clear of 127.0.x.y, where other programs listen.
func podIP(pid, n int) string {
	return fmt.Sprintf("127.%d.%d.%d", 64+pid>>8&63, pid&255, n)
}

// writeConfig writes what the Deployment mounts as its first ConfigMap volume, each file in one step.
func (k *kubelet) writeConfig(ctx context.Context, d *appsv1.Deployment, dir string) error {
	for _, volume := range d.Spec.Template.Spec.Volumes {
		if volume.ConfigMap == nil {
			continue
		}
		var cm corev1.ConfigMap
		if err := k.stage.api.Get(ctx, types.NamespacedName{Namespace: d.Namespace, Name: volume.ConfigMap.Name}, &cm); err != nil {
			return err
		}
		for name, content := range cm.Data {
			path := filepath.Join(dir, name)
			if old, err := os.ReadFile(path); err == nil && string(old) == content {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, ".new"), []byte(content), 0o600); err != nil {
				return err
			}
			if err := os.Rename(filepath.Join(dir, ".new"), path); err != nil {
				return err
			}
		}
	}
	return nil
}

// exec runs the container's command with its mount path replaced by the folder that stands for
// it, on the pod's own address.
func (k *kubelet) exec(key types.NamespacedName, d *appsv1.Deployment, pod *runningPod) (*process, error) {
	container := d.Spec.Template.Spec.Containers[0]
	argv := slices.Concat(container.Command, container.Args)
	for i, arg := range argv {
		for _, mount := range container.VolumeMounts {
			if isConfigMap(d, mount.Name) {
				arg = strings.ReplaceAll(arg, mount.MountPath, pod.config)
			}
		}
		argv[i] = arg
	}
	// No proxy on any node has to learn that a pod is going.
	argv = append(argv, "--http-addr="+pod.ip+":8080", "--grpc-addr="+pod.ip+":9090", "--drain-delay=0s")
	return k.stage.start(key.Namespace+"-"+key.Name, filepath.Join(k.stage.dir, "dedupd"), argv[1:]...)
}

func isConfigMap(d *appsv1.Deployment, volume string) bool {
	return slices.ContainsFunc(d.Spec.Template.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Name == volume && v.ConfigMap != nil
	})
}

func (k *kubelet) reportPod(ctx context.Context, key types.NamespacedName, ip string, ready bool) error {
	var pod corev1.Pod
	if err := k.stage.api.Get(ctx, key, &pod); err != nil {
		return err
	}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	if len(pod.Status.Conditions) == 1 && pod.Status.Conditions[0].Status == status {
		return nil
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.PodIP = ip
	pod.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name:  pod.Spec.Containers[0].Name,
		Image: pod.Spec.Containers[0].Image,
		Ready: ready,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()}}
	return k.stage.api.Status().Update(ctx, &pod)
}

func (k *kubelet) reportDeployment(ctx context.Context, d *appsv1.Deployment, replicas, ready int32) error {
	want := appsv1.DeploymentStatus{
		ObservedGeneration: d.Generation,
		Replicas:           replicas,
		UpdatedReplicas:    replicas,
		ReadyReplicas:      ready,
		AvailableReplicas:  ready,
	}
	have := d.Status
	if have.ObservedGeneration == want.ObservedGeneration && have.Replicas == replicas && have.ReadyReplicas == ready {
		return nil
	}
	d.Status = want
	return k.stage.api.Status().Update(ctx, d)
}

func (k *kubelet) remove(ctx context.Context, key types.NamespacedName, pod *runningPod) error {
	if pod.process != nil {
		k.stage.forget(pod.process)
		pod.process.stop()
	}
	delete(k.pods, key)
	object := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: key.Name, Namespace: key.Namespace}}
	return client.IgnoreNotFound(k.stage.api.Delete(ctx, object, client.GracePeriodSeconds(0)))
}

// orphaned says whether the policy that owns the Deployment is gone.
func (k *kubelet) orphaned(ctx context.Context, d *appsv1.Deployment) (bool, error) {
	owner := metav1.GetControllerOf(d)
	if owner == nil {
		return false, nil
	}
	var policy v1alpha1.DedupPolicy
	err := k.stage.api.Get(ctx, types.NamespacedName{Namespace: d.Namespace, Name: owner.Name}, &policy)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return err == nil && policy.UID != owner.UID, err
}

// collect deletes everything that carries the policy's label, as the garbage collector would
// everything that it owns.
func (k *kubelet) collect(ctx context.Context, d *appsv1.Deployment) error {
	selector := v1alpha1.LabelOwner + "=" + d.Labels[v1alpha1.LabelOwner]
	kinds := "deployment,service,configmap,serviceaccount,poddisruptionbudget,networkpolicy,horizontalpodautoscaler"
	_, err := k.stage.kubectlRun(ctx, "", "delete", "-n", d.Namespace, kinds, "-l", selector)
	return err
}
