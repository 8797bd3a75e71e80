package render

import (
	"net"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	networkingv1ac "k8s.io/client-go/applyconfigurations/networking/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// NetworkPolicy lets the namespace's pods and the operator in, and dedupd out to DNS and its
// store. Policies add up: whoever needs more, such as a monitoring system, is let in by another.
func NetworkPolicy(w *Workload) *networkingv1ac.NetworkPolicyApplyConfiguration {
	if w == nil {
		return nil
	}
	http, grpc := networkPort(corev1.ProtocolTCP, v1alpha1.PortHTTP), networkPort(corev1.ProtocolTCP, v1alpha1.PortGRPC)
	consumers := networkingv1ac.NetworkPolicyIngressRule().
		WithFrom(networkingv1ac.NetworkPolicyPeer().WithPodSelector(metav1ac.LabelSelector())).
		WithPorts(http, grpc)
	operator := networkingv1ac.NetworkPolicyIngressRule().
		WithFrom(networkingv1ac.NetworkPolicyPeer().WithNamespaceSelector(metav1ac.LabelSelector().
				WithMatchLabels(map[string]string{corev1.LabelMetadataName: w.options.OperatorNamespace}))).
		WithPorts(http) // for the status question, and for a Prometheus that is there
	return networkingv1ac.NetworkPolicy(w.name, w.namespace).
		WithLabels(w.labels).
		WithOwnerReferences(w.owners...).
		WithSpec(networkingv1ac.NetworkPolicySpec().
			WithPodSelector(w.labelSelector()).
			WithPolicyTypes(networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress).
			WithIngress(consumers, operator).
			WithEgress(w.egress()...))
}

// egress is empty, so that nothing is let out, for the memory store.
func (w *Workload) egress() []*networkingv1ac.NetworkPolicyEgressRuleApplyConfiguration {
	var addresses []string
	anyPort := false
	for _, s := range w.stores {
		switch {
		case s.Redis != nil:
			// The sentinels and the cluster tell dedupd the addresses of the servers, and only they know the ports.
			anyPort = anyPort || s.Redis.Mode != v1alpha1.RedisStandalone
			addresses = append(addresses, s.Redis.Addresses...)
		case s.Postgres != nil:
			addresses = append(addresses, s.Postgres.Addresses...)
		}
	}
	if len(addresses) == 0 {
		return nil
	}
	store := networkingv1ac.NetworkPolicyEgressRule()
	if anyPort {
		store.WithPorts(networkPort(corev1.ProtocolTCP, 1).WithEndPort(65535))
	} else {
		for _, p := range ports(addresses) {
			store.WithPorts(networkPort(corev1.ProtocolTCP, p))
		}
	}
	dns := networkingv1ac.NetworkPolicyEgressRule().WithPorts(
		networkPort(corev1.ProtocolUDP, 53), networkPort(corev1.ProtocolTCP, 53),
		// The rules see the port of the pod behind the Service; OpenShift's DNS has this one.
		networkPort(corev1.ProtocolUDP, 5353), networkPort(corev1.ProtocolTCP, 5353))
	return []*networkingv1ac.NetworkPolicyEgressRuleApplyConfiguration{dns, store}
}

// ports are the ports of addresses, which the policy's compilation has checked, each once.
func ports(addresses []string) []int32 {
	var all []int32
	for _, a := range addresses {
		_, p, err := net.SplitHostPort(a)
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(p, 10, 32)
		if err == nil && !slices.Contains(all, int32(n)) {
			all = append(all, int32(n))
		}
	}
	return all
}

func networkPort(protocol corev1.Protocol, number int32) *networkingv1ac.NetworkPolicyPortApplyConfiguration {
	return networkingv1ac.NetworkPolicyPort().WithProtocol(protocol).WithPort(intstr.FromInt32(number))
}
