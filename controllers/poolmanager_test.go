package controllers_test

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// followed waits until all policies are ready, while the pods follow.
func (w *poolWorld) followed(what string) {
	w.Helper()
	w.eventually(what, func() bool {
		w.kubelet()
		for _, p := range w.policies() {
			if !meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady) || p.Status.ObservedGeneration != p.Generation {
				return false
			}
		}
		return true
	})
}

func TestManagerKeepsPoolsAlsoOverAnAbsence(t *testing.T) {
	w := newPoolWorld(t)
	stop := startManager(w.world)
	for _, name := range []string{"first", "second", "third"} {
		w.add(name, pooled("small"))
	}
	w.followed("the members are ready")
	w.wantObjects(ofPool("small"), ofMember("first"), ofMember("second"), ofMember("third"))

	w.edit("first", pooled("other"))
	w.followed("a member has moved to another pool")
	w.wantServed(map[string]string{"first": "other-dedupd-pool", "second": "small-dedupd-pool"})
	w.eventually("the first pool does not run it any more", func() bool {
		w.kubelet()
		return len(w.configured("small-dedupd-pool")) == 2
	})

	for _, name := range []string{"Deployment small-dedupd-pool", "Service second-dedupd", "ConfigMap third-dedupd"} {
		must(t, k8s.Delete(ctx, w.objects()[name]))
		w.eventually(name+" is back", func() bool { return w.objects()[name] != nil })
	}
	w.followed("the members are ready again")
	stop()

	// What happens while nobody looks: one leaves, one joins, one is deleted and with it the last member of a pool.
	w.edit("second", replicas(2))
	must(t, k8s.Delete(ctx, w.named("first")))
	w.add("fourth", pooled("small"))
	for _, o := range w.objects() { // as the garbage collector would
		if strings.HasPrefix(o.GetName(), "first-") {
			must(t, k8s.Delete(ctx, o))
		}
	}
	stop = startManager(w.world)
	w.followed("everyone is where he is to be")
	w.eventually("what nobody needs is gone", func() bool {
		return len(w.names()) == len(ofPool("small"))+len(ofMember("third"))+len(ofMember("fourth"))+len(ofPolicy("second"))
	})
	w.wantObjects(ofPool("small"), ofMember("third"), ofMember("fourth"), ofPolicy("second"))
	w.eventually("the pool runs its members alone", func() bool {
		w.kubelet()
		return len(w.configured("small-dedupd-pool")) == 2
	})
	w.followed("and its pods have noticed")
	stop()

	w.restsAfterARestart()

	for _, p := range w.policies() {
		must(t, k8s.Delete(ctx, &p))
	}
	w.eventually("the pool goes with its last member", func() bool {
		for _, o := range w.objects() {
			if ofPoolItself(o) {
				return false
			}
		}
		return true
	})
}

// restsAfterARestart starts a manager, and sees that it looks at everything and writes nothing.
func (w *poolWorld) restsAfterARestart() {
	w.Helper()
	end := quiet(w.T, w.world)
	asked := w.pods.questions()
	startManager(w.world)
	w.eventually("it has looked at the pods", func() bool { return w.pods.questions() >= asked+2 })
	third := w.named("third")
	touched := client.MergeFrom(third.DeepCopy())
	third.Annotations = map[string]string{"someone.else/note": "1"}
	must(w, k8s.Patch(ctx, third, touched)) // no new generation
	time.Sleep(3 * time.Second)
	if writes, _ := audited(w.T, w.userAgent(), end); len(writes) > 0 {
		w.Errorf("after a restart it wrote %v", writes)
	}
}
