package server

import (
	"context"
	"fmt"
	"path"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Connections that say nothing are asked after a minute whether they live, so that a holder
// whose node vanished does not hold memory for hours. After five minutes, give or take a tenth,
// the caller is asked to connect anew: through a Service a connection stays with one replica, and
// one that was added later would get no load. Calls and streams that are open run on.
var keepaliveParams = keepalive.ServerParameters{
	Time: time.Minute, Timeout: 20 * time.Second, MaxConnectionAge: 5 * time.Minute,
}

// Callers may ask back, also while they have no call open, but not more than every ten seconds.
var keepalivePolicy = keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}

// NewGRPC returns a gRPC server with the service registered.
func (s *Service) NewGRPC() *grpc.Server {
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(int(s.Limits.largestText())),
		grpc.MaxHeaderListSize(uint32(s.Limits.MaxHeader)),
		grpc.ForceServerCodecV2(newCodec(s.Limits)),
		grpc.KeepaliveParams(keepaliveParams),
		grpc.KeepaliveEnforcementPolicy(keepalivePolicy),
		grpc.ChainUnaryInterceptor(s.guardUnary),
		grpc.ChainStreamInterceptor(s.guardStream),
	)
	server.RegisterService(serviceDesc(), &grpcAPI{Service: s})
	return server
}

// grpcAPI is the gRPC face of a Service. Check and the batch calls are those by hand: see serviceDesc.
type grpcAPI struct {
	pb.UnimplementedDedupServiceServer
	*Service
}

// Complete implements dedupdv1.DedupServiceServer.
func (g *grpcAPI) Complete(ctx context.Context, in *pb.CompleteRequest) (*pb.CompleteResponse, error) {
	settled, err := g.settleOne(ctx, in.GetPolicy(), engine.Settle{Verb: store.Complete, Key: in.GetKey(), Token: in.GetToken()})
	return &pb.CompleteResponse{Settled: settled}, err
}

// Release implements dedupdv1.DedupServiceServer.
func (g *grpcAPI) Release(ctx context.Context, in *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	settled, err := g.settleOne(ctx, in.GetPolicy(), engine.Settle{Verb: store.Release, Key: in.GetKey(), Token: in.GetToken()})
	return &pb.ReleaseResponse{Settled: settled}, err
}

// Renew implements dedupdv1.DedupServiceServer.
func (g *grpcAPI) Renew(ctx context.Context, in *pb.RenewRequest) (*pb.RenewResponse, error) {
	settled, err := g.settleOne(ctx, in.GetPolicy(), engine.Settle{Verb: store.Renew, Key: in.GetKey(), Token: in.GetToken()})
	return &pb.RenewResponse{Settled: settled}, err
}

func (g *grpcAPI) settleOne(ctx context.Context, policy string, op engine.Settle) (*pb.Settled, error) {
	settled, err := g.settle(ctx, policy, []engine.Settle{op})
	if err != nil {
		return nil, grpcError(err)
	}
	if settled[0].Err != nil {
		return nil, grpcError(settled[0].Err)
	}
	return settledPB(settled[0]), nil
}

// Lookup implements dedupdv1.DedupServiceServer.
func (g *grpcAPI) Lookup(ctx context.Context, in *pb.LookupRequest) (*pb.LookupResponse, error) {
	found, err := g.lookup(ctx, in.GetPolicy(), in.GetKey())
	if err != nil {
		return nil, grpcError(err)
	}
	out := &pb.LookupResponse{
		State:     statePB(found.State),
		FirstSeen: timestamppb.New(found.FirstSeen),
		Fence:     found.Fence,
		Remaining: durationpb.New(found.Remaining),
	}
	if out.GetState() == pb.State_STATE_CLAIMED {
		out.LeaseRemaining = durationpb.New(found.LeaseLeft)
	}
	return out, nil
}

// Forget implements dedupdv1.DedupServiceServer.
func (g *grpcAPI) Forget(ctx context.Context, in *pb.ForgetRequest) (*pb.ForgetResponse, error) {
	existed, err := g.forget(ctx, in.GetPolicy(), in.GetKey())
	if err != nil {
		return nil, grpcError(err)
	}
	return &pb.ForgetResponse{Existed: existed}, nil
}

// Status implements dedupdv1.DedupServiceServer.
func (g *grpcAPI) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	st := g.Service.Status()
	out := &pb.StatusResponse{Version: st.Version, ConfigError: st.ConfigError}
	for _, p := range st.Policies {
		var since *timestamppb.Timestamp
		if !p.Store.HistorySince.IsZero() {
			since = timestamppb.New(p.Store.HistorySince)
		}
		out.Policies = append(out.Policies, &pb.PolicyStatus{
			Name: p.Name, Namespace: p.Namespace, ConfigHash: p.ConfigHash, Mode: p.Mode, UnknownFields: p.UnknownFields,
			Store: &pb.StoreStatus{
				Kind: p.Store.Kind, Reachable: p.Store.Reachable, Error: p.Store.Error,
				Safety: p.Store.Safety, Reason: p.Store.Reason, HistorySince: since,
			},
		})
	}
	return out, nil
}

func (l Limits) fits(n int, field string) error {
	if n > l.MaxBatch {
		return &engine.Error{Code: engine.TooLarge, Field: field, Message: fmt.Sprintf(
			"%s: %d, at most %d in one batch (--max-batch)", field, n, l.MaxBatch)}
	}
	return nil
}

// guardUnary counts a call and answers INTERNAL to a panic.
func (s *Service) guardUnary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (resp any, err error) {
	start := s.Now()
	defer func() {
		if cause := recover(); cause != nil {
			s.panicked(cause)
			resp, err = nil, grpcError(errInternal)
		}
		s.Metrics.request("grpc", path.Base(info.FullMethod), status.Code(err).String(), s.Now().Sub(start))
	}()
	if size := sizeOf(req); size > 0 {
		if !s.inFlight.take(size) {
			s.Metrics.refused.WithLabelValues("grpc").Inc()
			return nil, grpcError(errInFlight)
		}
		defer s.inFlight.give(size)
	}
	return handler(ctx, req)
}

// guardStream is guardUnary for streams. Its duration is the stream's.
func (s *Service) guardStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	start := s.Now()
	defer func() {
		if cause := recover(); cause != nil {
			s.panicked(cause)
			err = grpcError(errInternal)
		}
		s.Metrics.request("grpc", path.Base(info.FullMethod), status.Code(err).String(), s.Now().Sub(start))
	}()
	return handler(srv, stream)
}
