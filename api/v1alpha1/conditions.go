package v1alpha1

// Condition types of a DedupPolicy. All of them are positive: True is good. Each carries the
// observedGeneration of the spec it speaks of and is present from the first reconciliation on,
// in the shape that kstatus and `kubectl wait --for=condition=Ready` expect.
const (
	// ConditionAccepted: the policy compiles and its objects are applied. False says which field is wrong,
	// or which object the cluster refuses; the operator then leaves what runs as it is. A spec that does not
	// compile is not looked at again until it changes, anything else from time to time.
	ConditionAccepted = "Accepted"

	// ConditionConfigLoaded: every dedupd replica reports that it runs this policy's
	// configHash. Asked from the replicas, not inferred from the Deployment.
	ConditionConfigLoaded = "ConfigLoaded"

	// ConditionStoreReachable: every dedupd replica reports that its store answers.
	ConditionStoreReachable = "StoreReachable"

	// ConditionStoreSafe: the store neither evicts marks (maxmemory-policy noeviction) nor
	// forgets them at a restart (persistence is on). Unknown where the server does not say.
	// It does not enter Ready: an unsafe store is a risk to know of, not an outage.
	ConditionStoreSafe = "StoreSafe"

	// ConditionReady: Accepted, ConfigLoaded and StoreReachable are True and the Deployment
	// has its replicas.
	ConditionReady = "Ready"
)

// Condition reasons. Each is used with exactly one condition type, but for Pending and
// StatusUnknown.
const (
	ReasonValid         = "Valid"         // Accepted=True
	ReasonInvalid       = "Invalid"       // Accepted=False, the message starts with the field's path, or with the object that the cluster refuses
	ReasonConflict      = "Conflict"      // Accepted=False, a child's name is taken by an object that is not ours
	ReasonNoIssuerKeys  = "NoIssuerKeys"  // Accepted=False, there is nothing to check the callers' tokens by
	ReasonSettings      = "PoolDiffers"   // Accepted=False, the policy is served by its pool, which runs as another member says
	ReasonPoolFull      = "PoolFull"      // Accepted=False, the pool's ConfigMap has no room for the policy
	ReasonLoaded        = "Loaded"        // ConfigLoaded=True
	ReasonOutdated      = "Outdated"      // ConfigLoaded=False, some replicas run another configuration
	ReasonRejected      = "Rejected"      // ConfigLoaded=False, a replica does not accept the configuration
	ReasonUnknownFields = "UnknownFields" // ConfigLoaded=True, but dedupd does not know some of its fields
	ReasonReachable     = "Reachable"     // StoreReachable=True
	ReasonUnreachable   = "Unreachable"   // StoreReachable=False, the message is the store's error
	ReasonSafe          = "Safe"          // StoreSafe=True
	ReasonUnsafe        = "Unsafe"        // StoreSafe=False, the message says what is at risk
	ReasonReady         = "Ready"         // Ready=True
	ReasonNotReady      = "NotReady"      // Ready=False, the message names the first condition that is not True
	ReasonPending       = "Pending"       // no replica runs yet, or there is nothing that it could run
	ReasonStatusUnknown = "StatusUnknown" // a replica could not be asked, or does not know
)

// Event reasons.
const (
	EventInvalid         = "InvalidPolicy"    // Warning: the spec does not compile
	EventChildConflict   = "ChildConflict"    // Warning: a child's name is taken
	EventNoIssuerKeys    = "NoIssuerKeys"     // Warning: there is nothing to check the callers' tokens by
	EventSettings        = "PoolDiffers"      // Warning: the policy's pool runs as another member says
	EventPoolFull        = "PoolFull"         // Warning: the policy's pool has no room for it
	EventStoreMoved      = "StoreMoved"       // Warning: other addresses, history may start anew
	EventEpochRaised     = "EpochRaised"      // Normal: a new key space, history starts anew
	EventStoreUnsafe     = "StoreUnsafe"      // Warning: eviction or missing persistence
	EventStoreDown       = "StoreUnreachable" // Warning: the store stopped answering
	EventHistoryLost     = "HistoryLost"      // Warning: the store forgot what it had remembered
	EventConfigRejected  = "ConfigRejected"   // Warning: a replica does not accept the configuration
	EventBecameReady     = "Ready"            // Normal: the policy became ready
	EventUnknownInConfig = "UnknownFields"    // Warning: dedupd is older than the policy's fields
)
