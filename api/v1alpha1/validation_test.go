package v1alpha1_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// A case is a policy as it is created, and optionally as it is then updated, and what the API
// server says to the last of them: want is empty where it accepts.
type validationCase struct {
	create []change
	update []change
	want   string
}

const (
	claimOnly      = "claim: only with mode: Claim; with mode: Mark remove it"
	leaseOrder     = "claim.lease: must be shorter than ttl"
	leaseBounds    = "lease: between 100ms and 24h"
	ttlBounds      = "ttl: between 1s and 87600h"
	ttlPattern     = "spec.ttl in body should match"
	onlyMessageID  = "key: strategy MessageID takes the member messageID and no other"
	onlyHash       = "key: strategy ContentHash takes the member contentHash and no other"
	onlyComposite  = "key: strategy Composite takes the member composite and no other"
	oneIDSource    = "messageID: exactly one of header, jsonPath or cloudEvent: true"
	onePartSource  = "parts: exactly one of header or jsonPath in each part"
	hashNeedsJSON  = "contentHash: include and exclude are paths into JSON; they need canonical: JSON"
	hashOneOf      = "contentHash: include or exclude, not both"
	badHeader      = "header: letters, digits and any of"
	badPath        = "jsonPath: a singular query of RFC 9535"
	oneStore       = "store: exactly one of redis, postgres or memory"
	denseMark      = "mode: must be Mark with store.redis.keyFormat: Dense"
	denseVerify    = "key.messageID.verifyContent: not with store.redis.keyFormat: Dense"
	denseLayout    = "store.redis.dense: another number of expected messages lays the keys out anew"
	masterName     = "redis.masterName: with mode: Sentinel, and only then"
	oneAddress     = "redis.addresses: exactly one with mode: Standalone"
	badAddress     = "redis.addresses: host:port with a port from 1 to 65535"
	oneReplica     = "deployment.replicas: must be 1 with store.memory"
	noMemoryScale  = "deployment.autoscaling: not with store.memory"
	noMemoryPool   = "deployment.pool: not with store.memory"
	badPool        = "deployment.pool: lower-case letters, digits and '-', neither first nor last a '-', at most 51 characters"
	replicasOrHPA  = "deployment: replicas or autoscaling, not both"
	minOverMax     = "autoscaling: minReplicas must not exceed maxReplicas"
	nameLength     = "metadata.name: at most 52 characters"
	nameForm       = "metadata.name: lower-case letters, digits and '-'"
	epochDown      = "epoch: never goes down"
	keyChanged     = "key: this change makes every remembered message unrecognisable"
	scopeChanged   = "scope: this change makes every remembered message unrecognisable"
	storeChanged   = "store: another kind of store starts with an empty history"
	keyspaceChange = "store.redis.keyPrefix, store.redis.keyFormat: this change makes"
)

// Changes that several cases share.
var (
	claim     = set("spec.mode", "Claim")
	memory    = set("spec.store", "{memory: {}}")
	postgres  = set("spec.store", "{postgres: {addresses: ['pg:5432'], database: dedup, credentialsSecretRef: {name: pg}}}")
	hash      = func(member string) change { return set("spec.key", "{strategy: ContentHash, contentHash: "+member+"}") }
	composite = func(parts string) change {
		return set("spec.key", "{strategy: Composite, composite: {parts: "+parts+"}}")
	}
	header = func(name string) change { return setRaw("spec.key.messageID", map[string]any{"header": name}) }
	path   = func(query string) change { return setRaw("spec.key.messageID", map[string]any{"jsonPath": query}) }
	redis  = func(member string) change { return set("spec.store.redis", member) }
	dense  = redis("{addresses: ['a:1'], keyFormat: Dense}")
	addr   = func(a string) change { return setRaw("spec.store.redis.addresses", []any{a}) }
)

var specCases = map[string]validationCase{
	"the smallest policy": {},

	"claim with mode Claim":         {create: []change{claim, set("spec.claim", "{lease: 30s}")}},
	"mode Claim without claim":      {create: []change{claim}},
	"claim with mode Mark":          {create: []change{set("spec.claim", "{lease: 30s}")}, want: claimOnly},
	"a lease shorter than ttl":      {create: []change{claim, set("spec.claim", "{lease: 59m59s}")}},
	"a lease as long as ttl":        {create: []change{claim, set("spec.claim", "{lease: 60m}")}, want: leaseOrder},
	"the default lease under ttl":   {create: []change{claim, set("spec.ttl", "31s")}},
	"the default lease over ttl":    {create: []change{claim, set("spec.ttl", "30s")}, want: leaseOrder},
	"an empty claim's lease is 30s": {create: []change{claim, set("spec.ttl", "20s"), set("spec.claim", "{}")}, want: leaseOrder},
	"the shortest lease":            {create: []change{claim, set("spec.claim", "{lease: 100ms}")}},
	"a lease too short":             {create: []change{claim, set("spec.claim", "{lease: 99ms}")}, want: leaseBounds},
	"the longest lease":             {create: []change{claim, set("spec.ttl", "48h"), set("spec.claim", "{lease: 24h}")}},
	"a lease too long":              {create: []change{claim, set("spec.ttl", "48h"), set("spec.claim", "{lease: 24h1s}")}, want: leaseBounds},
	"a lease that is no duration":   {create: []change{claim, set("spec.claim", "{lease: soon}")}, want: "spec.claim.lease in body should match"},

	"the shortest ttl":        {create: []change{set("spec.ttl", "1s")}},
	"a ttl in several units":  {create: []change{set("spec.ttl", "1h30m0.5s")}},
	"a ttl too short":         {create: []change{set("spec.ttl", "999ms")}, want: ttlBounds},
	"a ttl of zero":           {create: []change{set("spec.ttl", "0s")}, want: ttlBounds},
	"the longest ttl":         {create: []change{set("spec.ttl", "87600h")}},
	"a ttl too long":          {create: []change{set("spec.ttl", "87600h1s")}, want: ttlBounds},
	"a ttl that overflows":    {create: []change{set("spec.ttl", "9999999999999h")}, want: "spec.ttl"},
	"a ttl without a unit":    {create: []change{set("spec.ttl", "'60'")}, want: ttlPattern},
	"a ttl in days":           {create: []change{set("spec.ttl", "7d")}, want: ttlPattern},
	"a negative ttl":          {create: []change{set("spec.ttl", "-1h")}, want: ttlPattern},
	"a ttl that is a number":  {create: []change{set("spec.ttl", "60")}, want: "spec.ttl in body must be of type string"},
	"no ttl":                  {create: []change{without("spec.ttl")}, want: "spec.ttl: Required value"},
	"an unknown mode":         {create: []change{set("spec.mode", "Both")}, want: `supported values: "Mark", "Claim"`},
	"an unknown scope":        {create: []change{set("spec.scope", "All")}, want: `supported values: "Consumer", "Policy"`},
	"an unknown enforcement":  {create: []change{set("spec.enforcement", "Off")}, want: `supported values: "Enforce", "Shadow"`},
	"an unknown failure mode": {create: []change{set("spec.onStoreFailure", "Drop")}, want: `supported values: "FailClosed", "FailOpen"`},
	"an unknown missing mode": {create: []change{set("spec.key.onMissing", "Drop")}, want: `supported values: "Reject", "Process"`},
	"an unknown strategy":     {create: []change{set("spec.key", "{strategy: Bloom}")}, want: `supported values: "MessageID", "ContentHash", "Composite"`},
	"an unknown canonical":    {create: []change{hash("{canonical: XML}")}, want: `supported values: "None", "JSON"`},
	"an unknown redis mode":   {create: []change{redis("{mode: Ring, addresses: ['a:1']}")}, want: `supported values: "Standalone", "Sentinel", "Cluster"`},
	"an unknown key format":   {create: []change{redis("{keyFormat: Hex, addresses: ['a:1']}")}, want: `supported values: "Readable", "Compact", "Dense"`},
	"the highest epoch":       {create: []change{set("spec.epoch", "1000000")}},
	"an epoch too high":       {create: []change{set("spec.epoch", "1000001")}, want: "should be less than or equal to 1000000"},
	"an epoch of zero":        {create: []change{set("spec.epoch", "0")}, want: "should be greater than or equal to 1"},
	"a secret's name in mixed case": {
		create: []change{set("spec.store.redis.credentialsSecretRef", "{name: Redis}")},
		want:   "credentialsSecretRef.name in body should match",
	},
	"secrets of their own for credentials, authority and client": {create: []change{
		set("spec.store.redis.credentialsSecretRef", "{name: redis.auth}"),
		set("spec.store.redis.tls", "{caSecretRef: {name: ca}, clientSecretRef: {name: client}, serverName: redis}"),
	}},
}

var keyCases = map[string]validationCase{
	"MessageID without its member": {create: []change{set("spec.key", "{strategy: MessageID}")}, want: onlyMessageID},
	"MessageID with another's member": {
		create: []change{set("spec.key.contentHash", "{}")}, want: onlyMessageID,
	},
	"ContentHash without its member": {create: []change{set("spec.key", "{strategy: ContentHash}")}},
	"ContentHash with its member":    {create: []change{hash("{canonical: JSON}")}},
	"ContentHash with another's member": {
		create: []change{set("spec.key", "{strategy: ContentHash, messageID: {header: id}}")}, want: onlyHash,
	},
	"Composite with its member":    {create: []change{composite("[{header: a}, {jsonPath: $.b}]")}},
	"Composite without its member": {create: []change{set("spec.key", "{strategy: Composite}")}, want: onlyComposite},
	"Composite with another's member": {
		create: []change{composite("[{header: a}]"), set("spec.key.contentHash", "{}")}, want: onlyComposite,
	},
	"Composite without parts": {create: []change{composite("[]")}, want: "should have at least 1 items"},
	"Composite with too many parts": {
		create: []change{composite("[" + strings.Repeat("{header: a},", 17) + "]")}, want: "must have at most 16 items",
	},

	"an ID in a header":              {create: []change{header("Message-ID")}},
	"an ID at a path":                {create: []change{path("$.id")}},
	"an ID of a CloudEvent":          {create: []change{set("spec.key.messageID", "{cloudEvent: true, verifyContent: true}")}},
	"no source of the ID":            {create: []change{set("spec.key.messageID", "{}")}, want: oneIDSource},
	"cloudEvent false is no source":  {create: []change{set("spec.key.messageID", "{cloudEvent: false}")}, want: oneIDSource},
	"cloudEvent false with a header": {create: []change{set("spec.key.messageID", "{cloudEvent: false, header: id}")}},
	"two sources of the ID":          {create: []change{set("spec.key.messageID", "{header: id, jsonPath: $.id}")}, want: oneIDSource},
	"a part with two sources":        {create: []change{composite("[{header: a, jsonPath: $.a}]")}, want: onePartSource},
	"a part without a source":        {create: []change{composite("[{header: a}, {}]")}, want: onePartSource},

	"included paths with canonical JSON":    {create: []change{hash("{canonical: JSON, include: [$.a, '$.b[0]']}")}},
	"excluded paths with canonical JSON":    {create: []change{hash("{canonical: JSON, exclude: [$.sent_at]}")}},
	"headers with any canonical form":       {create: []change{hash("{headers: [x-tenant]}")}},
	"included paths without canonical JSON": {create: []change{hash("{include: [$.a]}")}, want: hashNeedsJSON},
	"excluded paths with canonical None":    {create: []change{hash("{canonical: None, exclude: [$.a]}")}, want: hashNeedsJSON},
	"included and excluded paths":           {create: []change{hash("{canonical: JSON, include: [$.a], exclude: [$.b]}")}, want: hashOneOf},
	"an included path with a wildcard":      {create: []change{hash("{canonical: JSON, include: ['$.a[*]']}")}, want: badPath},
	"an excluded path without a root":       {create: []change{hash("{canonical: JSON, exclude: [sent_at]}")}, want: badPath},
	"a hashed header with a space":          {create: []change{hash("{headers: ['x tenant']}")}, want: badHeader},
	"a part's header with a space":          {create: []change{composite("[{header: 'x tenant'}]")}, want: badHeader},
	"a part's path that selects all":        {create: []change{composite("[{jsonPath: '$..id'}]")}, want: badPath},
}

var storeCases = map[string]validationCase{
	"a near cache":                   {create: []change{set("spec.nearCache", "{maxEntries: 1000, maxAge: 10m}")}},
	"a near cache for ever":          {create: []change{set("spec.nearCache", "{maxAge: 11m}")}, want: "nearCache.maxAge: between 100ms and 10m"},
	"no store":                       {create: []change{set("spec.store", "{}")}, want: oneStore},
	"two stores":                     {create: []change{set("spec.store.memory", "{}")}, want: oneStore},
	"postgres":                       {create: []change{postgres}},
	"postgres without a database":    {create: []change{postgres, without("spec.store.postgres.database")}, want: "spec.store.postgres.database: Required value"},
	"postgres without credentials":   {create: []change{postgres, without("spec.store.postgres.credentialsSecretRef")}, want: "spec.store.postgres.credentialsSecretRef: Required value"},
	"postgres with a scheme":         {create: []change{postgres, set("spec.store.postgres.addresses", "['postgres://pg:5432']")}, want: "postgres.addresses: host:port with a port from 1 to 65535"},
	"a durability without replicas":  {create: []change{redis("{addresses: ['a:1'], durability: {timeout: 50ms}}")}, want: "durability.replicas: Required value"},
	"a durability that waits long":   {create: []change{redis("{addresses: ['a:1'], durability: {replicas: 1, timeout: 1s}}")}, want: "durability.timeout: between 1ms and 500ms"},
	"dense with mode Mark":           {create: []change{dense}},
	"dense with mode Claim":          {create: []change{dense, claim}, want: denseMark},
	"dense with verified content":    {create: []change{dense, set("spec.key.messageID.verifyContent", "true")}, want: denseVerify},
	"settings of dense without it":   {create: []change{redis("{addresses: ['a:1'], dense: {expectedMessages: 5000}}")}, want: "redis.dense: only with keyFormat: Dense"},
	"memory":                         {create: []change{memory}},
	"memory with one replica":        {create: []change{memory, set("spec.deployment", "{replicas: 1}")}},
	"memory with two replicas":       {create: []change{memory, set("spec.deployment", "{replicas: 2}")}, want: oneReplica},
	"memory with autoscaling":        {create: []change{memory, set("spec.deployment", "{autoscaling: {maxReplicas: 3}}")}, want: noMemoryScale},
	"memory for no entries":          {create: []change{set("spec.store", "{memory: {maxEntries: 0}}")}, want: "should be greater than or equal to 1"},
	"memory in a pool":               {create: []change{memory, set("spec.deployment", "{pool: small}")}, want: noMemoryPool},
	"redis in a pool":                {create: []change{set("spec.deployment", "{pool: small}")}},
	"another pool":                   {create: []change{set("spec.deployment", "{pool: small}")}, update: []change{set("spec.deployment", "{pool: other}")}},
	"a pool in mixed case":           {create: []change{set("spec.deployment", "{pool: Small}")}, want: badPool},
	"a pool with a dot":              {create: []change{set("spec.deployment", "{pool: a.b}")}, want: badPool},
	"a pool that ends with a dash":   {create: []change{set("spec.deployment", "{pool: a-}")}, want: badPool},
	"the longest pool's name":        {create: []change{setRaw("spec.deployment", map[string]any{"pool": strings.Repeat("a", 51)})}},
	"a pool's name too long":         {create: []change{setRaw("spec.deployment", map[string]any{"pool": strings.Repeat("a", 52)})}, want: "may not be more than 51"},
	"redis with three replicas":      {create: []change{set("spec.deployment", "{replicas: 3}")}},
	"redis with autoscaling":         {create: []change{set("spec.deployment", "{autoscaling: {minReplicas: 3, maxReplicas: 3}}")}},
	"replicas and autoscaling":       {create: []change{set("spec.deployment", "{replicas: 3, autoscaling: {maxReplicas: 3}}")}, want: replicasOrHPA},
	"a minimum over the maximum":     {create: []change{set("spec.deployment", "{autoscaling: {minReplicas: 4, maxReplicas: 3}}")}, want: minOverMax},
	"the default minimum over it":    {create: []change{set("spec.deployment", "{autoscaling: {maxReplicas: 1}}")}, want: minOverMax},
	"sentinels with a master":        {create: []change{redis("{mode: Sentinel, masterName: m, addresses: ['a:26379', 'b:26379']}")}},
	"sentinels without a master":     {create: []change{redis("{mode: Sentinel, addresses: ['a:26379']}")}, want: masterName},
	"a master without sentinels":     {create: []change{redis("{masterName: m, addresses: ['a:6379']}")}, want: masterName},
	"a cluster's nodes":              {create: []change{redis("{mode: Cluster, addresses: ['a:6379', 'b:6379']}")}},
	"two standalone servers":         {create: []change{redis("{addresses: ['a:6379', 'b:6379']}")}, want: oneAddress},
	"no addresses":                   {create: []change{redis("{addresses: []}")}, want: "should have at least 1 items"},
	"an IPv4 address":                {create: []change{addr("10.0.0.1:6379")}},
	"an IPv6 address":                {create: []change{addr("[fd00::1]:6379")}},
	"an IPv6 address without []":     {create: []change{addr("fd00::1:6379")}, want: badAddress},
	"an address without a port":      {create: []change{addr("redis.shop.svc")}, want: badAddress},
	"an address with a scheme":       {create: []change{addr("redis://redis:6379")}, want: badAddress},
	"an address with the port 0":     {create: []change{addr("redis:0")}, want: badAddress},
	"an address with the top port":   {create: []change{addr("redis:65535")}},
	"an address with a port too far": {create: []change{addr("redis:65536")}, want: badAddress},
	"a key prefix":                   {create: []change{redis("{addresses: ['a:1'], keyPrefix: 'shop:orders:'}")}},
	"a key prefix with a space":      {create: []change{redis("{addresses: ['a:1'], keyPrefix: 'shop orders'}")}, want: "keyPrefix in body should match"},

	"the longest name":            {create: []change{setRaw("metadata.name", strings.Repeat("a", 52))}},
	"a name too long":             {create: []change{setRaw("metadata.name", strings.Repeat("a", 53))}, want: nameLength},
	"a name with a dot":           {create: []change{setRaw("metadata.name", "orders.eu")}, want: nameForm},
	"a name that starts a number": {create: []change{setRaw("metadata.name", "1orders")}, want: nameForm},
}

var headerCases = map[string]validationCase{
	"every mark that a header may have": {create: []change{header("!#$%&'*+.^_`|~-:aZ9")}},
	"an empty header":                   {create: []change{header("")}, want: "should be at least 1 chars long"},
	"a header with a space":             {create: []change{header("message id")}, want: badHeader},
	"a header with a letter of UTF-8":   {create: []change{header("nachrichten-ä")}, want: badHeader},
	"a header with a line end":          {create: []change{header("id\n")}, want: badHeader},
	"a header with a backslash":         {create: []change{header(`a\b`)}, want: badHeader},
	"a header with a quotation mark":    {create: []change{header(`a"b`)}, want: badHeader},
	"the longest header":                {create: []change{header(strings.Repeat("h", 128))}},
	"a header too long":                 {create: []change{header(strings.Repeat("h", 129))}, want: "may not be more than 128"},
}

// The API server and dedupd/key answer alike for these; RFC 9535, sections 2.3.5 and 2.5.1.
var (
	goodPaths = []string{
		"$.a", "$.order.id", "$._x", "$.ä.ö", "$.日本", "$.a1",
		"$['a']", `$["a"]`, "$['user id']", "$['']", "$['a'].b['c'][0]", "$[0]", "$[-1]", "$.a[10]",
		`$['it\'s']`, `$["\""]`, `$['\\']`, `$['\u00e4']`, `$['\n\t\/']`, `$['"']`, `$["'"]`,
		"$ .a", "$[ 'a' ]", "$\n.a", "$[\t0 ]",
	}
	badPaths = []string{
		"$", "a", ".a", "$a", "$.", "$..a", "$.*", "$[*]", "$[0,1]", "$[0:1]", "$[?@.a]", "$.1a", "$.a-b",
		"$[01]", "$[-0]", "$[a]", "$['a", "$['a\"]", "$[']", `$['\x']`, `$["\'"]`, `$['\"']`, `$['\u12']`, "$['\n']",
		"$.a ", " $.a", "$.a.", "$[]", "$[1.0]", "$[+1]", "$. a", "$.a b",
	}
)

func pathCases() map[string]validationCase {
	cases := map[string]validationCase{
		"a path too long": {create: []change{path("$." + strings.Repeat("a", 255))}, want: "may not be more than 256"},
	}
	for _, p := range goodPaths {
		cases["the path "+p] = validationCase{create: []change{path(p)}}
	}
	for _, p := range badPaths {
		want := badPath
		if len(p) < 2 {
			want = "should be at least 2 chars long"
		}
		cases["no path: "+p] = validationCase{create: []change{path(p)}, want: want}
	}
	return cases
}

var transitionCases = map[string]validationCase{
	"ttl, mode and enforcement change freely": {
		update: []change{set("spec.ttl", "2h"), claim, set("spec.enforcement", "Shadow"), set("spec.onStoreFailure", "FailOpen")},
	},
	"what changes no key, changes freely": {
		update: []change{set("spec.key.onMissing", "Process"), set("spec.key.messageID.verifyContent", "true"), set("spec.key.messageID.cloudEvent", "false")},
	},
	"another strategy": {
		update: []change{set("spec.key", "{strategy: ContentHash}")}, want: keyChanged,
	},
	"another order of the same parts": {
		create: []change{set("spec.key", "{strategy: Composite, composite: {parts: [{header: a}, {header: b}]}}")},
		update: []change{set("spec.key", "{strategy: Composite, composite: {parts: [{header: b}, {header: a}]}}")},
		want:   keyChanged,
	},
	"more is excluded from the content": {
		create: []change{set("spec.key", "{strategy: ContentHash, contentHash: {canonical: JSON, exclude: [$.a]}}")},
		update: []change{set("spec.key", "{strategy: ContentHash, contentHash: {canonical: JSON, exclude: [$.a, $.b]}}")},
		want:   keyChanged,
	},
	"other addresses of the same kind of store": {update: []change{addr("redis2:6379")}},
	"the epoch goes up":                         {update: []change{set("spec.epoch", "2")}},
	"the epoch goes down": {
		create: []change{set("spec.epoch", "3")}, update: []change{set("spec.epoch", "2")}, want: epochDown,
	},
	"another key":                  {update: []change{header("other")}, want: keyChanged},
	"another key in a new epoch":   {update: []change{header("other"), set("spec.epoch", "2")}},
	"another scope":                {update: []change{set("spec.scope", "Policy")}, want: scopeChanged},
	"another scope in a new epoch": {update: []change{set("spec.scope", "Policy"), set("spec.epoch", "2")}},
	"another kind of store":        {update: []change{memory}, want: storeChanged},
	"another kind of store in a new epoch": {
		update: []change{memory, set("spec.epoch", "2")},
	},
	"another prefix":                {update: []change{set("spec.store.redis.keyPrefix", "'x:'")}, want: keyspaceChange},
	"another prefix in a new epoch": {update: []change{set("spec.store.redis.keyPrefix", "'x:'"), set("spec.epoch", "2")}},
	"a prefix taken away": {
		create: []change{set("spec.store.redis.keyPrefix", "'x:'")}, update: []change{without("spec.store.redis.keyPrefix")},
		want: keyspaceChange,
	},
	"another ttl of dense":              {create: []change{dense}, update: []change{set("spec.ttl", "2h")}},
	"another size of dense":             {create: []change{dense}, update: []change{set("spec.store.redis.dense", "{expectedMessages: 5000}")}, want: denseLayout},
	"another durability":                {update: []change{set("spec.store.redis.durability", "{replicas: 1}")}},
	"another database":                  {create: []change{postgres}, update: []change{set("spec.store.postgres.database", "other")}},
	"another key format":                {update: []change{set("spec.store.redis.keyFormat", "Compact")}, want: keyspaceChange},
	"another key format in a new epoch": {update: []change{set("spec.store.redis.keyFormat", "Compact"), set("spec.epoch", "2")}},
	"a default written out":             {update: []change{set("spec.store.redis.keyFormat", "Readable"), set("spec.epoch", "1")}},
}

func TestAPIServerHoldsPoliciesToTheRules(t *testing.T) {
	said := &answers{}
	for _, cases := range []map[string]validationCase{
		specCases, keyCases, storeCases, headerCases, pathCases(), transitionCases,
	} {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) { c.run(t, said) })
		}
	}
	t.Run("every rule has refused something", func(t *testing.T) {
		for _, message := range ruleMessages(t) {
			if !said.contains(message) {
				t.Errorf("no case is refused with %q", message)
			}
		}
	})
}

func (c validationCase) run(t *testing.T, said *answers) {
	t.Helper()
	ctx := context.Background()
	var err error
	if c.update == nil {
		err = k8s.Create(ctx, policy(t, c.create...), client.DryRunAll)
	} else {
		namespace := setRaw("metadata.namespace", newNamespace(t))
		created := policy(t, slices.Concat([]change{namespace}, c.create)...)
		if err := k8s.Create(ctx, created); err != nil {
			t.Fatal(err)
		}
		updated := policy(t, slices.Concat([]change{namespace}, c.create, c.update)...)
		updated.SetResourceVersion(created.GetResourceVersion())
		err = k8s.Update(ctx, updated)
	}
	switch {
	case c.want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case c.want != "" && err == nil:
		t.Errorf("accepted; want it refused with %q", c.want)
	case c.want != "" && !strings.Contains(err.Error(), c.want):
		t.Errorf("refused with\n  %v\nwant\n  %q", err, c.want)
	}
	if err != nil {
		said.add(err.Error())
	}
}

// answers collects what the API server said.
type answers struct {
	mu  sync.Mutex
	all []string
}

func (a *answers) add(s string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, s)
}

func (a *answers) contains(message string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.all, func(s string) bool { return strings.Contains(s, message) })
}

// ruleMessages are the messages of all CEL rules of the CRD.
func ruleMessages(t *testing.T) []string {
	t.Helper()
	def, _ := crd(t)
	var messages []string
	walkSchema("", def.Spec.Versions[0].Schema.OpenAPIV3Schema, func(_ string, s *apiextensionsv1.JSONSchemaProps) {
		for _, rule := range s.XValidations {
			messages = append(messages, rule.Message)
		}
	})
	slices.Sort(messages)
	return slices.Compact(messages)
}
