// Package client lets a Go consumer ask dedupd. Process is the whole loop around a handler;
// the other methods are its steps.
//
//	c, err := client.New(client.FromEnv(os.Getenv))
//	…
//	decision, err := c.Process(ctx, message, func(ctx context.Context, fence uint64) error { … })
//	switch {
//	case err == nil: acknowledge, whatever the decision
//	case errors.Is(err, client.ErrConflict): dead-letter
//	default: leave the message in the queue; it comes again
//	}
package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// Config says whom to ask and as whom.
type Config struct {
	// Target is dedupd's gRPC address, host:port. Environment: DEDUPD_GRPC.
	Target string

	// Policy is the name of the DedupPolicy. Environment: DEDUPD_POLICY.
	Policy string

	// Consumer is the name under which messages are remembered: one for all instances of one
	// consumer, another for each other consumer. Environment: DEDUPD_CONSUMER.
	Consumer string

	// TokenFile is the file with the token that shows who asks, for a policy that says who may
	// (spec.callers). It is read anew as the kubelet renews it. Empty: nobody says who asks.
	// Environment: DEDUPD_TOKEN_FILE.
	TokenFile string

	// Timeout bounds each single try of a call. Zero: 5s.
	Timeout time.Duration

	// Retry bounds how long a call is tried again, after its first try, while dedupd, or its store,
	// does not answer.
	// Zero: 30s; negative: one try.
	Retry time.Duration

	// Now is the clock by which a lease is taken to have run out. Nil: the system's.
	Now func() time.Time

	// DialOptions are added to the client's own: plain text, and round robin over the
	// addresses that Target resolves to.
	DialOptions []grpc.DialOption
}

// The names of the environment variables, as the operator's webhook sets them.
const (
	envTarget    = "DEDUPD_GRPC"
	envPolicy    = "DEDUPD_POLICY"
	envConsumer  = "DEDUPD_CONSUMER"
	envTokenFile = "DEDUPD_TOKEN_FILE" //nolint:gosec // a variable's name, not a secret
)

// FromEnv reads a configuration from the environment that the operator gives to a pod with
// the label dedupd.io/policy. getenv is os.Getenv.
func FromEnv(getenv func(string) string) Config {
	return Config{
		Target: getenv(envTarget), Policy: getenv(envPolicy), Consumer: getenv(envConsumer), TokenFile: getenv(envTokenFile),
	}
}

// Client asks dedupd. It is safe for concurrent use.
type Client struct {
	config Config
	token  *tokenFile // nil: none is sent
	conn   *grpc.ClientConn
	rpc    pb.DedupServiceClient
}

// New returns a client. Nothing is dialled before the first call.
func New(c Config) (*Client, error) {
	switch {
	case c.Target == "":
		return nil, errors.New("client: no target: set " + envTarget + " (a pod gets it by the label dedupd.io/policy) or Config.Target, such as orders-dedupd.shop.svc:9090")
	case c.Policy == "":
		return nil, errors.New("client: no policy: set " + envPolicy + " or Config.Policy to the name of a DedupPolicy")
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.Retry == 0 {
		c.Retry = 30 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now //nolint:forbidigo // a consumer's main has no clock to pass
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
	}
	var token *tokenFile
	if c.TokenFile != "" {
		token = &tokenFile{path: c.TokenFile, now: c.Now}
		options = append(options, grpc.WithPerRPCCredentials(token))
	}
	options = append(options, c.DialOptions...)
	conn, err := grpc.NewClient(c.Target, options...)
	if err != nil {
		return nil, fmt.Errorf("client: target %q: %w", c.Target, err)
	}
	return &Client{config: c, token: token, conn: conn, rpc: pb.NewDedupServiceClient(conn)}, nil
}

// Close ends the client's connections.
func (c *Client) Close() error { return c.conn.Close() }

// Message is a message as the broker delivered it.
type Message struct {
	Headers map[string]string
	Body    []byte
}

// Decision is what was decided about a message.
type Decision string

// The decisions.
const (
	Fresh      Decision = "FRESH"
	Duplicate  Decision = "DUPLICATE"
	InProgress Decision = "IN_PROGRESS"
	Conflict   Decision = "CONFLICT"
	Unchecked  Decision = "UNCHECKED"
)

// Answer is the decision about one message, with what it brings.
type Answer struct {
	Decision Decision

	// Claim is what Complete, Release and Renew want, of FRESH and UNCHECKED in mode Claim.
	Claim Claim

	// RetryAfter is what is left of the other holder's lease, with IN_PROGRESS.
	RetryAfter time.Duration

	// FirstSeen is when the message was first seen; zero where that is not known.
	FirstSeen time.Time

	// Shadow is what would have been answered if the policy were enforced, Reason why nothing
	// was decided.
	Shadow, Reason string
}

// Claim is a message that is held. The zero Claim, as of mode Mark, holds nothing.
type Claim struct {
	Key, Token string

	// Fence rises from holder to holder of a key. A sink that refuses a lower one than it has
	// seen is safe from holders that have outlived their lease.
	Fence uint64

	// Lease is how long the claim is held; zero where there is nothing to renew.
	Lease time.Duration
}

// Check asks about a message. It chooses an attempt, and tries again with the same one as
// long as there is no answer: that never turns a fresh message into a duplicate. An error is
// never a decision.
func (c *Client) Check(ctx context.Context, m Message) (Answer, error) {
	content, err := toPB(m)
	if err != nil {
		return Answer{}, err
	}
	request := &pb.CheckRequest{
		Policy: c.config.Policy, Consumer: c.config.Consumer,
		Attempt: rand.Text(), // here, once, and not in the loop
		Message: content,
	}
	var answer *pb.Answer
	err = c.retry(ctx, func(ctx context.Context) error {
		response, err := c.rpc.Check(ctx, request)
		answer = response.GetAnswer()
		return err
	})
	if err != nil {
		return Answer{}, fmt.Errorf("checking a message: %w", err)
	}
	return fromPB(answer)
}

// toPB refuses a message that cannot be encoded, which on a stream would fail all that travel with it.
func toPB(m Message) (*pb.Message, error) {
	for name, value := range m.Headers {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, fmt.Errorf("checking a message: %w", status.Errorf(codes.InvalidArgument, "message.headers: %q: %q; want UTF-8", name, value))
		}
	}
	return &pb.Message{Headers: m.Headers, Body: m.Body}, nil
}

// fromPB refuses an answer of a newer server that it does not know: it is no decision.
func fromPB(a *pb.Answer) (Answer, error) {
	var d Decision
	switch a.GetDecision() {
	case pb.Decision_DECISION_FRESH:
		d = Fresh
	case pb.Decision_DECISION_DUPLICATE:
		d = Duplicate
	case pb.Decision_DECISION_IN_PROGRESS:
		d = InProgress
	case pb.Decision_DECISION_CONFLICT:
		d = Conflict
	case pb.Decision_DECISION_UNCHECKED:
		d = Unchecked
	default:
		return Answer{}, fmt.Errorf("checking a message: the answer %s is not known to this client", a.GetDecision())
	}
	out := Answer{
		Decision: d,
		Claim:    Claim{Key: a.GetKey(), Token: a.GetToken(), Fence: a.GetFence(), Lease: a.GetLease().AsDuration()},
		Shadow:   a.GetShadow(), Reason: a.GetReason(), RetryAfter: a.GetRetryAfter().AsDuration(),
	}
	if a.GetFirstSeen() != nil {
		out.FirstSeen = a.GetFirstSeen().AsTime()
	}
	return out, nil
}

// Complete says that the message has been processed. It may be repeated. An error that is
// ErrStale says that the claim was lost.
func (c *Client) Complete(ctx context.Context, claim Claim) error {
	if claim.Token == "" {
		return nil
	}
	err := c.retry(ctx, func(ctx context.Context) error {
		_, err := c.rpc.Complete(ctx, &pb.CompleteRequest{Policy: c.config.Policy, Key: claim.Key, Token: claim.Token})
		return err
	})
	return during("completing a claim", err)
}

// Release gives the message back: whoever checks it next gets it.
func (c *Client) Release(ctx context.Context, claim Claim) error {
	if claim.Token == "" {
		return nil
	}
	err := c.retry(ctx, func(ctx context.Context) error {
		_, err := c.rpc.Release(ctx, &pb.ReleaseRequest{Policy: c.config.Policy, Key: claim.Key, Token: claim.Token})
		return err
	})
	return during("releasing a claim", err)
}

// Renew asks for a whole lease from now on, which it returns.
func (c *Client) Renew(ctx context.Context, claim Claim) (time.Duration, error) {
	if claim.Lease == 0 {
		return 0, nil
	}
	var lease time.Duration
	err := c.retry(ctx, func(ctx context.Context) error {
		response, err := c.rpc.Renew(ctx, &pb.RenewRequest{Policy: c.config.Policy, Key: claim.Key, Token: claim.Token})
		lease = response.GetSettled().GetLease().AsDuration()
		return err
	})
	return lease, during("renewing a claim", err)
}

func during(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
