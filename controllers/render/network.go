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
func NetworkPolicy(in Input) *networkingv1ac.NetworkPolicyApplyConfiguration {
	http, grpc := networkPort(corev1.ProtocolTCP, v1alpha1.PortHTTP), networkPort(corev1.ProtocolTCP, v1alpha1.PortGRPC)
	consumers := networkingv1ac.NetworkPolicyIngressRule().
		WithFrom(networkingv1ac.NetworkPolicyPeer().WithPodSelector(metav1ac.LabelSelector())).
		WithPorts(http, grpc)
	operator := networkingv1ac.NetworkPolicyIngressRule().
		WithFrom(networkingv1ac.NetworkPolicyPeer().WithNamespaceSelector(metav1ac.LabelSelector().
				WithMatchLabels(map[string]string{corev1.LabelMetadataName: in.options.OperatorNamespace}))).
		WithPorts(http) // for the status question, and for a Prometheus that is there
	return networkingv1ac.NetworkPolicy(in.name(), in.policy.Namespace).
		WithLabels(in.labels()).
		WithOwnerReferences(in.owner()).
		WithSpec(networkingv1ac.NetworkPolicySpec().
			WithPodSelector(in.labelSelector()).
			WithPolicyTypes(networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress).
			WithIngress(consumers, operator).
			WithEgress(in.egress()...))
}

// egress is empty, so that nothing is let out, for the memory store.
func (in Input) egress() []*networkingv1ac.NetworkPolicyEgressRuleApplyConfiguration {
	var addresses []string
	spec := in.policy.Spec.Store
	switch {
	case spec.Redis != nil:
		addresses = spec.Redis.Addresses
	case spec.Postgres != nil:
		addresses = spec.Postgres.Addresses
	default:
		return nil
	}
	store := networkingv1ac.NetworkPolicyEgressRule()
	if spec.Redis != nil && spec.Redis.Mode != v1alpha1.RedisStandalone {
		// The sentinels and the cluster tell dedupd the addresses of the servers, and only they know the ports.
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
