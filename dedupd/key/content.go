package key

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
)

// ContentOptions say what of a message's content is hashed.
type ContentOptions struct {
	// Canonical hashes the canonical form of a JSON body (RFC 8785) and not its bytes. Include
	// and Exclude imply it.
	Canonical bool

	// Include, unless empty, hashes only what stands at these places, in order.
	Include []Path

	// Exclude leaves out the members and elements at these places, all of them found before
	// the first is left out.
	Exclude []Path

	// Headers are the names of headers that are hashed too, in order.
	Headers []string
}

// contentHash is the strategy that takes the SHA-256 of the content.
type contentHash struct {
	canonical        bool
	include, exclude []Path
	headers          []string // in lower case
}

// ContentHash returns the strategy whose key is the SHA-256 of the content in hexadecimal:
//
//   - of the body, or of its canonical form without what is excluded, so that sha256sum gives
//     the same;
//   - with Include or Headers, of these in order and then of the body (without Include): each
//     a byte 0 where it is absent, else a byte 1, the length as 8 bytes, big endian, and the
//     value; a value in the body in its canonical form if the body is.
func ContentHash(o ContentOptions) Strategy {
	c := &contentHash{
		canonical: o.Canonical || len(o.Include) > 0 || len(o.Exclude) > 0,
		include:   slices.Clone(o.Include),
		exclude:   slices.Clone(o.Exclude),
	}
	for _, name := range o.Headers {
		c.headers = append(c.headers, strings.ToLower(name))
	}
	return c
}

// AppendKey implements Strategy.
func (c *contentHash) AppendKey(dst []byte, m Message) ([]byte, error) {
	if !c.canonical && len(c.headers) == 0 {
		sum := sha256.Sum256(m.Body)
		return hex.AppendEncode(dst, sum[:]), nil
	}
	d := documents.Get().(*document)
	defer d.release()
	if c.canonical {
		if err := d.load(m.Body); err != nil {
			return dst, err
		}
	}
	if err := c.write(d, m); err != nil {
		return dst, err
	}
	sum := sha256.Sum256(d.out)
	return hex.AppendEncode(dst, sum[:]), nil
}

// write writes to d.out what is hashed.
func (c *contentHash) write(d *document, m Message) error {
	d.out, d.scratch = d.out[:0], d.scratch[:0]
	for _, name := range c.headers {
		value, ok := m.header(name)
		d.out = appendFramed(d.out, value, ok)
	}
	if len(c.include) > 0 {
		return c.writeIncluded(d)
	}
	framed := len(c.headers) > 0
	if !c.canonical {
		d.out = appendFramed(d.out, m.Body, true)
		return nil
	}
	for i := range c.exclude {
		if at, ok := d.find(&c.exclude[i]); ok {
			d.nodes[at].excluded = true
		}
	}
	if d.nodes[0].excluded {
		return &MissingError{What: "the content beside what is excluded", How: absent}
	}
	return d.writeValue(0, framed)
}

// writeIncluded writes the values at the included places.
func (c *contentHash) writeIncluded(d *document) error {
	found := false
	for i := range c.include {
		at, ok := d.find(&c.include[i])
		if !ok {
			d.out = appendFramed(d.out, "", false)
			continue
		}
		found = true
		if err := d.writeValue(at, true); err != nil {
			return err
		}
	}
	if !found {
		return missingPaths(c.include)
	}
	return nil
}

func missingPaths(paths []Path) error {
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = p.String()
	}
	if len(names) == 1 {
		return missingPath(&paths[0], absent)
	}
	return &MissingError{What: "each of the paths " + strings.Join(names, ", "), How: absent}
}

// writeValue appends the canonical form of a value to d.out, framed if asked.
func (d *document) writeValue(at uint32, framed bool) error {
	start := len(d.out)
	if framed {
		d.out = appendFramed(d.out, "", true)
	}
	value := len(d.out)
	out, err := d.appendCanonical(d.out, at)
	if err != nil {
		return err
	}
	d.out = out
	if framed {
		binary.BigEndian.PutUint64(d.out[start+1:], uint64(len(d.out)-value))
	}
	return nil
}

// appendFramed appends a value so that no sequence of values looks like another.
func appendFramed[T string | []byte](dst []byte, value T, present bool) []byte {
	if !present {
		return append(dst, 0)
	}
	dst = append(dst, 1)
	dst = binary.BigEndian.AppendUint64(dst, uint64(len(value)))
	return append(dst, value...)
}
