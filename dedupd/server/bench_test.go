package server

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// The front door alone: memory behind it, every message fresh.

func BenchmarkHTTPCheck(b *testing.B) {
	f := start(b)
	var n atomic.Int64
	b.SetParallelism(32)
	b.RunParallel(func(p *testing.PB) {
		client := &http.Client{Transport: &http.Transport{}}
		for p.Next() {
			request, err := http.NewRequest(http.MethodPost, f.url+"/v1/policies/ids/check", http.NoBody)
			if err != nil {
				b.Error(err)
				return
			}
			request.Header.Set("Dedup-Consumer", "bench")
			request.Header.Set("Message-Id", fmt.Sprint(n.Add(1)))
			response, err := client.Do(request)
			if err != nil {
				b.Error(err)
				return
			}
			read(b, response)
		}
	})
}

func BenchmarkStream(b *testing.B) {
	f := start(b)
	stream, err := f.rpc.CheckStream(ctx(b))
	if err != nil {
		b.Fatal(err)
	}
	// A window of requests in flight, as a consumer with a prefetch has it.
	window := make(chan struct{}, 256)
	go func() {
		for i := range b.N {
			window <- struct{}{}
			if err := stream.Send(&pb.CheckStreamRequest{Id: uint64(i), Request: &pb.CheckStreamRequest_Check{
				Check: &pb.CheckRequest{Policy: "ids", Consumer: "bench", Message: id(fmt.Sprint(i))},
			}}); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	for range b.N {
		if _, err := stream.Recv(); err != nil {
			b.Fatal(err)
		}
		<-window
	}
}
