package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// The loads over gRPC. Requests are made as a consumer makes them, an attempt for each message
// included, and every answer is looked at.

const consumer = "billing"

func dial(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// connected gives each caller a connection of its own.
func connected(addr string, caller func(pb.DedupServiceClient) func(context.Context) (int, error)) func(int) (func(context.Context) (int, error), func(), error) {
	return func(int) (func(context.Context) (int, error), func(), error) {
		conn, err := dial(addr)
		if err != nil {
			return nil, nil, err
		}
		return caller(pb.NewDedupServiceClient(conn)), func() { _ = conn.Close() }, nil
	}
}

func newMessage() *pb.Message {
	return &pb.Message{Headers: map[string]string{}, Body: []byte(payload)}
}

// single is one message at a time.
func single(addr, policy string) load {
	return load{callers: 1, caller: connected(addr, func(client pb.DedupServiceClient) func(context.Context) (int, error) {
		request := &pb.CheckRequest{Policy: policy, Consumer: consumer, Message: newMessage()}
		return func(ctx context.Context) (int, error) {
			request.Attempt = newID()
			request.Message.Headers["message-id"] = newID()
			response, err := client.Check(ctx, request)
			if err != nil {
				return 0, err
			}
			return 1, want(pb.Decision_DECISION_FRESH, response.GetAnswer())
		}
	})}
}

// batches are batches of new messages, in mode Claim each followed by the completion of all.
func batches(addr, policy string, callers int, claims bool) load {
	return load{callers: callers, caller: connected(addr, func(client pb.DedupServiceClient) func(context.Context) (int, error) {
		b := newBatch(client, policy)
		return func(ctx context.Context) (int, error) {
			for _, m := range b.request.GetMessages() {
				m.Message.Headers["message-id"] = newID()
			}
			answers, err := b.check(ctx, pb.Decision_DECISION_FRESH)
			if err == nil && claims {
				err = b.complete(ctx, answers)
			}
			return batchSize, err
		}
	})}
}

// repeats are batches of the same messages over and over.
func repeats(addr, policy string, callers int) load {
	return load{callers: callers, caller: connected(addr, func(client pb.DedupServiceClient) func(context.Context) (int, error) {
		b := newBatch(client, policy)
		for _, m := range b.request.GetMessages() {
			m.Message.Headers["message-id"] = newID()
		}
		decision := pb.Decision_DECISION_FRESH
		return func(ctx context.Context) (int, error) {
			_, err := b.check(ctx, decision)
			decision = pb.Decision_DECISION_DUPLICATE
			return batchSize, err
		}
	})}
}

// batch is one caller's batch. Its requests are used again from turn to turn.
type batch struct {
	client  pb.DedupServiceClient
	request *pb.CheckBatchRequest
	settle  *pb.SettleBatchRequest
}

func newBatch(client pb.DedupServiceClient, policy string) *batch {
	b := &batch{
		client:  client,
		request: &pb.CheckBatchRequest{Policy: policy, Consumer: consumer},
		settle:  &pb.SettleBatchRequest{Policy: policy},
	}
	for range batchSize {
		b.request.Messages = append(b.request.Messages, &pb.BatchMessage{Message: newMessage()})
		b.settle.Settles = append(b.settle.Settles, &pb.Settle{Verb: pb.Verb_VERB_COMPLETE})
	}
	return b
}

// check sends the batch with new attempts.
func (b *batch) check(ctx context.Context, decision pb.Decision) ([]*pb.BatchAnswer, error) {
	for _, m := range b.request.GetMessages() {
		m.Attempt = newID()
	}
	response, err := b.client.CheckBatch(ctx, b.request)
	if err != nil {
		return nil, err
	}
	answers := response.GetAnswers()
	if len(answers) != batchSize {
		return nil, fmt.Errorf("%d answers to %d messages", len(answers), batchSize)
	}
	for _, a := range answers {
		if e := a.GetError(); e != nil {
			return nil, fmt.Errorf("%s: %s", e.GetCode(), e.GetMessage())
		}
		if err := want(decision, a.GetAnswer()); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

func (b *batch) complete(ctx context.Context, answers []*pb.BatchAnswer) error {
	for i, s := range b.settle.GetSettles() {
		s.Key, s.Token = answers[i].GetAnswer().GetKey(), answers[i].GetAnswer().GetToken()
	}
	response, err := b.client.SettleBatch(ctx, b.settle)
	if err != nil {
		return err
	}
	for _, r := range response.GetResults() {
		if r.GetSettled().GetState() != pb.State_STATE_COMPLETED {
			return fmt.Errorf("a completion was answered %s", r)
		}
	}
	return nil
}

func want(decision pb.Decision, a *pb.Answer) error {
	if a.GetDecision() != decision {
		return fmt.Errorf("%s for message %s; want %s", a.GetDecision(), a.GetKey(), decision)
	}
	return nil
}
