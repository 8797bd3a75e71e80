package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	nodeName   = "node"
	pauseImage = "docker.io/library/pause:dedup"
)

// component is a program of the node. It is up once ready answers.
type component struct {
	name    string
	program string
	args    []string
	ready   string // a URL, or the path of a socket
}

// components are in the order in which they start.
func (p *plan) components() []component {
	return []component{
		p.etcd(), p.containerd(), p.apiServer(), p.controllerManager(), p.scheduler(), p.dns(), p.kubelet(), p.proxy(),
	}
}

func (p *plan) etcd() component {
	return component{"etcd", filepath.Join(p.Assets, "etcd"), []string{
		"--data-dir=" + p.path("etcd"),
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380",
		"--unsafe-no-fsync", // nothing of it outlives this cluster
	}, "http://127.0.0.1:2379/health"}
}

func (p *plan) apiServer() component {
	return component{"kube-apiserver", filepath.Join(p.Assets, "kube-apiserver"), []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address=" + p.NodeIP.String(), "--secure-port=6443",
		"--tls-cert-file=" + p.path("apiserver.crt"), "--tls-private-key-file=" + p.path("apiserver.key"),
		"--client-ca-file=" + p.path("ca.crt"),
		"--kubelet-certificate-authority=" + p.path("ca.crt"),
		"--kubelet-client-certificate=" + p.path("kubelet-client.crt"), "--kubelet-client-key=" + p.path("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-cluster-ip-range=" + p.Service.String(),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + p.path("accounts.key"), "--service-account-signing-key-file=" + p.path("accounts.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
	}, ""}
}

func (p *plan) controllerManager() component {
	return component{"kube-controller-manager", filepath.Join(p.Node, "kube-controller-manager"), []string{
		"--kubeconfig=" + p.path("controller-manager.kubeconfig"), "--leader-elect=false", "--bind-address=127.0.0.1",
		"--root-ca-file=" + p.path("ca.crt"), "--service-account-private-key-file=" + p.path("accounts.key"),
		"--use-service-account-credentials",
	}, ""}
}

func (p *plan) scheduler() component {
	return component{"kube-scheduler", filepath.Join(p.Node, "kube-scheduler"), []string{
		"--kubeconfig=" + p.path("scheduler.kubeconfig"), "--leader-elect=false", "--bind-address=127.0.0.1",
	}, ""}
}

func (p *plan) dns() component {
	return component{"dns", filepath.Join(p.Own, "dns"), []string{"-conf", p.path("Corefile")}, ""}
}

func (p *plan) proxy() component {
	return component{"kube-proxy", filepath.Join(p.Node, "kube-proxy"), []string{
		"--config=" + p.path("proxy.yaml"), "--hostname-override=" + nodeName,
	}, "http://127.0.0.1:10256/livez"}
}

func (p *plan) containerd() component {
	return component{"containerd", "containerd", []string{"--config=" + p.path("containerd.toml")}, p.containerdSocket()}
}

func (p *plan) kubelet() component {
	return component{"kubelet", filepath.Join(p.Node, "kubelet"), []string{
		"--config=" + p.path("kubelet.yaml"), "--kubeconfig=" + p.path("kubelet.kubeconfig"),
		"--root-dir=" + p.path("kubelet"), "--cert-dir=" + p.path("kubelet", "pki"),
		"--hostname-override=" + nodeName, "--node-ip=" + p.NodeIP.String(),
	}, "http://127.0.0.1:10248/healthz"}
}

func (p *plan) containerdSocket() string { return p.path("containerd.sock") }

// writeConfigs writes the files that the components' command lines name.
func (p *plan) writeConfigs() error {
	for name, content := range map[string]string{
		"resolv.conf":                 "nameserver " + p.NodeIP.String() + "\n",
		"Corefile":                    p.corefile(),
		"containerd.toml":             p.containerdConfig(),
		"cni/net.d/10-dedup.conflist": p.cniConfig(),
		"proxy.yaml":                  p.proxyConfig(),
		"kubelet.yaml":                p.kubeletConfig(),
	} {
		if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(p.path(name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) corefile() string {
	return fmt.Sprintf(`.:53 {
  bind %s
  errors
  ready 127.0.0.1:8181
  kubernetes cluster.local {
    kubeconfig %s
    pods insecure
    ttl 2
  }
}
`, p.NodeIP, p.path("dns.kubeconfig"))
}

// cniConfig connects each pod by a pair of interfaces and a route. Without a bridge there is none
// to clean up, and traffic between pods passes the Services' rules without br_netfilter.
func (p *plan) cniConfig() string {
	return fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "dedup", "plugins": [{
  "type": "ptp",
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "%s"}
}]}
`, p.Pods, p.path("cni", "networks"))
}

func (p *plan) containerdConfig() string {
	// An overlay cannot lie on an overlay, as the root of a container usually is.
	snapshotter := "overlayfs"
	if onOverlay(p.Folder) {
		snapshotter = "native"
	}
	return fmt.Sprintf(`version = 2
root = "%[1]s/containerd"
state = "%[1]s/containerd-state"
oom_score = 0
[grpc]
  address = "%[2]s"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[3]s"
  # Where root lacks CAP_SYS_RESOURCE, as in some virtual machines, every sandbox would fail.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "%[4]s"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%[1]s/cni/net.d"
`, p.Folder, p.containerdSocket(), pauseImage, snapshotter)
}

func (p *plan) proxyConfig() string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
bindAddress: %[1]s
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
nodePortAddresses: [%[1]s/32]
clusterCIDR: %[2]s
clientConnection: {kubeconfig: %[3]s}
conntrack: {maxPerCore: 0, min: 0, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s}
`, p.NodeIP, p.Pods, p.path("proxy.kubeconfig"))
}

func (p *plan) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[1]s
healthzBindAddress: 127.0.0.1
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %[2]s/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: %[2]s/kubelet-server.crt
tlsPrivateKeyFile: %[2]s/kubelet-server.key
containerRuntimeEndpoint: unix://%[3]s
cgroupDriver: cgroupfs
cgroupRoot: /%[4]s
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
clusterDomain: cluster.local
clusterDNS: [%[1]s]
resolvConf: %[2]s/resolv.conf
podLogsDir: %[2]s/pod-logs
volumePluginDir: %[2]s/volume-plugins
staticPodPath: ""
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100 # an image that is collected can't be pulled again
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi} # not by how full this machine's disk is
`, p.NodeIP, p.Folder, p.containerdSocket(), p.Name)
}

// commandLine is for the log.
func (c component) commandLine() string {
	return strings.Join(append([]string{c.program}, c.args...), " ")
}
