package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/server"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/gather"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
	"github.com/dedupd/dedup-operator/dedupd/store/nearcache"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
)

// serveOptions are what the command line of serve says.
type serveOptions struct {
	config             server.Config
	mounted            bool
	httpAddr, grpcAddr string
	pprofAddr          string
	storeTimeout       time.Duration
	maxPending         int
	limits             server.Limits
	timing             server.Timing
	logLevel           slog.Level
}

// mountedDrainDelay is how long a terminating pod goes on answering: the time that endpoints
// need to reach every node's proxy. On a laptop nobody needs to learn anything.
const mountedDrainDelay = 5 * time.Second

func parseServe(args []string, env environment) (serveOptions, error) {
	o := serveOptions{
		limits: server.Limits{MaxBody: 1 << 20, MaxBatch: 1000, MaxBatchBytes: 16 << 20, MaxHeader: 64 << 10, MaxInFlight: 64 << 20},
		timing: server.Timing{Idle: 2 * time.Minute, Poll: time.Second, Health: 5 * time.Second},
	}
	maxHeader := int64(o.limits.MaxHeader)
	flags := flag.NewFlagSet("dedupd serve", flag.ContinueOnError)
	flags.SetOutput(env.err)
	flags.StringVar(&o.config.Path, "f", "", "the policies: a `FILE`, or a directory with *.yaml, *.yml and *.json files; looked at every second for changes")
	flags.BoolVar(&o.mounted, "mounted", false, "the policies come from a mounted ConfigMap: of a directory policy.yaml and *.policy.yaml count, and fields that this version does not know are reported and not refused")
	flags.StringVar(&o.httpAddr, "http-addr", ":8080", "`HOST:PORT` for HTTP")
	flags.StringVar(&o.grpcAddr, "grpc-addr", ":9090", "`HOST:PORT` for gRPC")
	flags.StringVar(&o.pprofAddr, "pprof-addr", "", "`HOST:PORT` for Go's profiles, which tell whoever asks a lot: a loopback address (default: none are served)")
	flags.StringVar(&o.config.SecretsDir, "secrets-dir", "/etc/dedupd/secrets", "the `DIR` with a directory for each Secret that a policy names")
	flags.StringVar(&o.config.CallerKeys, "caller-keys", "", "the `FILE` with the keys of the issuer of ServiceAccount tokens, for policies with callers (default issuer.jwks beside the policies)")
	flags.DurationVar(&o.storeTimeout, "store-timeout", engine.DefaultTimeout, "how long a call of the store may take")
	flags.IntVar(&o.maxPending, "max-pending", 10_000, "greatest `NUMBER` of operations on their way to a policy's store; what exceeds it is answered OVERLOADED")
	flags.Var((*size)(&o.limits.MaxBody), "max-body", "greatest `SIZE` of a message's body")
	flags.IntVar(&o.limits.MaxBatch, "max-batch", o.limits.MaxBatch, "greatest `NUMBER` of messages in a batch")
	flags.Var((*size)(&o.limits.MaxBatchBytes), "max-batch-bytes", "greatest `SIZE` of a batch as it travels")
	flags.Var((*size)(&maxHeader), "max-header", "greatest `SIZE` of a request's headers")
	flags.Var((*size)(&o.limits.MaxInFlight), "max-in-flight", "greatest `SIZE` in memory of the requests being answered; what exceeds it is answered OVERLOADED")
	flags.DurationVar(&o.timing.ReadHeader, "header-timeout", 5*time.Second, "how long a request's headers may take to arrive")
	flags.DurationVar(&o.timing.Read, "read-timeout", 30*time.Second, "how long a request may take to arrive")
	flags.DurationVar(&o.timing.DrainDelay, "drain-delay", 0, "how long requests are welcome after SIGTERM, while /readyz says no (default 0s, with --mounted 5s)")
	flags.DurationVar(&o.timing.Drain, "drain", 10*time.Second, "how long the requests on their way then have")
	flags.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "DEBUG, INFO, WARN or ERROR")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.limits.MaxHeader = int(maxHeader)
	o.config.Strict = !o.mounted
	delaySaid := false
	flags.Visit(func(f *flag.Flag) { delaySaid = delaySaid || f.Name == "drain-delay" })
	if o.mounted && !delaySaid {
		o.timing.DrainDelay = mountedDrainDelay
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; want flags only", flags.Arg(0))
	}
	return o, o.validate()
}

// validate refuses what would switch a limit off.
func (o *serveOptions) validate() error {
	if o.config.Path == "" {
		return errors.New("-f: missing; want a file or a directory with DedupPolicies")
	}
	for name, n := range map[string]int64{
		"--max-body": o.limits.MaxBody, "--max-batch": int64(o.limits.MaxBatch),
		"--max-batch-bytes": o.limits.MaxBatchBytes, "--max-header": int64(o.limits.MaxHeader),
	} {
		if n < 1 || n > 1<<30 {
			return fmt.Errorf("%s: %d; want 1 to 1GiB", name, n)
		}
	}
	if o.maxPending < o.limits.MaxBatch {
		return fmt.Errorf("--max-pending: %d; want at least --max-batch, %d, or such a batch would always be refused", o.maxPending, o.limits.MaxBatch)
	}
	if need := o.limits.Largest(); o.limits.MaxInFlight < need {
		return fmt.Errorf("--max-in-flight: %d; want at least %d, which one request may hold by --max-body, --max-batch-bytes and --max-batch",
			o.limits.MaxInFlight, need)
	}
	for name, d := range map[string]time.Duration{
		"--store-timeout": o.storeTimeout, "--header-timeout": o.timing.ReadHeader,
		"--read-timeout": o.timing.Read, "--drain": o.timing.Drain,
	} {
		if d <= 0 {
			return fmt.Errorf("%s: %s; want a positive duration, such as 1s", name, d)
		}
	}
	if o.timing.DrainDelay < 0 {
		return fmt.Errorf("--drain-delay: %s; want a duration that is not negative", o.timing.DrainDelay)
	}
	return nil
}

// serve runs the server until ctx ends and returns the exit code.
func serve(ctx context.Context, args []string, env environment) int {
	o, err := parseServe(args, env)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		env.tell("dedupd serve: %s\n", err)
		return exitUsage
	}
	log := slog.New(slog.NewJSONHandler(env.err, &slog.HandlerOptions{Level: o.logLevel}))
	tuneGC(os.Getenv)
	service := newService(o, log, env.now)
	if err := service.LoadConfig(o.config); err != nil {
		env.tell("dedupd serve: %s\n", err)
		return exitUsage
	}
	if err := listenAndServe(ctx, service, o, log); err != nil {
		log.Error("stopped", "error", err)
		return exitSome
	}
	log.Info("stopped")
	return exitOK
}

func newService(o serveOptions, log *slog.Logger, now func() time.Time) *server.Service {
	metrics := server.NewMetrics(programVersion(), now)
	registry := server.NewRegistry(
		func(p *policy.Policy) (store.Store, error) {
			s, err := openServed(p, o, log, now)
			if err != nil {
				return nil, err
			}
			return gathered(metrics.Measure(s, p.Name, log), p, o.maxPending, metrics.Queue(p.Name)), nil
		},
		func(p *policy.Policy, s store.Store) *engine.Engine {
			s = near(s, p, nearcache.Options{Now: now, Hits: metrics.NearHits(p.Name)})
			return engine.New(p, s, engine.Options{Timeout: o.storeTimeout, Now: now, Observe: metrics.Observer(p.Name)})
		},
	)
	return server.NewService(server.Options{
		Registry: registry, Metrics: metrics, Limits: o.limits, Version: programVersion(), Log: log, Now: now,
	})
}

// openServed opens the store of a policy. It need not be reachable yet.
func openServed(p *policy.Policy, o serveOptions, log *slog.Logger, now func() time.Time) (store.Store, error) {
	switch spec := p.StoreSpec; {
	case spec.Redis != nil:
		return redis.New(redis.Options{
			Spec: *spec.Redis, SecretsDir: o.config.SecretsDir, BirthKey: p.BirthKey, Timeout: o.storeTimeout, Now: now, Log: log.With("policy", p.Name),
		})
	case spec.Postgres != nil:
		return postgres.New(postgres.Options{
			Spec: *spec.Postgres, SecretsDir: o.config.SecretsDir, Timeout: o.storeTimeout, Sweep: time.Tick(time.Second), Log: log.With("policy", p.Name),
		})
	case spec.Memory != nil:
		return memory.New(memory.Options{MaxEntries: int(spec.Memory.MaxEntries), Now: now}), nil
	default:
		return nil, errors.New("spec.store: this version of dedupd has no such store; want redis, postgres or memory")
	}
}

// gathered lets the calls of a store share its round trips. The store is measured beneath, so
// that what is measured are round trips and not waits.
func gathered(s store.Store, p *policy.Policy, maxPending int, observe gather.Observer) store.Store {
	flights := 2
	switch redis := p.StoreSpec.Redis; {
	case p.StoreSpec.Memory != nil:
		return s // answers at once: nothing to share, and nothing to wait for
	case redis != nil && redis.Mode == v1alpha1.RedisCluster:
		// A round trip to several nodes lasts as long as to the slowest. So few messages share
		// one, lest a node that is down keeps those of the others waiting.
		flights = 32
	}
	return gather.New(s, gather.Options{MaxPending: maxPending, Flights: flights, Observe: observe})
}

// near has repeats answered from memory where the policy wants that. It stands before
// everything else: what it answers does not wait for the store.
//
// Each engine has its own, so that a policy that is loaded anew begins with an empty one. What
// requests of the old one still do is to the new one as if another replica did it.
func near(s store.Store, p *policy.Policy, o nearcache.Options) store.Store {
	if p.NearCache.MaxEntries == 0 {
		return s
	}
	o.MaxEntries, o.MaxAge = p.NearCache.MaxEntries, p.NearCache.MaxAge
	return nearcache.New(s, o)
}

func listenAndServe(ctx context.Context, service *server.Service, o serveOptions, log *slog.Logger) error {
	var listen net.ListenConfig
	httpOn, err := listen.Listen(ctx, "tcp", o.httpAddr)
	if err != nil {
		return fmt.Errorf("--http-addr: %w", err)
	}
	grpcOn, err := listen.Listen(ctx, "tcp", o.grpcAddr)
	if err != nil {
		_ = httpOn.Close()
		return fmt.Errorf("--grpc-addr: %w", err)
	}
	if o.pprofAddr != "" {
		on, stop, err := serveProfiles(ctx, o.pprofAddr)
		if err != nil {
			return errors.Join(fmt.Errorf("--pprof-addr: %w", err), httpOn.Close(), grpcOn.Close())
		}
		defer stop()
		log.Info("serving profiles", "pprof", on)
	}
	// Who asks a second time does not want to wait for an orderly end.
	defer context.AfterFunc(ctx, func() { signal.Reset() })()
	log.Info("listening", "http", httpOn.Addr().String(), "grpc", grpcOn.Addr().String(), "version", programVersion())
	return service.Run(ctx, o.timing, httpOn, grpcOn)
}

// size is a flag in bytes, such as 512, 64KiB or 1MiB.
type size int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}}

// String implements flag.Value.
func (s *size) String() string {
	for i := len(sizeUnits) - 1; i >= 0; i-- {
		if u := sizeUnits[i]; *s > 0 && int64(*s)%u.bytes == 0 {
			return strconv.FormatInt(int64(*s)/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

// Set implements flag.Value.
func (s *size) Set(text string) error {
	number, unit := text, int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(text, u.suffix); ok {
			number, unit = n, u.bytes
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 1 || n > (1<<30)/unit {
		return errors.New("want 1 to 1GiB, such as 65536, 64KiB or 16MiB")
	}
	*s = size(n * unit)
	return nil
}
