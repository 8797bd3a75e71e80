package controllers_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/caller"
	"github.com/dedupd/dedup-operator/dedupd/caller/callertest"
	"github.com/dedupd/dedup-operator/dedupd/server"
	"github.com/dedupd/dedup-operator/dedupd/server/servertest"
)

func forCheckout(s *v1alpha1.DedupPolicySpec) {
	s.Callers = &v1alpha1.CallersSpec{ServiceAccounts: []v1alpha1.ServiceAccountName{"checkout"}}
}

// The API server issues the tokens, the operator reads its keys and writes them into the ConfigMap, and a
// dedupd that has nothing else is asked.
func TestCallersAreKnownByTokensOfTheAPIServer(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	w.create(forCheckout, inMemory)
	w.reconcile()
	d := newDaemon(t, w)
	requests := map[string]struct {
		token string
		want  int
	}{
		"its caller":                         {issue(t, w.namespace, "checkout", v1alpha1.TokenAudience), 200},
		"another ServiceAccount":             {issue(t, w.namespace, "mallory", v1alpha1.TokenAudience), 403},
		"one of the name elsewhere":          {issue(t, other.namespace, "checkout", v1alpha1.TokenAudience), 403},
		"its caller, for the API server":     {issue(t, w.namespace, "checkout"), 401},
		"its caller, for somebody else":      {issue(t, w.namespace, "checkout", "vault"), 401},
		"its caller, by another's signature": {callertest.Token(t, "rsa", callertest.Claims(time.Now(), map[string]any{"sub": "system:serviceaccount:" + w.namespace + ":checkout"})), 401},
		"nobody":                             {"", 401},
	}
	for who, r := range requests {
		t.Run(who, func(t *testing.T) {
			if status, text := d.forget(t, r.token); status != r.want {
				t.Errorf("%d %s, want %d", status, text, r.want)
			}
		})
	}

	// That it is the callers which keep the others out: without them nobody is.
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.Callers = nil })
	w.reconcile()
	if _, there := get(w, &corev1.ConfigMap{}).Data[v1alpha1.IssuerFile]; there {
		t.Error("the keys stay in the ConfigMap")
	}
	d.mount(w)
	for who, r := range requests {
		if status, text := d.forget(t, r.token); status != 200 {
			t.Errorf("%s, of a policy without callers: %d %s", who, status, text)
		}
	}
}

// issue has the API server issue a token of a ServiceAccount, which it makes if need be.
func issue(t *testing.T, namespace, account string, audiences ...string) string {
	t.Helper()
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	if err := k8s.Create(ctx, sa.DeepCopy()); err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}}
	must(t, k8s.SubResource("token").Create(ctx, sa, request))
	return request.Status.Token
}

// daemon is a dedupd over HTTP whose configuration is a policy's ConfigMap.
type daemon struct {
	*server.Service
	folder, url string
}

func newDaemon(t *testing.T, w *world) *daemon {
	t.Helper()
	d := &daemon{folder: t.TempDir(), Service: servertest.New(servertest.InMemory)}
	d.mount(w)
	web := httptest.NewServer(d.Handler())
	t.Cleanup(web.Close)
	d.url = web.URL
	return d
}

// mount plays the kubelet: the folder holds the ConfigMap as it is now. Then dedupd reads it, and
// has the configuration that the operator wants.
func (d *daemon) mount(w *world) {
	w.Helper()
	cm := get(w, &corev1.ConfigMap{})
	must(w, os.RemoveAll(d.folder))
	must(w, os.Mkdir(d.folder, 0o700))
	for name, content := range cm.Data {
		must(w, os.WriteFile(filepath.Join(d.folder, name), []byte(content), 0o600))
	}
	must(w, d.LoadConfig(server.Config{Path: filepath.Join(d.folder, v1alpha1.PolicyFile)}))
	if want := cm.Annotations[v1alpha1.AnnotationConfigHash]; d.Status().Policies[0].ConfigHash != want {
		w.Errorf("dedupd runs %s; the operator waits for %s", d.Status().Policies[0].ConfigHash, want)
	}
}

func (d *daemon) forget(t *testing.T, token string) (status int, text string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodDelete, d.url+"/v1/policies/orders/keys/c:1", nil)
	must(t, err)
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	must(t, err)
	defer func() { _ = response.Body.Close() }()
	var body strings.Builder
	must(t, response.Write(&body))
	return response.StatusCode, body.String()
}

// givenIssuer is an issuer of the test's.
type givenIssuer struct {
	keys []byte
	err  error
}

func (i *givenIssuer) Keys(context.Context) ([]byte, error) { return i.keys, i.err }

func issuerOf(t *testing.T, keys ...string) *givenIssuer {
	t.Helper()
	document, err := caller.NewDocument(callertest.Discovery(), callertest.Set(t, keys...))
	must(t, err)
	return &givenIssuer{keys: document}
}

func TestARotatedKeyReachesTheConfigMapAlone(t *testing.T) {
	w := newWorld(t)
	issuer := issuerOf(t, "rsa")
	w.r.Issuer = issuer
	w.create(forCheckout)
	w.ready()
	before := get(w, &corev1.ConfigMap{})
	w.reconcile()
	if wrote := w.written(); len(wrote) > 0 {
		t.Errorf("with the same keys: %v", wrote)
	}

	issuer.keys = issuerOf(t, "rsa", "another").keys
	w.reconcile()
	after := get(w, &corev1.ConfigMap{})
	if after.Data[v1alpha1.IssuerFile] != string(issuer.keys) {
		t.Errorf("the ConfigMap has %s", after.Data[v1alpha1.IssuerFile])
	}
	if hash := v1alpha1.AnnotationConfigHash; before.Annotations[hash] == after.Annotations[hash] {
		t.Error("the configuration's hash is that of before: no pod would be seen to be behind")
	}
	if wrote := w.written(); slices.ContainsFunc(wrote, func(s string) bool { return strings.Contains(s, "Deployment") }) {
		t.Errorf("new keys need no new pods: %v", wrote)
	}
	if told := w.events.take(); len(told) > 0 {
		t.Errorf("new keys are no news: %v", told)
	}
}

func TestWithoutKeysAPolicyWithCallersIsNotAccepted(t *testing.T) {
	w := newWorld(t)
	w.r.Issuer = &givenIssuer{err: errors.New(`GET /openid/v1/jwks: forbidden`)}
	w.create(forCheckout)
	if again := w.reconcile().RequeueAfter; again <= 0 || again > time.Minute {
		t.Errorf("looks again after %s, want within a minute", again)
	}
	w.wantCondition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonNoIssuerKeys)
	w.wantCondition(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNotReady)
	for _, want := range []string{"spec.callers", "GET /openid/v1/jwks: forbidden", "system:service-account-issuer-discovery"} {
		if m := w.condition(v1alpha1.ConditionAccepted).Message; !strings.Contains(m, want) {
			t.Errorf("%q does not say %q", m, want)
		}
	}
	if told := w.events.take(); len(told) != 1 || !strings.HasPrefix(told[0], "Warning NoIssuerKeys: spec.callers") {
		t.Errorf("events %q", told)
	}
	if w.exists(&corev1.ConfigMap{}) {
		t.Error("a policy that nobody could ask is applied")
	}
	w.r.Issuer = issuerOf(t, "rsa")
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonValid)
}

// An operator that was just started has no keys of before. The ConfigMap does.
func TestKeysStayWhileTheIssuerCannotBeAsked(t *testing.T) {
	w := newWorld(t)
	w.r.Issuer = issuerOf(t, "rsa")
	w.create(forCheckout)
	w.ready()
	before := get(w, &corev1.ConfigMap{}).Data[v1alpha1.IssuerFile]
	w.r.Issuer = &givenIssuer{err: errors.New("connection refused")}
	w.reconcile()
	if wrote, told := w.written(), w.events.take(); len(wrote)+len(told) > 0 {
		t.Errorf("writes %q, events %q", wrote, told)
	}
	// Also through a change of the policy.
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" })
	w.reconcile()
	cm := get(w, &corev1.ConfigMap{})
	if cm.Data[v1alpha1.IssuerFile] != before || !strings.Contains(cm.Data[v1alpha1.PolicyFile], "ttl: 2h") {
		t.Errorf("the ConfigMap has %v", cm.Data)
	}
}
