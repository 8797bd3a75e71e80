package v1alpha1

// KeyStrategy names the way a message becomes a key.
//
// +kubebuilder:validation:Enum=MessageID;ContentHash;Composite
type KeyStrategy string

// The key strategies.
const (
	StrategyMessageID   KeyStrategy = "MessageID"
	StrategyContentHash KeyStrategy = "ContentHash"
	StrategyComposite   KeyStrategy = "Composite"
)

// MissingPolicy says what happens to a message whose key cannot be formed.
//
// +kubebuilder:validation:Enum=Reject;Process
type MissingPolicy string

// The missing policies.
const (
	MissingReject  MissingPolicy = "Reject"
	MissingProcess MissingPolicy = "Process"
)

// KeySpec says how a message becomes a key. Strategy names the member that applies.
//
// +kubebuilder:validation:XValidation:rule="self.strategy != 'MessageID' || (has(self.messageID) && !has(self.contentHash) && !has(self.composite))",message="key: strategy MessageID takes the member messageID and no other"
// +kubebuilder:validation:XValidation:rule="self.strategy != 'ContentHash' || (!has(self.messageID) && !has(self.composite))",message="key: strategy ContentHash takes the member contentHash and no other"
// +kubebuilder:validation:XValidation:rule="self.strategy != 'Composite' || (has(self.composite) && !has(self.messageID) && !has(self.contentHash))",message="key: strategy Composite takes the member composite and no other"
type KeySpec struct {
	// MessageID: an identifier that the producer gave the message. ContentHash: SHA-256 of
	// the content. Composite: several fields together, such as user_id and event_type.
	// +required
	Strategy KeyStrategy `json:"strategy"`

	// Where the message's own identifier stands. Exactly one of header, jsonPath, cloudEvent.
	// +optional
	MessageID *MessageIDKey `json:"messageID,omitempty"`

	// What of the content is hashed. Without it, the body byte for byte.
	// +optional
	ContentHash *ContentHashKey `json:"contentHash,omitempty"`

	// The fields that identify a message together. Their order counts.
	// +optional
	Composite *CompositeKey `json:"composite,omitempty"`

	// What happens to a message whose key cannot be formed: a part is absent, null or empty,
	// or the body is not the JSON that a path needs. Reject answers an error that names what
	// is missing. Process lets it through as UNCHECKED.
	// +optional
	// +kubebuilder:default=Reject
	OnMissing MissingPolicy `json:"onMissing,omitempty"`
}

// MessageIDKey says where a message's own identifier stands.
//
// +kubebuilder:validation:XValidation:rule="(has(self.header) ? 1 : 0) + (has(self.jsonPath) ? 1 : 0) + (has(self.cloudEvent) && self.cloudEvent ? 1 : 0) == 1",message="messageID: exactly one of header, jsonPath or cloudEvent: true"
type MessageIDKey struct {
	// The name of a header (a property, an attribute), compared without case.
	// +optional
	Header HeaderName `json:"header,omitempty"`

	// The place of the identifier in a JSON body.
	// +optional
	JSONPath JSONPath `json:"jsonPath,omitempty"`

	// Takes source and id of a CloudEvent, which identify an event together (CloudEvents 1.0,
	// section 3.1.1), from the ce headers, or from the body in structured mode.
	// +optional
	CloudEvent bool `json:"cloudEvent,omitempty"`

	// Answers CONFLICT, not DUPLICATE, to a message with a known identifier and other content.
	// +optional
	VerifyContent bool `json:"verifyContent,omitempty"`
}

// Canonicalization says in which form a body is hashed.
//
// +kubebuilder:validation:Enum=None;JSON
type Canonicalization string

// The canonical forms.
const (
	CanonicalNone Canonicalization = "None"
	CanonicalJSON Canonicalization = "JSON"
)

// ContentHashKey says what of a message's content is hashed.
//
// +kubebuilder:validation:XValidation:rule="self.canonical == 'JSON' || (!has(self.include) && !has(self.exclude))",message="contentHash: include and exclude are paths into JSON; they need canonical: JSON"
// +kubebuilder:validation:XValidation:rule="!(has(self.include) && has(self.exclude))",message="contentHash: include or exclude, not both"
type ContentHashKey struct {
	// None hashes the body byte for byte. JSON hashes its canonical form (RFC 8785), so that
	// white space and the order of members do not count.
	// +optional
	// +kubebuilder:default=None
	Canonical Canonicalization `json:"canonical,omitempty"`

	// Hashes only what stands at these places. A message that has none of them has no key.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Include []JSONPath `json:"include,omitempty"`

	// Hashes everything but what stands at these places, such as a time of sending.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Exclude []JSONPath `json:"exclude,omitempty"`

	// Headers that are part of the content. An absent one is hashed as absent.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Headers []HeaderName `json:"headers,omitempty"`
}

// CompositeKey is several fields that identify a message together.
type CompositeKey struct {
	// The fields, in order.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Parts []KeyPart `json:"parts"`
}

// KeyPart is one field of a composite key.
//
// +kubebuilder:validation:XValidation:rule="has(self.header) != has(self.jsonPath)",message="parts: exactly one of header or jsonPath in each part"
type KeyPart struct {
	// The name of a header (a property, an attribute), compared without case.
	// +optional
	Header HeaderName `json:"header,omitempty"`

	// The place of the field in a JSON body.
	// +optional
	JSONPath JSONPath `json:"jsonPath,omitempty"`
}

// HeaderName is the name of a message header. Names are compared without case.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=128
// +kubebuilder:validation:XValidation:rule="self.matches('^[!#$%&\\'*+.^_`|~0-9A-Za-z:-]+$')",message="header: letters, digits and any of ! # $ % & ' * + - . ^ _ ` | ~ : (no space)"
type HeaderName string

// JSONPath is a singular query of RFC 9535: the root $ followed by member names and array
// indices, such as $.order.id, $['user id'] or $.items[0]. No wildcards, filters or slices,
// since a key needs exactly one value.
//
// +kubebuilder:validation:MinLength=2
// +kubebuilder:validation:MaxLength=256
// +kubebuilder:validation:XValidation:rule="self.matches(r'^\\$([ \\t\\n\\r]*(\\.[A-Za-z_\\x{80}-\\x{10FFFF}][A-Za-z0-9_\\x{80}-\\x{10FFFF}]*|\\[[ \\t\\n\\r]*(0|-?[1-9][0-9]*|\\x27([^\\x27\\\\\\x{0}-\\x{1F}]|\\\\([bfnrt/\\\\\\x27]|u[0-9A-Fa-f]{4}))*\\x27|\\x22([^\\x22\\\\\\x{0}-\\x{1F}]|\\\\([bfnrt/\\\\\\x22]|u[0-9A-Fa-f]{4}))*\\x22)[ \\t\\n\\r]*\\]))+$')",message="jsonPath: a singular query of RFC 9535, such as $.order.id, $['user id'] or $.items[0]; wildcards, filters, slices and '..' select more than one value"
type JSONPath string
