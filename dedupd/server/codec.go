package server

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	goproto "google.golang.org/protobuf/proto"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// codec is protobuf's, and by hand for what carries messages or several settlements: see wire for what comes. The
// answers to batch calls are already encoded.
type codec struct {
	encoding.CodecV2
	limits Limits
}

func newCodec(limits Limits) codec { return codec{encoding.GetCodecV2(proto.Name), limits} }

// wireChecks and wireSettles are the two requests of lists, and encoded an answer to either.
type (
	wireChecks  struct{ wireBatch }
	wireSettles struct{ wireBatch }
	encoded     []byte
)

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch in := v.(type) {
	case *wireCheck:
		in.wire = wireOf(data.Materialize())
		return in.read(in.whole())
	case *wireChecks:
		in.wire = wireOf(data.Materialize())
		return in.readChecks(in.whole(), c.limits.MaxBatch)
	case *wireSettles:
		in.wire = wireOf(data.Materialize())
		return in.readSettles(in.whole(), c.limits.MaxBatch)
	case *streamRequest:
		return in.read(data.Materialize(), c.limits)
	}
	return c.CodecV2.Unmarshal(data, v)
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if out, is := v.(encoded); is {
		return mem.BufferSlice{mem.SliceBuffer(out)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// serviceDesc is the generated one with Check and the batch calls by hand.
func serviceDesc() *grpc.ServiceDesc {
	desc := pb.DedupService_ServiceDesc
	desc.Methods = slices.Clone(desc.Methods)
	for i := range desc.Methods {
		switch m := &desc.Methods[i]; m.MethodName {
		case "Check":
			m.Handler = byHand(pb.DedupService_Check_FullMethodName, (*grpcAPI).checkWire)
		case "CheckBatch":
			m.Handler = byHand(pb.DedupService_CheckBatch_FullMethodName, (*grpcAPI).checkBatchWire)
		case "SettleBatch":
			m.Handler = byHand(pb.DedupService_SettleBatch_FullMethodName, (*grpcAPI).settleBatchWire)
		}
	}
	return &desc
}

// byHand is what the generated code is for a call, with a request of our own.
func byHand[In, Out any](method string, call func(*grpcAPI, context.Context, *In) (Out, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		in := new(In)
		if err := decode(in); err != nil {
			return nil, err
		}
		api, _ := srv.(*grpcAPI) // as it was registered
		return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: method}, func(ctx context.Context, _ any) (any, error) {
			return call(api, ctx, in)
		})
	}
}

func (g *grpcAPI) checkWire(ctx context.Context, in *wireCheck) (*pb.CheckResponse, error) {
	request, err := in.check(g.Limits, "message")
	if err != nil {
		return nil, grpcError(err)
	}
	answers, err := g.check(ctx, in.policy, []engine.Request{request})
	if err != nil {
		return nil, grpcError(err)
	}
	if answers[0].Err != nil {
		return nil, grpcError(answers[0].Err)
	}
	return &pb.CheckResponse{Answer: answerPB(answers[0])}, nil
}

func (g *grpcAPI) checkBatchWire(ctx context.Context, in *wireChecks) (encoded, error) {
	if err := g.Limits.fits(in.count, "messages"); err != nil {
		return nil, grpcError(err)
	}
	messages, err := in.checks(g.Limits, "messages")
	if err != nil {
		return nil, wireError(err)
	}
	answers, err := g.checkBatch(ctx, in.policy, messages)
	if err != nil {
		return nil, grpcError(err)
	}
	return encodeAnswers(answers), nil
}

func (g *grpcAPI) settleBatchWire(ctx context.Context, in *wireSettles) (encoded, error) {
	if err := g.Limits.fits(in.count, "settles"); err != nil {
		return nil, grpcError(err)
	}
	ops, err := in.settles()
	if err != nil {
		return nil, wireError(err)
	}
	settled, err := g.settle(ctx, in.policy, ops)
	if err != nil {
		return nil, grpcError(err)
	}
	return encodeSettled(settled), nil
}

// wireError is for a request that cannot be read: as gRPC itself has it, or the error that says
// what is wrong with it.
func wireError(err error) error {
	var known *engine.Error
	if errors.As(err, &known) {
		return grpcError(err)
	}
	return status.Errorf(codes.Internal, "grpc: error unmarshalling request: %v", err)
}

// encodeAnswers writes a CheckBatchResponse.
func encodeAnswers(answers []engine.Answer) encoded {
	size := 0
	for i := range answers {
		size += 96 + len(answers[i].Key) + len(answers[i].Token) + len(answers[i].Reason)
	}
	out := make(encoded, 0, size)
	var scratch []byte
	for i := range answers {
		a := &answers[i]
		number := protowire.Number(1) // BatchAnswer.answer
		if a.Err != nil {
			number, scratch = 2, appendError(scratch[:0], a.Err)
		} else {
			scratch = appendAnswer(scratch[:0], a)
		}
		out = appendNested(out, number, scratch)
	}
	return out
}

// encodeSettled writes a SettleBatchResponse.
func encodeSettled(settled []engine.Settled) encoded {
	out := make(encoded, 0, 24*len(settled))
	var scratch []byte
	for i := range settled {
		s := &settled[i]
		number := protowire.Number(1) // BatchSettled.settled
		if s.Err != nil {
			number, scratch = 2, appendError(scratch[:0], s.Err)
		} else {
			scratch = appendEnum(scratch[:0], 1, int32(statePB(s.State)))
			if s.Lease != 0 {
				scratch = appendSeconds(scratch, 2, int64(s.Lease/1e9), int64(s.Lease%1e9))
			}
		}
		out = appendNested(out, number, scratch)
	}
	return out
}

// appendNested appends an element of the list, which is a message with the one field.
func appendNested(out []byte, number protowire.Number, content []byte) []byte {
	out = protowire.AppendTag(out, 1, protowire.BytesType)
	out = protowire.AppendVarint(out, uint64(protowire.SizeTag(number)+protowire.SizeBytes(len(content))))
	out = protowire.AppendTag(out, number, protowire.BytesType)
	return protowire.AppendBytes(out, content)
}

// appendAnswer writes an Answer: answerPB and proto.Marshal in one.
func appendAnswer(b []byte, a *engine.Answer) []byte {
	b = appendEnum(b, 1, int32(decisions[a.Decision]))
	b = appendString(b, 2, a.Key)
	b = appendString(b, 3, a.Token)
	if a.Fence != 0 {
		b = protowire.AppendTag(b, 4, protowire.VarintType)
		b = protowire.AppendVarint(b, a.Fence)
	}
	if a.Lease != 0 {
		b = appendSeconds(b, 5, int64(a.Lease/1e9), int64(a.Lease%1e9))
	}
	if a.RetryAfter != 0 {
		b = appendSeconds(b, 6, int64(a.RetryAfter/1e9), int64(a.RetryAfter%1e9))
	}
	if seenBefore(a) {
		b = appendSeconds(b, 7, a.FirstSeen.Unix(), int64(a.FirstSeen.Nanosecond()))
	}
	b = appendString(b, 8, a.Shadow)
	return appendString(b, 9, utf8Text(a.Reason))
}

func appendEnum(b []byte, number protowire.Number, value int32) []byte {
	if value == 0 {
		return b
	}
	b = protowire.AppendTag(b, number, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(value))
}

func appendString(b []byte, number protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendString(b, s)
}

// appendSeconds writes a Duration or a Timestamp, which are the same on the wire.
func appendSeconds(b []byte, number protowire.Number, seconds, nanos int64) []byte {
	size := 0
	if seconds != 0 {
		size += 1 + protowire.SizeVarint(uint64(seconds))
	}
	if nanos != 0 {
		size += 1 + protowire.SizeVarint(uint64(nanos))
	}
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	for at, value := range []int64{seconds, nanos} {
		if value != 0 {
			b = protowire.AppendTag(b, protowire.Number(at+1), protowire.VarintType)
			b = protowire.AppendVarint(b, uint64(value))
		}
	}
	return b
}

// appendError writes an Error. There are few, so protobuf does it.
func appendError(b []byte, err error) []byte {
	b, failed := goproto.MarshalOptions{}.MarshalAppend(b, errorPB(err))
	if failed != nil {
		panic(failed) // its texts are UTF-8, so it cannot fail
	}
	return b
}
