// Package status is the answer of GET /v1/status: what one dedupd process says of itself.
package status

import "time"

// Status is the state of a dedupd process.
type Status struct {
	Version  string   `json:"version"`
	Policies []Policy `json:"policies"`

	// ConfigError says why what stands in the configuration file is not what runs. Empty if it is.
	ConfigError string `json:"configError"`
}

// Policy is the state of one policy in this process.
type Policy struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`

	// ConfigHash is policy.HashConfig of the file that the policy runs with.
	ConfigHash string `json:"configHash"`

	// Mode is Mark or Claim.
	Mode string `json:"mode"`

	// UnknownFields are the paths that this version does not know, from a newer operator.
	UnknownFields []string `json:"unknownFields"`

	Store Store `json:"store"`
}

// Store is the state of a policy's store, as of the last time it was asked.
type Store struct {
	// Kind is Redis, Postgres or Memory.
	Kind string `json:"kind"`

	// Reachable says whether the store answered; Error why it did not, NotAsked while it was
	// not asked yet.
	Reachable bool   `json:"reachable"`
	Error     string `json:"error"`

	// Safety is Safe, Unsafe or Unknown: whether marks may vanish before their time. Reason
	// says why.
	Safety string `json:"safety"`
	Reason string `json:"reason"`

	// HistorySince is when the store's history begins, absent while that is not known. Where it
	// moves, what was marked before was lost.
	HistorySince time.Time `json:"historySince,omitzero"`
}

// NotAsked is the Error of a store that was not asked yet: it is not known to be unreachable.
const NotAsked = "not asked yet"
