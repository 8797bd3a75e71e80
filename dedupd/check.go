package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/message"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
)

const checkUsage = `Usage: dedupd check -f policy.yaml [flags] < messages.ndjson > decisions.ndjson

Answers recorded messages as dedupd would, to try a policy before it is applied.

A line in is a message:
	{"headers":{"message-id":"7"},"body":{"any":"JSON"}}
or bodyText (a string), or bodyBase64, in the place of body; without any the body is empty. What stands
in body is hashed byte for byte as it is written. Optional: consumer, attempt. Empty lines are left out.

A line out, in the same order, is {"decision":"FRESH","key":"…"}. A line in that is no message, or that cannot be
decided, gets {"error":"line 7: …"}, and the rest goes on. A summary is written to standard error.

With --summary there are no such lines, and the summary goes to standard output, with an estimate of what a store needs to remember
--rate messages a second like these.

With mode: Claim each FRESH message is completed at once, as by a consumer that succeeds, so that a repeat is a
DUPLICATE; --complete=false leaves the claims open, so that a repeat is IN_PROGRESS until the lease runs out.

Exit code: 0, or 1 when some line got an error, or 2 when the arguments or the policy are wrong.

Flags:
`

// checkOptions are the flags of dedupd check.
type checkOptions struct {
	file, policy, store string
	secretsDir          string
	consumer            string
	maxBody             size
	timeout             time.Duration
	complete            bool
	summary             bool
	rate                float64
}

func check(ctx context.Context, args []string, env environment) int {
	o, code := parseCheckFlags(args, env)
	if o == nil {
		return code
	}
	c, err := newChecker(o, env)
	if err != nil {
		env.tell("dedupd check: %v\n", err)
		return exitUsage
	}
	defer func() { _ = c.store.Close() }() // every answer has been given
	if err := c.run(ctx, env); err != nil {
		env.tell("dedupd check: %v\n", err)
		return exitSome
	}
	if c.sum.errors > 0 {
		return exitSome
	}
	return exitOK
}

// parseCheckFlags returns nil and the exit code where there is nothing to do.
func parseCheckFlags(args []string, env environment) (*checkOptions, int) {
	o := &checkOptions{maxBody: 1 << 20}
	f := flag.NewFlagSet("dedupd check", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.file, "f", "", "the policy's `file`, or a directory of them")
	f.StringVar(&o.policy, "policy", "", "the `name` of the policy, where there are several")
	f.StringVar(&o.store, "store", "memory", "memory: start without any history; policy: the policy's own store, with what it remembers (and will remember)")
	f.StringVar(&o.secretsDir, "secrets-dir", "/etc/dedupd/secrets", "the `directory` with a folder for each Secret that the policy's store refers to")
	f.StringVar(&o.consumer, "consumer", "check", "the `name` of the consumer of messages that name none")
	f.Var(&o.maxBody, "max-body", "the greatest `size` of a body")
	f.DurationVar(&o.timeout, "store-timeout", engine.DefaultTimeout, "the greatest `duration` of a call of the store")
	f.BoolVar(&o.complete, "complete", true, "with mode: Claim, complete each FRESH message after it is answered")
	f.BoolVar(&o.summary, "summary", false, "write a summary to standard output, with an estimate of the store's size, and no decisions")
	f.Float64Var(&o.rate, "rate", 1000, "with --summary: the `NUMBER` of messages in a second")
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		var flags strings.Builder
		f.SetOutput(&flags)
		f.PrintDefaults()
		return nil, env.print(checkUsage + flags.String())
	case err != nil:
	case f.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q; messages are read from standard input", f.Arg(0))
	case o.file == "":
		err = errors.New("-f: missing; want the policy's file")
	case o.store != "memory" && o.store != "policy":
		err = fmt.Errorf("--store: %q; want memory or policy", o.store)
	case o.timeout < time.Millisecond:
		err = fmt.Errorf("--store-timeout: %s; want at least 1ms", o.timeout)
	}
	if err == nil && (!(o.rate > 0) || math.IsInf(o.rate, 0)) {
		err = fmt.Errorf("--rate: %v; want a positive number of messages in a second", o.rate)
	}
	if err != nil {
		env.tell("dedupd check: %v\nsee dedupd check --help\n", err)
		return nil, exitUsage
	}
	return o, exitOK
}

// checker answers recorded messages.
type checker struct {
	engine   *engine.Engine
	store    store.Store
	consumer string // of a message that names none
	maxBody  int    // in bytes
	complete bool
	summary  bool // instead of decisions
	rate     float64
	sum      summary
}

func newChecker(o *checkOptions, env environment) (*checker, error) {
	policies, err := policy.Load(o.file, true)
	if err != nil {
		return nil, err
	}
	p, err := choose(policies, o.policy)
	if err != nil {
		return nil, err
	}
	s, err := o.open(p, env)
	if err != nil {
		return nil, fmt.Errorf("opening the store of policy %s: %w", p.Name, err)
	}
	c := &checker{
		store:    s,
		consumer: o.consumer,
		maxBody:  int(o.maxBody),
		complete: o.complete && p.Mode == v1alpha1.ModeClaim,
		summary:  o.summary,
		rate:     o.rate,
		sum:      newSummary(p, o.store),
	}
	c.engine = engine.New(p, s, engine.Options{
		Timeout: o.timeout,
		Now:     env.now,
		Observe: engine.Observer{Duplicate: func(age time.Duration) { c.sum.oldest = max(c.sum.oldest, age) }},
	})
	return c, nil
}

// open opens the policy's store, or one in memory, which is without a bound of its own: that
// would only turn the rest of a long recording into errors.
func (o *checkOptions) open(p *policy.Policy, env environment) (store.Store, error) {
	if o.store == "memory" {
		return memory.New(memory.Options{MaxEntries: math.MaxInt, Now: env.now}), nil
	}
	served := serveOptions{storeTimeout: o.timeout}
	served.config.SecretsDir = o.secretsDir
	return openServed(p, served, slog.New(slog.DiscardHandler), env.now)
}

func choose(policies []*policy.Policy, name string) (*policy.Policy, error) {
	if name == "" && len(policies) == 1 {
		return policies[0], nil
	}
	var names []string
	for _, p := range policies {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	if name == "" {
		return nil, fmt.Errorf("--policy: missing; there are several: %s", strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("--policy: %q; want one of %s", name, strings.Join(names, ", "))
}

// run answers every line. Answers are held back only while more input is at hand, so that
// somebody who types a message sees its answer.
func (c *checker) run(ctx context.Context, env environment) error {
	start := env.now()
	// Base64 is longer than what it encodes, escapes more so, and there are headers as well.
	in := newLineReader(env.in, 2*c.maxBody+(1<<20))
	out := bufio.NewWriterSize(env.out, 64<<10)
	for {
		lines, readErr := in.batch()
		answers := c.answer(ctx, lines)
		if c.summary {
			answers = nil
		}
		for _, d := range answers {
			if err := writeLine(out, d); err != nil {
				return err
			}
		}
		if readErr != nil || !in.more() {
			if err := out.Flush(); err != nil {
				return fmt.Errorf("writing decisions: %w", err)
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			c.sum.took = env.now().Sub(start)
			return c.report(env)
		case readErr != nil:
			return fmt.Errorf("reading messages: %w", readErr)
		}
	}
}

// report tells what the run came to.
func (c *checker) report(env environment) error {
	if !c.summary {
		env.tell("%s", c.sum.String())
		return nil
	}
	if _, err := io.WriteString(env.out, c.sum.String()+c.sum.sizing.estimate(&c.sum, c.rate)); err != nil {
		return fmt.Errorf("writing the summary: %w", err)
	}
	return nil
}

// decision is a line of the output.
type decision struct {
	Decision          engine.Decision `json:"decision,omitempty"`
	Key               string          `json:"key,omitempty"`
	Fence             uint64          `json:"fence,omitempty"`
	LeaseSeconds      float64         `json:"leaseSeconds,omitempty"`
	RetryAfterSeconds float64         `json:"retryAfterSeconds,omitempty"`
	Shadow            string          `json:"shadow,omitempty"`
	Reason            string          `json:"reason,omitempty"`
	Error             string          `json:"error,omitempty"`
}

func writeLine(w io.Writer, d decision) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(d); err != nil {
		return fmt.Errorf("writing decisions: %w", err)
	}
	return nil
}

// answer returns a line of output for every line of input that is not empty.
func (c *checker) answer(ctx context.Context, lines []line) []decision {
	out := make([]decision, 0, len(lines))
	var pending []pendingCheck
	for _, l := range lines {
		if l.number == 1 {
			l.text = bytes.TrimPrefix(l.text, []byte("\ufeff"))
		}
		if l.err == nil && len(bytes.TrimSpace(l.text)) == 0 {
			continue
		}
		out = append(out, decision{})
		r, err := c.request(l.text)
		if l.err != nil {
			err = l.err
		}
		if err != nil {
			out[len(out)-1] = c.failed(l.number, err)
			continue
		}
		pending = append(pending, pendingCheck{line: l.number, place: len(out) - 1, request: r})
	}
	for len(pending) > 0 {
		n := c.together(pending)
		c.check(ctx, pending[:n], out)
		pending = pending[n:]
	}
	return out
}

// request is the message of a line.
func (c *checker) request(text []byte) (engine.Request, error) {
	if err := message.Validate(text); err != nil {
		return engine.Request{}, err
	}
	m, err := message.Decode(text, "")
	if err != nil {
		return engine.Request{}, err
	}
	if len(m.Body) > c.maxBody {
		return engine.Request{}, fmt.Errorf("body: %d bytes, more than --max-body (%d)", len(m.Body), c.maxBody)
	}
	r := engine.Request{Consumer: c.consumer, Attempt: m.Attempt, Message: m.Message}
	if m.Consumer != nil {
		r.Consumer = *m.Consumer
	}
	return r, nil
}

// pendingCheck is a message that waits for its answer.
type pendingCheck struct {
	line, place int
	request     engine.Request
}

// together says how many messages can be checked in one call. All of them, unless claims are
// completed: then a repeat has to wait until the message before it is completed.
func (c *checker) together(pending []pendingCheck) int {
	if !c.complete {
		return len(pending)
	}
	seen := map[string]bool{}
	for i, p := range pending {
		key, err := c.engine.Policy().Key(p.request.Consumer, p.request.Message)
		if err != nil {
			continue
		}
		if seen[key] {
			return i
		}
		seen[key] = true
	}
	return len(pending)
}

func (c *checker) check(ctx context.Context, pending []pendingCheck, out []decision) {
	requests := make([]engine.Request, len(pending))
	for i, p := range pending {
		requests[i] = p.request
	}
	answers := c.engine.Check(ctx, requests)
	completed := c.settle(ctx, answers)
	for i, p := range pending {
		a := answers[i]
		if err := errors.Join(a.Err, completed[i]); err != nil {
			out[p.place] = c.failed(p.line, err)
			continue
		}
		c.sum.count(&a)
		out[p.place] = decision{
			Decision:          a.Decision,
			Key:               a.Key,
			Fence:             a.Fence,
			LeaseSeconds:      a.Lease.Seconds(),
			RetryAfterSeconds: math.Ceil(a.RetryAfter.Seconds()),
			Shadow:            a.Shadow,
			Reason:            a.Reason,
		}
	}
}

// settle completes the claims among answers, if that is wanted, and returns an error for each
// that could not be.
func (c *checker) settle(ctx context.Context, answers []engine.Answer) []error {
	errs := make([]error, len(answers))
	if !c.complete {
		return errs
	}
	var ops []engine.Settle
	var places []int
	for i, a := range answers {
		if a.Fence > 0 {
			ops = append(ops, engine.Settle{Verb: store.Complete, Key: a.Key, Token: a.Token})
			places = append(places, i)
		}
	}
	for n, s := range c.engine.Settle(ctx, ops) {
		if s.Err != nil {
			errs[places[n]] = fmt.Errorf("completing: %w", s.Err)
		}
	}
	return errs
}

func (c *checker) failed(number int, err error) decision {
	c.sum.errors++
	return decision{Error: fmt.Sprintf("line %d: %v", number, err)}
}
