package key

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// cloudEvent is the strategy that takes source and id of a CloudEvent.
type cloudEvent struct{}

// CloudEvent returns the strategy that takes source and id, which identify an event together
// (CloudEvents 1.0, section 3.1.1): from the body in structured mode, that is, with the content
// type application/cloudevents+json; else from the headers of binary mode. The same event gives
// the same key in either mode and over any of the protocols.
func CloudEvent() Strategy { return cloudEvent{} }

// attributeNames are the names, in lower case, under which one protocol binding carries the
// attributes in binary mode.
type attributeNames struct {
	source, id string
	encoded    bool // values are percent-encoded
}

// bindings are the protocol bindings, in the order in which they are looked for.
var bindings = [...]attributeNames{
	{source: "ce-source", id: "ce-id", encoded: true},    // HTTP, NATS
	{source: "ce_source", id: "ce_id"},                   // Kafka
	{source: "cloudevents:source", id: "cloudevents:id"}, // AMQP
	{source: "cloudevents_source", id: "cloudevents_id"}, // AMQP, where ':' is not allowed
}

var (
	sourcePath = Path{text: "$.source", segments: []segment{{name: "source"}}}
	idPath     = Path{text: "$.id", segments: []segment{{name: "id"}}}
)

// AppendKey implements Strategy.
func (cloudEvent) AppendKey(dst []byte, m Message) ([]byte, error) {
	contentType, _ := m.header("content-type")
	structured, err := isStructured(contentType)
	if err != nil {
		return dst, err
	}
	if structured {
		return appendStructured(dst, m.Body)
	}
	for i := range bindings {
		b := &bindings[i]
		source, hasSource := m.header(b.source)
		id, hasID := m.header(b.id)
		switch {
		case !hasSource && !hasID:
			continue
		case source == "":
			return dst, missingHeader(b.source, hasSource)
		case id == "":
			return dst, missingHeader(b.id, hasID)
		}
		key, err := b.appendAttribute(dst, b.source, source)
		if err != nil {
			return dst, err
		}
		key, err = b.appendAttribute(append(key, separator), b.id, id)
		if err != nil {
			return dst, err
		}
		return key, nil
	}
	return dst, &MissingError{
		What: "a CloudEvent (headers ce-source and ce-id, ce_source and ce_id, or cloudEvents:source and cloudEvents:id, or a body with the content type application/cloudevents+json)",
		How:  absent,
	}
}

// isStructured says whether a content type means that the body is the event in JSON. Other
// formats and batches are errors: the body would be taken for the data of an event.
func isStructured(contentType string) (bool, error) {
	const prefix = "application/cloudevents"
	mediaType, _, _ := strings.Cut(contentType, ";")
	mediaType = strings.Trim(mediaType, " \t")
	if len(mediaType) < len(prefix) || !strings.EqualFold(mediaType[:len(prefix)], prefix) {
		return false, nil
	}
	format := mediaType[len(prefix):]
	switch {
	case strings.EqualFold(format, "+json"):
		return true, nil
	case len(format) >= 6 && strings.EqualFold(format[:6], "-batch"):
		return false, malformedHeader("content-type", "%s holds several events; send each as a message of its own", mediaType)
	}
	return false, malformedHeader("content-type", "of the CloudEvents formats only application/cloudevents+json can be read, not %s; or send the event in binary mode", mediaType)
}

func malformedHeader(lowerName, reason, value string) error {
	return &MalformedError{
		What:   "header " + strconv.Quote(lowerName),
		Offset: -1,
		Reason: fmt.Sprintf(reason, strconv.Quote(value[:min(len(value), 64)])),
	}
}

// appendStructured appends the key of an event that is the body.
func appendStructured(dst, body []byte) ([]byte, error) {
	d, err := parse(body)
	if err != nil {
		return dst, err
	}
	defer d.release()
	key, err := d.appendAttribute(dst, &sourcePath)
	if err != nil {
		return dst, err
	}
	if key, err = d.appendAttribute(append(key, separator), &idPath); err != nil {
		return dst, err
	}
	return key, nil
}

// appendAttribute appends an attribute of an event in JSON. A value that is no string would
// give another key than the same event in binary mode, so it is refused.
func (d *document) appendAttribute(dst []byte, p *Path) ([]byte, error) {
	if at, ok := d.find(p); ok {
		if n := d.nodes[at]; n.kind != kindString && n.kind != kindNull {
			return dst, d.fail(int(n.start), "%s is %s; CloudEvents wants a string", p, n.kind)
		}
	}
	return d.appendPart(dst, p)
}

// appendAttribute appends an attribute of binary mode.
func (b *attributeNames) appendAttribute(dst []byte, lowerName, value string) ([]byte, error) {
	if b.encoded {
		value = decodeHeader(value)
		if value == "" {
			return dst, missingHeader(lowerName, true)
		}
	}
	if !utf8.ValidString(value) {
		return dst, malformedHeader(lowerName, "%s is not UTF-8 (after percent-decoding), as CloudEvents demands", value)
	}
	return appendEscaped(dst, value), nil
}

// decodeHeader undoes the encoding of the HTTP binding (section 3.1.3.2): one pair of double
// quotes with backslash escapes, as older versions wrote it, then one round of percent-encoding.
// A percent sign that starts no escape stands for itself: senders older than the encoding write it so.
func decodeHeader(s string) string {
	quoted := len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"'
	if !quoted && strings.IndexByte(s, '%') < 0 {
		return s
	}
	if quoted {
		s = unquote(s[1 : len(s)-1])
	}
	decoded := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' && i+2 < len(s) {
			high, low := hexDigit(s[i+1]), hexDigit(s[i+2])
			if high >= 0 && low >= 0 {
				c = byte(high<<4 | low)
				i += 2
			}
		}
		decoded = append(decoded, c)
	}
	return string(decoded)
}

// unquote removes the backslash of each pair of RFC 7230, section 3.2.6.
func unquote(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	unquoted := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		unquoted = append(unquoted, s[i])
	}
	return string(unquoted)
}
