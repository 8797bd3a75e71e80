package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
)

// plan is where everything of one cluster is. It is written to the cluster's folder before
// anything is started, so that whatever happens then, down knows what there is to remove.
type plan struct {
	Name    string       // of the host's interface and of the cgroup
	Folder  string       // everything the cluster writes
	Network netip.Prefix // pods, Services and the node; the host routes it to the node
	Pods    netip.Prefix
	Service netip.Prefix
	NodeIP  netip.Addr
	HostIP  netip.Addr // this machine, as pods reach it

	Assets string // folder of kube-apiserver, etcd and kubectl
	Node   string // folder of the rest of Kubernetes
	Own    string // folder of this module's programs: this one, dns and pause

	Controllers []string // of cgroups, enabled for this cluster

	PID     int    // of the node's first process; 0 before it runs
	Started uint64 // when that process started, in ticks since boot: a PID alone is used again
}

// folderOf is the same for every command run in one clone, and differs between clones.
func folderOf(repository string) string {
	sum := sha256.Sum256([]byte(repository))
	return filepath.Join("/var/tmp", "dedup-cluster-"+hex.EncodeToString(sum[:3]))
}

func newPlan(folder string) (*plan, error) {
	network, err := freeNetwork()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	base := network.Addr().As4()
	at := func(c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{base[0], base[1], c, d}) }
	id := folder[len(folder)-6:]
	p := &plan{
		Name:    "dedup" + id,
		Folder:  folder,
		Network: network,
		Pods:    netip.PrefixFrom(at(0, 0), 24),
		Service: netip.PrefixFrom(at(1, 0), 24),
		HostIP:  at(255, 1),
		NodeIP:  at(255, 2),
		Assets:  os.Getenv("KUBEBUILDER_ASSETS"),
		Node:    os.Getenv("CLUSTER_NODE"),
		Own:     filepath.Dir(self),
	}
	if p.Assets == "" || p.Node == "" {
		return nil, errors.New("KUBEBUILDER_ASSETS or CLUSTER_NODE is not set: run make cluster-up, which sets both")
	}
	return p, nil
}

// freeNetwork is a /16 that no interface of this machine has an address in. Another cluster's
// interface is one of them.
func freeNetwork() (netip.Prefix, error) {
	taken, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("listing this machine's addresses: %w", err)
	}
candidates:
	for second := byte(244); second > 180; second-- {
		candidate := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, 0, 0}), 16)
		for _, address := range taken {
			if other, err := netip.ParsePrefix(address.String()); err == nil && candidate.Overlaps(other.Masked()) {
				continue candidates
			}
		}
		return candidate, nil
	}
	return netip.Prefix{}, errors.New("this machine has addresses in every network from 10.181.0.0/16 to 10.244.0.0/16")
}

func (p *plan) path(parts ...string) string {
	return filepath.Join(append([]string{p.Folder}, parts...)...)
}

func (p *plan) service(n byte) netip.Addr {
	base := p.Service.Addr().As4()
	base[3] = n
	return netip.AddrFrom4(base)
}

func (p *plan) write() error {
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	// In one step: a crash leaves the old plan or the new one.
	if err := os.WriteFile(p.path("plan.json.new"), data, 0o600); err != nil {
		return err
	}
	return os.Rename(p.path("plan.json.new"), p.path("plan.json"))
}

func readPlan(folder string) (*plan, error) {
	data, err := os.ReadFile(filepath.Join(folder, "plan.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("no cluster of this clone is up: make cluster-up starts one")
	}
	if err != nil {
		return nil, err
	}
	p := &plan{}
	if err := json.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("%s/plan.json: %w", folder, err)
	}
	return p, nil
}
