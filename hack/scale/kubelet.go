package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

// childKinds are the kinds of a policy's children here, which is not autoscaled.
var childKinds = []schema.GroupVersionKind{
	corev1.SchemeGroupVersion.WithKind("ServiceAccount"), corev1.SchemeGroupVersion.WithKind("ConfigMap"),
	corev1.SchemeGroupVersion.WithKind("Service"), appsv1.SchemeGroupVersion.WithKind("Deployment"),
	networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"), policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget"),
}

// kubelet watches policies and children, and stands in for what runs the pods: a Deployment has
// its replicas at once, one pod of each gets a loopback address of its own, and says there that
// it runs what the ConfigMap holds.
type kubelet struct {
	api    client.Client
	server *http.Server
	cancel context.CancelFunc
	starts chan *appsv1.Deployment

	mu       sync.Mutex
	policies map[client.ObjectKey]*policy // guarded by mu
	byIP     map[string]*policy           // guarded by mu
}

// policy is what is known of one; all of it is guarded by the kubelet's mu.
type policy struct {
	key            client.ObjectKey
	number         int
	created        time.Time
	children       map[string]bool
	applied, ready time.Duration // after it was created; 0: not yet
	hash, ip       string
}

func startKubelet(ctx context.Context, config *rest.Config, api client.WithWatch) (*kubelet, error) {
	ctx, cancel := context.WithCancel(ctx)
	k := &kubelet{api: api, cancel: cancel, policies: map[client.ObjectKey]*policy{}, byIP: map[string]*policy{}, starts: make(chan *appsv1.Deployment, 10000)}
	k.server = &http.Server{Handler: http.HandlerFunc(k.status), ReadHeaderTimeout: time.Minute}
	ours := labels.SelectorFromSet(labels.Set{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy})
	byObject := map[client.Object]cache.ByObject{}
	watched := []client.Object{&appsv1.Deployment{}, &corev1.ConfigMap{}}
	for _, gvk := range childKinds {
		if gvk.Kind != "Deployment" && gvk.Kind != "ConfigMap" {
			o := &metav1.PartialObjectMetadata{}
			o.SetGroupVersionKind(gvk)
			watched = append(watched, o)
		}
	}
	for _, o := range watched {
		byObject[o] = cache.ByObject{Label: ours}
	}
	watched = append(watched, &v1alpha1.DedupPolicy{})
	informers, err := cache.New(config, cache.Options{Scheme: api.Scheme(), ByObject: byObject})
	if err != nil {
		return k, err
	}
	for _, o := range watched {
		informer, err := informers.GetInformer(ctx, o, cache.BlockUntilSynced(false))
		if err != nil {
			return k, err
		}
		if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { k.saw(o.(client.Object)) },
			UpdateFunc: func(_, o any) { k.saw(o.(client.Object)) },
		}); err != nil {
			return k, err
		}
	}
	go func() { _ = informers.Start(ctx) }()
	for range 4 {
		go k.startPods(ctx)
	}
	return k, nil
}

func (k *kubelet) stop() {
	k.cancel()
	_ = k.server.Close()
}

// expect says that a policy is about to be created.
func (k *kubelet) expect(key client.ObjectKey, number int, at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.policies[key] = &policy{key: key, number: number, created: at, children: map[string]bool{}}
}

// saw is told of every policy and child that appears or changes.
func (k *kubelet) saw(o client.Object) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key := client.ObjectKey{Namespace: o.GetNamespace(), Name: strings.TrimSuffix(o.GetName(), "-dedupd")}
	p := k.policies[key]
	if p == nil {
		return
	}
	if d, ok := o.(*v1alpha1.DedupPolicy); ok {
		if p.ready == 0 && meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionReady) {
			p.ready = time.Since(p.created)
		}
		return
	}
	gvk, err := k.api.GroupVersionKindFor(o)
	if err != nil {
		panic(err)
	}
	p.children[gvk.Kind] = true
	if p.applied == 0 && len(p.children) == len(childKinds) {
		p.applied = time.Since(p.created)
	}
	switch o := o.(type) {
	case *corev1.ConfigMap:
		p.hash = o.Annotations[v1alpha1.AnnotationConfigHash]
	case *appsv1.Deployment:
		if o.Status.ObservedGeneration < o.Generation {
			k.starts <- o.DeepCopy()
		}
	}
}

// startPods gives Deployments their pods.
func (k *kubelet) startPods(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-k.starts:
			if err := k.startPod(ctx, d); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "scale: the kubelet's stand-in:", err)
			}
		}
	}
}

func (k *kubelet) startPod(ctx context.Context, d *appsv1.Deployment) error {
	ip, err := k.listen(ctx, client.ObjectKey{Namespace: d.Namespace, Name: strings.TrimSuffix(d.Name, "-dedupd")})
	if err != nil {
		return err
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name, Labels: d.Spec.Template.Labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "dedupd", Image: "dedupd"}}},
	}
	if err := k.api.Create(ctx, pod); err != nil {
		return client.IgnoreAlreadyExists(err)
	}
	pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
	n := *d.Spec.Replicas
	d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, ReadyReplicas: n, AvailableReplicas: n}
	return errors.Join(k.api.Status().Update(ctx, pod), k.api.Status().Update(ctx, d))
}

// listen gives a policy's pod an address, and answers there.
func (k *kubelet) listen(ctx context.Context, key client.ObjectKey) (string, error) {
	k.mu.Lock()
	p := k.policies[key]
	ip := p.ip
	if ip == "" {
		p.ip = fmt.Sprintf("127.77.%d.%d", p.number/250, p.number%250+1)
		k.byIP[p.ip] = p
	}
	k.mu.Unlock()
	if ip != "" {
		return ip, nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("%s:%d", p.ip, v1alpha1.PortHTTP))
	if err != nil {
		return "", err
	}
	go func() { _ = k.server.Serve(l) }()
	return p.ip, nil
}

// status answers the operator's question as the pod of the address would.
func (k *kubelet) status(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	k.mu.Lock()
	p := k.byIP[host]
	answer := status.Status{Version: "scale", Policies: []status.Policy{{
		Name: p.key.Name, Namespace: p.key.Namespace, ConfigHash: p.hash, Mode: "Mark",
		Store: status.Store{Kind: "Redis", Reachable: true, Safety: "Safe"},
	}}}
	k.mu.Unlock()
	_ = json.NewEncoder(w).Encode(answer)
}

// awaitChildren waits until n policies have their children, and says how long each took.
func (k *kubelet) awaitChildren(ctx context.Context, n int) ([]time.Duration, error) {
	return k.await(ctx, n, func(p *policy) time.Duration { return p.applied })
}

// awaitReady waits until n policies are ready, and says how long each took.
func (k *kubelet) awaitReady(ctx context.Context, n int) ([]time.Duration, error) {
	return k.await(ctx, n, func(p *policy) time.Duration { return p.ready })
}

func (k *kubelet) await(ctx context.Context, n int, of func(*policy) time.Duration) ([]time.Duration, error) {
	const patience = 10 * time.Minute
	for deadline := time.Now().Add(patience); ; {
		all, missing := make([]time.Duration, n), 0
		k.mu.Lock()
		for _, p := range k.policies {
			if all[p.number] = of(p); all[p.number] == 0 {
				missing++
			}
		}
		k.mu.Unlock()
		if missing == 0 {
			return all, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%d of %d policies are not there after %s", missing, n, patience)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// children counts the objects that the policies have.
func (c *cluster) children(ctx context.Context) (int, error) {
	n := 0
	for _, gvk := range append(childKinds, schema.GroupVersionKind{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler"}) {
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(gvk)
		if err := c.api.List(ctx, list, client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}); err != nil {
			return 0, err
		}
		for _, o := range list.Items {
			if len(o.OwnerReferences) > 0 {
				n++
			}
		}
	}
	return n, nil
}
