// Package freeport finds ports for servers that are started as processes.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// The range is below that of which systems give ports to connections, and to who asks for any: of those one may be
// taken before the server listens. Above are the ports of Kubernetes' nodes.
const first, last = 10_000, 29_999

// given are the ports that this process was told of.
var given sync.Map

// On is a port of a host on which nothing listens. It is not told of twice.
func On(host string) (port string, err error) {
	for range 100 {
		port = strconv.Itoa(first + rand.N(last-first+1))
		if _, before := given.LoadOrStore(port, true); before {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(host, port)); err == nil {
			return port, l.Close()
		}
	}
	return "", fmt.Errorf("finding a free port of %s from %d to %d: %w", host, first, last, err)
}
