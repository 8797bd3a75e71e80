package e2e_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// effect is what app consume writes.
type effect struct {
	ID    string
	Fence uint64
	Pod   string
}

func TestEachMessageOfAQueueIsProcessedOnceWhileConsumersCrash(t *testing.T) {
	// A consumer that stands still for longer than its lease is taken over rightly: on a busy machine
	// that is to be none but those that were killed.
	const messages, kills, lease = 1500, 6, 20 * time.Second
	namespace := newNamespace(t, "e2e-queue")
	redis, broker := newRedis(t), newRabbit(t)
	channel := broker.channel(t, "orders", "effects")

	apply(t, policyYAML(namespace, "orders", redis.address, "mode: Claim", fmt.Sprintf("claim: {lease: %s}", lease)))
	consumer := workload{
		namespace: namespace, name: "billing", policy: "orders", replicas: 3, args: "[consume]",
		env: map[string]string{"AMQP_URL": broker.url, "AMQP_QUEUE": "orders", "AMQP_EFFECTS": "effects"},
	}
	apply(t, consumer.deployment())
	awaitPolicy(t, namespace, "orders")
	awaitDeployment(t, namespace, "billing")

	// Thirty in a hundred of what is sent is a repetition, near its first sending or far from it.
	sent := make(chan int, 1)
	go func() { sent <- produce(t, channel, "orders", messages) }()
	killed := map[string]bool{}
	for range kills {
		time.Sleep(time.Second)
		victim := oneOf(t, namespace, "billing")
		killed[victim.Name] = true
		at := client.GracePeriodSeconds(0)
		if err := api.Delete(t.Context(), &victim, at, client.PropagationPolicy(metav1.DeletePropagationBackground)); err != nil {
			t.Fatal(err)
		}
	}
	lastKill := time.Now()
	deliveries := <-sent
	if share := float64(deliveries-messages) / float64(deliveries); share < 0.25 || share > 0.35 {
		t.Errorf("%d of %d sent were repetitions", deliveries-messages, deliveries)
	}

	all := map[string][]effect{}
	eventually(t, 5*time.Minute, func() error {
		left, err := channel.QueueDeclarePassive("orders", true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		// What consumers hold unacknowledged is not counted as left: its effects are, by message, since one
		// that was taken over has two. Those whose claim outlives its consumer are taken over after the lease.
		takeEffects(t, channel, all)
		if left.Messages > 0 || len(all) < messages || time.Since(lastKill) < lease+5*time.Second {
			return fmt.Errorf("%d messages are left in the queue, %d of %d had an effect", left.Messages, len(all), messages)
		}
		return nil
	})
	// Stopped, so that the queue gets back what is not acknowledged, and nothing more happens.
	apply(t, scaledTo(consumer, 0))
	eventually(t, time.Minute, func() error {
		if pods := appPods(t, namespace, "billing"); len(pods) > 0 {
			return fmt.Errorf("%d consumers are left", len(pods))
		}
		return nil
	})
	takeEffects(t, channel, all)
	judge(t, all, messages, killed)
}

// oneOf is some pod of a workload, as soon as there is one.
func oneOf(t *testing.T, namespace, name string) corev1.Pod {
	t.Helper()
	var pods []corev1.Pod
	eventually(t, time.Minute, func() error {
		if pods = appPods(t, namespace, name); len(pods) == 0 {
			return fmt.Errorf("%s has no pod", name)
		}
		return nil
	})
	return pods[rand.N(len(pods))]
}

func scaledTo(w workload, replicas int) string {
	w.replicas = replicas
	return w.deployment()
}

// produce sends n messages with repetitions, at about 300 a second, and returns how many it sent.
func produce(t *testing.T, channel *amqp.Channel, queue string, n int) int {
	t.Helper()
	sent := 0
	send := func(i int) {
		err := channel.PublishWithContext(t.Context(), "", queue, false, false, amqp.Publishing{
			MessageId: fmt.Sprintf("order-%d", i), DeliveryMode: amqp.Persistent, Body: []byte("{}"),
		})
		if err != nil {
			t.Error(err)
		}
		sent++
		time.Sleep(3 * time.Millisecond)
	}
	for i := range n {
		send(i)
		for rand.Float64() < 0.3 {
			send(i - rand.N(min(i+1, 200)))
		}
	}
	return sent
}

// takeEffects takes what the consumers did out of their queue, and adds it to the effects of each message.
func takeEffects(t *testing.T, channel *amqp.Channel, all map[string][]effect) {
	t.Helper()
	for {
		d, ok, err := channel.Get("effects", true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return
		}
		var e effect
		if err := json.Unmarshal(d.Body, &e); err != nil {
			t.Fatal(err)
		}
		all[e.ID] = append(all[e.ID], e)
	}
}

// judge: every message had its effect once. A consumer that crashed between effect and completion
// left the one to another: then the fence is higher, and a sink that minds it has it once as well.
func judge(t *testing.T, all map[string][]effect, messages int, killed map[string]bool) {
	t.Helper()
	if len(all) != messages {
		t.Errorf("%d messages had an effect, want %d", len(all), messages)
	}
	again := 0
	for id, of := range all {
		fences := map[uint64]bool{}
		lived := 0
		for _, e := range of {
			fences[e.Fence] = true
			if !killed[e.Pod] {
				lived++
			}
		}
		if len(fences) != len(of) || lived > 1 {
			t.Errorf("%s was processed more than once: %+v", id, of)
		}
		again += len(of) - 1
	}
	t.Logf("%d messages, %d taken over from a consumer that was killed between effect and completion", len(all), again)
}
