package server

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/gather"
)

// Metrics are what the process counts, in a registry of its own.
type Metrics struct {
	registry *prometheus.Registry
	claims   *claims

	decisions   *prometheus.CounterVec
	age         *prometheus.HistogramVec
	settlements *prometheus.CounterVec
	refusals    *prometheus.CounterVec

	storeDuration *prometheus.HistogramVec
	storeErrors   *prometheus.CounterVec
	storeUp       *prometheus.GaugeVec
	storePending  *prometheus.GaugeVec
	storeRefused  *prometheus.CounterVec
	nearHits      *prometheus.CounterVec
	historyLost   *prometheus.CounterVec
	historySince  *prometheus.GaugeVec

	requests        *prometheus.CounterVec
	requestDuration *prometheus.HistogramVec
	refused         *prometheus.CounterVec
	inFlight        prometheus.Gauge
	panics          prometheus.Counter

	reloads     *prometheus.CounterVec
	reloadOK    prometheus.Gauge
	reloadedAt  prometheus.Gauge
	perPolicies []interface {
		DeletePartialMatch(prometheus.Labels) int
	}
}

// ageBuckets reach from a producer's quick retry to a week's replay. A p99 near the ttl says
// that the ttl is too short.
var ageBuckets = []float64{
	0.1, 1, 10, 60, 5 * 60, 15 * 60, 3600, 6 * 3600, 24 * 3600, 3 * 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600,
}

// latencyBuckets are finer than the default where a store in the same zone answers.
var latencyBuckets = []float64{
	.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5,
}

// NewMetrics returns metrics for one process. now is the clock by which leases run out.
func NewMetrics(version string, now func() time.Time) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		claims:   newClaims(now),

		decisions: counters("dedupd_decisions_total",
			"Checks by what was answered: a decision or an error's code. shadow is what would have been answered, empty for an enforced policy.",
			"policy", "decision", "shadow"),
		age: histograms("dedupd_duplicate_age_seconds",
			"How long ago the message of a DUPLICATE or CONFLICT was first seen.", ageBuckets, "policy"),
		settlements: counters("dedupd_settlements_total",
			"Claims completed, released and renewed. code is OK or an error's code.", "policy", "verb", "code"),
		refusals: counters("dedupd_caller_refusals_total",
			"Requests, and those of a stream, about a policy with callers that none of them has made. code is the error's.", "policy", "code"),

		storeDuration: histograms("dedupd_store_duration_seconds",
			"Duration of calls of the store, each of which carries a whole batch.", latencyBuckets, "policy", "op"),
		storeErrors: counters("dedupd_store_errors_total",
			"Store operations whose outcome is not known, by cause: full, corrupt or unavailable.", "policy", "code"),
		storeUp: gauges("dedupd_store_reachable",
			"Whether the store answered when it was last asked how it is.", "policy"),
		storePending: gauges("dedupd_store_pending_operations",
			"Operations on their way to the store or back, those that wait included.", "policy"),
		storeRefused: counters("dedupd_store_refused_operations_total",
			"Operations that were answered OVERLOADED, because as many as may were on their way.", "policy"),
		nearHits: counters("dedupd_near_cache_hits_total",
			"Repeats that were answered from this process's memory, without the store.", "policy"),
		historyLost: counters("dedupd_store_history_lost_total",
			"How often the store was found to have lost what it remembered: flushed, replaced or restored.", "policy"),
		historySince: gauges("dedupd_store_history_since_timestamp_seconds",
			"When the store's history begins: what was marked since then, and has not expired, is remembered.", "policy"),

		requests: counters("dedupd_requests_total",
			"Requests by protocol (http, grpc), route and status code.", "protocol", "route", "code"),
		requestDuration: histograms("dedupd_request_duration_seconds",
			"Duration of requests; of a stream, from its start to its end.", latencyBuckets, "protocol", "route"),
		refused: counters("dedupd_requests_refused_total",
			"Requests that were answered OVERLOADED, because there was no memory for them.", "protocol"),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "dedupd_requests_in_flight_bytes", Help: "What the requests being answered are taken to hold in memory.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dedupd_panics_total", Help: "Requests that ended in a panic: bugs of dedupd.",
		}),

		reloads: counters("dedupd_config_reloads_total",
			"Changes of the configuration file, by result: success or error.", "result"),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "dedupd_config_reload_success", Help: "Whether what stands in the configuration file is what runs.",
		}),
		reloadedAt: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "dedupd_config_reload_success_timestamp_seconds", Help: "When the running configuration was loaded.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "dedupd_build_info", Help: "Always 1; the version is in the label.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(
		m.claims, m.decisions, m.age, m.settlements, m.refusals, m.storeDuration, m.storeErrors, m.storeUp,
		m.storePending, m.storeRefused, m.nearHits, m.historyLost, m.historySince,
		m.requests, m.requestDuration, m.refused, m.inFlight, m.panics, m.reloads, m.reloadOK, m.reloadedAt, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.perPolicies = append(m.perPolicies, m.decisions, m.age, m.settlements, m.refusals, m.storeDuration, m.storeErrors, m.storeUp,
		m.storePending, m.storeRefused, m.nearHits, m.historyLost, m.historySince)
	return m
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
}

func histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Observer counts for the engine of a policy.
func (m *Metrics) Observer(policy string) engine.Observer {
	decisions := m.decisions.MustCurryWith(prometheus.Labels{"policy": policy})
	settlements := m.settlements.MustCurryWith(prometheus.Labels{"policy": policy})
	age := m.age.WithLabelValues(policy)
	return engine.Observer{
		Checked: func(a *engine.Answer) {
			decision := string(a.Decision)
			if a.Err != nil {
				decision = string(asError(a.Err).Code)
			}
			decisions.WithLabelValues(decision, a.Shadow).Inc()
		},
		Duplicate: func(d time.Duration) { age.Observe(d.Seconds()) },
		Settled: func(verb store.Verb, err error) {
			code := "OK"
			if err != nil {
				code = string(asError(err).Code)
			}
			settlements.WithLabelValues(verbName(verb), code).Inc()
		},
	}
}

// Queue counts for what gathers the calls of a policy's store.
func (m *Metrics) Queue(policy string) gather.Observer {
	pending := m.storePending.WithLabelValues(policy)
	refused := m.storeRefused.WithLabelValues(policy)
	return gather.Observer{
		Pending: func(delta int) { pending.Add(float64(delta)) },
		Refused: func(ops int) { refused.Add(float64(ops)) },
	}
}

// NearHits counts what a policy's near cache answers.
func (m *Metrics) NearHits(policy string) func(n int) {
	hits := m.nearHits.WithLabelValues(policy)
	return func(n int) { hits.Add(float64(n)) }
}

// forget removes a policy that runs no longer.
func (m *Metrics) forget(policy string) {
	m.claims.forget(policy)
	for _, vec := range m.perPolicies {
		vec.DeletePartialMatch(prometheus.Labels{"policy": policy})
	}
}

func (m *Metrics) request(protocol, route, code string, took time.Duration) {
	m.requests.WithLabelValues(protocol, route, code).Inc()
	m.requestDuration.WithLabelValues(protocol, route).Observe(took.Seconds())
}

func verbName(v store.Verb) string {
	switch v {
	case store.Mark:
		return "mark"
	case store.Claim:
		return "claim"
	case store.Complete:
		return "complete"
	case store.Release:
		return "release"
	case store.Renew:
		return "renew"
	case store.Lookup:
		return "lookup"
	case store.Forget:
		return "forget"
	}
	return "unknown"
}
