package main

import (
	"context"
	"fmt"
	"sync"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// stream is one stream that many callers share, each with one message at a time.
func stream(addr, policy string, callers int) load {
	s := &sharedStream{addr: addr}
	return load{callers: callers, caller: func(n int) (func(context.Context) (int, error), func(), error) {
		answers, err := s.join(n, callers)
		if err != nil {
			return nil, nil, err
		}
		check := &pb.CheckRequest{Policy: policy, Consumer: consumer, Message: newMessage()}
		request := &pb.CheckStreamRequest{Id: uint64(n), Request: &pb.CheckStreamRequest_Check{Check: check}}
		turn := func(ctx context.Context) (int, error) {
			check.Attempt = newID()
			check.Message.Headers["message-id"] = newID()
			if err := s.send(request); err != nil {
				return 0, err
			}
			select {
			case response, open := <-answers:
				if !open {
					return 0, s.err
				}
				if e := response.GetError(); e != nil {
					return 0, fmt.Errorf("%s: %s", e.GetCode(), e.GetMessage())
				}
				return 1, want(pb.Decision_DECISION_FRESH, response.GetAnswer())
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		return turn, func() { s.leave(n) }, nil
	}}
}

// sharedStream is opened by the first caller and closed by the last. Callers of one run join
// one after another.
type sharedStream struct {
	addr string

	mu      sync.Mutex // one sends at a time
	client  pb.DedupService_CheckStreamClient
	close   func()
	answers []chan *pb.CheckStreamResponse // by caller, who is the id of its request
	err     error                          // why answers were closed, to be read after they were
}

func (s *sharedStream) join(n, callers int) (<-chan *pb.CheckStreamResponse, error) {
	if n == 0 {
		conn, err := dial(s.addr)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(context.Background())
		s.close = func() {
			cancel()
			_ = conn.Close()
		}
		if s.client, err = pb.NewDedupServiceClient(conn).CheckStream(ctx); err != nil {
			return nil, err
		}
		s.answers = make([]chan *pb.CheckStreamResponse, callers)
		for i := range s.answers {
			s.answers[i] = make(chan *pb.CheckStreamResponse, 1)
		}
		go s.receive(s.client, s.answers)
	}
	return s.answers[n], nil
}

func (s *sharedStream) leave(n int) {
	if n == 0 {
		s.close()
	}
}

func (s *sharedStream) send(request *pb.CheckStreamRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client.Send(request)
}

func (s *sharedStream) receive(client pb.DedupService_CheckStreamClient, answers []chan *pb.CheckStreamResponse) {
	for {
		response, err := client.Recv()
		if err != nil {
			s.err = err
			for _, a := range answers {
				close(a)
			}
			return
		}
		answers[response.GetId()] <- response
	}
}
