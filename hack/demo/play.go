package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

const namespace = "shop"

// sample is a policy of config/samples with the messages beside it.
type sample struct {
	name     string // of the policy
	mode     v1alpha1.Mode
	messages string // file
}

var redisAddress = regexp.MustCompile(`[a-z0-9.-]+\.svc:6379`)

// applySamples applies config/samples, with the address of this machine's Redis in place of theirs.
func (s *stage) applySamples(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name:   namespace,
		Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}
	if err := s.api.Create(ctx, ns); err != nil {
		return err
	}
	s.kubelet = &kubelet{stage: s, pods: map[types.NamespacedName]*runningPod{}}
	kubeletCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.kubelet.run(kubeletCtx)
	}()
	s.stopKubelet = func() { cancel(); <-stopped }

	files, err := filepath.Glob(filepath.Join(s.root, "config/samples/*.ndjson"))
	if err != nil {
		return err
	}
	for _, messages := range files {
		manifest, err := os.ReadFile(strings.TrimSuffix(messages, ".ndjson") + ".yaml")
		if err != nil {
			return err
		}
		manifest = redisAddress.ReplaceAll(manifest, []byte(s.redis))
		var policy v1alpha1.DedupPolicy
		if err := yaml.UnmarshalStrict(manifest, &policy); err != nil {
			return fmt.Errorf("%s: %w", messages, err)
		}
		if policy.Spec.Store.Redis == nil {
			continue // Redis is what there is here.
		}
		said, err := s.kubectlRun(ctx, string(manifest), "apply", "-f", "-")
		if err != nil {
			return err
		}
		s.say("%s", strings.TrimSpace(said))
		v1alpha1.SetDefaults(&policy)
		s.samples = append(s.samples, sample{name: policy.Name, mode: policy.Spec.Mode, messages: messages})
	}
	return nil
}

func (s *stage) waitReady(ctx context.Context) error {
	for _, sample := range s.samples {
		var policy v1alpha1.DedupPolicy
		err := s.await(ctx, 60*time.Second, func(ctx context.Context) error {
			if err := s.api.Get(ctx, types.NamespacedName{Namespace: namespace, Name: sample.name}, &policy); err != nil {
				return err
			}
			if apimeta.IsStatusConditionTrue(policy.Status.Conditions, v1alpha1.ConditionReady) {
				return nil
			}
			return fmt.Errorf("policy %s: %s", sample.name, conditions(&policy))
		})
		if err != nil {
			return err
		}
		s.say("%-14s %s", sample.name, conditions(&policy))
	}
	return nil
}

func conditions(policy *v1alpha1.DedupPolicy) string {
	var all []string
	for _, c := range policy.Status.Conditions {
		text := c.Type + "=" + string(c.Status)
		if c.Status != metav1.ConditionTrue {
			text += fmt.Sprintf(" (%s: %s)", c.Reason, c.Message)
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

// message is a line of a message file, as `dedupd check` reads them.
type message struct {
	Headers    map[string]string `json:"headers"`
	Body       json.RawMessage   `json:"body"`
	BodyText   string            `json:"bodyText"`
	BodyBase64 string            `json:"bodyBase64"`
	Consumer   string            `json:"consumer"`
	Attempt    string            `json:"attempt"`
}

// answer is what dedupd says to a check, or why it does not.
type answer struct {
	Decision  string    `json:"decision"`
	Key       string    `json:"key"`
	Token     string    `json:"token"`
	Fence     uint64    `json:"fence"`
	FirstSeen time.Time `json:"firstSeen"`
	Reason    string    `json:"reason"`
	Code      string    `json:"code"`
	Detail    string    `json:"detail"`
}

// sendMessages sends each sample's messages to its replicas in turn, over HTTP as a consumer
// would, and prints what was decided and why.
func (s *stage) sendMessages(ctx context.Context) error {
	for _, sample := range s.samples {
		s.say("\n%s, %s mode, %s", sample.name, sample.mode, filepath.Base(sample.messages))
		file, err := os.Open(sample.messages)
		if err != nil {
			return err
		}
		err = s.sendFile(ctx, sample, file)
		if err := file.Close(); err != nil {
			return err
		}
		if err != nil {
			return fmt.Errorf("%s: %w", sample.messages, err)
		}
	}
	return nil
}

func (s *stage) sendFile(ctx context.Context, sample sample, lines io.Reader) error {
	ips, err := s.podIPs(ctx, sample.name)
	if err != nil {
		return err
	}
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	counts := map[string]int{}
	fresh := map[string]bool{} // attempts, by key
	scanner := bufio.NewScanner(lines)
	for n := 0; scanner.Scan(); n++ {
		var m message
		if err := json.Unmarshal(scanner.Bytes(), &m); err != nil {
			return fmt.Errorf("line %d: %w", n+1, err)
		}
		base := "http://" + ips[n%len(ips)] + ":8080/v1/policies/" + sample.name
		a, err := check(ctx, base, m)
		if err != nil {
			return fmt.Errorf("line %d: %w", n+1, err)
		}
		why := explain(a, fresh[a.Key+" "+m.Attempt])
		if a.Decision == "FRESH" && m.Attempt != "" {
			fresh[a.Key+" "+m.Attempt] = true
		}
		if a.Decision == "FRESH" && sample.mode == v1alpha1.ModeClaim {
			if err := post(ctx, base+"/complete", nil, map[string]string{"key": a.Key, "token": a.Token}, nil); err != nil {
				return err
			}
			why += ", then completed"
		}
		outcome := a.Decision
		if outcome == "" {
			outcome = "error"
		}
		counts[outcome]++
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\n", n+1, outcome, shorten(a.Key), why)
	}
	if err := scanner.Err(); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	var total []string
	for outcome, n := range counts {
		total = append(total, fmt.Sprintf("%d %s", n, outcome))
	}
	sort.Strings(total)
	s.say("%s  = %s", table.String(), strings.Join(total, ", "))
	return nil
}

func explain(a answer, again bool) string {
	switch a.Decision {
	case "FRESH":
		if again {
			return "the same attempt asked again, as after a lost answer"
		}
		if a.Fence > 0 {
			return fmt.Sprintf("first time: claimed with fence %d", a.Fence)
		}
		return "first time: marked"
	case "DUPLICATE":
		return "first seen at " + a.FirstSeen.UTC().Format("15:04:05.000")
	case "CONFLICT":
		return "the same ID came with other content"
	case "":
		return a.Code + ": " + a.Detail
	}
	return a.Reason
}

func shorten(key string) string {
	const most = 56
	if len(key) > most {
		return key[:most-1] + "…"
	}
	return key
}

// podIPs are the addresses of a policy's replicas, where a Service would lead.
func (s *stage) podIPs(ctx context.Context, policy string) ([]string, error) {
	names, err := s.kubectlRun(ctx, "", "get", "pods", "-n", namespace, "-l", v1alpha1.LabelOwner+"="+policy, "-o", "jsonpath={.items[*].status.podIP}")
	if err != nil {
		return nil, err
	}
	if names == "" {
		return nil, fmt.Errorf("policy %s has no pods", policy)
	}
	return strings.Fields(names), nil
}

// check sends one message: the request is the message.
func check(ctx context.Context, base string, m message) (answer, error) {
	var a answer
	header := http.Header{}
	for name, value := range m.Headers {
		header.Set(name, value)
	}
	consumer := m.Consumer
	if consumer == "" {
		consumer = "demo"
	}
	header.Set("Dedup-Consumer", consumer)
	if m.Attempt != "" {
		header.Set("Dedup-Attempt", m.Attempt)
	}
	body := []byte(m.Body)
	switch {
	case m.BodyText != "":
		body = []byte(m.BodyText)
	case m.BodyBase64 != "":
		var err error
		if body, err = base64.StdEncoding.DecodeString(m.BodyBase64); err != nil {
			return a, err
		}
	}
	return a, post(ctx, base+"/check", header, body, &a)
}

// post sends a request. An error answer of dedupd's own is read into the answer as well; without
// a place for it, it is an error.
func post(ctx context.Context, url string, header http.Header, body any, into *answer) error {
	raw, ok := body.([]byte)
	if !ok {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	if header != nil {
		req.Header = header
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if into == nil {
		if res.StatusCode >= 300 {
			return fmt.Errorf("%s: %s: %s", url, res.Status, said)
		}
		return nil
	}
	if err := json.Unmarshal(said, into); err != nil {
		return fmt.Errorf("%s: %s: %w", url, res.Status, err)
	}
	return nil
}

// createConsumer shows what the webhook does to a pod that asks for deduplication.
func (s *stage) createConsumer(ctx context.Context) error {
	const pod = `
apiVersion: v1
kind: Pod
metadata:
  name: billing
  namespace: shop
  labels: {dedupd.io/policy: orders}
spec:
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: app
      image: example.com/billing:1
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`
	manifest := strings.TrimLeft(pod, "\n")
	s.say("%s", manifest)
	err := s.await(ctx, 30*time.Second, func(ctx context.Context) error {
		_, err := s.kubectlRun(ctx, manifest, "apply", "-f", "-")
		return err
	})
	if err != nil {
		return err
	}
	env, err := s.kubectlRun(ctx, "", "get", "pod", "billing", "-n", namespace, "-o",
		`jsonpath={range .spec.containers[*].env[*]}  {.name}={.value}{"\n"}{end}`)
	if err != nil {
		return err
	}
	s.say("The webhook gave its container:\n%s", strings.TrimRight(env, "\n"))
	return nil
}

func (s *stage) showPolicies(ctx context.Context) error {
	table, err := s.kubectlRun(ctx, "", "get", "ddp", "-n", namespace)
	if err != nil {
		return err
	}
	s.say("%s", strings.TrimRight(table, "\n"))
	return nil
}

func (s *stage) sayHowToGoOn() {
	s.say(`
=== Everything stays up until you press Ctrl-C. In another terminal:

  export KUBECONFIG=%s
  alias kubectl=%s
  kubectl get ddp -A
  kubectl explain ddp.spec.key
  kubectl apply -f your-policy.yaml     # with the store at %s

The pods' addresses (kubectl get pods -n %s -o wide) answer on this machine:

  curl -i -H 'Dedup-Consumer: me' -H 'message-id: 42' -d '{}' http://<pod IP>:8080/v1/policies/<policy>/check`,
		s.kubeconfig, s.kubectl, s.redis, namespace)
}
