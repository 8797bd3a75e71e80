package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// From the previous version's dist/install.yaml and programs to this one's, which has another dedupd at
// least by the name of its image. Then to one that has another operator alone.
func TestAnUpgradeFromThePreviousVersion(t *testing.T) {
	t.Cleanup(func() {
		if err := install(context.Background(), manifest); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(uninstall(t.Context()), install(t.Context(), previousManifest)); err != nil {
		t.Fatal(err)
	}
	namespace := newNamespace(t, "e2e-upgrade")
	redis := newRedis(t)
	policies := map[string]*v1alpha1.DedupPolicy{}
	for name, more := range map[string]string{"orders": "scope: Policy", "invoices": "mode: Claim"} {
		apply(t, policyYAML(namespace, name, redis.address, more))
		policies[name] = awaitPolicy(t, namespace, name)
	}
	calm := underLoad(t, namespace, "orders", "")

	t.Run("to this one", func(t *testing.T) {
		// The previous version closes connections while the API server sends requests on them, which makes
		// controllers try a pod twice.
		served := injecting(t, namespace, 2)
		upgradeTo(t, namespace, policies, manifest)
		calm()
		served()
	})
	t.Run("to another operator", func(t *testing.T) {
		served := injecting(t, namespace, 1)
		before := map[string]corev1.PodTemplateSpec{}
		for name := range policies {
			before[name] = template(t, namespace, name)
		}
		upgradeTo(t, namespace, policies, withOperator(t, nextImage))
		for name := range policies {
			if after := template(t, namespace, name); !equality.Semantic.DeepEqual(before[name], after) {
				t.Errorf("%s: dedupd is the same, and its pods' template is\n%+v\nit was\n%+v", name, after, before[name])
			}
		}
		calm()
		served()
	})
}

// withOperator is this version's manifest with another image for the operator, and the same dedupd.
func withOperator(t *testing.T, other string) string {
	t.Helper()
	rendered, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	const field = "\n        image: "
	if strings.Count(string(rendered), field+image+"\n") != 1 {
		t.Fatalf("%s does not have the image %s once", manifest, image)
	}
	file := filepath.Join(t.TempDir(), "install.yaml")
	changed := strings.Replace(string(rendered), field+image+"\n", field+other+"\n", 1)
	if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// upgradeTo applies a manifest. Every policy is the one that it was, and Ready. The pods of those whose
// template is what it was are the same, and no container has restarted; the others' were replaced.
func upgradeTo(t *testing.T, namespace string, policies map[string]*v1alpha1.DedupPolicy, manifest string) {
	t.Helper()
	templates, pods := map[string]corev1.PodTemplateSpec{}, map[string]map[string]int32{}
	for name := range policies {
		templates[name], pods[name] = template(t, namespace, name), identities(dedupdPods(t, namespace, name))
	}
	if err := install(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	// An operator begins with the policies that are there: when a later one is Ready, it has been at them.
	later := fmt.Sprintf("later-%d", time.Now().Unix())
	apply(t, policyYAML(namespace, later, policies["orders"].Spec.Store.Redis.Addresses[0], "deployment: {replicas: 1}"))
	awaitPolicy(t, namespace, later)
	for name, was := range policies {
		is := awaitPolicy(t, namespace, name)
		if is.UID != was.UID || is.Generation != was.Generation || !is.CreationTimestamp.Equal(&was.CreationTimestamp) {
			t.Errorf("the policy %s is another one: %+v, was %+v", name, is.ObjectMeta, was.ObjectMeta)
		}
		eventually(t, time.Minute, func() error {
			if runs := template(t, namespace, name).Spec.Containers[0].Image; runs != image {
				return fmt.Errorf("%s: the Deployment has the image %s, want %s", name, runs, image)
			}
			return nil
		})
		awaitDeployment(t, namespace, v1alpha1.ChildName(name))
		after := identities(dedupdPods(t, namespace, name))
		if equality.Semantic.DeepEqual(template(t, namespace, name), templates[name]) {
			t.Logf("%s: the pods' template is the same", name)
			expectSame(t, pods[name], after)
			if now, then := readySince(is), readySince(was); !now.Equal(&then) {
				t.Errorf("the policy %s is Ready since %s, it was so since %s", name, now, then)
			}
			continue
		}
		t.Logf("%s: the pods' template is another one", name)
		for pod, restarts := range after {
			if _, was := pods[name][pod]; was || restarts > 0 {
				t.Errorf("%s was there before, or has restarted %d times", pod, restarts)
			}
		}
		policies[name] = is
	}
}

func readySince(p *v1alpha1.DedupPolicy) metav1.Time {
	return meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady).LastTransitionTime
}

func template(t *testing.T, namespace, policy string) corev1.PodTemplateSpec {
	t.Helper()
	d := &appsv1.Deployment{}
	if err := api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: v1alpha1.ChildName(policy)}, d); err != nil {
		t.Fatal(err)
	}
	return d.Spec.Template
}

// injecting has labelled pods go through the webhook all the time, and returns a function that says
// that each one was injected, at the latest by so many tries.
func injecting(t *testing.T, namespace string, tries int) (served func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	pods, refused := 0, []error{}
	done.Go(func() {
		for ctx.Err() == nil {
			err := injected(context.WithoutCancel(ctx), namespace)
			for again := 1; again < tries && err != nil; again++ {
				err = injected(context.WithoutCancel(ctx), namespace)
			}
			if pods++; err != nil {
				refused = append(refused, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
	return func() {
		t.Helper()
		cancel()
		done.Wait()
		t.Logf("%d pods went through the webhook", pods)
		if pods < 20 || len(refused) > 0 {
			t.Errorf("%d of %d pods were refused: %v", len(refused), pods, errors.Join(refused...))
		}
	}
}

// injected is nil if a labelled pod would have come into being, and injected. It is tried only.
func injected(ctx context.Context, namespace string) error {
	pod := labelledPod(namespace)
	if err := api.Create(ctx, pod, client.DryRunAll); err != nil {
		return err
	}
	if len(pod.Spec.Containers[0].Env) == 0 {
		return errors.New("a pod came through without being injected")
	}
	return nil
}

func labelledPod(namespace string) *corev1.Pod {
	no, yes := false, true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "tried", Labels: map[string]string{v1alpha1.LabelPolicy: "orders"}},
		Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{
				Name: "app", Image: appImage,
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}
